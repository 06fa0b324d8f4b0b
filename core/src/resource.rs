//! Exact resource arithmetic: integers only, so that nothing is ever over-committed by rounding.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Demand {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB. Zero means that the job did not say; it then takes what is there.
    pub memory: MiB,
    /// GPU devices.
    pub gpus: u32,
    /// Thousandths of the one device, which other jobs may share. Zero: devices are taken whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu_share: MilliGpu,
    /// Devices of any of these models ([`GpuDevice::is_model`]); `None`: of any model. Never empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_models: Option<Arc<[String]>>,
    /// What each device has at least, in MiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu_memory: MiB,
    /// Scratch disk in MiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk: MiB,
    /// Labels that the node has, with these values; `None`: it need have none. Never empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_labels: Option<Arc<BTreeMap<String, String>>>,
    /// What its environment asks of the node's container runtime.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub containers: ContainerNeed,
}

/// What a node does with container images. Each can do what those before it can.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Containers {
    /// Nothing: it has no container runtime.
    #[default]
    None,
    /// Runs them as they are.
    Run,
    /// Also makes them: of a Dockerfile, or by putting packages on top of one.
    Build,
}

/// What a job asks of its node's container runtime.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ContainerNeed {
    /// Nothing.
    #[default]
    Nothing,
    /// A node that can do this is better than another; any will do.
    Prefers(Containers),
    /// The node can do this.
    Needs(Containers),
}

impl ContainerNeed {
    /// What a node must be able to do.
    pub const fn least(self) -> Containers {
        match self {
            Self::Nothing | Self::Prefers(_) => Containers::None,
            Self::Needs(least) => least,
        }
    }
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Demand {
    /// What a job that asks for nothing takes: one CPU.
    pub const DEFAULT: Self = Self {
        cpu: 1000,
        memory: 0,
        gpus: 0,
        gpu_share: 0,
        gpu_models: None,
        gpu_memory: 0,
        disk: 0,
        node_labels: None,
        containers: ContainerNeed::Nothing,
    };

    /// What it takes of each device, in thousandths.
    pub fn of_each_gpu(&self) -> MilliGpu {
        if self.gpu_share == 0 { WHOLE_GPU } else { self.gpu_share }
    }

    /// Thousandths of devices in all.
    pub fn milli_gpus(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.of_each_gpu())
    }

    /// Whether the device is one that it asks for.
    pub fn suits(&self, device: &GpuDevice) -> bool {
        device.memory >= self.gpu_memory
            && self
                .gpu_models
                .as_ref()
                .is_none_or(|models| models.iter().any(|model| device.is_model(model)))
    }

