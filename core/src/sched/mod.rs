//! Who runs where, and why the others wait.
//!
//! [`Sched`] is a value: events update it, a clone shares its structure, and [`plan`] reads it.
//! The same value gives the same plan, on any machine. Each compute has a line of jobs for each user,
//! ordered by [`Rank`]: tier, priority, submission. The lines are merged by fair share. The first in
//! line that does not fit is promised nodes, and those behind it start only if that does not delay it.

mod explain;
pub mod forecast;
pub mod forward;
mod locality;
pub mod pack;
mod pool;
mod quota;
mod rank;
mod reason;
mod request;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use imbl::OrdMap;

pub use explain::{Asked, Change, Explanation, Foreseen, explain, foresee};
pub use locality::{DataPlace, Holders, INPUTS as HELD_INPUTS, LEAST as LEAST_HELD};
pub use pool::{Closed, Outcome, Pool, Supply};
pub use quota::{Limits, QuotaOf, Quotas};
pub use rank::Rank;
pub use reason::{COUNTED, WaitReason};
pub use request::{BackOff, Eviction, Hold, Placement, Promise, Request, Waiting, Yields};

use crate::access::People;
use crate::compute::Access;
use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::resource::{Capacity, Demand, MiB, Reservation};
use crate::time::Timestamp;

/// Everything a placement depends on, indexed.
#[derive(Clone, Default, Debug)]
pub struct Sched {
    pools: OrdMap<ComputeName, Pool>,
    /// Who is in which group.
    people: Arc<People>,
}

/// How much one call of [`plan`] may decide, so that a burst does not hold up the reactor.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Placements at most.
    pub placements: usize,
}

impl Sched {
    /// Adds a compute without nodes. Known ones are left as they are.
    pub fn add_compute(&mut self, name: ComputeName) {
        self.pool_mut(&name);
    }

    /// The pool of a compute.
    pub fn pool(&self, compute: &ComputeName) -> Option<&Pool> {
        self.pools.get(compute)
    }

    fn pool_mut(&mut self, compute: &ComputeName) -> &mut Pool {
        let people = &self.people;
        self.pools.entry(compute.clone()).or_insert_with(|| Pool::of(people.clone()))
    }

    /// Adds a node or replaces its capacity. It gets nothing until [`Sched::set_ready`].
    pub fn put_node(&mut self, compute: &ComputeName, node: NodeName, capacity: Capacity) {
        self.pool_mut(compute).put_node(node, capacity);
    }

    /// Takes a node away, with what is reserved on it.
    pub fn remove_node(&mut self, compute: &ComputeName, node: &NodeName) {
        self.pool_mut(compute).remove_node(node);
    }

    /// Whether the node may get jobs.
    pub fn set_ready(&mut self, compute: &ComputeName, node: &NodeName, ready: bool) {
        self.pool_mut(compute).set_ready(node, ready);
    }

    /// Whether an admin keeps jobs away from the node.
    pub fn set_drained(&mut self, compute: &ComputeName, node: &NodeName, drained: bool) {
        self.pool_mut(compute).set_drained(node, drained);
    }

    /// Forgets a compute without nodes and jobs.
    pub fn remove_compute(&mut self, compute: &ComputeName) {
        self.pools.remove(compute);
    }

    /// How jobs are placed on a compute, and what a node offers that may yet be added to it.
    pub fn set_kind(&mut self, compute: &ComputeName, exclusive: bool, template: Option<Capacity>) {
        self.pool_mut(compute).set_kind(exclusive, template);
    }

    /// What those who wait may hope for from whoever adds nodes.
    pub fn set_supply(&mut self, compute: &ComputeName, supply: Supply) {
        self.pool_mut(compute).set_supply(supply);
    }

    /// Whether an admin keeps jobs away from the whole compute.
    pub fn set_closed(&mut self, compute: &ComputeName, closed: Option<Closed>) {
        self.pool_mut(compute).set_closed(closed);
    }

