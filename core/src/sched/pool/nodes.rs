//! A pool's nodes, by what is free on them.

use imbl::OrdMap;

use super::share::Amount;
use super::{Pool, Waiting};
use crate::id::{JobName, NodeName, Principal};
use crate::resource::{Capacity, Containers, Demand, GpuDevice, Ledger, MiB, Reservation};
use crate::sched::pack::{Ask, Free, Models};
use crate::sched::{DataPlace, Hold, Request};

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) ledger: Ledger,
    /// What of it is held, by job.
    pub(super) holds: OrdMap<JobName, Hold>,
    /// The daemon hears from it.
    pub(super) ready: bool,
    /// An admin keeps jobs away from it.
    pub(super) drained: bool,
    /// It is on its way out.
    pub(super) leaving: bool,
    /// Why it is not fit for jobs, if it is not.
    pub(super) unfit: Option<String>,
    /// What it can do with containers. Its books say what it counts as ([`Pool::counts_as`]).
    containers: Containers,
    /// The number of what its devices are.
    model: u8,
}

impl Slot {
    /// Whether it gets jobs.
    pub(super) fn is_open(&self) -> bool {
        self.ready && !self.drained && !self.leaving && self.unfit.is_none()
    }

    fn has_gpus(&self) -> bool {
        !self.ledger.capacity().gpus.is_empty()
    }
}

/// As much of a capacity as decides what an empty node can hold: its devices are in order of what
/// they are, and have no names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Size(Capacity);

impl Size {
    pub(super) fn capacity(&self) -> &Capacity {
        &self.0
    }

    fn of(capacity: &Capacity) -> Self {
        let gpus = devices(capacity)
            .into_iter()
            .zip(0..)
            .map(|((model, memory), index)| {
                (index, GpuDevice { uuid: String::new(), model, memory })
            })
            .collect();
        let Capacity { cpu, memory, disk, labels, containers, .. } = capacity;
        Self(Capacity {
            cpu: *cpu,
            memory: *memory,
            gpus,
            disk: *disk,
            labels: labels.clone(),
            containers: *containers,
        })
    }

    pub(super) fn could_hold(&self, demand: &Demand) -> bool {
        self.0.could_hold(demand)
    }
}

/// The model and memory of each device of a node, in order.
pub(super) type Devices = Vec<(String, MiB)>;

fn devices(capacity: &Capacity) -> Devices {
    let mut all: Devices =
        capacity.gpus.values().map(|device| (device.model.clone(), device.memory)).collect();
    all.sort_unstable();
    all
}

/// The number that nodes with devices of one kind too many have in common.
const OTHER: u8 = Models::MAX - 1;

impl Pool {
    pub(in crate::sched) fn put_node(&mut self, node: NodeName, mut capacity: Capacity) {
        let (containers, best) = (capacity.containers, self.best_runtime());
        let before = self.nodes.get(&node).map(|slot| slot.containers);
        self.count_runtime(before, Some(containers));
        capacity.containers = self.counts_as(containers);
        let model = self.model(&capacity);
        for key in capacity.labels.keys() {
            self.label_keys.insert(key.clone());
        }
        if !self.packs && !capacity.gpus.is_empty() {
            self.packs = true;
            for (node, slot) in self.nodes.iter().filter(|(_, slot)| slot.is_open()) {
                self.packing.add(node.clone(), Free::of(&slot.ledger, slot.model));
            }
        }
        let offered = Amount::offered(&capacity);
        if let Some(known) = self.nodes.get(&node) {
            self.total.subtract(Amount::offered(known.ledger.capacity()));
            self.change(&node, |slot| {
                slot.ledger.set_capacity(capacity);
                slot.model = model;
                slot.containers = containers;
            });
        } else {
            let slot = Slot {
                ledger: Ledger::new(capacity),
                holds: OrdMap::new(),
                ready: false,
                drained: false,
                leaving: false,
                unfit: None,
                containers,
                model,
            };
            self.nodes.insert(node, slot);
        }
        self.total.add(offered);
        self.dirty = true;
        self.recount_runtimes(best);
    }

    /// The most that a node here can do with containers.
    pub(super) fn best_runtime(&self) -> Containers {
        self.runtimes.keys().next_back().copied().unwrap_or_default()
    }

    /// What a node counts as that can do this with containers. The best that there is counts as enough: a job that
    /// needs more than any node of the compute can do goes there, and fails at once with what the node says it
    /// lacks, instead of waiting for what nobody has announced.
    fn counts_as(&self, containers: Containers) -> Containers {
        if containers == self.best_runtime() { Containers::Build } else { containers }
    }

