//! What nodes say of attempts, and what follows.

use std::cmp::Ordering;

use super::{Decisions, Effect, Live, end_event, rank, waiting};
use crate::id::{JobName, NodeName, Principal};
use crate::job::{
    Active, AttemptEnd, Cancel, Cause, Ended, EventKind, Exit, Failed, Failure, Job, Outcome,
    Phase, Progress, Queued, Report, State, Tries,
};
use crate::node::Now;
use crate::resource::Memory;
use crate::sched::Request;
use crate::spec::{CommandJob, OnNodeLoss};
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
                    && active.on(node).is_some()
            })
        });
        let Some(job) = current else {
            // Not alive any more, so its end is on disk or it was given up: the node may forget.
            if !ended {
                self.hold_on(report.key.epoch, now);
            }
            let (node, key) = (node.clone(), report.key);
            out.effects.push(if ended {
                Effect::Acknowledge { node, key }
            } else {
                Effect::Discard { node, key }
            });
            return;
        };
        let mut job = job.clone();
        if let Some(live) = self.nodes.get_mut(node)
            && let Some(missing) = live.attempts.get_mut(&job.name)
        {
            *missing = None;
        }
        if let Progress::Ended(end) = report.progress {
            out.effects.push(Effect::Acknowledge { node: node.clone(), key: report.key });
            self.member_ended(job, node, *end, now, out);
            return;
        }
        let State::Active(active) = &mut job.state else { return };
        let (attempt, before) = (active.attempt, active.phase().rank());
        let assigned_at = active.assigned_at;
        let Some(rank) = active.on(node).map(|(rank, _)| rank) else { return };
        let Some(member) = active.on_mut(node) else { return };
        let kind = match report.progress {
            Progress::Ended(_) => return,
            Progress::Preparing { step } => {
                let phase = Phase::Preparing { step: step.clone() };
                let same = member.phase == phase;
                if member.phase.rank() > phase.rank() || same {
                    return;
                }
                member.phase = phase;
                EventKind::Preparing { step }
            }
            Progress::Running { since, idle_since } => {
                let same = member.idle_since == idle_since;
                match member.phase.rank().cmp(&Phase::Running.rank()) {
                    Ordering::Greater => return,
                    Ordering::Equal if same => return,
                    // Said again because of what its GPUs do.
                    Ordering::Equal => {
                        member.idle_since = idle_since;
                        if let Some(since) = idle_since {
                            let kind = EventKind::GpuIdle { node: node.clone(), since };
                            let by = node_principal(node, &self.daemon);
                            self.record(&job, attempt, by, kind, now, out);
                        }
                        self.put(job, out);
                        return;
                    }
                    Ordering::Less => {}
                }
                member.phase = Phase::Running;
                member.started_at = Some(told(since, assigned_at, now));
                member.idle_since = idle_since;
                EventKind::Running
            }
            Progress::Finalizing { exit } => {
                let phase = Phase::Finalizing { exit };
                if member.phase.rank() >= phase.rank() {
                    return;
                }
                member.phase = phase;
                if let Some(live) = self.nodes.get(node) {
                    self.sched.set_going(&live.record.compute, node, &job.name, now.wall);
                }
                EventKind::Finalizing { exit }
            }
        };
        let is_over = matches!(kind, EventKind::Finalizing { .. });
        let dismissed = (is_over && dismisses(&job.spec, active, rank)).then(|| {
            active.dismissed = true;
            active.clone()
        });
        let after = active.phase();
        // Of several members the one that is least far is told of.
        let kind = match after {
            _ if !active.is_gang() => Some(kind),
            after if after.rank() == before => None,
            Phase::Starting => None,
            Phase::Preparing { step } => Some(EventKind::Preparing { step }),
            Phase::Running => Some(EventKind::Running),
            Phase::Finalizing { exit } => Some(EventKind::Finalizing { exit }),
        };
        if let Some(kind) = kind {
            let by = node_principal(node, &self.daemon);
            self.record(&job, attempt, by, kind, now, out);
        }
        if let Some(active) = dismissed {
            self.dismiss(&active, &report.key, now, out);
        }
        self.put(job, out);
    }

    /// A member of an attempt is over: give back what it held. The first that fails takes the others
    /// with it, and with the last the attempt is over.
    pub(super) fn member_ended(
        &mut self,
        mut job: Job,
        node: &NodeName,
        mut end: AttemptEnd,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(key) = job.attempt_key() else { return };
        let State::Active(active) = &mut job.state else { return };
        let Some((rank, member)) = active.on(node) else { return };
        let started_at = end.started_at.map(|at| told(at, active.assigned_at, now));
        end.started_at = member.started_at.or(started_at);
        if let Some(live) = self.nodes.get_mut(node) {
            // The node's compute, not the job's: the node may have moved since.
            self.sched.release(&live.record.compute, node, &job.name, now.wall);
            live.attempts.remove(&job.name);
        }
        if end.survivors > 0 {
            self.quarantine(node, &job.name, end.survivors, now, out);
        }
        let State::Active(active) = &mut job.state else { return };
        if rank == 0 && job.spec.has_head() && end.is_success() {
            active.excuse();
        }
        let problem = active.fails(rank, &end).then(|| of_end(&end));
        // That its command has ended may not have been told before.
        let dismisses = problem.is_none() && dismisses(&job.spec, active, rank);
        active.dismissed |= dismisses;
        if let Some(member) = active.on_mut(node) {
            member.unreachable = false;
            member.end = Some(Box::new(end));
        }
        let over = active.working().next().is_none();
        let first = problem.is_some() && active.stop_reason().is_none();
        if let Some(failure) = problem.as_ref().filter(|_| first && active.is_gang()) {
            let reason = format!("member {rank} on node {node} failed: {}", failure.message);
            active.failed = Some(Failed { rank, reason });
        }
        let active = active.clone();
        if over {
            out.effects.push(Effect::AttemptOver { key });
            self.attempt_ended(job, &active, node, now, out);
            return;
        }
        let kind = EventKind::MemberEnded {
            rank,
            node: node.clone(),
            problem: problem.map(|failure| {
                let more = if first { "; the others are asked to stop" } else { "" };
                failure.message + more
            }),
        };
        let by = node_principal(node, &self.daemon);
        self.record(&job, active.attempt, by, kind, now, out);
        match active.failed.as_ref().filter(|_| first) {
            Some(failed) => self.stop(&active, &key, &failed.reason, now, out),
            None if dismisses => self.dismiss(&active, &key, now, out),
            None => {}
        }
        self.put(job, out);
    }

    /// All members of an attempt are over, that on `node` last: end the job or try again.
    fn attempt_ended(
        &mut self,
        mut job: Job,
        active: &Active,
        node: &NodeName,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(end) = active.end() else { return };
        let mut verdict = verdict(&job, active, end, now);
        let failure = failure_of(active, end);
        if failure.cause == Cause::OutOfMemory {
            self.give_memory(&job, failure.clone(), &mut verdict);
        }
        let by = node_principal(node, &self.daemon);
        match verdict {
            Verdict::Over(outcome) => {
                let partial = outcome != Outcome::Completed;
                if !partial {
                    self.register_outputs(&job, active, &by, now, out);
                }
                let kind = end_event(&outcome);
                let left = active.left(&job.spec, partial);
                job.state = State::Ended(Ended { at: now.wall, outcome, left });
                self.record(&job, active.attempt, by, kind, now, out);
                out.effects.push(Effect::JobOver { job: job.name.clone() });
                self.jobs.remove(&job.name);
                out.changed.insert(job.name.clone(), job);
            }
            Verdict::Again { tries, delay_ms, reason } => {
                job.tries = tries;
                let not_before = (delay_ms > 0).then(|| now.wall.plus_millis(delay_ms));
                let left = Some(Box::new(active.left(&job.spec, true)));
                let why = not_before.map(|_| failure.message);
                job.state = State::Queued(Queued { since: now.wall, not_before, why, left });
                let kind = EventKind::Requeued { reason };
                self.record(&job, active.attempt, by, kind, now, out);
                self.sched.enqueue(&job.compute, rank(&job), waiting(&job));
                self.put(job, out);
            }
        }
    }

    /// What becomes an asset now that the job is completed: in the same transaction, so that it is done once.
    fn register_outputs(
        &mut self,
        job: &Job,
        active: &Active,
        by: &Principal,
        now: Now,
        out: &mut Decisions,
    ) {
        for (output, _) in job.spec.outputs.iter().filter(|(_, o)| o.asset_name.is_some()) {
            let kind = EventKind::AssetRegistering { output: output.clone() };
            self.record(job, active.attempt, by.clone(), kind, now, out);
        }
    }

    /// After an attempt that ran out of memory: the next one asks for as much more as its user wants, or
    /// for what the largest node has. Where no node has more, there is no next one.
    fn give_memory(&self, job: &Job, mut failure: Failure, verdict: &mut Verdict) {
        let Verdict::Again { tries, reason, .. } = verdict else { return };
        let had = Request::from(job);
        let memory = had.demand.memory;
        let Some(percent) = job.spec.retry.memory_percent.filter(|percent| *percent > 100) else {
            return;
        };
        if memory == 0 {
            return;
        }
        // Without nodes that could hold it now, nobody knows what those that come will have.
        let Some(most) = self.sched.most_memory(&job.compute, &had) else { return };
        let grown = memory.saturating_mul(percent.into()).div_ceil(100).min(most);
        if grown > memory {
            tries.memory = Some(grown);
            reason.push_str(&format!(" with {} memory", Memory(grown)));
            return;
        }
        let had = Memory(memory);
        failure.message = format!(
            "{}; no node of compute '{}' has more memory for it than the {had} that it had",
            failure.message, job.compute
        );
        *verdict = Verdict::Over(Outcome::Failed(failure));
    }

    /// A member of a silent or forgetful node is given up: the node has ended it by itself.
    pub(super) fn member_lost(
        &mut self,
        job: &JobName,
        node: &NodeName,
        failure: Failure,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(known) = self.jobs.get(job) else { return };
        // Nothing that follows may start while it may yet run. Where nothing follows it need not be
        // waited for: it was cancelled, or another member's failure has used up the job's tries.
        let nothing_follows = known.active().is_some_and(|active| {
            let failed = active
                .failed
                .as_ref()
                .and_then(|failed| active.members().nth(failed.rank as usize)?.end.as_deref());
            active.cancel.is_some()
                || failed
                    .is_some_and(|end| matches!(verdict(known, active, end, now), Verdict::Over(_)))
        });
        if known.spec.on_node_loss == OnNodeLoss::Keep && !nothing_follows {
            return;
        }
        self.member_gone(job, node, failure, now, out);
    }

    /// A member whose machine is gone is over, whatever its job wants.
    pub(super) fn member_gone(
        &mut self,
        job: &JobName,
        node: &NodeName,
        failure: Failure,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(job) = self.jobs.get(job).cloned() else { return };
        let started_at = job.active().and_then(|active| active.on(node)?.1.started_at);
        self.member_ended(job, node, AttemptEnd::lost(failure, started_at), now, out);
    }
}

