//! Storing an object of any length with little memory.
//!
//! What fits into one part is stored with one request. More is uploaded in parts, some at once, which become
//! an object when all are there; until then nothing is seen of it. Parts of an upload that fails, or whose caller
//! goes away, are given up.
//!
//! The request that has an object seen is tried again here, and not by the client: whose the object is may be over
//! meanwhile, and what another writes at its place must not be replaced by a try that comes late.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Cloud;
use super::client::Client;
use super::problem::Told;
use crate::storage::{Error, ObjectPath, Still};

const MIB: usize = 1 << 20;
/// The sizes of parts: so many are of each. Stores take 10 000 at most, and all but the last alike are what most
/// uploads have.
const PARTS: [(usize, usize); 3] = [(2_000, 8 * MIB), (2_000, 32 * MIB), (6_000, 128 * MIB)];
/// Bytes of one upload that are under way at once, where parts are not larger.
const AT_ONCE: usize = 32 * MIB;
/// Bytes of all uploads that are under way at once, in units of [`MIB`]; a larger part counts as this much.
const IN_ALL: u32 = 256;
/// How long giving up an upload may take.
const GIVING_UP: Duration = Duration::from_secs(120);

static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(IN_ALL as usize)));

/// How large the part after `count` others is; `None`: there are no more.
fn part_size(count: usize) -> Option<usize> {
    let mut before = 0;
    PARTS.iter().find_map(|&(parts, size)| {
        before += parts;
        (count < before).then_some(size)
    })
}

/// Where the part after `count` others begins in what is uploaded.
pub(super) fn part_start(count: usize) -> u64 {
    let (mut left, mut start) = (count, 0);
    for (parts, size) in PARTS {
        let before = left.min(parts);
        start += before as u64 * size as u64;
        left -= before;
    }
    start
}

impl Cloud {
    /// Stores an object; its length and its tag.
    pub(super) async fn upload<S, E>(
        &self,
        path: &ObjectPath,
        bytes: S,
        still: &Still,
    ) -> Result<(u64, Option<String>), Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let failed = |error| self.problem("write", path.as_str(), error);
        let key = self.key(path)?;
        let mut pieces = Pieces { bytes: pin!(bytes), rest: Bytes::new() };
        let (first, is_last) = pieces.part(PARTS[0].1).await?;
        let mut size = first.content_length() as u64;
        if is_last {
            let stored = self.last(path, still, |client| put(client, &key, first.clone())).await?;
            return Ok((size, stored));
        }
        let mut parts = self.begin(path, &key).await?;
        let (mut part, mut is_last, mut count) = (first, false, 0);
        loop {
            parts.send(part).await.map_err(failed)?;
            count += 1;
            if is_last {
                break;
            }
            let most = part_size(count).ok_or_else(|| {
                self.unsupported(format!(
                    "'{path}' is longer than can be stored: {size} bytes came"
                ))
            })?;
            (part, is_last) = pieces.part(most).await?;
            size += part.content_length() as u64;
        }
        let ids = parts.all().await.map_err(failed)?;
        let upload = parts.upload.clone().unwrap_or_default();
        let stored = self.complete(path, &upload, &ids, still).await?;
        parts.upload = None;
        Ok((size, stored))
    }

    /// Makes the parts of an upload the object, if `still` finds no reason against it; its tag.
    pub(super) async fn complete(
        &self,
        path: &ObjectPath,
        upload: &str,
        parts: &[PartId],
        still: &Still,
    ) -> Result<Option<String>, Error> {
        let (key, upload) = (self.key(path)?, upload.to_owned());
        self.last(path, still, |client| {
            let (key, upload, parts) = (key.clone(), upload.clone(), parts.to_vec());
            async move {
                let store = client.multipart().ok_or_else(no_parts)?;
                Ok(store.complete_multipart(&key, &upload, parts).await?.e_tag)
            }
            .boxed()
        })
        .await
    }

    /// Asks for what has an object seen, as long as `still` finds no reason against it: before each try anew.
    pub(super) async fn last<'a, T>(
        &'a self,
        path: &ObjectPath,
        still: &Still,
        mut ask: impl FnMut(&'a Client) -> BoxFuture<'a, Result<T, object_store::Error>> + Send,
    ) -> Result<T, Error> {
        let client = self.once().await?;
        let mut pauses = self.inner.retries.pauses();
        loop {
            still().map_err(|why| Error::Interrupted(why.into()))?;
            let error = match ask(client).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match pauses.next().filter(|_| Told::is_worth_a_try(&error)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(self.problem("write", path.as_str(), error)),
            }
        }
    }

    async fn begin(&self, path: &ObjectPath, key: &Path) -> Result<Parts, Error> {
        let failed = |error| self.problem("write", path.as_str(), error);
        let store = self.client().await?.multipart().ok_or_else(no_parts).map_err(failed)?;
        let upload = Some(store.create_multipart(key).await.map_err(failed)?);
        let (cloud, key, under_way) = (self.clone(), key.clone(), JoinSet::new());
        Ok(Parts { cloud, key, upload, ids: Vec::new(), under_way })
    }
}

/// Stores an object with one request; its tag.
fn put<'a>(
    client: &'a Client,
    key: &Path,
    bytes: PutPayload,
) -> BoxFuture<'a, Result<Option<String>, object_store::Error>> {
    let key = key.clone();
    async move { Ok(client.store().put(&key, bytes).await?.e_tag) }.boxed()
}

