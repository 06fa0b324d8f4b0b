//! Pins that the other processes which use the folder see: the kernel drops a lock with the process that has it, so that
//! one that was killed pins nothing.
//!
//! A file of a datastore is locked itself (flock(2), shared). Of content objects a job's code may need more than a
//! process can have files open, so that a process which pins some locks a file of its own in `pins/`, and nobody else
//! removes any object meanwhile.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

/// Locks a file against being removed; `None` if it was removed just now, or is not there.
pub(super) fn hold(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    flock(&file, FlockOperation::LockShared)?;
    let is_there = file.metadata()?.nlink() > 0;
    Ok(is_there.then_some(file))
}

/// Makes a file and locks it as [`hold`] does. Who looks whether it is locked has it for a moment, which is waited for.
fn make_held(path: &Path) -> io::Result<File> {
    loop {
        File::create(path)?;
        if let Some(file) = hold(path)? {
            return Ok(file);
        }
    }
}

/// The objects that this process pins.
#[derive(Debug)]
pub(super) struct Objects {
    folder: PathBuf,
    /// How many, and the lock while there are some.
    pinned: Mutex<(usize, Option<File>)>,
}

impl Objects {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, pinned: Mutex::default() }
    }

    fn own(&self) -> PathBuf {
        self.folder.join(std::process::id().to_string())
    }

    fn lock(&self) -> MutexGuard<'_, (usize, Option<File>)> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more is pinned. It is only this process that knows if the disk will not have it.
    pub(super) fn pin(&self) {
        let mut pinned = self.lock();
        pinned.0 += 1;
        if pinned.1.is_none() {
            let locked = fs::create_dir_all(&self.folder).and_then(|()| make_held(&self.own()));
            pinned.1 =
                locked.inspect_err(|error| tracing::debug!(%error, "pins are not seen")).ok();
        }
    }

    pub(super) fn unpin(&self) {
        let mut pinned = self.lock();
        pinned.0 = pinned.0.saturating_sub(1);
        if pinned.0 == 0 && pinned.1.take().is_some() {
            let _ = fs::remove_file(self.own());
        }
    }

    /// Whether another process pins some. What one left that was killed goes.
    pub(super) fn are_pinned_elsewhere(&self) -> bool {
        let own = self.own();
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        files.map(|entry| entry.path()).filter(|path| *path != own).any(|path| {
            let Ok(file) = File::open(&path) else { return false };
            // Removed while it is locked, so that whoever waits to lock it sees that it is gone.
            let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if is_free {
                let _ = fs::remove_file(&path);
            }
            !is_free
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that holds a lock on a file until it is killed.
    fn other(lock: &str, path: &Path) -> std::process::Child {
        use std::io::{BufRead as _, BufReader};
        let mut command = Command::new("flock");
        command.arg(lock).arg(path).args(["sh", "-c", "echo held; exec sleep 600"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        child
    }

    #[test]
    fn what_another_process_pins_is_seen_until_it_dies() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::new(folder.path().join("pins"));
        objects.pin();
        objects.pin();
        assert!(!objects.are_pinned_elsewhere(), "one's own are not another's");
        let theirs = folder.path().join("pins/1");
        fs::write(&theirs, "").unwrap();
        // It becomes the program itself, with the lock.
        let mut child = other("-xF", &theirs);
        assert!(objects.are_pinned_elsewhere());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!objects.are_pinned_elsewhere());
        assert!(!theirs.exists(), "nobody else would remove it");
        objects.unpin();
        assert!(objects.own().exists());
        objects.unpin();
        assert!(!objects.own().exists());
    }

    #[test]
    fn one_who_looks_is_in_no_pins_way() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::new(folder.path().join("pins"));
        fs::create_dir(&objects.folder).unwrap();
        // Left by a process of the same number, and looked at just now.
        let looked_at = File::create(objects.own()).unwrap();
        flock(&looked_at, FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let pinning = scope.spawn(|| objects.pin());
            std::thread::sleep(std::time::Duration::from_millis(100));
            fs::remove_file(objects.own()).unwrap();
            drop(looked_at);
            pinning.join().unwrap();
        });
        let other = Objects::new(objects.folder.clone());
        let seen = File::open(other.own()).unwrap();
        assert!(flock(&seen, FlockOperation::NonBlockingLockExclusive).is_err(), "nobody sees it");
    }

    #[test]
    fn a_file_that_was_removed_just_now_is_not_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert!(hold(&path).unwrap().is_none());
        fs::write(&path, "x").unwrap();
        let held = hold(&path).unwrap();
        let other = File::open(&path).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(held);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
