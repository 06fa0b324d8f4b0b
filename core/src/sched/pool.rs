//! One compute: its nodes and its queue.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet, Vector};

use super::pack::{Ask, Free, Models, Packing};
use super::{Hold, Placement, Rank, Request, WaitReason, Waiting};
use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::resource::{Capacity, Demand, GpuDevice, Ledger, MiB, Reservation, Shortage};
use crate::time::Timestamp;

#[derive(Clone, Debug)]
struct Slot {
    ledger: Ledger,
    /// What of it is held, by job.
    holds: OrdMap<JobName, Hold>,
    /// The daemon hears from it.
    ready: bool,
    /// An admin keeps jobs away from it.
    drained: bool,
    /// It is on its way out.
    leaving: bool,
    /// The number of what its devices are.
    model: u8,
}

impl Slot {
    /// Whether it gets jobs.
    fn is_open(&self) -> bool {
        self.ready && !self.drained && !self.leaving
    }

    fn has_gpus(&self) -> bool {
        !self.ledger.capacity().gpus.is_empty()
    }
}

/// The jobs in line that ask for the same.
#[derive(Clone, Debug, Default)]
struct Class {
    ranks: OrdSet<Rank>,
    /// A node that gets jobs could hold one of them when empty.
    startable: bool,
}

/// As much of a capacity as decides what an empty node can hold: its devices are in order of what
/// they are, and have no names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Size(Capacity);

impl Size {
    fn of(capacity: &Capacity) -> Self {
        let gpus = devices(capacity)
            .into_iter()
            .zip(0..)
            .map(|((model, memory), index)| {
                (index, GpuDevice { uuid: String::new(), model, memory })
            })
            .collect();
        let Capacity { cpu, memory, disk, labels, .. } = capacity;
        Self(Capacity { cpu: *cpu, memory: *memory, gpus, disk: *disk, labels: labels.clone() })
    }

    fn could_hold(&self, demand: &Demand) -> bool {
        self.0.could_hold(demand)
    }
}

/// The model and memory of each device of a node, in order.
type Devices = Vec<(String, MiB)>;

fn devices(capacity: &Capacity) -> Devices {
    let mut all: Devices =
        capacity.gpus.values().map(|device| (device.model.clone(), device.memory)).collect();
    all.sort_unstable();
    all
}

/// The number that nodes with devices of one kind too many have in common.
const OTHER: u8 = Models::MAX - 1;

/// What those who wait may hope for from whoever adds nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Supply {
    /// Nobody adds nodes.
    #[default]
    None,
    /// More nodes may be added.
    Room,
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

/// A compute's nodes, indexed by what is free, and its queue, by rank.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    nodes: OrdMap<NodeName, Slot>,
    /// Ready nodes by free CPU: the first that fits leaves the least over.
    by_free: OrdSet<(u64, NodeName)>,
    /// The same nodes by all that is free, where some have GPUs.
    packing: Packing<NodeName>,
    /// What the devices of a node may be: each has the number of its place, to pack by.
    models: Vector<Devices>,
    /// Keys of labels that nodes have or had.
    label_keys: OrdSet<String>,
    /// How many nodes have GPUs.
    with_gpus: usize,
    queue: OrdMap<Rank, Waiting>,
    /// Jobs held back by a back-off, by when it ends. They are in no queue.
    delayed: OrdMap<(Timestamp, Rank), Waiting>,
    /// When the back-off of each of them ends.
    until: OrdMap<Rank, Timestamp>,
    /// Those in the queue, by class of equal demand: what holds for one holds for its class.
    classes: OrdMap<Request, Class>,
    /// The first of each class that could start on some open node.
    heads: OrdMap<Rank, Request>,
    /// How many open nodes there are of each size.
    sizes: OrdMap<Size, usize>,
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
    /// Something has changed since the last plan.
    dirty: bool,
}

impl Pool {
    pub(super) fn put_node(&mut self, node: NodeName, capacity: Capacity) {
        let model = self.model(&capacity);
        for key in capacity.labels.keys() {
            self.label_keys.insert(key.clone());
        }
        if self.nodes.contains_key(&node) {
            self.change(&node, |slot| {
                slot.ledger.set_capacity(capacity);
                slot.model = model;
            });
        } else {
            let (ledger, holds) = (Ledger::new(capacity), OrdMap::new());
            let (ready, drained, leaving) = (false, false, false);
            self.nodes.insert(node, Slot { ledger, holds, ready, drained, leaving, model });
        }
        self.dirty = true;
    }

