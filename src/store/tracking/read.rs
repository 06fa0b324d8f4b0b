//! Looking up experiments, runs, points and artifacts.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use atelier_core::id::{ExperimentName, JobName};
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ArtifactPath, DATASET_CONTEXT_TAG, Dataset, DatasetInput, DatasetSummary, Error as Refusal,
    Experiment, ExperimentId, LifecycleStage, LoggedModelId, ModelOutput, Param, Point,
    RUN_NAME_TAG, Run, RunId, RunInfo, RunStatus, StoredMetric, Tag,
};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::Error;

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("read the tracking tables", source)
}

pub(super) fn invalid<E>(column: usize, error: E) -> rusqlite::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

pub(super) fn run_id(row: &Row<'_>, column: usize) -> rusqlite::Result<RunId> {
    RunId::new(row.get_ref(column)?.as_str()?).map_err(|error| invalid(column, error))
}

pub(super) fn stage(deleted: bool) -> LifecycleStage {
    if deleted { LifecycleStage::Deleted } else { LifecycleStage::Active }
}

/// A run with what only the tables know.
#[derive(Clone, Debug)]
pub(super) struct RunRow {
    pub(super) seq: i64,
    pub(super) generation: i64,
    /// Whether it is [ranked](super::ranked), or thought to be quiet.
    pub(super) ranked: bool,
    pub(super) info: RunInfo,
}

pub(super) const RUN_COLUMNS: &str = "r.seq, r.generation, r.id, r.experiment, r.name, r.owner, r.job, r.status, r.started, \
     r.ended, r.deleted, r.ranked <> 0";

pub(super) fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    let job = row.get_ref(6)?.as_str_or_null()?.map(JobName::new).transpose();
    let status = row.get_ref(7)?.as_str()?;
    Ok(RunRow {
        seq: row.get(0)?,
        generation: row.get(1)?,
        ranked: row.get(11)?,
        info: RunInfo {
            id: run_id(row, 2)?,
            experiment: ExperimentId(row.get(3)?),
            name: row.get(4)?,
            owner: row.get_ref(5)?.as_str()?.parse().map_err(|error| invalid(5, error))?,
            job: job.map_err(|error| invalid(6, error))?,
            status: RunStatus::parse(status)
                .ok_or_else(|| invalid(7, Refusal::Invalid(format!("status '{status}'"))))?,
            started: Timestamp::from_millis(row.get(8)?),
            ended: row.get::<_, Option<i64>>(9)?.map(Timestamp::from_millis),
            stage: stage(row.get(10)?),
        },
    })
}

pub(super) fn find_row(conn: &Connection, id: &RunId) -> Result<Option<RunRow>, Error> {
    conn.prepare_cached(&format!("SELECT {RUN_COLUMNS} FROM runs r WHERE r.id = ?1"))
        .and_then(|mut s| s.query_row([id.as_str()], run_row).optional())
        .map_err(sql)
}

pub(super) fn row(conn: &Connection, id: &RunId) -> Result<RunRow, Error> {
    find_row(conn, id)?.ok_or_else(|| Refusal::NoRun(id.to_string()).into())
}

/// What a run is.
///
/// # Errors
/// [`Refusal::NoRun`] if there is none.
pub fn run_info(conn: &Connection, id: &RunId) -> Result<RunInfo, Error> {
    Ok(row(conn, id)?.info)
}

/// Runs that were made within a job, without the job's own.
///
/// # Errors
/// What SQLite says.
pub fn runs_within(conn: &Connection, job: &JobName) -> Result<Vec<RunId>, Error> {
    conn.prepare_cached("SELECT id FROM runs WHERE job = ?1 AND job IS NOT NULL AND job <> id")
        .and_then(|mut s| s.query_map([job.as_str()], |row| run_id(row, 0))?.collect())
        .map_err(sql)
}

/// A run with what was logged to it.
///
/// # Errors
/// [`Refusal::NoRun`] if there is none.
pub fn run(conn: &Connection, id: &RunId) -> Result<Run, Error> {
    let mut runs = fill(conn, vec![row(conn, id)?])?;
    runs.pop().ok_or_else(|| Refusal::NoRun(id.to_string()).into())
}

pub(super) fn point(row: &Row<'_>) -> rusqlite::Result<StoredMetric> {
    Ok(StoredMetric {
        key: row.get(0)?,
        step: row.get(1)?,
        timestamp: row.get(2)?,
        value: row.get(3)?,
        is_nan: row.get(4)?,
    })
}

