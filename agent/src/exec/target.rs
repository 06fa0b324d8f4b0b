//! Finds a process of an attempt's command, named beyond doubt.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::pollable::readable;
use crate::proc::{self, Stat};
use crate::record;
use crate::supervisor::{STARTED, Started};

/// The oldest living child of the attempt's supervisor: the command's first process, or if that has ended
/// something that it left. `None`: nothing of it lives.
pub(super) fn find(folder: &Path) -> io::Result<Option<Stat>> {
    let Some(started) = record::read::<Started>(folder, STARTED)? else { return Ok(None) };
    let boot_id = proc::boot_id()?;
    let is_supervisor = |stat: Stat| stat.start_time == started.start_time;
    if started.is_void() || started.boot_id != boot_id {
        return Ok(None);
    }
    let found = oldest_child(&proc::all(), started.pid);
    // Children of whoever has its number now, if the supervisor ended before the look, are others.
    Ok(found.filter(|_| proc::stat(started.pid).is_some_and(is_supervisor)))
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
