//! Locks between the processes of one machine.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Error;

/// Held until dropped; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its file lock")] File);

fn open(root: &Path, name: &str) -> Result<File, Error> {
    let folder = root.join(".locks");
    std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
    let path = folder.join(name);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Error::io("open", &path, &error))
}

/// Takes the lock if no one has it.
pub(super) fn try_acquire(root: &Path, name: &str) -> Result<Option<Lock>, Error> {
    let file = open(root, name)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io("lock", &root.join(".locks").join(name), &error.into())),
    }
}

/// Takes the lock, waiting for whoever has it; `waiting` is called once if someone has.
pub(super) async fn acquire(
    root: &Path,
    name: &str,
    waiting: impl FnOnce(),
) -> Result<Lock, Error> {
    if let Some(lock) = try_acquire(root, name)? {
        return Ok(lock);
    }
    waiting();
    let file = open(root, name)?;
    let path = root.join(".locks").join(name);
    // The kernel wakes the thread when the lock is free. If the caller leaves first, the lock is
    // taken and let go of at once.
    let locked = tokio::task::spawn_blocking(move || {
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => return other.map(|()| Lock(file)),
            }
        }
    });
    match locked.await {
        Ok(result) => result.map_err(|error| Error::io("lock", &path, &error.into())),
        Err(_) => Err(Error::Stopped),
    }
}
