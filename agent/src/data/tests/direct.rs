//! Reading and writing past the daemon.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::spec::{DataKind, InputMode};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::super::direct::Direct;
use super::super::gateway::Failure;
use super::super::room::SMALL;
use super::world::{Shared, TOKEN, World, refusal, serve};

/// What the daemon says of addresses and of uploads in parts.
pub(super) async fn answer(daemon: &Shared, head: &Parts, body: Body) -> Response {
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let asked: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let path = head.uri.path().strip_prefix("/data/v1/").unwrap().split_once('/');
    let path = path.map(|(_, path)| percent_decode_str(path).decode_utf8().unwrap().into_owned());
    let mut daemon = daemon.lock().unwrap();
    let base = daemon.signs.clone();
    let Some(path) = path else {
        daemon.requests.push("SIGN".to_owned());
        let paths = asked["sign"].as_array().unwrap();
        let url = |base: &String| {
            let all =
                paths.iter().map(|path| format!("{base}/store/{}?sig", path.as_str().unwrap()));
            all.collect::<Vec<_>>()
        };
        return json!({ "urls": base.as_ref().map(url), "seconds": 600 })
            .to_string()
            .into_response();
    };
    if head.method == Method::DELETE {
        daemon.requests.push(format!("GIVE UP {path}"));
        daemon.parts.retain(|(of, _), _| *of != path);
        return StatusCode::NO_CONTENT.into_response();
    }
    if head.uri.query().unwrap_or_default().starts_with("size=") {
        let upload = base.map(|_| "it");
        return json!({ "upload": upload, "part_size": 8 << 20 }).to_string().into_response();
    }
    assert_eq!(head.uri.query(), Some("upload=it"));
    if let (Some(from), Some(to)) = (asked["sign"]["from"].as_u64(), asked["sign"]["to"].as_u64()) {
        let base = base.unwrap();
        if daemon.signs_later > 0 {
            daemon.signs_later -= 1;
            return refusal(StatusCode::SERVICE_UNAVAILABLE);
        }
        daemon.requests.push(format!("SIGN PARTS {path}"));
        let end = daemon.signed_for.map_or(u64::MAX, |lasting| now() + lasting.as_millis() as u64);
        let url = |part| format!("{base}/store/{path}?end={end}&part={part}");
        let urls: Vec<String> = (from..to).map(url).collect();
        let seconds = daemon.signed_for.map_or(600, |lasting| lasting.as_secs());
        return json!({ "urls": urls, "seconds": seconds }).to_string().into_response();
    }
    if daemon.refuses_to_complete {
        return refusal(StatusCode::FORBIDDEN);
    }
    let tags = asked["complete"].as_array().unwrap().len();
    let mut whole = Vec::new();
    for part in 1..=tags as u32 {
        whole.extend_from_slice(&daemon.parts[&(path.clone(), part)]);
    }
    daemon.write(&path, whole.into());
    StatusCode::CREATED.into_response()
}

