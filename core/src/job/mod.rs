//! A job's life: states that carry what is true in them, and the events that record each change.
//!
//! ```text
//! Queued --(placed)--> Active{Starting -> Preparing -> Running -> Finalizing} --(end)--> Ended
//!   ^                     |
//!   +---(retry, or the node was lost)
//! ```
//! An attempt has a member on each of its nodes; most have one. It is over when all of them are, and the
//! first that fails ends the others.
//!
//! A cancelled job that waits ends at once; one that is active is asked to stop and ends when its
//! node says so.

mod active;
mod event;
mod status;
mod usage;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use active::{Active, Failed, Member};
pub use event::{Event, EventKind};
pub use status::JobStatus;
pub use usage::{Advice, Usage, advise};

use crate::content::Digest;
use crate::id::{
    AttemptNumber, ComputeName, Epoch, JobName, NodeName, PortName, Principal, SubmitSeq,
};
use crate::resource::{Demand, MiB};
use crate::sched::pack::SplitMix;
use crate::spec::CommandJob;
use crate::time::Timestamp;

/// A job as the workspace knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Unique in the workspace; the run's id too.
    pub name: JobName,
    /// Order of submission.
    pub seq: SubmitSeq,
    /// What was asked for. Never changes.
    pub spec: Arc<CommandJob>,
    /// Where it was sent.
    pub compute: ComputeName,
    /// Who submitted it.
    pub created_by: Principal,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Tries so far.
    pub tries: Tries,
    /// Where it stands.
    pub state: State,
    /// Hidden from lists.
    pub archived: bool,
}

impl Job {
    /// What its next attempt asks of each node: what was specified, or more memory if an attempt before
    /// ran out of it.
    pub fn demand(&self) -> Demand {
        let mut demand = self.spec.resources.demand.clone();
        demand.memory = self.tries.memory.unwrap_or(demand.memory);
        demand
    }
}

/// Tries so far, by whose fault they ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tries {
    /// The newest attempt's number; zero before the first.
    pub made: AttemptNumber,
    /// Ended by the job's own failure: these use up `retry.max_attempts`.
    pub failed: u32,
    /// Ended by the platform's failure or a lost node: these never use the user's tries, but are
    /// capped at [`Tries::MAX_LOST`].
    pub lost: u32,
    /// Ended by the platform's failure before anything of the job ran, as when its image's registry does not answer.
    /// They cost little, so there may be more of them: [`Tries::MAX_UNSTARTED`].
    #[serde(default)]
    pub unstarted: u32,
    /// Asked to make way for something else (a node that is drained): these count for nothing.
    #[serde(default)]
    pub evicted: u32,
    /// Milliseconds from placement to end of the attempts that were lost or evicted.
    #[serde(default)]
    pub lost_ms: u64,
    /// The last epoch that was given before the job was submitted: its own attempts have later ones, and
    /// those of a deleted job of its name have not.
    #[serde(default)]
    pub after: Epoch,
    /// What attempts ask for now in place of `resources.memory`, in MiB: one has run out of memory, and
    /// `retry.memory` says to give more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MiB>,
}

impl Tries {
    /// A job that has taken this many nodes down, or lost them, stops.
    pub const MAX_LOST: u32 = 3;
    /// A job that could not be started this many times stops. With the pauses between them that takes two minutes or
    /// more ([`Tries::pause_ms`]).
    pub const MAX_UNSTARTED: u32 = 8;

    /// Milliseconds before the next attempt after so many of one kind failed by the platform's fault: 1 s, 2 s, 4 s
    /// and so on up to 60 s, of which up to a quarter is left out, by the job and the attempt, so that not all whom an
    /// outage has hit come back at once.
    pub fn pause_ms(&self, job: SubmitSeq, failed: u32) -> i64 {
        const LONGEST_MS: u64 = 60_000;
        let pause = (1_000 << failed.saturating_sub(1).min(6)).min(LONGEST_MS);
        let seed = job.0.rotate_left(32) ^ u64::from(self.made.0);
        let less = SplitMix(seed).below(pause / 4);
        i64::try_from(pause - less).unwrap_or(i64::MAX)
    }
}

/// Where a job stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for resources.
    Queued(Queued),
    /// An attempt holds resources on its nodes.
    Active(Active),
    /// Over. Nothing changes any more except `archived`.
    Ended(Ended),
}

/// A waiting job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Queued {
    /// Since when.
    pub since: Timestamp,
    /// Not to be started before this, after a failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// What went wrong with that one, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What the attempt before left behind: all there is if no other follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Box<Left>>,
}

