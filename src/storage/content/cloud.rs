//! The content store in an object store: each question is a request, so many are asked at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;

use atelier_core::content::{Digest, MAX_OBJECT};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use super::{ContentStore, check, dangling, place};
use crate::storage::folder::blocking;
use crate::storage::{Datastore, Error};

/// Requests of one caller that are under way at once.
const AT_ONCE: usize = 32;
/// How much one upload gathers in memory before it is stored.
const WAITING_BYTES: usize = 32 << 20;

/// Objects that are not stored yet, by how many others must be stored before them: 0 names none of these.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    ranks: HashMap<Digest, usize>,
    by_rank: BTreeMap<usize, Vec<(Digest, Bytes)>>,
    bytes: usize,
}

impl ContentStore {
    async fn has_in(&self, store: &Datastore, digest: &Digest) -> Result<bool, Error> {
        if self.known(|known| known.has(digest)) {
            return Ok(true);
        }
        match store.head(&place(digest)?).await {
            Ok(_) => {
                self.known(|known| known.add(*digest));
                Ok(true)
            }
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn missing_in(
        &self,
        store: &Datastore,
        digests: Vec<Digest>,
    ) -> Result<Vec<Digest>, Error> {
        let looks = futures::stream::iter(digests).map(|digest| async move {
            Ok::<_, Error>((!self.has_in(store, &digest).await?).then_some(digest))
        });
        let missing: Vec<Option<Digest>> = looks.buffered(AT_ONCE).try_collect().await?;
        Ok(missing.into_iter().flatten().collect())
    }

    pub(super) async fn read_in(
        &self,
        store: &Datastore,
        digests: Vec<Digest>,
        enough: usize,
    ) -> Result<Vec<(Digest, Bytes)>, Error> {
        let reads = futures::stream::iter(digests).map(|digest| self.read_one_in(store, digest));
        // What is read ahead is bounded as much as what is wanted.
        let mut reads = reads.buffered(AT_ONCE.min(enough / MAX_OBJECT + 1));
        let (mut objects, mut total) = (Vec::new(), 0);
        while let Some((digest, bytes)) = reads.try_next().await? {
            total += bytes.len();
            objects.push((digest, bytes));
            if total >= enough {
                break;
            }
        }
        Ok(objects)
    }

    async fn read_one_in(
        &self,
        store: &Datastore,
        digest: Digest,
    ) -> Result<(Digest, Bytes), Error> {
        let path = place(&digest)?;
        let (bytes, size) = match store.get(&path, MAX_OBJECT as u64).await {
            Ok(bytes) => (bytes.clone(), bytes.len() as u64),
            Err(Error::TooLarge { size, .. }) => (Bytes::new(), size),
            Err(Error::NotFound(_)) => return Err(self.lost(&digest)),
            Err(error) => return Err(error),
        };
        if Digest::of(&bytes) == digest {
            return Ok((digest, bytes));
        }
        let damaged = self.damaged(&digest, size);
        store.delete_object(&path).await?;
        Err(damaged)
    }

    /// Takes objects into `waiting`; how many were stored since that became too much.
    pub(super) async fn add_in(
        &self,
        store: &Datastore,
        waiting: &mut Waiting,
        objects: Vec<(Digest, Bytes)>,
    ) -> Result<u64, Error> {
        let checked = blocking(move || {
            let check = |(digest, bytes): (Digest, Bytes)| {
                let children = check(digest, &bytes)?;
                Ok((digest, bytes, children))
            };
            objects.into_iter().map(check).collect::<Result<Vec<_>, Error>>()
        });
        let checked = checked.await?;
        let named =
            checked.iter().flat_map(|(digest, _, children)| children.iter().chain([digest]));
        let asked: HashSet<Digest> =
            named.filter(|digest| !waiting.ranks.contains_key(digest)).copied().collect();
        let missing = self.missing_in(store, asked.into_iter().collect()).await?;
        let missing: HashSet<Digest> = missing.into_iter().collect();
        // Some of these may have been stored since.
        let is_there =
            |digest: &Digest| !missing.contains(digest) || self.known(|known| known.has(digest));
        let mut stored = 0;
        for (digest, bytes, children) in checked {
            if waiting.ranks.contains_key(&digest) || is_there(&digest) {
                continue;
            }
            let mut rank = 0;
            for child in &children {
                match waiting.ranks.get(child) {
                    Some(below) => rank = rank.max(below + 1),
                    None if is_there(child) => {}
                    None => return Err(dangling(digest, child)),
                }
            }
            waiting.bytes += bytes.len();
            waiting.ranks.insert(digest, rank);
            waiting.by_rank.entry(rank).or_default().push((digest, bytes));
            if waiting.bytes >= WAITING_BYTES {
                stored += self.publish_in(store, waiting).await?;
            }
        }
        Ok(stored)
    }

    /// Stores what waits, what is named before what names it; how many objects that were.
    pub(super) async fn publish_in(
        &self,
        store: &Datastore,
        waiting: &mut Waiting,
    ) -> Result<u64, Error> {
        let mut stored = 0;
        for objects in mem::take(waiting).by_rank.into_values() {
            let puts = futures::stream::iter(objects).map(|(digest, bytes)| async move {
                store.put(&place(&digest)?, bytes).await?;
                Ok::<_, Error>(digest)
            });
            let mut puts = puts.buffer_unordered(AT_ONCE);
            while let Some(digest) = puts.try_next().await? {
                self.known(|known| known.add(digest));
                stored += 1;
            }
        }
        Ok(stored)
    }
}
