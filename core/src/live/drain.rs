//! Drained nodes: no new jobs, and at a deadline those that run are asked to make way.

use super::{Decisions, Live, Refusal};
use crate::id::{JobName, NodeName, Principal};
use crate::job::{EventKind, Evict, Phase, State};
use crate::node::{Drain, Now};

impl Live {
    /// Keeps jobs away from a node from now on. With a deadline, those that still run there then go
    /// back in the queue; a deadline that is past means at once.
    ///
    /// # Errors
    /// The node is not known, or drained already and this is no `update`. Nothing has changed then.
    pub fn drain(
        &mut self,
        name: &NodeName,
        drain: Drain,
        update: bool,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Err(Refusal::NoSuchNode(name.clone()));
        };
        if let Some(Drain { by, reason, .. }) = &node.record.drain
            && !update
        {
            let (by, reason) = (by.clone(), reason.clone());
            return Err(Refusal::AlreadyDrained { node: name.clone(), by, reason });
        }
        node.record.drain = Some(drain);
        out.nodes.push(node.record.clone());
        self.close(name);
        self.evict_due(now, out);
        Ok(())
    }

    /// Lets a drained node have jobs again. Those that were asked to make way still do.
    ///
    /// # Errors
    /// The node is not known, or not drained.
    pub fn resume(&mut self, name: &NodeName, out: &mut Decisions) -> Result<(), Refusal> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Err(Refusal::NoSuchNode(name.clone()));
        };
        if node.record.drain.take().is_none() {
            return Err(Refusal::NotDrained(name.clone()));
        }
        out.nodes.push(node.record.clone());
        self.close(name);
        Ok(())
    }

    /// A node on which processes of a job do not die gets no more jobs until somebody has looked at it: what
    /// those hold is not known to be free.
    pub(super) fn quarantine(
        &mut self,
        name: &NodeName,
        job: &JobName,
        survivors: u32,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let processes = match survivors {
            1 => "a process".to_owned(),
            many => format!("{many} processes"),
        };
        let reason =
            format!("{processes} of job {job} did not die when killed; look at the machine");
        match &mut node.record.drain {
            // Whoever drained it resumes it once they have read this too.
            Some(drain) if drain.reason.contains(&reason) => return,
            Some(drain) if drain.reason.is_empty() => drain.reason = reason,
            Some(drain) => drain.reason = format!("{}; {reason}", drain.reason),
            none => {
                let by = self.daemon.clone();
                *none = Some(Drain { by, reason, since: now.wall, deadline: None });
            }
        }
        out.nodes.push(node.record.clone());
        self.close(name);
    }

    /// Asks the jobs of nodes whose deadline has come to make way.
    pub(super) fn evict_due(&mut self, now: Now, out: &mut Decisions) {
        let mut due: Vec<(JobName, Principal, String)> = Vec::new();
        for (name, node) in &self.nodes {
            let compute = &node.record.compute;
            let whole = self.computes.get(compute).and_then(|known| known.drain.as_ref());
            let drains = [
                (node.record.drain.as_ref(), format!("node {name}")),
                (whole, format!("compute {compute}")),
            ];
            for (drain, what) in drains {
                let Some(drain) = drain else { continue };
                if drain.deadline.is_some_and(|deadline| deadline <= now.wall) {
                    let reason = format!("{what} is drained: {}", drain.reason);
                    let jobs = node.attempts.keys().cloned();
                    due.extend(jobs.map(|job| (job, drain.by.clone(), reason.clone())));
                }
            }
        }
        for (job, by, reason) in due {
            self.evict(&job, by, reason, now, out);
        }
    }

    /// Asks an attempt to stop, so that its job goes back in the queue. One that was asked already,
    /// or whose command has ended, is left alone.
    pub(super) fn evict(
        &mut self,
        name: &JobName,
        by: Principal,
        reason: String,
        now: Now,
        out: &mut Decisions,
    ) {
        let Some(mut job) = self.jobs.get(name).cloned() else { return };
        let Some(key) = job.attempt_key() else { return };
        let State::Active(active) = &mut job.state else { return };
        let ends = active.dismissed || matches!(active.phase(), Phase::Finalizing { .. });
        if ends || active.stop_reason().is_some() {
            return;
        }
        active.evict = Some(Evict { by: by.clone(), reason: reason.clone(), at: now.wall });
        let active = active.clone();
        let kind = EventKind::Evicting { reason: reason.clone() };
        self.record(&job, active.attempt, by, kind, now, out);
        self.stop(&active, &key, &reason, now, out);
        self.put(job, out);
    }
}
