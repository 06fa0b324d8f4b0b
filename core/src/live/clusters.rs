//! Clusters: made, changed and deleted by admins; their nodes asked for and given up as the queue
//! needs.

use std::collections::BTreeMap;

use super::{Decisions, Effect, Live, Refusal, Restored, lost};
use crate::compute::{
    Access, Cluster, ComputeRecord, Containment, Instance, InstanceState, Placement, Provider,
    Trouble,
};
use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::job::{Job, State};
use crate::node::{Drain, Link, Mono, NodeRecord, Now};
use crate::resource::{Capacity, Cpus, Memory};
use crate::scale::{Scaling, View, scale};
use crate::sched::{Closed, Quotas, Supply};
use crate::time::Timestamp;

/// A cluster looks at its queue at most this often, in milliseconds.
const LOOK_MS: u64 = 100;
/// How long a node that is there may take to join: those on the daemon's machine, and others.
const JOIN_LOCAL_MS: i64 = 60_000;
const JOIN_MS: i64 = 900_000;
/// Names of jobs in a refusal.
const SHOWN: usize = 3;

/// What an admin changes of a cluster. What is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterChange {
    /// Nodes that are kept in any case.
    pub min_instances: Option<u32>,
    /// Nodes at most.
    pub max_instances: Option<u32>,
    /// Seconds without work after which a node is given up.
    pub idle_time_before_scale_down: Option<u64>,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs that replace those it has.
    pub tags: Option<BTreeMap<String, String>>,
}

/// What a provider says of a node of a cluster, unasked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TakenAway {
    /// Which.
    pub node: NodeName,
    /// Why it is gone, in words.
    pub reason: String,
    /// Its machine was wanted elsewhere, rather than broken.
    pub preempted: bool,
}

impl Live {
    /// Makes a cluster, or changes what may change of one that is there. The cluster has passed
    /// [`Cluster::check`].
    ///
    /// # Errors
    /// The name is that of a compute which is no cluster or is being deleted, or something would
    /// change that is fixed when a cluster is made.
    pub fn put_cluster(
        &mut self,
        cluster: Cluster,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let name = cluster.name.clone();
        let record = match self.computes.get(&name) {
            None => ComputeRecord {
                name: name.clone(),
                cluster: Some(cluster),
                created_by: by,
                created_at: now.wall,
                next_node: 1,
                drain: None,
                deleted: false,
                least_memory: None,
                least_disk: None,
                quotas: Quotas::default(),
                access: Access::default(),
                trouble: None,
            },
            Some(known) if known.deleted => return Err(Refusal::ComputeDeleted(name)),
            Some(known) => {
                let Some(before) = &known.cluster else { return Err(Refusal::NotACluster(name)) };
                if let Some(field) = fixed_difference(before, &cluster) {
                    return Err(Refusal::FixedField { compute: name, field });
                }
                ComputeRecord { cluster: Some(cluster), trouble: None, ..known.clone() }
            }
        };
        self.put_compute(record, out);
        Ok(())
    }

    /// Changes a cluster's bounds.
    ///
    /// # Errors
    /// There is no such cluster, or a rule of [`Cluster::check`] would be broken.
    pub fn change_cluster(
        &mut self,
        name: &ComputeName,
        change: ClusterChange,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let mut record = self.cluster(name)?.clone();
        let Some(cluster) = &mut record.cluster else {
            return Err(Refusal::NotACluster(name.clone()));
        };
        cluster.min_instances = change.min_instances.unwrap_or(cluster.min_instances);
        cluster.max_instances = change.max_instances.unwrap_or(cluster.max_instances);
        cluster.idle_time_before_scale_down =
            change.idle_time_before_scale_down.unwrap_or(cluster.idle_time_before_scale_down);
        cluster.description = change.description.or(cluster.description.take());
        if let Some(tags) = change.tags {
            cluster.tags = tags;
        }
        cluster.check().map_err(|faults| Refusal::BadCluster(faults.to_string()))?;
        record.trouble = None;
        self.put_compute(record, out);
        Ok(())
    }

