//! Artifacts: `mlflow/artifacts/list`, and the proxy `mlflow-artifacts/artifacts/…` through which
//! MLflow's client puts, gets and deletes files.
//!
//! An artifact's address is `<experiment>/<run>/artifacts/<path>`; it lies in the artifact store at
//! `ExperimentRun/dcid.<run>/<path>`. To be seen, a file must have been logged (there is a row) or
//! be in the job's committed manifest; what an agent is still uploading is not there yet. What a
//! manifest holds never changes.
//!
//! A file of a logged model has the address `<experiment>/models/<model>/artifacts/<path>`, and lies at
//! `models/<model>/artifacts/<path>`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atelier_core::access::Caller;
use atelier_core::content::manifest::{Manifest, ManifestEntry};
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::time::Timestamp;
use atelier_core::track::{
    ArtifactPath, Error as Refusal, ExperimentId, LoggedModelId, LoggedModelInfo, RunId, RunInfo,
    limits,
};
use atelier_core::url::encoded;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::call::{Call, of_uri, reader};
use super::failure::Failure;
use super::{Answer, State, leads_there, registry};
use crate::http::data::checked;
use crate::identity::{Origin, Use};
use crate::storage::{self, Datastore, ObjectPath};
use crate::store::tracking::{self, ModelChange, RunChange, TrackReply, TrackWrite};
use crate::store::{self, retention};
use crate::track::SEALED_OBJECT;

/// Whose an artifact is.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    /// A run's.
    Run(RunId),
    /// A logged model's.
    Model(LoggedModelId),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(id) => id.fmt(f),
            Self::Model(id) => id.fmt(f),
        }
    }
}

/// The run or the model, with what is known of it.
#[derive(Clone)]
pub(super) enum Holder {
    /// A run.
    Run(RunInfo),
    /// A logged model.
    Model(LoggedModelInfo),
}

impl Holder {
    fn experiment(&self) -> ExperimentId {
        match self {
            Self::Run(info) => info.experiment,
            Self::Model(info) => info.experiment,
        }
    }

    fn artifact_uri(&self) -> String {
        match self {
            Self::Run(info) => info.artifact_uri(),
            Self::Model(info) => info.artifact_uri(),
        }
    }

    /// The folder of its artifacts in the artifact store.
    pub(super) fn root(&self) -> String {
        match self {
            Self::Run(info) => RunInfo::artifact_root(&info.id),
            Self::Model(info) => LoggedModelInfo::artifact_root(&info.id),
        }
    }

    /// Where an artifact of it lies in the artifact store.
    pub(super) fn object(&self, path: &ArtifactPath) -> Result<ObjectPath, Failure> {
        let path = format!("{}/{path}", self.root());
        Ok(ObjectPath::new(&path).map_err(storage::Error::from)?)
    }

    /// When the file at this path was stored, as its rows say.
    pub(super) fn stored_at(
        &self,
        conn: &Connection,
        path: &ArtifactPath,
    ) -> Result<Option<Timestamp>, store::Error> {
        match self {
            Self::Run(info) => tracking::artifact_time(conn, &info.id, path),
            Self::Model(info) => tracking::model_artifact_time(conn, &info.id, path),
        }
    }

    /// The change of its rows that a file is there.
    pub(super) fn stored(
        &self,
        by: Caller,
        path: ArtifactPath,
        bytes: u64,
        at: Timestamp,
    ) -> TrackWrite {
        match self {
            Self::Run(info) => {
                let change = RunChange::Artifact { path, bytes, at };
                TrackWrite::ChangeRun { by, id: info.id.clone(), change }
            }
            Self::Model(info) => {
                let change = ModelChange::Artifact { path, bytes };
                TrackWrite::ChangeModel { by, id: info.id.clone(), change, at }
            }
        }
    }
}

/// An artifact's address.
pub(super) struct Address {
    experiment: ExperimentId,
    pub(super) whose: Whose,
    /// Nothing is the root of all artifacts of the run or model.
    pub(super) path: Option<ArtifactPath>,
}

