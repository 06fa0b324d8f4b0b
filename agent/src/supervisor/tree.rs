//! Signals to process trees, each process named beyond doubt.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
};

use crate::proc::{self, Stat};

/// Sends a signal to the very process that `seen` describes, or to none if it is gone: its pid may
/// mean another one by now.
fn signal(seen: &Stat, signal: Signal) {
    let Some(pid) = Pid::from_raw(seen.pid) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if proc::stat(seen.pid).is_some_and(|stat| stat.start_time == seen.start_time) {
        let _ = pidfd_send_signal(&process, signal);
    }
}

/// Asks everything below this process to end, but for its `leader`, and for what is in `groups`, which the
/// leader asks.
pub(super) fn terminate(leader: libc::pid_t, groups: &[libc::pid_t]) {
    let own = getpid().as_raw_nonzero().get();
    let all = proc::all();
    for stat in proc::descendants(&all, own) {
        if stat.pid != leader && !groups.contains(&stat.group) {
            signal(stat, Signal::TERM);
            signal(stat, Signal::CONT);
        }
    }
}

/// Kills everything below this process that a scan finds; how many that were. Orphans come to this
/// process (it is their reaper), so repeating it until nothing is left finds all.
pub(crate) fn kill() -> usize {
    let own = getpid().as_raw_nonzero().get();
    let all = proc::all();
    let found = proc::descendants(&all, own);
    // One whose first thread has ended is shown as dead while its others go on.
    for stat in &found {
        signal(stat, Signal::KILL);
    }
    found.iter().filter(|stat| stat.state != 'Z').count()
}

/// Kills every process of the machine that was started with `NAME=value` in its environment; how
/// many that were. For trees whose supervisor is gone and cannot be followed by parentage.
pub(crate) fn kill_marked(name: &str, value: &Path) -> usize {
    let own = getpid().as_raw_nonzero().get();
    let marked: Vec<_> = proc::all()
        .into_iter()
        .filter(|stat| stat.pid != own)
        .filter(|stat| proc::has_variable(stat.pid, name, value))
        .collect();
    for stat in &marked {
        signal(stat, Signal::KILL);
    }
    marked.len()
}

/// Waits for one child that has ended, without blocking: its pid and wait status.
pub(crate) fn reap() -> Result<Option<(libc::pid_t, libc::c_int)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is ours.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some((pid, status))),
        _ => Err(Errno::from_raw_os_error(
            std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ECHILD),
        )),
    }
}

/// Whether a child has stopped since this was last asked of it; one that has ended is left to be waited for.
pub(super) fn has_stopped(child: libc::pid_t) -> bool {
    let Some(pid) = Pid::from_raw(child) else { return false };
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    waitid(WaitId::Pid(pid), options).is_ok_and(|stopped| stopped.is_some())
}
