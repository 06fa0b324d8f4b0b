//! x
pub mod data;
pub mod environment;