    /// How many nodes the queue needs beside those that are there, at most `most`; zero if nobody
    /// adds nodes.
    pub fn nodes_wanted(&self, compute: &ComputeName, now: Timestamp, most: u32) -> u32 {
        self.pools.get(compute).map_or(0, |pool| pool.nodes_wanted(now, most))
    }

    /// Whether a job is in line that the nodes could hold, be they there or yet to come, of which there
    /// are `most` in all.
    pub fn has_work(&self, compute: &ComputeName, most: u32) -> bool {
        self.pools.get(compute).is_some_and(|pool| pool.has_work(most))
    }

    /// Whether the node is on its way out.
    pub fn set_leaving(&mut self, compute: &ComputeName, node: &NodeName, leaving: bool) {
        self.pool_mut(compute).set_leaving(node, leaving);
    }

    /// Why the node is not fit for jobs, if it is not.
    pub fn set_unfit(&mut self, compute: &ComputeName, node: &NodeName, unfit: Option<String>) {
        self.pool_mut(compute).set_unfit(node, unfit);
    }

    /// What a node's cache holds of which inputs, in bytes: all of it, in the place of what was told before.
    pub fn set_held(
        &mut self,
        compute: &ComputeName,
        node: &NodeName,
        held: impl IntoIterator<Item = (DataPlace, u64)>,
    ) {
        self.pool_mut(compute).set_held(node, held);
    }

    /// Puts a job in the queue, at its place.
    pub fn enqueue(&mut self, compute: &ComputeName, rank: Rank, waiting: Waiting) {
        self.pool_mut(compute).enqueue(rank, waiting);
    }

    /// Puts those whose back-off is over back in line, at their places.
    pub fn wake(&mut self, now: Timestamp) {
        let due: Vec<ComputeName> = self
            .pools
            .iter()
            .filter(|(_, pool)| pool.is_due(now))
            .map(|(compute, _)| compute.clone())
            .collect();
        for compute in due {
            self.pool_mut(&compute).wake(now);
        }
    }

    /// Takes a job out of the queue. Nothing happens if it is not there.
    pub fn dequeue(&mut self, compute: &ComputeName, rank: Rank) {
        self.pool_mut(compute).dequeue(rank);
    }

    /// Enters what a job holds of a node, as found after a restart.
    pub fn hold(&mut self, compute: &ComputeName, node: &NodeName, job: JobName, hold: Hold) {
        self.pool_mut(compute).hold(node, job, hold);
    }

    /// Gives back what a job holds of a node.
    pub fn release(
        &mut self,
        compute: &ComputeName,
        node: &NodeName,
        job: &JobName,
        now: Timestamp,
    ) {
        self.pool_mut(compute).release(node, job, now);
    }

    /// A job is on its way out, asked to stop or storing what it leaves: what it holds of the node is
    /// about to be free.
    pub fn set_going(
        &mut self,
        compute: &ComputeName,
        node: &NodeName,
        job: &JobName,
        now: Timestamp,
    ) {
        self.pool_mut(compute).set_going(node, job, now);
    }

    /// Who may hold how much of a compute.
    pub fn set_quotas(&mut self, compute: &ComputeName, quotas: Quotas) {
        self.pool_mut(compute).set_quotas(quotas);
    }

    /// Who may use a compute.
    pub fn set_access(&mut self, compute: &ComputeName, access: Access) {
        self.pool_mut(compute).set_access(access);
    }

    /// Who is in which group, and may use any compute. For jobs that run and wait this counts from now on, whatever
    /// was so when they were submitted.
    pub fn set_people(&mut self, people: People) {
        self.people = Arc::new(people);
        let computes: Vec<ComputeName> = self.pools.keys().cloned().collect();
        for compute in computes {
            let people = self.people.clone();
            self.pool_mut(&compute).set_people(people);
        }
    }

    /// Who is in which group.
    pub fn people(&self) -> &People {
        &self.people
    }

    /// Enters what a user held of a compute in the past, which counts for fair share. The compute's
    /// nodes are known by then.
    pub fn used(
        &mut self,
        compute: &ComputeName,
        user: &Principal,
        request: &Request,
        from: Timestamp,
        to: Timestamp,
    ) {
        self.pool_mut(compute).used(user, request, from, to);
    }

