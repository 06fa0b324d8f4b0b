//! The daemon's side of the world: a [`Live`], the sessions it knows, and what waits for the next
//! batch. It works as the reactor does: decide, write, and only then answer and act.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::node::{Down, Up};
use super::{Checked, Store, check, ensure, principal};
use crate::access::People;
use crate::compute::{AccessChange, Cluster};
use crate::id::{ComputeName, JobName, NodeName};
use crate::job::{AttemptKey, EventKind, Report};
use crate::live::{Decisions, Effect, Live, Submission, TakenAway};
use crate::node::{Drain, LeasePolicy, Mono, NodeChange, NodeRecord, Now};
use crate::sched::{DataPlace, Limits, QuotaOf};
use crate::spec::{CommandJob, JobTier};
use crate::time::Timestamp;

pub(super) struct Daemon {
    pub live: Live,
    booted_at: u64,
    /// Sessions whose messages it takes, with their nodes and when they last spoke.
    listening: BTreeMap<u64, (NodeName, u64)>,
    /// The session of each node that has joined.
    pub sessions: BTreeMap<NodeName, u64>,
    pub inbox: Vec<Command>,
}

#[derive(Clone, Debug)]
pub(super) enum Command {
    Submit { name: JobName, spec: Arc<CommandJob> },
    Cancel(JobName),
    Drain { node: NodeName, deadline: Option<Timestamp> },
    Resume(NodeName),
    Join { session: u64, record: Box<NodeRecord>, reports: Vec<Report> },
    Report { session: u64, node: NodeName, report: Report },
    Changed { session: u64, node: NodeName, change: Box<NodeChange> },
    Holds { node: NodeName, held: Vec<(DataPlace, u64)> },
    Left { session: u64, node: NodeName },
    PutCluster(Box<Cluster>),
    DeleteCluster(ComputeName),
    DrainCompute { compute: ComputeName, deadline: Option<Timestamp> },
    ResumeCompute(ComputeName),
    SetQuota { compute: ComputeName, of: QuotaOf, limits: Option<Limits> },
    ChangeAccess { compute: ComputeName, change: AccessChange },
    SetPeople(People),
    Made { node: NodeName, made: Result<(), String> },
    Gone { node: NodeName, gone: Result<(), String> },
    TakenAway(TakenAway),
}

/// A batch that was decided, to be written.
#[derive(Default)]
pub(super) struct Batch {
    pub decisions: Decisions,
    /// Submissions that will be acknowledged.
    pub submitted: Vec<JobName>,
    /// Nodes that will be welcomed.
    pub joined: Vec<(NodeName, u64)>,
    /// Nodes that may not join.
    pub refused: Vec<(NodeName, u64)>,
}

impl Batch {
    pub(super) fn is_idle(&self) -> bool {
        self.decisions.changed.is_empty()
            && self.decisions.events.is_empty()
            && self.decisions.nodes.is_empty()
            && self.decisions.nodes_gone.is_empty()
            && self.decisions.computes.is_empty()
            && self.decisions.computes_gone.is_empty()
            && self.decisions.instances.is_empty()
            && self.decisions.instances_gone.is_empty()
            && !self.decisions.hold_over
    }
}

impl Daemon {
    /// Starts on what the store holds.
    pub(super) fn recover(
        store: &Store,
        computes: &[ComputeName],
        lease: LeasePolicy,
        booted_at: u64,
        clock: u64,
    ) -> Checked<Self> {
        let (nodes, jobs, counters) = store.recover();
        let mut live = Live::new(
            computes.iter().cloned(),
            computes[0].clone(),
            principal("daemon"),
            lease,
            counters,
        );
        live.set_people(store.people.clone());
        let (known, instances) = store.recover_computes();
        live.recover_computes(known, instances);
        let mono = Mono(clock - booted_at);
        live.recover(nodes, jobs, mono);
        live.recover_restored(store.restored, mono);
        check::sanity_check(&live)?;
        let (listening, sessions, inbox) = <_>::default();
        Ok(Self { live, booted_at, listening, sessions, inbox })
    }

