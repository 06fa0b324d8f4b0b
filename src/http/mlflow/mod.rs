//! MLflow's REST API 2.0, as far as MLflow's own client needs it to track runs and to log and load
//! artifacts. `docs/mlflow.md` lists what is served.
//!
//! The dialect is MLflow's: snake_case, 64-bit integers as numbers, enums by name, NaN as the text
//! `"NaN"`, unknown fields ignored, errors as `{"error_code", "message"}`.

mod artifacts;
mod call;
pub(crate) mod changing;
mod experiments;
mod failure;
mod graphql;
mod metrics;
mod models;
mod parts;
pub(crate) mod registry;
mod reply;
mod runs;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::content::manifest::Manifest;
use atelier_core::id::JobName;
use atelier_core::layout;
use axum::extract::{Path, Request, State as Shared};
use axum::http::Uri;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, any, delete, get, patch, post};
use axum::{Extension, Router};
use futures::future::BoxFuture;
use serde_json::json;

use crate::daemon::Uploads;
use crate::http::data::Authorize;
use crate::identity::Origin;
use crate::storage::{Datastores, ObjectPath, Signed};
use crate::track::Tracking;
use call::Call;
use failure::Failure;

/// MLflow's version whose client and server this was checked against; told to clients that ask.
pub const MLFLOW_VERSION: &str = "3.17.2";

/// Looks up what a job has left behind.
pub trait Manifests: Send + Sync + 'static {
    /// The job's committed manifest; nothing before it is committed.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn committed<'a>(
        &'a self,
        job: &'a JobName,
    ) -> BoxFuture<'a, Result<Option<Arc<Manifest>>, String>>;
}

/// What the routes need. Cheap to clone.
#[derive(Clone)]
pub struct State {
    /// Runs and metrics.
    pub tracking: Tracking,
    /// Where artifacts lie.
    pub datastores: Datastores,
    /// What jobs have left behind.
    pub manifests: Arc<dyn Manifests>,
    /// Where models lie.
    pub places: Arc<dyn registry::Places>,
    /// Requests whose answer nobody got.
    pub(crate) retries: registry::Retries,
    /// Whose files are being written or deleted.
    pub(crate) changing: changing::Changing,
    /// Knows whose attempt is over.
    pub(crate) door: Arc<dyn Authorize>,
    /// The workspace's name.
    pub workspace: Arc<str>,
    /// What people write past it, part by part.
    pub(crate) uploads: Uploads,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("datastores", &self.datastores).finish_non_exhaustive()
    }
}

impl State {
    /// Whether the artifact store gives addresses by which files are read from it, and parts of files written to it.
    /// It is not waited for long.
    async fn signs(&self, origin: &Origin) -> (bool, bool) {
        let Ok(probe) = ObjectPath::new(layout::MODELS) else { return (false, false) };
        if !self.uploads.signs() {
            return (false, false);
        }
        let (store, lasting) = (self.tracking.artifacts().hasty(), Duration::from_secs(1));
        let reads = store.sign_reads(std::slice::from_ref(&probe), lasting).await;
        let parts = store.sign_parts(&probe, "none", 1..2, lasting).await;
        let leads = |signed: &[Signed]| signed.iter().any(|signed| leads_there(signed, origin));
        (
            reads.is_ok_and(|reads| reads.is_some_and(|reads| leads(&reads))),
            parts.is_ok_and(|parts| leads(&parts)),
        )
    }
}

/// Whether an address leads to the store from where somebody asks: one on the daemon's own machine does so only there.
fn leads_there(signed: &Signed, origin: &Origin) -> bool {
    if origin.from.is_none_or(|from| from.is_loopback()) {
        return true;
    }
    let Ok(url) = signed.url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    !is_here && host != "localhost" && !host.ends_with(".localhost")
}

/// The routes. Requests carry their [`atelier_core::access::Caller`] as an extension; the door put
/// it there.
pub fn router(state: State) -> Router {
    let mut router = Router::new()
        .route("/health", get(async || "OK"))
        .route("/version", get(async || MLFLOW_VERSION))
        .route("/get-artifact", get(artifacts::file_of_run))
        .route("/model-versions/get-artifact", get(artifacts::file_of_version))
        .route("/graphql", post(graphql::execute));
    for root in ["/api", "/ajax-api"] {
        for (path, methods) in routes() {
            router = router.route(&format!("{root}{path}"), methods);
        }
        router = router
            .route(&format!("{root}/3.0/mlflow/server-info"), get(server_info))
            .route(&format!("{root}/{{*path}}"), any(not_served));
    }
    let workspace = state.workspace.clone();
    router
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(workspace, in_workspace))
        .with_state(state)
}

/// The header by which clients name the workspace that they mean.
const WORKSPACE: &str = "x-mlflow-workspace";

/// Refuses what is meant for another workspace. MLflow looks no different at a header that is empty than at none, and
/// tells everybody what it serves.
async fn in_workspace(Shared(own): Shared<Arc<str>>, request: Request, next: Next) -> Response {
    let named = request.headers().get(WORKSPACE).map(|value| value.to_str().unwrap_or("?").trim());
    let other = named.filter(|name| !name.is_empty() && *name != &*own);
    match other {
        Some(other) if !request.uri().path().ends_with("/mlflow/server-info") => {
            Failure::no_workspace(other, &own).into_response()
        }
        _ => next.run(request).await,
    }
}

