//! Reading from a store itself, by addresses that the daemon signs.
//!
//! Where there is none, and where the store does not answer as it should, the bytes come through the gateway, whose
//! word on what is wrong is the one that counts. A store that this node does not reach is left alone for a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atelier_core::content::Digest;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, ETAG};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::gateway::{DIRECT_TRIES, Failure, Gateway, TRIES, accepted, builder, plain, tag_of};
use super::path;

/// For how long a store is left alone.
const ALONE: Duration = Duration::from_secs(600);
/// How long a store may take to accept a connection before it counts as out of reach.
const CONNECT: Duration = Duration::from_secs(5);
/// So many failures in that time are too many; those that come together are one.
const OFTEN: u32 = 5;
const SOON: Duration = Duration::from_secs(30);
const TOGETHER: Duration = Duration::from_millis(500);
/// What is left of an address's time when it is used no more.
const RESERVE: Duration = Duration::from_secs(20);
/// Addresses that are kept at most.
const KEPT: usize = 20_000;

/// What is known of stores that can be reached past the gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Direct(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    /// For writing: an answer comes only after the last byte, so how long one may take is given with each.
    uploads: Client,
    addresses: Mutex<HashMap<Digest, Address>>,
    /// Datastores that go through the gateway, and until when.
    alone: Mutex<HashMap<String, Instant>>,
    /// How stores have failed lately.
    failures: Mutex<HashMap<String, Failures>>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    since: Instant,
    last: Option<Instant>,
}

#[derive(Clone)]
struct Address {
    url: Arc<str>,
    until: Instant,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It opens what it is for.
        f.debug_struct("Address").finish_non_exhaustive()
    }
}

/// What the daemon answers.
#[derive(Deserialize)]
pub(super) struct Signed {
    /// `None`: the bytes go through the gateway.
    pub(super) urls: Option<Vec<String>>,
    pub(super) seconds: u64,
}

/// For how long addresses are used, whatever was said.
pub(super) fn lasting(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(3600))
}

impl Direct {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        // A store's own word on where data is would be another's address, which nobody has signed.
        let [client, uploads] = [builder(), plain()]
            .map(|builder| builder.connect_timeout(CONNECT).redirect(Policy::none()).build());
        let (client, uploads) = (client?, uploads?);
        let (addresses, alone, failures) = Default::default();
        Ok(Self(Arc::new(Inner { client, uploads, addresses, alone, failures })))
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(super) fn uploads(&self) -> &Client {
        &self.0.uploads
    }

    /// Whether the datastore is worth another try.
    pub(super) fn tries(&self, datastore: &str) -> bool {
        let mut alone = self.0.alone.lock().unwrap_or_else(PoisonError::into_inner);
        match alone.get(datastore) {
            Some(until) if *until > Instant::now() => false,
            Some(_) => {
                alone.remove(datastore);
                true
            }
            None => true,
        }
    }

    /// Leaves the datastore to the gateway for a while.
    pub(super) fn leave_alone(&self, datastore: &str) {
        let mut alone = self.0.alone.lock().unwrap_or_else(PoisonError::into_inner);
        alone.insert(datastore.to_owned(), Instant::now() + ALONE);
    }

    fn find(&self, id: &Digest) -> Option<Arc<str>> {
        let mut addresses = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let found = addresses.get(id)?.clone();
        if found.until > Instant::now() {
            return Some(found.url);
        }
        addresses.remove(id);
        None
    }

    fn keep(&self, addresses: impl Iterator<Item = (Digest, Address)>) {
        let mut kept = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            let now = Instant::now();
            kept.retain(|_, address| address.until > now);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.extend(addresses);
    }

    /// Forgets an address with which something went wrong.
    fn forget(&self, object: &Wanted<'_>) {
        let mut addresses = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.remove(&object.id());
    }

    /// Leaves a store alone that this node does not reach, that refuses it, or that fails again and again.
    pub(super) fn failed(&self, datastore: &str, failure: &Failure) {
        let has_failed_often = match failure {
            // One object that is not there any more says nothing of the others.
            Failure::Status(StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED, _)
            | Failure::Local(_) => return,
            Failure::Unreached(_) => true,
            failure if !failure.is_transient() => true,
            _ => {
                let now = Instant::now();
                let mut all = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
                let none = Failures { count: 0, since: now, last: None };
                let failures = all.entry(datastore.to_owned()).or_insert(none);
                if now - failures.since > SOON {
                    *failures = none;
                }
                if failures.last.is_none_or(|last| now - last > TOGETHER) {
                    (failures.count, failures.last) = (failures.count + 1, Some(now));
                }
                failures.count >= OFTEN
            }
        };
        if has_failed_often && self.tries(datastore) {
            tracing::warn!(
                datastore,
                problem = failure.text(),
                "the store does not answer this node as it should: its data goes through the daemon for a while"
            );
            self.leave_alone(datastore);
        }
    }
}

/// An object, and whose it is to read it.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) datastore: &'a str,
    pub(super) key: &'a str,
    /// Empty: whatever its content is.
    pub(super) etag: &'a str,
    pub(super) token: &'a str,
}

impl Wanted<'_> {
    /// Whether an answer is of the content that is wanted, as far as its tag says. Whoever answers in a store's place
    /// need not know of it.
    pub(super) fn is_content(&self, way: &Way, answer: &Response) -> bool {
        let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        match (tag, way) {
            _ if self.etag.is_empty() => true,
            (Some(tag), _) => tag == self.etag,
            (None, Way::Direct(_)) => false,
            (None, Way::Gateway) => true,
        }
    }

    /// What its address is kept under: that of another attempt is not used.
    fn id(&self) -> Digest {
        Digest::of(format!("{}\n{}\n{}", self.token, self.datastore, self.key).as_bytes())
    }
}

