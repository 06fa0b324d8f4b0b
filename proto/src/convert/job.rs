//! Jobs and their events, to the wire.

use std::collections::BTreeMap;

use atelier_core::asset;
use atelier_core::id::NodeName;
use atelier_core::job::{self, Cause, Outcome, State};
use atelier_core::live::Sandbox;
use atelier_core::retention::What;
use atelier_core::time::Timestamp;

use crate::job::v1 as pb;

impl From<job::JobStatus> for pb::JobStatus {
    fn from(status: job::JobStatus) -> Self {
        match status {
            job::JobStatus::NotStarted => Self::NotStarted,
            job::JobStatus::Queued => Self::Queued,
            job::JobStatus::Starting => Self::Starting,
            job::JobStatus::Preparing => Self::Preparing,
            job::JobStatus::Running => Self::Running,
            job::JobStatus::Finalizing => Self::Finalizing,
            job::JobStatus::CancelRequested => Self::CancelRequested,
            job::JobStatus::NotResponding => Self::NotResponding,
            job::JobStatus::Completed => Self::Completed,
            job::JobStatus::Failed => Self::Failed,
            job::JobStatus::Canceled => Self::Canceled,
        }
    }
}

impl pb::JobStatus {
    /// The status in core's words; `None` for a number left out or not known here.
    pub const fn to_core(self) -> Option<job::JobStatus> {
        Some(match self {
            Self::Unspecified => return None,
            Self::NotStarted => job::JobStatus::NotStarted,
            Self::Queued => job::JobStatus::Queued,
            Self::Starting => job::JobStatus::Starting,
            Self::Preparing => job::JobStatus::Preparing,
            Self::Running => job::JobStatus::Running,
            Self::Finalizing => job::JobStatus::Finalizing,
            Self::CancelRequested => job::JobStatus::CancelRequested,
            Self::NotResponding => job::JobStatus::NotResponding,
            Self::Completed => job::JobStatus::Completed,
            Self::Failed => job::JobStatus::Failed,
            Self::Canceled => job::JobStatus::Canceled,
        })
    }
}

/// What is known of a job besides its own record.
#[derive(Default, Debug)]
pub struct JobDetails {
    /// Why it waits, while it does.
    pub wait_reason: String,
    /// Last value of each metric of its run.
    pub metrics: BTreeMap<String, f64>,
    /// What past runs of its command say of its memory.
    pub memory_advice: Option<job::Advice>,
    /// What nodes keep of attempts that failed.
    pub sandboxes: Vec<(NodeName, Sandbox)>,
    /// What its outputs became.
    pub assets: Vec<asset::Version>,
    /// The nodes that hold some of its inputs, with how many bytes.
    pub holders: Vec<(NodeName, u64)>,
    /// When what of it was removed.
    pub removed: BTreeMap<What, Timestamp>,
}

/// What a node keeps of an attempt that failed.
pub fn sandbox((node, kept): &(NodeName, Sandbox)) -> pb::Sandbox {
    pb::Sandbox {
        node: node.to_string(),
        attempt: kept.key.attempt.0,
        rank: kept.rank,
        until_ms: kept.until.as_millis(),
    }
}

/// A node that holds some of a job's inputs.
pub fn input_holder((node, bytes): &(NodeName, u64)) -> pb::InputHolder {
    pb::InputHolder { node: node.to_string(), bytes: *bytes }
}

/// An output, and how jobs name the asset that it became.
fn output_asset(version: &asset::Version) -> Option<(String, String)> {
    let output = version.made_by.as_ref()?.output.clone();
    Some((output, format!("azureml:{}:{}", version.name, version.version)))
}

/// A job as clients see it.
pub fn job(job: &job::Job, details: JobDetails) -> pb::Job {
    let mut message = pb::Job {
        name: job.name.to_string(),
        status: pb::JobStatus::from(job.status()).into(),
        spec: Some(job.spec.as_ref().into()),
        created_by: job.created_by.to_string(),
        created_at_ms: job.created_at.as_millis(),
        attempt: job.tries.made.0,
        wait_reason: details.wait_reason,
        archived: job.archived,
        compute: job.compute.to_string(),
        submit_seq: job.seq.0,
        memory_mib: job.tries.memory.unwrap_or_default(),
        metrics: details.metrics,
        sandboxes: details.sandboxes.iter().map(sandbox).collect(),
        removed_ms: details
            .removed
            .iter()
            .map(|(what, at)| (what.word().to_owned(), at.as_millis()))
            .collect(),
        input_holders: details.holders.iter().map(input_holder).collect(),
        output_assets: details.assets.iter().filter_map(output_asset).collect(),
        memory_advice: details.memory_advice.map(|advice| pb::MemoryAdvice {
            runs: u32::try_from(advice.runs).unwrap_or(u32::MAX),
            peak_memory_mib: advice.peak_memory,
            memory_mib: advice.memory,
        }),
        ..pb::Job::default()
    };
    match &job.state {
        State::Queued(_) => {}
        State::Active(active) => {
            let first = &active.first;
            message.node = first.node.to_string();
            message.gpu_indices =
                first.reservation.gpus.iter().map(|&index| u32::from(index)).collect();
            message.started_at_ms = active.started_at().map_or(0, |at| at.as_millis());
            if active.is_gang() {
                message.members = (0..).zip(active.members()).map(member).collect();
            }
        }
        State::Ended(ended) => {
            message.node = ended.left.node.as_ref().map(ToString::to_string).unwrap_or_default();
            message.started_at_ms = ended.left.started_at.map_or(0, |at| at.as_millis());
            message.ended_at_ms = ended.at.as_millis();
            message.exit_code = ended.left.decisive_exit().map(job::Exit::shell_code);
            message.outputs = ended.left.outputs.iter().map(output).collect();
            message.members = members_left(job, &ended.left);
            message.usage = ended.left.usage.map(|usage| pb::Usage {
                cpu_ms: usage.cpu_ms,
                peak_memory_mib: usage.peak_memory,
                wall_ms: usage.wall_ms,
                gpu_ms: usage.gpu_ms,
                peak_gpu_memory_mib: usage.peak_gpu_memory,
                input_bytes: usage.input_bytes,
                input_fetched_bytes: usage.input_fetched_bytes,
            });
            message.error = match &ended.outcome {
                Outcome::Completed => None,
                Outcome::Failed(failure) => Some(pb::JobError {
                    code: code(failure.cause).to_owned(),
                    message: failure.message.clone(),
                }),
                Outcome::Canceled(cancel) if cancel.reason.is_empty() => None,
                Outcome::Canceled(cancel) => Some(pb::JobError {
                    code: code(Cause::Canceled).to_owned(),
                    message: cancel.reason.clone(),
                }),
            };
        }
    }
    message
}

