#![allow(clippy::unwrap_used)]

use std::thread;
use std::time::Instant;

use super::*;

/// A folder with a tree in which threads make files until `until`, or until there is no tree.
fn written_until(attempts: &Path, until: Instant) -> (Folder, Vec<thread::JoinHandle<()>>) {
    let folder = Folder::new(attempts, 7);
    fs::create_dir_all(folder.work()).unwrap();
    let (begun, wait) = std::sync::mpsc::channel();
    let write = |writer: u32| {
        let (begun, within) = (begun.clone(), File::open(folder.work()).unwrap());
        thread::spawn(move || {
            for number in 0_u64.. {
                let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
                let name = format!("{writer}-{number}");
                let made = rustix::fs::openat(&within, name, flags, rustix::fs::Mode::RUSR);
                let _ = begun.send(());
                if made.is_err() || Instant::now() > until {
                    return;
                }
            }
        })
    };
    let writers = (0..4).map(write).collect();
    wait.recv().unwrap();
    (folder, writers)
}

#[test]
fn what_somebody_still_writes_into_is_removed_once_they_have_left() {
    let root = tempfile::tempdir().unwrap();
    let attempts = root.path().join("attempts");
    let until = Instant::now() + Duration::from_millis(300);
    let (folder, writers) = written_until(&attempts, until);
    folder.remove().unwrap();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(!folder.path().exists());
    assert_eq!(fs::read_dir(root.path().join(REMOVED)).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_removed_is_no_attempt_for_the_next_agent() {
    let root = tempfile::tempdir().unwrap();
    let attempts = root.path().join("attempts");
    let (folder, writers) = written_until(&attempts, Instant::now() + Duration::from_millis(1_200));
    // Whether it fails depends on who is faster.
    let removed = folder.remove();
    assert!(!folder.path().exists() && fs::read_dir(&attempts).unwrap().next().is_none());
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let left = root.path().join(REMOVED);
    assert_eq!(fs::read_dir(&left).unwrap().count(), usize::from(removed.is_err()));
    Folder::remove_left(&attempts).unwrap();
    assert!(!left.exists());
}
