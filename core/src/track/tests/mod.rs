mod limits;
mod search;
mod values;
