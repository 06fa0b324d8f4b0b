mod artifacts;
mod between;
mod client;
mod dialect;
mod models;
mod pages;
mod registry;

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_core::access::{AttemptScope, Caller, Role};
use atelier_core::asset::Draft;
use atelier_core::content::Digest;
use atelier_core::content::manifest::{Manifest, ManifestEntry, VERSION};
use atelier_core::id::{
    AttemptNumber, DatastoreName, Epoch, ExperimentName, JobName, NodeName, Principal,
};
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::spec::DataUri;
use atelier_core::time::Timestamp;
use atelier_core::track::RunStatus;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use futures::future::BoxFuture;
use http::{StatusCode, header};
use serde_json::Value;
use tower::ServiceExt as _;

use super::registry::{Located, NotLocated, Places};
use super::{Manifests, State, router};
use crate::daemon::Uploads;
use crate::http::data::Authorize;
use crate::storage::{self, Datastores, Home};
use crate::store::SqliteStore;
use crate::store::tracking::{JobRun, TrackWrite};
use crate::track::Tracking;

/// The routes over a store in a folder, with a door that knows a few tokens.
struct World {
    routes: Router,
    tracking: Tracking,
    datastores: Datastores,
    manifests: Arc<Known>,
    over: Arc<Over>,
    _folder: tempfile::TempDir,
}

/// Attempts that a test ends.
#[derive(Default)]
struct Over(AtomicBool);

impl Authorize for Over {
    fn authorize_data(
        &self,
        _: &Caller,
        _: &DatastoreName,
        _: &str,
        _: bool,
    ) -> Result<(), String> {
        Err("not asked by these routes".to_owned())
    }

    fn still_open(&self, caller: &Caller) -> Result<(), String> {
        match caller.role {
            Role::Attempt(_) if self.0.load(Ordering::SeqCst) => Err("it is over".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Manifests that a test commits.
#[derive(Default)]
struct Known(Mutex<BTreeMap<JobName, Arc<Manifest>>>);

impl Known {
    /// Commits a manifest of a job that names one file.
    fn name(&self, job: &str, file: &str) {
        let job = JobName::new(job).expect("job");
        let entry = ManifestEntry {
            datastore: DatastoreName::new(ARTIFACT_STORE).expect("name"),
            key: format!("ExperimentRun/dcid.{job}/{file}"),
            path: file.to_owned(),
            bytes: 4,
            digest: Digest::of(b"kept"),
        };
        let manifest = Manifest {
            version: VERSION,
            job: job.clone(),
            attempt: AttemptNumber(1),
            epoch: Epoch(1),
            partial: false,
            entries: vec![entry],
        };
        self.0.lock().expect("lock").insert(job, Arc::new(manifest));
    }
}

impl Manifests for Known {
    fn committed<'a>(
        &'a self,
        job: &'a JobName,
    ) -> BoxFuture<'a, Result<Option<Arc<Manifest>>, String>> {
        let found = self.0.lock().expect("lock").get(job).cloned();
        Box::pin(async move { Ok(found) })
    }
}

/// Places as they are: what they mean is tested with a whole daemon.
#[derive(Default)]
struct Straight(Arc<tokio::sync::RwLock<()>>);

impl Places for Straight {
    fn locate(&self, draft: Draft) -> BoxFuture<'_, Result<Located, NotLocated>> {
        Box::pin(async move {
            let held = Box::new(self.0.clone().read_owned().await);
            match &draft.uri {
                DataUri::Datastore { .. } => Ok(Located { draft, made_by: None, held }),
                other => Err(NotLocated::Refused(format!("not resolved here: {other:?}"))),
            }
        })
    }

    fn settle<'a>(&'a self, _: &'a JobName) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn let_go(&self) -> BoxFuture<'_, Box<dyn Any + Send>> {
        Box::pin(async { Box::new(self.0.clone().write_owned().await) as Box<dyn Any + Send> })
    }
}

/// `admin`, `reader`, `node`, `job:NAME` (an attempt), or a data scientist's name.
fn caller(token: &str) -> Caller {
    let role = match token {
        "admin" => Role::Admin,
        "reader" => Role::Reader,
        "node" => Role::Node(NodeName::new("n1").expect("node")),
        _ => match token.strip_prefix("job:") {
            Some(job) => Role::Attempt(AttemptScope {
                job: JobName::new(job).expect("job"),
                attempt: AttemptNumber(1),
                epoch: Epoch(1),
            }),
            None => Role::DataScientist,
        },
    };
    Caller { principal: Principal::new(token).expect("principal"), role }
}

async fn door(mut request: Request, next: Next) -> Response {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer ").map(caller));
    if let Some(caller) = token {
        request.extensions_mut().insert(caller);
    }
    next.run(request).await
}

impl World {
    fn new() -> Self {
        Self::over(|folder| Datastores::open_folders(&folder.join("storage")))
    }

