//! A cluster and its queue in virtual time: jobs come when they came, take as long as they took, and
//! the scheduler itself decides when and where each starts.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{TraceNode, TraceTask};
use crate::id::{ComputeName, InvalidName, JobName, NodeName, Principal, SubmitSeq};
use crate::resource::{Capacity, Demand, GpuDevice, Reservation};
use crate::sched::forward::{Arrival, Forward, Lengths, Standing};
use crate::sched::{Rank, Request, Sched, Waiting};
use crate::spec::{JobTier, Priority};
use crate::time::Timestamp;

/// A job to be played.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlayedJob {
    /// Whose.
    pub user: Principal,
    /// Its level.
    pub priority: Priority,
    /// Its tier.
    pub tier: JobTier,
    /// What it asks for.
    pub request: Request,
    /// When it comes.
    pub arrives: Timestamp,
    /// Milliseconds that it holds its nodes.
    pub length_ms: u64,
    /// Milliseconds that the scheduler is told it holds them at most.
    pub most_ms: Option<u64>,
}

/// What became of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fate {
    /// When it started; the last time, if it had to make way.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How often it made way.
    pub made_way: u32,
}

/// Amounts of what nodes have: thousandths of a core, MiB, thousandths of a GPU; held for a time, so
/// much of it for so many milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amounts {
    /// Of CPU.
    pub cpu: u128,
    /// Of memory.
    pub memory: u128,
    /// Of GPUs.
    pub gpus: u128,
}

impl Amounts {
    fn of(held: &[Reservation]) -> Self {
        let mut sum = Self::default();
        for one in held {
            sum.cpu += u128::from(one.cpu);
            sum.memory += u128::from(one.memory);
            sum.gpus += one.gpus.len() as u128 * u128::from(one.of_each_gpu());
        }
        sum
    }

    fn add(&mut self, other: Self, times: u128) {
        self.cpu += other.cpu * times;
        self.memory += other.memory * times;
        self.gpus += other.gpus * times;
    }
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Played {
    /// What became of each job, in the order in which they were given.
    pub fates: Vec<Fate>,
    /// Milliseconds from the first arrival to the last end.
    pub makespan_ms: u64,
    /// What all nodes have.
    pub capacity: Amounts,
    /// What was held, times the milliseconds that it was.
    pub held: Amounts,
}

impl Played {
    /// Those that ended.
    pub fn completed(&self) -> usize {
        self.fates.iter().filter(|fate| fate.ended.is_some()).count()
    }

    /// Those that never started: these nodes, all of them empty, cannot hold them.
    pub fn never_started(&self) -> usize {
        self.fates.iter().filter(|fate| fate.started.is_none()).count()
    }

    /// What share of CPU, memory and GPUs was held over the makespan, in percent; `None` where there
    /// is none of it.
    pub fn utilisation(&self) -> [Option<f64>; 3] {
        let percent = |held: u128, capacity: u128| {
            let most = capacity * u128::from(self.makespan_ms);
            (most > 0).then(|| held as f64 * 100.0 / most as f64)
        };
        [
            percent(self.held.cpu, self.capacity.cpu),
            percent(self.held.memory, self.capacity.memory),
            percent(self.held.gpus, self.capacity.gpus),
        ]
    }
}

/// How times lie: their mean and percentiles.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// Milliseconds.
    pub mean: f64,
    /// Half of them are no longer, in milliseconds.
    pub p50: u64,
    /// Nine of ten are no longer.
    pub p90: u64,
    /// All but one of a hundred are no longer.
    pub p99: u64,
}

impl Spread {
    /// Of milliseconds, in any order; `None` if there are none. Percentiles are values that occur
    /// (nearest rank).
    pub fn of(mut times: Vec<u64>) -> Option<Self> {
        times.sort_unstable();
        let sum: u128 = times.iter().map(|ms| u128::from(*ms)).sum();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1);
        Some(Self {
            mean: sum as f64 / times.len().max(1) as f64,
            p50: *at(50)?,
            p90: *at(90)?,
            p99: *at(99)?,
        })
    }
}

/// What the jobs themselves say of their length. A job's number is its place in the list.
struct Told<'a>(&'a [PlayedJob]);

impl Lengths for Told<'_> {
    fn whole(&self, rank: Rank) -> Option<u64> {
        self.0.get(index(rank)).map(|job| job.length_ms)
    }

    fn rest(&self, rank: Rank) -> Option<u64> {
        self.whole(rank)
    }
}

