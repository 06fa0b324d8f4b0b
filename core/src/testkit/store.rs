//! All that survives the daemon: what its decisions told it to write.

use std::collections::BTreeMap;

use super::{Checked, ensure};
use crate::access::People;
use crate::compute::{ComputeRecord, Instance};
use crate::id::{AttemptNumber, ComputeName, Epoch, JobName, NodeName};
use crate::job::{Event, EventKind, Job, JobStatus, State, Tries};
use crate::live::{Counters, Decisions, Restored};
use crate::node::NodeRecord;
use crate::time::Timestamp;

/// Jobs, nodes, events and counters, as a database would hold them.
#[derive(Clone, Default, Debug)]
pub struct Store {
    /// Every job ever written, by name.
    pub jobs: BTreeMap<JobName, Job>,
    /// Every node ever written.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    /// Every compute that was made or changed, and is not deleted.
    pub computes: BTreeMap<ComputeName, ComputeRecord>,
    /// Every node that a cluster asked for and has not given up.
    pub instances: BTreeMap<NodeName, Instance>,
    /// The log.
    pub events: Vec<Event>,
    /// As last written.
    pub counters: Counters,
    /// What is known of the last restore.
    pub restored: Restored,
    /// Who is in which group. It is written before the daemon's live state hears of it.
    pub people: People,
    /// What the epochs that were given out since are after.
    since: Epoch,
    /// The last event of each job, and how far its newest attempt is.
    last: BTreeMap<JobName, Last>,
}

#[derive(Clone, Debug)]
struct Last {
    status: JobStatus,
    attempt: AttemptNumber,
    rank: u8,
}

impl Store {
    /// Writes one batch, judging it as it goes by: what is final stays (I4), failures are counted
    /// and capped (I16), the log has no gaps and every step in it is a legal one.
    pub fn commit(&mut self, decisions: &Decisions, counters: Counters) -> Checked {
        for event in &decisions.events {
            self.append(event)?;
        }
        let before = self.counters;
        ensure(
            before.epoch <= counters.epoch
                && before.seq <= counters.seq
                && counters.event.0 == self.events.len() as u64,
            "sanity",
            || format!("counters went from {before:?} to {counters:?}"),
        )?;
        self.counters = counters;
        self.restored.holds &= !decisions.hold_over;
        for (name, job) in &decisions.changed {
            if let Some(old) = self.jobs.get(name) {
                ensure(old.ended().is_none(), "I4", || {
                    format!("{name} had ended as {:?} and is now {:?}", old.state, job.state)
                })?;
                ensure(old.spec == job.spec && old.seq == job.seq, "sanity", || {
                    format!("{name} became another job")
                })?;
            }
            within_tries(job)?;
            let last = self.last.get(name).map(|last| last.status);
            ensure(last == Some(job.status()), "sanity", || {
                format!("{name} is {}, and the log says {last:?}", job.status())
            })?;
            self.jobs.insert(name.clone(), job.clone());
        }
        for record in &decisions.nodes {
            self.nodes.insert(record.name.clone(), record.clone());
        }
        for node in &decisions.nodes_gone {
            self.nodes.remove(node);
        }
        for (name, record) in &decisions.computes {
            self.computes.insert(name.clone(), record.clone());
        }
        for name in &decisions.computes_gone {
            self.computes.remove(name);
        }
        for (node, instance) in &decisions.instances {
            self.instances.insert(node.clone(), instance.clone());
        }
        for node in &decisions.instances_gone {
            self.instances.remove(node);
        }
        Ok(())
    }

    fn append(&mut self, event: &Event) -> Checked {
        ensure(event.seq.0 == self.events.len() as u64 + 1, "sanity", || {
            format!("event {} follows event {}", event.seq, self.events.len())
        })?;
        let last = self.last.get(&event.job);
        let from = last.map(|last| last.status);
        let legal = match from {
            None => event.kind == EventKind::Submitted && event.status == JobStatus::Queued,
            // Being asked to make way changes nothing yet.
            Some(from) if matches!(event.kind, EventKind::Evicting { .. }) => {
                from == event.status && !from.is_final() && from != JobStatus::Queued
            }
            // Nor need what happens to one member of several, or that somebody is let in.
            Some(from)
                if matches!(
                    event.kind,
                    EventKind::MemberEnded { .. }
                        | EventKind::Entered { .. }
                        | EventKind::Forwarded { .. }
                        | EventKind::GpuIdle { .. }
                        | EventKind::AssetRegistering { .. }
                        | EventKind::NodeUnreachable { .. }
                        | EventKind::NodeReturned { .. }
                ) && from == event.status =>
            {
                !from.is_final() && from != JobStatus::Queued
            }
            Some(from) => event.kind != EventKind::Submitted && may_follow(from, event.status),
        };
        let promise = if from.is_some_and(JobStatus::is_final) { "I4" } else { "sanity" };
        ensure(legal, promise, || format!("{from:?} was followed by {event:?}"))?;
        let attempt = last.map_or(AttemptNumber(0), |last| last.attempt);
        ensure(event.attempt.0 == 0 || event.attempt >= attempt, "I3", || {
            format!("{event:?} came when attempt {attempt} had begun")
        })?;
        let mut rank = last.map_or(0, |last| last.rank);
        if event.attempt > attempt {
            rank = 0;
        }
        if let Some(now) = progress(&event.kind) {
            ensure(now >= rank, "I3", || format!("{event:?} goes back"))?;
            rank = now;
        }
        let attempt = attempt.max(event.attempt);
        self.last.insert(event.job.clone(), Last { status: event.status, attempt, rank });
        self.events.push(event.clone());
        Ok(())
    }

