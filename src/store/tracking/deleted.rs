//! Runs and logged models that were deleted: for a while runs can be restored, then all of it goes.
//!
//! A run may have millions of points that are not sealed. All else of it goes in one transaction, so that nobody finds
//! half a run; its points follow in small ones, by the number that no other run is given meanwhile.

use atelier_core::id::JobName;
use atelier_core::time::Timestamp;
use atelier_core::track::{LoggedModelId, LoggedModelInfo, RunId, RunInfo, StoredMetric};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::Error;
use super::TrackReply;
use super::write::{PURGE, execute};
use super::{models, read};

/// Since when runs are deleted; for those of before, since now.
pub const MIGRATION: &str = "
ALTER TABLE runs ADD COLUMN deleted_at INTEGER; -- ms since the epoch; NULL: it is not deleted
UPDATE runs SET deleted_at = unixepoch() * 1000 WHERE deleted = 1;
CREATE INDEX runs_deleted ON runs (deleted_at, seq) WHERE deleted_at IS NOT NULL;
CREATE TABLE gone_runs (
    seq INTEGER PRIMARY KEY              -- of a run of which there are only points
) STRICT;
-- As runs, experiments that were deleted are so from now on.
UPDATE experiments SET updated = unixepoch() * 1000 WHERE deleted = 1;
CREATE TABLE gone_experiments (
    id INTEGER PRIMARY KEY               -- whoever still names it does not find another's
) STRICT;
CREATE VIEW next_experiment AS
    SELECT max(
        coalesce((SELECT max(id) FROM experiments), 0), coalesce((SELECT max(id) FROM gone_experiments), 0)
    ) + 1 AS id;
CREATE VIEW next_run AS
    SELECT max(coalesce((SELECT max(seq) FROM runs), 0), coalesce((SELECT max(seq) FROM gone_runs), 0)) + 1 AS seq;
";

/// Finds the logged models that were deleted. Until now they stayed for good: their time, and that of experiments that
/// hold models, begins now.
pub const MODELS_MIGRATION: &str = "
UPDATE logged_models SET updated = unixepoch() * 1000 WHERE deleted = 1;
UPDATE experiments SET updated = unixepoch() * 1000
    WHERE deleted = 1 AND EXISTS (SELECT 1 FROM logged_models WHERE experiment = experiments.id);
CREATE INDEX logged_models_deleted ON logged_models (updated, seq) WHERE deleted = 1;
";

/// A deleted run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletedRun {
    seq: i64,
    /// Its id.
    pub id: RunId,
    /// Since when.
    pub at: Timestamp,
    /// The job that it is the run of, or was made in, if that is not over.
    pub live_job: Option<JobName>,
    /// Whether it is the run of a job, whose files are the job's.
    pub is_of_job: bool,
    /// The size of its artifacts and sealed points.
    pub bytes: u64,
}

impl DeletedRun {
    /// After which the next one comes.
    pub const fn place(&self) -> (Timestamp, i64) {
        (self.at, self.seq)
    }

    /// What of its files goes with it, in the artifact store.
    pub fn files(&self) -> String {
        let root = RunInfo::artifact_root(&self.id);
        if self.is_of_job { format!("{root}/metrics") } else { root }
    }
}

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("read deleted runs", source)
}

const COLUMNS: &str =
    "r.seq, r.id, r.deleted_at, (SELECT name FROM jobs WHERE name = r.job AND live = 1),
     r.job IS r.id, (SELECT coalesce(sum(bytes), 0) FROM artifacts WHERE run = r.seq)
         + (SELECT coalesce(sum(bytes), 0) FROM sealed_metrics WHERE run = r.seq)";

fn deleted(row: &Row<'_>) -> rusqlite::Result<DeletedRun> {
    let job = row.get_ref(3)?.as_str_or_null()?.map(JobName::new).transpose();
    Ok(DeletedRun {
        seq: row.get(0)?,
        id: read::run_id(row, 1)?,
        at: Timestamp::from_millis(row.get(2)?),
        live_job: job.map_err(|error| read::invalid(3, error))?,
        is_of_job: row.get(4)?,
        bytes: row.get(5)?,
    })
}

/// Runs that were deleted by then, the earliest first: those after a place, at most `limit`.
pub fn deleted_by(
    conn: &Connection,
    by: Timestamp,
    after: Option<(Timestamp, i64)>,
    limit: usize,
) -> Result<Vec<DeletedRun>, Error> {
    let (at, seq) = after.map_or((i64::MIN, i64::MIN), |(at, seq)| (at.as_millis(), seq));
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs r
         WHERE r.deleted_at IS NOT NULL AND r.deleted_at <= ?1 AND (r.deleted_at, r.seq) > (?2, ?3)
         ORDER BY r.deleted_at, r.seq LIMIT ?4"
    ))
    .and_then(|mut s| s.query_map(params![by.as_millis(), at, seq, limit], deleted)?.collect())
    .map_err(sql)
}

