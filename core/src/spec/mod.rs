//! From YAML as written to a validated specification.

mod command;

pub use command::*;
