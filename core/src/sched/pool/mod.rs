//! One compute: its nodes, its users and their jobs in line.

mod line;
mod nodes;
mod plan;
mod promise;
mod reasons;
mod share;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};

use self::line::{Kind, Line};
use self::nodes::{Devices, Size, Slot};
use self::share::{Amount, Usage, set_back};
use super::pack::Packing;
use super::{
    Hold, Holders, Limits, Placement, Promise, Quotas, Rank, Request, WaitReason, Waiting,
};
use crate::access::People;
use crate::compute::Access;
use crate::id::{GroupName, JobName, NodeName, Principal};
use crate::resource::{Capacity, Containers, Ledger, Reservation};
use crate::spec::JobTier;
use crate::time::Timestamp;

pub use self::plan::Outcome;

/// What those who wait may hope for from whoever adds nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Supply {
    /// Nobody adds nodes.
    #[default]
    None,
    /// More nodes may be added.
    Room {
        /// So many.
        nodes: u32,
    },
    /// Nodes are on their way.
    Coming {
        /// How many.
        nodes: u32,
        /// The first of them was asked for then.
        since: Timestamp,
    },
    /// No node can be had.
    Failing {
        /// Why, in words.
        why: String,
        /// When it is tried again.
        until: Timestamp,
    },
    /// There are as many nodes as there may be.
    Full {
        /// That many.
        most: u32,
    },
}

/// On whose word a compute gets no jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// Who said so.
    pub by: Principal,
    /// Why, in their words.
    pub reason: String,
}

/// What some jobs hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Held {
    amount: Amount,
    nodes: u32,
    jobs: u32,
}

impl Held {
    fn add(&mut self, more: Self) {
        self.amount.add(more.amount);
        self.nodes += more.nodes;
        self.jobs += more.jobs;
    }

    fn subtract(&mut self, less: Self) {
        self.amount.subtract(less.amount);
        self.nodes = self.nodes.saturating_sub(less.nodes);
        self.jobs = self.jobs.saturating_sub(less.jobs);
    }

    fn is_within(&self, limits: &Limits) -> bool {
        let within = |limit: Option<u64>, held: u64| limit.is_none_or(|most| held <= most);
        within(limits.cpu, self.amount.cpu)
            && within(limits.memory, self.amount.memory)
            && within(limits.milli_gpus, self.amount.milli_gpus)
            && within(limits.nodes.map(u64::from), self.nodes.into())
            && within(limits.jobs.map(u64::from), self.jobs.into())
    }

    /// As much of it as is limited.
    fn of_what_is(&self, limits: &Limits) -> Limits {
        Limits {
            cpu: limits.cpu.map(|_| self.amount.cpu),
            memory: limits.memory.map(|_| self.amount.memory),
            milli_gpus: limits.milli_gpus.map(|_| self.amount.milli_gpus),
            nodes: limits.nodes.map(|_| self.nodes),
            jobs: limits.jobs.map(|_| self.jobs),
        }
    }
}

/// What keeps a user's job from starting, whatever room there is.
enum Barred {
    /// The user may not use the compute.
    NoAccess,
    /// The user's jobs hold as much as they may.
    Quota,
    /// Those of all members of this group do.
    GroupQuota(GroupName),
}

/// A user's jobs here: those in line, and what those that run hold.
#[derive(Clone, Debug, Default)]
struct User {
    line: Line,
    /// What those that run hold.
    held: Held,
    /// On how many nodes each of the jobs is.
    jobs: OrdMap<JobName, u32>,
    usage: Usage,
    /// By how many milliseconds the jobs are moved back in the line.
    set_back: i64,
    /// The first in line of those that could start and are within every quota.
    first: Option<Rank>,
}

