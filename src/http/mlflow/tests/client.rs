//! MLflow's own client from PyPI, unmodified, against the routes on a real port.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use atelier_core::track::RunStatus;
use tokio::net::TcpListener;
use tokio::process::Command;

use super::World;
use crate::storage::{Home, S3};

/// Python with MLflow's client: what `tests/run` has prepared, or prepared now.
async fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("ATELIER_TEST_PYTHON") {
        return python.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/prepare");
    let prepare = Command::new(script).stderr(Stdio::inherit()).output();
    let prepared = tokio::time::timeout(Duration::from_secs(600), prepare).await;
    let prepared = prepared.expect("prepared in 10 minutes").expect("tests/scripts/prepare");
    assert!(prepared.status.success(), "tests/scripts/prepare failed");
    let folder = String::from_utf8(prepared.stdout).expect("a path");
    Path::new(folder.trim()).join("bin/python")
}

#[tokio::test(flavor = "multi_thread")]
async fn mlflows_own_client_works() {
    let world = World::new();
    world.job("job_a", "jobs").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let server = tokio::spawn(axum::serve(listener, world.routes.clone()).into_future());
    let tracking = world.tracking.clone();
    let sealer = tokio::spawn(async move { tracking.run_sealer().await });
    let folder = tempfile::tempdir().expect("folder");
    let python = python().await;
    let script = |part: &str| {
        let mut command = Command::new(&python);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/mlflow/tests/client.py"))
            .arg(part)
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("MLFLOW_TRACKING_URI", &url)
            .env("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            // Its threads change variables while others read them, which fails now and then.
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("MPLBACKEND", "agg")
            .kill_on_drop(true);
        command
    };
    let check = async |mut command: Command| {
        let output = tokio::time::timeout(Duration::from_secs(240), command.output()).await;
        let output = output.expect("the client ends in 240 s").expect("python");
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && out.trim_end().ends_with("all checks passed"),
            "{out}\n{err}"
        );
    };

    let mut outside = script("outside");
    outside.env("MLFLOW_TRACKING_TOKEN", "ada");
    check(outside).await;

    let mut registry = script("registry");
    registry.env("MLFLOW_TRACKING_TOKEN", "ada");
    check(registry).await;

    // Within a job: the variables that an attempt gets.
    let mut inside = script("inside");
    inside
        .env("MLFLOW_TRACKING_TOKEN", "job:job_a")
        .env("MLFLOW_RUN_ID", "job_a")
        .env("MLFLOW_EXPERIMENT_NAME", "jobs")
        .env("MLFLOW_EXPERIMENT_ID", "1");
    check(inside).await;
    world.follow("job_a", RunStatus::Finished).await;
    world.tracking.seal_due().await.expect("seal");

    // Another reader of the sealed file.
    let store = world.tracking.artifacts().own_folder().unwrap();
    let mut sealed = script("sealed");
    sealed
        .arg(store.join("ExperimentRun/dcid.job_a/metrics/metrics.parquet"))
        .env("MLFLOW_TRACKING_TOKEN", "ada");
    check(sealed).await;
    sealer.abort();
    server.abort();
}

/// The same client and an artifact store that signs: large files go past the daemon, and come back as they were.
#[tokio::test(flavor = "multi_thread")]
async fn s3_mlflows_own_client_moves_large_files_past_the_daemon() {
    let server = S3::start();
    let (source, unlock) = server.place(None);
    let world = World::with(&Home::Cloud(source, unlock));
    world.tracking.artifacts().keeping_to_parts();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let served = tokio::spawn(axum::serve(listener, world.routes.clone()).into_future());
    let folder = tempfile::tempdir().expect("folder");
    let mut command = Command::new(python().await);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/mlflow/tests/client.py"))
        .arg("large")
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder.path())
        .env("MLFLOW_TRACKING_URI", &url)
        .env("MLFLOW_TRACKING_TOKEN", "ada")
        .env("MLFLOW_WORKSPACE", "team")
        .env("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        .env("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "11000000")
        .env("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", "5000000")
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(240), command.output()).await;
    let output = output.expect("the client ends in 240 s").expect("python");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && out.trim_end().ends_with("all checks passed"),
        "{out}\n{err}"
    );
    served.abort();
}