/// Adds to runs what was logged to them; their order stays.
pub(super) fn fill(conn: &Connection, rows: Vec<RunRow>) -> Result<Vec<Run>, Error> {
    let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    let list = serde_json::to_string(&seqs)
        .map_err(|source| Error::Damaged { what: "run numbers".to_owned(), source })?;
    let place: HashMap<i64, usize> = seqs.iter().enumerate().map(|(i, seq)| (*seq, i)).collect();
    let mut runs: Vec<Run> = rows
        .into_iter()
        .map(|row| Run {
            tags: Vec::from_iter(
                row.info.name.clone().map(|value| Tag { key: RUN_NAME_TAG.to_owned(), value }),
            ),
            info: row.info,
            params: Vec::new(),
            metrics: Vec::new(),
            inputs: Vec::new(),
            model_inputs: Vec::new(),
            outputs: Vec::new(),
        })
        .collect();
    let mut each = |columns: &str,
                    table: &str,
                    add: &mut dyn FnMut(&mut Run, &Row<'_>) -> rusqlite::Result<()>|
     -> Result<(), Error> {
        let query = format!(
            "SELECT {columns}, run FROM {table}
             WHERE run IN (SELECT value FROM json_each(?1)) ORDER BY run, 1"
        );
        let mut statement = conn.prepare_cached(&query).map_err(sql)?;
        let mut found = statement.query([&list]).map_err(sql)?;
        while let Some(row) = found.next().map_err(sql)? {
            let seq: i64 = row.get("run").map_err(sql)?;
            if let Some(run) = place.get(&seq).and_then(|i| runs.get_mut(*i)) {
                add(run, row).map_err(sql)?;
            }
        }
        Ok(())
    };
    each("key, value", "params", &mut |run, row| {
        run.params.push(Param { key: row.get(0)?, value: row.get(1)? });
        Ok(())
    })?;
    each("key, value", "run_tags", &mut |run, row| {
        run.tags.push(Tag { key: row.get(0)?, value: row.get(1)? });
        Ok(())
    })?;
    each("key, step, timestamp, value, is_nan", "latest_metrics", &mut |run, row| {
        run.metrics.push(point(row)?);
        Ok(())
    })?;
    each(
        "name, digest, source_type, source, schema, profile, tags",
        "run_inputs",
        &mut |run, row| {
            let tags: Vec<(String, String)> = serde_json::from_str(row.get_ref(6)?.as_str()?)
                .map_err(|error| invalid(6, error))?;
            run.inputs.push(DatasetInput {
                dataset: Dataset {
                    name: row.get(0)?,
                    digest: row.get(1)?,
                    source_type: row.get(2)?,
                    source: row.get(3)?,
                    schema: row.get(4)?,
                    profile: row.get(5)?,
                },
                tags: tags.into_iter().map(|(key, value)| Tag { key, value }).collect(),
            });
            Ok(())
        },
    )?;
    each("seq, model, output, step", "run_models", &mut |run, row| {
        let model =
            LoggedModelId::new(row.get_ref(1)?.as_str()?).map_err(|error| invalid(1, error))?;
        match row.get(2)? {
            true => run.outputs.push(ModelOutput { model, step: row.get(3)? }),
            false => run.model_inputs.push(model),
        }
        Ok(())
    })?;
    Ok(runs)
}

pub(super) const EXPERIMENT_COLUMNS: &str =
    "e.id, e.name, e.owner, e.deleted, e.created, e.updated";

pub(super) fn experiment_row(row: &Row<'_>) -> rusqlite::Result<Experiment> {
    Ok(Experiment {
        id: ExperimentId(row.get(0)?),
        name: ExperimentName::new(row.get_ref(1)?.as_str()?).map_err(|error| invalid(1, error))?,
        owner: row.get_ref(2)?.as_str()?.parse().map_err(|error| invalid(2, error))?,
        stage: stage(row.get(3)?),
        created: Timestamp::from_millis(row.get(4)?),
        updated: Timestamp::from_millis(row.get(5)?),
        tags: Vec::new(),
    })
}

pub(super) fn add_tags(conn: &Connection, experiment: &mut Experiment) -> Result<(), Error> {
    experiment.tags = conn
        .prepare_cached("SELECT key, value FROM experiment_tags WHERE experiment = ?1 ORDER BY key")
        .and_then(|mut s| {
            s.query_map([experiment.id.0], |row| Ok(Tag { key: row.get(0)?, value: row.get(1)? }))?
                .collect()
        })
        .map_err(sql)?;
    Ok(())
}

fn one_experiment(
    conn: &Connection,
    condition: &str,
    value: &dyn rusqlite::ToSql,
) -> Result<Option<Experiment>, Error> {
    let query = format!("SELECT {EXPERIMENT_COLUMNS} FROM experiments e WHERE {condition} = ?1");
    let found = conn
        .prepare_cached(&query)
        .and_then(|mut s| s.query_row([value], experiment_row).optional())
        .map_err(sql)?;
    let Some(mut experiment) = found else { return Ok(None) };
    add_tags(conn, &mut experiment)?;
    Ok(Some(experiment))
}

/// An experiment, active or deleted.
pub fn experiment(conn: &Connection, id: ExperimentId) -> Result<Option<Experiment>, Error> {
    one_experiment(conn, "e.id", &id.0)
}

/// An experiment by its name, active or deleted.
pub fn experiment_by_name(conn: &Connection, name: &str) -> Result<Option<Experiment>, Error> {
    one_experiment(conn, "e.name", &name)
}

/// A metric's hot points within some steps, in the order of storage.
///
/// # Errors
/// [`Refusal::NoRun`] if there is no such run.
pub fn hot_points(
    conn: &Connection,
    run: &RunId,
    key: &str,
    steps: &RangeInclusive<i64>,
) -> Result<Vec<Point>, Error> {
    let row = row(conn, run)?;
    conn.prepare_cached(
        "SELECT step, timestamp, value, is_nan FROM metrics
         WHERE run = ?1 AND key = ?2 AND step BETWEEN ?3 AND ?4
         ORDER BY step, timestamp, value, is_nan",
    )
    .and_then(|mut s| {
        s.query_map(params![row.seq, key, steps.start(), steps.end()], |row| {
            Ok(Point {
                step: row.get(0)?,
                timestamp: row.get(1)?,
                value: row.get(2)?,
                is_nan: row.get(3)?,
            })
        })?
        .collect()
    })
    .map_err(sql)
}

/// Where a run's sealed points lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedPointer {
    /// Key in the artifact store.
    pub object: String,
    /// How many there are.
    pub points: u64,
    /// The object's size.
    pub bytes: u64,
    /// Rows up to this generation are in it.
    pub generation: i64,
}

