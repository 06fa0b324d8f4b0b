//! What nodes say of attempts, and what follows.

use super::{Decisions, Effect, Live, end_event, rank, waiting};
use crate::id::{NodeName, PortName, Principal};
use crate::job::{
    Active, AttemptEnd, Cancel, Cause, Ended, EventKind, Exit, Failure, Job, Left, Outcome,
    OutputCommit, Phase, Progress, Queued, Report, State, Tries,
};
use crate::node::Now;
use crate::spec::OnNodeLoss;
use crate::time::Timestamp;

impl Live {
    /// Takes a node's word on an attempt. Stale and repeated ones change nothing: a report counts
    /// only if it carries the attempt's epoch, comes from its node and goes forward.
    pub fn report(&mut self, node: &NodeName, report: Report, now: Now, out: &mut Decisions) {
        let ended = matches!(report.progress, Progress::Ended(_));
        let current = self.jobs.get(&report.key.job).filter(|job| {
            job.active().is_some_and(|active| {
                active.epoch == report.key.epoch
                    && active.attempt == report.key.attempt
                    && &active.node == node
            })
        });
        let Some(job) = current else {
            // Not alive any more, so its end is on disk or it was given up: the node may forget.
            let (node, key) = (node.clone(), report.key);
            out.effects.push(if ended {
                Effect::Acknowledge { node, key }
            } else {
                Effect::Discard { node, key }
            });
            return;
        };
        let mut job = job.clone();
        let State::Active(active) = &mut job.state else { return };
        let attempt = active.attempt;
        if let Some(live) = self.nodes.get_mut(node)
            && let Some(missing) = live.attempts.get_mut(&job.name)
        {
            *missing = None;
        }
        let kind = match report.progress {
            Progress::Ended(end) => {
                let key = report.key;
                out.effects.push(Effect::Acknowledge { node: node.clone(), key: key.clone() });
                out.effects.push(Effect::AttemptOver { key });
                let active = active.clone();
                self.attempt_ended(job, active, *end, now, out);
                return;
            }
            Progress::Preparing { step } => {
                let phase = Phase::Preparing { step: step.clone() };
                let same = active.phase == phase;
                if active.phase.rank() > phase.rank() || same {
                    return;
                }
                active.phase = phase;
                EventKind::Preparing { step }
            }
            Progress::Running { since } => {
                if active.phase.rank() >= Phase::Running.rank() {
                    return;
                }
                active.phase = Phase::Running;
                active.started_at = Some(since);
                EventKind::Running
            }
            Progress::Finalizing { exit } => {
                let phase = Phase::Finalizing { exit };
                if active.phase.rank() >= phase.rank() {
                    return;
                }
                active.phase = phase;
                EventKind::Finalizing { exit }
            }
        };
        let by = node_principal(node, &self.daemon);
        self.record(&job, attempt, by, kind, now, out);
        self.put(job, out);
    }

    /// An attempt is over: give back what it held, then end the job or try again.
    pub(super) fn attempt_ended(
        &mut self,
        mut job: Job,
        active: Active,
        end: AttemptEnd,
        now: Now,
        out: &mut Decisions,
    ) {
        if let Some(node) = self.nodes.get_mut(&active.node) {
            // The node's compute, not the job's: the node may have moved since.
            self.sched.release(&node.record.compute, &active.node, &job.name, now.wall);
            node.attempts.remove(&job.name);
        }
        let verdict = verdict(&job, &active, &end, now);
        let by = node_principal(&active.node, &self.daemon);
        match verdict {
            Verdict::Over(outcome) => {
                let partial = outcome != Outcome::Completed;
                let kind = end_event(&outcome);
                let left = left(&job, active.node, active.started_at, end, partial);
                job.state = State::Ended(Ended { at: now.wall, outcome, left });
                self.record(&job, active.attempt, by, kind, now, out);
                out.effects.push(Effect::JobOver { job: job.name.clone() });
                self.jobs.remove(&job.name);
                out.changed.insert(job.name.clone(), job);
            }
            Verdict::Again { tries, delay_ms, reason } => {
                job.tries = tries;
                let not_before = (delay_ms > 0).then(|| now.wall.plus_millis(delay_ms));
                let left = Box::new(left(&job, active.node, active.started_at, end, true));
                job.state = State::Queued(Queued { since: now.wall, not_before, left: Some(left) });
                let kind = EventKind::Requeued { reason };
                self.record(&job, active.attempt, by, kind, now, out);
                self.sched.enqueue(&job.compute, rank(&job), waiting(&job, not_before));
                self.put(job, out);
            }
        }
    }

    /// A silent or forgetful node's attempt is given up: the node has ended it by itself.
    pub(super) fn attempt_lost(
        &mut self,
        job: Job,
        failure: Failure,
        now: Now,
        out: &mut Decisions,
    ) {
        let kept = job.active().is_some_and(|active| active.cancel.is_none());
        if job.spec.on_node_loss == OnNodeLoss::Keep && kept {
            return;
        }
        self.attempt_gone(job, failure, now, out);
    }

