//! Before an attempt's devices are given to another: nothing of it is left on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Devices, Sickness, Untold};

/// How long a driver may take to give back the memory of processes that have ended.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Memory of a device that no process holds and that is not missed: the driver keeps some for itself,
/// up to about half of this on the largest devices.
const DRIVERS_MIB: u64 = 1024;

/// Ends what an attempt left on its devices and waits for their memory. A device that does not become
/// free is taken out. Gives the device and why, if one of them is out; nothing is said against those of which nothing
/// is known.
pub(crate) async fn settle(
    devices: &Arc<Devices>,
    epoch: u64,
    indices: &[u32],
) -> Option<(u32, String)> {
    if indices.is_empty() {
        return None;
    }
    if !devices.has_told() {
        // They are emptied before they are first offered.
        devices.let_go(indices);
        return None;
    }
    let all = indices.to_vec();
    emptied(devices, move |devices| look(devices, Some(epoch), &all)).await;
    devices.sick_one(indices)
}

/// Before the first jobs: nothing is left on devices that no attempt has, of attempts that ended while no
/// agent ran.
pub(super) async fn at_start(devices: &Arc<Devices>) {
    emptied(devices, |devices| look(devices, None, &devices.unheld())).await;
}

/// Waits until nothing is found any more on devices, and takes out those on which something is.
async fn emptied(
    devices: &Arc<Devices>,
    look: impl Fn(&Devices) -> Vec<(u32, String)> + Clone + Send + 'static,
) {
    let until = Instant::now() + PATIENCE;
    loop {
        // A driver that does not answer has taken its devices out.
        let Some(occupied) = devices.ask(look.clone()).await else { return };
        if occupied.is_empty() {
            return;
        }
        if Instant::now() >= until {
            for (index, reason) in occupied {
                devices.take_out(index, Sickness { reason, ends_jobs: false, passing: true });
            }
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Looks at the devices once: kills what is left of the attempt there. Those that are not free, or of which
/// that is not known, and why.
fn look(devices: &Devices, ended: Option<u64>, indices: &[u32]) -> Vec<(u32, String)> {
    // What ended the job may be a fault that is only now seen.
    devices.look();
    let here = indices.iter().filter(|index| !devices.is_out(**index));
    here.filter_map(|&index| Some((index, occupied(devices, ended, index)?))).collect()
}

/// Whether nothing and nobody is on a device, as far as its driver tells that.
pub(super) fn is_empty(devices: &Devices, index: u32) -> bool {
    let is_alone = match devices.source().processes(index) {
        Ok(processes) => processes.is_empty(),
        Err(Untold::Never) => true,
        Err(Untold::Now) => false,
    };
    is_alone && occupied(devices, None, index).is_none()
}

fn occupied(devices: &Devices, ended: Option<u64>, index: u32) -> Option<String> {
    let processes = match devices.source().processes(index) {
        Ok(processes) => processes,
        // Where it is never told, nothing follows from the memory either.
        Err(Untold::Never) => return None,
        Err(Untold::Now) => return Some("its driver does not say who is on it".to_owned()),
    };
    if let Some(epoch) = ended {
        let of_it = |pid: &i32| devices.owner(*pid) == Some(epoch);
        let left: Vec<i32> = processes.iter().map(|process| process.pid).filter(of_it).collect();
        for &pid in &left {
            tracing::warn!(epoch, gpu = index, pid, "killing what an attempt left on a GPU");
            kill(devices, epoch, pid);
        }
        if let Some(pid) = left.first() {
            return Some(format!("process {pid} of a job that has ended does not let go of it"));
        }
    }
    // Where one is not told, nothing follows from the sum.
    let held = processes.iter().map(|process| process.memory_mib).sum::<Option<u64>>()?;
    let Some(sample) = devices.source().sample(index) else {
        return Some("its driver does not say how much of its memory is used".to_owned());
    };
    let missing = (sample.memory_used_mib as u64).saturating_sub(held);
    (missing > DRIVERS_MIB).then(|| {
        format!("{missing} MiB of its memory were not given back when a job ended; reset it")
    })
}

/// Kills a process if it is still the attempt's: the number may be another's by now.
fn kill(devices: &Devices, epoch: u64, pid: i32) {
    let Some(named) = Pid::from_raw(pid) else { return };
    let Ok(process) = pidfd_open(named, PidfdFlags::empty()) else { return };
    if devices.owner(pid) == Some(epoch) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}