    pub(super) fn now(&self, clock: u64, wall: Timestamp) -> Now {
        Now { wall, mono: Mono(clock - self.booted_at) }
    }

    /// Takes a message from a node; gives what is answered at once.
    pub(super) fn hear(
        &mut self,
        node: &NodeName,
        session: u64,
        message: Up,
        clock: u64,
    ) -> Option<Down> {
        if let Up::Hello { record, reports } = message {
            self.listening.insert(session, (node.clone(), clock));
            self.inbox.push(Command::Join { session, record, reports });
            return None;
        }
        let Some((_, heard_at)) = self.listening.get_mut(&session) else {
            return Some(Down::Close);
        };
        *heard_at = clock;
        let node = node.clone();
        match message {
            // An answer renews the lease, so it is given only where the node is known to be there:
            // a session that another has replaced, or whose join was rolled back, must come again.
            Up::Heartbeat(number) => {
                if self.sessions.get(&node) == Some(&session) {
                    return Some(Down::HeartbeatAck(number));
                }
                self.listening.remove(&session);
                return Some(Down::Close);
            }
            Up::Report(report) => self.inbox.push(Command::Report { session, node, report }),
            Up::Changed(change) => self.inbox.push(Command::Changed { session, node, change }),
            Up::Close => {
                self.listening.remove(&session);
                self.inbox.push(Command::Left { session, node });
            }
            Up::Hello { .. } => {}
        }
        None
    }

    /// Gives up sessions that were silent for too long; names them, to be closed.
    pub(super) fn hang_up(&mut self, lease: LeasePolicy, clock: u64) -> Vec<(NodeName, u64)> {
        let silent: Vec<(NodeName, u64)> = self
            .listening
            .iter()
            .filter(|(_, (_, heard_at))| clock - heard_at >= lease.unreachable_ms)
            .map(|(session, (node, _))| (node.clone(), *session))
            .collect();
        for (node, session) in &silent {
            self.listening.remove(session);
            self.inbox.push(Command::Left { session: *session, node: node.clone() });
        }
        silent
    }

    /// One batch of decisions, judged before it is written.
    pub(super) fn decide(&mut self, now: Now, store: &Store) -> Checked<Batch> {
        let mut batch = Batch::default();
        for command in std::mem::take(&mut self.inbox) {
            self.take(command, now, store, &mut batch)?;
        }
        self.live.tick(now, &mut batch.decisions);
        self.live.schedule(now, &mut batch.decisions);
        self.judge_placements(store, &batch.decisions)?;
        self.judge_evictions(&batch.decisions)?;
        check::sanity_check(&self.live)?;
        check::nothing_idles(&self.live)?;
        Ok(batch)
    }