/// A run, if it is deleted.
pub fn deleted_run(conn: &Connection, id: &RunId) -> Result<Option<DeletedRun>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM runs r WHERE r.id = ?1 AND r.deleted_at IS NOT NULL"
    ))
    .and_then(|mut s| s.query_row([id.as_str()], deleted).optional())
    .map_err(sql)
}

/// Forgets a deleted run. What was measured of models stays theirs.
pub fn forget_deleted(conn: &Connection, run: &DeletedRun) -> Result<(), Error> {
    execute(
        conn,
        "UPDATE logged_models SET source_run = NULL WHERE source_run = ?1",
        &[&run.id.as_str()],
    )?;
    forget(conn, run.seq)
}

/// Forgets all of a run but its points, which go with [`purge`].
pub(super) fn forget(conn: &Connection, seq: i64) -> Result<(), Error> {
    for statement in [
        "DELETE FROM params WHERE run = ?1",
        "DELETE FROM run_tags WHERE run = ?1",
        "DELETE FROM latest_metrics WHERE run = ?1",
        "DELETE FROM sealed_metrics WHERE run = ?1",
        "DELETE FROM artifacts WHERE run = ?1",
        "DELETE FROM run_inputs WHERE run = ?1",
        "DELETE FROM run_models WHERE run = ?1",
        "DELETE FROM runs WHERE seq = ?1",
        "INSERT INTO gone_runs (seq) VALUES (?1)",
    ] {
        execute(conn, statement, &[&seq])?;
    }
    Ok(())
}

/// A logged model that was deleted, or whose experiment was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletedModel {
    seq: i64,
    /// Its id.
    pub id: LoggedModelId,
    /// Since when.
    pub at: Timestamp,
    /// The job from within which it was made, if that is not over.
    pub live_job: Option<JobName>,
    /// The size of its artifacts.
    pub bytes: u64,
}

impl DeletedModel {
    /// After which the next one comes.
    pub const fn place(&self) -> (Timestamp, i64) {
        (self.at, self.seq)
    }

    /// Where its files lie, in the artifact store.
    pub fn files(&self) -> String {
        LoggedModelInfo::artifact_root(&self.id)
    }
}

const MODEL_COLUMNS: &str =
    "d.seq, d.id, d.at, (SELECT name FROM jobs WHERE name = d.job AND live = 1),
     (SELECT coalesce(sum(bytes), 0) FROM logged_model_artifacts WHERE model = d.seq)";

/// As nothing changes a deleted model, it was last changed when it was deleted.
const DELETED_MODELS: &str =
    "SELECT seq, id, job, updated AS at FROM logged_models WHERE deleted = 1";

/// Experiments first: there are few that are deleted, and many models.
const OF_DELETED_EXPERIMENTS: &str = "SELECT m.seq, m.id, m.job, e.updated AS at
     FROM experiments e CROSS JOIN logged_models m ON m.experiment = e.id
     WHERE e.deleted = 1 AND m.deleted = 0";

fn model_of_row(row: &Row<'_>) -> rusqlite::Result<DeletedModel> {
    let job = row.get_ref(3)?.as_str_or_null()?.map(JobName::new).transpose();
    Ok(DeletedModel {
        seq: row.get(0)?,
        id: models::model_id(row, 1)?,
        at: Timestamp::from_millis(row.get(2)?),
        live_job: job.map_err(|error| read::invalid(3, error))?,
        bytes: row.get(4)?,
    })
}

/// Logged models that were deleted by then, the earliest first: those after a place, at most `limit`.
pub fn models_deleted_by(
    conn: &Connection,
    by: Timestamp,
    after: Option<(Timestamp, i64)>,
    limit: usize,
) -> Result<Vec<DeletedModel>, Error> {
    let (at, seq) = after.map_or((i64::MIN, i64::MIN), |(at, seq)| (at.as_millis(), seq));
    conn.prepare_cached(&format!(
        "SELECT {MODEL_COLUMNS} FROM ({DELETED_MODELS} UNION ALL {OF_DELETED_EXPERIMENTS}) d
         WHERE d.at <= ?1 AND (d.at, d.seq) > (?2, ?3) ORDER BY d.at, d.seq LIMIT ?4"
    ))
    .and_then(|mut s| s.query_map(params![by.as_millis(), at, seq, limit], model_of_row)?.collect())
    .map_err(sql)
}

/// A logged model, if it is deleted.
pub fn deleted_model(conn: &Connection, id: &LoggedModelId) -> Result<Option<DeletedModel>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {MODEL_COLUMNS} FROM
            (SELECT m.seq, m.id, m.job, CASE WHEN m.deleted THEN m.updated ELSE e.updated END AS at
             FROM logged_models m JOIN experiments e ON e.id = m.experiment
             WHERE m.id = ?1 AND (m.deleted = 1 OR e.deleted = 1)) d"
    ))
    .and_then(|mut s| s.query_row([id.as_str()], model_of_row).optional())
    .map_err(sql)
}

