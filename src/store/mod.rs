//! Where the workspace's records lie: jobs, events, nodes, tokens, runs, assets,
//! datastores, secrets (sealed).
//!
//! [`Store`] is narrow on purpose: a batch of decisions goes in as one transaction, and a few
//! questions are answered. [`SqliteStore`] is the embedded one.

pub mod assets;
pub mod audit;
pub mod blocked;
pub mod components;
pub mod copy;
pub mod datastores;
pub mod environments;
mod jobs;
pub mod nodes;
pub mod parts;
pub mod people;
pub mod retention;
mod schema;
pub mod secret_uses;
pub mod secrets;
mod sqlite;
pub mod storage;
pub mod tracking;
mod usage;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use atelier_core::access::CustomRole;
use atelier_core::audit::{Actor, Draft};
use atelier_core::compute::{ComputeRecord, Instance};
use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, ExperimentName, JobName, NodeName, Principal};
use atelier_core::job::{Event, Job, JobStatus};
use atelier_core::live::{Counters, PastUse, Restored};
use atelier_core::node::NodeRecord;
use atelier_core::resource::MiB;
use atelier_core::time::Timestamp;
use futures::future::BoxFuture;

use self::blocked::BlockRecord;
use self::people::{PeopleChange, UserRecord};
use self::tracking::TrackWrite;
pub use jobs::is_live;
pub use schema::LATEST as SCHEMA_VERSION;
pub use sqlite::SqliteStore;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full: nothing was written and nothing acknowledged. Reading still works.
    #[error(
        "cannot {operation}: the disk of the workspace's data folder is full; free some space and try again"
    )]
    Full {
        /// What was tried.
        operation: &'static str,
    },
    /// Another program holds the database: nothing was written and nothing acknowledged.
    #[error(
        "cannot {operation}: another program holds the workspace's database locked; close it (a backup, a sqlite3 shell) and try again"
    )]
    Locked {
        /// What was tried.
        operation: &'static str,
    },
    /// The database could not be opened or is not what it should be.
    #[error("cannot open the workspace's database {path}: {problem}")]
    Open {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A record could not be read back: the database is damaged or was written by something else.
    #[error("the workspace's database holds a damaged record ({what}); restore it from a backup")]
    Damaged {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A page or a row is not what was written.
    #[error(
        "cannot {operation}: the workspace's database is damaged ({source}); stop the daemon and restore it from a backup"
    )]
    Corrupt {
        /// What was tried.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// SQLite said no.
    #[error("cannot {operation} in the workspace's database: {source}")]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Something was written that the audit log does not tell of: nothing was.
    #[error(
        "'{table}' is not written without an entry in the audit log; this is a fault of atelier: report it"
    )]
    Unaudited {
        /// What.
        table: String,
    },
    /// A rule of tracking refuses it; nothing of it was written.
    #[error(transparent)]
    Track(atelier_core::track::Error),
    /// An earlier batch failed, and this one builds upon it.
    #[error("what it builds upon could not be written; try again")]
    Superseded,
    /// The writer has stopped, because an earlier failure left it unsure of what is on disk.
    #[error("the workspace's database is closed after an earlier failure; restart the daemon")]
    Closed,
}

impl Error {
    pub(crate) fn sqlite(operation: &'static str, source: rusqlite::Error) -> Self {
        use rusqlite::{Error as E, ErrorCode as C};
        match (&source, source.sqlite_error_code()) {
            (_, Some(C::DiskFull)) => Self::Full { operation },
            (_, Some(C::DatabaseBusy | C::DatabaseLocked)) => Self::Locked { operation },
            (_, Some(C::DatabaseCorrupt | C::NotADatabase))
            | (E::FromSqlConversionFailure(..) | E::InvalidColumnType(..), _) => {
                Self::Corrupt { operation, source }
            }
            _ => Self::Sqlite { operation, source },
        }
    }