/// A compute's nodes, indexed by what is free, and its queue.
///
/// **Invariant:** `groups` has, of each group with a quota, the sum of what its members' jobs hold; and whoever has
/// a place in `order` may start their first job as far as access and every quota go.
///
/// Each user has a line of their own, by rank. The lines are merged by rank, each set back by what
/// its user holds and has held lately (fair share).
#[derive(Clone, Debug, Default)]
pub struct Pool {
    nodes: OrdMap<NodeName, Slot>,
    /// Ready nodes by free CPU: the first that fits leaves the least over.
    by_free: OrdSet<(u64, NodeName)>,
    /// The same nodes by all that is free, where some node has or had GPUs.
    packing: Packing<NodeName>,
    packs: bool,
    /// What the devices of a node may be: each has the number of its place, to pack by.
    models: Vector<Devices>,
    /// Keys of labels that nodes have or had.
    label_keys: OrdSet<String>,
    /// How many nodes have GPUs.
    with_gpus: usize,
    /// How many nodes can do what with containers.
    runtimes: OrdMap<Containers, usize>,
    /// What all nodes offer.
    total: Amount,
    /// Which nodes hold what of which inputs.
    holders: Holders,
    /// Nodes that are in no index, while a plan keeps them for the first in line.
    set_aside: OrdSet<NodeName>,
    queue: OrdMap<Rank, Waiting>,
    /// Jobs held back by a back-off, by when it ends. They are in no line.
    delayed: OrdMap<(Timestamp, Rank), Waiting>,
    /// When the back-off of each of them ends.
    until: OrdMap<Rank, Timestamp>,
    users: OrdMap<Principal, User>,
    /// Users by the place of their first job.
    order: OrdMap<Rank, Principal>,
    /// Who may hold how much.
    quotas: Quotas,
    /// Who may use it.
    access: Access,
    /// Who is in which group.
    people: Arc<People>,
    /// What the members of each group that has a quota hold together.
    groups: OrdMap<GroupName, Held>,
    /// The minute since the epoch in which usage was last counted.
    minute: i64,
    /// How many open nodes there are of each size.
    sizes: OrdMap<Size, usize>,
    /// How many holds there are of each tier.
    tiers: OrdMap<JobTier, usize>,
    /// How many of those in line ask for several nodes.
    gangs: usize,
    /// When a promise is to be kept, and is looked at again if it was not.
    kept_by: Option<Timestamp>,
    /// A job takes a whole node.
    exclusive: bool,
    /// What a node that may yet be added offers; `None` if nobody adds nodes.
    template: Option<Capacity>,
    /// Whether nodes are on their way.
    supply: Supply,
    /// An admin keeps jobs away from the whole compute.
    closed: Option<Closed>,
    /// Why the head waits, as the last plan found.
    blocked: Option<WaitReason>,
    /// The nodes that it gets, as the last plan found.
    promise: Option<Promise>,
    /// Something has changed since the last plan.
    dirty: bool,
    /// There may be more room since the last plan.
    freed: bool,
    /// Who got in line since the last plan.
    newcomers: OrdSet<Rank>,
}

impl Pool {
    /// No nodes and no jobs.
    pub(super) fn of(people: Arc<People>) -> Self {
        Self { people, ..Self::default() }
    }

    /// How jobs are placed here and what nodes may come. Jobs that run are left alone.
    pub(super) fn set_kind(&mut self, exclusive: bool, template: Option<Capacity>) {
        // Nobody knows what those that come can do with containers.
        let template = template.map(|node| Capacity { containers: Containers::Build, ..node });
        if (self.exclusive, &self.template) != (exclusive, &template) {
            (self.exclusive, self.template) = (exclusive, template);
            self.dirty = true;
            self.freed = true;
        }
    }

    pub(super) fn set_supply(&mut self, supply: Supply) {
        self.supply = supply;
    }

    pub(super) fn set_closed(&mut self, closed: Option<Closed>) {
        if self.closed.is_some() != closed.is_some() {
            self.dirty = true;
            self.freed = true;
        }
        self.closed = closed;
    }