/// A member of an attempt in progress.
fn member((rank, member): (u32, &job::Member)) -> pb::Member {
    let status = match (&member.end, &member.phase) {
        (Some(end), _) if end.is_success() => job::JobStatus::Completed,
        (Some(end), _) => of_failure(end.problem.as_ref().map(|problem| problem.cause)),
        (None, _) if member.unreachable => job::JobStatus::NotResponding,
        (None, job::Phase::Starting) => job::JobStatus::Starting,
        (None, job::Phase::Preparing { .. }) => job::JobStatus::Preparing,
        (None, job::Phase::Running) => job::JobStatus::Running,
        (None, job::Phase::Finalizing { .. }) => job::JobStatus::Finalizing,
    };
    let exit = member.end.as_ref().and_then(|end| end.exit);
    pb::Member {
        rank,
        node: member.node.to_string(),
        status: pb::JobStatus::from(status).into(),
        exit_code: exit.map(job::Exit::shell_code),
        started_at_ms: member.started_at.map_or(0, |at| at.as_millis()),
    }
}

/// The members of an attempt that is over; none of a job on one node.
fn members_left(job: &job::Job, left: &job::Left) -> Vec<pb::Member> {
    let Some(node) = left.node.as_ref().filter(|_| !left.others.is_empty()) else {
        return Vec::new();
    };
    let others = left.others.iter().map(|other| (&other.node, other.exit, other.started_at));
    let all = std::iter::once((node, left.exit, left.started_at)).chain(others);
    (0..)
        .zip(all)
        .map(|(rank, (node, exit, started_at))| {
            let status = match exit {
                Some(exit) if exit.is_success() => job::JobStatus::Completed,
                // It was asked to stop, because of another or with the whole job.
                Some(_) if rank != left.decisive => job::JobStatus::Canceled,
                Some(_) if job.status() == job::JobStatus::Canceled => job::JobStatus::Canceled,
                Some(_) => job::JobStatus::Failed,
                // Why it never came to its end is the job's to tell.
                None => job.status(),
            };
            pb::Member {
                rank,
                node: node.to_string(),
                status: pb::JobStatus::from(status).into(),
                exit_code: exit.map(job::Exit::shell_code),
                started_at_ms: started_at.map_or(0, |at| at.as_millis()),
            }
        })
        .collect()
}

fn of_failure(cause: Option<Cause>) -> job::JobStatus {
    match cause {
        Some(Cause::Canceled | Cause::Timeout) => job::JobStatus::Canceled,
        _ => job::JobStatus::Failed,
    }
}

fn output(output: &job::OutputCommit) -> pb::OutputCommit {
    pb::OutputCommit {
        name: output.name.to_string(),
        uri: output.uri.clone(),
        files: output.files,
        bytes: output.bytes,
        partial: output.partial,
    }
}

fn code(cause: Cause) -> &'static str {
    match cause {
        Cause::UserError => "UserError",
        Cause::CommandNotFound => "CommandNotFound",
        Cause::EnvironmentFailed => "EnvironmentFailed",
        Cause::InputFailed => "InputFailed",
        Cause::CodeFailed => "CodeFailed",
        Cause::OutputFailed => "OutputFailed",
        Cause::Timeout => "Timeout",
        Cause::Canceled => "Canceled",
        Cause::DiskFull => "DiskFull",
        Cause::OutOfMemory => "OutOfMemory",
        Cause::GpuOutOfMemory => "GpuOutOfMemory",
        Cause::GpuIdle => "GpuIdle",
        Cause::GpuLost => "GpuLost",
        Cause::NodeLost => "NodeLost",
        Cause::LeaseExpired => "LeaseExpired",
        Cause::AgentError => "AgentError",
    }
}

impl From<&job::Event> for pb::Event {
    fn from(event: &job::Event) -> Self {
        Self {
            seq: event.seq.0,
            job: event.job.to_string(),
            at_ms: event.at.as_millis(),
            attempt: event.attempt.0,
            principal: event.principal.to_string(),
            kind: event.kind.name().to_owned(),
            message: event.kind.message(),
            status: pb::JobStatus::from(event.status).into(),
        }
    }
}