    /// Whether a node with these labels is one that it asks for.
    pub fn is_at_home(&self, labels: &BTreeMap<String, String>) -> bool {
        let asked = self.node_labels.iter().flat_map(|asked| asked.iter());
        asked.into_iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it asks for what nodes have or have not, beside how much of it is free.
    pub fn is_choosy(&self) -> bool {
        self.gpu_models.is_some()
            || self.gpu_memory > 0
            || self.node_labels.is_some()
            || self.containers.least() > Containers::None
    }

    /// With what it would rather have as what it must have; `None` if there is nothing that it would rather
    /// have.
    pub fn at_best(&self) -> Option<Self> {
        let ContainerNeed::Prefers(better) = self.containers else { return None };
        Some(Self { containers: ContainerNeed::Needs(better), ..self.clone() })
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU", Cpus(self.cpu))?;
        if self.memory > 0 {
            write!(f, ", {} memory", Memory(self.memory))?;
        }
        if self.gpus > 0 {
            write!(f, ", {}", Gpus(self.milli_gpus()))?;
            match &self.gpu_models {
                Some(models) => write!(f, " × {}", models.join(" or "))?,
                None => f.write_str(" GPU")?,
            }
            if self.gpu_memory > 0 {
                write!(f, " of at least {}", Memory(self.gpu_memory))?;
            }
        }
        if self.disk > 0 {
            write!(f, ", {} disk", Memory(self.disk))?;
        }
        for (key, value) in self.node_labels.iter().flat_map(|labels| labels.iter()) {
            write!(f, ", a node with label {key}={value}")?;
        }
        match self.containers.least() {
            Containers::None => Ok(()),
            Containers::Run => f.write_str(", a container runtime"),
            Containers::Build => f.write_str(", podman or docker"),
        }
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

/// Prints thousandths of GPU devices as a decimal: `2`, `0.5`.
#[derive(Clone, Copy)]
pub struct Gpus(pub u64);

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Cpus(self.0).fmt(f)
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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// GPU devices, by index.
    pub gpus: BTreeMap<GpuIndex, GpuDevice>,
    /// Scratch disk in MiB. `None` if the node does not say; it then holds any demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<MiB>,
    /// What jobs may choose the node by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it does with container images; follows from the node's facts and is not kept beside them.
    #[serde(skip)]
    pub containers: Containers,
}

/// One GPU as the node found it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct GpuDevice {
    /// The driver's stable name of the device (`GPU-…`).
    pub uuid: String,
    /// For example `NVIDIA H200`.
    pub model: String,
    /// Memory in MiB.
    pub memory: MiB,
}

impl GpuDevice {
    /// Whether the model's name contains `wanted`; case and punctuation do not count. A number
    /// stands for itself: `A100` is no `RTX A1000`, and is an `A100-80GB`.
    pub fn is_model(&self, wanted: &str) -> bool {
        let wanted: Vec<char> = plain(wanted).chars().collect();
        // Each letter or digit, and whether the one before it stands right beside it.
        let mut beside = false;
        let mut model: Vec<(char, bool)> = Vec::new();
        for c in self.model.chars() {
            if c.is_alphanumeric() {
                model.extend(c.to_lowercase().map(|c| (c, beside)));
            }
            beside = c.is_alphanumeric();
        }
        // Whether a number goes on from one place to the next.
        let goes_on = |at: usize| {
            let digit = |at: usize| model.get(at).is_some_and(|(c, _)| c.is_ascii_digit());
            at > 0 && digit(at - 1) && digit(at) && model[at].1
        };
        (0..=model.len().saturating_sub(wanted.len())).any(|at| {
            let end = at + wanted.len();
            let found =
                model.get(at..end).is_some_and(|part| part.iter().map(|(c, _)| c).eq(&wanted));
            found && !goes_on(at) && !goes_on(end)
        })
    }
}

/// The letters and digits of a model's name, in lower case.
pub(crate) fn plain(model: &str) -> String {
    model.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl Capacity {
    /// Whether an empty node of this capacity could hold `demand`.
    pub fn could_hold(&self, demand: &Demand) -> bool {
        let wanted = demand.gpus as usize;
        demand.cpu <= self.cpu
            && demand.memory <= self.memory
            && self.disk.is_none_or(|disk| demand.disk <= disk)
            && demand.is_at_home(&self.labels)
            && demand.containers.least() <= self.containers
            && wanted <= self.gpus.len()
            && self.gpus.values().filter(|device| demand.suits(device)).take(wanted).count()
                == wanted
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU, {} memory, ", Cpus(self.cpu), Memory(self.memory))?;
        let mut kinds: BTreeMap<(&str, MiB), usize> = BTreeMap::new();
        for device in self.gpus.values().filter(|device| !device.model.is_empty()) {
            *kinds.entry((&device.model, device.memory)).or_default() += 1;
        }
        let unknown = self.gpus.len() - kinds.values().sum::<usize>();
        let mut parts: Vec<String> = kinds
            .into_iter()
            .map(|((model, memory), count)| match memory {
                0 => format!("{count} × {model}"),
                memory => format!("{count} × {model} ({})", Memory(memory)),
            })
            .collect();
        if unknown > 0 || parts.is_empty() {
            parts.push(format!("{unknown} GPU"));
        }
        f.write_str(&parts.join(" and "))?;
        if let Some(disk) = self.disk {
            write!(f, ", {} disk", Memory(disk))?;
        }
        for (key, value) in &self.labels {
            write!(f, ", label {key}={value}")?;
        }
        Ok(())
    }
}

/// What an attempt holds on its node; given back exactly when it ends.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reservation {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// Devices held.
    pub gpus: Vec<GpuIndex>,
    /// Thousandths held of each of them. Zero: they are held whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpu_share: MilliGpu,
    /// Scratch disk in MiB.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk: MiB,
}

impl Reservation {
    /// Thousandths held of each device.
    pub fn of_each_gpu(&self) -> MilliGpu {
        if self.gpu_share == 0 { WHOLE_GPU } else { self.gpu_share }
    }
}

/// The resource of which too little is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// The node has not the labels.
    Labels,
    /// The node cannot do with containers what it must.
    Containers,
    /// Too few GPU devices.
    Gpus,
    /// Too little memory.
    Memory,
    /// Too little scratch disk.
    Disk,
    /// Too little CPU.
    Cpu,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Labels => "labels",
            Self::Containers => "container runtime",
            Self::Gpus => "GPUs",
            Self::Memory => "memory",
            Self::Disk => "disk",
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
    disk: MiB,
    /// Thousandths reserved of each device; without those of which nothing is.
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

    /// Free scratch disk in MiB; `None` if the node does not say what it has.
    pub fn free_disk(&self) -> Option<MiB> {
        self.capacity.disk.map(|disk| disk.saturating_sub(self.disk))
    }

