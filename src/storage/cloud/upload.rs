//! Storing an object of any length with little memory.
//!
//! What fits into one part is stored with one request. More is uploaded in parts, some at once, which become
//! an object when all are there; until then nothing is seen of it. Parts of an upload that fails, or whose caller
//! goes away, are given up.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload, PutResult};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Cloud;
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
        let (store, key) = (self.store().await?, self.key(path)?);
        let mut pieces = Pieces { bytes: pin!(bytes), rest: Bytes::new() };
        let (first, is_last) = pieces.part(PARTS[0].1).await?;
        let mut size = first.content_length() as u64;
        if is_last {
            still().map_err(|why| Error::Interrupted(why.into()))?;
            let stored = store.put(&key, first).await.map_err(failed)?;
            return Ok((size, stored.e_tag));
        }
        let started = store.put_multipart(&key).await.map_err(failed)?;
        let mut parts = Parts::of(started);
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
        parts.all().await.map_err(failed)?;
        still().map_err(|why| Error::Interrupted(why.into()))?;
        let stored = parts.complete().await.map_err(failed)?;
        Ok((size, stored.e_tag))
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
    /// `None` once it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
    under_way: JoinSet<Result<(), object_store::Error>>,
}

impl Parts {
    fn of(upload: Box<dyn MultipartUpload>) -> Self {
        Self { upload: Some(upload), under_way: JoinSet::new() }
    }

    /// Begins to send a part, once few enough are under way.
    async fn send(&mut self, part: PutPayload) -> Result<(), object_store::Error> {
        let length = part.content_length();
        let at_once = (AT_ONCE / length.max(1)).clamp(1, 4);
        while self.under_way.len() >= at_once {
            self.one_more().await?;
        }
        let room = u32::try_from(length.div_ceil(MIB)).unwrap_or(IN_ALL).clamp(1, IN_ALL);
        let room = ROOM.clone().acquire_many_owned(room).await.ok();
        if let Some(upload) = &mut self.upload {
            let sent = upload.put_part(part);
            self.under_way.spawn(async move {
                let _room = room;
                sent.await
            });
        }
        Ok(())
    }

    /// Waits for one that is under way.
    async fn one_more(&mut self) -> Result<(), object_store::Error> {
        match self.under_way.join_next().await {
            Some(sent) => sent.map_err(object_store::Error::from)?,
            None => Ok(()),
        }
    }

    /// Waits for all of them.
    async fn all(&mut self) -> Result<(), object_store::Error> {
        while !self.under_way.is_empty() {
            self.one_more().await?;
        }
        Ok(())
    }

    async fn complete(mut self) -> Result<PutResult, object_store::Error> {
        self.all().await?;
        let Some(upload) = &mut self.upload else {
            return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
        };
        let stored = upload.complete().await?;
        self.upload = None;
        Ok(stored)
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let (Some(mut upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let mut under_way = std::mem::take(&mut self.under_way);
        runtime.spawn(async move {
            // A part that arrives after the end would stay.
            under_way.shutdown().await;
            match tokio::time::timeout(GIVING_UP, upload.abort()).await {
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
