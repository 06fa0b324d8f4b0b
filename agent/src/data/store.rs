//! A datastore's folder that this node shares with the daemon: read and published without the
//! daemon.
//!
//! Folders are entered one after the other without following symbolic links, as the daemon does,
//! so that nothing leads out of the datastore. A new object is written below `.staging` under a
//! name that is not the daemon's, made durable, and renamed to its place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use atelier_core::layout;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Error, files, path};

/// Where objects wait for their place, below a datastore's root.
const STAGING: &str = ".staging";
/// Begins the names of this side's files there; those that begin otherwise are the daemon's.
const PREFIX: &str = "node-";
/// A staged file older than this was left by an agent that was killed.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// The deepest folder that is listed.
const MAX_DEPTH: usize = 256;

/// What a datastore has at its top and does not show.
fn is_hidden(name: &str) -> bool {
    layout::is_named(name, STAGING) || layout::is_uncommitted(name)
}

/// An object found by listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    /// Below the listed path; empty if that path is the object.
    pub(super) below: String,
    /// In bytes.
    pub(super) size: u64,
    /// The gateway's tag of this content; empty in a shared folder.
    pub(super) etag: String,
}

/// The folder of one datastore.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    descriptor: OwnedFd,
    /// User and group of what is made here, where this process may say so: the folder's own, so that the
    /// daemon can change and remove it also where it is not root as this agent is.
    owner: Option<(u32, u32)>,
    /// It was said that this cannot be.
    told: AtomicBool,
}

/// An object that waits for its place; removed when dropped.
#[derive(Debug)]
pub(super) struct Staged {
    at: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // It may have been renamed. A rename onto another link of the same file leaves the name.
        let _ = fs::remove_file(&self.at);
    }
}

