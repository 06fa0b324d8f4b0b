//! The content store: objects by digest, below `azureml/content/` of the blob store.

mod cloud;

use std::collections::HashSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::content::{self, Digest, MAX_OBJECT};
use atelier_core::layout::BLOB_STORE;
use bytes::Bytes;

use super::folder::{Folder, Staged, blocking};
use super::{Backend, Datastore, Datastores, Error, ObjectPath};

/// Where content objects lie in their datastore.
pub const PREFIX: &str = "azureml/content";

/// How many digests each of the two generations of [`Known`] holds: about 2 MiB each.
const KNOWN: usize = 32 * 1024;
/// How much is staged before it gets its place.
const STAGED_BYTES: u64 = 128 * 1024 * 1024;
/// How many files are staged before they get their places.
const STAGED_FILES: usize = 4096;

/// Content objects by digest. Cheap to clone.
///
/// **Invariant:** an object has its place only after all objects that it names, so a directory that
/// is there stands for everything below it.
#[derive(Clone, Debug)]
pub struct ContentStore {
    objects: Objects,
    known: Arc<Mutex<Known>>,
}

/// Where the objects are: each needs what only it can do to store many at once.
#[derive(Clone, Debug)]
enum Objects {
    Folder(Folder),
    Cloud(Datastore),
}

/// Digests that were seen lately. Objects are never deleted under a running daemon, so what was
/// there is there.
#[derive(Debug, Default)]
struct Known {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Known {
    fn has(&mut self, digest: &Digest) -> bool {
        if self.young.contains(digest) {
            return true;
        }
        let found = self.old.contains(digest);
        if found {
            self.add(*digest);
        }
        found
    }

    fn add(&mut self, digest: Digest) {
        if self.young.len() >= KNOWN {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest);
    }

    fn forget(&mut self, digest: &Digest) {
        self.young.remove(digest);
        self.old.remove(digest);
    }
}

/// The place of an object.
fn place(digest: &Digest) -> Result<ObjectPath, Error> {
    let name = digest.to_string();
    Ok(ObjectPath::new(&format!("{PREFIX}/{}/{name}", &name[..2]))?)
}

impl ContentStore {
    /// The content store of these datastores.
    ///
    /// # Errors
    /// If there is no blob store.
    pub fn new(datastores: &Datastores) -> Result<Self, Error> {
        let store = datastores.get(BLOB_STORE)?;
        let objects = match &store.backend {
            Backend::Own(folder) => Objects::Folder(folder.clone()),
            Backend::OwnCloud(..) => Objects::Cloud(store),
            Backend::Placed(..) | Backend::Cloud(..) | Backend::Public(..) => {
                return Err(Error::UnknownDatastore(BLOB_STORE.to_owned()));
            }
        };
        Ok(Self { objects, known: Arc::default() })
    }

    /// Which of these are not stored, in the order given.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Error> {
        let folder = match &self.objects {
            Objects::Folder(folder) => folder.clone(),
            Objects::Cloud(store) => return self.missing_in(store, digests).await,
        };
        let store = self.clone();
        blocking(move || {
            let mut missing = Vec::new();
            for digest in digests {
                if !store.has(&folder, &digest)? {
                    missing.push(digest);
                }
            }
            Ok(missing)
        })
        .await
    }

