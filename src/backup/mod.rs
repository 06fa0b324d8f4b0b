//! Backups: one encrypted file with all that a workspace needs but its data, and the way back.
//!
//! A backup is an `age` file (so `age -d backup.age | zstd -d | tar x` opens it without this program) of an archive
//! whose first entry, the manifest, has the digests of all others. It is made from the data folder itself, while
//! the daemon runs or not, by whoever may read that: no RPC gives these secrets out.

mod choice;
mod create;
mod open;
mod restore;
mod seal;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use atelier_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::daemon::{FolderError, Workspace};
use crate::store::{self, copy::Contents};
use crate::vault::KeyError;

pub use create::{Create, Created, VaultKey, create};
pub use open::{Opened, verify};
pub use restore::{MARKER, Restore, Restored, restore};
pub use seal::{Opening, Sealing, keygen};

/// The way in which backups are written.
const FORMAT: u32 = 1;
/// The first entry.
const MANIFEST: &str = "manifest.json";
/// The vault's key, which belongs outside of the data folder.
const VAULT_KEY: &str = "vault.key";
const DATABASE: &str = "atelier.db";
/// A manifest has at most so many bytes, and so has a file other than the database.
const MOST: u64 = 16 << 20;
/// So many files.
const MOST_FILES: usize = 10_000;
/// Below the data folder, while a backup is made: the copy of the database.
const TEMPORARY: &str = "backup.tmp";
/// Held meanwhile.
const LOCK: &str = "backup.lock";
/// Tells of the last one.
const RECORD: &str = "backup.json";

/// What a backup holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// How it is written.
    pub format: u32,
    /// Which version of this program made it.
    pub version: String,
    /// Of which workspace.
    pub workspace: Workspace,
    /// The instant that it shows.
    pub created_at: Timestamp,
    /// The database's.
    pub schema: usize,
    /// The files, in the order in which they follow.
    pub files: Vec<Entry>,
    /// What the workspace also needs, which is backed up by other means.
    pub elsewhere: Vec<Elsewhere>,
    /// Keys that secrets are sealed with.
    pub vault_keys: Vec<String>,
}

/// A file in a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its path in the data folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of what is in it.
    pub blake3: String,
    /// Its permissions.
    pub mode: u32,
}

/// Something that is not in a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Elsewhere {
    /// What it is.
    pub what: String,
    /// Where it lies.
    pub location: String,
}

/// What is known of the last backup of a data folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The instant that it shows.
    pub created_at: Timestamp,
    /// Where it was written.
    pub file: PathBuf,
}

impl Record {
    /// That of the last backup of a data folder, if one was made.
    pub fn read(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(data_dir.join(RECORD)).ok()?).ok()
    }
}

/// Why there is no backup, or none is restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no workspace.
    #[error("there is no workspace in {0}; name its data folder with --data-dir")]
    NoWorkspace(String),
    /// Somebody else's: files made there would shut the daemon out.
    #[error(
        "the data folder {path} is user {owner}'s; run this as that user, whom the daemon runs as"
    )]
    Foreign {
        /// The folder.
        path: String,
        /// Its owner.
        owner: u32,
    },
    /// Two at once.
    #[error("another backup of {0} is being made; wait for it")]
    Busy(String),
    /// It is there.
    #[error("{0} is there already, and a backup overwrites nothing; choose another name")]
    Exists(String),
    /// It would go with what it is of.
    #[error(
        "the backup {file} lies in the data folder {data_dir}, and would be lost with it; have it elsewhere, on \
         another disk if there is one"
    )]
    Within {
        /// The backup.
        file: String,
        /// The folder.
        data_dir: String,
    },
    /// Another one was begun.
    #[error(
        "a restore of another backup into {path} was cut short, that of {created_at} ({file}); go on with that one. \
         If it is gone, bring back what is in {aside}, and remove restoring.json"
    )]
    OtherBackup {
        /// The folder.
        path: String,
        /// The instant that the other one shows.
        created_at: Timestamp,
        /// Where it was.
        file: String,
        /// Where what was there before is.
        aside: String,
    },
    /// Not what a data folder holds.
    #[error(
        "{path} has {bytes} bytes, and a file of the data folder may have {MOST}; put it elsewhere"
    )]
    TooLarge {
        /// The file.
        path: String,
        /// Its length.
        bytes: u64,
    },
    /// Too many files.
    #[error(
        "the data folder has more than {MOST_FILES} files beside its storage; put them elsewhere"
    )]
    TooMany,
    /// Changes all the time.
    #[error("the keys in {0} change while they are read; try again")]
    Unsettled(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The vault's key.
    #[error("cannot take the vault's key along: {0}")]
    Key(#[from] KeyError),
    /// There is none that could be.
    #[error("cannot take the vault's key along: {0}")]
    NoKey(String),
    /// For whom to encrypt, or with what to open.
    #[error("{0}")]
    Seal(String),
    /// It does not open.
    #[error("cannot open the backup {path}: {problem}")]
    Open {
        /// The file.
        path: String,
        /// Why not.
        problem: String,
    },
    /// It opens, and is not whole.
    #[error("the backup {path} is damaged: {problem}; use another one")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A later build made it.
    #[error(
        "the backup {path} was made by atelier {version}; restore it with that version or a later one"
    )]
    Newer {
        /// The file.
        path: String,
        /// Who made it.
        version: String,
    },
    /// There is one already.
    #[error(
        "{path} holds the workspace '{name}' already; add --force to put that aside, in a folder beside it, or \
         name an empty folder with --data-dir"
    )]
    Occupied {
        /// The folder.
        path: String,
        /// What it holds.
        name: String,
    },
    /// Another key is where the vault's is to be.
    #[error(
        "{0} holds another key than the backup's; move it away, or name another file with --vault-key-file"
    )]
    OtherKey(String),
    /// Nowhere to put the key.
    #[error("no place is known for the vault's key; name a file with --vault-key-file")]
    NoPlace,
}

