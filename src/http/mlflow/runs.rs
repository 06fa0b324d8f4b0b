//! `mlflow/runs/…` and `mlflow/metrics/…`

use atelier_core::id::JobName;
use atelier_core::time::Timestamp;
use atelier_core::track::search::{run_filter, run_order};
pub(super) use atelier_core::track::wire::measured_on;
use atelier_core::track::wire::{Logged, Point, param_of};
use atelier_core::track::{
    Dataset, DatasetInput, Error as Refusal, ExperimentId, LoggedModelId, ModelOutput, PageToken,
    RUN_NAME_TAG, Run, RunId, RunStatus, Tag, ViewType, fingerprint, limits,
};
use axum::Json;
use axum::response::Response;
use serde_json::{Value, json};

use super::call::{Call, Fields};
use super::experiments::tag_of;
use super::failure::Failure;
use super::{Answer, reply};
use crate::store::tracking::{self, NewRun, Page, RunChange, RunQuery, TrackReply, TrackWrite};

/// Points of a history in one answer when the client sets no bound; then there is a page token.
const HISTORY: usize = 250_000;

/// A run's name is a tag, too, and as long as a tag may be.
fn run_name(name: &str) -> Result<String, Refusal> {
    let mut tag = Tag { key: RUN_NAME_TAG.to_owned(), value: name.to_owned() };
    limits::tag(&mut tag, "run_name")?;
    Ok(tag.value)
}

pub(super) async fn create(call: Call) -> Answer {
    let fields = &call.fields;
    let experiment = ExperimentId::parse(fields.text("experiment_id")?.unwrap_or_default())?;
    let mut tags = fields.objects("tags")?.iter().map(tag_of).collect::<Result<Vec<_>, _>>()?;
    for (i, tag) in tags.iter_mut().enumerate() {
        limits::tag(tag, &format!("tags[{i}]"))?;
    }
    let named = fields.text("run_name")?.filter(|name| !name.is_empty());
    let tagged = tags.iter().find(|tag| tag.key == RUN_NAME_TAG).map(|tag| tag.value.as_str());
    let name = match (named, tagged) {
        (Some(name), Some(tag)) if name != tag => {
            return Err(Refusal::Invalid(format!(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with \
                 different values (run_name='{}', mlflow.runName='{}').",
                limits::excerpt(name),
                limits::excerpt(tag)
            ))
            .into());
        }
        (Some(name), _) | (None, Some(name)) => name.to_owned(),
        (None, None) => JobName::generate(random()?).to_string(),
    };
    let name = run_name(&name)?;
    tags.retain(|tag| tag.key != RUN_NAME_TAG);
    let started = fields.integer("start_time")?.map(Timestamp::from_millis);
    let id = RunId::generate((u128::from(random()?) << 64) | u128::from(random()?));
    let run = NewRun {
        id: id.clone(),
        experiment,
        name,
        started: started.unwrap_or_else(|| call.state.tracking.now()),
        tags,
    };
    call.write(TrackWrite::CreateRun { by: call.caller.clone(), run }).await?;
    let run = call.read(move |conn| tracking::run(conn, &id)).await?;
    Ok(Json(json!({ "run": reply::new_run(&run) })))
}

pub(super) fn random() -> Result<u64, Failure> {
    getrandom::u64()
        .map_err(|error| Failure::unavailable(format!("no random bits for a new id: {error}")))
}

/// The run that the call is about.
pub(super) async fn one(call: &Call) -> Result<Run, Failure> {
    let (id, reader) = (call.run_id()?, call.reader()?);
    call.read(move |conn| {
        let run = tracking::run(conn, &id)?;
        reader.check(conn, run.info.experiment)?;
        Ok(run)
    })
    .await
}

pub(super) async fn get(call: Call) -> Answer {
    Ok(Json(json!({ "run": reply::run(&one(&call).await?) })))
}

async fn change(call: &Call, change: RunChange) -> Result<TrackReply, Failure> {
    let (by, id) = (call.caller.clone(), call.run_id()?);
    call.write(TrackWrite::ChangeRun { by, id, change }).await
}

async fn log(call: &Call, logged: Logged) -> Answer {
    let Logged { run: id, points, params, tags } = logged;
    let of_models = points.iter().filter_map(Point::of_model).collect();
    let metrics = points.into_iter().map(|point| point.metric).collect();
    let change = RunChange::Log { metrics, params, tags, of_models };
    call.write(TrackWrite::ChangeRun { by: call.caller.clone(), id, change }).await?;
    Ok(Json(json!({})))
}

