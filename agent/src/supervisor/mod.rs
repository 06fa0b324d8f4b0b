//! The supervisor: one small process per attempt that owns the job's process tree.
//!
//! It starts the command, copies its output into the log up to a bound, enforces the time limit and
//! the lease, and writes how it ended. It needs no agent: an agent may die and come back at any
//! moment. When the supervisor has ended, nothing of the job lives any more.
//!
//! ```text
//! Starting --(all commands run)-------------> Running
//! Starting --(as below, or not in time)-----> Killing   after a moment in which it may still begin, and end as below
//! Running --(main process ends)-------------> Killing   what is left of the tree dies at once
//! Running --(SIGTERM, time limit, lease)----> Stopping  SIGTERM to the tree, then a grace period
//! Running, Stopping --(SIGQUIT)-------------> Killing
//! Stopping --(grace period over)------------> Killing
//! any, main ended --(no child left)---------> done
//! ```
//!
//! **Invariant:** single-threaded, and no memory that grows with the job's output or age.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::data::mount;
use crate::{exec, isolation, mpi, proc, record};

mod elsewhere;
mod journal;
mod launcher;
mod leader;
mod lease;
mod output;
mod pace;
mod run;
mod signals;
mod spawn;
mod tree;
mod word;

pub(crate) use journal::{
    CountedMemory, EXITED, EndedBy, Exited, LAUNCH, Launch, LaunchPipe, LaunchProcess, LogError,
    OutOfMemory, Outcome, STARTED, Started,
};
pub(crate) use launcher::{Launched, Launcher};
pub(crate) use leader::fork;
pub(crate) use lease::Lease;
pub(crate) use tree::{kill as kill_descendants, kill_marked, reap};

/// The first argument that makes a process a supervisor.
pub(crate) const VERB: &str = "supervise";

/// What a supervisor exits with if another one has this attempt already.
const EXIT_CLAIMED: u8 = 75;

/// Why a supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("attempt folder {}: cannot read {what}", .folder.display())]
    Read { folder: PathBuf, what: &'static str, source: io::Error },
    #[error("attempt folder {}: {what} is missing or not whole", .folder.display())]
    Missing { folder: PathBuf, what: &'static str },
    #[error("attempt folder {}: another supervisor has it", .folder.display())]
    Claimed { folder: PathBuf },
    #[error("attempt folder {}: cannot write {what}", .folder.display())]
    Write { folder: PathBuf, what: &'static str, source: io::Error },
}

/// Acts as a supervisor if the arguments (program name first) ask for it.
///
/// Call it before anything else in `main`: a supervisor must have one thread and little memory.
pub fn supervise_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.nth(1)? != VERB {
        return None;
    }
    let folder = arguments.next()?;
    if folder == launcher::SERVE {
        return Some(launcher::serve());
    }
    if folder == mount::SERVE {
        return Some(mount::serve());
    }
    if folder == exec::ENTER {
        return Some(exec::enter_to_code());
    }
    if folder == isolation::PROBE {
        let (means, root) = (arguments.next()?, arguments.next()?);
        return Some(isolation::probe_to_code(&means, Path::new(&root)));
    }
    if let Some(code) = mpi::act_if_asked(&folder, &mut arguments) {
        return Some(code);
    }
    Some(ExitCode::from(supervise_to_code(Path::new(&folder))))
}

/// Nobody reads a supervisor's error: an agent sees that it is gone and what it left on disk.
fn supervise_to_code(folder: &Path) -> u8 {
    match supervise(folder) {
        Ok(()) => 0,
        Err(Error::Claimed { .. }) => EXIT_CLAIMED,
        Err(_) => 1,
    }
}

fn supervise(folder: &Path) -> Result<(), Error> {
    // From here on SIGTERM waits to be read and cannot end this process half way.
    let signals = signals::Signals::take().map_err(|source| Error::Read {
        folder: folder.into(),
        what: "signals",
        source,
    })?;
    let mut launch: Launch = record::read(folder, LAUNCH)
        .map_err(|source| Error::Read { folder: folder.into(), what: LAUNCH, source })?
        .ok_or_else(|| Error::Missing { folder: folder.into(), what: LAUNCH })?;
    let started = Started::this_process().map_err(|source| Error::Read {
        folder: folder.into(),
        what: "/proc",
        source,
    })?;
    record::claim(folder, STARTED, &started).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Claimed { folder: folder.into() },
        _ => Error::Write { folder: folder.into(), what: STARTED, source },
    })?;
    // A new session: signals of a terminal or of the agent's group do not reach the job. It fails
    // only for the leader of a group, which then is as good.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    // What the agent inherited open, for example from a shell, is not the job's. Kernels before
    // 5.11 do without.
    // SAFETY: It only marks files to be closed when the command starts.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };

    let values = match launch.add_secrets() {
        Ok(None) if launch.secrets.is_some() => Err(io::ErrorKind::NotFound.into()),
        other => other,
    };
    let ran = match values {
        Ok(values) => run::run(folder, &launch, &started, signals, values.as_ref()),
        Err(error) => Err(run::failed("reading the job's secrets", &error)),
    };
    let mut exited = ran.unwrap_or_else(|failure| {
        let now = crate::clock::now_ms();
        Exited::without_start(started.started_at_ms, now, failure)
    });
    exited.survivors += elsewhere::end(&launch);
    if let Some(cgroup) = &launch.cgroup {
        remove(cgroup);
    }
    journal::write_exited(folder, exited).map_err(|source| Error::Write {
        folder: folder.into(),
        what: EXITED,
        source,
    })
}

/// What lives in it yet keeps it: a command that was let in beside the job, which is not below this process. What
/// does not die in time the agent looks for again.
fn remove(cgroup: &Cgroup) {
    for _ in 0..50 {
        if cgroup.remove().is_ok() {
            return;
        }
        cgroup.kill();
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Started {
    /// Names this process and the time.
    fn this_process() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let stat = proc::stat(pid).ok_or_else(|| io::Error::other("no /proc/self/stat"))?;
        Ok(Self {
            version: journal::VERSION,
            pid,
            start_time: stat.start_time,
            boot_id: proc::boot_id()?,
            started_at_ms: crate::clock::now_ms(),
        })
    }
}
