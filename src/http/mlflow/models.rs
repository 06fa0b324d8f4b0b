//! `mlflow/logged-models/…`

use atelier_core::id::JobName;
use atelier_core::track::search::{ORDERINGS, model_filter, model_order};
use atelier_core::track::{
    Error as Refusal, ExperimentId, LifecycleStage, LoggedModel, LoggedModelId, LoggedModelStatus,
    PageToken, Param, RunId, Tag, fingerprint, limits,
};
use axum::Json;
use axum::extract::Path;
use axum::response::Response;
use serde_json::json;

use super::artifacts::{self, Whose};
use super::call::{Call, Fields};
use super::experiments::tag_of;
use super::failure::Failure;
use super::runs::{measured_on, random};
use super::{Answer, reply};
use crate::store::tracking::{self, ModelChange, ModelQuery, NewModel, TrackWrite};

fn tags_of(fields: &Fields) -> Result<Vec<Tag>, Failure> {
    let tags = fields.objects("tags")?.iter().map(tag_of).collect::<Result<Vec<_>, _>>()?;
    for (i, tag) in tags.iter().enumerate() {
        limits::model_pair(&tag.key, &tag.value, &format!("tags[{i}]"))?;
    }
    Ok(tags)
}

fn params_of(fields: &Fields) -> Result<Vec<Param>, Failure> {
    let params = fields.objects("params")?;
    let params = params.iter().map(tag_of).collect::<Result<Vec<_>, _>>()?;
    for (i, param) in params.iter().enumerate() {
        limits::model_pair(&param.key, &param.value, &format!("params[{i}]"))?;
    }
    Ok(params.into_iter().map(|Tag { key, value }| Param { key, value }).collect())
}

/// What the calls that log read of a body; for `fuzz`.
pub(super) fn read_any(fields: &Fields) {
    let _ = (tags_of(fields), params_of(fields), measured_on(fields));
    let _ = fields.one_of("status", LoggedModelStatus::parse_wire);
    let _ = fields.text("model_id").map(|id| id.map(LoggedModelId::new));
}

/// The model, for whom it may read.
async fn one(call: &Call, id: LoggedModelId, deleted: bool) -> Result<LoggedModel, Failure> {
    let reader = call.reader()?;
    call.read(move |conn| {
        let model = tracking::model(conn, &id)?;
        reader.check(conn, model.info.experiment)?;
        if !deleted && model.info.stage == LifecycleStage::Deleted {
            return Err(Refusal::NoModel(id.to_string()).into());
        }
        Ok(model)
    })
    .await
}

async fn answer(call: &Call, id: LoggedModelId, deleted: bool) -> Answer {
    let model = one(call, id, deleted).await?;
    Ok(Json(json!({ "model": reply::logged_model(&model) })))
}

pub(super) async fn create(call: Call) -> Answer {
    let fields = &call.fields;
    let experiment = ExperimentId::parse(fields.required_text("experiment_id")?)?;
    let name = match fields.text("name")?.filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => JobName::generate(random()?).to_string(),
    };
    limits::model_name(&name)?;
    let model_type = fields.text("model_type")?.unwrap_or_default().to_owned();
    limits::model_type(&model_type)?;
    let source_run = fields.text("source_run_id")?.filter(|id| !id.is_empty());
    let source_run = source_run
        .map(|id| RunId::new(id).map_err(|_| Refusal::NoRun(limits::excerpt(id))))
        .transpose()?;
    let id = LoggedModelId::generate((u128::from(random()?) << 64) | u128::from(random()?));
    let (params, tags) = (params_of(fields)?, tags_of(fields)?);
    let model = NewModel { id: id.clone(), experiment, name, source_run, model_type, params, tags };
    let (by, at) = (call.caller.clone(), call.state.tracking.now());
    call.write(TrackWrite::CreateModel { by, model, at }).await?;
    answer(&call, id, true).await
}

pub(super) async fn get(Path(id): Path<String>, call: Call) -> Answer {
    let deleted = call.fields.truth("allow_deleted")?.unwrap_or(false);
    answer(&call, LoggedModelId::new(&id)?, deleted).await
}

async fn change(call: &Call, id: &str, change: ModelChange) -> Result<LoggedModelId, Failure> {
    let id = LoggedModelId::new(id)?;
    let (by, at) = (call.caller.clone(), call.state.tracking.now());
    let is_told = matches!(change, ModelChange::Delete);
    let write = TrackWrite::ChangeModel { by, id: id.clone(), change, at };
    match is_told {
        true => call.write_told(write).await?,
        false => call.write(write).await?,
    };
    Ok(id)
}

