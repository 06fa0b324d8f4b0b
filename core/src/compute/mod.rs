//! A compute cluster: nodes of one size, how many there may be, and who makes them.
//!
//! [`spec::parse_compute`](crate::spec::parse_compute) reads one from Azure ML's `amlcompute` YAML;
//! [`Cluster::check`] holds however it came.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ComputeName;
use crate::resource::{Capacity, Cpus, GpuDevice, Memory, MiB, MilliCpu};
use crate::spec::{Diagnostics, validate_cluster};

mod access;
mod record;
mod size;

pub use access::{Access, AccessChange, MAX_GIVEN, Unchanged, Whom};
pub use record::{ComputeRecord, Instance, InstanceState, Trouble};
pub use size::SizeTable;

/// Nodes of one cluster.
pub const MAX_CLUSTER: u32 = 10_000;

/// A cluster as an admin asked for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Unique in the workspace.
    pub name: ComputeName,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Key-value pairs for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The VM size by Azure's name or an admin's, spelled as its table has it.
    pub size: String,
    /// What the size stood for when the cluster was made; a table that changes later does not
    /// change the cluster.
    pub node: NodeShape,
    /// Nodes that are kept even when there is no work.
    #[serde(default)]
    pub min_instances: u32,
    /// Nodes at most: 1 to [`MAX_CLUSTER`].
    #[serde(default = "Cluster::default_max_instances")]
    pub max_instances: u32,
    /// Seconds without work after which a node above the minimum is given up.
    #[serde(default = "Cluster::default_idle_time")]
    pub idle_time_before_scale_down: u64,
    /// Whether the nodes may be taken away.
    #[serde(default)]
    pub tier: Tier,
    /// How jobs share a node.
    #[serde(default)]
    pub placement: Placement,
    /// Whether every node must hold jobs to their limits and isolate them.
    #[serde(default)]
    pub containment: Containment,
    /// Who adds and removes nodes.
    #[serde(default)]
    pub provider: Provider,
    /// Azure's region; recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Labels that each node has which the cluster adds; jobs may choose nodes by them. Empty where
    /// machines join by themselves: their agents say their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
}

impl Cluster {
    /// The size of a cluster that names none, as in Azure.
    pub const DEFAULT_SIZE: &str = "STANDARD_DS3_v2";
    /// What stands for a size where only resources were given.
    pub const CUSTOM_SIZE: &str = "custom";

    const fn default_max_instances() -> u32 {
        4
    }

    const fn default_idle_time() -> u64 {
        120
    }

    /// A cluster of which only the name and the size are said.
    pub fn new(name: ComputeName, size: &str, node: NodeShape) -> Self {
        Self {
            name,
            description: None,
            tags: BTreeMap::new(),
            size: size.to_owned(),
            node,
            min_instances: 0,
            max_instances: Self::default_max_instances(),
            idle_time_before_scale_down: Self::default_idle_time(),
            tier: Tier::default(),
            placement: Placement::default(),
            containment: Containment::default(),
            provider: Provider::default(),
            location: None,
            node_labels: BTreeMap::new(),
        }
    }

    /// Checks what holds for a cluster however it came: numbers in range, the minimum not above the
    /// maximum, commands that name a program, texts that fit.
    ///
    /// # Errors
    /// Every fault, each with its field.
    pub fn check(&self) -> Result<(), Diagnostics> {
        validate_cluster(self)
    }
}

/// Azure's VM priority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Nodes stay until they are given up.
    #[default]
    Dedicated,
    /// Nodes may be taken away at any time; their jobs go back in the queue.
    LowPriority,
}

/// How jobs share a node. This project's extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// One job a node, as in Azure.
    #[default]
    Exclusive,
    /// As many as fit by what they ask for.
    Shared,
}

/// What of a cluster's nodes keeps jobs apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Containment {
    /// Whatever each node's machine allows.
    #[default]
    BestEffort,
    /// Limits of memory, processes and CPU, and isolation; a node that cannot has no place here.
    Strict,
}

/// Who adds and removes a cluster's nodes. This project's extension.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Provider {
    /// Agents started by the daemon on its own machine, which offer the size's resources.
    #[default]
    Local,
    /// Machines whose agent joined by itself. They are not scaled by the daemon (min/max do not
    /// apply).
    Joined,
    /// The admin's own programs add and remove nodes.
    Command(CommandProvider),
}

/// An admin's programs, each as its words: the program and its arguments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommandProvider {
    /// Adds a node.
    pub create: Vec<String>,
    /// Removes a node.
    pub delete: Vec<String>,
    /// Prints the nodes there are, so that forgotten ones can be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<Vec<String>>,
    /// Seconds after which a run of one of them is ended and counts as failed.
    #[serde(default = "CommandProvider::default_timeout")]
    pub timeout: u64,
    /// Further tries of a run that failed.
    #[serde(default = "CommandProvider::default_retries")]
    pub retries: u32,
}

impl CommandProvider {
    pub(crate) const fn default_timeout() -> u64 {
        600
    }

    pub(crate) const fn default_retries() -> u32 {
        3
    }
}

/// What one node of a size offers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeShape {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// The local scratch disk in MiB; zero if the size has none of its own.
    #[serde(default)]
    pub disk: MiB,
    /// GPU devices.
    #[serde(default)]
    pub gpus: u32,
    /// For example `NVIDIA A100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// Memory of each GPU in MiB; zero if it is not known.
    #[serde(default)]
    pub gpu_memory: MiB,
}

impl NodeShape {
    /// What a node of this size is expected to offer; its devices have no name yet.
    pub fn capacity(&self) -> Capacity {
        let device = GpuDevice {
            uuid: String::new(),
            model: self.gpu_model.clone().unwrap_or_default(),
            memory: self.gpu_memory,
        };
        let devices = u16::try_from(self.gpus).unwrap_or(u16::MAX);
        let gpus = (0..devices).map(|index| (index, device.clone())).collect();
        let disk = (self.disk > 0).then_some(self.disk);
        Capacity { cpu: self.cpu, memory: self.memory, gpus, disk, ..Capacity::default() }
    }
}

/// `6 CPU, 112 GiB memory, 736 GiB disk, 1 × NVIDIA V100 (16 GiB)`.
impl fmt::Display for NodeShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU, {} memory", Cpus(self.cpu), Memory(self.memory))?;
        if self.disk > 0 {
            write!(f, ", {} disk", Memory(self.disk))?;
        }
        if self.gpus > 0 {
            write!(f, ", {} × {}", self.gpus, self.gpu_model.as_deref().unwrap_or("GPU"))?;
            if self.gpu_memory > 0 {
                write!(f, " ({})", Memory(self.gpu_memory))?;
            }
        }
        Ok(())
    }
}
