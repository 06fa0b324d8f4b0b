//! Things as MLflow's JSON. Empty lists and values that are not there are left out, as MLflow does.

use atelier_core::track::{
    DatasetInput, DatasetSummary, Experiment, LoggedModel, LoggedModelInfo, ModelMetric,
    ModelOutput, Param, Run, RunId, RunInfo, StoredMetric, Tag,
};
use serde_json::{Map, Value, json};

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
    let value = if point.is_nan { json!("NaN") } else { json!(point.value) };
    json!({
        "key": point.key,
        "value": value,
        "timestamp": point.timestamp,
        "step": point.step,
    })
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

pub(super) fn run_info(info: &RunInfo) -> Value {
    let mut object = Map::new();
    put(&mut object, "run_uuid", info.id.as_str());
    put(&mut object, "experiment_id", info.experiment.to_string());
    if let Some(name) = &info.name {
        put(&mut object, "run_name", name.as_str());
    }
    put(&mut object, "user_id", info.owner.as_str());
    put(&mut object, "status", info.status.as_str());
    put(&mut object, "start_time", info.started.as_millis());
    if let Some(ended) = info.ended {
        put(&mut object, "end_time", ended.as_millis());
    }
    put(&mut object, "artifact_uri", info.artifact_uri());
    put(&mut object, "lifecycle_stage", info.stage.as_str());
    put(&mut object, "run_id", info.id.as_str());
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

pub(super) fn run(run: &Run) -> Value {
    let mut data = Map::new();
    put_list(&mut data, "metrics", run.metrics.iter().map(metric).collect());
    let param = |param: &Param| pair(&param.key, &param.value);
    put_list(&mut data, "params", run.params.iter().map(param).collect());
    put_list(&mut data, "tags", run.tags.iter().map(tag).collect());
    let mut inputs = Map::new();
    put_list(&mut inputs, "dataset_inputs", run.inputs.iter().map(dataset_input).collect());
    let read = run.model_inputs.iter().map(|model| json!({ "model_id": model.as_str() }));
    put_list(&mut inputs, "model_inputs", read.collect());
    let mut outputs = Map::new();
    let made = |made: &ModelOutput| json!({ "model_id": made.model.as_str(), "step": made.step });
    put_list(&mut outputs, "model_outputs", run.outputs.iter().map(made).collect());
    json!({ "info": run_info(&run.info), "data": data, "inputs": inputs, "outputs": outputs })
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
