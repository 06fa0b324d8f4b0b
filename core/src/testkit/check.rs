//! What must hold of a [`Live`] between any two batches.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checked, Violation, ensure};
use crate::compute::{ComputeRecord, Placement};
use crate::id::{ComputeName, GroupName, JobName, NodeName, Principal};
use crate::job::{Active, Job, State};
use crate::live::{Live, rank};
use crate::node::{Link, NodeRecord};
use crate::resource::{Capacity, Containers, GpuIndex, Ledger, WHOLE_GPU};
use crate::sched::{Limits, Request, WaitReason};

/// Jobs, nodes and the scheduler's view of them agree: every job is in exactly one place, what is
/// reserved is the sum of what active jobs hold, a node that is not ready gets nothing.
///
/// # Errors
/// The first disagreement, in words.
pub fn sanity_check(live: &Live) -> Checked {
    jobs(live)?;
    queues(live)?;
    nodes(live)?;
    ledgers(live)
}

fn insane(seen: impl Into<String>) -> Violation {
    Violation::new("sanity", seen)
}

fn jobs(live: &Live) -> Checked {
    let counters = live.counters();
    let mut epochs = BTreeSet::new();
    for job in live.jobs() {
        ensure(job.seq <= counters.seq, "sanity", || format!("{} is of the future", job.name))?;
        match &job.state {
            State::Queued(_) => {}
            State::Active(active) => {
                ensure(active.epoch <= counters.epoch, "sanity", || {
                    format!("{} has epoch {} of the future", job.name, active.epoch)
                })?;
                ensure(epochs.insert(active.epoch), "I3", || {
                    format!("two attempts have epoch {}", active.epoch)
                })?;
                ensure(active.attempt == job.tries.made, "sanity", || {
                    format!("{} runs attempt {} of {:?}", job.name, active.attempt, job.tries)
                })?;
                let members = active.members().count();
                ensure(members == job.spec.resources.instance_count as usize, "sanity", || {
                    format!("{} has {members} members", job.name)
                })?;
                let nodes: BTreeSet<_> = active.members().map(|member| &member.node).collect();
                ensure(nodes.len() == members, "I9", || {
                    format!("{} has two members on a node: {nodes:?}", job.name)
                })?;
                ensure(active.working().next().is_some(), "sanity", || {
                    format!("{} is over and lives", job.name)
                })?;
                for (_, member) in active.working() {
                    let node = live.node(&member.node);
                    let there = node.is_some_and(|node| node.attempts.contains_key(&job.name));
                    ensure(there, "sanity", || format!("{} is not on {}", job.name, member.node))?;
                }
            }
            State::Ended(_) => return Err(insane(format!("{} has ended and lives", job.name))),
        }
    }
    Ok(())
}

/// The queues hold the queued jobs, each once, and can say why each waits.
fn queues(live: &Live) -> Checked {
    let mut seen: BTreeSet<&JobName> = BTreeSet::new();
    let mut classes: BTreeMap<_, BTreeMap<Request, usize>> = BTreeMap::new();
    for (compute, place, name) in live.sched().waiting() {
        let Some(job) = live.job(name) else {
            return Err(insane(format!("{name} waits and does not exist")));
        };
        ensure(seen.insert(name), "sanity", || format!("{name} waits twice"))?;
        ensure(&job.compute == compute && rank(job) == place, "sanity", || {
            format!(
                "{name} waits in {compute} at {place:?}, and belongs to {} at {:?}",
                job.compute,
                rank(job)
            )
        })?;
        let State::Queued(_) = job.state else {
            return Err(insane(format!("{name} waits and is {}", job.status())));
        };
        let held_back = matches!(live.wait_reason(job), Some(WaitReason::BackOff { .. }));
        if !held_back {
            let request = Request::from(job);
            *classes.entry(compute).or_default().entry(request).or_default() += 1;
        }
    }
    for job in live.jobs().filter(|job| matches!(job.state, State::Queued(_))) {
        ensure(seen.contains(&job.name), "sanity", || format!("{} is in no queue", job.name))?;
        let reason = live.wait_reason(job);
        ensure(reason.is_some(), "sanity", || format!("{} waits for nothing", job.name))?;
        // The constraint that binds a job is about that job.
        if let Some(WaitReason::Shortage { demand, .. }) = reason {
            ensure(demand == job.demand(), "sanity", || {
                format!("{} is said to wait for {demand}", job.name)
            })?;
        }
    }
    for compute in live.computes() {
        let Some(pool) = live.sched().pool(&compute.name) else { continue };
        let counted = classes.remove(&compute.name).unwrap_or_default();
        let mut kept: BTreeMap<Request, usize> = BTreeMap::new();
        for (request, count) in pool.classes() {
            *kept.entry(request.clone()).or_default() += count;
        }
        ensure(kept == counted, "sanity", || {
            format!("{}: classes {kept:?}, in the queue {counted:?}", compute.name)
        })?;
    }
    Ok(())
}

