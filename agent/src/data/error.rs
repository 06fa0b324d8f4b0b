//! What goes wrong when data is moved, and whose fault it is.

use std::io;
use std::path::Path;

use atelier_core::content::manifest::ManifestEntry;
use atelier_core::content::{self, Digest};

/// Whose a failure is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// What the job asks for cannot be had, or what it wrote cannot be stored.
    User,
    /// The node's disk is full.
    DiskFull,
    /// The node, the network or the daemon; another try may succeed.
    Platform,
}

/// How much of what is to be stored an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum About {
    /// The one file.
    File,
    /// All that goes to the datastore.
    Datastore,
    /// Anything, as long as something is away.
    Moment,
}

/// Why data could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An input that is not there.
    #[error(
        "input '{name}': nothing is stored at {uri}: correct the path, or upload the data first"
    )]
    Missing {
        /// The input.
        name: String,
        /// Where it should be.
        uri: String,
    },
    /// A folder where the input is declared to be a file.
    #[error("input '{name}' is declared '{kind}', but {uri} is a folder: use 'uri_folder'")]
    Folder {
        /// The input.
        name: String,
        /// As declared.
        kind: &'static str,
        /// What it names.
        uri: String,
    },
    /// A file where the input is declared to be a folder.
    #[error("input '{name}' is declared '{kind}', but {uri} is a file: use 'uri_file'")]
    File {
        /// The input.
        name: String,
        /// As declared.
        kind: &'static str,
        /// What it names.
        uri: String,
    },
    /// A URL that gives no data.
    #[error("input '{name}': {url} cannot be read: {problem}")]
    Url {
        /// The input.
        name: String,
        /// Without user, password and query.
        url: String,
        /// In words.
        problem: String,
        /// Whether another try may succeed.
        transient: bool,
    },
    /// An input in a form that this version cannot give to a job.
    #[error("input '{name}': {problem}")]
    Unsupported {
        /// The input.
        name: String,
        /// What, and what to do instead.
        problem: String,
    },
    /// The daemon resolved nothing for an input or output.
    #[error("{0} came without a grant to reach its data")]
    NoGrant(String),
    /// A path that would lead somewhere else.
    #[error("'{path}' is not a path within a datastore: {rule}")]
    Path {
        /// Cut to 120 characters.
        path: String,
        /// What is wrong.
        rule: &'static str,
    },
    /// Files of an output that are not stored. Everything else was.
    #[error("{}", refused_text(.refused))]
    Refused {
        /// Each with its reason.
        refused: Vec<String>,
        /// What was stored all the same.
        stored: Vec<ManifestEntry>,
    },
    /// A snapshot that does not fit together.
    #[error("the code snapshot cannot be put together: object {digest}: {problem}")]
    Snapshot {
        /// The object.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// The content service.
    #[error("the daemon's content service failed: {0}")]
    Content(#[source] Box<tonic::Status>),
    /// The data gateway refused or could not be reached.
    #[error("the daemon's data gateway: {operation} '{path}': {problem}")]
    Gateway {
        /// What was done.
        operation: &'static str,
        /// `datastore/path`
        path: String,
        /// What it said.
        problem: String,
        /// Whether another try may succeed.
        transient: bool,
        /// The HTTP status of the answer; `None`: there was none.
        status: Option<u16>,
    },
    /// The store that a datastore is in refuses it.
    #[error("cannot {operation} '{path}': {problem}")]
    Denied {
        /// What was done.
        operation: &'static str,
        /// `datastore/path`
        path: String,
        /// What it said.
        problem: String,
    },
    /// The store that a datastore is in cannot do it, at least not with this object.
    #[error("cannot {operation} '{path}': {problem}")]
    Unfit {
        /// What was done.
        operation: &'static str,
        /// `datastore/path`
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No room on the node.
    #[error("no space is left on the node's file system at '{path}': free some there")]
    DiskFull {
        /// Where.
        path: String,
    },
    /// The node's file system, or the storage it shares with the daemon.
    #[error("cannot {operation} '{path}'")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent is stopping.
    #[error("moving data was stopped")]
    Stopped,
}

fn refused_text(refused: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = refused.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match refused.len().saturating_sub(SHOWN) {
        0 => format!("cannot be stored: {shown}"),
        more => format!("cannot be stored: {shown}; and {more} more"),
    }
}

impl Error {
    /// Whose it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Missing { .. }
            | Self::Folder { .. }
            | Self::File { .. }
            | Self::Url { transient: false, .. }
            | Self::Unsupported { .. }
            | Self::Path { .. }
            | Self::Refused { .. } => Fault::User,
            // What is to be stored was made with some effort: an admin may give other credentials meanwhile.
            Self::Denied { operation, .. } | Self::Unfit { operation, .. }
                if *operation != "store" =>
            {
                Fault::User
            }
            Self::DiskFull { .. } => Fault::DiskFull,
            Self::Url { .. }
            | Self::NoGrant(_)
            | Self::Snapshot { .. }
            | Self::Content(_)
            | Self::Gateway { .. }
            | Self::Denied { .. }
            | Self::Unfit { .. }
            | Self::Io { .. }
            | Self::Stopped => Fault::Platform,
        }
    }

    /// Whether it is the job's own making, so that another try would fail in the same way.
    pub fn is_users(&self) -> bool {
        self.fault() == Fault::User
    }

    /// What else is not worth a try.
    pub(super) fn about(&self) -> About {
        match self {
            Self::Path { .. } | Self::Io { .. } | Self::Unfit { .. } => About::File,
            // What was asked for is not understood, in conflict with something, or too large.
            Self::Gateway {
                transient: false, status: Some(400 | 409 | 411 | 413 | 414), ..
            } => About::File,
            Self::Denied { .. } | Self::Gateway { transient: false, .. } => About::Datastore,
            _ => About::Moment,
        }
    }

    /// What was stored although the call failed: files beside those that were refused.
    pub fn take_stored(&mut self) -> Vec<ManifestEntry> {
        match self {
            Self::Refused { stored, .. } => std::mem::take(stored),
            _ => Vec::new(),
        }
    }

    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.display().to_string();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { operation, path, source },
        }
    }

    pub(super) fn errno(operation: &'static str, path: &Path, errno: rustix::io::Errno) -> Self {
        Self::io(operation, path, errno.into())
    }

    pub(super) fn snapshot(digest: Digest, error: &content::Error) -> Self {
        Self::Snapshot { digest, problem: error.to_string() }
    }
}

/// Runs work that waits for the disk on the runtime's threads for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Stopped),
    }
}
