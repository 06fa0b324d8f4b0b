//! What one job's processes are doing together.

use std::collections::BTreeMap;

use crate::cgroup::{Cgroup, Waited};
use crate::gpu::GpuSample;
use crate::proc::{self, Stat};

/// Totals over the process tree at one instant.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) at_ms: u64,
    /// Never falls: of a process that ended, its parent keeps the count.
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
    /// The most so far, what was cached of files included, as far as the kernel tells.
    pub(crate) peak_bytes: Option<u64>,
    /// Of files, as far as it is told.
    pub(crate) cached_bytes: Option<u64>,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// Received from and sent to other machines, as far as it is told, since somebody looks.
    pub(crate) network_bytes: Option<(u64, u64)>,
    /// For how long processes waited, as far as it is told.
    pub(crate) waited: Option<Waited>,
}

/// What looks have found of a job in all.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Seen {
    /// The most memory at once, of all its processes.
    pub(crate) memory_bytes: u64,
    /// The same as the kernel counted it up to the last look; see [`Totals::peak_bytes`].
    pub(crate) peak_bytes: Option<u64>,
    /// How many there were.
    pub(crate) looks: u32,
    /// For how long kernels ran, over all its devices.
    pub(crate) gpu_seconds: f64,
    /// The most memory at once of one device.
    pub(crate) gpu_memory_mib: f64,
}

impl Seen {
    /// After so many what no look has seen, the end of the job, is a small part of it.
    const ENOUGH: u32 = 10;

    /// The most memory that the job had at once: the kernel's count where there is one, which misses nothing between
    /// looks. `None`: too little was seen to say, and what one of several processes had says less than nothing.
    pub(crate) fn most_memory(&self) -> Option<u64> {
        let most = self.memory_bytes.max(self.peak_bytes.unwrap_or(0));
        (self.looks >= Self::ENOUGH).then_some(most)
    }

    /// Adds a look, so long after the one before.
    pub(super) fn add(&mut self, totals: &Totals, gpus: &[GpuSample], passed_ms: u64) {
        self.memory_bytes = self.memory_bytes.max(totals.resident_bytes);
        self.peak_bytes = self.peak_bytes.max(totals.peak_bytes);
        self.looks = self.looks.saturating_add(1);
        let passed = passed_ms as f64 / 1000.0;
        for gpu in gpus {
            self.gpu_seconds += gpu.utilization.unwrap_or(0.0) / 100.0 * passed;
            self.gpu_memory_mib = self.gpu_memory_mib.max(gpu.memory_used_mib);
        }
    }
}

/// What the kernel counted for the job's groups, and asks the processes for what it did not; `None` if the
/// groups do not tell enough, and the tree is to be walked.
pub(crate) fn totals_of(cgroup: &Cgroup, at_ms: u64) -> Option<Totals> {
    let usage = cgroup.usage();
    let (read_bytes, written_bytes) = usage.disk_bytes.unwrap_or_else(|| {
        let all = cgroup.processes().into_iter().filter_map(proc::disk_bytes);
        all.fold((0, 0), |(read, written), (r, w)| (read + r, written + w))
    });
    Some(Totals {
        at_ms,
        cpu_seconds: usage.cpu_us? as f64 / 1e6,
        resident_bytes: usage.resident_bytes?,
        peak_bytes: cgroup.memory().peak_bytes,
        cached_bytes: usage.cached_bytes,
        read_bytes,
        written_bytes,
        network_bytes: None,
        waited: usage.waited,
    })
}

/// Adds up the tree below and with `supervisor`.
pub(crate) fn totals(all: &[Stat], supervisor: i32, at_ms: u64) -> Totals {
    let ticks = rustix::param::clock_ticks_per_second().max(1) as f64;
    let page = rustix::param::page_size() as u64;
    let mut totals = Totals { at_ms, ..Totals::default() };
    if let Some(own) = all.iter().find(|stat| stat.pid == supervisor) {
        // Of processes that ended and were waited for by it.
        totals.cpu_seconds += own.cpu_ticks as f64 / ticks;
    }
    for stat in proc::descendants(all, supervisor) {
        totals.cpu_seconds += stat.cpu_ticks as f64 / ticks;
        totals.resident_bytes += stat.resident_pages * page;
        if let Some((read, written)) = proc::disk_bytes(stat.pid) {
            totals.read_bytes += read;
            totals.written_bytes += written;
        }
    }
    totals
}

const MB: f64 = 1_000_000.0;

/// The run's metrics between two looks, named as MLflow names system metrics.
pub(crate) fn metrics(before: &Totals, now: &Totals, gpus: &[GpuSample]) -> BTreeMap<String, f64> {
    let seconds = now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0;
    let mut metrics = BTreeMap::new();
    let mut set = |name: &str, value: f64| {
        metrics.insert(format!("system/{name}"), value);
    };
    if seconds > 0.0 {
        // Of one core, so a job on four cores can show 400.
        let used = (now.cpu_seconds - before.cpu_seconds).max(0.0);
        set("cpu_utilization_percentage", 100.0 * used / seconds);
    }
    set("system_memory_usage_megabytes", now.resident_bytes as f64 / MB);
    if let Some(cached) = now.cached_bytes {
        set("system_memory_cache_megabytes", cached as f64 / MB);
    }
    if let (Some(waited), true) = (now.waited, seconds > 0.0) {
        let before = before.waited.unwrap_or_default();
        let percent = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1e4 / seconds;
        set("cpu_pressure_percentage", percent(waited.cpu_us, before.cpu_us));
        set("memory_pressure_percentage", percent(waited.memory_us, before.memory_us));
        set("io_pressure_percentage", percent(waited.io_us, before.io_us));
    }
    set("disk_read_megabytes", now.read_bytes.saturating_sub(before.read_bytes) as f64 / MB);
    set("disk_write_megabytes", now.written_bytes.saturating_sub(before.written_bytes) as f64 / MB);
    if let Some((received, sent)) = now.network_bytes {
        let (before_received, before_sent) = before.network_bytes.unwrap_or_default();
        let passed = |now: u64, before: u64| now.saturating_sub(before) as f64 / MB;
        set("network_receive_megabytes", passed(received, before_received));
        set("network_transmit_megabytes", passed(sent, before_sent));
    }
    for (index, gpu) in gpus.iter().enumerate() {
        if let Some(utilization) = gpu.utilization {
            set(&format!("gpu_{index}_utilization_percentage"), utilization);
        }
        set(&format!("gpu_{index}_memory_usage_megabytes"), gpu.memory_used_mib * 1.048_576);
        if gpu.memory_total_mib > 0.0 {
            let share = 100.0 * gpu.memory_used_mib / gpu.memory_total_mib;
            set(&format!("gpu_{index}_memory_usage_percentage"), share);
        }
        if let Some(watts) = gpu.power_watts {
            set(&format!("gpu_{index}_power_usage_watts"), watts);
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_memory_is_what_the_kernel_counted_if_there_were_looks_enough() {
        let mut seen = Seen::default();
        let look = Totals { resident_bytes: 70, peak_bytes: Some(500), ..Totals::default() };
        for _ in 1..Seen::ENOUGH {
            seen.add(&look, &[], 1000);
        }
        assert_eq!(seen.most_memory(), None);
        // Its groups are gone by the last of them.
        seen.add(&Totals { peak_bytes: None, ..look }, &[], 1000);
        assert_eq!(seen.most_memory(), Some(500));
        let uncounted = Seen { peak_bytes: None, ..seen };
        assert_eq!(uncounted.most_memory(), Some(70));
    }
}