impl Address {
    /// Reads `<experiment>/<run>/artifacts[/<path>]`, already decoded once.
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let other = || {
            Refusal::Invalid(format!(
                "Invalid path: '{}': artifacts lie at <experiment id>/<run id>/artifacts/<path> or \
                 <experiment id>/models/<model id>/artifacts/<path>",
                limits::excerpt(text)
            ))
        };
        let (experiment, rest) = text.trim_end_matches('/').split_once('/').ok_or_else(other)?;
        // A run may be called `models`; none is called `models/m-…`.
        let (whose, rest) = match rest.strip_prefix("models/m-") {
            Some(model) => {
                let (digits, rest) = model.split_once('/').ok_or_else(other)?;
                let id = LoggedModelId::new(&format!("m-{digits}")).map_err(|_| other())?;
                (Whose::Model(id), rest)
            }
            None => {
                let (run, rest) = rest.split_once('/').ok_or_else(other)?;
                (Whose::Run(RunId::new(run).map_err(|_| other())?), rest)
            }
        };
        let path = match rest.split_once('/') {
            Some(("artifacts", path)) => Some(ArtifactPath::new(path)?),
            None if rest == "artifacts" => None,
            _ => return Err(other()),
        };
        let experiment = experiment.parse().map(ExperimentId).map_err(|_| other())?;
        Ok(Self { experiment, whose, path })
    }

    /// Reads the address at the end of a request's path.
    fn of_request(request: &Request) -> Result<Self, Failure> {
        Ok(Self::parse(&text_of(request)?)?)
    }
}

/// The address at the end of a request's path, decoded once.
fn text_of(request: &Request) -> Result<Cow<'_, str>, Refusal> {
    let path = request.uri().path();
    let encoded = ["/mlflow-artifacts/artifacts/", "/mlflow-artifacts/presigned/"]
        .into_iter()
        .find_map(|root| path.split_once(root))
        .map_or("", |(_, rest)| rest);
    percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|_| Refusal::Invalid("Invalid path: it is not UTF-8 once decoded".to_owned()))
}

fn caller_of(request: &Request) -> Result<Caller, Failure> {
    request.extensions().get::<Caller>().cloned().ok_or_else(Failure::unauthenticated)
}

/// The run or model, if the caller may read it.
async fn readable(state: &State, caller: &Caller, whose: &Whose) -> Result<Holder, Failure> {
    let (reader, whose) = (reader(caller)?, whose.clone());
    let holder = state
        .tracking
        .read(move |conn| {
            let holder = match &whose {
                Whose::Run(id) => Holder::Run(tracking::run_info(conn, id)?),
                Whose::Model(id) => Holder::Model(tracking::model_info(conn, id)?),
            };
            reader.check(conn, holder.experiment())?;
            Ok(holder)
        })
        .await?;
    Ok(holder)
}

/// The run or model, if the caller may write to it.
pub(super) async fn writable(
    state: &State,
    caller: &Caller,
    whose: &Whose,
) -> Result<Holder, Failure> {
    let (by, whose) = (caller.clone(), whose.clone());
    let holder = state
        .tracking
        .read(move |conn| {
            Ok(match &whose {
                Whose::Run(id) => Holder::Run(tracking::writable(conn, &by, id)?),
                Whose::Model(id) => Holder::Model(tracking::model_writable(conn, &by, id)?),
            })
        })
        .await?;
    Ok(holder)
}

pub(super) fn same_experiment(holder: &Holder, address: &Address) -> Result<(), Refusal> {
    let (whose, experiment) = (&address.whose, address.experiment);
    if holder.experiment() == experiment {
        return Ok(());
    }
    let named = format!("{whose} in experiment {experiment}");
    Err(match whose {
        Whose::Run(_) => Refusal::NoRun(named),
        Whose::Model(_) => Refusal::NoModel(named),
    })
}

/// What a job's run has left behind.
async fn manifest(state: &State, holder: &Holder) -> Result<Option<Arc<Manifest>>, Failure> {
    let Holder::Run(info) = holder else { return Ok(None) };
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
fn reserved(holder: &Holder, path: &ArtifactPath) -> bool {
    let is_own = path.as_str() == SEALED_OBJECT || path.as_str().starts_with("system_logs/");
    is_own && matches!(holder, Holder::Run(_))
}

/// What lies directly in a folder: name, and a file's size.
async fn folder(
    state: &State,
    holder: &Holder,
    path: Option<ArtifactPath>,
) -> Result<BTreeMap<String, Option<u64>>, Failure> {
    let prefix = path.as_ref().map_or(String::new(), |path| format!("{path}/"));
    let asked = holder.clone();
    let entries = move |conn: &Connection| match &asked {
        Holder::Run(info) => tracking::entries(conn, &info.id, path.as_ref()),
        Holder::Model(info) => tracking::model_entries(conn, &info.id, path.as_ref()),
    };
    let logged = state.tracking.read(entries).await?;
    let mut found: BTreeMap<String, Option<u64>> =
        logged.into_iter().map(|entry| (entry.name, entry.bytes)).collect();
    if let Some(manifest) = manifest(state, holder).await? {
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
                Some(0) => json!({ "path": path, "is_dir": false }),
                Some(bytes) => json!({ "path": path, "is_dir": false, "file_size": bytes }),
                None => json!({ "path": path, "is_dir": true }),
            }
        })
        .collect()
}

