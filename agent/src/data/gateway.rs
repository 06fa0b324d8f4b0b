//! The daemon's data gateway.

mod listing;
mod uncommitted;

use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::datastore::PublicBucket;
use atelier_core::id::DatastoreName;
use atelier_proto::STORED;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH};
use reqwest::{Body, Client, ClientBuilder, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::direct::{Direct, Wanted, Way};
use super::room::{Rooms, SMALL};
use super::transfer::{Second, Sink, download};
use super::{Error, path};
use crate::trust::Trust;
pub(super) use uncommitted::Copied;

/// Tries of one request, and of one to a store itself: the gateway tries too.
pub(super) const TRIES: u32 = 5;
pub(super) const DIRECT_TRIES: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is longer than this is read in ranges, so many at once of one object and in all.
const RANGED: u64 = 32 << 20;
/// Bytes of the shortest and of the longest range. Between them there are as many as are read at once: each is a
/// request, for which some stores open the whole object, and what broke goes on where it was.
const RANGE: RangeInclusive<u64> = 16 << 20..=1 << 30;
const RANGES: usize = 4;
const RANGES_IN_ALL: usize = 16;

/// How long the daemon may stand still.
pub(super) const STILL: Duration = Duration::from_secs(120);
/// Bytes of an upload that come through in a second on the slowest way that is waited for.
pub(super) const SLOWEST: u64 = 64 << 10;

/// Why an answer is not taken.
const ANOTHER: &str = "it is not the content that was listed";

/// What reqwest is asked to do everywhere.
pub(super) fn builder() -> ClientBuilder {
    // Between two pieces, not for the whole: a large file may take hours.
    plain().read_timeout(STILL)
}

pub(super) fn plain() -> ClientBuilder {
    Client::builder()
        .connect_timeout(Duration::from_secs(20))
        .user_agent(concat!("atelier-agent/", env!("CARGO_PKG_VERSION")))
}

/// A failed request, before it is known whose it is.
#[derive(Debug)]
pub(super) enum Failure {
    /// Answered with another status than success.
    Status(StatusCode, String),
    /// The datastore's credentials do not allow it.
    Denied(String),
    /// What the datastore is does not allow it, at least not of this object.
    Unsupported(String),
    /// Not answered, or not to the end.
    Broken(String),
    /// There is no connection, or nothing has come for as long as is waited.
    Unreached(String),
    /// Answered from where nothing may come from, or with what is not the content that is wanted.
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
            Self::Broken(_) | Self::Unreached(_) => true,
            Self::Denied(_) | Self::Unsupported(_) | Self::Closed(_) | Self::Local(_) => false,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Status(status, message) if message.is_empty() => status.to_string(),
            Self::Status(status, message) => format!("{message} ({status})"),
            Self::Denied(what)
            | Self::Unsupported(what)
            | Self::Broken(what)
            | Self::Unreached(what) => what.clone(),
            Self::Closed(why) => (*why).to_owned(),
            Self::Local(error) => error.to_string(),
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        if let Some(NotOpen(why)) = not_open(&error) {
            return Self::Closed(why);
        }
        let is_silent = error.is_connect() || error.is_timeout();
        let text = chain(&error.without_url());
        if is_silent { Self::Unreached(text) } else { Self::Broken(text) }
    }
}

/// That a request leads where none may, found while it was under way.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotOpen(pub(super) &'static str);

fn not_open<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a NotOpen> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|error| error.downcast_ref())
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
pub(super) struct Patience {
    tries: u32,
    most: u32,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self::with(TRIES)
    }

    /// For so many tries.
    pub(super) fn with(most: u32) -> Self {
        Self { tries: 1, most, pause: FIRST_PAUSE }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself, if another try would not help or there were enough.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.is_transient() || self.tries >= self.most {
            return Err(failure);
        }
        tracing::debug!(self.tries, failure = failure.text(), "request failed, trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.tries += 1;
        Ok(())
    }
}

pub(super) async fn accepted(response: Response) -> Result<Response, Failure> {
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
        Ok(Inner { code, message }) if code == "StoreDenied" => Err(Failure::Denied(message)),
        Ok(Inner { code, message }) if code == "Unsupported" => Err(Failure::Unsupported(message)),
        Ok(Inner { message, .. }) => Err(Failure::Status(status, message)),
        Err(_) => Err(Failure::Status(status, String::new())),
    }
}

