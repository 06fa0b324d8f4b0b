//! The daemon's data folder: one daemon at a time, and never a fresh start in the place of a
//! workspace that was there.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use atelier_core::id::WorkspaceName;
use atelier_core::time::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// A locked data folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    workspace: Workspace,
    existed: bool,
    _lock: File,
}

/// Written once, when the folder becomes a workspace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Workspace {
    /// Its name.
    pub name: WorkspaceName,
    /// Random, so that two workspaces of one name can be told apart.
    pub id: String,
    /// When.
    pub created_at: Timestamp,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has it.
    #[error(
        "cannot start: another atelier daemon is using {0}; stop it first, or choose another \
         folder with --data-dir"
    )]
    InUse(String),
    /// Neither what was there nor the backup.
    #[error(
        "a restore into {0} was cut short; run 'atelier restore' again, which goes on from there"
    )]
    HalfRestored(String),
    /// Files.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The marker cannot be read.
    #[error("{path} is damaged ({problem}); restore it from a backup")]
    Damaged {
        /// The marker.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No random bytes.
    #[error("cannot make a workspace: the system gave no random bytes")]
    Random,
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File { operation, path, source }
}

/// Locks it, unless another daemon has. A client that looks whether one has holds it for an instant.
fn claimed(lock: &File) -> bool {
    const LOOKS: u32 = 50;
    (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

/// Makes a data folder if there is none, and locks it; it is absolute, without links.
///
/// # Errors
/// Another daemon has it, or it cannot be made.
pub fn lock(path: &Path) -> Result<(PathBuf, File), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(fail("make the data folder", path))?;
    let path = path.canonicalize().map_err(fail("find the data folder", path))?;
    let lock_path = path.join("lock");
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(fail("open", &lock_path))?;
    if !claimed(&lock) {
        return Err(Error::InUse(path.display().to_string()));
    }
    Ok((path, lock))
}

impl Folder {
    /// Makes the folder if there is none, locks it, and reads or writes the workspace's marker.
    pub fn open(path: &Path, name: &WorkspaceName, now: Timestamp) -> Result<Self, Error> {
        let (path, lock) = lock(path)?;
        if path.join(crate::backup::MARKER).exists() {
            return Err(Error::HalfRestored(path.display().to_string()));
        }
        crate::backup::sweep(&path);
        let marker = path.join("workspace.json");
        let (workspace, existed) = match fs::read(&marker) {
            Ok(bytes) => {
                let workspace = serde_json::from_slice(&bytes).map_err(|e| Error::Damaged {
                    path: marker.display().to_string(),
                    problem: e.to_string(),
                })?;
                (workspace, true)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                (Workspace { name: name.clone(), id: random_id()?, created_at: now }, false)
            }
            Err(e) => return Err(fail("read", &marker)(e)),
        };
        Ok(Self { path, workspace, existed, _lock: lock })
    }

    /// Marks the folder as a workspace. From now on a missing database is an error.
    pub fn settle(&mut self) -> Result<(), Error> {
        if self.existed {
            return Ok(());
        }
        let marker = self.path.join("workspace.json");
        let bytes = serde_json::to_vec_pretty(&self.workspace).unwrap_or_default();
        write_whole(&marker, &bytes)?;
        self.existed = true;
        Ok(())
    }

    /// Whether a workspace was here before.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// The workspace.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// The folder itself: absolute, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder within.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Tells clients where the daemon listens.
    pub fn announce(&self, url: &str) -> Result<(), Error> {
        write_whole(&self.at("endpoint"), url.as_bytes())
    }

    /// Where jobs reached the daemon when it ran last, if it did.
    pub fn jobs_address(&self) -> Option<SocketAddr> {
        fs::read_to_string(self.at(JOBS)).ok()?.trim().parse().ok()
    }

    /// Keeps where jobs reach the daemon.
    pub fn keep_jobs_address(&self, address: SocketAddr) -> Result<(), Error> {
        if self.jobs_address() == Some(address) {
            return Ok(());
        }
        write_whole(&self.at(JOBS), address.to_string().as_bytes())
    }

    /// Tells clients that it listens no more.
    pub fn withdraw(&self) {
        let _ = fs::remove_file(self.at("endpoint"));
    }
}

/// 32 hexadecimal digits that nobody has had before.
pub(super) fn random_id() -> Result<String, Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| Error::Random)?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Holds the address at which jobs reach the daemon.
const JOBS: &str = "jobs.address";

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(fail("write", path))
}