/// A path that somebody asks for. What would lead out is refused in MLflow's words, to the letter.
fn within(path: &str) -> Result<ArtifactPath, Refusal> {
    if path.split('/').any(|segment| segment == "..") {
        return Err(Refusal::Invalid("Invalid path".to_owned()));
    }
    ArtifactPath::new(path)
}

/// A folder of a run by the run's id; paths are relative to the run.
pub(super) async fn list_of_run(call: Call) -> Answer {
    let whose = Whose::Run(call.run_id()?);
    list_of(&call, &whose, "path").await
}

/// A folder of a run or model; paths are relative to it. `field` names the folder.
pub(super) async fn list_of(call: &Call, whose: &Whose, field: &str) -> Answer {
    let path = call.fields.text(field)?.filter(|path| !path.is_empty());
    let path = path.map(|path| within(path.trim_end_matches('/'))).transpose()?;
    let holder = readable(&call.state, &call.caller, whose).await?;
    let prefix = path.as_ref().map_or(String::new(), |path| format!("{path}/"));
    let found = folder(&call.state, &holder, path).await?;
    let mut answer = json!({ "root_uri": holder.artifact_uri() });
    let files = files(found, &prefix);
    if let (Some(answer), false) = (answer.as_object_mut(), files.is_empty()) {
        answer.insert("files".to_owned(), files.into());
    }
    Ok(Json(answer))
}

/// A folder by its address; paths are relative to the folder.
pub(super) async fn list(call: Call) -> Answer {
    if let Some((root, path)) = registry::Root::parse(call.fields.required_text("path")?)? {
        let found = registry::list(&call.state, &call.caller, &root, path.as_ref()).await?;
        return Ok(Json(super::reply::page("files", files(found, ""), None::<String>)));
    }
    let address = Address::parse(call.fields.required_text("path")?)?;
    let holder = readable(&call.state, &call.caller, &address.whose).await?;
    same_experiment(&holder, &address)?;
    let found = folder(&call.state, &holder, address.path).await?;
    Ok(Json(super::reply::page("files", files(found, ""), None::<String>)))
}

/// Where the bytes of an artifact lie.
async fn find(
    state: &State,
    holder: &Holder,
    path: &ArtifactPath,
) -> Result<(Datastore, ObjectPath), Failure> {
    let (of, asked) = (holder.clone(), path.clone());
    let here = move |conn: &Connection| match &of {
        Holder::Run(RunInfo { id, .. }) => {
            let logged = tracking::artifact(conn, id, &asked)?.is_some();
            let sealed = asked.as_str() == SEALED_OBJECT && tracking::sealed(conn, id)?.is_some();
            Ok(logged || sealed)
        }
        Holder::Model(info) => Ok(tracking::model_artifact(conn, &info.id, &asked)?.is_some()),
    };
    let here = state.tracking.read(here).await?;
    let manifest = manifest(state, holder).await?;
    if let Some(entry) = entry_of(manifest.as_deref(), path.as_str()) {
        let datastore = state.datastores.get(entry.datastore.as_str())?;
        return Ok((datastore, ObjectPath::new(&entry.key).map_err(storage::Error::from)?));
    }
    if here {
        return Ok((state.tracking.artifacts().clone(), holder.object(path)?));
    }
    Err(Refusal::NoArtifact(path.to_string()).into())
}

pub(super) async fn download(
    Shared(state): Shared<State>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = caller_of(&request)?;
    let asked = text_of(&request)?.into_owned();
    let place = asked_for(&state, &caller, &asked).await?;
    let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
    send(&state, &caller, &origin, place).await
}

