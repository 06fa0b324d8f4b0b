//! The daemon's data gateway, and reading from the web.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH, IF_RANGE, RANGE,
};
use reqwest::{Body, Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::store::Found;
use super::{Error, path};

/// Tries of one request.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long the daemon may stand still.
const STILL: Duration = Duration::from_secs(120);
/// Bytes of an upload that come through in a second on the slowest way that is waited for.
const SLOWEST: u64 = 64 << 10;

/// What reqwest is asked to do everywhere.
fn client() -> Result<Client, reqwest::Error> {
    builder().build()
}

/// For uploads: an answer comes only after the last byte, so how long one may take is given with each.
fn uploads() -> Result<Client, reqwest::Error> {
    plain().build()
}

pub(super) fn builder() -> ClientBuilder {
    // Between two pieces, not for the whole: a large file may take hours.
    plain().read_timeout(STILL)
}

fn plain() -> ClientBuilder {
    Client::builder()
        .connect_timeout(Duration::from_secs(20))
        .user_agent(concat!("atelier-agent/", env!("CARGO_PKG_VERSION")))
}

/// A failed request, before it is known whose it is.
#[derive(Debug)]
pub(super) enum Failure {
    /// Answered with another status than success.
    Status(StatusCode, String),
    /// What the datastore is does not allow it, or its credentials do not.
    Denied(String),
    /// Not answered, or not to the end.
    Broken(String),
    /// Answered from where nothing may come from.
    Closed(&'static str),
    /// This node's file system.
    Local(Error),
}

impl Failure {
    /// Whether another try may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status(status, _) => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT
                            | StatusCode::TOO_MANY_REQUESTS
                            | StatusCode::PRECONDITION_FAILED
                    )
            }
            Self::Broken(_) => true,
            Self::Denied(_) | Self::Closed(_) | Self::Local(_) => false,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Status(status, message) if message.is_empty() => status.to_string(),
            Self::Status(status, message) => format!("{message} ({status})"),
            Self::Denied(what) | Self::Broken(what) => what.clone(),
            Self::Closed(why) => (*why).to_owned(),
            Self::Local(error) => error.to_string(),
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Broken(chain(&error.without_url()))
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// How often something was tried, and how long to wait before the next time.
#[derive(Debug)]
struct Patience {
    tries: u32,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { tries: 1, pause: FIRST_PAUSE }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself, if another try would not help or there were enough.
    async fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.is_transient() || self.tries >= TRIES {
            return Err(failure);
        }
        tracing::debug!(self.tries, failure = failure.text(), "request failed, trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.tries += 1;
        Ok(())
    }
}

async fn accepted(response: Response) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        error: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        code: String,
        message: String,
    }
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    // Only a gateway's own words are repeated; another server's page says nothing.
    let text = response.text().await.unwrap_or_default();
    match serde_json::from_str::<Answer>(&text).map(|answer| answer.error) {
        Ok(Inner { code, message }) if matches!(&*code, "StoreDenied" | "Unsupported") => {
            Err(Failure::Denied(message))
        }
        Ok(Inner { message, .. }) => Err(Failure::Status(status, message)),
        Err(_) => Err(Failure::Status(status, String::new())),
    }
}

/// What came of a download.
#[derive(Debug)]
pub(super) struct Downloaded {
    pub(super) etag: Option<String>,
    /// `false`: the server said that nothing has changed, and sent nothing.
    pub(super) sent: bool,
}

/// Streams what `request` asks for into a new file at `to`. A break in the middle is resumed where
/// the server can, else begun anew; `expected` bytes must come in the end. `closed` says of an answer why it is not
/// taken from where it comes.
pub(super) async fn download(
    to: &Path,
    expected: Option<u64>,
    closed: impl Fn(&Response) -> Option<&'static str>,
    request: impl Fn() -> RequestBuilder,
) -> Result<Downloaded, Failure> {
    let file = tokio::fs::File::create_new(to)
        .await
        .map_err(|error| Failure::Local(Error::io("write", to, error)))?;
    let mut transfer = Transfer { to, file, done: 0, tag: None };
    let mut patience = Patience::new();
    loop {
        match transfer.go_on(request(), expected, &closed).await {
            Ok(downloaded) => return Ok(downloaded),
            Err(failure) => patience.after(failure).await?,
        }
    }
}