    /// Commits a placement: checks once more that the nodes are ready and have room, reserves on all
    /// of them, and takes the job from the queue. What it holds, in the order of its nodes; `None`
    /// if something has changed since it was planned, and then nothing is held.
    pub fn commit(&mut self, placement: &Placement, now: Timestamp) -> Option<Vec<Reservation>> {
        self.pool_mut(&placement.compute).commit(placement, now)
    }

    /// Decides what starts now and commits it, `budget` placements at most; keeps what it finds out
    /// about those that wait.
    pub fn decide(&mut self, now: Timestamp, budget: Budget) -> Plan {
        let due: Vec<ComputeName> = self
            .pools
            .iter()
            .filter(|(_, pool)| !pool.is_settled(now))
            .map(|(compute, _)| compute.clone())
            .collect();
        let (mut plan, mut left) = (Plan::default(), budget.placements);
        for compute in due {
            let outcome = self.pool_mut(&compute).decide(&compute, now, left);
            left = left.saturating_sub(outcome.placements.len());
            plan.outcomes.push((compute, outcome));
        }
        plan
    }

    /// Keeps what a plan found out about those that wait.
    pub fn explain_with(&mut self, plan: &Plan, now: Timestamp) {
        for (compute, outcome) in &plan.outcomes {
            self.pool_mut(compute).learn_outcome(outcome, now);
        }
    }

    /// Why a waiting job waits; `None` if it is not in the queue.
    pub fn reason(&self, compute: &ComputeName, rank: Rank) -> Option<WaitReason> {
        self.pools.get(compute)?.reason(rank)
    }

    /// The earliest instant at which a job held back by its back-off may start.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.pools.values().filter_map(Pool::next_wake).min()
    }

    /// Every job in a queue with its compute, in order.
    pub fn waiting(&self) -> impl Iterator<Item = (&ComputeName, Rank, &JobName)> {
        self.pools.iter().flat_map(|(compute, pool)| {
            pool.waiting().map(move |(rank, waiting)| (compute, rank, &waiting.job))
        })
    }

    /// Why no node of the compute could ever hold `demand`, or `None` if one could, or if no node
    /// is known yet.
    pub fn never_fits(&self, compute: &ComputeName, demand: &Demand) -> Option<Capacity> {
        self.pools.get(compute)?.never_fits(demand)
    }

    /// The most memory, in MiB, that each member of a job could have on the nodes that could hold it
    /// otherwise; `None` if there are too few of them.
    pub fn most_memory(&self, compute: &ComputeName, request: &Request) -> Option<MiB> {
        self.pools.get(compute)?.most_memory(request)
    }
}

/// What to do next, for every compute that was looked at.
#[derive(Clone, Default, Debug)]
pub struct Plan {
    /// What starts and why the first in line of each does not.
    pub outcomes: Vec<(ComputeName, Outcome)>,
}

impl Plan {
    /// To be committed in this order.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.outcomes.iter().flat_map(|(_, outcome)| &outcome.placements)
    }

    /// Who makes way for whom.
    pub fn evictions(&self) -> impl Iterator<Item = &Eviction> {
        self.outcomes.iter().flat_map(|(_, outcome)| &outcome.evictions)
    }

    /// Whether more could be placed than the budget allowed.
    pub fn goes_on(&self) -> bool {
        self.outcomes.iter().any(|(_, o)| matches!(o.blocked, Some(WaitReason::NextRound)))
    }
}

/// Decides what [`Sched::decide`] would decide, and changes nothing.
pub fn plan(sched: &Sched, now: Timestamp, budget: Budget) -> Plan {
    let mut plan = Plan::default();
    let mut left = budget.placements;
    for (compute, pool) in &sched.pools {
        if pool.is_settled(now) {
            continue;
        }
        let outcome = pool.plan(compute, now, left);
        left = left.saturating_sub(outcome.placements.len());
        plan.outcomes.push((compute.clone(), outcome));
    }
    plan
}
