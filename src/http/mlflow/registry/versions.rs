//! `mlflow/model-versions/…`, and aliases.

use atelier_core::access::{Permission, Role};
use atelier_core::id::{AssetName, VersionName};
use atelier_core::track::registry::{self, Stage};
use atelier_core::track::search::{version_filter, version_order};
use atelier_core::track::{ArtifactPath, Error as Refusal, PageToken, RunId, fingerprint};
use axum::Json;
use serde_json::json;

use super::super::call::Call;
use super::super::failure::Failure;
use super::super::{Answer, reply as pages};
use super::source::{self, Resolved, Wanted};
use super::{Located, Root, deletes, download, later_tag, reads, reply, tags, writes};
use crate::storage::{Datastore, ObjectPath};
use crate::store::assets::models::{self, ModelVersion, NewVersion, VersionChange, VersionQuery};
use crate::store::tracking;

/// Copies of copies are followed so far.
const COPIES: usize = 16;

fn answer(found: &ModelVersion) -> Answer {
    Ok(Json(json!({ "model_version": reply::version(found) })))
}

pub(super) async fn create(call: Call) -> Answer {
    let name = call.model()?;
    let fields = &call.fields;
    let text = |name: &str| Ok::<_, Failure>(fields.text(name)?.map(str::to_owned));
    let wanted = Wanted {
        source: fields.required_text("source")?.to_owned(),
        run: text("run_id")?,
        logged: text("model_id")?,
    };
    let (tags, description) = (tags(fields)?, call.description()?);
    let run_link = call.bounded("run_link", registry::TEXT_BYTES)?.filter(|link| !link.is_empty());
    writes(&call.caller)?;
    let of = name.clone();
    call.read(move |conn| models::model(conn, &of).map(drop)).await?;
    let Resolved { located, mut lineage } = source::resolve(&call, name, &wanted).await?;
    let Located { mut draft, made_by, held: _held } = located;
    draft.tags = tags;
    draft.description = description.filter(|text| !text.is_empty());
    lineage.run_link = run_link;
    let at = call.state.tracking.now();
    let asked = call.state.retries.asked(&call)?;
    let new = NewVersion { draft, made_by, lineage, key: asked.key() };
    let made =
        call.change(move |asked, by| models::create_version(asked, &by.principal, new, at)).await;
    asked.answered();
    answer(&made?)
}

/// The version that is meant; archived ones, too.
async fn find(call: &Call) -> Result<ModelVersion, Failure> {
    let (name, version) = call.version()?;
    reads(&call.caller)?;
    call.read(move |conn| models::version(conn, &name, &version)).await
}

pub(super) async fn get(call: Call) -> Answer {
    answer(&find(&call).await?)
}

pub(super) async fn download_uri(call: Call) -> Answer {
    let found = find(&call).await?;
    let root = Root::of(&found);
    root.readable(&call.state, &call.caller).await?;
    let uri = source_for(&call, found).await?.unwrap_or_else(|| root.uri());
    Ok(Json(json!({ "artifact_uri": uri })))
}

/// The artifacts of a run that a version was made of, by the words it was registered with, where the run is there yet and the
/// caller reads it. A job reads its models by their own names alone.
async fn source_for(call: &Call, found: ModelVersion) -> Result<Option<String>, Failure> {
    if matches!(call.caller.role, Role::Attempt(_)) || !call.caller.may(Permission::ReadRuns) {
        return Ok(None);
    }
    call.read(move |conn| {
        let mut found = found;
        for _ in 0..COPIES {
            if let Some(run) = found.source.strip_prefix("runs:/") {
                let run = run.split('/').next().and_then(|id| RunId::new(id).ok());
                let is_there = run.is_some_and(|run| tracking::run_info(conn, &run).is_ok());
                return Ok(is_there.then_some(found.source));
            }
            // A copy is where its original is.
            let of = found.source.strip_prefix("models:/").and_then(|of| of.split_once('/'));
            let of = of.and_then(|(name, version)| {
                Some((AssetName::new(name).ok()?, VersionName::new(version).ok()?))
            });
            let Some((name, version)) = of else { break };
            match models::version(conn, &name, &version) {
                Ok(original) => found = original,
                Err(_) => break,
            }
        }
        Ok(None)
    })
    .await
}

/// Where the bytes of a file of the version lie that is meant, if the caller may read them.
pub(in super::super) async fn file(
    call: &Call,
    path: &ArtifactPath,
) -> Result<(Datastore, ObjectPath), Failure> {
    let (name, version) = call.version()?;
    download(&call.state, &call.caller, &Root::named(name, version), Some(path)).await
}

