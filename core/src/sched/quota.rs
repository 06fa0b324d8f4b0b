//! How much of a compute a user's jobs may hold at once.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::Principal;
use crate::resource::{Cpus, Gpus, Memory, MiB, MilliCpu};

/// What one user's jobs may hold of a compute at once. What is `None` is not limited.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// CPU in thousandths of a core.
    pub cpu: Option<MilliCpu>,
    /// Memory in MiB.
    pub memory: Option<MiB>,
    /// GPU devices in thousandths.
    pub milli_gpus: Option<u64>,
    /// Nodes.
    pub nodes: Option<u32>,
    /// Jobs.
    pub jobs: Option<u32>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.milli_gpus.map(|gpus| format!("{} GPU", Gpus(gpus))),
            self.cpu.map(|cpu| format!("{} CPU", Cpus(cpu))),
            self.memory.map(|memory| format!("{} memory", Memory(memory))),
            self.nodes.map(|nodes| format!("{nodes} nodes")),
            self.jobs.map(|jobs| format!("{jobs} jobs")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

/// Who may hold how much of a compute.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Quotas {
    /// Of everybody who has none of their own.
    pub each: Limits,
    /// Of these users, in place of the former.
    pub users: BTreeMap<Principal, Limits>,
}

impl Quotas {
    /// What a user's jobs may hold at once.
    pub fn of(&self, user: &Principal) -> &Limits {
        self.users.get(user).unwrap_or(&self.each)
    }

    /// Whether nobody is limited.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.each == Limits::default()
    }
}
