//! The data gateway: objects of datastores over HTTP.
//!
//! | request | what it does |
//! |---|---|
//! | `GET`, `HEAD /data/v1/{datastore}/{path}` | reads an object; one range; `If-Match`, `If-None-Match` |
//! | `PUT /data/v1/{datastore}/{path}` | stores an object, whole or not at all; durable when answered |
//! | the same with `?from=P&size=N&tag=T` | stores a copy of what the attempt has not committed at `P`, which has `N` bytes and the tag `T`; answered with 200 |
//! | `DELETE /data/v1/{datastore}/{path}` | removes an object; `?recursive=true`: and all below the path; answered with 200 and `stays` if not all of it goes |
//! | `GET /data/v1/{datastore}?prefix=P&after=PATH` | lists what lies at or below the folder `P` |
//! | the same with `&parts=true` | or, in place of the first page, `folders` that are to be listed by themselves, with `after` each of them, and the objects that are in none of them |
//! | `GET /data/v1/{datastore}?prefix=P&delimiter=/` | what lies right below it: objects and folders |
//!
//! `POST` is for attempts, see [`direct`].
//!
//! The answer to a `PUT` has the BLAKE3 digest of what was stored ([`STORED`]), which whoever sent it compares.
//!
//! A listing counts keys of an object store that are no path in `unnamed`, with some of them.
//!
//! Paths are percent-decoded once. Bytes stream both ways, so memory does not grow with an object.

mod copy;
mod direct;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::access::{Caller, Permission, Role};
use atelier_core::datastore::Unnamed;
use atelier_core::id::DatastoreName;
use atelier_core::layout::{self, BLOB_STORE};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State as Shared};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use atelier_proto::STORED;

use crate::daemon::Uploads;
use crate::identity::{Origin, Use};
use crate::storage::{
    self, Datastore, Datastores, Level, Listed, Meta, ObjectPath, PAGE, Page, Part,
};

/// Seconds after which a datastore that is away may be asked again.
const RETRY_AFTER: u64 = 5;

/// Decides which objects a caller may read or write.
pub(crate) trait Authorize: Send + Sync + 'static {
    /// Whether `caller` may write (or else read) the object at `path`, or list the folder `path`
    /// (the whole datastore if it is empty). Every object of a folder that may be listed may be
    /// read.
    ///
    /// # Errors
    /// Why not, for the caller to read.
    fn authorize_data(
        &self,
        caller: &Caller,
        datastore: &DatastoreName,
        path: &str,
        write: bool,
    ) -> Result<(), String>;

    /// Whether the caller's token still opens the door: an attempt's dies with the attempt, while
    /// a request of it may be under way.
    ///
    /// # Errors
    /// Why not, for the caller to read.
    fn still_open(&self, caller: &Caller) -> Result<(), String>;

    /// An object was used, for the audit log. It does not wait.
    fn tell_used(
        &self,
        _caller: &Caller,
        _origin: &Origin,
        _datastore: &DatastoreName,
        _path: &str,
        _how: Use,
    ) {
    }
}

/// What the gateway needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    /// What it serves.
    pub(crate) datastores: Datastores,
    /// Who decides.
    pub(crate) door: Arc<dyn Authorize>,
    /// What attempts write past it.
    pub(crate) uploads: Uploads,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("datastores", &self.datastores).finish_non_exhaustive()
    }
}

/// The gateway's routes. Requests carry their [`Caller`] as an extension; the door put it there.
pub(crate) fn router(state: State) -> Router {
    Router::new().route("/data/v1/{*object}", any(gateway)).with_state(state)
}

/// A refusal: what is answered as JSON.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// For a range that the object does not have: its size.
    size: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), size: None }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }
}

impl From<storage::Error> for Refusal {
    fn from(error: storage::Error) -> Self {
        use storage::Error as E;
        let message = error.to_string();
        let (status, code) = match &error {
            E::UnknownDatastore(_) => (StatusCode::NOT_FOUND, "DatastoreNotFound"),
            E::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            // Agents try again for a while: a mount may come back.
            E::Away { .. } => {
                tracing::warn!(%error, "a datastore is away");
                (StatusCode::SERVICE_UNAVAILABLE, "DatastoreAway")
            }
            // A job fails with the reason: an admin has to give other credentials.
            E::Denied { .. } => {
                tracing::warn!(%error, "a store refuses its credentials");
                (StatusCode::FORBIDDEN, "StoreDenied")
            }
            E::Public { passes: true, .. } => (StatusCode::SERVICE_UNAVAILABLE, "DatastoreAway"),
            E::Public { passes: false, .. } => (StatusCode::FORBIDDEN, "StoreDenied"),
            E::Unsupported { .. } => (StatusCode::BAD_REQUEST, "Unsupported"),
            E::Changed(_) => (StatusCode::PRECONDITION_FAILED, "Changed"),
            E::Path(_) | E::Unfit(_) => (StatusCode::BAD_REQUEST, "InvalidPath"),
            E::Link(_) => (StatusCode::FORBIDDEN, "Link"),
            E::Conflict(_) => (StatusCode::CONFLICT, "Conflict"),
            E::Full => (StatusCode::INSUFFICIENT_STORAGE, "StorageFull"),
            E::Interrupted(_) | E::Content { .. } => (StatusCode::BAD_REQUEST, "Interrupted"),
            E::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
            E::Io { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "data gateway failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal")
            }
        };
        Self::new(status, code, message)
    }
}

