//! The scheduler rolled forward: what it would decide if jobs came and ended as somebody says.
//!
//! [`Forward`] holds a copy of a [`Sched`] and steps from moment to moment at which something comes
//! or ends. At each, what ended is given back, what came is lined up, and the scheduler itself
//! decides. Nodes stay as they are: those that a cluster may yet add are taken to be absent.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::iter::Peekable;
use std::sync::Arc;

use super::{Budget, Hold, Placement, Rank, Request, Sched, Waiting};
use crate::id::{ComputeName, JobName, NodeName};
use crate::resource::{Demand, Reservation};
use crate::time::Timestamp;

/// A job that is yet to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// When.
    pub at: Timestamp,
    /// Its place in the queue.
    pub rank: Rank,
    /// What it is.
    pub waiting: Waiting,
}

/// How long jobs take. Told by a job's place, which no two jobs share.
pub trait Lengths {
    /// Milliseconds from its start until the job at this place gives its nodes back; `None`: never.
    fn whole(&self, rank: Rank) -> Option<u64>;

    /// Milliseconds until one that holds nodes at the outset gives them back; `None`: never.
    fn rest(&self, rank: Rank) -> Option<u64>;
}

/// A job that holds nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Runs {
    rank: Rank,
    waiting: Waiting,
    nodes: Vec<NodeName>,
    yields_at: Option<Timestamp>,
}

/// What holds the nodes of a compute at the outset. Made once for many ways forward.
#[derive(Clone, Debug, Default)]
pub struct Standing(Vec<Arc<Runs>>);

impl Standing {
    /// What holds nodes of `compute` now.
    pub fn of(sched: &Sched, compute: &ComputeName) -> Self {
        let mut by_rank: BTreeMap<Rank, Runs> = BTreeMap::new();
        let Some(pool) = sched.pool(compute) else { return Self::default() };
        for (node, _, _) in pool.nodes() {
            for (job, hold) in pool.holds(node) {
                let runs = by_rank.entry(hold.rank).or_insert_with(|| Runs {
                    rank: hold.rank,
                    waiting: again(job, hold),
                    nodes: Vec::new(),
                    yields_at: hold.yields_at,
                });
                runs.nodes.push(node.clone());
            }
        }
        let mut all: Vec<Arc<Runs>> = Vec::with_capacity(by_rank.len());
        for mut runs in by_rank.into_values() {
            let members = u32::try_from(runs.nodes.len()).unwrap_or(u32::MAX);
            runs.waiting.request.members = members;
            all.push(Arc::new(runs));
        }
        Self(all)
    }

    /// The places of those jobs, in order.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> {
        self.0.iter().map(|runs| runs.rank)
    }

    /// How many jobs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The job as it would wait if it had to make way. What it asked for is no longer known, so that is
/// what it holds.
fn again(job: &JobName, hold: &Hold) -> Waiting {
    let Reservation { cpu, memory, gpus, gpu_share, disk } = &hold.reservation;
    let gpus = u32::try_from(gpus.len()).unwrap_or(u32::MAX);
    let (cpu, memory, gpu_share, disk) = (*cpu, *memory, *gpu_share, *disk);
    let demand = Demand { cpu, memory, gpus, gpu_share, disk, ..Demand::DEFAULT };
    Waiting {
        job: job.clone(),
        user: hold.user.clone(),
        request: Request::one(demand),
        most_ms: None,
        not_before: None,
        inputs: Arc::default(),
    }
}

/// What happened at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// Those that were over.
    pub ended: Vec<Rank>,
    /// Those that made way for the one their nodes were promised to, and wait again.
    pub made_way: Vec<Rank>,
    /// Those that came.
    pub came: Vec<Rank>,
    /// Those that started.
    pub started: Vec<Placement>,
}

/// A way forward. Yields the moments, in order, until nothing is left that comes or ends.
///
/// Time passes only between moments; the same input gives the same moments on any machine.
pub struct Forward<L, A: Iterator> {
    sched: Sched,
    compute: ComputeName,
    now: Timestamp,
    /// Nothing has been decided yet.
    fresh: bool,
    lengths: L,
    arrivals: Peekable<A>,
    /// Who holds nodes, by number.
    running: Vec<Option<Arc<Runs>>>,
    /// When each of them is over, or (true) makes way, with its number.
    ends: BinaryHeap<Reverse<(Timestamp, bool, u32)>>,
    grain: i64,
    nodes: u64,
    work: u64,
}

