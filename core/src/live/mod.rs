//! What is alive: waiting and running jobs, nodes, and what they hold. Facts come in, decisions
//! go out; finished jobs leave.
//!
//! Every function takes the moment as an argument and appends to [`Decisions`]. The reactor owns
//! one `Live`, writes the decisions in one transaction, and only then performs the effects.

mod access;
mod clusters;
mod decisions;
mod drain;
mod enter;
mod held;
mod nodes;
mod quotas;
mod refusal;
mod reports;
mod restored;
mod sandboxes;
mod usage;

#[cfg(test)]
mod tests;

pub use access::Asker;
pub use clusters::{ClusterChange, TakenAway};
pub use decisions::{Decisions, Effect};
pub use enter::{Entered, Entering};
pub use refusal::Refusal;
pub use restored::Restored;
pub use sandboxes::Sandbox;
pub use usage::PastUse;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::compute::{Access, ComputeRecord, Instance};
use crate::id::{
    AttemptNumber, ComputeName, Epoch, EventSeq, JobName, NodeName, Principal, SubmitSeq,
};
use crate::job::{
    Active, AttemptEnd, AttemptKey, Cancel, Cause, Ended, Event, EventKind, Failure, Job, Left,
    Member, Outcome, Queued, State, Tries,
};
use crate::node::{GPU_DRIVER, LeasePolicy, Link, Mono, NodeRecord, Now, is_loopback};
use crate::resource::{ContainerNeed, Demand};
use crate::sched::{
    Asked, BackOff, Budget, DataPlace, Hold, Placement, Quotas, Rank, Request, Sched, WaitReason,
    Waiting,
};
use crate::spec::CommandJob;
use crate::time::Timestamp;

/// The live state of a workspace.
#[derive(Clone, Debug)]
pub struct Live {
    jobs: BTreeMap<JobName, Job>,
    nodes: BTreeMap<NodeName, LiveNode>,
    computes: BTreeMap<ComputeName, ComputeRecord>,
    /// Nodes that clusters' providers were asked for.
    instances: BTreeMap<NodeName, Instance>,
    /// What providers were asked since the daemon started: to add a node, or to take it away.
    asked: BTreeMap<NodeName, bool>,
    /// When clusters look at their queues again.
    scale_at: Mono,
    sched: Sched,
    lease: LeasePolicy,
    next_epoch: Epoch,
    next_seq: SubmitSeq,
    next_event: EventSeq,
    /// Attempts up to here are a restored backup's.
    fence: Epoch,
    /// Until when nothing starts, after a restore.
    held_until: Option<Mono>,
    daemon: Principal,
    default_compute: ComputeName,
}

/// A node and what runs on it.
#[derive(Clone, Debug)]
pub struct LiveNode {
    /// What it said of itself.
    pub record: NodeRecord,
    /// Whether the daemon hears from it.
    pub link: Link,
    /// Its attempts, by job. A value is set while the node itself does not know the attempt: then
    /// it is the moment from which the lease counts.
    pub attempts: BTreeMap<JobName, Option<Mono>>,
    /// Jobs there are already shown as not responding.
    pub unreachable: bool,
    /// Since when a cluster has seen it without work.
    pub idle_since: Option<Timestamp>,
    /// What it keeps of attempts that failed, as it said last; `None` until it has since the daemon started.
    pub kept: Option<Vec<Sandbox>>,
}

/// A validated submission.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The job's name, made by the caller if the user gave none.
    pub name: JobName,
    /// What to run.
    pub spec: Arc<CommandJob>,
    /// Who asks.
    pub principal: Principal,
    /// Whether they come in with a role that may change computes, and so use any.
    pub manages: bool,
}

/// Where the counters stand, as recovered from the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// The last epoch given.
    pub epoch: Epoch,
    /// The last submission.
    pub seq: SubmitSeq,
    /// The last event.
    pub event: EventSeq,
}

/// How many placements one scheduling round may make.
const ROUND: Budget = Budget { placements: 512 };