/// Where the bytes lie that a request's path names, if the caller may read them.
async fn asked_for(
    state: &State,
    caller: &Caller,
    asked: &str,
) -> Result<(Datastore, ObjectPath), Failure> {
    if let Some((root, path)) = registry::Root::parse(asked)? {
        return registry::download(state, caller, &root, path.as_ref()).await;
    }
    let address = Address::parse(asked)?;
    let holder = readable(state, caller, &address.whose).await?;
    same_experiment(&holder, &address)?;
    let path = address.path.ok_or_else(|| Refusal::NoArtifact("/".to_owned()))?;
    find(state, &holder, &path).await
}

/// What a file is by its name, as MLflow's server tells it of those that people look at. Nothing that a browser would run.
fn media_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "txt" | "log" | "err" | "cfg" | "conf" | "cnf" | "cf" | "ini" | "properties" | "prop"
        | "hocon" | "toml" | "yaml" | "yml" | "xml" | "json" | "js" | "py" | "py3" | "csv"
        | "tsv" | "md" | "rst" | "ipynb" | "MLmodel" | "MLproject" | "mlproject" => "text/plain",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}

/// A file's name as a parameter of `Content-Disposition`.
fn named(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&b);
    if !name.is_empty() && name.bytes().all(plain) {
        return format!("filename={name}");
    }
    format!("filename*=UTF-8''{}", encoded(name))
}

/// The bytes of an artifact.
async fn send(
    state: &State,
    caller: &Caller,
    origin: &Origin,
    (datastore, place): (Datastore, ObjectPath),
) -> Result<Response, Failure> {
    let opened = datastore.open(&place).await?;
    state.door.tell_used(caller, origin, datastore.name(), place.as_str(), Use::Read);
    let size = opened.meta.size;
    let mut response = Body::from_stream(opened.stream(0..size)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    let name = place.as_str().rsplit('/').next().unwrap_or_default();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(name)));
    // Whatever a job has written is never a page of this site.
    let attachment = HeaderValue::try_from(format!("attachment; {}", named(name)));
    let attachment = attachment.unwrap_or_else(|_| HeaderValue::from_static("attachment"));
    headers.insert(header::CONTENT_DISPOSITION, attachment);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// A file of a run or model, as the web page asks for it. `field` names the path.
pub(super) async fn file_of(call: &Call, whose: &Whose, field: &str) -> Result<Response, Failure> {
    let path = within(call.fields.required_text(field)?)?;
    let holder = readable(&call.state, &call.caller, whose).await?;
    let place = find(&call.state, &holder, &path).await?;
    send(&call.state, &call.caller, &call.origin, place).await
}

/// A file of a run by the run's id.
pub(super) async fn file_of_run(call: Call) -> Result<Response, Failure> {
    let whose = Whose::Run(call.run_id()?);
    file_of(&call, &whose, "path").await
}

/// A file of a version of a registered model, as the web page asks for it.
pub(super) async fn file_of_version(call: Call) -> Result<Response, Failure> {
    let path = within(call.fields.required_text("path")?)?;
    let place = registry::file(&call, &path).await?;
    send(&call.state, &call.caller, &call.origin, place).await
}

/// Refuses to change what a job has left behind, and Atelier's own files.
pub(super) async fn changeable(
    state: &State,
    holder: &Holder,
    path: &ArtifactPath,
) -> Result<(), Failure> {
    if reserved(holder, path) {
        return Err(Refusal::NotAllowed(format!(
            "'{path}' is the platform's own file about the run; choose another path"
        ))
        .into());
    }
    let manifest = manifest(state, holder).await?;
    if let Holder::Run(info) = holder
        && entry_of(manifest.as_deref(), path.as_str()).is_some()
    {
        return Err(Refusal::NotAllowed(format!(
            "'{path}' is an output of job '{}', which has ended: outputs do not change; choose \
             another path",
            info.id
        ))
        .into());
    }
    let (holder, path) = (holder.clone(), path.clone());
    Ok(state.tracking.read(move |conn| stays(conn, &holder, Some(&path))).await?)
}