    /// The same over datastores that lie elsewhere.
    fn with(home: &Home) -> Self {
        Self::over(|_| Datastores::open(home, Duration::from_secs(10)))
    }

    fn over(open: impl FnOnce(&Path) -> Result<Datastores, storage::Error>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let store = SqliteStore::open(&folder.path().join("atelier.db"), false).expect("store");
        let datastores = open(folder.path()).expect("stores");
        let artifacts = datastores.get(ARTIFACT_STORE).expect("artifacts").clone();
        let clock = Arc::new(|| {
            let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
            Timestamp::from_millis(i64::try_from(now).expect("in range"))
        });
        let tracking = Tracking::new(Arc::new(store), artifacts, clock);
        let manifests = Arc::new(Known::default());
        let over = Arc::new(Over::default());
        let state = State {
            tracking: tracking.clone(),
            datastores: datastores.clone(),
            manifests: manifests.clone(),
            places: Arc::new(Straight::default()),
            retries: super::registry::Retries::default(),
            changing: super::changing::Changing::default(),
            door: over.clone(),
            workspace: "team".into(),
            uploads: Uploads::for_test(folder.path()),
        };
        let routes = router(state).layer(from_fn(door));
        Self { routes, tracking, datastores, manifests, over, _folder: folder }
    }

    async fn job(&self, job: &str, experiment: &str) {
        let run = JobRun {
            job: JobName::new(job).expect("job"),
            experiment: ExperimentName::new(experiment).expect("name"),
            display_name: format!("{job} shown"),
            owner: Principal::new("ada").expect("principal"),
            status: RunStatus::Running,
            at: self.tracking.now(),
            tags: vec![],
        };
        self.tracking.write(TrackWrite::CreateJobRun(run)).await.expect("job run");
    }

    async fn follow(&self, job: &str, status: RunStatus) {
        let job = JobName::new(job).expect("job");
        let at = self.tracking.now();
        self.tracking.write(TrackWrite::FollowJob { job, status, at }).await.expect("follow");
    }

    /// Sends a request as it is; answers status, headers' content type and body.
    async fn send(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body.into()).expect("request");
        let response = self.routes.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("body");
        (status, body.to_vec())
    }

    /// Calls an API and expects it to work. A body of `null` is a GET.
    async fn call(&self, token: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.api(token, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    async fn api(&self, token: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let method = if body.is_null() { "GET" } else { "POST" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("/api/2.0/mlflow/{path}");
        let (status, answer) = self.send(token, method, &path, body).await;
        let answer = serde_json::from_slice(&answer)
            .unwrap_or_else(|_| panic!("{path}: {}", String::from_utf8_lossy(&answer)));
        (status, answer)
    }

    /// Calls an API and expects it to be refused so.
    async fn refused(
        &self,
        token: &str,
        path: &str,
        body: Value,
        (status, code, part): (u16, &str, &str),
    ) {
        let (got, answer) = self.api(token, path, body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(
            got.as_u16() == status && answer["error_code"] == code && message.contains(part),
            "{path}: {got} {answer}"
        );
    }

    async fn run(&self, token: &str) -> String {
        let run = self.call(token, "runs/create", serde_json::json!({ "start_time": 5 })).await;
        run["run"]["info"]["run_id"].as_str().expect("id").to_owned()
    }
}