impl Live {
    /// A workspace without jobs.
    pub fn new(
        computes: impl IntoIterator<Item = ComputeName>,
        default_compute: ComputeName,
        daemon: Principal,
        lease: LeasePolicy,
        counters: Counters,
    ) -> Self {
        let computes: Vec<ComputeName> =
            computes.into_iter().chain([default_compute.clone()]).collect();
        let mut live = Self {
            jobs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            computes: BTreeMap::new(),
            instances: BTreeMap::new(),
            asked: BTreeMap::new(),
            scale_at: Mono::default(),
            sched: Sched::default(),
            lease,
            next_epoch: counters.epoch.next(),
            next_seq: counters.seq.next(),
            next_event: counters.event.next(),
            fence: Epoch(0),
            held_until: None,
            daemon,
            default_compute,
        };
        for name in computes {
            let record = ComputeRecord {
                name,
                cluster: None,
                created_by: live.daemon.clone(),
                created_at: Timestamp::from_millis(0),
                next_node: 1,
                drain: None,
                deleted: false,
                least_memory: None,
                least_disk: None,
                quotas: Quotas::default(),
                access: Access::default(),
                trouble: None,
            };
            live.know_compute(record);
        }
        live
    }

    /// Puts back the computes that the store held, before [`Live::recover`]. A cluster stays one,
    /// also where the daemon was started with a compute of its name.
    pub fn recover_computes(&mut self, computes: Vec<ComputeRecord>, instances: Vec<Instance>) {
        for record in computes {
            if record.cluster.is_some() || self.computes.contains_key(&record.name) {
                self.know_compute(record);
            }
        }
        self.instances.extend(instances.into_iter().map(|known| (known.node.clone(), known)));
    }

    /// Puts back what the store held when the daemon stopped. Nodes first, then jobs.
    pub fn recover(&mut self, nodes: Vec<NodeRecord>, jobs: Vec<Job>, mono: Mono) {
        for record in nodes {
            self.sched.put_node(&record.compute, record.name.clone(), record.offered());
            let name = record.name.clone();
            let link = Link::Silent { since: mono };
            let attempts = BTreeMap::new();
            let (unreachable, idle_since, kept) = (false, None, None);
            let node = LiveNode { record, link, attempts, unreachable, idle_since, kept };
            self.nodes.insert(name.clone(), node);
            self.close(&name);
        }
        for job in jobs {
            match &job.state {
                State::Queued(_) => {
                    let waiting = waiting(&job);
                    self.sched.enqueue(&job.compute, rank(&job), waiting);
                }
                State::Active(active) => {
                    for (_, member) in active.working() {
                        let Some(node) = self.nodes.get_mut(&member.node) else { continue };
                        let (compute, held) = (&node.record.compute, hold(&job, active, member));
                        self.sched.hold(compute, &member.node, job.name.clone(), held);
                        node.attempts.insert(job.name.clone(), None);
                        node.unreachable |= member.unreachable;
                    }
                }
                State::Ended(_) => continue,
            }
            self.jobs.insert(job.name.clone(), job);
        }
    }

    /// Where the counters stand, to be written with every batch.
    pub fn counters(&self) -> Counters {
        Counters {
            epoch: Epoch(self.next_epoch.0 - 1),
            seq: SubmitSeq(self.next_seq.0 - 1),
            event: EventSeq(self.next_event.0 - 1),
        }
    }

    /// A live job.
    pub fn job(&self, name: &JobName) -> Option<&Job> {
        self.jobs.get(name)
    }

