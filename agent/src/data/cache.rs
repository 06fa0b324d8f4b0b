//! What this node keeps of what it fetched: content objects and files of datastores, bounded in
//! size, the least recently used going first.
//!
//! **Invariant:** a file under its name in the cache is whole; it was written under another name
//! and renamed. Content objects are checked against their digest when they are read, so that even
//! a crash of the machine cannot make the cache lie. Of large files some blocks may be there; those
//! are apart ([`partial`]).
//!
//! The agent and the servers of mounted inputs use one folder, each with an index of its own: what
//! another one has added is looked for on the disk, and counted when it is time to make room. What one of them
//! uses none of the others removes ([`pins`]).

mod pins;
mod torn;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use atelier_core::content::Digest;

use super::Error;
use super::mount::partial;
use crate::{bound, proc};

/// Its time is when a process last added something.
const CHANGED: &str = "changed";
/// How long what others add may stay uncounted.
const STALE: Duration = Duration::from_secs(10);

/// Kinds of files in the cache; the name of the folder each lies in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// Content objects, by digest.
    Objects,
    /// Files of datastores and the web, by a digest of where they are from and their etag.
    Files,
    /// Blocks of such files, by the same digest.
    Blocks,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Objects, Self::Files, Self::Blocks];

    fn folder(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Files => "files",
            Self::Blocks => "blocks",
        }
    }

    /// What a file takes. One of blocks has holes.
    fn size(self, meta: &Metadata) -> u64 {
        match self {
            Self::Objects | Self::Files => meta.len(),
            Self::Blocks => meta.blocks() * 512,
        }
    }
}

type Key = (Kind, Digest);

#[derive(Clone, Debug)]
struct Entry {
    size: u64,
    /// Grows with every use.
    used: u64,
    /// When it was last used; of what an earlier agent left, when it was fetched.
    at: SystemTime,
    pins: u32,
}

#[derive(Debug, Default)]
struct Index {
    /// When the folder was last looked through, and when somebody had last added something to it.
    loaded: Option<(Instant, Option<SystemTime>)>,
    entries: HashMap<Key, Entry>,
    total: u64,
    clock: u64,
    /// From how much on, and from when, it is worth to look again for what can be removed, of a total over the limit.
    stuck: Option<(u64, Instant)>,
}

/// The cache of one folder. All users of a folder in this process share one.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Bytes kept at most, except what is in use.
    limit: u64,
    index: Mutex<Index>,
    objects: pins::Objects,
    next: AtomicU64,
}

/// Keeps a cached file from being removed while it is in use.
#[derive(Debug)]
pub(super) struct Pin {
    cache: Arc<Cache>,
    key: Key,
    _seen: Option<Seen>,
}

/// What other processes see of a pin.
#[derive(Debug)]
enum Seen {
    /// The file is locked.
    File { _locked: File },
    /// One of the objects that this process pins.
    Objects(Arc<Cache>),
}

