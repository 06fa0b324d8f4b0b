//! Artifacts: `mlflow/artifacts/list`, and the proxy `mlflow-artifacts/artifacts/…` through which
//! MLflow's client puts, gets and deletes files.
//!
//! An artifact's address is `<experiment>/<run>/artifacts/<path>`; it lies in the artifact store at
//! `ExperimentRun/dcid.<run>/<path>`. To be seen, a file must have been logged (there is a row) or
//! be in the job's committed manifest; what an agent is still uploading is not there yet. What a
//! manifest holds never changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use atelier_core::access::Caller;
use atelier_core::content::manifest::{Manifest, ManifestEntry};
use atelier_core::track::{ArtifactPath, Error as Refusal, ExperimentId, RunId, RunInfo, limits};
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::call::{Call, reader};
use super::failure::Failure;
use super::{Answer, State};
use crate::http::data::checked;
use crate::identity::{Origin, Use};
use crate::storage::{self, Datastore, ObjectPath};
use crate::store::tracking::{self, RunChange, TrackReply, TrackWrite};
use crate::track::SEALED_OBJECT;

/// An artifact's address.
struct Address {
    experiment: ExperimentId,
    run: RunId,
    /// Nothing is the run's root.
    path: Option<ArtifactPath>,
}

impl Address {
    /// Reads `<experiment>/<run>/artifacts[/<path>]`, already decoded once.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let other = || {
            Refusal::Invalid(format!(
                "Invalid path: '{}': artifacts lie at <experiment id>/<run id>/artifacts/<path>",
                limits::excerpt(text)
            ))
        };
        let mut parts = text.trim_end_matches('/').splitn(4, '/');
        let (Some(experiment), Some(run), Some("artifacts")) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(other());
        };
        Ok(Self {
            experiment: experiment.parse().map(ExperimentId).map_err(|_| other())?,
            run: RunId::new(run).map_err(|_| other())?,
            path: parts.next().map(ArtifactPath::new).transpose()?,
        })
    }

    /// Reads the address at the end of a request's path.
    fn of_request(request: &Request) -> Result<Self, Failure> {
        let path = request.uri().path();
        let encoded = path.split_once("/mlflow-artifacts/artifacts/").map_or("", |(_, rest)| rest);
        let decoded = percent_decode_str(encoded).decode_utf8().map_err(|_| {
            Refusal::Invalid("Invalid path: it is not UTF-8 once decoded".to_owned())
        })?;
        Ok(Self::parse(&decoded)?)
    }
}

/// Where an artifact lies in the artifact store.
fn object(run: &RunId, path: &ArtifactPath) -> Result<ObjectPath, Failure> {
    let key = format!("{}/{path}", RunInfo::artifact_root(run));
    Ok(ObjectPath::new(&key).map_err(storage::Error::from)?)
}

fn caller_of(request: &Request) -> Result<Caller, Failure> {
    request.extensions().get::<Caller>().cloned().ok_or_else(Failure::unauthenticated)
}

/// The run of an address, if the caller may read it.
async fn readable(state: &State, caller: &Caller, run: &RunId) -> Result<RunInfo, Failure> {
    let (reader, run) = (reader(caller)?, run.clone());
    let info = state
        .tracking
        .read(move |conn| {
            let info = tracking::run_info(conn, &run)?;
            reader.check(conn, info.experiment)?;
            Ok(info)
        })
        .await?;
    Ok(info)
}

/// The run of an address, if the caller may write to it.
async fn writable(state: &State, caller: &Caller, address: &Address) -> Result<RunInfo, Failure> {
    let (by, run) = (caller.clone(), address.run.clone());
    let info = state.tracking.read(move |conn| tracking::writable(conn, &by, &run)).await?;
    same_experiment(&info, address)?;
    Ok(info)
}

fn same_experiment(info: &RunInfo, address: &Address) -> Result<(), Refusal> {
    if info.experiment == address.experiment {
        Ok(())
    } else {
        Err(Refusal::NoRun(format!("{} in experiment {}", address.run, address.experiment)))
    }
}

/// What a job's run has left behind.
async fn manifest(state: &State, info: &RunInfo) -> Result<Option<Arc<Manifest>>, Failure> {
    match &info.job {
        Some(job) if info.is_of_job() => {
            state.manifests.committed(job).await.map_err(Failure::unavailable)
        }
        _ => Ok(None),
    }
}

