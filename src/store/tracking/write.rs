//! Applying a [`TrackWrite`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use atelier_core::access::{Caller, Permission, Role};
use atelier_core::audit::Change;
use atelier_core::id::JobName;
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ArtifactPath, DatasetInput, Error as Refusal, ExperimentId, LifecycleStage, LoggedModelId,
    Metric, Param, RUN_NAME_TAG, RunId, RunInfo, RunStatus, StoredMetric, Tag, limits,
};
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use serde_json::{Value, json};

use super::super::{Error, audit};
use super::read::{self, RunRow};
use super::{
    ExperimentChange, JobRun, NewRun, RunChange, SEAL_AT_LEAST, SEAL_AT_WORK, TrackReply,
    TrackWrite,
};
use super::{deleted, models, ranked};

/// The tag in which clients of MLflow 2 keep which models a run has logged.
const MODEL_HISTORY_TAG: &str = "mlflow.log-model.history";

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("write to the tracking tables", source)
}

pub(super) fn execute(
    conn: &Connection,
    statement: &str,
    values: &[&dyn ToSql],
) -> Result<usize, Error> {
    conn.prepare_cached(statement).and_then(|mut s| s.execute(values)).map_err(sql)
}

/// Whether the caller may write to runs and experiments at all.
pub(super) fn writer(by: &Caller) -> Result<(), Refusal> {
    if by.may(Permission::WriteRun) {
        Ok(())
    } else {
        Err(Refusal::NotAllowed(format!("{} ({}) may not write to runs", by.principal, by.role)))
    }
}

/// The logged models that a change names.
fn named(change: &RunChange) -> Vec<&LoggedModelId> {
    match change {
        RunChange::Log { of_models, .. } => of_models.iter().map(|point| &point.model).collect(),
        RunChange::Inputs { models, .. } => models.iter().collect(),
        RunChange::Outputs(outputs) => outputs.iter().map(|output| &output.model).collect(),
        _ => Vec::new(),
    }
}

/// Whether it is what a run found out, rather than how it is kept.
fn is_result(change: &RunChange) -> bool {
    match change {
        RunChange::Log { metrics, params, .. } => !metrics.is_empty() || !params.is_empty(),
        RunChange::Inputs { .. }
        | RunChange::Outputs(_)
        | RunChange::RecordModel(_)
        | RunChange::Artifact { .. } => true,
        RunChange::Update { .. }
        | RunChange::Delete(_)
        | RunChange::Restore
        | RunChange::DeleteTag(_)
        | RunChange::DeleteArtifacts(_) => false,
    }
}

/// Whether the caller may change this run: its owner, or who may change what others made.
fn may_change(by: &Caller, row: &RunRow) -> Result<(), Refusal> {
    writer(by)?;
    if by.role.is_for_people() && by.owns(&row.info.owner, "") {
        return Ok(());
    }
    not_own(by, row, "change", "or an admin ")
}

/// Whether the caller may write results to this run: nobody writes to another's, whatever the role.
pub(super) fn may_write(by: &Caller, row: &RunRow) -> Result<(), Refusal> {
    writer(by)?;
    not_own(by, row, "write results to", "")
}

/// Nothing, if the run is the caller's own; else why not.
fn not_own(by: &Caller, row: &RunRow, what: &str, others: &str) -> Result<(), Refusal> {
    let info = &row.info;
    let own = match &by.role {
        // By the job, not by the id: a run that happens to be called like the job is not its own.
        Role::Attempt(scope) => info.job.as_ref() == Some(&scope.job),
        _ => by.is_own(&info.owner, info.id.as_str()),
    };
    if own {
        return Ok(());
    }
    Err(Refusal::NotAllowed(match &by.role {
        Role::Attempt(scope) => format!(
            "A job's token writes only to its own run '{}', not to run '{}'",
            scope.job, info.id
        ),
        _ => format!(
            "{} may not {what} run '{}' of {}: only its owner {others}may",
            by.principal, info.id, info.owner
        ),
    }))
}

/// The run, if the caller may write to it now.
///
/// # Errors
/// [`Error::Track`] if there is none, it is deleted, or is not the caller's to change.
pub fn writable(conn: &Connection, by: &Caller, id: &RunId) -> Result<RunInfo, Error> {
    let row = read::row(conn, id)?;
    may_write(by, &row)?;
    if row.info.stage == LifecycleStage::Deleted {
        return Err(Refusal::RunDeleted(id.to_string()).into());
    }
    Ok(row.info)
}

