//! Logged models, as rows.
//!
//! Who may read runs may read models; whoever may not write to a run's results may not write to a model's files and
//! parameters either, and may not say that the run has made a model. What a run measures of a model is the run's own,
//! and is kept with the model under the run's id.

use atelier_core::access::{Caller, Role};
use atelier_core::id::JobName;
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ArtifactPath, Error as Refusal, ExperimentId, LifecycleStage, LoggedModel, LoggedModelId,
    LoggedModelInfo, LoggedModelStatus, MeasuredOn, ModelMetric, ModelPoint, Param, RunId,
    StoredMetric, Tag,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::Error;
use super::read::{self, Entry, RunRow, invalid};
use super::write::{execute, may_write, writer};
use super::{TrackReply, read::stage};

/// The tables.
pub const MIGRATION: &str = "
CREATE TABLE logged_models (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,      -- `m-` and 32 hexadecimal digits
    experiment INTEGER NOT NULL,
    name       TEXT NOT NULL,
    owner      TEXT NOT NULL,
    job        TEXT,                      -- the job from within which it was made
    source_run TEXT,                      -- the run that made it
    type       TEXT NOT NULL,             -- what the client calls it; may be empty
    status     TEXT NOT NULL,             -- PENDING, READY or FAILED
    created    INTEGER NOT NULL,          -- ms since the epoch, as all times here
    updated    INTEGER NOT NULL,
    deleted    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX logged_models_experiment ON logged_models (experiment, created DESC, id);
CREATE INDEX logged_models_job ON logged_models (job) WHERE job IS NOT NULL;
CREATE INDEX logged_models_run ON logged_models (source_run) WHERE source_run IS NOT NULL;
CREATE TABLE logged_model_params (
    model INTEGER NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE logged_model_tags (
    model INTEGER NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (model, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE logged_model_metrics (
    model     INTEGER NOT NULL,
    key       TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    step      INTEGER NOT NULL,
    run       TEXT NOT NULL,              -- which measured it
    dataset   TEXT NOT NULL,              -- on which data; empty: it did not say
    digest    TEXT NOT NULL,
    value     REAL NOT NULL,              -- finite; 0 for NaN
    is_nan    INTEGER NOT NULL,
    PRIMARY KEY (model, key, timestamp, step, run, dataset, digest, value, is_nan)
) STRICT, WITHOUT ROWID;
CREATE TABLE logged_model_artifacts (
    model INTEGER NOT NULL,
    path  TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    PRIMARY KEY (model, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_models (
    seq    INTEGER PRIMARY KEY,
    run    INTEGER NOT NULL,
    model  TEXT NOT NULL,
    output INTEGER NOT NULL,              -- 1: the run made it; 0: it read it
    step   INTEGER NOT NULL,
    UNIQUE (run, output, model, step)
) STRICT;
";

/// A logged model to be made.
#[derive(Clone, Debug)]
pub struct NewModel {
    /// Its id.
    pub id: LoggedModelId,
    /// Its experiment.
    pub experiment: ExperimentId,
    /// Its name, checked.
    pub name: String,
    /// The run that made it.
    pub source_run: Option<RunId>,
    /// What the client calls its kind.
    pub model_type: String,
    /// Its first parameters, checked.
    pub params: Vec<Param>,
    /// Its first tags, checked.
    pub tags: Vec<Tag>,
}

/// How a logged model changes.
#[derive(Clone, Debug)]
pub enum ModelChange {
    /// Its upload has come so far.
    Finalize(LoggedModelStatus),
    /// It is used no more. Nothing brings it back; a second time changes nothing.
    Delete,
    /// Sets tags, checked.
    SetTags(Vec<Tag>),
    /// Removes a tag.
    DeleteTag(String),
    /// Adds parameters, checked: set once, never changed.
    Params(Vec<Param>),
    /// A file that now lies in the artifact store.
    Artifact {
        /// Its path in the model.
        path: ArtifactPath,
        /// Its size.
        bytes: u64,
    },
    /// Forgets a file, or all files below a folder; empty means all.
    DeleteArtifacts(Option<ArtifactPath>),
}

impl ModelChange {
    /// Whether it is what the model consists of, rather than how it is kept.
    fn is_result(&self) -> bool {
        matches!(self, Self::Params(_) | Self::Artifact { .. })
    }
}

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("read or write logged models", source)
}

/// A model with what only the tables know.
#[derive(Clone, Debug)]
pub(super) struct ModelRow {
    pub(super) seq: i64,
    pub(super) info: LoggedModelInfo,
}

pub(super) const MODEL_COLUMNS: &str = "m.seq, m.id, m.experiment, m.name, m.owner, m.job, m.source_run, m.type, \
     m.status, m.created, m.updated, m.deleted";

pub(super) fn model_id(row: &Row<'_>, column: usize) -> rusqlite::Result<LoggedModelId> {
    LoggedModelId::new(row.get_ref(column)?.as_str()?).map_err(|error| invalid(column, error))
}

pub(super) fn model_row(row: &Row<'_>) -> rusqlite::Result<ModelRow> {
    let job = row.get_ref(5)?.as_str_or_null()?.map(JobName::new).transpose();
    let run = row.get_ref(6)?.as_str_or_null()?.map(RunId::new).transpose();
    let status = row.get_ref(8)?.as_str()?;
    Ok(ModelRow {
        seq: row.get(0)?,
        info: LoggedModelInfo {
            id: model_id(row, 1)?,
            experiment: ExperimentId(row.get(2)?),
            name: row.get(3)?,
            owner: row.get_ref(4)?.as_str()?.parse().map_err(|error| invalid(4, error))?,
            job: job.map_err(|error| invalid(5, error))?,
            source_run: run.map_err(|error| invalid(6, error))?,
            model_type: row.get(7)?,
            status: LoggedModelStatus::parse(status)
                .ok_or_else(|| invalid(8, Refusal::Invalid(format!("status '{status}'"))))?,
            created: Timestamp::from_millis(row.get(9)?),
            updated: Timestamp::from_millis(row.get(10)?),
            stage: stage(row.get(11)?),
        },
    })
}

fn row(conn: &Connection, id: &LoggedModelId) -> Result<ModelRow, Error> {
    conn.prepare_cached(&format!("SELECT {MODEL_COLUMNS} FROM logged_models m WHERE m.id = ?1"))
        .and_then(|mut s| s.query_row([id.as_str()], model_row).optional())
        .map_err(sql)?
        .ok_or_else(|| Refusal::NoModel(id.to_string()).into())
}

/// What a logged model is, deleted or not.
///
/// # Errors
/// [`Refusal::NoModel`] if there is none.
pub fn model_info(conn: &Connection, id: &LoggedModelId) -> Result<LoggedModelInfo, Error> {
    Ok(row(conn, id)?.info)
}

/// A logged model with what was logged to it, deleted or not.
///
/// # Errors
/// [`Refusal::NoModel`] if there is none.
pub fn model(conn: &Connection, id: &LoggedModelId) -> Result<LoggedModel, Error> {
    fill(conn, row(conn, id)?)
}

/// Adds to a model what was logged to it.
pub(super) fn fill(conn: &Connection, row: ModelRow) -> Result<LoggedModel, Error> {
    let pairs = |table: &str| -> Result<Vec<(String, String)>, Error> {
        conn.prepare_cached(&format!(
            "SELECT key, value FROM {table} WHERE model = ?1 ORDER BY key"
        ))
        .and_then(|mut s| s.query_map([row.seq], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(sql)
    };
    let tags = pairs("logged_model_tags")?.into_iter().map(|(key, value)| Tag { key, value });
    let params = pairs("logged_model_params")?.into_iter().map(|(key, value)| Param { key, value });
    let metrics = points(conn, row.seq)?;
    Ok(LoggedModel { tags: tags.collect(), params: params.collect(), metrics, info: row.info })
}

/// Points of one metric that a model is shown with: the latest.
pub(super) const POINTS_OF_KEY: usize = 1000;
/// Points that a model is shown with.
const POINTS: usize = 10_000;

/// What was measured of a model, by key and time.
fn points(conn: &Connection, model: i64) -> Result<Vec<ModelMetric>, Error> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    let mut next = conn
        .prepare_cached(
            "SELECT key FROM logged_model_metrics WHERE model = ?1 AND key > ?2 ORDER BY key LIMIT 1",
        )
        .map_err(sql)?;
    let mut latest = conn
        .prepare_cached(
            "SELECT key, step, timestamp, value, is_nan, run, dataset, digest FROM logged_model_metrics
             WHERE model = ?1 AND key = ?2 ORDER BY timestamp DESC, step DESC, run DESC, dataset DESC,
                 digest DESC, value DESC, is_nan DESC LIMIT ?3",
        )
        .map_err(sql)?;
    let (mut all, mut key) = (Vec::new(), String::new());
    loop {
        let found = next.query_row(params![model, key], |row| row.get(0)).optional();
        let Some(found) = found.map_err(sql)? else { return Ok(all) };
        key = found;
        let room = POINTS_OF_KEY.min(POINTS - all.len());
        let mut points: Vec<ModelMetric> = latest
            .query_map(params![model, key, room], |row| {
                Ok(ModelMetric {
                    point: read::point(row)?,
                    run: read::run_id(row, 5)?,
                    on: MeasuredOn { name: some(row.get(6)?), digest: some(row.get(7)?) },
                })
            })
            .and_then(Iterator::collect)
            .map_err(sql)?;
        points.reverse();
        all.extend(points);
        if all.len() == POINTS {
            return Ok(all);
        }
    }
}

/// Size of a file of a model.
pub fn model_artifact(
    conn: &Connection,
    id: &LoggedModelId,
    path: &ArtifactPath,
) -> Result<Option<u64>, Error> {
    let row = row(conn, id)?;
    conn.prepare_cached("SELECT bytes FROM logged_model_artifacts WHERE model = ?1 AND path = ?2")
        .and_then(|mut s| s.query_row(params![row.seq, path.as_str()], |row| row.get(0)).optional())
        .map_err(sql)
}

/// When a file of a model was stored.
pub fn model_artifact_time(
    conn: &Connection,
    id: &LoggedModelId,
    path: &ArtifactPath,
) -> Result<Option<Timestamp>, Error> {
    let row = row(conn, id)?;
    let at: Option<i64> = conn
        .prepare_cached("SELECT at FROM logged_model_artifacts WHERE model = ?1 AND path = ?2")
        .and_then(|mut s| s.query_row(params![row.seq, path.as_str()], |row| row.get(0)).optional())
        .map_err(sql)?;
    Ok(at.map(Timestamp::from_millis))
}

/// What lies directly in a folder of a model's files.
pub fn model_entries(
    conn: &Connection,
    id: &LoggedModelId,
    folder: Option<&ArtifactPath>,
) -> Result<Vec<Entry>, Error> {
    let row = row(conn, id)?;
    let (_, prefix, end) = read::folder_range(folder);
    read::folder_entries(conn, ("logged_model_artifacts", "model"), row.seq, &prefix, &end)
}

/// Every file of a model with its size, by path: what a version of a registered model is made of.
pub fn model_artifacts(
    conn: &Connection,
    id: &LoggedModelId,
) -> Result<Vec<(ArtifactPath, u64)>, Error> {
    let row = row(conn, id)?;
    let paths: Vec<(String, u64)> = conn
        .prepare_cached(
            "SELECT path, bytes FROM logged_model_artifacts WHERE model = ?1 ORDER BY path",
        )
        .and_then(|mut s| s.query_map([row.seq], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(sql)?;
    // A path was checked when it was written.
    Ok(paths
        .into_iter()
        .filter_map(|(path, bytes)| Some((ArtifactPath::new(&path).ok()?, bytes)))
        .collect())
}

/// The model, if the caller may write to its files now.
///
/// # Errors
/// [`Error::Track`] if there is none, it or its experiment is deleted, or it is not the caller's to change.
pub fn model_writable(
    conn: &Connection,
    by: &Caller,
    id: &LoggedModelId,
) -> Result<LoggedModelInfo, Error> {
    let row = row(conn, id)?;
    may_write_model(by, &row.info)?;
    if row.info.stage == LifecycleStage::Deleted {
        return Err(Refusal::ModelDeleted(id.to_string()).into());
    }
    in_use(conn, row.info.experiment)?;
    Ok(row.info)
}

fn is_own(by: &Caller, info: &LoggedModelInfo) -> bool {
    match &by.role {
        Role::Attempt(scope) => info.job.as_ref() == Some(&scope.job),
        _ => by.is_own(&info.owner, ""),
    }
}

fn not_own(by: &Caller, info: &LoggedModelInfo, what: &str, others: &str) -> Refusal {
    Refusal::NotAllowed(match &by.role {
        Role::Attempt(scope) => format!(
            "A job's token writes only to models of its own run '{}', not to model '{}'",
            scope.job, info.id
        ),
        _ => format!(
            "{} may not {what} model '{}' of {}: only its owner {others}may",
            by.principal, info.id, info.owner
        ),
    })
}

/// Whether the caller may write what a model consists of: nobody writes to another's, whatever the role.
fn may_write_model(by: &Caller, info: &LoggedModelInfo) -> Result<(), Refusal> {
    writer(by)?;
    if is_own(by, info) {
        Ok(())
    } else {
        Err(not_own(by, info, "write files or parameters to", ""))
    }
}

/// Whether the caller may change how a model is kept: its owner, or who may change what others made.
pub(super) fn may_change_model(by: &Caller, info: &LoggedModelInfo) -> Result<(), Refusal> {
    writer(by)?;
    let any = by.role.is_for_people() && by.owns(&info.owner, "");
    if any || is_own(by, info) { Ok(()) } else { Err(not_own(by, info, "change", "or an admin ")) }
}

/// Whether the caller may say something of these models with a run of its own: it may whatever it may read.
pub(super) fn may_name<'a>(
    conn: &Connection,
    by: &Caller,
    run: &RunRow,
    models: impl IntoIterator<Item = &'a LoggedModelId>,
) -> Result<(), Error> {
    for id in models {
        let info = row(conn, id)?.info;
        // An attempt's run is in the only experiment that it reads.
        if matches!(by.role, Role::Attempt(_)) && info.experiment != run.info.experiment {
            return Err(Refusal::NotAllowed(format!(
                "A job's token reads only its own experiment {}, not model '{id}' of experiment {}",
                run.info.experiment, info.experiment
            ))
            .into());
        }
    }
    Ok(())
}

/// Refuses what is in no experiment, or in one that is deleted.
fn in_use(conn: &Connection, experiment: ExperimentId) -> Result<(), Error> {
    let found = read::experiment(conn, experiment)?
        .ok_or_else(|| Refusal::NoExperiment(experiment.to_string()))?;
    match found.stage {
        LifecycleStage::Deleted => Err(Refusal::ExperimentDeleted(experiment.to_string()).into()),
        LifecycleStage::Active => Ok(()),
    }
}

pub(super) fn create(
    conn: &Connection,
    by: &Caller,
    model: &NewModel,
    at: Timestamp,
) -> Result<TrackReply, Error> {
    writer(by)?;
    in_use(conn, model.experiment)?;
    // `runs:/RUN/NAME` leads to a model that says so of itself, so that it is a result of the run.
    if let Some(run) = &model.source_run {
        let row = read::row(conn, run)?;
        may_write(by, &row)?;
        if row.info.stage == LifecycleStage::Deleted {
            return Err(Refusal::RunDeleted(run.to_string()).into());
        }
    }
    // A model made within a job belongs to the job and to whoever submitted it.
    let (owner, job) = match &by.role {
        Role::Attempt(scope) => {
            let own = read::row(conn, &RunId::from(&scope.job))?;
            if own.info.experiment != model.experiment {
                return Err(Refusal::NotAllowed(format!(
                    "A job's token makes models only in its own experiment {}, not in {}",
                    own.info.experiment, model.experiment
                ))
                .into());
            }
            (own.info.owner, Some(scope.job.clone()))
        }
        _ => (by.principal.clone(), None),
    };
    execute(
        conn,
        "INSERT INTO logged_models (id, experiment, name, owner, job, source_run, type, status, created, updated)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
        &[
            &model.id.as_str(),
            &model.experiment.0,
            &model.name,
            &owner.as_str(),
            &job.as_ref().map(JobName::as_str),
            &model.source_run.as_ref().map(RunId::as_str),
            &model.model_type,
            &LoggedModelStatus::Pending.as_str(),
            &at.as_millis(),
        ],
    )?;
    let seq = conn.last_insert_rowid();
    add_params(conn, seq, &model.id, &model.params)?;
    set_tags(conn, seq, &model.tags)?;
    Ok(TrackReply::Done)
}

pub(super) fn change(
    conn: &Connection,
    by: &Caller,
    id: &LoggedModelId,
    change: &ModelChange,
    at: Timestamp,
) -> Result<TrackReply, Error> {
    let ModelRow { seq, info } = row(conn, id)?;
    match change.is_result() {
        true => may_write_model(by, &info)?,
        false => may_change_model(by, &info)?,
    }
    match change {
        ModelChange::Finalize(status) => {
            // How long the files of a deleted one stay counts from its deletion.
            execute(
                conn,
                "UPDATE logged_models SET status = ?2, updated = CASE WHEN deleted THEN updated ELSE ?3 END
                 WHERE seq = ?1",
                &[&seq, &status.as_str(), &at.as_millis()],
            )?;
        }
        ModelChange::Delete => {
            execute(
                conn,
                "UPDATE logged_models SET deleted = 1, updated = ?2 WHERE seq = ?1 AND deleted = 0",
                &[&seq, &at.as_millis()],
            )?;
        }
        ModelChange::SetTags(tags) => set_tags(conn, seq, tags)?,
        ModelChange::DeleteTag(key) => {
            let gone = execute(
                conn,
                "DELETE FROM logged_model_tags WHERE model = ?1 AND key = ?2",
                &[&seq, key],
            )?;
            if gone == 0 {
                let model = id.to_string();
                return Err(Refusal::NoModelTag { key: key.clone(), model }.into());
            }
        }
        ModelChange::Params(params) => add_params(conn, seq, id, params)?,
        ModelChange::Artifact { path, bytes } => {
            if info.stage == LifecycleStage::Deleted {
                return Err(Refusal::ModelDeleted(id.to_string()).into());
            }
            in_use(conn, info.experiment)?;
            execute(
                conn,
                "INSERT OR REPLACE INTO logged_model_artifacts (model, path, bytes, at) VALUES (?1, ?2, ?3, ?4)",
                &[&seq, &path.as_str(), bytes, &at.as_millis()],
            )?;
        }
        ModelChange::DeleteArtifacts(path) => {
            let (from, below, end) = read::folder_range(path.as_ref());
            let paths = conn
                .prepare_cached(
                    "DELETE FROM logged_model_artifacts
                     WHERE model = ?1 AND (path = ?2 OR (path >= ?3 AND path < ?4)) RETURNING path",
                )
                .and_then(|mut s| {
                    s.query_map(params![seq, from, below, end], |row| row.get(0))?.collect()
                })
                .map_err(sql)?;
            return Ok(TrackReply::Paths(paths));
        }
    }
    Ok(TrackReply::Done)
}

fn set_tags(conn: &Connection, model: i64, tags: &[Tag]) -> Result<(), Error> {
    for tag in tags {
        execute(
            conn,
            "INSERT OR REPLACE INTO logged_model_tags (model, key, value) VALUES (?1, ?2, ?3)",
            &[&model, &tag.key, &tag.value],
        )?;
    }
    Ok(())
}

fn add_params(
    conn: &Connection,
    model: i64,
    id: &LoggedModelId,
    params: &[Param],
) -> Result<(), Error> {
    for param in params {
        let made = execute(
            conn,
            "INSERT INTO logged_model_params (model, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            &[&model, &param.key, &param.value],
        )?;
        if made == 1 {
            continue;
        }
        let old: String = conn
            .prepare_cached("SELECT value FROM logged_model_params WHERE model = ?1 AND key = ?2")
            .and_then(|mut s| s.query_row(params![model, param.key], |row| row.get(0)))
            .map_err(sql)?;
        if old != param.value {
            return Err(Refusal::Invalid(format!(
                "Changing param values is not allowed. Param with key='{}' was already logged for model ID='{id}' \
                 with another value.",
                param.key
            ))
            .into());
        }
    }
    Ok(())
}

/// Keeps with models what a run measured of them. The same point sent twice is kept once.
pub(super) fn log_points(
    conn: &Connection,
    run: &RunRow,
    points: &[ModelPoint],
) -> Result<(), Error> {
    for point in points {
        let model = row(conn, &point.model)?;
        let StoredMetric { key, step, timestamp, value, is_nan } = point.metric.clone().into();
        execute(
            conn,
            "INSERT OR IGNORE INTO logged_model_metrics
                 (model, key, timestamp, step, run, dataset, digest, value, is_nan)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            &[
                &model.seq,
                &key,
                &timestamp,
                &step,
                &run.info.id.as_str(),
                &point.on.name.as_deref().unwrap_or_default(),
                &point.on.digest.as_deref().unwrap_or_default(),
                &value,
                &is_nan,
            ],
        )?;
    }
    Ok(())
}

/// Says that a run made models (or read them, without a step). The same again changes nothing.
pub(super) fn name_models<'a>(
    conn: &Connection,
    run: i64,
    output: bool,
    models: impl IntoIterator<Item = (&'a LoggedModelId, i64)>,
) -> Result<(), Error> {
    for (model, step) in models {
        execute(
            conn,
            "INSERT OR IGNORE INTO run_models (run, model, output, step) VALUES (?1, ?2, ?3, ?4)",
            &[&run, &model.as_str(), &output, &step],
        )?;
    }
    Ok(())
}

/// Models outlive the job that made them and its runs. A later job of the same name has nothing to do with them.
pub(super) fn forget_runs(conn: &Connection, job: &JobName) -> Result<(), Error> {
    execute(
        conn,
        "UPDATE logged_models SET source_run = NULL WHERE source_run IN (
             SELECT id FROM runs WHERE id = ?1 AND job = ?1
             UNION SELECT id FROM runs WHERE job = ?1 AND job IS NOT NULL AND job <> id)",
        &[&job.as_str()],
    )?;
    execute(conn, "UPDATE logged_models SET job = NULL WHERE job = ?1", &[&job.as_str()])?;
    Ok(())
}
