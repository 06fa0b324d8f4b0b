//! Finds a process of an attempt's command, named beyond doubt.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::pollable::readable;
use crate::proc::{self, Stat};
use crate::record;
use crate::supervisor::{LAUNCH, Launch, STARTED, Started};

/// The command's first process, or if that has ended something that it left: the oldest that is first of the
/// processes that it sees, as in a container; otherwise the oldest child of the supervisor's child. `None`:
/// nothing of it lives.
///
/// Of a container nothing else will do: its runtime's own processes see all of the node. What has given up
/// getting privileges has done with what came before: the runtime does that last.
pub(super) fn find(folder: &Path) -> io::Result<Option<Stat>> {
    let Some(started) = record::read::<Started>(folder, STARTED)? else { return Ok(None) };
    let boot_id = proc::boot_id()?;
    let is_supervisor = |stat: Stat| stat.start_time == started.start_time;
    if started.is_void() || started.boot_id != boot_id {
        return Ok(None);
    }
    let all = proc::all();
    let leader = oldest_child(&all, started.pid);
    // The leader itself is closed to whoever is not root.
    let command = leader.as_ref().and_then(|leader| oldest_child(&all, leader.pid));
    let apart = first_apart(&all, started.pid, leader.as_ref());
    let launch = record::read::<Launch>(folder, LAUNCH)?;
    let found = match launch.is_some_and(|launch| launch.inside.is_some()) {
        true => apart.filter(|first| proc::gains_no_privileges(first.pid)),
        false => apart.or(command).or(leader),
    };
    // Children of whoever has its number now, if the supervisor ended before the look, are others.
    Ok(found.filter(|_| proc::stat(started.pid).is_some_and(is_supervisor)))
}

/// The first process of a container that is below this one, once it is there. As in [`find`] nothing else will do.
pub(super) fn first_contained(above: i32) -> Option<Stat> {
    first_apart(&proc::all(), above, None).filter(|first| proc::gains_no_privileges(first.pid))
}

/// The oldest process below the supervisor, but its leader, whose processes are counted apart from ours.
fn first_apart(all: &[Stat], supervisor: i32, leader: Option<&Stat>) -> Option<Stat> {
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = space("self")?;
    let below = proc::descendants(all, supervisor).into_iter();
    let is_apart = |stat: &&Stat| {
        stat.state != 'Z'
            && leader.is_none_or(|leader| leader.pid != stat.pid)
            && space(&stat.pid.to_string()).is_some_and(|space| space != own)
    };
    below.filter(is_apart).min_by_key(|stat| (stat.start_time, stat.pid)).cloned()
}

pub(super) fn oldest_child(all: &[Stat], parent: i32) -> Option<Stat> {
    let children = all.iter().filter(|stat| stat.parent == parent && stat.state != 'Z');
    children.min_by_key(|stat| (stat.start_time, stat.pid)).cloned()
}

/// Whether it ends within a time.
pub(super) async fn goes(seen: &Stat, within: Duration) -> bool {
    let is_gone = || {
        proc::stat(seen.pid).is_none_or(|now| now.start_time != seen.start_time || now.state == 'Z')
    };
    let Some(pid) = Pid::from_raw(seen.pid) else { return true };
    let Ok(process) =
        pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).and_then(readable)
    else {
        return is_gone();
    };
    let _ = tokio::time::timeout(within, process.readable()).await;
    is_gone()
}
