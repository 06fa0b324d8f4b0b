//! Why there is no environment, and whose fault it is.

use std::path::Path;
use std::time::Duration;

pub use crate::data::Fault;

/// Why an environment is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The conda document.
    #[error(transparent)]
    Recipe(#[from] atelier_core::environment::Error),
    /// An image, where the policy does not let another environment stand in for it.
    #[error(
        "the environment's image '{image}' cannot be used: {reason}; give a conda_file without \
         an image, or have the workspace allow the node's Python in its place"
    )]
    ImageRefused {
        /// As written.
        image: String,
        /// Why not.
        reason: String,
    },
    /// A build context.
    #[error(
        "the environment has a build context, which needs a container runtime: {reason}; give an image \
         or a conda_file instead"
    )]
    BuildContext {
        /// Why not.
        reason: String,
    },
    /// There is no such image, or it may not be had.
    #[error(
        "the image '{image}' cannot be pulled: {reason}; check its name, and that this node may pull it"
    )]
    Image {
        /// Its name.
        image: String,
        /// The runtime's own.
        reason: String,
    },
    /// A registry that does not answer.
    #[error("the registry of image '{image}' cannot be reached from this node: {reason}")]
    Registry {
        /// The image's name.
        image: String,
        /// The runtime's own.
        reason: String,
    },
    /// A Dockerfile.
    #[error("no image can be built of '{path}': {reason}")]
    Dockerfile {
        /// Within the build context.
        path: String,
        /// The runtime's own.
        reason: String,
    },
    /// The packages of a conda file cannot be installed in an image.
    #[error("the conda_file's packages cannot be installed in image '{image}': {reason}")]
    Layer {
        /// The image's name.
        image: String,
        /// The installer's own.
        reason: String,
    },
    /// Programs that conda packages would have brought.
    #[error(
        "conda packages that are programs, not Python packages, are not on this node: {}; install \
         them there with the system's package manager, remove the lines, or use an image",
        .programs.join(", ")
    )]
    Programs {
        /// `package (program)`
        programs: Vec<String>,
    },
    /// The packages cannot be installed as asked for.
    #[error("the environment's packages cannot be installed: {reason}")]
    Packages {
        /// The installer's own.
        reason: String,
    },
    /// The node has no Python to build with.
    #[error(
        "this node has no Python 3.8 or newer on its path to build the environment from: install \
         python3 there, or run the job without a Python environment"
    )]
    NoPython,
    /// The package index cannot be reached.
    #[error("the package index cannot be reached from this node: {reason}")]
    Index {
        /// The installer's own.
        reason: String,
    },
    /// No room.
    #[error("no space is left on the node's file system of '{path}': free some there")]
    DiskFull {
        /// Where.
        path: String,
    },
    /// A program of the node's own failed.
    #[error("cannot {operation} on this node: {reason}")]
    Tool {
        /// What was done.
        operation: String,
        /// What it said.
        reason: String,
    },
    /// The node's file system.
    #[error("cannot {operation} '{path}' on this node: {reason}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A build ahead of jobs that did not end.
    #[error(
        "the build of the environment was stopped: it took longer than {} s, the --build-timeout of this \
         node's agent",
        .bound.as_secs()
    )]
    Slow {
        /// What it may take.
        bound: Duration,
    },
    /// The agent is stopping.
    #[error("the build of the environment was stopped")]
    Stopped,
}

impl Error {
    /// Whether it is the job's own making, so that another try would fail in the same way.
    pub fn is_users(&self) -> bool {
        self.fault() == Fault::User
    }

    /// Whose it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Recipe(_)
            | Self::ImageRefused { .. }
            | Self::BuildContext { .. }
            | Self::Image { .. }
            | Self::Dockerfile { .. }
            | Self::Layer { .. }
            | Self::Programs { .. }
            | Self::Packages { .. } => Fault::User,
            Self::DiskFull { .. } => Fault::DiskFull,
            Self::NoPython
            | Self::Index { .. }
            | Self::Registry { .. }
            | Self::Tool { .. }
            | Self::Io { .. }
            | Self::Slow { .. }
            | Self::Stopped => Fault::Platform,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        let path = path.display().to_string();
        if matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        ) {
            return Self::DiskFull { path };
        }
        Self::Io { operation, path, reason: error.to_string() }
    }

    /// Sorts an installer's failure by what it says.
    pub(super) fn of_installer(operation: &str, reason: String, packages: bool) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        if says(&reason, &NETWORK) {
            return Self::Index { reason };
        }
        if packages {
            return Self::Packages { reason };
        }
        Self::Tool { operation: operation.to_owned(), reason }
    }

    /// Sorts a container runtime's failure by what it says.
    pub(crate) fn of_runtime(operation: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        Self::Tool { operation: operation.to_owned(), reason }
    }

    /// The same of a pull.
    pub(crate) fn of_pull(image: &str, reason: String) -> Self {
        const NOT_TO_BE_HAD: [&str; 9] = [
            "manifest unknown",
            "name unknown",
            "not found",
            "unauthorized",
            "authentication required",
            "denied",
            "invalid reference",
            "no image found in manifest list",
            "unsupported image",
        ];
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        let image = image.to_owned();
        match says(&reason, &NOT_TO_BE_HAD) && !says(&reason, &NETWORK) {
            true => Self::Image { image, reason },
            false => Self::Registry { image, reason },
        }
    }

    /// The same of a build. What its steps ask of the network is the Dockerfile's.
    pub(crate) fn of_build(path: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        let registry = ["pinging container registry", "initializing source"];
        if says(&reason, &registry) && says(&reason, &NETWORK) {
            return Self::Registry { image: path.to_owned(), reason };
        }
        Self::Dockerfile { path: path.to_owned(), reason }
    }

    /// The same of packages that are installed in an image.
    pub(crate) fn of_layer(image: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        if says(&reason, &NETWORK) {
            return Self::Index { reason };
        }
        Self::Layer { image: image.to_owned(), reason }
    }
}

const DISK_FULL: [&str; 4] =
    ["No space left on device", "no space left on device", "os error 28", "Disk quota exceeded"];
/// What programs say of a network that fails them.
const NETWORK: [&str; 17] = [
    "error sending request",
    "dns error",
    "Connection refused",
    "connection refused",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "no such host",
    "server misbehaving",
    "operation timed out",
    "Read timed out",
    "i/o timeout",
    "TLS handshake timeout",
    "Connection reset",
    "connection reset",
    "503 Service Unavailable",
    "502 Bad Gateway",
    "429 Too Many Requests",
];

fn says(reason: &str, words: &[&str]) -> bool {
    words.iter().any(|word| reason.contains(word))
}
