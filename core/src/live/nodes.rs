//! Nodes come, fall silent and come back.

use std::collections::{BTreeMap, BTreeSet};

use super::{Decisions, Effect, Live, LiveNode, hold, lost};
use crate::id::{Epoch, JobName, NodeName};
use crate::job::{EventKind, Job, Phase, Report, State};
use crate::node::{Link, Mono, NodeChange, NodeRecord, Now};

impl Live {
    /// A node opened a session and listed every attempt it knows. Reconciles first; only then may
    /// the node get jobs (a heartbeat that arrives first must not make it ready).
    pub fn node_joined(
        &mut self,
        mut record: NodeRecord,
        reports: Vec<Report>,
        now: Now,
        out: &mut Decisions,
    ) {
        let name = record.name.clone();
        // A node says nothing about what an admin said.
        record.drain = self.nodes.get(&name).and_then(|known| known.record.drain.clone());
        let moved = self.nodes.get(&name).filter(|known| known.record.compute != record.compute);
        self.sched.put_node(&record.compute, name.clone(), record.offered());
        if let Some(known) = moved {
            // Its jobs come along: they hold the same machine.
            self.sched.remove_node(&known.record.compute, &name);
            for job in known.attempts.keys().filter_map(|job| self.jobs.get(job)) {
                let Some(active) = job.active() else { continue };
                let Some((_, member)) = active.on(&name) else { continue };
                let held = hold(job, active, member);
                self.sched.hold(&record.compute, &name, job.name.clone(), held);
            }
        }
        let node = self.nodes.entry(name.clone()).or_insert_with(|| LiveNode {
            record: record.clone(),
            link: Link::Ready,
            attempts: BTreeMap::new(),
            unreachable: false,
            idle_since: None,
            kept: None,
        });
        node.record = record.clone();
        node.link = Link::Ready;
        let was_unreachable = std::mem::take(&mut node.unreachable);
        let mine: Vec<JobName> = node.attempts.keys().cloned().collect();
        if was_unreachable {
            for job in &mine {
                self.set_unreachable(job, &name, false, now, out);
            }
        }
        // All of them: a node may know an older attempt of the same job too.
        let told: BTreeSet<(JobName, Epoch)> =
            reports.iter().map(|r| (r.key.job.clone(), r.key.epoch)).collect();
        for job_name in mine {
            let Some(job) = self.jobs.get(&job_name) else { continue };
            let Some(active) = job.active() else { continue };
            let Some((rank, member)) = active.on(&name) else { continue };
            if told.contains(&(job_name.clone(), active.epoch)) {
                out.effects.extend(stop_again(&name, job));
                continue;
            }
            if member.phase == Phase::Starting && active.epoch > self.fence {
                // The assignment may have been lost on its way: the node takes a second one of
                // the same epoch for the first.
                out.effects.extend(self.assign(job, rank));
                // The node ends an attempt that it has not started yet without starting it, and
                // only the node can say that nothing of it runs.
                out.effects.extend(stop_again(&name, job));
            } else if let Some(node) = self.nodes.get_mut(&name) {
                // The node has lost its memory of a started attempt, which may yet run. Its
                // supervisor ends it when the lease runs out; until then nothing else may start.
                // Coming again without it does not begin a new lease.
                node.attempts.entry(job_name).or_default().get_or_insert(now.mono);
            }
        }
        for report in reports {
            self.report(&name, report, now, out);
        }
        self.instance_joined(&record, now, out);
        self.close(&name);
        self.sched.set_ready(&record.compute, &name, true);
        out.nodes_gone.retain(|gone| gone != &name);
        out.nodes.push(record);
    }

