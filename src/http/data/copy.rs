//! Objects that are stored as what an attempt has written to the same datastore and not committed.

use atelier_core::access::{Caller, Role};
use atelier_core::layout;
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{StatusCode, header};
use serde::Deserialize;

use super::{Refusal, State, authorize, authorize_write, queried, still, text};
use crate::storage::{self, Datastore, Expected, ObjectPath};

/// What a copy is asked for.
#[derive(Deserialize)]
pub(super) struct CopyQuery {
    /// The path of the object to copy.
    from: String,
    /// Its length in bytes.
    size: u64,
    /// Its tag; an agent of before says none.
    tag: Option<String>,
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
    let CopyQuery { from, size, tag } = queried(head)?;
    let from = ObjectPath::new(&from).map_err(storage::Error::from)?;
    // In a folder a copy is another name of the same file: what is written in place must not be one.
    if !matches!(caller.role, Role::Attempt(_)) || !layout::is_uncommitted(from.as_str()) {
        let message = "running jobs alone copy, and only what they have not committed";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "Forbidden", message));
    }
    authorize(state, caller, datastore, from.as_str(), false)?;
    authorize_write(state, caller, datastore, path)?;
    // Once more right before it is seen: an attempt that is over must change nothing.
    let still = still(state, caller, datastore, path);
    let meta = match datastore.copy_if(&from, path, &Expected { size, tag }, still).await {
        Err(error @ storage::Error::Interrupted(_)) => {
            authorize(state, caller, datastore, path.as_str(), true)?;
            return Err(error.into());
        }
        copied => copied?,
    };
    // Not as what was stored: a daemon that knows of no copies answers so.
    let mut response = StatusCode::OK.into_response();
    response.headers_mut().insert(header::ETAG, text(meta.etag));
    Ok(response)
}
