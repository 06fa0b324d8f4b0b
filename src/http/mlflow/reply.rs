//! Things as MLflow's JSON. Empty lists and values that are not there are left out, as MLflow does.

use atelier_core::time::Timestamp;
use atelier_core::track::{
    DatasetInput, DatasetSummary, Experiment, LoggedModel, LoggedModelId, LoggedModelInfo,
    ModelMetric, ModelOutput, Param, Run, RunId, RunInfo, StoredMetric, Tag,
};
use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::store::tracking::Page;

/// What is told of many runs at once is written as it is: a tree of values would cost more than to find them.
#[derive(Serialize)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Pair<'a> {
    fn of_tags(tags: &'a [Tag]) -> Vec<Self> {
        tags.iter().map(|Tag { key, value }| Self { key, value }).collect()
    }

    fn of_params(params: &'a [Param]) -> Vec<Self> {
        params.iter().map(|Param { key, value }| Self { key, value }).collect()
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Measured {
    Number(f64),
    NotOne(&'static str),
}

#[derive(Serialize)]
struct MetricReply<'a> {
    key: &'a str,
    value: Measured,
    timestamp: i64,
    step: i64,
}

impl<'a> From<&'a StoredMetric> for MetricReply<'a> {
    fn from(point: &'a StoredMetric) -> Self {
        let StoredMetric { key, step, timestamp, value, is_nan } = point;
        let value = if *is_nan { Measured::NotOne("NaN") } else { Measured::Number(*value) };
        Self { key, value, timestamp: *timestamp, step: *step }
    }
}

#[derive(Serialize)]
struct InfoReply<'a> {
    run_uuid: &'a str,
    experiment_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_name: Option<&'a str>,
    user_id: &'a str,
    status: &'a str,
    start_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<i64>,
    artifact_uri: String,
    lifecycle_stage: &'a str,
    run_id: &'a str,
}

impl<'a> From<&'a RunInfo> for InfoReply<'a> {
    fn from(info: &'a RunInfo) -> Self {
        Self {
            run_uuid: info.id.as_str(),
            experiment_id: info.experiment.to_string(),
            run_name: info.name.as_deref(),
            user_id: info.owner.as_str(),
            status: info.status.as_str(),
            start_time: info.started.as_millis(),
            end_time: info.ended.map(Timestamp::as_millis),
            artifact_uri: info.artifact_uri(),
            lifecycle_stage: info.stage.as_str(),
            run_id: info.id.as_str(),
        }
    }
}

#[derive(Serialize)]
struct DataReply<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<MetricReply<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    params: Vec<Pair<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Pair<'a>>,
}

#[derive(Serialize)]
struct ModelReply<'a> {
    model_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<i64>,
}

#[derive(Serialize)]
struct InputsReply<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dataset_inputs: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_inputs: Vec<ModelReply<'a>>,
}

#[derive(Serialize)]
struct OutputsReply<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    model_outputs: Vec<ModelReply<'a>>,
}

#[derive(Serialize)]
struct RunReply<'a> {
    info: InfoReply<'a>,
    data: DataReply<'a>,
    inputs: InputsReply<'a>,
    outputs: OutputsReply<'a>,
}

impl<'a> From<&'a Run> for RunReply<'a> {
    fn from(run: &'a Run) -> Self {
        let read = |model: &'a LoggedModelId| ModelReply { model_id: model.as_str(), step: None };
        let made = |made: &'a ModelOutput| ModelReply {
            model_id: made.model.as_str(),
            step: Some(made.step),
        };
        Self {
            info: InfoReply::from(&run.info),
            data: DataReply {
                metrics: run.metrics.iter().map(MetricReply::from).collect(),
                params: Pair::of_params(&run.params),
                tags: Pair::of_tags(&run.tags),
            },
            inputs: InputsReply {
                dataset_inputs: run.inputs.iter().map(dataset_input).collect(),
                model_inputs: run.model_inputs.iter().map(read).collect(),
            },
            outputs: OutputsReply { model_outputs: run.outputs.iter().map(made).collect() },
        }
    }
}

#[derive(Serialize)]
struct RunsReply<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<RunReply<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

/// A page of runs.
pub(super) fn runs(page: &Page<Run>) -> Response {
    let runs = page.items.iter().map(RunReply::from).collect();
    let next_page_token = page.next.as_ref().map(ToString::to_string);
    Json(RunsReply { runs, next_page_token }).into_response()
}

pub(super) fn put(object: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    object.insert(name.to_owned(), value.into());
}

pub(super) fn put_list(object: &mut Map<String, Value>, name: &str, list: Vec<Value>) {
    if !list.is_empty() {
        put(object, name, list);
    }
}

