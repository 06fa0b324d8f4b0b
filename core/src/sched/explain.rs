//! What would start a waiting job now. Every suggestion has been tried: the scheduler itself decided
//! on a copy of its value in which the suggestion was followed.

use std::fmt;

use super::{Budget, Pool, Rank, Request, Sched, WaitReason, Waiting, plan};
use crate::id::{ComputeName, NodeName};
use crate::resource::{Cpus, Demand, Gpus, Ledger, Memory, MilliGpu, WHOLE_GPU};
use crate::spec::Priority;
use crate::time::Timestamp;

/// A waiting job, as the queue and its owner know it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What it asks for.
    pub waiting: Waiting,
    /// Where it waits.
    pub compute: ComputeName,
    /// Its level.
    pub priority: Priority,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// Its place.
    pub rank: Rank,
}

/// Why a job waits, and what would end the wait now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The binding constraint.
    pub reason: WaitReason,
    /// How many are before it in the queue of its compute.
    pub ahead: usize,
    /// What would start it now, the smallest change first. Empty: nothing that was tried would.
    pub changes: Vec<Change>,
}

/// One thing to change about a job so that it starts now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Ask for this instead.
    Demand {
        /// What it asks for.
        from: Demand,
        /// What there is.
        to: Demand,
    },
    /// Run on fewer nodes.
    Members {
        /// So many it asks for.
        from: u32,
        /// So many there are.
        to: u32,
    },
    /// Send it elsewhere.
    Compute(ComputeName),
    /// Give it a higher level.
    Priority(Priority),
}

impl Change {
    /// The change as `--set` takes it, for each key.
    pub fn settings(&self) -> Vec<String> {
        match self {
            Self::Demand { from, to } => {
                let mut settings = Vec::new();
                if from.cpu != to.cpu {
                    settings.push(format!("resources.cpus={}", Cpus(to.cpu)));
                }
                if from.memory != to.memory {
                    settings.push(format!("resources.memory={}MiB", to.memory));
                }
                if from.milli_gpus() != to.milli_gpus() {
                    settings.push(format!("resources.gpus={}", Gpus(to.milli_gpus())));
                }
                if from.disk != to.disk {
                    settings.push(format!("resources.disk={}MiB", to.disk));
                }
                settings
            }
            Self::Members { to, .. } => vec![format!("resources.instance_count={to}")],
            Self::Compute(compute) => vec![format!("compute={compute}")],
            Self::Priority(priority) => {
                vec![format!("queue_settings.priority={}", priority.word())]
            }
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand { from, to } => {
                let mut parts = Vec::new();
                if from.cpu != to.cpu {
                    parts.push(format!("{} CPU instead of {}", Cpus(to.cpu), Cpus(from.cpu)));
                }
                if from.memory != to.memory {
                    let (to, from) = (Memory(to.memory), Memory(from.memory));
                    parts.push(format!("{to} memory instead of {from}"));
                }
                if from.milli_gpus() != to.milli_gpus() {
                    let (to, from) = (Gpus(to.milli_gpus()), Gpus(from.milli_gpus()));
                    parts.push(format!("{to} GPU instead of {from}"));
                }
                if from.disk != to.disk {
                    let (to, from) = (Memory(to.disk), Memory(from.disk));
                    parts.push(format!("{to} disk instead of {from}"));
                }
                write!(f, "ask for {}", parts.join(" and "))
            }
            Self::Members { from, to: 1 } => write!(f, "run on 1 node instead of {from}"),
            Self::Members { from, to } => write!(f, "run on {to} nodes instead of {from}"),
            Self::Compute(compute) => write!(f, "send it to compute '{compute}'"),
            Self::Priority(priority) => write!(f, "give it priority {}", priority.word()),
        }
    }
}

/// Explains a waiting job; `None` if it does not wait. Takes a shared copy, so it may run while the
/// scheduler goes on.
pub fn explain(sched: &Sched, asked: &Asked, now: Timestamp) -> Option<Explanation> {
    let pool = sched.pool(&asked.compute)?;
    let reason = pool.reason(asked.rank)?;
    let ahead = match &reason {
        WaitReason::Behind { ahead, .. } => *ahead,
        _ => 0,
    };
    let mut without = sched.clone();
    without.dequeue(&asked.compute, asked.rank);
    let changes = candidates(sched, asked)
        .into_iter()
        .filter(|change| starts(&without, asked, change, now))
        .fold(Vec::new(), |mut kept: Vec<Change>, change| {
            // The smallest change of each kind is enough.
            let kind = std::mem::discriminant(&change);
            if matches!(change, Change::Compute(_))
                || kept.iter().all(|other| std::mem::discriminant(other) != kind)
            {
                kept.push(change);
            }
            kept
        });
    Some(Explanation { reason, ahead, changes })
}

/// What would become of a job if it were submitted now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Foreseen {
    /// It would start.
    Starts {
        /// There.
        nodes: Vec<NodeName>,
    },
    /// It would wait.
    Waits(Explanation),
}

