//! `/graphql`, as MLflow's web page asks it.
//!
//! The page sends four documents, which are part of it and never change: no aliases, no fragments, all of an answer's
//! fields. So the operation's name says what to answer, always in full, and no GraphQL library reads the text. What has
//! another name is refused as GraphQL refuses.
//!
//! 64-bit integers are text here; values that are not there are empty or 0, as in MLflow's answers; NaN is null.

use atelier_core::track::{DatasetInput, Experiment, ExperimentId, Param, Run, StoredMetric, Tag};
use axum::Json;
use serde_json::{Map, Value, json};

use super::Answer;
use super::call::Call;
use super::failure::Failure;
use super::{experiments, metrics, registry, runs};
use crate::store::assets::models::ModelVersion;

/// One of the documents.
#[derive(Clone, Copy)]
enum Operation {
    GetRun,
    SearchRuns,
    GetMetricHistoryBulkInterval,
    GetExperiment,
}

impl Operation {
    const ALL: [Self; 4] =
        [Self::GetRun, Self::SearchRuns, Self::GetMetricHistoryBulkInterval, Self::GetExperiment];

    /// The name of the document.
    const fn name(self) -> &'static str {
        match self {
            Self::GetRun => "GetRun",
            Self::SearchRuns => "SearchRuns",
            Self::GetMetricHistoryBulkInterval => "GetMetricHistoryBulkInterval",
            Self::GetExperiment => "MlflowGetExperimentQuery",
        }
    }

    /// The one field that it asks for.
    const fn field(self) -> &'static str {
        match self {
            Self::GetRun => "mlflowGetRun",
            Self::SearchRuns => "mlflowSearchRuns",
            Self::GetMetricHistoryBulkInterval => "mlflowGetMetricHistoryBulkInterval",
            Self::GetExperiment => "mlflowGetExperiment",
        }
    }

    /// The variable that has what it is asked with.
    const fn variable(self) -> &'static str {
        match self {
            Self::GetExperiment => "input",
            _ => "data",
        }
    }

    /// The type of its answer, and the field of that which has what was found.
    const fn answer(self) -> (&'static str, &'static str) {
        match self {
            Self::GetRun => ("MlflowGetRunResponse", "run"),
            Self::SearchRuns => ("MlflowSearchRunsResponse", "runs"),
            Self::GetMetricHistoryBulkInterval => {
                ("MlflowGetMetricHistoryBulkIntervalResponse", "metrics")
            }
            Self::GetExperiment => ("MlflowGetExperimentResponse", "experiment"),
        }
    }

    async fn find(self, call: &Call) -> Result<Value, Failure> {
        Ok(match self {
            Self::GetRun => {
                let found = runs::one(call).await?;
                let experiment = experiments::one(call, found.info.experiment).await?;
                let versions = registry::of_runs(call, vec![found.info.id.clone()]).await?;
                run(&found, &experiment, &versions)
            }
            Self::SearchRuns => {
                let page = runs::found(call).await?;
                let mut experiments: Vec<Experiment> = Vec::new();
                let mut list = Vec::new();
                let ids = page.items.iter().map(|found| found.info.id.clone()).collect();
                let versions = registry::of_runs(call, ids).await?;
                for found in &page.items {
                    let id = found.info.experiment;
                    let known = experiments.iter().position(|known| known.id == id);
                    let place = match known {
                        Some(place) => place,
                        None => {
                            experiments.push(experiments::one(call, id).await?);
                            experiments.len() - 1
                        }
                    };
                    list.extend(
                        experiments.get(place).map(|experiment| run(found, experiment, &versions)),
                    );
                }
                list.into()
            }
            Self::GetMetricHistoryBulkInterval => {
                let points = metrics::interval(call).await?;
                let point = |(run, point): &(_, StoredMetric)| {
                    let mut value = metric("MlflowMetricWithRunId", point);
                    put(&mut value, "runId", json!(atelier_core::track::RunId::as_str(run)));
                    value
                };
                points.iter().map(point).collect()
            }
            Self::GetExperiment => {
                let id = ExperimentId::parse(call.fields.required_text("experiment_id")?)?;
                experiment(&experiments::one(call, id).await?)
            }
        })
    }
}

/// A document that is not one of the page's.
fn refused(message: &str) -> Answer {
    Ok(Json(json!({ "data": null, "errors": [{ "message": message }] })))
}

pub(super) async fn execute(call: Call) -> Answer {
    let name = call.fields.text("operationName")?.unwrap_or_default();
    let query = call.fields.text("query")?.unwrap_or_default();
    let known = Operation::ALL.into_iter().find(|one| one.name() == name);
    let Some(operation) = known.filter(|one| query.contains(one.field())) else {
        let names = Operation::ALL.map(Operation::name).join(", ");
        return refused(&format!(
            "Atelier answers the queries of MLflow's web page alone: {names}. Use MLflow's REST API"
        ));
    };
    let variables = call.fields.object("variables")?;
    let fields = variables.object(operation.variable())?.in_snake_case();
    let call = Call { fields, ..call };
    let (kind, field) = operation.answer();
    // The page shows what an `apiError` says.
    let answer = match operation.find(&call).await {
        Ok(found) => object(kind, [(field, found), ("apiError", Value::Null)]),
        Err(failure) => {
            let (code, message) = failure.told()?;
            let error = object(
                "ApiError",
                [("code", json!(code)), ("message", json!(message)), ("helpUrl", Value::Null)],
            );
            object(kind, [(field, Value::Null), ("apiError", error)])
        }
    };
    let mut data = Map::new();
    data.insert(operation.field().to_owned(), answer);
    Ok(Json(json!({ "data": data, "errors": null })))
}

