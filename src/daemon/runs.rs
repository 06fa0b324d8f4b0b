//! A job's run follows the job, in the transaction that changes the job.

use std::collections::BTreeMap;

use atelier_core::id::JobName;
use atelier_core::job::{EventKind, Job};
use atelier_core::live::Decisions;
use atelier_core::time::Timestamp;
use atelier_core::track::{RunStatus, Tag};

use crate::store::Submitted;
use crate::store::tracking::{JobRun, TrackWrite};

/// What these decisions mean for runs.
pub(super) fn follow(
    submitted: &[Submitted],
    decisions: &Decisions,
    deleted: &[JobName],
) -> Vec<TrackWrite> {
    let made = submitted
        .iter()
        .filter_map(|submitted| decisions.changed.get(&submitted.job))
        .map(|job| TrackWrite::CreateJobRun(job_run(job)));
    // Several events of one job in one round: the last one says where the run is.
    let mut moved: BTreeMap<&JobName, (RunStatus, Timestamp)> = BTreeMap::new();
    for event in &decisions.events {
        let status = match event.kind {
            EventKind::Running => RunStatus::Running,
            EventKind::Requeued { .. } => RunStatus::Scheduled,
            EventKind::Completed => RunStatus::Finished,
            EventKind::Failed { .. } => RunStatus::Failed,
            EventKind::Canceled { .. } => RunStatus::Killed,
            _ => continue,
        };
        moved.insert(&event.job, (status, event.at));
    }
    let moved = moved.into_iter().map(|(job, (status, at))| TrackWrite::FollowJob {
        job: job.clone(),
        status,
        at,
    });
    let gone = deleted.iter().cloned().map(TrackWrite::ForgetJob);
    made.chain(moved).chain(gone).collect()
}

fn job_run(job: &Job) -> JobRun {
    let spec = &job.spec;
    let tags = spec.tags.iter().map(|(key, value)| Tag { key: key.clone(), value: value.clone() });
    JobRun {
        job: job.name.clone(),
        experiment: spec.experiment_name.clone(),
        display_name: spec.display_name.clone().unwrap_or_else(|| job.name.to_string()),
        owner: job.created_by.clone(),
        status: RunStatus::Scheduled,
        at: job.created_at,
        tags: tags.collect(),
    }
}
