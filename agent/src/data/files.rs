//! Links and copies of files on this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;

use super::Error;

/// Copied between two looks at whether anyone still wants the copy.
const PIECE: u64 = 64 << 20;

/// The longest file that is copied through memory: the blocks of longer ones are worth sharing.
pub(super) const SMALL: u64 = 64 << 10;

/// Tells work on other threads that no one waits for it any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

/// Sets the sign when the caller goes away.
pub(super) struct StopOnDrop(pub(super) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Stop {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// Opens a regular file for reading; `None` if it is something else, a symbolic link included.
pub(super) fn open_regular(path: &Path) -> io::Result<Option<File>> {
    // Without NONBLOCK, opening a named pipe would wait for its writer.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    match file {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::LOOP | Errno::NXIO) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Makes `to` a second name of a file that no one may change: a hard link, or a symbolic link
/// where the file systems differ. The file is made read-only.
pub(super) fn link_read_only(from: &Path, to: &Path) -> Result<(), Error> {
    let meta = fs::metadata(from).map_err(|error| Error::io("read", from, error))?;
    let mode = meta.permissions().mode();
    if mode & 0o222 != 0 {
        // Another user's file cannot be changed through the link anyway.
        let _ = fs::set_permissions(from, fs::Permissions::from_mode(mode & 0o555));
    }
    link(from, to)
}

fn link(from: &Path, to: &Path) -> Result<(), Error> {
    match rustix::fs::link(from, to) {
        Ok(()) => Ok(()),
        Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::ACCESS | Errno::NOTSUP) => {
            std::os::unix::fs::symlink(from, to).map_err(|error| Error::io("link", to, error))
        }
        Err(errno) => Err(Error::errno("link", to, errno)),
    }
}

/// The same of a file of this agent's cache. What root has, nobody else may write as it is, and where jobs are root too no
/// mode would keep them from it: there it stays as it is, for those that may change theirs ([`super::overlay`]).
pub(super) fn link_cached(from: &Path, to: &Path) -> Result<(), Error> {
    match rustix::process::geteuid().is_root() {
        true => link(from, to),
        false => link_read_only(from, to),
    }
}

/// Makes `to` a link to the very file that is open, if it can be one.
pub(super) fn link_open_file(file: &File, to: &Path) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, by_number, CWD, to, rustix::fs::AtFlags::SYMLINK_FOLLOW)
}

/// Whether files that are made in the folder of `to` can share their blocks with `file`.
pub(super) fn can_share(file: &File, to: &Path) -> bool {
    let Some(folder) = to.parent() else { return false };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let nameless = rustix::fs::open(folder, flags, rustix::fs::Mode::RUSR);
    nameless.is_ok_and(|nameless| rustix::fs::ioctl_ficlone(nameless, file).is_ok())
}

/// A private, writable copy; shares its blocks with the original where the file system can.
pub(super) fn copy(from: &Path, to: &Path, stop: &Stop) -> Result<(), Error> {
    let source = match open_regular(from) {
        Ok(Some(file)) => file,
        Ok(None) => {
            let error = io::Error::other("it is not a regular file");
            return Err(Error::io("copy", from, error));
        }
        Err(error) => return Err(Error::io("copy", from, error)),
    };
    let mut target = create_new(to, 0o644)?;
    let size = source.metadata().map_err(|error| Error::io("copy", from, error))?.len();
    if size <= SMALL {
        // Written sooner than its blocks are shared, or than a copy within the kernel is begun. In a shared folder it
        // may be longer than was said.
        let mut bytes = Vec::with_capacity(SMALL as usize + 1);
        let read = (&source).take(SMALL + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::io("copy", from, error))?;
        target.write_all(&bytes).map_err(|error| Error::io("write", to, error))?;
        if bytes.len() as u64 <= SMALL {
            return Ok(());
        }
    }
    if size > SMALL && rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    loop {
        stop.check()?;
        // std copies within the kernel where it can.
        let copied = io::copy(&mut (&source).take(PIECE), &mut target)
            .map_err(|error| Error::io("write", to, error))?;
        if copied == 0 {
            return Ok(());
        }
    }
}

/// A file that was not there.
pub(super) fn create_new(path: &Path, mode: u32) -> Result<File, Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| Error::io("create", path, error))
}

/// Writes a whole new file.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<File, Error> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes).map_err(|error| Error::io("write", path, error))?;
    Ok(file)
}

/// Removes whatever has this name; nothing is fine too.
pub(super) fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
