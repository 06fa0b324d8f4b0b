//! Writing a large file to the store itself, part by part, by addresses that the daemon signs.
//!
//! Nothing of it is seen before the daemon completes it, for which it asks whether the attempt is still the one. What
//! cannot be done this way is left to the gateway.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use atelier_core::content::Digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, ETAG};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::direct::{Signed, lasting};
use super::error::blocking;
use super::gateway::{Failure, Gateway, Patience, SLOWEST, STILL, accepted};
use super::{Error, path};

/// What is shorter goes through the gateway, with one request.
const FROM: u64 = 16 << 20;
/// Addresses that are asked for at once.
const AHEAD: u32 = 16;
/// How often they are asked for. That is 20 s, in which a daemon is started anew: without them all that was sent
/// would be sent once more, by way of the daemon.
const ASKED: u32 = 8;
/// Parts of one file that are under way at once.
const AT_ONCE: usize = 4;
/// What is left of an address's time when it is used no more.
const RESERVE: Duration = Duration::from_secs(3);
/// Bytes of all parts that are under way, in units of [`UNIT`]. A larger part counts as this much.
const IN_ALL: u32 = 8;
const UNIT: u64 = 8 << 20;
/// Bytes of a complete upload of which the store makes an object in a second, where it does so slowest.
const COMPLETED: u64 = 16 << 20;
/// How large parts are that a daemon may ask for, and how many there are at most.
const PARTS: RangeInclusive<u64> = (1 << 20)..=(2 << 30);
const MOST: u64 = 10_000;

static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(IN_ALL as usize)));

#[derive(Deserialize)]
struct Begun {
    /// `None`: the bytes go through the gateway.
    upload: Option<String>,
    part_size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Step<'a> {
    Sign { from: u32, to: u32 },
    Complete(&'a [String]),
}

/// An object that is being written.
struct Upload<'a> {
    gateway: &'a Gateway,
    datastore: &'a str,
    url: String,
    token: &'a str,
    part_size: u64,
    length: u64,
    /// Addresses of the parts from this one on, and until when they are good.
    signed: (u32, Vec<String>, Instant),
}

/// A file's bytes that are all stored, but not seen yet.
pub(super) struct Written<'a> {
    upload: Upload<'a>,
    tags: Vec<String>,
    /// Of what was read.
    pub(super) digest: Digest,
}

impl Gateway {
    /// Writes the first `length` bytes of a file. `None`: they go through the gateway.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter by now.
    pub(super) async fn write_parts<'a>(
        &'a self,
        datastore: &'a str,
        key: &str,
        file: &Arc<File>,
        length: u64,
        token: &'a str,
    ) -> Result<Option<Written<'a>>, std::io::Error> {
        if length < FROM || path::check(key).is_err() || !self.direct().tries(datastore) {
            return Ok(None);
        }
        let at = self.url(datastore, key);
        let begun = self.ask(&format!("{at}?size={length}&untagged=true"), token, &()).await;
        let (id, part_size) = match begun {
            Ok(Begun { upload: Some(id), part_size })
                if PARTS.contains(&part_size) && length.div_ceil(part_size) <= MOST =>
            {
                (id, part_size)
            }
            Ok(_) => return Ok(None),
            Err(failure) => {
                tracing::debug!(datastore, problem = failure.text(), "no upload in parts is begun");
                return Ok(None);
            }
        };
        let url = format!("{at}?upload={}", path::in_url(&id));
        let signed = (1, Vec::new(), Instant::now());
        let mut upload = Upload { gateway: self, datastore, url, token, part_size, length, signed };
        match upload.write(file).await {
            Ok((tags, digest)) => Ok(Some(Written { upload, tags, digest })),
            Err(failure) => {
                upload.give_up().await;
                match failure {
                    Failure::Local(Error::Io { source, .. }) => Err(source),
                    failure => {
                        tracing::info!(
                            datastore,
                            problem = failure.text(),
                            "a file is sent by way of the daemon, since it cannot be sent to the store itself"
                        );
                        Ok(None)
                    }
                }
            }
        }
    }
}

impl Written<'_> {
    /// Has the object seen; its tag. `None`: it is not, and goes through the gateway.
    pub(super) async fn complete(self) -> Option<String> {
        let Self { upload, tags, .. } = self;
        let Upload { gateway, url, token, .. } = &upload;
        let mut patience = Patience::new();
        loop {
            // If the answer was lost the upload is gone; what is then sent by way of the daemon ends the same.
            let within = STILL + Duration::from_secs(upload.length / COMPLETED);
            match gateway.tell(url, token, &Step::Complete(&tags), within).await {
                Ok(tag) => return Some(tag),
                Err(failure) => {
                    let problem = failure.text();
                    if patience.after(failure).await.is_err() {
                        tracing::info!(problem, "an upload in parts is not completed");
                        upload.give_up().await;
                        return None;
                    }
                }
            }
        }
    }

    /// Has nothing seen of it.
    pub(super) async fn give_up(self) {
        self.upload.give_up().await;
    }
}

