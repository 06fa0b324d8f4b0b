//! Deleting a finished job: its bytes first, then its records, so that a crash in between leaves
//! a job that can be deleted again, never bytes that nobody knows of.

use atelier_core::id::JobName;
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::track::RunInfo;

use super::assets::{self, Assets};
use super::handle::{self, Handle};
use super::uncommitted::Uncommitted;
use crate::storage::{self, Datastores, ObjectPath};
use crate::store::tracking;
use crate::track::{self, Tracking};

/// Removes finished jobs.
#[derive(Clone)]
pub struct Removal {
    pub(super) assets: Assets,
    pub(super) datastores: Datastores,
    pub(super) handle: Handle,
    pub(super) tracking: Tracking,
    pub(super) uncommitted: Uncommitted,
}

/// Why a job was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reactor refused.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
    /// Assets lie in what it wrote.
    #[error("job '{job}' wrote what became {assets}; delete that first (atelier {command} delete)")]
    Kept {
        /// The job.
        job: JobName,
        /// Some of the assets, as `NAME:VERSION`.
        assets: String,
        /// By which command they are deleted.
        command: &'static str,
    },
    /// The assets could not be told.
    #[error(transparent)]
    Assets(#[from] assets::Error),
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
        // None is made of it from now on.
        let _alone = self.assets.let_go().await;
        // The job's own run and those made within the job.
        let name = job.name.clone();
        let mut runs = self.tracking.read(move |conn| tracking::runs_within(conn, &name)).await?;
        runs.push((&job.name).into());
        for run in &runs {
            self.must_be_free(job, layout::ARTIFACT_STORE, &RunInfo::artifact_root(run))?;
        }
        self.must_be_free(job, layout::BLOB_STORE, &layout::outputs_root(&job.name))?;
        for run in runs {
            self.remove_below(layout::ARTIFACT_STORE, &RunInfo::artifact_root(&run)).await?;
        }
        self.remove_below(layout::BLOB_STORE, &layout::outputs_root(&job.name)).await?;
        let _gone = self.uncommitted.let_go(job).await?;
        self.handle.forget(job.name.clone()).await?;
        Ok(())
    }

    /// That no asset lies in what is to be removed.
    fn must_be_free(&self, job: &Job, datastore: &str, folder: &str) -> Result<(), Error> {
        let kept = self.assets.below(datastore, folder)?;
        let Some(first) = kept.first() else { return Ok(()) };
        let all =
            kept.iter().map(|asset| format!("{} '{}:{}'", asset.kind(), asset.name, asset.version));
        Err(Error::Kept {
            job: job.name.clone(),
            assets: all.collect::<Vec<_>>().join(", "),
            command: first.kind().word(),
        })
    }

    async fn remove_below(&self, datastore: &str, folder: &str) -> Result<(), storage::Error> {
        self.datastores.get(datastore)?.delete(&ObjectPath::new(folder)?).await
    }
}
