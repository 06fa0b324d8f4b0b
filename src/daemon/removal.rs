//! Deleting a finished job, or an asset with what it is made of. What of it is to go is on disk before its records
//! are gone, so that a crash in between leaves a job that can be deleted again, never bytes that nobody knows of.

use std::sync::Arc;

use atelier_core::access::{Caller, Role};
use atelier_core::asset::Version;
use atelier_core::id::{DatastoreName, InvalidName, JobName};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::retention::overlap;
use atelier_core::spec::DataUri;
use atelier_core::track::RunInfo;

use super::assets::{self, Assets};
use super::handle::{self, Handle};
use super::retention::{self, Retention};
use super::shared::Committed;
use super::uncommitted::Uncommitted;
use crate::storage::{self, Datastores};
use crate::store::retention::Removal as Row;
use crate::store::{Store, tracking};
use crate::track::{self, Tracking};

/// Files of one output outside of the job's own folders that go with it at most: each is named.
const MOST_FILES: usize = 10_000;

/// Removes finished jobs, and what assets are made of.
#[derive(Clone)]
pub struct Removal {
    pub(super) assets: Assets,
    pub(super) datastores: Datastores,
    pub(super) handle: Handle,
    pub(super) tracking: Tracking,
    pub(super) uncommitted: Uncommitted,
    pub(super) retention: Retention,
    pub(super) committed: Arc<Committed>,
    pub(super) store: Arc<dyn Store>,
}

/// What became of the bytes of something that is deleted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// What stays, and why.
    pub kept: Vec<String>,
    /// Not all of it has gone yet: the rest goes in the background.
    pub going: bool,
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
    /// What is to go could not be written down.
    #[error(transparent)]
    Retention(#[from] retention::Error),
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl Removal {
    /// Deletes logs, metrics, artifacts and outputs at their default place, and the records. `with_data`: also
    /// what the job was told to put elsewhere, as far as nobody refers to it.
    pub async fn remove(&self, job: &Job, with_data: bool) -> Result<Removed, Error> {
        if job.ended().is_none() {
            return Err(handle::Error::StillLive(job.name.clone()).into());
        }
        // No job names it and no asset is made of it from now on.
        let alone = (self.datastores.let_go().await, self.assets.let_go().await);
        // The job's own run and those made within the job.
        let name = job.name.clone();
        let mut runs = self.tracking.read(move |conn| tracking::runs_within(conn, &name)).await?;
        runs.push((&job.name).into());
        let roots = runs.iter().map(|run| (layout::ARTIFACT_STORE, RunInfo::artifact_root(run)));
        let roots = roots.chain([(layout::BLOB_STORE, layout::outputs_root(&job.name))]);
        let why = format!("job '{}' is deleted", job.name);
        let mut rows = Vec::new();
        for (datastore, path) in roots {
            self.must_be_free(job, datastore, &path)?;
            rows.push(row(DatastoreName::new(datastore)?, path, &why));
        }
        let mut removed = Removed::default();
        if with_data {
            self.elsewhere(job, &why, &mut rows, &mut removed.kept).await?;
        }
        self.retention.remove(rows).await?;
        crate::failpoint::hit("removal-written");
        let _gone = self.uncommitted.let_go(job).await?;
        self.handle.forget(job.name.clone()).await?;
        drop(alone);
        removed.going = !self.retention.soon().await?;
        Ok(removed)
    }

    /// What a job's manifest names that does not lie in the job's own folders.
    async fn elsewhere(
        &self,
        job: &Job,
        why: &str,
        rows: &mut Vec<Row>,
        kept: &mut Vec<String>,
    ) -> Result<(), Error> {
        let own = layout::outputs_root(&job.name);
        let place = |path: &Option<String>| layout::parse_datastore_uri(path.as_deref()?);
        let places = job.spec.outputs.iter().filter_map(|(name, o)| Some((name, place(&o.path)?)));
        let places: Vec<_> = places
            .filter(|(_, (store, path))| {
                store.as_str() != layout::BLOB_STORE || !overlap(path, &own)
            })
            .collect();
        if places.is_empty() {
            return Ok(());
        }
        let left = job.ended().map(|ended| &ended.left);
        let manifest = match left {
            Some(left) => self.committed.read_all(left).await?,
            None => None,
        };
        for (name, (store, path)) in places {
            let mut keep = |why: String| kept.push(format!("output '{name}': {why}"));
            if let Some(referrer) = self.retention.referrer(&store, &path, Some(&job.name))? {
                keep(referrer.to_string());
                continue;
            }
            let entries = manifest.iter().flat_map(|manifest| &manifest.entries);
            let files: Vec<_> = entries
                .filter(|entry| entry.datastore == store && overlap(&entry.key, &path))
                .map(|entry| row(store.clone(), entry.key.clone(), why))
                .take(MOST_FILES + 1)
                .collect();
            match files.len() {
                0 => keep("its manifest names no file of it".to_owned()),
                1..=MOST_FILES => rows.extend(files),
                _ => keep(format!("it has more than {MOST_FILES} files; see 'atelier fs rm'")),
            }
        }
        Ok(())
    }

    /// Removes what a version that was just deleted is made of, unless somebody refers to it, or it is not the
    /// caller's to remove. The caller of this holds datastores, so that no job names it meanwhile.
    pub async fn remove_data(&self, version: &Version, caller: &Caller) -> Result<Removed, Error> {
        let _alone = self.assets.let_go().await;
        let (store, path) = match &version.uri {
            DataUri::Datastore { datastore, path } => (datastore, path.trim_end_matches('/')),
            _ => return Ok(kept("it lies outside of the workspace's datastores".to_owned())),
        };
        if let Some(why) = self.not_to_remove(version, store, path, caller)? {
            return Ok(kept(why));
        }
        if let Some(referrer) = self.retention.referrer(store, path, None)? {
            return Ok(kept(referrer.to_string()));
        }
        let why = format!("{} '{}:{}' is deleted", version.kind(), version.name, version.version);
        self.retention.remove(vec![row(store.clone(), path.to_owned(), &why)]).await?;
        Ok(Removed::default())
    }

    /// Why what a version is made of is not removed with it, whoever refers to it.
    fn not_to_remove(
        &self,
        version: &Version,
        store: &DatastoreName,
        path: &str,
        caller: &Caller,
    ) -> Result<Option<String>, Error> {
        if let Some(made_by) = &version.made_by
            && self.store.job(&made_by.job).map_err(assets::Error::from)?.is_some()
        {
            let job = &made_by.job;
            return Ok(Some(format!(
                "job '{job}' wrote it; 'atelier job delete {job}' removes it"
            )));
        }
        let content = format!("{}/{}", layout::OUTPUTS, layout::CONTENT);
        let is_own = overlap(path, &layout::uploads_root(&caller.principal))
            && path.starts_with(&layout::uploads_root(&caller.principal));
        Ok(if path.is_empty() {
            Some("it is a whole datastore".to_owned())
        } else if store.as_str() == layout::BLOB_STORE && overlap(path, &content) {
            Some("the code of jobs lies there".to_owned())
        } else if layout::is_kept(store, path) && !is_own && caller.role != Role::Admin {
            Some("only an admin removes what lies there".to_owned())
        } else if self.datastores.get(store.as_str())?.is_read_only() {
            Some(format!("datastore '{store}' can only be read"))
        } else {
            None
        })
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
}

fn row(datastore: DatastoreName, path: String, why: &str) -> Row {
    Row { seq: 0, datastore, path, except: Vec::new(), why: why.to_owned() }
}

fn kept(why: String) -> Removed {
    Removed { kept: vec![why], going: false }
}