impl From<crate::store::Error> for Refusal {
    fn from(error: crate::store::Error) -> Self {
        tracing::error!(%error, "data gateway failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Answer<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: &'a str,
        }
        let answer = Answer { error: Inner { code: self.code, message: &self.message } };
        let mut response = (self.status, axum::Json(answer)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        if let Some(size) = self.size {
            response.headers_mut().insert(header::CONTENT_RANGE, text(format!("bytes */{size}")));
        }
        response
    }
}

/// What a listing is asked for.
#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    /// `/`, or nothing.
    #[serde(default)]
    delimiter: String,
    /// Whether who asks takes several parts of a listing at once.
    #[serde(default)]
    parts: bool,
}

/// What a removal is asked for.
#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(default)]
    recursive: bool,
    /// Of an attempt's: this alone, and not the object.
    upload: Option<String>,
}

/// A page as JSON.
#[derive(Serialize)]
struct ListAnswer {
    objects: Vec<ListedObject>,
    /// If only what lies right below was asked for, or parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    folders: Vec<String>,
    next: Option<String>,
    /// What lies there and is in none of these.
    #[serde(skip_serializing_if = "Unnamed::is_empty")]
    unnamed: Unnamed,
}

impl From<Page> for ListAnswer {
    fn from(Page { objects, next, unnamed }: Page) -> Self {
        let next = next.map(|path| path.to_string());
        Self::from(Level { objects, next, unnamed, ..Level::default() })
    }
}

impl From<Level> for ListAnswer {
    fn from(Level { objects, folders, next, unnamed }: Level) -> Self {
        let objects = objects.into_iter().map(ListedObject::from).collect();
        let folders = folders.iter().map(ToString::to_string).collect();
        Self { objects, folders, next, unnamed }
    }
}

/// What a removal did not remove, as JSON.
#[derive(Serialize)]
struct DeleteAnswer {
    stays: Unnamed,
}

#[derive(Serialize)]
struct ListedObject {
    path: String,
    size: u64,
    etag: String,
    /// Milliseconds since the Unix epoch.
    modified: i64,
}

impl From<Listed> for ListedObject {
    fn from(Listed { path, meta: Meta { size, etag, modified } }: Listed) -> Self {
        Self { path: path.to_string(), size, etag, modified: modified.as_millis() }
    }
}

async fn gateway(Shared(state): Shared<State>, request: Request) -> Response {
    match answer(&state, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn answer(state: &State, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let caller = head.extensions.get::<Caller>().cloned().ok_or_else(|| {
        let message = "the request carries no valid token";
        Refusal::new(StatusCode::UNAUTHORIZED, "Unauthenticated", message)
    })?;
    let whole = head.uri.path();
    let below = whole.strip_prefix("/data/v1/").unwrap_or_default();
    let (datastore, path) = match below.split_once('/') {
        Some((datastore, path)) => (decode(datastore)?, Some(decode(path)?)),
        None => (decode(below)?, None),
    };
    // Before the name is looked up: who may read nothing is not told what exists.
    if !caller.may(Permission::ReadData) && !caller.may(Permission::WriteData) {
        let message = format!("{} may not use the data gateway", caller.role);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
    }
    let datastore = &match &caller.role {
        Role::Attempt(_) => state.datastores.get_for_attempt(&datastore),
        _ => state.datastores.get(&datastore),
    }?;
    match path {
        None if head.method == Method::POST => {
            direct::sign_reads(state, &caller, datastore, &head, body).await
        }
        None => list(state, &caller, datastore, &head).await,
        Some(path) => {
            let path = ObjectPath::new(&path).map_err(storage::Error::from)?;
            let answered = match head.method {
                Method::GET => read(state, &caller, datastore, &path, &head.headers, true).await,
                Method::HEAD => read(state, &caller, datastore, &path, &head.headers, false).await,
                Method::PUT if copy::is_asked(&head) => {
                    copy::copy(state, &caller, datastore, &path, &head).await
                }
                Method::PUT => write(state, &caller, datastore, &path, &head.headers, body).await,
                Method::POST => direct::upload(state, &caller, datastore, &path, &head, body).await,
                Method::DELETE => delete(state, &caller, datastore, &path, &head).await,
                _ => Err(method_not_allowed("GET, HEAD, PUT, DELETE")),
            }?;
            let how = match head.method {
                Method::HEAD => None,
                Method::GET => Some(Use::Read),
                Method::DELETE => Some(Use::Delete),
                _ => Some(Use::Write),
            };
            if let Some(how) = how {
                told_used(state, &caller, &head, datastore, &path, how);
            }
            Ok(answered)
        }
    }
}

/// Has the audit log know of a use of data.
fn told_used(
    state: &State,
    caller: &Caller,
    head: &Parts,
    datastore: &Datastore,
    path: &ObjectPath,
    how: Use,
) {
    let origin = head.extensions.get::<Origin>().cloned().unwrap_or_default();
    state.door.tell_used(caller, &origin, datastore.name(), path.as_str(), how);
}

fn method_not_allowed(allowed: &str) -> Refusal {
    let message = format!("use one of {allowed}");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
}

/// Percent-decodes once.
fn decode(text: &str) -> Result<String, Refusal> {
    percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| {
        Refusal::new(StatusCode::BAD_REQUEST, "InvalidPath", "the path is not UTF-8 once decoded")
    })
}

fn authorize(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &str,
    write: bool,
) -> Result<(), Refusal> {
    let forbidden = |message: String| Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message);
    if write && !caller.may(Permission::WriteData) {
        return Err(forbidden(format!("{} may read, not write", caller.role)));
    }
    state.door.authorize_data(caller, datastore.name(), path, write).map_err(forbidden)
}