    /// An attempt whose machine is gone is over, whatever its job wants.
    pub(super) fn attempt_gone(
        &mut self,
        job: Job,
        failure: Failure,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(active) = job.active().cloned() else { return };
        if let Some(key) = job.attempt_key() {
            out.effects.push(Effect::AttemptOver { key });
        }
        let end = AttemptEnd {
            exit: None,
            problem: Some(failure),
            started_at: active.started_at,
            manifest: None,
            outputs: Vec::new(),
            log_bytes: 0,
        };
        self.attempt_ended(job, active, end, now, out);
    }
}

/// What an attempt leaves behind.
fn left(
    job: &Job,
    node: NodeName,
    started_at: Option<Timestamp>,
    end: AttemptEnd,
    partial: bool,
) -> Left {
    let commit = |(name, files, bytes): (PortName, u64, u64)| {
        let uri = output_uri(job, &name);
        OutputCommit { name, uri, files, bytes, partial }
    };
    Left {
        started_at: end.started_at.or(started_at),
        exit: end.exit,
        node: Some(node),
        manifest: end.manifest,
        outputs: end.outputs.into_iter().map(commit).collect(),
        log_bytes: end.log_bytes,
    }
}

enum Verdict {
    Over(Outcome),
    Again { tries: Tries, delay_ms: i64, reason: String },
}

/// What the end of an attempt means for its job.
fn verdict(job: &Job, active: &Active, end: &AttemptEnd, now: Now) -> Verdict {
    let success = end.problem.is_none() && end.exit.is_some_and(Exit::is_success);
    if success {
        return Verdict::Over(Outcome::Completed);
    }
    let failure = end.problem.clone().unwrap_or_else(|| failure_of(end.exit));
    if let Some(cancel) = &active.cancel {
        return Verdict::Over(Outcome::Canceled(cancel.clone()));
    }
    if let Some(evict) = &active.evict
        && failure.cause != Cause::Timeout
    {
        let mut tries = lost_time(job.tries, active, now);
        tries.evicted += 1;
        let reason = format!("{}; attempt {} follows", evict.reason, active.attempt.next());
        return Verdict::Again { tries, delay_ms: 0, reason };
    }
    if matches!(failure.cause, Cause::Timeout | Cause::Canceled) {
        let by = node_principal(&active.node, &job.created_by);
        let cancel = Cancel { by, reason: failure.message, at: now.wall };
        return Verdict::Over(Outcome::Canceled(cancel));
    }
    let mut tries = job.tries;
    if failure.cause.is_platforms() {
        tries = lost_time(tries, active, now);
        tries.lost += 1;
        if tries.lost >= Tries::MAX_LOST {
            let message = format!(
                "{} (attempt {}; the platform failed the job {} times, which is the limit)",
                failure.message, active.attempt, tries.lost
            );
            return Verdict::Over(Outcome::Failed(Failure { cause: failure.cause, message }));
        }
        // Enough that a broken node does not spin, little enough not to be felt.
        let delay_ms = 1_000 << (tries.lost - 1);
        let reason = format!("{}; attempt {} follows", failure.message, active.attempt.next());
        return Verdict::Again { tries, delay_ms, reason };
    }
    tries.failed += 1;
    let retry = &job.spec.retry;
    if tries.failed >= retry.max_attempts {
        return Verdict::Over(Outcome::Failed(failure));
    }
    let cap_ms = i64::try_from(retry.backoff.saturating_mul(1000)).unwrap_or(i64::MAX).max(DAY_MS);
    let doubled = retry.backoff.saturating_mul(1 << (tries.failed - 1).min(20));
    let delay_ms = i64::try_from(doubled.saturating_mul(1000)).unwrap_or(i64::MAX).min(cap_ms);
    let reason = format!(
        "{}; attempt {} of {} follows in {} s",
        failure.message,
        tries.failed + 1,
        retry.max_attempts,
        delay_ms / 1000
    );
    Verdict::Again { tries, delay_ms, reason }
}

/// With the time that went into an attempt which is no fault of the job.
fn lost_time(tries: Tries, active: &Active, now: Now) -> Tries {
    let spent = now.wall.as_millis() - active.assigned_at.as_millis();
    let spent = u64::try_from(spent).unwrap_or_default();
    Tries { lost_ms: tries.lost_ms.saturating_add(spent), ..tries }
}

/// A back-off does not grow beyond a day. One that is longer from the start stays as it is.
const DAY_MS: i64 = 86_400_000;

fn failure_of(exit: Option<Exit>) -> Failure {
    let message = match exit {
        Some(Exit::Code(code)) => format!("the command ended with exit code {code}"),
        Some(Exit::Signal(signal)) => format!("the command was killed by signal {signal}"),
        None => "the command never started".to_owned(),
    };
    Failure { cause: Cause::UserError, message }
}

fn node_principal(node: &NodeName, otherwise: &Principal) -> Principal {
    Principal::new(&format!("node:{node}")).unwrap_or_else(|_| otherwise.clone())
}

fn output_uri(job: &Job, name: &crate::id::PortName) -> String {
    job.spec.outputs.get(name).and_then(|output| output.path.clone()).unwrap_or_default()
}
