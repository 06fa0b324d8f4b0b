//! The artifact proxy: paths in every encoding, and what a job has left behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::content::manifest::{Manifest, ManifestEntry, VERSION};
use atelier_core::id::{AttemptNumber, DatastoreName, Epoch, JobName, Principal};
use atelier_core::layout::{ARTIFACT_STORE, BLOB_STORE};
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::StatusCode;
use serde_json::{Value, json};

use super::World;
use crate::storage::ObjectPath;
use crate::store::audit::Asked;
use crate::store::retention::{self, Removal};

const PROXY: &str = "/api/2.0/mlflow-artifacts/artifacts";

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).expect(text)
}

#[tokio::test]
async fn files_come_back_as_they_were() {
    let world = World::new();
    let id = world.run("ada").await;
    let root = format!("{PROXY}/0/{id}/artifacts");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    for name in ["model.bin", "a%20b/%C3%BC.txt", "deep/er/x", "50%25%20off", "empty"] {
        let content = if name == "empty" { vec![] } else { bytes.clone() };
        let address = format!("{root}/{name}");
        let (status, answer) = world.send("ada", "PUT", &address, content.clone()).await;
        assert_eq!((status, answer.as_slice()), (StatusCode::OK, b"{}".as_slice()), "{name}");
        let (status, answer) = world.send("reader", "GET", &address, "").await;
        assert!(status == StatusCode::OK && answer == content, "{name}");
    }
    let key = path(&format!("ExperimentRun/dcid.{id}/a b/ü.txt"));
    world.tracking.artifacts().head(&key).await.expect("where Azure has it");
    let list = world.call("ada", &format!("artifacts/list?run_id={id}"), Value::Null).await;
    assert_eq!(
        list,
        json!({
            "root_uri": format!("mlflow-artifacts:/0/{id}/artifacts"),
            "files": [
                { "path": "50% off", "is_dir": false, "file_size": 300_000 },
                { "path": "a b", "is_dir": true },
                { "path": "deep", "is_dir": true },
                { "path": "empty", "is_dir": false },
                { "path": "model.bin", "is_dir": false, "file_size": 300_000 },
            ],
        })
    );
    let below = format!("artifacts/list?run_id={id}&path=deep");
    let list = world.call("ada", &below, Value::Null).await;
    assert_eq!(list["files"], json!([{ "path": "deep/er", "is_dir": true }]));
    let (_, list) =
        world.send("ada", "GET", &format!("{PROXY}?path=0/{id}/artifacts/deep/er"), "").await;
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list, json!({ "files": [{ "path": "x", "is_dir": false, "file_size": 300_000 }] }));

    // Deleting a folder, and another's.
    let (status, _) = world.send("grace", "DELETE", &format!("{root}/deep"), "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = world.send("ada", "DELETE", &format!("{root}/deep"), "").await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = world.send("ada", "GET", &format!("{root}/deep/er/x"), "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let gone = path(&format!("ExperimentRun/dcid.{id}/deep/er/x"));
    assert!(world.tracking.artifacts().head(&gone).await.is_err());
    let (status, _) = world.send("reader", "PUT", &format!("{root}/x"), "x").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn no_encoding_leads_out_of_a_run() {
    let world = World::new();
    let (id, other) = (world.run("ada").await, world.run("grace").await);
    let secret = format!("{PROXY}/0/{other}/artifacts/secret");
    let (status, _) = world.send("grace", "PUT", &secret, "secret").await;
    assert_eq!(status, StatusCode::OK);
    let up = format!("dcid.{other}/secret");
    for name in [
        format!("../{up}"),
        format!("..%2F{up}"),
        format!("%2e%2e/{up}"),
        format!("%2E%2E%2F{up}"),
        format!("%252e%252e%252f{up}"),
        format!("%25252e%25252e%25252f{up}"),
        format!("a/../../{up}"),
        format!("..%5c{up}"),
        format!("..%255c{up}"),
        "%2Fetc%2Fpasswd".to_owned(),
        "//etc/passwd".to_owned(),
        "a//b".to_owned(),
        ".".to_owned(),
        "a%00b".to_owned(),
        "a%0Ab".to_owned(),
        "a%23b".to_owned(),
        "%FF%FE".to_owned(),
        "x".repeat(256),
    ] {
        let address = format!("{PROXY}/0/{id}/artifacts/{name}");
        for method in ["GET", "PUT", "DELETE"] {
            let (status, answer) = world.send("ada", method, &address, "x").await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {name}: {answer}");
            assert!(answer.contains("Invalid path"), "{method} {name}: {answer}");
        }
        let list = format!("artifacts/list?run_id={id}&path={name}");
        let (status, answer) = world.api("ada", &list, Value::Null).await;
        if name != "%FF%FE" {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {answer}");
        }
    }
    for address in ["", "/0", "/x/y/artifacts/z", "/0/a%2Fb/artifacts/z"] {
        let (status, _) = world.send("ada", "PUT", &format!("{PROXY}{address}"), "x").await;
        assert!(status.is_client_error(), "{address}: {status}");
    }
    let elsewhere = format!("{PROXY}/7/{id}/artifacts/x");
    let (status, _) = world.send("ada", "PUT", &elsewhere, "x").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // A body that ends in an error leaves nothing.
    let broken =
        futures::stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("cut"))]);
    let address = format!("{PROXY}/0/{id}/artifacts/half");
    let (status, _) = world.send("ada", "PUT", &address, Body::from_stream(broken)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = world.send("ada", "GET", &address, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_a_job_left_is_seen_once_committed_and_never_changes() {
    let world = World::new();
    world.job("job_a", "exp").await;
    let root = format!("{PROXY}/1/job_a/artifacts");
    let put = async |token: &str, name: &str| {
        world.send(token, "PUT", &format!("{root}/{name}"), "from the client").await
    };
    let get = async |name: &str| world.send("ada", "GET", &format!("{root}/{name}"), "").await;
    assert_eq!(put("job:job_a", "plots/loss.png").await.0, StatusCode::OK);
    assert_eq!(put("job:job_b", "x").await.0, StatusCode::FORBIDDEN);
    for name in ["system_logs/manifest_1.json", "metrics/metrics.parquet"] {
        let (status, answer) = put("job:job_a", name).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(String::from_utf8_lossy(&answer).contains("platform's own"));
    }
    // The agent uploads; before the manifest nothing of it is there.
    let artifacts = world.tracking.artifacts();
    let own = path("ExperimentRun/dcid.job_a/outputs/model.pkl");
    artifacts.put(&own, Bytes::from_static(b"model")).await.expect("put");
    let named = path("azureml/job_a/best/weights #1");
    let blobs = world.datastores.get(BLOB_STORE).expect("blobs");
    blobs.put(&named, Bytes::from_static(b"weights")).await.expect("put");
    assert_eq!(get("outputs/model.pkl").await.0, StatusCode::NOT_FOUND);

    let entry = |datastore: &str, key: &ObjectPath, path: &str| ManifestEntry {
        datastore: DatastoreName::new(datastore).expect("name"),
        key: key.to_string(),
        path: path.to_owned(),
        bytes: 5,
        digest: Digest::of(b"x"),
    };
    let job = JobName::new("job_a").expect("job");
    let manifest = Manifest {
        version: VERSION,
        job: job.clone(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
        partial: false,
        entries: vec![
            entry("workspaceblobstore", &named, "named-outputs/best/weights"),
            entry("workspaceartifactstore", &own, "outputs/model.pkl"),
        ],
    };
    world.manifests.0.lock().expect("lock").insert(job, Arc::new(manifest));
    assert_eq!(get("outputs/model.pkl").await, (StatusCode::OK, b"model".to_vec()));
    assert_eq!(get("named-outputs/best/weights").await, (StatusCode::OK, b"weights".to_vec()));
    let list = world.call("ada", "artifacts/list?run_id=job_a", Value::Null).await;
    let names: Vec<_> =
        list["files"].as_array().expect("files").iter().map(|f| f["path"].clone()).collect();
    assert_eq!(names, ["named-outputs", "outputs", "plots"]);
    for method in ["PUT", "DELETE"] {
        let address = format!("{root}/outputs/model.pkl");
        let (status, answer) = world.send("ada", method, &address, "other").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(String::from_utf8_lossy(&answer).contains("outputs do not change"));
    }
    // Deleting everything deletes what was logged.
    let (status, _) = world.send("ada", "DELETE", &root, "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(get("plots/loss.png").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("outputs/model.pkl").await.0, StatusCode::OK);
}

/// A body whose last byte comes when `meanwhile` has happened.
fn slow(meanwhile: impl FnOnce() + Send + 'static) -> Body {
    let last = async move {
        meanwhile();
        Ok::<_, std::io::Error>(Bytes::from_static(b"ged"))
    };
    let first = stream::once(async { Ok(Bytes::from_static(b"for")) });
    Body::from_stream(first.chain(stream::once(last)))
}

#[tokio::test]
async fn an_upload_that_outlasts_its_attempt_or_the_manifest_stores_nothing() {
    let world = World::new();
    world.job("job_a", "exp").await;
    let address = format!("{PROXY}/1/job_a/artifacts/outputs/x");
    let get = async || world.send("ada", "GET", &address, "").await;
    assert_eq!(world.send("job:job_a", "PUT", &address, "kept").await.0, StatusCode::OK);

    let over = world.over.clone();
    let body = slow(move || over.0.store(true, Ordering::SeqCst));
    let (status, answer) = world.send("job:job_a", "PUT", &address, body).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get().await, (StatusCode::OK, b"kept".to_vec()));

    let manifests = world.manifests.clone();
    let body = slow(move || manifests.name("job_a", "outputs/x"));
    let (status, answer) = world.send("ada", "PUT", &address, body).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get().await, (StatusCode::OK, b"kept".to_vec()));
}

#[tokio::test]
async fn nothing_is_stored_where_all_is_being_removed() {
    let world = World::new();
    let (run, other) = (world.run("ada").await, world.run("ada").await);
    let removal = Removal {
        seq: 0,
        datastore: DatastoreName::new(ARTIFACT_STORE).expect("name"),
        path: format!("ExperimentRun/dcid.{run}"),
        except: vec![],
        why: "the rules say so".to_owned(),
    };
    let put = async |run: &str, body: Body| {
        let address = format!("{PROXY}/0/{run}/artifacts/x");
        let (status, answer) = world.send("ada", "PUT", &address, body).await;
        (status, String::from_utf8_lossy(&answer).into_owned())
    };
    let by = Principal::new("admin").expect("principal");
    let enqueue = move |asked: &Asked<'_>| retention::enqueue(asked, &[removal]);
    world.tracking.change(Actor::from(by), enqueue).await.expect("stored");
    let (status, said) = put(&run, "x".into()).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{said}");
    assert!(said.contains("is being removed (the rules say so); try again later"), "{said}");
    assert_eq!(put(&other, "x".into()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn uploads_in_parts_are_declined_so_that_clients_send_one_piece() {
    let world = World::new();
    let path =
        format!("/api/2.0/mlflow-artifacts/mpu/create/0/{}/artifacts", world.run("ada").await);
    let body = json!({ "path": "/home/ada/model.bin", "num_parts": 2 });
    let (status, answer) = world.send("ada", "POST", &path, body.to_string()).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let message = answer["message"].as_str().expect("message");
    assert!(message.starts_with("Multipart upload is not supported"), "{message}");
}
