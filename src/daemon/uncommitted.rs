//! What jobs have written and not committed is dropped once they are over.
//!
//! A job's end asks for it; what was missed then, because a store was away or the daemon was killed, is found by a
//! sweep, at the daemon's start and every hour.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::datastore::Unnamed;
use atelier_core::id::{DatastoreName, JobName};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::spec::OutputMode;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use crate::storage::{self, Datastore, Datastores, ObjectPath, PAGE};
use crate::store::{self, Store};

/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(3600);

/// Drops it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Uncommitted {
    store: Arc<dyn Store>,
    datastores: Datastores,
    over: mpsc::UnboundedSender<JobName>,
    /// Held by who drops something: a job that was deleted meanwhile may come again under its name.
    turn: Arc<Mutex<()>>,
}

/// Why it could not be dropped.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// Jobs that are over, as they are told.
pub(super) type Over = mpsc::UnboundedReceiver<JobName>;

impl Uncommitted {
    pub(super) fn new(store: Arc<dyn Store>, datastores: Datastores) -> (Self, Over) {
        let (over, told) = mpsc::unbounded_channel();
        (Self { store, datastores, over, turn: Arc::default() }, told)
    }

    /// Says that a job is over.
    pub(super) fn is_over(&self, job: &JobName) {
        // Only a daemon that stops hears no more.
        let _ = self.over.send(job.clone());
    }

    /// Drops what jobs leave, until it is stopped.
    pub(super) async fn run(self, mut over: Over) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.sweep().await,
                job = over.recv() => match job {
                    Some(job) => self.drop_of(&job).await,
                    None => return,
                }
            }
        }
    }

    async fn drop_of(&self, name: &JobName) {
        let dropped = async {
            let _turn = self.turn.lock().await;
            let Some(job) = self.store.job(name)?.filter(|job| job.ended().is_some()) else {
                return Ok(());
            };
            for datastore in written_to(&job) {
                if let Ok(datastore) = self.datastores.get(datastore.as_str()) {
                    drop_in(&datastore.hasty(), name).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = dropped.await {
            tracing::warn!(job = %name, %error, "what a job has not committed is still there; it is tried again in an hour");
        }
    }

    /// Drops all of a finished job that is to be deleted. None of that name begins anew until what is returned is
    /// dropped.
    ///
    /// # Errors
    /// Those of storage, but for a datastore that is there no more.
    pub(super) async fn let_go(&self, job: &Job) -> Result<OwnedMutexGuard<()>, storage::Error> {
        let turn = self.turn.clone().lock_owned().await;
        for datastore in written_to(job) {
            if let Ok(datastore) = self.datastores.get(datastore.as_str()) {
                drop_in(&datastore.hasty(), &job.name).await?;
            }
        }
        Ok(turn)
    }

    async fn sweep(&self) {
        for datastore in self.datastores.all() {
            if datastore.is_read_only() || !datastore.takes_anything_at_its_root() {
                continue;
            }
            if let Err(error) = self.sweep_in(&datastore.hasty()).await {
                let datastore = datastore.name();
                tracing::debug!(%datastore, %error, "cannot look for what jobs have not committed");
            }
        }
    }

    async fn sweep_in(&self, datastore: &Datastore) -> Result<(), Error> {
        let root = ObjectPath::new(layout::UNCOMMITTED).map_err(storage::Error::from)?;
        let mut after: Option<String> = None;
        loop {
            let level = datastore.level(Some(&root), after.as_deref(), PAGE).await?;
            for folder in level.folders {
                let name = folder.as_str().rsplit('/').next().unwrap_or_default();
                let Ok(name) = JobName::new(name) else { continue };
                let _turn = self.turn.lock().await;
                if self.store.job(&name)?.is_none_or(|job| job.ended().is_some()) {
                    note_left(datastore, &folder, &datastore.delete(&folder).await?);
                }
            }
            match level.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

async fn drop_in(datastore: &Datastore, job: &JobName) -> Result<(), storage::Error> {
    if !datastore.takes_anything_at_its_root() {
        return Ok(());
    }
    let root = ObjectPath::new(&layout::uncommitted_root(job))?;
    note_left(datastore, &root, &datastore.delete(&root).await?);
    Ok(())
}

/// Nothing that a job writes has no name: somebody else has put it there.
fn note_left(datastore: &Datastore, folder: &ObjectPath, stays: &Unnamed) {
    if !stays.is_empty() {
        let datastore = datastore.name();
        tracing::warn!(%datastore, %folder, %stays, "not all that was not committed is removed: use the store's own tools");
    }
}

/// The datastores in which a job may have something uncommitted.
fn written_to(job: &Job) -> BTreeSet<DatastoreName> {
    let outputs = job.spec.outputs.values().filter(|output| output.mode == OutputMode::RwMount);
    outputs
        .filter_map(|output| Some(layout::parse_datastore_uri(output.path.as_deref()?)?.0))
        .collect()
}