/// Placements of one plan, as the daemon makes them.
const ROUND: Budget = Budget { placements: 512 };

/// What a placement costs, in steps; and one more for so many nodes, as its index is larger.
const PLACEMENT: u64 = 4;
const NODES_A_PLACEMENT_STEP: u64 = 1_000;
/// What a plan costs beside its placements, in steps, for each node that it may look at.
const NODES_A_STEP: u64 = 16;
/// Jobs that hold nodes at the outset and are entered, for one step.
const STANDING_A_STEP: u64 = 4;

impl<L: Lengths, A: Iterator<Item = Arrival>> Forward<L, A> {
    /// A way forward from `now`. Arrivals come in order of time; those before `now` come at once.
    ///
    /// Where `grain_ms` is above one, moments lie on a grid of so many milliseconds from `now` and
    /// what happens between two of them happens at the later: coarser, and faster.
    pub fn new(
        sched: &Sched,
        compute: &ComputeName,
        standing: &Standing,
        now: Timestamp,
        grain_ms: u64,
        lengths: L,
        arrivals: A,
    ) -> Self {
        let mut only = Sched::default();
        if let Some(pool) = sched.pools.get(compute) {
            only.pools.insert(compute.clone(), pool.clone());
        }
        let nodes = only.pool(compute).map_or(0, |pool| pool.nodes().count() as u64);
        let mut forward = Self {
            sched: only,
            compute: compute.clone(),
            now,
            fresh: true,
            lengths,
            arrivals: arrivals.peekable(),
            running: Vec::with_capacity(standing.len()),
            ends: BinaryHeap::new(),
            grain: i64::try_from(grain_ms).unwrap_or(i64::MAX).max(1),
            nodes,
            work: standing.len() as u64 / STANDING_A_STEP,
        };
        let mut ends = Vec::with_capacity(standing.len());
        for (number, runs) in (0..).zip(&standing.0) {
            let rest = forward.lengths.rest(runs.rank);
            let over = forward.over_at(rest, runs.yields_at);
            ends.extend(over.map(|(at, makes_way)| Reverse((at, makes_way, number))));
            forward.running.push(Some(runs.clone()));
        }
        forward.ends = BinaryHeap::from(ends);
        forward
    }

    /// Steps made so far: one for each event, some for each placement and each plan. What a bound
    /// counts, as core knows no clock.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// The moment that it has come to.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The scheduler as it stands now.
    pub fn sched(&self) -> &Sched {
        &self.sched
    }

    /// When one that has `left` milliseconds from now gives its nodes back, and whether it makes way
    /// then. One that ends at the moment at which it would make way has ended.
    fn over_at(
        &self,
        left: Option<u64>,
        yields_at: Option<Timestamp>,
    ) -> Option<(Timestamp, bool)> {
        let left = left.map(|ms| self.now.plus_millis(i64::try_from(ms).unwrap_or(i64::MAX)));
        match (left, yields_at) {
            (Some(end), Some(yields)) if end > yields => Some((yields, true)),
            (Some(end), _) => Some((end, false)),
            (None, Some(yields)) => Some((yields, true)),
            (None, None) => None,
        }
    }

    /// When something happens next, on the grid.
    fn next_at(&mut self) -> Option<Timestamp> {
        let end = self.ends.peek().map(|Reverse((at, ..))| *at);
        let arrival = self.arrivals.peek().map(|arrival| arrival.at);
        let woken = self.sched.next_wake();
        let next = [end, arrival, woken].into_iter().flatten().min()?;
        let after = next.millis_since(self.now);
        let over = after % self.grain;
        Some(self.now.plus_millis(if over == 0 {
            after
        } else {
            (after - over).saturating_add(self.grain)
        }))
    }

