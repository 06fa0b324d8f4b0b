//! A recording of GPUs: a file that is read anew at each look, so that whoever changes it changes the
//! devices. For tests, and for trying a scheduler on machines without GPUs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::{Device, GpuSample, Gpus, Health, Inventory, Link, Process, Untold};
use crate::cgroup::DeviceNode;

/// The file: JSON, written whole or not at all (rename it into its place).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    gpus: Vec<Gpu>,
    #[serde(default)]
    links: Vec<Link>,
    /// Device nodes of devices that cannot be described.
    #[serde(default)]
    undescribed: Vec<(u32, u32)>,
    /// It does not answer before a recording says otherwise.
    #[serde(default)]
    silent: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Gpu {
    #[serde(flatten)]
    device: Device,
    /// Percent.
    #[serde(default)]
    utilization: f64,
    #[serde(default)]
    memory_used_mib: f64,
    #[serde(default)]
    power_watts: Option<f64>,
    #[serde(default)]
    health: Health,
    #[serde(default)]
    processes: Vec<OnGpu>,
}

#[derive(Clone, Debug, Deserialize)]
struct OnGpu {
    #[serde(flatten)]
    process: Process,
    /// Percent.
    #[serde(default)]
    utilization: f64,
}

/// GPUs as a file says.
#[derive(Debug)]
pub(super) struct Recorded {
    file: PathBuf,
    /// What was last understood.
    latest: Mutex<Recording>,
}

impl Recorded {
    pub(super) fn open(file: &Path) -> Result<Self, String> {
        let latest = Mutex::new(read(file)?);
        Ok(Self { file: file.to_owned(), latest })
    }

    fn now(&self) -> Recording {
        loop {
            let recording = self.latest();
            if !recording.silent {
                return recording;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn latest(&self) -> Recording {
        let mut latest = self.latest.lock().unwrap_or_else(|broken| broken.into_inner());
        match read(&self.file) {
            Ok(recording) => *latest = recording,
            Err(reason) => tracing::warn!(reason, "the recording stays as it was"),
        }
        latest.clone()
    }

    fn gpu(&self, index: u32) -> Option<Gpu> {
        self.now().gpus.into_iter().find(|gpu| gpu.device.index == index)
    }
}

fn read(file: &Path) -> Result<Recording, String> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{shown} is no recording of GPUs: {error}"))
}

impl Gpus for Recorded {
    fn inventory(&self) -> Result<Inventory, String> {
        let Recording { gpus, undescribed, .. } = self.now();
        Ok(Inventory { devices: gpus.into_iter().map(|gpu| gpu.device).collect(), undescribed })
    }

    fn closed(&self) -> Vec<DeviceNode> {
        let Recording { gpus, undescribed, .. } = self.latest();
        let known = gpus.into_iter().flat_map(|gpu| gpu.device.nodes);
        let node = |(major, minor)| DeviceNode { major, minor: Some(minor) };
        known.chain(undescribed).map(node).collect()
    }

    fn links(&self) -> Vec<Link> {
        self.now().links
    }

    fn sample(&self, index: u32) -> Option<GpuSample> {
        let gpu = self.gpu(index).filter(|gpu| !gpu.health.lost)?;
        Some(GpuSample {
            utilization: Some(gpu.utilization),
            memory_used_mib: gpu.memory_used_mib,
            memory_total_mib: gpu.device.memory_mib as f64,
            power_watts: gpu.power_watts,
        })
    }

    fn health(&self, index: u32) -> Health {
        // One that has left the recording has left the machine.
        let lost = Health { lost: true, ..Health::default() };
        self.gpu(index).map_or(lost, |gpu| gpu.health)
    }

    fn processes(&self, index: u32) -> Result<Vec<Process>, Untold> {
        let gpu = self.gpu(index).filter(|gpu| !gpu.health.lost).ok_or(Untold::Now)?;
        // A driver shows no process that is gone.
        let lives = |process: &Process| crate::proc::stat(process.pid).is_some();
        Ok(gpu.processes.into_iter().map(|on| on.process).filter(lives).collect())
    }

    fn utilization(&self, index: u32) -> Option<BTreeMap<i32, f64>> {
        let gpu = self.gpu(index)?;
        Some(gpu.processes.into_iter().map(|on| (on.process.pid, on.utilization)).collect())
    }
}
