//! What the kernel has counted for an attempt so far.

use std::fs;
use std::io;

use super::group::{Cgroup, Group, Version};
use super::guard::Traffic;

/// Counts of an attempt's groups; `None` where no group of this node counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    /// CPU time of all processes that ever were in the groups, in microseconds.
    pub(crate) cpu_us: Option<u64>,
    /// Memory that is the processes' own or shared between them.
    pub(crate) resident_bytes: Option<u64>,
    /// What is cached of files; it is given up before anything is killed.
    pub(crate) cached_bytes: Option<u64>,
    /// Read from and written to storage.
    pub(crate) disk_bytes: Option<(u64, u64)>,
    /// For how long some process waited (PSI), in microseconds.
    pub(crate) waited: Option<Waited>,
}

/// Time in which at least one process could not go on for want of each (Documentation/accounting/psi).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Waited {
    pub(crate) cpu_us: u64,
    pub(crate) memory_us: u64,
    pub(crate) io_us: u64,
}

impl Cgroup {
    /// Reads all counts.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for group in &self.groups {
            match group.version {
                Version::V2 => of_v2(group, &mut usage),
                Version::V1 => of_v1(group, &mut usage),
            }
        }
        usage
    }

    /// Begins to count what the processes in the groups receive and send.
    ///
    /// # Errors
    /// There is no group of version 2, or this process may not load BPF programs.
    pub(crate) fn count_traffic(&self) -> io::Result<Traffic> {
        let unified = self.groups.iter().find(|group| group.version == Version::V2);
        Traffic::count(&unified.ok_or(io::ErrorKind::Unsupported)?.folder)
    }
}

fn of_v2(group: &Group, usage: &mut Usage) {
    // Counted also where the controller is not enabled.
    usage.cpu_us = usage.cpu_us.or(group.counted("cpu.stat", "usage_usec "));
    if let Ok(stat) = fs::read_to_string(group.file("memory.stat")) {
        let (anonymous, file, shared) =
            (word(&stat, "anon "), word(&stat, "file "), word(&stat, "shmem ").unwrap_or(0));
        usage.resident_bytes = anonymous.map(|bytes| bytes + shared);
        usage.cached_bytes = file.map(|bytes| bytes.saturating_sub(shared));
    }
    if let Ok(stat) = fs::read_to_string(group.file("io.stat")) {
        usage.disk_bytes = Some(disk_bytes(&stat));
    }
    let waited = |name: &str| {
        let text = fs::read_to_string(group.file(name)).ok()?;
        let some = text.lines().find(|line| line.starts_with("some "))?;
        some.rsplit_once("total=")?.1.trim().parse().ok()
    };
    if let (Some(cpu_us), Some(memory_us), Some(io_us)) =
        (waited("cpu.pressure"), waited("memory.pressure"), waited("io.pressure"))
    {
        usage.waited = Some(Waited { cpu_us, memory_us, io_us });
    }
}

fn of_v1(group: &Group, usage: &mut Usage) {
    if group.has("memory")
        && let Ok(stat) = fs::read_to_string(group.file("memory.stat"))
    {
        let shared = word(&stat, "total_shmem ").unwrap_or(0);
        usage.resident_bytes = word(&stat, "total_rss ").map(|bytes| bytes + shared);
        usage.cached_bytes = word(&stat, "total_cache ").map(|bytes| bytes.saturating_sub(shared));
    }
    // Mounted together with `cpu` on most systems.
    if group.has("cpu") {
        let nanoseconds = group.number("cpuacct.usage");
        usage.cpu_us = usage.cpu_us.or(nanoseconds.map(|nanoseconds| nanoseconds / 1000));
    }
}

/// The number behind a word at the beginning of a line.
fn word(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Of lines such as `8:0 rbytes=90112 wbytes=4096 rios=4 wios=1 dbytes=0 dios=0`, all devices together.
fn disk_bytes(stat: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let counts = stat.split_ascii_whitespace().filter_map(|part| part.strip_prefix(name));
        counts.filter_map(|count| count.parse::<u64>().ok()).sum()
    };
    (sum("rbytes="), sum("wbytes="))
}