/// A download that may take several requests.
struct Transfer<'a> {
    to: &'a Path,
    file: tokio::fs::File,
    /// Bytes that are there.
    done: u64,
    /// Of the content that they are from, if the server can continue it.
    tag: Option<String>,
}

impl Transfer<'_> {
    async fn go_on(
        &mut self,
        mut request: RequestBuilder,
        expected: Option<u64>,
        closed: impl Fn(&Response) -> Option<&'static str>,
    ) -> Result<Downloaded, Failure> {
        let to = self.to;
        let failed = |error| Failure::Local(Error::io("write", to, error));
        request = request.header(ACCEPT_ENCODING, "identity");
        if let (1.., Some(tag)) = (self.done, &self.tag) {
            let range = format!("bytes={}-", self.done);
            request = request.header(RANGE, range).header(IF_RANGE, tag);
        }
        let answer = request.send().await?;
        if let Some(why) = closed(&answer) {
            return Err(Failure::Closed(why));
        }
        let response = match accepted(answer).await {
            Ok(response) => response,
            Err(failure) => {
                // It changed, or the range is gone: from the start, next time.
                (self.done, self.tag) = (0, None);
                return Err(failure);
            }
        };
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Downloaded { etag: None, sent: false });
        }
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            if !range.starts_with(&format!("bytes {}-", self.done)) {
                return Err(Failure::Broken(format!("the server sent another part: '{range}'")));
            }
        } else {
            self.file.set_len(0).await.map_err(failed)?;
            self.file.rewind().await.map_err(failed)?;
            self.done = 0;
        }
        // A weak tag does not promise equal bytes.
        self.tag = header(ETAG).filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let announced = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        let end = expected.or(announced.map(|length| self.done + length));
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    // What came so far counts only once it is in the file.
                    self.file.flush().await.map_err(failed)?;
                    return Err(error.into());
                }
            };
            self.file.write_all(&piece).await.map_err(failed)?;
            self.done += piece.len() as u64;
        }
        self.file.flush().await.map_err(failed)?;
        if let Some(end) = end
            && self.done != end
        {
            let problem = format!("{} bytes came instead of {end}", self.done);
            if self.done > end {
                (self.done, self.tag) = (0, None);
            }
            return Err(Failure::Broken(problem));
        }
        Ok(Downloaded { etag: self.tag.take(), sent: true })
    }
}

/// The gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    client: Client,
    uploads: Client,
    base: String,
}

#[derive(Deserialize)]
struct Page {
    objects: Vec<Listed>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    size: u64,
    etag: String,
}

impl Gateway {
    pub(super) fn new(http_url: &str) -> Result<Self, reqwest::Error> {
        let made = Self { client: client()?, uploads: uploads()?, base: String::new() };
        Ok(made.at(http_url))
    }

    /// The gateway at another address.
    pub(super) fn at(self, http_url: &str) -> Self {
        let base = format!("{}/data/v1", http_url.trim_end_matches('/'));
        Self { base, ..self }
    }

    fn url(&self, datastore: &str, key: &str) -> String {
        format!("{}/{}/{}", self.base, path::in_url(datastore), path::in_url(key))
    }

    fn error(operation: &'static str, datastore: &str, key: &str, failure: Failure) -> Error {
        match failure {
            Failure::Local(error) => error,
            Failure::Denied(problem) => {
                Error::Denied { operation, path: format!("{datastore}/{key}"), problem }
            }
            failure => Error::Gateway {
                operation,
                path: format!("{datastore}/{key}"),
                problem: failure.text(),
                transient: failure.is_transient(),
            },
        }
    }

