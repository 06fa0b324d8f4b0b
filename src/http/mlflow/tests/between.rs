//! What happens while the artifact store is at work.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_core::datastore::Source;
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::track::{RunId, RunInfo, RunStatus};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderName, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::World;
use crate::storage::{Home, S3};

const MPU: &str = "/api/2.0/mlflow-artifacts/mpu";
const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts";
/// In which what is not kept from happening happens.
const SOON: Duration = Duration::from_millis(500);

/// A request to the store that waits.
struct Waiting {
    reached: oneshot::Sender<()>,
    go_on: oneshot::Receiver<StatusCode>,
}

/// An artifact store, and who stands before it and has requests wait.
struct Between {
    world: Arc<World>,
    next: Arc<Mutex<Option<(Stop, Waiting)>>>,
    _server: S3,
}

/// Which request waits.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// One that deletes.
    Deletes,
    /// One that has an upload in parts seen.
    Completes,
}

impl Stop {
    fn of(request: &Request) -> Option<Self> {
        let query = request.uri().query().unwrap_or_default();
        match *request.method() {
            Method::DELETE => Some(Self::Deletes),
            Method::POST if query.starts_with("delete") => Some(Self::Deletes),
            Method::POST if query.contains("uploadId=") => Some(Self::Completes),
            _ => None,
        }
    }
}

#[derive(Clone)]
struct Forward {
    to: String,
    next: Arc<Mutex<Option<(Stop, Waiting)>>>,
    client: reqwest::Client,
}

async fn forward(State(forward): State<Forward>, request: Request) -> Response {
    let waiting = {
        let mut next = forward.next.lock().expect("lock");
        let stops = next.as_ref().is_some_and(|(stop, _)| Stop::of(&request) == Some(*stop));
        next.take_if(|_| stops)
    };
    if let Some((_, Waiting { reached, go_on })) = waiting {
        reached.send(()).expect("awaited");
        let status = go_on.await.expect("told");
        if !status.is_success() {
            return status.into_response();
        }
    }
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("body");
    let to = format!("{}{}", forward.to, head.uri);
    let mut asked = forward.client.request(head.method, to).body(body);
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_hop(name)) {
        asked = asked.header(name, value);
    }
    let answer = asked.send().await.expect("store");
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers().iter().filter(|(name, _)| !is_hop(name)) {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.bytes().await.expect("answer"))).expect("response")
}

fn is_hop(name: &HeaderName) -> bool {
    [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING].contains(name)
}

impl Between {
    async fn new() -> Self {
        let server = S3::start();
        let (mut source, unlock) = server.place(None);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let own = format!("http://{}", listener.local_addr().expect("address"));
        let Source::S3 { endpoint, .. } = &mut source else { unreachable!("it is S3") };
        let to = endpoint.replace(own).expect("an address");
        let next = Arc::new(Mutex::new(None));
        let state = Forward { to, next: next.clone(), client: reqwest::Client::new() };
        let routes = Router::new().fallback(forward).with_state(state);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let world = World::with(&Home::Cloud(source, unlock));
        world.tracking.artifacts().keeping_to_parts();
        Self { world: Arc::new(world), next, _server: server }
    }

    /// Has the next such request wait: told when it is there, and answered so, or, if it is well, by the store.
    fn stop(&self, stop: Stop) -> (oneshot::Receiver<()>, oneshot::Sender<StatusCode>) {
        let (reached, is_there) = oneshot::channel();
        let (answer, go_on) = oneshot::channel();
        *self.next.lock().expect("lock") = Some((stop, Waiting { reached, go_on }));
        (is_there, answer)
    }

    /// Sends a request meanwhile.
    fn send(
        &self,
        method: &'static str,
        path: String,
        body: impl Into<Body>,
    ) -> tokio::task::JoinHandle<(StatusCode, String)> {
        let (world, body) = (self.world.clone(), body.into());
        tokio::spawn(async move {
            let (status, answer) = world.send("ada", method, &path, body).await;
            (status, String::from_utf8_lossy(&answer).into_owned())
        })
    }

    async fn run_with(&self, files: &[&str]) -> String {
        let run = self.world.run("ada").await;
        for file in files {
            let path = format!("{PROXY}/0/{run}/artifacts/{file}");
            let (status, said) = self.send("PUT", path, "old").await.expect("sent");
            assert_eq!(status, StatusCode::OK, "{said}");
        }
        run
    }

    async fn registered_model(&self) {
        self.world.call("ada", "registered-models/create", json!({ "name": "digits" })).await;
    }