    /// Every live job, by name.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &LiveNode> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, name: &NodeName) -> Option<&LiveNode> {
        self.nodes.get(name)
    }

    /// A node that a cluster's provider was asked for.
    pub fn instance(&self, node: &NodeName) -> Option<&Instance> {
        self.instances.get(node)
    }

    /// Every compute, by name.
    pub fn computes(&self) -> impl Iterator<Item = &ComputeRecord> {
        self.computes.values()
    }

    /// A compute.
    pub fn compute(&self, name: &ComputeName) -> Option<&ComputeRecord> {
        self.computes.get(name)
    }

    /// Every node that a cluster's provider was asked for, by name.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// Where jobs go that name no compute.
    pub fn default_compute(&self) -> &ComputeName {
        &self.default_compute
    }

    /// What placements depend on.
    pub fn sched(&self) -> &Sched {
        &self.sched
    }

    /// Why a live job waits; `None` if it does not.
    pub fn wait_reason(&self, job: &Job) -> Option<WaitReason> {
        match job.state {
            State::Queued(_) => self.sched.reason(&job.compute, rank(job)),
            State::Active(_) | State::Ended(_) => None,
        }
    }

    /// Where a job would go, or why it would be refused.
    fn compute_for(&self, spec: &CommandJob, asker: Asker<'_>) -> Result<ComputeName, Refusal> {
        let compute = spec.compute.clone().unwrap_or_else(|| self.default_compute.clone());
        if !self.computes.contains_key(&compute) {
            let known: Vec<&str> = self.computes.keys().map(ComputeName::as_str).collect();
            return Err(Refusal::UnknownCompute { name: compute, known: known.join(", ") });
        }
        if self.computes.get(&compute).is_some_and(|known| known.deleted) {
            return Err(Refusal::ComputeDeleted(compute));
        }
        self.may_use(&compute, asker)?;
        // A container runtime may be installed where there is none, and jobs wait for that.
        let containers = ContainerNeed::Nothing;
        let demand = Demand { containers, ..spec.resources.demand.clone() };
        let without_gpus = Demand { gpus: 0, ..demand.clone() };
        // Devices that are broken now will be mended, those of a silent driver may come, and jobs wait for that.
        let mended = |node: &LiveNode| {
            let record = &node.record;
            let broken = !record.gpus_out.is_empty() && record.mended().could_hold(&demand);
            let unknown =
                record.facts.contains_key(GPU_DRIVER) && record.capacity.could_hold(&without_gpus);
            record.compute == compute && (broken || unknown)
        };
        let largest = self.sched.never_fits(&compute, &demand);
        if let Some(largest) = largest.filter(|_| !self.nodes.values().any(mended)) {
            let anywhere = Demand { node_labels: None, ..demand.clone() };
            if let Some(labels) = demand.node_labels.as_ref()
                && self.sched.never_fits(&compute, &anywhere).is_none()
            {
                let words = labels.iter().map(|(key, value)| format!("{key}={value}"));
                let labels = words.collect::<Vec<_>>().join(", ");
                return Err(Refusal::NoSuchLabels { labels, compute });
            }
            let largest = largest.to_string();
            return Err(Refusal::NeverFits { demand: demand.to_string(), compute, largest });
        }
        let request = Request::from(&spec.resources);
        if let Some(most) = self.most_nodes(&compute, &demand)
            && most < request.members
        {
            return Err(Refusal::GangTooLarge { request: request.to_string(), compute, most });
        }
        self.within_quota(&compute, asker.user, &request)?;
        Ok(compute)
    }

    /// How many nodes that could hold `demand` a compute can have at most: as many as its cluster
    /// may grow to, or those that have joined by themselves. `None` if none is known yet.
    fn most_nodes(&self, compute: &ComputeName, demand: &Demand) -> Option<u32> {
        let cluster = self.computes.get(compute).and_then(|known| known.cluster.as_ref());
        if let Some(cluster) = cluster {
            return Some(cluster.max_instances);
        }
        let nodes = self.sched.pool(compute)?.nodes();
        let could = nodes.filter(|(_, ledger, _)| ledger.capacity().could_hold(demand)).count();
        u32::try_from(could).ok().filter(|could| *could > 0)
    }

    /// A job as it would stand in the queue if it were submitted now.
    ///
    /// # Errors
    /// It would be refused.
    pub fn as_asked(
        &self,
        name: JobName,
        spec: &CommandJob,
        asker: Asker<'_>,
        now: Now,
    ) -> Result<Asked, Refusal> {
        let compute = self.compute_for(spec, asker)?;
        let priority = spec.queue.priority;
        let waiting = Waiting {
            job: name,
            user: asker.user.clone(),
            request: Request::from(&spec.resources),
            most_ms: most_ms(spec),
            not_before: None,
            inputs: DataPlace::of_job(spec),
        };
        let rank = Rank::new(spec.queue.tier(), priority, now.wall, self.next_seq);
        Ok(Asked { waiting, compute, priority, created_at: now.wall, rank })
    }

    /// Accepts a job into the queue, or says why not. The caller knows that no finished job has
    /// the name.
    pub fn submit(
        &mut self,
        submission: Submission,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Submission { name, spec, principal, manages } = submission;
        if self.jobs.contains_key(&name) || out.changed.contains_key(&name) {
            return Err(Refusal::NameTaken(name));
        }
        let compute = self.compute_for(&spec, Asker { user: &principal, manages })?;
        let seq = self.next_seq;
        self.next_seq = seq.next();
        let job = Job {
            name: name.clone(),
            seq,
            spec,
            compute: compute.clone(),
            created_by: principal.clone(),
            created_at: now.wall,
            tries: Tries { after: self.counters().epoch, ..Tries::default() },
            state: State::Queued(Queued {
                since: now.wall,
                not_before: None,
                why: None,
                left: None,
            }),
            archived: false,
        };
        self.record(&job, AttemptNumber(0), principal, EventKind::Submitted, now, out);
        out.submitted.push(name.clone());
        out.changed.insert(name.clone(), job.clone());
        self.sched.enqueue(&compute, rank(&job), waiting(&job));
        self.jobs.insert(name, job);
        Ok(())
    }

    /// Asks a job to stop. One that waits ends now; asking again changes nothing.
    pub fn cancel(
        &mut self,
        name: &JobName,
        by: Principal,
        reason: &str,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Some(job) = self.jobs.get(name) else {
            return Err(Refusal::NoSuchJob(name.clone()));
        };
        let cancel = Cancel { by: by.clone(), reason: reason.to_owned(), at: now.wall };
        match &job.state {
            State::Queued(_) => {
                let outcome = Outcome::Canceled(cancel);
                self.end_waiting(name, outcome, by, now, out);
            }
            State::Active(active) if active.cancel.is_none() => {
                let mut job = job.clone();
                let active = active.clone();
                let key =
                    AttemptKey { job: name.clone(), attempt: active.attempt, epoch: active.epoch };
                if let State::Active(active) = &mut job.state {
                    active.cancel = Some(cancel);
                }
                let kind = EventKind::CancelRequested { reason: reason.to_owned() };
                self.record(&job, active.attempt, by, kind, now, out);
                self.stop(&active, &key, reason, now, out);
                self.put(job, out);
            }
            State::Active(_) | State::Ended(_) => {}
        }
        Ok(())
    }

    /// Starts what can start now. Call it after every batch of facts.
    pub fn schedule(&mut self, now: Now, out: &mut Decisions) {
        // Or their reasons would still speak of the back-off when they wait for room.
        self.sched.wake(now.wall);
        if self.held_until.is_some() {
            return self.tell_reasons(now, out);
        }
        // First, so that nothing is placed on a node that is to go.
        self.scale(now, out);
        loop {
            let plan = self.sched.decide(now.wall, ROUND);
            let mut placed = 0;
            for placement in plan.placements() {
                self.place(placement, now, out);
                placed += 1;
            }
            for eviction in plan.evictions() {
                let (by, reason) = (self.daemon.clone(), eviction.to_string());
                self.evict(&eviction.job, by, reason, now, out);
            }
            if !plan.goes_on() || placed == 0 {
                break;
            }
        }
        self.tell_reasons(now, out);
    }

    /// Those accepted now that did not start are told why.
    fn tell_reasons(&mut self, now: Now, out: &mut Decisions) {
        for name in std::mem::take(&mut out.submitted) {
            let Some(job) = self.jobs.get(&name) else { continue };
            if let Some(reason) = self.wait_reason(job) {
                let kind = EventKind::Queued { reason: reason.to_string() };
                let job = job.clone();
                self.record(&job, AttemptNumber(0), self.daemon.clone(), kind, now, out);
            }
        }
    }

    /// A job was placed: its next attempt begins.
    fn place(&mut self, placement: &Placement, now: Now, out: &mut Decisions) {
        let Some(job) = self.jobs.get(&placement.job) else { return };
        let placed = placement.nodes.iter().cloned().zip(placement.held.iter().cloned());
        let mut members = placed.map(|(node, held)| Member::placed(node, held));
        let Some(first) = members.next() else { return };
        let others: Vec<Member> = members.collect();
        let mut job = job.clone();
        let attempt = job.tries.made.next();
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        job.tries.made = attempt;
        let kind = EventKind::Assigned {
            node: first.node.clone(),
            gpus: first.reservation.gpus.clone(),
            others: others.iter().map(|member| member.node.clone()).collect(),
        };
        for node in &placement.nodes {
            if let Some(live) = self.nodes.get_mut(node) {
                live.attempts.insert(job.name.clone(), None);
                live.idle_since = None;
            }
        }
        job.state = State::Active(Active {
            attempt,
            epoch,
            first,
            others,
            assigned_at: now.wall,
            cancel: None,
            evict: None,
            failed: None,
            dismissed: false,
            yields_at: placement.yields_at,
        });
        self.record(&job, attempt, self.daemon.clone(), kind, now, out);
        if let Some(failure) = self.too_old(&job, &placement.nodes) {
            self.put(job, out);
            return self.not_assigned(placement, &failure, now, out);
        }
        for rank in (0..).take(placement.nodes.len()) {
            out.effects.extend(self.assign(&job, rank));
        }
        self.put(job, out);
    }

    /// Why an attempt on these nodes would not be what the job asks for: an agent does not know it yet.
    fn too_old(&self, job: &Job, nodes: &[NodeName]) -> Option<Failure> {
        let cannot = |node: &NodeName| self.nodes.get(node)?.record.too_old_to(&job.spec);
        let (node, what) = nodes.iter().find_map(|node| Some((node, cannot(node)?)))?;
        let message =
            format!("the agent of node {node} is too old to {what}: upgrade it, or drain the node");
        Some(Failure { cause: Cause::AgentError, message })
    }

    /// No node has heard of the attempt, and none will.
    fn not_assigned(
        &mut self,
        placement: &Placement,
        failure: &Failure,
        now: Now,
        out: &mut Decisions,
    ) {
        for node in &placement.nodes {
            let Some(job) = self.jobs.get(&placement.job).cloned() else { return };
            self.member_ended(job, node, AttemptEnd::lost(failure.clone(), None), now, out);
        }
    }

    /// Asks the members of an attempt that are not over, and were not dismissed, to stop. What they hold is
    /// about to be free.
    pub(super) fn stop(
        &mut self,
        active: &Active,
        key: &AttemptKey,
        reason: &str,
        now: Now,
        out: &mut Decisions,
    ) {
        for (rank, _) in active.working().filter(|(rank, _)| *rank == 0 || !active.dismissed) {
            self.stop_member(active, rank, key, reason, now, out);
        }
    }

    /// Asks the members but the head to stop: there is nothing left to do for them.
    pub(super) fn dismiss(
        &mut self,
        active: &Active,
        key: &AttemptKey,
        now: Now,
        out: &mut Decisions,
    ) {
        for (rank, _) in active.working().filter(|(rank, _)| *rank > 0) {
            self.stop_member(active, rank, key, Active::DISMISSED, now, out);
        }
    }

    fn stop_member(
        &mut self,
        active: &Active,
        rank: u32,
        key: &AttemptKey,
        reason: &str,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(member) = active.members().nth(rank as usize) else { return };
        let node = member.node.clone();
        if let Some(known) = self.nodes.get(&node) {
            // The node's compute, not the job's: the node may have moved since.
            self.sched.set_going(&known.record.compute, &node, &key.job, now.wall);
        }
        let (key, reason) = (key.clone(), reason.to_owned());
        out.effects.push(Effect::Stop { node, key, reason });
    }

    /// What a node must do for the member of this rank.
    pub(super) fn assign(&self, job: &Job, rank: u32) -> Option<Effect> {
        let active = job.active()?;
        let member = active.members().nth(rank as usize)?;
        let hosts = active.members().filter_map(|member| self.nodes.get(&member.node));
        let hosts: BTreeSet<&str> = hosts.map(|node| node.record.hostname.as_str()).collect();
        let address = |member: &Member| {
            let known = self.nodes.get(&member.node).map(|node| &node.record);
            let address = known.and_then(|record| record.address.clone());
            // A node that reaches the daemon through a tunnel takes itself to be on its machine.
            let address = address.filter(|address| hosts.len() < 2 || !is_loopback(address));
            address.or_else(|| known.map(|record| record.hostname.clone())).unwrap_or_default()
        };
        Some(Effect::Assign {
            node: member.node.clone(),
            key: job.attempt_key()?,
            spec: job.spec.clone(),
            reservation: member.reservation.clone(),
            created_by: job.created_by.clone(),
            rank,
            addresses: active.members().map(address).collect(),
            failed: job.tries.failed,
        })
    }

    /// Ends a job that holds nothing.
    fn end_waiting(
        &mut self,
        name: &JobName,
        outcome: Outcome,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(mut job) = self.jobs.remove(name) else { return };
        self.sched.dequeue(&job.compute, rank(&job));
        let kind = end_event(&outcome);
        let left = match &mut job.state {
            State::Queued(queued) => queued.left.take().map(|left| *left).unwrap_or_default(),
            State::Active(_) | State::Ended(_) => Left::default(),
        };
        job.state = State::Ended(Ended { at: now.wall, outcome, left });
        self.record(&job, AttemptNumber(0), by, kind, now, out);
        out.effects.push(Effect::JobOver { job: name.clone() });
        out.changed.insert(name.clone(), job);
    }

    fn put(&mut self, job: Job, out: &mut Decisions) {
        out.changed.insert(job.name.clone(), job.clone());
        self.jobs.insert(job.name.clone(), job);
    }

    fn record(
        &mut self,
        job: &Job,
        attempt: AttemptNumber,
        principal: Principal,
        kind: EventKind,
        now: Now,
        out: &mut Decisions,
    ) {
        let seq = self.next_event;
        self.next_event = seq.next();
        let status = job.status();
        let job = job.name.clone();
        out.events.push(Event { seq, job, at: now.wall, attempt, principal, status, kind });
    }

    /// Records something about a job that is over (archived, restored).
    pub fn note(
        &mut self,
        job: &Job,
        by: Principal,
        kind: EventKind,
        now: Now,
        out: &mut Decisions,
    ) {
        self.record(job, AttemptNumber(0), by, kind, now, out);
    }
}

