//! What there is of a file that is being brought here.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncWriteExt as _, BufWriter};

/// Bytes that are written at once: each write is handed to a thread.
const AT_ONCE: usize = 1 << 20;

/// A file beside the one that it becomes, which nobody else writes. Unless it stays, it goes when it is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Part {
    path: PathBuf,
    file: BufWriter<tokio::fs::File>,
    /// Whether it is left for another try.
    stays: bool,
}

impl Part {
    /// What an earlier try has left at `path`, or a new one there. Where somebody else is at it, or has put it there,
    /// it is a new one of a name that nobody knows, and does not stay.
    pub(in crate::cli) fn open(path: PathBuf) -> io::Result<Self> {
        let (path, file, stays) = match shared(&path) {
            Some(file) => (path, file, true),
            None => {
                let path = unknown(&path)?;
                let file = new(&path)?;
                (path, file, false)
            }
        };
        let file = BufWriter::with_capacity(AT_ONCE, tokio::fs::File::from_std(file));
        Ok(Self { path, file, stays })
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
        self.stays = false;
    }

    /// Gives it its name, in the place of what may lie there.
    pub(in crate::cli) fn become_file(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.stays {
            // Whether it goes changes nothing about why it is dropped.
            let _ = fs::remove_file(&self.path);
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