    /// Deletes a cluster: its nodes leave, and it goes with the last of them.
    ///
    /// # Errors
    /// There is no such cluster, or jobs are on it.
    pub fn delete_cluster(
        &mut self,
        name: &ComputeName,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let mut record = self.cluster(name)?.clone();
        if name == &self.default_compute {
            return Err(Refusal::DefaultCompute(name.clone()));
        }
        let here = |job: &&Job| match &job.state {
            State::Active(active) => {
                let there = |node: &NodeName| {
                    self.nodes.get(node).is_some_and(|node| &node.record.compute == name)
                };
                &job.compute == name || active.working().any(|(_, member)| there(&member.node))
            }
            State::Queued(_) | State::Ended(_) => &job.compute == name,
        };
        let jobs: Vec<&JobName> = self.jobs.values().filter(here).map(|job| &job.name).collect();
        if !jobs.is_empty() {
            let (count, shown) = (jobs.len(), jobs.into_iter().take(SHOWN).cloned().collect());
            return Err(Refusal::ComputeBusy { compute: name.clone(), count, shown });
        }
        record.deleted = true;
        self.put_compute(record, out);
        let nodes: Vec<NodeName> = self.instances_of(name).map(|i| i.node.clone()).collect();
        for node in nodes {
            self.leave(&node, "the cluster is deleted", now, out);
        }
        self.bury(name, out);
        Ok(())
    }

    /// Keeps jobs away from a whole compute. With a deadline, those that still run there then go
    /// back in the queue; a deadline that is past means at once.
    ///
    /// # Errors
    /// There is no such compute, or it is drained already and this is no `update`.
    pub fn drain_compute(
        &mut self,
        name: &ComputeName,
        drain: Drain,
        update: bool,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Some(record) = self.computes.get(name) else {
            return Err(Refusal::NoSuchCompute(name.clone()));
        };
        if let Some(Drain { by, reason, .. }) = &record.drain
            && !update
        {
            let (by, reason) = (by.clone(), reason.clone());
            return Err(Refusal::ComputeDrained { compute: name.clone(), by, reason });
        }
        let record = ComputeRecord { drain: Some(drain), ..record.clone() };
        self.put_compute(record, out);
        self.evict_due(now, out);
        Ok(())
    }

    /// Lets a drained compute have jobs again.
    ///
    /// # Errors
    /// There is no such compute, or it is not drained.
    pub fn resume_compute(
        &mut self,
        name: &ComputeName,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Some(record) = self.computes.get(name) else {
            return Err(Refusal::NoSuchCompute(name.clone()));
        };
        if record.drain.is_none() {
            return Err(Refusal::ComputeNotDrained(name.clone()));
        }
        let record = ComputeRecord { drain: None, ..record.clone() };
        self.put_compute(record, out);
        Ok(())
    }

    /// Whether a node may join: one of a cluster that makes its own nodes must be one of them.
    ///
    /// # Errors
    /// There is no such compute, the node is none of the cluster's, or it does not keep jobs apart and the
    /// cluster is strict.
    pub fn may_join(&self, record: &NodeRecord) -> Result<(), Refusal> {
        let Some(compute) = self.computes.get(&record.compute) else {
            return Err(Refusal::NoSuchCompute(record.compute.clone()));
        };
        let known = self.instances.get(&record.name);
        let theirs = known.is_some_and(|instance| instance.compute == record.compute);
        let strict = self.is_strict(&record.compute);
        // One that has jobs is heard first, or they would be lost; one of the cluster's own is given back.
        let has_jobs = self.nodes.get(&record.name).is_some_and(|node| !node.attempts.is_empty());
        if let Some(lacks) = record.not_contained().filter(|_| strict && !theirs && !has_jobs) {
            let (node, compute) = (record.name.clone(), record.compute.clone());
            return Err(Refusal::NotContained { node, compute, lacks });
        }
        if theirs || (known.is_none() && !compute.is_scaled()) {
            return Ok(());
        }
        Err(Refusal::NotOfCluster { node: record.name.clone(), compute: record.compute.clone() })
    }

