//! What nodes keep of attempts that failed: where it lies, being let into it, and letting go of it.
//!
//! Only the nodes know, and tell it when they join and when it changes. It holds nothing of a node: what an
//! attempt was given is free when its end is told.

use std::collections::BTreeMap;

use super::{Decisions, Effect, Entered, Live, LiveNode, Refusal, enter};
use crate::id::{JobName, NodeName, Principal};
use crate::job::{AttemptKey, Ended, EventKind, Job, Left, Outcome, State};
use crate::node::{Link, Now};
use crate::time::Timestamp;

/// What an attempt left whose command failed, kept for a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    /// Whose.
    pub key: AttemptKey,
    /// The rank of the node's member.
    pub rank: u32,
    /// By the node's clock.
    pub until: Timestamp,
}

impl Live {
    /// A node says all that it keeps. What is of no job goes: that was deleted while the node was away.
    /// `jobs`: those that are named, `None` for one that there is not. One that is left out is not known now,
    /// and what is kept of it stays.
    pub fn node_keeps(
        &mut self,
        name: &NodeName,
        kept: Vec<Sandbox>,
        jobs: &BTreeMap<JobName, Option<Job>>,
        out: &mut Decisions,
    ) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let is_owned = |kept: &Sandbox| match jobs.get(&kept.key.job) {
            Some(job) => job.as_ref().is_some_and(|job| job.has_made(&kept.key)),
            None => true,
        };
        let (owned, orphans): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_owned);
        node.kept = Some(owned);
        let release = |orphan: Sandbox| Effect::Release { node: name.clone(), key: orphan.key };
        out.effects.extend(orphans.into_iter().map(release));
    }

    /// What is kept of a job now: of each member the newest, by rank.
    pub fn sandboxes(&self, job: &Job, now: Timestamp) -> Vec<(NodeName, Sandbox)> {
        let mut newest: BTreeMap<u32, (NodeName, Sandbox)> = BTreeMap::new();
        for (name, node) in &self.nodes {
            let is_ours = |kept: &&Sandbox| job.has_made(&kept.key) && kept.until > now;
            for kept in node.kept.iter().flatten().filter(is_ours) {
                let older = newest.get(&kept.rank);
                if older.is_none_or(|(_, older)| older.key.epoch < kept.key.epoch) {
                    newest.insert(kept.rank, (name.clone(), kept.clone()));
                }
            }
        }
        newest.into_values().collect()
    }

    /// Lets somebody into what a member of a job left, and writes it down. Whether they may is the caller's
    /// to know. `command`: as a shell shows it; empty: a shell.
    ///
    /// # Errors
    /// Nothing is kept, or its node does not answer.
    pub fn debug(
        &mut self,
        job: &Job,
        rank: u32,
        command: &str,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) -> Result<Entered, Refusal> {
        let count = job.spec.resources.instance_count;
        if rank >= count {
            return Err(Refusal::NoSuchMember { job: job.name.clone(), rank, count });
        }
        let not_kept = |why: String| Refusal::NotKept { job: job.name.clone(), why };
        if job.active().is_some() {
            let why = format!("it is not over; try 'atelier job shell {}'", job.name);
            return Err(not_kept(why));
        }
        let kept = self.sandboxes(job, now.wall);
        let found = kept.into_iter().find(|(_, kept)| kept.rank == rank);
        let Some((node, kept)) = found else {
            let left = failed_last(job).and_then(|left| left.nodes().nth(rank as usize));
            left.map_or(Ok(()), |node| self.must_be_heard(node, &job.name))?;
            return Err(not_kept(why_not(job)));
        };
        self.must_answer(&node, &job.name)?;
        let command = enter::shown(command);
        let kind = EventKind::Debugged { rank, command };
        self.record(job, kept.key.attempt, by, kind, now, out);
        Ok(Entered { node, key: kept.key })
    }

    /// Lets go of all that is kept of a job, and writes it down; what that was.
    ///
    /// # Errors
    /// A node that keeps some of it does not answer, or one has not said yet what it keeps.
    pub fn release(
        &mut self,
        job: &Job,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) -> Result<Vec<(NodeName, Sandbox)>, Refusal> {
        let kept = self.sandboxes(job, now.wall);
        for (node, _) in &kept {
            self.must_answer(node, &job.name)?;
        }
        for node in failed_last(job).into_iter().flat_map(Left::nodes) {
            self.must_be_heard(node, &job.name)?;
        }
        self.let_go(&job.name, out);
        if let Some(newest) = kept.iter().map(|(_, kept)| kept.key.attempt).max() {
            self.record(job, newest, by, EventKind::Released, now, out);
        }
        Ok(kept)
    }

    /// Lets go of all that is kept of a job that is deleted. A node that is away is told when it comes back
    /// and says what it keeps.
    pub fn let_go(&mut self, job: &JobName, out: &mut Decisions) {
        for (name, node) in &mut self.nodes {
            // Those of attempts before the newest too.
            let Some(kept) = &mut node.kept else { continue };
            for gone in kept.extract_if(.., |kept| &kept.key.job == job) {
                out.effects.push(Effect::Release { node: name.clone(), key: gone.key });
            }
        }
    }

    fn must_answer(&self, node: &NodeName, job: &JobName) -> Result<(), Refusal> {
        let link = self.nodes.get(node).map(|node| node.link);
        match link {
            Some(Link::Ready) => Ok(()),
            Some(Link::Silent { .. }) | None => {
                Err(Refusal::KeeperAway { job: job.clone(), node: node.clone() })
            }
        }
    }

    /// A node that has not come back since the daemon started may keep something. One that is removed does
    /// not.
    fn must_be_heard(&self, node: &NodeName, job: &JobName) -> Result<(), Refusal> {
        match self.nodes.get(node) {
            Some(LiveNode { kept: None, .. }) => {
                Err(Refusal::KeeperAway { job: job.clone(), node: node.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What the last attempt left of a job that is not active, if it failed and may be kept.
fn failed_last(job: &Job) -> Option<&Left> {
    match &job.state {
        State::Queued(queued) => queued.left.as_deref(),
        State::Ended(Ended { outcome: Outcome::Failed(_), left, .. }) => Some(left),
        State::Ended(_) | State::Active(_) => None,
    }
    .filter(|_| job.spec.keep_failed != Some(0))
}

/// Why nothing is kept of a job that is not active, and what to do.
fn why_not(job: &Job) -> String {
    let ended = match &job.state {
        State::Ended(ended) => ended,
        State::Queued(_) | State::Active(_) => return "it is still queued".to_owned(),
    };
    match &ended.outcome {
        Outcome::Completed => "it completed, and only what failed is kept".to_owned(),
        Outcome::Canceled(_) => "it was canceled, and only what failed is kept".to_owned(),
        Outcome::Failed(_) => {
            "its time is over, its node had no room, or it left nothing to keep (its \
                               command never ran, or ran in docker's container); submit it again with \
                               '--keep-failed=2h', or 'keep_failed: 2h' in its file"
                .to_owned()
        }
    }
}
