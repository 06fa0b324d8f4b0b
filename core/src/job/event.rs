//! The append-only log: one event for every change, with time, reason and who.

use serde::{Deserialize, Serialize};

use super::{Exit, Failure, JobStatus};
use crate::asset::Kind;
use crate::id::{
    AssetName, AttemptNumber, EventSeq, JobName, NodeName, PortName, Principal, VersionName,
};
use crate::resource::GpuIndex;
use crate::time::Timestamp;

/// Something that happened to a job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Place in the workspace's log.
    pub seq: EventSeq,
    /// The job.
    pub job: JobName,
    /// By the daemon's clock.
    pub at: Timestamp,
    /// The attempt concerned; zero for the job as a whole.
    pub attempt: AttemptNumber,
    /// Who made it happen.
    pub principal: Principal,
    /// The job's status afterwards.
    pub status: JobStatus,
    /// What.
    pub kind: EventKind,
}

/// What happened. Versioned by name: a kind never changes its meaning.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum EventKind {
    /// Accepted and on disk.
    Submitted,
    /// Put in the queue.
    Queued {
        /// Why it could not start at once.
        reason: String,
    },
    /// Placed on a node.
    Assigned {
        /// Where.
        node: NodeName,
        /// Which devices it got.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gpus: Vec<GpuIndex>,
        /// Where its further members are, by rank.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<NodeName>,
    },
    /// Environment, code and inputs are being made ready.
    Preparing {
        /// What is being done.
        step: String,
    },
    /// The command started.
    Running,
    /// Its GPUs on a node have done nothing for as long as `idle_gpu` says.
    GpuIdle {
        /// Where.
        node: NodeName,
        /// Since when, by the node's clock.
        since: Timestamp,
    },
    /// The command ended; outputs are being collected.
    Finalizing {
        /// How it ended.
        exit: Option<Exit>,
    },
    /// A member of several is over, while others are not.
    MemberEnded {
        /// Its rank.
        rank: u32,
        /// Where it was.
        node: NodeName,
        /// What went wrong, if anything did.
        problem: Option<String>,
    },
    /// The job is completed next, and this output of it becomes an asset then. Which version the store says, in
    /// the transaction that completes the job: it puts one of the next two in the place of this.
    AssetRegistering {
        /// Which output.
        output: PortName,
    },
    /// An output has become an asset.
    AssetRegistered {
        /// Which output.
        output: PortName,
        /// What the asset is.
        asset: Kind,
        /// Its name.
        name: AssetName,
        /// Which version.
        version: VersionName,
    },
    /// An output could not become the asset that it should.
    AssetRefused {
        /// Which output.
        output: PortName,
        /// Why.
        problem: String,
    },
    /// Over, as asked.
    Completed,
    /// Over, not as asked.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Somebody asked it to stop.
    CancelRequested {
        /// Why, in their words.
        reason: String,
    },
    /// The attempt was asked to stop, so that the job goes back in the queue.
    Evicting {
        /// Why.
        reason: String,
    },
    /// Over, on somebody's word or because a limit was reached.
    Canceled {
        /// Why.
        reason: String,
    },
    /// An attempt failed and the job waits for the next.
    Requeued {
        /// Why, and when the next attempt may start.
        reason: String,
    },
    /// The node has been silent for too long.
    NodeUnreachable {
        /// Which.
        node: NodeName,
    },
    /// The node is back and the attempt with it.
    NodeReturned {
        /// Which.
        node: NodeName,
    },
    /// Somebody ran a command in it.
    Entered {
        /// In which member.
        rank: u32,
        /// The command, as a shell shows it; empty: a shell.
        command: String,
    },
    /// Somebody reached ports of its node.
    Forwarded {
        /// Of which member.
        rank: u32,
        /// Which.
        ports: Vec<u16>,
    },
    /// Somebody ran a command in what an attempt left that had failed.
    Debugged {
        /// Of which member.
        rank: u32,
        /// The command, as a shell shows it; empty: a shell.
        command: String,
    },
    /// Somebody let go of what attempts left that had failed.
    Released,
    /// Hidden from lists.
    Archived,
    /// Shown in lists again.
    Restored,
}

