//! Processes of this program's own: started apart from whoever starts them, found again, stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use atelier_core::egress::Network;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A log larger than this is put aside when its process starts anew.
const LARGEST_LOG: u64 = 16 << 20;

/// A process that was started, as its record on disk tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its number.
    pub(crate) pid: i32,
    /// When it began, in clock ticks since the machine started. Numbers are used again; a number
    /// with its beginning is not.
    pub(crate) began: u64,
    /// The version that was started.
    pub(crate) version: String,
    /// The daemon's address: where it listens, or whom the agent serves.
    pub(crate) server: String,
    /// Networks that the daemon was started with, for the next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow_egress: Vec<Network>,
}

impl Record {
    /// The record in a file, if there is one that can be read.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Puts the record into the file, whole or not at all.
    pub(crate) fn write(&self, file: &Path) -> io::Result<()> {
        let part = file.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        fs::rename(part, file)
    }

    /// Whether that very process is alive.
    pub(crate) fn is_alive(&self) -> bool {
        beginning(self.pid) == Some(self.began)
    }

    /// Terminates it, waits up to `grace`, kills it. Nothing if it is gone already.
    pub(crate) fn stop(&self, grace: Duration) -> io::Result<()> {
        let gone = |error: rustix::io::Errno| match error {
            rustix::io::Errno::SRCH => Ok(()),
            error => Err(error.into()),
        };
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => return gone(error),
        };
        // The descriptor now holds one process; only if it is the recorded one is it ours.
        if !self.is_alive() {
            return Ok(());
        }
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(5))] {
            if let Err(error) = pidfd_send_signal(&process, signal) {
                return gone(error);
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(patience.subsec_nanos()),
            };
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            if poll(&mut ended, Some(&timeout))? > 0 {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("process {} does not end", self.pid)))
    }
}

/// When a living process began: field 22 of its `stat`. `None` if it is gone or a zombie.
fn beginning(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so fields are counted from its end.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A process that was started just now.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) record: Record,
    /// Where in the log its own lines begin.
    pub(crate) log_from: u64,
}

/// This program, to be started once more. Where its file was replaced by a newer one meanwhile, the
/// one that runs: a path without a file would start nothing, and the newer one may not know the
/// arguments.
pub(crate) fn own_program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let runs = fs::metadata("/proc/self/exe")?;
    let is_same = |found: &fs::Metadata| (found.dev(), found.ino()) == (runs.dev(), runs.ino());
    let is_there = fs::metadata(&program).is_ok_and(|found| is_same(&found));
    Ok(if is_there { program } else { PathBuf::from("/proc/self/exe") })
}

/// Starts this program with other arguments in a session of its own, so that neither Ctrl-C nor
/// the terminal's end reaches it. What it prints goes to `log`.
pub(crate) fn spawn(
    program: &Path,
    arguments: &[String],
    folder: &Path,
    log: &Path,
    server: &str,
) -> io::Result<Started> {
    if fs::metadata(log).is_ok_and(|found| found.len() > LARGEST_LOG) {
        fs::rename(log, log.with_extension("log.1"))?;
    }
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let log_from = log.metadata()?.len();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        // They name another daemon than the one meant here.
        .env_remove("ATELIER_SERVER")
        .env_remove("ATELIER_TOKEN")
        .env_remove(atelier_agent::trust::CA_FILE)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    for variable in atelier_agent::NOTIFY_VARIABLES {
        // It would speak for the service from which it was started.
        command.env_remove(variable);
    }
    // SAFETY: between fork and exec only setsid and close_range run, which are async-signal-safe and
    // allocate nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            // What whoever called had open is not the workspace's: a lock would be held, and a pipe
            // never end, for as long as it runs. Kernels before 5.11 do without.
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int);
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // A process that ended already has no beginning any more; its end is noticed by whoever waits.
    let began = beginning(pid).unwrap_or_default();
    let record = Record {
        pid,
        began,
        version: crate::VERSION.to_owned(),
        server: server.to_owned(),
        allow_egress: Vec::new(),
    };
    Ok(Started { child, record, log_from })
}

/// The last lines of a log from byte `from` on; empty if there is none.
pub(crate) fn tail(log: &Path, lines: usize, from: u64) -> String {
    const WINDOW: u64 = 256 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(WINDOW).max(from.min(size))))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