/// Whether the others have nothing left to do once the command of the member of this rank is over.
fn dismisses(spec: &CommandJob, active: &Active, rank: u32) -> bool {
    let is_head = rank == 0 && active.is_gang() && spec.has_head();
    is_head && !active.dismissed && active.stop_reason().is_none()
}

enum Verdict {
    Over(Outcome),
    Again { tries: Tries, delay_ms: i64, reason: String },
}

/// What the end of an attempt means for its job.
fn verdict(job: &Job, active: &Active, end: &AttemptEnd, now: Now) -> Verdict {
    if end.is_success() {
        return Verdict::Over(Outcome::Completed);
    }
    let failure = failure_of(active, end);
    if let Some(cancel) = &active.cancel {
        return Verdict::Over(Outcome::Canceled(cancel.clone()));
    }
    if let Some(evict) = &active.evict
        && !matches!(failure.cause, Cause::Timeout | Cause::GpuIdle)
    {
        let mut tries = lost_time(job.tries, active, now);
        tries.evicted += 1;
        let reason = format!("{}; attempt {} follows", evict.reason, active.attempt.next());
        return Verdict::Again { tries, delay_ms: 0, reason };
    }
    if matches!(failure.cause, Cause::Timeout | Cause::GpuIdle | Cause::Canceled) {
        let by = node_principal(&active.first.node, &job.created_by);
        let cancel = Cancel { by, reason: failure.message, at: now.wall };
        return Verdict::Over(Outcome::Canceled(cancel));
    }
    let mut tries = job.tries;
    if failure.cause.is_platforms() {
        tries = lost_time(tries, active, now);
        // What was never told of as running may have run all the same.
        let began = active.members().any(|member| {
            let told = member.end.as_ref().and_then(|end| end.started_at);
            member.started_at.or(told).is_some()
        });
        let costs_little = failure.cause == Cause::AgentError && !began && end.started_at.is_none();
        let (count, most) = match costs_little {
            true => (&mut tries.unstarted, Tries::MAX_UNSTARTED),
            false => (&mut tries.lost, Tries::MAX_LOST),
        };
        *count += 1;
        let count = *count;
        if count >= most {
            let message = format!(
                "{} (attempt {}; the platform failed the job {count} times, which is the limit)",
                failure.message, active.attempt
            );
            return Verdict::Over(Outcome::Failed(Failure { cause: failure.cause, message }));
        }
        let delay_ms = tries.pause_ms(job.seq, count);
        let reason = format!(
            "{}; attempt {} follows in {} s",
            failure.message,
            active.attempt.next(),
            (delay_ms + 500) / 1000
        );
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

/// When something of an attempt happened, as its node tells it: the clocks of two machines may differ, and what is
/// recorded is in the order in which it was.
fn told(at: Timestamp, assigned_at: Timestamp, now: Now) -> Timestamp {
    at.min(now.wall).max(assigned_at)
}

/// With the time that went into an attempt which is no fault of the job.
fn lost_time(tries: Tries, active: &Active, now: Now) -> Tries {
    let spent = now.wall.as_millis() - active.assigned_at.as_millis();
    let spent = u64::try_from(spent).unwrap_or_default();
    Tries { lost_ms: tries.lost_ms.saturating_add(spent), ..tries }
}

/// A back-off does not grow beyond a day. One that is longer from the start stays as it is.
const DAY_MS: i64 = 86_400_000;

/// What went wrong with an attempt whose end this is: of several members, which one.
fn failure_of(active: &Active, end: &AttemptEnd) -> Failure {
    let mut failure = of_end(end);
    if let Some(failed) = &active.failed {
        failure.message.clone_from(&failed.reason);
    }
    failure
}

/// What went wrong, where something did.
fn of_end(end: &AttemptEnd) -> Failure {
    if let Some(problem) = &end.problem {
        return problem.clone();
    }
    let message = match end.exit {
        Some(Exit::Code(code)) => format!("the command ended with exit code {code}"),
        Some(Exit::Signal(signal)) => format!("the command was killed by signal {signal}"),
        None => "the command never started".to_owned(),
    };
    Failure { cause: Cause::UserError, message }
}

fn node_principal(node: &NodeName, otherwise: &Principal) -> Principal {
    Principal::new(&format!("node:{node}")).unwrap_or_else(|_| otherwise.clone())
}
