//! How much of a compute the jobs of a user, or of a group's members, may hold at once.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::Person;
use crate::id::{GroupName, Principal};
use crate::resource::{Cpus, Gpus, Memory, MiB, MilliCpu};

use super::Request;

/// What the jobs of one user, or of one group's members, may hold of a compute at once. What is `None` is not limited.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// CPU in thousandths of a core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<MilliCpu>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MiB>,
    /// GPU devices in thousandths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milli_gpus: Option<u64>,
    /// Nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<u32>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first limit that `request` alone exceeds, in words: `8 GPU, and the quota is 4 GPU`.
    pub fn never_allows(&self, request: &Request) -> Option<String> {
        let members = u64::from(request.members);
        let demand = &request.demand;
        let over = |each: u64, most: Option<u64>, words: fn(u64) -> String| {
            let (asked, most) = (each.saturating_mul(members), most?);
            (asked > most).then(|| format!("{}, and the quota is {}", words(asked), words(most)))
        };
        // One job is within any limit of jobs, which is never zero.
        over(demand.milli_gpus(), self.milli_gpus, |gpus| format!("{} GPU", Gpus(gpus)))
            .or_else(|| over(demand.cpu, self.cpu, |cpu| format!("{} CPU", Cpus(cpu))))
            .or_else(|| over(demand.memory, self.memory, |mib| format!("{} memory", Memory(mib))))
            .or_else(|| over(1, self.nodes.map(u64::from), |nodes| counted(nodes, "node")))
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.milli_gpus.map(|gpus| format!("{} GPU", Gpus(gpus))),
            self.cpu.map(|cpu| format!("{} CPU", Cpus(cpu))),
            self.memory.map(|memory| format!("{} memory", Memory(memory))),
            self.nodes.map(|nodes| counted(nodes, "node")),
            self.jobs.map(|jobs| counted(jobs, "job")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

/// Who may hold how much of a compute.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Quotas {
    /// Of everybody who has none of their own.
    #[serde(default)]
    pub each: Limits,
    /// Of these users, in place of the former.
    #[serde(default)]
    pub users: BTreeMap<Principal, Limits>,
    /// Of all the members of these groups together, beside what each of them may hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<GroupName, Limits>,
}

/// Whom a quota is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QuotaOf {
    /// Everybody who has none of their own.
    Each,
    /// A user, in place of the former.
    User(Principal),
    /// All members of a group together.
    Group(GroupName),
}

impl fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Each => f.write_str("everybody"),
            Self::User(user) => write!(f, "user '{user}'"),
            Self::Group(group) => write!(f, "group '{group}'"),
        }
    }
}

impl Quotas {
    /// What a user's jobs may hold at once.
    pub fn of(&self, user: &Principal) -> &Limits {
        self.users.get(user).unwrap_or(&self.each)
    }

    /// What the groups that somebody is in may hold: each limit holds for itself.
    pub fn of_groups<'a>(
        &'a self,
        person: &'a Person,
    ) -> impl Iterator<Item = (&'a GroupName, &'a Limits)> {
        self.groups.iter().filter(|(group, _)| person.groups.contains(*group))
    }

    /// Whether nobody is limited.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.each == Limits::default()
    }
}

/// `1 node`, `2 nodes`.
fn counted(count: impl Into<u64>, what: &str) -> String {
    match count.into() {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}