/// Where a run's sealed points lie, if it has been sealed.
pub fn sealed(conn: &Connection, run: &RunId) -> Result<Option<SealedPointer>, Error> {
    let row = row(conn, run)?;
    conn.prepare_cached(
        "SELECT object, points, bytes, generation FROM sealed_metrics WHERE run = ?1",
    )
    .and_then(|mut s| {
        s.query_row([row.seq], |row| {
            Ok(SealedPointer {
                object: row.get(0)?,
                points: row.get(1)?,
                bytes: row.get(2)?,
                generation: row.get(3)?,
            })
        })
        .optional()
    })
    .map_err(sql)
}

/// Size of an artifact logged through MLflow.
pub fn artifact(conn: &Connection, run: &RunId, path: &ArtifactPath) -> Result<Option<u64>, Error> {
    let row = row(conn, run)?;
    conn.prepare_cached("SELECT bytes FROM artifacts WHERE run = ?1 AND path = ?2")
        .and_then(|mut s| s.query_row(params![row.seq, path.as_str()], |row| row.get(0)).optional())
        .map_err(sql)
}

/// When an artifact was logged through MLflow.
pub fn artifact_time(
    conn: &Connection,
    run: &RunId,
    path: &ArtifactPath,
) -> Result<Option<Timestamp>, Error> {
    let row = row(conn, run)?;
    let at: Option<i64> = conn
        .prepare_cached("SELECT at FROM artifacts WHERE run = ?1 AND path = ?2")
        .and_then(|mut s| s.query_row(params![row.seq, path.as_str()], |row| row.get(0)).optional())
        .map_err(sql)?;
    Ok(at.map(Timestamp::from_millis))
}

/// Something in a folder of artifacts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// A file's size; nothing for a folder.
    pub bytes: Option<u64>,
}

/// Entries of a folder shown at most.
const ENTRIES: usize = 10_000;

/// For a folder (or everything): the path itself, and the range of paths below it.
pub(super) fn folder_range(folder: Option<&ArtifactPath>) -> (String, String, String) {
    match folder {
        None => (String::new(), String::new(), "\u{10ffff}".to_owned()),
        // '0' is the character after '/'.
        Some(folder) => (folder.to_string(), format!("{folder}/"), format!("{folder}0")),
    }
}

/// What lies directly in a folder of a run's artifacts, as far as it was logged through MLflow.
/// Each subfolder costs one step, however much lies in it.
pub fn entries(
    conn: &Connection,
    run: &RunId,
    folder: Option<&ArtifactPath>,
) -> Result<Vec<Entry>, Error> {
    let row = row(conn, run)?;
    let (_, prefix, end) = folder_range(folder);
    folder_entries(conn, ("artifacts", "run"), row.seq, &prefix, &end)
}

