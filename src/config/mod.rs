//! Configuration: as written on the command line, then validated.

mod home;
mod serve;

pub use home::{Error as HomeError, home};
pub use serve::ServeArgs;