    /// The provider has added a node, or could not.
    pub fn node_made(
        &mut self,
        node: &NodeName,
        made: Result<(), String>,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(instance) = self.instances.get(node) else { return };
        if !matches!(instance.state, InstanceState::Creating { .. }) {
            return;
        }
        match made {
            Ok(()) => {
                let state = InstanceState::Joining { since: now.wall };
                self.put_instance(Instance { state, ..instance.clone() }, out);
            }
            Err(message) => {
                let compute = instance.compute.clone();
                self.trouble(&compute, message, now, out);
                // Something of it may be there.
                self.leave(node, "it could not be added", now, out);
            }
        }
    }

    /// The provider has taken a node away, or could not. What ran there is lost.
    pub fn node_gone(
        &mut self,
        node: &NodeName,
        gone: Result<(), String>,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(instance) = self.instances.get(node).cloned() else { return };
        let InstanceState::Leaving { reason, trouble, preempted } = &instance.state else {
            return;
        };
        if let Err(message) = gone {
            let state = InstanceState::Leaving {
                reason: reason.clone(),
                trouble: Some(Trouble::after(trouble.as_ref(), message, now.wall)),
                preempted: *preempted,
            };
            self.asked.remove(node);
            self.put_instance(Instance { state, ..instance }, out);
            return;
        }
        let why = reason.clone();
        // A machine that joined another compute by itself may have the name.
        if self.nodes.get(node).is_some_and(|known| known.record.compute == instance.compute) {
            self.lose_jobs(node, &why, now, out);
            self.forget_node(node, out);
        }
        self.instances.remove(node);
        self.asked.remove(node);
        out.instances.remove(node);
        out.instances_gone.push(node.clone());
        self.bury(&instance.compute, out);
        self.scale_at = now.mono;
    }

    /// A machine was, or is about to be, taken from under its node. If the node still answers, its
    /// jobs are asked to make way, for they do run; else they go back in the queue at once. A node
    /// that was merely not found is believed to be there until it has been silent for a while.
    pub fn node_taken_away(&mut self, taken: TakenAway, now: Now, out: &mut Decisions) {
        let TakenAway { node, reason, preempted } = taken;
        let Some(instance) = self.instances.get(&node).cloned() else { return };
        if matches!(instance.state, InstanceState::Leaving { .. } | InstanceState::Creating { .. })
        {
            return;
        }
        let silent_for = match self.nodes.get(&node).map(|known| known.link) {
            Some(Link::Ready) => None,
            Some(Link::Silent { since }) => Some(now.mono.millis_since(since)),
            // It never joined.
            None => Some(u64::MAX),
        };
        match silent_for {
            None if preempted => {
                let state = InstanceState::Retiring { reason: reason.clone(), preempted };
                if instance.state != state {
                    self.put_instance(Instance { state, ..instance }, out);
                    self.close(&node);
                }
                let jobs = self.nodes.get(&node).map(|known| known.attempts.keys().cloned());
                let jobs: Vec<JobName> = jobs.into_iter().flatten().collect();
                for job in jobs {
                    let reason = format!("node {node}: {reason}");
                    self.evict(&job, self.daemon.clone(), reason, now, out);
                }
            }
            None => {}
            Some(silent) if preempted || silent >= self.lease.unreachable_ms => {
                self.lose_jobs(&node, &reason, now, out);
                let state = InstanceState::Leaving { reason, trouble: None, preempted };
                self.put_instance(Instance { state, ..instance }, out);
                self.close(&node);
                self.scale_at = now.mono;
            }
            Some(_) => {}
        }
    }

