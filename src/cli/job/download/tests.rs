//! Where artifacts go, and how they get there from a real gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use atelier_proto::job::v1::Artifact;

use super::{Wanted, fetch, place, wanted};
use crate::cli::Kind;
use crate::cli::testing::RealDaemon;
use crate::client::Client;

const STORE: &str = "workspaceartifactstore";

#[test]
fn artifacts_and_named_outputs_lie_as_azure_puts_them() {
    assert_eq!(place("outputs/model.pkl"), Some(PathBuf::from("artifacts/outputs/model.pkl")));
    assert_eq!(place("./a"), Some(PathBuf::from("artifacts/a")));
    assert_eq!(place("named-outputs/m/x/y"), Some(PathBuf::from("named-outputs/m/x/y")));
    assert_eq!(place("ünï cödé"), Some(PathBuf::from("artifacts/ünï cödé")));
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let paths =
        ["", "..", "../x", "a/../../x", "named-outputs/../../x", "/etc/passwd", "a\0b", "a\\..\\b"];
    for path in paths {
        assert_eq!(place(path), None, "{path:?}");
    }
}

/// Stores an object, and tells of it as a job's artifact at `path`.
fn wanted_of(artifacts: &[Artifact]) -> Vec<Wanted> {
    artifacts.iter().map(wanted).collect()
}

async fn stored(client: &Client, path: &str, content: &str) -> Artifact {
    let key = format!("ExperimentRun/dcid.j/{path}");
    let escaped = atelier_core::url::encoded(&key);
    let url = format!("{}/data/v1/{STORE}/{escaped}", client.target().server);
    let token = client.target().token.secret();
    let put = client.http().unwrap().put(url).bearer_auth(token).body(content.to_owned());
    assert!(put.send().await.unwrap().status().is_success());
    artifact(path, content.len())
}

fn artifact(path: &str, bytes: usize) -> Artifact {
    Artifact {
        path: path.to_owned(),
        bytes: bytes as u64,
        datastore: STORE.to_owned(),
        key: format!("ExperimentRun/dcid.j/{path}"),
        digest: String::new(),
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_whole_under_their_names() {
    let daemon = RealDaemon::start().await;
    let client = daemon.client().await;
    let names = ["outputs/a.txt", "outputs/ä b%20?#.txt", "named-outputs/m/deep/er/x", "empty"];
    let mut artifacts = Vec::new();
    for name in names {
        let content = if name == "empty" { String::new() } else { name.repeat(100_000) };
        artifacts.push(stored(&client, name, &content).await);
    }
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("new/folder");
    let seen = AtomicU64::new(0);
    let progress = |bytes| _ = seen.fetch_add(bytes, Ordering::Relaxed);
    // Twice: what lies there is replaced.
    for _ in 0..2 {
        fetch::all(&client, &wanted_of(&artifacts), &to, &progress).await.unwrap();
    }
    for artifact in &artifacts {
        let content = fs::read_to_string(to.join(place(&artifact.path).unwrap())).unwrap();
        assert_eq!(content.len() as u64, artifact.bytes);
        assert!(content.is_empty() || content.starts_with(&artifact.path));
    }
    assert_eq!(files_below(&to).len(), names.len(), "no half-done file stays");
    assert_eq!(seen.into_inner(), 2 * artifacts.iter().map(|a| a.bytes).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_folder_does_not_lead_the_write_away() {
    let daemon = RealDaemon::start().await;
    let client = daemon.client().await;
    let artifacts = [stored(&client, "outputs/a.txt", "x").await];
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), folder.path().join("artifacts")).unwrap();
    let error =
        fetch::all(&client, &wanted_of(&artifacts), folder.path(), &|_| {}).await.unwrap_err();
    assert!(error.cause.contains("lies outside of the download folder"), "{error:?}");
    assert!(files_below(outside.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_downloads_do_not_write_one_file() {
    let daemon = RealDaemon::start().await;
    let client = daemon.client().await;
    let folder = tempfile::tempdir().unwrap();
    let artifacts = [stored(&client, "outputs/a.txt", "whole").await];
    let to = folder.path().join(place(&artifacts[0].path).unwrap());
    let (of_other, stale) = (to.with_file_name(".a.txt.part"), "left by one that was killed");
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::write(&of_other, stale).unwrap();
    let held = fs::File::options().append(true).open(&of_other).unwrap();
    held.lock().unwrap();
    let (files, progress) = (wanted_of(&artifacts), |_| {});
    let fetch = || fetch::all(&client, &files, folder.path(), &progress);
    fetch().await.unwrap();
    assert_eq!(fs::read_to_string(&to).unwrap(), "whole");
    assert_eq!(fs::read_to_string(&of_other).unwrap(), stale);
    drop(held);
    fetch().await.unwrap();
    assert_eq!(fs::read_to_string(&to).unwrap(), "whole");
    assert_eq!(files_below(folder.path()).len(), 1, "no half-done file stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_by_name() {
    let daemon = RealDaemon::start().await;
    let client = daemon.client().await;
    let folder = tempfile::tempdir().unwrap();
    let artifacts = [artifact("outputs/gone", 1)];
    let error =
        fetch::all(&client, &wanted_of(&artifacts), folder.path(), &|_| {}).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error:?}");
    assert!(error.cause.starts_with("downloading 'outputs/gone': "), "{error:?}");
    assert!(files_below(folder.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overwritten_since_is_not_taken_for_the_jobs() {
    let daemon = RealDaemon::start().await;
    let client = daemon.client().await;
    let folder = tempfile::tempdir().unwrap();
    let mut artifact = stored(&client, "outputs/a.txt", "mine").await;
    artifact.digest = blake3::hash(b"mine").to_hex().to_string();
    let artifacts = [artifact];
    fetch::all(&client, &wanted_of(&artifacts), folder.path(), &|_| {}).await.unwrap();
    fs::remove_file(folder.path().join("artifacts/outputs/a.txt")).unwrap();
    stored(&client, "outputs/a.txt", "evil").await;
    let error =
        fetch::all(&client, &wanted_of(&artifacts), folder.path(), &|_| {}).await.unwrap_err();
    assert!(error.cause.contains("no longer what the job has written"), "{error:?}");
    assert!(files_below(folder.path()).is_empty());
}