/// Forgets some of a deleted logged model: whether that was the last of it. What runs say that they made and read
/// stays as they said it.
pub fn forget_deleted_model(conn: &Connection, model: &DeletedModel) -> Result<bool, Error> {
    // Nobody may find half of it when its experiment is restored, and the rest goes when this does.
    execute(
        conn,
        "UPDATE logged_models SET deleted = 1, updated = ?2 WHERE seq = ?1 AND deleted = 0",
        &[&model.seq, &model.at.as_millis()],
    )?;
    let points = execute(
        conn,
        "DELETE FROM logged_model_metrics WHERE model = ?1
         AND (key, timestamp, step, run, dataset, digest, value, is_nan) IN
             (SELECT key, timestamp, step, run, dataset, digest, value, is_nan
              FROM logged_model_metrics WHERE model = ?1 LIMIT ?2)",
        &[&model.seq, &PURGE],
    )?;
    if i64::try_from(points).is_ok_and(|points| points == PURGE) {
        return Ok(false);
    }
    for statement in [
        "DELETE FROM logged_model_params WHERE model = ?1",
        "DELETE FROM logged_model_tags WHERE model = ?1",
        "DELETE FROM logged_model_artifacts WHERE model = ?1",
        "DELETE FROM logged_models WHERE seq = ?1",
    ] {
        execute(conn, statement, &[&model.seq])?;
    }
    Ok(true)
}

/// Whether there are runs of which only points are left, if any.
pub fn has_gone(conn: &Connection) -> Result<bool, Error> {
    conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM gone_runs)")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(sql)
}

/// Removes some points of a run that is gone; its number is free when there are none.
pub(super) fn purge(conn: &Connection) -> Result<TrackReply, Error> {
    let run: Option<i64> = conn
        .prepare_cached("SELECT min(seq) FROM gone_runs")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(sql)?;
    let Some(run) = run else { return Ok(TrackReply::Purged(0)) };
    // By a range of the key: nothing is looked for twice.
    let last: Option<StoredMetric> = conn
        .prepare_cached(
            "SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run = ?1
             ORDER BY key, step, timestamp, value, is_nan LIMIT 1 OFFSET ?2",
        )
        .and_then(|mut s| s.query_row([run, PURGE - 1], read::point).optional())
        .map_err(sql)?;
    let gone = match last {
        Some(StoredMetric { key, step, timestamp, value, is_nan }) => execute(
            conn,
            "DELETE FROM metrics WHERE run = ?1
             AND (key, step, timestamp, value, is_nan) <= (?2, ?3, ?4, ?5, ?6)",
            &[&run, &key, &step, &timestamp, &value, &is_nan],
        )?,
        None => {
            execute(conn, "DELETE FROM gone_runs WHERE seq = ?1", &[&run])?;
            execute(conn, "DELETE FROM metrics WHERE run = ?1", &[&run])?
        }
    };
    Ok(TrackReply::Purged(gone))
}

/// Experiments that were deleted by `?1` and have nothing in them any more.
const EMPTY: &str =
    "SELECT e.id FROM experiments e WHERE e.deleted = 1 AND e.id <> 0 AND e.updated <= ?1
     AND NOT EXISTS (SELECT 1 FROM runs WHERE experiment = e.id)
     AND NOT EXISTS (SELECT 1 FROM logged_models WHERE experiment = e.id)";

/// Whether there are experiments for [`forget_experiments`].
pub fn has_empty_experiments(conn: &Connection, by: Timestamp) -> Result<bool, Error> {
    conn.prepare_cached(&format!("SELECT EXISTS ({EMPTY})"))
        .and_then(|mut s| s.query_row([by.as_millis()], |row| row.get(0)))
        .map_err(sql)
}

/// Forgets experiments that were deleted by then and have nothing in them any more, so that their names are free;
/// these names.
pub fn forget_experiments(conn: &Connection, by: Timestamp) -> Result<Vec<String>, Error> {
    let by = by.as_millis();
    let names = conn
        .prepare_cached(&format!("SELECT name FROM experiments WHERE id IN ({EMPTY})"))
        .and_then(|mut s| s.query_map([by], |row| row.get(0))?.collect())
        .map_err(sql)?;
    execute(
        conn,
        &format!(
            "INSERT INTO gone_experiments SELECT max(id) FROM ({EMPTY}) HAVING max(id) IS NOT NULL ON CONFLICT DO NOTHING"
        ),
        &[&by],
    )?;
    execute(conn, &format!("DELETE FROM experiment_tags WHERE experiment IN ({EMPTY})"), &[&by])?;
    execute(conn, &format!("DELETE FROM experiments WHERE id IN ({EMPTY})"), &[&by])?;
    Ok(names)
}
