//! Moves the workspace's own datastores to another place, while no daemon runs.
//!
//! Nodes and people store at any time, so a daemon would have to write to both places and to say which of them an
//! object is read from. Without one the data stands still, and there is one instant, a transaction, before which it is
//! all at the old place and after which it is all at the new one.
//!
//! What was copied is noted with the tag of what it was copied from. Cut short, a move goes on from there, whatever a
//! daemon has stored and removed at the old place meanwhile.

mod copying;

use std::path::{Path, PathBuf};

use atelier_core::datastore::{StoragePlace, StorageRecord, StorageRefusal, Unnamed};
use atelier_core::id::{DatastoreName, JobName, WorkspaceName};
use atelier_core::job::State;
use atelier_core::layout;
use atelier_core::retention::overlap;
use atelier_core::time::Timestamp;

use self::copying::Copying;
use self::copying::Error as CopyError;
pub use self::copying::Progress;
use super::folder::{self, Folder, random_id};
use super::storage::{self as place, Configured, WorkspaceStorage, home, take};
use super::uploads::give_up;
use crate::storage::{self, Datastores, Home, STORE_PATIENCE, Whose};
use crate::store::storage::{Role, forget_copies, get, put, switch};
use crate::store::{self, SqliteStore, Store as _, parts};

/// Why the data was not moved. It lies where it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no workspace.
    #[error("there is no workspace in {0}; name its data folder with --data-dir")]
    NoWorkspace(String),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// One of the places.
    #[error(transparent)]
    Place(#[from] place::Error),
    /// The new place's or the old one's datastores cannot be opened.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Not all was copied.
    #[error("{0}; run the command again to go on from here")]
    Copy(#[from] CopyError),
    /// Nothing says with what the data is reached.
    #[error(
        "the workspace's data lies in {0}, which is reached with keys: give the file that has them with --from FILE"
    )]
    NoKeys(String),
    /// A mount is missing, or no daemon has ever run.
    #[error(
        "{0} is not there: see whether what lies there is mounted; of a workspace that was never started there is \
         nothing to move"
    )]
    NoData(String),
    /// One would be moved into itself.
    #[error("{to} and {from}, where the data lies, are one within the other: name another place")]
    Within {
        /// The old place.
        from: String,
        /// The new one.
        to: String,
    },
    /// Nodes would store at the old place what they have begun.
    #[error(
        "jobs are running ({}): start the daemon, and wait for them or cancel them first; queued jobs may stay",
        .0.iter().map(JobName::as_str).collect::<Vec<_>>().join(", ")
    )]
    Running(Vec<JobName>),
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] atelier_core::id::InvalidName),
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Move {
    /// The workspace's.
    pub data_dir: PathBuf,
    /// The file that the daemon was started with, if it has keys.
    pub from: Option<PathBuf>,
    /// The file that says where the data is to lie.
    pub to: PathBuf,
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Where the data was; it is still there. `None`: it was at the new place already.
    pub from: Option<String>,
    /// Where it is.
    pub to: String,
    /// Objects that the datastores have.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was not moved of which datastore, since no path names it.
    pub stays: Vec<(DatastoreName, Unnamed)>,
    /// Whether the daemon needs the file to reach it.
    pub has_keys: bool,
}

/// Uploads that are looked at at once.
const PAGE: u32 = 100;
/// How many running jobs are told of.
const SHOWN: usize = 5;

/// Moves the data; `note` is told how far it has come.
///
/// # Errors
/// [`Error`]: the workspace works where it did.
pub async fn move_storage(
    Move { data_dir, from, to }: Move,
    now: Timestamp,
    note: &(dyn Fn(Progress) + Sync),
) -> Result<Moved, Error> {
    if !data_dir.join("workspace.json").exists() {
        return Err(Error::NoWorkspace(data_dir.display().to_string()));
    }
    let folder = Folder::open(&data_dir, &WorkspaceName::new("local")?, now)?;
    let store = SqliteStore::open(&folder.at("atelier.db"), true)?;
    let to = Configured::read(&to, &folder).await?;
    let has_keys = to.wanted.has_keys;
    if let Some(kept) = store.read(|conn| get(conn, Role::Current))?
        && kept.is_settled
        && kept.place.is(&to.wanted.place)
    {
        let to = shown(&kept.place, &folder);
        return Ok(Moved { from: None, to, objects: 0, bytes: 0, stays: Vec::new(), has_keys });
    }
    nothing_runs(&store)?;
    let old = find(from.as_deref(), &store, &folder).await?;
    must_be_apart(&old, &to.wanted.place, &folder)?;
    let record = begin(&store, &to).await?;
    let new = home(&record.place, to.credentials, &folder);
    claim(&new, &record, &store, &folder).await?;

    let (from, into) =
        (Datastores::open(&old.home, STORE_PATIENCE)?, Datastores::open(&new, STORE_PATIENCE)?);
    give_up_uploads(&store, &from).await?;
    let copying = Copying::new(&store, note);
    let (total, stays) = copying.measure(&from.all()).await?;
    for name in layout::DEFAULT_STORES {
        copying.copy_all(&from.get(name)?, &into.get(name)?).await?;
    }
    crate::failpoint::hit("storage-copied");
    let record = StorageRecord { is_settled: true, ..record };
    store.write(move |conn| switch(conn, &record)).await?;
    crate::failpoint::hit("storage-switched");
    if let Err(error) = store.checkpoint() {
        tracing::warn!(%error, "the database keeps its log");
    }
    let (from, to) = (Some(old.home.location()), new.location());
    Ok(Moved { from, to, objects: total.objects, bytes: total.bytes, stays, has_keys })
}

