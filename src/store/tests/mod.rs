//! The embedded store on real files: what a batch promises, what is refused when it is opened, and
//! that what goes in comes out.

mod assets;
mod audit;
mod batches;
mod datastores;
mod environments;
pub(crate) mod failures;
mod open;
mod pages;
mod records;
mod retention;
mod storage;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atelier_core::content::Digest;
use atelier_core::id::{
    AttemptNumber, ComputeName, EventSeq, ExperimentName, JobName, NodeName, Principal, SubmitSeq,
};
use atelier_core::job::{Event, EventKind, Job, JobStatus, Queued, State, Tries};
use atelier_core::live::Counters;
use atelier_core::node::NodeRecord;
use atelier_core::resource::Capacity;
use atelier_core::spec::{CommandJob, Environment};
use atelier_core::time::Timestamp;
use rusqlite::Connection;

use super::{Batch, Error, IdempotencyKey, Lookup, SqliteStore, Store, Submitted};

/// A database in a folder of its own.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("atelier.db");
        Self { folder, path }
    }

    pub(crate) fn at(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn open(&self) -> Arc<SqliteStore> {
        Arc::new(SqliteStore::open(&self.path, self.path.exists()).unwrap())
    }
}

pub(crate) fn name(text: &str) -> JobName {
    JobName::new(text).unwrap()
}

/// What a change by ana gives.
pub(crate) async fn changed<T: Send + 'static>(
    store: &SqliteStore,
    change: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
) -> T {
    let changed = store.change(who("ana"), move |conn| {
        let changed = change(conn)?;
        conn.done("test/test", &serde_json::json!({}));
        Ok(changed)
    });
    changed.await.unwrap()
}

pub(crate) fn who(text: &str) -> Principal {
    Principal::new(text).unwrap()
}

/// The job that a key made, and of which specification.
pub(crate) fn first_of(store: &dyn Store, principal: &str, key: &str) -> Option<(JobName, Digest)> {
    let (principal, experiment) = (who(principal), ExperimentName::new("none").unwrap());
    let nobody = name("nobody");
    let lookup =
        Lookup { principal: &principal, key: Some(key), name: &nobody, experiment: &experiment };
    store.look_up(&[lookup]).unwrap().remove(0).first
}

pub(crate) fn spec(command: &str) -> CommandJob {
    CommandJob {
        name: None,
        display_name: None,
        description: None,
        experiment_name: ExperimentName::new("Default").unwrap(),
        tags: [].into(),
        properties: [].into(),
        command: command.to_owned(),
        code: None,
        environment: Environment::Host,
        compute: None,
        inputs: [].into(),
        outputs: [].into(),
        environment_variables: [].into(),
        resources: Default::default(),
        distribution: None,
        limits: Default::default(),
        queue: Default::default(),
        services: [].into(),
        identity: None,
        retry: Default::default(),
        on_node_loss: Default::default(),
        idle_gpu: None,
        keep_failed: None,
    }
}

/// A job that waits, the `seq`-th of the workspace, called `job{seq}`.
pub(crate) fn waiting(seq: u64) -> Job {
    Job {
        name: name(&format!("job{seq}")),
        seq: SubmitSeq(seq),
        spec: Arc::new(spec("true")),
        compute: ComputeName::new("local").unwrap(),
        created_by: who("ana"),
        created_at: Timestamp::from_millis(1_700_000_000_000),
        tries: Tries::default(),
        state: State::Queued(Queued {
            since: Timestamp::from_millis(1),
            not_before: None,
            why: None,
            left: None,
        }),
        archived: false,
    }
}

fn event(seq: u64, job: &JobName) -> Event {
    Event {
        seq: EventSeq(seq),
        job: job.clone(),
        at: Timestamp::from_millis(5),
        attempt: AttemptNumber(0),
        principal: who("ana"),
        status: JobStatus::Queued,
        kind: EventKind::Submitted,
    }
}

fn key(text: &str, content: &str) -> IdempotencyKey {
    IdempotencyKey { key: text.to_owned(), fingerprint: Digest::of(content.as_bytes()) }
}

pub(crate) fn node(text: &str) -> NodeRecord {
    NodeRecord {
        name: NodeName::new(text).unwrap(),
        compute: ComputeName::new("local").unwrap(),
        capacity: Capacity { cpu: 4000, memory: 1024, ..Capacity::default() },
        gpus_out: [].into(),
        version: "1".to_owned(),
        hostname: "h".to_owned(),
        address: Some("10.0.0.7".to_owned()),
        os: "linux".to_owned(),
        facts: [].into(),
        joined_at: Timestamp::from_millis(2),
        drain: None,
    }
}

/// What accepting these jobs writes. Each has one event, of its own number.
fn accepted(jobs: impl IntoIterator<Item = (Job, Option<IdempotencyKey>)>) -> Batch {
    let mut batch = Batch::default();
    let mut counters = Counters::default();
    for (job, key) in jobs {
        counters.seq = job.seq;
        counters.event = EventSeq(job.seq.0);
        batch.events.push(event(job.seq.0, &job.name));
        batch.submitted.push(Submitted { job: job.name.clone(), key });
        batch.changed.insert(job.name.clone(), job);
    }
    batch.counters = Some(counters);
    batch
}
