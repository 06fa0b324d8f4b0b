//! Why a job waits, naming what would end the wait.

use std::fmt;
use std::sync::Arc;

use super::{Limits, Request};
use crate::compute::Access;
use crate::id::{GroupName, JobName, NodeName, Principal};
use crate::resource::{Containers, Cpus, Demand, Gpus, Memory, Shortage};
use crate::time::Timestamp;

/// Jobs before another are counted up to here.
pub const COUNTED: usize = 10_000;

/// The binding constraint of a waiting job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WaitReason {
    /// Not looked at yet.
    Undecided,
    /// The compute has no node at all.
    NoNodes,
    /// It has nodes, but none answers.
    NodesSilent,
    /// The job is first in line and no node has enough free.
    Shortage {
        /// What it asks for.
        demand: Demand,
        /// What is lacking on the node that comes closest.
        lacking: Shortage,
        /// That node.
        node: NodeName,
        /// Free there: thousandths of a core.
        free_cpu: u64,
        /// Free there: MiB.
        free_memory: u64,
        /// Free there: MiB of scratch disk; `None` if the node does not say.
        free_disk: Option<u64>,
        /// Free there, in thousandths, of devices that suit: whole ones, or for a share of one the
        /// most that one has.
        free_gpus: u64,
    },
    /// No node that gets jobs is as large as the job asks for. It holds nobody back.
    TooLarge {
        /// What it asks for.
        demand: Demand,
        /// A node that is large enough, but does not answer.
        node: Option<NodeName>,
    },
    /// The only nodes as large as the job asks for are drained. It holds nobody back.
    Drained {
        /// What it asks for.
        demand: Demand,
        /// One of them.
        node: NodeName,
    },
    /// The only nodes as large as the job asks for lack what nodes must have. It holds nobody back.
    Unfit {
        /// What it asks for.
        demand: Demand,
        /// One of them.
        node: NodeName,
        /// What it lacks.
        why: String,
    },
    /// Another job is before it, and that one waits.
    Behind {
        /// The first in line.
        head: JobName,
        /// How many are before this one; not counted beyond [`COUNTED`].
        ahead: usize,
        /// Why the first waits.
        because: Box<WaitReason>,
    },
    /// The first in line needs several nodes at once, and too few of them have room.
    Gang {
        /// What it asks for.
        request: Request,
        /// So many have room.
        ready: usize,
    },
    /// It needs more nodes at once than get jobs and are as large. It holds nobody back.
    TooFew {
        /// What it asks for.
        request: Request,
        /// So many are.
        nodes: usize,
    },
    /// Its user's jobs hold as much of the compute as they may. It holds nobody back.
    Quota {
        /// Whose quota.
        user: Principal,
        /// The quota.
        limits: Box<Limits>,
        /// What the user's jobs hold, of what is limited.
        held: Box<Limits>,
    },
    /// The jobs of its user's group hold as much of the compute as they may. It holds nobody back.
    GroupQuota {
        /// Whose quota.
        group: GroupName,
        /// The quota.
        limits: Box<Limits>,
        /// What the jobs of all its members hold, of what is limited.
        held: Box<Limits>,
    },
    /// Its user may not use the compute any more. It holds nobody back.
    NoAccess {
        /// Who.
        user: Principal,
        /// Who may.
        access: Box<Access>,
    },
    /// Others make way for it.
    MakingRoom {
        /// Which.
        jobs: Vec<JobName>,
    },
    /// A job takes a whole node here, and every node that could hold it is taken.
    Occupied {
        /// So many.
        nodes: usize,
    },
    /// An admin keeps jobs away from the whole compute.
    ComputeDrained {
        /// Who.
        by: Principal,
        /// Why.
        reason: String,
    },
    /// A node is about to be added for it.
    Growing,
    /// Nodes are on their way.
    NodesComing {
        /// How many.
        nodes: u32,
        /// The first of them was asked for then.
        since: Timestamp,
    },
    /// No node can be had at the moment.
    NoNodeToBeHad {
        /// Why.
        why: String,
        /// When it is tried again.
        until: Timestamp,
    },
    /// The cluster has as many nodes as it may have.
    Full {
        /// That many.
        most: u32,
        /// Why none of them takes it.
        because: Box<WaitReason>,
    },
    /// It may not start before then, after a failed attempt.
    BackOff {
        /// When.
        until: Timestamp,
        /// What went wrong.
        why: Arc<str>,
    },
    /// More starts were due than one decision makes; the next follows at once.
    NextRound,
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided | Self::NextRound => f.write_str("about to be placed"),
            Self::NoNodes => {
                f.write_str("the compute has no node yet; start an agent for it (atelier agent)")
            }
            Self::NodesSilent => f.write_str(
                "no node of the compute answers; it starts when one is back (atelier node list)",
            ),
            Self::Shortage {
                demand,
                lacking,
                node,
                free_cpu,
                free_memory,
                free_disk,
                free_gpus,
            } => {
                let (cpu, memory, gpus) = (Cpus(*free_cpu), Memory(*free_memory), Gpus(*free_gpus));
                write!(
                    f,
                    "asks for {demand}; the closest node, {node}, has too little {lacking} free \
                     ({cpu} CPU, {memory} memory, {gpus} GPU"
                )?;
                if let Some(disk) = free_disk.filter(|_| demand.disk > 0) {
                    write!(f, ", {} disk", Memory(disk))?;
                }
                f.write_str(" free); it starts when a running job there ends")
            }
            Self::TooLarge { demand, node: Some(node) } => write!(
                f,
                "asks for {demand}, and the only node as large, {node}, does not answer; it starts \
                 when {node} is back"
            ),
            Self::TooLarge { demand, node: None } if demand.is_choosy() => {
                let needs_runtime = demand.containers.least() > Containers::None;
                let remedy = if needs_runtime {
                    " (an agent looks for podman and docker when it starts)"
                } else {
                    ""
                };
                write!(
                    f,
                    "asks for {demand}, and no node of the compute that gets jobs has that; it starts \
                     when one joins{remedy}, or cancel it and ask for less"
                )
            }
            Self::TooLarge { demand, node: None } => write!(
                f,
                "asks for {demand}, and no node of the compute is that large any more; it starts \
                 when one joins, or cancel it and ask for less"
            ),
            Self::Drained { demand, node } => write!(
                f,
                "asks for {demand}, and {node}, which has that, is drained; it starts when the node \
                 is resumed (atelier node resume {node}) or another as large joins"
            ),
            Self::Unfit { demand, node, why } => write!(
                f,
                "asks for {demand}, and {node}, which has that, gets no jobs: {why}; it starts when \
                 that is mended or another as large joins"
            ),
            Self::Behind { head, ahead, because } => {
                let jobs = if *ahead == 1 { "job is" } else { "jobs are" };
                let more = if *ahead == COUNTED { "more than " } else { "" };
                write!(f, "{more}{ahead} {jobs} before it; the first, {head}, {because}")
            }
            Self::Gang { request, ready } => {
                let have = if *ready == 1 { "has" } else { "have" };
                write!(
                    f,
                    "asks for {request}, all at once, and {ready} {have} room; it starts when {} \
                     more have",
                    (request.members as usize).saturating_sub(*ready)
                )
            }
            Self::TooFew { request, nodes } => {
                let are = if *nodes == 1 { "is" } else { "are" };
                write!(
                    f,
                    "asks for {request}, all at once, and only {nodes} of the nodes that get jobs \
                     {are} as large; it starts when more join, or cancel it and set \
                     resources.instance_count to {nodes}"
                )
            }
            Self::Quota { user, limits, held } => write!(
                f,
                "{user}'s jobs may hold {limits} of the compute at once, and hold {held}; it starts \
                 when enough of them have ended, or ask an admin for a larger quota"
            ),
            Self::GroupQuota { group, limits, held } => write!(
                f,
                "the jobs of all who are in group '{group}' may hold {limits} of the compute at once, and hold {held}; \
                 it starts when enough of them have ended, or ask an admin for a larger quota of the group"
            ),
            Self::NoAccess { user, access } => write!(
                f,
                "{user} may not use the compute any more, which is for {access}; it starts once {user} may again (ask \
                 an admin: atelier compute access grant), or cancel it and send it elsewhere"
            ),
            Self::MakingRoom { jobs } => match jobs.as_slice() {
                [job] => write!(f, "job {job} makes way for it"),
                jobs => {
                    let names: Vec<&str> = jobs.iter().take(3).map(JobName::as_str).collect();
                    let more = if jobs.len() > 3 { ", …" } else { "" };
                    write!(f, "{} jobs make way for it ({}{more})", jobs.len(), names.join(", "))
                }
            },
            Self::Occupied { nodes } => {
                let nodes = match nodes {
                    1 => "the only node that could hold it is".to_owned(),
                    nodes => format!("all {nodes} nodes that could hold it are"),
                };
                write!(f, "{nodes} taken (a job takes a whole node); it starts when one is free")
            }
            Self::ComputeDrained { by, reason } => write!(
                f,
                "the compute is drained, by {by}: {reason}; it starts once the compute is resumed"
            ),
            Self::Growing => f.write_str("a node is about to be added for it"),
            Self::NodesComing { nodes, since } => {
                let nodes = match nodes {
                    1 => "a node is".to_owned(),
                    nodes => format!("{nodes} nodes are"),
                };
                write!(f, "{nodes} being prepared, since {since}; it starts when one has joined")
            }
            Self::NoNodeToBeHad { why, until } => {
                write!(f, "no node can be had: {why}; the next try is at {until}")
            }
            Self::Full { most, because } => {
                write!(f, "the cluster has its maximum of {most} nodes; {because}")
            }
            Self::BackOff { until, why } => {
                write!(f, "the last attempt failed: {why}; the next may start at {until}")
            }
        }
    }
}
