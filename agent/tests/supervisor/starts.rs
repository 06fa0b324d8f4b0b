//! Starts that take longer than anybody wants to wait.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Attempt, boottime_ms, isolated, set_lease, signal, under_rules, wait_for};

/// A program that nobody can start for now: it has a lease on it (fcntl(2)), which the kernel lets its holder
/// take some time to give up, as a file system that hangs does without end.
struct Leased {
    _file: fs::File,
}

impl Leased {
    fn new(attempt: &Attempt) -> Self {
        let program = attempt.path("work/program");
        fs::copy("/bin/sh", &program).unwrap();
        let file = fs::File::options().read(true).write(true).open(&program).unwrap();
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            let leased = libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK);
            assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
        }
        Self { _file: file }
    }
}

#[test]
fn a_supervisor_whose_job_cannot_start_hears_what_it_is_told() {
    let orders = [
        (Some(libc::SIGTERM), "terminate"),
        (Some(libc::SIGQUIT), "kill"),
        // The lease of the node, not that of the file.
        (None, "lease"),
    ];
    for (order, ended_by) in orders {
        let attempt = Attempt::new("echo ran >ran");
        let _leased = Leased::new(&attempt);
        let lease = attempt.path("lease");
        let until = if order.is_some() { u64::MAX } else { boottime_ms() + 500 };
        set_lease(&lease, until);
        let program = attempt.path("work/program");
        let attempt = attempt
            .with("program", program.to_str().unwrap())
            .with("lease", lease.to_str().unwrap());
        let (mut supervisor, since) = (attempt.start(), Instant::now());
        wait_for("the supervisor", || attempt.path("started.json").exists().then_some(()));
        if let Some(order) = order {
            signal(&supervisor, order);
        }
        let ended = attempt.end(&mut supervisor);
        // Leases on files are given up after 45 s, and then the job would run.
        assert!(since.elapsed() < Duration::from_secs(20), "it waited for its command to start");
        assert_eq!(ended.exited["ended_by"], ended_by, "{}", ended.exited);
        assert_eq!(ended.exited["survivors"], 0);
        assert!(!attempt.path("work/ran").exists());
    }
}

/// A folder in which every name is waited for: its file system, as one of a server that is gone, never answers.
struct Unanswering {
    folder: tempfile::TempDir,
    /// Without it everything below fails at once.
    _server: fs::File,
}

impl Unanswering {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
        let number = server.as_raw_fd();
        let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0");
        let options = CString::new(options).unwrap();
        let kind = c"fuse".as_ptr();
        let mounted = unsafe { libc::mount(kind, path.as_ptr(), kind, 0, options.as_ptr().cast()) };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        Self { folder, _server: server }
    }

    fn inside(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Unanswering {
    fn drop(&mut self) {
        let path = CString::new(self.folder.path().as_os_str().as_bytes()).unwrap();
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// It may write a folder that does not answer, and hears of its end all the same.
fn ends_before_its_folder_answers(make: fn(&str) -> Attempt) {
    let unanswering = Unanswering::new();
    let mut attempt = make("echo ran >ran");
    let writable = json!([attempt.path("work"), unanswering.inside()]);
    attempt.launch["view"]["writable"] = writable;
    let mut supervisor = attempt.start();
    wait_for("the supervisor", || attempt.path("started.json").exists().then_some(()));
    signal(&supervisor, libc::SIGTERM);
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["ended_by"], "terminate", "{}", ended.exited);
    assert_eq!(ended.exited["survivors"], 0);
    assert!(!attempt.path("work/ran").exists());
}

#[test]
fn isolated_a_start_that_waits_for_a_folder_can_be_cancelled() {
    ends_before_its_folder_answers(isolated);
}

#[test]
fn isolated_by_rules_a_start_that_waits_for_a_folder_can_be_cancelled() {
    ends_before_its_folder_answers(under_rules);
}
