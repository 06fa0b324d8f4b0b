//! Datastores: named places for objects, and what can be done with them.
//!
//! Today every datastore is a [`Folder`] on the daemon's machine. [`Datastore`] hides which kind it
//! is, so that S3, Azure and Google stores (the concrete types of the `object_store` crate) can
//! stand beside it.
//!
//! The folder is served by code of this crate rather than by `object_store::local`: that one follows
//! symbolic links out of its root, refuses names such as `run#1`, lists in no order and makes each
//! of ten thousand small objects durable on its own.

mod content;
mod folder;
mod path;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use atelier_core::id::DatastoreName;
use atelier_core::layout;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

pub use content::{ContentStore, PREFIX as CONTENT_PREFIX, Upload};
pub use folder::{Folder, STAGING};
pub use path::{InvalidObjectPath, ObjectPath};

/// What may go wrong with an object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No datastore has that name.
    #[error("there is no datastore '{0}'; see 'atelier datastore list'")]
    UnknownDatastore(String),
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

/// What is known of an object without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Its length in bytes.
    pub size: u64,
    /// A quoted text that another content at the same path does not have.
    pub etag: String,
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
}

/// An object opened for reading. Its bytes stay what they are even if another object is stored at
/// its path meanwhile.
pub struct Opened {
    /// What is known of it.
    pub meta: Meta,
    source: folder::OpenFile,
}

impl Opened {
    /// The bytes of `range` (which must lie within the object), in pieces of at most 256 KiB, read
    /// as they are wanted.
    pub fn stream(self, range: std::ops::Range<u64>) -> BoxStream<'static, Result<Bytes, Error>> {
        self.source.stream(range).boxed()
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
    Folder(Folder),
}

impl Datastore {
    /// Its name.
    pub fn name(&self) -> &DatastoreName {
        &self.name
    }

    /// The absolute path of its folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.backend {
            Backend::Folder(folder) => Some(folder.root()),
        }
    }

    /// What is known of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`] and others.
    pub async fn head(&self, path: &ObjectPath) -> Result<Meta, Error> {
        match &self.backend {
            Backend::Folder(folder) => folder.head(path).await,
        }
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`] and others.
    pub async fn open(&self, path: &ObjectPath) -> Result<Opened, Error> {
        match &self.backend {
            Backend::Folder(folder) => folder.open(path).await,
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
        match &self.backend {
            Backend::Folder(folder) => folder.put_stream(path, bytes).await,
        }
    }

    /// At most `limit` objects: those at or below `folder` (all if `None`) whose paths come after
    /// `after`.
    ///
    /// # Errors
    /// Those of the operating system; a folder that does not exist has no objects.
    pub async fn list(
        &self,
        folder: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        match &self.backend {
            Backend::Folder(store) => store.list(folder, after, limit).await,
        }
    }

    /// Removes the object at `path` and all objects below it. Nothing there is no error.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), Error> {
        match &self.backend {
            Backend::Folder(folder) => folder.delete(path).await,
        }
    }
}

/// The workspace's datastores by name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Datastores {
    by_name: Arc<BTreeMap<DatastoreName, Datastore>>,
}

impl Datastores {
    /// Opens the datastores that every workspace has, as folders below `storage`; folders that
    /// do not exist are made. Only one daemon may have them open.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn open_folders(storage: &Path) -> Result<Self, Error> {
        let mut by_name = BTreeMap::new();
        for name in layout::DEFAULT_STORES {
            let name =
                DatastoreName::new(name).map_err(|_| Error::UnknownDatastore(name.to_owned()))?;
            let folder = Folder::new(&storage.join(name.as_str()))?;
            let datastore = Datastore { name: name.clone(), backend: Backend::Folder(folder) };
            by_name.insert(name, datastore);
        }
        Ok(Self { by_name: Arc::new(by_name) })
    }

    /// The datastore with that name.
    ///
    /// # Errors
    /// [`Error::UnknownDatastore`].
    pub fn get(&self, name: &str) -> Result<&Datastore, Error> {
        // Map keys are names; a text that is none is no key either.
        DatastoreName::new(name)
            .ok()
            .and_then(|name| self.by_name.get(&name))
            .ok_or_else(|| Error::UnknownDatastore(name.chars().take(80).collect()))
    }

    /// All, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Datastore> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests;
