//! The objects that a server reads from, and where each has its bytes: in memory, in the node's cache, or at the
//! daemon's gateway.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use atelier_core::content::Digest;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, ready};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep};

use super::failure::Failure;
use super::fetch::Fetch;
use super::partial::{BLOCK, Partial, blocks};
use super::tree::Object;
use crate::data::cache::{Cache, Kind, write_draft};

/// Blocks that are fetched, or written to the cache, at once.
const FETCHES: usize = 8;
/// Bytes of the newest blocks that are kept in memory: those that are being read, and what is read ahead.
const RECENT: usize = 12 * BLOCK as usize;
/// The most of them, as they may be small.
const MOST_RECENT: usize = 64;

/// A block of an object.
type Key = (Digest, u32);
/// A block on its way, for all who wait for it.
type Flight = Shared<BoxFuture<'static, Result<Bytes, Failure>>>;

/// What all objects of a server share.
pub(in crate::data) struct Engine {
    fetch: Fetch,
    cache: Arc<Cache>,
    boot: String,
    runtime: Handle,
    fetches: Arc<Semaphore>,
    sources: Mutex<HashMap<Digest, Weak<Source>>>,
    flights: Mutex<HashMap<Key, Flight>>,
    recent: Mutex<VecDeque<(Key, Bytes)>>,
    /// Blocks in the cache that this process may empty, the oldest first.
    kept: Mutex<VecDeque<Key>>,
    /// The objects whose blocks of before are among those.
    counted: Mutex<HashSet<Digest>>,
    /// Bytes added to the cache since it was last made room in.
    added: AtomicU64,
    /// Bytes that came through the gateway.
    fetched: AtomicU64,
    /// Blocks that are being written to the cache.
    keeping: AtomicU64,
}

/// One object.
pub(in crate::data) struct Source {
    engine: Arc<Engine>,
    pub(in crate::data) object: Object,
    id: Digest,
    place: Mutex<Place>,
}

/// Where an object is on this node.
#[derive(Clone)]
enum Place {
    /// All of it; the file is locked, so that it stays.
    Whole(Arc<File>),
    Blocks(Arc<Partial>),
    /// Nothing of it: a small one that was not read yet, or the cache cannot be written.
    Nowhere,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    pub(in crate::data) fn new(
        fetch: Fetch,
        cache: Arc<Cache>,
        boot: String,
        runtime: Handle,
    ) -> Self {
        Self {
            fetch,
            cache,
            boot,
            runtime,
            fetches: Arc::new(Semaphore::new(FETCHES)),
            sources: Mutex::default(),
            flights: Mutex::default(),
            recent: Mutex::default(),
            kept: Mutex::default(),
            counted: Mutex::default(),
            added: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            keeping: AtomicU64::new(0),
        }
    }