/// How far an attempt is. Ordered: an attempt never goes back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Given to the node, which has not answered yet.
    Starting,
    /// Environment, code and inputs.
    Preparing {
        /// What is being done, in words.
        step: String,
    },
    /// The command runs.
    Running,
    /// The command has ended; outputs are being collected.
    Finalizing {
        /// How it ended, if it ever started.
        exit: Option<Exit>,
    },
}

impl Phase {
    /// Its place in the order.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Starting => 0,
            Self::Preparing { .. } => 1,
            Self::Running => 2,
            Self::Finalizing { .. } => 3,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it counts as success.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// The code as a shell reports it: signals are 128 and the number.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Somebody asked the job to stop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cancel {
    /// Who.
    pub by: Principal,
    /// Why, in their words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// An attempt has to make way, through no fault of its job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Evict {
    /// On whose word.
    pub by: Principal,
    /// Why.
    pub reason: String,
    /// When it was asked.
    pub at: Timestamp,
}

/// A finished job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// What its last attempt left behind.
    #[serde(flatten)]
    pub left: Left,
}

/// What an attempt left behind. All of it is empty if there was none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Left {
    /// When its command started, by its node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How its process ended, if it ever started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// What it wrote. Visible once the job is over, and unchanging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRef>,
    /// Named outputs, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputCommit>,
    /// Bytes of its log.
    #[serde(default)]
    pub log_bytes: u64,
    /// The same of the attempt's other members, from rank 1 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<MemberLeft>,
    /// The rank of the member whose end is the attempt's: of one that failed the first that did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub decisive: u32,
    /// What it used, all members together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

fn is_zero(rank: &u32) -> bool {
    *rank == 0
}

impl Left {
    /// How the process ended whose end is the attempt's.
    pub fn decisive_exit(&self) -> Option<Exit> {
        match self.decisive.checked_sub(1) {
            None => self.exit,
            Some(other) => self.others.get(other as usize)?.exit,
        }
    }

    /// Manifests of all members, by rank.
    pub fn manifests(&self) -> impl Iterator<Item = &ManifestRef> {
        let others = self.others.iter().filter_map(|member| member.manifest.as_ref());
        self.manifest.iter().chain(others)
    }

    /// Where its members ran, by rank.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.node.iter().chain(self.others.iter().map(|member| &member.node))
    }
}

/// What a member of an attempt left behind, beside named outputs, which are the attempt's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberLeft {
    /// Where it ran.
    pub node: NodeName,
    /// When its command started, by its node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How its process ended, if it ever started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What it wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRef>,
    /// Bytes of its log.
    #[serde(default)]
    pub log_bytes: u64,
}

/// How a job ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Completed,
    /// Not as asked.
    Failed(Failure),
    /// On somebody's word, or because a limit was reached.
    Canceled(Cancel),
}

/// Why a job failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub cause: Cause,
    /// For people: what happened and what to do.
    pub message: String,
}

/// What made an attempt fail, for programs. The words are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cause {
    /// The command ended with another code than zero.
    UserError,
    /// The shell did not find the command.
    CommandNotFound,
    /// The environment could not be made.
    EnvironmentFailed,
    /// An input could not be had.
    InputFailed,
    /// The code could not be had.
    CodeFailed,
    /// An output could not be stored.
    OutputFailed,
    /// `limits.timeout` was reached.
    Timeout,
    /// Asked to stop.
    Canceled,
    /// The node's disk is full.
    DiskFull,
    /// The kernel killed the job because it used more memory than it was given.
    OutOfMemory,
    /// The job used more memory of a GPU that it shares than its share of it.
    GpuOutOfMemory,
    /// The job's GPUs did nothing for as long as `idle_gpu` allows.
    GpuIdle,
    /// A GPU of the job broke.
    GpuLost,
    /// The node was lost.
    NodeLost,
    /// The node could not hold its lease and stopped the job itself.
    LeaseExpired,
    /// The agent or supervisor failed.
    AgentError,
}

impl Cause {
    /// Whether the failure counts against the platform rather than the user's tries.
    pub fn is_platforms(self) -> bool {
        matches!(
            self,
            Self::NodeLost | Self::LeaseExpired | Self::AgentError | Self::DiskFull | Self::GpuLost
        )
    }
}

/// Points to the manifest of what an attempt wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestRef {
    /// Key within the artifact store.
    pub key: String,
    /// Of the manifest's bytes.
    pub digest: Digest,
    /// How many files it lists.
    pub files: u64,
    /// Their bytes in all.
    pub bytes: u64,
}

