//! Small JSON files by which agent and supervisor tell each other, and their successors, what
//! happened.
//!
//! A record is whole or absent: it is written under another name first. It is not synced to disk
//! here. A killed process loses nothing by that, and after a power cut every process of the machine
//! is dead and the boot id says so.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a record, over an older one if there is one. Readable by the owner alone.
pub(crate) fn write(folder: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    write_bytes(folder, name, &serde_json::to_vec(record)?)
}

/// The same for bytes of any kind.
pub(crate) fn write_bytes(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(temporary(name));
    write_file(&temporary, bytes)?;
    fs::rename(temporary, folder.join(name))
}

/// The name under which a record is written before it is whole. Such a file may be there before:
/// it is used.
pub(crate) fn temporary(name: &str) -> String {
    format!(".{name}")
}

/// Writes a record unless there is one already: of several writers exactly one succeeds, the
/// others get [`io::ErrorKind::AlreadyExists`].
pub(crate) fn claim(folder: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let own = folder.join(format!(".{name}.{}", std::process::id()));
    let to = folder.join(name);
    // An empty file that waits to be used. Only one of several writers gets it.
    let _ = fs::rename(folder.join(temporary(name)), &own);
    write_file(&own, &serde_json::to_vec(record)?)?;
    match renameat_with(CWD, &own, CWD, &to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system cannot do it in one step (NFS).
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let linked = fs::hard_link(&own, &to);
            let _ = fs::remove_file(&own);
            linked
        }
        Err(errno) => {
            let _ = fs::remove_file(&own);
            Err(errno.into())
        }
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // Emptied only if need be: ext4 writes a file that was truncated to disk when it is closed.
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    file.write_all(bytes).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Takes a record back, but leaves its file under the name of one that is not whole.
pub(crate) fn withdraw(folder: &Path, name: &str) -> io::Result<()> {
    fs::rename(folder.join(name), folder.join(temporary(name)))
}

/// Reads a record; `None` if there is none, or if what is there is not whole (a power cut can do
/// that, and then the record was never acted upon).
pub(crate) fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> io::Result<Option<T>> {
    match fs::read(folder.join(name)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