fn entry_of<'a>(manifest: Option<&'a Manifest>, path: &str) -> Option<&'a ManifestEntry> {
    manifest?.entries.iter().find(|entry| entry.path == path)
}

/// Paths that no client writes: Atelier's own files about the run.
fn reserved(path: &ArtifactPath) -> bool {
    path.as_str() == SEALED_OBJECT || path.as_str().starts_with("system_logs/")
}

/// What lies directly in a folder: name, and a file's size.
async fn folder(
    state: &State,
    info: &RunInfo,
    path: Option<ArtifactPath>,
) -> Result<BTreeMap<String, Option<u64>>, Failure> {
    let prefix = path.as_ref().map_or(String::new(), |path| format!("{path}/"));
    let run = info.id.clone();
    let logged =
        state.tracking.read(move |conn| tracking::entries(conn, &run, path.as_ref())).await?;
    let mut found: BTreeMap<String, Option<u64>> =
        logged.into_iter().map(|entry| (entry.name, entry.bytes)).collect();
    if let Some(manifest) = manifest(state, info).await? {
        for entry in &manifest.entries {
            let Some(below) = entry.path.strip_prefix(&prefix) else { continue };
            match below.split_once('/') {
                Some((name, _)) => found.insert(name.to_owned(), None),
                None => found.insert(below.to_owned(), Some(entry.bytes)),
            };
        }
    }
    Ok(found)
}

fn files(found: BTreeMap<String, Option<u64>>, prefix: &str) -> Vec<Value> {
    found
        .into_iter()
        .map(|(name, bytes)| {
            let path = format!("{prefix}{name}");
            match bytes {
                Some(bytes) => json!({ "path": path, "is_dir": false, "file_size": bytes }),
                None => json!({ "path": path, "is_dir": true }),
            }
        })
        .collect()
}

/// A folder of a run by the run's id; paths are relative to the run.
pub(super) async fn list_of_run(call: Call) -> Answer {
    let path = call.fields.text("path")?.filter(|path| !path.is_empty());
    let path = path.map(|path| ArtifactPath::new(path.trim_end_matches('/'))).transpose()?;
    let info = readable(&call.state, &call.caller, &call.run_id()?).await?;
    let prefix = path.as_ref().map_or(String::new(), |path| format!("{path}/"));
    let found = folder(&call.state, &info, path).await?;
    let mut answer = json!({ "root_uri": info.artifact_uri() });
    let files = files(found, &prefix);
    if let (Some(answer), false) = (answer.as_object_mut(), files.is_empty()) {
        answer.insert("files".to_owned(), files.into());
    }
    Ok(Json(answer))
}

/// A folder by its address; paths are relative to the folder.
pub(super) async fn list(call: Call) -> Answer {
    let address = Address::parse(call.fields.required_text("path")?)?;
    let info = readable(&call.state, &call.caller, &address.run).await?;
    same_experiment(&info, &address)?;
    let found = folder(&call.state, &info, address.path).await?;
    Ok(Json(super::reply::page("files", files(found, ""), None::<String>)))
}

/// Where the bytes of an artifact lie.
async fn find(
    state: &State,
    info: &RunInfo,
    path: &ArtifactPath,
) -> Result<(Datastore, ObjectPath), Failure> {
    let (run, asked) = (info.id.clone(), path.clone());
    let here = state
        .tracking
        .read(move |conn| {
            let logged = tracking::artifact(conn, &run, &asked)?.is_some();
            let sealed = asked.as_str() == SEALED_OBJECT && tracking::sealed(conn, &run)?.is_some();
            Ok(logged || sealed)
        })
        .await?;
    let manifest = manifest(state, info).await?;
    if let Some(entry) = entry_of(manifest.as_deref(), path.as_str()) {
        let datastore = state.datastores.get(entry.datastore.as_str())?;
        return Ok((datastore, ObjectPath::new(&entry.key).map_err(storage::Error::from)?));
    }
    if here {
        return Ok((state.tracking.artifacts().clone(), object(&info.id, path)?));
    }
    Err(Refusal::NoArtifact(path.to_string()).into())
}