    /// Bytes that came through the gateway.
    pub(in crate::data) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Waits until what was fetched is in the cache, at most so long.
    pub(in crate::data) async fn settle(&self, patience: Duration) {
        let begun = Instant::now();
        while self.keeping.load(Ordering::Acquire) > 0 && begun.elapsed() < patience {
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(in crate::data) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The object, shared by all that read it now. Waits for the disk.
    pub(in crate::data) fn source(self: &Arc<Self>, object: Object) -> Arc<Source> {
        let id = object.id();
        let mut sources = locked(&self.sources);
        if let Some(source) = sources.get(&id).and_then(Weak::upgrade) {
            return source;
        }
        if sources.len() >= 1024 {
            sources.retain(|_, source| source.strong_count() > 0);
        }
        let engine = Arc::clone(self);
        let source = Arc::new(Source { engine, object, id, place: Mutex::new(Place::Nowhere) });
        let place = source.find().unwrap_or_else(|error| {
            tracing::warn!(%error, object = source.object.key, "the cache cannot be used");
            Place::Nowhere
        });
        if let Place::Blocks(partial) = &place
            && locked(&self.counted).insert(id)
        {
            // They are older than what is read now.
            let mut kept = locked(&self.kept);
            for block in partial.present().unwrap_or_default() {
                kept.push_front((id, block));
            }
        }
        if let Place::Blocks(partial) = &place {
            // All of them may be there, and who had fetched the last one gone.
            let (source, partial) = (Arc::clone(&source), Arc::clone(partial));
            self.runtime.spawn_blocking(move || source.finish(&partial));
        }
        *locked(&source.place) = place;
        sources.insert(id, Arc::downgrade(&source));
        source
    }

    fn recent(&self, key: Key) -> Option<Bytes> {
        let recent = locked(&self.recent);
        recent.iter().rev().find(|(known, _)| *known == key).map(|(_, bytes)| bytes.clone())
    }

    fn remember(&self, key: Key, bytes: Bytes) {
        let mut recent = locked(&self.recent);
        recent.push_back((key, bytes));
        let mut size: usize = recent.iter().map(|(_, bytes)| bytes.len()).sum();
        while recent.len() > 1 && (size > RECENT || recent.len() > MOST_RECENT) {
            size -= recent.pop_front().map_or(0, |(_, bytes)| bytes.len());
        }
    }

    /// Counts what was added to the cache; from time to time what is too much in it goes.
    fn added(&self, bytes: u64) {
        self.cache.note_change();
        let uncounted = self.added.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if uncounted < (self.cache.limit() / 64).max(BLOCK) {
            return;
        }
        self.added.store(0, Ordering::Relaxed);
        let mut excess = self.cache.make_room();
        // All that is left is in use: of what is used here blocks go, but for those that were read lately.
        let mut looks = locked(&self.kept).len() * 2;
        while excess > 0 && looks > 0 {
            looks -= 1;
            let Some((id, block)) = locked(&self.kept).pop_front() else { return };
            let source = locked(&self.sources).get(&id).and_then(Weak::upgrade);
            let Some(partial) = source.and_then(|source| source.partial()) else {
                // Closed, so that it went with all its blocks if need be; or whole.
                locked(&self.counted).remove(&id);
                continue;
            };
            if partial.was_used(block) {
                locked(&self.kept).push_back((id, block));
                continue;
            }
            match partial.empty(block) {
                Ok(bytes) => excess = excess.saturating_sub(bytes),
                Err(error) => tracing::warn!(%error, "a block of the cache cannot be emptied"),
            }
        }
    }
}

impl Source {
    /// Looks for the object in the node's cache; of a large one that is not there a place for blocks is made.
    fn find(&self) -> io::Result<Place> {
        let Engine { cache, boot, .. } = &*self.engine;
        if let Some(whole) = self.find_whole()? {
            return Ok(Place::Whole(Arc::new(whole)));
        }
        if self.object.size <= BLOCK {
            return Ok(Place::Nowhere);
        }
        let path = cache.place((Kind::Blocks, self.id));
        let partial = Partial::open(&path, self.object.size, boot, true)?;
        Ok(Place::Blocks(Arc::new(partial)))
    }

    fn find_whole(&self) -> io::Result<Option<File>> {
        let path = self.engine.cache.place((Kind::Files, self.id));
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        flock(&file, FlockOperation::LockShared)?;
        let meta = file.metadata()?;
        if meta.nlink() == 0 || meta.len() != self.object.size {
            return Ok(None);
        }
        // What was used last goes last.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Ok(Some(file))
    }

    fn place(&self) -> Place {
        locked(&self.place).clone()
    }

    /// The file that holds all of it.
    pub(in crate::data) fn whole(&self) -> Option<Arc<File>> {
        match self.place() {
            Place::Whole(file) => Some(file),
            Place::Blocks(_) | Place::Nowhere => None,
        }
    }

    fn partial(&self) -> Option<Arc<Partial>> {
        match self.place() {
            Place::Blocks(partial) => Some(partial),
            Place::Whole(_) | Place::Nowhere => None,
        }
    }

    /// How many blocks it has.
    pub(in crate::data) fn blocks(&self) -> u32 {
        blocks(self.object.size)
    }

    /// Whether a block is on this node.
    pub(in crate::data) fn has(&self, block: u32) -> bool {
        match self.place() {
            Place::Whole(_) => true,
            Place::Blocks(partial) if partial.has(block).unwrap_or(false) => true,
            Place::Blocks(_) | Place::Nowhere => self.engine.recent((self.id, block)).is_some(),
        }
    }

    /// Bytes of one block that are on this node.
    pub(in crate::data) fn at_hand(&self, offset: u64, length: usize) -> Option<Bytes> {
        let block = (offset / BLOCK) as u32;
        if let Some(bytes) = self.engine.recent((self.id, block)) {
            let from = (offset % BLOCK) as usize;
            return Some(bytes.slice(from..from + length));
        }
        let read = |place: &Place, into: &mut [u8]| match place {
            Place::Whole(file) => file.read_exact_at(into, offset).map(|()| true),
            Place::Blocks(partial) => partial.read(offset, into),
            Place::Nowhere => Ok(false),
        };
        let place = self.place();
        let mut bytes = match place {
            Place::Blocks(ref partial) if !partial.has(block).unwrap_or(false) => return None,
            Place::Nowhere => return None,
            _ => vec![0; length],
        };
        match read(&place, &mut bytes) {
            Ok(true) => Some(bytes.into()),
            Ok(false) => None,
            Err(error) => {
                tracing::warn!(%error, object = self.object.key, "the cache cannot be read");
                None
            }
        }
    }

    /// Fetches a block that is not here, unless it is on its way already, or has come since it was looked for.
    pub(in crate::data) fn fetch(self: &Arc<Self>, block: u32) -> Flight {
        let key = (self.id, block);
        let mut flights = locked(&self.engine.flights);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        // What has landed is remembered before its flight is forgotten.
        if let Some(bytes) = self.engine.recent(key) {
            return ready(Ok(bytes)).boxed().shared();
        }
        let (tell, told) = oneshot::channel();
        let source = Arc::clone(self);
        self.engine.runtime.spawn(async move { source.fly(block, tell).await });
        let flight = async { told.await.unwrap_or(Err(Failure::Stopped)) }.boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }

    async fn fly(self: Arc<Self>, block: u32, tell: oneshot::Sender<Result<Bytes, Failure>>) {
        let (key, engine) = ((self.id, block), &self.engine);
        let Ok(_permit) = engine.fetches.acquire().await else { return };
        let from = u64::from(block) * BLOCK;
        let range = from..(from + BLOCK).min(self.object.size);
        let fetched = engine.fetch.part(&self.object, range).await;
        if let Ok(bytes) = &fetched {
            engine.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            // Before anybody has it, so that whoever has read all knows what is still to be kept.
            engine.keeping.fetch_add(1, Ordering::AcqRel);
            engine.remember(key, bytes.clone());
        }
        locked(&engine.flights).remove(&key);
        let kept = fetched.as_ref().ok().cloned();
        // Nobody may wait for it any more.
        let _ = tell.send(fetched);
        if let Some(bytes) = kept {
            let source = Arc::clone(&self);
            // With the permit: what is fetched faster than the disk takes it would fill the memory.
            let _ = tokio::task::spawn_blocking(move || source.keep(block, &bytes)).await;
            engine.keeping.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Puts a block into the cache; with the last one the object is whole there.
    fn keep(self: &Arc<Self>, block: u32, bytes: &Bytes) {
        let kept = match self.place() {
            Place::Blocks(partial) => self.keep_block(&partial, block, bytes),
            Place::Nowhere if self.blocks() == 1 => self.keep_all(bytes),
            Place::Whole(_) | Place::Nowhere => return,
        };
        match kept {
            Ok(()) => self.engine.added(bytes.len() as u64),
            // It is read all the same, as often as it is needed.
            Err(error) => {
                tracing::warn!(%error, object = self.object.key, "the cache cannot be written")
            }
        }
    }

    fn keep_block(
        self: &Arc<Self>,
        partial: &Partial,
        block: u32,
        bytes: &Bytes,
    ) -> io::Result<()> {
        let all = partial.fill(block, bytes)?;
        locked(&self.engine.kept).push_back((self.id, block));
        if all { self.finish(partial) } else { Ok(()) }
    }

    /// Makes the blocks the whole object, if all of them are there.
    fn finish(&self, partial: &Partial) -> io::Result<()> {
        if !partial.seal()? {
            return Ok(());
        }
        *locked(&self.place) = Place::Whole(Arc::new(partial.file()?));
        partial.finish(&self.engine.cache.place((Kind::Files, self.id)))
    }

    fn keep_all(&self, bytes: &Bytes) -> io::Result<()> {
        let cache = &self.engine.cache;
        let draft = cache.draft();
        write_draft(&draft, bytes).map_err(io::Error::other)?;
        let kept = cache.keep(draft, Kind::Files, self.id);
        let (_, _pin) = kept.map_err(io::Error::other)?;
        if let Some(whole) = self.find_whole()? {
            *locked(&self.place) = Place::Whole(Arc::new(whole));
        }
        Ok(())
    }
}
