//! What the node as a whole is doing: one cheap look per heartbeat.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sysinfo::{MemoryRefreshKind, Networks, System};

const MIB: f64 = 1024.0 * 1024.0;

/// Looks at the node; keeps what is needed to tell rates from counters.
pub(crate) struct NodeSampler {
    /// `None` where the system does not say; then there is nothing to report.
    system: Option<System>,
    networks: Option<Networks>,
    data_folder: PathBuf,
}

impl NodeSampler {
    pub(crate) fn new(data_folder: PathBuf) -> Self {
        let mut system = System::new().ok();
        // Utilisation is the difference of two looks; this is the first.
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        Self { system, networks: Networks::new_with_refreshed_list().ok(), data_folder }
    }

    /// Total memory in MiB; zero if the system does not say.
    pub(crate) fn memory_mib(&mut self) -> u64 {
        self.system.as_mut().map_or(0, |system| {
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            system.total_memory() / (1024 * 1024)
        })
    }

    /// The node now. Network counts bytes since the last look.
    pub(crate) fn sample(&mut self) -> BTreeMap<String, f64> {
        let mut sample = BTreeMap::new();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            sample.insert("cpu_utilization".to_owned(), f64::from(system.global_cpu_usage()));
            sample.insert("memory_used_mib".to_owned(), system.used_memory() as f64 / MIB);
            sample.insert("memory_total_mib".to_owned(), system.total_memory() as f64 / MIB);
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
            sample.insert("network_receive_mib".to_owned(), received as f64 / MIB);
            sample.insert("network_transmit_mib".to_owned(), sent as f64 / MIB);
        }
        if let Ok(space) = rustix::fs::statvfs(&self.data_folder) {
            let bytes = |blocks: u64| blocks as f64 * space.f_frsize as f64 / MIB;
            sample.insert("disk_free_mib".to_owned(), bytes(space.f_bavail));
            sample.insert("disk_total_mib".to_owned(), bytes(space.f_blocks));
        }
        sample
    }
}