impl TrackWrite {
    /// Makes the change. To be called within a transaction that is undone on an error.
    ///
    /// # Errors
    /// [`Error::Track`] if a rule of tracking refuses it, otherwise what SQLite says.
    pub fn apply(&self, conn: &Connection) -> Result<TrackReply, Error> {
        match self {
            Self::CreateExperiment { by, name, tags, at } => {
                writer(by)?;
                if matches!(by.role, Role::Attempt(_)) {
                    return Err(Refusal::NotAllowed(format!(
                        "A job's token cannot make experiments. A job's run is in the experiment \
                         that the job names: leave out set_experiment('{}'), or set \
                         experiment_name in the job",
                        name.as_str()
                    ))
                    .into());
                }
                create_experiment(conn, name.as_str(), by.principal.as_str(), tags, *at)
            }
            Self::ChangeExperiment { by, id, change, at } => {
                change_experiment(conn, by, *id, change, *at)
            }
            Self::CreateRun { by, run } => create_run(conn, by, run),
            Self::ChangeRun { by, id, change } => {
                let row = read::row(conn, id)?;
                match is_result(change) {
                    true => may_write(by, &row)?,
                    false => may_change(by, &row)?,
                }
                models::may_name(conn, by, &row, named(change))?;
                change_run(conn, &row, change)
            }
            Self::CreateModel { by, model, at } => models::create(conn, by, model, *at),
            Self::ChangeModel { by, id, change, at } => models::change(conn, by, id, change, *at),
            Self::Audited { by, write } => {
                let before = write.told(conn)?;
                let reply = write.apply(conn)?;
                let after = write.told(conn)?;
                if let Some((resource, now)) = after
                    && before.as_ref().is_none_or(|(_, before)| *before != now)
                {
                    let before = before.map(|(_, before)| before);
                    let change = Change::new(resource, before.as_ref(), Some(&now));
                    audit::append(conn, [by.clone().changes(change)])?;
                }
                Ok(reply)
            }
            Self::CreateJobRun(run) => create_job_run(conn, run),
            Self::FollowJob { job, status, at } => follow_job(conn, job, *status, *at),
            Self::ForgetJob(job) => forget_job(conn, job),
            Self::Samples { job, points } => {
                // A run that is gone (deleted while its job still ran) takes no points.
                let Some(row) = read::find_row(conn, &RunId::from(job))? else {
                    return Ok(TrackReply::Done);
                };
                log_metrics(conn, &row, points)
            }
            Self::BeginSeal(run) => {
                let row = read::row(conn, run)?;
                execute(
                    conn,
                    "UPDATE runs SET generation = generation + 1 WHERE seq = ?1",
                    &[&row.seq],
                )?;
                Ok(TrackReply::Generation { of: row.seq, generation: row.generation })
            }
            Self::Sealed { run, of, object, points, hot, bytes, generation, at } => {
                // It may have gone meanwhile, and another may have its id.
                let Some(row) = read::find_row(conn, run)?.filter(|row| row.seq == *of) else {
                    return Ok(TrackReply::Gone);
                };
                execute(
                    conn,
                    "INSERT INTO sealed_metrics (run, object, points, bytes, generation, at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT (run) DO UPDATE SET object = excluded.object,
                         points = excluded.points, bytes = excluded.bytes,
                         generation = excluded.generation, purged = 0, at = excluded.at
                     WHERE excluded.generation >= sealed_metrics.generation",
                    &[&row.seq, object, points, bytes, generation, &at.as_millis()],
                )?;
                execute(
                    conn,
                    "UPDATE runs SET hot = max(0, hot - ?2) WHERE seq = ?1",
                    &[&row.seq, hot],
                )?;
                Ok(TrackReply::Done)
            }
            Self::Purge(run) => purge(conn, run),
            Self::PurgeGone => deleted::purge(conn),
            Self::Rank { quiet } => ranked::rank(conn, *quiet),
            Self::MarkQuiet => ranked::mark(conn),
        }
    }
}