pub(super) async fn download(
    Shared(state): Shared<State>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = caller_of(&request)?;
    let address = Address::of_request(&request)?;
    let info = readable(&state, &caller, &address.run).await?;
    same_experiment(&info, &address)?;
    let path = address.path.ok_or_else(|| Refusal::NoArtifact("/".to_owned()))?;
    let (datastore, place) = find(&state, &info, &path).await?;
    let opened = datastore.open(&place).await?;
    let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
    state.door.tell_used(&caller, &origin, datastore.name(), place.as_str(), Use::Read);
    let size = opened.meta.size;
    let mut response = Body::from_stream(opened.stream(0..size)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // Whatever a job has written is never a page of this site.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Refuses to change what a job has left behind, and Atelier's own files.
async fn changeable(state: &State, info: &RunInfo, path: &ArtifactPath) -> Result<(), Failure> {
    if reserved(path) {
        return Err(Refusal::NotAllowed(format!(
            "'{path}' is the platform's own file about the run; choose another path"
        ))
        .into());
    }
    let manifest = manifest(state, info).await?;
    if entry_of(manifest.as_deref(), path.as_str()).is_some() {
        return Err(Refusal::NotAllowed(format!(
            "'{path}' is an output of job '{}', which has ended: outputs do not change; choose \
             another path",
            info.id
        ))
        .into());
    }
    Ok(())
}

pub(super) async fn upload(Shared(state): Shared<State>, request: Request) -> Answer {
    let caller = caller_of(&request)?;
    let address = Address::of_request(&request)?;
    let info = writable(&state, &caller, &address).await?;
    let path = address.path.clone().ok_or_else(|| {
        Refusal::Invalid("Invalid path: the name of the artifact is missing".to_owned())
    })?;
    changeable(&state, &info, &path).await?;
    let place = object(&info.id, &path)?;
    // Again once all of it is there: an attempt that is over, and a run whose outputs are
    // committed by then, must not change.
    let still = async || {
        state.door.still_open(&caller).map_err(Refusal::NotAllowed)?;
        writable(&state, &caller, &address).await?;
        changeable(&state, &info, &path).await
    };
    let last = async { still().await.map_err(|_| "the run may no longer be written to") };
    let bytes = checked(request.into_body(), last);
    let meta = match state.tracking.artifacts().put_stream(&place, bytes).await {
        Err(error @ storage::Error::Interrupted(_)) => {
            still().await?;
            return Err(error.into());
        }
        stored => stored?,
    };
    let change =
        RunChange::Artifact { path: path.clone(), bytes: meta.size, at: state.tracking.now() };
    let (by, id) = (caller.clone(), info.id.clone());
    state.tracking.write(TrackWrite::ChangeRun { by, id, change }).await?;
    Ok(Json(json!({})))
}

pub(super) async fn delete(Shared(state): Shared<State>, request: Request) -> Answer {
    let caller = caller_of(&request)?;
    let address = Address::of_request(&request)?;
    let info = writable(&state, &caller, &address).await?;
    if let Some(path) = &address.path {
        changeable(&state, &info, path).await?;
    }
    let change = RunChange::DeleteArtifacts(address.path);
    let write = TrackWrite::ChangeRun { by: caller, id: info.id.clone(), change };
    // First they are no longer seen, then their bytes go: a crash in between wastes space, and
    // never shows what cannot be read.
    if let TrackReply::Paths(paths) = state.tracking.write(write).await? {
        let manifest = manifest(&state, &info).await?;
        for path in paths {
            if entry_of(manifest.as_deref(), &path).is_none() {
                let path = ArtifactPath::new(&path)?;
                let object = object(&info.id, &path)?;
                let stays = state.tracking.artifacts().delete(&object).await?;
                if !stays.is_empty() {
                    tracing::warn!(%object, %stays, "not all of an artifact was removed: use the store's own tools");
                }
            }
        }
    }
    Ok(Json(json!({})))
}

/// The client then uploads in one piece.
pub(super) async fn no_multipart() -> Failure {
    let message = "Multipart upload is not supported for the current artifact repository";
    Failure::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
}

/// The client then downloads in one piece.
pub(super) async fn no_presigned() -> Failure {
    let message = "Presigned downloads are not supported for the current artifact repository";
    Failure::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
}
