//! Deleting a finished job: its bytes first, then its records, so that a crash in between leaves
//! a job that can be deleted again, never bytes that nobody knows of.

use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::track::RunInfo;

use super::handle::{self, Handle};
use crate::storage::{self, Datastores, ObjectPath};
use crate::store::tracking;
use crate::track::{self, Tracking};

/// Removes finished jobs.
#[derive(Clone)]
pub struct Removal {
    pub(super) datastores: Datastores,
    pub(super) handle: Handle,
    pub(super) tracking: Tracking,
}

/// Why a job was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reactor refused.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The job's runs could not be told.
    #[error(transparent)]
    Tracking(#[from] track::Error),
}

impl Removal {
    /// Deletes logs, metrics, artifacts and outputs at their default place, then the records.
    /// Outputs that the job was told to put elsewhere stay: others may rely on them.
    pub async fn remove(&self, job: &Job) -> Result<(), Error> {
        if job.ended().is_none() {
            return Err(handle::Error::StillLive(job.name.clone()).into());
        }
        // The job's own run and those made within the job.
        let name = job.name.clone();
        let mut runs = self.tracking.read(move |conn| tracking::runs_within(conn, &name)).await?;
        runs.push((&job.name).into());
        for run in runs {
            self.remove_below(layout::ARTIFACT_STORE, &RunInfo::artifact_root(&run)).await?;
        }
        self.remove_below(layout::BLOB_STORE, &layout::outputs_root(&job.name)).await?;
        self.handle.forget(job.name.clone()).await?;
        Ok(())
    }

    async fn remove_below(&self, datastore: &str, folder: &str) -> Result<(), storage::Error> {
        self.datastores.get(datastore)?.delete(&ObjectPath::new(folder)?).await
    }
}
