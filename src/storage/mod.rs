//! Datastores: named places for objects, and what can be done with them.
//!
//! A datastore is a [`Folder`] on the daemon's machine, of the workspace's own, which are always there, or one that
//! somebody made of a folder or a mount; or it is a place in an object store (`cloud`). [`Datastore`] hides which it
//! is.
//!
//! The folder is served by code of this crate rather than by `object_store::local`: that one follows
//! symbolic links out of its root, refuses names such as `run#1`, lists in no order and makes each
//! of ten thousand small objects durable on its own.

mod cloud;
mod content;
mod folder;
mod home;
mod level;
mod path;
mod placed;
mod signed;
mod uncommitted;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::datastore::{
    DatastoreRecord, FolderSource, PublicBucket, PublicServers, Source, Unnamed,
};
use atelier_core::egress::Egress;
use atelier_core::id::DatastoreName;
use atelier_core::layout;
use atelier_core::time::Timestamp;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

pub(crate) use cloud::PATIENCE as STORE_PATIENCE;
pub use cloud::Unlock;
pub use content::{ContentStore, PREFIX as CONTENT_PREFIX, Upload};
pub use folder::{Folder, STAGING};
pub use home::{Home, Whose};
pub use level::{Level, Part};
pub use path::{InvalidObjectPath, ObjectPath};
pub use signed::{Completed, Signed};
pub use uncommitted::Expected;

use cloud::Cloud;
#[cfg(test)]
pub(crate) use cloud::tests::Server as S3;
use placed::Placed;

/// The most objects of a page for which a store is asked once: as many as S3 tells with one answer.
pub const PAGE: usize = 1000;
/// The same of a store of Azure's kind that cannot be asked to begin after a path: each page goes over what comes before
/// it again. Not more, since a page of small folders takes a request for each.
const LONG_PAGE: usize = 4_999;

/// What may go wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No datastore has that name.
    #[error("there is no datastore '{0}'; see 'atelier datastore list'")]
    UnknownDatastore(String),
    /// A datastore cannot be used as it is now: its folder is gone, its store is not reached or has no such
    /// bucket.
    #[error("datastore '{datastore}' cannot be used: {problem}")]
    Away {
        /// Which.
        datastore: DatastoreName,
        /// Why, and what to do.
        problem: String,
    },
    /// The store of a datastore refuses whoever its credentials are.
    #[error("datastore '{datastore}': cannot {operation}: {problem}")]
    Denied {
        /// Which.
        datastore: DatastoreName,
        /// `read`, `list`, `write` or `delete`.
        operation: &'static str,
        /// Why, and what to do.
        problem: String,
    },
    /// Public storage is not to be read, or not now.
    #[error("cannot {operation} '{place}' without credentials: {problem}")]
    Public {
        /// `read` or `list`.
        operation: &'static str,
        /// Its address.
        place: String,
        /// Why, and what to do.
        problem: String,
        /// Whether another try may succeed.
        passes: bool,
    },
    /// A datastore cannot do this, whoever asks.
    #[error("datastore '{datastore}': {problem}")]
    Unsupported {
        /// Which.
        datastore: DatastoreName,
        /// What, and what can be done.
        problem: String,
    },
    /// Another object has the place of the one that was read.
    #[error("'{0}' was replaced while it was read: read it again")]
    Changed(String),
    /// A folder cannot become a datastore.
    #[error("path: {0}")]
    Unfit(String),
    /// The path is none.
    #[error(transparent)]
    Path(#[from] InvalidObjectPath),
    /// Nothing is stored there.
    #[error("nothing is stored at '{0}'")]
    NotFound(String),
    /// An object where a folder would have to be, or the other way round.
    #[error("'{0}' cannot be stored: an object and a folder would have the same path")]
    Conflict(ObjectPath),
    /// The path leads through a symbolic link, which might leave the datastore.
    #[error("'{0}' leads through a symbolic link, which datastores do not follow")]
    Link(String),
    /// No space is left.
    #[error("no space is left where datastore data is kept: free some space, then try again")]
    Full,
    /// The bytes stopped coming before their end; nothing was stored.
    #[error("the data stopped before its end; nothing was stored")]
    Interrupted(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Longer than the caller can take.
    #[error("'{path}' has {size} bytes, at most {limit} can be read at once")]
    TooLarge {
        /// The object.
        path: ObjectPath,
        /// Its length in bytes.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A content object that is not what its digest says, or names what is not stored.
    #[error("content object {digest} is refused: {why}")]
    Content {
        /// The digest it came with.
        digest: String,
        /// What is wrong.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {operation} '{path}': {source}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object, or the folder.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Says why an object that is all there is not to be seen, if it is not.
pub type Still = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Its length in bytes.
    pub size: u64,
    /// A quoted text that another content at the same path does not have.
    pub etag: String,
    /// When it was stored, as far as its storage knows.
    pub modified: Timestamp,
}

/// An object of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Where it lies.
    pub path: ObjectPath,
    /// What is known of it.
    pub meta: Meta,
}

/// Some objects in ascending order of the bytes of their paths.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The objects.
    pub objects: Vec<Listed>,
    /// Where the next page continues: after this path. `None`: this was the last page.
    pub next: Option<ObjectPath>,
    /// What is there among these that no path names.
    pub unnamed: Unnamed,
}

/// An object opened for reading. If another object is stored at its path meanwhile, its bytes stay what they
/// are, or, in an object store, are an error.
pub struct Opened {
    /// What is known of it.
    pub meta: Meta,
    source: OpenSource,
}

enum OpenSource {
    File(folder::OpenFile),
    Object(cloud::OpenObject),
}

impl Opened {
    /// The bytes of `range` (which must lie within the object), in pieces of at most 256 KiB, read
    /// as they are wanted.
    pub fn stream(self, range: std::ops::Range<u64>) -> BoxStream<'static, Result<Bytes, Error>> {
        match self.source {
            OpenSource::File(file) => file.stream(range).boxed(),
            OpenSource::Object(object) => object.stream(range).boxed(),
        }
    }
}

