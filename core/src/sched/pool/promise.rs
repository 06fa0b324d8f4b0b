//! The nodes that the first in line gets, when, and who makes way for it.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::nodes::Slot;
use super::{Pool, WaitReason, Waiting};
use crate::id::{JobName, NodeName};
use crate::resource::{Demand, Ledger};
use crate::sched::{Eviction, Hold, Promise, Rank, Request, Yields};
use crate::spec::JobTier;
use crate::time::Timestamp;

/// So many nodes are looked at, those with the most CPU free first. A promise need not be the
/// earliest that could be made; it has to be kept.
const LOOKED_AT: usize = 512;
/// In so many milliseconds a job that was asked to stop is taken to be gone.
const STOPS_MS: i64 = 30_000;
/// Nobody makes way for a job that starts anyway within so many milliseconds.
const PATIENCE_MS: i64 = 30_000;

/// When a node has room: at a moment, or when so many jobs have ended of which nobody can say when
/// they do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Room {
    At(Timestamp),
    After(usize),
}

/// What it costs to make room on a node now; the least is best.
type Cost = (Option<JobTier>, usize, i64);

impl Pool {
    /// Nodes for the first in line: those that have room for a member first.
    pub(super) fn promise_to(
        &self,
        rank: Rank,
        request: &Request,
        now: Timestamp,
    ) -> Option<Promise> {
        let place = self.place_of(rank)?;
        let members = request.members as usize;
        let mut found: Vec<(Room, &NodeName)> = self
            .candidates(&request.demand, members, |_| true)
            .filter_map(|(node, slot)| {
                Some((self.room(slot, &request.demand, rank.tier(), now)?, node))
            })
            .collect();
        if found.len() < members {
            return None;
        }
        found.sort_unstable();
        found.truncate(members);
        let at = match found.last()? {
            (Room::At(at), _) => Some(*at),
            (Room::After(_), _) => None,
        };
        let nodes = found.into_iter().map(|(_, node)| node.clone()).collect();
        Some(Promise { rank, place, nodes, at })
    }

