//! The way past the gateway: an attempt is given addresses by which it reads from a store, or writes to it, itself.
//!
//! | request | what it does |
//! |---|---|
//! | `POST /data/v1/{datastore}` `{"sign": [PATH…]}` | gives an address for each object, to read it by |
//! | `POST /data/v1/{datastore}/{path}?size=N` | begins an upload in parts; with `untagged=true` also one whose parts have no tags |
//! | `POST …/{path}?upload=ID` `{"sign": {"from": N, "to": N}}` | gives an address for each part, to write it by |
//! | `POST …/{path}?upload=ID` `{"complete": [TAG…]}` | makes the parts the object |
//! | `DELETE …/{path}?upload=ID` | gives the upload up |
//!
//! Each asks the door anew, so that the attempt's end is the end of all but what was signed before; that lasts for
//! [`READ`] at most, or half a lease if it is for writing. Where a store gives no addresses the answer is `null` in
//! their place, and the bytes go through the gateway.

use std::time::Duration;

use atelier_core::access::{AttemptScope, Caller, Role};
use atelier_core::content::Digest;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{Refusal, State, authorize, authorize_write, queried, still, text, told_used};
use crate::identity::{Origin, Use};
use crate::storage::{self, Completed, Datastore, ObjectPath, Signed};
use crate::store::parts::{PartUpload, Uploader};

/// For how long an object can be read by an address.
const READ: Duration = Duration::from_secs(600);
/// Addresses of one answer.
const MOST: usize = 1000;
/// A request of [`MOST`] of the longest paths, about.
const BODY: usize = 2 << 20;
/// The size of a part, and how many there are at most before parts are larger.
const PART: u64 = 8 << 20;
const PARTS: u64 = 5000;
/// The largest object of all stores.
const LARGEST: u64 = 5 << 40;

#[derive(Deserialize)]
struct Reads {
    sign: Vec<String>,
}

#[derive(Serialize)]
struct Addresses {
    urls: Option<Vec<String>>,
    /// For how long they are good.
    seconds: u64,
}

impl Addresses {
    fn of(signed: Option<Vec<Signed>>, lasting: Duration) -> Response {
        let urls = signed.map(|signed| signed.into_iter().map(|signed| signed.url).collect());
        private(axum::Json(Self { urls, seconds: lasting.as_secs() }).into_response())
    }
}

