//! Objects of datastores, through the daemon's gateway.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::datastore::Unnamed;
use atelier_core::url::encoded;
use atelier_proto::STORED;
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;

use super::{CALL, Client, Target, innermost};

/// Tries for what fails because of the way or the moment.
const TRIES: u32 = 6;
/// The pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the daemon may stand still.
const STILL: Duration = Duration::from_secs(120);
/// Bytes of an object that is sent that come through in a second on the slowest way that is waited for.
const SLOWEST: u64 = 64 << 10;
/// How long it may take until all below a folder is gone; another try goes on with what is left.
const REMOVAL: Duration = Duration::from_secs(3600);

/// How long it may take until so many bytes are sent, and what is done with them is answered.
pub(crate) fn within(length: u64) -> Duration {
    STILL + Duration::from_secs(length / SLOWEST)
}

/// Why an object was not read, stored or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The connection broke, or there was none.
    #[error("lost the daemon: {0}")]
    Lost(String),
}

impl Error {
    fn lost(error: &reqwest::Error) -> Self {
        Self::Lost(innermost(error))
    }

    /// Whether it may work in a while.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Refused { status, .. } => matches!(status, 429 | 502..=504),
        }
    }
}

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Object {
    /// Its path within the datastore.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// What another content at the path does not have.
    pub etag: String,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub modified: i64,
}

/// Some of what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Page {
    /// Objects, in order of their paths.
    pub objects: Vec<Object>,
    /// Folders right below the one that was looked at.
    #[serde(default)]
    pub folders: Vec<String>,
    /// Where the next page begins. `None`: this is the last.
    pub next: Option<String>,
    /// What lies there and is in none of these, since no path names it.
    #[serde(default)]
    pub unnamed: Unnamed,
}

/// What the daemon says of what it has stored.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is what was sent, as far as the daemon says.
    AsSent,
    /// It has other bytes.
    Otherwise,
}

/// Whether a listing goes all the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What lies right below a folder.
    Level,
    /// Everything below it.
    All,
}

/// Reads, stores and removes objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Data {
    http: reqwest::Client,
    /// For what is answered only when all of it is done: how long that may take is given with each.
    patient: reqwest::Client,
    base: String,
    token: super::Token,
}