/// Refuses to change what an asset is made of, and what goes by itself.
fn stays(
    conn: &Connection,
    holder: &Holder,
    path: Option<&ArtifactPath>,
) -> Result<(), store::Error> {
    let root = holder.root();
    let place = path.map_or_else(|| root.clone(), |path| format!("{root}/{path}"));
    if let Some(kept) = registry::kept_by(conn, &place)? {
        return Err(Refusal::NotAllowed(format!(
            "'{}' belongs to version {} of {} '{}', which never changes; choose another path, or delete the version \
             first",
            path.map_or("/", ArtifactPath::as_str),
            kept.version,
            kept.kind(),
            kept.name
        ))
        .into());
    }
    if let Some(why) = retention::being_removed(conn, ARTIFACT_STORE, &place)? {
        return Err(Refusal::NotAllowed(format!(
            "what lies at {place} of {ARTIFACT_STORE} is being removed ({why}); try again later"
        ))
        .into());
    }
    Ok(())
}

/// Refuses to change what may not be changed any more, as far as that is told at once: of a job that has ended since
/// `holder` was looked up, what it has left behind must be looked at.
pub(super) fn still_changeable(
    conn: &Connection,
    by: &Caller,
    holder: &Holder,
    path: &ArtifactPath,
) -> Result<(), store::Error> {
    match holder {
        Holder::Run(was) => {
            let now = tracking::writable(conn, by, &was.id)?;
            if was.is_of_job() && now.status.is_terminal() && !was.status.is_terminal() {
                let ended = format!("job '{}' has ended meanwhile; try again", was.id);
                return Err(Refusal::NotAllowed(ended).into());
            }
        }
        Holder::Model(was) => drop(tracking::model_writable(conn, by, &was.id)?),
    }
    stays(conn, holder, Some(path))
}

pub(super) async fn upload(Shared(state): Shared<State>, request: Request) -> Answer {
    let caller = caller_of(&request)?;
    let address = Address::of_request(&request)?;
    let holder = writable(&state, &caller, &address.whose).await?;
    same_experiment(&holder, &address)?;
    let path = address.path.clone().ok_or_else(|| {
        Refusal::Invalid("Invalid path: the name of the artifact is missing".to_owned())
    })?;
    put(&state, &caller, &address.whose, &path, request.into_body()).await?;
    Ok(Json(json!({})))
}

/// Stores an artifact, whole or not at all.
async fn put(
    state: &State,
    caller: &Caller,
    whose: &Whose,
    path: &ArtifactPath,
    body: Body,
) -> Result<(), Failure> {
    let holder = writable(state, caller, whose).await?;
    changeable(state, &holder, path).await?;
    let place = holder.object(path)?;
    // Again once all of it is there: an attempt that is over, and a run whose outputs are
    // committed by then, must not change.
    let still = async || {
        state.door.still_open(caller).map_err(Refusal::NotAllowed)?;
        let holder = writable(state, caller, whose).await?;
        changeable(state, &holder, path).await
    };
    // From before the bytes are seen until their row is written nobody deletes either.
    let held = OnceLock::new();
    let last = async {
        let _ = held.set(state.changing.write(holder.root()).await);
        still().await.map_err(|_| "it may no longer be written to")
    };
    let bytes = checked(body, last);
    let meta = match state.tracking.artifacts().put_stream(&place, bytes).await {
        Err(error @ storage::Error::Interrupted(_)) => {
            still().await?;
            return Err(error.into());
        }
        stored => stored?,
    };
    let now = state.tracking.now();
    state.tracking.write(holder.stored(caller.clone(), path.clone(), meta.size, now)).await?;
    Ok(())
}

/// Bytes of a file that the web page uploads, as MLflow bounds it.
const UPLOAD: usize = 10 * 1024 * 1024;

/// A small file of a run, as the web page uploads it.
pub(super) async fn upload_to_run(Shared(state): Shared<State>, request: Request) -> Answer {
    let caller = caller_of(&request)?;
    let fields = of_uri(request.uri())?;
    let given = |name: &str| {
        let missing = || Refusal::Invalid(format!("Request must specify {name}."));
        Ok::<_, Failure>(fields.text(name)?.filter(|text| !text.is_empty()).ok_or_else(missing)?)
    };
    let run = given("run_uuid")?;
    let run = RunId::new(run).map_err(|_| Refusal::NoRun(limits::excerpt(run)))?;
    let path = ArtifactPath::new(given("path")?)?;
    let bytes = axum::body::to_bytes(request.into_body(), UPLOAD).await.map_err(|_| {
        Refusal::Invalid("Artifact size is too large. Max size is 10MB.".to_owned())
    })?;
    if bytes.is_empty() {
        return Err(Refusal::Invalid("Request must specify data.".to_owned()).into());
    }
    put(&state, &caller, &Whose::Run(run), &path, bytes.into()).await?;
    Ok(Json(json!({})))
}

