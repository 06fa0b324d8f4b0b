//! Inputs that are mounted: files of a datastore that a job reads as it needs them (fuse(4)), on a node that does
//! not share the store.
//!
//! Each attempt with such inputs has a server, a process of its own that outlives the agent as the supervisor does:
//!
//! ```text
//! agent --(starts, hands over what is to be mounted)--> server --(mounts it, says so)--> agent
//! agent --(starts)--> supervisor --(SIGTERM, once nothing of the job may go on)--> server
//! server --(attempt is over, supervisor is gone, or nobody ever started one)--> unmounts, ends
//! ```
//! When a server ends, whatever way, every read that waits for it fails at once, so nothing of the job can hang on
//! it. A server that is killed is not started again: the job's open files would not come back.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::store::Found;
use crate::attempt::MARK;
use crate::cgroup::unescape;
use crate::supervisor::VERB;
use crate::trust::Trust;
use crate::{proc, record};

mod ahead;
mod failure;
pub(super) mod fetch;
mod filesystem;
pub(super) mod partial;
mod serve;
pub(super) mod source;
pub(super) mod tree;

pub(crate) use failure::Failure;
pub(crate) use serve::{probe, serve};

/// Stands where an attempt's folder would, for a server; the folder comes after it, for whoever lists processes.
pub(crate) const SERVE: &str = "--mounts";
/// In the attempt's folder: who serves its inputs.
const RECORD: &str = "mounts.json";
/// The name of what is mounted, in `/proc/mounts`.
const NAME: &str = "atelier";
/// How long a server may take to mount.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long one that was told to end may take.
const END_WITHIN: Duration = Duration::from_secs(5);

/// An input that is to be mounted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Mounted {
    pub(super) name: String,
    pub(super) datastore: String,
    /// The object, or what the names of all objects begin with.
    pub(super) key: String,
    pub(super) found: Vec<Found>,
}

/// All that a server needs. It is handed over in memory: it holds the attempt's token.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The attempt's folder.
    pub(crate) attempt: PathBuf,
    /// Where the inputs are mounted, each under its name.
    pub(crate) at: PathBuf,
    /// The agent's folder.
    pub(crate) root: PathBuf,
    /// Base URL of the daemon's HTTP side.
    pub(crate) url: String,
    /// Who vouches for it there.
    pub(crate) trust: Trust,
    pub(crate) token: String,
    /// The node's cache, and the bytes kept there at most.
    pub(crate) cache: PathBuf,
    pub(crate) cache_bytes: u64,
    /// How long a read waits for a daemon that is away.
    pub(crate) patience: Duration,
    pub(crate) inputs: Vec<Mounted>,
}

/// What a server answers once it has mounted, or cannot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Whether users other than the agent's can read what is mounted.
    Ready {
        for_others: bool,
    },
    Refused {
        why: String,
    },
}

/// A server's process, beyond doubt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Server {
    pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    start_time: u64,
    boot_id: String,
}

impl Server {
    fn this_process() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let stat = proc::stat(pid).ok_or_else(|| io::Error::other("no /proc/self/stat"))?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: proc::boot_id()? })
    }

    /// The process, if it still runs.
    fn open(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        let stat = proc::stat(self.pid)?;
        let is_it = stat.start_time == self.start_time && stat.state != 'Z';
        (is_it && proc::boot_id().is_ok_and(|boot| boot == self.boot_id)).then_some(pidfd)
    }

    /// Sends it a signal. When it ends, reads that wait for it fail.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pidfd) = self.open() {
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }
}