    /// Sends a file's only part to the store; what is then to be completed.
    async fn sent_in_parts(&self, folder: &str) -> Value {
        let body = json!({ "path": "weights", "num_parts": 1 });
        let begun = self.send("POST", format!("{MPU}/create/{folder}"), body.to_string());
        let (status, begun) = begun.await.expect("answered");
        assert_eq!(status, StatusCode::OK, "{begun}");
        let begun: Value = serde_json::from_str(&begun).expect("JSON");
        let url = begun["credentials"][0]["url"].as_str().expect("an address");
        let sent = reqwest::Client::new().put(url).body("new").send().await.expect("store");
        let tag = sent.headers()["etag"].to_str().expect("a tag");
        let parts = json!([{ "part_number": 1, "etag": tag }]);
        json!({ "path": "weights", "upload_id": begun["upload_id"], "parts": parts })
    }

    /// Registers the folder `model` of a run.
    fn register(&self, run: &str) -> tokio::task::JoinHandle<(StatusCode, String)> {
        // By its place: of a run nothing is found once its rows are gone.
        let folder = RunInfo::artifact_root(&RunId::new(run).expect("id"));
        let source = format!("azureml://datastores/{ARTIFACT_STORE}/paths/{folder}/model");
        let body = json!({ "name": "digits", "source": source });
        let path = "/api/2.0/mlflow/model-versions/create".to_owned();
        self.send("POST", path, body.to_string())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_what_is_logged_while_its_folder_is_deleted_stays() {
    let between = Between::new().await;
    let run = between.run_with(&["deep/a", "deep/b", "deep/c"]).await;
    let root = format!("{PROXY}/0/{run}/artifacts");
    let (is_there, answer) = between.stop(Stop::Deletes);
    let deleted = between.send("DELETE", format!("{root}/deep"), "");
    is_there.await.expect("it is being deleted");
    let names = ["a", "b", "c"];
    let logged = names.map(|name| between.send("PUT", format!("{root}/deep/{name}"), "new"));
    sleep(SOON).await;
    answer.send(StatusCode::OK).expect("awaited");
    assert_eq!(deleted.await.expect("answered").0, StatusCode::OK);
    for logged in logged {
        let (status, said) = logged.await.expect("answered");
        assert_eq!(status, StatusCode::OK, "{said}");
    }
    for name in names {
        let got = between.send("GET", format!("{root}/deep/{name}"), "").await.expect("answered");
        assert_eq!(got, (StatusCode::OK, "new".to_owned()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_nothing_is_made_a_version_while_it_is_deleted() {
    let between = Between::new().await;
    let run = between.run_with(&["model/MLmodel", "model/weights"]).await;
    between.registered_model().await;
    let (is_there, answer) = between.stop(Stop::Deletes);
    let deleted = between.send("DELETE", format!("{PROXY}/0/{run}/artifacts/model"), "");
    is_there.await.expect("it is being deleted");
    let mut registered = between.register(&run);
    let early = timeout(SOON, &mut registered).await;
    answer.send(StatusCode::OK).expect("awaited");
    assert!(early.is_err(), "{early:?}");
    assert_eq!(deleted.await.expect("answered").0, StatusCode::OK);
    registered.await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_an_upload_in_parts_is_not_completed_once_its_place_is_kept() {
    let between = Between::new().await;
    let world = &between.world;
    let run = between.run_with(&["model/MLmodel"]).await;
    between.registered_model().await;
    world.job("job_a", "exp").await;
    world.job("job_b", "exp").await;
    let refused = async |root: &str, meanwhile: &dyn Fn() -> BoxFuture<'static, ()>| {
        let folder = format!("{root}/artifacts/model");
        let body = between.sent_in_parts(&folder).await;
        let (is_there, answer) = between.stop(Stop::Completes);
        let path = format!("{MPU}/complete/{folder}");
        let completed = between.send("POST", path, body.to_string());
        is_there.await.expect("it is being completed");
        meanwhile().await;
        // It is asked again, now or never.
        answer.send(StatusCode::SERVICE_UNAVAILABLE).expect("awaited");
        let (status, said) = completed.await.expect("answered");
        let file = format!("{PROXY}/{folder}/weights");
        assert_eq!(between.send("GET", file, "").await.expect("answered").0, 404, "{said}");
        (status.as_u16(), said)
    };

    let (status, said) = refused(&format!("0/{run}"), &|| {
        let registered = between.register(&run);
        async { assert_eq!(registered.await.expect("answered").0, StatusCode::OK) }.boxed()
    })
    .await;
    assert!(status == 403 && said.contains("which never changes"), "{status} {said}");

    // What a job left is looked at once more: it may name the file.
    for (job, names_it, code, words) in [
        ("job_a", true, 403, "outputs do not change"),
        ("job_b", false, 503, "has ended meanwhile"),
    ] {
        let (status, said) = refused(&format!("1/{job}"), &|| {
            let world = world.clone();
            async move {
                if names_it {
                    world.manifests.name(job, "model/weights");
                }
                world.follow(job, RunStatus::Finished).await;
            }
            .boxed()
        })
        .await;
        assert!(status == code && said.contains(words), "{status} {said}");
    }
}