    /// The number of what the devices are.
    fn model(&mut self, capacity: &Capacity) -> u8 {
        let devices = devices(capacity);
        let known = self.models.iter().position(|known| *known == devices);
        let number = known.unwrap_or(self.models.len());
        if number >= OTHER.into() {
            return OTHER;
        }
        if known.is_none() {
            self.models.push_back(devices);
        }
        u8::try_from(number).unwrap_or(OTHER)
    }

    /// What it asks of a node, by what the nodes' devices are: those left out have none that suits.
    fn ask(&self, demand: &Demand) -> Ask {
        if demand.gpus == 0 || (demand.gpu_models.is_none() && demand.gpu_memory == 0) {
            return Ask::of(demand, Models::ANY);
        }
        let suits = |(model, memory): &(String, MiB)| {
            demand.suits(&GpuDevice { uuid: String::new(), model: model.clone(), memory: *memory })
        };
        let numbers = (0..).zip(&self.models);
        let some = numbers.filter(|(_, devices)| devices.iter().any(suits)).map(|(n, _)| n);
        Ask::of(demand, Models::of(some.chain([OTHER])))
    }

    pub(super) fn remove_node(&mut self, node: &NodeName) {
        self.change(node, |slot| slot.ready = false);
        self.nodes.remove(node);
    }

    pub(super) fn set_ready(&mut self, node: &NodeName, ready: bool) {
        self.change(node, |slot| slot.ready = ready);
    }

    pub(super) fn set_drained(&mut self, node: &NodeName, drained: bool) {
        self.change(node, |slot| slot.drained = drained);
    }

    pub(super) fn set_leaving(&mut self, node: &NodeName, leaving: bool) {
        self.change(node, |slot| slot.leaving = leaving);
    }

    /// Changes what kind of node it is or whether it gets jobs, and with it which jobs could start.
    fn change(&mut self, node: &NodeName, change: impl FnOnce(&mut Slot)) {
        self.dirty = true;
        self.unindex(node);
        let Some(slot) = self.nodes.get_mut(node) else { return };
        let before = slot.is_open().then(|| Size::of(slot.ledger.capacity()));
        change(slot);
        let after = slot.is_open().then(|| Size::of(slot.ledger.capacity()));
        self.index(node);
        if before == after {
            return;
        }
        if let Some(size) = after {
            let count = self.sizes.entry(size.clone()).or_default();
            *count += 1;
            let first = *count == 1;
            self.judge(|request, startable| {
                let differs = first || request.members > 1;
                differs && !startable && size.could_hold(&request.demand)
            });
        }
        if let Some(size) = before
            && let Some(count) = self.sizes.get_mut(&size)
        {
            *count -= 1;
            let last = *count == 0;
            if last {
                self.sizes.remove(&size);
            }
            self.judge(|request, startable| {
                let differs = last || request.members > 1;
                differs && startable && size.could_hold(&request.demand)
            });
        }
    }

    /// Looks anew at the classes for which the sizes that are open now may make a difference.
    fn judge(&mut self, may_differ: impl Fn(&Request, bool) -> bool) {
        let changed: Vec<Request> = self
            .classes
            .iter()
            .filter(|(request, class)| may_differ(request, class.startable))
            .filter(|(request, class)| self.could_start(request) != class.startable)
            .map(|(request, _)| request.clone())
            .collect();
        for request in changed {
            let Some(class) = self.classes.get_mut(&request) else { continue };
            class.startable = !class.startable;
            let Some(first) = class.ranks.get_min() else { continue };
            if class.startable {
                self.heads.insert(*first, request);
            } else {
                self.heads.remove(first);
            }
        }
    }

    /// How jobs are placed here and what nodes may come. Jobs that run are left alone.
    pub(super) fn set_kind(&mut self, exclusive: bool, template: Option<Capacity>) {
        if (self.exclusive, &self.template) != (exclusive, &template) {
            (self.exclusive, self.template) = (exclusive, template);
            self.dirty = true;
        }
    }

    pub(super) fn set_supply(&mut self, supply: Supply) {
        self.supply = supply;
    }