    pub(super) fn set_quotas(&mut self, quotas: Quotas) {
        if self.quotas != quotas {
            self.quotas = quotas;
            self.regroup();
        }
    }

    pub(super) fn set_access(&mut self, access: Access) {
        if self.access != access {
            self.access = access;
            self.regroup();
        }
    }

    pub(super) fn set_people(&mut self, people: Arc<People>) {
        let before = std::mem::replace(&mut self.people, people);
        let matters = !self.quotas.groups.is_empty() || !self.access.is_everybodys();
        if matters && before != self.people {
            self.regroup();
        }
    }

    /// Somebody may do more or less than before: counts anew what groups hold, and who may start what.
    fn regroup(&mut self) {
        self.groups = OrdMap::new();
        for (user, known) in &self.users {
            for (group, _) in self.quotas.of_groups(self.people.of(user)) {
                self.groups.entry(group.clone()).or_default().add(known.held);
            }
        }
        self.dirty = true;
        self.freed = true;
        let users: Vec<Principal> = self.users.keys().cloned().collect();
        users.iter().for_each(|user| self.refresh(user));
    }

    /// The jobs of a user hold so much more, or less: so do those of their groups.
    fn count_groups(&mut self, user: &Principal, count: impl Fn(&mut Held)) {
        for (group, _) in self.quotas.of_groups(self.people.of(user)) {
            count(self.groups.entry(group.clone()).or_default());
        }
    }

    /// Finds the first job anew of all who share a group's quota with a user: what the user's jobs hold, theirs
    /// may not.
    fn refresh_beside(&mut self, user: &Principal) {
        let person = self.people.of(user);
        let shared: Vec<&GroupName> =
            self.quotas.of_groups(person).map(|(group, _)| group).collect();
        if shared.is_empty() {
            return;
        }
        let beside = |other: &Principal| {
            let theirs = &self.people.of(other).groups;
            other != user && shared.iter().any(|group| theirs.contains(*group))
        };
        let in_line = self.users.iter().filter(|(_, known)| !known.line.is_empty());
        let others: Vec<Principal> =
            in_line.map(|(other, _)| other).filter(|other| beside(other)).cloned().collect();
        others.iter().for_each(|other| self.refresh(other));
    }

    pub(super) fn enqueue(&mut self, rank: Rank, waiting: Waiting) {
        match waiting.not_before.as_ref().map(|held| held.until) {
            Some(until) => {
                self.until.insert(rank, until);
                self.delayed.insert((until, rank), waiting);
            }
            None => self.line_up(rank, waiting),
        }
        self.dirty = true;
    }

    fn line_up(&mut self, rank: Rank, waiting: Waiting) {
        self.learn(&waiting);
        let (user, kind) = (waiting.user.clone(), Kind::of(&waiting));
        self.queue.insert(rank, waiting);
        self.newcomers.insert(rank);
        self.gangs += usize::from(kind.request.members > 1);
        let known = self.users.get(&user).and_then(|user| user.line.is_startable(&kind));
        let startable = known.unwrap_or_else(|| self.could_start(&kind.request));
        self.users.entry(user.clone()).or_default().line.insert(rank, kind, startable);
        self.refresh(&user);
    }

    /// Lets time pass: back-offs end, usage is counted and forgotten, promises fall due.
    pub(super) fn wake(&mut self, now: Timestamp) {
        let due: Vec<_> =
            self.delayed.keys().take_while(|(until, _)| *until <= now).copied().collect();
        for key in due {
            self.until.remove(&key.1);
            if let Some(waiting) = self.delayed.remove(&key) {
                self.line_up(key.1, waiting);
                self.dirty = true;
            }
        }
        if self.kept_by.is_some_and(|at| at <= now) {
            self.kept_by = None;
            self.dirty = true;
            self.freed = true;
        }
        let minute = now.as_millis().div_euclid(60_000);
        if minute > self.minute {
            self.minute = minute;
            self.count_usage(now);
        }
    }