    /// Each device with the thousandths of it that are free, lowest index first.
    pub fn free_shares(&self) -> impl Iterator<Item = (GpuIndex, MilliGpu)> + '_ {
        self.capacity.gpus.keys().map(|index| {
            let taken = self.gpus.get(index).copied().unwrap_or_default();
            (*index, WHOLE_GPU.saturating_sub(taken))
        })
    }

    /// Devices of which nothing is reserved, lowest index first.
    pub fn free_gpus(&self) -> impl Iterator<Item = GpuIndex> + '_ {
        self.free_shares().filter(|(_, free)| *free == WHOLE_GPU).map(|(index, _)| index)
    }

    /// Devices that suit `demand`, each with the thousandths of it that are free.
    fn suited<'a>(&'a self, demand: &'a Demand) -> impl Iterator<Item = (GpuIndex, MilliGpu)> + 'a {
        self.free_shares()
            .filter(|(index, _)| self.capacity.gpus.get(index).is_some_and(|d| demand.suits(d)))
    }

    /// What is free of devices that suit `demand`, in thousandths: where it takes them whole those
    /// of which nothing is reserved, else the most that one device has.
    pub fn free_for(&self, demand: &Demand) -> u64 {
        if demand.gpu_share > 0 {
            self.suited(demand).map(|(_, free)| free.into()).max().unwrap_or_default()
        } else {
            let whole = self.suited(demand).filter(|(_, free)| *free == WHOLE_GPU);
            whole.count() as u64 * u64::from(WHOLE_GPU)
        }
    }

    /// The devices that `demand` would get: of those that suit the fullest with room, then the
    /// lowest index. Fewer than it asks for if there are no more.
    fn devices(&self, demand: &Demand) -> Vec<GpuIndex> {
        if demand.gpus == 0 {
            return Vec::new();
        }
        let each = demand.of_each_gpu();
        let room = self.suited(demand).filter(|(_, free)| *free >= each);
        let mut room: Vec<(MilliGpu, GpuIndex)> = room.map(|(index, free)| (free, index)).collect();
        room.sort_unstable();
        room.into_iter().take(demand.gpus as usize).map(|(_, index)| index).collect()
    }

    /// Whether nothing is reserved.
    pub fn is_idle(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.disk == 0 && self.gpus.is_empty()
    }

    /// The scarcest thing that `demand` lacks here now, or `None` if it fits.
    pub fn shortage(&self, demand: &Demand) -> Option<Shortage> {
        let wanted = demand.gpus as usize;
        let each = demand.of_each_gpu();
        let has_gpus = || {
            let room = self.suited(demand).filter(|(_, free)| *free >= each);
            room.take(wanted).count() == wanted
        };
        if !demand.is_at_home(&self.capacity.labels) {
            Some(Shortage::Labels)
        } else if demand.containers.least() > self.capacity.containers {
            Some(Shortage::Containers)
        } else if wanted > 0 && !has_gpus() {
            Some(Shortage::Gpus)
        } else if demand.memory > self.free_memory() {
            Some(Shortage::Memory)
        } else if self.free_disk().is_some_and(|free| demand.disk > free) {
            Some(Shortage::Disk)
        } else if demand.cpu > self.free_cpu() {
            Some(Shortage::Cpu)
        } else {
            None
        }
    }

    /// Reserves `demand`, or says what is lacking. A share goes to the fullest device with room for
    /// it; whole devices are taken lowest index first.
    pub fn reserve(&mut self, demand: &Demand) -> Result<Reservation, Shortage> {
        if let Some(shortage) = self.shortage(demand) {
            return Err(shortage);
        }
        let reservation = Reservation {
            cpu: demand.cpu,
            memory: demand.memory,
            gpus: self.devices(demand),
            gpu_share: demand.gpu_share,
            disk: demand.disk,
        };
        self.take(&reservation);
        Ok(reservation)
    }

    /// Reserves all there is for a job that asks for `demand`, or says what is lacking.
    pub fn reserve_whole(&mut self, demand: &Demand) -> Result<Reservation, Shortage> {
        if let Some(shortage) = self.shortage(demand) {
            return Err(shortage);
        }
        let Capacity { cpu, memory, gpus, disk, .. } = &self.capacity;
        let reservation = Reservation {
            cpu: *cpu,
            memory: *memory,
            gpus: gpus.keys().copied().collect(),
            gpu_share: 0,
            disk: disk.unwrap_or(demand.disk),
        };
        self.take(&reservation);
        Ok(reservation)
    }

    /// Enters a reservation that exists already, as when state is rebuilt after a restart.
    pub fn take(&mut self, reservation: &Reservation) {
        self.cpu += reservation.cpu;
        self.memory += reservation.memory;
        self.disk += reservation.disk;
        for &index in &reservation.gpus {
            let taken = self.gpus.entry(index).or_default();
            *taken = taken.saturating_add(reservation.of_each_gpu());
        }
    }

    /// Gives a reservation back.
    pub fn release(&mut self, reservation: &Reservation) {
        debug_assert!(self.cpu >= reservation.cpu && self.memory >= reservation.memory);
        self.cpu = self.cpu.saturating_sub(reservation.cpu);
        self.memory = self.memory.saturating_sub(reservation.memory);
        self.disk = self.disk.saturating_sub(reservation.disk);
        for index in &reservation.gpus {
            if let Some(taken) = self.gpus.get_mut(index) {
                *taken = taken.saturating_sub(reservation.of_each_gpu());
                if *taken == 0 {
                    self.gpus.remove(index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