/// An object of a type; the page's cache asks for the type's name.
fn object<'a>(kind: &str, fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let mut object = Map::new();
    object.insert("__typename".to_owned(), kind.into());
    object.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    object.into()
}

fn put(value: &mut Value, name: &str, field: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(name.to_owned(), field);
    }
}

fn pair(kind: &str, key: &str, value: &str) -> Value {
    object(kind, [("key", json!(key)), ("value", json!(value))])
}

fn tags(kind: &str, tags: &[Tag]) -> Value {
    tags.iter().map(|tag| pair(kind, &tag.key, &tag.value)).collect()
}

fn metric(kind: &str, point: &StoredMetric) -> Value {
    let value = if point.is_nan { Value::Null } else { json!(point.value) };
    object(
        kind,
        [
            ("key", json!(point.key)),
            ("value", value),
            ("step", json!(point.step.to_string())),
            ("timestamp", json!(point.timestamp.to_string())),
        ],
    )
}

fn experiment(experiment: &Experiment) -> Value {
    object(
        "MlflowExperiment",
        [
            ("experimentId", json!(experiment.id.to_string())),
            ("name", json!(experiment.name.as_str())),
            ("artifactLocation", json!(format!("mlflow-artifacts:/{}", experiment.id))),
            ("lifecycleStage", json!(experiment.stage.as_str())),
            ("creationTime", json!(experiment.created.as_millis().to_string())),
            ("lastUpdateTime", json!(experiment.updated.as_millis().to_string())),
            ("effectiveTraceArchivalRetention", json!("")),
            ("tags", tags("MlflowExperimentTag", &experiment.tags)),
        ],
    )
}

fn dataset_input(input: &DatasetInput) -> Value {
    let dataset = &input.dataset;
    let dataset = object(
        "MlflowDataset",
        [
            ("name", json!(dataset.name)),
            ("digest", json!(dataset.digest)),
            ("sourceType", json!(dataset.source_type)),
            ("source", json!(dataset.source)),
            ("schema", json!(dataset.schema.as_deref().unwrap_or_default())),
            ("profile", json!(dataset.profile.as_deref().unwrap_or_default())),
        ],
    );
    object(
        "MlflowDatasetInput",
        [("dataset", dataset), ("tags", tags("MlflowInputTag", &input.tags))],
    )
}

fn version(found: &ModelVersion) -> Value {
    let own = &found.version;
    object(
        "MlflowModelVersion",
        [
            ("name", json!(own.name.as_str())),
            ("version", json!(own.version.as_str())),
            ("status", json!("READY")),
            ("source", json!(found.source)),
        ],
    )
}

/// A run; its versions are those of `versions` that say so.
fn run(run: &Run, of: &Experiment, versions: &[ModelVersion]) -> Value {
    let info = &run.info;
    let ended = info.ended.map_or(0, |ended| ended.as_millis());
    let shown = object(
        "MlflowRunInfo",
        [
            ("runName", json!(info.name.as_deref().unwrap_or_default())),
            ("status", json!(info.status.as_str())),
            ("runUuid", json!(info.id.as_str())),
            ("runId", json!(info.id.as_str())),
            ("experimentId", json!(info.experiment.to_string())),
            ("artifactUri", json!(info.artifact_uri())),
            ("startTime", json!(info.started.as_millis().to_string())),
            ("endTime", json!(ended.to_string())),
            ("lifecycleStage", json!(info.stage.as_str())),
            ("userId", json!(info.owner.as_str())),
        ],
    );
    let params = run.params.iter().map(|Param { key, value }| pair("MlflowParam", key, value));
    let points = run.metrics.iter().map(|point| metric("MlflowMetricExtension", point));
    let data = object(
        "MlflowRunData",
        [
            ("metrics", points.collect()),
            ("params", params.collect()),
            ("tags", tags("MlflowRunTag", &run.tags)),
        ],
    );
    let read = |id: &str| object("MlflowModelInput", [("modelId", json!(id))]);
    let inputs = object(
        "MlflowRunInputs",
        [
            ("datasetInputs", run.inputs.iter().map(dataset_input).collect()),
            ("modelInputs", run.model_inputs.iter().map(|id| read(id.as_str())).collect()),
        ],
    );
    let made = run.outputs.iter().map(|made| {
        let (id, step) = (made.model.as_str(), made.step.to_string());
        object("MlflowModelOutput", [("modelId", json!(id)), ("step", json!(step))])
    });
    let outputs = object("MlflowRunOutputs", [("modelOutputs", made.collect())]);
    let made_here = versions.iter().filter(|version| version.run.as_ref() == Some(&info.id));
    object(
        "MlflowRunExtension",
        [
            ("info", shown),
            ("experiment", experiment(of)),
            ("modelVersions", made_here.map(version).collect()),
            ("data", data),
            ("inputs", inputs),
            ("outputs", outputs),
        ],
    )
}
