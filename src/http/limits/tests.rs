#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::convert::Infallible;

use atelier_core::access::Role;
use atelier_core::id::NodeName;
use atelier_proto::DESCRIPTORS;
use axum::body::to_bytes;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, get};
use axum::{Extension, Router};
use futures::StreamExt as _;
use prost::Message;
use tokio::sync::Notify;
use tower::ServiceExt as _;

use super::*;
use crate::daemon::tests::raw::Descriptors;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const GET_JOB: &str = "/atelier.job.v1.JobService/GetJob";

fn limits(request_rate: u32, requests_at_once: u32) -> Limits {
    Limits::new(LimitArgs { request_rate, requests_at_once, ..Default::default() })
}

/// Routes as the daemon's, of which one takes what it is sent, and one never ends.
fn routes(limits: Limits, caller: Caller) -> Router {
    let taken = async |body: Bytes| body.len().to_string();
    let never = async || -> &'static str { std::future::pending().await };
    let follows = async || {
        let first = futures::stream::iter([Ok::<_, Infallible>("line")]);
        Body::from_stream(first.chain(futures::stream::pending()))
    };
    Router::new()
        .route("/data/v1/x", any(taken))
        .route("/data/v1/never", get(never))
        .route("/api/never", get(never))
        .route("/api/follow", get(follows))
        .route(GET_JOB, any(taken))
        .layer(from_fn_with_state(Arc::new(limits), limited))
        .layer(Extension(caller))
}

fn person(name: &str) -> Caller {
    Caller { principal: Principal::new(name).unwrap(), role: Role::DataScientist }
}

fn request(path: &str, body: Body) -> Request {
    Request::builder().uri(path).body(body).unwrap()
}

/// The same, of gRPC.
fn call(path: &str, timeout: Option<&str>, body: Body) -> Request {
    let mut request = Request::builder().uri(path).header("content-type", "application/grpc");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    request.body(body).unwrap()
}

async fn said(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 10_000).await.unwrap().to_vec()).unwrap()
}

#[test]
fn every_method_whose_client_goes_on_talking_is_listed() {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut found = BTreeSet::new();
    for file in sets.iter().flat_map(|set| Descriptors::decode(*set).unwrap().files) {
        for service in &file.services {
            let streams = service.methods.iter().filter(|method| method.client_streaming);
            found.extend(
                streams.map(|method| format!("/{}.{}/{}", file.package, service.name, method.name)),
            );
        }
    }
    let files = FILES.iter().filter(|path| path.starts_with("/atelier."));
    let listed: BTreeSet<String> = STREAMS.iter().chain(files).map(ToString::to_string).collect();
    assert_eq!(listed, found);
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_ask_again_and_others_are_served() {
    let shared = Arc::new(limits(1, 100));
    let of = |caller: Caller| {
        Router::new()
            .route("/api/x", get(async || "here"))
            .route(GET_JOB, any(async || "here"))
            .layer(from_fn_with_state(shared.clone(), limited))
            .layer(Extension(caller))
    };
    let (ana, ben) = (of(person("ana")), of(person("ben")));
    let ask = async |routes: &Router| {
        routes.clone().oneshot(request("/api/x", Body::empty())).await.unwrap()
    };
    // As many as come at once, and those that the rate gives meanwhile.
    let until_refused = async |routes: &Router| {
        let mut served = 0;
        loop {
            let answer = ask(routes).await;
            if answer.status() != 200 {
                return (served, answer);
            }
            served += 1;
            assert!(served < 10_000, "nothing is refused");
        }
    };
    let (served, refused) = until_refused(&ana).await;
    assert!((20..30).contains(&served), "{served}");
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let told = said(refused).await;
    assert!(told.contains("ana asks too often") && told.contains("1 requests a second"), "{told}");
    assert!(told.contains("REQUEST_LIMIT_EXCEEDED") && told.contains("--request-rate"), "{told}");
    assert_eq!(ask(&ben).await.status(), 200, "others are served");

    let refused = ana.clone().oneshot(call(GET_JOB, None, Body::empty())).await.unwrap();
    let status = tonic::Status::from_header_map(refused.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
    // By gRPC-Web: all of it in the headers, under the name of what was asked, and no byte besides.
    for kind in ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"]
    {
        let mut asked = call(GET_JOB, None, Body::from(&[0; 5][..]));
        asked.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let refused = ana.clone().oneshot(asked).await.unwrap();
        assert_eq!(refused.status(), 200);
        assert_eq!(refused.headers()["content-type"], kind);
        assert_eq!(refused.headers()["grpc-status"], "8");
        assert!(to_bytes(refused.into_body(), 10).await.unwrap().is_empty());
    }
    let details = rpc::Status::decode(status.details()).unwrap();
    assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let info = rpc::RetryInfo::decode(&*details.details[0].value).unwrap();
    let told = info.retry_delay.unwrap();
    let told = Duration::new(told.seconds.cast_unsigned(), told.nanos.cast_unsigned());
    assert!(told <= Duration::from_secs(1), "{told:?}");

    tokio::time::sleep(told).await;
    assert_eq!(ask(&ana).await.status(), 200, "who waits as long as it was told is served");
    let node = Caller {
        principal: Principal::new("node:n").unwrap(),
        role: Role::Node(NodeName::new("n").unwrap()),
    };
    let node = of(node);
    let (served, _) = until_refused(&node).await;
    assert!((200..300).contains(&served), "a node may ask ten times as often: {served}");
}

#[tokio::test]
async fn an_answer_counts_until_all_of_it_is_there_or_nobody_waits_for_it() {
    let routes = routes(limits(1000, 2), person("ana"));
    let ask =
        async |path: &str| routes.clone().oneshot(request(path, Body::empty())).await.unwrap();
    let (first, second) = (ask("/api/follow").await, ask("/api/follow").await);
    let refused = ask("/api/follow").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let told = said(refused).await;
    assert!(told.contains("2 requests") && told.contains("--requests-at-once"), "{told}");
    drop(first);
    assert_eq!(ask("/data/v1/x").await.status(), 200);
    drop(second);
    let both = (ask("/api/follow").await.status(), ask("/data/v1/x").await.status());
    assert_eq!(both, (StatusCode::OK, StatusCode::OK));
}

/// A body of so many bytes every so often, `times` of them.
fn trickle(bytes: usize, every: Duration, times: usize) -> Body {
    let piece = Bytes::from(vec![b'x'; bytes]);
    let pieces = futures::stream::iter(0..times).then(move |_| {
        let piece = piece.clone();
        async move {
            tokio::time::sleep(every).await;
            Ok::<_, Infallible>(piece)
        }
    });
    Body::from_stream(pieces)
}

#[tokio::test]
async fn row_29_a_body_that_does_not_come_is_not_waited_for() {
    let within = Duration::from_millis(300);
    let pace = Pace { within, bytes: 4096 };
    let routes = routes(Limits { pace, ..limits(1000, 10) }, person("ana"));
    let ask = async |request: Request| {
        tokio::time::timeout(PATIENCE, routes.clone().oneshot(request)).await.unwrap().unwrap()
    };
    for body in [
        Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>()),
        // One byte after the other, which would take for ever.
        trickle(1, Duration::from_millis(10), 1_000_000),
    ] {
        let answer = ask(request("/data/v1/x", body)).await;
        assert_eq!(answer.status(), 408);
        assert_eq!(answer.headers()["connection"], "close");
        let told = said(answer).await;
        assert!(told.contains("4096 bytes") && told.contains("0.3 s"), "{told}");
    }
    let never = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
    let answer = ask(call(GET_JOB, None, never)).await;
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    // A slow line is no attack: what takes several times as long comes whole.
    let slow = trickle(4096, Duration::from_millis(100), 12);
    assert_eq!(said(ask(request("/data/v1/x", slow)).await).await, (12 * 4096).to_string());
}

#[tokio::test]
async fn a_call_ends_by_its_deadline() {
    let deadline = Duration::from_millis(300);
    let routes = routes(Limits { deadline, ..limits(1000, 10) }, person("ana"));
    let ask = async |request: Request| {
        let begun = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, routes.clone().oneshot(request)).await;
        (answer.unwrap().unwrap(), begun.elapsed())
    };
    let (answer, took) = ask(request("/api/never", Body::empty())).await;
    assert_eq!(answer.status(), 503);
    assert!(took >= deadline, "{took:?}");
    let (answer, _) = ask(call("/api/never", Some("100m"), Body::empty())).await;
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert!(status.message().contains("0.1 s"), "{status:?}");
    // Nobody is given more than the daemon gives.
    let (answer, _) = ask(call("/api/never", Some("99999999H"), Body::empty())).await;
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert!(status.message().contains("0.3 s"), "{status:?}");
    // A file takes as long as it takes.
    let file = routes.clone().oneshot(request("/data/v1/never", Body::empty()));
    assert!(tokio::time::timeout(3 * deadline, file).await.is_err());
}

