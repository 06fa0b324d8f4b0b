//! Deleting a finished job: its bytes first, then its records, so that a crash in between leaves
//! a job that can be deleted again, never bytes that nobody knows of.

use atelier_core::id::JobName;
use atelier_core::job::Job;
use atelier_core::layout;

use super::handle::{self, Handle};
use crate::storage::{self, Datastores, ObjectPath};

/// Removes finished jobs.
#[derive(Clone)]
pub struct Removal {
    pub(super) datastores: Datastores,
    pub(super) handle: Handle,
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
}

impl Removal {
    /// Deletes logs, metrics, artifacts and outputs at their default place, then the records.
    /// Outputs that the job was told to put elsewhere stay: others may rely on them.
    pub async fn remove(&self, job: &Job) -> Result<(), Error> {
        if job.ended().is_none() {
            return Err(handle::Error::StillLive(job.name.clone()).into());
        }
        self.remove_below(layout::ARTIFACT_STORE, &layout::artifact_root(job.name.as_str()))
            .await?;
        self.remove_below(layout::BLOB_STORE, &default_outputs(&job.name)).await?;
        self.handle.forget(job.name.clone()).await?;
        Ok(())
    }

    async fn remove_below(&self, datastore: &str, folder: &str) -> Result<(), storage::Error> {
        self.datastores.get(datastore)?.delete(&ObjectPath::new(folder)?).await
    }
}

fn default_outputs(job: &JobName) -> String {
    format!("azureml/{job}")
}
