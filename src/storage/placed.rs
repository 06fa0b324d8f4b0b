//! A folder that somebody made a datastore of: it may be gone, or its mount, whenever it is used.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use atelier_core::datastore::FolderKind;
use atelier_core::id::DatastoreName;
use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::Error;
use super::folder::{self, Folder, Pace, Step};

/// How long a folder may take to be looked at.
pub(super) const PATIENCE: Duration = Step::Short.patience();

/// A folder of somebody's. Nothing of it is open while nothing is read or written there, so that a file
/// system can be unmounted. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: DatastoreName,
    kind: FolderKind,
    path: PathBuf,
    /// Begins the names of what this workspace stages: the folder may be another's, too.
    mark: String,
    pace: Pace,
    /// Looked at by one at a time: on a folder that does not answer one thread waits, not one for each
    /// request.
    opened: Arc<tokio::sync::Mutex<()>>,
    current: std::sync::Mutex<Weak<folder::Inner>>,
}

impl Placed {
    pub(super) fn new(name: DatastoreName, kind: FolderKind, path: &Path, mark: &str) -> Self {
        let inner = Inner {
            name: name.clone(),
            kind,
            path: path.to_owned(),
            mark: mark.to_owned(),
            pace: Pace::bounded(name, path.to_owned()),
            opened: Arc::default(),
            current: std::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The folder, as it is now.
    pub(super) async fn folder(&self) -> Result<Folder, Error> {
        let inner = self.inner.clone();
        let open = async {
            let turn = inner.opened.clone().lock_owned().await;
            folder::blocking(move || {
                // Kept until the file system has answered, however long ago somebody gave up.
                let _turn = turn;
                inner.open()
            })
            .await
        };
        match tokio::time::timeout(PATIENCE, open).await {
            Ok(opened) => opened,
            Err(_) => Err(self.inner.away(format!(
                "its folder {} has not answered for {} seconds; see whether its server is reached",
                self.inner.path.display(),
                PATIENCE.as_secs()
            ))),
        }
    }
}

impl Inner {
    fn open(&self) -> Result<Folder, Error> {
        let root = look_at(&self.path, self.kind).map_err(|problem| self.away(problem))?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // What is staged by now would be swept by another opening.
        if let Some(open) = current.upgrade().map(Folder::of).filter(|open| open.is(&root)) {
            return Ok(open);
        }
        let folder = Folder::at(self.path.clone(), root, &self.mark, self.pace.clone());
        *current = folder.weak();
        Ok(folder)
    }

    fn away(&self, problem: String) -> Error {
        Error::Away { datastore: self.name.clone(), problem }
    }
}

/// The path without links of a folder that is to become a datastore.
///
/// `data_dir` is the daemon's own folder, from which and to which no datastore leads. Waits for the
/// disk.
///
/// # Errors
/// Why it cannot be one, and what to do.
pub(super) fn check(path: &Path, kind: FolderKind, data_dir: &Path) -> Result<PathBuf, String> {
    let shown = path.display();
    let plain = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no folder {shown} on the daemon's machine; make it first")
        }
        _ => format!("the folder {shown} cannot be opened by the daemon: {error}"),
    })?;
    if plain.parent().is_none() {
        return Err(format!(
            "{shown} is the whole of the machine's files; name a folder below '/'"
        ));
    }
    let own = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    if plain.starts_with(&own) || own.starts_with(&plain) {
        return Err(format!(
            "{shown} lies in the daemon's own data folder, or holds it; name another folder"
        ));
    }
    look_at(&plain, kind)?;
    Ok(plain)
}

/// Opens the folder if it is what it was when it became a datastore.
fn look_at(path: &Path, kind: FolderKind) -> Result<OwnedFd, String> {
    let shown = path.display();
    let plain = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("its folder {shown} is not there"),
        _ => format!("its folder {shown} cannot be opened: {error}"),
    })?;
    if plain != path {
        return Err(format!("its folder {shown} has become a link to {}", plain.display()));
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOTDIR => format!("{shown} is not a folder"),
        errno => format!("its folder {shown} cannot be opened: {}", io::Error::from(errno)),
    })?;
    if kind == FolderKind::Nfs && !is_mount_point(&root).map_err(|e| format!("{shown}: {e}"))? {
        return Err(format!(
            "nothing is mounted at {shown}, and nothing is written to the folder below; mount it first"
        ));
    }
    Ok(root)
}

/// Whether the folder is the root of a mount.
fn is_mount_point(folder: &OwnedFd) -> io::Result<bool> {
    let found = rustix::fs::statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8: of another device than its parent.
    let parent = rustix::fs::statat(folder, "..", AtFlags::empty())?;
    Ok(rustix::fs::fstat(folder)?.st_dev != parent.st_dev)
}
