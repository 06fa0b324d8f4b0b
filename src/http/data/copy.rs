//! Objects that are stored as what others of the same datastore are.

use atelier_core::access::Caller;
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{StatusCode, header};
use serde::Deserialize;

use super::{Refusal, State, authorize, authorize_write, queried, still, text};
use crate::storage::{self, Datastore, ObjectPath};

/// What a copy is asked for.
#[derive(Deserialize)]
pub(super) struct CopyQuery {
    /// The path of the object to copy.
    from: String,
    /// Its length in bytes.
    size: u64,
}

/// Whether an object is to be stored as a copy.
pub(super) fn is_asked(head: &Parts) -> bool {
    let pairs = head.uri.query().unwrap_or_default().split('&');
    pairs.into_iter().any(|pair| pair.starts_with("from="))
}

pub(super) async fn copy(
    state: &State,
    caller: &Caller,
    datastore: &Datastore,
    path: &ObjectPath,
    head: &Parts,
) -> Result<Response, Refusal> {
    let CopyQuery { from, size } = queried(head)?;
    let from = ObjectPath::new(&from).map_err(storage::Error::from)?;
    authorize(state, caller, datastore, from.as_str(), false)?;
    authorize_write(state, caller, datastore, path)?;
    // Once more right before it is seen: an attempt that is over must change nothing.
    let still = still(state, caller, datastore, path);
    let meta = datastore.copy_if(&from, path, size, still).await?;
    let mut response = StatusCode::CREATED.into_response();
    response.headers_mut().insert(header::ETAG, text(meta.etag));
    Ok(response)
}