/// The same for nobody who may look at what was answered before.
fn private(mut response: Response) -> Response {
    let no_store = http::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

#[derive(Deserialize)]
struct Asked {
    size: Option<u64>,
    upload: Option<String>,
    /// Whether the agent does without tags of parts, which Azure gives none of.
    #[serde(default)]
    untagged: bool,
}

#[derive(Serialize)]
struct Begun {
    upload: Option<String>,
    part_size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Sign { from: u32, to: u32 },
    Complete(Vec<String>),
}

/// Answers what is asked of a datastore as a whole.
pub(super) async fn sign_reads(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    attempt(caller)?;
    let Reads { sign } = read(body).await?;
    if sign.len() > MOST {
        return Err(Refusal::invalid(format!("at most {MOST} addresses are given at once")));
    }
    let path = |path: &String| {
        let path = ObjectPath::new(path).map_err(storage::Error::from)?;
        authorize(state, caller, datastore, path.as_str(), false)?;
        Ok(path)
    };
    let paths = sign.iter().map(path).collect::<Result<Vec<_>, Refusal>>()?;
    if !state.uploads.signs() {
        return Ok(Addresses::of(None, READ));
    }
    let signed = datastore.sign_reads(&paths, READ).await?;
    for path in paths.iter().filter(|_| signed.is_some()) {
        told_used(state, caller, head, datastore, path, Use::Read);
    }
    Ok(Addresses::of(signed, READ))
}

/// Answers what is asked of an upload of an object.
pub(super) async fn upload(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    let scope = attempt(caller)?;
    authorize_write(state, caller, datastore, path)?;
    let id = match queried(head)? {
        Asked { size: Some(size), upload: None, untagged } => {
            let origin = head.extensions.get::<Origin>().and_then(|origin| origin.from);
            let is_understood = untagged || !datastore.copies_parts();
            if !is_understood || !state.uploads.pays(datastore, origin) {
                return Ok(begun(None, size));
            }
            return begin(state, scope, datastore, path, size).await;
        }
        Asked { size: None, upload: Some(id), .. } => id,
        _ => return Err(Refusal::invalid("say either the size of the object or its upload")),
    };
    let known = find(state, scope, datastore, path, id).await?;
    match read(body).await? {
        Step::Sign { from, to } => {
            let count = to.checked_sub(from).filter(|count| *count as usize <= MOST);
            if from == 0 || count.is_none() {
                let message = format!("parts begin at 1, and at most {MOST} are signed at once");
                return Err(Refusal::invalid(message));
            }
            let Some(lasting) = state.uploads.writes else { return Ok(Addresses::of(None, READ)) };
            let signed = datastore.sign_parts(path, &known.upload, from..to, lasting).await?;
            Ok(Addresses::of(Some(signed), lasting))
        }
        Step::Complete(tags) => {
            let still = still(state, caller, datastore, path);
            let stored = datastore.complete_parts(path, &known.upload, tags, &still).await;
            let Completed { tag, is_clean } = match stored {
                Err(error @ storage::Error::Interrupted(_)) => {
                    authorize(state, caller, datastore, path.as_str(), true)?;
                    return Err(error.into());
                }
                stored => stored?,
            };
            if is_clean {
                state.uploads.end(known.id).await?;
            }
            let mut response = StatusCode::CREATED.into_response();
            response.headers_mut().insert(header::ETAG, text(tag));
            Ok(response)
        }
    }
}

async fn begin(
    state: &State,
    scope: &AttemptScope,
    datastore: &Datastore,
    path: &ObjectPath,
    size: u64,
) -> Result<Response, Refusal> {
    if state.uploads.writes.is_none() || size > LARGEST {
        return Ok(begun(None, size));
    }
    let Some(upload) = datastore.begin_parts(path).await? else { return Ok(begun(None, size)) };
    let named = format!("{}\n{path}\n{upload}", datastore.name());
    let id = Digest::of(named.as_bytes()).to_string();
    state
        .uploads
        .begin(id.clone(), Uploader::Attempt(scope.clone()), datastore, path, upload)
        .await?;
    Ok(begun(Some(id), size))
}

/// `None`: nothing was, and the bytes go through the gateway.
fn begun(upload: Option<String>, size: u64) -> Response {
    let part_size = size.div_ceil(PARTS).max(PART).next_multiple_of(1 << 20);
    axum::Json(Begun { upload, part_size }).into_response()
}

/// Gives an upload up.
pub(super) async fn give_up(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    id: String,
) -> Result<Response, Refusal> {
    let known = find(state, attempt(caller)?, datastore, path, id).await?;
    datastore.abort_parts(path, &known.upload).await?;
    state.uploads.end(known.id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The upload with an id, if it is the attempt's own and of that object.
async fn find(
    state: &State,
    scope: &AttemptScope,
    datastore: &Datastore,
    path: &ObjectPath,
    id: String,
) -> Result<PartUpload, Refusal> {
    let own = |known: &PartUpload| {
        known.by == Uploader::Attempt(scope.clone())
            && known.datastore == *datastore.name()
            && known.path == path.as_str()
    };
    state.uploads.find(id).await?.filter(own).ok_or_else(|| {
        let message = "there is no such upload of this object: begin another";
        Refusal::new(StatusCode::NOT_FOUND, "NoSuchUpload", message)
    })
}

/// People go through the gateway: what they do shall be seen there.
fn attempt(caller: &Caller) -> Result<&AttemptScope, Refusal> {
    match &caller.role {
        Role::Attempt(scope) => Ok(scope),
        _ => {
            let message = "addresses of a store's own are given to running jobs alone";
            Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message))
        }
    }
}

async fn read<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bytes: Bytes = axum::body::to_bytes(body, BODY)
        .await
        .map_err(|error| Refusal::invalid(format!("the request cannot be read: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::invalid(format!("the request is not understood: {error}")))
}
