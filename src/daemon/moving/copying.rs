//! Copying all objects of a datastore to another one, each read back from there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::content::Digest;
use atelier_core::datastore::Unnamed;
use atelier_core::id::DatastoreName;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::storage::{self, Datastore, Listed, ObjectPath, PAGE};
use crate::store::storage::{Copied, copies, forget_copy, note_copies};
use crate::store::{self, SqliteStore};

/// Objects that are under way at once.
const AT_ONCE: usize = 16;
/// Objects that are noted at once as copied.
const NOTED: usize = 64;

/// How far a copy has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Objects that there are, or that have been copied.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What there is of them in all.
    pub total: u64,
}

/// What copies objects, and notes in the database which it has copied.
pub(super) struct Copying<'a> {
    store: &'a SqliteStore,
    note: &'a (dyn Fn(Progress) + Sync),
    objects: AtomicU64,
    bytes: AtomicU64,
    total: AtomicU64,
}

/// Why not all was copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object could not be read, stored or listed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What was stored is not what was read.
    #[error(
        "'{path}' of {datastore} came back from the new place as other bytes than were sent there"
    )]
    Differs {
        /// The datastore.
        datastore: String,
        /// The object.
        path: ObjectPath,
    },
}

impl<'a> Copying<'a> {
    /// `note` is told how far it has come.
    pub(super) fn new(store: &'a SqliteStore, note: &'a (dyn Fn(Progress) + Sync)) -> Self {
        let (objects, bytes, total) = Default::default();
        Self { store, note, objects, bytes, total }
    }

    /// Counts what these datastores have, and what they have that cannot be named, each by its name.
    ///
    /// # Errors
    /// If one cannot be listed.
    pub(super) async fn measure(
        &self,
        stores: &[Datastore],
    ) -> Result<(Progress, Vec<(DatastoreName, Unnamed)>), Error> {
        let (mut found, mut stays) = (Progress::default(), Vec::new());
        for store in stores {
            let (mut after, mut unnamed) = (None, Unnamed::default());
            loop {
                let page = store.list_all(None, after.as_deref(), PAGE).await?;
                found.objects += page.objects.len() as u64;
                found.bytes += page.objects.iter().map(|object| object.meta.size).sum::<u64>();
                unnamed.merge(page.unnamed);
                match page.next {
                    Some(next) => after = Some(next.to_string()),
                    None => break,
                }
            }
            if !unnamed.is_empty() {
                stays.push((store.name().clone(), unnamed));
            }
        }
        self.total.store(found.bytes, Ordering::Relaxed);
        Ok((found, stays))
    }

    /// Copies what `to` does not have yet, and removes there what was copied and is gone since.
    ///
    /// # Errors
    /// The first one; what was copied until then is noted.
    pub(super) async fn copy_all(&self, from: &Datastore, to: &Datastore) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            // Queued jobs go on from what they have not committed.
            let page = from.list_all(None, Some(&after), PAGE).await?;
            let until = page.next.as_ref().map(ObjectPath::as_str);
            let known = self.known(from, &after, until)?;
            self.copy_page(from, to, page.objects, known).await?;
            match page.next {
                Some(next) => after = next.to_string(),
                None => return Ok(()),
            }
        }
    }

    fn known(
        &self,
        from: &Datastore,
        after: &str,
        until: Option<&str>,
    ) -> Result<HashMap<String, Copied>, Error> {
        let known = self.store.read(|conn| copies(conn, from.name().as_str(), after, until))?;
        Ok(known.into_iter().map(|copied| (copied.path.clone(), copied)).collect())
    }

    async fn copy_page(
        &self,
        from: &Datastore,
        to: &Datastore,
        objects: Vec<Listed>,
        mut known: HashMap<String, Copied>,
    ) -> Result<(), Error> {
        let mut wanted = Vec::new();
        for object in objects {
            match known.remove(object.path.as_str()) {
                Some(copied) if copied.etag == object.meta.etag && copied.digest.is_some() => {
                    self.passed(1, object.meta.size);
                }
                _ => wanted.push(object),
            }
        }
        // A job was deleted since.
        for gone in known.into_keys() {
            to.delete_object(&ObjectPath::new(&gone).map_err(storage::Error::from)?)
                .await
                .or_else(absent)?;
            let name = from.name().to_string();
            self.store.write(move |conn| forget_copy(conn, &name, &gone)).await?;
        }
        // Noted before anything is there, so that it is found whatever happens.
        let begun = wanted.iter().map(|object| copied(object, None)).collect();
        self.note(from, begun).await?;
        let copies = futures::stream::iter(wanted).map(|object| async move {
            let digest = self.copy(from, to, &object).await?;
            Ok::<_, Error>(copied(&object, Some(digest)))
        });
        let mut done = copies.buffer_unordered(AT_ONCE).ready_chunks(NOTED);
        while let Some(some) = done.next().await {
            let (done, failed): (Vec<_>, Vec<_>) = some.into_iter().partition(Result::is_ok);
            self.note(from, done.into_iter().flatten().collect()).await?;
            if let Some(Err(error)) = failed.into_iter().next() {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn note(&self, from: &Datastore, objects: Vec<Copied>) -> Result<(), Error> {
        let name = from.name().to_string();
        Ok(self.store.write(move |conn| note_copies(conn, &name, &objects)).await?)
    }

    /// Copies one, and reads it back.
    async fn copy(
        &self,
        from: &Datastore,
        to: &Datastore,
        Listed { path, .. }: &Listed,
    ) -> Result<Digest, Error> {
        let opened = from.open(path).await?;
        let size = opened.meta.size;
        let hasher = Arc::<Mutex<blake3::Hasher>>::default();
        to.put_stream(path, hashed(opened.stream(0..size), hasher.clone())).await?;
        let sent = digest(&hasher);
        let back = to.open(path).await?;
        let length = back.meta.size;
        let hasher = Arc::<Mutex<blake3::Hasher>>::default();
        let mut pieces = std::pin::pin!(hashed(back.stream(0..length), hasher.clone()));
        while pieces.try_next().await?.is_some() {}
        if length != size || digest(&hasher) != sent {
            let datastore = from.name().to_string();
            return Err(Error::Differs { datastore, path: path.clone() });
        }
        self.passed(1, size);
        crate::failpoint::hit("object-copied");
        Ok(sent)
    }

    fn passed(&self, objects: u64, bytes: u64) {
        let objects = self.objects.fetch_add(objects, Ordering::Relaxed) + objects;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.load(Ordering::Relaxed);
        (self.note)(Progress { objects, bytes, total });
    }
}

fn copied(object: &Listed, digest: Option<Digest>) -> Copied {
    Copied { path: object.path.to_string(), etag: object.meta.etag.clone(), digest }
}

/// What is removed need not have been there.
fn absent(error: storage::Error) -> Result<(), storage::Error> {
    match error {
        storage::Error::NotFound(_) => Ok(()),
        error => Err(error),
    }
}

/// The same pieces, which have passed the hasher.
fn hashed<S>(
    pieces: S,
    hasher: Arc<Mutex<blake3::Hasher>>,
) -> impl Stream<Item = Result<Bytes, storage::Error>>
where
    S: Stream<Item = Result<Bytes, storage::Error>>,
{
    pieces.inspect_ok(move |piece| {
        hasher.lock().unwrap_or_else(PoisonError::into_inner).update(piece);
    })
}

fn digest(hasher: &Mutex<blake3::Hasher>) -> Digest {
    let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}
