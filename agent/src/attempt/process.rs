//! A supervisor process, held by pidfd: what is signalled and waited for is that process and no
//! other that got its number later.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::pollable::readable;
use crate::proc;
use crate::supervisor::{Started, VERB};

/// A supervisor that lived when this was made.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: AsyncFd<OwnedFd>,
    pid: i32,
    /// Ours to wait for, if this agent started it.
    child: Option<Child>,
}

impl Process {
    /// Starts a supervisor on an attempt's folder.
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        // The program that runs now, even if its file was replaced by a newer one meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("atelier").arg(VERB).arg(folder).current_dir("/").env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        // Not waited for yet, so the number is still its own.
        let pidfd = open(pid)?;
        Ok(Self { pidfd: readable(pidfd)?, pid, child: Some(child) })
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
        Ok(Some(Self { pidfd, pid: started.pid, child: None }))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Waits for the end. The exit code is known only for a process that this agent started.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        // A pidfd turns readable once, for good. An error of the reactor means that it shuts down.
        let _ = self.pidfd.readable().await;
        self.child.as_mut()?.try_wait().ok()??.code()
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    // Closed on exec; PIDFD_NONBLOCK (5.10) is not needed to poll.
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
