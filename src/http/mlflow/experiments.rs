//! `mlflow/experiments/…`

use atelier_core::track::search::{experiment_filter, experiment_order};
pub(super) use atelier_core::track::wire::tag_of;
use atelier_core::track::{
    Error as Refusal, Experiment, ExperimentId, PageToken, ViewType, fingerprint, limits,
};
use axum::Json;
use serde_json::{Value, json};

use super::call::{Call, Reader};
use super::failure::Failure;
use super::{Answer, reply};
use crate::store::tracking::{self, ExperimentChange, ExperimentQuery, TrackReply, TrackWrite};

pub(super) async fn create(call: Call) -> Answer {
    let name = limits::experiment_name(call.fields.required_text("name")?)?;
    let elsewhere = call.fields.text("artifact_location")?.is_some_and(|place| !place.is_empty());
    let tags = call.fields.objects("tags")?.iter().map(tag_of).collect::<Result<Vec<_>, _>>()?;
    if elsewhere {
        return Err(Refusal::Invalid(
            "artifact_location is not supported: artifacts lie in the workspace's artifact store. \
             Leave it out"
                .to_owned(),
        )
        .into());
    }
    for tag in &tags {
        limits::experiment_tag(tag)?;
    }
    let (by, at) = (call.caller.clone(), call.state.tracking.now());
    let reply = call.write(TrackWrite::CreateExperiment { by, name, tags, at }).await?;
    Ok(Json(match reply {
        TrackReply::Experiment(id) => json!({ "experiment_id": id.to_string() }),
        _ => json!({}),
    }))
}

/// An experiment, for whom it may read.
pub(super) async fn one(call: &Call, id: ExperimentId) -> Result<Experiment, Failure> {
    let reader = call.reader()?;
    call.read(move |conn| {
        reader.check(conn, id)?;
        tracking::experiment(conn, id)?.ok_or_else(|| Refusal::NoExperiment(id.to_string()).into())
    })
    .await
}

pub(super) async fn get(call: Call) -> Answer {
    let found = one(&call, call.experiment_id()?).await?;
    Ok(Json(json!({ "experiment": reply::experiment(&found) })))
}

pub(super) async fn get_by_name(call: Call) -> Answer {
    let name = call.fields.required_text("experiment_name")?.to_owned();
    let reader = call.reader()?;
    let found = call
        .read(move |conn| {
            let found = tracking::experiment_by_name(conn, &name)?
                .ok_or_else(|| Refusal::NoExperimentNamed(limits::excerpt(&name)))?;
            reader.check(conn, found.id)?;
            Ok(found)
        })
        .await?;
    Ok(Json(json!({ "experiment": reply::experiment(&found) })))
}

pub(super) async fn search(call: Call) -> Answer {
    let fields = &call.fields;
    let reader = call.reader()?;
    let filter = fields.text("filter")?.unwrap_or_default();
    let order = fields.texts("order_by")?;
    let view = fields.one_of("view_type", ViewType::parse)?.unwrap_or_default();
    // Zero is how the wire's clients leave a number out.
    let limit = match fields.integer("max_results")? {
        Some(0) => limits::SEARCH_PAGE_DEFAULT,
        _ => fields.page_size(limits::SEARCH_PAGE_DEFAULT, limits::SEARCH_PAGE)?,
    };
    let view_name = format!("{view:?}");
    let mut parts = vec!["experiments", filter, &view_name];
    parts.extend(order.iter().map(String::as_str));
    let search = fingerprint(&parts);
    let mut query = ExperimentQuery {
        filter: experiment_filter(filter)?,
        only: None,
        order: experiment_order(&order)?,
        view,
        limit,
        after: fields.page_token()?.map(|token| PageToken::parse(token, search)).transpose()?,
        fingerprint: search,
    };
    let page = call
        .read(move |conn| {
            if let Reader::Of(run) = &reader {
                query.only = Some(tracking::run_info(conn, run)?.experiment);
            }
            tracking::search_experiments(conn, &query)
        })
        .await?;
    let list = page.items.iter().map(reply::experiment).collect();
    Ok(Json(reply::page("experiments", list, page.next)))
}

async fn change(call: Call, change: ExperimentChange) -> Answer {
    let (by, at) = (call.caller.clone(), call.state.tracking.now());
    let id = call.experiment_id()?;
    let is_told = !matches!(change, ExperimentChange::SetTag(_) | ExperimentChange::DeleteTag(_));
    let write = TrackWrite::ChangeExperiment { by, id, change, at };
    match is_told {
        true => call.write_told(write).await?,
        false => call.write(write).await?,
    };
    Ok(Json(Value::Object(serde_json::Map::new())))
}

pub(super) async fn update(call: Call) -> Answer {
    let name = limits::experiment_name(call.fields.required_text("new_name")?)?;
    change(call, ExperimentChange::Rename(name)).await
}

pub(super) async fn delete(call: Call) -> Answer {
    change(call, ExperimentChange::Delete).await
}

pub(super) async fn restore(call: Call) -> Answer {
    change(call, ExperimentChange::Restore).await
}

pub(super) async fn set_tag(call: Call) -> Answer {
    let tag = tag_of(&call.fields)?;
    limits::experiment_tag(&tag)?;
    change(call, ExperimentChange::SetTag(tag)).await
}

pub(super) async fn delete_tag(call: Call) -> Answer {
    let key = call.fields.required_text("key")?.to_owned();
    change(call, ExperimentChange::DeleteTag(key)).await
}