pub(super) async fn finalize(Path(id): Path<String>, call: Call) -> Answer {
    let status = call.fields.one_of("status", LoggedModelStatus::parse_wire)?;
    let status = status.ok_or_else(|| call.fields.missing("status"))?;
    let id = change(&call, &id, ModelChange::Finalize(status)).await?;
    answer(&call, id, true).await
}

pub(super) async fn delete(Path(id): Path<String>, call: Call) -> Answer {
    change(&call, &id, ModelChange::Delete).await?;
    Ok(Json(json!({})))
}

pub(super) async fn set_tags(Path(id): Path<String>, call: Call) -> Answer {
    let tags = tags_of(&call.fields)?;
    change(&call, &id, ModelChange::SetTags(tags)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete_tag(Path((id, key)): Path<(String, String)>, call: Call) -> Answer {
    change(&call, &id, ModelChange::DeleteTag(key)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn log_params(Path(id): Path<String>, call: Call) -> Answer {
    let params = params_of(&call.fields)?;
    change(&call, &id, ModelChange::Params(params)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn search(call: Call) -> Answer {
    let fields = &call.fields;
    let reader = call.reader()?;
    if !fields.has("experiment_ids") {
        return Err(fields.missing("experiment_ids").into());
    }
    let ids = fields.texts("experiment_ids")?;
    let experiments: Vec<_> =
        ids.iter().map(|id| ExperimentId::parse(id)).collect::<Result<_, _>>()?;
    let filter = fields.text("filter")?.unwrap_or_default();
    let datasets = fields.objects("datasets")?;
    let on = datasets.iter().map(measured_on).collect::<Result<Vec<_>, _>>()?;
    if on.iter().any(|on| on.name.is_none()) {
        let why = "`dataset_name` in the `datasets` clause must be specified.";
        return Err(Refusal::Invalid(why.to_owned()).into());
    }
    let orderings = fields.objects("order_by")?;
    if orderings.len() > ORDERINGS || on.len() > ORDERINGS {
        let why = format!("`order_by` and `datasets` take at most {ORDERINGS} items each.");
        return Err(Refusal::Invalid(why).into());
    }
    let one = |fields: &Fields| {
        let ascending = fields.truth("ascending")?.unwrap_or(true);
        Ok(model_order(fields.required_text("field_name")?, ascending, measured_on(fields)?)?)
    };
    let order = orderings.iter().map(one).collect::<Result<Vec<_>, Failure>>()?;
    // Zero is how the wire's clients leave a number out.
    let limit = match fields.integer("max_results")? {
        Some(0) => limits::MODEL_PAGE_DEFAULT,
        _ => fields.page_size(limits::MODEL_PAGE_DEFAULT, limits::SEARCH_PAGE)?,
    };
    let (ids, shown) = (ids.join(","), format!("{on:?} {order:?}"));
    let search = fingerprint(&["logged-models", filter, &ids, &shown]);
    let query = ModelQuery {
        experiments,
        filter: model_filter(filter)?,
        on,
        order,
        limit,
        after: fields.page_token()?.map(|token| PageToken::parse(token, search)).transpose()?,
        fingerprint: search,
    };
    let page = call
        .read(move |conn| {
            for experiment in &query.experiments {
                reader.check(conn, *experiment)?;
            }
            tracking::search_models(conn, &query)
        })
        .await?;
    let list = page.items.iter().map(reply::logged_model).collect();
    Ok(Json(reply::page("models", list, page.next)))
}

/// The model whose files somebody asks for; those of one that is deleted are not shown.
async fn whose(call: &Call, id: &str) -> Result<Whose, Failure> {
    let id = LoggedModelId::new(id)?;
    one(call, id.clone(), false).await?;
    Ok(Whose::Model(id))
}

pub(super) async fn folder(Path(id): Path<String>, call: Call) -> Answer {
    let whose = whose(&call, &id).await?;
    artifacts::list_of(&call, &whose, "artifact_directory_path").await
}

pub(super) async fn file(Path(id): Path<String>, call: Call) -> Result<Response, Failure> {
    let whose = whose(&call, &id).await?;
    artifacts::file_of(&call, &whose, "artifact_file_path").await
}
