//! Processes of the cluster: started with their output in a file, killed, stopped and woken.

use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait::{PATIENCE, until, until_within};

/// A child whose output goes to a log file. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the log its own words begin.
    from: u64,
    reaped: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let from = file.metadata().unwrap().len();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), from, reaped: None }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its end, if it has come.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.reaped.is_none() {
            self.reaped = self.child.try_wait().unwrap();
        }
        self.reaped
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.wait_within(PATIENCE)
    }

    #[track_caller]
    pub(crate) fn wait_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until_within(patience, &what, || self.ended())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.reaped.is_none() {
            kill_process(self.pid(), signal).unwrap();
        }
    }

    /// SIGSTOP, and nothing of it runs any more when this returns: every thread is stopped, or in a
    /// call of the kernel that it will not come back from before it is woken.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.pid().as_raw_pid());
        let still = |state: &str| matches!(state, "T" | "D");
        let state = |thread: fs::DirEntry| {
            // The state is the first word after the name, which ends with the last parenthesis.
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            Some(stat.rsplit_once(')')?.1.split_whitespace().next()?.to_owned())
        };
        until_within(PATIENCE, &format!("{} is frozen", self.name), || {
            let mut states = fs::read_dir(&threads).unwrap().filter_map(|t| state(t.ok()?));
            states.all(|s| still(&s)).then_some(())
        });
    }

    /// kill -9, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::KILL);
            self.reaped = Some(self.child.wait().unwrap());
        }
    }

    /// SIGTERM; it must end well.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(
            status.success() || status.signal() == Some(9),
            "{} ended with {status} when asked to stop\n{}",
            self.name,
            self.tail(30)
        );
    }

    /// Whether it has printed `words`, and not one before it with the same log.
    pub(crate) fn said(&self, words: &str) -> bool {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let own = usize::try_from(self.from).ok().and_then(|from| bytes.get(from..));
        own.is_some_and(|own| String::from_utf8_lossy(own).contains(words))
    }

    /// All it has printed, and those before it with the same log.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines it printed.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.printed();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // Also a stopped process dies of it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Every living process whose environment or command line holds `mark`.
pub(crate) fn processes_with(mark: &str) -> Vec<Pid> {
    let mark = mark.as_bytes();
    let holds = |file: PathBuf| {
        fs::read(file).is_ok_and(|bytes| bytes.windows(mark.len()).any(|part| part == mark))
    };
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            name.as_bytes().iter().all(u8::is_ascii_digit) && name.as_bytes() != own.as_bytes()
        })
        .filter(|entry| holds(entry.path().join("environ")) || holds(entry.path().join("cmdline")))
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The supervisor that has the attempt whose folder this is.
pub(crate) fn supervisor(folder: &Path) -> Pid {
    // A job is told to run a moment before its supervisor has written that.
    let started = until("a supervisor has it", || fs::read(folder.join("started.json")).ok());
    let started: serde_json::Value = serde_json::from_slice(&started).unwrap();
    Pid::from_raw(started["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
}

/// Bytes of memory that a process has to itself.
pub(crate) fn memory(pid: Pid) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_pid());
    let text = fs::read_to_string(path).unwrap();
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
        .unwrap();
    kib << 10
}
