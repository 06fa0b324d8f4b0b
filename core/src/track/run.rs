//! Experiments and runs.

use std::fmt;
use std::sync::Arc;

use super::{Error, LoggedModelId, ModelOutput, StoredMetric, limits};
use crate::id::{ExperimentName, JobName, Principal};
use crate::time::Timestamp;

/// An experiment's id: a number that the wire carries as text. `0` is the experiment `Default`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExperimentId(pub i64);

impl ExperimentId {
    /// The experiment that runs without one belong to.
    pub const DEFAULT: Self = Self(0);

    /// Reads the wire's text; empty means [`ExperimentId::DEFAULT`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::DEFAULT);
        }
        text.parse().map(Self).map_err(|_| {
            Error::Invalid(format!(
                "Invalid experiment ID '{}'. Experiment ID must be a valid integer.",
                limits::excerpt(text)
            ))
        })
    }
}

impl fmt::Display for ExperimentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run's id: a job's name, or for a run without a job 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunId(Arc<str>);

impl RunId {
    /// Checks the rule: letters, digits, `_`, `-` and `.`, a letter or digit first, at most 256.
    pub fn new(text: &str) -> Result<Self, Error> {
        let mut chars = text.chars();
        let good = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
            && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            && text.len() <= 256;
        if good { Ok(Self(text.into())) } else { Err(limits::invalid_value("run_id", text, None)) }
    }

    /// A new id for a run without a job, from 128 random bits.
    pub fn generate(random: u128) -> Self {
        Self(format!("{random:032x}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&JobName> for RunId {
    fn from(job: &JobName) -> Self {
        Self(job.as_str().into())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a run is in its life. Any order is allowed, as MLflow allows it; a job's run follows the
/// job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RunStatus {
    /// At work.
    Running,
    /// Not yet at work.
    Scheduled,
    /// Ended well.
    Finished,
    /// Ended badly.
    Failed,
    /// Ended by someone.
    Killed,
}

impl RunStatus {
    /// All of them, in the order of their numbers on the wire.
    pub const ALL: [Self; 5] =
        [Self::Running, Self::Scheduled, Self::Finished, Self::Failed, Self::Killed];

    /// The wire's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Scheduled => "SCHEDULED",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    /// Reads the wire's name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the run has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }
}

/// Whether a run or experiment is in use or in the bin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LifecycleStage {
    /// In use.
    Active,
    /// Deleted, and can be restored.
    Deleted,
}

impl LifecycleStage {
    /// The wire's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deleted => "deleted",
        }
    }
}

/// Which lifecycle stages a search shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ViewType {
    /// What is in use.
    #[default]
    ActiveOnly,
    /// What is in the bin.
    DeletedOnly,
    /// Both.
    All,
}

impl ViewType {
    /// Reads the wire's name or number.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ACTIVE_ONLY" | "1" => Some(Self::ActiveOnly),
            "DELETED_ONLY" | "2" => Some(Self::DeletedOnly),
            "ALL" | "3" => Some(Self::All),
            _ => None,
        }
    }
}

/// A parameter: set once, never changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Param {
    /// At most 250 characters.
    pub key: String,
    /// At most 6,000 characters; longer ones are cut.
    pub value: String,
}

/// A tag: free text that can be changed and deleted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    /// At most 250 characters.
    pub key: String,
    /// At most 8,000 characters on a run (longer ones are cut), 20,000 on an experiment.
    pub value: String,
}

/// The tag that carries a run's name; stored as the name itself.
pub const RUN_NAME_TAG: &str = "mlflow.runName";
/// The tag that carries a dataset's role, for example `training`.
pub const DATASET_CONTEXT_TAG: &str = "mlflow.data.context";

/// A dataset as MLflow describes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Dataset {
    /// At most 500 characters.
    pub name: String,
    /// At most 36 characters.
    pub digest: String,
    /// For example `local`, `http` or `code`.
    pub source_type: String,
    /// Where it comes from, as JSON text.
    pub source: String,
    /// Its columns, as JSON text.
    pub schema: Option<String>,
    /// Row counts and the like, as JSON text.
    pub profile: Option<String>,
}

/// A dataset that a run read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DatasetInput {
    /// Which.
    pub dataset: Dataset,
    /// Its role in this run, under [`DATASET_CONTEXT_TAG`], and others.
    pub tags: Vec<Tag>,
}

/// A dataset that runs of an experiment read, in short.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DatasetSummary {
    /// The experiment.
    pub experiment: ExperimentId,
    /// The dataset's name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// Its role, as [`DATASET_CONTEXT_TAG`] says.
    pub context: Option<String>,
}

/// An experiment: a name that groups runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Experiment {
    /// Its id.
    pub id: ExperimentId,
    /// Its name, unique among all, deleted ones included.
    pub name: ExperimentName,
    /// Who made it.
    pub owner: Principal,
    /// In use or in the bin.
    pub stage: LifecycleStage,
    /// When it was made.
    pub created: Timestamp,
    /// When its name or stage last changed.
    pub updated: Timestamp,
    /// Its tags, by key.
    pub tags: Vec<Tag>,
}

/// What a run is, without what was logged to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunInfo {
    /// Its id.
    pub id: RunId,
    /// Its experiment.
    pub experiment: ExperimentId,
    /// Its name for people.
    pub name: Option<String>,
    /// Who made it.
    pub owner: Principal,
    /// The job it is the run of, or the job from within which it was made.
    pub job: Option<JobName>,
    /// Where it is in its life.
    pub status: RunStatus,
    /// When it started. Text from the client: any number.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// In use or in the bin.
    pub stage: LifecycleStage,
}

impl RunInfo {
    /// Whether this is the job's own run, whose status follows the job.
    pub fn is_of_job(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.as_str() == self.id.as_str())
    }

    /// Where MLflow's client puts and finds the run's artifacts: an address of the daemon's
    /// artifact proxy.
    pub fn artifact_uri(&self) -> String {
        format!("mlflow-artifacts:/{}/{}/artifacts", self.experiment, self.id)
    }

    /// The folder of the run's artifacts in the artifact store.
    pub fn artifact_root(id: &RunId) -> String {
        format!("ExperimentRun/dcid.{id}")
    }
}

/// A run with what was logged to it: each parameter and tag, and of each metric the latest point.
#[derive(Clone, PartialEq, Debug)]
pub struct Run {
    /// What it is.
    pub info: RunInfo,
    /// Its parameters, by key.
    pub params: Vec<Param>,
    /// Its tags, by key.
    pub tags: Vec<Tag>,
    /// The latest point of each metric, by key.
    pub metrics: Vec<StoredMetric>,
    /// The datasets it read.
    pub inputs: Vec<DatasetInput>,
    /// The logged models it read.
    pub model_inputs: Vec<LoggedModelId>,
    /// The logged models it made, in the order in which it said so.
    pub outputs: Vec<ModelOutput>,
}
