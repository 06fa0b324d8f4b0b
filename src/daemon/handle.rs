//! How everybody else speaks to the reactor.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use atelier_core::access::People;
use atelier_core::audit::{Actor, Change};
use atelier_core::compute::{AccessChange, Cluster};
use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, JobName, NodeName};
use atelier_core::job::{Event, Job, JobStatus, Report};
use atelier_core::live::{ClusterChange, Entered, Entering, Live, Refusal, Sandbox, TakenAway};
use atelier_core::node::{NodeChange, NodeRecord};
use atelier_core::sched::{DataPlace, Limits, QuotaOf};
use atelier_core::spec::CommandJob;
use atelier_core::time::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::effects::ToNode;
use crate::store::{self, IdempotencyKey};

/// A cheap clone of the way to the reactor.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Arc<Event>>,
}

/// Why a request to the reactor failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be met.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The key was used for another job.
    #[error(
        "the idempotency key was used before, for job '{job}' with another specification; use a new key for a new job"
    )]
    KeyReused {
        /// The first job.
        job: JobName,
    },
    /// There is no such job.
    #[error("there is no job '{0}'; see 'atelier job list'")]
    NoSuchJob(String),
    /// It is not over.
    #[error("job '{0}' is not over; cancel it first (atelier job cancel {0})")]
    StillLive(JobName),
    /// Nobody can be let into it any more.
    #[error("cannot enter job '{job}': it is over ({status}); see 'atelier job show {job}'")]
    JobOver {
        /// Which.
        job: JobName,
        /// How it ended.
        status: JobStatus,
    },
    /// A second agent of the same name.
    #[error("node '{0}' has a session already, from another agent; give this agent another name")]
    NodeTaken(NodeName),
    /// The store failed: nothing was acknowledged.
    #[error("{0}")]
    Store(#[from] Arc<store::Error>),
    /// The daemon is going down.
    #[error("the daemon is stopping; try again")]
    Stopping,
}

/// A submission on its way to the reactor.
pub struct SubmitRequest {
    /// Made or given.
    pub name: JobName,
    /// Resolved and validated.
    pub spec: Arc<CommandJob>,
    /// Who asks.
    pub by: Actor,
    /// Whether they come in with a role that may change computes, and so use any.
    pub manages: bool,
    /// Set when a repetition must find the first.
    pub key: Option<IdempotencyKey>,
}

impl SubmitRequest {
    /// What the audit log tells of it. The specification lies with the job; what may be secret in it is not copied.
    fn told(&self) -> Change {
        let specification = serde_json::to_vec(&*self.spec).unwrap_or_default();
        Change::done(
            format!("job/{}", self.name),
            &serde_json::json!({
                "experiment_name": self.spec.experiment_name,
                "compute": self.spec.compute,
                "specification_blake3": Digest::of(&specification),
            }),
        )
    }
}

/// Reads live state.
pub(super) type Look = Box<dyn FnOnce(&Live, &HashMap<NodeName, NodeView>) + Send>;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Command {
    Submit { request: Box<SubmitRequest>, told: Box<Change>, reply: Reply<Job> },
    Cancel { job: JobName, by: Box<Actor>, reason: String, reply: Reply<()> },
    Enter { request: Box<EnterRequest>, reply: Reply<Entered> },
    Debug { request: Box<DebugRequest>, reply: Reply<Entered> },
    Release { job: JobName, by: Box<Actor>, reply: Reply<Vec<(NodeName, Sandbox)>> },
    Archive { job: JobName, archived: bool, by: Box<Actor>, reply: Reply<Job> },
    Forget { job: JobName, by: Box<Actor>, reply: Reply<()> },
    NodeJoined { join: Box<Join>, reply: Reply<()> },
    NodeReport { node: NodeName, session: u64, report: Box<Report> },
    NodeChanged { node: NodeName, session: u64, change: Box<NodeChange> },
    NodeKeeps { node: NodeName, session: u64, kept: Vec<Sandbox> },
    NodeHolds { node: NodeName, session: u64, held: Vec<(DataPlace, u64)> },
    Drain { request: Box<DrainRequest>, reply: Reply<()> },
    Resume { node: NodeName, by: Box<Actor>, reply: Reply<()> },
    Compute { change: Box<ComputeChange>, by: Box<Actor>, reply: Reply<()> },
    People { people: Box<People>, reply: Reply<()> },
    Provided(Provided),
    NodeLeft { node: NodeName, session: u64 },
    Heartbeat { node: NodeName, session: u64, view: NodeView },
    Tell { node: NodeName, message: ToNode, heard: oneshot::Sender<Option<u64>> },
    Look(Look),
    Stop(oneshot::Sender<()>),
}

