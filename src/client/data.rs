//! Objects of datastores, through the daemon's gateway.

use std::time::Duration;

use atelier_core::datastore::Unnamed;
use atelier_core::url::encoded;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;

use super::{Client, innermost};

/// Tries for what fails because of the way or the moment.
const TRIES: u32 = 6;
/// The pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

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
    base: String,
    token: super::Token,
}

impl Data {
    /// With the address and the token of a connection.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn of(client: &Client) -> Result<Self, super::Error> {
        let target = client.target();
        let base = format!("{}/data/v1", target.server.trim_end_matches('/'));
        Ok(Self { http: client.http()?, base, token: target.token.clone() })
    }

    fn request(&self, method: Method, datastore: &str, path: &str, query: &str) -> RequestBuilder {
        let (datastore, path) = (encoded(datastore), encoded(path));
        let url = format!("{}/{datastore}/{path}{query}", self.base);
        self.http.request(method, url).bearer_auth(self.token.secret())
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
            let request = self.http.get(&url).bearer_auth(self.token.secret());
            let bytes = answer(request).await?.bytes().await.map_err(|e| Error::lost(&e))?;
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
        let mut request = self.request(Method::GET, datastore, path, "");
        if let Some(etag) = etag {
            request = request.header(header::IF_MATCH, etag);
        }
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let answer = answer(request).await?;
        if start > 0 && answer.status() != StatusCode::PARTIAL_CONTENT {
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
    pub async fn write(
        &self,
        datastore: &str,
        path: &str,
        length: u64,
        body: Body,
    ) -> Result<(), Error> {
        let request = self.request(Method::PUT, datastore, path, "");
        answer(request.header(header::CONTENT_LENGTH, length).body(body)).await.map(|_| ())
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
        again(async || {
            let request = self.request(
                Method::DELETE,
                datastore,
                path,
                if recursive { "?recursive=true" } else { "" },
            );
            let answer = answer(request).await?;
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
pub async fn again<T>(attempt: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match attempt().await {
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, ?pause, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            done => return done,
        }
    }
    attempt().await
}

async fn answer(request: RequestBuilder) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: String,
    }
    let answer = request.send().await.map_err(|error| Error::lost(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer.bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<Refusal>(&said)
        .map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.error.message);
    Err(Error::Refused { status: status.as_u16(), message })
}