/// A job as its queue and its owner know it.
pub fn asked(job: &Job) -> Asked {
    Asked {
        waiting: Waiting { not_before: None, ..waiting(job) },
        compute: job.compute.clone(),
        priority: job.spec.queue.priority,
        created_at: job.created_at,
        rank: rank(job),
    }
}

/// A job's place in its queue.
pub fn rank(job: &Job) -> Rank {
    Rank::new(job.spec.queue.tier(), job.spec.queue.priority, job.created_at, job.seq)
}

/// A job as it waits.
fn waiting(job: &Job) -> Waiting {
    let not_before = match &job.state {
        State::Queued(Queued { not_before: Some(until), why, .. }) => Some(BackOff {
            until: *until,
            why: why.as_deref().unwrap_or("it is not known why").into(),
        }),
        State::Queued(_) | State::Active(_) | State::Ended(_) => None,
    };
    Waiting {
        job: job.name.clone(),
        user: job.created_by.clone(),
        request: Request::from(job),
        most_ms: most_ms(&job.spec),
        not_before,
        inputs: DataPlace::of_job(&job.spec),
    }
}

/// What a member of an attempt holds of its node.
fn hold(job: &Job, active: &Active, member: &Member) -> Hold {
    let most = most_ms(&job.spec).and_then(|most| i64::try_from(most).ok());
    Hold {
        user: job.created_by.clone(),
        rank: rank(job),
        reservation: member.reservation.clone(),
        since: active.assigned_at,
        until: most.map(|most| active.assigned_at.plus_millis(most)),
        yields_at: active.yields_at,
        going: active.going_since(member),
    }
}

/// How long an attempt holds its node at most: its time limit, and what is before and after it.
pub fn most_ms(spec: &CommandJob) -> Option<u64> {
    spec.limits.timeout.map(|seconds| seconds.saturating_mul(1_000).saturating_add(AROUND_MS))
}

/// Making ready and storing, in milliseconds; a job that takes longer is late.
const AROUND_MS: u64 = 120_000;

fn end_event(outcome: &Outcome) -> EventKind {
    match outcome {
        Outcome::Completed => EventKind::Completed,
        Outcome::Failed(failure) => EventKind::Failed { failure: failure.clone() },
        Outcome::Canceled(cancel) => EventKind::Canceled { reason: cancel.reason.clone() },
    }
}

fn lost(node: &NodeName, message: String) -> Failure {
    Failure { cause: crate::job::Cause::NodeLost, message: format!("node {node}: {message}") }
}