/// The versions that runs have made. A job's token may read the registry, too.
pub(in super::super) async fn of_runs(
    call: &Call,
    runs: Vec<RunId>,
) -> Result<Vec<ModelVersion>, Failure> {
    if reads(&call.caller).is_err() {
        return Ok(Vec::new());
    }
    call.read(move |conn| models::of_runs(conn, &runs)).await
}

pub(super) async fn by_alias(call: Call) -> Answer {
    let name = call.model()?;
    let alias = registry::alias(call.fields.required_text("alias")?)?;
    reads(&call.caller)?;
    if alias.as_str().eq_ignore_ascii_case(registry::LATEST) {
        let found = call.read(move |conn| models::model(conn, &name)).await?;
        // The highest number comes first.
        return match found.latest.first() {
            Some(latest) => answer(latest),
            None => Err(Refusal::NoModelVersion {
                name: found.name.to_string(),
                version: registry::LATEST.to_owned(),
            }
            .into()),
        };
    }
    answer(&call.read(move |conn| models::by_alias(conn, &name, &alias)).await?)
}

pub(super) async fn set_alias(call: Call) -> Answer {
    let (name, version) = call.version()?;
    let alias = registry::new_alias(call.fields.required_text("alias")?)?;
    writes(&call.caller)?;
    call.change(move |asked, by| models::set_alias(asked, by, (&name, &version), &alias)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete_alias(call: Call) -> Answer {
    let name = call.model()?;
    let alias = registry::alias(call.fields.required_text("alias")?)?;
    writes(&call.caller)?;
    call.change(move |asked, by| models::unset_alias(asked, by, &name, &alias)).await?;
    Ok(Json(json!({})))
}

async fn change(
    call: &Call,
    (name, version): (AssetName, VersionName),
    change: VersionChange,
) -> Result<ModelVersion, Failure> {
    writes(&call.caller)?;
    let at = call.state.tracking.now();
    call.change(move |asked, by| models::change_version(asked, by, (&name, &version), change, at))
        .await
}

pub(super) async fn update(call: Call) -> Answer {
    let (which, text) = (call.version()?, call.description()?);
    answer(&change(&call, which, VersionChange::Describe(text)).await?)
}

pub(super) async fn set_tag(call: Call) -> Answer {
    let (which, tag) = (call.version()?, later_tag(&call.fields)?);
    change(&call, which, VersionChange::SetTag(tag)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete_tag(call: Call) -> Answer {
    let which = call.version()?;
    let key = call.fields.required_text("key")?.to_owned();
    change(&call, which, VersionChange::DeleteTag(key)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn transition(call: Call) -> Answer {
    let which = call.version()?;
    let to = Stage::parse(call.fields.required_text("stage")?)?;
    let alone = call.fields.flag("archive_existing_versions")?.unwrap_or_default();
    if alone && !to.is_active() {
        return Err(Refusal::Invalid(format!(
            "Model version transition cannot archive existing model versions because '{}' is not an Active \
             stage. Valid stages are ['Staging', 'Production']",
            to.as_str()
        ))
        .into());
    }
    answer(&change(&call, which, VersionChange::Stage { to, alone }).await?)
}

pub(super) async fn delete(call: Call) -> Answer {
    let (name, version) = call.version()?;
    deletes(&call.caller)?;
    let at = call.state.tracking.now();
    // A job that names it, and was checked before, is one of those that use it by now.
    let _alone = call.state.datastores.let_go().await;
    call.change(move |asked, by| models::delete_version(asked, by, (&name, &version), at)).await?;
    Ok(Json(json!({})))
}

pub(super) async fn search(call: Call) -> Answer {
    let fields = &call.fields;
    reads(&call.caller)?;
    let filter = fields.text("filter")?.unwrap_or_default();
    let order = fields.texts("order_by")?;
    let mut parts = vec!["model-versions", filter];
    parts.extend(order.iter().map(String::as_str));
    let search = fingerprint(&parts);
    let query = VersionQuery {
        filter: version_filter(filter)?,
        order: version_order(&order)?,
        limit: fields.page_size(registry::VERSIONS_PAGE, registry::VERSIONS_PAGE)?,
        after: fields.page_token()?.map(|token| PageToken::parse(token, search)).transpose()?,
        fingerprint: search,
    };
    let page = call.read(move |conn| models::search_versions(conn, &query)).await?;
    let list = page.items.iter().map(reply::version).collect();
    Ok(Json(pages::page("model_versions", list, page.next)))
}