/// Somebody who may wants into a running job.
pub struct EnterRequest {
    /// Which.
    pub job: JobName,
    /// Which of its members.
    pub rank: u32,
    /// What for.
    pub what: Entering,
    /// Who asks.
    pub by: Actor,
}

/// Somebody who may wants into what a job left that failed.
pub struct DebugRequest {
    /// Which.
    pub job: JobName,
    /// Which of its members.
    pub rank: u32,
    /// What for, as a shell shows it; empty: a shell.
    pub command: String,
    /// Who asks.
    pub by: Actor,
}

/// An admin's word that a node gets no more jobs.
pub struct DrainRequest {
    /// Which.
    pub node: NodeName,
    /// Who says so.
    pub by: Actor,
    /// Why.
    pub reason: String,
    /// After how many seconds the jobs there go back in the queue; `None`: they run to their end.
    pub deadline_s: Option<u32>,
    /// Change what was said of a node that is drained already.
    pub update: bool,
}

/// What an admin does to a compute.
pub enum ComputeChange {
    /// Makes a cluster, or changes one by its file.
    Put {
        /// The cluster, checked.
        cluster: Box<Cluster>,
    },
    /// Changes a cluster's bounds.
    Change {
        /// Which.
        name: ComputeName,
        /// What.
        change: ClusterChange,
    },
    /// Deletes a cluster.
    Delete(ComputeName),
    /// Keeps jobs away from a compute.
    Drain {
        /// Which.
        name: ComputeName,
        /// Why.
        reason: String,
        /// After how many seconds the jobs there go back in the queue; `None`: they run to their
        /// end.
        deadline_s: Option<u32>,
        /// Change what was said of a compute that is drained already.
        update: bool,
    },
    /// Lets a drained compute have jobs again.
    Resume(ComputeName),
    /// Says what the jobs of a user, or of a group's members, may hold of a compute.
    Quota {
        /// Of which compute.
        name: ComputeName,
        /// Whose.
        of: QuotaOf,
        /// How much; `None` takes back what was said.
        limits: Option<Limits>,
    },
    /// Changes who may use a compute.
    Access {
        /// Which compute.
        name: ComputeName,
        /// How.
        change: AccessChange,
    },
}

impl ComputeChange {
    /// Which compute it is about.
    pub fn name(&self) -> &ComputeName {
        match self {
            Self::Put { cluster, .. } => &cluster.name,
            Self::Delete(name)
            | Self::Resume(name)
            | Self::Change { name, .. }
            | Self::Drain { name, .. }
            | Self::Access { name, .. }
            | Self::Quota { name, .. } => name,
        }
    }
}