/// The store, where whoever has an address is let in.
pub(super) async fn store(State(daemon): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    assert!(!head.headers.contains_key(header::AUTHORIZATION), "a store is told a token");
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = head.uri.path().strip_prefix("/store/").unwrap().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let is_slow = daemon.lock().unwrap().signed_for.is_some();
    if let Some((end, _)) = query.strip_prefix("end=").and_then(|query| query.split_once('&'))
        && end.parse::<u64>().unwrap() < now()
    {
        daemon.lock().unwrap().requests.push("EXPIRED".to_owned());
        return StatusCode::FORBIDDEN.into_response();
    }
    if is_slow {
        // Longer than the addresses are used for: what is sent after these needs others.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    let mut daemon = daemon.lock().unwrap();
    daemon.requests.push(format!("STORE {} {path}", head.method));
    if let Some(status) = daemon.store_says {
        return status.into_response();
    }
    if head.method == Method::PUT {
        if daemon.fails() {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let part = query.rsplit_once("part=").unwrap().1.parse().unwrap();
        let sum = BASE64_STANDARD.encode(Md5::digest(&bytes));
        assert_eq!(head.headers["content-md5"].to_str().unwrap(), sum);
        daemon.parts.insert((path, part), bytes);
        return [(header::ETAG, format!("\"{part}\""))].into_response();
    }
    let Some((bytes, tag)) = daemon.objects.get(&path).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = serve(&mut daemon, &head.headers, &bytes, &tag);
    if daemon.tags_anew {
        response.headers_mut().insert(header::ETAG, "\"anew\"".parse().unwrap());
    }
    response
}

fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

async fn world() -> World {
    let world = World::new(false).await;
    let base = format!("http://{}", world.address);
    world.daemon.lock().unwrap().signs = Some(base);
    world
}

/// Bytes that are nowhere the same.
fn bytes(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4) as u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
}

async fn read(world: &World, path: &str) -> String {
    world.input("x", path, DataKind::UriFolder, InputMode::Download).await.unwrap()
}

#[tokio::test]
async fn objects_come_from_the_store_itself_and_large_ones_in_ranges() {
    let world = world().await;
    let large = bytes((50 << 20) + 7);
    for n in 0..5 {
        world.store(&format!("set/{n}"), format!("text {n}").as_bytes());
    }
    world.store("set/large", &large);
    world.break_next(3);
    let folder = read(&world, "set").await;
    assert!(fs::read(format!("{folder}/large")).unwrap() == large, "other bytes");
    assert_eq!(fs::read_to_string(format!("{folder}/3")).unwrap(), "text 3");
    assert_eq!(world.requests("SIGN"), 1, "for all of them");
    assert!(world.requests("STORE GET set/large") >= 4);
    // A part that broke off goes on by way of the daemon.
    assert!(world.requests("GET ") <= 3, "{:?}", world.daemon.lock().unwrap().requests);
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_left_to_the_gateway() {
    let world = world().await;
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.daemon.lock().unwrap().signs = Some(format!("http://{free}"));
    for n in 0..20 {
        world.store(&format!("set/{n}"), b"text");
    }
    let folder = read(&world, "set").await;
    assert_eq!(fs::read_dir(folder).unwrap().count(), 20);
    assert_eq!((world.requests("SIGN"), world.requests("GET set/")), (1, 20));
}

#[tokio::test]
async fn what_a_store_says_is_asked_of_the_gateway_again() {
    for says in [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::OK] {
        let world = world().await;
        world.daemon.lock().unwrap().store_says = Some(says);
        world.store("set/a", b"text");
        world.store("set/large", &vec![7; 40 << 20]);
        let folder = read(&world, "set").await;
        assert_eq!(fs::read(format!("{folder}/a")).unwrap(), b"text", "{says}");
        assert_eq!(fs::metadata(format!("{folder}/large")).unwrap().len(), 40 << 20, "{says}");
        assert!(world.requests("STORE GET") > 0 && world.requests("GET set/") > 0, "{says}");
        // What is not there says nothing of the store, and everything else does.
        world.daemon.lock().unwrap().requests.clear();
        world.store("set/b", b"text");
        read(&world, "set").await;
        let asks_again = says == StatusCode::NOT_FOUND;
        assert_eq!(world.requests("STORE GET") > 0, asks_again, "{says}");
    }
}

#[tokio::test]
async fn a_store_that_tags_its_answers_anew_is_left_to_the_gateway() {
    let world = world().await;
    world.daemon.lock().unwrap().tags_anew = true;
    for n in 0..20 {
        world.store(&format!("set/{n}"), b"text");
    }
    let folder = read(&world, "set").await;
    assert_eq!(fs::read_dir(folder).unwrap().count(), 20);
    world.daemon.lock().unwrap().requests.clear();
    world.store("set/more", b"text");
    read(&world, "set").await;
    assert_eq!((world.requests("STORE GET"), world.requests("GET set/more")), (0, 1));
}

#[test]
fn what_fails_together_counts_once() {
    let direct = Direct::new().unwrap();
    let busy = || Failure::Status(StatusCode::SERVICE_UNAVAILABLE, String::new());
    (0..100).for_each(|_| direct.failed("store", &busy()));
    assert!(direct.tries("store"));
    direct.failed("store", &Failure::Unreached("no answer".to_owned()));
    assert!(!direct.tries("store") && direct.tries("other"));
}

#[tokio::test]
async fn an_input_that_is_kept_whole_needs_no_addresses() {
    let world = world().await;
    for n in 0..300 {
        world.store(&format!("set/{n}"), format!("text {n}").as_bytes());
    }
    read(&world, "set").await;
    assert_eq!((world.requests("SIGN"), world.requests("STORE GET set/")), (2, 300));
    let folder = read(&world, "set").await;
    assert_eq!(fs::read_to_string(format!("{folder}/299")).unwrap(), "text 299");
    assert_eq!((world.requests("SIGN"), world.requests("STORE GET set/")), (2, 300));
}

#[tokio::test]
async fn small_objects_are_whole_however_they_come() {
    let small = SMALL as usize;
    let sizes = [0, 1, small - 1, small, small + 1, 2 * small];
    for past_the_daemon in [true, false] {
        let world = world().await;
        if !past_the_daemon {
            world.daemon.lock().unwrap().signs = None;
        }
        for size in sizes {
            world.store(&format!("set/{size}"), &bytes(size));
        }
        world.break_next(4);
        let folder = std::path::PathBuf::from(read(&world, "set").await);
        for size in sizes {
            let read = fs::read(folder.join(size.to_string())).unwrap();
            assert!(
                read == bytes(size),
                "other bytes of {size}, past the daemon: {past_the_daemon}"
            );
        }
        let stored = world.plane.upload(&folder, &world.at("out"), "o", TOKEN).await.unwrap();
        assert_eq!(stored.len(), sizes.len());
        for entry in stored {
            let bytes = world.stored(&entry.key).unwrap();
            assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (entry.bytes, entry.digest));
        }
    }
}

#[tokio::test]
async fn no_address_of_this_machine_is_taken_from_a_daemon_elsewhere() {
    let world = world().await;
    let gateway =
        crate::data::gateway::Gateway::new("http://192.0.2.1:7420", &Default::default()).unwrap();
    for closed in
        ["http://127.0.0.1:9000/b/k?x", "https://localhost/b", "http://[::1]:1/", "no url"]
    {
        assert!(!gateway.may_reach(closed), "{closed}");
    }
    assert!(gateway.may_reach("https://store.example/b/k?x"));
    drop(world);
}

#[tokio::test]
async fn a_large_file_is_written_to_the_store_in_parts() {
    let world = world().await;
    let large = bytes((30 << 20) + 1);
    let from = world.folder.path().join("large");
    fs::write(&from, &large).unwrap();
    world.fail_next(2);
    let stored = world.plane.upload(&from, &world.at("out/large"), "o", TOKEN).await.unwrap();
    assert_eq!(stored[0].digest, Digest::of(&large));
    assert!(world.stored("out/large").unwrap() == large, "other bytes");
    assert_eq!((world.requests("STORE PUT"), world.requests("PUT ")), (4 + 2, 0));
}

/// Others are asked for before they have.
#[tokio::test]
async fn addresses_may_expire_while_a_file_is_written() {
    let world = world().await;
    world.daemon.lock().unwrap().signed_for = Some(Duration::from_secs(4));
    let from = world.folder.path().join("large");
    fs::write(&from, bytes(48 << 20)).unwrap();
    world.plane.upload(&from, &world.at("out/large"), "o", TOKEN).await.unwrap();
    assert_eq!(world.stored("out/large").unwrap().len(), 48 << 20);
    assert_eq!((world.requests("EXPIRED"), world.requests("PUT ")), (0, 0));
    assert!(world.requests("SIGN PARTS") > 1);
}

/// What was sent so far is not sent anew because the daemon is away for a moment.
#[tokio::test]
async fn an_upload_in_parts_waits_for_the_daemon() {
    let world = world().await;
    world.daemon.lock().unwrap().signs_later = 2;
    let from = world.folder.path().join("large");
    fs::write(&from, bytes(20 << 20)).unwrap();
    world.plane.upload(&from, &world.at("out/large"), "o", TOKEN).await.unwrap();
    assert_eq!(world.stored("out/large").unwrap().len(), 20 << 20);
    assert_eq!((world.requests("GIVE UP"), world.requests("PUT ")), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_written_in_parts_goes_through_the_gateway() {
    for is_refused in [true, false] {
        let world = world().await;
        world.daemon.lock().unwrap().refuses_to_complete = is_refused;
        world.daemon.lock().unwrap().store_says = (!is_refused).then_some(StatusCode::FORBIDDEN);
        let from = world.folder.path().join("large");
        fs::write(&from, bytes(20 << 20)).unwrap();
        world.plane.upload(&from, &world.at("out/large"), "o", TOKEN).await.unwrap();
        assert_eq!((world.requests("GIVE UP"), world.requests("PUT ")), (1, 1), "{is_refused}");
        assert_eq!(world.stored("out/large").unwrap().len(), 20 << 20);
    }
}