    /// Gives back what those hold that are over or make way by now.
    fn end(&mut self, moment: &mut Moment) {
        while let Some(Reverse((at, makes_way, number))) = self.ends.peek().copied()
            && at <= self.now
        {
            self.ends.pop();
            let over = self.running.get_mut(number as usize).and_then(Option::take);
            let Some(runs) = over else { continue };
            self.work += 1;
            for node in &runs.nodes {
                self.sched.release(&self.compute, node, &runs.waiting.job, self.now);
            }
            if makes_way {
                self.sched.enqueue(&self.compute, runs.rank, runs.waiting.clone());
                moment.made_way.push(runs.rank);
            } else {
                moment.ended.push(runs.rank);
            }
        }
    }

    /// Lines up those that have come by now.
    fn arrive(&mut self, moment: &mut Moment) {
        while let Some(arrival) = self.arrivals.next_if(|arrival| arrival.at <= self.now) {
            self.work += 1;
            moment.came.push(arrival.rank);
            self.sched.enqueue(&self.compute, arrival.rank, arrival.waiting);
        }
    }

    /// Starts what can start, in rounds as the daemon makes them.
    fn start(&mut self, moment: &mut Moment) {
        self.sched.wake(self.now);
        loop {
            let plan = self.sched.decide(self.now, ROUND);
            self.work += 1 + self.nodes / NODES_A_STEP;
            let mut placed = 0;
            for placement in plan.placements() {
                placed += 1;
                self.runs(placement);
                moment.started.push(placement.clone());
            }
            let mut freed = false;
            for eviction in plan.evictions() {
                freed |= self.make_way(&eviction.job, moment);
            }
            self.work += placed * (PLACEMENT + self.nodes / NODES_A_PLACEMENT_STEP);
            if !freed && (!plan.goes_on() || placed == 0) {
                break;
            }
        }
    }

    /// A job makes way for one of a higher tier, at once, and waits again. Whether it held anything.
    fn make_way(&mut self, job: &JobName, moment: &mut Moment) -> bool {
        let found = self
            .running
            .iter_mut()
            .find(|runs| runs.as_ref().is_some_and(|runs| &runs.waiting.job == job));
        let Some(runs) = found.and_then(Option::take) else { return false };
        for node in &runs.nodes {
            self.sched.release(&self.compute, node, job, self.now);
        }
        self.sched.enqueue(&self.compute, runs.rank, runs.waiting.clone());
        moment.made_way.push(runs.rank);
        true
    }

    /// Notes one that has just started.
    fn runs(&mut self, placement: &Placement) {
        let length = self.lengths.whole(placement.rank);
        let Ok(number) = u32::try_from(self.running.len()) else { return };
        let pool = self.sched.pool(&self.compute);
        let hold = placement.nodes.first().zip(pool).and_then(|(node, pool)| {
            pool.holds(node).find(|(job, _)| **job == placement.job).map(|(_, hold)| hold)
        });
        let Some(hold) = hold else { return };
        let most_ms =
            hold.until.map(|until| until.millis_since(self.now)).and_then(|ms| ms.try_into().ok());
        let waiting = Waiting {
            job: placement.job.clone(),
            user: hold.user.clone(),
            request: placement.request.clone(),
            most_ms,
            not_before: None,
            inputs: Arc::default(),
        };
        let (rank, nodes, yields_at) =
            (placement.rank, placement.nodes.clone(), placement.yields_at);
        self.running.push(Some(Arc::new(Runs { rank, waiting, nodes, yields_at })));
        let over = self.over_at(length, placement.yields_at);
        self.ends.extend(over.map(|(at, makes_way)| Reverse((at, makes_way, number))));
    }
}

impl<L: Lengths, A: Iterator<Item = Arrival>> Iterator for Forward<L, A> {
    type Item = Moment;

    fn next(&mut self) -> Option<Moment> {
        // The first moment is now: something may be about to start.
        if !std::mem::take(&mut self.fresh) {
            self.now = self.next_at()?;
        }
        let mut moment = Moment {
            at: self.now,
            ended: Vec::new(),
            made_way: Vec::new(),
            came: Vec::new(),
            started: Vec::new(),
        };
        self.end(&mut moment);
        self.arrive(&mut moment);
        self.start(&mut moment);
        Some(moment)
    }
}
