//! Streams behind the door, which are asked again every few milliseconds here.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use atelier_core::access::{Caller, Permission, Role};
use atelier_core::time::Timestamp;
use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::any;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;

use super::*;
use crate::identity::people::NewToken;
use crate::identity::{Asking, Door, Present, guard};
use crate::store::tests::{Folder, who};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const OFTEN: Duration = Duration::from_millis(5);

struct World {
    folder: Folder,
    door: Arc<Door>,
    time: Arc<AtomicI64>,
    routes: Router,
}

/// The answer never ends; what was sent is told to whoever listens.
async fn endless(heard: mpsc::Sender<Result<Bytes, String>>, request: Request) -> Response {
    let mut sent = request.into_body().into_data_stream();
    tokio::spawn(async move {
        while let Some(piece) = sent.next().await {
            let _ = heard.send(piece.map_err(|error| error.to_string())).await;
        }
    });
    let first = stream::iter([Ok::<_, axum::Error>(Bytes::from_static(b"first"))]);
    Response::new(Body::from_stream(first.chain(stream::pending())))
}

impl World {
    fn new(heard: mpsc::Sender<Result<Bytes, String>>) -> Self {
        let folder = Folder::new();
        let time = Arc::new(AtomicI64::new(1_700_000_000_000));
        let shown = time.clone();
        let clock = Arc::new(move || Timestamp::from_millis(shown.load(Ordering::SeqCst)));
        let key = folder.at().join("token.key");
        let door = Door::with_clock(folder.open(), &key, "test", clock).unwrap();
        let door = Arc::new(door.asking_every(OFTEN));
        let routes = Router::new()
            .route("/{*all}", any(move |request| endless(heard.clone(), request)))
            .layer(from_fn_with_state(door.clone(), guard));
        Self { folder, door, time, routes }
    }

    async fn token(&self, role: Role, lives_ms: Option<u64>) -> (String, String) {
        let new = NewToken { principal: who("ana"), role: Some(role), lives_ms };
        let made = self.door.people().issue(new, &root()).await.unwrap();
        (made.secret, made.listed.id.to_string())
    }

    async fn open(&self, path: &str, token: &str, is_grpc: bool, sent: Body) -> Body {
        let kind = if is_grpc { "application/grpc" } else { "text/plain" };
        self.open_as(path, token, kind, sent).await
    }

    async fn open_as(&self, path: &str, token: &str, kind: &str, sent: Body) -> Body {
        let request = Request::builder()
            .uri(format!("http://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", kind)
            .body(sent)
            .unwrap();
        let mut body = self.routes.clone().oneshot(request).await.unwrap().into_body();
        assert_eq!(frame(&mut body).await.unwrap().unwrap().into_data().unwrap(), "first");
        body
    }

    /// The clock by which tokens expire goes on.
    fn later(&self, seconds: i64) {
        self.time.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

fn root() -> Asking {
    Caller { principal: who("root"), role: Role::Admin }.into()
}

async fn frame(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    let next = std::future::poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(&mut *body), cx));
    tokio::time::timeout(PATIENCE, next).await.expect("there is nothing to hear")
}

/// That there is nothing to hear now.
async fn is_silent(body: &mut Body) -> bool {
    futures::poll!(std::pin::pin!(frame(body))).is_pending()
}

fn nobody() -> mpsc::Sender<Result<Bytes, String>> {
    mpsc::channel(1).0
}

const WATCH: &str = "/atelier.job.v1.JobService/WatchEvents";

#[tokio::test]
async fn a_stream_ends_soon_after_its_token() {
    let world = World::new(nobody());
    let (token, _) = world.token(Role::Reader, Some(150_000)).await;
    let mut grpc = world.open(WATCH, &token, true, Body::empty()).await;
    let mut http = world.open("/api/x", &token, false, Body::empty()).await;
    world.later(149);
    assert!(is_silent(&mut grpc).await && is_silent(&mut http).await);
    world.later(1);
    let trailers = frame(&mut grpc).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], (tonic::Code::Unauthenticated as i32).to_string());
    let said = trailers["grpc-message"].to_str().unwrap();
    assert!(said.contains("expired%20at") || said.contains("expired at"), "{said}");
    assert!(frame(&mut grpc).await.is_none());
    let broken = frame(&mut http).await.unwrap().unwrap_err();
    assert!(broken.to_string().contains("expired at"), "{broken}");
    assert!(frame(&mut http).await.is_none());
}

#[tokio::test]
async fn a_revoked_token_and_a_lesser_role_end_what_goes_on() {
    let world = World::new(nobody());
    let (token, id) = world.token(Role::DataScientist, None).await;
    let (other, _) = world.token(Role::DataScientist, None).await;
    let exec = "/atelier.job.v1.JobService/EnterJob";
    let mut revoked = world.open(WATCH, &token, true, Body::empty()).await;
    let mut entered = world.open(exec, &other, true, Body::empty()).await;
    let mut watched = world.open(WATCH, &other, true, Body::empty()).await;
    world.door.people().revoke(&id, &root()).await.unwrap();
    world.door.people().update_user("ana", Role::Reader, &root()).await.unwrap();
    let code = |trailers: &HeaderMap| trailers["grpc-status"].to_str().unwrap().to_owned();
    let trailers = frame(&mut revoked).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(code(&trailers), (tonic::Code::Unauthenticated as i32).to_string());
    assert!(trailers["grpc-message"].to_str().unwrap().contains("revoked"));
    // A reader still watches, and enters no job.
    let trailers = frame(&mut entered).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(code(&trailers), (tonic::Code::PermissionDenied as i32).to_string());
    assert!(is_silent(&mut watched).await);
    drop(world.folder);
}