impl Data {
    /// With the address and the token of a connection.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn of(client: &Client) -> Result<Self, super::Error> {
        Self::with(client.target(), CALL)
    }

    /// The same, with how long nothing may come of an object that is read.
    pub(crate) fn with(target: &Target, silence: Duration) -> Result<Self, super::Error> {
        Ok(Self {
            http: target.http(Some(silence))?,
            patient: target.http(None)?,
            base: format!("{}/data/v1", target.server.trim_end_matches('/')),
            token: target.token.clone(),
        })
    }

    fn url(&self, datastore: &str, path: &str) -> String {
        format!("{}/{}/{}", self.base, encoded(datastore), encoded(path))
    }

    /// The answer to what is done before it is answered.
    async fn done(
        &self,
        method: Method,
        url: &str,
        within: Duration,
        more: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let request = self.patient.request(method, url).bearer_auth(self.token.secret());
        let sent = more(request.timeout(within)).send().await;
        let late = |error: reqwest::Error| match error.is_timeout() && !error.is_connect() {
            true => Error::Lost(format!("it did not answer within {} s", within.as_secs())),
            false => Error::lost(&error),
        };
        accepted(sent.map_err(late)?).await
    }

    /// A page of what lies at or below a folder (of the datastore, if it is empty) after a path. Tries again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn page(
        &self,
        datastore: &str,
        folder: &str,
        after: Option<&str>,
        depth: Depth,
    ) -> Result<Page, Error> {
        let mut url = format!("{}/{}?prefix={}", self.base, encoded(datastore), encoded(folder));
        if let Some(after) = after {
            url.push_str(&format!("&after={}", encoded(after)));
        }
        if depth == Depth::Level {
            url.push_str("&delimiter=/");
        }
        again(async || {
            let answer = self.done(Method::GET, &url, STILL, |request| request).await?;
            let bytes = answer.bytes().await.map_err(|e| Error::lost(&e))?;
            serde_json::from_slice(&bytes)
                .map_err(|error| Error::Lost(format!("its listing cannot be read: {error}")))
        })
        .await
    }

    /// All that lies at or below a folder.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn list(&self, datastore: &str, folder: &str, depth: Depth) -> Result<Page, Error> {
        let mut whole = Page::default();
        loop {
            let page = self.page(datastore, folder, whole.next.as_deref(), depth).await?;
            whole.objects.extend(page.objects);
            whole.folders.extend(page.folders);
            whole.unnamed.merge(page.unnamed);
            // A page that does not move on would never end.
            let moves = page.next > whole.next;
            whole.next = page.next.filter(|_| moves);
            if whole.next.is_none() {
                return Ok(whole);
            }
        }
    }

    /// The bytes of an object from `start` on, if it still is the one with that tag.
    ///
    /// # Errors
    /// [`Error`]; status 412 if it has changed.
    pub async fn read(
        &self,
        datastore: &str,
        path: &str,
        start: u64,
        etag: Option<&str>,
    ) -> Result<Response, Error> {
        let request = self.http.get(self.url(datastore, path));
        let mut request = request.bearer_auth(self.token.secret());
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let answer = request.send().await.map_err(|error| Error::lost(&error))?;
        let answer = accepted(answer).await?;
        let range = answer.headers().get(header::CONTENT_RANGE);
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
            && range
                .and_then(|range| range.to_str().ok())
                .is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        if start > 0 && !goes_on {
            return Err(Error::Lost(
                "it does not go on where the object was broken off".to_owned(),
            ));
        }
        Ok(answer)
    }

    /// Stores an object of `length` bytes, whole or not at all; durable when it returns.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write<E>(
        &self,
        datastore: &str,
        path: &str,
        length: u64,
        bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<Stored, Error>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
        let hashing = hasher.clone();
        let bytes = bytes.inspect_ok(move |piece| {
            hashing.lock().unwrap_or_else(PoisonError::into_inner).update(piece);
        });
        let url = self.url(datastore, path);
        let with_body = |request: RequestBuilder| {
            request.header(header::CONTENT_LENGTH, length).body(Body::wrap_stream(bytes))
        };
        let answer = self.done(Method::PUT, &url, within(length), with_body).await?;
        let sent = hasher.lock().unwrap_or_else(PoisonError::into_inner).finalize();
        // One of an older release says nothing.
        let told = answer
            .headers()
            .get(STORED)
            .and_then(|told| told.to_str().ok()?.parse::<Digest>().ok());
        Ok(match told {
            Some(told) if Digest::from_bytes(*sent.as_bytes()) != told => Stored::Otherwise,
            _ => Stored::AsSent,
        })
    }

    /// Removes an object, or all that lies at or below the path; what stays. Tries again.
    ///
    /// # Errors
    /// [`Error`]; status 404 for an object that is not there.
    pub async fn delete(
        &self,
        datastore: &str,
        path: &str,
        recursive: bool,
    ) -> Result<Unnamed, Error> {
        #[derive(Deserialize)]
        struct Answer {
            stays: Unnamed,
        }
        let mut url = self.url(datastore, path);
        let within = if recursive { REMOVAL } else { STILL };
        if recursive {
            url.push_str("?recursive=true");
        }
        again(async || {
            let answer = self.done(Method::DELETE, &url, within, |request| request).await?;
            if answer.status() != StatusCode::OK {
                return Ok(Unnamed::default());
            }
            let bytes = answer.bytes().await.map_err(|e| Error::lost(&e))?;
            let told: Answer = serde_json::from_slice(&bytes)
                .map_err(|error| Error::Lost(format!("its answer cannot be read: {error}")))?;
            Ok(told.stays)
        })
        .await
    }
}

/// Tries until it works, fails for good, or has failed often.
///
/// # Errors
/// The last one's.
pub async fn again<T>(attempt: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    again_where(Error::is_transient, attempt).await
}

/// The same, of errors that may not come again where `is_transient` says so.
///
/// # Errors
/// The last one's.
pub async fn again_where<T, E: fmt::Display>(
    is_transient: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match attempt().await {
            Err(error) if is_transient(&error) => {
                tracing::debug!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            done => return done,
        }
    }
    attempt().await
}

async fn accepted(answer: Response) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: String,
    }
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer.bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<Refusal>(&said)
        .map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.error.message);
    Err(Error::Refused { status: status.as_u16(), message })
}

#[cfg(test)]
mod tests;
