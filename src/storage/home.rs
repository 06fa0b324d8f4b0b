//! Where the workspace's own datastores lie: a folder, or a place in an object store. What it is marked with.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use atelier_core::datastore::Source;
use atelier_core::id::DatastoreName;
use atelier_core::layout;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cloud::{Cloud, Unlock};
use super::{Backend, Datastore, Error, Folder, ObjectPath};

/// What errors call the place itself, of which the datastores are folders.
const NAME: &str = "workspacestorage";
/// The object that says whose the place is. No datastore has it.
const MARK: &str = "atelier-storage.json";
/// More bytes than a mark has.
const MAX_MARK: u64 = 64 << 10;

/// Where the workspace's own datastores lie, each in a folder of its name.
#[derive(Clone)]
pub enum Home {
    /// In this folder.
    Folder(PathBuf),
    /// In an object store.
    Cloud(Source, Unlock),
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Home({})", self.location())
    }
}

/// What a place is marked with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Mark {
    /// The workspace's name, for people.
    workspace: String,
    /// Of which storage; see [`atelier_core::datastore::StorageRecord::id`].
    storage: String,
}

/// Whose a place is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// It has the mark that was asked for.
    Own,
    /// It has no mark.
    Nobodys,
    /// It has another mark.
    Others,
}

impl Home {
    /// Where that is, in one line.
    pub fn location(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Cloud(source, _) => source.location(),
        }
    }

    /// One of the datastores, whose requests to an object store are tried again for as long as `patience`.
    pub(super) fn datastore(
        &self,
        name: DatastoreName,
        patience: Duration,
    ) -> Result<Datastore, Error> {
        let backend = match self {
            Self::Folder(folder) => Backend::Own(Folder::new(&folder.join(name.as_str()))?),
            Self::Cloud(source, unlock) => {
                let (own, at) = (name.clone(), format!("{}/{name}", source.location()));
                let cloud = Cloud::own(own, source.clone(), Some(name.as_str()), unlock.clone());
                Backend::OwnCloud(cloud.lasting(patience), at.into())
            }
        };
        Ok(Datastore { name, backend })
    }

    /// The place as a whole, for somebody who waits.
    fn root(&self) -> Result<Datastore, Error> {
        let name =
            DatastoreName::new(NAME).map_err(|_| Error::UnknownDatastore(NAME.to_owned()))?;
        let backend = match self {
            Self::Folder(folder) => Backend::Own(Folder::new(folder)?),
            Self::Cloud(source, unlock) => {
                let root = Cloud::own(name.clone(), source.clone(), None, unlock.clone());
                Backend::OwnCloud(root.hasty(), source.location().into())
            }
        };
        Ok(Datastore { name, backend })
    }

    /// Whether the place is marked as the storage of this id.
    ///
    /// # Errors
    /// If it is away, or refuses.
    pub async fn whose(&self, storage: &str) -> Result<Whose, Error> {
        let read = self.root()?.get(&ObjectPath::new(MARK)?, MAX_MARK).await;
        match read {
            Ok(bytes) => Ok(match serde_json::from_slice::<Mark>(&bytes) {
                Ok(mark) if mark.storage == storage => Whose::Own,
                _ => Whose::Others,
            }),
            Err(Error::NotFound(_)) => Ok(Whose::Nobodys),
            Err(error) => Err(error),
        }
    }

    /// Marks the place.
    ///
    /// # Errors
    /// If it is away, or refuses.
    pub async fn mark(&self, workspace: &str, storage: &str) -> Result<(), Error> {
        let mark = Mark { workspace: workspace.to_owned(), storage: storage.to_owned() };
        let bytes = serde_json::to_vec_pretty(&mark).unwrap_or_default();
        self.root()?.put(&ObjectPath::new(MARK)?, Bytes::from(bytes)).await.map(drop)
    }

    /// An object that lies where the datastores will, if there is one.
    ///
    /// # Errors
    /// If the place is away, or refuses.
    pub async fn occupied(&self) -> Result<Option<String>, Error> {
        let root = self.root()?;
        for store in layout::DEFAULT_STORES {
            let page = root.list(Some(&ObjectPath::new(store)?), None, 1).await?;
            if let Some(first) = page.objects.first() {
                return Ok(Some(first.path.to_string()));
            }
            if let Some(first) = page.unnamed.examples.into_iter().next() {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }
}
