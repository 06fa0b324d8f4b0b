//! Datastores as people make, change, try and delete them.

use std::path::PathBuf;
use std::sync::Arc;

use atelier_core::datastore::{DatastoreRecord, Draft, Existing, Refusal, Registration};
use atelier_core::id::{DatastoreName, JobName, Principal};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::spec::{DataUri, Diagnostics, Input};
use atelier_core::time::Timestamp;
use bytes::Bytes;

use super::handle::{self, Handle};
use crate::storage::{self, Datastore, Datastores, ObjectPath};
use crate::store::{self, SqliteStore, datastores};

/// Makes, changes, tries and deletes datastores. Cheap to clone.
#[derive(Clone)]
pub struct DatastoreChanges {
    store: Arc<SqliteStore>,
    datastores: Datastores,
    handle: Handle,
    /// The daemon's own folder.
    data_dir: PathBuf,
    /// The workspace's id.
    workspace: Arc<str>,
    /// Held while one is changed.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Why a datastore was not made, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of datastores.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it is breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its folder cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The reactor could not be asked.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

/// What was tried of a datastore, and how that went.
#[derive(Debug)]
pub struct Trial {
    /// `list`, `write`, `read` or `delete`.
    pub operation: &'static str,
    /// Why it failed; `None`: it did not.
    pub problem: Option<String>,
}

impl DatastoreChanges {
    /// Takes up what was made before. No folder is looked at: a daemon starts whatever became of them.
    pub(super) fn open(
        store: Arc<SqliteStore>,
        datastores: Datastores,
        handle: Handle,
        data_dir: PathBuf,
        workspace: &str,
    ) -> Result<Self, store::Error> {
        for record in store.read(datastores::all)? {
            datastores.put(record, workspace);
        }
        let (workspace, turn) = (workspace.into(), Arc::default());
        Ok(Self { store, datastores, handle, data_dir, workspace, turn })
    }

    /// Makes a datastore, or finds that the same is there. It is on disk when this returns.
    pub async fn create(
        &self,
        mut draft: Draft,
        by: Principal,
        at: Timestamp,
    ) -> Result<Datastore, Error> {
        draft.check()?;
        let _turn = self.turn.lock().await;
        draft.folder.path = storage::check_place(&draft.folder, &self.data_dir).await?;
        let all = self.datastores.all();
        let known = all.iter().map(|known| match known.record() {
            Some(record) => Existing::Made(record),
            None => Existing::Default(known.name()),
        });
        let name = draft.name.to_string();
        match draft.register(known)? {
            Registration::Known => {}
            Registration::New => {
                self.keep(DatastoreRecord { datastore: draft, created_by: by, created_at: at })
                    .await?;
            }
        }
        Ok(self.datastores.get(&name)?)
    }

    /// Changes what is said of a datastore.
    pub async fn update(&self, mut draft: Draft) -> Result<Datastore, Error> {
        draft.check()?;
        let _turn = self.turn.lock().await;
        let known = self.made(draft.name.as_str())?;
        if draft.folder != known.datastore.folder {
            // It may be written with links in it.
            draft.folder.path = storage::check_place(&draft.folder, &self.data_dir).await?;
        }
        let name = draft.name.to_string();
        self.keep(draft.update(&known)?).await?;
        Ok(self.datastores.get(&name)?)
    }

    /// Forgets a datastore, unless a job that is not over uses it. Its data stays where it is.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let name = self.made(name)?.datastore.name;
        // A job that was checked before is one of the live ones by now.
        let _alone = self.datastores.let_go().await;
        let wanted = name.clone();
        let jobs: Vec<JobName> = self
            .handle
            .look(move |live, _| {
                let users = live.jobs().filter(|job| is_live_user(job, &wanted));
                users.map(|job| job.name.clone()).collect()
            })
            .await?;
        if !jobs.is_empty() {
            return Err(Refusal::InUse { name, jobs }.into());
        }
        let key = name.clone();
        self.store.write(move |conn| datastores::delete(conn, &key)).await?;
        self.datastores.remove(&name);
        Ok(())
    }

    /// Lists, writes, reads and deletes, in this order, as far as it goes.
    pub async fn test(&self, name: &str) -> Result<Vec<Trial>, Error> {
        let datastore = self.find(name)?;
        let mut trials = Vec::new();
        let mut note = |operation, result: Result<(), storage::Error>| {
            let problem = result.err().map(|error| error.to_string());
            trials.push(Trial { operation, problem });
        };
        let listed = datastore.list(None, None, 1).await;
        let first = listed.as_ref().ok().and_then(|page| page.objects.first()).cloned();
        note("list", listed.map(drop));
        let mut random = [0; 8];
        let filled = getrandom::fill(&mut random).map_err(std::io::Error::other);
        filled.map_err(|source| storage::Error::Io {
            operation: "name a file in",
            path: name.to_owned(),
            source,
        })?;
        let probe = format!(".atelier-probe-{:016x}", u64::from_ne_bytes(random));
        let probe = ObjectPath::new(&probe).map_err(storage::Error::from)?;
        let bytes = Bytes::copy_from_slice(&random);
        let written = datastore.put(&probe, bytes.clone()).await.map(drop);
        let is_written = written.is_ok();
        note("write", written);
        if is_written {
            let read = datastore.get(&probe, bytes.len() as u64).await;
            note("read", read.and_then(|read| same(&read, &bytes, &probe)));
            note("delete", datastore.delete(&probe).await);
        } else if let Some(first) = first {
            // It may be meant to be read only.
            note("read", datastore.open(&first.path).await.map(drop));
        }
        Ok(trials)
    }

    /// The datastore with that name.
    pub fn find(&self, name: &str) -> Result<Datastore, Error> {
        self.datastores.get(name).map_err(|_| no_such(name, &self.datastores).into())
    }

    /// What a datastore was made as.
    fn made(&self, name: &str) -> Result<DatastoreRecord, Error> {
        let found = self.find(name)?;
        let record = found.record().cloned();
        record.ok_or_else(|| Refusal::Default(found.name().clone()).into())
    }

    async fn keep(&self, record: DatastoreRecord) -> Result<(), Error> {
        let row = record.clone();
        self.store.write(move |conn| datastores::put(conn, &row)).await?;
        self.datastores.put(record, &self.workspace);
        Ok(())
    }
}

/// That there is no datastore of this name, with the one that is most like it.
pub(super) fn no_such(name: &str, datastores: &Datastores) -> Refusal {
    let known: Vec<DatastoreName> =
        datastores.all().iter().map(|known| known.name().clone()).collect();
    Refusal::no_such(name, &known)
}

fn same(read: &[u8], written: &[u8], path: &ObjectPath) -> Result<(), storage::Error> {
    if read == written {
        return Ok(());
    }
    let source = std::io::Error::other("it has other bytes than were written");
    Err(storage::Error::Io { operation: "read", path: path.to_string(), source })
}

/// Whether a job that is not over reads from the datastore or writes to it.
fn is_live_user(job: &Job, datastore: &DatastoreName) -> bool {
    let reads = job.spec.inputs.values().any(|input| match input {
        Input::Data { uri: DataUri::Datastore { datastore: of, .. }, .. } => of == datastore,
        _ => false,
    });
    let place = |path: &Option<String>| Some(layout::parse_datastore_uri(path.as_deref()?)?.0);
    let writes =
        job.spec.outputs.values().any(|output| place(&output.path).as_ref() == Some(datastore));
    job.ended().is_none() && (reads || writes)
}
