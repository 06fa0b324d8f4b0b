//! Being let into a running job: whether that can be, where it is, and the event that says so.

use super::{Decisions, Live, Refusal};
use crate::id::{JobName, NodeName, Principal};
use crate::job::{Active, AttemptKey, EventKind, Job, Phase, State};
use crate::node::Now;

/// What somebody wants in a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entering {
    /// To run a command, as a shell shows it.
    Command(String),
    /// To have a shell.
    Shell,
    /// To reach ports of its node.
    Ports(Vec<u16>),
}

/// Where the way leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entered {
    /// The member's node.
    pub node: NodeName,
    /// The attempt there.
    pub key: AttemptKey,
}

/// The longest command that an event holds, in characters.
const SHOWN: usize = 500;

impl Live {
    /// Lets somebody into the member of this rank and writes it down. Whether they may is the caller's to
    /// know.
    ///
    /// # Errors
    /// The member does not run, or its node does not answer.
    pub fn enter(
        &mut self,
        name: &JobName,
        rank: u32,
        what: &Entering,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) -> Result<Entered, Refusal> {
        let job = self.jobs.get(name).ok_or_else(|| Refusal::NoSuchJob(name.clone()))?.clone();
        let count = job.spec.resources.instance_count;
        if rank >= count {
            return Err(Refusal::NoSuchMember { job: name.clone(), rank, count });
        }
        let not_running = |why: String| Refusal::NotRunning { job: name.clone(), why };
        let (node, key) = match (&job.state, job.attempt_key()) {
            (State::Active(active), Some(key)) => {
                (runs_on(active, rank).map_err(not_running)?, key)
            }
            (State::Queued(_), _) | (State::Active(_), None) | (State::Ended(_), _) => {
                return Err(not_running(self.waits(&job)));
            }
        };
        let kind = match what {
            Entering::Command(command) => EventKind::Entered { rank, command: shown(command) },
            Entering::Shell => EventKind::Entered { rank, command: String::new() },
            Entering::Ports(ports) => EventKind::Forwarded { rank, ports: ports.clone() },
        };
        self.record(&job, key.attempt, by, kind, now, out);
        Ok(Entered { node, key })
    }

    fn waits(&self, job: &Job) -> String {
        let reason = self.wait_reason(job).map(|reason| format!(" ({reason})"));
        format!("it is still queued{}; try again once it runs", reason.unwrap_or_default())
    }
}

/// As much of a command as an event holds.
pub(super) fn shown(command: &str) -> String {
    command.chars().take(SHOWN).collect()
}

/// The node on which the member runs, or why it does not.
fn runs_on(active: &Active, rank: u32) -> Result<NodeName, String> {
    let Some((_, member)) = active.working().find(|(working, _)| *working == rank) else {
        return Err(format!("its member {rank} is over"));
    };
    if member.unreachable {
        return Err(format!("its node '{}' does not answer", member.node));
    }
    match &member.phase {
        Phase::Running => Ok(member.node.clone()),
        Phase::Starting => Err("its node has not begun yet; try again once it runs".to_owned()),
        Phase::Preparing { step } => {
            Err(format!("its node is still preparing it ({step}); try again once it runs"))
        }
        Phase::Finalizing { .. } => {
            Err("its command has ended, and its outputs are being collected".to_owned())
        }
    }
}