impl Error {
    /// Whether the admin can put it right.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::Unsettled(_))
    }
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File { operation, path, source }
}

/// Sees that the folder is the user's own.
fn must_be_own(path: &Path) -> Result<(), Error> {
    let owner = fs::metadata(path).map_err(fail("look at", path))?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::Foreign { path: path.display().to_string(), owner })
}

/// Sees that a backup does not lie in the folder that it is of: it would go with that, and be moved by a restore.
fn must_be_outside(file: &Path, data_dir: &Path) -> Result<(), Error> {
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    let found = file.canonicalize().ok();
    if [folder, found].into_iter().flatten().any(|path| path.starts_with(data_dir)) {
        let (file, data_dir) = (file.display().to_string(), data_dir.display().to_string());
        return Err(Error::Within { file, data_dir });
    }
    Ok(())
}

/// Gives a whole file its name, unless something has it.
fn name(part: &Path, file: &Path) -> Result<(), Error> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, part, CWD, file, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(Error::Exists(file.display().to_string())),
        // Not every file system can.
        Err(rustix::io::Errno::INVAL) if !file.exists() => {
            fs::rename(part, file).map_err(fail("write", file))?;
        }
        Err(error) => return Err(fail("write", file)(error.into())),
    }
    file.parent().map_or(Ok(()), synced)
}

fn private_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail("make", path))
}

fn private_file(path: &Path, mode: u32) -> Result<File, Error> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    made.map_err(fail("make", path))
}

fn synced(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|found| found.sync_all()).map_err(fail("write", path))
}

fn hex(hash: &blake3::Hash) -> String {
    hash.to_hex().to_string()
}

/// A folder for plain text that is gone when this is. What one that was killed left, the next removes.
struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// That of a data folder.
    fn of(data_dir: &Path) -> Result<Self, Error> {
        let lock = scratch_lock(data_dir)?;
        let path = data_dir.join(TEMPORARY);
        remove(&path)?;
        private_folder(&path)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn scratch_lock(data_dir: &Path) -> Result<File, Error> {
    use rustix::fs::{FlockOperation, flock};
    let path = data_dir.join(LOCK);
    let mut options = fs::OpenOptions::new();
    let lock = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = lock.map_err(fail("open", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(_) => Err(Error::Busy(data_dir.display().to_string())),
    }
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Removes what a backup left that was killed, or a restore before it touched anything else; for the daemon's start,
/// which holds the folder's lock, as a restore does.
pub(crate) fn sweep(data_dir: &Path) {
    if let Err(error) = remove(&data_dir.join(choice::STAGE)) {
        tracing::warn!(%error, "what is left of a restore stays");
    }
    if !data_dir.join(TEMPORARY).exists() {
        return;
    }
    // One that is being made has the lock.
    if let Ok(_lock) = scratch_lock(data_dir)
        && let Err(error) = remove(&data_dir.join(TEMPORARY))
    {
        tracing::warn!(%error, "what is left of a backup stays");
    }
}

/// What is told of a database that was copied.
fn told(contents: &Contents) -> (usize, Vec<String>) {
    (contents.schema, contents.vault_keys.iter().map(|(key, _)| key.to_string()).collect())
}
