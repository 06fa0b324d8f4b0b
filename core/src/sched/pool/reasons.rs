//! Why jobs wait, and what could never start.

use super::nodes::Slot;
use super::{Barred, Closed, Pool, Supply};
use crate::id::NodeName;
use crate::resource::{Capacity, ContainerNeed, Demand, Ledger, MiB, Shortage};
use crate::sched::{COUNTED, Rank, Request, WaitReason};

impl Pool {
    /// Why a job waits that no node which gets jobs could hold.
    fn too_large(&self, request: &Request) -> WaitReason {
        let demand = &request.demand;
        if self.nodes.is_empty() {
            return WaitReason::NoNodes;
        }
        let closed = |drained: bool| {
            self.nodes
                .iter()
                .filter(|(_, slot)| !slot.is_open() && !slot.leaving && slot.drained == drained)
                .find(|(_, slot)| slot.ledger.capacity().could_hold(demand))
        };
        let unfit = closed(false).and_then(|(node, slot)| {
            let why = slot.unfit.clone().filter(|_| slot.ready)?;
            Some(WaitReason::Unfit { demand: demand.clone(), node: node.clone(), why })
        });
        let fitting = self.sizes.iter().filter(|(size, _)| size.could_hold(demand));
        let nodes = fitting.map(|(_, count)| *count).sum();
        if request.members > 1 && nodes > 0 {
            return WaitReason::TooFew { request: request.clone(), nodes };
        }
        let some_open = self.nodes.values().any(Slot::is_open);
        if self.nodes.values().all(|slot| slot.leaving) {
            return WaitReason::NoNodes;
        }
        let name = |(node, _): (&NodeName, _)| node.clone();
        match (unfit, closed(false).map(name), closed(true).map(name)) {
            (Some(unfit), ..) => unfit,
            (None, Some(_), _) if !some_open => WaitReason::NodesSilent,
            (None, None, Some(node)) => WaitReason::Drained { demand: demand.clone(), node },
            (None, node, _) => WaitReason::TooLarge { demand: demand.clone(), node },
        }
    }

    /// How many of the nodes that get jobs have room for a member.
    fn with_room(&self, demand: &Demand) -> usize {
        let open = self.nodes.values().filter(|slot| slot.is_open());
        open.filter(|slot| self.has_room(&slot.ledger, demand)).count()
    }