async fn list(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    head: &Parts,
) -> Result<Response, Refusal> {
    if head.method != Method::GET {
        return Err(method_not_allowed("GET"));
    }
    let query: ListQuery = queried(head)?;
    let folder = match query.prefix.strip_suffix('/').unwrap_or(&query.prefix) {
        "" => None,
        folder => Some(ObjectPath::new(folder).map_err(storage::Error::from)?),
    };
    let named = folder.as_ref().map_or("", ObjectPath::as_str);
    authorize(state, caller, datastore, named, false)?;
    let (folder, after) = (folder.as_ref(), query.after.as_deref());
    let most = datastore.page().await?;
    let answer = match (&*query.delimiter, query.parts) {
        ("", true) => match datastore.list_part(folder, after, most).await? {
            Part::Page(page) => ListAnswer::from(page),
            Part::Folders(level) => ListAnswer::from(level),
        },
        ("", false) => ListAnswer::from(datastore.list(folder, after, most).await?),
        ("/", _) => ListAnswer::from(datastore.level(folder, after, PAGE).await?),
        _ => return Err(Refusal::invalid("the delimiter of paths is '/'")),
    };
    Ok(axum::Json(answer).into_response())
}

fn queried<T: serde::de::DeserializeOwned>(head: &Parts) -> Result<T, Refusal> {
    let Query(query) = Query::try_from_uri(&head.uri)
        .map_err(|error| Refusal::invalid(format!("the query cannot be read: {error}")))?;
    Ok(query)
}

async fn delete(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    head: &Parts,
) -> Result<Response, Refusal> {
    authorize(state, caller, datastore, path.as_str(), true)?;
    let DeleteQuery { recursive, upload } = queried(head)?;
    if let Some(upload) = upload {
        return direct::give_up(state, caller, datastore, path, upload).await;
    }
    let forbidden = |message| Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message);
    // What an attempt has written is its job's, to be looked at and deleted with it, once it is committed.
    if matches!(caller.role, Role::Attempt(_)) && !layout::is_uncommitted(path.as_str()) {
        return Err(forbidden("jobs do not delete objects"));
    }
    let holds_content = path.is_within(storage::CONTENT_PREFIX)
        || storage::CONTENT_PREFIX.starts_with(&format!("{path}/"));
    if datastore.name().as_str() == BLOB_STORE && holds_content {
        return Err(forbidden("the code of jobs lies there, which is not deleted by path"));
    }
    let stays = match recursive {
        true => datastore.delete(path).await?,
        false => datastore.delete_object(path).await.map(|()| Unnamed::default())?,
    };
    Ok(match stays.is_empty() {
        true => StatusCode::NO_CONTENT.into_response(),
        false => axum::Json(DeleteAnswer { stays }).into_response(),
    })
}

