//! A job's inputs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atelier_core::content::Digest;
use atelier_core::datastore::Unnamed;
use atelier_core::spec::{DataKind, DataUri, Input, InputMode};
use atelier_proto::agent::v1 as pb;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::sync::{OnceCell, OwnedMutexGuard, Semaphore};

use super::cache::{Cache, Kind, Pin, write_draft};
use super::direct::Wanted;
use super::error::blocking;
use super::files::{self, Stop, StopOnDrop};
use super::held::Moved;
use super::mount::{Mounted, partial};
use super::overlay::{self, Overlay};
use super::room::{DIRECT, LARGE, SMALL};
use super::store::{Found, Store};
use super::transfer::Second;
use super::{Error, Inner, marks, mltable, path, web};

/// Objects whose addresses are asked for together.
const BATCH: usize = 200;
/// Threads that link or copy in a shared folder.
const THREADS: usize = 4;

/// What an input must be, by its declared type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    File,
    Folder,
    Either,
}

fn shape(kind: DataKind) -> (Shape, &'static str) {
    match kind {
        DataKind::UriFile => (Shape::File, "uri_file"),
        DataKind::UriFolder => (Shape::Folder, "uri_folder"),
        DataKind::MlTable => (Shape::Folder, "mltable"),
        DataKind::MlflowModel => (Shape::Folder, "mlflow_model"),
        DataKind::CustomModel => (Shape::Either, "custom_model"),
        DataKind::TritonModel => (Shape::Folder, "triton_model"),
    }
}

/// An input that is available, or will be once it is mounted.
#[derive(Debug)]
pub(crate) struct Given {
    /// What replaces `${{inputs.NAME}}`.
    pub(crate) text: String,
    /// What is to be mounted before the job starts.
    pub(crate) mounted: Option<Mounted>,
    /// Of an input of a datastore, as far as it is not mounted: how much it is, and how much was fetched.
    pub(crate) moved: Moved,
}

impl From<String> for Given {
    fn from(text: String) -> Self {
        Self { text, mounted: None, moved: Moved::default() }
    }
}

/// Where inputs go on the node, each under its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    /// The attempt's folder of inputs.
    pub(crate) inputs: &'a Path,
    /// Where they are mounted, if they can be.
    pub(crate) mounts: Option<&'a Path>,
    /// Where those that the job may change lie before they are merged with its changes ([`overlay`]), if they can be.
    pub(crate) overlays: Option<&'a Path>,
}

/// What becomes of the files of an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They have a further name, and nobody changes them.
    Linked,
    /// The job has copies.
    Copied,
    /// They have a further name, over which the job's changes lie.
    Laid,
}