impl TrackWrite {
    /// What the audit log tells of the experiment or run that it changes, and how that is now.
    fn told(&self, conn: &Connection) -> Result<Option<(String, Value)>, Error> {
        Ok(match self {
            Self::ChangeExperiment { id, .. } => read::experiment(conn, *id)?.map(|found| {
                let stage = found.stage.as_str();
                let told = json!({ "name": found.name.as_str(), "lifecycle_stage": stage });
                (format!("experiment/{id}"), told)
            }),
            Self::ChangeRun { id, .. } => {
                read::find_row(conn, id)?.map(|RunRow { info, .. }| {
                    let told = json!({
                        "name": info.name,
                        "experiment_id": info.experiment.to_string(),
                        "lifecycle_stage": info.stage.as_str(),
                    });
                    (format!("run/{id}"), told)
                })
            }
            Self::ChangeModel { id, .. } => {
                let info = models::model_info(conn, id)?;
                let told = json!({
                    "name": info.name,
                    "experiment_id": info.experiment.to_string(),
                    "lifecycle_stage": info.stage.as_str(),
                });
                Some((format!("logged-model/{id}"), told))
            }
            _ => None,
        })
    }
}

fn create_experiment(
    conn: &Connection,
    name: &str,
    owner: &str,
    tags: &[Tag],
    at: Timestamp,
) -> Result<TrackReply, Error> {
    let made = execute(
        conn,
        "INSERT INTO experiments (id, name, owner, created, updated)
         SELECT id, ?1, ?2, ?3, ?3 FROM next_experiment WHERE true ON CONFLICT (name) DO NOTHING",
        &[&name, &owner, &at.as_millis()],
    )?;
    if made == 0 {
        return Err(Refusal::ExperimentExists(name.to_owned()).into());
    }
    let id = conn.last_insert_rowid();
    for tag in tags {
        set_experiment_tag(conn, id, tag)?;
    }
    Ok(TrackReply::Experiment(ExperimentId(id)))
}

fn set_experiment_tag(conn: &Connection, experiment: i64, tag: &Tag) -> Result<usize, Error> {
    execute(
        conn,
        "INSERT OR REPLACE INTO experiment_tags (experiment, key, value) VALUES (?1, ?2, ?3)",
        &[&experiment, &tag.key, &tag.value],
    )
}

fn change_experiment(
    conn: &Connection,
    by: &Caller,
    id: ExperimentId,
    change: &ExperimentChange,
    at: Timestamp,
) -> Result<TrackReply, Error> {
    writer(by)?;
    let experiment =
        read::experiment(conn, id)?.ok_or_else(|| Refusal::NoExperiment(id.to_string()))?;
    if !by.role.is_for_people() || !by.owns(&experiment.owner, "") {
        return Err(Refusal::NotAllowed(format!(
            "{} may not change experiment '{}' of {}: only its owner or an admin may",
            by.principal,
            experiment.name.as_str(),
            experiment.owner
        ))
        .into());
    }
    let deleted = experiment.stage == LifecycleStage::Deleted;
    let active = || {
        if deleted { Err(Refusal::ExperimentDeleted(id.to_string())) } else { Ok(()) }
    };
    match change {
        ExperimentChange::Rename(name) => {
            if deleted {
                return Err(Refusal::RenameDeleted.into());
            }
            let renamed = execute(
                conn,
                "UPDATE OR IGNORE experiments SET name = ?2, updated = ?3 WHERE id = ?1",
                &[&id.0, &name.as_str(), &at.as_millis()],
            )?;
            if renamed == 0 {
                return Err(Refusal::ExperimentExists(name.as_str().to_owned()).into());
            }
        }
        ExperimentChange::Delete | ExperimentChange::Restore => {
            let delete = matches!(change, ExperimentChange::Delete);
            if delete == deleted {
                return Err(Refusal::NoExperiment(id.to_string()).into());
            }
            let others: bool = conn
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM runs WHERE experiment = ?1 AND owner <> ?2)
                     OR EXISTS (SELECT 1 FROM logged_models
                                WHERE experiment = ?1 AND owner <> ?2 AND deleted = 0)",
                )
                .and_then(|mut s| {
                    s.query_row(params![id.0, by.principal.as_str()], |row| row.get(0))
                })
                .map_err(sql)?;
            if others && !by.may(Permission::ChangeAny) {
                return Err(Refusal::NotAllowed(format!(
                    "Experiment '{}' holds runs or models of others: only an admin may delete or restore it",
                    experiment.name.as_str()
                ))
                .into());
            }
            execute(
                conn,
                "UPDATE experiments SET deleted = ?2, updated = ?3 WHERE id = ?1",
                &[&id.0, &delete, &at.as_millis()],
            )?;
            let at = delete.then_some(at.as_millis());
            execute(
                conn,
                "UPDATE runs SET deleted = ?2, deleted_at = iif(?2, coalesce(deleted_at, ?3), NULL)
                 WHERE experiment = ?1",
                &[&id.0, &delete, &at],
            )?;
        }
        ExperimentChange::SetTag(tag) => {
            active()?;
            set_experiment_tag(conn, id.0, tag)?;
        }
        ExperimentChange::DeleteTag(key) => {
            active()?;
            let gone = execute(
                conn,
                "DELETE FROM experiment_tags WHERE experiment = ?1 AND key = ?2",
                &[&id.0, key],
            )?;
            if gone == 0 {
                let owner = format!("experiment with id {id}");
                return Err(Refusal::NoTag { key: key.clone(), owner }.into());
            }
        }
    }
    Ok(TrackReply::Done)
}