async fn read(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    headers: &HeaderMap,
    body: bool,
) -> Result<Response, Refusal> {
    authorize(state, caller, datastore, path.as_str(), false)?;
    let opened = datastore.open(path).await?;
    let Meta { size, etag, .. } = opened.meta.clone();
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    out.insert(header::ETAG, text(etag.clone()));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if headers.get(header::IF_MATCH).is_some_and(|tags| !names(tags, &etag)) {
        let message = "the object has changed";
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, "Changed", message));
    }
    if headers.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // Artifacts are shown by nobody in this place, whatever a browser might think they are.
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let same = headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    let asked = headers.get(header::RANGE).filter(|_| same).and_then(|value| value.to_str().ok());
    let range = match asked.map_or(Asked::Whole, |value| parse_range(value, size)) {
        Asked::Whole => 0..size,
        Asked::Part(range) => {
            let described = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            out.insert(header::CONTENT_RANGE, text(described));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            range
        }
        Asked::Outside => {
            let message = format!("the object has {size} bytes; the range lies outside");
            let mut refusal =
                Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "RangeNotSatisfiable", message);
            refusal.size = Some(size);
            return Err(refusal);
        }
    };
    let out = response.headers_mut();
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if body {
        *response.body_mut() = Body::from_stream(opened.stream(range));
    }
    Ok(response)
}

/// Whether the caller may store an object there, as far as a path says.
fn authorize_write(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
) -> Result<(), Refusal> {
    authorize(state, caller, datastore, path.as_str(), true)?;
    if datastore.name().as_str() == BLOB_STORE && path.is_within(storage::CONTENT_PREFIX) {
        let message = "content objects are stored by digest (ContentService.Put), not by path";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
    }
    Ok(())
}

/// Whether the caller may store it still.
fn still(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
) -> storage::Still {
    let (state, caller) = (state.clone(), caller.clone());
    let (datastore, path) = (datastore.clone(), path.clone());
    Arc::new(move || {
        authorize(&state, &caller, &datastore, path.as_str(), true)
            .map_err(|refusal| refusal.message)
    })
}

async fn write(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    authorize_write(state, caller, datastore, path)?;
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Refusal::invalid("an object is stored whole: send no Content-Range"));
    }
    // Again once all of it has come, and when all is stored: an attempt that is over must change nothing.
    let still = still(state, caller, datastore, path);
    let has_come = still.clone();
    let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
    let hashing = hasher.clone();
    let bytes = checked(body, async move { has_come() }).inspect_ok(move |piece| {
        hashing.lock().unwrap_or_else(PoisonError::into_inner).update(piece);
    });
    let meta = match datastore.put_stream_if(path, bytes, still).await {
        Err(error @ storage::Error::Interrupted(_)) => {
            authorize(state, caller, datastore, path.as_str(), true)?;
            return Err(error.into());
        }
        stored => stored?,
    };
    let digest = hasher.lock().unwrap_or_else(PoisonError::into_inner).finalize();
    let mut response = StatusCode::CREATED.into_response();
    response.headers_mut().insert(header::ETAG, text(meta.etag));
    response.headers_mut().insert(STORED, text(digest.to_hex().to_string()));
    Ok(response)
}

/// The bytes of a body, and after the last an error if `check` finds one: what stores them whole or
/// not at all then stores nothing.
pub(crate) fn checked<E>(
    body: Body,
    check: impl Future<Output = Result<(), E>> + Send,
) -> impl Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> + Send
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let checked = async move {
        check.await.map_err(Into::into)?;
        Ok(Bytes::new())
    };
    body.into_data_stream().map_err(Into::into).chain(futures::stream::once(checked))
}

/// Tags and ranges are made of visible characters; were they not, the header would say nothing.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""))
}

/// Whether a list of tags names this one, or is `*`.
fn names(tags: &HeaderValue, etag: &str) -> bool {
    tags.to_str().is_ok_and(|tags| {
        tags.split(',').any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
        })
    })
}

#[derive(PartialEq, Eq, Debug)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Outside,
}

/// One range of bytes (RFC 9110, section 14). What cannot be understood, and several ranges, are
/// answered with the whole.
fn parse_range(value: &str, size: u64) -> Asked {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|set| set.split_once('-'))
    else {
        return Asked::Whole;
    };
    match (first.trim(), last.trim()) {
        ("", last) => match last.parse::<u64>() {
            Ok(0) => Asked::Outside,
            Ok(_) if size == 0 => Asked::Outside,
            Ok(length) => Asked::Part(size.saturating_sub(length)..size),
            Err(_) => Asked::Whole,
        },
        (first, last) => match (first.parse::<u64>(), last) {
            (Ok(first), _) if first >= size && (last.is_empty() || last.parse::<u64>().is_ok()) => {
                Asked::Outside
            }
            (Ok(first), "") => Asked::Part(first..size),
            (Ok(first), last) => match last.parse::<u64>() {
                Ok(last) if last >= first => Asked::Part(first..last.saturating_add(1).min(size)),
                _ => Asked::Whole,
            },
            (Err(_), _) => Asked::Whole,
        },
    }
}

#[cfg(test)]
mod tests;
