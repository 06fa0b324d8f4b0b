//! What earlier attempts of a completed job left in its outputs goes, when the job is over and before what it has
//! written is read: who reads an output reads what the last attempt wrote to it.

use std::collections::{HashSet, VecDeque};

use atelier_core::content::manifest::{Manifest, ManifestEntry};
use atelier_core::id::{AttemptNumber, DatastoreName, JobName};
use atelier_core::job::{Job, Outcome};
use atelier_core::layout;
use atelier_core::spec::OutputMode;
use atelier_core::time::Timestamp;
use tokio::sync::Mutex;

use super::shared::{Committed, MANIFEST, holds};
use crate::storage::{self, ObjectPath};

/// Jobs that are remembered to have nothing left at places of their own choice.
const REMEMBERED: usize = 1024;

/// Those jobs, and when they ended: another may come under a name. Held while one is seen to.
#[derive(Default)]
pub(super) struct Tidied(Mutex<VecDeque<(JobName, Timestamp)>>);

/// Where an output of a job lies.
struct Place {
    datastore: DatastoreName,
    path: String,
    mode: OutputMode,
}

impl Place {
    fn holds(&self, datastore: &DatastoreName, key: &str) -> bool {
        let rest = key.strip_prefix(&self.path).filter(|_| *datastore == self.datastore);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn places(job: &Job) -> Vec<Place> {
    let outputs = job.spec.outputs.values();
    let places = outputs.filter_map(|output| {
        let (datastore, path) = layout::parse_datastore_uri(output.path.as_deref()?)?;
        Some(Place { datastore, path: path.trim_end_matches('/').to_owned(), mode: output.mode })
    });
    places.collect()
}

impl Committed {
    /// Removes what earlier attempts left in a completed job's outputs and the last one did not write. At the default
    /// place that is whatever lies there, but for direct outputs, which no manifest names and are the job's own. At a
    /// place of the job's choice others' objects may lie too: there it is what an earlier attempt's manifest names.
    ///
    /// # Errors
    /// Those of storage at the default place. What stays elsewhere is told in the daemon's log alone: a store may
    /// let objects be written and not be removed.
    pub(crate) async fn tidy(&self, job: &Job) -> Result<(), storage::Error> {
        let Some(ended) = job.ended().filter(|_| job.tries.made.0 > 1) else { return Ok(()) };
        if ended.outcome != Outcome::Completed {
            return Ok(());
        }
        let manifest = self.read_all(&ended.left).await?;
        let entries = manifest.iter().flat_map(|manifest| &manifest.entries);
        let kept = entries.map(|entry| (entry.datastore.as_str(), entry.key.as_str())).collect();
        let places = places(job);
        self.tidy_own(job, &kept, &places).await?;
        let own = layout::outputs_root(&job.name);
        let is_own = |place: &Place| {
            place.datastore.as_str() == layout::BLOB_STORE
                && place.path.strip_prefix(&own).is_some_and(|rest| rest.starts_with('/'))
        };
        let elsewhere = places
            .into_iter()
            .filter(|place| place.mode != OutputMode::Direct && !is_own(place))
            .collect::<Vec<_>>();
        if elsewhere.is_empty() {
            return Ok(());
        }
        let mut tidied = self.tidied.0.lock().await;
        let this = (job.name.clone(), ended.at);
        if !tidied.contains(&this) {
            self.tidy_elsewhere(job, &kept, &elsewhere).await;
            tidied.push_front(this);
            tidied.truncate(REMEMBERED);
        }
        Ok(())
    }

    async fn tidy_own(
        &self,
        job: &Job,
        kept: &HashSet<(&str, &str)>,
        places: &[Place],
    ) -> Result<(), storage::Error> {
        let blobs = self.datastores.get(layout::BLOB_STORE)?;
        let stays = |path: &str| {
            let is_direct = |place: &&Place| place.mode == OutputMode::Direct;
            kept.contains(&(layout::BLOB_STORE, path))
                || places.iter().filter(is_direct).any(|place| place.holds(blobs.name(), path))
        };
        let root = ObjectPath::new(&layout::outputs_root(&job.name))?;
        let mut after: Option<ObjectPath> = None;
        loop {
            let last = after.as_ref().map(ObjectPath::as_str);
            let page = blobs.list(Some(&root), last, storage::PAGE).await?;
            for listed in page.objects.iter().filter(|listed| !stays(listed.path.as_str())) {
                match blobs.delete_object(&listed.path).await {
                    Ok(()) | Err(storage::Error::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn tidy_elsewhere(&self, job: &Job, kept: &HashSet<(&str, &str)>, places: &[Place]) {
        for attempt in (1..job.tries.made.0).map(AttemptNumber) {
            for rank in 0..job.spec.resources.instance_count {
                let (manifest, at) = match self.earlier(job, attempt, rank).await {
                    Ok(found) => found,
                    // It stored nothing.
                    Err(storage::Error::NotFound(_)) => continue,
                    Err(error) => {
                        tracing::warn!(job = %job.name, %attempt, %error, "what an earlier attempt left is not known");
                        continue;
                    }
                };
                // A job may write beside its manifests: it has nothing removed that it could not have replaced.
                let left = manifest.entries.iter().filter(|entry| {
                    places.iter().any(|place| place.holds(&entry.datastore, &entry.key))
                        && !kept.contains(&(entry.datastore.as_str(), &entry.key))
                });
                for entry in left {
                    match self.remove_left(entry, at).await {
                        Ok(()) | Err(storage::Error::NotFound(_)) => {}
                        Err(error) => {
                            let ManifestEntry { datastore, key, .. } = entry;
                            tracing::warn!(job = %job.name, %datastore, key, %error, "what an earlier attempt left stays");
                        }
                    }
                }
            }
        }
    }

    /// The manifest of a member of an earlier attempt, and when it was stored.
    async fn earlier(
        &self,
        job: &Job,
        attempt: AttemptNumber,
        rank: u32,
    ) -> Result<(Manifest, Timestamp), storage::Error> {
        let artifacts = self.datastores.get(layout::ARTIFACT_STORE)?;
        let path = layout::manifest_path(attempt, rank);
        let key = format!("{}/{path}", layout::artifact_root(job.name.as_str()));
        let key = ObjectPath::new(&key)?;
        let at = artifacts.head(&key).await?.modified;
        let bytes = artifacts.get(&key, MANIFEST).await?;
        let manifest = Manifest::from_json(&bytes).map_err(|error| storage::Error::Content {
            digest: atelier_core::content::Digest::of(&bytes).to_string(),
            why: format!("the manifest {key} {error}"),
        })?;
        Ok((manifest, at))
    }

    /// Removes an object that was there when the manifest was stored, and has its bytes: whoever has written it since
    /// keeps it.
    async fn remove_left(
        &self,
        entry: &ManifestEntry,
        at: Timestamp,
    ) -> Result<(), storage::Error> {
        let datastore = self.datastores.get(entry.datastore.as_str())?;
        let path = ObjectPath::new(&entry.key)?;
        let opened = datastore.open(&path).await?;
        if opened.meta.modified <= at && holds(opened, entry).await? {
            datastore.delete_object(&path).await?;
        }
        Ok(())
    }
}