fn actives(live: &Live) -> impl Iterator<Item = (&JobName, &Active)> {
    live.jobs().filter_map(|job| Some((&job.name, job.active()?)))
}

/// A node's attempts are the active jobs that are there, and it gets jobs if it is connected, fit, and
/// nobody keeps them away.
fn nodes(live: &Live) -> Checked {
    for node in live.nodes() {
        let name = &node.record.name;
        let listed: BTreeSet<&JobName> = node.attempts.keys().collect();
        let there: BTreeSet<&JobName> = actives(live)
            .filter(|(_, active)| active.on(name).is_some())
            .map(|(job, _)| job)
            .collect();
        ensure(listed == there, "sanity", || {
            format!("node {name} lists {listed:?}, and {there:?} are there")
        })?;
        for compute in live.computes() {
            let slot = live.sched().pool(&compute.name).and_then(|pool| pool.node(name));
            let home = compute.name == node.record.compute;
            let ready = slot.map(|(_, ready)| ready);
            let leaves =
                live.instances().any(|known| &known.node == name && !known.state.takes_jobs());
            let fit = live.unfit(name).is_none();
            let open = node.link == Link::Ready && node.record.drain.is_none() && !leaves && fit;
            let right = if home { ready == Some(open) } else { ready.is_none() };
            ensure(right, "I8", || {
                format!(
                    "node {name} of {} in pool {}: {ready:?}",
                    node.record.compute, compute.name
                )
            })?;
        }
    }
    Ok(())
}

/// I9: what the scheduler holds reserved on a node is the sum of what active jobs hold there, and
/// no more than the whole of a device is held.
fn ledgers(live: &Live) -> Checked {
    for node in live.nodes() {
        let name = &node.record.name;
        let Some((kept, _)) =
            live.sched().pool(&node.record.compute).and_then(|pool| pool.node(name))
        else {
            return Err(insane(format!("node {name} is in no pool")));
        };
        let summed = reserved(live, name, Ledger::new(counts_as(live, &node.record)))?;
        ensure(kept == &summed, "I9", || {
            format!("node {name}: the scheduler has {kept:?}, its jobs hold {summed:?}")
        })?;
    }
    Ok(())
}

/// What a node offers, where the most that any of its compute does with containers is as good as all.
fn counts_as(live: &Live, record: &NodeRecord) -> Capacity {
    let mut offered = record.offered();
    let here = live.nodes().filter(|node| node.record.compute == record.compute);
    let best = here.map(|node| node.record.offered().containers).max().unwrap_or_default();
    if offered.containers == best {
        offered.containers = Containers::Build;
    }
    offered
}

fn reserved(live: &Live, node: &NodeName, mut ledger: Ledger) -> Checked<Ledger> {
    let mut devices: BTreeMap<GpuIndex, u32> = BTreeMap::new();
    for (job, active) in actives(live) {
        let Some((_, member)) = active.on(node) else { continue };
        for gpu in &member.reservation.gpus {
            let held = devices.entry(*gpu).or_default();
            *held += u32::from(member.reservation.of_each_gpu());
            ensure(*held <= WHOLE_GPU.into(), "I9", || {
                format!("{held} thousandths of GPU {gpu} of node {node} are held, by {job} too")
            })?;
        }
        ledger.take(&member.reservation);
    }
    Ok(ledger)
}