    /// A node of a cluster's own has joined.
    pub(super) fn instance_joined(&mut self, record: &NodeRecord, now: Now, out: &mut Decisions) {
        let Some(instance) = self.instances.get(&record.name).cloned() else { return };
        if !instance.state.takes_jobs() || instance.state == InstanceState::Up {
            return;
        }
        let compute = instance.compute.clone();
        let shape = self.computes.get(&compute).and_then(|known| known.cluster.as_ref());
        let Some(cluster) = shape else { return };
        let shape = Capacity { labels: cluster.node_labels.clone(), ..cluster.node.capacity() };
        let contained = match cluster.containment {
            Containment::Strict => record.not_contained(),
            Containment::BestEffort => None,
        };
        if let Some(lacks) = lacks(&record.capacity, &shape).or(contained) {
            self.trouble(&compute, format!("node {} has {lacks}", record.name), now, out);
            let reason = format!("it has {lacks}");
            return self.leave(&record.name, &reason, now, out);
        }
        self.put_instance(Instance { state: InstanceState::Up, ..instance }, out);
        let Some(known) = self.computes.get(&compute) else { return };
        let before = known.least_memory.unwrap_or(shape.memory);
        let less = Some(record.capacity.memory).filter(|memory| *memory < before);
        let disk = record.capacity.disk.filter(|has| {
            let least = known.least_disk.or(shape.disk);
            least.is_none_or(|least| *has < least)
        });
        if known.trouble.is_some() || less.is_some() || disk.is_some() {
            let least_memory = less.or(known.least_memory);
            let least_disk = disk.or(known.least_disk);
            let record = ComputeRecord { trouble: None, least_memory, least_disk, ..known.clone() };
            self.put_compute(record, out);
        }
    }

    /// Why a node gets no jobs though it answers, if it does not.
    pub fn unfit(&self, node: &NodeName) -> Option<String> {
        let record = &self.nodes.get(node)?.record;
        if self.held_until.is_some() {
            return Some(Restored::HOLDS.to_owned());
        }
        record.unfit(self.is_strict(&record.compute))
    }

    /// Whether the compute takes nodes only that keep jobs apart.
    fn is_strict(&self, compute: &ComputeName) -> bool {
        let cluster = self.computes.get(compute).and_then(|known| known.cluster.as_ref());
        cluster.is_some_and(|cluster| cluster.containment == Containment::Strict)
    }

    /// Lets the scheduler know whether the node gets jobs, be it kept from them on an admin's word,
    /// by what it lacks, or because it is on its way out.
    pub(super) fn close(&mut self, node: &NodeName) {
        let Some(known) = self.nodes.get(node) else { return };
        let (compute, drained) = (known.record.compute.clone(), known.record.drain.is_some());
        let leaves = |instance: &Instance| !instance.state.takes_jobs();
        let leaving = self.instances.get(node).is_some_and(leaves);
        self.sched.set_drained(&compute, node, drained);
        self.sched.set_leaving(&compute, node, leaving);
        self.sched.set_unfit(&compute, node, self.unfit(node));
    }

    /// Asks for nodes and gives them up, as the queues need.
    pub(super) fn scale(&mut self, now: Now, out: &mut Decisions) {
        if now.mono < self.scale_at {
            return;
        }
        self.scale_at = Mono(now.mono.0 + LOOK_MS);
        let scaled: Vec<ComputeName> = self
            .computes
            .values()
            .filter(|compute| compute.is_scaled())
            .map(|compute| compute.name.clone())
            .collect();
        for compute in scaled {
            self.give_up_on_nodes(&compute, now, out);
            self.scale_cluster(&compute, now, out);
            self.tell_supply(&compute, now.wall);
        }
        self.ask_providers(now, out);
    }