fn create_run(conn: &Connection, by: &Caller, run: &NewRun) -> Result<TrackReply, Error> {
    writer(by)?;
    let experiment = read::experiment(conn, run.experiment)?
        .ok_or_else(|| Refusal::NoExperiment(run.experiment.to_string()))?;
    if experiment.stage == LifecycleStage::Deleted {
        return Err(Refusal::ExperimentDeleted(run.experiment.to_string()).into());
    }
    // A run made within a job belongs to the job and to whoever submitted it.
    let (owner, job) = match &by.role {
        Role::Attempt(scope) => {
            let own = read::row(conn, &RunId::from(&scope.job))?;
            if own.info.experiment != run.experiment {
                return Err(Refusal::NotAllowed(format!(
                    "A job's token makes runs only in its own experiment {}, not in {}",
                    own.info.experiment, run.experiment
                ))
                .into());
            }
            (own.info.owner, Some(scope.job.clone()))
        }
        _ => (by.principal.clone(), None),
    };
    execute(
        conn,
        "INSERT INTO runs (seq, id, experiment, name, owner, job, status, started)
         SELECT seq, ?1, ?2, ?3, ?4, ?5, ?6, ?7 FROM next_run",
        &[
            &run.id.as_str(),
            &run.experiment.0,
            &run.name,
            &owner.as_str(),
            &job.as_ref().map(JobName::as_str),
            &RunStatus::Running.as_str(),
            &run.started.as_millis(),
        ],
    )?;
    let row = read::row(conn, &run.id)?;
    set_tags(conn, row.seq, &run.tags)?;
    Ok(TrackReply::Run(Box::new(read::row(conn, &run.id)?.info)))
}

