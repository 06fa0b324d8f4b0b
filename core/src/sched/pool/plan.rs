//! What starts next: the first in line, and behind it whoever does not delay it.
//!
//! When the first in line has to wait, nodes are promised to it, and those behind it start only where
//! they do not make it start later (EASY backfilling: Lifka, "The ANL/IBM SP Scheduling System",
//! JSSPP 1995).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use imbl::OrdSet;

use super::line::{Kind, Line};
use super::{Pool, WaitReason, Waiting};
use crate::id::{ComputeName, NodeName, Principal};
use crate::resource::{Capacity, Demand};
use crate::sched::{Eviction, Placement, Promise, Rank, Request};
use crate::time::Timestamp;

/// What was decided for one compute.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What starts, in order.
    pub placements: Vec<Placement>,
    /// Why the first in line waits.
    pub blocked: Option<WaitReason>,
    /// The nodes that are kept for it.
    pub promise: Option<Promise>,
    /// Who makes way for it.
    pub evictions: Vec<Eviction>,
}

/// So many classes behind the first in line are looked at for one that can start.
const LOOKED_AT: usize = 1024;
/// So many of them that have no room are tried; those that ask for no less are not tried again.
const TRIED: usize = 32;
/// Placements at most when it is tried how many nodes a queue needs: a queue that needs more is
/// looked at again when those nodes are there.
const TRIAL: usize = 4_096;

impl Pool {
    /// Decides what starts now, `budget` placements at most, and commits it.
    pub(in crate::sched) fn decide(
        &mut self,
        compute: &ComputeName,
        now: Timestamp,
        budget: usize,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        self.wake(now);
        if self.closed.is_none() {
            self.start_some(compute, now, budget, &mut outcome);
        }
        self.learn_outcome(&outcome, now);
        outcome
    }

    /// What [`Pool::decide`] would decide. The copy shares its structure.
    pub(in crate::sched) fn plan(
        &self,
        compute: &ComputeName,
        now: Timestamp,
        budget: usize,
    ) -> Outcome {
        self.clone().decide(compute, now, budget)
    }

