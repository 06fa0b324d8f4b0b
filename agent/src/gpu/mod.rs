//! The node's GPUs: what they are, how they are, and who is on them.
//!
//! ```text
//! Gpus     what can be asked of a driver: NVML, or a recording of one
//! health   which answers mean that a device is not fit for jobs
//! Devices  what this node offers of them now; takes sick ones out
//! driver   the thread on which a driver is asked, and for how long
//! kept     what was out when this agent, or the one before it, last ran
//! settle   after an attempt: its devices are given back empty, or not at all
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::cgroup::DeviceNode;

mod devices;
mod driver;
mod health;
mod idle;
mod kept;
mod nvidia;
mod owner;
mod recorded;
mod settle;
mod share;
#[cfg(test)]
mod tests;

pub(crate) use devices::{Devices, Look, State, Use};
use health::Sickness;
pub(crate) use idle::Idle;
pub(crate) use owner::Owners;
pub(crate) use settle::settle;
pub(crate) use share::{Excess, Share};

/// How long a driver may take to answer before its devices are out, or at an agent's start before it goes on without
/// them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What one GPU is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) struct Device {
    /// As NVML counts: in the order of the PCI bus.
    pub(crate) index: u32,
    pub(crate) uuid: String,
    pub(crate) model: String,
    pub(crate) memory_mib: u64,
    /// Its address on the PCI bus.
    #[serde(default)]
    pub(crate) pci: Option<String>,
    /// Majors and minors of the device nodes that lead to it and to no other.
    #[serde(default)]
    pub(crate) nodes: Vec<(u32, u32)>,
    #[serde(default)]
    pub(crate) numa_node: Option<u32>,
    /// Parts that it is cut into (MIG).
    #[serde(default)]
    pub(crate) mig: Vec<Mig>,
}

/// A part of a GPU that is cut into several (Multi-Instance GPU).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Mig {
    pub(crate) uuid: String,
    pub(crate) memory_mib: u64,
}

/// The shortest way between two GPUs.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Link {
    pub(crate) between: (u32, u32),
    /// `NVLink`, or what of the PCI bus lies between them: `switch`, `host bridge`, ...
    pub(crate) kind: String,
}

/// What a driver tells of a GPU's faults. What it cannot tell is as if there were none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Health {
    /// It does not answer any more: NVML's `GPU_IS_LOST`.
    pub(crate) lost: bool,
    /// It does nothing more until it is reset: NVML's `RESET_REQUIRED`.
    pub(crate) reset_required: bool,
    /// Uncorrected ECC errors since the driver was loaded or the device reset.
    pub(crate) uncorrected_volatile: u64,
    /// The same in its whole life.
    pub(crate) uncorrected_aggregate: u64,
    /// Pages wait to be retired, which a reset does (before Ampere).
    pub(crate) retired_pending: bool,
    /// Rows wait to be remapped, which a reset does (Ampere and later).
    pub(crate) remap_pending: bool,
    /// Rows could not be remapped: there are no spare ones left.
    pub(crate) remap_failed: bool,
    /// Numbers of the driver's critical errors since this agent started.
    pub(crate) xids: BTreeSet<u64>,
}

/// A process that has something on a GPU.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Memory of the device that it holds; `None` if the driver does not tell.
    #[serde(default)]
    pub(crate) memory_mib: Option<u64>,
}

/// What one GPU is doing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct GpuSample {
    /// Percent of time in which a kernel ran; `None` if the driver does not tell, as of a device that is cut
    /// into parts (MIG).
    pub(crate) utilization: Option<f64>,
    pub(crate) memory_used_mib: f64,
    pub(crate) memory_total_mib: f64,
    pub(crate) power_watts: Option<f64>,
}

impl GpuSample {
    /// Adds another look at the same device; of memory the most counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.utilization = sum(self.utilization, other.utilization);
        self.memory_used_mib = self.memory_used_mib.max(other.memory_used_mib);
        self.memory_total_mib = other.memory_total_mib;
        self.power_watts = sum(self.power_watts, other.power_watts);
    }

    /// Makes means of sums over so many looks.
    pub(crate) fn divide(&mut self, looks: f64) {
        self.utilization = self.utilization.map(|sum| sum / looks);
        self.power_watts = self.power_watts.map(|sum| sum / looks);
    }
}

/// Of two that are told.
fn sum(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? + other?)
}

/// Why it is not known who is on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Untold {
    /// This driver tells of no processes.
    Never,
    /// The device could not be asked.
    Now,
}

/// All devices that a driver knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Inventory {
    /// By index.
    pub(crate) devices: Vec<Device>,
    /// Device nodes of those that it cannot describe.
    pub(crate) undescribed: Vec<(u32, u32)>,
}

/// Where GPUs are found and looked at. Calls may take milliseconds each, and of a driver in trouble
/// they may never come back.
pub(crate) trait Gpus: Send + Sync {
    /// All devices. Without a driver there are none, which is no error.
    ///
    /// # Errors
    /// There are devices, and the driver does not say which: why.
    fn inventory(&self) -> Result<Inventory, String>;
    /// What leads to any device, as far as that is known without asking the driver.
    fn closed(&self) -> Vec<DeviceNode>;
    /// The ways between them.
    fn links(&self) -> Vec<Link>;
    /// One device now; `None` if it cannot be asked.
    fn sample(&self, index: u32) -> Option<GpuSample>;
    /// What is wrong with a device.
    fn health(&self, index: u32) -> Health;
    /// Who has something on a device, for computing or graphics.
    fn processes(&self, index: u32) -> Result<Vec<Process>, Untold>;
    /// Percent of time in which kernels of each process ran since this was last asked; `None` if the
    /// driver does not tell.
    fn utilization(&self, index: u32) -> Option<BTreeMap<i32, f64>>;
}

/// The GPUs of this machine, or those of a recording. Nothing is asked of a driver yet.
///
/// # Errors
/// The recording cannot be read, and why.
pub(crate) fn find(recording: Option<&Path>) -> Result<Box<dyn Gpus>, String> {
    let Some(file) = recording else { return Ok(Box::new(nvidia::Nvidia::default())) };
    tracing::warn!(file = %file.display(), "GPUs are those of a recording, not this machine's");
    Ok(Box::new(recorded::Recorded::open(file)?))
}