pub(super) async fn update(call: Call) -> Answer {
    let fields = &call.fields;
    let status = fields.one_of("status", |word| {
        RunStatus::parse(word).or_else(|| match word.parse::<usize>() {
            Ok(number) => RunStatus::ALL.get(number.checked_sub(1)?).copied(),
            Err(_) => None,
        })
    })?;
    let ended = fields.integer("end_time")?.map(Timestamp::from_millis);
    let name =
        fields.text("run_name")?.filter(|name| !name.is_empty()).map(run_name).transpose()?;
    let reply = change(&call, RunChange::Update { status, ended, name }).await?;
    if status.is_some_and(RunStatus::is_terminal) {
        call.state.tracking.wake();
    }
    Ok(Json(match reply {
        TrackReply::Run(info) => json!({ "run_info": reply::run_info(&info) }),
        _ => json!({}),
    }))
}

/// Or takes it out again.
async fn move_to_bin(call: &Call, change: RunChange) -> Result<TrackReply, Failure> {
    let (by, id) = (call.caller.clone(), call.run_id()?);
    call.write_told(TrackWrite::ChangeRun { by, id, change }).await
}

pub(super) async fn delete(call: Call) -> Answer {
    move_to_bin(&call, RunChange::Delete(call.state.tracking.now())).await?;
    Ok(Json(json!({})))
}

pub(super) async fn restore(call: Call) -> Answer {
    move_to_bin(&call, RunChange::Restore).await?;
    Ok(Json(json!({})))
}

/// What the calls that log read of a body; for `fuzz`.
pub(super) fn read_any(fields: &Fields) {
    let _ = (Logged::metric(fields), Logged::batch(fields));
    let _ = param_of(fields).map(|mut param| limits::param(&mut param, ""));
    let _ = tag_of(fields).map(|mut tag| limits::tag(&mut tag, ""));
    let each = |name: &str| fields.objects(name).unwrap_or_default();
    let inputs: Vec<_> = each("datasets").iter().flat_map(dataset_of).collect();
    let _ = limits::datasets(&inputs);
    let _ = (fields.integer("start_time"), fields.one_of("status", RunStatus::parse));
}

pub(super) async fn log_metric(call: Call) -> Answer {
    log(&call, Logged::metric(&call.fields)?).await
}

pub(super) async fn log_param(call: Call) -> Answer {
    let run = call.run_id()?;
    let mut param = param_of(&call.fields)?;
    limits::param(&mut param, "")?;
    log(&call, Logged { run, points: vec![], params: vec![param], tags: vec![] }).await
}

pub(super) async fn set_tag(call: Call) -> Answer {
    let run = call.run_id()?;
    let mut tag = tag_of(&call.fields)?;
    limits::tag(&mut tag, "")?;
    log(&call, Logged { run, points: vec![], params: vec![], tags: vec![tag] }).await
}

pub(super) async fn log_batch(call: Call) -> Answer {
    log(&call, Logged::batch(&call.fields)?).await
}

pub(super) async fn delete_tag(call: Call) -> Answer {
    call.run_id()?;
    let key = call.fields.required_text("key")?.to_owned();
    change(&call, RunChange::DeleteTag(key)).await?;
    Ok(Json(json!({})))
}

fn dataset_of(fields: &Fields) -> Result<DatasetInput, Failure> {
    let dataset = fields.object("dataset")?;
    let text = |name: &str| Ok::<_, Failure>(dataset.text(name)?.map(str::to_owned));
    Ok(DatasetInput {
        dataset: Dataset {
            name: dataset.required_text("name")?.to_owned(),
            digest: dataset.required_text("digest")?.to_owned(),
            source_type: text("source_type")?.unwrap_or_default(),
            source: text("source")?.unwrap_or_default(),
            schema: text("schema")?,
            profile: text("profile")?,
        },
        tags: fields.objects("tags")?.iter().map(tag_of).collect::<Result<_, _>>()?,
    })
}

/// The logged models that a run says it read or made.
fn models_of(call: &Call) -> Result<Vec<ModelOutput>, Failure> {
    let models = call.fields.objects("models")?;
    limits::models(models.len())?;
    let one = |fields: &Fields| {
        let model = LoggedModelId::new(fields.required_text("model_id")?)?;
        Ok(ModelOutput { model, step: fields.integer("step")?.unwrap_or(0) })
    };
    models.iter().map(one).collect()
}

