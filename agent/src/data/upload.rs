//! What a job leaves, on its way into a datastore.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::content::Digest;
use atelier_core::content::manifest::ManifestEntry;
use atelier_core::id::DatastoreName;
use atelier_proto::agent::v1 as pb;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use reqwest::Body;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use super::error::blocking;
use super::files::{self, Stop, StopOnDrop};
use super::gateway::Gateway;
use super::room::{LARGE, RELAYED, SMALL};
use super::rw_mount::Known;
use super::store::{Staged, Store};
use super::{Error, Inner, path};

/// Threads that read files of a shared folder.
const THREADS: usize = 4;
/// The deepest folder below the one that is stored.
const MAX_DEPTH: usize = 256;
/// Most names that links to folders bring in: a few links that lead to one another name as many as
/// anyone likes.
const LINKED: usize = 250_000;
const READ: usize = 256 * 1024;

/// A file to store.
struct Local {
    /// Where it is, links resolved.
    path: PathBuf,
    /// Below the folder, as the job named it; empty for a single file.
    below: String,
}

/// Why one file is not stored.
enum Failed {
    /// The file itself, in words that begin with its name.
    File(String),
    /// Everything.
    All(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::All(error)
    }
}

/// See [`super::DataPlane::upload`].
pub(super) async fn upload(
    inner: &Inner,
    from: &Path,
    to: &pb::StorePath,
    prefix: &str,
    token: &str,
    known: Option<Known<'_>>,
) -> Result<Vec<ManifestEntry>, Error> {
    let key = path::checked(&to.path)?.to_owned();
    let prefix = path::checked(prefix)?.to_owned();
    let datastore = DatastoreName::new(&to.datastore).map_err(|_| Error::Path {
        path: to.datastore.chars().take(80).collect(),
        rule: "it is no name of a datastore",
    })?;
    let (root, base) = (from.to_owned(), key.clone());
    let stop = Stop::default();
    let walk = {
        let _stop = StopOnDrop(stop.clone());
        blocking(move || Walk::of(&root, &base, stop)).await?
    };
    let Walk { found, mut refused, .. } = walk;
    let place = Place { datastore, key, prefix };
    let results = match inner.store(to).await? {
        Some(store) => link_all(store, &place, found).await?,
        None => {
            let (place, large) = (&place, &Semaphore::new(LARGE));
            futures::stream::iter(found)
                .map(|local| {
                    async move {
                        let key = path::join(&place.key, &local.below);
                        if let Some(known) = known {
                            // It is read, on one of few threads.
                            let turn = large.acquire().await;
                            let done =
                                known.commit(inner, &local.path, &local.below, &key, token).await;
                            drop(turn);
                            if let Some((bytes, digest)) = done {
                                return Ok(place.entry(&local.below, bytes, digest));
                            }
                        }
                        send(inner, place, local, token, large).await
                    }
                    .boxed()
                })
                .buffer_unordered(RELAYED)
                .collect()
                .await
        }
    };
    let mut stored = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(entry) => stored.push(entry),
            Err(Failed::File(reason)) => refused.push(reason),
            Err(Failed::All(error)) => return Err(error),
        }
    }
    stored.sort_by(|one, other| one.path.cmp(&other.path));
    if refused.is_empty() {
        return Ok(stored);
    }
    refused.sort();
    Err(Error::Refused { refused, stored })
}

/// Where files go.
struct Place {
    datastore: DatastoreName,
    key: String,
    prefix: String,
}

impl Place {
    fn entry(&self, below: &str, bytes: u64, digest: Digest) -> ManifestEntry {
        ManifestEntry {
            datastore: self.datastore.clone(),
            key: path::join(&self.key, below),
            path: path::join(&self.prefix, below),
            bytes,
            digest,
        }
    }
}

/// The files below a folder, and what cannot be stored.
struct Walk {
    root: PathBuf,
    /// The path in the datastore that the folder stands for.
    key: String,
    found: Vec<Local>,
    refused: Vec<String>,
    names: HashSet<String>,
    /// Links to folders that lead to where the walk is.
    links: usize,
    /// Names seen below such links.
    linked: usize,
    stop: Stop,
}

