//! Opens the place of the workspace's own datastores, which is the one that they were in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atelier_core::datastore::{
    Credentials, FolderSource, Source, StoragePlace, StorageRecord, StorageRefusal, StorageWanted,
};

use super::folder::{self, Folder, random_id};
use crate::config::{StorageFile, StorageFileError};
use crate::storage::{self, Home, Unlock, Whose};
use crate::store::storage::{Role, get, put};
use crate::store::{self, SqliteStore};

/// Why the workspace's own datastores are not opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that says where they lie.
    #[error(transparent)]
    File(#[from] StorageFileError),
    /// They lie elsewhere, or there are no keys.
    #[error(transparent)]
    Refused(#[from] StorageRefusal),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The place.
    #[error("the workspace's data in {location}: {source}")]
    Place {
        /// Where.
        location: String,
        /// What is wrong with it.
        source: storage::Error,
    },
    /// Something is there that is not the workspace's.
    #[error(
        "{location} holds data already ('{object}'): name an empty place, for example with another prefix, or remove it"
    )]
    Occupied {
        /// Where.
        location: String,
        /// What lies there.
        object: String,
    },
    /// It is another workspace's, or the same one's of another time.
    #[error(
        "{0} holds the data of another workspace, or of this one before it was moved elsewhere: name another place"
    )]
    Others(String),
    /// What was there is not.
    #[error(
        "{0} does not hold the workspace's data any more (its 'atelier-storage.json' is missing): see whether it was \
         emptied, or whether the file that --storage names is the right one; restore it from a backup"
    )]
    Unmarked(String),
}

impl Error {
    /// Whether the admin can put it right.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Store(_))
    }
}

/// Where the workspace's own datastores lie, checked against where they were.
#[derive(Debug)]
pub(super) struct WorkspaceStorage {
    pub(super) home: Home,
    pub(super) record: StorageRecord,
    /// The file that says so, which jobs are not to see.
    pub(super) file: Option<PathBuf>,
}

/// A place that a file names, and with what it is reached.
pub(super) struct Configured {
    pub(super) wanted: StorageWanted,
    pub(super) credentials: Credentials,
    pub(super) file: PathBuf,
}

impl Configured {
    /// Reads the file. A folder is looked at; an object store is not asked.
    pub(super) async fn read(file: &Path, folder: &Folder) -> Result<Self, Error> {
        let StorageFile { path: file, source, credentials } =
            StorageFile::read(file, folder.path())?;
        let place = match source {
            Source::Folder(own) if Path::new(&own.path) == folder.at(FOLDER) => {
                StoragePlace::DataFolder
            }
            Source::Folder(source) => elsewhere(source, folder).await?,
            source => StoragePlace::Elsewhere(source),
        };
        let has_keys = credentials.sealed_kind().is_some();
        Ok(Self { wanted: StorageWanted { place, has_keys }, credentials, file })
    }
}

/// Below the data folder.
pub(super) const FOLDER: &str = "storage";

/// A folder that is there, without links.
async fn elsewhere(source: FolderSource, folder: &Folder) -> Result<StoragePlace, Error> {
    let location = source.path.clone();
    let path = storage::check_place(&source, folder.path()).await;
    let path = path.map_err(|source| Error::Place { location, source })?;
    Ok(StoragePlace::Elsewhere(Source::Folder(FolderSource { path, ..source })))
}

/// How a place is opened.
pub(super) fn home(place: &StoragePlace, credentials: Credentials, folder: &Folder) -> Home {
    match place {
        StoragePlace::DataFolder => Home::Folder(folder.at(FOLDER)),
        StoragePlace::Elsewhere(Source::Folder(source)) => Home::Folder((&source.path).into()),
        StoragePlace::Elsewhere(source) => {
            let unlock: Unlock = Arc::new(move || Ok(credentials.clone()));
            Home::Cloud(source.clone(), unlock)
        }
    }
}

impl WorkspaceStorage {
    /// Finds out where the data lies. To be called before the folder becomes a workspace, so that a first start that
    /// was cut short is one again.
    pub(super) async fn find(
        file: Option<&Path>,
        store: &SqliteStore,
        folder: &Folder,
    ) -> Result<Self, Error> {
        let configured = match file {
            Some(file) => Some(Configured::read(file, folder).await?),
            None => None,
        };
        let kept = store.read(|conn| get(conn, Role::Current))?;
        let wanted = configured.as_ref().map(|configured| configured.wanted.clone());
        let record = StorageRecord::open(kept.clone(), wanted, !folder.existed(), random_id()?)?;
        if let (None, StoragePlace::Elsewhere(Source::Folder(source))) =
            (&configured, &record.place)
        {
            elsewhere(source.clone(), folder).await?;
        }
        if let Some(next) = store.read(|conn| get(conn, Role::Next))? {
            let to = next.place.location();
            tracing::warn!(%to, "moving the data was cut short; 'atelier workspace migrate-storage' goes on");
        }
        if kept.as_ref() != Some(&record) {
            let record = record.clone();
            store.write(move |conn| put(conn, Role::Current, &record)).await?;
        }
        let (credentials, file) = match configured {
            Some(configured) => (configured.credentials, Some(configured.file)),
            None => (Credentials::None, None),
        };
        Ok(Self { home: home(&record.place, credentials, folder), record, file })
    }

    /// Sees that the place is the workspace's, or makes it that. One that is away is taken at its word.
    pub(super) async fn settle(
        &mut self,
        store: &SqliteStore,
        folder: &Folder,
    ) -> Result<(), Error> {
        if self.record.place == StoragePlace::DataFolder {
            return Ok(());
        }
        let location = self.home.location();
        let fail = |source| Error::Place { location: location.clone(), source };
        match self.home.whose(&self.record.id).await {
            Ok(Whose::Own) => {}
            Ok(Whose::Nobodys) if self.record.is_settled => return Err(Error::Unmarked(location)),
            Ok(Whose::Nobodys) => take(&self.home, &self.record.id, folder).await?,
            Ok(Whose::Others) => return Err(Error::Others(location)),
            Err(error @ storage::Error::Away { .. }) if self.record.is_settled => {
                tracing::warn!(%location, %error, "the workspace's data is away");
            }
            Err(error) => return Err(fail(error)),
        }
        if !self.record.is_settled {
            self.record.is_settled = true;
            let record = self.record.clone();
            store.write(move |conn| put(conn, Role::Current, &record)).await?;
        }
        Ok(())
    }
}

/// Marks a place that is nobody's, if nothing lies there.
pub(super) async fn take(home: &Home, storage: &str, folder: &Folder) -> Result<(), Error> {
    let location = || home.location();
    let fail = |source| Error::Place { location: location(), source };
    if let Some(object) = home.occupied().await.map_err(fail)? {
        return Err(Error::Occupied { location: location(), object });
    }
    home.mark(folder.workspace().name.as_str(), storage).await.map_err(fail)
}