/// Files that are deleted at the same time.
const TOGETHER: usize = 16;

async fn removed(store: Datastore, object: ObjectPath) -> Result<(), storage::Error> {
    let stays = store.delete(&object).await?;
    if !stays.is_empty() {
        tracing::warn!(%object, %stays, "not all of an artifact was removed: use the store's own tools");
    }
    Ok(())
}

pub(super) async fn delete(Shared(state): Shared<State>, request: Request) -> Answer {
    let caller = caller_of(&request)?;
    let address = Address::of_request(&request)?;
    // What is deleted already may lose its files: nothing else frees their space.
    let holder = match &address.whose {
        Whose::Run(_) => writable(&state, &caller, &address.whose).await?,
        Whose::Model(_) => readable(&state, &caller, &address.whose).await?,
    };
    same_experiment(&holder, &address)?;
    // Until the last byte is gone: what is logged or made a version meanwhile must not go with the rest.
    let _alone = (state.changing.delete(holder.root()).await, state.places.let_go().await);
    match &address.path {
        Some(path) => changeable(&state, &holder, path).await?,
        None => {
            let holder = holder.clone();
            state.tracking.read(move |conn| stays(conn, &holder, None)).await?;
        }
    }
    let (by, at) = (caller.clone(), state.tracking.now());
    let write = match &holder {
        Holder::Run(info) => {
            let change = RunChange::DeleteArtifacts(address.path);
            TrackWrite::ChangeRun { by, id: info.id.clone(), change }
        }
        Holder::Model(info) => {
            let change = ModelChange::DeleteArtifacts(address.path);
            TrackWrite::ChangeModel { by, id: info.id.clone(), change, at }
        }
    };
    // First they are no longer seen, then their bytes go: a crash in between wastes space, and
    // never shows what cannot be read.
    if let TrackReply::Paths(paths) = state.tracking.write(write).await? {
        let manifest = manifest(&state, &holder).await?;
        let mut going = Vec::new();
        for path in paths.iter().filter(|path| entry_of(manifest.as_deref(), path).is_none()) {
            let object = holder.object(&ArtifactPath::new(path)?)?;
            going.push(removed(state.tracking.artifacts().clone(), object));
        }
        // Others wait for it.
        stream::iter(going).buffer_unordered(TOGETHER).try_collect::<()>().await?;
    }
    Ok(Json(json!({})))
}

/// For how long an object can be read by an address, as MLflow's server has it.
const READ: Duration = Duration::from_secs(300);
/// Smaller files are cheaper read through the daemon than by an address: of those the client is not told the size.
const LARGE: u64 = 8 << 20;

/// An address by which a file is read from its store. The store's keys stay here.
pub(super) async fn presigned(
    Shared(state): Shared<State>,
    request: Request,
) -> Result<Response, Failure> {
    let caller = caller_of(&request)?;
    let asked = text_of(&request)?.into_owned();
    let (datastore, place) = asked_for(&state, &caller, &asked).await?;
    let signed = match state.uploads.signs() {
        true => datastore.sign_reads(std::slice::from_ref(&place), READ).await?,
        false => None,
    };
    let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
    let signed = signed.and_then(|mut signed| signed.pop());
    let Some(signed) = signed.filter(|signed| leads_there(signed, &origin)) else {
        let (reads, _) = state.signs(&origin).await;
        if reads {
            // Not of every file, or not for everybody. Where no size is told the client reads by way of the daemon; of a
            // refusal it makes an error.
            datastore.head(&place).await?;
            let url = format!("/api/2.0/mlflow-artifacts/artifacts/{}", encoded(&asked));
            return Ok(Json(json!({ "url": url, "headers": {} })).into_response());
        }
        let message = "Presigned downloads are not supported for the current artifact repository";
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message));
    };
    // Whether it is there, and its size.
    let size = datastore.head(&place).await?.size;
    state.door.tell_used(&caller, &origin, datastore.name(), place.as_str(), Use::Read);
    let mut answer = json!({ "url": signed.url, "headers": {} });
    if let Some(answer) = answer.as_object_mut().filter(|_| size >= LARGE) {
        answer.insert("file_size".to_owned(), size.into());
    }
    let mut response = Json(answer).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    Ok(response)
}