/// By gRPC-Web trailers are bytes of the body: a mark, four of their length, then a line of each.
#[tokio::test]
async fn a_stream_of_grpc_web_ends_in_its_own_words() {
    let world = World::new(nobody());
    for kind in ["application/grpc-web+proto", "application/grpc-web-text"] {
        let (token, id) = world.token(Role::Reader, None).await;
        let mut body = world.open_as(WATCH, &token, kind, Body::empty()).await;
        world.door.people().revoke(&id, &root()).await.unwrap();
        let bytes = frame(&mut body).await.unwrap().unwrap().into_data().unwrap();
        let bytes = match kind.ends_with("text") {
            true => STANDARD.decode(bytes).unwrap(),
            false => bytes.to_vec(),
        };
        let (mark, rest) = bytes.split_at(5);
        let length = u32::from_be_bytes(mark[1..].try_into().unwrap());
        assert_eq!((mark[0], length as usize), (0x80, rest.len()));
        let said = String::from_utf8(rest.to_vec()).unwrap();
        assert!(said.contains("grpc-status:16\r\n") && said.contains("revoked"), "{said}");
        assert!(said.ends_with("\r\n"), "{said}");
        assert!(frame(&mut body).await.is_none());
    }
}

/// Shows who it knows, and never ends.
async fn shows(seen: mpsc::Sender<Present>, request: Request) -> Response {
    seen.send(request.extensions().get::<Present>().unwrap().clone()).await.unwrap();
    Response::new(Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>()))
}

/// A service that tells each what its role lets it see learns of another role.
#[tokio::test]
async fn a_lesser_role_is_known_to_what_goes_on() {
    let world = World::new(nobody());
    let (token, _) = world.token(Role::Reader, None).await;
    let (seen, mut shown) = mpsc::channel(1);
    let routes = Router::new()
        .route("/{*all}", any(move |request| shows(seen.clone(), request)))
        .layer(from_fn_with_state(world.door.clone(), guard));
    let request = Request::builder()
        .uri(format!("http://localhost{WATCH}"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .unwrap();
    let mut body = routes.oneshot(request).await.unwrap().into_body();
    let present = shown.recv().await.unwrap();
    assert!(present.caller().may(Permission::ReadRuns));
    world.door.people().update_user("ana", Role::ComputeOperator, &root()).await.unwrap();
    let begun = Instant::now();
    while present.caller().may(Permission::ReadRuns) {
        assert!(begun.elapsed() < PATIENCE, "its role is what it was");
        assert!(is_silent(&mut body).await, "it goes on");
        tokio::time::sleep(OFTEN).await;
    }
}

/// What a client sends on and on is cut off too, also where the answer only comes at its end.
#[tokio::test]
async fn what_is_sent_ends_with_the_token() {
    let (heard, mut told) = mpsc::channel(16);
    let world = World::new(heard);
    let (token, id) = world.token(Role::DataScientist, None).await;
    let (send, sent) = mpsc::channel::<Result<Bytes, axum::Error>>(4);
    let sent = Body::from_stream(ReceiverStream::new(sent));
    let _answer = world.open("/atelier.content.v1.ContentService/Put", &token, true, sent).await;
    send.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), "a");
    world.door.people().revoke(&id, &root()).await.unwrap();
    let ended = told.recv().await.unwrap().unwrap_err();
    assert!(ended.contains("revoked"), "{ended}");
    // Whoever listens there too is gone with the routes.
    drop(world);
    assert!(told.recv().await.is_none());
}

fn asked(is_over: &Arc<AtomicBool>, times: &Arc<AtomicI64>) -> Ask {
    let (over, times) = (is_over.clone(), times.clone());
    Arc::new(move || {
        times.fetch_add(1, Ordering::SeqCst);
        if over.load(Ordering::SeqCst) { Err(Denied::Revoked) } else { Ok(()) }
    })
}

/// One that always has something to say is asked as well.
#[tokio::test]
async fn a_busy_stream_is_asked_too() {
    let always = stream::repeat_with(|| Ok::<_, axum::Error>(Bytes::from_static(b"x")));
    let (is_over, times) = (Arc::default(), Arc::default());
    let ask = asked(&is_over, &times);
    let mut body = Reauthorised::body(Body::from_stream(always), ask, OFTEN, Dialect::GrpcAnswer);
    let begun = Instant::now();
    while times.load(Ordering::SeqCst) < 3 {
        assert!(frame(&mut body).await.unwrap().unwrap().is_data());
        assert!(begun.elapsed() < PATIENCE);
    }
    is_over.store(true, Ordering::SeqCst);
    while frame(&mut body).await.is_some_and(|next| next.unwrap().is_data()) {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(frame(&mut body).await.is_none());
}

/// One that has nothing to say is asked time and again, and costs nothing between.
#[tokio::test]
async fn a_silent_stream_is_asked_time_and_again() {
    let (is_over, times) = (Arc::<AtomicBool>::default(), Arc::<AtomicI64>::default());
    let ask = asked(&is_over, &times);
    let silent = Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>());
    let mut body = Reauthorised::body(silent, ask, OFTEN, Dialect::GrpcAnswer);
    let (over, counted) = (is_over.clone(), times.clone());
    let watcher = tokio::spawn(async move {
        while counted.load(Ordering::SeqCst) < 5 {
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(frame(&mut body).await.unwrap().unwrap().is_trailers());
    watcher.await.unwrap();
    assert!(times.load(Ordering::SeqCst) >= 5);
}