impl Gateway {
    /// Has addresses of objects at hand that are read soon. What goes wrong shows when they are read.
    pub(super) async fn prepare(&self, datastore: &str, keys: &[String], token: &str) {
        #[derive(Serialize)]
        struct Reads<'a> {
            sign: &'a [String],
        }
        let direct = self.direct();
        if !direct.tries(datastore) || keys.is_empty() {
            return;
        }
        let asked = Instant::now();
        let signed = match self.ask(&self.place(datastore), token, &Reads { sign: keys }).await {
            Ok(Signed { urls: Some(urls), seconds }) if urls.len() == keys.len() => (urls, seconds),
            Ok(_) => return direct.leave_alone(datastore),
            Err(failure) => {
                tracing::debug!(datastore, problem = failure.text(), "no addresses are given");
                // A daemon of before knows none. Whatever else it says is of the daemon, or of this attempt.
                if matches!(failure, Failure::Status(StatusCode::METHOD_NOT_ALLOWED, _)) {
                    direct.leave_alone(datastore);
                }
                return;
            }
        };
        let (urls, seconds) = signed;
        if !urls.iter().all(|url| self.may_reach(url)) {
            return direct.leave_alone(datastore);
        }
        let until = asked + lasting(seconds).saturating_sub(RESERVE);
        direct.keep(keys.iter().zip(urls).map(|(key, url)| {
            let id = Wanted { datastore, key, etag: "", token }.id();
            (id, Address { url: url.into(), until })
        }));
    }

    /// By which the object is read from the store itself.
    async fn address(&self, object: &Wanted<'_>) -> Option<Arc<str>> {
        let (direct, id) = (self.direct(), object.id());
        if !direct.tries(object.datastore) {
            return None;
        }
        if let Some(known) = direct.find(&id) {
            return Some(known);
        }
        self.prepare(object.datastore, &[object.key.to_owned()], object.token).await;
        direct.find(&id)
    }

    /// How an object is read: from the store itself if it can be.
    pub(super) async fn way(&self, object: &Wanted<'_>) -> Way {
        self.address(object).await.map_or(Way::Gateway, Way::Direct)
    }

    /// Whether what failed one way is to be tried by way of the gateway.
    pub(super) fn gives_way(&self, way: &Way, object: &Wanted<'_>, failure: &Failure) -> bool {
        let gives_way = matches!(way, Way::Direct(_)) && !matches!(failure, Failure::Local(_));
        if gives_way {
            self.direct().forget(object);
            self.direct().failed(object.datastore, failure);
        }
        gives_way
    }

    /// The bytes of a part of an object of a listing, asked for once. [`StatusCode::PRECONDITION_FAILED`]: it is
    /// another one by now.
    pub(super) async fn part(
        &self,
        object: &Wanted<'_>,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        let way = self.way(object).await;
        match self.once(&way, object, range.clone()).await {
            Err(failure) if self.gives_way(&way, object, &failure) => {
                self.once(&Way::Gateway, object, range).await
            }
            done => done,
        }
    }

    /// Sends a question of the way past the gateway.
    pub(super) async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        token: &str,
        question: &impl Serialize,
    ) -> Result<T, Failure> {
        let answer = self.say(self.client().post(url), token, question).await?.bytes().await?;
        serde_json::from_slice(&answer)
            .map_err(|error| Failure::Broken(format!("the answer is not understood: {error}")))
    }

    /// The same of what has no answer but that it is done, which takes its time, and the tag of what was made.
    pub(super) async fn tell(
        &self,
        url: &str,
        token: &str,
        word: &impl Serialize,
        within: Duration,
    ) -> Result<String, Failure> {
        let request = self.uploads().post(url).timeout(within);
        Ok(tag_of(&self.say(request, token, word).await?))
    }

    async fn say(
        &self,
        request: RequestBuilder,
        token: &str,
        word: &impl Serialize,
    ) -> Result<Response, Failure> {
        let word = serde_json::to_vec(word)
            .map_err(|error| Failure::Broken(format!("the question cannot be written: {error}")))?;
        let request = request.bearer_auth(token);
        let request = request.header(CONTENT_TYPE, "application/json").body(word);
        accepted(request.send().await?).await
    }

    /// Of this machine's own addresses the daemon speaks for itself: here, something else may answer.
    pub(super) fn may_reach(&self, url: &str) -> bool {
        let is_own = |url: &str| {
            let url = Url::parse(url).ok()?;
            let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
            let address = host.parse::<IpAddr>().ok();
            Some(host == "localhost" || address.is_some_and(|address| address.is_loopback()))
        };
        match is_own(url) {
            Some(true) => is_own(self.base()) == Some(true),
            Some(false) => true,
            None => false,
        }
    }

    fn place(&self, datastore: &str) -> String {
        format!("{}/{}", self.base(), path::in_url(datastore))
    }
}

/// How an object is reached.
pub(super) enum Way {
    /// By an address of the store's.
    Direct(Arc<str>),
    /// By way of the daemon.
    Gateway,
}

impl Way {
    /// How often a request is tried this way.
    pub(super) fn tries(&self) -> u32 {
        match self {
            Self::Direct(_) => DIRECT_TRIES,
            Self::Gateway => TRIES,
        }
    }
}
