//! The daemon's port: gRPC and HTTP side by side, every request past the door.

pub(crate) mod data;
pub mod mlflow;
mod server;

use std::sync::Arc;

use atelier_core::access::Caller;
use atelier_core::id::DatastoreName;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::get;

pub use server::serve;

use crate::daemon::Shared;
use crate::identity::{Door, guard};

/// JSON bodies may be this long; objects are streamed and know no such bound.
const BODY: usize = 4 << 20;

/// Every route, behind the door.
pub fn router(shared: Shared, grpc: Router) -> Router {
    let door = shared.door.clone();
    let datastores = shared.datastores.clone();
    let own = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(Arc::new(shared.clone()));
    let runs = mlflow::router(mlflow::State {
        tracking: shared.tracking.clone(),
        datastores: datastores.clone(),
        manifests: shared.committed.clone(),
        door: door.clone(),
    });
    let objects = data::router(data::State { datastores, door: door.clone() });
    grpc.merge(own)
        .merge(objects)
        .merge(runs)
        .layer(DefaultBodyLimit::max(BODY))
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