    /// A node that has joined says what has changed: a device that broke is given to nobody from now on, and
    /// neither is a node that lacks what it must have to join. Who holds it keeps it until the node says that
    /// the attempt is over.
    pub fn node_changed(&mut self, name: &NodeName, change: NodeChange, out: &mut Decisions) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let NodeChange { gpus, gpus_out, facts } = change;
        let record = &mut node.record;
        let (same, before) = (record.capacity.gpus == gpus, record.offered());
        if same && record.gpus_out == gpus_out && record.facts == facts {
            return;
        }
        record.capacity.gpus = gpus;
        record.gpus_out = gpus_out;
        record.facts = facts;
        let record = record.clone();
        if record.offered() != before {
            self.sched.put_node(&record.compute, name.clone(), record.offered());
        }
        self.sched.set_unfit(&record.compute, name, self.unfit(name));
        out.nodes.push(record);
    }

    /// The session of a node ended. Its jobs go on; it gets no new ones.
    pub fn node_left(&mut self, name: &NodeName, now: Now) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if node.link == Link::Ready {
            node.link = Link::Silent { since: now.mono };
            let compute = node.record.compute.clone();
            self.sched.set_ready(&compute, name, false);
        }
    }

    /// Lets time pass: silent nodes become unreachable, and what they held is given up when the
    /// lease and its margin are over.
    pub fn tick(&mut self, now: Now, out: &mut Decisions) {
        self.end_hold(now, out);
        self.evict_due(now, out);
        let lease = self.lease;
        let mut unreachable = Vec::new();
        let mut gone = Vec::new();
        for (name, node) in &mut self.nodes {
            let silent_since = match node.link {
                Link::Ready => None,
                Link::Silent { since } => Some(since),
            };
            if let Some(since) = silent_since
                && !node.unreachable
                && now.mono.millis_since(since) >= lease.unreachable_ms
            {
                node.unreachable = true;
                unreachable.extend(node.attempts.keys().map(|job| (name.clone(), job.clone())));
            }
            for (job, missing) in &node.attempts {
                let counted_from: Option<Mono> = missing.or(silent_since);
                if counted_from.is_some_and(|since| {
                    now.mono.millis_since(since) >= lease.lease_ms + lease.margin_ms
                }) {
                    gone.push((name.clone(), job.clone()));
                }
            }
        }
        for (node, job) in unreachable {
            self.set_unreachable(&job, &node, true, now, out);
        }
        for (node, job) in gone {
            let seconds = (lease.lease_ms + lease.margin_ms) / 1000;
            let failure = lost(&node, format!("no word of the attempt for {seconds} s"));
            self.member_lost(&job, &node, failure, now, out);
        }
    }

    /// The next moment at which [`Live::tick`] or [`Live::schedule`] has something to do, if a
    /// node is silent or a job is held back.
    pub fn has_timers(&self) -> bool {
        self.sched.next_wake().is_some()
            || self.held_until.is_some()
            || self.scales()
            || self.nodes.values().any(|node| {
                !node.attempts.is_empty()
                    && (node.link != Link::Ready
                        || node.attempts.values().any(Option::is_some)
                        || self.has_deadline(node))
            })
    }

    /// Whether jobs there will have to make way at some moment.
    fn has_deadline(&self, node: &LiveNode) -> bool {
        let whole = self.computes.get(&node.record.compute);
        let drains = [node.record.drain.as_ref(), whole.and_then(|known| known.drain.as_ref())];
        drains.into_iter().flatten().any(|drain| drain.deadline.is_some())
    }

    fn set_unreachable(
        &mut self,
        job: &JobName,
        node: &NodeName,
        unreachable: bool,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(job) = self.jobs.get(job) else { return };
        let mut job: Job = job.clone();
        let State::Active(active) = &mut job.state else { return };
        let attempt = active.attempt;
        let Some(member) = active.on_mut(node) else { return };
        if member.unreachable == unreachable {
            return;
        }
        member.unreachable = unreachable;
        let node = node.clone();
        let kind = if unreachable {
            EventKind::NodeUnreachable { node }
        } else {
            EventKind::NodeReturned { node }
        };
        self.record(&job, attempt, self.daemon.clone(), kind, now, out);
        self.put(job, out);
    }
}

/// What a node must hear once more of an attempt that was asked to stop.
fn stop_again(node: &NodeName, job: &Job) -> Option<Effect> {
    let active = job.active()?;
    let (rank, _) = active.on(node)?;
    let reason = active.stop_reason_of(rank)?.to_owned();
    Some(Effect::Stop { node: node.clone(), key: job.attempt_key()?, reason })
}