fn open_folder_at(at: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

impl Store {
    /// Opens the folder. Waits for the disk, as does everything here.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|errno| Error::errno("open the datastore's folder", root, errno))?;
        let stat = rustix::fs::fstat(&descriptor)
            .map_err(|errno| Error::errno("look at the datastore's folder", root, errno))?;
        let owner = rustix::process::geteuid().is_root().then_some((stat.st_uid, stat.st_gid));
        Ok(Self { root: root.to_owned(), descriptor, owner, told: AtomicBool::new(false) })
    }

    /// Where the object of a path lies. The path has been checked.
    pub(super) fn place(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn failed(&self, operation: &'static str, key: &str) -> impl Fn(Errno) -> Error {
        let place = self.place(key);
        move |errno| Error::errno(operation, &place, errno)
    }

    /// The object at `key`, or all objects below it (of the whole datastore if it is empty), in no order.
    /// Nothing there gives none.
    pub(super) fn list(&self, key: &str) -> Result<Vec<Found>, Error> {
        path::place(key)?;
        if key.split('/').next().is_some_and(is_hidden) {
            return Ok(Vec::new());
        }
        let failed = self.failed("list", key);
        let mut at = self.descriptor.try_clone().map_err(|e| Error::io("list", &self.root, e))?;
        let mut segments = key.split('/').filter(|segment| !segment.is_empty()).peekable();
        while let Some(segment) = segments.next() {
            at = match open_folder_at(&at, segment) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Ok(Vec::new()),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = rustix::fs::statat(&at, segment, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(&failed)?;
                    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                    if !regular || segments.peek().is_some() {
                        return Ok(Vec::new());
                    }
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    return Ok(vec![Found { below: String::new(), size, etag: String::new() }]);
                }
                Err(errno) => return Err(failed(errno)),
            };
        }
        let mut found = Vec::new();
        self.list_folder(&at, "", 0, key.is_empty(), &mut found).map_err(failed)?;
        Ok(found)
    }

    fn list_folder(
        &self,
        folder: &OwnedFd,
        prefix: &str,
        depth: usize,
        is_top: bool,
        found: &mut Vec<Found>,
    ) -> rustix::io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        for entry in rustix::fs::Dir::read_from(folder)? {
            let entry = entry?;
            // A name that is no text cannot have come from a datastore.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") || is_top && is_hidden(name) {
                continue;
            }
            let below =
                if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            match entry.file_type() {
                FileType::Directory => match open_folder_at(folder, name) {
                    Ok(inner) => self.list_folder(&inner, &below, depth + 1, false, found)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(errno),
                },
                FileType::RegularFile | FileType::Unknown => {
                    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                        let size = u64::try_from(stat.st_size).unwrap_or(0);
                        found.push(Found { below, size, etag: String::new() });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn staging_name(&self) -> Result<PathBuf, Error> {
        let staging = self.root.join(STAGING);
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::io("name a file in", &staging, io::Error::other(error)))?;
        let number = u64::from_le_bytes(random);
        Ok(staging.join(format!("{PREFIX}{}-{number:016x}", std::process::id())))
    }

    /// Stages an open file: as a link if nobody else can have it open or named, else as a copy.
    pub(super) fn stage_file(&self, file: &File, stop: &files::Stop) -> Result<Staged, Error> {
        let at = self.staging_name()?;
        let failed = |error| Error::io("store", &at, error);
        let meta = file.metadata().map_err(failed)?;
        // With a second name, someone might change it through that one later.
        if meta.nlink() == 1 && files::link_open_file(file, &at).is_ok() {
            let staged = Staged { at: at.clone() };
            file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(failed)?;
            // Not the job's from now on, whose user's number the node may give again; where that cannot be, what
            // is published is a copy.
            if self.give(file).map_err(failed)? {
                return Ok(staged);
            }
        }
        use std::os::fd::AsRawFd as _;
        let staged = Staged { at };
        let target = files::create_new(&staged.at, 0o444)?;
        self.give(&target).map_err(|error| Error::io("store", &staged.at, error))?;
        if rustix::fs::ioctl_ficlone(&target, file).is_ok() {
            return Ok(staged);
        }
        let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        // A descriptor of its own: the other one's place in the file is elsewhere.
        let source = File::open(&source).map_err(|error| Error::io("read", &source, error))?;
        let mut target = target;
        loop {
            use io::Read as _;
            stop.check()?;
            let copied = io::copy(&mut (&source).take(64 << 20), &mut target)
                .map_err(|error| Error::io("store", &staged.at, error))?;
            if copied == 0 {
                return Ok(staged);
            }
        }
    }

    /// Stages bytes.
    pub(super) fn stage_bytes(&self, bytes: &[u8]) -> Result<Staged, Error> {
        let staged = Staged { at: self.staging_name()? };
        let file = files::write_new(&staged.at, bytes, 0o444)?;
        self.give(&file).map_err(|error| Error::io("store", &staged.at, error))?;
        Ok(staged)
    }

    /// Makes what was opened the store's own; whether it is. A file system whose files have no owners of their own,
    /// or none that this machine may give, goes without.
    fn give(&self, opened: impl AsFd) -> io::Result<bool> {
        let Some((user, group)) = self.owner else { return Ok(true) };
        match std::os::unix::fs::fchown(opened, Some(user), Some(group)) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP)
                ) =>
            {
                if !self.told.swap(true, Ordering::Relaxed) {
                    let root = self.root.display();
                    tracing::warn!(%root, %error, "what is stored here cannot be made its owner's");
                }
                Ok(false)
            }
            given => given.map(|()| true),
        }
    }

    /// Gives staged files their places. Durable when this returns: bytes before names.
    pub(super) fn publish(&self, staged: Vec<(Staged, String)>) -> Result<(), Error> {
        /// From this many on, syncing the whole file system once is cheaper.
        const SYNC_ALL_FROM: usize = 8;
        let all = staged.len() >= SYNC_ALL_FROM;
        let sync_all = || {
            rustix::fs::syncfs(&self.descriptor)
                .map_err(|errno| Error::errno("store in", &self.root, errno))
        };
        if all {
            sync_all()?;
        } else {
            for (staged, key) in &staged {
                File::open(&staged.at)
                    .and_then(|file| file.sync_all())
                    .map_err(|error| Error::io("store", &self.place(key), error))?;
            }
        }
        for (staged, key) in staged {
            self.rename(&staged, &key, !all)?;
        }
        if all { sync_all() } else { Ok(()) }
    }

    fn rename(&self, staged: &Staged, key: &str, sync: bool) -> Result<(), Error> {
        path::check(key)?;
        let failed = self.failed("store", key);
        // Someone may delete the folder between finding it and renaming into it.
        for _ in 0..8 {
            let (parent, name) = self.make_parent(key, sync)?;
            match rustix::fs::renameat(rustix::fs::CWD, &staged.at, &parent, name) {
                Ok(()) if sync => return rustix::fs::fsync(&parent).map_err(failed),
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) if staged.at.exists() => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(failed(Errno::NOENT))
    }

    /// The folder that a path lies in, made if need be, and the name there.
    fn make_parent<'a>(&self, key: &'a str, sync: bool) -> Result<(OwnedFd, &'a str), Error> {
        let failed = self.failed("store", key);
        let (folders, name) = match key.rsplit_once('/') {
            Some((folders, name)) => (folders, name),
            None => ("", key),
        };
        let mut at = self.descriptor.try_clone().map_err(|e| Error::io("open", &self.root, e))?;
        let segments = folders.split('/').filter(|segment| !segment.is_empty());
        for (depth, segment) in segments.enumerate() {
            if depth == 0 && layout::is_named(segment, STAGING) {
                return Err(failed(Errno::ACCESS));
            }
            let mut opened = open_folder_at(&at, segment);
            if let Err(Errno::NOENT) = opened {
                match rustix::fs::mkdirat(&at, segment, Mode::from(0o755)) {
                    Ok(()) if sync => rustix::fs::fsync(&at).map_err(&failed)?,
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(errno)),
                }
                opened = open_folder_at(&at, segment);
            }
            at = opened.map_err(&failed)?;
            // Made just now, or by an agent that was killed just then, or that knew nothing of owners.
            let is_roots = |folder| rustix::fs::fstat(folder).is_ok_and(|stat| stat.st_uid == 0);
            if self.owner.is_some_and(|(user, _)| user != 0) && is_roots(&at) {
                self.give(&at)
                    .map_err(|error| Error::io("store in", &self.place(folders), error))?;
            }
        }
        Ok((at, name))
    }

    /// Removes what agents that were killed left behind.
    pub(super) fn clean(&self) {
        for entry in fs::read_dir(self.root.join(STAGING)).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            // The time of the last change of its names: a linked file keeps its older times.
            let Ok(meta) = entry.metadata() else { continue };
            let changed = SystemTime::UNIX_EPOCH
                + Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
            if changed.elapsed().is_ok_and(|age| age > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}