impl Drop for Seen {
    fn drop(&mut self) {
        if let Self::Objects(cache) = self {
            cache.objects.unpin();
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(entry) = self.cache.lock().entries.get_mut(&self.key) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }
}

/// A file being written for the cache; removed unless it is kept.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) path: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Cache {
    /// The cache in `folder`, which is made if it does not exist. While another one of the same
    /// folder is in use in this process, that one is given and `limit` is as it was.
    pub(super) fn open(folder: &Path, limit: Option<u64>) -> Result<Arc<Self>, Error> {
        static OPEN: OnceLock<Mutex<HashMap<PathBuf, Weak<Cache>>>> = OnceLock::new();
        for sub in ["objects", "files", "blocks", "tmp"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        }
        let path = fs::canonicalize(folder).map_err(|error| Error::io("open", folder, error))?;
        let mut open =
            OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(cache);
        }
        let torn = torn::discard(&path, &path.join(Kind::Files.folder()));
        if torn > 0 {
            tracing::info!(
                files = torn,
                "what may not have been on the disk at the end of the last boot is gone"
            );
        }
        // What was being written when an earlier agent ended. Servers may be writing.
        for entry in fs::read_dir(path.join("tmp")).into_iter().flatten().flatten() {
            if !is_being_written(&entry.file_name()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let limit = limit.unwrap_or_else(|| bound::default_limit(&path));
        let cache = Arc::new(Self {
            folder: path.clone(),
            limit,
            index: Mutex::default(),
            objects: pins::Objects::new(path.join("pins")),
            next: AtomicU64::new(0),
        });
        open.insert(path, Arc::downgrade(&cache));
        Ok(cache)
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a file is, if there is one.
    pub(super) fn place(&self, (kind, digest): Key) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(kind.folder()).join(&name[..2]).join(name)
    }

    /// Bytes kept at most.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The cached file, if there is one; it stays while the pin is held. Waits for the disk.
    pub(super) fn get(self: &Arc<Self>, kind: Kind, digest: Digest) -> Option<(PathBuf, Pin)> {
        let key = (kind, digest);
        let path = self.place(key);
        // Before it is looked at: from then on no other process removes it.
        let seen = self.hold(kind, &path);
        let mut index = self.lock();
        self.load(&mut index);
        let found = fs::symlink_metadata(&path).ok().filter(|_| seen.is_some());
        let found = found.filter(Metadata::is_file);
        match (index.entries.get(&key).map(|entry| entry.size), found) {
            (Some(size), Some(meta)) if meta.len() == size => {}
            // A server has added it.
            (None, Some(meta)) => index.add(key, meta.len(), SystemTime::now()),
            // Someone may have cleaned up by hand.
            (Some(_), _) => {
                index.take(key);
                return None;
            }
            (None, None) => return None,
        }
        Some((path, self.pin(&mut index, key, seen)))
    }

    /// Has other processes see that a file is pinned; `None` if it is not there.
    fn hold(self: &Arc<Self>, kind: Kind, path: &Path) -> Option<Seen> {
        if kind == Kind::Objects {
            self.objects.pin();
            return Some(Seen::Objects(Arc::clone(self)));
        }
        let file = pins::hold(path).ok().flatten()?;
        // For those that look at it there: what was used last goes last. What has another name does not go, and whoever has
        // that sees the time too: of files that jobs always use it is when they began to.
        let is_alone = file.metadata().is_ok_and(|found| found.nlink() == 1);
        let times = FileTimes::new().set_modified(SystemTime::now());
        let _ = is_alone.then(|| file.set_times(times));
        Some(Seen::File { _locked: file })
    }

    fn pin(self: &Arc<Self>, index: &mut Index, key: Key, seen: Option<Seen>) -> Pin {
        index.clock += 1;
        let clock = index.clock;
        if let Some(entry) = index.entries.get_mut(&key) {
            entry.used = clock;
            entry.at = SystemTime::now();
            entry.pins += 1;
        }
        Pin { cache: Arc::clone(self), key, _seen: seen }
    }

    /// A place to write a file at before it is kept.
    pub(super) fn draft(&self) -> Draft {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        Draft { path: self.folder.join("tmp").join(name) }
    }

    /// Keeps a written draft under its name, for nobody but this agent's user to write. Makes room first. Waits for the
    /// disk.
    pub(super) fn keep(
        self: &Arc<Self>,
        draft: Draft,
        kind: Kind,
        digest: Digest,
    ) -> Result<(PathBuf, Pin), Error> {
        let key = (kind, digest);
        let path = self.place(key);
        let failed = |error| Error::io("keep in the cache", &path, error);
        fs::set_permissions(&draft.path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        let size = fs::metadata(&draft.path).map_err(failed)?.len();
        // Before it has a name by which others find it.
        let seen = self.hold(kind, &draft.path);
        match fs::rename(&draft.path, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                fs::rename(&draft.path, &path).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        let mut index = self.lock();
        self.load(&mut index);
        self.refresh(&mut index, STALE);
        index.add(key, size, SystemTime::now());
        let pin = self.pin(&mut index, key, seen);
        let knows_all = index.loaded.is_some_and(|(_, seen)| seen == self.changed());
        self.note_change();
        if let Some((_, seen)) = index.loaded.as_mut().filter(|_| knows_all) {
            // This one is counted.
            *seen = self.changed();
        }
        self.shrink(&mut index);
        Ok((path, pin))
    }

    /// Tells others that there is more to count.
    pub(super) fn note_change(&self) {
        let times = FileTimes::new().set_modified(SystemTime::now());
        // Who does not learn of it counts less than there is, for a while.
        let _ = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(CHANGED))
            .and_then(|file| file.set_times(times));
    }

    fn changed(&self) -> Option<SystemTime> {
        fs::metadata(self.folder.join(CHANGED)).and_then(|meta| meta.modified()).ok()
    }

    /// Counts all that is there and removes what is too much. Bytes that are there still, above the limit. Waits
    /// for the disk.
    pub(super) fn make_room(&self) -> u64 {
        let mut index = self.lock();
        self.refresh(&mut index, Duration::ZERO);
        index.stuck = None;
        self.shrink(&mut index);
        index.total.saturating_sub(self.limit)
    }

    /// Removes a file that turned out not to be what its name says.
    pub(super) fn discard(&self, kind: Kind, digest: Digest) {
        let key = (kind, digest);
        self.lock().take(key);
        let _ = fs::remove_file(self.place(key));
    }

    /// Learns what is there, if nobody has looked yet.
    fn load(&self, index: &mut Index) {
        if index.loaded.is_none() {
            self.look(index);
        }
    }

    /// Learns what others have added, unless it was looked for within `stale`.
    fn refresh(&self, index: &mut Index, stale: Duration) {
        let is_new = |(at, seen): (Instant, _)| at.elapsed() >= stale && seen != self.changed();
        if index.loaded.is_none_or(is_new) {
            self.look(index);
        }
    }

    /// Looks through the folder, in the order of last change.
    fn look(&self, index: &mut Index) {
        let mut before = std::mem::take(&mut index.entries);
        index.total = 0;
        index.loaded = Some((Instant::now(), self.changed()));
        let mut found: Vec<(SystemTime, Key, u64)> = Vec::new();
        for kind in Kind::ALL {
            let parts =
                fs::read_dir(self.folder.join(kind.folder())).into_iter().flatten().flatten();
            for entry in
                parts.flat_map(|part| fs::read_dir(part.path()).into_iter().flatten()).flatten()
            {
                let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
                let (Some(digest), Ok(meta)) = (digest, entry.metadata()) else { continue };
                let changed = meta.modified().unwrap_or(UNIX_EPOCH);
                found.push((changed, (kind, digest), kind.size(&meta)));
            }
        }
        found.sort_by_key(|(changed, ..)| *changed);
        for (at, key, size) in found {
            let known = before.remove(&key);
            let pins = known.as_ref().map_or(0, |known| known.pins);
            index.clock += 1;
            let entry = match known.filter(|known| known.at >= at) {
                Some(known) => Entry { size, ..known },
                // It is new, or another process has used it since.
                None => Entry { size, used: index.clock, at, pins },
            };
            index.entries.insert(key, entry);
            index.total += size;
        }
    }

    /// Removes what was not used for longest until nine tenths of the limit remain.
    fn shrink(&self, index: &mut Index) {
        if index.total <= self.limit {
            return;
        }
        if index.stuck.is_some_and(|(total, at)| index.total < total && Instant::now() < at) {
            return;
        }
        let unused = Self::unused(index).map(|(key, entry)| (entry.used, key)).collect();
        bound::shrink(index.total, self.limit, unused, |key| self.remove(index, key));
        // The rest is in use. To look at all of it for each file that comes would take longer than the files do.
        let more = index.total + self.limit / 16;
        index.stuck = (index.total > self.limit).then(|| (more, Instant::now() + STALE));
    }

    fn unused(index: &Index) -> impl Iterator<Item = (Key, &Entry)> {
        index.entries.iter().filter(|(_, entry)| entry.pins == 0).map(|(key, entry)| (*key, entry))
    }

    /// Removes a file that nobody uses; how many bytes that freed.
    fn remove(&self, index: &mut Index, key: Key) -> u64 {
        let path = self.place(key);
        // A second link is an input of a job: removing this one would free nothing.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.nlink() > 1) {
            return 0;
        }
        let gone = match key.0 {
            Kind::Blocks => partial::remove(&path),
            Kind::Objects if self.objects.are_pinned_elsewhere() => Ok(false),
            Kind::Objects | Kind::Files => match partial::is_unused(&path) {
                Ok(true) => fs::remove_file(&path).map(|()| true),
                other => other,
            },
        };
        match gone.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(true),
            _ => Err(error),
        }) {
            Ok(true) => index.take(key),
            Ok(false) | Err(_) => 0,
        }
    }

    /// What is kept of a kind. Waits for the disk.
    pub(super) fn held(&self, kind: Kind) -> Held {
        let mut index = self.lock();
        self.refresh(&mut index, Duration::ZERO);
        let mut held = Held::default();
        for ((_, digest), entry) in index.entries.iter().filter(|((of, _), _)| *of == kind) {
            held.add(entry);
            // A link elsewhere is an input of a job.
            let linked = || {
                let meta = fs::symlink_metadata(self.place((kind, *digest)));
                meta.is_ok_and(|meta| meta.nlink() > 1)
            };
            let is_locked = || !partial::is_unused(&self.place((kind, *digest))).unwrap_or(true);
            held.in_use += u64::from(entry.pins > 0 || linked() || is_locked());
        }
        held
    }

    /// How many bytes are kept of each of these lists of files, whole or in blocks. Waits for the disk.
    pub(super) fn bytes_of<'a>(&self, lists: impl Iterator<Item = &'a [Digest]>) -> Vec<u64> {
        let mut index = self.lock();
        self.refresh(&mut index, Duration::ZERO);
        let kept = |digest: &Digest| {
            let entry = |kind| index.entries.get(&(kind, *digest));
            entry(Kind::Files).or_else(|| entry(Kind::Blocks)).map_or(0, |entry| entry.size)
        };
        lists.map(|list| list.iter().map(kept).sum()).collect()
    }

    /// Removes what is not in use, and was not used for `unused_for`; tells what went.
    pub(super) fn prune(&self, kind: Kind, unused_for: Duration) -> Held {
        let mut index = self.lock();
        self.refresh(&mut index, Duration::ZERO);
        let old: Vec<Key> = Self::unused(&index)
            .filter(|((of, _), entry)| *of == kind && bound::unused_for(entry.at, unused_for))
            .map(|(key, _)| key)
            .collect();
        let mut gone = Held::default();
        for key in old {
            let Some(entry) = index.entries.get(&key).cloned() else { continue };
            self.remove(&mut index, key);
            if !index.entries.contains_key(&key) {
                gone.add(&entry);
            }
        }
        gone
    }
}