    fn known<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has(&self, folder: &Folder, digest: &Digest) -> Result<bool, Error> {
        if self.known(|known| known.has(digest)) {
            return Ok(true);
        }
        match folder.open_now(&place(digest)?) {
            Ok(_) => {
                self.known(|known| known.add(*digest));
                Ok(true)
            }
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads objects from the front of `digests` until they have `enough` bytes or end; at least
    /// one. Each is checked against its digest.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the digest. [`Error::Content`] for an object that is damaged: it is
    /// removed, so that it can be stored again.
    pub async fn read(
        &self,
        digests: Vec<Digest>,
        enough: usize,
    ) -> Result<Vec<(Digest, Bytes)>, Error> {
        let folder = match &self.objects {
            Objects::Folder(folder) => folder.clone(),
            Objects::Cloud(store) => return self.read_in(store, digests, enough).await,
        };
        let store = self.clone();
        blocking(move || {
            let (mut objects, mut total) = (Vec::new(), 0);
            for digest in digests {
                let bytes = store.read_one(&folder, &digest)?;
                total += bytes.len();
                objects.push((digest, bytes));
                if total >= enough {
                    break;
                }
            }
            Ok(objects)
        })
        .await
    }

    fn read_one(&self, folder: &Folder, digest: &Digest) -> Result<Bytes, Error> {
        let path = place(digest)?;
        let opened = match folder.open_now(&path) {
            Err(Error::NotFound(_)) => return Err(self.lost(digest)),
            other => other?,
        };
        let size = opened.meta.size;
        let bytes = match size <= MAX_OBJECT as u64 {
            true => opened.source.read(0, size)?,
            false => Bytes::new(),
        };
        if Digest::of(&bytes) == *digest {
            return Ok(bytes);
        }
        let damaged = self.damaged(digest, size);
        folder.delete_now(&path)?;
        Err(damaged)
    }

    /// That an object is not there.
    fn lost(&self, digest: &Digest) -> Error {
        self.known(|known| known.forget(digest));
        Error::NotFound(format!("content {digest}"))
    }

    /// That an object is not what was stored; whoever asks removes it.
    fn damaged(&self, digest: &Digest, size: u64) -> Error {
        self.known(|known| known.forget(digest));
        tracing::error!(%digest, size, "content object was damaged in storage and is removed");
        Error::Content {
            digest: digest.to_string(),
            why: "it was damaged in storage and is removed now: submit the job again".to_owned(),
        }
    }

    /// Begins to store objects.
    pub fn upload(&self) -> Upload {
        let waiting = match &self.objects {
            Objects::Folder(folder) => Waiting::Folder(folder.clone(), Staging::default()),
            Objects::Cloud(store) => Waiting::Cloud(store.clone(), cloud::Waiting::default()),
        };
        Upload { store: self.clone(), waiting, stored: 0 }
    }
}

/// Objects on their way into the store. Nothing of them is promised before [`Upload::finish`]
/// returns; what is dropped before is left out or kept, object by object.
#[derive(Debug)]
pub struct Upload {
    store: ContentStore,
    waiting: Waiting,
    stored: u64,
}

/// What has no place yet.
#[derive(Debug)]
enum Waiting {
    Folder(Folder, Staging),
    Cloud(Datastore, cloud::Waiting),
}

/// Staged files without a place yet.
#[derive(Debug, Default)]
struct Staging {
    digests: HashSet<Digest>,
    files: Vec<(Staged, ObjectPath)>,
    bytes: u64,
}

/// The objects that one names, if it is one.
fn check(digest: Digest, bytes: &[u8]) -> Result<Vec<Digest>, Error> {
    let refused = |why: String| Error::Content { digest: digest.to_string(), why };
    if bytes.len() > MAX_OBJECT {
        let length = bytes.len();
        return Err(refused(format!("it has {length} bytes, at most {MAX_OBJECT} are allowed")));
    }
    if Digest::of(bytes) != digest {
        return Err(refused(
            "its bytes do not hash to its digest: it was changed on the way".to_owned(),
        ));
    }
    content::objects_of(bytes).map_err(|error| refused(error.to_string()))
}

/// That an object names one that is not there.
fn dangling(digest: Digest, child: &Digest) -> Error {
    let why = format!("it names {child}, which is not stored: send what an object names before it");
    Error::Content { digest: digest.to_string(), why }
}

impl Upload {
    /// Takes objects, children before parents.
    ///
    /// # Errors
    /// [`Error::Content`] for an object that does not hash to its digest, is none, or names an object
    /// that is neither stored nor came before. [`Error::Full`] and others.
    pub async fn add(mut self, objects: Vec<(Digest, Bytes)>) -> Result<Self, Error> {
        if let Waiting::Cloud(store, waiting) = &mut self.waiting {
            self.stored += self.store.add_in(store, waiting, objects).await?;
            return Ok(self);
        }
        blocking(move || {
            for (digest, bytes) in objects {
                self.add_one(digest, bytes)?;
            }
            Ok(self)
        })
        .await
    }

    fn add_one(&mut self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        let Waiting::Folder(folder, staging) = &mut self.waiting else { return Ok(()) };
        let children = check(digest, &bytes)?;
        if staging.digests.contains(&digest) || self.store.has(folder, &digest)? {
            return Ok(());
        }
        for child in &children {
            if !staging.digests.contains(child) && !self.store.has(folder, child)? {
                return Err(dangling(digest, child));
            }
        }
        let path = place(&digest)?;
        let mut staged = folder.stage()?;
        staging.bytes += bytes.len() as u64;
        staged.write(&path, &[bytes])?;
        staged.close();
        staging.files.push((staged, path));
        staging.digests.insert(digest);
        if staging.bytes >= STAGED_BYTES || staging.files.len() >= STAGED_FILES {
            self.publish()?;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Error> {
        let Waiting::Folder(folder, staging) = &mut self.waiting else { return Ok(()) };
        let staging = mem::take(staging);
        folder.publish(staging.files)?;
        self.stored += staging.digests.len() as u64;
        self.store.known(|known| staging.digests.into_iter().for_each(|digest| known.add(digest)));
        Ok(())
    }

    /// Gives what was taken its place; durable when this returns. How many objects were new.
    ///
    /// # Errors
    /// [`Error::Full`] and others.
    pub async fn finish(mut self) -> Result<u64, Error> {
        if let Waiting::Cloud(store, waiting) = &mut self.waiting {
            return Ok(self.stored + self.store.publish_in(store, waiting).await?);
        }
        blocking(move || {
            self.publish()?;
            Ok(self.stored)
        })
        .await
    }
}
