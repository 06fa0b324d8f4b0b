//! Experiments, runs and what is logged to them, as rows.
//!
//! Writes are values ([`TrackWrite`]) that the store's writer applies, so that a job and its run
//! change in one transaction. Reads are functions over a connection. Both say what they refuse
//! with [`atelier_core::track::Error`], inside the store's own error.
//!
//! A point is its own key: the same batch sent twice adds nothing (invariant I7). MLflow's clients
//! retry whatever was not answered, and its wire carries no sequence number of its own.
//!
//! Points of runs at work are *hot* rows. When a run has ended they are written as a Parquet file
//! to the artifact store, a pointer to it is committed, and only then are the rows of that
//! *generation* removed in small transactions. A point may therefore lie in both places, never in
//! neither; readers unite the two.

mod deleted;
mod model_search;
mod models;
mod ranked;
mod read;
mod run_search;
mod seal;
pub(super) mod search;
mod write;

#[cfg(test)]
mod tests;

use atelier_core::access::Caller;
use atelier_core::audit::Actor;
use atelier_core::id::{ExperimentName, JobName, Principal};
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ArtifactPath, DatasetInput, Error as Refusal, ExperimentId, LoggedModelId, Metric, ModelOutput,
    ModelPoint, Param, RunId, RunInfo, RunStatus, Tag,
};

pub use deleted::{
    DeletedModel, DeletedRun, MIGRATION as DELETED_MIGRATION,
    MODELS_MIGRATION as DELETED_MODELS_MIGRATION, deleted_by, deleted_model, deleted_run,
    forget_deleted, forget_deleted_model, forget_experiments, has_empty_experiments, has_gone,
    models_deleted_by,
};
pub use model_search::{ModelQuery, search_models};
pub use models::{
    MIGRATION as MODELS_MIGRATION, ModelChange, NewModel, model, model_artifact,
    model_artifact_time, model_artifacts, model_entries, model_info, model_writable,
};
pub use ranked::{MIGRATION as RANKED_MIGRATION, has_unmarked, has_unranked};
pub use read::{
    Entry, SealedPointer, artifact, artifact_time, artifacts, datasets, entries, experiment,
    experiment_by_name, experiments, hot_points, latest, run, run_info, runs_within, sealed,
};
pub use run_search::{RunQuery, search_runs};
pub use seal::{HotPage, hot_page, to_purge, to_seal};
pub use search::{ExperimentQuery, Page, search_experiments};
pub use write::writable;

/// The tables. Owner of the experiment `Default` is no one who could log in.
pub const MIGRATION: &str = "
CREATE TABLE experiments (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    owner   TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL,             -- ms since the epoch, as all times here
    updated INTEGER NOT NULL
) STRICT;
INSERT INTO experiments (id, name, owner, created, updated)
    VALUES (0, 'Default', 'atelier', unixepoch() * 1000, unixepoch() * 1000);