    /// Whether the disk may or may not hold what was written: the only safe answer is to stop and
    /// start again from what is there.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Full { .. }
            | Self::Locked { .. }
            | Self::Open { .. }
            | Self::Unaudited { .. }
            | Self::Track(_)
            | Self::Superseded => false,
            Self::Damaged { .. } | Self::Corrupt { .. } | Self::Closed => true,
            Self::Sqlite { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure)
            }
        }
    }
}

/// What one round of decisions changes, as one transaction.
#[derive(Default, Debug)]
pub struct Batch {
    /// New jobs, with the idempotency keys they came with.
    pub submitted: Vec<Submitted>,
    /// States to write, new jobs' included.
    pub changed: BTreeMap<JobName, Job>,
    /// Appended to the log.
    pub events: Vec<Event>,
    /// Nodes to remember.
    pub nodes: Vec<NodeRecord>,
    /// Nodes to forget.
    pub nodes_gone: Vec<NodeName>,
    /// Computes to remember.
    pub computes: BTreeMap<ComputeName, ComputeRecord>,
    /// Computes to forget.
    pub computes_gone: Vec<ComputeName>,
    /// Clusters' own nodes to remember.
    pub instances: BTreeMap<NodeName, Instance>,
    /// Clusters' own nodes to forget.
    pub instances_gone: Vec<NodeName>,
    /// Jobs to forget.
    pub deleted: Vec<JobName>,
    /// Runs that follow their jobs.
    pub runs: Vec<TrackWrite>,
    /// Jobs start again after a restore.
    pub hold_over: bool,
    /// Who asked for what of it, for the audit log.
    pub audit: Vec<Draft>,
    /// Where the counters stand afterwards.
    pub counters: Option<Counters>,
}

impl Batch {
    /// Whether there is nothing to write but, perhaps, where the counters stand.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
            && self.events.is_empty()
            && self.nodes.is_empty()
            && self.nodes_gone.is_empty()
            && self.computes.is_empty()
            && self.computes_gone.is_empty()
            && self.instances.is_empty()
            && self.instances_gone.is_empty()
            && self.deleted.is_empty()
            && !self.hold_over
            && self.audit.is_empty()
    }
}

/// A job's first row.
#[derive(Debug)]
pub struct Submitted {
    /// Which; its state is in [`Batch::changed`].
    pub job: JobName,
    /// The key it came with.
    pub key: Option<IdempotencyKey>,
}

/// Makes a repeated submission find the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdempotencyKey {
    /// Made by the client; scoped to its principal.
    pub key: String,
    /// Of the specification: the same key with another one is refused.
    pub fingerprint: Digest,
}

/// A submission, as far as what is known may speak against it.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    /// Who asks.
    pub principal: &'a Principal,
    /// The idempotency key.
    pub key: Option<&'a str>,
    /// The job's name.
    pub name: &'a JobName,
    /// Where its run goes.
    pub experiment: &'a ExperimentName,
}

/// What is known of a submission.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Known {
    /// The job that the key made, and of which specification.
    pub first: Option<(JobName, Digest)>,
    /// Who has the name.
    pub taken: Option<Taken>,
    /// The experiment is deleted.
    pub experiment_deleted: bool,
}

/// Who has a name already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// A job.
    ByJob,
    /// A run that is no job's, as its id.
    ByRun,
}

/// Which jobs to list, newest first.
#[derive(Clone, Default, Debug)]
pub struct JobQuery {
    /// Only those submitted before this one.
    pub before: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// Only these; empty means all.
    pub statuses: Vec<JobStatus>,
    /// Only those of this experiment.
    pub experiment: Option<ExperimentName>,
    /// Which of archived and others.
    pub archived: Archived,
}

/// Whether archived jobs are listed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Archived {
    /// No.
    #[default]
    Without,
    /// Yes, with the others.
    With,
    /// Only them.
    Only,
}