    /// Nodes that have not joined in time, that have been silent for too long, and those that were
    /// to go when their work was over.
    fn give_up_on_nodes(&mut self, compute: &ComputeName, now: Now, out: &mut Decisions) {
        let local = self
            .computes
            .get(compute)
            .and_then(|known| known.cluster.as_ref())
            .is_some_and(|cluster| cluster.provider == Provider::Local);
        let patience = if local { JOIN_LOCAL_MS } else { JOIN_MS };
        let given_up = self.lease.lease_ms + self.lease.margin_ms;
        let mut gone: Vec<(NodeName, String, bool)> = Vec::new();
        let mut taken: Vec<(NodeName, String)> = Vec::new();
        for instance in self.instances_of(compute) {
            let node = self.nodes.get(&instance.node);
            match &instance.state {
                InstanceState::Joining { since }
                    if now.wall.as_millis() - since.as_millis() >= patience =>
                {
                    let seconds = patience / 1000;
                    let why = format!("its agent has not joined within {seconds} s");
                    gone.push((instance.node.clone(), why, true));
                }
                InstanceState::Up => {
                    let silent = node.and_then(|node| match node.link {
                        Link::Silent { since } => Some(now.mono.millis_since(since)),
                        Link::Ready => None,
                    });
                    if let Some(silent) = silent.filter(|silent| *silent >= given_up)
                        && node.is_some_and(|node| node.attempts.is_empty())
                    {
                        let why = format!("it has been silent for {} s", silent / 1000);
                        gone.push((instance.node.clone(), why, false));
                    }
                }
                InstanceState::Retiring { reason, preempted: true }
                    if node.is_none_or(|node| node.attempts.is_empty()) =>
                {
                    taken.push((instance.node.clone(), reason.clone()));
                }
                InstanceState::Retiring { reason, .. }
                    if node.is_none_or(|node| node.attempts.is_empty()) =>
                {
                    gone.push((instance.node.clone(), reason.clone(), false));
                }
                _ => {}
            }
        }
        for (node, reason) in taken {
            if let Some(instance) = self.instances.get(&node).cloned() {
                let state = InstanceState::Leaving { reason, trouble: None, preempted: true };
                self.put_instance(Instance { state, ..instance }, out);
            }
        }
        for (node, why, is_trouble) in gone {
            if is_trouble {
                self.trouble(compute, format!("node {node}: {why}"), now, out);
            }
            self.leave(&node, &why, now, out);
        }
    }

    fn scale_cluster(&mut self, name: &ComputeName, now: Now, out: &mut Decisions) {
        let Some(view) = self.view(name, now) else { return };
        let Scaling { add, remove, retire } = scale(&view, now.wall);
        let due = view.not_before.is_some_and(|until| until <= now.wall);
        let enough = view.up.len() + view.coming.len() >= view.min as usize;
        if due
            && enough
            && !view.has_work
            && let Some(known) = self.computes.get(name)
        {
            // Nobody wants a node any more, so that none can be had is no trouble.
            self.put_compute(ComputeRecord { trouble: None, ..known.clone() }, out);
        }
        if add > 0
            && let Some(known) = self.computes.get(name)
        {
            let mut record = known.clone();
            for _ in 0..add {
                let node = loop {
                    let node = NodeName::numbered(name, record.next_node);
                    record.next_node += 1;
                    // A machine that joined by itself may have the name.
                    if !self.nodes.contains_key(&node) && !self.instances.contains_key(&node) {
                        break node;
                    }
                };
                let state = InstanceState::Creating { since: now.wall };
                self.put_instance(Instance { node, compute: name.clone(), state }, out);
            }
            self.put_compute(record, out);
        }
        for node in remove {
            self.leave(&node, "it has had no work", now, out);
        }
        for node in retire {
            if let Some(instance) = self.instances.get(&node).cloned() {
                let reason = "the cluster's maximum was lowered".to_owned();
                let state = InstanceState::Retiring { reason, preempted: false };
                self.put_instance(Instance { state, ..instance }, out);
                self.close(&node);
            }
        }
    }