/// See [`super::DataPlane::input`].
pub(super) async fn provide(
    inner: &Inner,
    name: &str,
    input: &Input,
    grant: Option<&pb::InputGrant>,
    token: &str,
    places: Places<'_>,
) -> Result<Given, Error> {
    let (kind, mode, uri, address) = match input {
        Input::Literal { value } => return Ok(value.clone().into()),
        Input::Unset => return Ok(String::new().into()),
        Input::Data { kind, mode, uri, address, .. } => (*kind, *mode, uri, address.as_deref()),
    };
    path::check(name)?;
    let evaluated = matches!(mode, InputMode::EvalMount | InputMode::EvalDownload);
    if evaluated && kind != DataKind::MlTable {
        let problem = "only inputs of type mltable can be evaluated: use ro_mount or download";
        return Err(Error::Unsupported { name: name.to_owned(), problem: problem.to_owned() });
    }
    let own_copy = matches!(mode, InputMode::Download | InputMode::EvalDownload);
    let folder = places.inputs.join(name);
    let source = grant.and_then(|grant| grant.source.as_ref());
    let at = match source {
        None => return Err(Error::NoGrant(format!("input '{name}'"))),
        Some(pb::input_grant::Source::Url(url)) if mode == InputMode::Direct => {
            return Ok(url.clone().into());
        }
        Some(pb::input_grant::Source::Url(url)) => {
            let (shape, kind) = shape(kind);
            if shape == Shape::Folder {
                return Err(Error::File { name: name.into(), kind, uri: web::shown(url) });
            }
            empty_folder(&folder).await?;
            let file = web::fetch(inner, name, url, address, &folder, own_copy).await?;
            return Ok(file.to_string_lossy().into_owned().into());
        }
        Some(pb::input_grant::Source::Store(at)) => at,
    };
    let uri = match uri {
        // The datastore's name stands for public storage, and is nothing to people.
        DataUri::Cloud(address) => address.clone(),
        _ => format!("azureml://datastores/{}/paths/{}", at.datastore, at.path),
    };
    if mode == InputMode::Direct {
        return Ok(uri.into());
    }
    let key = path::place(&at.path)?.to_owned();
    let (store, fetched) = (inner.store(at).await?, AtomicU64::new(0));
    let mut place = Place { inner, at, key: &key, token, store, fetched, is_kept: true };
    let (found, unnamed) = place.list().await?;
    let mut found = marks::without(found);
    let is_file = matches!(found.as_slice(), [only] if only.below.is_empty());
    match (shape(kind), is_file) {
        ((Shape::File, _), true) => {}
        // It would be less than what the job is to read, and nobody would see that.
        _ if !unnamed.is_empty() => return Err(lacking(name, &uri, &unnamed)),
        _ if found.is_empty() => return Err(Error::Missing { name: name.into(), uri }),
        ((Shape::File, kind), false) => {
            return Err(Error::Folder { name: name.into(), kind, uri });
        }
        ((Shape::Folder, kind), true) => return Err(Error::File { name: name.into(), kind, uri }),
        _ => {}
    }
    if evaluated {
        let table = place.text(name, &found, mltable::FILE).await?;
        found = mltable::select(name, &table, found)?;
    }
    place.note(&found).await;
    let bytes = found.iter().map(|object| object.size).sum();
    place.is_kept = bytes <= inner.cache.limit();
    let mounts = places.mounts.filter(|_| place.store.is_none() && !own_copy);
    let overlays = places.overlays.filter(|_| place.store.is_none() && own_copy);
    let (folder, mounted) = match mounts {
        Some(mounts) => {
            let (name, datastore, key) = (name.to_owned(), at.datastore.clone(), key.clone());
            (mounts.join(&name), Some(Mounted { name, datastore, key, found }))
        }
        None => {
            empty_folder(&folder).await?;
            match overlays {
                Some(overlays) => {
                    let (overlays, name) = (overlays.to_owned(), name.to_owned());
                    let made = blocking(move || Overlay::make(&overlays, &name)).await?;
                    place.give(&made.lower(), found, Way::Laid).await?;
                }
                None if own_copy => place.give(&folder, found, Way::Copied).await?,
                None => place.give(&folder, found, Way::Linked).await?,
            }
            (folder, None)
        }
    };
    // A file keeps its name: programs look at its ending.
    let result = if is_file { folder.join(path::file_name(&key)) } else { folder };
    let moved = Moved { bytes, fetched: place.fetched.into_inner() };
    Ok(Given { text: result.to_string_lossy().into_owned(), mounted, moved })
}

fn lacking(name: &str, uri: &str, unnamed: &Unnamed) -> Error {
    let problem = format!(
        "{uri} has {unnamed}, and the job would lack that: rename or remove it with the store's own tools, or name \
         another folder"
    );
    Error::Unsupported { name: name.to_owned(), problem }
}

/// What names an object's content in the cache.
pub(super) fn object_id(store: &str, key: &str, size: u64, etag: &str) -> Digest {
    Digest::of(format!("datastore\n{store}\n{key}\n{etag}\n{size}").as_bytes())
}

/// Makes the folder, empty. An earlier try may have left something.
async fn empty_folder(folder: &Path) -> Result<(), Error> {
    let folder = folder.to_owned();
    blocking(move || {
        files::remove_any(&folder)?;
        fs::create_dir_all(&folder).map_err(|error| Error::io("create the folder", &folder, error))
    })
    .await
}

/// Objects that are asked for together, once one of them is read.
struct Batch {
    keys: Vec<String>,
    prepared: OnceCell<()>,
}

impl Batch {
    fn of(key: &str, objects: &[Found]) -> Self {
        let keys = objects.iter().map(|object| path::join(key, &object.below)).collect();
        Self { keys, prepared: OnceCell::new() }
    }
}

/// Where an input lies.
struct Place<'a> {
    inner: &'a Inner,
    at: &'a pb::StorePath,
    key: &'a str,
    token: &'a str,
    store: Option<Arc<Store>>,
    /// Bytes that came through the gateway.
    fetched: AtomicU64,
    /// Whether the cache can keep all that is given.
    is_kept: bool,
}

