//! One file of an output on its way to where it lies uncommitted.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use atelier_core::content::Digest;
use futures::StreamExt as _;
use reqwest::Body;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::below::{self, Version};
use super::ledger::{Ledger, Stored};
use super::{Mirrored, path};
use crate::data::error::blocking;
use crate::data::gateway::Gateway;
use crate::data::{DataPlane, Error};

/// Files sent at once by a node while jobs run: what jobs do themselves comes first.
static SENDERS: Semaphore = Semaphore::const_new(2);
/// How long a file must not have been written to of which nobody said that it is closed.
pub(super) const STILL: Duration = Duration::from_secs(1);
/// Read at once.
const READ: usize = 256 * 1024;

/// A file as it is looked at.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Below the attempt's outputs.
    pub(super) path: String,
    pub(super) writers: Writers,
}

/// What is known of who writes a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writers {
    /// Nothing.
    Unknown,
    /// Somebody has closed it.
    Closed,
    /// They have ended, and nobody but who waits for the job's end is in the way.
    Ended,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    /// It lies there now.
    Stored,
    /// It lay there already, or is nothing that is stored.
    Known,
    /// It was there and is removed.
    Removed,
    /// Somebody has written to it just now.
    Changing,
    /// Somebody has it open to write to it.
    Open,
}

/// The name of an output, and the path below it; empty for a single file.
pub(super) fn parts(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

/// Has what lies there be what the file is now. What waits for its turn is left as it is once `stop` is.
pub(super) async fn send(
    plane: &DataPlane,
    root: &Arc<OwnedFd>,
    output: &Mirrored,
    ledger: &Ledger,
    candidate: &Candidate,
    token: &str,
    stop: &CancellationToken,
) -> Result<Sent, Error> {
    let gateway = &plane.0.gateway;
    let (_, below) = parts(&candidate.path);
    let (datastore, key) = (&output.at.datastore, path::join(&output.at.path, below));
    let Some((file, version)) = open(root, &candidate.path).await? else {
        if !ledger.has(&output.name, below) {
            return Ok(Sent::Known);
        }
        gateway.remove(datastore, &key, token).await?;
        ledger.remove(&output.name, below);
        return Ok(Sent::Removed);
    };
    if let Some(known) = ledger.get(&output.name, below).filter(|known| known.version == version) {
        // Of what was written through memory, or had its times set back, the version says nothing. Who has closed it
        // had it open to write to it.
        if candidate.writers != Writers::Closed || is_same(file, &candidate.path, known).await? {
            return Ok(Sent::Known);
        }
    }
    if candidate.writers == Writers::Unknown {
        if !has_been_still(&version) {
            return Ok(Sent::Changing);
        }
        let path = candidate.path.clone();
        if blocking(move || Ok(below::is_written(&path, &version))).await? {
            return Ok(Sent::Open);
        }
    }
    let _permit = match candidate.writers {
        Writers::Ended => None,
        Writers::Unknown | Writers::Closed => tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Sent::Changing),
            permit = SENDERS.acquire() => permit.ok(),
        },
    };
    // Waiting may have taken long; then it is opened anew, and another version is of another file.
    let Some((file, now)) = open(root, &candidate.path).await? else { return Ok(Sent::Changing) };
    if now != version {
        return Ok(Sent::Changing);
    }
    let file = Arc::new(file);
    let as_it_was = || file.metadata().is_ok_and(|meta| Version::of(&meta) == version);
    let written = gateway.write_parts(datastore, &key, &file, version.bytes, token).await;
    // From here on it may lie there, whatever answer comes: it is to be removed when the file is, and is not what
    // lay there before.
    ledger.sent(&output.name, below);
    let done = match written {
        Ok(Some(written)) if as_it_was() => {
            let digest = written.digest;
            written.complete().await.map(|tag| (digest, tag))
        }
        Ok(Some(written)) => {
            written.give_up().await;
            return Ok(Sent::Changing);
        }
        Ok(None) => None,
        Err(_) => return Ok(Sent::Changing),
    };
    let (digest, tag) = match done {
        Some(done) => done,
        None => {
            let put = gateway.put(datastore, &key, version.bytes, token, || body(&file, version));
            let (hasher, told) = match put.await {
                Ok(sent) => sent,
                Err(error) => return if as_it_was() { Err(error) } else { Ok(Sent::Changing) },
            };
            let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner);
            let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
            Gateway::same(datastore, &key, digest, told.digest)?;
            (digest, told.tag)
        }
    };
    ledger.put(&output.name, below, Stored { version, digest, tag });
    Ok(Sent::Stored)
}

/// Whether a file that is open has the bytes that were stored.
async fn is_same(file: File, path: &str, stored: Stored) -> Result<bool, Error> {
    let path = path.to_owned();
    let same = move || Ok(Stored::of_open(file, path.as_ref(), stored.tag.clone())? == stored);
    blocking(same).await
}

async fn open(root: &Arc<OwnedFd>, path: &str) -> Result<Option<(File, Version)>, Error> {
    let (root, path) = (Arc::clone(root), path.to_owned());
    blocking(move || {
        let opened = below::file(&root, &path).and_then(|file| match file {
            Some(file) => Ok(Some((Version::of(&file.metadata()?), file))),
            None => Ok(None),
        });
        let opened = opened.map_err(|error| Error::io("read", path.as_ref(), error))?;
        Ok(opened.map(|(version, file)| (file, version)))
    })
    .await
}

/// The bytes of a file, unless it is changed before the last of them is sent: then they break off, and nothing is
/// stored.
fn body(file: &File, version: Version) -> Result<(Body, Arc<Mutex<blake3::Hasher>>), Error> {
    let failed = |error| Error::io("read", "an output".as_ref(), error);
    if Version::of(&file.metadata().map_err(failed)?) != version {
        return Err(failed(std::io::Error::other("the file was changed before it was sent")));
    }
    let still = file.try_clone().map_err(failed)?;
    let mut from = file.try_clone().map_err(failed)?;
    std::io::Seek::rewind(&mut from).map_err(failed)?;
    let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
    let hashing = Arc::clone(&hasher);
    let reader = tokio::fs::File::from_std(from).take(version.bytes);
    let pieces = ReaderStream::with_capacity(reader, READ).map(move |piece| {
        let piece = piece?;
        let mut hasher = hashing.lock().unwrap_or_else(PoisonError::into_inner);
        hasher.update(&piece);
        let is_last = hasher.count() >= version.bytes;
        if is_last && Version::of(&still.metadata()?) != version {
            return Err(std::io::Error::other("the file was changed while it was sent"));
        }
        Ok(piece)
    });
    Ok((Body::wrap_stream(pieces), hasher))
}

/// Whether a file was not written to just now.
fn has_been_still(version: &Version) -> bool {
    let (seconds, nanos) = version.modified;
    let Ok(seconds) = u64::try_from(seconds) else { return true };
    let modified =
        SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(nanos).unwrap_or(0));
    // A time to come is the job's own doing.
    modified.elapsed().map_or(true, |age| age >= STILL)
}
