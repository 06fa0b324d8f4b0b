//! What the node as a whole is doing: one cheap look per heartbeat.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use sysinfo::{MemoryRefreshKind, Networks, System};

const MIB: f64 = 1024.0 * 1024.0;

/// Looks at the node; keeps what is needed to tell rates from counters.
pub(crate) struct NodeSampler {
    /// `None` where the system does not say; then there is nothing to report.
    system: Option<System>,
    networks: Option<Networks>,
    data_folder: PathBuf,
    /// What is counted, at the last look.
    before: Counts,
    at: Instant,
}

/// What the kernel counts from its start, as far as it does.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Counts {
    /// Read from and written to disks, in bytes.
    disk: Option<(u64, u64)>,
    /// For how long something waited for CPU, memory and disks, in microseconds.
    waited: [Option<u64>; 3],
}

impl Counts {
    fn now() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        Self {
            disk: text("/proc/diskstats").map(|stats| disk_bytes(&stats)),
            waited: PRESSURES.map(|name| {
                let text = text(&format!("/proc/pressure/{name}"))?;
                let some = text.lines().find(|line| line.starts_with("some "))?;
                some.rsplit_once("total=")?.1.trim().parse().ok()
            }),
        }
    }
}

/// Of which the kernel tells how long they were waited for (Documentation/accounting/psi.rst).
const PRESSURES: [&str; 3] = ["cpu", "memory", "io"];

/// Bytes read and written of all disks (Documentation/admin-guide/iostats.rst): of each once, not of its parts
/// too, nor of what is made of it or of files.
fn disk_bytes(stats: &str) -> (u64, u64) {
    const SECTOR: u64 = 512;
    let (mut read, mut written) = (0, 0);
    for line in stats.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(name), Some(reads), Some(writes)) = (fields.get(2), fields.get(5), fields.get(9))
        else {
            continue;
        };
        let is_made =
            ["loop", "ram", "zram", "dm-", "md"].iter().any(|kind| name.starts_with(kind));
        if is_made || is_part(name) {
            continue;
        }
        let bytes = |sectors: &str| sectors.parse::<u64>().unwrap_or(0) * SECTOR;
        read += bytes(reads);
        written += bytes(writes);
    }
    (read, written)
}

/// `sda1`, `nvme0n1p2`: a name that goes on with a number behind that of a disk.
fn is_part(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return false;
    }
    match stem.strip_suffix('p') {
        // Disks whose own names end in a number have a letter between.
        Some(disk) => disk.ends_with(|c: char| c.is_ascii_digit()),
        None => ["sd", "hd", "vd", "xvd"].iter().any(|kind| name.starts_with(kind)),
    }
}

impl NodeSampler {
    pub(crate) fn new(data_folder: PathBuf) -> Self {
        let mut system = System::new().ok();
        // Utilisation is the difference of two looks; this is the first.
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let networks = Networks::new_with_refreshed_list().ok();
        Self { system, networks, data_folder, before: Counts::now(), at: Instant::now() }
    }

    /// Total memory in MiB; zero if the system does not say.
    pub(crate) fn memory_mib(&mut self) -> u64 {
        self.system.as_mut().map_or(0, |system| {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            system.total_memory() / (1024 * 1024)
        })
    }

    /// The node now; rates since the last look.
    pub(crate) fn sample(&mut self) -> BTreeMap<String, f64> {
        let (mut sample, now) = (BTreeMap::new(), Instant::now());
        let seconds = now.duration_since(std::mem::replace(&mut self.at, now)).as_secs_f64();
        // Between two looks that follow at once, nothing is told.
        let per_second = |count: u64| count as f64 / seconds.max(0.1);
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            sample.insert("cpu_utilization".to_owned(), f64::from(system.global_cpu_usage()));
            sample.insert("memory_used_mib".to_owned(), system.used_memory() as f64 / MIB);
            sample.insert("memory_total_mib".to_owned(), system.total_memory() as f64 / MIB);
        }
        if let Some(cached) = cached_mib() {
            sample.insert("memory_cached_mib".to_owned(), cached);
        }
        let counts = Counts::now();
        let before = std::mem::replace(&mut self.before, counts);
        if let (Some((read, written)), Some(before)) = (counts.disk, before.disk) {
            let rates = [("disk_read", read, before.0), ("disk_write", written, before.1)];
            for (name, now, before) in rates {
                let rate = per_second(now.saturating_sub(before)) / MIB;
                sample.insert(format!("{name}_mib_per_second"), rate);
            }
        }
        for ((name, now), before) in PRESSURES.iter().zip(counts.waited).zip(before.waited) {
            if let (Some(now), Some(before)) = (now, before) {
                let share = 100.0 * per_second(now.saturating_sub(before)) / 1e6;
                sample.insert(format!("{name}_pressure"), share.min(100.0));
            }
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
            let (mut received, mut sent) = (0, 0);
            for (name, network) in networks.iter() {
                if name != "lo" {
                    received += network.received();
                    sent += network.transmitted();
                }
            }
            for (name, bytes) in [("network_receive", received), ("network_transmit", sent)] {
                sample.insert(format!("{name}_mib_per_second"), per_second(bytes) / MIB);
            }
        }
        if let Ok(space) = rustix::fs::statvfs(&self.data_folder) {
            let bytes = |blocks: u64| blocks as f64 * space.f_frsize as f64 / MIB;
            sample.insert("disk_free_mib".to_owned(), bytes(space.f_bavail));
            sample.insert("disk_total_mib".to_owned(), bytes(space.f_blocks));
        }
        sample
    }
}

/// What is cached of files, and given up before anything is short of memory.
fn cached_mib() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    Some((kib("Cached")? + kib("Buffers")? - kib("Shmem")?).max(0.0) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_counts_once() {
        let stats = "   7       0 loop0 1 0 8 0 1 0 8 0 0 0 0\n\
                        8       0 sda 10 0 100 0 5 0 50 0 0 0 0\n\
                        8       1 sda1 10 0 100 0 5 0 50 0 0 0 0\n\
                      259       0 nvme0n1 1 0 2 0 1 0 4 0 0 0 0\n\
                      259       1 nvme0n1p1 1 0 2 0 1 0 4 0 0 0 0\n\
                      253       0 dm-0 10 0 100 0 5 0 50 0 0 0 0\n\
                      179       0 mmcblk0 1 0 1 0 1 0 1 0 0 0 0\nshort line";
        assert_eq!(disk_bytes(stats), (103 * 512, 55 * 512));
    }

    #[test]
    fn a_look_tells_rates_since_the_last_one() {
        let mut sampler = NodeSampler::new("/".into());
        let sample = sampler.sample();
        for name in ["cpu_utilization", "memory_cached_mib", "network_receive_mib_per_second"] {
            assert!(sample.get(name).is_some_and(|value| *value >= 0.0), "{name}: {sample:?}");
        }
    }
}
