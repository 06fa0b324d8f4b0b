//! A supervisor process, held by pidfd: what is signalled and waited for is that process and no
//! other that got its number later.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use super::Folder;
use crate::pollable::readable;
use crate::supervisor::{EXITED, Launched, STARTED, Started};
use crate::{proc, record};

/// A supervisor that lived when this was made.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: AsyncFd<OwnedFd>,
    pid: i32,
}

impl Process {
    /// A supervisor just started.
    pub(crate) fn of(launched: Launched) -> io::Result<Self> {
        Ok(Self { pidfd: readable(launched.pidfd)?, pid: launched.pid })
    }

    /// Takes hold of a supervisor that another agent started; `None` if it is gone.
    pub(crate) fn attach(started: &Started) -> io::Result<Option<Self>> {
        let pidfd = match open(started.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The number may have gone to another process before we had hold of it.
        if proc::stat(started.pid).is_none_or(|stat| stat.start_time != started.start_time) {
            return Ok(None);
        }
        let pidfd = readable(pidfd)?;
        Ok(Some(Self { pidfd, pid: started.pid }))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Lets it go on if somebody has stopped it. While it is stopped the lease is not watched, nor is the log
    /// written.
    pub(crate) fn go_on(&self) {
        if proc::stat(self.pid).is_some_and(|stat| stat.state == 'T') {
            tracing::warn!(pid = self.pid, "a job's supervisor was stopped, and is let go on");
            self.signal(Signal::CONT);
        }
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) {
        // A pidfd turns readable once, for good. An error of the reactor means that it shuts down.
        let _ = self.pidfd.readable().await;
    }
}

/// Whether an attempt runs, as one sees who is not its agent.
pub(crate) enum Supervised {
    /// No supervisor has taken it yet.
    NotYet,
    By(Process),
    /// Its processes have ended, or it is gone.
    Over,
}

/// Looks for the supervisor of the attempt in `folder`.
pub(crate) fn supervised(folder: &Path) -> Supervised {
    let is_over =
        !folder.exists() || folder.join(EXITED).exists() || Folder::at(folder).has_ended();
    let started: Option<Started> = record::read(folder, STARTED).ok().flatten();
    match started.filter(|started| !started.is_void()) {
        _ if is_over => Supervised::Over,
        None => Supervised::NotYet,
        Some(started) => match Process::attach(&started) {
            Ok(Some(process)) => Supervised::By(process),
            Ok(None) | Err(_) => Supervised::Over,
        },
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // Closed on exec; PIDFD_NONBLOCK (5.10) is not needed to poll.
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
