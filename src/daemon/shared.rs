//! What services ask of more than one part of the daemon.

use std::any::Any;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atelier_core::access::AttemptScope;
use atelier_core::asset::Draft;
use atelier_core::content::Digest;
use atelier_core::content::manifest::{Manifest, ManifestEntry};
use atelier_core::id::{DatastoreName, JobName, NodeName};
use atelier_core::job::{AttemptKey, Job, Left, ManifestRef, Outcome};
use atelier_core::layout;
use atelier_core::spec::OutputMode;
use atelier_core::time::Timestamp;
use atelier_core::track::{ArtifactPath, RunId};
use atelier_proto::agent::v1::RunSample;
use atelier_proto::workspace::v1::Experiment;
use futures::StreamExt as _;
use futures::future::BoxFuture;

use super::{Admission, AdmissionError, Assets, Shared};
use crate::http::mlflow::Manifests;
use crate::http::mlflow::registry::{Located, NotLocated, Places};
use crate::storage::{self, Datastores, ObjectPath};
use crate::store::{Store, tracking};
use crate::track::{self, Sample};

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
    /// Of its bytes, once it is committed.
    pub digest: Option<Digest>,
}

/// Why something that spans storage and records could not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Tracking failed.
    #[error(transparent)]
    Tracking(#[from] track::Error),
    /// What is removed could not be told.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] atelier_core::id::InvalidName),
}

/// A manifest of more bytes than this is damaged.
const MANIFEST: u64 = 256 << 20;

/// Manifests kept in memory, and how many entries they have in all at most: an entry takes some
/// 200 bytes.
const KEPT: usize = 16;
const KEPT_ENTRIES: usize = 100_000;

/// Committed manifests, from the artifact store. The newest read are kept: whoever fetches one
/// artifact of a job mostly wants the next, and a manifest never changes.
pub(crate) struct Committed {
    store: Arc<dyn Store>,
    datastores: Datastores,
    kept: Mutex<VecDeque<(Digest, Arc<Manifest>)>>,
}