pub(super) async fn log_inputs(call: Call) -> Answer {
    call.run_id()?;
    let datasets = call.fields.objects("datasets")?;
    let datasets: Vec<_> = datasets.iter().map(dataset_of).collect::<Result<_, _>>()?;
    limits::datasets(&datasets)?;
    let models = models_of(&call)?.into_iter().map(|input| input.model).collect();
    change(&call, RunChange::Inputs { datasets, models }).await?;
    Ok(Json(json!({})))
}

pub(super) async fn log_outputs(call: Call) -> Answer {
    call.run_id()?;
    if !call.fields.has("models") {
        return Err(call.fields.missing("models").into());
    }
    change(&call, RunChange::Outputs(models_of(&call)?)).await?;
    Ok(Json(json!({})))
}

/// What a client of MLflow 2 tells of a model it has logged, as its server keeps it.
fn recorded(text: &str) -> Result<Value, Refusal> {
    let refused = |why: String| Refusal::Invalid(why);
    let Ok(Value::Object(model)) = serde_json::from_str::<Value>(text) else {
        return Err(refused(format!(
            "Malformed model info. \n {} \n is not a valid JSON.",
            limits::excerpt(text)
        )));
    };
    let needed = ["artifact_path", "flavors", "utc_time_created", "run_id"];
    let missing: Vec<&str> =
        needed.into_iter().filter(|field| !model.contains_key(*field)).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(refused(format!("Model json is missing mandatory fields: {missing}")));
    }
    let mut kept: serde_json::Map<_, _> = model
        .into_iter()
        .filter(|(field, _)| needed.contains(&field.as_str()) || field == "model_uuid")
        .collect();
    // What a flavour is configured with may be long, or a secret.
    if let Some(Value::Object(flavors)) = kept.get_mut("flavors") {
        for flavor in flavors.values_mut().filter_map(Value::as_object_mut) {
            flavor.remove("config");
        }
    }
    Ok(Value::Object(kept))
}

pub(super) async fn log_model(call: Call) -> Answer {
    call.run_id()?;
    let model = recorded(call.fields.required_text("model_json")?)?;
    change(&call, RunChange::RecordModel(model)).await?;
    Ok(Json(json!({})))
}

/// The runs that the call searches.
pub(super) async fn found(call: &Call) -> Result<Page<Run>, Failure> {
    let fields = &call.fields;
    let reader = call.reader()?;
    let ids = fields.texts("experiment_ids")?;
    let experiments: Vec<_> =
        ids.iter().map(|id| ExperimentId::parse(id)).collect::<Result<_, _>>()?;
    let filter = fields.text("filter")?.unwrap_or_default();
    let order = fields.texts("order_by")?;
    let view = fields.one_of("run_view_type", ViewType::parse)?.unwrap_or_default();
    let (ids, view_name) = (ids.join(","), format!("{view:?}"));
    let mut parts = vec!["runs", filter, &view_name, &ids];
    parts.extend(order.iter().map(String::as_str));
    let search = fingerprint(&parts);
    let query = RunQuery {
        experiments,
        filter: run_filter(filter)?,
        order: run_order(&order)?,
        view,
        limit: fields.page_size(limits::SEARCH_PAGE_DEFAULT, limits::SEARCH_PAGE)?,
        after: fields.page_token()?.map(|token| PageToken::parse(token, search)).transpose()?,
        fingerprint: search,
    };
    call.read(move |conn| {
        for experiment in &query.experiments {
            reader.check(conn, *experiment)?;
        }
        tracking::search_runs(conn, &query)
    })
    .await
}

pub(super) async fn search(call: Call) -> Result<Response, Failure> {
    Ok(reply::runs(&found(&call).await?))
}

pub(super) async fn history(call: Call) -> Answer {
    let (id, reader) = (call.run_id()?, call.reader()?);
    let key = call.fields.required_text("metric_key")?;
    let limit = call.fields.page_size(HISTORY, HISTORY)?;
    let run = id.clone();
    call.read(move |conn| {
        let info = tracking::run_info(conn, &run)?;
        reader.check(conn, info.experiment)
    })
    .await?;
    let token = call.fields.page_token()?;
    let history = call.state.tracking.history(&id, key, limit, token).await?;
    let list = history.points.iter().map(reply::metric).collect();
    Ok(Json(reply::page("metrics", list, history.next)))
}