fn routes() -> Vec<(String, MethodRouter<State>)> {
    let mlflow = [
        ("experiments/create", post(experiments::create)),
        ("experiments/get", get(experiments::get)),
        ("experiments/get-by-name", get(experiments::get_by_name)),
        ("experiments/search", get(experiments::search).post(experiments::search)),
        ("experiments/update", post(experiments::update)),
        ("experiments/delete", post(experiments::delete)),
        ("experiments/restore", post(experiments::restore)),
        ("experiments/set-experiment-tag", post(experiments::set_tag)),
        ("experiments/delete-experiment-tag", post(experiments::delete_tag)),
        ("runs/create", post(runs::create)),
        ("runs/get", get(runs::get)),
        ("runs/update", post(runs::update)),
        ("runs/search", post(runs::search)),
        ("runs/delete", post(runs::delete)),
        ("runs/restore", post(runs::restore)),
        ("runs/log-metric", post(runs::log_metric)),
        ("runs/log-parameter", post(runs::log_param)),
        ("runs/log-batch", post(runs::log_batch)),
        ("runs/log-inputs", post(runs::log_inputs)),
        ("runs/outputs", post(runs::log_outputs)),
        ("runs/log-model", post(runs::log_model)),
        ("runs/set-tag", post(runs::set_tag)),
        ("runs/delete-tag", post(runs::delete_tag)),
        ("metrics/get-history", get(runs::history)),
        ("metrics/get-history-bulk", get(metrics::history_bulk)),
        ("metrics/get-history-bulk-interval", get(metrics::history_bulk_interval)),
        ("experiments/search-datasets", post(metrics::datasets)),
        ("artifacts/list", get(artifacts::list_of_run)),
        ("get-artifact", get(artifacts::file_of_run)),
        ("upload-artifact", post(artifacts::upload_to_run)),
        ("logged-models", post(models::create)),
        ("logged-models/search", post(models::search)),
        ("logged-models/{id}", get(models::get).patch(models::finalize).delete(models::delete)),
        ("logged-models/{id}/params", post(models::log_params)),
        ("logged-models/{id}/tags", patch(models::set_tags)),
        ("logged-models/{id}/tags/{*key}", delete(models::delete_tag)),
        ("logged-models/{id}/artifacts/directories", get(models::folder)),
        ("logged-models/{id}/artifacts/files", get(models::file)),
    ];
    let proxy = [
        ("artifacts", get(artifacts::list)),
        (
            "artifacts/{*path}",
            get(artifacts::download).put(artifacts::upload).delete(artifacts::delete),
        ),
        ("mpu/create/{*path}", post(parts::create)),
        ("mpu/complete/{*path}", post(parts::complete)),
        ("mpu/abort/{*path}", post(parts::abort)),
        ("presigned/{*path}", get(artifacts::presigned)),
    ];
    let spaces = [("workspaces", get(workspaces)), ("workspaces/{name}", get(workspace))];
    let below = |area: &'static str| move |(path, methods)| (format!("/{area}/{path}"), methods);
    mlflow
        .into_iter()
        .map(below("2.0/mlflow"))
        .chain(registry::routes().into_iter().map(below("2.0/mlflow")))
        .chain(proxy.into_iter().map(below("2.0/mlflow-artifacts")))
        .chain(spaces.into_iter().map(below("3.0/mlflow")))
        .collect()
}

/// Every path that is served, as a pattern.
#[cfg(test)]
pub(crate) fn paths() -> Vec<String> {
    routes().into_iter().map(|(path, _)| path).collect()
}

/// Reads a body as each of the calls does; for `fuzz`.
pub(crate) fn read_any(body: &[u8]) {
    let Ok(fields) = call::Fields::of_body(body) else { return };
    runs::read_any(&fields);
    models::read_any(&fields);
    for name in ["run_id", "name", "filter", "experiment_id"] {
        let _ = fields.text(name);
    }
    let _ = (fields.texts("experiment_ids"), fields.page_size(100, 1000), fields.page_token());
}

type Answer = Result<axum::Json<serde_json::Value>, Failure>;

async fn server_info(
    Shared(state): Shared<State>,
    origin: Option<Extension<Origin>>,
    uri: Uri,
) -> axum::Json<serde_json::Value> {
    let origin = origin.map(|Extension(origin)| origin).unwrap_or_default();
    let (reads, parts) = state.signs(&origin).await;
    axum::Json(json!({
        "store_type": "SqlStore",
        // Clients may name the workspace. There is one: the web pages, which would have people choose first, need not know.
        "workspaces_enabled": uri.path().starts_with("/api/"),
        "trace_archival_enabled": false,
        "multipart_uploads_enabled": parts,
        "multipart_downloads_enabled": reads,
    }))
}

/// The one workspace that there is here.
async fn workspaces(call: Call) -> Answer {
    call.reader()?;
    Ok(axum::Json(json!({ "workspaces": [{ "name": &*call.state.workspace }] })))
}

async fn workspace(Path(name): Path<String>, call: Call) -> Answer {
    call.reader()?;
    match &*call.state.workspace {
        own if own == name => Ok(axum::Json(json!({ "workspace": { "name": own } }))),
        own => Err(Failure::no_workspace(&name, own)),
    }
}

async fn not_served(request: Request) -> Failure {
    Failure::not_served(request.uri().path())
}

async fn wrong_method(request: Request) -> Failure {
    Failure::wrong_method(request.method(), request.uri().path())
}