    /// Why the first in line waits for room.
    pub(super) fn shortage(&self, request: &Request) -> WaitReason {
        let demand = &request.demand;
        if request.members > 1 {
            let ready = self.with_room(demand);
            return WaitReason::Gang { request: request.clone(), ready };
        }
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

    pub(in crate::sched) fn reason(&self, rank: Rank) -> Option<WaitReason> {
        if let Some(waiting) = self.queue.get(&rank) {
            if let Some(Closed { by, reason }) = &self.closed {
                let (by, reason) = (by.clone(), reason.clone());
                return Some(WaitReason::ComputeDrained { by, reason });
            }
            let known = self.users.get(&waiting.user)?;
            let barred = self.barred(&waiting.user, known, &waiting.request, None);
            if let Some(Barred::NoAccess) = barred {
                let access = Box::new(self.access.clone());
                return Some(WaitReason::NoAccess { user: waiting.user.clone(), access });
            }
            if !self.could_start(&waiting.request) {
                let reason = self.too_large(&waiting.request);
                return Some(self.supplied(&waiting.request, reason));
            }
            match barred {
                Some(Barred::GroupQuota(group)) => {
                    let limits = self.quotas.groups.get(&group).cloned().unwrap_or_default();
                    let held = self.groups.get(&group).copied().unwrap_or_default();
                    let held = Box::new(held.of_what_is(&limits));
                    let limits = Box::new(limits);
                    return Some(WaitReason::GroupQuota { group, limits, held });
                }
                Some(Barred::Quota) => {
                    let limits = self.quotas.of(&waiting.user).clone();
                    let held = Box::new(known.held.of_what_is(&limits));
                    let (user, limits) = (waiting.user.clone(), Box::new(limits));
                    return Some(WaitReason::Quota { user, limits, held });
                }
                Some(Barred::NoAccess) | None => {}
            }
            let Some((first, head)) = self.head() else { return Some(WaitReason::Undecided) };
            let because = self.blocked.clone().unwrap_or(WaitReason::Undecided);
            let because = self.supplied(&head.request, because);
            if first == rank {
                return Some(because);
            }
            // The first in line may have been promised its place before its user was set back.
            let ahead = self.ahead_of(rank, known.set_back).max(1);
            let because = Box::new(because);
            return Some(WaitReason::Behind { head: head.job.clone(), ahead, because });
        }
        let until = self.until.get(&rank)?;
        let held = self.delayed.get(&(*until, rank))?.not_before.as_ref()?;
        Some(WaitReason::BackOff { until: held.until, why: held.why.clone() })
    }

    /// The reason in view of the nodes that may come.
    fn supplied(&self, request: &Request, reason: WaitReason) -> WaitReason {
        use WaitReason::{MakingRoom, NextRound, Undecided};
        let demand = &request.demand;
        let helps = self.template.as_ref().is_some_and(|node| node.could_hold(demand));
        if !helps || matches!(reason, NextRound | Undecided | MakingRoom { .. }) {
            return reason;
        }
        match &self.supply {
            Supply::None => reason,
            Supply::Room { nodes } if request.members <= *nodes => WaitReason::Growing,
            Supply::Room { nodes } => {
                let ready = self.with_room(demand);
                let enough = request.members as usize <= *nodes as usize + ready;
                if enough { WaitReason::Growing } else { reason }
            }
            Supply::Coming { nodes, since } => {
                WaitReason::NodesComing { nodes: *nodes, since: *since }
            }
            Supply::Failing { why, until } => {
                WaitReason::NoNodeToBeHad { why: why.clone(), until: *until }
            }
            Supply::Full { most } => WaitReason::Full { most: *most, because: Box::new(reason) },
        }
    }

    /// How many in line are ahead of `rank`, which is one of them and set back by so much; at most
    /// [`COUNTED`]. Counted from whichever end is nearer: a job is mostly asked about when it has
    /// just come, or is about to start.
    fn ahead_of(&self, rank: Rank, set_back: i64) -> usize {
        let place = rank.later_by(set_back);
        let mut before = self
            .users
            .values()
            .flat_map(|user| user.line.ranks().range(..place.later_by(-user.set_back)));
        let mut after = self
            .users
            .values()
            .flat_map(|user| user.line.ranks().range(place.later_by(-user.set_back)..));
        for count in 0..COUNTED {
            if before.next().is_none() {
                return count;
            }
            if after.next().is_none() {
                return self.queue.len() - count;
            }
        }
        COUNTED
    }

    /// The most memory that each member could have on nodes that could hold it otherwise.
    pub(in crate::sched) fn most_memory(&self, request: &Request) -> Option<MiB> {
        let Request { members, demand } = request;
        let holds = |capacity: &&Capacity| capacity.could_hold(demand);
        let nodes = self.nodes.values().map(|slot| slot.ledger.capacity()).filter(holds);
        let mut memories: Vec<MiB> = nodes.map(|capacity| capacity.memory).collect();
        memories.sort_unstable_by(|one, other| other.cmp(one));
        let there = memories.get((*members as usize).saturating_sub(1)).copied();
        let to_come = self.template.iter().filter(holds).map(|capacity| capacity.memory);
        there.into_iter().chain(to_come).max()
    }

    /// The largest node that there is or may come, if none could ever hold it.
    pub(in crate::sched) fn never_fits(&self, demand: &Demand) -> Option<Capacity> {
        let capacities =
            || self.nodes.values().map(|slot| slot.ledger.capacity()).chain(&self.template);
        // A label that some node has had may come back, so that one waits for it.
        let mut asked = demand.clone();
        // So may a container runtime be installed.
        asked.containers = ContainerNeed::Nothing;
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
                Some(Shortage::Labels | Shortage::Containers) | None => {
                    (capacity.gpus.len() as u64, capacity.cpu)
                }
                Some(Shortage::Memory) => (capacity.memory, capacity.cpu),
                Some(Shortage::Disk) => (capacity.disk.unwrap_or_default(), capacity.cpu),
                Some(Shortage::Cpu) => (capacity.cpu, capacity.memory),
            })
            .cloned()
    }
}

fn lacking(capacity: &Capacity, demand: &Demand) -> Option<Shortage> {
    Ledger::new(capacity.clone()).shortage(demand)
}

/// How many devices it has that suit.
fn gpus_for(capacity: &Capacity, demand: &Demand) -> u64 {
    capacity.gpus.values().filter(|device| demand.suits(device)).count() as u64
}