impl Place<'_> {
    async fn list(&self) -> Result<(Vec<Found>, Unnamed), Error> {
        match &self.store {
            Some(store) => {
                let (store, key) = (Arc::clone(store), self.key.to_owned());
                Ok((blocking(move || store.list(&key)).await?, Unnamed::default()))
            }
            None => self.inner.gateway.list(&self.at.datastore, self.key, self.token).await,
        }
    }

    /// Has the node know what lies in its cache, of what goes there.
    async fn note(&self, found: &[Found]) {
        if self.store.is_some() {
            return;
        }
        let (held, found) = (Arc::clone(&self.inner.held), found.to_vec());
        let (datastore, key) = (self.at.datastore.clone(), self.key.to_owned());
        let noted = blocking(move || held.note(&datastore, &key, &found)).await;
        if let Err(error) = noted {
            // The next job with this input may be sent elsewhere.
            tracing::warn!(%error, "what the cache holds of an input is not told");
        }
    }

    /// A small text file of the input.
    async fn text(&self, name: &str, found: &[Found], file: &str) -> Result<String, Error> {
        const MOST: u64 = 1 << 20;
        let unsupported = |problem: String| Error::Unsupported { name: name.to_owned(), problem };
        let Some(object) = found.iter().find(|object| object.below == file) else {
            return Err(unsupported(format!("there is no file '{file}' in the folder")));
        };
        if object.size > MOST {
            return Err(unsupported(format!("its file '{file}' is larger than 1 MiB")));
        }
        let read = |path: &Path| fs::read(path).map_err(|error| Error::io("read", path, error));
        let bytes = match &self.store {
            Some(store) => read(&store.place(&path::join(self.key, file)))?,
            None => match self.look(object, move |path, _| read(path)).await? {
                Ok(bytes) => bytes,
                Err((turn, done)) => self.fetch(object, None, None, turn, done).await?,
            },
        };
        String::from_utf8(bytes).map_err(|_| unsupported(format!("its file '{file}' is no UTF-8")))
    }

    /// Puts the objects into an empty folder.
    async fn give(&self, folder: &Path, found: Vec<Found>, way: Way) -> Result<(), Error> {
        let target = |object: &Found| match object.below.as_str() {
            "" => folder.join(path::file_name(self.key)),
            below => folder.join(below),
        };
        let folders: BTreeSet<PathBuf> =
            found.iter().filter_map(|object| Some(target(object).parent()?.to_owned())).collect();
        blocking(move || {
            folders.iter().try_for_each(|folder| {
                fs::create_dir_all(folder)
                    .map_err(|error| Error::io("create the folder", folder, error))
            })
        })
        .await?;
        let Some(store) = &self.store else {
            let batches: Vec<Batch> =
                found.chunks(BATCH).map(|objects| Batch::of(self.key, objects)).collect();
            let (batches, large) = (&batches, &Semaphore::new(LARGE));
            return futures::stream::iter(found.into_iter().enumerate())
                .map(|(number, object)| {
                    let (to, batch) = (target(&object), batches.get(number / BATCH));
                    let give = async move {
                        let _turn = match object.size {
                            ..=SMALL => None,
                            _ => large.acquire().await.ok(),
                        };
                        self.give_one(&object, &to, way, batch).await
                    };
                    give.boxed()
                })
                .buffer_unordered(DIRECT)
                .try_collect()
                .await;
        };
        let work: Vec<(PathBuf, PathBuf)> = found
            .iter()
            .map(|object| (store.place(&path::join(self.key, &object.below)), target(object)))
            .collect();
        let stop = Stop::default();
        let _stop = StopOnDrop(stop.clone());
        let share = work.len().div_ceil(THREADS).max(1);
        let threads = work.chunks(share).map(|chunk| {
            let (chunk, stop) = (chunk.to_vec(), stop.clone());
            blocking(move || {
                chunk.iter().try_for_each(|(from, to)| {
                    stop.check()?;
                    match way {
                        Way::Linked => files::link_read_only(from, to),
                        // What others may write is not laid under anything.
                        Way::Copied | Way::Laid => files::copy(from, to, &stop),
                    }
                })
            })
        });
        futures::future::try_join_all(threads).await.map(|_| ())
    }

    async fn give_one(
        &self,
        object: &Found,
        to: &Path,
        way: Way,
        batch: Option<&Batch>,
    ) -> Result<(), Error> {
        let (to, stop) = (to.to_owned(), Stop::default());
        let _stop = StopOnDrop(stop.clone());
        let second = (way == Way::Copied).then(|| Second { path: to.clone(), stop: stop.clone() });
        let (place, stop_reading) = (to.clone(), stop.clone());
        let give = move |from: &Path, came: Came| {
            // The folder may be another try's by now.
            stop.check()?;
            match (way, came) {
                (Way::Linked, _) => files::link_cached(from, &to),
                (Way::Laid, _) => overlay::link(from, &to, &stop),
                (Way::Copied, Came::Twice) => Ok(()),
                (Way::Copied, Came::Bytes(bytes)) if bytes.len() as u64 <= files::SMALL => {
                    files::write_new(&to, &bytes, 0o644).map(drop)
                }
                (Way::Copied, Came::Bytes(_) | Came::Cached) => files::copy(from, &to, &stop),
            }
        };
        let (turn, give) = match self.look(object, give).await? {
            Ok(()) => return Ok(()),
            Err(missed) => missed,
        };
        // What would fill much of the cache, alone or with the rest of it, goes straight to its place.
        let share = if way == Way::Copied { 8 } else { 2 };
        if !self.is_kept || object.size > self.inner.cache.limit() / share {
            drop(turn);
            return self.read(object, place, stop_reading, batch).await;
        }
        self.fetch(object, batch, second, turn, give).await
    }

    /// Reads the object into a new file.
    async fn read(
        &self,
        object: &Found,
        to: PathBuf,
        stop: Stop,
        batch: Option<&Batch>,
    ) -> Result<(), Error> {
        let key = path::join(self.key, &object.below);
        let wanted = self.wanted(object, &key, batch).await;
        self.fetched.fetch_add(object.size, Ordering::Relaxed);
        if object.size > SMALL {
            return self.inner.gateway.get(&wanted, object.size, &to).await;
        }
        let bytes = self.inner.gateway.bytes(&wanted, object.size).await?;
        blocking(move || {
            stop.check()?;
            files::write_new(&to, &bytes, 0o644).map(drop)
        })
        .await
    }

    /// What is asked for. The address of one of a batch is at hand from then on.
    async fn wanted<'a>(
        &'a self,
        object: &'a Found,
        key: &'a str,
        batch: Option<&Batch>,
    ) -> Wanted<'a> {
        let (datastore, token) = (&*self.at.datastore, self.token);
        if let Some(batch) = batch {
            let prepare = || self.inner.gateway.prepare(datastore, &batch.keys, token);
            batch.prepared.get_or_init(prepare).await;
        }
        Wanted { datastore, key, etag: &object.etag, token }
    }

    /// Does something with the object in the node's cache, on a thread that may wait, if it is there; it stays there
    /// meanwhile. That it is listed for this attempt is its right to read it. If it is not there, it is the caller's turn to
    /// fetch it.
    async fn look<
        T: Send + 'static,
        D: FnOnce(&Path, Came) -> Result<T, Error> + Send + 'static,
    >(
        &self,
        object: &Found,
        done: D,
    ) -> Result<Result<T, (Turn, D)>, Error> {
        let (id, size) = (self.id(object), object.size);
        // Who asks for the same meanwhile waits for the bytes, and not for what is done with them afterwards.
        let turn = self.inner.flights.of(id).lock_owned().await;
        let cache = Arc::clone(&self.inner.cache);
        blocking(move || match find(&cache, id, size) {
            Some((path, _pin)) => {
                drop(turn);
                done(&path, Came::Cached).map(Ok)
            }
            None => Ok(Err((turn, done))),
        })
        .await
    }

    fn id(&self, object: &Found) -> Digest {
        let key = path::join(self.key, &object.below);
        object_id(&self.at.datastore, &key, object.size, &object.etag)
    }

    /// Reads the object from the gateway into the cache, and does something with it there.
    async fn fetch<T: Send + 'static>(
        &self,
        object: &Found,
        batch: Option<&Batch>,
        second: Option<Second>,
        turn: Turn,
        done: impl FnOnce(&Path, Came) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (id, size) = (self.id(object), object.size);
        let key = path::join(self.key, &object.below);
        let draft = self.inner.cache.draft();
        let wanted = self.wanted(object, &key, batch).await;
        let gateway = &self.inner.gateway;
        let came = match size {
            // Its file is made and filled in one go below.
            ..=SMALL => Came::Bytes(gateway.bytes(&wanted, size).await?),
            _ => match gateway.get_with(&wanted, size, &draft.path, second).await? {
                true => Came::Twice,
                false => Came::Cached,
            },
        };
        self.fetched.fetch_add(size, Ordering::Relaxed);
        let cache = Arc::clone(&self.inner.cache);
        blocking(move || {
            if let Came::Bytes(bytes) = &came {
                write_draft(&draft, bytes)?;
            }
            let (path, _pin) = cache.keep(draft, Kind::Files, id)?;
            drop(turn);
            done(&path, came)
        })
        .await
    }
}

/// Whoever has it fetches an object, and others wait.
type Turn = OwnedMutexGuard<()>;

/// How an object of the cache came there.
enum Came {
    /// As these bytes, just now.
    Bytes(Bytes),
    /// Just now, and into the second file at the same time.
    Twice,
    /// It lies there, and the second file is yet to be made.
    Cached,
}

/// An object that the cache has whole.
fn find(cache: &Arc<Cache>, id: Digest, size: u64) -> Option<(PathBuf, Pin)> {
    // A job may have read all of it from where it was mounted.
    let is_whole = || partial::finish(cache, id, size).unwrap_or(false);
    let hit =
        cache.get(Kind::Files, id).or_else(|| is_whole().then(|| cache.get(Kind::Files, id))?);
    // One that was on its way to the disk when the machine lost its power may be shorter.
    let fits = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.len() == size);
    match hit {
        Some((path, _pin)) if !fits(&path) => {
            cache.discard(Kind::Files, id);
            None
        }
        hit => hit,
    }
}
