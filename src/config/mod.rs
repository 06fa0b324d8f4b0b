//! Configuration: as written on the command line, then validated.

mod files;
mod home;
mod serve;

pub(crate) use files::{Here, bounded};
pub use home::{Error as HomeError, home, vault_key};
pub use serve::{ServeArgs, SignedUrls};
