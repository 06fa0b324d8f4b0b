//! Files below a folder that somebody else changes meanwhile: no symbolic link is followed, at whatever level.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
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
    // Looked at before it is opened to be read: who waits to write to a named pipe would take that for its reader.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found =
        folder(root, above).and_then(|at| Ok(rustix::fs::openat(&at, name, flags, Mode::empty())?));
    let found = match found {
        Ok(found) => File::from(found),
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !found.metadata()?.is_file() {
        return Ok(None);
    }
    // By its number, since the name may be another's by now.
    let by_number = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(Some(File::from(rustix::fs::open(by_number, flags, Mode::empty())?)))
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

/// Whether some process has a file open, or in its memory, to write to it, as far as this agent may know.
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
        }) || maps(&process.path().join("maps"), name, version)
    })
}

/// Whether a process has a file in its memory so that what it changes there is the file's, by what the kernel tells.
fn maps(told: &Path, name: &[u8], version: &Version) -> bool {
    let text = fs::read(told).unwrap_or_default();
    text.split(|byte| *byte == b'\n').any(|line| {
        // Where, how, from where on, of which device, the inode, the path.
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let is_shared =
            words.nth(1).is_some_and(|how| how.get(1) == Some(&b'w') && how.get(3) == Some(&b's'));
        let inode = words.nth(2).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        is_shared && inode == Some(version.inode) && line.ends_with(name)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_pipe_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let (root, told) = (
            root(folder.path()).unwrap(),
            rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap(),
        );
        let opens = rustix::fs::inotify::WatchFlags::OPEN;
        rustix::fs::inotify::add_watch(&told, &pipe, opens).unwrap();
        assert!(file(&root, "pipe").unwrap().is_none());
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut events = rustix::fs::inotify::Reader::new(&told, &mut buffer);
        assert_eq!(events.next().err(), Some(Errno::AGAIN), "somebody has opened it");
        fs::write(folder.path().join("file"), "text").unwrap();
        assert!(file(&root, "file").unwrap().is_some() && file(&root, "none").unwrap().is_none());
    }

    /// Line by line as the kernel writes it.
    #[test]
    fn what_is_mapped_to_be_written_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (file, told) = (folder.path().join("a b"), folder.path().join("maps"));
        fs::write(&file, "text").unwrap();
        let version = Version::of(&fs::metadata(&file).unwrap());
        for (how, is_it) in [("rw-s", true), ("r--s", false), ("rw-p", false)] {
            let line = format!(
                "7f00-7f01 r-xp 00000000 fd:01 7 /bin/x\n7f01-7f02 {how} 00000000 fd:01 {}      /tmp/a b\n",
                version.inode
            );
            fs::write(&told, line).unwrap();
            assert_eq!(maps(&told, b"a b", &version), is_it, "{how}");
        }
    }
}