impl EventKind {
    /// The kind's name, as stored and shown.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Submitted => "Submitted",
            Self::Queued { .. } => "Queued",
            Self::Assigned { .. } => "Assigned",
            Self::Preparing { .. } => "Preparing",
            Self::Running => "Running",
            Self::GpuIdle { .. } => "GpuIdle",
            Self::Finalizing { .. } => "Finalizing",
            Self::MemberEnded { .. } => "MemberEnded",
            Self::AssetRegistering { .. } => "AssetRegistering",
            Self::AssetRegistered { .. } => "AssetRegistered",
            Self::AssetRefused { .. } => "AssetRefused",
            Self::Completed => "Completed",
            Self::Failed { .. } => "Failed",
            Self::CancelRequested { .. } => "CancelRequested",
            Self::Evicting { .. } => "Evicting",
            Self::Canceled { .. } => "Canceled",
            Self::Requeued { .. } => "Requeued",
            Self::NodeUnreachable { .. } => "NodeUnreachable",
            Self::NodeReturned { .. } => "NodeReturned",
            Self::Entered { .. } => "Entered",
            Self::Forwarded { .. } => "Forwarded",
            Self::Debugged { .. } => "Debugged",
            Self::Released => "Released",
            Self::Archived => "Archived",
            Self::Restored => "Restored",
        }
    }

    /// In words, for people.
    pub fn message(&self) -> String {
        match self {
            Self::Submitted => "accepted".to_owned(),
            Self::Queued { reason } => format!("waits: {reason}"),
            Self::Assigned { node, others, .. } if !others.is_empty() => {
                let others: Vec<&str> = others.iter().map(NodeName::as_str).collect();
                format!("placed on nodes {node}, {}", others.join(", "))
            }
            Self::Assigned { node, gpus, .. } if gpus.is_empty() => {
                format!("placed on node {node}")
            }
            Self::Assigned { node, gpus, .. } => {
                let list: Vec<String> = gpus.iter().map(ToString::to_string).collect();
                format!("placed on node {node} with GPU {}", list.join(","))
            }
            Self::Preparing { step } => format!("preparing: {step}"),
            Self::Running => "the command started".to_owned(),
            Self::GpuIdle { node, since } => {
                format!("its GPUs on node {node} have done nothing since {since}")
            }
            Self::Finalizing { exit: Some(Exit::Code(code)) } => {
                format!("the command ended with exit code {code}; collecting outputs")
            }
            Self::Finalizing { exit: Some(Exit::Signal(signal)) } => {
                format!("the command was killed by signal {signal}; collecting outputs")
            }
            Self::Finalizing { exit: None } => "the command never started".to_owned(),
            Self::MemberEnded { rank, node, problem: None } => {
                format!("member {rank} on node {node} is done")
            }
            Self::MemberEnded { rank, node, problem: Some(problem) } => {
                format!("member {rank} on node {node}: {problem}")
            }
            Self::AssetRegistering { output } => format!("output '{output}' becomes an asset"),
            Self::AssetRegistered { output, asset, name, version } => {
                format!("output '{output}' is version {version} of {asset} '{name}'")
            }
            Self::AssetRefused { output, problem } => {
                format!("output '{output}' is not registered: {problem}")
            }
            Self::Completed => "completed".to_owned(),
            Self::Failed { failure } => failure.message.clone(),
            Self::CancelRequested { reason } if reason.is_empty() => "asked to stop".to_owned(),
            Self::CancelRequested { reason } => format!("asked to stop: {reason}"),
            Self::Evicting { reason } => format!("asked to make way: {reason}"),
            Self::Canceled { reason } if reason.is_empty() => "canceled".to_owned(),
            Self::Canceled { reason } => format!("canceled: {reason}"),
            Self::Requeued { reason } => format!("back in the queue: {reason}"),
            Self::NodeUnreachable { node } => format!("node {node} does not answer"),
            Self::NodeReturned { node } => format!("node {node} is back"),
            Self::Entered { rank, command } if command.is_empty() => {
                format!("a shell was opened in {}", member(*rank))
            }
            Self::Entered { rank, command } => format!("ran in {}: {command}", member(*rank)),
            Self::Forwarded { rank, ports } => {
                let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
                format!("reached from outside in {}: port {}", member(*rank), list.join(", "))
            }
            Self::Debugged { rank, command } if command.is_empty() => {
                format!("a shell was opened in what {} left", member(*rank))
            }
            Self::Debugged { rank, command } => {
                format!("ran in what {} left: {command}", member(*rank))
            }
            Self::Released => "nothing is kept any more of what the job left".to_owned(),
            Self::Archived => "archived".to_owned(),
            Self::Restored => "restored".to_owned(),
        }
    }
}

/// A member in words; most jobs have one.
fn member(rank: u32) -> String {
    if rank == 0 { "the job".to_owned() } else { format!("member {rank} of the job") }
}