fn no_parts() -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: "uploads in parts".to_owned(),
        implementer: "a web server".to_owned(),
    }
}

/// A stream of bytes, cut anew.
struct Pieces<S> {
    bytes: S,
    rest: Bytes,
}

impl<S, E> Pieces<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// The next `most` bytes, and whether they are the last. An empty stream has one empty part.
    async fn part(&mut self, most: usize) -> Result<(PutPayload, bool), Error> {
        let (mut part, mut length) = (Vec::new(), 0);
        loop {
            let piece = self.rest.split_to(self.rest.len().min(most - length));
            length += piece.len();
            if !piece.is_empty() {
                part.push(piece);
            }
            if self.rest.is_empty() {
                match self.bytes.next().await {
                    Some(Ok(more)) => self.rest = more,
                    Some(Err(error)) => return Err(Error::Interrupted(error.into())),
                    None => return Ok((PutPayload::from_iter(part), true)),
                }
            }
            if length == most && !self.rest.is_empty() {
                return Ok((PutPayload::from_iter(part), false));
            }
        }
    }
}

/// An upload in parts. Given up when it is dropped before it is complete.
struct Parts {
    cloud: Cloud,
    key: Path,
    /// `None` once it is complete.
    upload: Option<String>,
    /// What the store says of those that are sent.
    ids: Vec<Option<PartId>>,
    under_way: JoinSet<Result<(usize, PartId), object_store::Error>>,
}

impl Parts {
    /// Begins to send a part, once few enough are under way.
    async fn send(&mut self, part: PutPayload) -> Result<(), object_store::Error> {
        let length = part.content_length();
        let at_once = (AT_ONCE / length.max(1)).clamp(1, 4);
        while self.under_way.len() >= at_once {
            self.one_more().await?;
        }
        let room = u32::try_from(length.div_ceil(MIB)).unwrap_or(IN_ALL).clamp(1, IN_ALL);
        let room = ROOM.clone().acquire_many_owned(room).await.ok();
        let (cloud, key) = (self.cloud.clone(), self.key.clone());
        let (index, upload) = (self.ids.len(), self.upload.clone().unwrap_or_default());
        self.ids.push(None);
        self.under_way.spawn(async move {
            let _room = room;
            let store = cloud.inner.client.get().and_then(|(client, _)| client.multipart());
            let store = store.ok_or_else(no_parts)?;
            Ok((index, store.put_part(&key, &upload, index, part).await?))
        });
        Ok(())
    }

    /// Waits for one that is under way.
    async fn one_more(&mut self) -> Result<(), object_store::Error> {
        match self.under_way.join_next().await {
            Some(sent) => {
                let (index, id) = sent.map_err(object_store::Error::from)??;
                if let Some(place) = self.ids.get_mut(index) {
                    *place = Some(id);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits for all of them; what the store says of each, in their order.
    async fn all(&mut self) -> Result<Vec<PartId>, object_store::Error> {
        while !self.under_way.is_empty() {
            self.one_more().await?;
        }
        Ok(self.ids.drain(..).flatten().collect())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let (Some(upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (cloud, key) = (self.cloud.clone(), self.key.clone());
        let mut under_way = std::mem::take(&mut self.under_way);
        runtime.spawn(async move {
            // A part that arrives after the end would stay.
            under_way.shutdown().await;
            let store = cloud.inner.client.get().and_then(|(client, _)| client.multipart());
            let Some(store) = store else { return };
            match tokio::time::timeout(GIVING_UP, store.abort_multipart(&key, &upload)).await {
                Ok(Ok(())) => {}
                // What the store keeps of it its own rules remove.
                _ => tracing::warn!("an upload that failed could not be given up"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_their_number_is_bounded() {
        assert_eq!(part_size(0), Some(8 * MIB));
        assert_eq!(part_size(1_999), Some(8 * MIB));
        assert_eq!(part_size(2_000), Some(32 * MIB));
        assert_eq!(part_size(9_999), Some(128 * MIB));
        assert_eq!(part_size(10_000), None);
        for count in [0, 1, 1_999, 2_000, 2_001, 3_999, 4_000, 9_999] {
            let before: u64 = (0..count).filter_map(part_size).map(|size| size as u64).sum();
            assert_eq!(part_start(count), before);
        }
    }

    #[tokio::test]
    async fn streams_are_cut_into_equal_parts() {
        for (pieces, expected) in [
            (vec![], vec![0]),
            (vec![3], vec![3]),
            (vec![4], vec![4]),
            (vec![1, 0, 3, 4, 0], vec![4, 4]),
            (vec![11], vec![4, 4, 3]),
            (vec![3, 3, 3], vec![4, 4, 1]),
        ] {
            let bytes = pieces.iter().map(|&n| Ok::<_, std::io::Error>(Bytes::from(vec![7; n])));
            let mut cut = Pieces { bytes: futures::stream::iter(bytes), rest: Bytes::new() };
            let mut found = Vec::new();
            loop {
                let (part, is_last) = cut.part(4).await.unwrap();
                found.push(part.content_length());
                if is_last {
                    break;
                }
            }
            assert_eq!(found, expected, "{pieces:?}");
        }
    }
}