/// Submits a job to a copy and sees what the scheduler does. It must not be in the queue.
pub fn foresee(sched: &Sched, asked: &Asked, now: Timestamp) -> Foreseen {
    let mut trial = sched.clone();
    trial.enqueue(&asked.compute, asked.rank, asked.waiting.clone());
    let plan = plan(&trial, now, Budget { placements: TRIAL });
    if let Some(placed) = plan.placements().find(|placed| placed.job == asked.waiting.job) {
        return Foreseen::Starts { nodes: placed.nodes.clone() };
    }
    trial.explain_with(&plan, now);
    let undecided = || Explanation { reason: WaitReason::Undecided, ahead: 0, changes: Vec::new() };
    Foreseen::Waits(explain(&trial, asked, now).unwrap_or_else(undecided))
}

/// What may help, the smallest change of each kind first.
fn candidates(sched: &Sched, asked: &Asked) -> Vec<Change> {
    let mut changes = Vec::new();
    if let Some(pool) = sched.pool(&asked.compute) {
        let open = pool.nodes().filter(|(_, _, open)| *open);
        let mut smaller: Vec<(u64, Demand)> = open
            .filter_map(|(_, ledger, _)| shrink(&asked.waiting.request.demand, ledger))
            .collect();
        smaller.sort_unstable();
        smaller.dedup();
        let from = asked.waiting.request.members;
        changes.extend(fewer(pool, asked).map(|to| Change::Members { from, to }));
        // Beyond the first few they only ask for less and less.
        let few = smaller.into_iter().take(8);
        changes.extend(
            few.map(|(_, to)| Change::Demand { from: asked.waiting.request.demand.clone(), to }),
        );
    }
    let others = sched.pools.keys().filter(|compute| **compute != asked.compute);
    changes.extend(others.cloned().map(Change::Compute));
    let levels = [Priority::Medium, Priority::High];
    changes
        .extend(levels.into_iter().filter(|level| *level > asked.priority).map(Change::Priority));
    changes
}

/// How many members would find room now, the most first: of all nodes with room, and of those
/// without jobs, which count where a job takes a whole node.
fn fewer(pool: &Pool, asked: &Asked) -> impl Iterator<Item = u32> + use<> {
    let Request { members, demand } = &asked.waiting.request;
    let (mut roomy, mut idle) = (0, 0);
    if *members > 1 {
        for (_, ledger, _) in pool.nodes().filter(|(_, _, open)| *open) {
            if ledger.shortage(demand).is_none() {
                roomy += 1;
                idle += u32::from(ledger.is_idle());
            }
        }
    }
    let most = *members;
    [roomy, idle].into_iter().filter(move |count| (1..most).contains(count))
}

/// The demand cut to what is free on a node, with how much that cuts, in thousandths summed over
/// what is cut. `None` if nothing has to be cut, or nothing would be left.
fn shrink(demand: &Demand, ledger: &Ledger) -> Option<(u64, Demand)> {
    let node = ledger.capacity();
    if !demand.is_at_home(&node.labels) || demand.containers.least() > node.containers {
        return None;
    }
    let free = ledger.free_for(demand);
    let mut to = demand.clone();
    to.cpu = demand.cpu.min(ledger.free_cpu());
    to.memory = demand.memory.min(ledger.free_memory());
    to.disk = demand.disk.min(ledger.free_disk().unwrap_or(demand.disk));
    if demand.gpu_share > 0 {
        to.gpu_share = demand.gpu_share.min(MilliGpu::try_from(free).unwrap_or(MilliGpu::MAX));
        // A share of nothing would be a whole device.
        to.gpus = if to.gpu_share > 0 { demand.gpus } else { 0 };
    } else {
        let free = free / u64::from(WHOLE_GPU);
        to.gpus = demand.gpus.min(u32::try_from(free).unwrap_or(u32::MAX));
    }
    let nothing_left = to.cpu == 0
        || (demand.memory > 0 && to.memory == 0)
        || (demand.disk > 0 && to.disk == 0)
        || (demand.gpus > 0 && to.gpus == 0);
    if nothing_left || to == *demand {
        return None;
    }
    let cut = |from: u64, to: u64| ((from - to) * 1000).checked_div(from).unwrap_or_default();
    let cuts = cut(demand.cpu, to.cpu)
        + cut(demand.memory, to.memory)
        + cut(demand.milli_gpus(), to.milli_gpus())
        + cut(demand.disk, to.disk);
    Some((cuts, to))
}

/// Whether the scheduler would start the job now if the change were made.
fn starts(without: &Sched, asked: &Asked, change: &Change, now: Timestamp) -> bool {
    let mut trial = without.clone();
    let (mut compute, mut waiting, mut rank) =
        (asked.compute.clone(), asked.waiting.clone(), asked.rank);
    match change {
        Change::Demand { to, .. } => waiting.request.demand = to.clone(),
        Change::Members { to, .. } => waiting.request.members = *to,
        Change::Compute(other) => compute = other.clone(),
        Change::Priority(level) => {
            rank = Rank::new(rank.tier(), *level, asked.created_at, rank.seq())
        }
    }
    waiting.not_before = None;
    trial.enqueue(&compute, rank, waiting);
    let budget = Budget { placements: TRIAL };
    plan(&trial, now, budget).placements().any(|placed| placed.job == asked.waiting.job)
}

/// What a trial places at most. Before it the scheduler had nothing more to place, so that little
/// follows from one change.
const TRIAL: usize = 64;
