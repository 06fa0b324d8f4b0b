use atelier_core::access::{Caller, Role};
use atelier_core::time::Timestamp;
use axum::body::to_bytes;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::{Extension, Router};
use tower::ServiceExt as _;

use super::*;
use crate::store::tests::{Folder, who};

struct World {
    _folder: Folder,
    routes: Router,
    token: String,
}

impl World {
    async fn new() -> Self {
        let folder = Folder::new();
        let door =
            Arc::new(Door::open(folder.open(), &folder.at().join("token.key"), "test").unwrap());
        let now = Timestamp::from_millis(1);
        let token = door.create_token(who("ana"), Role::Reader, who("root"), now).await.unwrap();
        let named =
            |Extension(caller): Extension<Caller>| async move { caller.principal.to_string() };
        let routes = Router::new()
            .route("/healthz", get(|| async { "in" }))
            .route("/version", get(named))
            .layer(from_fn_with_state(door, guard));
        Self { _folder: folder, routes, token }
    }

    /// Status and body of a request with these headers.
    async fn ask(&self, uri: &str, headers: &[(&str, &[u8])]) -> (u16, String) {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn only_this_machine_s_own_names_lead_in() {
    let world = World::new().await;
    for own in [
        "localhost",
        "LocalHost:7420",
        "127.0.0.1",
        "127.0.0.1:7420",
        "127.8.9.10:1",
        "[::1]",
        "[::1]:65535",
    ] {
        let answer = world.ask("/healthz", &[("host", own.as_bytes())]).await;
        assert_eq!(answer, (200, "in".to_owned()), "{own}");
        let answer = world.ask(&format!("http://{own}/healthz"), &[]).await;
        assert_eq!(answer.0, 200, "{own} as HTTP/2 writes it");
    }
    for foreign in [
        "",
        "evil.example",
        "evil.example:7420",
        "localhost.evil.example",
        "evil.localhost",
        "localhost.",
        "127.0.0.1.nip.io:7420",
        "127.0.0.1.evil.example",
        "127.0.0.1:7420.evil.example",
        "localhost:7420@evil.example",
        "evil.example@localhost",
        "localhost:",
        "localhost:http",
        "localhost:99999",
        "localhost:80:80",
        "[::1].evil.example",
        "[::1]evil:80",
        "[::1]:x",
        "[::1",
        "::1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::2]:80",
        "0.0.0.0",
        "0.0.0.0:7420",
        "10.0.0.1",
        "169.254.169.254",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "127.0.0.1, evil.example",
        " localhost",
    ] {
        let (status, said) = world.ask("/healthz", &[("host", foreign.as_bytes())]).await;
        assert_eq!(status, 403, "{foreign}: {said}");
        // Not even with a token.
        let bearer = format!("Bearer {}", world.token);
        let headers = [("host", foreign.as_bytes()), ("authorization", bearer.as_bytes())];
        assert_eq!(world.ask("/version", &headers).await.0, 403, "{foreign}");
    }
    assert_eq!(world.ask("/healthz", &[]).await.0, 403, "no name at all");
    assert_eq!(world.ask("/healthz", &[("host", b"\xff\xfe")]).await.0, 403);
    assert_eq!(world.ask("http://evil.example/healthz", &[]).await.0, 403);
}

#[tokio::test]
async fn over_tls_the_certificate_s_names_lead_in_too() {
    let world = World::new().await;
    let names = ["gate.example", "*.nodes.example", "10.0.0.7", "fd00::2"];
    let own = |name: &&str| match name.parse() {
        Ok(address) => crate::tls::Name::Address(address),
        Err(_) => crate::tls::Name::Dns((*name).to_owned()),
    };
    let hosts = Arc::new(Hosts::of(names.iter().map(own)));
    let ask = async |host: &str| {
        let request = Request::builder().uri("/healthz").header("host", host);
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(hosts.clone());
        world.routes.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    for own in [
        "gate.example:7420",
        "Gate.Example",
        "a.nodes.example",
        "10.0.0.7:1",
        "[fd00::2]:7",
        "localhost",
    ] {
        assert_eq!(ask(own).await, 200, "{own}");
        assert_eq!(
            world.ask("/healthz", &[("host", own.as_bytes())]).await.0 == 200,
            own == "localhost"
        );
    }
    for foreign in [
        "evil.example",
        "nodes.example",
        "a.b.nodes.example",
        "10.0.0.8",
        "fd00::2",
        "gate.example:x",
        "",
    ] {
        assert_eq!(ask(foreign).await, 403, "{foreign}");
    }
}

#[tokio::test]
async fn of_two_names_both_must_be_own() {
    let world = World::new().await;
    for (uri, hosts) in [
        ("/healthz", ["localhost", "evil.example"]),
        ("/healthz", ["evil.example", "localhost"]),
        ("http://localhost/healthz", ["evil.example", "localhost"]),
        ("http://evil.example/healthz", ["localhost", "localhost"]),
    ] {
        let headers = hosts.map(|host| ("host", host.as_bytes()));
        assert_eq!(world.ask(uri, &headers).await.0, 403, "{uri} {hosts:?}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_are_kept_out() {
    let world = World::new().await;
    let host = ("host", b"127.0.0.1:7420".as_slice());
    let ask = |origin: &'static str| {
        let world = &world;
        async move { world.ask("/healthz", &[host, ("origin", origin.as_bytes())]).await.0 }
    };
    assert_eq!(ask("http://127.0.0.1:7420").await, 200);
    for foreign in [
        "",
        "null",
        "http://evil.example",
        "http://evil.example:7420",
        "https://127.0.0.1.evil.example:7420",
        // This machine's, but another program's.
        "http://127.0.0.1:8888",
        "http://127.0.0.1",
        "http://localhost:7420",
        "127.0.0.1:7420",
        "http://127.0.0.1:7420/",
        "http://127.0.0.1:7420.evil.example",
        "http://evil.example://127.0.0.1:7420",
        "file://",
        "chrome-extension://127.0.0.1",
    ] {
        assert_eq!(ask(foreign).await, 403, "{foreign}");
    }
    let own = ("origin", b"http://127.0.0.1:7420".as_slice());
    let other = ("origin", b"http://evil.example".as_slice());
    assert_eq!(world.ask("/healthz", &[host, own, other]).await.0, 403);
    assert_eq!(world.ask("/healthz", &[host, ("origin", b"\xff")]).await.0, 403);
    // What is told of it is cut and says what to do.
    let long = "x".repeat(5_000);
    let (_, said) = world.ask("/healthz", &[("host", long.as_bytes())]).await;
    assert!(said.len() < 400 && said.contains("own addresses"), "{said}");
}

#[tokio::test]
async fn a_refusal_is_in_the_caller_s_dialect() {
    let world = World::new().await;
    let host = ("host", b"localhost".as_slice());
    let bearer = format!("Bearer {}", world.token);
    let ana = ("authorization", bearer.as_bytes());
    let answer = world.ask("/version", &[host, ana]).await;
    assert_eq!(answer, (200, "ana".to_owned()));
    for (headers, word) in [
        (vec![host], "no token was given"),
        (vec![host, ("authorization", b"Bearer wrong".as_slice())], "not valid here"),
        (vec![host, ("authorization", b"\xff\xfe".as_slice())], "token"),
    ] {
        let (status, said) = world.ask("/version", &headers).await;
        assert_eq!(status, 401, "{said}");
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["error_code"], "UNAUTHENTICATED");
        assert!(said["message"].as_str().unwrap().contains(word), "{said}");
    }
    // gRPC: 200 and a status in the headers.
    let request = Request::builder()
        .uri("http://localhost/atelier.identity.v1.TokenService/CreateToken")
        .header("content-type", "application/grpc")
        .header("authorization", &bearer)
        .body(Body::empty())
        .unwrap();
    let response = world.routes.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let code = tonic::Code::PermissionDenied as i32;
    assert_eq!(response.headers()["grpc-status"], code.to_string());
    let request = Request::builder().uri("http://localhost/version").body(Body::empty()).unwrap();
    let response = world.routes.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}