    fn candidates<'a>(
        &'a self,
        demand: &'a Demand,
        members: usize,
        may: impl Fn(&Slot) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a NodeName, &'a Slot)> {
        self.by_free
            .iter()
            .rev()
            .filter_map(|(_, node)| self.nodes.get(node).map(|slot| (node, slot)))
            .filter(move |(_, slot)| slot.ledger.capacity().could_hold(demand) && may(slot))
            .take(LOOKED_AT.max(members.saturating_mul(4)))
    }

    /// When there is room on a node, if nothing else comes to it.
    fn room(&self, slot: &Slot, demand: &Demand, tier: JobTier, now: Timestamp) -> Option<Room> {
        if self.has_room(&slot.ledger, demand) {
            return Some(Room::At(now));
        }
        let mut ledger = slot.ledger.clone();
        let mut holds: Vec<(Room, &Hold)> =
            slot.holds.values().map(|h| (ends(h, tier, now), h)).collect();
        holds.sort_by_key(|(ends, hold)| (*ends, hold.since, hold.rank));
        let mut unknown = 0;
        for (ends, hold) in holds {
            ledger.release(&hold.reservation);
            unknown += usize::from(matches!(ends, Room::After(_)));
            if self.has_room(&ledger, demand) {
                return Some(if unknown > 0 { Room::After(unknown) } else { ends });
            }
        }
        None
    }

    /// Whether the one to whom the node is promised has room at its moment, beside one more job that
    /// may still be there.
    pub(super) fn fits_both(
        &self,
        slot: &Slot,
        promise: &Promise,
        (promised, more): (&Demand, &Demand),
        now: Timestamp,
    ) -> bool {
        let Some(at) = promise.at else { return false };
        let mut ledger = slot.ledger.clone();
        for hold in slot.holds.values() {
            if matches!(ends(hold, promise.rank.tier(), now), Room::At(end) if end <= at) {
                ledger.release(&hold.reservation);
            }
        }
        !self.exclusive && ledger.reserve(more).is_ok() && self.has_room(&ledger, promised)
    }

    /// Who is asked to make way for the first in line now: those that were let ahead of it and are
    /// late, and those of lower tiers unless it starts soon without. The promise is then of their
    /// nodes.
    pub(super) fn make_room(
        &self,
        promise: Promise,
        waiting: &Waiting,
        now: Timestamp,
    ) -> (Promise, Vec<Eviction>) {
        let for_job = waiting.job.clone();
        let eviction = |job: &JobName, why| {
            let (job, for_job) = (job.clone(), for_job.clone());
            Eviction { job, for_job, why }
        };
        // While nobody can say when there is room beside them, their going would help nobody.
        let late = |hold: &Hold| {
            promise.at.is_some()
                && hold.going.is_none()
                && hold.yields_at.is_some_and(|at| at <= now)
                && hold.rank.tier() <= promise.rank.tier()
        };
        let slots = promise.nodes.iter().filter_map(|node| self.nodes.get(node));
        let late: BTreeSet<&JobName> = slots
            .flat_map(|slot| slot.holds.iter().filter(|(_, hold)| late(hold)))
            .map(|(job, _)| job)
            .collect();
        let late: Vec<Eviction> = late.into_iter().map(|job| eviction(job, Yields::Late)).collect();
        let soon = promise.at.is_some_and(|at| at <= now.plus_millis(PATIENCE_MS));
        let tier = promise.rank.tier();
        let lower = self.tiers.iter().any(|(other, count)| *other < tier && *count > 0);
        if !late.is_empty() || soon || !lower {
            return (promise, late);
        }
        let Some((nodes, victims)) = self.victims(promise.rank, &waiting.request, now) else {
            return (promise, Vec::new());
        };
        let evictions = victims.iter().map(|job| eviction(job, Yields::Tier(tier))).collect();
        let at = Some(now.plus_millis(STOPS_MS));
        (Promise { nodes, at, ..promise }, evictions)
    }

    /// The nodes on which the least has to make way, and who that is.
    fn victims(
        &self,
        rank: Rank,
        request: &Request,
        now: Timestamp,
    ) -> Option<(Vec<NodeName>, BTreeSet<JobName>)> {
        let members = request.members as usize;
        let mut found: Vec<(Cost, &NodeName, Vec<&JobName>)> = self
            .candidates(&request.demand, members, |slot| {
                let lower = |hold: &Hold| hold.rank.tier() < rank.tier();
                slot.holds.values().any(lower) || self.has_room(&slot.ledger, &request.demand)
            })
            .filter_map(|(node, slot)| {
                let (cost, victims) = self.cost_of_room(slot, rank.tier(), &request.demand, now)?;
                Some((cost, node, victims))
            })
            .collect();
        if found.len() < members {
            return None;
        }
        found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        found.truncate(members);
        let victims = found.iter().flat_map(|(_, _, jobs)| jobs.iter().copied().cloned()).collect();
        Some((found.into_iter().map(|(_, node, _)| node.clone()).collect(), victims))
    }

    /// The jobs of tiers below `tier` that have to go so that a node has room: the lowest tiers
    /// first, and of a tier the youngest first, which lose the least.
    fn cost_of_room<'a>(
        &self,
        slot: &'a Slot,
        tier: JobTier,
        demand: &Demand,
        now: Timestamp,
    ) -> Option<(Cost, Vec<&'a JobName>)> {
        let mut ledger = slot.ledger.clone();
        // Those that do not go although they were asked are left out: another has to.
        let goes = |since: Timestamp| since.plus_millis(STOPS_MS) > now;
        for hold in slot.holds.values().filter(|hold| hold.going.is_some_and(goes)) {
            ledger.release(&hold.reservation);
        }
        let asked = |hold: &Hold| hold.going.is_none() && hold.rank.tier() < tier;
        let mut lower: Vec<(&JobName, &Hold)> =
            slot.holds.iter().filter(|(_, hold)| asked(hold)).collect();
        lower.sort_by_key(|(_, hold)| (hold.rank.tier(), Reverse((hold.since, hold.rank))));
        let mut victims = Vec::new();
        let mut left = lower.into_iter();
        while !self.has_room(&ledger, demand) {
            let (job, hold) = left.next()?;
            ledger.release(&hold.reservation);
            victims.push((job, hold));
        }
        // Of those taken first some may not have been needed after all.
        let mut kept = Vec::new();
        for (job, hold) in victims.into_iter().rev() {
            let mut without: Ledger = ledger.clone();
            without.take(&hold.reservation);
            if self.has_room(&without, demand) {
                ledger = without;
            } else {
                kept.push((job, hold));
            }
        }
        let highest = kept.iter().map(|(_, hold)| hold.rank.tier()).max();
        let lost = kept.iter().map(|(_, h)| now.as_millis() - h.since.as_millis()).sum();
        let cost = (highest, kept.len(), lost);
        Some((cost, kept.into_iter().map(|(job, _)| job).collect()))
    }

    /// The reason of one for whom others make way.
    pub(super) fn making_room(
        &self,
        promise: &Promise,
        evictions: &[Eviction],
    ) -> Option<WaitReason> {
        let mut jobs: BTreeSet<JobName> = evictions.iter().map(|e| e.job.clone()).collect();
        for slot in promise.nodes.iter().filter_map(|node| self.nodes.get(node)) {
            let going = slot.holds.iter().filter(|(_, hold)| hold.going.is_some());
            jobs.extend(going.map(|(job, _)| job.clone()));
        }
        (!jobs.is_empty()).then(|| WaitReason::MakingRoom { jobs: jobs.into_iter().collect() })
    }
}

/// When what is held is free, as far as a job of this tier can say.
fn ends(hold: &Hold, tier: JobTier, now: Timestamp) -> Room {
    let stops = |since: Timestamp| since.plus_millis(STOPS_MS);
    match (hold.going, hold.until, hold.yields_at) {
        (Some(since), ..) if stops(since) > now => Room::At(stops(since)),
        (None, Some(until), _) if until > now => Room::At(until),
        // It is asked to make way at its moment.
        (None, _, Some(at)) if hold.rank.tier() <= tier => Room::At(stops(at.max(now))),
        // It takes longer than anybody thought.
        _ => Room::After(1),
    }
}