    fn take(&mut self, command: Command, now: Now, store: &Store, batch: &mut Batch) -> Checked {
        let out = &mut batch.decisions;
        match command {
            Command::Submit { name, spec } => {
                if store.jobs.contains_key(&name) {
                    return Ok(());
                }
                // So that there are several users, and the same for a name each time.
                let users = ["ada", "bob", "cleo"];
                let user = users[name.as_str().bytes().map(usize::from).sum::<usize>() % 3];
                let submission = Submission {
                    name: name.clone(),
                    spec,
                    principal: principal(user),
                    manages: false,
                };
                if self.live.submit(submission, now, out).is_ok() {
                    batch.submitted.push(name);
                }
            }
            Command::Cancel(name) => {
                // It may be over, or never have been.
                let _ = self.live.cancel(&name, principal("ada"), "enough", now, out);
            }
            Command::Drain { node, deadline } => {
                let by = principal("root");
                let drain = Drain { by, reason: "repair".to_owned(), since: now.wall, deadline };
                // Unknown until it has joined.
                let _ = self.live.drain(&node, drain, true, now, out);
            }
            Command::Resume(node) => {
                // It may not be drained.
                let _ = self.live.resume(&node, out);
            }
            Command::Join { session, record, reports } => {
                let node = record.name.clone();
                if self.live.may_join(&record).is_err() {
                    self.listening.remove(&session);
                    batch.refused.push((node, session));
                    return Ok(());
                }
                self.sessions.insert(node.clone(), session);
                self.live.node_joined(*record, reports, now, out);
                batch.joined.push((node, session));
            }
            Command::Report { session, node, report } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.report(&node, report, now, out)?;
                }
            }
            Command::Changed { session, node, change } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.live.node_changed(&node, *change, out);
                }
            }
            Command::Holds { node, held } => self.live.node_holds(&node, held),
            Command::Left { session, node } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.sessions.remove(&node);
                    self.live.node_left(&node, now);
                }
            }
            Command::PutCluster(cluster) => {
                // One of that name may be on its way out.
                let _ = self.live.put_cluster(*cluster, principal("root"), now, out);
            }
            Command::DeleteCluster(name) => {
                // Jobs may be on it.
                let _ = self.live.delete_cluster(&name, now, out);
            }
            Command::DrainCompute { compute, deadline } => {
                let by = principal("root");
                let drain = Drain { by, reason: "repair".to_owned(), since: now.wall, deadline };
                let _ = self.live.drain_compute(&compute, drain, true, now, out);
            }
            Command::ResumeCompute(compute) => {
                // It may not be drained.
                let _ = self.live.resume_compute(&compute, out);
            }
            Command::SetQuota { compute, of, limits } => {
                // The compute may be gone, or there may be nothing to take back.
                let _ = self.live.set_quota(&compute, of, limits, out);
            }
            Command::ChangeAccess { compute, change } => {
                // The compute may be gone, or there may be nothing to take back.
                let _ = self.live.change_access(&compute, change, out);
            }
            Command::SetPeople(people) => self.live.set_people(people),
            Command::Made { node, made } => self.live.node_made(&node, made, now, out),
            Command::Gone { node, gone } => {
                self.live.node_gone(&node, gone, now, out);
                if out.nodes_gone.contains(&node) {
                    self.sessions.remove(&node);
                }
            }
            Command::TakenAway(taken) => self.live.node_taken_away(taken, now, out),
        }
        Ok(())
    }

    /// I3: a report that is not of the attempt at hand, or not from its node, changes nothing; and
    /// one that comes twice changes nothing the second time.
    fn report(
        &mut self,
        node: &NodeName,
        report: Report,
        now: Now,
        out: &mut Decisions,
    ) -> Checked {
        let job = &report.key.job;
        let before = self.live.job(job).cloned();
        let counters = self.live.counters();
        let current = before.as_ref().is_some_and(|job| {
            job.attempt_key().as_ref() == Some(&report.key)
                && job.active().is_some_and(|active| active.on(node).is_some())
        });
        self.live.report(node, report.clone(), now, out);
        if !current {
            let same = before.as_ref() == self.live.job(job)
                && counters.event == self.live.counters().event;
            return ensure(same, "I3", || format!("{node} said {report:?} of what is not its own"));
        }
        let once = self.live.job(job).cloned();
        let counters = self.live.counters();
        let mut again = Decisions::default();
        self.live.report(node, report.clone(), now, &mut again);
        let same = once.as_ref() == self.live.job(job)
            && counters.event == self.live.counters().event
            && again.changed.is_empty();
        ensure(same, "I3", || format!("{report:?} changed something the second time"))
    }

    /// Only a job of a higher tier, or one whom it was let ahead of, makes another go.
    fn judge_evictions(&self, decisions: &Decisions) -> Checked {
        for event in &decisions.events {
            let EventKind::Evicting { reason } = &event.kind else { continue };
            let Some((_, rest)) = reason.split_once(" of tier ") else { continue };
            let Some(job) = self.live.job(&event.job) else { continue };
            let taker = JobTier::ALL.into_iter().find(|tier| rest.starts_with(tier.word()));
            ensure(taker > Some(job.spec.queue.tier()), "I18", || {
                format!("{} of tier {} goes: {reason}", job.name, job.spec.queue.tier().word())
            })?;
        }
        Ok(())
    }

    /// I8 and I9 for every new placement of a batch.
    fn judge_placements(&self, store: &Store, decisions: &Decisions) -> Checked {
        let mut newest = store.counters.epoch;
        let mut members: Option<(&AttemptKey, BTreeSet<&NodeName>)> = None;
        for effect in &decisions.effects {
            let Effect::Assign { node, key, .. } = effect else { continue };
            if key.epoch <= store.counters.epoch {
                continue;
            }
            match &mut members {
                Some((known, nodes)) if *known == key => {
                    ensure(nodes.insert(node), "I9", || format!("{key:?} is on {node} twice"))?;
                }
                _ => {
                    ensure(key.epoch > newest, "I3", || {
                        format!("{key:?} came after epoch {newest}")
                    })?;
                    members = Some((key, [node].into()));
                }
            }
            newest = key.epoch;
            ensure(self.sessions.contains_key(node), "I8", || {
                format!("{key:?} was placed on {node}, which is not connected")
            })?;
            let drained =
                self.live.nodes().any(|n| &n.record.name == node && n.record.drain.is_some());
            ensure(!drained, "I8", || format!("{key:?} was placed on {node}, which is drained"))?;
            let unfit = self.live.unfit(node);
            ensure(unfit.is_none(), "I8", || format!("{key:?} was placed on {node}: {unfit:?}"))?;
            let leaves =
                self.live.instances().any(|known| &known.node == node && !known.state.takes_jobs());
            ensure(!leaves, "I8", || format!("{key:?} was placed on {node}, which leaves"))?;
            let compute = self.live.job(&key.job).and_then(|job| self.live.compute(&job.compute));
            let closed = compute.is_some_and(|known| known.drain.is_some());
            ensure(!closed, "I8", || format!("{key:?} was placed on a drained compute"))?;
            check::within_capacity(&self.live, &key.job, node)?;
            check::within_quota(&self.live, &key.job, node)?;
            check::may_use(&self.live, &key.job, node)?;
        }
        Ok(())
    }

    /// What lives is what is written, no more and no less.
    pub(super) fn judge_written(&self, store: &Store) -> Checked {
        let alive: Vec<_> = self.live.jobs().collect();
        let written: Vec<_> = store.unfinished().collect();
        ensure(alive == written, "I2", || format!("alive are {alive:?}, and written {written:?}"))?;
        let nodes: Vec<_> = self.live.nodes().map(|node| &node.record).collect();
        let written: Vec<_> = store.nodes.values().collect();
        ensure(nodes == written, "I2", || format!("nodes are {nodes:?}, and written {written:?}"))?;
        let instances: Vec<_> = self.live.instances().collect();
        let written: Vec<_> = store.instances.values().collect();
        ensure(instances == written, "I2", || {
            format!("clusters' nodes are {instances:?}, and written {written:?}")
        })?;
        for record in store.computes.values() {
            let known = self.live.compute(&record.name);
            ensure(known == Some(record), "I2", || format!("{known:?}, and written {record:?}"))?;
        }
        Ok(())
    }

    /// Nothing of the last batch is on disk: go back to what is, and let the nodes come again.
    pub(super) fn roll_back(
        &mut self,
        store: &Store,
        computes: &[ComputeName],
        lease: LeasePolicy,
        clock: u64,
    ) -> Checked<Vec<(NodeName, u64)>> {
        let listening = std::mem::take(&mut self.listening);
        *self = Self::recover(store, computes, lease, self.booted_at, clock)?;
        Ok(listening.into_iter().map(|(session, (node, _))| (node, session)).collect())
    }
}
