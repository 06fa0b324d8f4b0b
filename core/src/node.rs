//! A node: a machine whose agent takes jobs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ComputeName, NodeName, Principal};
use crate::resource::{Capacity, Containers, GpuDevice, GpuIndex};
use crate::spec::limits::MAX_LABEL;
use crate::spec::{CommandJob, Distribution};
use crate::time::Timestamp;

/// The fact with which programs a node's agent can start a job's processes on several nodes.
pub const JOINS: &str = "joins";
/// The fact by which an agent says that it gives jobs their secrets: where it keeps them.
pub const SECRETS: &str = "secrets";

/// The fact which container runtime a node has, as its program and version: `podman 4.3.1`; `none`: it has none.
pub const CONTAINER_RUNTIME: &str = "container_runtime";

/// The fact why a node cannot say which GPUs it has, while it cannot.
pub const GPU_DRIVER: &str = "gpu_driver";

/// What is known of a node: what it said of itself when it joined, and what an admin said of it.
/// Kept in the store, so that a restarted daemon knows its nodes before they come back.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Unique in the workspace.
    pub name: NodeName,
    /// The cluster it belongs to.
    pub compute: ComputeName,
    /// What it offers to jobs.
    pub capacity: Capacity,
    /// Devices that it has and does not offer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gpus_out: BTreeMap<GpuIndex, GpuOut>,
    /// The agent's version.
    pub version: String,
    /// The machine's own name.
    pub hostname: String,
    /// Where other nodes reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Operating system and kernel.
    pub os: String,
    /// What the machine can and cannot do.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
    /// When it last joined.
    pub joined_at: Timestamp,
    /// Set while an admin keeps jobs away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

/// A GPU that jobs do not get.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GpuOut {
    /// What it is.
    pub device: GpuDevice,
    /// Why, in words.
    pub reason: String,
}

/// What of a node has changed since it joined.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NodeChange {
    /// The devices that it offers now, by index.
    pub gpus: BTreeMap<GpuIndex, GpuDevice>,
    /// Those that it does not.
    pub gpus_out: BTreeMap<GpuIndex, GpuOut>,
    /// What the machine can and cannot do.
    pub facts: BTreeMap<String, String>,
}

/// Among a node's facts: why its jobs do not reach the daemon.
pub const NOT_REACHED: &str = "not_reached";

impl NodeRecord {
    /// What it offers to jobs, with what follows from its facts.
    pub fn offered(&self) -> Capacity {
        Capacity { containers: self.containers(), ..self.capacity.clone() }
    }

    /// What it does with container images, by the runtime that it has. Podman and docker build them.
    fn containers(&self) -> Containers {
        let runtime = self.facts.get(CONTAINER_RUNTIME).map_or("none", String::as_str);
        match runtime.split_whitespace().next() {
            None | Some("none") => Containers::None,
            Some("podman" | "docker") => Containers::Build,
            Some(_) => Containers::Run,
        }
    }

    /// What it would offer if nothing of it were broken.
    pub fn mended(&self) -> Capacity {
        let mut capacity = self.offered();
        let out = self.gpus_out.iter().map(|(index, out)| (*index, out.device.clone()));
        capacity.gpus.extend(out);
        capacity
    }

    /// What is wrong with its GPUs, if something is: `GPU 3 is out: 2 uncorrected ECC errors`, or why it does not know them.
    pub fn gpu_trouble(&self) -> Option<String> {
        let each = self.gpus_out.iter();
        let each = each.map(|(index, out)| format!("GPU {index} is out: {}", out.reason));
        let all: Vec<String> =
            self.facts.get(GPU_DRIVER).cloned().into_iter().chain(each).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What its agent does not know how to do of what the job asks for, as one of an earlier release does not say
    /// that it does.
    pub fn too_old_to(&self, spec: &CommandJob) -> Option<&'static str> {
        // It would start `mpirun` in each member by itself.
        let is_joint = matches!(spec.distribution, Some(Distribution::Mpi { .. }))
            && spec.resources.instance_count > 1;
        if is_joint && !self.facts.contains_key(JOINS) {
            return Some("start 'mpirun' over several nodes");
        }
        // It would give the job their names.
        let names_secrets = spec.secrets().next().is_some();
        (names_secrets && !self.facts.contains_key(SECRETS)).then_some("give jobs secrets")
    }