    fn count_runtime(&mut self, before: Option<Containers>, after: Option<Containers>) {
        if let Some(after) = after {
            *self.runtimes.entry(after).or_default() += 1;
        }
        if let Some(before) = before
            && let Some(count) = self.runtimes.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.runtimes.remove(&before);
            }
        }
    }

    /// Another is the best than before: nodes count as something else.
    fn recount_runtimes(&mut self, before: Containers) {
        if self.best_runtime() == before {
            return;
        }
        let nodes: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for node in nodes {
            let Some(slot) = self.nodes.get(&node) else { continue };
            let counts_as = self.counts_as(slot.containers);
            let capacity = slot.ledger.capacity();
            if capacity.containers != counts_as {
                let capacity = Capacity { containers: counts_as, ..capacity.clone() };
                self.change(&node, |slot| slot.ledger.set_capacity(capacity));
            }
        }
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

    pub(in crate::sched) fn remove_node(&mut self, node: &NodeName) {
        self.change(node, |slot| slot.ready = false);
        let best = self.best_runtime();
        self.holders.forget(node);
        let Some(slot) = self.nodes.remove(node) else { return };
        self.count_runtime(Some(slot.containers), None);
        self.recount_runtimes(best);
        self.total.subtract(Amount::offered(slot.ledger.capacity()));
        for (job, hold) in &slot.holds {
            self.forget_hold(job, hold, None);
        }
    }

    pub(in crate::sched) fn set_ready(&mut self, node: &NodeName, ready: bool) {
        self.change(node, |slot| slot.ready = ready);
    }

    pub(in crate::sched) fn set_drained(&mut self, node: &NodeName, drained: bool) {
        self.change(node, |slot| slot.drained = drained);
    }

    pub(in crate::sched) fn set_leaving(&mut self, node: &NodeName, leaving: bool) {
        self.change(node, |slot| slot.leaving = leaving);
    }

    pub(in crate::sched) fn set_unfit(&mut self, node: &NodeName, unfit: Option<String>) {
        if self.nodes.get(node).is_some_and(|slot| slot.unfit != unfit) {
            self.change(node, |slot| slot.unfit = unfit);
        }
    }

    pub(in crate::sched) fn set_held(
        &mut self,
        node: &NodeName,
        held: impl IntoIterator<Item = (DataPlace, u64)>,
    ) {
        if self.nodes.contains_key(node) {
            self.holders.set(node, held);
        }
    }

    /// Changes what kind of node it is or whether it gets jobs, and with it which jobs could start.
    fn change(&mut self, node: &NodeName, change: impl FnOnce(&mut Slot)) {
        self.dirty = true;
        self.freed = true;
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
            // A further node of a size makes a difference only to who needs several.
            if first || self.gangs > 0 {
                self.judge(|request, startable| {
                    let differs = first || request.members > 1;
                    differs && !startable && size.could_hold(&request.demand)
                });
            }
        }
        if let Some(size) = before
            && let Some(count) = self.sizes.get_mut(&size)
        {
            *count -= 1;
            let last = *count == 0;
            if last {
                self.sizes.remove(&size);
            }
            if last || self.gangs > 0 {
                self.judge(|request, startable| {
                    let differs = last || request.members > 1;
                    differs && startable && size.could_hold(&request.demand)
                });
            }
        }
        if self.exclusive && !self.quotas.is_empty() {
            // What a job would hold is as much as the largest of these nodes.
            let users: Vec<Principal> = self.users.keys().cloned().collect();
            users.iter().for_each(|user| self.refresh(user));
        }
    }

    /// Looks anew at the classes for which the sizes that are open now may make a difference.
    fn judge(&mut self, may_differ: impl Fn(&Request, bool) -> bool) {
        let sizes = self.sizes.clone();
        let mut changed = Vec::new();
        let users: Vec<Principal> = self.users.keys().cloned().collect();
        for user in users {
            let Some(known) = self.users.get_mut(&user) else { continue };
            if known.line.judge(&may_differ, |request| hold_all(&sizes, request)) {
                changed.push(user);
            }
        }
        for user in changed {
            self.refresh(&user);
        }
    }

    pub(super) fn index(&mut self, node: &NodeName) {
        if let Some(slot) = self.nodes.get(node)
            && slot.is_open()
            && !self.set_aside.contains(node)
        {
            self.by_free.insert((slot.ledger.free_cpu(), node.clone()));
            if self.packs {
                self.packing.add(node.clone(), Free::of(&slot.ledger, slot.model));
            }
            self.with_gpus += usize::from(slot.has_gpus());
        }
    }

    pub(super) fn unindex(&mut self, node: &NodeName) {
        if let Some(slot) = self.nodes.get(node) {
            let indexed = self.by_free.remove(&(slot.ledger.free_cpu(), node.clone()));
            if indexed.is_some() {
                if self.packs {
                    self.packing.remove(node, &Free::of(&slot.ledger, slot.model));
                }
                self.with_gpus -= usize::from(slot.has_gpus());
            }
        }
    }

    /// Whether the nodes that get jobs could hold it when empty.
    pub(super) fn could_start(&self, request: &Request) -> bool {
        hold_all(&self.sizes, request)
    }

    pub(super) fn is_open(&self, node: &NodeName) -> bool {
        self.nodes.get(node).is_some_and(Slot::is_open)
    }

    /// What a member would get of a node now.
    pub(super) fn reservation(&self, node: &NodeName, demand: &Demand) -> Option<Reservation> {
        let mut ledger = self.nodes.get(node)?.ledger.clone();
        match self.exclusive {
            true if ledger.is_idle() => ledger.reserve_whole(demand).ok(),
            true => None,
            false => ledger.reserve(demand).ok(),
        }
    }

    /// Whether one more member has room in the books of a node.
    pub(super) fn has_room(&self, ledger: &Ledger, demand: &Demand) -> bool {
        ledger.shortage(demand).is_none() && (!self.exclusive || ledger.is_idle())
    }

    /// Where its members go, if there is room for all of them: where they have what they would rather have, or
    /// else anywhere; of nodes that are about as good for others, where their inputs are.
    pub(super) fn best_nodes(
        &self,
        request: &Request,
        inputs: &[DataPlace],
    ) -> Option<Vec<NodeName>> {
        let better = request.demand.at_best().filter(|_| self.best_runtime() > Containers::None);
        let better = better.map(|demand| Request { demand, ..request.clone() });
        better
            .and_then(|better| self.nodes_for(&better, inputs))
            .or_else(|| self.nodes_for(request, inputs))
    }

    fn nodes_for(&self, request: &Request, inputs: &[DataPlace]) -> Option<Vec<NodeName>> {
        let holders = if inputs.is_empty() { Vec::new() } else { self.holders.of(inputs) };
        let first = self.nearest_node(&request.demand, inputs, &holders)?;
        let mut nodes = vec![first];
        if request.members > 1 {
            let mut trial = self.clone();
            while nodes.len() < request.members as usize {
                if let Some(taken) = nodes.last() {
                    trial.unindex(taken);
                }
                nodes.push(trial.nearest_node(&request.demand, inputs, &holders)?);
            }
        }
        Some(nodes)
    }

    /// The best node, or one that holds more of the job's inputs and costs little.
    fn nearest_node(
        &self,
        demand: &Demand,
        inputs: &[DataPlace],
        holders: &[(NodeName, u64)],
    ) -> Option<NodeName> {
        let best = self.best_node(demand)?;
        if holders.is_empty() {
            return Some(best);
        }
        let there = self.holders.bytes(&best, inputs);
        let more = holders.iter().take_while(|(_, bytes)| *bytes > there);
        let nearest =
            more.map(|(node, _)| node).find(|node| self.costs_little(node, &best, demand));
        Some(nearest.cloned().unwrap_or(best))
    }

    /// Whether a node has room for the job, and is about as good for those to come as the one that is best for them:
    /// it strands no more GPUs and leaves no more of them free, and of its CPU a [`SHARE`] at most. It is one of those
    /// that get jobs and are not set aside.
    fn costs_little(&self, node: &NodeName, best: &NodeName, demand: &Demand) -> bool {
        let (Some(slot), Some(best)) = (self.nodes.get(node), self.nodes.get(best)) else {
            return false;
        };
        let free = slot.ledger.free_cpu();
        let is_indexed = self.by_free.contains(&(free, node.clone()));
        if !is_indexed || !self.has_room(&slot.ledger, demand) {
            return false;
        }
        let spared = free.saturating_sub(best.ledger.free_cpu());
        if spared > slot.ledger.capacity().cpu / SHARE {
            return false;
        }
        if self.with_gpus == 0 || self.exclusive {
            return slot.ledger.capacity().gpus.len() <= best.ledger.capacity().gpus.len();
        }
        let [mine, theirs] = [slot, best].map(|slot| Free::of(&slot.ledger, slot.model));
        let ask = self.ask(demand);
        mine.milli_gpus() <= theirs.milli_gpus()
            && self.packing.strands(&ask, &mine) <= self.packing.strands(&ask, &theirs)
    }

    /// Of the nodes that get jobs and have room: where there are GPUs the one on which the job
    /// strands the least of them ([`crate::sched::pack`]), else the one with the least CPU free.
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
                self.nodes.get(node).is_some_and(|slot| self.has_room(&slot.ledger, demand))
            })
            .map(|(_, node)| node.clone())
    }

    /// Lets the packing know what comes.
    pub(super) fn learn(&mut self, waiting: &Waiting) {
        let ask = self.ask(&waiting.request.demand);
        self.packing.learn(&ask);
    }
}

/// The part of a node's CPU that may be left unused so that a job is where its inputs are: one of so many. In a
/// simulated cluster that is all but full an eighth costs no wait (+1 %), a quarter an eighth more of it.
const SHARE: u64 = 8;

/// Whether nodes of these sizes, so many of each, could hold it when empty.
fn hold_all(sizes: &OrdMap<Size, usize>, request: &Request) -> bool {
    let mut missing = request.members as usize;
    for (_, count) in sizes.iter().filter(|(size, _)| size.could_hold(&request.demand)) {
        missing = missing.saturating_sub(*count);
        if missing == 0 {
            return true;
        }
    }
    false
}