/// The same of a table of files, and the column that says whose they are.
pub(super) fn folder_entries(
    conn: &Connection,
    (table, owner): (&str, &str),
    seq: i64,
    prefix: &str,
    end: &str,
) -> Result<Vec<Entry>, Error> {
    let mut next = conn
        .prepare_cached(&format!(
            "SELECT path, bytes FROM {table} WHERE {owner} = ?1 AND path >= ?2 AND path < ?3
             ORDER BY path LIMIT 1"
        ))
        .map_err(sql)?;
    let mut entries = Vec::new();
    let mut from = prefix.to_owned();
    while entries.len() < ENTRIES {
        let found: Option<(String, u64)> = next
            .query_row(params![seq, from, end], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(sql)?;
        let Some((path, bytes)) = found else { break };
        let below = path.get(prefix.len()..).unwrap_or_default();
        match below.split_once('/') {
            Some((name, _)) => {
                from = format!("{prefix}{name}0");
                entries.push(Entry { name: name.to_owned(), bytes: None });
            }
            None => {
                entries.push(Entry { name: below.to_owned(), bytes: Some(bytes) });
                // The first text after this one.
                from = format!("{path}\0");
            }
        }
    }
    entries.sort();
    Ok(entries)
}

/// Every artifact of a run that was logged through MLflow, with its size, by path.
pub fn artifacts(conn: &Connection, run: &RunId) -> Result<Vec<(ArtifactPath, u64)>, Error> {
    let Some(row) = find_row(conn, run)? else { return Ok(Vec::new()) };
    let paths: Vec<(String, u64)> = conn
        .prepare_cached("SELECT path, bytes FROM artifacts WHERE run = ?1 ORDER BY path")
        .and_then(|mut s| s.query_map([row.seq], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
        .map_err(sql)?;
    // A path was checked when it was written.
    Ok(paths
        .into_iter()
        .filter_map(|(path, bytes)| Some((ArtifactPath::new(&path).ok()?, bytes)))
        .collect())
}

/// The latest point of each of a run's metrics; none if there is no such run.
pub fn latest(conn: &Connection, run: &RunId) -> Result<Vec<StoredMetric>, Error> {
    let Some(row) = find_row(conn, run)? else { return Ok(Vec::new()) };
    conn.prepare_cached(
        "SELECT key, step, timestamp, value, is_nan FROM latest_metrics WHERE run = ?1 ORDER BY key",
    )
    .and_then(|mut s| s.query_map([row.seq], point)?.collect())
    .map_err(sql)
}

/// Every experiment in use, with its number of runs, the latest made first.
pub fn experiments(conn: &Connection) -> Result<Vec<(Experiment, u64)>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {EXPERIMENT_COLUMNS},
                (SELECT count(*) FROM runs r WHERE r.experiment = e.id) AS runs
         FROM experiments e WHERE e.deleted = 0 ORDER BY e.id DESC"
    ))
    .and_then(|mut s| {
        s.query_map([], |row| Ok((experiment_row(row)?, row.get("runs")?)))?.collect()
    })
    .map_err(sql)
}

/// Datasets shown at most.
const DATASETS: i64 = 1000;

/// The datasets that runs of these experiments read, each once for each of its roles.
pub fn datasets(
    conn: &Connection,
    experiments: &[ExperimentId],
) -> Result<Vec<DatasetSummary>, Error> {
    let ids: Vec<i64> = experiments.iter().map(|id| id.0).collect();
    let list = serde_json::to_string(&ids)
        .map_err(|source| Error::Damaged { what: "experiment numbers".to_owned(), source })?;
    conn.prepare_cached(
        "SELECT DISTINCT r.experiment, i.name, i.digest,
             (SELECT t.value ->> 1 FROM json_each(i.tags) t WHERE t.value ->> 0 = ?2)
         FROM run_inputs i JOIN runs r ON r.seq = i.run
         WHERE r.experiment IN (SELECT value FROM json_each(?1)) ORDER BY 1, 2, 3, 4 LIMIT ?3",
    )
    .and_then(|mut s| {
        s.query_map(params![list, DATASET_CONTEXT_TAG, DATASETS], |row| {
            Ok(DatasetSummary {
                experiment: ExperimentId(row.get(0)?),
                name: row.get(1)?,
                digest: row.get(2)?,
                context: row.get(3)?,
            })
        })?
        .collect()
    })
    .map_err(sql)
}
