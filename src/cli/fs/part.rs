//! What there is of a file that is being brought here.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use tokio::io::{AsyncWriteExt as _, BufWriter};

/// Bytes that are written at once: each write is handed to a thread.
const AT_ONCE: usize = 1 << 20;

/// A file beside the one that it becomes, which nobody else writes. Unless it stays, it goes when it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Part {
    file: BufWriter<tokio::fs::File>,
    lies: Lies,
}

/// Where a part is found.
#[derive(Debug)]
enum Lies {
    /// By others too: it is left for another try.
    Known(PathBuf),
    /// By this command alone, if it is found at all.
    Alone(PathBuf),
    /// Nowhere: it has no name yet, and goes with this command, however that ends.
    Nowhere,
}

impl Part {
    /// What an earlier try has left at `path`, or a new one there. Where somebody else is at it, or has put it there,
    /// it is a new one that nobody finds, and does not stay.
    pub(in crate::cli) fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(file) = shared(&path) {
            return Ok(Self::of(file, Lies::Known(path)));
        }
        match nameless(&path) {
            Some(file) => Ok(Self::of(file, Lies::Nowhere)),
            None => Self::alone(&path),
        }
    }

    /// A new one beside a path, of a name that nobody knows.
    fn alone(path: &Path) -> io::Result<Self> {
        let path = unknown(path)?;
        Ok(Self::of(new(&path)?, Lies::Alone(path)))
    }

    fn of(file: File, lies: Lies) -> Self {
        Self { file: BufWriter::with_capacity(AT_ONCE, tokio::fs::File::from_std(file)), lies }
    }

    /// Bytes of it, once they are flushed.
    pub(in crate::cli) async fn length(&self) -> io::Result<u64> {
        self.file.get_ref().metadata().await.map(|meta| meta.len())
    }

    /// Begins anew.
    pub(in crate::cli) async fn empty(&mut self) -> io::Result<()> {
        self.file.get_ref().set_len(0).await
    }

    pub(in crate::cli) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await
    }

    pub(in crate::cli) async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    /// It is of no use to another try.
    pub(in crate::cli) fn forget(&mut self) {
        self.lies = match mem::replace(&mut self.lies, Lies::Nowhere) {
            Lies::Known(path) => Lies::Alone(path),
            other => other,
        };
    }

    /// Gives it its name, in the place of what may lie there.
    pub(in crate::cli) fn become_file(mut self, to: &Path) -> io::Result<()> {
        if let Lies::Nowhere = self.lies {
            // What has no name cannot take another's place.
            let path = unknown(to)?;
            let open = of_process(self.file.get_ref());
            linkat(CWD, open, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            self.lies = Lies::Alone(path);
        }
        if let Lies::Known(path) | Lies::Alone(path) = &self.lies {
            fs::rename(path, to)?;
        }
        self.lies = Lies::Nowhere;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Lies::Alone(path) = &self.lies {
            // Whether it goes changes nothing about why it is dropped.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether a file may be a part of one that is being copied here.
pub(in crate::cli) fn is_part(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".part"));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn new(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).open(path)
}

/// A new file without a name in the folder of a path, where the file system has such files and one can be given a name
/// later.
fn nameless(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file = OpenOptions::new().append(true).custom_flags(libc::O_TMPFILE).open(folder).ok()?;
    of_process(&file).exists().then_some(file)
}

/// Where the system shows an open file of this process.
fn of_process(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The part at a path, if it is nobody else's.
fn shared(path: &Path) -> Option<File> {
    let (file, is_new) = match new(path) {
        Ok(file) => (file, true),
        Err(_) => {
            // A link would lead elsewhere, and a pipe would wait for who reads it.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            (OpenOptions::new().append(true).custom_flags(flags).open(path).ok()?, false)
        }
    };
    match file.try_lock() {
        Ok(()) => {}
        // Where there are no locks, what was not there before is nobody else's.
        Err(TryLockError::Error(_)) if is_new => {}
        Err(_) => return None,
    }
    // Who held it may have given it its name since it was opened.
    let (meta, there) = (file.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    let is_there = (meta.dev(), meta.ino()) == (there.dev(), there.ino());
    // What somebody else has put there would be taken for the object's bytes, and under a second name another file's
    // would be written.
    let is_own =
        meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw();
    (is_there && (is_new || is_own)).then_some(file)
}

/// A name beside a path that nobody knows.
fn unknown(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(path.with_file_name(format!(".{:016x}.part", u64::from_ne_bytes(random))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_copy_that_is_killed_beside_another_leaves_nothing() {
        // A file system that has files without names.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (at, to) = (folder.path().join(".0123.part"), folder.path().join("whole"));
        let first = Part::open(at.clone()).unwrap();
        let mut second = Part::open(at).unwrap();
        second.write(b"mine").await.unwrap();
        second.flush().await.unwrap();
        assert_eq!(second.length().await.unwrap(), 4);
        // As when it is killed: it does not come to remove anything.
        std::mem::forget(second);
        assert_eq!(names(folder.path()), [".0123.part"]);

        let mut third = Part::open(folder.path().join(".0123.part")).unwrap();
        third.write(b"lost").await.unwrap();
        third.flush().await.unwrap();
        third.empty().await.unwrap();
        third.write(b"mine").await.unwrap();
        third.flush().await.unwrap();
        fs::write(&to, "another").unwrap();
        third.become_file(&to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        drop(first);
        let mut left = names(folder.path());
        left.sort_unstable();
        assert_eq!(left, [".0123.part", "whole"]);
    }

    #[tokio::test]
    async fn what_does_not_become_a_file_goes() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (at, to) = (folder.path().join(".0123.part"), folder.path().join("whole"));
        fs::create_dir(&to).unwrap();
        let nameless = Part::of(nameless(&at).unwrap(), Lies::Nowhere);
        // Where the file system has only files with names.
        for mut part in [nameless, Part::alone(&at).unwrap()] {
            part.write(b"mine").await.unwrap();
            part.flush().await.unwrap();
            part.become_file(&to).unwrap_err();
        }
        assert_eq!(names(folder.path()), ["whole"]);
        fs::remove_dir(&to).unwrap();
        let mut part = Part::alone(&at).unwrap();
        part.write(b"mine").await.unwrap();
        part.flush().await.unwrap();
        part.become_file(&to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["whole"]);
    }
}
