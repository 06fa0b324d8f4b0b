//! `mlflow/registered-models/…`

use atelier_core::track::registry::{self, Stage};
use atelier_core::track::search::{registered_filter, registered_order};
use atelier_core::track::{PageToken, fingerprint};
use axum::Json;
use serde_json::json;

use super::super::call::Call;
use super::super::failure::Failure;
use super::super::{Answer, reply as pages};
use super::{deletes, later_tag, reads, reply, tags, writes};
use crate::store::assets::models::{self, ModelChange, ModelQuery};

pub(super) async fn create(call: Call) -> Answer {
    let (name, tags, description) = (call.model()?, tags(&call.fields)?, call.description()?);
    writes(&call.caller)?;
    let description = description.filter(|text| !text.is_empty());
    let at = call.state.tracking.now();
    let made = call
        .change(move |asked, by| {
            models::create_model(asked, &name, &by.principal, (description, tags), at)
        })
        .await?;
    Ok(Json(json!({ "registered_model": reply::model(&made) })))
}

pub(super) async fn get(call: Call) -> Answer {
    let name = call.model()?;
    reads(&call.caller)?;
    let found = call.read(move |conn| models::model(conn, &name)).await?;
    Ok(Json(json!({ "registered_model": reply::model(&found) })))
}

pub(super) async fn rename(call: Call) -> Answer {
    let name = call.model()?;
    let new = registry::model_name(call.fields.required_text("new_name")?)?;
    deletes(&call.caller)?;
    let at = call.state.tracking.now();
    // A job that names a version, and was checked before, is one of those that use it by now.
    let _alone = call.state.datastores.let_go().await;
    let renamed =
        call.change(move |asked, by| models::rename_model(asked, by, &name, &new, at)).await?;
    Ok(Json(json!({ "registered_model": reply::model(&renamed) })))
}

async fn change(call: &Call, change: ModelChange) -> Result<models::RegisteredModel, Failure> {
    let name = call.model()?;
    writes(&call.caller)?;
    let at = call.state.tracking.now();
    call.change(move |asked, by| models::change_model(asked, by, &name, change, at)).await
}

pub(super) async fn update(call: Call) -> Answer {
    let changed = change(&call, ModelChange::Describe(call.description()?)).await?;
    Ok(Json(json!({ "registered_model": reply::model(&changed) })))
}

pub(super) async fn set_tag(call: Call) -> Answer {
    call.model()?;
    change(&call, ModelChange::SetTag(later_tag(&call.fields)?)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete_tag(call: Call) -> Answer {
    call.model()?;
    let key = call.fields.required_text("key")?.to_owned();
    change(&call, ModelChange::DeleteTag(key)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete(call: Call) -> Answer {
    let name = call.model()?;
    deletes(&call.caller)?;
    // A job that names a version, and was checked before, is one of those that use it by now.
    let _alone = call.state.datastores.let_go().await;
    call.change(move |asked, by| models::delete_model(asked, by, &name)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn search(call: Call) -> Answer {
    let fields = &call.fields;
    reads(&call.caller)?;
    let filter = fields.text("filter")?.unwrap_or_default();
    let order = fields.texts("order_by")?;
    let mut parts = vec!["registered-models", filter];
    parts.extend(order.iter().map(String::as_str));
    let search = fingerprint(&parts);
    let query = ModelQuery {
        filter: registered_filter(filter)?,
        order: registered_order(&order)?,
        limit: fields.page_size(registry::MODELS_PAGE_DEFAULT, registry::MODELS_PAGE)?,
        after: fields.page_token()?.map(|token| PageToken::parse(token, search)).transpose()?,
        fingerprint: search,
    };
    let page = call.read(move |conn| models::search_models(conn, &query)).await?;
    let list = page.items.iter().map(reply::model).collect();
    Ok(Json(pages::page("registered_models", list, page.next)))
}

pub(super) async fn latest_versions(call: Call) -> Answer {
    let name = call.model()?;
    let stages = call.fields.texts("stages")?;
    let stages = stages.iter().map(|stage| Stage::parse(stage)).collect::<Result<Vec<_>, _>>()?;
    reads(&call.caller)?;
    let mut found = call.read(move |conn| models::model(conn, &name)).await?;
    found.latest.retain(|version| {
        stages.is_empty() || stages.iter().any(|stage| version.stage() == stage.as_str())
    });
    let list = found.latest.iter().map(reply::version).collect();
    Ok(Json(pages::page("model_versions", list, None::<String>)))
}