/// A file of a folder, opened for reading.
struct OpenedFile {
    meta: Meta,
    source: folder::OpenFile,
}

impl From<OpenedFile> for Opened {
    fn from(OpenedFile { meta, source }: OpenedFile) -> Self {
        Self { meta, source: OpenSource::File(source) }
    }
}

/// One datastore. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Datastore {
    name: DatastoreName,
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    /// One that the workspace came with.
    Own(Folder),
    /// One that the workspace came with, in an object store; and where that is.
    OwnCloud(Cloud, Arc<str>),
    /// One that was made of a folder.
    Placed(Placed, Arc<DatastoreRecord>),
    /// One that was made of a place in an object store.
    Cloud(Cloud, Arc<DatastoreRecord>),
    /// A bucket of public storage, which nobody has made a datastore of; and its address.
    Public(Cloud, Arc<str>),
}

/// How a datastore does what it is asked.
enum Served {
    Folder(Folder),
    Cloud(Cloud),
}

impl Datastore {
    /// Its name.
    pub fn name(&self) -> &DatastoreName {
        &self.name
    }

    /// The absolute path of its folder, if it is one of the workspace's own.
    pub fn own_folder(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Own(folder) => Some(folder.root()),
            Backend::OwnCloud(..)
            | Backend::Placed(..)
            | Backend::Cloud(..)
            | Backend::Public(..) => None,
        }
    }

    /// The word for what its data lies in, and where that is.
    pub fn location(&self) -> (&'static str, String) {
        match &self.backend {
            Backend::Own(folder) => ("local", folder.root().display().to_string()),
            Backend::OwnCloud(cloud, location) | Backend::Public(cloud, location) => {
                (cloud.kind(), location.to_string())
            }
            Backend::Placed(_, record) | Backend::Cloud(_, record) => {
                let source = &record.datastore.source;
                (source.kind(), source.location())
            }
        }
    }

    /// The same for somebody who waits for an answer: an object store that is away is given up soon.
    #[must_use]
    pub fn hasty(&self) -> Self {
        let backend = match &self.backend {
            Backend::Cloud(cloud, record) => Backend::Cloud(cloud.hasty(), record.clone()),
            Backend::OwnCloud(cloud, at) => Backend::OwnCloud(cloud.hasty(), at.clone()),
            Backend::Public(cloud, at) => Backend::Public(cloud.hasty(), at.clone()),
            folder => folder.clone(),
        };
        Self { name: self.name.clone(), backend }
    }

    /// Whether nothing can ever be written to it.
    pub fn is_read_only(&self) -> bool {
        match &self.backend {
            Backend::Cloud(cloud, _) => cloud.is_read_only(),
            Backend::Public(..) => true,
            Backend::Own(_) | Backend::OwnCloud(..) | Backend::Placed(..) => false,
        }
    }

    /// Whether where its data lies answers at all.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self) -> Result<(), Error> {
        match self.served().await? {
            Served::Folder(_) => Ok(()),
            Served::Cloud(cloud) => cloud.reach().await,
        }
    }

    /// What it was made as; `None`: the workspace came with it.
    pub fn record(&self) -> Option<&DatastoreRecord> {
        match &self.backend {
            Backend::Own(_) | Backend::OwnCloud(..) | Backend::Public(..) => None,
            Backend::Placed(_, record) | Backend::Cloud(_, record) => Some(record),
        }
    }

    async fn served(&self) -> Result<Served, Error> {
        Ok(match &self.backend {
            Backend::Own(folder) => Served::Folder(folder.clone()),
            Backend::Placed(placed, _) => Served::Folder(placed.folder().await?),
            Backend::OwnCloud(cloud, _) | Backend::Cloud(cloud, _) | Backend::Public(cloud, _) => {
                Served::Cloud(cloud.clone())
            }
        })
    }

    /// What is known of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`] and others.
    pub async fn head(&self, path: &ObjectPath) -> Result<Meta, Error> {
        match self.served().await? {
            Served::Folder(folder) => folder.head(path).await,
            Served::Cloud(cloud) => cloud.head(path).await,
        }
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`] and others.
    pub async fn open(&self, path: &ObjectPath) -> Result<Opened, Error> {
        match self.served().await? {
            Served::Folder(folder) => Ok(folder.open(path).await?.into()),
            Served::Cloud(cloud) => {
                let object = cloud.open(path).await?;
                Ok(Opened { meta: object.meta(), source: OpenSource::Object(object) })
            }
        }
    }

    /// A whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`] and others.
    pub async fn get(&self, path: &ObjectPath, limit: u64) -> Result<Bytes, Error> {
        let opened = self.open(path).await?;
        let size = opened.meta.size;
        if size > limit {
            return Err(Error::TooLarge { path: path.clone(), size, limit });
        }
        let mut all = bytes::BytesMut::with_capacity(size as usize);
        let mut stream = opened.stream(0..size);
        while let Some(piece) = stream.try_next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Stores an object whole or not at all; it replaces the one that was there. Durable when this
    /// returns.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Conflict`] and others.
    pub async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<Meta, Error> {
        let whole = futures::stream::iter([Ok::<_, io::Error>(bytes)]);
        self.put_stream(path, whole).await
    }

    /// As [`Datastore::put`], from pieces. If one is an error, nothing is stored.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Full`], [`Error::Conflict`] and others.
    pub async fn put_stream<S, E>(&self, path: &ObjectPath, bytes: S) -> Result<Meta, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.put_stream_if(path, bytes, Arc::new(|| Ok(()))).await
    }

    /// As [`Datastore::put_stream`], if `still` finds no reason against it once all bytes are stored, right before
    /// the object is seen.
    ///
    /// # Errors
    /// As [`Datastore::put_stream`]; [`Error::Interrupted`] with that reason.
    pub async fn put_stream_if<S, E>(
        &self,
        path: &ObjectPath,
        bytes: S,
        still: Still,
    ) -> Result<Meta, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.served().await? {
            Served::Folder(folder) => folder.put_stream(path, bytes, still).await,
            Served::Cloud(cloud) => cloud.put_stream(path, bytes, &still).await,
        }
    }

    /// How many objects are asked for at a time by who asks for all.
    ///
    /// # Errors
    /// The datastore is away.
    pub async fn page(&self) -> Result<usize, Error> {
        Ok(match self.served().await? {
            Served::Cloud(cloud) if !cloud.is_ordered() => LONG_PAGE,
            _ => PAGE,
        })
    }

    /// At most `limit` objects: those at or below `folder` (all if `None`) whose paths come after
    /// `after`. What jobs have not committed is told only of a folder of it.
    ///
    /// # Errors
    /// Those of the operating system; a folder that does not exist has no objects.
    pub async fn list(
        &self,
        folder: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        Ok(uncommitted::shown(folder, self.list_all(folder, after, limit).await?))
    }

    /// As [`Datastore::list`], with what jobs have not committed: for who takes a datastore as it is.
    ///
    /// # Errors
    /// As [`Datastore::list`].
    pub async fn list_all(
        &self,
        folder: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        match self.served().await? {
            Served::Folder(served) => served.list(folder, after, limit).await,
            Served::Cloud(cloud) => cloud.list(folder, after.unwrap_or_default(), limit).await,
        }
    }

    /// Removes the object at `path` and all objects below it. Nothing there is no error. What stays, since the store
    /// cannot be told to remove it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn delete(&self, path: &ObjectPath) -> Result<Unnamed, Error> {
        match self.served().await? {
            Served::Folder(folder) => folder.delete(path).await.map(|()| Unnamed::default()),
            Served::Cloud(cloud) => cloud.delete(path).await,
        }
    }

    /// Removes the object at `path`, and nothing that may lie below it.
    ///
    /// # Errors
    /// [`Error::NotFound`] and others.
    pub async fn delete_object(&self, path: &ObjectPath) -> Result<(), Error> {
        match self.served().await? {
            Served::Folder(folder) => folder.delete_object(path).await,
            Served::Cloud(cloud) => cloud.delete_object(path).await,
        }
    }
}

