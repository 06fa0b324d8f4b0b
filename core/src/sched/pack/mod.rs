//! Packing: on which of the nodes that have room a job leaves most for those to come.
//!
//! GPUs are lost where nothing that is asked for can use them: on a node whose CPU is gone, or as the
//! rest of a device that is too small. So a placement is judged by what it strands: the GPU that is
//! left over on the node once jobs as they usually come have taken what they can. The policy learns
//! what usually comes from the jobs that came ([`Futures`]), draws a few fixed sequences of them, and
//! lets each node take from a sequence whatever fits, before and after the placement. It takes the
//! node where that strands the least more, among the few that are left tightest ([`SHORTLIST`]).
//!
//! "Beware of Fragmentation" (Weng et al., USENIX ATC 2023) counts, for one job of each kind, what it
//! could not use of a node as it stands (fragmentation gradient descent). Following a node until it
//! is full also sees what several jobs do together: that the CPU goes with the first of them, and
//! which sizes share a device without a rest.
//!
//! All of it is integer arithmetic in an order that nothing outside decides: the same jobs in the
//! same order give the same placements on any machine. Nodes in equal state are decided once.

mod futures;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use futures::Futures;
pub(crate) use futures::SplitMix;

use imbl::{OrdMap, OrdSet};

use crate::resource::{Demand, Ledger, MiB, MilliCpu, MilliGpu, WHOLE_GPU};

/// The GPU models of a cluster by number, as a set of at most 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Models(u64);

impl Models {
    /// Any model.
    pub const ANY: Self = Self(u64::MAX);
    /// How many models can be told apart.
    pub const MAX: u8 = 64;

    /// The models of these numbers; those beyond [`Models::MAX`] are left out.
    pub fn of(numbers: impl IntoIterator<Item = u8>) -> Self {
        Self(numbers.into_iter().filter(|n| *n < Self::MAX).fold(0, |set, n| set | (1 << n)))
    }

    /// Whether the set has the model.
    pub fn has(self, model: u8) -> bool {
        model < Self::MAX && self.0 & (1 << model) != 0
    }
}

/// What a job asks of one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ask {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// How many devices.
    pub gpus: u32,
    /// How much of the device, where it is one; several are taken whole.
    pub share: MilliGpu,
    /// Which devices will do.
    pub models: Models,
}

impl Ask {
    /// Thousandths of devices in all.
    pub fn milli_gpus(&self) -> u64 {
        let each = if self.gpus > 1 { WHOLE_GPU } else { self.share };
        u64::from(self.gpus) * u64::from(each)
    }

    /// What `demand` asks of a node with devices of one of `models`.
    pub fn of(demand: &Demand, models: Models) -> Self {
        let Demand { cpu, memory, gpus, .. } = *demand;
        Self { cpu, memory, gpus, share: demand.of_each_gpu(), models }
    }

    /// What each device must have free.
    fn each(&self) -> MilliGpu {
        if self.gpus > 1 { WHOLE_GPU } else { self.share }
    }
}

/// What is free on a node. Nodes with the same are alike. Ordered by CPU first, on which
/// [`Packing::choose`] counts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Free {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// Of each device, the least first.
    gpus: Vec<MilliGpu>,
    /// The model of its devices.
    pub model: u8,
}

impl Free {
    /// A node with these devices, each as far as it is free.
    pub fn new(cpu: MilliCpu, memory: MiB, mut gpus: Vec<MilliGpu>, model: u8) -> Self {
        gpus.sort_unstable();
        Self { cpu, memory, gpus, model }
    }

    /// What is free in the books of a node with devices of this model.
    pub fn of(ledger: &Ledger, model: u8) -> Self {
        let gpus = ledger.free_shares().map(|(_, free)| free).collect();
        Self::new(ledger.free_cpu(), ledger.free_memory(), gpus, model)
    }

    /// Thousandths of devices that are free in all.
    pub fn milli_gpus(&self) -> u64 {
        self.gpus.iter().map(|free| u64::from(*free)).sum()
    }

    /// Whether there is room.
    pub fn fits(&self, ask: &Ask) -> bool {
        if self.cpu < ask.cpu || self.memory < ask.memory {
            return false;
        }
        if ask.gpus == 0 {
            return true;
        }
        // Sorted: the last ones have the most.
        let wanted = usize::try_from(ask.gpus).unwrap_or(usize::MAX);
        ask.models.has(self.model)
            && self.gpus.len().checked_sub(wanted).is_some_and(|at| self.gpus[at] >= ask.each())
    }

    /// Takes what is asked for, of the devices that leave the least over. There must be room.
    fn take(&mut self, ask: &Ask) {
        self.cpu -= ask.cpu;
        self.memory -= ask.memory;
        if ask.gpus == 0 {
            return;
        }
        let each = ask.each();
        let first = self.gpus.partition_point(|free| *free < each);
        if let Some(taken) = self.gpus.get_mut(first..first + ask.gpus as usize) {
            taken.iter_mut().for_each(|free| *free -= each);
            self.gpus.sort_unstable();
        }
    }
}