fn index(rank: Rank) -> usize {
    usize::try_from(rank.seq().0).unwrap_or(usize::MAX)
}

/// Steps for each job before a run is given up that comes to no end. None should: a job is placed once,
/// and now and then again.
const STEPS_A_JOB: u64 = 1_000_000;

/// Plays the jobs on the nodes, from the first arrival on; where it is `exclusive`, each takes whole
/// nodes. Deterministic.
///
/// # Errors
/// A name made here breaks the rule for names, which would be a mistake of this function.
pub fn play(
    nodes: &[Capacity],
    exclusive: bool,
    jobs: &[PlayedJob],
) -> Result<Played, InvalidName> {
    let compute = ComputeName::new("simulated")?;
    let mut sched = Sched::default();
    sched.add_compute(compute.clone());
    sched.set_kind(&compute, exclusive, None);
    let mut played = Played { fates: vec![Fate::default(); jobs.len()], ..Played::default() };
    for (number, capacity) in nodes.iter().enumerate() {
        let node = NodeName::new(&format!("node-{number:07}"))?;
        sched.put_node(&compute, node.clone(), capacity.clone());
        sched.set_ready(&compute, &node, true);
        played.capacity.cpu += u128::from(capacity.cpu);
        played.capacity.memory += u128::from(capacity.memory);
        played.capacity.gpus += capacity.gpus.len() as u128 * 1000;
    }
    let mut arrivals = Vec::with_capacity(jobs.len());
    for (number, job) in (0..).zip(jobs) {
        arrivals.push(Arrival {
            at: job.arrives,
            rank: Rank::new(job.tier, job.priority, job.arrives, SubmitSeq(number)),
            waiting: Waiting {
                job: JobName::new(&format!("job-{number:07}"))?,
                user: job.user.clone(),
                request: job.request.clone(),
                most_ms: job.most_ms,
                not_before: None,
                inputs: Default::default(),
            },
        });
    }
    arrivals.sort_by_key(|arrival| (arrival.at, arrival.rank.seq()));
    let Some(first) = arrivals.first().map(|arrival| arrival.at) else { return Ok(played) };
    let standing = Standing::default();
    let mut forward =
        Forward::new(&sched, &compute, &standing, first, 1, Told(jobs), arrivals.into_iter());
    let bound = (jobs.len() as u64 + nodes.len() as u64).saturating_mul(STEPS_A_JOB);
    let mut holding: BTreeMap<Rank, (Timestamp, Amounts)> = BTreeMap::new();
    while let Some(moment) = forward.next() {
        let over = moment.ended.iter().map(|rank| (rank, true));
        for (rank, ended) in over.chain(moment.made_way.iter().map(|rank| (rank, false))) {
            if let Some((since, amounts)) = holding.remove(rank) {
                let ms = moment.at.millis_since(since).unsigned_abs();
                played.held.add(amounts, ms.into());
            }
            let Some(fate) = played.fates.get_mut(index(*rank)) else { continue };
            if ended {
                fate.ended = Some(moment.at);
                played.makespan_ms = moment.at.millis_since(first).unsigned_abs();
            } else {
                fate.made_way += 1;
            }
        }
        for placed in moment.started {
            let rank = placed.rank;
            holding.insert(rank, (moment.at, Amounts::of(&placed.held)));
            if let Some(fate) = played.fates.get_mut(index(rank)) {
                fate.started = Some(moment.at);
            }
        }
        if forward.work() > bound {
            break;
        }
    }
    Ok(played)
}

impl From<&TraceNode> for Capacity {
    fn from(node: &TraceNode) -> Self {
        let device = GpuDevice { model: node.model.clone(), ..GpuDevice::default() };
        Self {
            cpu: node.cpu,
            memory: node.memory,
            gpus: (0..node.gpus).map(|index| (index, device.clone())).collect(),
            ..Self::default()
        }
    }
}

impl From<&TraceTask> for Demand {
    fn from(task: &TraceTask) -> Self {
        // What is asked of several devices is asked of whole ones.
        let shares = task.gpus == 1 && task.share > 0 && task.share < crate::resource::WHOLE_GPU;
        let models = (task.gpus > 0 && !task.models.is_empty()).then(|| task.models.clone().into());
        Self {
            cpu: task.cpu,
            memory: task.memory,
            gpus: task.gpus.into(),
            gpu_share: if shares { task.share } else { 0 },
            gpu_models: models,
            ..Self::DEFAULT
        }
    }
}
