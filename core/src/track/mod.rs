//! The tracking view of a job: experiments, runs, parameters, tags and metrics, with MLflow's
//! rules for each, and the language in which runs are searched.
//!
//! The rules and the texts of the refusals follow MLflow's REST API 2.0 as its client 3.x sees it
//! (<https://mlflow.org/docs/latest/api_reference/rest-api.html>), so that code written for MLflow
//! meets the behaviour it was written for.

mod artifact;
mod error;
pub mod limits;
mod logged_model;
mod metric;
mod page;
pub mod registry;
mod run;
pub mod search;
pub mod wire;

pub use artifact::ArtifactPath;
pub use error::{Code, Error};
pub use logged_model::{
    LoggedModel, LoggedModelId, LoggedModelInfo, LoggedModelStatus, MeasuredOn, ModelMetric,
    ModelOutput, ModelPoint,
};
pub use metric::{Block, Metric, Point, StoredMetric, drawn, sampled};
pub use page::{Cell, PageToken, fingerprint};
pub use run::{
    DATASET_CONTEXT_TAG, Dataset, DatasetInput, DatasetSummary, Experiment, ExperimentId,
    LifecycleStage, Param, RUN_NAME_TAG, Run, RunId, RunInfo, RunStatus, Tag, ViewType,
};

#[cfg(test)]
mod tests;
