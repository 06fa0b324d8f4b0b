//! The workspace's retention rules, as `atelier.workspace.v1.WorkspaceService` has them.

use atelier_core::audit::Actor;
use atelier_core::retention::{Fate, RECOVERY_S, Rules, Tag};
use atelier_proto::workspace::v1 as pb;
use tonic::Status;

use super::blocking;
use super::status::told;
use crate::daemon::{Judged, Part, Shared};
use crate::store::retention::RulesRecord;

/// Parts of jobs, and what was deleted, that one answer tells of at most; a message has a bound.
const MOST: usize = 5000;

pub(super) async fn set(
    shared: &Shared,
    request: pb::SetRetentionRequest,
    by: Actor,
) -> Result<pb::Retention, Status> {
    let pb::SetRetentionRequest { logs_s, outputs_s, keep_tagged, deleted_runs_s } = request;
    let time = |seconds: u64| (seconds > 0).then_some(seconds);
    let mut keep_tagged: Vec<Tag> = keep_tagged.iter().map(|tag| Tag::parse(tag)).collect();
    keep_tagged.sort();
    keep_tagged.dedup();
    let rules = Rules {
        logs_s: time(logs_s),
        outputs_s: time(outputs_s),
        deleted_runs_s: time(deleted_runs_s),
        keep_tagged,
    };
    let who = by.principal.clone();
    let record = shared.retention.set(rules, by).await.map_err(told)?;
    tracing::info!(by = %who, rules = ?record.rules, "retention rules set");
    describe(shared, Some(record))
}

pub(super) fn get(shared: &Shared) -> Result<pb::Retention, Status> {
    describe(shared, shared.retention.rules().map_err(told)?)
}

fn describe(shared: &Shared, record: Option<RulesRecord>) -> Result<pb::Retention, Status> {
    let being_removed = shared.retention.pending().map_err(told)?;
    let Some(RulesRecord { rules, by, at }) = record else {
        let deleted_runs_s = RECOVERY_S;
        return Ok(pb::Retention { being_removed, deleted_runs_s, ..pb::Retention::default() });
    };
    Ok(pb::Retention {
        logs_s: rules.logs_s.unwrap_or_default(),
        outputs_s: rules.outputs_s.unwrap_or_default(),
        keep_tagged: rules.keep_tagged.iter().map(ToString::to_string).collect(),
        set_by: by.to_string(),
        set_at_ms: at.as_millis(),
        being_removed,
        deleted_runs_s: rules.deleted_runs_s.unwrap_or(RECOVERY_S),
    })
}

pub(super) async fn preview(shared: &Shared) -> Result<pb::RetentionReport, Status> {
    let retention = shared.retention.clone();
    Ok(report(&blocking(move || retention.preview()).await?.map_err(told)?))
}

pub(super) async fn apply(shared: &Shared, by: Actor) -> Result<pb::RetentionReport, Status> {
    Ok(report(&shared.retention.apply(by).await.map_err(told)?))
}

fn report(judged: &[Judged]) -> pb::RetentionReport {
    let goes = || judged.iter().filter(|judged| judged.fate == Fate::Goes);
    pb::RetentionReport {
        parts: judged.iter().take(MOST).map(part).collect(),
        going: goes().count() as u64,
        going_bytes: goes().map(|judged| judged.bytes).sum(),
        staying: (judged.len() - goes().count()) as u64,
    }
}

fn part(judged: &Judged) -> pb::RetentionPart {
    let stays = match &judged.fate {
        Fate::Goes | Fate::Gone => String::new(),
        Fate::Stays(why) => why.to_string(),
    };
    let (name, what) = match &judged.part {
        Part::OfJob(job, what) => (job.to_string(), what.word()),
        Part::Run(run) => (run.to_string(), "run"),
        Part::Model(model) => (model.to_string(), "logged model"),
    };
    pb::RetentionPart { name, what: what.to_owned(), bytes: judged.bytes, stays }
}
