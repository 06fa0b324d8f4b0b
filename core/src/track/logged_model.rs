//! Logged models: a model with its files, made by a run or outside of any, and what was measured of it.

use std::fmt;
use std::sync::Arc;

use super::{Error, ExperimentId, LifecycleStage, Metric, Param, RunId, StoredMetric, Tag, limits};
use crate::id::{JobName, Principal};
use crate::layout;
use crate::time::Timestamp;

/// A logged model's id: `m-` and 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LoggedModelId(Arc<str>);

impl LoggedModelId {
    /// Checks the rule. A text that is no id is no model's id either.
    pub fn new(text: &str) -> Result<Self, Error> {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let digits = text.strip_prefix("m-").filter(|digits| digits.len() == 32);
        match digits {
            Some(digits) if digits.bytes().all(hex) => Ok(Self(text.into())),
            _ => Err(Error::NoModel(limits::excerpt(text))),
        }
    }

    /// A new id, from 128 random bits.
    pub fn generate(random: u128) -> Self {
        Self(format!("m-{random:032x}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LoggedModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How far the upload of a logged model has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LoggedModelStatus {
    /// Its files are being uploaded.
    Pending,
    /// All of it is there.
    Ready,
    /// The upload failed.
    Failed,
}

impl LoggedModelStatus {
    /// All of them, in the order of their numbers on the wire, from 1.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Ready, Self::Failed];

    /// The name in filters and in the client.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Ready => "READY",
            Self::Failed => "FAILED",
        }
    }

    /// The wire's name.
    pub const fn wire(self) -> &'static str {
        match self {
            Self::Pending => "LOGGED_MODEL_PENDING",
            Self::Ready => "LOGGED_MODEL_READY",
            Self::Failed => "LOGGED_MODEL_UPLOAD_FAILED",
        }
    }

    /// Reads [`LoggedModelStatus::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Reads the wire's name or number.
    pub fn parse_wire(text: &str) -> Option<Self> {
        let number = || Self::ALL.get(text.parse::<usize>().ok()?.checked_sub(1)?).copied();
        Self::ALL.into_iter().find(|status| status.wire() == text).or_else(number)
    }
}

/// What a logged model is, without what was logged to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoggedModelInfo {
    /// Its id.
    pub id: LoggedModelId,
    /// Its experiment.
    pub experiment: ExperimentId,
    /// Its name; several models may have the same.
    pub name: String,
    /// Who made it.
    pub owner: Principal,
    /// The job from within which it was made.
    pub job: Option<JobName>,
    /// The run that made it.
    pub source_run: Option<RunId>,
    /// What the client calls its kind; may be empty.
    pub model_type: String,
    /// How far it has come.
    pub status: LoggedModelStatus,
    /// When it was made.
    pub created: Timestamp,
    /// When its status or stage last changed.
    pub updated: Timestamp,
    /// In use or deleted.
    pub stage: LifecycleStage,
}

impl LoggedModelInfo {
    /// Where MLflow's client puts and finds the model's files: an address of the daemon's artifact proxy.
    pub fn artifact_uri(&self) -> String {
        format!("mlflow-artifacts:/{}/models/{}/artifacts", self.experiment, self.id)
    }

    /// The folder of the model's files in the artifact store.
    pub fn artifact_root(id: &LoggedModelId) -> String {
        layout::model_root(id.as_str())
    }
}

/// By which data a point was measured.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct MeasuredOn {
    /// The dataset's name, at most 500 characters.
    pub name: Option<String>,
    /// The dataset's digest, at most 36 characters.
    pub digest: Option<String>,
}

/// A point that a run measured of a logged model.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelPoint {
    /// Of which model.
    pub model: LoggedModelId,
    /// The point.
    pub metric: Metric,
    /// On which data.
    pub on: MeasuredOn,
}

/// The same as it is kept with the model.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelMetric {
    /// The point.
    pub point: StoredMetric,
    /// Which run measured it.
    pub run: RunId,
    /// On which data.
    pub on: MeasuredOn,
}

/// A logged model that a run made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelOutput {
    /// Which.
    pub model: LoggedModelId,
    /// At which step.
    pub step: i64,
}

/// A logged model with what was logged to it.
#[derive(Clone, PartialEq, Debug)]
pub struct LoggedModel {
    /// What it is.
    pub info: LoggedModelInfo,
    /// Its tags, by key.
    pub tags: Vec<Tag>,
    /// Its parameters, by key.
    pub params: Vec<Param>,
    /// What was measured of it, by metric and time.
    pub metrics: Vec<ModelMetric>,
}