    /// What a restore makes of a backup.
    pub(super) fn restored(mut self, now: Timestamp) -> Self {
        let Restored { fence, holds } = self.restored;
        let fence = if holds { fence } else { self.counters.epoch };
        self.restored = Restored { fence, holds: true };
        self.counters.epoch.0 = Restored::left_out(self.counters.epoch.0, now);
        self.since = self.counters.epoch;
        self
    }

    /// Whether an attempt is of the time between a backup and its restore.
    pub(super) fn is_lost(&self, epoch: Epoch) -> bool {
        let is_given_out = epoch > self.since && epoch <= self.counters.epoch;
        self.since != Epoch(0) && epoch > self.restored.fence && !is_given_out
    }

    /// What a new daemon starts from. It goes through JSON, as it does through a database.
    pub fn recover(&self) -> (Vec<NodeRecord>, Vec<Job>, Counters) {
        let mut jobs: Vec<Job> =
            self.jobs.values().filter(|job| job.ended().is_none()).map(reread).collect();
        jobs.sort_by_key(|job| job.seq);
        (self.nodes.values().map(reread).collect(), jobs, self.counters)
    }

    /// The computes and the clusters' nodes that a new daemon starts from.
    pub fn recover_computes(&self) -> (Vec<ComputeRecord>, Vec<Instance>) {
        (
            self.computes.values().map(reread).collect(),
            self.instances.values().map(reread).collect(),
        )
    }

    /// Every job that has not ended.
    pub fn unfinished(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().filter(|job| job.ended().is_none())
    }

    /// How a job stands.
    pub fn status(&self, name: &JobName) -> Option<JobStatus> {
        self.jobs.get(name).map(Job::status)
    }

    /// The names of a job's events, in order.
    pub fn story(&self, name: &JobName) -> Vec<&'static str> {
        self.events.iter().filter(|event| &event.job == name).map(|e| e.kind.name()).collect()
    }
}

fn reread<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let json = serde_json::to_string(value).expect("what is stored can be written");
    serde_json::from_str(&json).expect("what was written can be read")
}

/// I16: a job's own failures stay within `retry.max_attempts`, the platform's within
/// [`Tries::MAX_LOST`] and [`Tries::MAX_UNSTARTED`], and every attempt but the one at hand is one of them.
fn within_tries(job: &Job) -> Checked {
    let Tries { made, failed, lost, unstarted, evicted, lost_ms: _, memory: _, after: _ } =
        job.tries;
    let over_before = failed + lost + unstarted + evicted;
    let most = job.spec.retry.max_attempts;
    let too_many = failed >= most || lost >= Tries::MAX_LOST || unstarted >= Tries::MAX_UNSTARTED;
    let over = too_many
        || match job.state {
            State::Queued(_) => made.0 != over_before,
            State::Active(_) => made.0 != over_before + 1,
            // The last attempt's failure ends the job and is not entered.
            State::Ended(_) => made.0 > over_before + 1,
        };
    ensure(!over, "I16", || {
        format!("{} of at most {most} tries has {:?}: {:?}", job.name, job.tries, job.state)
    })
}

fn progress(kind: &EventKind) -> Option<u8> {
    match kind {
        EventKind::Assigned { .. } => Some(0),
        EventKind::Preparing { .. } => Some(1),
        EventKind::Running => Some(2),
        EventKind::Finalizing { .. } => Some(3),
        _ => None,
    }
}

/// Which status may follow which, written out.
fn may_follow(from: JobStatus, to: JobStatus) -> bool {
    use JobStatus as S;
    if to.is_final() {
        // Only what runs can complete or fail.
        return match from {
            S::Queued => to == S::Canceled,
            from => !from.is_final(),
        };
    }
    match from {
        S::NotStarted | S::Completed | S::Failed | S::Canceled => false,
        S::Queued => matches!(to, S::Queued | S::Starting),
        S::Starting => matches!(
            to,
            S::Preparing
                | S::Running
                | S::Finalizing
                | S::CancelRequested
                | S::NotResponding
                | S::Queued
        ),
        S::Preparing => matches!(
            to,
            S::Preparing
                | S::Running
                | S::Finalizing
                | S::CancelRequested
                | S::NotResponding
                | S::Queued
        ),
        S::Running => {
            matches!(to, S::Finalizing | S::CancelRequested | S::NotResponding | S::Queued)
        }
        S::Finalizing => matches!(to, S::CancelRequested | S::NotResponding | S::Queued),
        // Of several members others may go on while one is silent.
        S::NotResponding => matches!(
            to,
            S::NotResponding
                | S::Starting
                | S::Preparing
                | S::Running
                | S::Finalizing
                | S::CancelRequested
                | S::Queued
        ),
        S::CancelRequested => to == S::CancelRequested,
    }
}
