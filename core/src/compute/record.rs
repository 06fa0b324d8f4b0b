//! What the daemon knows of a compute and of the nodes that it asked for; kept in the store.

use serde::{Deserialize, Serialize};

use super::{Access, Cluster, Provider};
use crate::id::{ComputeName, NodeName, Principal};
use crate::node::Drain;
use crate::resource::{Capacity, MiB};
use crate::sched::Quotas;
use crate::time::Timestamp;

/// A compute as the workspace knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ComputeRecord {
    /// Unique in the workspace.
    pub name: ComputeName,
    /// What an admin asked for; `None` for one that the daemon was started with, which machines
    /// join by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
    /// The number of the next node. While the compute is there no number is used again, so that
    /// what is said of a node is never said of another.
    #[serde(default)]
    pub next_node: u64,
    /// Set while an admin keeps jobs away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// It was deleted, and goes with the last of its nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The least memory in MiB that one of its nodes has joined with, where that is less than its
    /// size says: machines keep some for themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_memory: Option<MiB>,
    /// The same of scratch disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_disk: Option<MiB>,
    /// Who may hold how much of it.
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
    /// Who may use it.
    #[serde(default, skip_serializing_if = "Access::is_everybodys")]
    pub access: Access,
    /// Why no node could be had, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

impl ComputeRecord {
    /// What a node that may yet be added is expected to offer; `None` if the daemon adds none.
    pub fn expected(&self) -> Option<Capacity> {
        let cluster = self.cluster.as_ref().filter(|_| self.is_scaled() && !self.deleted)?;
        let mut capacity = cluster.node.capacity();
        capacity.labels.clone_from(&cluster.node_labels);
        capacity.memory = capacity.memory.min(self.least_memory.unwrap_or(capacity.memory));
        capacity.disk = match (capacity.disk, self.least_disk) {
            (Some(says), Some(seen)) => Some(says.min(seen)),
            (says, seen) => says.or(seen),
        };
        Some(capacity)
    }

    /// Whether the daemon adds and removes its nodes.
    pub fn is_scaled(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.provider != Provider::Joined)
    }
}

/// A node could not be had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// How often in a row.
    pub failures: u32,
    /// Why, the last time, in words.
    pub message: String,
    /// When it was noticed.
    pub at: Timestamp,
    /// Not tried again before then.
    pub until: Timestamp,
}

impl Trouble {
    const FIRST_MS: i64 = 5_000;
    const MOST_MS: i64 = 600_000;

    /// One more failure after `before`: the pause doubles from 5 s to 10 min.
    pub fn after(before: Option<&Self>, message: String, now: Timestamp) -> Self {
        let failures = before.map_or(0, |trouble| trouble.failures).saturating_add(1);
        let pause = (Self::FIRST_MS << (failures - 1).min(20)).min(Self::MOST_MS);
        Self { failures, message, at: now, until: now.plus_millis(pause) }
    }
}

/// A node that a cluster's provider was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Made up by the cluster; its agent joins with it.
    pub node: NodeName,
    /// Whose.
    pub compute: ComputeName,
    /// How far it is.
    pub state: InstanceState,
}

/// How far a cluster's node is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// The provider was asked to add it.
    Creating {
        /// When.
        since: Timestamp,
    },
    /// It is there; its agent has yet to join.
    Joining {
        /// Since then.
        since: Timestamp,
    },
    /// Its agent has joined.
    Up,
    /// It gets no more jobs, and is taken away when those it has are over.
    Retiring {
        /// Why.
        reason: String,
        /// Its machine is about to be taken from under it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        preempted: bool,
    },
    /// The provider was asked to take it away.
    Leaving {
        /// Why.
        reason: String,
        /// Why that failed, the last time, and when it is tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trouble: Option<Trouble>,
        /// Its machine was taken from under it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        preempted: bool,
    },
}

impl InstanceState {
    /// On its way out, for this reason.
    pub fn leaving(reason: impl Into<String>) -> Self {
        Self::Leaving { reason: reason.into(), trouble: None, preempted: false }
    }

    /// Whether it may get jobs once its agent has joined.
    pub fn takes_jobs(&self) -> bool {
        matches!(self, Self::Creating { .. } | Self::Joining { .. } | Self::Up)
    }

    /// On its way in.
    pub fn is_coming(&self) -> Option<Timestamp> {
        match self {
            Self::Creating { since } | Self::Joining { since } => Some(*since),
            Self::Up | Self::Retiring { .. } | Self::Leaving { .. } => None,
        }
    }
}