    /// The object at `key`, or all objects below it; of the whole datastore if it is empty.
    pub(super) async fn list(
        &self,
        datastore: &str,
        key: &str,
        token: &str,
    ) -> Result<Vec<Found>, Error> {
        path::place(key)?;
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut url =
                format!("{}/{}?prefix={}", self.base, path::in_url(datastore), path::in_url(key));
            if let Some(after) = &after {
                url.push_str("&after=");
                url.push_str(&path::in_url(after));
            }
            let page = self
                .page(&url, token)
                .await
                .map_err(|failure| Self::error("list", datastore, key, failure))?;
            for object in page.objects {
                path::check(&object.path)?;
                let below = match object.path.strip_prefix(key) {
                    Some(rest) if key.is_empty() || rest.is_empty() => rest.to_owned(),
                    Some(rest) if rest.starts_with('/') => rest[1..].to_owned(),
                    // Outside of what was asked for.
                    _ => continue,
                };
                found.push(Found { below, size: object.size, etag: object.etag });
            }
            match page.next {
                // A page that does not move on would never end.
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => {
                    after = Some(next)
                }
                _ => return Ok(found),
            }
        }
    }

    async fn page(&self, url: &str, token: &str) -> Result<Page, Failure> {
        let mut patience = Patience::new();
        loop {
            let answer = self.client.get(url).bearer_auth(token).send();
            let page = async {
                let bytes = accepted(answer.await?).await?.bytes().await?;
                serde_json::from_slice(&bytes)
                    .map_err(|error| Failure::Broken(format!("the listing is no JSON: {error}")))
            };
            match page.await {
                Ok(page) => return Ok(page),
                Err(failure) => patience.after(failure).await?,
            }
        }
    }

    /// Reads an object of a listing into a new file.
    pub(super) async fn get(
        &self,
        datastore: &str,
        key: &str,
        found: &Found,
        token: &str,
        to: &Path,
    ) -> Result<(), Error> {
        let url = self.url(datastore, key);
        let request = || {
            let request = self.client.get(&url).bearer_auth(token);
            if found.etag.is_empty() { request } else { request.header(IF_MATCH, &found.etag) }
        };
        download(to, Some(found.size), |_| None, request)
            .await
            .map(|_| ())
            .map_err(|failure| Self::error("read", datastore, key, failure))
    }

    /// Reads bytes of an object of a listing, once. [`StatusCode::PRECONDITION_FAILED`]: it is another one by now.
    pub(super) async fn part(
        &self,
        datastore: &str,
        key: &str,
        etag: &str,
        range: Range<u64>,
        token: &str,
    ) -> Result<Bytes, Failure> {
        let mut request = self.client.get(self.url(datastore, key)).bearer_auth(token);
        if !etag.is_empty() {
            request = request.header(IF_MATCH, etag);
        }
        let last = range.end - 1;
        let request = request.header(RANGE, format!("bytes={}-{last}", range.start));
        let response = accepted(request.header(ACCEPT_ENCODING, "identity").send().await?).await?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        if header(ETAG).is_some_and(|tag| !etag.is_empty() && tag != etag) {
            return Err(Failure::Status(StatusCode::PRECONDITION_FAILED, String::new()));
        }
        let sent = header(CONTENT_RANGE).unwrap_or_default();
        if !sent.starts_with(&format!("bytes {}-{last}/", range.start)) {
            return Err(Failure::Broken(format!("the server sent another part: '{sent}'")));
        }
        let length = (range.end - range.start) as usize;
        let mut bytes = BytesMut::with_capacity(length);
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        match bytes.len() {
            all if all == length => Ok(bytes.freeze()),
            came => Err(Failure::Broken(format!("{came} bytes came instead of {length}"))),
        }
    }

    /// Stores an object; `body` makes its bytes anew for each try.
    pub(super) async fn put<T>(
        &self,
        datastore: &str,
        key: &str,
        length: u64,
        token: &str,
        mut body: impl FnMut() -> Result<(Body, T), Error>,
    ) -> Result<T, Error> {
        path::check(key)?;
        let url = self.url(datastore, key);
        let mut patience = Patience::new();
        loop {
            let (body, told) = body()?;
            let request = self.uploads.put(&url).bearer_auth(token);
            let request = request.timeout(STILL + Duration::from_secs(length / SLOWEST));
            let sent = request.header(CONTENT_LENGTH, length).body(body).send();
            let stored = async { accepted(sent.await?).await };
            match stored.await {
                Ok(_) => return Ok(told),
                Err(failure) => patience
                    .after(failure)
                    .await
                    .map_err(|failure| Self::error("store", datastore, key, failure))?,
            }
        }
    }

    /// Stores bytes.
    pub(super) async fn put_bytes(
        &self,
        datastore: &str,
        key: &str,
        bytes: Bytes,
        token: &str,
    ) -> Result<(), Error> {
        let length = bytes.len() as u64;
        self.put(datastore, key, length, token, || Ok((Body::from(bytes.clone()), ()))).await
    }
}