impl Walk {
    fn of(from: &Path, key: &str, stop: Stop) -> Result<Self, Error> {
        let failed = |error| Error::io("read", from, error);
        let mut walk = Self {
            root: fs::canonicalize(from).unwrap_or_else(|_| from.to_owned()),
            key: key.to_owned(),
            found: Vec::new(),
            refused: Vec::new(),
            names: HashSet::new(),
            links: 0,
            linked: 0,
            stop,
        };
        let shown = from.file_name().unwrap_or(from.as_os_str()).to_string_lossy().into_owned();
        match fs::symlink_metadata(from) {
            Ok(meta) if meta.is_file() => {
                walk.found.push(Local { path: from.to_owned(), below: String::new() });
            }
            Ok(meta) if meta.is_dir() => {
                let mut above = vec![(meta.dev(), meta.ino())];
                walk.folder(from, "", &mut above)?;
            }
            Ok(meta) if meta.is_symlink() => walk.refused.push(format!(
                "'{shown}' is a symbolic link where a file or folder was to be written: copy the \
                 data instead"
            )),
            Ok(meta) => walk.refused.push(format!("'{shown}' is {}", special(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                walk.refused.push(format!("'{shown}' was not written"));
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(walk)
    }

    fn folder(
        &mut self,
        folder: &Path,
        below: &str,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        if above.len() > MAX_DEPTH {
            self.refused.push(format!("'{below}' lies more than {MAX_DEPTH} folders deep"));
            return Ok(());
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if is_files_own(&error) => {
                self.refused.push(format!("'{below}' cannot be read: {error}"));
                return Ok(());
            }
            Err(error) => return Err(Error::io("read", folder, error)),
        };
        for entry in entries {
            self.stop.check()?;
            if self.links > 0 && !self.one_more() {
                return Ok(());
            }
            let entry = entry.map_err(|error| Error::io("read", folder, error))?;
            let name = path::segment(entry.file_name().as_bytes());
            let below = if below.is_empty() { name } else { format!("{below}/{name}") };
            let path = entry.path();
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_symlink() => self.link(&path, &below, above)?,
                Ok(meta) => self.entry(path, &meta, below, above)?,
                Err(error) => self.refused.push(format!("'{below}' cannot be read: {error}")),
            }
        }
        Ok(())
    }

    /// Whether a further name below a link is taken.
    fn one_more(&mut self) -> bool {
        self.linked += 1;
        if self.linked == LINKED + 1 {
            self.refused.push(format!(
                "its links to folders bring in more than {LINKED} files and folders, and the rest \
                 of them are not stored: have fewer links, or copy what they lead to"
            ));
        }
        self.linked <= LINKED
    }

    /// A file or folder that is no link.
    fn entry(
        &mut self,
        path: PathBuf,
        meta: &Metadata,
        below: String,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        if meta.is_dir() {
            let id = (meta.dev(), meta.ino());
            if above.contains(&id) {
                self.refused.push(format!("'{below}' is a link to a folder that it lies in"));
                return Ok(());
            }
            above.push(id);
            self.folder(&path, &below, above)?;
            above.pop();
        } else if !meta.is_file() {
            self.refused.push(format!("'{below}' is {}", special(meta)));
        } else if let Err(error) = super::path::check(&super::path::join(&self.key, &below)) {
            self.refused.push(error.to_string());
        } else if self.names.insert(below.clone()) {
            self.found.push(Local { path, below });
        } else {
            self.refused.push(format!("'{below}' stands for two files once names are encoded"));
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, below: &str, above: &mut Vec<(u64, u64)>) -> Result<(), Error> {
        let target = fs::read_link(path).unwrap_or_default();
        let target = target.display();
        match fs::canonicalize(path) {
            Ok(real) if real.starts_with(&self.root) => {
                let meta = fs::metadata(&real).map_err(|error| Error::io("read", &real, error))?;
                let links = self.links;
                self.links += usize::from(meta.is_dir());
                self.entry(real, &meta, below.to_owned(), above)?;
                self.links = links;
            }
            Ok(_) => self.refused.push(format!(
                "'{below}' is a symbolic link that leaves the folder ('{target}'): copy the file \
                 instead"
            )),
            Err(error) => self.refused.push(format!(
                "'{below}' is a symbolic link to '{target}', which cannot be read: {error}"
            )),
        }
        Ok(())
    }
}

fn special(meta: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = meta.file_type();
    if kind.is_fifo() {
        "a named pipe, not a file"
    } else if kind.is_socket() {
        "a socket, not a file"
    } else {
        "a device, not a file"
    }
}

/// Whether it is the file's own doing, not the file system's.
fn is_files_own(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound)
}

/// What changes when a file is written to.
fn version(meta: &Metadata) -> (u64, i64, i64) {
    (meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn changed(local: &Local) -> Failed {
    Failed::File(format!("'{}' changed while it was stored", local.shown()))
}

impl Local {
    fn shown(&self) -> String {
        if self.below.is_empty() {
            super::path::segment(self.path.file_name().unwrap_or_default().as_bytes())
        } else {
            self.below.clone()
        }
    }

    fn open(&self) -> Result<(File, Metadata), Failed> {
        let file = match files::open_regular(&self.path) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(changed(self)),
            Err(error) if is_files_own(&error) => {
                let shown = self.shown();
                return Err(Failed::File(format!("'{shown}' cannot be read: {error}")));
            }
            Err(error) => return Err(Error::io("read", &self.path, error).into()),
        };
        let meta = file.metadata().map_err(|error| Error::io("read", &self.path, error))?;
        Ok((file, meta))
    }

    /// All its bytes, as they were at one time, and their digest; `None` if they are many.
    fn read_small(&self) -> Result<Option<(Bytes, Digest)>, Failed> {
        let (mut file, meta) = self.open()?;
        let (first, length) = (version(&meta), meta.len());
        if length > SMALL {
            return Ok(None);
        }
        // One that grows meanwhile is not read to its end.
        let mut bytes = Vec::with_capacity(length as usize + 1);
        (&mut file)
            .take(length + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &self.path, error))?;
        let after = file.metadata().map_err(|error| Error::io("read", &self.path, error))?;
        if version(&after) != first || bytes.len() as u64 != length {
            return Err(changed(self));
        }
        let digest = Digest::of(&bytes);
        Ok(Some((bytes.into(), digest)))
    }
}

/// Sends one file.
async fn send(
    inner: &Inner,
    place: &Place,
    local: Local,
    token: &str,
    large: &Semaphore,
) -> Result<ManifestEntry, Failed> {
    let read = move || Ok((local.read_small(), local));
    let (read, local) = blocking(read).await?;
    match read? {
        Some((bytes, digest)) => send_small(inner, place, &local, bytes, digest, token).await,
        None => {
            let _turn = large.acquire().await;
            send_large(inner, place, local, token).await
        }
    }
}

/// Sends one file through the gateway that was read at once.
async fn send_small(
    inner: &Inner,
    place: &Place,
    local: &Local,
    bytes: Bytes,
    digest: Digest,
    token: &str,
) -> Result<ManifestEntry, Failed> {
    let length = bytes.len() as u64;
    let key = path::join(&place.key, &local.below);
    inner.gateway.put_hashed(place.datastore.as_str(), &key, bytes, digest, token).await?;
    Ok(place.entry(&local.below, length, digest))
}

/// Sends one file as it is read, to the store itself or through the gateway.
async fn send_large(
    inner: &Inner,
    place: &Place,
    local: Local,
    token: &str,
) -> Result<ManifestEntry, Failed> {
    let first = version(&local.open()?.1);
    let length = first.0;
    let key = path::join(&place.key, &local.below);
    if let Some(entry) = write_parts(inner, place, &local, &key, token).await? {
        return Ok(entry);
    }
    // What a failed try says of the file itself goes past the gateway's error.
    let mut of_file = None;
    let sent = inner
        .gateway
        .put(place.datastore.as_str(), &key, length, token, || {
            let file = match local.open() {
                Ok((file, meta)) if version(&meta) == first => file,
                Err(Failed::All(error)) => return Err(error),
                other => {
                    of_file = Some(other.err().unwrap_or_else(|| changed(&local)));
                    return Err(Error::Stopped);
                }
            };
            let after = file.try_clone().map_err(|error| Error::io("read", &local.path, error))?;
            let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
            let hashing = Arc::clone(&hasher);
            use tokio::io::AsyncReadExt as _;
            let reader = tokio::fs::File::from_std(file).take(length);
            let pieces = ReaderStream::with_capacity(reader, READ).map(move |piece| {
                if let Ok(piece) = &piece {
                    hashing.lock().unwrap_or_else(PoisonError::into_inner).update(piece);
                }
                piece
            });
            Ok((Body::wrap_stream(pieces), (hasher, after)))
        })
        .await;
    let ((hasher, after), told) = match (sent, of_file) {
        (_, Some(failed)) => return Err(failed),
        (Err(error), None) => {
            // A file that became shorter breaks its own upload.
            let now = fs::metadata(&local.path);
            return Err(match now {
                Ok(meta) if version(&meta) == first => error.into(),
                _ => changed(&local),
            });
        }
        (Ok(sent), None) => sent,
    };
    let meta = after.metadata().map_err(|error| Error::io("read", &local.path, error))?;
    let hasher = hasher.lock().unwrap_or_else(PoisonError::into_inner);
    if version(&meta) != first || hasher.count() != length {
        return Err(changed(&local));
    }
    let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
    Gateway::same(place.datastore.as_str(), &key, digest, told.digest)?;
    Ok(place.entry(&local.below, length, digest))
}

/// Sends one file to the store itself, if it is large and the store takes it so.
async fn write_parts(
    inner: &Inner,
    place: &Place,
    local: &Local,
    key: &str,
    token: &str,
) -> Result<Option<ManifestEntry>, Failed> {
    let (file, meta) = local.open()?;
    let (file, first) = (Arc::new(file), version(&meta));
    let datastore = place.datastore.as_str();
    let written = inner.gateway.write_parts(datastore, key, &file, first.0, token).await;
    let is_same = || {
        let now = file.metadata().map_err(|error| Error::io("read", &local.path, error))?;
        Ok::<_, Failed>(version(&now) == first)
    };
    match written {
        Ok(None) => Ok(None),
        Ok(Some(written)) if is_same()? => {
            let digest = written.digest;
            let entry = || place.entry(&local.below, first.0, digest);
            Ok(written.complete().await.map(|_| entry()))
        }
        Ok(Some(written)) => {
            written.give_up().await;
            Err(changed(local))
        }
        Err(_) if !is_same()? => Err(changed(local)),
        Err(error) => Err(Error::io("read", &local.path, error).into()),
    }
}

/// Stores files in a folder shared with the daemon: staged side by side, published together.
async fn link_all(
    store: Arc<Store>,
    place: &Place,
    found: Vec<Local>,
) -> Result<Vec<Result<ManifestEntry, Failed>>, Error> {
    let stop = Stop::default();
    let _stop = StopOnDrop(stop.clone());
    let share = found.len().div_ceil(THREADS).max(1);
    let mut rest = found.into_iter();
    let mut threads = Vec::new();
    loop {
        let chunk: Vec<Local> = rest.by_ref().take(share).collect();
        if chunk.is_empty() {
            break;
        }
        let (store, stop) = (Arc::clone(&store), stop.clone());
        threads.push(blocking(move || {
            let stage = |local: Local| match stage(&store, &local, &stop) {
                Err(Failed::All(error)) => Err(error),
                other => Ok((local, other)),
            };
            chunk.into_iter().map(stage).collect::<Result<Vec<_>, Error>>()
        }));
    }
    let mut results = Vec::new();
    let mut staged = Vec::new();
    for (local, result) in futures::future::try_join_all(threads).await?.into_iter().flatten() {
        results.push(result.map(|(file, bytes, digest)| {
            let entry = place.entry(&local.below, bytes, digest);
            staged.push((file, entry.key.clone()));
            entry
        }));
    }
    blocking(move || store.publish(staged)).await?;
    Ok(results)
}

fn stage(store: &Store, local: &Local, stop: &Stop) -> Result<(Staged, u64, Digest), Failed> {
    let (mut file, meta) = local.open()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ.min(meta.len() as usize + 1)];
    loop {
        stop.check()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", &local.path, error).into()),
        }
    }
    let staged = store.stage_file(&file, stop)?;
    let after = file.metadata().map_err(|error| Error::io("read", &local.path, error))?;
    if version(&after) != version(&meta) || hasher.count() != meta.len() {
        return Err(changed(local));
    }
    Ok((staged, meta.len(), Digest::from_bytes(*hasher.finalize().as_bytes())))
}
