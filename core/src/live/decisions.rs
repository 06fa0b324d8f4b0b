//! What [`super::Live`] decides: rows and events to write, and what to do once they are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::compute::{Cluster, ComputeRecord, Instance};
use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::job::{AttemptKey, Event, Job};
use crate::node::NodeRecord;
use crate::resource::Reservation;
use crate::spec::CommandJob;

/// What was decided: to be written together, then done.
#[derive(Default, Debug)]
pub struct Decisions {
    /// Appended to the log, in order.
    pub events: Vec<Event>,
    /// Jobs accepted now.
    pub submitted: Vec<JobName>,
    /// Jobs whose state changed, accepted ones included. Finished ones carry their last state
    /// here, because they are no longer alive.
    pub changed: BTreeMap<JobName, Job>,
    /// Nodes whose record changed.
    pub nodes: Vec<NodeRecord>,
    /// Nodes that are no more.
    pub nodes_gone: Vec<NodeName>,
    /// Computes that were made or changed.
    pub computes: BTreeMap<ComputeName, ComputeRecord>,
    /// Computes that are no more.
    pub computes_gone: Vec<ComputeName>,
    /// Clusters' own nodes, as far as they were asked for.
    pub instances: BTreeMap<NodeName, Instance>,
    /// Clusters' own nodes that are no more.
    pub instances_gone: Vec<NodeName>,
    /// Jobs start again after a restore.
    pub hold_over: bool,
    /// To be done once all of it is on disk.
    pub effects: Vec<Effect>,
}

/// Something to do outside, after the decision is on disk.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Give an attempt to its node.
    Assign {
        /// Where.
        node: NodeName,
        /// Which.
        key: AttemptKey,
        /// What.
        spec: Arc<CommandJob>,
        /// What it holds of the node.
        reservation: Reservation,
        /// Who submitted the job.
        created_by: Principal,
        /// The member's rank.
        rank: u32,
        /// Where the members' nodes are reached, by rank.
        addresses: Vec<String>,
        /// Attempts before it that failed by the job's own fault: what they wrote is not for this one.
        failed: u32,
    },
    /// Ask a node to stop an attempt.
    Stop {
        /// Where.
        node: NodeName,
        /// Which.
        key: AttemptKey,
        /// Why.
        reason: String,
    },
    /// Tell a node that an attempt's end is on disk.
    Acknowledge {
        /// Where.
        node: NodeName,
        /// Which.
        key: AttemptKey,
    },
    /// Tell a node to kill and forget an attempt.
    Discard {
        /// Where.
        node: NodeName,
        /// Which.
        key: AttemptKey,
    },
    /// Tell a node to let go of what it keeps of an attempt.
    Release {
        /// Where.
        node: NodeName,
        /// Which.
        key: AttemptKey,
    },
    /// Ask a cluster's provider for a node.
    AddNode {
        /// Whose.
        cluster: Box<Cluster>,
        /// Which.
        node: NodeName,
    },
    /// Ask a cluster's provider to take a node away.
    RemoveNode {
        /// Whose.
        cluster: Box<Cluster>,
        /// Which.
        node: NodeName,
    },
    /// An attempt is over: its token is dead.
    AttemptOver {
        /// Which.
        key: AttemptKey,
    },
    /// A job is over: its metrics can be sealed.
    JobOver {
        /// Which.
        job: JobName,
    },
}
