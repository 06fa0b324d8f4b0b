//! Configuration: as written on the command line, then validated.

mod files;
mod home;
mod limits;
mod oidc;
mod serve;
mod storage;
mod transit;

pub(crate) use files::{Here, bounded};
pub use home::{Error as HomeError, data_dir, home, settings, vault_key};
pub use limits::LimitArgs;
pub use oidc::OidcArgs;
pub(crate) use serve::SourceParser;
pub use serve::{PublicData, ServeArgs, SignedUrls, TlsWhen};
pub use storage::{Error as StorageFileError, StorageFile};
pub use transit::TransitArgs;
