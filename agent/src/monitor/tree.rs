//! What one job's processes are doing together.

use std::collections::BTreeMap;

use crate::cgroup::{Cgroup, Waited};
use crate::gpu::GpuSample;
use crate::proc::{self, Stat};
use crate::supervisor::CountedMemory;

/// Totals over the process tree at one instant.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) at_ms: u64,
    /// Never falls: of a process that ended, its parent keeps the count.
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
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
    /// The most that was cached of files.
    pub(crate) cached_bytes: u64,
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
    /// The smallest step in which memory is advised: what is cached beside the programs themselves is less.
    const LITTLE: u64 = 64 << 20;

    /// The most memory that the job's processes had at once, in bytes, without what was cached of files: that is given
    /// up before anything is killed, so a limit need not hold it.
    ///
    /// `counted` misses nothing between looks and has the cache in it, of which nobody knows how much it was at that
    /// moment: at most as much as at any other, unless files were removed. After looks enough the rest counts, if
    /// none has seen more. Without, the kernel's count is taken as it is where the cache can be but a small part.
    /// `None`: neither is so; what the largest of the processes had would pass for that of all.
    pub(crate) fn most_memory(&self, counted: Option<CountedMemory>) -> Option<u64> {
        let own = |counted: CountedMemory| {
            counted.peak_bytes.saturating_sub(counted.cached_bytes.max(self.cached_bytes))
        };
        let least = self.memory_bytes.max(counted.map_or(0, own));
        if self.looks >= Self::ENOUGH {
            return Some(least);
        }
        let peak = counted?.peak_bytes.max(least);
        (peak - least <= Self::LITTLE.max(least / 4)).then_some(peak)
    }

    /// Adds a look, so long after the one before.
    pub(super) fn add(&mut self, totals: &Totals, gpus: &[GpuSample], passed_ms: u64) {
        self.memory_bytes = self.memory_bytes.max(totals.resident_bytes);
        self.cached_bytes = self.cached_bytes.max(totals.cached_bytes.unwrap_or(0));
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

    const MIB: u64 = 1 << 20;

    fn seen(looks: u32, resident: u64, cached: u64) -> Seen {
        let (resident_bytes, cached_bytes) = (resident * MIB, Some(cached * MIB));
        let look = Totals { resident_bytes, cached_bytes, ..Totals::default() };
        let mut seen = Seen::default();
        (0..looks).for_each(|_| seen.add(&look, &[], 1000));
        seen
    }

    fn most(seen: Seen, peak: u64, cached: u64) -> Option<u64> {
        let (peak_bytes, cached_bytes) = (peak * MIB, cached * MIB);
        seen.most_memory(Some(CountedMemory { peak_bytes, cached_bytes })).map(|bytes| bytes / MIB)
    }

    #[test]
    fn after_looks_enough_the_most_memory_is_without_the_cache() {
        let all = |resident, cached| seen(Seen::ENOUGH, resident, cached);
        // Much was read: what was seen counts.
        assert_eq!(most(all(700, 5000), 6000, 5500), Some(700));
        // Between two looks it had more than any of them saw.
        assert_eq!(most(all(700, 100), 6000, 50), Some(5900));
        // A file was written and removed.
        assert_eq!(most(all(700, 5000), 5600, 0), Some(700));
        assert_eq!(all(700, 100).most_memory(None), Some(700 * MIB));
    }

    #[test]
    fn of_a_short_job_the_kernels_count_is_taken_if_the_cache_is_a_small_part() {
        assert_eq!(most(Seen::default(), 4000, 300), Some(4000));
        assert_eq!(most(Seen::default(), 60, 50), Some(60));
        // What it had when it had read less is anything from nothing to the whole.
        assert_eq!(most(Seen::default(), 4000, 2000), None);
        // A look has seen that it was the most of it.
        assert_eq!(most(seen(1, 3500, 0), 4000, 2000), Some(4000));
        // One has seen what was gone at the end.
        assert_eq!(most(seen(1, 20, 3000), 4000, 0), None);
        assert_eq!(seen(Seen::ENOUGH - 1, 700, 0).most_memory(None), None);
    }
}