impl Index {
    /// Counts a file, over what was known of it.
    fn add(&mut self, key: Key, size: u64, at: SystemTime) {
        let pins = self.take_entry(key).map_or(0, |entry| entry.pins);
        self.clock += 1;
        self.entries.insert(key, Entry { size, used: self.clock, at, pins });
        self.total += size;
    }

    fn take_entry(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.total = self.total.saturating_sub(entry.size);
        Some(entry)
    }

    /// Counts a file no more; how many bytes it was.
    fn take(&mut self, key: Key) -> u64 {
        self.take_entry(key).map_or(0, |entry| entry.size)
    }
}

/// Whether a draft's name begins with another process that lives.
fn is_being_written(name: &OsStr) -> bool {
    let pid = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
    let others = pid.filter(|pid| *pid != std::process::id());
    others.and_then(|pid| proc::stat(pid.try_into().ok()?)).is_some()
}

/// Files of a kind, together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// How many of them are in use.
    pub(crate) in_use: u64,
    /// When the last of them was used.
    pub(crate) last_used: Option<SystemTime>,
}

impl Held {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            bytes: self.bytes + other.bytes,
            in_use: self.in_use + other.in_use,
            last_used: self.last_used.max(other.last_used),
        }
    }

    fn add(&mut self, entry: &Entry) {
        self.count += 1;
        self.bytes += entry.size;
        self.last_used = self.last_used.max(Some(entry.at));
    }
}

#[cfg(test)]
impl Cache {
    /// Bytes kept now.
    pub(super) fn total(&self) -> u64 {
        let mut index = self.lock();
        self.load(&mut index);
        index.total
    }
}

/// Writes a draft at once.
pub(super) fn write_draft(draft: &Draft, bytes: &[u8]) -> Result<(), Error> {
    use io::Write as _;
    File::create(&draft.path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Error::io("write", &draft.path, error))
}