/// The workspace's datastores by name. Cheap to clone; all clones know the same.
#[derive(Clone, Debug)]
pub struct Datastores {
    by_name: Arc<RwLock<BTreeMap<DatastoreName, Datastore>>>,
    /// How long requests to object stores are tried again.
    patience: Duration,
    /// Held for reading while a job that names datastores is submitted.
    submissions: Arc<tokio::sync::RwLock<()>>,
    /// How public storage is read; `None`: not at all.
    public: Option<Arc<Public>>,
}

/// Public storage that is read without credentials.
#[derive(Debug)]
struct Public {
    servers: PublicServers,
    /// Where the daemon goes for users.
    egress: Arc<Egress>,
    /// Buckets that were read lately, whose connections stay.
    lately: Mutex<BTreeMap<DatastoreName, Datastore>>,
}

/// Buckets of public storage that are kept at hand.
const LATELY: usize = 64;

impl Datastores {
    /// Opens the datastores that every workspace has, as folders below `storage`; see [`Datastores::open`].
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn open_folders(storage: &Path) -> Result<Self, Error> {
        Self::open(&Home::Folder(storage.to_owned()), cloud::PATIENCE)
    }

    /// Opens the datastores that every workspace has. Folders that do not exist are made; an object store is not
    /// asked. Requests to object stores, also those of datastores that are made, are tried again for as long as
    /// `patience`. Only one daemon may have them open.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn open(home: &Home, patience: Duration) -> Result<Self, Error> {
        let mut by_name = BTreeMap::new();
        for name in layout::DEFAULT_STORES {
            let name =
                DatastoreName::new(name).map_err(|_| Error::UnknownDatastore(name.to_owned()))?;
            by_name.insert(name.clone(), home.datastore(name, patience)?);
        }
        let (by_name, submissions) = (Arc::new(RwLock::new(by_name)), Arc::default());
        Ok(Self { by_name, patience, submissions, public: None })
    }

    /// The same, with buckets of public storage.
    #[must_use]
    pub fn with_public(self, servers: PublicServers, egress: Arc<Egress>) -> Self {
        let public = Public { servers, egress, lately: Mutex::default() };
        Self { public: Some(Arc::new(public)), ..self }
    }

    /// The datastore with that name, or the bucket of public storage for which the name stands: for a job's attempt,
    /// whose inputs say which it may read.
    ///
    /// # Errors
    /// [`Error::UnknownDatastore`], and [`Error::Public`] if such are not read here.
    pub fn get_for_attempt(&self, name: &str) -> Result<Datastore, Error> {
        let (unknown, name) = match (self.get(name), DatastoreName::new(name)) {
            (Err(unknown), Ok(name)) => (unknown, name),
            (found, _) => return found,
        };
        let Some(bucket) = PublicBucket::named(&name) else { return Err(unknown) };
        let address = bucket.address().to_string();
        let Some(public) = &self.public else {
            return Err(Error::Public {
                operation: "read",
                place: address,
                problem:
                    "this workspace reads inputs from datastores only (serve --public-data refuse)"
                        .to_owned(),
                passes: false,
            });
        };
        let mut lately = public.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lately.get(&name) {
            return Ok(known.clone());
        }
        let made = Cloud::public(bucket, &public.servers, public.egress.clone()).ok_or(unknown)?;
        let backend = Backend::Public(made.lasting(self.patience), address.into());
        let made = Datastore { name: name.clone(), backend };
        // What is under way goes on with what it has.
        if lately.len() >= LATELY {
            lately.clear();
        }
        lately.insert(name, made.clone());
        Ok(made)
    }

    /// The datastore with that name.
    ///
    /// # Errors
    /// [`Error::UnknownDatastore`].
    pub fn get(&self, name: &str) -> Result<Datastore, Error> {
        // Map keys are names; a text that is none is no key either.
        let found = DatastoreName::new(name).ok().and_then(|name| self.known().get(&name).cloned());
        found.ok_or_else(|| Error::UnknownDatastore(name.chars().take(80).collect()))
    }

    /// All, in order of their names.
    pub fn all(&self) -> Vec<Datastore> {
        self.known().values().cloned().collect()
    }

    /// Knows a datastore from now on, or what is said of it anew. `workspace` is the id of the one
    /// whose it is. Its folder is looked at, or its credentials are opened by `unlock`, when it is used.
    pub fn put(&self, record: DatastoreRecord, workspace: &str, unlock: Unlock) {
        let name = record.datastore.name.clone();
        let backend = match &record.datastore.source {
            Source::Folder(source) => self.placed(&name, source, workspace, &record),
            // What is under way goes on with the credentials that it began with.
            source => {
                let cloud = Cloud::new(name.clone(), source.clone(), unlock);
                Backend::Cloud(cloud.lasting(self.patience), Arc::new(record))
            }
        };
        let mut known = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.clone(), Datastore { name, backend });
    }

    fn placed(
        &self,
        name: &DatastoreName,
        FolderSource { kind, path }: &FolderSource,
        workspace: &str,
        record: &DatastoreRecord,
    ) -> Backend {
        // Two datastores may be of one folder, also of two workspaces.
        let digest = Digest::of(format!("{workspace}/{name}").as_bytes()).to_string();
        let mark = format!("put-{}-", &digest[..16]);
        let placed = match self.known().get(name).map(|known| &known.backend) {
            // Two would clear away what the other has staged.
            Some(Backend::Placed(placed, _)) if placed.path() == Path::new(path) => placed.clone(),
            _ => Placed::new(name.clone(), *kind, Path::new(path), &mark),
        };
        Backend::Placed(placed, Arc::new(record.clone()))
    }

    /// Knows a datastore no more.
    pub fn remove(&self, name: &DatastoreName) {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Keeps datastores from being deleted, until it is dropped.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        self.submissions.clone().read_owned().await
    }

    /// Waits until nobody holds datastores, and keeps others from it, until it is dropped.
    pub async fn let_go(&self) -> OwnedRwLockWriteGuard<()> {
        self.submissions.clone().write_owned().await
    }

    fn known(&self) -> RwLockReadGuard<'_, BTreeMap<DatastoreName, Datastore>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The path without links of a folder that is to become a datastore; `data_dir` is the daemon's own.
///
/// # Errors
/// [`Error::Unfit`].
pub async fn check_place(source: &FolderSource, data_dir: &Path) -> Result<String, Error> {
    let (FolderSource { kind, path }, data_dir) = (source.clone(), data_dir.to_owned());
    let shown = path.clone();
    let look = folder::blocking(move || {
        placed::check(Path::new(&path), kind, &data_dir).map_err(Error::Unfit)
    });
    let plain = match tokio::time::timeout(placed::PATIENCE, look).await {
        Ok(checked) => checked?,
        Err(_) => {
            let seconds = placed::PATIENCE.as_secs();
            let problem = format!("{shown} has not answered for {seconds} seconds");
            return Err(Error::Unfit(problem));
        }
    };
    let plain = plain.into_os_string().into_string();
    plain.map_err(|_| Error::Unfit(format!("{shown} leads to a path that is no UTF-8")))
}

#[cfg(test)]
mod tests;