    /// Why the node does not keep jobs apart as well as can be, if it does not. An agent that says nothing
    /// of it cannot.
    pub fn not_contained(&self) -> Option<String> {
        let told = |name: &str, otherwise: &str| match self.facts.get(name) {
            Some(why) => Some(why.clone()),
            None if self.facts.contains_key(otherwise) => None,
            None => Some("its agent does not say".to_owned()),
        };
        let limits = told("not_limited", "limited").map(|why| format!("no limits of {why}"));
        let views = told("not_isolated", "isolation").map(|why| format!("no isolation: {why}"));
        let addresses =
            told("not_closed", "closed").map(|why| format!("no addresses closed to jobs: {why}"));
        let all: Vec<String> = limits.into_iter().chain(views).chain(addresses).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Why the node gets no jobs though it answers, if it does not: what it lacks now would keep it from joining
    /// if it had no jobs. `strict`: its compute takes nodes only that keep jobs apart.
    pub fn unfit(&self, strict: bool) -> Option<String> {
        let unreached = self.facts.get(NOT_REACHED).cloned();
        let lacks = self.not_contained().filter(|_| strict);
        let lacks = lacks
            .map(|lacks| format!("the containment of its compute is strict, and it has {lacks}"));
        let all: Vec<String> = unreached.into_iter().chain(lacks).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Whether a node may have this label: a key of letters, digits, `-`, `_`, `.` and `/`, and a value
/// without control characters, each of at most [`MAX_LABEL`] bytes.
pub fn is_label(key: &str, value: &str) -> bool {
    let in_key = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    !key.is_empty()
        && key.len().max(value.len()) <= MAX_LABEL
        && key.chars().all(in_key)
        && !value.chars().any(char::is_control)
}

/// Whether this may be where other nodes reach a node: a name or an address of at most 255 bytes, as
/// host names are written, without a port.
pub fn is_address(address: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%');
    !address.is_empty() && address.len() <= 255 && address.chars().all(allowed)
}

/// Whether an address leads back to the machine that uses it.
pub fn is_loopback(address: &str) -> bool {
    let ip: Option<std::net::IpAddr> = address.parse().ok();
    address == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

/// What a label looks like, in words.
pub const LABEL_FORM: &str =
    "a label is a key of letters, digits, -, _, . and / with a value, each of at most 100 bytes";

/// An admin's word that a node gets no more jobs. It holds until it is taken back, whatever
/// restarts meanwhile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// Who said so.
    pub by: Principal,
    /// Why, in their words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// When the jobs that still run there are asked to stop and go back in the queue; `None`: they
    /// run to their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
}

/// A monotonic instant: milliseconds since the daemon started. Leases count these, because wall
/// clocks jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Milliseconds from `earlier` to `self`.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks at the moment of a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// For people and records.
    pub wall: Timestamp,
    /// For leases.
    pub mono: Mono,
}

/// Whether the daemon hears from a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// A session is open and the node's attempts are reconciled.
    Ready,
    /// No session since then; its attempts may well be running.
    Silent {
        /// When the session ended, or the daemon started.
        since: Mono,
    },
}

/// How long a silent node's attempts are left alone.
///
/// The node ends them itself when it has had no answer to a heartbeat for `lease_ms`; `margin_ms`
/// more pass before the daemon may start another attempt, so that two never overlap even when the
/// clocks drift.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeasePolicy {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Silence after which a node's jobs are shown as not responding.
    pub unreachable_ms: u64,
    /// Silence after which the node itself ends its attempts.
    pub lease_ms: u64,
    /// Further wait before the daemon gives them up.
    pub margin_ms: u64,
}

impl Default for LeasePolicy {
    /// 5 s, 30 s, 10 min and 30 s.
    fn default() -> Self {
        Self { heartbeat_ms: 5_000, unreachable_ms: 30_000, lease_ms: 600_000, margin_ms: 30_000 }
    }
}
