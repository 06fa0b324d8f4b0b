mod limits;
mod registry;
mod search;
mod values;
