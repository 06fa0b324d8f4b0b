//! The content store: objects by digest, below `azureml/content/` of the blob store.

use std::collections::HashSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::content::{self, Digest, MAX_OBJECT};
use atelier_core::layout::BLOB_STORE;
use bytes::Bytes;

use super::folder::{Folder, Staged, blocking};
use super::{Backend, Datastores, Error, ObjectPath};

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
    folder: Folder,
    known: Arc<Mutex<Known>>,
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
        match datastores.get(BLOB_STORE)?.backend {
            Backend::Own(folder) => Ok(Self { folder, known: Arc::default() }),
            Backend::Placed(..) | Backend::Cloud(..) => {
                Err(Error::UnknownDatastore(BLOB_STORE.to_owned()))
            }
        }
    }

    /// Which of these are not stored, in the order given.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Error> {
        let store = self.clone();
        blocking(move || {
            let mut missing = Vec::new();
            for digest in digests {
                if !store.has(&digest)? {
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

    fn has(&self, digest: &Digest) -> Result<bool, Error> {
        if self.known(|known| known.has(digest)) {
            return Ok(true);
        }
        match self.folder.open_now(&place(digest)?) {
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
        let store = self.clone();
        blocking(move || {
            let (mut objects, mut total) = (Vec::new(), 0);
            for digest in digests {
                let bytes = store.read_one(&digest)?;
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

    fn read_one(&self, digest: &Digest) -> Result<Bytes, Error> {
        let path = place(digest)?;
        let opened = match self.folder.open_now(&path) {
            Err(Error::NotFound(_)) => {
                self.known(|known| known.forget(digest));
                return Err(Error::NotFound(format!("content {digest}")));
            }
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
        self.known(|known| known.forget(digest));
        self.folder.delete_now(&path)?;
        tracing::error!(%digest, size, "content object was damaged on disk and is removed");
        Err(Error::Content {
            digest: digest.to_string(),
            why: "it was damaged on disk and is removed now: submit the job again".to_owned(),
        })
    }

    /// Begins to store objects.
    pub fn upload(&self) -> Upload {
        Upload { store: self.clone(), waiting: Waiting::default(), stored: 0 }
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

/// Staged files without a place yet.
#[derive(Debug, Default)]
struct Waiting {
    digests: HashSet<Digest>,
    files: Vec<(Staged, ObjectPath)>,
    bytes: u64,
}

impl Upload {
    /// Takes objects, children before parents.
    ///
    /// # Errors
    /// [`Error::Content`] for an object that does not hash to its digest, is none, or names an object
    /// that is neither stored nor came before. [`Error::Full`] and others.
    pub async fn add(mut self, objects: Vec<(Digest, Bytes)>) -> Result<Self, Error> {
        blocking(move || {
            for (digest, bytes) in objects {
                self.add_one(digest, bytes)?;
            }
            Ok(self)
        })
        .await
    }

    fn add_one(&mut self, digest: Digest, bytes: Bytes) -> Result<(), Error> {
        let refused = |why: String| Err(Error::Content { digest: digest.to_string(), why });
        if bytes.len() > MAX_OBJECT {
            let length = bytes.len();
            return refused(format!("it has {length} bytes, at most {MAX_OBJECT} are allowed"));
        }
        if Digest::of(&bytes) != digest {
            return refused(
                "its bytes do not hash to its digest: it was changed on the way".into(),
            );
        }
        if self.waiting.digests.contains(&digest) || self.store.has(&digest)? {
            return Ok(());
        }
        let children = match content::objects_of(&bytes) {
            Ok(children) => children,
            Err(error) => return refused(error.to_string()),
        };
        for child in &children {
            if !self.waiting.digests.contains(child) && !self.store.has(child)? {
                return refused(format!(
                    "it names {child}, which is not stored: send what an object names before it"
                ));
            }
        }
        let path = place(&digest)?;
        let mut staged = self.store.folder.stage()?;
        self.waiting.bytes += bytes.len() as u64;
        staged.write(&path, &[bytes])?;
        staged.close();
        self.waiting.files.push((staged, path));
        self.waiting.digests.insert(digest);
        if self.waiting.bytes >= STAGED_BYTES || self.waiting.files.len() >= STAGED_FILES {
            self.publish()?;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Error> {
        let waiting = mem::take(&mut self.waiting);
        self.store.folder.publish(waiting.files)?;
        self.stored += waiting.digests.len() as u64;
        self.store.known(|known| waiting.digests.into_iter().for_each(|digest| known.add(digest)));
        Ok(())
    }

    /// Gives what was taken its place; durable when this returns. How many objects were new.
    ///
    /// # Errors
    /// [`Error::Full`] and others.
    pub async fn finish(mut self) -> Result<u64, Error> {
        blocking(move || {
            self.publish()?;
            Ok(self.stored)
        })
        .await
    }
}