/// The gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    client: Client,
    uploads: Client,
    base: String,
    direct: Direct,
    /// Large objects are read in several ranges at once, so many in all.
    ranges: Arc<Semaphore>,
    /// For small ones.
    rooms: Arc<Rooms>,
}

impl Gateway {
    /// The daemon's at this address, for which `trust` vouches.
    ///
    /// # Errors
    /// TLS cannot be set up, in words.
    pub(super) fn new(http_url: &str, trust: &Trust) -> Result<Self, String> {
        let to_daemon = |builder: ClientBuilder| {
            let builder = trust.http(builder).map_err(|error| error.to_string())?;
            builder.build().map_err(|error| error.to_string())
        };
        let made = Self {
            client: to_daemon(builder())?,
            // An answer comes only after the last byte, so how long one may take is given with each.
            uploads: to_daemon(plain())?,
            base: String::new(),
            direct: Direct::new().map_err(|error| error.to_string())?,
            ranges: Arc::new(Semaphore::new(RANGES_IN_ALL)),
            rooms: Arc::new(Rooms::new()),
        };
        Ok(made.at(http_url))
    }

    /// The gateway at another address.
    pub(super) fn at(self, http_url: &str) -> Self {
        let base = format!("{}/data/v1", http_url.trim_end_matches('/'));
        Self { base, ..self }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// For what is answered only when all of it is done.
    pub(super) fn uploads(&self) -> &Client {
        &self.uploads
    }

    pub(super) fn direct(&self) -> &Direct {
        &self.direct
    }

    pub(super) fn url(&self, datastore: &str, key: &str) -> String {
        format!("{}/{}/{}", self.base, path::in_url(datastore), path::in_url(key))
    }

    pub(super) fn error(
        operation: &'static str,
        datastore: &str,
        key: &str,
        failure: Failure,
    ) -> Error {
        // The name of public storage is nothing to people.
        let bucket = DatastoreName::new(datastore).ok();
        let bucket = bucket.and_then(|name| PublicBucket::named(&name));
        let path = match bucket {
            Some(bucket) => format!("{}/{key}", bucket.address()),
            None => format!("{datastore}/{key}"),
        };
        match failure {
            Failure::Local(error) => error,
            Failure::Denied(problem) => Error::Denied { operation, path, problem },
            Failure::Unsupported(problem) => Error::Unfit { operation, path, problem },
            failure => Error::Gateway {
                operation,
                path,
                problem: failure.text(),
                transient: failure.is_transient(),
                status: match failure {
                    Failure::Status(status, _) => Some(status.as_u16()),
                    _ => None,
                },
            },
        }
    }

    /// Reads an object of a listing into a new file.
    pub(super) async fn get(&self, object: &Wanted<'_>, size: u64, to: &Path) -> Result<(), Error> {
        self.get_with(object, size, to, None).await.map(drop)
    }

    /// The same, with a second file that is to have the same bytes. Whether it has them: only what is read in ranges is
    /// written twice.
    pub(super) async fn get_with(
        &self,
        object: &Wanted<'_>,
        size: u64,
        to: &Path,
        second: Option<Second>,
    ) -> Result<bool, Error> {
        let read = match size {
            ..=RANGED => self.whole(object, size, to).await.map(|()| false),
            _ => self.in_ranges(object, size, to, second).await,
        };
        read.map_err(|failure| Self::error("read", object.datastore, object.key, failure))
    }

    async fn whole(&self, object: &Wanted<'_>, size: u64, to: &Path) -> Result<(), Failure> {
        let way = self.way(object).await;
        let tries = way.tries();
        let request = || self.request(&way, object);
        let closed = |answer: &Response| {
            (answer.status().is_success() && !object.is_content(&way, answer)).then_some(ANOTHER)
        };
        match download(to, Some(size), Patience::with(tries), closed, request).await {
            Err(failure) if self.gives_way(&way, object, &failure) => {
                std::fs::remove_file(to)
                    .map_err(|error| Failure::Local(Error::io("write", to, error)))?;
                let request = || self.request(&Way::Gateway, object);
                download(to, Some(size), Patience::new(), |_| None, request).await.map(drop)
            }
            read => read.map(drop),
        }
    }

    async fn in_ranges(
        &self,
        object: &Wanted<'_>,
        size: u64,
        to: &Path,
        second: Option<Second>,
    ) -> Result<bool, Failure> {
        let sink = Sink::create_with(to, second).await?;
        let length = size.div_ceil(RANGES as u64).clamp(*RANGE.start(), *RANGE.end());
        let ranges = (0..size.div_ceil(length)).map(|n| n * length..((n + 1) * length).min(size));
        futures::stream::iter(ranges)
            .map(|range| self.range(object, sink.from(range.start), range.end).boxed())
            .buffer_unordered(RANGES)
            .try_collect::<()>()
            .await?;
        Ok(sink.is_double())
    }

    /// Reads up to `end` into a file. What came before a break is not asked for again.
    async fn range(
        &self,
        object: &Wanted<'_>,
        mut sink: Sink<'_>,
        end: u64,
    ) -> Result<(), Failure> {
        let Ok(_permit) = self.ranges.acquire().await else { return Ok(()) };
        let mut patience = Patience::new();
        let mut way = self.way(object).await;
        loop {
            let before = sink.at;
            match self.go_on(&way, object, &mut sink, end).await {
                Ok(()) => return Ok(()),
                Err(failure) if sink.at > end => return Err(failure),
                Err(failure) if self.gives_way(&way, object, &failure) => way = Way::Gateway,
                Err(failure) => {
                    // Only tries that bring nothing count: a way that is cut again and again brings it all.
                    if sink.at > before {
                        patience = Patience::new();
                    }
                    patience.after(failure).await?;
                }
            }
        }
    }

    async fn go_on(
        &self,
        way: &Way,
        object: &Wanted<'_>,
        sink: &mut Sink<'_>,
        end: u64,
    ) -> Result<(), Failure> {
        let response = self.open(way, object, &(sink.at..end)).await?;
        let poured = sink.pour(response.bytes_stream()).await;
        // What came so far counts only once it is in the file.
        sink.flush().await?;
        poured?;
        match sink.at {
            at if at == end => Ok(()),
            at if at < end => Err(Failure::Broken(format!("{} bytes are missing", end - at))),
            _ => Err(Failure::Broken("more came than was asked for".to_owned())),
        }
    }

    /// The bytes of a small object of a listing.
    pub(super) async fn bytes(&self, object: &Wanted<'_>, size: u64) -> Result<Bytes, Error> {
        let read = self.in_turn(object, size).await;
        read.map_err(|failure| Self::error("read", object.datastore, object.key, failure))
    }

    async fn in_turn(&self, object: &Wanted<'_>, size: u64) -> Result<Bytes, Failure> {
        let mut way = self.way(object).await;
        let mut patience = Patience::with(way.tries());
        loop {
            let room = self.rooms.take(object.datastore, &way).await;
            if matches!(way, Way::Direct(_)) {
                // By now its address may be over, or its store be left alone.
                way = self.way(object).await;
                if matches!(way, Way::Gateway) {
                    patience = Patience::with(way.tries());
                    continue;
                }
            }
            let read = self.all(&way, object, size).await;
            drop(room);
            let Err(failure) = read else { return read };
            match patience.after(failure).await {
                Ok(()) => {}
                // The store itself is given up once it has failed to the end.
                Err(failure) if self.gives_way(&way, object, &failure) => {
                    way = Way::Gateway;
                    patience = Patience::with(way.tries());
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn all(&self, way: &Way, object: &Wanted<'_>, size: u64) -> Result<Bytes, Failure> {
        let request = self.request(way, object).header(ACCEPT_ENCODING, "identity");
        let response = accepted(request.send().await?).await?;
        if !object.is_content(way, &response) {
            return Err(Failure::Closed(ANOTHER));
        }
        gather(response, size).await
    }

    /// The bytes of a part of an object, asked for once, one way.
    pub(super) async fn once(
        &self,
        way: &Way,
        object: &Wanted<'_>,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        gather(self.open(way, object, &range).await?, range.end - range.start).await
    }

    /// Asks for a part of an object; what answers has it, of the content that is wanted.
    async fn open(
        &self,
        way: &Way,
        object: &Wanted<'_>,
        range: &Range<u64>,
    ) -> Result<Response, Failure> {
        let last = range.end - 1;
        let request = self.request(way, object);
        let request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
        let response = accepted(request.header(ACCEPT_ENCODING, "identity").send().await?).await?;
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        if !object.is_content(way, &response) {
            return Err(Failure::Status(StatusCode::PRECONDITION_FAILED, String::new()));
        }
        let sent = header(CONTENT_RANGE).unwrap_or_default();
        if !sent.starts_with(&format!("bytes {}-{last}/", range.start)) {
            return Err(Failure::Broken(format!("the server sent another part: '{sent}'")));
        }
        Ok(response)
    }

    fn request(&self, way: &Way, object: &Wanted<'_>) -> RequestBuilder {
        let request = match way {
            Way::Direct(url) => self.direct.client().get(&**url),
            Way::Gateway => {
                self.client.get(self.url(object.datastore, object.key)).bearer_auth(object.token)
            }
        };
        match object.etag {
            "" => request,
            etag => request.header(IF_MATCH, etag),
        }
    }

    /// Stores an object; `body` makes its bytes anew for each try. With it what the daemon says of it.
    pub(super) async fn put<T>(
        &self,
        datastore: &str,
        key: &str,
        length: u64,
        token: &str,
        mut body: impl FnMut() -> Result<(Body, T), Error>,
    ) -> Result<(T, Told), Error> {
        path::check(key)?;
        let url = self.url(datastore, key);
        let mut patience = Patience::new();
        loop {
            let room = match length {
                ..=SMALL => self.rooms.take(datastore, &Way::Gateway).await,
                _ => None,
            };
            let (body, told) = body()?;
            let request = self.uploads.put(&url).bearer_auth(token);
            let request = request.timeout(STILL + Duration::from_secs(length / SLOWEST));
            let sent = request.header(CONTENT_LENGTH, length).body(body).send();
            let stored = async { accepted(sent.await?).await }.await;
            drop(room);
            match stored {
                Ok(answer) => return Ok((told, Told::of(&answer))),
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
        let digest = Digest::of(&bytes);
        self.put_hashed(datastore, key, bytes, digest, token).await
    }

    /// Stores bytes of which the digest is known.
    pub(super) async fn put_hashed(
        &self,
        datastore: &str,
        key: &str,
        bytes: Bytes,
        digest: Digest,
        token: &str,
    ) -> Result<(), Error> {
        let length = bytes.len() as u64;
        let body = || Ok((Body::from(bytes.clone()), ()));
        let (_, told) = self.put(datastore, key, length, token, body).await?;
        Self::same(datastore, key, digest, told.digest)
    }

    /// Whether what was stored is what was sent.
    pub(super) fn same(
        datastore: &str,
        key: &str,
        sent: Digest,
        stored: Option<Digest>,
    ) -> Result<(), Error> {
        match stored {
            Some(stored) if stored != sent => {
                let problem = "other bytes were stored than were sent".to_owned();
                Err(Self::error("store", datastore, key, Failure::Broken(problem)))
            }
            _ => Ok(()),
        }
    }
}

/// The bytes of an answer, of which there are so many.
async fn gather(answer: Response, length: u64) -> Result<Bytes, Failure> {
    let length = length as usize;
    let mut bytes = BytesMut::with_capacity(length);
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() > length {
            return Err(Failure::Broken("more came than was asked for".to_owned()));
        }
    }
    match bytes.len() {
        came if came == length => Ok(bytes.freeze()),
        came => Err(Failure::Broken(format!("{came} bytes came instead of {length}"))),
    }
}

/// What a gateway says of what it has stored.
#[derive(Debug)]
pub(super) struct Told {
    /// One of an older release says none.
    pub(super) digest: Option<Digest>,
    /// Its tag; empty if there is none.
    pub(super) tag: String,
}

impl Told {
    fn of(answer: &Response) -> Self {
        let digest =
            answer.headers().get(STORED).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { digest, tag: tag_of(answer) }
    }
}

/// The tag that an answer says an object has; empty if it says none.
pub(super) fn tag_of(answer: &Response) -> String {
    let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
    tag.unwrap_or_default().to_owned()
}
