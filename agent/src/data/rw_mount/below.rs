//! Files below a folder that somebody else changes meanwhile: no symbolic link is followed, at whatever level.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The deepest folder that is looked into.
const MAX_DEPTH: usize = 256;

/// What changes when a file is written to, or another takes its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) bytes: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    inode: u64,
}

impl Version {
    pub(super) fn of(meta: &Metadata) -> Self {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Self { bytes: meta.len(), modified, inode: meta.ino() }
    }
}

/// Opens the folder that all is below.
pub(super) fn root(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

fn folder_at(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// The folder at `below`, which is relative and has no `..`.
pub(super) fn folder(root: &OwnedFd, below: &str) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    for segment in below.split('/').filter(|segment| !segment.is_empty()) {
        at = folder_at(&at, segment)?;
    }
    Ok(at)
}

/// The regular file at `below`; `None` if there is none, or something else.
pub(super) fn file(root: &OwnedFd, below: &str) -> io::Result<Option<File>> {
    let (above, name) = below.rsplit_once('/').unwrap_or(("", below));
    // Without NONBLOCK, opening a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened =
        folder(root, above).and_then(|at| Ok(rustix::fs::openat(&at, name, flags, Mode::empty())?));
    match opened {
        Ok(fd) => {
            let file = File::from(fd);
            Ok(file.metadata()?.is_file().then_some(file))
        }
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// What lies right in a folder.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) folders: Vec<String>,
    /// Regular ones.
    pub(super) files: Vec<String>,
}

/// What a folder has of whose names are the same in datastores; a folder that is gone has nothing.
pub(super) fn level(root: &OwnedFd, below: &str) -> io::Result<Level> {
    let mut level = Level::default();
    if below.split('/').count() > MAX_DEPTH {
        return Ok(level);
    }
    let at = match folder(root, below) {
        Ok(at) => at,
        Err(error) if is_gone(&error) => return Ok(level),
        Err(error) => return Err(error),
    };
    for entry in rustix::fs::Dir::read_from(&at)? {
        let entry = entry?;
        let Some(name) = plain(entry.file_name().to_bytes()) else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            known => known,
        };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        match kind {
            FileType::Directory => level.folders.push(path),
            FileType::RegularFile => level.files.push(path),
            _ => {}
        }
    }
    Ok(level)
}

/// Whether some process has a file open to write to it, as far as this agent may know.
pub(super) fn is_written(path: &str, version: &Version) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).as_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes
        .filter(|entry| entry.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit));
    numbered.into_iter().any(|process| {
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| {
            // Others are not looked at: what they lie on may not answer.
            let leads_to = fs::read_link(file.path()).unwrap_or_default();
            let is_it = leads_to.file_name().is_some_and(|known| known.as_bytes() == name)
                && fs::metadata(file.path()).is_ok_and(|meta| Version::of(&meta) == *version);
            is_it && writes(&process.path().join("fdinfo").join(file.file_name()))
        })
    })
}

/// Whether an open file may be written to, by what the kernel tells of it.
fn writes(told: &Path) -> bool {
    let text = fs::read_to_string(told).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & OFlags::RWMODE.bits() != OFlags::RDONLY.bits())
}

/// A name that is the same in a datastore; the others are stored when the job ends.
pub(super) fn plain(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    (crate::data::path::segment(name) == text).then_some(text)
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}
