//! `mlflow-artifacts/mpu/…`: large files of people, written to the artifact store itself, part by
//! part.
//!
//! Clients are given addresses of parts alone, and the store's keys stay here. What is written by
//! them is seen by nobody before the daemon completes the upload, which asks again whether the file
//! may be written. Jobs send their files in one piece: an address would outlast their token.

use std::sync::Arc;
use std::time::Duration;

use atelier_core::access::Role;
use atelier_core::content::Digest;
use atelier_core::track::{ArtifactPath, Error as Refusal, limits};
use axum::Json;
use axum::extract::Path;
use http::StatusCode;
use rusqlite::Connection;
use serde_json::json;

use super::artifacts::{Address, Holder, changeable, same_experiment, still_changeable, writable};
use super::call::Call;
use super::failure::Failure;
use super::{Answer, leads_there};
use crate::storage::{self, ObjectPath, Still};
use crate::store::parts::{PartUpload, Uploader};

/// For how long a part can be written by an address.
const WRITE: Duration = Duration::from_secs(3600);
/// Parts of a file: no store takes more.
const PARTS: i64 = 10_000;

/// The client then uploads in one piece.
fn unsupported() -> Failure {
    let message = "Multipart upload is not supported for the current artifact repository";
    Failure::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
}

/// A file that is to be written.
struct File {
    holder: Holder,
    path: ArtifactPath,
    place: ObjectPath,
}

impl File {
    /// The one that a call is about, if its caller may write it: a folder in the address, and in the body a path
    /// whose last part is the file's name.
    async fn of(call: &Call, folder: &str) -> Result<Self, Failure> {
        let address = Address::parse(folder)?;
        let named = call.fields.required_text("path")?;
        let name = named.rsplit('/').next().unwrap_or(named);
        let path = match &address.path {
            Some(folder) => ArtifactPath::new(&format!("{folder}/{name}"))?,
            None => ArtifactPath::new(name)?,
        };
        let holder = writable(&call.state, &call.caller, &address.whose).await?;
        same_experiment(&holder, &address)?;
        changeable(&call.state, &holder, &path).await?;
        let place = holder.object(&path)?;
        Ok(Self { holder, path, place })
    }

    /// Whether it may still be written, for when all of it is there, which may be long after the upload is to be
    /// completed.
    fn still(&self, call: &Call) -> Still {
        let (state, caller) = (call.state.clone(), call.caller.clone());
        let (holder, path) = (self.holder.clone(), self.path.clone());
        Arc::new(move || {
            state.door.still_open(&caller)?;
            let ask = |conn: &Connection| still_changeable(conn, &caller, &holder, &path);
            state.tracking.read_here(ask).map_err(|error| error.to_string())
        })
    }

    /// The caller's upload of it that the body names.
    async fn upload(&self, call: &Call) -> Result<Option<PartUpload>, Failure> {
        let id = call.fields.required_text("upload_id")?.to_owned();
        let by = Uploader::Person { principal: call.caller.principal.clone() };
        let known = call.state.uploads.find(id).await?;
        let store = call.state.tracking.artifacts().name();
        Ok(known.filter(|known| {
            known.by == by && known.datastore == *store && known.path == self.place.as_str()
        }))
    }
}

pub(super) async fn create(Path(folder): Path<String>, call: Call) -> Answer {
    if matches!(call.caller.role, Role::Attempt(_)) || !call.state.uploads.signs() {
        return Err(unsupported());
    }
    let file = File::of(&call, &folder).await?;
    let parts = match call.fields.integer("num_parts")?.unwrap_or(1) {
        parts @ 1..=PARTS => parts as u32,
        parts => {
            let why = format!("It must be between 1 and {PARTS}.");
            return Err(limits::invalid_value("num_parts", &parts.to_string(), Some(&why)).into());
        }
    };
    let store = call.state.tracking.artifacts();
    let upload = store.begin_parts(&file.place).await?.ok_or_else(unsupported)?;
    // An address that leads nowhere from there is none.
    let tried = store.sign_parts(&file.place, &upload, 1..2, WRITE).await?;
    if !tried.iter().all(|signed| leads_there(signed, &call.origin)) {
        store.abort_parts(&file.place, &upload).await?;
        return Err(unsupported());
    }
    let named = format!("{}\n{}\n{upload}", store.name(), file.place);
    let id = Digest::of(named.as_bytes()).to_string();
    let by = Uploader::Person { principal: call.caller.principal.clone() };
    call.state.uploads.begin(id.clone(), by, store, &file.place, upload.clone()).await?;
    let signed = store.sign_parts(&file.place, &upload, 1..parts + 1, WRITE).await?;
    let part = |(number, signed): (u32, storage::Signed)| json!({ "url": signed.url, "part_number": number, "headers": {} });
    let credentials: Vec<_> = (1..).zip(signed).map(part).collect();
    Ok(Json(json!({ "upload_id": id, "credentials": credentials })))
}

pub(super) async fn complete(Path(folder): Path<String>, call: Call) -> Answer {
    let file = File::of(&call, &folder).await?;
    let mut parts = Vec::new();
    for part in call.fields.objects("parts")? {
        let number = part.integer("part_number")?.ok_or_else(|| part.missing("part_number"))?;
        let tag = match call.state.tracking.artifacts().copies_parts() {
            // Azure's blocks have none.
            true => part.text("etag")?.unwrap_or_default(),
            false => part.required_text("etag")?,
        };
        parts.push((number, tag.to_owned()));
    }
    parts.sort_unstable();
    if parts.is_empty() || !parts.iter().zip(1..).all(|((number, _), place)| *number == place) {
        let why = "The parts of an upload must be all there, numbered from 1, each once.";
        return Err(Refusal::Invalid(why.to_owned()).into());
    }
    let Some(known) = file.upload(&call).await? else {
        let message = "There is no such upload of this file: begin another.";
        return Err(Failure::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message));
    };
    let tags = parts.into_iter().map(|(_, tag)| tag).collect();
    // From before the file is seen until its row is written nobody deletes either.
    let _held = call.state.changing.write(file.holder.root()).await;
    let store = call.state.tracking.artifacts();
    let still = file.still(&call);
    match store.complete_parts(&file.place, &known.upload, tags, &still).await {
        Ok(_) => {}
        // The same request again, whose first answer was lost.
        Err(error @ storage::Error::NotFound(_)) => {
            let (holder, path) = (file.holder.clone(), file.path.clone());
            let at = call.read(move |conn| holder.stored_at(conn, &path)).await?;
            return match at {
                Some(at) if at >= known.begun_at => Ok(Json(json!({}))),
                _ => Err(error.into()),
            };
        }
        Err(storage::Error::Interrupted(why)) => {
            call.state.door.still_open(&call.caller).map_err(Refusal::NotAllowed)?;
            File::of(&call, &folder).await?;
            // It may be written, as was only seen now: clients ask again by themselves.
            return Err(Failure::unavailable(why.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    // Of what is complete nothing is left in the store; its row goes as those of what was left lying.
    let size = store.head(&file.place).await?.size;
    let now = call.state.tracking.now();
    call.write(file.holder.stored(call.caller.clone(), file.path, size, now)).await?;
    Ok(Json(json!({})))
}

/// One that is not known is given up already.
pub(super) async fn abort(Path(folder): Path<String>, call: Call) -> Answer {
    let file = File::of(&call, &folder).await?;
    if let Some(known) = file.upload(&call).await? {
        call.state.tracking.artifacts().abort_parts(&file.place, &known.upload).await?;
        call.state.uploads.end(known.id).await?;
    }
    Ok(Json(json!({})))
}