    /// What the decision depends on; `None` if the cluster is not to be scaled.
    fn view(&mut self, name: &ComputeName, now: Now) -> Option<View> {
        let known = self.computes.get(name)?;
        let cluster = known.cluster.as_ref()?;
        if known.deleted {
            return None;
        }
        let strict = cluster.containment == Containment::Strict;
        let (min, max) = (cluster.min_instances, cluster.max_instances);
        let idle_s = i64::try_from(cluster.idle_time_before_scale_down).unwrap_or(i64::MAX);
        let not_before = known.trouble.as_ref().map(|trouble| trouble.until);
        let mut view =
            View { min, max, idle_ms: idle_s.saturating_mul(1000), not_before, ..View::default() };
        // An admin who drains a compute wants its nodes left as they are.
        if known.drain.is_some() {
            return None;
        }
        let mut coming: Vec<(Timestamp, NodeName)> = Vec::new();
        let (mut reconnecting, mut unusable): (u32, u32) = (0, 0);
        for instance in self.instances.values().filter(|instance| &instance.compute == name) {
            match &instance.state {
                InstanceState::Creating { since } | InstanceState::Joining { since } => {
                    coming.push((*since, instance.node.clone()));
                }
                InstanceState::Up => {
                    let since = self.nodes.get_mut(&instance.node).and_then(|node| {
                        let record = &node.record;
                        let closed = record.drain.is_some() || record.unfit(strict).is_some();
                        unusable += u32::from(closed);
                        let idle = node.attempts.is_empty();
                        node.idle_since = idle.then(|| node.idle_since.unwrap_or(now.wall));
                        if let Link::Silent { since } = node.link
                            && idle
                            && now.mono.millis_since(since) < self.lease.unreachable_ms
                        {
                            reconnecting += 1;
                        }
                        node.idle_since
                    });
                    view.up.push((instance.node.clone(), since));
                }
                InstanceState::Leaving { trouble: Some(_), .. } => {
                    view.leaving += 1;
                    unusable += 1;
                }
                InstanceState::Retiring { .. } | InstanceState::Leaving { .. } => view.leaving += 1,
            }
        }
        // Nodes that get no jobs count to the maximum all the same.
        view.has_work = self.sched.has_work(name, max.saturating_sub(unusable));
        coming.sort();
        view.coming = coming.into_iter().map(|(_, node)| node).collect();
        let coming = u32::try_from(view.coming.len()).unwrap_or(u32::MAX);
        let kept = view.up.len() + view.coming.len() + view.leaving as usize;
        let room = max.saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX));
        let held = view.not_before.is_some_and(|until| until > now.wall);
        if view.has_work && room > 0 && !held {
            let wanted = self.sched.nodes_wanted(name, now.wall, coming.saturating_add(room));
            // A node that has just fallen silent, as all do when the daemon starts, is soon back.
            view.wanted = wanted.saturating_sub(coming).saturating_sub(reconnecting);
        }
        Some(view)
    }

    /// Lets those who wait know what they may hope for.
    fn tell_supply(&mut self, name: &ComputeName, now: Timestamp) {
        let Some(known) = self.computes.get(name) else { return };
        let Some(cluster) = &known.cluster else { return };
        let (mut there, mut coming, mut first) = (0_u32, 0, None);
        for instance in self.instances_of(name) {
            there += 1;
            if let Some(since) = instance.state.is_coming() {
                coming += 1;
                first = Some(first.map_or(since, |first: Timestamp| first.min(since)));
            }
        }
        let failing = known.trouble.as_ref().filter(|trouble| trouble.until > now);
        let supply = match (first, failing) {
            (Some(since), _) => Supply::Coming { nodes: coming, since },
            (None, _) if there >= cluster.max_instances => {
                Supply::Full { most: cluster.max_instances }
            }
            (None, Some(trouble)) => {
                Supply::Failing { why: trouble.message.clone(), until: trouble.until }
            }
            (None, None) => Supply::Room { nodes: cluster.max_instances - there },
        };
        self.sched.set_supply(name, supply);
    }

    /// Asks providers for what they have not been asked since the daemon started. A provider takes
    /// a second order for the same node for the first.
    fn ask_providers(&mut self, now: Now, out: &mut Decisions) {
        for instance in self.instances.values() {
            let adds = match &instance.state {
                InstanceState::Creating { .. } => true,
                InstanceState::Leaving { trouble, .. }
                    if trouble.as_ref().is_none_or(|trouble| trouble.until <= now.wall) =>
                {
                    false
                }
                _ => continue,
            };
            let cluster = self.computes.get(&instance.compute).and_then(|c| c.cluster.as_ref());
            let Some(cluster) = cluster else { continue };
            if self.asked.get(&instance.node) != Some(&adds) {
                self.asked.insert(instance.node.clone(), adds);
                let (cluster, node) = (Box::new(cluster.clone()), instance.node.clone());
                out.effects.push(match adds {
                    true => Effect::AddNode { cluster, node },
                    false => Effect::RemoveNode { cluster, node },
                });
            }
        }
    }

    /// Whether some cluster has something to do as time passes.
    pub(super) fn scales(&self) -> bool {
        !self.instances.is_empty()
            || self.computes.values().any(|compute| {
                compute.is_scaled()
                    && compute.cluster.as_ref().is_some_and(|cluster| {
                        cluster.min_instances > 0
                            || self.sched.has_work(&compute.name, cluster.max_instances)
                    })
            })
    }

    /// Takes a node of a cluster away; it has no work.
    fn leave(&mut self, node: &NodeName, reason: &str, now: Now, out: &mut Decisions) {
        let Some(instance) = self.instances.get(node).cloned() else { return };
        if matches!(instance.state, InstanceState::Leaving { .. }) {
            return;
        }
        let state = InstanceState::leaving(reason);
        self.put_instance(Instance { state, ..instance }, out);
        self.close(node);
        self.scale_at = now.mono;
    }

    fn trouble(&mut self, name: &ComputeName, message: String, now: Now, out: &mut Decisions) {
        let Some(known) = self.computes.get(name) else { return };
        // Nodes that were asked for together fail together: that is one failure.
        let pausing = known.trouble.as_ref().filter(|trouble| trouble.until > now.wall);
        let trouble = match pausing {
            Some(trouble) => Trouble { message, ..trouble.clone() },
            None => Trouble::after(known.trouble.as_ref(), message, now.wall),
        };
        let record = ComputeRecord { trouble: Some(trouble), ..known.clone() };
        self.put_compute(record, out);
    }

    /// Takes a deleted cluster's record away once nothing of it is left.
    fn bury(&mut self, name: &ComputeName, out: &mut Decisions) {
        let deleted = self.computes.get(name).is_some_and(|known| known.deleted);
        if !deleted || self.instances_of(name).next().is_some() {
            return;
        }
        // Machines that joined by themselves.
        let joined: Vec<NodeName> = self
            .nodes
            .values()
            .filter(|node| &node.record.compute == name)
            .map(|node| node.record.name.clone())
            .collect();
        for node in joined {
            self.forget_node(&node, out);
        }
        self.computes.remove(name);
        self.sched.remove_compute(name);
        out.computes.remove(name);
        out.computes_gone.push(name.clone());
    }

    /// Gives up what runs on a node that is known to be gone.
    fn lose_jobs(&mut self, node: &NodeName, why: &str, now: Now, out: &mut Decisions) {
        let Some(known) = self.nodes.get(node) else { return };
        let jobs: Vec<JobName> = known.attempts.keys().cloned().collect();
        for job in jobs {
            self.member_gone(&job, node, lost(node, why.to_owned()), now, out);
        }
    }

    fn forget_node(&mut self, node: &NodeName, out: &mut Decisions) {
        if let Some(known) = self.nodes.remove(node) {
            self.sched.remove_node(&known.record.compute, node);
            out.nodes.retain(|record| &record.name != node);
            out.nodes_gone.push(node.clone());
        }
    }

    fn cluster(&self, name: &ComputeName) -> Result<&ComputeRecord, Refusal> {
        let Some(known) = self.computes.get(name) else {
            return Err(Refusal::NoSuchCompute(name.clone()));
        };
        match (&known.cluster, known.deleted) {
            (None, _) => Err(Refusal::NotACluster(name.clone())),
            (_, true) => Err(Refusal::ComputeDeleted(name.clone())),
            (Some(_), false) => Ok(known),
        }
    }

    fn instances_of(&self, compute: &ComputeName) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(move |instance| &instance.compute == compute)
    }

    pub(super) fn put_compute(&mut self, record: ComputeRecord, out: &mut Decisions) {
        self.know_compute(record.clone());
        self.scale_at = Mono::default();
        // One of that name may have gone in this very batch.
        out.computes_gone.retain(|gone| gone != &record.name);
        out.computes.insert(record.name.clone(), record);
    }

    /// Takes a compute into what placements depend on.
    pub(super) fn know_compute(&mut self, record: ComputeRecord) {
        let name = &record.name;
        self.sched.add_compute(name.clone());
        let exclusive =
            record.cluster.as_ref().is_some_and(|c| c.placement == Placement::Exclusive);
        let template = record.expected();
        self.sched.set_kind(name, exclusive, template);
        let closed = record
            .drain
            .as_ref()
            .map(|drain| Closed { by: drain.by.clone(), reason: drain.reason.clone() });
        self.sched.set_closed(name, closed);
        self.sched.set_quotas(name, record.quotas.clone());
        self.sched.set_access(name, record.access.clone());
        self.computes.insert(name.clone(), record);
    }

    fn put_instance(&mut self, instance: Instance, out: &mut Decisions) {
        out.instances_gone.retain(|gone| gone != &instance.node);
        out.instances.insert(instance.node.clone(), instance.clone());
        self.instances.insert(instance.node.clone(), instance);
    }
}

