//! Deleting a finished job, or an asset with what it is made of. What of it is to go is on disk before its records
//! are gone, so that a crash in between leaves a job that can be deleted again, never bytes that nobody knows of.

use std::sync::Arc;

use atelier_core::access::{Caller, Permission};
use atelier_core::asset::Version;
use atelier_core::audit::Actor;
use atelier_core::content::manifest::Manifest;
use atelier_core::id::{DatastoreName, InvalidName, JobName};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::retention::{Referrer, overlap};
use atelier_core::spec::DataUri;
use atelier_core::track::RunInfo;

use super::assets::{self, Assets};
use super::handle::{self, Handle};
use super::retention::{self, Retention};
use super::shared::Committed;
use super::uncommitted::Uncommitted;
use crate::identity::Asking;
use crate::storage::{self, Datastores};
use crate::store::retention::{LivePlaces, Removal as Row};
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
    /// Another one reads what it wrote, or writes there.
    #[error(
        "what job '{job}' wrote is in use: {user}; wait for it or cancel it first (atelier job cancel)"
    )]
    Used {
        /// The job.
        job: JobName,
        /// Who uses it.
        user: Referrer,
    },
    /// An asset could not be told of, or deleted.
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
    pub async fn remove(&self, job: &Job, with_data: bool, by: Actor) -> Result<Removed, Error> {
        if job.ended().is_none() {
            return Err(handle::Error::StillLive(job.name.clone()).into());
        }
        // Stores are asked before anybody has to wait.
        let elsewhere = if with_data { elsewhere(job) } else { Vec::new() };
        let manifest = if elsewhere.is_empty() { None } else { self.manifest(job).await? };
        let gone = self.uncommitted.let_go(job).await?;
        // No job names it and no asset is made of it from now on.
        let alone = (self.datastores.let_go().await, self.assets.let_go().await);
        // Somebody else may have deleted it meanwhile, and another one may have its name.
        let known = self.store.job(&job.name).map_err(assets::Error::from)?;
        if known.is_none_or(|known| known.seq != job.seq) {
            return Err(handle::Error::NoSuchJob(job.name.to_string()).into());
        }
        // The job's own run and those made within the job.
        let name = job.name.clone();
        let mut runs = self.tracking.read(move |conn| tracking::runs_within(conn, &name)).await?;
        runs.push((&job.name).into());
        let roots = runs.iter().map(|run| (layout::ARTIFACT_STORE, RunInfo::artifact_root(run)));
        let roots = roots.chain([(layout::BLOB_STORE, layout::outputs_root(&job.name))]);
        let why = format!("job '{}' is deleted", job.name);
        let (live, mut rows) = (self.retention.live_places()?, Vec::<Row>::new());
        for (datastore, path) in roots {
            let datastore = DatastoreName::new(datastore)?;
            self.must_be_free(job, &datastore, &path, &live)?;
            rows.push(row(datastore, path, &why));
        }
        let mut removed = Removed::default();
        for place in elsewhere {
            let name = place.output.clone();
            match self.files_at(job, place, manifest.as_deref(), &why)? {
                Ok(files) => rows.extend(files),
                Err(why) => removed.kept.push(format!("output '{name}': {why}")),
            }
        }
        let places: Vec<_> =
            rows.iter().map(|row| (row.datastore.clone(), row.path.clone())).collect();
        self.retention.remove(rows).await?;
        crate::failpoint::hit("removal-written");
        self.handle.forget(job.name.clone(), by).await?;
        drop((alone, gone));
        removed.going = !self.retention.soon().await?;
        removed.kept.extend(places.iter().filter_map(|(datastore, path)| {
            let left = self.retention.left(datastore, path)?;
            Some(format!("of {}: {left}", layout::datastore_uri(datastore.as_str(), path)))
        }));
        Ok(removed)
    }

    /// What a job committed; `None`: nothing, or it has gone already, as a daemon that was killed left it.
    async fn manifest(&self, job: &Job) -> Result<Option<Arc<Manifest>>, Error> {
        let Some(ended) = job.ended() else { return Ok(None) };
        match self.committed.read_all(&ended.left).await {
            Err(storage::Error::NotFound(_)) => Ok(None),
            read => Ok(read?),
        }
    }

    /// What a job's manifest names at a place that is not in the job's own folders; or why it stays.
    fn files_at(
        &self,
        job: &Job,
        Elsewhere { datastore, path, .. }: Elsewhere,
        manifest: Option<&Manifest>,
        why: &str,
    ) -> Result<Result<Vec<Row>, String>, Error> {
        if let Some(referrer) = self.retention.referrer(&datastore, &path, Some(&job.name))? {
            return Ok(Err(referrer.to_string()));
        }
        let entries = manifest.iter().flat_map(|manifest| &manifest.entries);
        let files: Vec<_> = entries
            .filter(|entry| entry.datastore == datastore && overlap(&entry.key, &path))
            .map(|entry| row(datastore.clone(), entry.key.clone(), why))
            .take(MOST_FILES + 1)
            .collect();
        Ok(match files.len() {
            0 => Err("its manifest names no file of it".to_owned()),
            1..=MOST_FILES => Ok(files),
            _ => Err(format!("it has more than {MOST_FILES} files; see 'atelier fs rm'")),
        })
    }

    /// Forgets a version, and has go what it is made of, unless somebody refers to that, or it is not the caller's
    /// to remove: why it stays. The caller of this holds datastores, so that no job names it meanwhile.
    pub async fn delete_asset(
        &self,
        version: &Version,
        asking: &Asking,
    ) -> Result<(Version, Option<String>), Error> {
        let _alone = self.assets.let_go().await;
        let (data, stays) = match self.data_of(version, asking)? {
            Ok(data) => (Some(data), None),
            Err(stays) => (None, Some(stays)),
        };
        let (deleted, referrer) = self.assets.delete(version, data, asking.actor()).await?;
        self.retention.wake();
        Ok((deleted, stays.or_else(|| referrer.map(|referrer| referrer.to_string()))))
    }

    /// What a version is made of, if the caller may remove it; else why not.
    fn data_of(&self, version: &Version, caller: &Caller) -> Result<Result<Row, String>, Error> {
        let (store, path) = match &version.uri {
            DataUri::Datastore { datastore, path } => (datastore, path.trim_end_matches('/')),
            _ => return Ok(Err("it lies outside of the workspace's datastores".to_owned())),
        };
        if let Some(why) = self.not_to_remove(version, store, path, caller)? {
            return Ok(Err(why));
        }
        let why = format!("{} '{}:{}' is deleted", version.kind(), version.name, version.version);
        Ok(Ok(row(store.clone(), path.to_owned(), &why)))
    }

    /// Why what a version is made of is not removed with it, whoever refers to it.
    fn not_to_remove(
        &self,
        version: &Version,
        store: &DatastoreName,
        path: &str,
        caller: &Caller,
    ) -> Result<Option<String>, Error> {
        let made_by = version.made_by.as_ref().map(|made_by| made_by.job.clone());
        let lies_with =
            layout::job_of_artifact(path).filter(|_| store.as_str() == layout::ARTIFACT_STORE);
        for job in made_by.into_iter().chain(lies_with) {
            if self.store.job(&job).map_err(assets::Error::from)?.is_some() {
                return Ok(Some(format!(
                    "job '{job}' wrote it; 'atelier job delete {job}' removes it"
                )));
            }
        }
        let content = format!("{}/{}", layout::OUTPUTS, layout::CONTENT);
        let is_own = overlap(path, &layout::uploads_root(&caller.principal))
            && path.starts_with(&layout::uploads_root(&caller.principal));
        Ok(if path.is_empty() {
            Some("it is a whole datastore".to_owned())
        } else if store.as_str() == layout::BLOB_STORE && overlap(path, &content) {
            Some("the code of jobs lies there".to_owned())
        } else if store.as_str() == layout::ARTIFACT_STORE && path == layout::RUNS {
            Some("the artifacts of jobs lie there".to_owned())
        } else if store.as_str() == layout::ARTIFACT_STORE && overlap(path, layout::MODELS) {
            Some("logged models lie there, which are deleted through MLflow".to_owned())
        } else if layout::is_kept(store, path) && !is_own && !caller.may(Permission::ChangeAny) {
            Some("only an admin removes what lies there".to_owned())
        } else if self.datastores.get(store.as_str())?.is_read_only() {
            Some(format!("datastore '{store}' can only be read"))
        } else {
            None
        })
    }

    /// That no asset lies in what is to be removed, and that no job uses it.
    fn must_be_free(
        &self,
        job: &Job,
        datastore: &DatastoreName,
        folder: &str,
        live: &LivePlaces,
    ) -> Result<(), Error> {
        let kept = self.assets.below(datastore.as_str(), folder)?;
        if let Some(first) = kept.first() {
            let all = kept
                .iter()
                .map(|asset| format!("{} '{}:{}'", asset.kind(), asset.name, asset.version));
            return Err(Error::Kept {
                job: job.name.clone(),
                assets: all.collect::<Vec<_>>().join(", "),
                command: first.kind().word(),
            });
        }
        match live.user_of(datastore, folder) {
            Some(user) => {
                let user = Referrer::LiveJob(user.clone());
                Err(Error::Used { job: job.name.clone(), user })
            }
            None => Ok(()),
        }
    }
}

/// Where an output lies that does not lie in its job's own folders.
struct Elsewhere {
    output: String,
    datastore: DatastoreName,
    path: String,
}

fn elsewhere(job: &Job) -> Vec<Elsewhere> {
    let own = layout::outputs_root(&job.name);
    let places = job.spec.outputs.iter().filter_map(|(name, output)| {
        let (datastore, path) = layout::parse_datastore_uri(output.path.as_deref()?)?;
        Some(Elsewhere { output: name.to_string(), datastore, path })
    });
    let is_own = |place: &Elsewhere| {
        place.datastore.as_str() == layout::BLOB_STORE && overlap(&place.path, &own)
    };
    places.filter(|place| !is_own(place)).collect()
}

fn row(datastore: DatastoreName, path: String, why: &str) -> Row {
    Row { seq: 0, datastore, path, except: Vec::new(), why: why.to_owned() }
}
