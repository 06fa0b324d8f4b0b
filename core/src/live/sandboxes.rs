//! What nodes keep of attempts that failed: where it lies, being let into it, and letting go of it.
//!
//! Only the nodes know, and tell it when they join and when it changes. It holds nothing of a node: what an
//! attempt was given is free when its end is told.

use std::collections::BTreeMap;

use super::{Decisions, Effect, Entered, Live, Refusal, enter};
use crate::id::{JobName, NodeName, Principal};
use crate::job::{AttemptKey, EventKind, Job, Outcome, State};
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
    /// A node says all that it keeps.
    pub fn node_keeps(&mut self, name: &NodeName, kept: Vec<Sandbox>) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.kept = kept;
        }
    }

    /// What is kept of a job now: of each member the newest, by rank.
    pub fn sandboxes(&self, job: &JobName, now: Timestamp) -> Vec<(NodeName, Sandbox)> {
        let mut newest: BTreeMap<u32, (NodeName, Sandbox)> = BTreeMap::new();
        for (name, node) in &self.nodes {
            for kept in node.kept.iter().filter(|kept| &kept.key.job == job && kept.until > now) {
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
        let kept = self.sandboxes(&job.name, now.wall);
        let found = kept.into_iter().find(|(_, kept)| kept.rank == rank);
        let (node, kept) = found.ok_or_else(|| not_kept(why_not(job)))?;
        self.must_answer(&node, &job.name)?;
        let command = enter::shown(command);
        let kind = EventKind::Debugged { rank, command };
        self.record(job, kept.key.attempt, by, kind, now, out);
        Ok(Entered { node, key: kept.key })
    }

    /// Lets go of all that is kept of a job; what that was.
    ///
    /// # Errors
    /// A node that keeps some of it does not answer.
    pub fn release(
        &mut self,
        job: &JobName,
        now: Timestamp,
        out: &mut Decisions,
    ) -> Result<Vec<(NodeName, Sandbox)>, Refusal> {
        let kept = self.sandboxes(job, now);
        for (node, _) in &kept {
            self.must_answer(node, job)?;
        }
        for (name, node) in &mut self.nodes {
            // Those of attempts before the newest too.
            for gone in node.kept.extract_if(.., |kept| &kept.key.job == job) {
                out.effects.push(Effect::Release { node: name.clone(), key: gone.key });
            }
        }
        Ok(kept)
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
                               command never ran, or ran in a container); submit it again with \
                               '--keep-failed=2h', or 'keep_failed: 2h' in its file"
                .to_owned()
        }
    }
}