impl Upload<'_> {
    /// Sends all parts; what the store says of them, and of what bytes they were.
    async fn write(&mut self, file: &Arc<File>) -> Result<(Vec<String>, Digest), Failure> {
        let count = self.length.div_ceil(self.part_size) as u32;
        let mut tags = vec![String::new(); count as usize];
        let mut hasher = blake3::Hasher::new();
        let mut under_way: JoinSet<Sent> = JoinSet::new();
        for number in 1..=count {
            while under_way.len() >= AT_ONCE {
                note(&mut tags, under_way.join_next().await)?;
            }
            let room = self.room().await;
            let (bytes, hashed) = self.part(file, number, hasher).await?;
            hasher = hashed;
            let address = self.address(number, count).await?;
            let (gateway, datastore) = (self.gateway.clone(), self.datastore.to_owned());
            under_way.spawn(async move {
                let _room = room;
                let sent = send(&gateway, &address, bytes).await;
                // What the daemon does not answer is no fault of the store's.
                let sent = sent.inspect_err(|failure| gateway.direct().failed(&datastore, failure));
                sent.map(|tag| (number, tag))
            });
        }
        while let Some(sent) = under_way.join_next().await {
            note(&mut tags, Some(sent))?;
        }
        Ok((tags, Digest::from_bytes(*hasher.finalize().as_bytes())))
    }

    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(self.part_size.div_ceil(UNIT)).unwrap_or(IN_ALL);
        ROOM.clone().acquire_many_owned(units.clamp(1, IN_ALL)).await.ok()
    }

    /// The bytes of a part; the hasher has seen them.
    async fn part(
        &self,
        file: &Arc<File>,
        number: u32,
        mut hasher: blake3::Hasher,
    ) -> Result<(Bytes, blake3::Hasher), Failure> {
        let from = u64::from(number - 1) * self.part_size;
        let size = self.part_size.min(self.length - from);
        let file = Arc::clone(file);
        let read = move || {
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, from)
                .map_err(|error| Error::io("read", std::path::Path::new(""), error))?;
            hasher.update(&bytes);
            Ok((Bytes::from(bytes), hasher))
        };
        blocking(read).await.map_err(Failure::Local)
    }

    async fn address(&mut self, number: u32, count: u32) -> Result<String, Failure> {
        let known = |(first, urls, until): &(u32, Vec<String>, Instant)| {
            let index = number.checked_sub(*first)? as usize;
            urls.get(index).filter(|_| Instant::now() < *until).cloned()
        };
        if let Some(url) = known(&self.signed) {
            return Ok(url);
        }
        let to = (number + AHEAD).min(count + 1);
        let step = Step::Sign { from: number, to };
        let mut patience = Patience::with(ASKED);
        let (asked, Signed { urls, seconds }) = loop {
            let asked = Instant::now();
            match self.gateway.ask(&self.url, self.token, &step).await {
                Ok(signed) => break (asked, signed),
                Err(failure) => patience.after(failure).await?,
            }
        };
        let urls = urls.filter(|urls| urls.iter().all(|url| self.gateway.may_reach(url)));
        let Some(urls) = urls else {
            self.gateway.direct().leave_alone(self.datastore);
            return Err(Failure::Broken("the store is not reached from this node".to_owned()));
        };
        let until = asked + lasting(seconds).saturating_sub(RESERVE);
        self.signed = (number, urls, until);
        known(&self.signed)
            .ok_or_else(|| Failure::Broken("the addresses of parts are over at once".to_owned()))
    }

    /// Has the store forget what was sent.
    async fn give_up(&self) {
        let request = self.gateway.client().delete(&self.url).bearer_auth(self.token);
        let given_up = async { accepted(request.send().await?).await.map(drop) };
        if let Err(failure) = given_up.await {
            // The daemon does when the attempt is over.
            tracing::debug!(problem = failure.text(), "an upload in parts is not given up yet");
        }
    }
}

/// The number of a part that was sent, and what the store says of it.
type Sent = Result<(u32, String), Failure>;

fn note(tags: &mut [String], sent: Option<Result<Sent, JoinError>>) -> Result<(), Failure> {
    match sent {
        Some(Ok(sent)) => {
            let (number, tag) = sent?;
            if let Some(place) = tags.get_mut(number as usize - 1) {
                *place = tag;
            }
            Ok(())
        }
        Some(Err(_)) => Err(Failure::Broken("a part was not sent to its end".to_owned())),
        None => Ok(()),
    }
}

/// Sends a part, which the store checks; what the store says of it.
async fn send(gateway: &Gateway, url: &str, bytes: Bytes) -> Result<String, Failure> {
    let length = bytes.len() as u64;
    let (bytes, sum) = blocking(move || {
        let sum = BASE64_STANDARD.encode(Md5::digest(&bytes));
        Ok((bytes, sum))
    })
    .await
    .map_err(Failure::Local)?;
    let mut patience = Patience::new();
    loop {
        let request = gateway.direct().uploads().put(url).header(CONTENT_LENGTH, length);
        let request = request.header("content-md5", &sum).body(bytes.clone());
        let request = request.timeout(STILL + Duration::from_secs(length / SLOWEST));
        let sent = async { accepted(request.send().await?).await };
        match sent.await {
            Ok(answer) => {
                let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
                return match (tag, answer.status()) {
                    (Some(tag), _) => Ok(tag.to_owned()),
                    // Azure's blocks have no tags; it says that it has made one.
                    (None, StatusCode::CREATED) => Ok(String::new()),
                    (None, _) => {
                        let problem = "the store does not say what it has stored";
                        Err(Failure::Broken(problem.to_owned()))
                    }
                };
            }
            Err(failure) => patience.after(failure).await?,
        }
    }
}