impl Committed {
    pub(super) fn new(store: Arc<dyn Store>, datastores: Datastores) -> Self {
        Self { store, datastores, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Digest, Arc<Manifest>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, reference: &ManifestRef) -> Result<Arc<Manifest>, storage::Error> {
        if let Some(manifest) = self.known(&reference.digest) {
            return Ok(manifest);
        }
        let manifest = Arc::new(self.fetch(reference).await?);
        self.keep(reference.digest, &manifest);
        Ok(manifest)
    }

    fn known(&self, digest: &Digest) -> Option<Arc<Manifest>> {
        let kept = self.kept();
        kept.iter().find(|(known, _)| known == digest).map(|(_, manifest)| manifest.clone())
    }

    fn keep(&self, digest: Digest, manifest: &Arc<Manifest>) {
        let mut kept = self.kept();
        kept.push_front((digest, manifest.clone()));
        let mut entries = 0;
        let fits = kept.iter().take(KEPT).take_while(|(_, manifest)| {
            entries += manifest.entries.len();
            entries <= KEPT_ENTRIES
        });
        let fits = fits.count();
        kept.truncate(fits);
    }

    /// What all members of an attempt wrote, as one. Of two that wrote the same path the lower rank's is
    /// told; if they wrote to the same object, that whose bytes lie there. `None` if none of them wrote
    /// anything.
    pub(super) async fn read_all(
        &self,
        left: &Left,
    ) -> Result<Option<Arc<Manifest>>, storage::Error> {
        let references: Vec<&ManifestRef> = left.manifests().collect();
        let first = match references.as_slice() {
            [] => return Ok(None),
            [one] => return self.read(one).await.map(Some),
            [first, ..] => first,
        };
        let digests: Vec<u8> =
            references.iter().flat_map(|reference| *reference.digest.as_bytes()).collect();
        let all = Digest::of(&digests);
        if let Some(manifest) = self.known(&all) {
            return Ok(Some(manifest));
        }
        let mut merged = self.fetch(first).await?;
        let mut entries: BTreeMap<String, ManifestEntry> =
            merged.entries.drain(..).map(|entry| (entry.path.clone(), entry)).collect();
        let mut disputed: Vec<ManifestEntry> = Vec::new();
        for reference in references.iter().skip(1) {
            let next = self.fetch(reference).await?;
            merged.partial |= next.partial;
            for entry in next.entries {
                match entries.get(&entry.path) {
                    None => {
                        entries.insert(entry.path.clone(), entry);
                    }
                    Some(known) if known.key == entry.key && known.digest != entry.digest => {
                        disputed.push(entry);
                    }
                    Some(_) => {}
                }
            }
        }
        for entry in disputed {
            if self.lies_there(&entry).await? {
                entries.insert(entry.path.clone(), entry);
            }
        }
        merged.entries = entries.into_values().collect();
        let merged = Arc::new(merged);
        self.keep(all, &merged);
        Ok(Some(merged))
    }

    /// Whether the object has the bytes that an entry says.
    async fn lies_there(&self, entry: &ManifestEntry) -> Result<bool, storage::Error> {
        use storage::Error::{Away, Denied, Link, NotFound, UnknownDatastore};
        let opened = async {
            let store = self.datastores.get(entry.datastore.as_str())?;
            store.open(&ObjectPath::new(&entry.key)?).await
        };
        let opened = match opened.await {
            Ok(opened) => opened,
            // Whoever's file it is took it away, or nobody can look just now: the rest is told all the same.
            Err(NotFound(_) | UnknownDatastore(_) | Away { .. } | Denied { .. } | Link(_)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if opened.meta.size != entry.bytes {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        let size = opened.meta.size;
        let mut bytes = opened.stream(0..size);
        while let Some(piece) = bytes.next().await {
            hasher.update(&piece?);
        }
        Ok(entry.digest.as_bytes() == hasher.finalize().as_bytes())
    }

    /// Removes what earlier attempts left at the default place of a completed job's outputs and the
    /// last one did not write: who reads the outputs reads what was committed, and nothing else.
    /// No manifest names what lies in a direct output, which is the job's own.
    pub(crate) async fn tidy(&self, job: &Job) -> Result<(), storage::Error> {
        let Some(ended) = job.ended().filter(|_| job.tries.made.0 > 1) else { return Ok(()) };
        if ended.outcome != Outcome::Completed {
            return Ok(());
        }
        let Some(manifest) = self.read_all(&ended.left).await? else { return Ok(()) };
        let blobs = self.datastores.get(layout::BLOB_STORE)?;
        let kept: HashSet<&str> = manifest
            .entries
            .iter()
            .filter(|entry| &entry.datastore == blobs.name())
            .map(|entry| entry.key.as_str())
            .collect();
        let direct: Vec<String> = job
            .spec
            .outputs
            .values()
            .filter(|output| output.mode == OutputMode::Direct)
            .filter_map(|output| layout::parse_datastore_uri(output.path.as_deref()?))
            .filter(|(datastore, _)| datastore == blobs.name())
            .map(|(_, path)| path.trim_end_matches('/').to_owned())
            .collect();
        let is_direct = |path: &str| {
            let mut places = direct.iter().filter_map(|place| path.strip_prefix(place.as_str()));
            places.any(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let root = ObjectPath::new(&layout::outputs_root(&job.name))?;
        let mut after: Option<ObjectPath> = None;
        loop {
            let last = after.as_ref().map(ObjectPath::as_str);
            let page = blobs.list(Some(&root), last, storage::PAGE).await?;
            for listed in &page.objects {
                let path = listed.path.as_str();
                if !kept.contains(path) && !is_direct(path) {
                    match blobs.delete_object(&listed.path).await {
                        Ok(()) | Err(storage::Error::NotFound(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn fetch(&self, reference: &ManifestRef) -> Result<Manifest, storage::Error> {
        let store = self.datastores.get(layout::ARTIFACT_STORE)?;
        let bytes = store.get(&ObjectPath::new(&reference.key)?, MANIFEST).await?;
        let damaged = |why: String| storage::Error::Content {
            digest: reference.digest.to_string(),
            why: format!("the manifest {} {why}", reference.key),
        };
        if Digest::of(&bytes) != reference.digest {
            return Err(damaged("is not the one that was committed".to_owned()));
        }
        Manifest::from_json(&bytes).map_err(|e| damaged(e.to_string()))
    }
}

impl Manifests for Committed {
    fn committed<'a>(
        &'a self,
        job: &'a JobName,
    ) -> BoxFuture<'a, Result<Option<Arc<Manifest>>, String>> {
        Box::pin(async move {
            let job = self.store.job(job).map_err(|e| e.to_string())?;
            match job.as_ref().and_then(Job::ended) {
                None => Ok(None),
                Some(ended) => self.read_all(&ended.left).await.map_err(|e| e.to_string()),
            }
        })
    }
}

/// Follows what models are made of, and keeps it from being removed meanwhile.
pub(crate) struct ModelPlaces {
    admission: Admission,
    assets: Assets,
    datastores: Datastores,
    committed: Arc<Committed>,
    store: Arc<dyn Store>,
}

impl Places for ModelPlaces {
    fn locate(&self, draft: Draft) -> BoxFuture<'_, Result<Located, NotLocated>> {
        Box::pin(async move {
            // What it lies in must be there until it is known.
            let held = (self.datastores.hold().await, self.assets.hold().await);
            let found = self.admission.locate(draft).await;
            let (draft, made_by) = found.map_err(|error| match error {
                AdmissionError::Store(_) | AdmissionError::Storage(_) => {
                    NotLocated::Away(error.to_string())
                }
                error => NotLocated::Refused(error.to_string()),
            })?;
            Ok(Located { draft, made_by, held: Box::new(held) })
        })
    }

    fn let_go(&self) -> BoxFuture<'_, Box<dyn Any + Send>> {
        Box::pin(async { Box::new(self.assets.let_go().await) as Box<dyn Any + Send> })
    }

    fn settle<'a>(&'a self, job: &'a JobName) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match self.store.job(job).map_err(|e| e.to_string())? {
                Some(job) => self.committed.tidy(&job).await.map_err(|e| e.to_string()),
                None => Ok(()),
            }
        })
    }
}

impl Shared {
    /// Where models lie.
    pub(crate) fn places(&self) -> ModelPlaces {
        ModelPlaces {
            admission: self.admission.clone(),
            assets: self.assets.clone(),
            datastores: self.datastores.clone(),
            committed: self.committed.clone(),
            store: self.store.clone(),
        }
    }

    /// What the job logged through MLflow and, once it is over, what its manifest lists.
    pub async fn artifacts(&self, job: &Job) -> Result<Vec<Artifact>, Error> {
        let datastore = DatastoreName::new(layout::ARTIFACT_STORE)?;
        let root = layout::artifact_root(job.name.as_str());
        let run = RunId::from(&job.name);
        let logged = self.tracking.read(move |conn| tracking::artifacts(conn, &run)).await?;
        let mut artifacts: BTreeMap<String, Artifact> = logged
            .into_iter()
            .map(|(path, bytes): (ArtifactPath, u64)| {
                let path = path.to_string();
                let key = format!("{root}/{path}");
                let datastore = datastore.clone();
                (path.clone(), Artifact { path, bytes, datastore, key, digest: None })
            })
            .collect();
        if let Some(ended) = job.ended()
            && let Some(manifest) = self.committed.read_all(&ended.left).await?
        {
            artifacts.extend(manifest.entries.iter().map(|entry| {
                let artifact = Artifact {
                    path: entry.path.clone(),
                    bytes: entry.bytes,
                    datastore: entry.datastore.clone(),
                    key: entry.key.clone(),
                    digest: Some(entry.digest),
                };
                (entry.path.clone(), artifact)
            }));
        }
        let removed = self.retention.removed(&job.name)?;
        artifacts.retain(|_, found| {
            let mut gone = removed.keys();
            !gone.any(|what| what.holds(job, found.datastore.as_str(), &found.key))
        });
        Ok(artifacts.into_values().collect())
    }

    /// Last value of each metric of a job's run.
    pub async fn last_metrics(&self, job: &JobName) -> Result<BTreeMap<String, f64>, Error> {
        let run = RunId::from(job);
        let points = self.tracking.read(move |conn| tracking::latest(conn, &run)).await?;
        Ok(points
            .into_iter()
            .map(|point| (point.key, if point.is_nan { f64::NAN } else { point.value }))
            .collect())
    }

    /// Every experiment with its number of runs.
    pub async fn experiments(&self) -> Result<Vec<Experiment>, Error> {
        let counted = self.tracking.read(tracking::experiments).await?;
        Ok(counted
            .into_iter()
            .map(|(experiment, runs)| Experiment {
                id: experiment.id.to_string(),
                name: experiment.name.to_string(),
                created_at_ms: experiment.created.as_millis(),
                last_update_ms: experiment.updated.as_millis(),
                runs,
                lifecycle_stage: experiment.stage.as_str().to_owned(),
            })
            .collect())
    }

    /// Keeps a node's samples as metrics of its attempts' runs. Those of attempts that are no
    /// longer the node's are left out: the run belongs to another attempt now. What cannot be kept of one attempt
    /// leaves the others' alone.
    ///
    /// # Errors
    /// What could not be kept first, and of which attempt. All may be sent again: what is kept already is not kept
    /// twice.
    pub async fn record_samples(
        &self,
        node: &NodeName,
        samples: Vec<RunSample>,
    ) -> Result<(), tonic::Status> {
        use crate::grpc::told;
        let mut by_attempt: BTreeMap<AttemptKey, Vec<Sample>> = BTreeMap::new();
        let mut problem = Ok(());
        for sample in samples {
            let key = sample.key.ok_or_else(|| tonic::Status::invalid_argument("key: is required"));
            match key.and_then(|key| AttemptKey::try_from(key).map_err(told)) {
                Ok(key) => by_attempt.entry(key).or_default().push(Sample {
                    at: Timestamp::from_millis(sample.at_ms),
                    step: i64::try_from(sample.step).unwrap_or(i64::MAX),
                    values: sample.metrics.into_iter().collect(),
                }),
                Err(status) => problem = problem.and(Err(status)),
            }
        }
        for (key, samples) in by_attempt {
            let (job, attempt) = (key.job.clone(), key.attempt);
            let recorded = self.record_samples_of(node, key, samples).await;
            problem = problem.and(recorded.map_err(|status| {
                let said = status.message();
                let message = format!("samples of attempt {attempt} of job {job}: {said}");
                tonic::Status::new(status.code(), message)
            }));
        }
        problem
    }

    async fn record_samples_of(
        &self,
        node: &NodeName,
        key: AttemptKey,
        samples: Vec<Sample>,
    ) -> Result<(), tonic::Status> {
        use crate::grpc::told;
        let job = self.store.job(&key.job).map_err(told)?;
        // The last samples may arrive just after the end.
        let rank = job.as_ref().and_then(|job| match job.active() {
            // One that is over while others are not may have samples under way.
            Some(active) => {
                let mut members = active.members().filter(|_| active.epoch == key.epoch);
                members.position(|member| &member.node == node)
            }
            None => {
                let ended = job.ended().filter(|_| job.tries.made == key.attempt)?;
                ended.left.nodes().position(|there| there == node)
            }
        });
        let Some(rank) = rank else { return Ok(()) };
        let samples = samples.into_iter().map(|sample| of_member(rank, sample)).collect();
        let scope = AttemptScope { job: key.job, attempt: key.attempt, epoch: key.epoch };
        self.tracking.record_samples(&scope, samples).await.map_err(told)
    }
}

/// A sample under names of its member's own, as MLflow has them for several nodes: the first member's are
/// `system/cpu…`, the next one's `system/node_1/cpu…`.
fn of_member(rank: usize, sample: Sample) -> Sample {
    if rank == 0 {
        return sample;
    }
    let renamed = |(key, value): (String, f64)| match key.strip_prefix("system/") {
        Some(rest) => (format!("system/node_{rank}/{rest}"), value),
        None => (key, value),
    };
    Sample { values: sample.values.into_iter().map(renamed).collect(), ..sample }
}