/// Starts a server and waits until it has mounted all; whether other users can read it. Waits for the disk.
///
/// # Errors
/// Why nothing is mounted, in words.
pub(crate) fn start(plan: &Plan) -> Result<bool, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    make_place(&plan.at).map_err(failed("cannot make the folder for mounts"))?;
    // The program that runs now, even if its file was replaced by a newer one meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("atelier").arg(VERB).arg(SERVE).arg(&plan.attempt).current_dir("/");
    command.env(MARK, &plan.attempt);
    // It has the attempt's own token, and needs no other.
    command.env_remove("ATELIER_TOKEN");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed("cannot start the server"))?;
    let answer = child.stdin.take().zip(child.stdout.take()).map(|(mut to, from)| {
        // A server that dies closes it.
        let _ = serde_json::to_vec(plan).map(|plan| to.write_all(&plan));
        drop(to);
        let mut from = BufReader::new(from);
        let mut line = String::new();
        if is_readable(from.get_ref(), READY_WITHIN) {
            let _ = from.read_line(&mut line);
        }
        line
    });
    let answer = answer.as_deref().map(serde_json::from_str::<Answer>);
    let is_ready = matches!(answer, Some(Ok(Answer::Ready { .. })));
    if !is_ready {
        // It may not have come to say who it is, so that nobody else would find it.
        let _ = child.kill();
    }
    // Its end is waited for here, whenever it comes; if this process ends first, by another.
    let waits = std::thread::spawn(move || child.wait());
    if !is_ready {
        let _ = waits.join();
    }
    match answer {
        Some(Ok(Answer::Ready { for_others })) => Ok(for_others),
        Some(Ok(Answer::Refused { why })) => {
            end(&plan.attempt, &plan.at);
            Err(why)
        }
        _ => {
            end(&plan.attempt, &plan.at);
            Err("the server ended, or did not mount in time".to_owned())
        }
    }
}

fn make_place(at: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    match fs::create_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o755))
}

fn is_readable(file: impl rustix::fd::AsFd, within: Duration) -> bool {
    let timeout = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: 0 };
    let mut files = [PollFd::new(&file, PollFlags::IN)];
    matches!(poll(&mut files, Some(&timeout)), Ok(1..))
}

/// Who serves an attempt's inputs, if they are mounted.
pub(crate) fn server(attempt: &Path) -> Option<Server> {
    record::read(attempt, RECORD).ok().flatten()
}

/// Why reads of an attempt's mounted inputs have failed, if they have: called when its processes have ended, and
/// before its server is ended.
pub(crate) fn failure(attempt: &Path) -> Option<Lost> {
    if let Some(failure) = failure::first(attempt) {
        return Some(Lost::Read(failure));
    }
    let gone = server(attempt).is_some_and(|server| server.open().is_none());
    (gone && !serve::has_ended_well(attempt)).then_some(Lost::Server)
}

/// How many bytes of an attempt's mounted inputs were fetched: called when its server has been ended.
pub(crate) fn fetched(attempt: &Path) -> u64 {
    serve::fetched(attempt)
}

/// What became of a job's mounted inputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// A read failed.
    Read(Failure),
    /// The server was killed.
    Server,
}

/// Ends the server of an attempt, if there is one, and takes away what it had mounted. Waits for it.
pub(crate) fn end(attempt: &Path, at: &Path) {
    // It is written before anything is mounted.
    let Some(server) = server(attempt) else { return };
    if let Some(pidfd) = server.open() {
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = pidfd_send_signal(&pidfd, signal);
            let _ = pidfd_send_signal(&pidfd, Signal::CONT);
            if is_readable(&pidfd, END_WITHIN) {
                break;
            }
        }
    }
    detach(at);
    let _ = fs::remove_file(attempt.join(RECORD));
}

/// Takes a mount away, whoever still uses it. What is not mounted stays.
fn detach(at: &Path) {
    match unmount(at, UnmountFlags::DETACH) {
        Err(rustix::io::Errno::PERM) if is_mounted(at) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "-q", "--"]).arg(at);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = command.status();
        }
        _ => {}
    }
}

/// What is mounted by a server of this program, as this process sees it (proc_pid_mountinfo(5)).
fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        // The helper of users who are not root knows subtypes, the kernel alone does not.
        let is_ours = kind.starts_with("fuse") && after.split(' ').nth(1)? == NAME;
        let at = before.split(' ').nth(4).filter(|_| is_ours)?;
        Some(unescape(at))
    };
    text.lines().filter_map(ours).collect()
}

fn is_mounted(at: &Path) -> bool {
    let plain = at.canonicalize().unwrap_or_else(|_| at.to_owned());
    mounts().iter().any(|mounted| *mounted == plain || mounted == at)
}

/// Takes away what servers that are gone have left mounted below an agent's folder.
pub(crate) fn detach_left(root: &Path) {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    for at in mounts().into_iter().filter(|at| at.starts_with(&root)) {
        let serves = |attempt: &Path| server(attempt).is_some_and(|server| server.open().is_some());
        if !at.parent().is_some_and(serves) {
            tracing::info!(at = %at.display(), "taking away what a killed server had mounted");
            detach(&at);
        }
    }
}