/// How long a job took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// What it ran.
    pub command: String,
    /// Milliseconds from its placement, the last one if there were several, to its end.
    pub ms: u64,
    /// The most memory that its last attempt used at once on one node, in MiB, if it was completed and
    /// somebody measured.
    pub peak_memory: Option<MiB>,
}

/// A token's holder, as stored: the token itself is not.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenRecord {
    /// BLAKE3 of the token.
    pub hash: Digest,
    /// Whose.
    pub principal: Principal,
    /// As what.
    pub role: atelier_core::access::Role,
    /// Since when.
    pub created_at: Timestamp,
    /// Who made it, where that is known.
    pub created_by: Option<Principal>,
    /// From when on it opens nothing.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, more or less.
    pub last_used_at: Option<Timestamp>,
}

/// What a daemon finds when it starts.
#[derive(Default, Debug)]
pub struct Recovered {
    /// Jobs that are not over.
    pub jobs: Vec<Job>,
    /// Every node known.
    pub nodes: Vec<NodeRecord>,
    /// Computes that were made or changed.
    pub computes: Vec<ComputeRecord>,
    /// Nodes that clusters have asked for.
    pub instances: Vec<Instance>,
    /// Where the counters stand.
    pub counters: Counters,
    /// What is known of the last restore from a backup.
    pub restored: Restored,
}

/// The workspace's records. Writes are durable when they return; reads see every such write.
pub trait Store: Send + Sync + 'static {
    /// Writes a batch whole or not at all, in the order of the calls, from the call on. Batches
    /// that wait share one transaction and one fsync.
    ///
    /// Once one has failed, those after it are refused ([`Error::Superseded`]) until
    /// [`Store::recover`]: they were decided on what is not there.
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), Error>>;
    /// Remembers a token.
    fn put_token(&self, token: TokenRecord, by: Actor) -> BoxFuture<'_, Result<(), Error>>;
    /// Forgets tokens, by their hashes.
    fn forget_tokens(&self, hashes: Vec<Digest>, by: Actor) -> BoxFuture<'_, Result<(), Error>>;
    /// Every token.
    fn tokens(&self) -> Result<Vec<TokenRecord>, Error>;
    /// Changes users or roles.
    fn change_people(&self, change: PeopleChange, by: Actor) -> BoxFuture<'_, Result<(), Error>>;

    /// Writes when tokens were last used, by their hashes.
    fn note_uses(&self, uses: Vec<(Digest, Timestamp)>) -> BoxFuture<'_, Result<(), Error>>;
    /// Every user.
    fn users(&self) -> Result<Vec<UserRecord>, Error>;
    /// Everybody who may not come in.
    fn blocked(&self) -> Result<Vec<BlockRecord>, Error>;
    /// Every custom role.
    fn roles(&self) -> Result<Vec<CustomRole>, Error>;
    /// What is alive. Batches are taken again from here on.
    fn recover(&self) -> Result<Recovered, Error>;
    /// What jobs held that ended after `from`: the newest 50,000, the one that ended last first.
    fn usage_since(&self, from: Timestamp) -> Result<Vec<PastUse>, Error>;
    /// One job.
    fn job(&self, name: &JobName) -> Result<Option<Job>, Error>;
    /// Jobs, newest first.
    fn jobs(&self, query: &JobQuery) -> Result<Vec<Job>, Error>;
    /// What is known that submissions must be compared with, in their order.
    fn look_up(&self, submissions: &[Lookup<'_>]) -> Result<Vec<Known>, Error>;
    /// The last `limit` jobs of a compute that are over, as far as their commands started; the newest
    /// submission first.
    fn past(&self, compute: &ComputeName, limit: usize) -> Result<Vec<Past>, Error>;
    /// Events after `after`, oldest first, of one job or all.
    fn events(&self, job: Option<&JobName>, after: u64, limit: usize) -> Result<Vec<Event>, Error>;
}
