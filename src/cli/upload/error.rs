//! Why something could not be sent.

use std::io;
use std::path::PathBuf;

use atelier_core::content;

use crate::client::data;

/// Why something could not be sent. Each names the file or folder and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or file is not there.
    #[error("'{}' does not exist: correct the path (it is relative to the YAML file)", .0.display())]
    Missing(PathBuf),
    /// A file where a folder is due.
    #[error("'{}' is not a folder: give the folder that holds the code", .0.display())]
    NotAFolder(PathBuf),
    /// No files.
    #[error("the folder '{}' has no files{}: put files there or name another folder",
        .folder.display(),
        .ignore_file.as_deref().map_or(String::new(), |name| format!(" that {name} does not exclude")))]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// The ignore file, if it left something out.
        ignore_file: Option<String>,
    },
    /// A link that leads out.
    #[error("'{}' is a symbolic link to '{}', outside the folder that is sent: copy what it points \
        to into the folder, or list the link in .amlignore", .link.display(), .target.display())]
    LeavesFolder {
        /// The link, below the folder.
        link: PathBuf,
        /// Its target as written.
        target: PathBuf,
    },
    /// A file kept changing.
    #[error("'{}' changed while it was read: stop what writes to it, or list it in .amlignore",
        .0.display())]
    Changed(PathBuf),
    /// Too many folders in one another.
    #[error("'{}' lies more than {} folders deep: list it in .amlignore", .0.display(),
        content::MAX_DEPTH)]
    TooDeep(PathBuf),
    /// A name that a datastore cannot keep.
    #[error("'{}' cannot be stored under that name: {why}", .path.display())]
    Name {
        /// The file, below the folder.
        path: PathBuf,
        /// The rule.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {operation} '{}': {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder cannot be expressed as objects.
    #[error("the folder cannot be sent: {0}")]
    Content(#[from] content::Error),
    /// The workspace refused a call or could not be reached.
    #[error("the workspace did not take the code: {}", .0.message())]
    Workspace(#[source] Box<tonic::Status>),
    /// The workspace's data gateway refused or could not be reached.
    #[error("the workspace did not take '{}': {problem}", .path.display())]
    Gateway {
        /// The file.
        path: PathBuf,
        /// Its answer, or why there was none.
        problem: data::Error,
    },
    /// The workspace stored something else, under the name of what was sent.
    #[error("the workspace has stored other bytes of '{}' than were sent; {}", .path.display(), match .left {
        None => "they are removed again".to_owned(),
        Some((uri, problem)) => format!(
            "they could not be removed ({problem}), and would be taken for the file: `atelier fs rm '{uri}'`"
        ),
    })]
    Spoiled {
        /// The file.
        path: PathBuf,
        /// Where it still lies, and why it was not removed.
        left: Option<(String, data::Error)>,
    },
    /// A defect of this program.
    #[error("internal error while sending: {0}")]
    Internal(String),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Workspace(Box::new(status))
    }
}