#[test]
fn a_calls_time_is_read_as_grpc_writes_it() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        deadline_of(&headers)
    };
    for (text, expected) in [
        ("1H", Duration::from_secs(3600)),
        ("2M", Duration::from_secs(120)),
        ("100m", Duration::from_millis(100)),
        ("5u", Duration::from_micros(5)),
        ("9n", Duration::from_nanos(9)),
        ("99999999S", Duration::from_secs(99_999_999)),
    ] {
        assert_eq!(read(text), Some(expected), "{text}");
    }
    for text in ["", "S", "5", "5s", "-1S", "1.5S", "123456789S", " 1S"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[tokio::test]
async fn who_asks_for_nothing_is_forgotten() {
    let limits = limits(1_000_000, 1);
    let busy = limits.admit(&person("busy")).unwrap();
    for n in 0..KNOWN {
        drop(limits.admit(&person(&format!("p{n}"))).unwrap());
    }
    let known = || limits.callers.read().unwrap();
    assert!(known().len() < KNOWN / 2, "{}", known().len());
    assert!(known().contains_key(&person("busy").principal));
    assert!(limits.admit(&person("busy")).is_err());
    drop(busy);
}

/// What has changed something on disk is to change it in memory too, whatever deadline its caller has set.
#[tokio::test]
async fn a_call_that_is_late_goes_on_to_its_end() {
    let (go, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (goes, is_done) = (go.clone(), done.clone());
    let changes = async move || {
        goes.notified().await;
        is_done.notify_one();
    };
    let routes = Router::new()
        .route(GET_JOB, any(changes))
        .layer(from_fn_with_state(Arc::new(limits(1000, 1)), limited))
        .layer(Extension(person("ana")));
    let ask = async || {
        let answer = routes.clone().oneshot(call(GET_JOB, Some("10m"), Body::empty())).await;
        tonic::Status::from_header_map(answer.unwrap().headers()).unwrap().code()
    };
    assert_eq!(ask().await, tonic::Code::DeadlineExceeded);
    // It has its place as long.
    assert_eq!(ask().await, tonic::Code::ResourceExhausted);
    go.notify_one();
    tokio::time::timeout(PATIENCE, done.notified()).await.unwrap();
}
