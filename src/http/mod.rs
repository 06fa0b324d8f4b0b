//! The daemon's ports: gRPC and HTTP side by side, and HTTP alone for jobs; every request past the door.

pub(crate) mod data;
mod limits;
pub mod mlflow;
mod server;

use std::sync::Arc;

use atelier_core::access::Caller;
use atelier_core::id::DatastoreName;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Router};

pub(crate) use limits::Limits;
pub(crate) use server::serve;

use crate::daemon::Shared;
use crate::identity::{AskedAs, Door, Origin, Use, guard, in_kind, is_grpc, web_type};

/// JSON bodies may be this long; objects are streamed and know no such bound.
const BODY: usize = 4 << 20;

/// Every route, behind the door.
pub fn router(shared: Shared, grpc: Router) -> Router {
    let (door, limits) = (shared.door.clone(), shared.limits.clone());
    behind(door, limits, grpc.merge(own(shared)))
}

/// What jobs need, behind the same door.
pub fn jobs_router(shared: Shared) -> Router {
    let (door, limits) = (shared.door.clone(), shared.limits.clone());
    behind(door, limits, own(shared).fallback(elsewhere))
}

/// What is not on the jobs' port; whoever has orders is told where to go.
async fn elsewhere(headers: HeaderMap) -> Response {
    if !is_grpc(&headers) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let told = "this is the daemon's port for jobs: use the address in the `endpoint` file of its data folder";
    in_kind(tonic::Status::unimplemented(told).into_http(), web_type(&headers))
}

/// Health, data and tracking.
fn own(shared: Shared) -> Router {
    let door = shared.door.clone();
    let datastores = shared.datastores.clone();
    let runs = mlflow::router(mlflow::State {
        tracking: shared.tracking.clone(),
        datastores: datastores.clone(),
        manifests: shared.committed.clone(),
        places: Arc::new(shared.places()),
        retries: mlflow::registry::Retries::default(),
        changing: mlflow::changing::Changing::default(),
        door: door.clone(),
        workspace: shared.folder.workspace().name.as_str().into(),
        uploads: shared.uploads.clone(),
    });
    let uploads = shared.uploads.clone();
    let objects = data::router(data::State { datastores, door, uploads });
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/.well-known/jwks.json", get(keys))
        .with_state(Arc::new(shared))
        .merge(objects)
        .merge(runs)
}

fn behind(door: Arc<Door>, limits: Arc<Limits>, routes: Router) -> Router {
    routes
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn_with_state(limits, limits::limited))
        .layer(middleware::from_fn_with_state(door, guard))
}

impl data::Authorize for Door {
    fn authorize_data(
        &self,
        caller: &Caller,
        datastore: &DatastoreName,
        path: &str,
        write: bool,
    ) -> Result<(), String> {
        Door::authorize_data(self, caller, datastore, path, write).map_err(|e| e.to_string())
    }

    fn still_open(&self, caller: &Caller) -> Result<(), String> {
        Door::still_open(self, caller).map_err(|e| e.to_string())
    }

    fn tell_used(
        &self,
        caller: &Caller,
        origin: &Origin,
        datastore: &DatastoreName,
        path: &str,
        how: Use,
    ) {
        Door::tell_used(self, caller, origin, datastore, path, how);
    }
}

/// Agents look here whether jobs will find the daemon, before they offer to run any.
async fn healthy(
    State(shared): State<Arc<Shared>>,
    asked: Option<Extension<AskedAs>>,
) -> impl axum::response::IntoResponse {
    let url = shared.addresses.jobs_url(asked.as_ref().map(|asked| &asked.0));
    let clock = shared.clock.wall().as_millis().to_string();
    ([(atelier_proto::JOBS_URL, url), (atelier_proto::CLOCK, clock)], "ok")
}

/// By what others can verify attempts' tokens.
async fn keys(State(shared): State<Arc<Shared>>) -> axum::Json<serde_json::Value> {
    axum::Json(shared.door.keys())
}

/// Ready: the reactor answers and the store can be read.
async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    let reactor = shared.handle.look(|_, _| ()).await;
    let store = shared.store.events(None, u64::MAX, 1);
    match (reactor, store) {
        (Ok(()), Ok(_)) => (StatusCode::OK, "ready"),
        (Err(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
        (_, Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be read"),
    }
}