/// I9 at the moment of a placement: with it, what is held on the node, work being ended included,
/// is within what the node has. A node that came back smaller may be over in what this one does not
/// ask for.
pub(super) fn within_capacity(live: &Live, job: &JobName, node: &NodeName) -> Checked {
    let Some(record) = live.nodes().find(|n| &n.record.name == node).map(|n| &n.record) else {
        return Err(Violation::new("I8", format!("a job was placed on {node}, which is unknown")));
    };
    let active = live.job(job).and_then(|job| job.active());
    let Some(new) = active.and_then(|active| active.on(node)).map(|(_, m)| &m.reservation) else {
        return Err(insane(format!("{job} was placed and holds nothing")));
    };
    let has = &counts_as(live, record);
    let (mut cpu, mut memory, mut disk) = (0, 0, 0);
    for (_, member) in actives(live).filter_map(|(_, active)| active.on(node)) {
        cpu += member.reservation.cpu;
        memory += member.reservation.memory;
        disk += member.reservation.disk;
    }
    let fits = (new.cpu == 0 || cpu <= has.cpu)
        && (new.memory == 0 || memory <= has.memory)
        && (new.disk == 0 || has.disk.is_none_or(|has| disk <= has))
        && new.gpus.iter().all(|gpu| has.gpus.contains_key(gpu));
    let demand = live.job(job).map(|job| &job.spec.resources.demand);
    let suits = demand.is_some_and(|demand| {
        demand.is_at_home(&has.labels)
            && demand.containers.least() <= has.containers
            && (new.gpus.iter().filter_map(|gpu| has.gpus.get(gpu)))
                .filter(|device| demand.suits(device))
                .count()
                >= demand.gpus as usize
    });
    ensure(suits, "I9", || format!("{job} got {new:?} of {node}, which is not what it asks for"))?;
    ensure(fits, "I9", || {
        format!("node {node}, with {job} and its {new:?}: {cpu} and {memory} are held of {has:?}")
    })
}

/// What jobs hold of a compute's nodes together, counted from the jobs themselves.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    cpu: u64,
    memory: u64,
    milli_gpus: u64,
    nodes: u32,
    jobs: u32,
}

impl Held {
    fn of(live: &Live, compute: &ComputeName, whose: impl Fn(&Principal) -> bool) -> Self {
        let here =
            |name: &NodeName| live.node(name).is_some_and(|node| &node.record.compute == compute);
        let mut all = Self::default();
        let theirs = live.jobs().filter(|job| whose(&job.created_by)).filter_map(Job::active);
        for active in theirs {
            let before = all.nodes;
            for (_, member) in active.working().filter(|(_, member)| here(&member.node)) {
                let held = &member.reservation;
                all.cpu += held.cpu;
                all.memory += held.memory;
                all.milli_gpus += held.gpus.len() as u64 * u64::from(held.of_each_gpu());
                all.nodes += 1;
            }
            all.jobs += u32::from(all.nodes > before);
        }
        all
    }

    fn is_within(&self, limits: &Limits) -> bool {
        limits.cpu.is_none_or(|most| self.cpu <= most)
            && limits.memory.is_none_or(|most| self.memory <= most)
            && limits.milli_gpus.is_none_or(|most| self.milli_gpus <= most)
            && limits.nodes.is_none_or(|most| self.nodes <= most)
            && limits.jobs.is_none_or(|most| self.jobs <= most)
    }
}

/// I9 of a user and of their groups: at a placement, what the user's jobs hold on the compute's nodes with it is
/// within the quota as it stands then, and what those of all members of each of the user's groups hold within the
/// group's. One that was lowered later leaves alone what runs.
pub(super) fn within_quota(live: &Live, job: &JobName, node: &NodeName) -> Checked {
    let Some(user) = live.job(job).map(|job| &job.created_by) else { return Ok(()) };
    let compute = live.node(node).and_then(|node| live.compute(&node.record.compute));
    let Some(compute) = compute else { return Ok(()) };
    let held = Held::of(live, &compute.name, |owner| owner == user);
    let limits = compute.quotas.of(user);
    ensure(held.is_within(limits), "I9", || {
        format!("{job} was placed, and {user} holds {held:?} of {limits:?}")
    })?;
    for group in &live.people().of(user).groups {
        let Some(limits) = compute.quotas.groups.get(group) else { continue };
        let held = Held::of(live, &compute.name, |owner| is_in(live, owner, group));
        ensure(held.is_within(limits), "I9", || {
            format!("{job} of {user} was placed, and group {group} holds {held:?} of {limits:?}")
        })?;
    }
    Ok(())
}

fn is_in(live: &Live, user: &Principal, group: &GroupName) -> bool {
    live.people().of(user).groups.contains(group)
}