CREATE TABLE experiment_tags (
    experiment INTEGER NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (experiment, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE runs (
    seq        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,      -- the job's name, or 32 hexadecimal digits
    experiment INTEGER NOT NULL,
    name       TEXT,
    owner      TEXT NOT NULL,
    job        TEXT,                      -- the job it is the run of, or was made in
    status     TEXT NOT NULL,
    started    INTEGER NOT NULL,
    ended      INTEGER,
    deleted    INTEGER NOT NULL DEFAULT 0,
    hot        INTEGER NOT NULL DEFAULT 0, -- points that are not sealed
    generation INTEGER NOT NULL DEFAULT 0  -- how often sealing has begun
) STRICT;
CREATE INDEX runs_experiment ON runs (experiment, started DESC, id);
CREATE INDEX runs_children ON runs (job) WHERE job IS NOT NULL AND job <> id;
CREATE INDEX runs_to_seal ON runs (seq)
    WHERE hot >= 32 AND status IN ('FINISHED', 'FAILED', 'KILLED');
CREATE TABLE params (
    run   INTEGER NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_tags (
    run   INTEGER NOT NULL,
    key   TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE metrics (
    run        INTEGER NOT NULL,
    key        TEXT NOT NULL,
    step       INTEGER NOT NULL,
    timestamp  INTEGER NOT NULL,
    value      REAL NOT NULL,             -- finite; 0 for NaN
    is_nan     INTEGER NOT NULL,
    generation INTEGER NOT NULL,          -- the run's, when the row was written
    PRIMARY KEY (run, key, step, timestamp, value, is_nan)
) STRICT, WITHOUT ROWID;
CREATE TABLE latest_metrics (
    run       INTEGER NOT NULL,
    key       TEXT NOT NULL,
    step      INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    value     REAL NOT NULL,
    is_nan    INTEGER NOT NULL,
    PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE sealed_metrics (
    run        INTEGER PRIMARY KEY,
    object     TEXT NOT NULL,             -- key in workspaceartifactstore
    points     INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    generation INTEGER NOT NULL,          -- rows up to this one are in the object
    purged     INTEGER NOT NULL DEFAULT 0, -- 1 once those rows are gone
    at         INTEGER NOT NULL
) STRICT;
CREATE INDEX sealed_to_purge ON sealed_metrics (run) WHERE purged = 0;
CREATE TABLE artifacts (
    run   INTEGER NOT NULL,
    path  TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    PRIMARY KEY (run, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_inputs (
    run         INTEGER NOT NULL,
    name        TEXT NOT NULL,
    digest      TEXT NOT NULL,
    source_type TEXT NOT NULL,
    source      TEXT NOT NULL,
    schema      TEXT,
    profile     TEXT,
    tags        TEXT NOT NULL,            -- JSON: [[key, value], …]
    PRIMARY KEY (run, name, digest)
) STRICT, WITHOUT ROWID;
";

/// Fewer points than this are not worth a file of their own (its fixed part is as large as some
/// thirty rows): they stay rows. The index `runs_to_seal` knows the number too.
pub const SEAL_AT_LEAST: i64 = 32;

/// So many points of a run at work are sealed without waiting for its end: more rows make pages and curves slow. The index
/// `runs_with_many` knows the number too.
pub const SEAL_AT_WORK: i64 = 262_144;

/// A change to what is tracked.
#[derive(Clone, Debug)]
pub enum TrackWrite {
    /// Makes an experiment.
    CreateExperiment {
        /// Who.
        by: Caller,
        /// Its name.
        name: ExperimentName,
        /// Its first tags, checked.
        tags: Vec<Tag>,
        /// When.
        at: Timestamp,
    },
    /// Changes an experiment.
    ChangeExperiment {
        /// Who: its owner or an admin.
        by: Caller,
        /// Which.
        id: ExperimentId,
        /// How.
        change: ExperimentChange,
        /// When.
        at: Timestamp,
    },
    /// Makes a run that is not a job's.
    CreateRun {
        /// Who; an attempt only in its own experiment.
        by: Caller,
        /// The run.
        run: NewRun,
    },
    /// Changes a run.
    ChangeRun {
        /// Who: its owner, an admin, or an attempt of its job.
        by: Caller,
        /// Which.
        id: RunId,
        /// How, checked against [`atelier_core::track::limits`].
        change: RunChange,
    },
    /// Makes a logged model.
    CreateModel {
        /// Who; an attempt only in its own experiment, and of its own runs.
        by: Caller,
        /// The model.
        model: NewModel,
        /// When.
        at: Timestamp,
    },
    /// Changes a logged model.
    ChangeModel {
        /// Who: its owner, an admin, or an attempt of its job.
        by: Caller,
        /// Which.
        id: LoggedModelId,
        /// How, checked.
        change: ModelChange,
        /// When.
        at: Timestamp,
    },
    /// A change of those above to one experiment, run or model, with its entry of the audit log.
    Audited {
        /// Who, from where, and by which call.
        by: Actor,
        /// The change.
        write: Box<TrackWrite>,
    },
    /// Makes a job's run, and its experiment if there is none. To be applied in the transaction
    /// that makes the job, and therefore never refused: if the job's name is another run's id
    /// already, the job has no run (whoever admits jobs looks with [`run_info`] first).
    CreateJobRun(JobRun),
    /// Makes a job's run follow the job. Runs made within the job that are still at work end with
    /// it. To be applied in the transaction that changes the job.
    FollowJob {
        /// The job.
        job: JobName,
        /// Where the job is.
        status: RunStatus,
        /// Since when.
        at: Timestamp,
    },
    /// Forgets a job's run and the runs made within it, rows only.
    ForgetJob(JobName),
    /// Adds the monitor's points to a job's run. The caller has checked the attempt's epoch.
    Samples {
        /// The job.
        job: JobName,
        /// The points.
        points: Vec<Metric>,
    },
    /// Opens a new generation of hot rows, so that the present ones can be sealed.
    BeginSeal(RunId),
    /// The rows up to `generation` lie in `object`, durably.
    Sealed {
        /// The run.
        run: RunId,
        /// Its number, as [`TrackReply::Generation`] has it.
        of: i64,
        /// Key in the artifact store.
        object: String,
        /// Points in it.
        points: u64,
        /// How many of them were rows until now.
        hot: u64,
        /// Its size.
        bytes: u64,
        /// See above.
        generation: i64,
        /// When.
        at: Timestamp,
    },
    /// Removes some of the rows that are sealed.
    Purge(RunId),
    /// Removes some of the points of runs that are gone.
    PurgeGone,
    /// Puts the latest points of some runs that have ended into the index by value.
    Rank {
        /// Also of runs to which nothing was logged since the last [`TrackWrite::MarkQuiet`].
        quiet: bool,
    },
    /// Notes which runs are at work, for the next [`TrackWrite::Rank`].
    MarkQuiet,
}

/// How an experiment changes.
#[derive(Clone, Debug)]
pub enum ExperimentChange {
    /// A new name.
    Rename(ExperimentName),
    /// Into the bin, with its runs.
    Delete,
    /// Out of the bin, with its runs.
    Restore,
    /// Sets a tag, checked.
    SetTag(Tag),
    /// Removes a tag.
    DeleteTag(String),
}

/// A run that is not a job's.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// Its experiment.
    pub experiment: ExperimentId,
    /// Its name.
    pub name: String,
    /// When it started, as the client says.
    pub started: Timestamp,
    /// Its first tags, checked.
    pub tags: Vec<Tag>,
}

/// A job's run.
#[derive(Clone, Debug)]
pub struct JobRun {
    /// The job; also the run's id.
    pub job: JobName,
    /// Its experiment; made if there is none.
    pub experiment: ExperimentName,
    /// Its name for people.
    pub display_name: String,
    /// Who submitted the job.
    pub owner: Principal,
    /// Where the job is.
    pub status: RunStatus,
    /// When it was submitted.
    pub at: Timestamp,
    /// The job's tags.
    pub tags: Vec<Tag>,
}

/// How a run changes.
#[derive(Clone, Debug)]
pub enum RunChange {
    /// What MLflow's `runs/update` sets. A job's run keeps its status and end: they follow the
    /// job, whatever a client says.
    Update {
        /// New status.
        status: Option<RunStatus>,
        /// When it ended.
        ended: Option<Timestamp>,
        /// New name.
        name: Option<String>,
    },
    /// Into the bin, then.
    Delete(Timestamp),
    /// Out of the bin.
    Restore,
    /// Points, parameters and tags: all or none.
    Log {
        /// Points.
        metrics: Vec<Metric>,
        /// Parameters.
        params: Vec<Param>,
        /// Tags.
        tags: Vec<Tag>,
        /// Those of the points that were measured of logged models.
        of_models: Vec<ModelPoint>,
    },
    /// Removes a tag.
    DeleteTag(String),
    /// What the run read.
    Inputs {
        /// Datasets.
        datasets: Vec<DatasetInput>,
        /// Logged models.
        models: Vec<LoggedModelId>,
    },
    /// Logged models that the run made.
    Outputs(Vec<ModelOutput>),
    /// A model as clients of MLflow 2 tell of it: JSON, checked, that is added to a list in a tag.
    RecordModel(serde_json::Value),
    /// A file that now lies in the artifact store.
    Artifact {
        /// Its path in the run.
        path: ArtifactPath,
        /// Its size.
        bytes: u64,
        /// When.
        at: Timestamp,
    },
    /// Forgets a file, or all files below a folder; empty means all.
    DeleteArtifacts(Option<ArtifactPath>),
}

/// What a change answers.
#[derive(Clone, PartialEq, Debug)]
pub enum TrackReply {
    /// It is done.
    Done,
    /// The experiment made.
    Experiment(ExperimentId),
    /// The run after the change.
    Run(Box<RunInfo>),
    /// A run has points to seal.
    ToSeal,
    /// Rows of a run up to a generation can be sealed.
    Generation {
        /// The run's number, which no other is given while it is sealed.
        of: i64,
        /// The last generation.
        generation: i64,
    },
    /// The run has gone meanwhile.
    Gone,
    /// How many rows were removed; 0 when none are left.
    Purged(usize),
    /// How many runs were dealt with; 0 when none are left.
    Ranked(usize),
    /// The paths that were forgotten; their objects can go.
    Paths(Vec<String>),
}

impl From<Refusal> for super::Error {
    fn from(refusal: Refusal) -> Self {
        Self::Track(refusal)
    }
}