fn create_job_run(conn: &Connection, run: &JobRun) -> Result<TrackReply, Error> {
    let found: Option<(i64, bool)> = conn
        .prepare_cached("SELECT id, deleted FROM experiments WHERE name = ?1")
        .and_then(|mut s| {
            s.query_row([run.experiment.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
        .map_err(sql)?;
    let experiment = match found {
        // A job whose experiment was deleted after it was admitted still runs: refusing here would
        // undo everything else in the transaction.
        Some((id, _)) => ExperimentId(id),
        None => {
            let (name, owner) = (run.experiment.as_str(), run.owner.as_str());
            match create_experiment(conn, name, owner, &[], run.at)? {
                TrackReply::Experiment(id) => id,
                _ => ExperimentId::DEFAULT,
            }
        }
    };
    let made = execute(
        conn,
        "INSERT INTO runs (seq, id, experiment, name, owner, job, status, started)
         SELECT seq, ?1, ?2, ?3, ?4, ?1, ?5, ?6 FROM next_run WHERE true ON CONFLICT (id) DO NOTHING",
        &[
            &run.job.as_str(),
            &experiment.0,
            &run.display_name,
            &run.owner.as_str(),
            &run.status.as_str(),
            &run.at.as_millis(),
        ],
    )?;
    if made == 1 {
        set_tags(conn, conn.last_insert_rowid(), &run.tags)?;
    }
    Ok(TrackReply::Experiment(experiment))
}

fn follow_job(
    conn: &Connection,
    job: &JobName,
    status: RunStatus,
    at: Timestamp,
) -> Result<TrackReply, Error> {
    let ended = status.is_terminal().then(|| at.as_millis());
    execute(
        conn,
        "UPDATE runs SET status = ?2, ended = ?3 WHERE id = ?1 AND job = ?1",
        &[&job.as_str(), &status.as_str(), &ended],
    )?;
    if status.is_terminal() {
        execute(
            conn,
            "UPDATE runs SET status = ?2, ended = ?3
             WHERE job = ?1 AND job IS NOT NULL AND job <> id
               AND status IN ('RUNNING', 'SCHEDULED')",
            &[&job.as_str(), &status.as_str(), &ended],
        )?;
    }
    Ok(TrackReply::Done)
}

fn forget_job(conn: &Connection, job: &JobName) -> Result<TrackReply, Error> {
    models::forget_runs(conn, job)?;
    let seqs: Vec<i64> = conn
        .prepare_cached(
            "SELECT seq FROM runs WHERE id = ?1 AND job = ?1
             UNION SELECT seq FROM runs WHERE job = ?1 AND job IS NOT NULL AND job <> id",
        )
        .and_then(|mut s| s.query_map([job.as_str()], |row| row.get(0))?.collect())
        .map_err(sql)?;
    for seq in seqs {
        deleted::forget(conn, seq)?;
    }
    Ok(TrackReply::Done)
}

fn change_run(conn: &Connection, row: &RunRow, change: &RunChange) -> Result<TrackReply, Error> {
    let deleted = row.info.stage == LifecycleStage::Deleted;
    if deleted && !matches!(change, RunChange::Delete(_) | RunChange::Restore) {
        return Err(Refusal::RunDeleted(row.info.id.to_string()).into());
    }
    match change {
        RunChange::Update { status, ended, name } => {
            let (mut status, mut ended) = (*status, ended.map(Timestamp::as_millis));
            if row.info.is_of_job() {
                (status, ended) = (None, None);
            }
            execute(
                conn,
                "UPDATE runs SET status = coalesce(?2, status), ended = coalesce(?3, ended),
                     name = coalesce(?4, name) WHERE seq = ?1",
                &[&row.seq, &status.map(RunStatus::as_str), &ended, name],
            )?;
            Ok(TrackReply::Run(Box::new(read::row(conn, &row.info.id)?.info)))
        }
        RunChange::Delete(at) => {
            execute(
                conn,
                "UPDATE runs SET deleted = 1, deleted_at = coalesce(deleted_at, ?2) WHERE seq = ?1",
                &[&row.seq, &at.as_millis()],
            )?;
            Ok(TrackReply::Done)
        }
        RunChange::Restore => {
            execute(
                conn,
                "UPDATE runs SET deleted = 0, deleted_at = NULL WHERE seq = ?1",
                &[&row.seq],
            )?;
            Ok(TrackReply::Done)
        }
        RunChange::Log { metrics, params, tags, of_models } => {
            log_params(conn, row, params)?;
            let reply = log_metrics(conn, row, metrics)?;
            models::log_points(conn, row, of_models)?;
            set_tags(conn, row.seq, tags)?;
            Ok(reply)
        }
        RunChange::DeleteTag(key) => {
            let gone = if key == RUN_NAME_TAG {
                execute(
                    conn,
                    "UPDATE runs SET name = NULL WHERE seq = ?1 AND name IS NOT NULL",
                    &[&row.seq],
                )?
            } else {
                execute(conn, "DELETE FROM run_tags WHERE run = ?1 AND key = ?2", &[&row.seq, key])?
            };
            if gone == 0 {
                let owner = format!("run with id {}", row.info.id);
                return Err(Refusal::NoTag { key: key.clone(), owner }.into());
            }
            Ok(TrackReply::Done)
        }
        RunChange::Inputs { datasets, models } => {
            for input in datasets {
                add_input(conn, row.seq, input)?;
            }
            models::name_models(conn, row.seq, false, models.iter().map(|model| (model, 0)))?;
            Ok(TrackReply::Done)
        }
        RunChange::Outputs(outputs) => {
            let named = outputs.iter().map(|output| (&output.model, output.step));
            models::name_models(conn, row.seq, true, named)?;
            Ok(TrackReply::Done)
        }
        RunChange::RecordModel(model) => record_model(conn, row, model),
        RunChange::Artifact { path, bytes, at } => {
            add_artifact(conn, row, path, *bytes, *at)?;
            Ok(TrackReply::Done)
        }
        RunChange::DeleteArtifacts(path) => {
            let (from, below, end) = read::folder_range(path.as_ref());
            let paths = conn
                .prepare_cached(
                    "DELETE FROM artifacts
                     WHERE run = ?1 AND (path = ?2 OR (path >= ?3 AND path < ?4))
                     RETURNING path",
                )
                .and_then(|mut s| {
                    s.query_map(params![row.seq, from, below, end], |row| row.get(0))?.collect()
                })
                .map_err(sql)?;
            Ok(TrackReply::Paths(paths))
        }
    }
}

/// The same model twice is one: clients repeat what was not answered.
fn record_model(conn: &Connection, row: &RunRow, model: &Value) -> Result<TrackReply, Error> {
    let held: Option<String> = conn
        .prepare_cached("SELECT value FROM run_tags WHERE run = ?1 AND key = ?2")
        .and_then(|mut s| {
            s.query_row(params![row.seq, MODEL_HISTORY_TAG], |row| row.get(0)).optional()
        })
        .map_err(sql)?;
    let unread = |why: &str| {
        Refusal::Invalid(format!(
            "The tag '{MODEL_HISTORY_TAG}' of run '{}' {why}. Delete the tag, then log the model again",
            row.info.id
        ))
    };
    let mut list: Vec<Value> = match held {
        Some(text) => serde_json::from_str(&text).map_err(|_| unread("is no list as JSON"))?,
        None => Vec::new(),
    };
    if list.contains(model) {
        return Ok(TrackReply::Done);
    }
    list.push(model.clone());
    let value = Value::from(list).to_string();
    if value.len() > limits::MODEL_HISTORY_CHARS {
        let limit = limits::MODEL_HISTORY_CHARS;
        return Err(unread(&format!("would have more than {limit} characters")).into());
    }
    set_tags(conn, row.seq, &[Tag { key: MODEL_HISTORY_TAG.to_owned(), value }])?;
    Ok(TrackReply::Done)
}

fn set_tags(conn: &Connection, run: i64, tags: &[Tag]) -> Result<(), Error> {
    for tag in tags {
        if tag.key == RUN_NAME_TAG {
            execute(conn, "UPDATE runs SET name = ?2 WHERE seq = ?1", &[&run, &tag.value])?;
        } else {
            execute(
                conn,
                "INSERT OR REPLACE INTO run_tags (run, key, value) VALUES (?1, ?2, ?3)",
                &[&run, &tag.key, &tag.value],
            )?;
        }
    }
    Ok(())
}

fn log_params(conn: &Connection, row: &RunRow, params: &[Param]) -> Result<(), Error> {
    for param in params {
        let made = execute(
            conn,
            "INSERT INTO params (run, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            &[&row.seq, &param.key, &param.value],
        )?;
        if made == 1 {
            continue;
        }
        let old: String = conn
            .prepare_cached("SELECT value FROM params WHERE run = ?1 AND key = ?2")
            .and_then(|mut s| s.query_row(params![row.seq, param.key], |row| row.get(0)))
            .map_err(sql)?;
        if old != param.value {
            return Err(Refusal::ParamChanged {
                run: row.info.id.to_string(),
                key: param.key.clone(),
                old,
                new: param.value.clone(),
            }
            .into());
        }
    }
    Ok(())
}

fn log_metrics(conn: &Connection, row: &RunRow, points: &[Metric]) -> Result<TrackReply, Error> {
    if points.is_empty() {
        return Ok(TrackReply::Done);
    }
    let mut insert = conn
        .prepare_cached(
            "INSERT OR IGNORE INTO metrics (run, key, step, timestamp, value, is_nan, generation)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .map_err(sql)?;
    let mut added = 0;
    let mut latest: HashMap<String, StoredMetric> = HashMap::new();
    for point in points {
        let point = StoredMetric::from(point.clone());
        added += insert
            .execute(params![
                row.seq,
                point.key,
                point.step,
                point.timestamp,
                point.value,
                point.is_nan,
                row.generation
            ])
            .map_err(sql)?;
        match latest.entry(point.key.clone()) {
            Entry::Occupied(mut held) if point.later(held.get()).is_gt() => {
                held.insert(point);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => {
                free.insert(point);
            }
        }
    }
    let mut upsert = conn
        .prepare_cached(
            "INSERT INTO latest_metrics (run, key, step, timestamp, value, is_nan)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (run, key) DO UPDATE SET step = excluded.step,
                 timestamp = excluded.timestamp, value = excluded.value, is_nan = excluded.is_nan
             WHERE (excluded.step, excluded.timestamp, excluded.value, excluded.is_nan)
                 > (step, timestamp, value, is_nan)",
        )
        .map_err(sql)?;
    for point in latest.values() {
        upsert
            .execute(params![
                row.seq,
                point.key,
                point.step,
                point.timestamp,
                point.value,
                point.is_nan
            ])
            .map_err(sql)?;
    }
    if added == 0 {
        return Ok(TrackReply::Done);
    }
    if row.ranked {
        execute(conn, "UPDATE runs SET ranked = 0 WHERE seq = ?1", &[&row.seq])?;
    }
    let hot: i64 = conn
        .prepare_cached("UPDATE runs SET hot = hot + ?2 WHERE seq = ?1 RETURNING hot")
        .and_then(|mut s| s.query_row(params![row.seq, added], |row| row.get(0)))
        .map_err(sql)?;
    let enough = if row.info.status.is_terminal() { SEAL_AT_LEAST } else { SEAL_AT_WORK };
    // Once: what has to wait then is seen to on patrol.
    let added = i64::try_from(added).unwrap_or(i64::MAX);
    let seal = hot >= enough && (enough == SEAL_AT_LEAST || hot - added < enough);
    Ok(if seal { TrackReply::ToSeal } else { TrackReply::Done })
}

fn add_input(conn: &Connection, run: i64, input: &DatasetInput) -> Result<(), Error> {
    let pairs: Vec<(&str, &str)> =
        input.tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())).collect();
    let tags = serde_json::to_string(&pairs)
        .map_err(|source| Error::Damaged { what: "dataset tags".to_owned(), source })?;
    let dataset = &input.dataset;
    // The first of two with one name and digest stays, as in MLflow.
    execute(
        conn,
        "INSERT OR IGNORE INTO run_inputs
             (run, name, digest, source_type, source, schema, profile, tags)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        &[
            &run,
            &dataset.name,
            &dataset.digest,
            &dataset.source_type,
            &dataset.source,
            &dataset.schema,
            &dataset.profile,
            &tags,
        ],
    )?;
    Ok(())
}

fn add_artifact(
    conn: &Connection,
    row: &RunRow,
    path: &ArtifactPath,
    bytes: u64,
    at: Timestamp,
) -> Result<(), Error> {
    execute(
        conn,
        "INSERT OR REPLACE INTO artifacts (run, path, bytes, at) VALUES (?1, ?2, ?3, ?4)",
        &[&row.seq, &path.as_str(), &bytes, &at.as_millis()],
    )?;
    Ok(())
}

/// Rows removed at once: as many as the writer can remove without others noticing.
pub(super) const PURGE: i64 = 5000;

fn purge(conn: &Connection, run: &RunId) -> Result<TrackReply, Error> {
    let Some(row) = read::find_row(conn, run)? else { return Ok(TrackReply::Purged(0)) };
    let gone = execute(
        conn,
        "DELETE FROM metrics WHERE (run, key, step, timestamp, value, is_nan) IN (
             SELECT m.run, m.key, m.step, m.timestamp, m.value, m.is_nan
             FROM metrics m JOIN sealed_metrics s ON s.run = m.run
             WHERE m.run = ?1 AND m.generation <= s.generation LIMIT ?2)",
        &[&row.seq, &PURGE],
    )?;
    if gone == 0 {
        execute(conn, "UPDATE sealed_metrics SET purged = 1 WHERE run = ?1", &[&row.seq])?;
    }
    Ok(TrackReply::Purged(gone))
}
