//! For tests: builders, a small simulated cluster to drive [`Live`](crate::live::Live) in, and
//! checks of what must always hold.
//!
//! [`World`] keeps two sides apart. One is the daemon: a `Live` and the [`Store`] that is all of it
//! that survives. The other is what is truly so: nodes, the messages under way, and the processes
//! that run. The promises are judged against the second side. Everything is determined by the calls
//! made: there is no clock and no chance here either.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod check;
mod daemon;
mod node;
mod provider;
mod store;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use check::sanity_check;
pub use node::{Finish, Script};
pub use store::Store;
pub use world::{CommitFault, Outage, World};

use crate::id::{ComputeName, ExperimentName, JobName, NodeName, Principal};
use crate::node::{JOINS, LeasePolicy, NodeRecord, SECRETS};
use crate::resource::{Capacity, Demand, GpuDevice};
use crate::spec::{
    CommandJob, Environment, JobResources, Limits, OnNodeLoss, QueueSettings, Retry,
};
use crate::time::Timestamp;

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which: `I1` and so on, or `sanity`.
    pub promise: &'static str,
    /// What was seen.
    pub seen: String,
}

impl Violation {
    fn new(promise: &'static str, seen: impl Into<String>) -> Self {
        Self { promise, seen: seen.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is broken: {}", self.promise, self.seen)
    }
}

/// What a step in the world gives.
pub type Checked<T = ()> = Result<T, Violation>;

/// Breaks the promise unless `holds`.
fn ensure(holds: bool, promise: &'static str, seen: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation::new(promise, seen())) }
}

/// A lease that runs out quickly: 50 ms, 300 ms, 1 s and 200 ms.
pub const LEASE: LeasePolicy =
    LeasePolicy { heartbeat_ms: 50, unreachable_ms: 300, lease_ms: 1_000, margin_ms: 200 };

/// A job's name.
pub fn job_name(name: &str) -> JobName {
    JobName::new(name).expect("a valid job name")
}

/// A node's name.
pub fn node_name(name: &str) -> NodeName {
    NodeName::new(name).expect("a valid node name")
}

/// A compute's name.
pub fn compute_name(name: &str) -> ComputeName {
    ComputeName::new(name).expect("a valid compute name")
}

/// A principal.
pub fn principal(name: &str) -> Principal {
    Principal::new(name).expect("a valid principal")
}

/// Whole CPUs, MiB and GPU devices 0, 1, ….
pub fn capacity(cpus: u64, memory: u64, gpus: u16) -> Capacity {
    let gpus: BTreeMap<_, _> = (0..gpus).map(|index| (index, GpuDevice::default())).collect();
    Capacity { cpu: cpus * 1000, memory, gpus, ..Capacity::default() }
}

/// Whole CPUs, MiB and GPU devices.
pub fn demand(cpus: u64, memory: u64, gpus: u32) -> Demand {
    Demand { cpu: cpus * 1000, memory, gpus, ..Demand::DEFAULT }
}

/// A node as it introduces itself.
pub fn node_record(name: &str, compute: &str, capacity: Capacity) -> NodeRecord {
    NodeRecord {
        name: node_name(name),
        compute: compute_name(compute),
        capacity,
        gpus_out: BTreeMap::new(),
        version: "0.1.0".to_owned(),
        hostname: name.to_owned(),
        address: None,
        os: "Linux".to_owned(),
        facts: [(JOINS, "mpirun"), (SECRETS, "memory")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        joined_at: Timestamp::default(),
        drain: None,
    }
}

/// A job that asks for `demand` and is tried once.
pub fn command_job(demand: Demand) -> CommandJob {
    CommandJob {
        name: None,
        display_name: None,
        description: None,
        experiment_name: ExperimentName::new("Default").expect("a valid experiment name"),
        tags: BTreeMap::new(),
        properties: BTreeMap::new(),
        command: "true".to_owned(),
        code: None,
        environment: Environment::Host,
        compute: None,
        inputs: BTreeMap::new(),
        outputs: BTreeMap::new(),
        environment_variables: BTreeMap::new(),
        resources: JobResources { demand, ..JobResources::default() },
        distribution: None,
        limits: Limits::default(),
        queue: QueueSettings::default(),
        services: BTreeMap::new(),
        identity: None,
        retry: Retry::default(),
        on_node_loss: OnNodeLoss::default(),
        idle_gpu: None,
        keep_failed: None,
    }
}

/// A job of one CPU that is tried `max_attempts` times without a pause.
pub fn retried(max_attempts: u32) -> Arc<CommandJob> {
    let mut spec = command_job(Demand::DEFAULT);
    spec.retry = Retry { max_attempts, backoff: 0, memory_percent: None };
    Arc::new(spec)
}