/// I8 of a user: at a placement, the user may use the compute.
pub(super) fn may_use(live: &Live, job: &JobName, node: &NodeName) -> Checked {
    let Some(user) = live.job(job).map(|job| &job.created_by) else { return Ok(()) };
    let compute = live.node(node).and_then(|node| live.compute(&node.record.compute));
    let Some(compute) = compute else { return Ok(()) };
    let may = compute.access.admits(user, live.people().of(user));
    ensure(may, "I8", || format!("{job} of {user} was placed, whom {} keeps away", compute.name))
}

/// Nobody is held back by what is said of others: who is told that a group's quota is taken up, or that the compute is
/// for others, is in that group, and it is so.
fn barred_rightly(live: &Live, compute: &ComputeRecord, job: &Job, reason: &WaitReason) -> Checked {
    let user = &job.created_by;
    let so = match reason {
        WaitReason::NoAccess { .. } => !compute.access.admits(user, live.people().of(user)),
        WaitReason::GroupQuota { group, limits, .. } => {
            let exclusive =
                compute.cluster.as_ref().is_some_and(|c| c.placement == Placement::Exclusive);
            let mut held = Held::of(live, &compute.name, |owner| is_in(live, owner, group));
            let Request { members, demand } = Request::from(job);
            let count = u64::from(members);
            held.cpu += demand.cpu * count;
            held.memory += demand.memory * count;
            held.milli_gpus += demand.milli_gpus() * count;
            held.nodes += members;
            held.jobs += 1;
            let known = compute.quotas.groups.get(group) == Some(&**limits);
            // Where jobs take whole nodes they hold more than they ask for.
            is_in(live, user, group) && known && (exclusive || !held.is_within(limits))
        }
        _ => true,
    };
    ensure(so, "I9", || format!("{} of {user} is told {reason:?}, which is not so", job.name))
}

/// Once a round of placements is done, the first in line waits only if no ready node has room.
pub(super) fn nothing_idles(live: &Live) -> Checked {
    for compute in live.computes() {
        let Some(pool) = live.sched().pool(&compute.name) else { continue };
        if compute.drain.is_some() {
            continue;
        }
        let exclusive =
            compute.cluster.as_ref().is_some_and(|c| c.placement == Placement::Exclusive);
        let could_start = |job: &Job| {
            let Request { members, demand } = Request::from(job);
            let large = pool.nodes().filter(|(_, ledger, _)| ledger.capacity().could_hold(&demand));
            large.filter(|(.., ready)| *ready).count() >= members as usize
        };
        let mut in_line = Vec::new();
        for (at, place, name) in live.sched().waiting() {
            let reason = live.sched().reason(at, place);
            if at != &compute.name || matches!(reason, Some(WaitReason::BackOff { .. })) {
                continue;
            }
            let Some(job) = live.job(name) else { continue };
            if let Some(reason) = &reason {
                barred_rightly(live, compute, job, reason)?;
            }
            // Somebody to whom enough is given already, or nothing, holds nobody back.
            let barred = |reason: &WaitReason| {
                use WaitReason::{GroupQuota, NoAccess, Quota};
                matches!(reason, Quota { .. } | GroupQuota { .. } | NoAccess { .. })
            };
            if reason.as_ref().is_some_and(barred) {
                continue;
            }
            let supplied = compute.is_scaled() && !could_start(job);
            let set_aside = supplied
                || matches!(
                    reason,
                    Some(
                        WaitReason::TooLarge { .. }
                            | WaitReason::Drained { .. }
                            | WaitReason::Unfit { .. }
                            | WaitReason::NodesSilent
                            | WaitReason::NoNodes
                            | WaitReason::TooFew { .. }
                    )
                );
            ensure(set_aside != could_start(job), "sanity", || {
                format!("{name} is told {reason:?}, which is not so")
            })?;
            if !set_aside {
                in_line.push(job);
            }
        }
        let Some(first) = in_line.first() else { continue };
        let Request { members, demand } = Request::from(*first);
        let demand = &demand;
        let mut room = pool.nodes().filter(|(_, ledger, ready)| {
            let fits = ledger.shortage(demand).is_none() && (!exclusive || ledger.is_idle());
            *ready && fits
        });
        let room = room.nth(members as usize - 1);
        ensure(room.is_none(), "I18", || {
            format!("{} is first in line and waits, and {:?} has room", first.name, room)
        })?;
        let reason = live.wait_reason(first);
        ensure(
            !matches!(reason, None | Some(WaitReason::Undecided | WaitReason::Behind { .. })),
            "sanity",
            || format!("{} is first in line, and told {reason:?}", first.name),
        )?;
    }
    Ok(())
}
