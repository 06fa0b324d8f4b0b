//! The daemon: one reactor that owns live state, and the effects around it.

mod admission;
mod asked;
mod assets;
mod authority;
mod builds;
mod caches;
mod clock;
mod components;
mod datastores;
mod effects;
mod environments;
mod folder;
mod handle;
mod listen;
mod logs;
mod moving;
mod nodes;
mod probe;
mod reactor;
mod removal;
mod retention;
mod runs;
mod secrets;
mod serve;
mod shared;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod uncommitted;
mod uploads;

pub use admission::{Admission, Error as AdmissionError};
pub use assets::{Assets, Error as AssetError, NotOwner};
pub use authority::Error as AuthorityError;
pub(crate) use authority::{Authority, AuthorityView};
pub use builds::Builds;
pub use caches::{Error as CacheError, NodeCaches};
pub use clock::Clock;
pub use components::{Components, Error as ComponentError};
pub use datastores::{DatastoreChanges, Error as DatastoreError, Trial, Wanted};
pub use effects::{Assignment, Grant, InputSource, Outbox, ToNode};
pub use environments::{
    Curated, Environments, Error as EnvironmentError, Found as FoundEnvironment,
};
pub use folder::{Error as FolderError, Folder, Workspace, lock as lock_folder};
pub use handle::{
    ComputeChange, DebugRequest, DrainRequest, EnterRequest, Error as HandleError, Handle, Join,
    NodeView, Provided, SubmitRequest,
};
pub use logs::{Error as LogError, LogHub, LogPiece, LogStart};
pub use moving::{Error as MoveError, Move, Moved, Progress as MoveProgress, move_storage};
pub use nodes::Error as NodesError;
pub(crate) use nodes::{Given, Nodes, OPENS_AT_MOST, Revoked, Shows};
pub use removal::{Error as RemovalError, Removal, Removed};
pub use retention::{Error as RetentionError, Judged, Part, Retention};
pub use secrets::Error as SecretsError;
pub use serve::{Daemon, Error, Shared, serve, start};
pub use shared::{Artifact, Error as SharedError};
pub use storage::Error as StorageError;
pub(crate) use uploads::Uploads;