    fn start_some(
        &mut self,
        compute: &ComputeName,
        now: Timestamp,
        budget: usize,
        outcome: &mut Outcome,
    ) {
        while let Some((rank, waiting)) = self.head() {
            if outcome.placements.len() == budget {
                outcome.blocked = Some(WaitReason::NextRound);
                return;
            }
            let waiting = waiting.clone();
            let started = self.best_nodes(&waiting.request, &waiting.inputs).is_some_and(|nodes| {
                // Whoever was promised one of them gets another promise.
                let promised = self.promise.as_ref().filter(|promise| promise.rank != rank);
                self.freed |= promised.is_some_and(|p| nodes.iter().any(|n| p.nodes.contains(n)));
                self.start(compute, rank, &waiting, nodes, None, now, outcome)
            });
            if !started {
                let placed = outcome.placements.len();
                self.pass_by(compute, rank, &waiting, now, budget, outcome);
                // What its user was given in its stead may have set it behind somebody who need not wait.
                let is_cut_short = matches!(outcome.blocked, Some(WaitReason::NextRound));
                if is_cut_short
                    || outcome.placements.len() == placed
                    || !outcome.evictions.is_empty()
                {
                    return;
                }
                self.promise = outcome.promise.clone();
                if self.head().is_none_or(|(first, _)| first == rank) {
                    return;
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a placement's parts, and where it goes")]
    fn start(
        &mut self,
        compute: &ComputeName,
        rank: Rank,
        waiting: &Waiting,
        nodes: Vec<NodeName>,
        yields_at: Option<Timestamp>,
        now: Timestamp,
        outcome: &mut Outcome,
    ) -> bool {
        let (compute, job, request) =
            (compute.clone(), waiting.job.clone(), waiting.request.clone());
        let held = Vec::new();
        let mut placement = Placement { compute, rank, job, nodes, request, held, yields_at };
        let Some(held) = self.commit(&placement, now) else { return false };
        placement.held = held;
        outcome.placements.push(placement);
        true
    }

    /// The first in line waits: promises it nodes, asks others to make way for it if that is due,
    /// and starts those behind it that do not delay it.
    fn pass_by(
        &mut self,
        compute: &ComputeName,
        head: Rank,
        waiting: &Waiting,
        now: Timestamp,
        budget: usize,
        outcome: &mut Outcome,
    ) {
        // What was kept for another is there for all.
        self.freed |= self.promise.as_ref().is_some_and(|promise| promise.rank != head);
        let known = self.promise.clone().filter(|promise| promise.rank == head && !self.freed);
        let promise = match known {
            Some(promise) => {
                outcome.blocked = self.blocked.clone();
                promise
            }
            None => {
                outcome.blocked = Some(self.shortage(&waiting.request));
                let Some(promise) = self.promise_to(head, &waiting.request, now) else { return };
                let (promise, evictions) = self.make_room(promise, waiting, now);
                outcome.evictions = evictions;
                promise
            }
        };
        if let Some(reason) = self.making_room(&promise, &outcome.evictions) {
            outcome.blocked = Some(reason);
        }
        outcome.promise = Some(promise.clone());
        for node in &promise.nodes {
            self.unindex(node);
            self.set_aside.insert(node.clone());
        }
        self.start_behind(compute, (head, waiting), &promise, now, budget, outcome);
        self.set_aside = OrdSet::new();
        promise.nodes.iter().for_each(|node| self.index(node));
    }

    /// Starts those behind the first in line that do not delay it. The nodes promised to it are set
    /// aside.
    fn start_behind(
        &mut self,
        compute: &ComputeName,
        (head, waiting): (Rank, &Waiting),
        promise: &Promise,
        now: Timestamp,
        budget: usize,
        outcome: &mut Outcome,
    ) {
        let mut behind = Behind::new(self, head);
        let (mut looked_at, mut tried) = (0, 0);
        let mut too_much: Vec<Request> = Vec::new();
        while let Some((rank, user, kind)) = behind.next(self) {
            let request = &kind.request;
            looked_at += 1;
            if looked_at > LOOKED_AT || tried > TRIED {
                return;
            }
            let Some(known) = self.users.get(&user) else { continue };
            let Some(candidate) = self.queue.get(&rank).cloned() else { continue };
            // What is left of the quotas of the first in line's user, and of the user's groups, is the first in
            // line's.
            let first = Some((&waiting.user, &waiting.request));
            if self.barred(&user, known, request, first).is_some() {
                continue;
            }
            let hopeless = too_much.iter().any(|much| asks_no_less(request, much));
            let elsewhere = match hopeless {
                true => None,
                false => self.best_nodes(request, &candidate.inputs),
            };
            let found = match elsewhere {
                Some(nodes) => Some((nodes, None)),
                None => {
                    if !hopeless {
                        tried += 1;
                        too_much.push(request.clone());
                    }
                    self.lend(promise, &waiting.request.demand, &candidate, now)
                }
            };
            let Some((nodes, yields_at)) = found else { continue };
            if outcome.placements.len() == budget {
                outcome.blocked = Some(WaitReason::NextRound);
                return;
            }
            if self.start(compute, rank, &candidate, nodes, yields_at, now, outcome) {
                behind.again(self, user, kind);
            }
        }
    }

    /// Of the nodes promised to another, one that this job may have meanwhile: because it is away in
    /// time, and then it has to be, or because there is enough for both.
    fn lend(
        &self,
        promise: &Promise,
        promised: &Demand,
        waiting: &Waiting,
        now: Timestamp,
    ) -> Option<(Vec<NodeName>, Option<Timestamp>)> {
        let at = promise.at?;
        let demand = &waiting.request.demand;
        if waiting.request.members > 1 {
            return None;
        }
        let ends = waiting.most_ms.and_then(|most| i64::try_from(most).ok());
        let in_time = ends.is_some_and(|most| now.plus_millis(most) <= at);
        let (node, yields_at) = promise.nodes.iter().take(TRIED).find_map(|node| {
            let slot = self.nodes.get(node)?;
            if !self.has_room(&slot.ledger, demand) {
                None
            } else if in_time {
                Some((node.clone(), Some(at)))
            } else if self.fits_both(slot, promise, (promised, demand), now) {
                Some((node.clone(), None))
            } else {
                None
            }
        })?;
        Some((vec![node], yields_at))
    }

    /// How many nodes like the template the queue needs beside those that are there, at most
    /// `most`: as many as the scheduler itself would use if there were so many.
    pub(in crate::sched) fn nodes_wanted(&self, now: Timestamp, most: u32) -> u32 {
        let Some(template) = self.template.as_ref().filter(|_| self.closed.is_none()) else {
            return 0;
        };
        // The compute's name is of no account in a trial.
        let Ok(compute) = ComputeName::new("trial") else { return 0 };
        let mut trial = self.clone();
        // What is there is used first, also where a node to come would fit more tightly.
        trial.decide(&compute, now, TRIAL);
        for number in 0..most {
            let node = NodeName::to_come(number);
            // What it can do with containers is as little known as what the others here can.
            let containers = self.best_runtime();
            trial.put_node(node.clone(), Capacity { containers, ..template.clone() });
            trial.set_ready(&node, true);
        }
        let placements = trial.decide(&compute, now, TRIAL).placements;
        let first = NodeName::to_come(0);
        let used: BTreeSet<&NodeName> = placements
            .iter()
            .flat_map(|placed| &placed.nodes)
            .filter(|node| **node >= first)
            .collect();
        u32::try_from(used.len()).unwrap_or(most)
    }
}

/// Whether one asks for as much as the other in every respect, so that it has no room where the
/// other has none.
fn asks_no_less(one: &Request, other: &Request) -> bool {
    let (a, b) = (&one.demand, &other.demand);
    let gpus = if b.gpu_share > 0 {
        a.gpus > 0 && a.of_each_gpu() >= b.gpu_share
    } else {
        a.gpu_share == 0 && a.gpus >= b.gpus
    };
    one.members >= other.members
        && a.cpu >= b.cpu
        && a.memory >= b.memory
        && a.disk >= b.disk
        && (b.gpus == 0 || gpus)
        && (b.gpu_models.is_none() || a.gpu_models == b.gpu_models)
        && a.gpu_memory >= b.gpu_memory
        && (b.node_labels.is_none() || a.node_labels == b.node_labels)
        && a.containers.least() >= b.containers.least()
}

/// A job behind the first in line: its place among all users' jobs, its own, and whose it is.
type Candidate = Reverse<(Rank, Rank, usize, Kind)>;

/// The jobs behind the first in line: the first of each class, in order.
struct Behind {
    /// The lines as they were, of each user.
    lines: Vec<(Principal, Line)>,
    /// The next of each line, and those that follow one that was started.
    next: BinaryHeap<(Candidate, bool)>,
    head: Rank,
}

impl Behind {
    /// All of them if there may be more room than there was; else those that got in line since.
    fn new(pool: &Pool, head: Rank) -> Self {
        let mut behind = Self { lines: Vec::new(), next: BinaryHeap::new(), head };
        if pool.freed {
            for (user, known) in pool.users.iter().filter(|(_, known)| known.first.is_some()) {
                behind.lines.push((user.clone(), known.line.clone()));
            }
            for user in 0..behind.lines.len() {
                behind.follow(pool, user, None);
            }
        } else {
            for rank in pool.newcomers.iter().take(LOOKED_AT) {
                let Some(waiting) = pool.queue.get(rank) else { continue };
                let Some(known) = pool.users.get(&waiting.user) else { continue };
                let kind = Kind::of(waiting);
                let first = known.line.first_of(&kind) == Some(*rank);
                if first && known.line.is_startable(&kind) == Some(true) {
                    behind.again(pool, waiting.user.clone(), kind);
                }
            }
        }
        behind
    }

    /// The next of a user's line after `rank`.
    fn follow(&mut self, pool: &Pool, user: usize, rank: Option<Rank>) {
        let Some((name, line)) = self.lines.get(user) else { return };
        let Some((rank, kind)) = line.head_after(rank) else { return };
        let back = pool.users.get(name).map_or(0, |known| known.set_back);
        let candidate = Reverse((rank.later_by(back), rank, user, kind.clone()));
        self.next.push((candidate, true));
    }

    /// The next of the same kind as one that was just started.
    fn again(&mut self, pool: &Pool, user: Principal, kind: Kind) {
        let Some(known) = pool.users.get(&user) else { return };
        let Some(rank) = known.line.first_of(&kind) else { return };
        let number = self.lines.iter().position(|(name, _)| *name == user).unwrap_or_else(|| {
            self.lines.push((user, Line::default()));
            self.lines.len() - 1
        });
        self.next.push((Reverse((rank.later_by(known.set_back), rank, number, kind)), false));
    }

    fn next(&mut self, pool: &Pool) -> Option<(Rank, Principal, Kind)> {
        loop {
            let (Reverse((place, rank, number, kind)), of_line) = self.next.pop()?;
            let user = self.lines.get(number)?.0.clone();
            let back = pool.users.get(&user).map_or(0, |known| known.set_back);
            // What its user has been given meanwhile moves it back.
            if place < rank.later_by(back) {
                self.next.push((Reverse((rank.later_by(back), rank, number, kind)), of_line));
                continue;
            }
            if of_line {
                self.follow(pool, number, Some(rank));
            }
            if rank != self.head {
                return Some((rank, user, kind));
            }
        }
    }
}