    fn count_usage(&mut self, now: Timestamp) {
        let total = self.total;
        let first = self.order.get_min().map(|(_, user)| user.clone());
        let users: Vec<Principal> = self.users.keys().cloned().collect();
        for user in users {
            if let Some(known) = self.users.get_mut(&user) {
                known.usage.count(known.held.amount.dominant_share(&total), now);
            }
            self.refresh(&user);
        }
        if self.order.get_min().map(|(_, user)| user) != first.as_ref() {
            self.dirty = true;
            self.freed = true;
        }
    }

    /// Whether time has brought something since the last [`Pool::wake`].
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.next_wake().is_some_and(|at| at <= now)
            || (!self.users.is_empty() && now.as_millis().div_euclid(60_000) > self.minute)
    }

    pub(super) fn dequeue(&mut self, rank: Rank) {
        if let Some(waiting) = self.queue.remove(&rank) {
            self.newcomers.remove(&rank);
            self.gangs -= usize::from(waiting.request.members > 1);
            if let Some(user) = self.users.get_mut(&waiting.user) {
                user.line.remove(rank, &Kind::of(&waiting));
            }
            self.refresh(&waiting.user);
            self.dirty = true;
            // The head may have gone, and with it what was kept for it.
            self.freed |= self.promise.as_ref().is_some_and(|promise| promise.rank == rank);
        } else if let Some(until) = self.until.remove(&rank) {
            self.delayed.remove(&(until, rank));
            self.dirty = true;
        }
    }

    /// Finds a user's first job and its place among the others' anew.
    fn refresh(&mut self, user: &Principal) {
        let Some(known) = self.users.get(user) else { return };
        let set_back = set_back(known.held.amount.dominant_share(&self.total), &known.usage);
        let first = known
            .line
            .heads()
            .take(FIRST)
            .find(|(_, kind)| self.is_allowed(user, known, &kind.request))
            .map(|(rank, _)| rank);
        let is_gone = known.line.is_empty() && known.jobs.is_empty() && known.usage.is_forgotten();
        let before = known.first.map(|rank| rank.later_by(known.set_back));
        let after = first.map(|rank| rank.later_by(set_back));
        if before != after {
            if let Some(before) = before {
                self.order.remove(&before);
            }
            if let Some(after) = after {
                self.order.insert(after, user.clone());
            }
        }
        if is_gone {
            self.users.remove(user);
        } else if let Some(known) = self.users.get_mut(user) {
            known.set_back = set_back;
            known.first = first;
        }
    }

    /// Whether a user may hold this too.
    fn is_allowed(&self, user: &Principal, known: &User, request: &Request) -> bool {
        self.barred(user, known, request, None).is_none()
    }

    /// What keeps a user from holding this too, `beside` what is kept for another job.
    fn barred(
        &self,
        user: &Principal,
        known: &User,
        request: &Request,
        beside: Option<(&Principal, &Request)>,
    ) -> Option<Barred> {
        let person = self.people.of(user);
        if !self.access.admits(user, person) {
            return Some(Barred::NoAccess);
        }
        if self.quotas.is_empty() {
            return None;
        }
        let cost = self.cost(request);
        let kept = beside.map(|(other, request)| (other, self.cost(request)));
        let with = |mut held: Held, shares: &dyn Fn(&Principal) -> bool| {
            held.add(cost);
            kept.iter().filter(|(other, _)| shares(other)).for_each(|(_, cost)| held.add(*cost));
            held
        };
        if !with(known.held, &|other| other == user).is_within(self.quotas.of(user)) {
            return Some(Barred::Quota);
        }
        let full = self.quotas.of_groups(person).find(|(group, limits)| {
            let held = self.groups.get(*group).copied().unwrap_or_default();
            let shares = |other: &Principal| self.people.of(other).groups.contains(*group);
            !with(held, &shares).is_within(limits)
        });
        full.map(|(group, _)| Barred::GroupQuota(group.clone()))
    }

    /// What would be held for a request; where jobs take whole nodes, the most that it could be.
    fn cost(&self, request: &Request) -> Held {
        let demand = &request.demand;
        let (mut cpu, mut memory, mut gpus) = (demand.cpu, demand.memory, demand.milli_gpus());
        if self.exclusive {
            for size in self.sizes.keys().filter(|size| size.could_hold(demand)) {
                let whole = Amount::offered(size.capacity());
                cpu = cpu.max(whole.cpu);
                memory = memory.max(whole.memory);
                gpus = gpus.max(whole.milli_gpus);
            }
        }
        let members = u64::from(request.members);
        let amount =
            Amount { cpu: cpu * members, memory: memory * members, milli_gpus: gpus * members };
        Held { amount, nodes: request.members, jobs: 1 }
    }

    /// The first in line: of the jobs that the nodes which get jobs could hold, and their user's
    /// quota allows, the one with the first place. The others hold nobody back.
    fn head(&self) -> Option<(Rank, &Waiting)> {
        let (place, user) = self.order.get_min()?;
        let first = self.users.get(user)?.first?;
        let stays = |kept: &&Promise| {
            // A user's own jobs keep their order, whatever the user holds.
            let mine = self.queue.get(&kept.rank).is_some_and(|waiting| &waiting.user == user);
            if mine { kept.rank <= first } else { kept.place <= *place }
        };
        let first = self.promised().filter(stays).map_or(first, |kept| kept.rank);
        self.queue.get(&first).map(|waiting| (first, waiting))
    }

    /// The promise, if the one to whom it was made could still start.
    fn promised(&self) -> Option<&Promise> {
        let promise = self.promise.as_ref()?;
        let waiting = self.queue.get(&promise.rank)?;
        let user = self.users.get(&waiting.user)?;
        let startable = user.line.is_startable(&Kind::of(waiting)) == Some(true);
        let allowed = self.is_allowed(&waiting.user, user, &waiting.request);
        (startable && allowed).then_some(promise)
    }

    /// A job's place among all users' jobs: what it was promised, or where its user stands now.
    fn place_of(&self, rank: Rank) -> Option<Rank> {
        if let Some(promise) = self.promised().filter(|promise| promise.rank == rank) {
            return Some(promise.place);
        }
        let waiting = self.queue.get(&rank)?;
        Some(rank.later_by(self.users.get(&waiting.user)?.set_back))
    }

    /// Enters what a job holds of a node.
    pub(super) fn hold(&mut self, node: &NodeName, job: JobName, hold: Hold) {
        let user = hold.user.clone();
        self.enter_hold(node, job, hold);
        self.refresh(&user);
        self.refresh_beside(&user);
    }

    fn enter_hold(&mut self, node: &NodeName, job: JobName, hold: Hold) {
        self.unindex(node);
        let Some(slot) = self.nodes.get_mut(node) else { return };
        slot.ledger.take(&hold.reservation);
        slot.holds.insert(job.clone(), hold.clone());
        self.index(node);
        *self.tiers.entry(hold.rank.tier()).or_default() += 1;
        let (total, held) = (self.total, Amount::held(&hold.reservation));
        let user = self.users.entry(hold.user.clone()).or_default();
        user.usage.count_since(
            user.held.amount.dominant_share(&total),
            held.dominant_share(&total),
            hold.since,
        );
        let nodes = user.jobs.entry(job).or_default();
        let jobs = u32::from(*nodes == 0);
        *nodes += 1;
        let more = Held { amount: held, nodes: 1, jobs };
        user.held.add(more);
        self.count_groups(&hold.user, |group| group.add(more));
    }

    /// Gives back what a job holds of a node.
    pub(super) fn release(&mut self, node: &NodeName, job: &JobName, now: Timestamp) {
        self.unindex(node);
        let hold = self.nodes.get_mut(node).and_then(|slot| {
            let hold = slot.holds.remove(job)?;
            slot.ledger.release(&hold.reservation);
            Some(hold)
        });
        self.index(node);
        self.dirty = true;
        self.freed = true;
        if let Some(hold) = hold {
            self.forget_hold(job, &hold, Some(now));
        }
    }

    /// What a job no longer holds is no longer its user's.
    fn forget_hold(&mut self, job: &JobName, hold: &Hold, now: Option<Timestamp>) {
        if let Some(count) = self.tiers.get_mut(&hold.rank.tier()) {
            *count = count.saturating_sub(1);
        }
        let total = self.total;
        let mut less = Held { amount: Amount::held(&hold.reservation), nodes: 1, jobs: 0 };
        if let Some(user) = self.users.get_mut(&hold.user) {
            if let Some(now) = now {
                user.usage.count(user.held.amount.dominant_share(&total), now);
            }
            if let Some(nodes) = user.jobs.get_mut(job) {
                *nodes = nodes.saturating_sub(1);
                if *nodes == 0 {
                    user.jobs.remove(job);
                    less.jobs = 1;
                }
            }
            user.held.subtract(less);
        }
        self.count_groups(&hold.user, |group| group.subtract(less));
        self.refresh(&hold.user);
        self.refresh_beside(&hold.user);
    }

    /// A job is on its way out: what it holds is about to be free. Said again, it changes nothing.
    pub(super) fn set_going(&mut self, node: &NodeName, job: &JobName, now: Timestamp) {
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let Some(hold) = slot.holds.get_mut(job) else { return };
        hold.going.get_or_insert(now);
    }

    /// Enters what a user held of the compute in the past.
    pub(super) fn used(
        &mut self,
        user: &Principal,
        request: &Request,
        from: Timestamp,
        to: Timestamp,
    ) {
        let share = self.cost(request).amount.dominant_share(&self.total);
        self.users.entry(user.clone()).or_default().usage.enter(share, from, to);
        self.refresh(user);
    }

    pub(super) fn commit(
        &mut self,
        placement: &Placement,
        now: Timestamp,
    ) -> Option<Vec<Reservation>> {
        let waiting = self.waiting_at(placement.rank)?.clone();
        if self.closed.is_some() || !placement.nodes.iter().all(|node| self.is_open(node)) {
            return None;
        }
        let known = self.users.get(&waiting.user);
        if known.is_some_and(|known| !self.is_allowed(&waiting.user, known, &waiting.request)) {
            return None;
        }
        let mut held: Vec<Reservation> = Vec::with_capacity(placement.nodes.len());
        for node in &placement.nodes {
            // All or nothing.
            held.push(self.reservation(node, &placement.request.demand)?);
        }
        let most = waiting.most_ms.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        for (node, reservation) in placement.nodes.iter().zip(&held) {
            let hold = Hold {
                user: waiting.user.clone(),
                rank: placement.rank,
                reservation: reservation.clone(),
                since: now,
                until: most.map(|most| now.plus_millis(most)),
                yields_at: placement.yields_at,
                going: None,
            };
            self.enter_hold(node, placement.job.clone(), hold);
        }
        // And with it the user's place is found anew.
        self.dequeue(placement.rank);
        self.refresh_beside(&waiting.user);
        Some(held)
    }

    fn waiting_at(&self, rank: Rank) -> Option<&Waiting> {
        self.queue.get(&rank).or_else(|| {
            let until = self.until.get(&rank)?;
            self.delayed.get(&(*until, rank))
        })
    }

    /// Whether a plan would find nothing new.
    pub(super) fn is_settled(&self, now: Timestamp) -> bool {
        let waits = !self.queue.is_empty() || !self.delayed.is_empty();
        !(self.dirty && waits || self.is_due(now))
    }

    /// Keeps what a plan found.
    pub(super) fn learn_outcome(&mut self, outcome: &Outcome, now: Timestamp) {
        self.dirty = matches!(outcome.blocked, Some(WaitReason::NextRound));
        if self.dirty {
            // The next round finds the rest anew.
            return;
        }
        self.freed = false;
        self.newcomers = OrdSet::new();
        self.blocked = outcome.blocked.clone();
        self.promise = outcome.promise.clone();
        self.kept_by = self.promise.as_ref().and_then(|promise| promise.at).filter(|at| *at > now);
    }

    /// Whether a job is in line that the nodes which get jobs, or the `most` that there may be, could
    /// hold.
    pub(super) fn has_work(&self, most: u32) -> bool {
        !self.order.is_empty()
            || self.template.as_ref().is_some_and(|node| {
                self.users.iter().any(|(user, known)| {
                    known.line.classes().any(|(asked, _)| {
                        asked.members <= most
                            && node.could_hold(&asked.demand)
                            && self.is_allowed(user, known, asked)
                    })
                })
            })
    }

    /// The earliest moment at which time alone brings something.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        let back = self.delayed.keys().next().map(|(until, _)| *until);
        back.into_iter().chain(self.kept_by).min()
    }

    /// Jobs that wait, in order, those in a back-off last.
    pub fn waiting(&self) -> impl Iterator<Item = (Rank, &Waiting)> {
        let mut lines: Vec<_> = self
            .users
            .values()
            .map(|user| (user.set_back, user.line.ranks().iter().copied().peekable()))
            .collect();
        let merged = std::iter::from_fn(move || {
            let place = |(back, ranks): &mut (i64, std::iter::Peekable<_>)| {
                ranks.peek().map(|rank: &Rank| rank.later_by(*back))
            };
            let (_, at) = lines
                .iter_mut()
                .enumerate()
                .filter_map(|(at, line)| Some((place(line)?, at)))
                .min()?;
            lines.get_mut(at)?.1.next()
        });
        let delayed = self.delayed.iter().map(|((_, rank), waiting)| (*rank, waiting));
        let promised = self.promised().map(|promise| promise.rank);
        let kept = self.head().filter(|(rank, _)| Some(*rank) == promised);
        let others = merged.filter(move |rank| Some(*rank) != kept.map(|(rank, _)| rank));
        let others = others.filter_map(|rank| self.queue.get(&rank).map(|waiting| (rank, waiting)));
        kept.into_iter().chain(others).chain(delayed)
    }

    /// How many jobs wait.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.delayed.len()
    }

    /// How many jobs of a user are in line in each class of equal request.
    pub fn classes(&self) -> impl Iterator<Item = (&Request, usize)> {
        self.users.values().flat_map(|user| user.line.classes())
    }

    /// Which nodes hold what of which inputs, as they told last.
    pub fn holders(&self) -> &Holders {
        &self.holders
    }

    /// The nodes that the first in line gets, and when, if it has to wait for them.
    pub fn promise(&self) -> Option<&Promise> {
        self.promise.as_ref()
    }

    /// A node's ledger and whether it gets jobs.
    pub fn node(&self, node: &NodeName) -> Option<(&Ledger, bool)> {
        self.nodes.get(node).map(|slot| (&slot.ledger, slot.is_open()))
    }

    /// What is held of a node, by job.
    pub fn holds(&self, node: &NodeName) -> impl Iterator<Item = (&JobName, &Hold)> {
        self.nodes.get(node).into_iter().flat_map(|slot| &slot.holds)
    }

    /// Every node with its ledger and whether it gets jobs.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Ledger, bool)> {
        self.nodes.iter().map(|(node, slot)| (node, &slot.ledger, slot.is_open()))
    }
}

/// So many of a user's classes are looked at for one that the quota allows.
const FIRST: usize = 64;