fn pair(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": value })
}

pub(super) fn tag(tag: &Tag) -> Value {
    pair(&tag.key, &tag.value)
}

pub(super) fn metric(point: &StoredMetric) -> Value {
    json!(MetricReply::from(point))
}

pub(super) fn experiment(experiment: &Experiment) -> Value {
    let mut object = Map::new();
    put(&mut object, "experiment_id", experiment.id.to_string());
    put(&mut object, "name", experiment.name.as_str());
    put(&mut object, "artifact_location", format!("mlflow-artifacts:/{}", experiment.id));
    put(&mut object, "lifecycle_stage", experiment.stage.as_str());
    put(&mut object, "last_update_time", experiment.updated.as_millis());
    put(&mut object, "creation_time", experiment.created.as_millis());
    put_list(&mut object, "tags", experiment.tags.iter().map(tag).collect());
    object.into()
}

fn dataset_input(input: &DatasetInput) -> Value {
    let dataset = &input.dataset;
    let mut object = Map::new();
    put(&mut object, "name", dataset.name.as_str());
    put(&mut object, "digest", dataset.digest.as_str());
    put(&mut object, "source_type", dataset.source_type.as_str());
    put(&mut object, "source", dataset.source.as_str());
    for (name, text) in [("schema", &dataset.schema), ("profile", &dataset.profile)] {
        if let Some(text) = text {
            put(&mut object, name, text.as_str());
        }
    }
    let mut whole = Map::new();
    put_list(&mut whole, "tags", input.tags.iter().map(tag).collect());
    put(&mut whole, "dataset", object);
    whole.into()
}

pub(super) fn dataset_summary(summary: &DatasetSummary) -> Value {
    let mut object = Map::new();
    put(&mut object, "experiment_id", summary.experiment.to_string());
    put(&mut object, "name", summary.name.as_str());
    put(&mut object, "digest", summary.digest.as_str());
    if let Some(context) = &summary.context {
        put(&mut object, "context", context.as_str());
    }
    object.into()
}

pub(super) fn run_info(info: &RunInfo) -> Value {
    json!(InfoReply::from(info))
}

pub(super) fn run(run: &Run) -> Value {
    json!(RunReply::from(run))
}

/// As it is told when it is made: of what it will make, nothing is said.
pub(super) fn new_run(run: &Run) -> Value {
    let mut told = self::run(run);
    if let Some(object) = told.as_object_mut() {
        object.remove("outputs");
    }
    told
}

fn model_metric(model: &LoggedModelInfo, metric: &ModelMetric) -> Value {
    let mut value = self::metric(&metric.point);
    if let Some(object) = value.as_object_mut() {
        for (name, text) in
            [("dataset_name", &metric.on.name), ("dataset_digest", &metric.on.digest)]
        {
            if let Some(text) = text {
                put(object, name, text.as_str());
            }
        }
        put(object, "model_id", model.id.as_str());
        put(object, "run_id", metric.run.as_str());
    }
    value
}

pub(super) fn logged_model(model: &LoggedModel) -> Value {
    let info = &model.info;
    let mut object = Map::new();
    put(&mut object, "model_id", info.id.as_str());
    put(&mut object, "experiment_id", info.experiment.to_string());
    put(&mut object, "name", info.name.as_str());
    put(&mut object, "creation_timestamp_ms", info.created.as_millis());
    put(&mut object, "last_updated_timestamp_ms", info.updated.as_millis());
    put(&mut object, "artifact_uri", info.artifact_uri());
    put(&mut object, "status", info.status.wire());
    put(&mut object, "model_type", info.model_type.as_str());
    // Empty, not left out, where MLflow's are.
    let run = info.source_run.as_ref().map_or("", RunId::as_str);
    put(&mut object, "source_run_id", run);
    put_list(&mut object, "tags", model.tags.iter().map(tag).collect());
    let mut data = Map::new();
    let param = |param: &Param| pair(&param.key, &param.value);
    put_list(&mut data, "params", model.params.iter().map(param).collect());
    let metrics = model.metrics.iter().map(|metric| model_metric(info, metric));
    put_list(&mut data, "metrics", metrics.collect());
    json!({ "info": object, "data": data })
}

/// A list with the token of the next page, if there is one.
pub(super) fn page(name: &str, list: Vec<Value>, next: Option<impl ToString>) -> Value {
    let mut object = Map::new();
    put_list(&mut object, name, list);
    if let Some(next) = next {
        put(&mut object, "next_page_token", next.to_string());
    }
    object.into()
}