/// What a cluster's file may not change once the cluster is there.
fn fixed_difference(before: &Cluster, after: &Cluster) -> Option<&'static str> {
    let kind = |provider: &Provider| std::mem::discriminant(provider);
    if before.size != after.size || before.node != after.node {
        Some("size")
    } else if before.tier != after.tier {
        Some("tier")
    } else if before.placement != after.placement {
        Some("placement")
    } else if before.containment != after.containment {
        Some("containment")
    } else if before.node_labels != after.node_labels {
        Some("node_labels")
    } else if kind(&before.provider) != kind(&after.provider) {
        Some("provider")
    } else {
        None
    }
}

/// What a node that joined has too little of. Machines keep some of their memory for themselves.
fn lacks(has: &Capacity, shape: &Capacity) -> Option<String> {
    if has.gpus.len() < shape.gpus.len() {
        Some(format!("{} GPU, and its size says {}", has.gpus.len(), shape.gpus.len()))
    } else if has.cpu < shape.cpu {
        Some(format!("{} CPU, and its size says {}", Cpus(has.cpu), Cpus(shape.cpu)))
    } else if has.memory < shape.memory / 10 * 9 {
        let (has, says) = (Memory(has.memory), Memory(shape.memory));
        Some(format!("{has} memory, and its size says {says}"))
    } else {
        // A job that asks for it would make the cluster grow for nothing.
        let missing = shape.labels.iter().find(|(key, value)| has.labels.get(*key) != Some(*value));
        missing.map(|(key, value)| format!("no label {key}={value}, and its cluster says so"))
    }
}