/// What a provider says.
#[derive(Debug)]
pub enum Provided {
    /// A node was added, or could not be.
    Added {
        /// Which.
        node: NodeName,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// A node was taken away, or could not be.
    Removed {
        /// Which.
        node: NodeName,
        /// Why not, in words.
        result: Result<(), String>,
    },
    /// A node's machine was taken from under it.
    TakenAway(TakenAway),
}

/// A node that opens a session.
pub struct Join {
    /// What it says of itself.
    pub record: NodeRecord,
    /// Every attempt that it knows.
    pub reports: Vec<Report>,
    /// What it keeps of attempts that failed.
    pub kept: Vec<Sandbox>,
    /// The session's number.
    pub session: u64,
    /// Which start of the agent it is.
    pub instance: String,
    /// The way to it.
    pub outbox: mpsc::UnboundedSender<ToNode>,
}

/// What the reactor knows of a node's session.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// When it last sent a heartbeat, in milliseconds since the epoch.
    pub last_seen: i64,
    /// Its newest sample.
    pub usage: BTreeMap<String, f64>,
    /// How far its wall clock is ahead of this machine's, if it has said.
    pub clock_ahead_ms: Option<i64>,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        events: broadcast::Sender<Arc<Event>>,
    ) -> Self {
        Self { commands, events }
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.unwrap_or(Err(Error::Stopping))
    }

    /// Accepts a job. When this returns, it is on disk.
    pub async fn submit(&self, request: SubmitRequest) -> Result<Job, Error> {
        // Made here, beside others: the reactor has one thread.
        let told = Box::new(request.told());
        let request = Box::new(request);
        self.ask(|reply| Command::Submit { request, told, reply }).await
    }

    /// Asks a job to stop.
    pub async fn cancel(
        &self,
        job: JobName,
        by: impl Into<Actor>,
        reason: String,
    ) -> Result<(), Error> {
        let by = Box::new(by.into());
        self.ask(|reply| Command::Cancel { job, by, reason, reply }).await
    }

    /// Lets somebody into a running job. When this returns, that is on disk as an event.
    pub async fn enter(&self, request: EnterRequest) -> Result<Entered, Error> {
        let request = Box::new(request);
        self.ask(|reply| Command::Enter { request, reply }).await
    }

    /// Lets somebody into what a job left that failed. When this returns, that is on disk as an event.
    pub async fn debug(&self, request: DebugRequest) -> Result<Entered, Error> {
        let request = Box::new(request);
        self.ask(|reply| Command::Debug { request, reply }).await
    }

    /// Lets go of what nodes keep of a job; what that was.
    pub async fn release(
        &self,
        job: JobName,
        by: impl Into<Actor>,
    ) -> Result<Vec<(NodeName, Sandbox)>, Error> {
        let by = Box::new(by.into());
        self.ask(|reply| Command::Release { job, by, reply }).await
    }

    /// What nodes keep of a job.
    pub async fn sandboxes(
        &self,
        job: Job,
        now: Timestamp,
    ) -> Result<Vec<(NodeName, Sandbox)>, Error> {
        self.look(move |live, _| live.sandboxes(&job, now)).await
    }

    /// The nodes that hold some of a live job's inputs, with how many bytes; those with the most first.
    pub async fn holders(&self, job: Job) -> Result<Vec<(NodeName, u64)>, Error> {
        self.look(move |live, _| live.holders(&job)).await
    }

    /// Hides a finished job from lists, or shows it again.
    pub async fn archive(
        &self,
        job: JobName,
        archived: bool,
        by: impl Into<Actor>,
    ) -> Result<Job, Error> {
        let by = Box::new(by.into());
        self.ask(|reply| Command::Archive { job, archived, by, reply }).await
    }

    /// Forgets a finished job's rows.
    pub async fn forget(&self, job: JobName, by: impl Into<Actor>) -> Result<(), Error> {
        let by = Box::new(by.into());
        self.ask(|reply| Command::Forget { job, by, reply }).await
    }

    /// A node's session is open. When this returns, the node is reconciled and on disk.
    pub async fn node_joined(&self, join: Join) -> Result<(), Error> {
        let join = Box::new(join);
        self.ask(|reply| Command::NodeJoined { join, reply }).await
    }

    /// Keeps jobs away from a node. When this returns, that is on disk.
    pub async fn drain(&self, request: DrainRequest) -> Result<(), Error> {
        let request = Box::new(request);
        self.ask(|reply| Command::Drain { request, reply }).await
    }

    /// Lets a drained node have jobs again.
    pub async fn resume(&self, node: NodeName, by: impl Into<Actor>) -> Result<(), Error> {
        let by = Box::new(by.into());
        self.ask(|reply| Command::Resume { node, by, reply }).await
    }

    /// Makes, changes or deletes a compute. When this returns, that is on disk.
    pub async fn compute(&self, change: ComputeChange, by: impl Into<Actor>) -> Result<(), Error> {
        let (change, by) = (Box::new(change), Box::new(by.into()));
        self.ask(|reply| Command::Compute { change, by, reply }).await
    }

    /// Who is in which group, and who manages computes, from now on. It is on disk already.
    pub async fn people(&self, people: People) -> Result<(), Error> {
        let people = Box::new(people);
        self.ask(|reply| Command::People { people, reply }).await
    }

    /// A provider's word on a node.
    pub async fn provided(&self, word: Provided) -> Result<(), Error> {
        self.send(Command::Provided(word)).await
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Stopping)
    }

    /// A node's word on an attempt.
    pub async fn node_report(
        &self,
        node: NodeName,
        session: u64,
        report: Report,
    ) -> Result<(), Error> {
        self.send(Command::NodeReport { node, session, report: Box::new(report) }).await
    }

    /// A node's word on what has changed since it joined.
    pub async fn node_changed(
        &self,
        node: NodeName,
        session: u64,
        change: NodeChange,
    ) -> Result<(), Error> {
        self.send(Command::NodeChanged { node, session, change: Box::new(change) }).await
    }

    /// A node's word on all that it keeps of attempts that failed.
    pub async fn node_keeps(
        &self,
        node: NodeName,
        session: u64,
        kept: Vec<Sandbox>,
    ) -> Result<(), Error> {
        self.send(Command::NodeKeeps { node, session, kept }).await
    }

    /// A node's word on what its cache holds of inputs, in bytes.
    pub async fn node_holds(
        &self,
        node: NodeName,
        session: u64,
        held: Vec<(DataPlace, u64)>,
    ) -> Result<(), Error> {
        self.send(Command::NodeHolds { node, session, held }).await
    }

    /// A node's session has ended.
    pub async fn node_left(&self, node: NodeName, session: u64) -> Result<(), Error> {
        self.send(Command::NodeLeft { node, session }).await
    }

    /// A node is alive.
    pub async fn heartbeat(
        &self,
        node: NodeName,
        session: u64,
        view: NodeView,
    ) -> Result<(), Error> {
        self.send(Command::Heartbeat { node, session, view }).await
    }

    /// Sends a node something that is no decision (following a log), over the session that is told;
    /// `None`: it has none.
    pub async fn tell(&self, node: NodeName, message: ToNode) -> Result<Option<u64>, Error> {
        let (heard, answer) = oneshot::channel();
        self.send(Command::Tell { node, message, heard }).await?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// Looks at live state. Short looks only: the reactor waits.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Live, &HashMap<NodeName, NodeView>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Box::new(move |live, nodes| {
            // The asker may have gone away.
            let _ = reply.send(look(live, nodes));
        })))
        .await?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// Why these jobs wait, as far as they do.
    pub async fn wait_reasons(
        &self,
        jobs: Vec<JobName>,
    ) -> Result<HashMap<JobName, String>, Error> {
        self.look(move |live, _| {
            jobs.into_iter()
                .filter_map(|name| {
                    let reason = live.wait_reason(live.job(&name)?)?.to_string();
                    Some((name, reason))
                })
                .collect()
        })
        .await
    }

    /// The name of the compute that a job goes to.
    pub async fn default_compute(&self) -> Result<ComputeName, Error> {
        self.look(|live, _| live.default_compute().clone()).await
    }

    /// Live events, from now on. One that lags behind must read the store.
    pub fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Stops the reactor after what it is doing.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}