/// A named output, committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutputCommit {
    /// The output's name in the specification.
    pub name: PortName,
    /// `azureml://datastores/…`
    pub uri: String,
    /// How many files.
    pub files: u64,
    /// Their bytes in all.
    pub bytes: u64,
    /// Kept from an attempt that failed or was cancelled.
    #[serde(default)]
    pub partial: bool,
}

/// Names one attempt in every message about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AttemptKey {
    /// The job.
    pub job: JobName,
    /// Which try.
    pub attempt: AttemptNumber,
    /// Its fencing number.
    pub epoch: Epoch,
}

/// What a node says of an attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// Which.
    pub key: AttemptKey,
    /// Where it stands there.
    pub progress: Progress,
}

/// Where an attempt stands on its node.
#[derive(Clone, PartialEq, Debug)]
pub enum Progress {
    /// Environment, code and inputs.
    Preparing {
        /// What is being done, in words.
        step: String,
    },
    /// The command runs since then.
    Running {
        /// By the node's clock.
        since: Timestamp,
        /// Since when its GPUs have done nothing, if its user is to be told of that.
        idle_since: Option<Timestamp>,
    },
    /// The command has ended.
    Finalizing {
        /// How, if it ever started.
        exit: Option<Exit>,
    },
    /// Everything is done and stored.
    Ended(Box<AttemptEnd>),
}

/// A node's last word on an attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// How the process ended, if it ever started.
    pub exit: Option<Exit>,
    /// What went wrong besides.
    pub problem: Option<Failure>,
    /// When the command started, by the node's clock.
    pub started_at: Option<Timestamp>,
    /// What was stored.
    pub manifest: Option<ManifestRef>,
    /// Files and bytes of each named output.
    pub outputs: Vec<(PortName, u64, u64)>,
    /// Bytes of log.
    pub log_bytes: u64,
    /// What its processes used in all; `None` if they never started, or nobody lived to tell.
    pub usage: Option<Usage>,
    /// Processes that did not die although killed: its node is not fit for more.
    #[serde(default)]
    pub survivors: u32,
}

impl AttemptEnd {
    /// A member whose node is gone.
    pub fn lost(failure: Failure, started_at: Option<Timestamp>) -> Self {
        Self {
            exit: None,
            problem: Some(failure),
            started_at,
            manifest: None,
            outputs: Vec::new(),
            log_bytes: 0,
            usage: None,
            survivors: 0,
        }
    }

    /// Whether all went as asked.
    pub fn is_success(&self) -> bool {
        self.problem.is_none() && self.exit.is_some_and(Exit::is_success)
    }

    /// Whether all went as asked for a member that had nothing left to do: however its processes ended, what
    /// they wrote is stored.
    pub fn is_dismissal(&self) -> bool {
        let unstored = |cause: Cause| cause.is_platforms() || cause == Cause::OutputFailed;
        self.problem.as_ref().is_none_or(|problem| !unstored(problem.cause))
    }
}

impl Job {
    /// Azure's word for where it stands.
    pub fn status(&self) -> JobStatus {
        match &self.state {
            State::Queued(_) => JobStatus::Queued,
            State::Active(active) if active.cancel.is_some() => JobStatus::CancelRequested,
            State::Active(active) if active.is_unreachable() => JobStatus::NotResponding,
            State::Active(active) => match active.phase() {
                Phase::Starting => JobStatus::Starting,
                Phase::Preparing { .. } => JobStatus::Preparing,
                Phase::Running => JobStatus::Running,
                Phase::Finalizing { .. } => JobStatus::Finalizing,
            },
            State::Ended(ended) => match ended.outcome {
                Outcome::Completed => JobStatus::Completed,
                Outcome::Failed(_) => JobStatus::Failed,
                Outcome::Canceled(_) => JobStatus::Canceled,
            },
        }
    }

    /// The attempt in progress, if there is one.
    pub fn active(&self) -> Option<&Active> {
        match &self.state {
            State::Active(active) => Some(active),
            State::Queued(_) | State::Ended(_) => None,
        }
    }

    /// The end, if it has come.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            State::Queued(_) | State::Active(_) => None,
        }
    }

    /// Whether this is an attempt of this job, and not of a deleted one of the same name.
    pub fn has_made(&self, key: &AttemptKey) -> bool {
        key.job == self.name && key.epoch > self.tries.after
    }

    /// The key of the attempt in progress.
    pub fn attempt_key(&self) -> Option<AttemptKey> {
        let active = self.active()?;
        Some(AttemptKey { job: self.name.clone(), attempt: active.attempt, epoch: active.epoch })
    }
}