    pub(super) fn set_closed(&mut self, closed: Option<Closed>) {
        self.dirty |= self.closed.is_some() != closed.is_some();
        self.closed = closed;
    }

    fn index(&mut self, node: &NodeName) {
        if let Some(slot) = self.nodes.get(node)
            && slot.is_open()
        {
            self.by_free.insert((slot.ledger.free_cpu(), node.clone()));
            self.packing.add(node.clone(), Free::of(&slot.ledger, slot.model));
            self.with_gpus += usize::from(slot.has_gpus());
        }
    }

    fn unindex(&mut self, node: &NodeName) {
        if let Some(slot) = self.nodes.get(node) {
            let indexed = self.by_free.remove(&(slot.ledger.free_cpu(), node.clone()));
            if indexed.is_some() {
                self.packing.remove(node, &Free::of(&slot.ledger, slot.model));
                self.with_gpus -= usize::from(slot.has_gpus());
            }
        }
    }

    pub(super) fn enqueue(&mut self, rank: Rank, waiting: Waiting) {
        match waiting.not_before {
            Some(until) => {
                self.until.insert(rank, until);
                self.delayed.insert((until, rank), waiting);
            }
            None => self.line_up(rank, waiting),
        }
        self.dirty = true;
    }

    fn line_up(&mut self, rank: Rank, waiting: Waiting) {
        let request = waiting.request.clone();
        let ask = self.ask(&request.demand);
        self.packing.learn(&ask);
        self.queue.insert(rank, waiting);
        let startable = match self.classes.get(&request) {
            Some(class) => class.startable,
            None => self.could_start(&request),
        };
        let class = self.classes.entry(request.clone()).or_default();
        class.startable = startable;
        let first = class.ranks.get_min().copied();
        class.ranks.insert(rank);
        if startable && first.is_none_or(|first| rank < first) {
            if let Some(first) = first {
                self.heads.remove(&first);
            }
            self.heads.insert(rank, request);
        }
    }

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
    }

    pub(super) fn dequeue(&mut self, rank: Rank) {
        if let Some(waiting) = self.queue.remove(&rank) {
            self.heads.remove(&rank);
            if let Some(class) = self.classes.get_mut(&waiting.request) {
                class.ranks.remove(&rank);
                match class.ranks.get_min() {
                    Some(first) if class.startable => {
                        self.heads.insert(*first, waiting.request);
                    }
                    Some(_) => {}
                    None => {
                        self.classes.remove(&waiting.request);
                    }
                }
            }
            self.dirty = true;
        } else if let Some(until) = self.until.remove(&rank) {
            self.delayed.remove(&(until, rank));
            self.dirty = true;
        }
    }

    /// Whether the nodes that get jobs could hold it when empty.
    fn could_start(&self, request: &Request) -> bool {
        let fitting = self.sizes.iter().filter(|(size, _)| size.could_hold(&request.demand));
        let mut missing = request.members as usize;
        for (_, count) in fitting {
            missing = missing.saturating_sub(*count);
            if missing == 0 {
                return true;
            }
        }
        false
    }

    /// The first in line: the oldest of those that a node which gets jobs could ever hold. The
    /// others wait for a larger node, and hold nobody back.
    fn head(&self) -> Option<(Rank, &Waiting)> {
        let first = self.heads.keys().next()?;
        self.queue.get(first).map(|waiting| (*first, waiting))
    }

    /// Enters what a job holds of a node.
    pub(super) fn hold(&mut self, node: &NodeName, job: JobName, hold: Hold) {
        self.unindex(node);
        if let Some(slot) = self.nodes.get_mut(node) {
            slot.ledger.take(&hold.reservation);
            slot.holds.insert(job, hold);
        }
        self.index(node);
    }

    /// Gives back what a job holds of a node.
    pub(super) fn release(&mut self, node: &NodeName, job: &JobName) {
        self.unindex(node);
        if let Some(slot) = self.nodes.get_mut(node)
            && let Some(hold) = slot.holds.remove(job)
        {
            slot.ledger.release(&hold.reservation);
        }
        self.index(node);
        self.dirty = true;
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
        let until =
            waiting.most_ms.map(|most| now.plus_millis(i64::try_from(most).unwrap_or(i64::MAX)));
        let mut held: Vec<Reservation> = Vec::new();
        for node in &placement.nodes {
            let Some(reservation) = self.reservation(node, &placement.request.demand) else {
                break;
            };
            let hold = Hold {
                user: waiting.user.clone(),
                rank: placement.rank,
                reservation: reservation.clone(),
                until,
                yields_at: placement.yields_at,
            };
            self.hold(node, placement.job.clone(), hold);
            held.push(reservation);
        }
        if held.len() < placement.nodes.len() {
            // All or nothing.
            for node in placement.nodes.iter().take(held.len()) {
                self.release(node, &placement.job);
            }
            return None;
        }
        self.dequeue(placement.rank);
        Some(held)
    }

    fn waiting_at(&self, rank: Rank) -> Option<&Waiting> {
        self.queue.get(&rank).or_else(|| {
            let until = self.until.get(&rank)?;
            self.delayed.get(&(*until, rank))
        })
    }

    fn is_open(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(Slot::is_open)
    }

    /// What a member would get of a node now.
    fn reservation(&self, node: &NodeName, demand: &Demand) -> Option<Reservation> {
        let mut ledger = self.nodes.get(node)?.ledger.clone();
        match self.exclusive {
            true if ledger.is_idle() => ledger.reserve_whole(demand).ok(),
            true => None,
            false => ledger.reserve(demand).ok(),
        }
    }

    /// Whether a plan would find nothing new.
    pub(super) fn is_settled(&self, now: Timestamp) -> bool {
        let woken = self.delayed.keys().next().is_some_and(|(until, _)| *until <= now);
        (!self.dirty || (self.queue.is_empty() && self.delayed.is_empty())) && !woken
    }

    pub(super) fn set_blocked(&mut self, reason: Option<WaitReason>) {
        self.dirty = matches!(reason, Some(WaitReason::NextRound));
        self.blocked = reason;
    }

    /// Appends what starts now and returns what holds the next one back.
    pub(super) fn plan(
        &self,
        compute: &ComputeName,
        now: Timestamp,
        budget: usize,
        placements: &mut Vec<Placement>,
    ) -> Option<WaitReason> {
        if self.closed.is_some() {
            return None;
        }
        // A copy that shares its structure: reservations of this plan are seen by the next job.
        let mut trial = self.clone();
        trial.wake(now);
        let mut made = 0;
        while let Some((rank, waiting)) = trial.head() {
            if made == budget {
                return Some(WaitReason::NextRound);
            }
            let Some(nodes) = trial.best_nodes(&waiting.request) else {
                return Some(trial.shortage(&waiting.request.demand));
            };
            let placement = Placement {
                compute: compute.clone(),
                rank,
                job: waiting.job.clone(),
                nodes,
                request: waiting.request.clone(),
                yields_at: None,
            };
            if trial.commit(&placement, now).is_none() {
                return Some(trial.shortage(&placement.request.demand));
            }
            placements.push(placement);
            made += 1;
        }
        None
    }

    /// Where its members go, if there is room for all of them.
    fn best_nodes(&self, request: &Request) -> Option<Vec<NodeName>> {
        let first = self.best_node(&request.demand)?;
        let mut nodes = vec![first];
        if request.members > 1 {
            let mut trial = self.clone();
            while nodes.len() < request.members as usize {
                if let Some(taken) = nodes.last() {
                    trial.unindex(taken);
                }
                nodes.push(trial.best_node(&request.demand)?);
            }
        }
        Some(nodes)
    }

    /// Of the nodes that get jobs and have room: where there are GPUs the one on which the job
    /// strands the least of them ([`super::pack`]), else the one with the least CPU free.
    fn best_node(&self, demand: &Demand) -> Option<NodeName> {
        if self.with_gpus > 0 && !self.exclusive {
            let ask = self.ask(demand);
            if !demand.is_choosy() && demand.disk == 0 {
                return self.packing.node_for(&ask).cloned();
            }
            let has_room = |node: &NodeName| {
                self.nodes.get(node).is_some_and(|slot| slot.ledger.shortage(demand).is_none())
            };
            return self.packing.suited_node_for(&ask, has_room).cloned();
        }
        let from = (demand.cpu, NodeName::lowest());
        self.by_free
            .range(from..)
            .find(|(_, node)| {
                self.nodes.get(node).is_some_and(|slot| {
                    slot.ledger.shortage(demand).is_none()
                        && (!self.exclusive || slot.ledger.is_idle())
                })
            })
            .map(|(_, node)| node.clone())
    }

    /// Why a job waits that no node which gets jobs could hold.
    fn too_large(&self, demand: &Demand) -> WaitReason {
        if self.nodes.is_empty() {
            return WaitReason::NoNodes;
        }
        let closed = |drained: bool| {
            self.nodes
                .iter()
                .filter(|(_, slot)| !slot.is_open() && !slot.leaving && slot.drained == drained)
                .find(|(_, slot)| slot.ledger.capacity().could_hold(demand))
                .map(|(node, _)| node.clone())
        };
        let some_open = self.nodes.values().any(Slot::is_open);
        if self.nodes.values().all(|slot| slot.leaving) {
            return WaitReason::NoNodes;
        }
        match (closed(false), closed(true)) {
            (Some(_), _) if !some_open => WaitReason::NodesSilent,
            (None, Some(node)) => WaitReason::Drained { demand: demand.clone(), node },
            (node, _) => WaitReason::TooLarge { demand: demand.clone(), node },
        }
    }

    fn shortage(&self, demand: &Demand) -> WaitReason {
        if self.exclusive {
            let open = self.nodes.values().filter(|slot| slot.is_open());
            let large = open.filter(|slot| slot.ledger.capacity().could_hold(demand));
            return WaitReason::Occupied { nodes: large.count() };
        }
        let closest = self
            .nodes
            .iter()
            .filter(|(_, slot)| slot.is_open() && slot.ledger.capacity().could_hold(demand))
            .filter_map(|(node, slot)| {
                slot.ledger.shortage(demand).map(|lacking| (lacking, node, &slot.ledger))
            })
            .max_by_key(|(lacking, _, ledger)| (*lacking, ledger.free_cpu(), ledger.free_memory()));
        match closest {
            None => WaitReason::NodesSilent,
            Some((lacking, node, ledger)) => WaitReason::Shortage {
                demand: demand.clone(),
                lacking,
                node: node.clone(),
                free_cpu: ledger.free_cpu(),
                free_memory: ledger.free_memory(),
                free_disk: ledger.free_disk(),
                free_gpus: ledger.free_for(demand),
            },
        }
    }

    pub(super) fn reason(&self, rank: Rank) -> Option<WaitReason> {
        if let Some(waiting) = self.queue.get(&rank) {
            if let Some(Closed { by, reason }) = &self.closed {
                let (by, reason) = (by.clone(), reason.clone());
                return Some(WaitReason::ComputeDrained { by, reason });
            }
            if !self.could_start(&waiting.request) {
                let reason = self.too_large(&waiting.request.demand);
                return Some(self.supplied(&waiting.request.demand, reason));
            }
            let (first, head) = self.head()?;
            let because = self.blocked.clone().unwrap_or(WaitReason::Undecided);
            let because = self.supplied(&head.request.demand, because);
            if first == rank {
                return Some(because);
            }
            let ahead = self.ahead_of(rank);
            let because = Box::new(because);
            return Some(WaitReason::Behind { head: head.job.clone(), ahead, because });
        }
        self.until.get(&rank).map(|until| WaitReason::BackOff { until: *until })
    }

    /// The reason in view of the nodes that may come.
    fn supplied(&self, demand: &Demand, reason: WaitReason) -> WaitReason {
        let helps = self.template.as_ref().is_some_and(|node| node.could_hold(demand));
        if !helps || matches!(reason, WaitReason::NextRound | WaitReason::Undecided) {
            return reason;
        }
        match &self.supply {
            Supply::None => reason,
            Supply::Room => WaitReason::Growing,
            Supply::Coming { nodes, since } => {
                WaitReason::NodesComing { nodes: *nodes, since: *since }
            }
            Supply::Failing { why, until } => {
                WaitReason::NoNodeToBeHad { why: why.clone(), until: *until }
            }
            Supply::Full { most } => WaitReason::Full { most: *most, because: Box::new(reason) },
        }
    }

    /// How many nodes like the template the queue needs beside those that are there, at most
    /// `most`: as many as the scheduler itself would use if there were so many.
    pub(super) fn nodes_wanted(&self, now: Timestamp, most: u32) -> u32 {
        let Some(template) = self.template.as_ref().filter(|_| self.closed.is_none()) else {
            return 0;
        };
        // The compute's name is of no account in a trial.
        let Ok(compute) = ComputeName::new("trial") else { return 0 };
        let mut trial = self.clone();
        trial.wake(now);
        // What is there is used first, also where a node to come would fit more tightly.
        let mut placements = Vec::new();
        self.plan(&compute, now, TRIAL, &mut placements);
        for placement in placements.drain(..) {
            trial.commit(&placement, now);
        }
        for number in 0..most {
            let node = NodeName::to_come(number);
            trial.put_node(node.clone(), template.clone());
            trial.set_ready(&node, true);
        }
        trial.plan(&compute, now, TRIAL, &mut placements);
        let first = NodeName::to_come(0);
        let used: BTreeSet<&NodeName> = placements
            .iter()
            .flat_map(|placed| &placed.nodes)
            .filter(|node| **node >= first)
            .collect();
        u32::try_from(used.len()).unwrap_or(most)
    }

    /// Whether a job is in line that a node which gets jobs, or one that may come, could hold.
    pub(super) fn has_work(&self) -> bool {
        !self.heads.is_empty()
            || self
                .template
                .as_ref()
                .is_some_and(|node| self.classes.keys().any(|asked| node.could_hold(&asked.demand)))
    }

    /// How many in the queue are ahead of `rank`, which is one of them. Counted from whichever end
    /// is nearer: a job is mostly asked about when it has just come, or is about to start.
    fn ahead_of(&self, rank: Rank) -> usize {
        let mut before = self.queue.range(..rank);
        let mut after = self.queue.range(rank..);
        for count in 0.. {
            if before.next().is_none() {
                return count;
            }
            if after.next().is_none() {
                return self.queue.len() - count;
            }
        }
        0
    }

    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.delayed.keys().next().map(|(until, _)| *until)
    }

    pub(super) fn never_fits(&self, demand: &Demand) -> Option<Capacity> {
        let capacities =
            || self.nodes.values().map(|slot| slot.ledger.capacity()).chain(&self.template);
        // A label that some node has had may come back, so that one waits for it.
        let mut asked = demand.clone();
        asked.node_labels = demand
            .node_labels
            .as_ref()
            .filter(|labels| labels.keys().any(|key| !self.label_keys.contains(key)))
            .cloned();
        if capacities().any(|capacity| capacity.could_hold(&asked)) {
            return None;
        }
        capacities()
            .max_by_key(|capacity| match lacking(capacity, &asked) {
                Some(Shortage::Gpus) => (gpus_for(capacity, &asked), capacity.cpu),
                Some(Shortage::Labels) | None => (capacity.gpus.len() as u64, capacity.cpu),
                Some(Shortage::Memory) => (capacity.memory, capacity.cpu),
                Some(Shortage::Disk) => (capacity.disk.unwrap_or_default(), capacity.cpu),
                Some(Shortage::Cpu) => (capacity.cpu, capacity.memory),
            })
            .cloned()
    }

    /// Jobs that wait, those in a back-off last.
    pub fn waiting(&self) -> impl Iterator<Item = (Rank, &Waiting)> {
        let delayed = self.delayed.iter().map(|((_, rank), waiting)| (*rank, waiting));
        self.queue.iter().map(|(rank, waiting)| (*rank, waiting)).chain(delayed)
    }

    /// How many jobs wait.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.delayed.len()
    }

    /// How many jobs are in line in each class of equal demand.
    pub fn classes(&self) -> impl Iterator<Item = (&Request, usize)> {
        self.classes.iter().map(|(request, class)| (request, class.ranks.len()))
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

/// Placements at most when it is tried how many nodes a queue needs: a queue that needs more is
/// looked at again when those nodes are there.
const TRIAL: usize = 4_096;

fn lacking(capacity: &Capacity, demand: &Demand) -> Option<Shortage> {
    Ledger::new(capacity.clone()).shortage(demand)
}

/// How many devices it has that suit.
fn gpus_for(capacity: &Capacity, demand: &Demand) -> u64 {
    capacity.gpus.values().filter(|device| demand.suits(device)).count() as u64
}
