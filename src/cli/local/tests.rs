//! Processes that are started apart, found again and stopped.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::process::{Record, Started, spawn, tail};

fn shell(folder: &Path, script: &str) -> Started {
    let arguments = ["-c".to_owned(), script.to_owned()];
    spawn(Path::new("/bin/sh"), &arguments, folder, &folder.join("log"), "http://s:1").unwrap()
}

/// Looks until the log holds the line, for ten seconds at most.
fn await_line(folder: &Path, line: &str) {
    let begun = Instant::now();
    while !tail(&folder.join("log"), 10, 0).lines().any(|found| found == line) {
        assert!(begun.elapsed() < Duration::from_secs(10), "no line '{line}'");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_is_known_by_number_and_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let mut started = shell(folder.path(), "echo up; exec sleep 100");
    await_line(folder.path(), "up");
    let file = folder.path().join("p.json");
    started.record.write(&file).unwrap();
    let record = Record::read(&file).unwrap();
    assert_eq!(record, started.record);
    assert!(record.is_alive());
    // The same number, begun at another time, is another process: it is left alone.
    let other = Record { began: record.began + 1, ..record.clone() };
    assert!(!other.is_alive());
    other.stop(Duration::from_secs(5)).unwrap();
    assert!(record.is_alive());
    record.stop(Duration::from_secs(5)).unwrap();
    assert!(!record.is_alive());
    // Gone already, and waited for: still no error.
    started.child.wait().unwrap();
    record.stop(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_process_that_does_not_listen_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let started = shell(folder.path(), "trap '' TERM; echo deaf; while :; do sleep 100; done");
    await_line(folder.path(), "deaf");
    started.record.stop(Duration::from_millis(50)).unwrap();
    assert!(!started.record.is_alive());
}

#[test]
fn a_started_process_has_its_own_session_and_no_other_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let mut started = shell(
        folder.path(),
        "echo server=$ATELIER_SERVER; cut -d' ' -f1,6 /proc/$$/stat; echo error >&2",
    );
    assert!(started.child.wait().unwrap().success());
    let pid = started.record.pid;
    // Its session's number is its own number.
    let expected = format!("server=\n{pid} {pid}\nerror");
    assert_eq!(tail(&folder.path().join("log"), 10, started.log_from), expected);
}

/// A lock that the caller holds would be held, and a pipe never end, for as long as it runs.
#[test]
fn a_started_process_has_nothing_that_its_caller_has_open() {
    let folder = tempfile::tempdir().unwrap();
    // Unlike those of the standard library it is not closed on exec.
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut started = shell(folder.path(), "echo up; exec sleep 600");
    await_line(folder.path(), "up");
    drop(write);
    let mut polled = [PollFd::new(&read, PollFlags::IN)];
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "the process holds the pipe");
    assert!(polled[0].revents().contains(PollFlags::HUP));
    started.child.kill().unwrap();
    started.child.wait().unwrap();
}

#[test]
fn the_tail_is_of_the_lines_since() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    assert_eq!(tail(&log, 5, 0), "");
    fs::write(&log, "a\nb\nc\nd\n").unwrap();
    assert_eq!(tail(&log, 2, 0), "c\nd");
    assert_eq!(tail(&log, 9, 6), "d");
    assert_eq!(tail(&log, 9, 99), "");
}

#[test]
fn what_is_no_record_is_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.json");
    assert_eq!(Record::read(&file), None);
    fs::write(&file, "{").unwrap();
    assert_eq!(Record::read(&file), None);
}
