//! Exact resource arithmetic: integers only, so that nothing is ever over-committed by rounding.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Thousandths of a CPU core.
pub type MilliCpu = u64;
/// Mebibytes.
pub type MiB = u64;
/// Thousandths of one GPU device.
pub type MilliGpu = u16;
/// A GPU's index on its node, as NVML counts.
pub type GpuIndex = u16;

/// The whole of one GPU.
pub const WHOLE_GPU: MilliGpu = 1000;

/// What one member of a job asks of one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Demand {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB. Zero means that the job did not say; it then takes what is there.
    pub memory: MiB,
    /// Whole GPU devices.
    pub gpus: u32,
}

impl Demand {
    /// What a job that asks for nothing takes: one CPU.
    pub const DEFAULT: Self = Self { cpu: 1000, memory: 0, gpus: 0 };
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU", Cpus(self.cpu))?;
        if self.memory > 0 {
            write!(f, ", {} memory", Memory(self.memory))?;
        }
        if self.gpus > 0 {
            write!(f, ", {} GPU", self.gpus)?;
        }
        Ok(())
    }
}

/// Prints thousandths of a core as a decimal: `1`, `0.5`, `2.25`.
#[derive(Clone, Copy)]
pub struct Cpus(pub MilliCpu);

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 1000, self.0 % 1000);
        if part == 0 {
            write!(f, "{whole}")
        } else {
            let digits = format!("{part:03}");
            write!(f, "{whole}.{}", digits.trim_end_matches('0'))
        }
    }
}

/// Prints MiB in the largest exact binary unit: `512 MiB`, `4 GiB`.
#[derive(Clone, Copy)]
pub struct Memory(pub MiB);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1024 && self.0.is_multiple_of(1024) {
            write!(f, "{} GiB", self.0 / 1024)
        } else {
            write!(f, "{} MiB", self.0)
        }
    }
}

/// What a node offers to jobs in all.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// GPU devices, by index.
    pub gpus: BTreeMap<GpuIndex, GpuDevice>,
}

/// One GPU as the node found it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GpuDevice {
    /// The driver's stable name of the device (`GPU-…`).
    pub uuid: String,
    /// For example `NVIDIA H200`.
    pub model: String,
    /// Memory in MiB.
    pub memory: MiB,
}

impl Capacity {
    /// Whether an empty node of this capacity could hold `demand`.
    pub fn could_hold(&self, demand: &Demand) -> bool {
        demand.cpu <= self.cpu
            && demand.memory <= self.memory
            && demand.gpus as usize <= self.gpus.len()
    }
}

/// What an attempt holds on its node; given back exactly when it ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reservation {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// Whole devices held.
    pub gpus: Vec<GpuIndex>,
}

/// The resource of which too little is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// Too few GPU devices.
    Gpus,
    /// Too little memory.
    Memory,
    /// Too little CPU.
    Cpu,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpus => "GPUs",
            Self::Memory => "memory",
            Self::Cpu => "CPU",
        })
    }
}

/// A node's capacity and what of it is reserved. What is free is derived, so it cannot drift.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    capacity: Capacity,
    cpu: MilliCpu,
    memory: MiB,
    gpus: BTreeMap<GpuIndex, MilliGpu>,
}

impl Ledger {
    /// A ledger of which nothing is reserved.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// The node's whole capacity.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Replaces the capacity. A node may come back smaller than it was; it then offers nothing
    /// until enough of its jobs have ended.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Free CPU in thousandths of a core.
    pub fn free_cpu(&self) -> MilliCpu {
        self.capacity.cpu.saturating_sub(self.cpu)
    }

    /// Free memory in MiB.
    pub fn free_memory(&self) -> MiB {
        self.capacity.memory.saturating_sub(self.memory)
    }

    /// Devices of which nothing is reserved, lowest index first.
    pub fn free_gpus(&self) -> impl Iterator<Item = GpuIndex> + '_ {
        self.capacity.gpus.keys().copied().filter(|index| !self.gpus.contains_key(index))
    }

    /// Whether nothing is reserved.
    pub fn is_idle(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.gpus.is_empty()
    }

    /// The scarcest thing that `demand` lacks here now, or `None` if it fits.
    pub fn shortage(&self, demand: &Demand) -> Option<Shortage> {
        let wanted = demand.gpus as usize;
        if wanted > 0 && self.free_gpus().take(wanted).count() < wanted {
            Some(Shortage::Gpus)
        } else if demand.memory > self.free_memory() {
            Some(Shortage::Memory)
        } else if demand.cpu > self.free_cpu() {
            Some(Shortage::Cpu)
        } else {
            None
        }
    }

    /// Reserves `demand`, the lowest free devices first, or says what is lacking.
    pub fn reserve(&mut self, demand: &Demand) -> Result<Reservation, Shortage> {
        if let Some(shortage) = self.shortage(demand) {
            return Err(shortage);
        }
        let gpus = self.free_gpus().take(demand.gpus as usize).collect();
        let reservation = Reservation { cpu: demand.cpu, memory: demand.memory, gpus };
        self.take(&reservation);
        Ok(reservation)
    }

    /// Reserves all there is for a job that asks for `demand`, or says what is lacking.
    pub fn reserve_whole(&mut self, demand: &Demand) -> Result<Reservation, Shortage> {
        if let Some(shortage) = self.shortage(demand) {
            return Err(shortage);
        }
        let Capacity { cpu, memory, gpus } = &self.capacity;
        let gpus = gpus.keys().copied().collect();
        let reservation = Reservation { cpu: *cpu, memory: *memory, gpus };
        self.take(&reservation);
        Ok(reservation)
    }

    /// Enters a reservation that exists already, as when state is rebuilt after a restart.
    pub fn take(&mut self, reservation: &Reservation) {
        self.cpu += reservation.cpu;
        self.memory += reservation.memory;
        for &index in &reservation.gpus {
            self.gpus.insert(index, WHOLE_GPU);
        }
    }

    /// Gives a reservation back.
    pub fn release(&mut self, reservation: &Reservation) {
        debug_assert!(self.cpu >= reservation.cpu && self.memory >= reservation.memory);
        self.cpu = self.cpu.saturating_sub(reservation.cpu);
        self.memory = self.memory.saturating_sub(reservation.memory);
        for index in &reservation.gpus {
            self.gpus.remove(index);
        }
    }
}