fn shown(place: &StoragePlace, folder: &Folder) -> String {
    match place {
        StoragePlace::DataFolder => folder.at(place::FOLDER).display().to_string(),
        elsewhere => elsewhere.location(),
    }
}

fn nothing_runs(store: &SqliteStore) -> Result<(), Error> {
    let live = store.recover()?.jobs;
    let running = live.into_iter().filter(|job| matches!(job.state, State::Active(_)));
    let running: Vec<JobName> = running.map(|job| job.name).take(SHOWN).collect();
    if running.is_empty() { Ok(()) } else { Err(Error::Running(running)) }
}

/// What attempts that are over have left unfinished at the old place is nothing that the new one knows of.
async fn give_up_uploads(store: &SqliteStore, from: &Datastores) -> Result<(), Error> {
    let mut after = String::new();
    loop {
        let page = store.read(|conn| parts::page(conn, &after, PAGE))?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.id);
        for upload in page.into_iter().filter(|upload| from.get(upload.datastore.as_str()).is_ok())
        {
            if let Err(error) = give_up(from, &upload).await {
                tracing::warn!(%error, "an upload is left to the store's own rules");
            }
            store.write(move |conn| parts::end(conn, &upload.id)).await?;
        }
    }
}

/// Where the data lies.
async fn find(
    from: Option<&Path>,
    store: &SqliteStore,
    folder: &Folder,
) -> Result<WorkspaceStorage, Error> {
    let mut old = match WorkspaceStorage::find(from, store, folder).await {
        Err(place::Error::Refused(StorageRefusal::NoKeys(at))) => return Err(Error::NoKeys(at)),
        found => found?,
    };
    old.settle(store, folder).await?;
    let blobs = folder.at(place::FOLDER).join(layout::BLOB_STORE);
    if old.record.place == StoragePlace::DataFolder && !blobs.is_dir() {
        return Err(Error::NoData(blobs.display().to_string()));
    }
    Ok(old)
}

fn must_be_apart(old: &WorkspaceStorage, new: &StoragePlace, folder: &Folder) -> Result<(), Error> {
    let (from, to) = (old.home.location(), shown(new, folder));
    if overlap(&from, &to) { Err(Error::Within { from, to }) } else { Ok(()) }
}

/// Notes where the data goes, unless a move to there was cut short, which goes on.
async fn begin(store: &SqliteStore, to: &Configured) -> Result<StorageRecord, Error> {
    let wanted = to.wanted.clone();
    let begun = store.read(|conn| get(conn, Role::Next))?;
    let begun = begun.filter(|begun| begun.place.is(&wanted.place));
    let is_new = begun.is_none();
    let id = match begun {
        Some(begun) => begun.id,
        None => random_id()?,
    };
    let (place, has_keys) = (wanted.place, wanted.has_keys);
    let record = StorageRecord { place, id, has_keys, is_settled: false };
    let kept = record.clone();
    let write = move |conn: &_| {
        if is_new {
            forget_copies(conn)?;
        }
        put(conn, Role::Next, &kept)
    };
    store.write(write).await?;
    Ok(record)
}

/// Marks the new place, which must be empty, or sees that a move that was cut short has.
async fn claim(
    new: &Home,
    record: &StorageRecord,
    store: &SqliteStore,
    folder: &Folder,
) -> Result<(), Error> {
    let fail = |source| place::Error::Place { location: new.location(), source };
    match new.whose(&record.id).await.map_err(fail)? {
        Whose::Own => Ok(()),
        // Whatever was copied there is gone.
        Whose::Nobodys => {
            store.write(forget_copies).await?;
            Ok(take(new, &record.id, folder).await?)
        }
        Whose::Others => Err(place::Error::Others(new.location()).into()),
    }
}