/// So many of the nodes that are left tightest are looked at closely. More find little more, and
/// take longer (measured on the openb traces: 48 gain 0.02 points of GPU allocated, and lose as much
/// where most jobs take several devices).
pub const SHORTLIST: usize = 16;

/// The nodes of a cluster by what is free on them, and what usually comes. A clone shares its
/// structure.
#[derive(Clone, Debug)]
pub struct Packing<N: Ord + Clone> {
    /// Nodes in equal state.
    alike: OrdMap<Free, OrdSet<N>>,
    futures: Futures,
}

impl<N: Ord + Clone> Default for Packing<N> {
    fn default() -> Self {
        Self { alike: OrdMap::new(), futures: Futures::default() }
    }
}

impl<N: Ord + Clone> Packing<N> {
    /// Adds a node in this state.
    pub fn add(&mut self, node: N, free: Free) {
        self.alike.entry(free).or_default().insert(node);
    }

    /// Takes a node away that was added in this state.
    pub fn remove(&mut self, node: &N, free: &Free) {
        if let Some(nodes) = self.alike.get_mut(free) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.alike.remove(free);
            }
        }
    }

    /// Takes note of a job that came, whether it was placed or not.
    pub fn learn(&mut self, ask: &Ask) {
        self.futures.learn(ask);
    }

    /// The state of a node on which the job strands the least, and the state after it; `None` if no
    /// node has room.
    pub fn choose(&self, ask: &Ask) -> Option<(&Free, Free)> {
        self.choose_where(ask, |_| true)
    }

    /// The same of nodes in a state that `may` have the job.
    fn choose_where(&self, ask: &Ask, may: impl Fn(&OrdSet<N>) -> bool) -> Option<(&Free, Free)> {
        let mut tightest: BTreeSet<((u64, MilliCpu, MiB), &Free)> = BTreeSet::new();
        // States are ordered by CPU first: those with too little need not be looked at.
        let enough = Free { cpu: ask.cpu, memory: 0, gpus: Vec::new(), model: 0 };
        let roomy = self.alike.range(enough..).filter(|(free, _)| free.fits(ask));
        for (free, _) in roomy.filter(|(_, nodes)| may(nodes)) {
            // What is left of GPUs, CPU and memory. The GPUs that the job takes are the same
            // everywhere.
            let left = (free.milli_gpus(), free.cpu - ask.cpu, free.memory - ask.memory);
            if tightest.len() == SHORTLIST {
                if tightest.last().is_some_and(|last| (left, free) >= *last) {
                    continue;
                }
                tightest.pop_last();
            }
            tightest.insert((left, free));
        }
        let judged = tightest.into_iter().map(|(_, before)| {
            let (more, after) = self.after(ask, before);
            (more, before, after)
        });
        // The first of equals is the tightest.
        let (_, before, after) = judged.min_by_key(|(more, _, _)| *more)?;
        Some((before, after))
    }

    /// How much more is stranded of a node in this state when it takes the job, and its state then.
    fn after(&self, ask: &Ask, before: &Free) -> (i64, Free) {
        let mut after = before.clone();
        after.take(ask);
        let stranded = |free| self.futures.stranded(free).cast_signed();
        (stranded(&after) - stranded(before), after)
    }

    /// How much GPU the job strands on a node in this state, which has room for it: by this nodes are compared.
    pub fn strands(&self, ask: &Ask, free: &Free) -> i64 {
        self.after(ask, free).0
    }

    /// The first of the nodes on which the job strands the least.
    pub fn node_for(&self, ask: &Ask) -> Option<&N> {
        let (free, _) = self.choose(ask)?;
        self.alike.get(free)?.get_min()
    }

    /// The first of the nodes that `suit` on which the job strands the least.
    pub fn suited_node_for(&self, ask: &Ask, suit: impl Fn(&N) -> bool) -> Option<&N> {
        let (free, _) = self.choose_where(ask, |nodes| nodes.iter().any(&suit))?;
        self.alike.get(free)?.iter().find(|node| suit(node))
    }

    /// Places a job on the node that [`Packing::node_for`] names.
    pub fn place(&mut self, ask: &Ask) -> Option<N> {
        let (before, after) = self.choose(ask)?;
        let before = before.clone();
        let node = self.alike.get(&before)?.get_min()?.clone();
        self.remove(&node, &before);
        self.add(node.clone(), after);
        Some(node)
    }

    /// Nodes in equal state, and how many.
    pub fn alike(&self) -> impl Iterator<Item = (&Free, usize)> {
        self.alike.iter().map(|(free, nodes)| (free, nodes.len()))
    }
}
