//! What the daemon does once a decision is on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use atelier_core::id::{DatastoreName, JobName, NodeName, PortName, Principal};
use atelier_core::job::{AttemptKey, Job};
use atelier_core::layout;
use atelier_core::live::Effect;
use atelier_core::resource::Reservation;
use atelier_core::spec::{
    AssetRef, CommandJob, DataUri, Environment, InlineEnvironment, Input, InputMode, OutputMode,
};
use atelier_proto::compute::v1::PruneNodeCacheRequest;
use tokio::sync::mpsc;

use crate::identity::Door;
use crate::provider::Providers;

/// A node's way to hear from the daemon.
pub type Outbox = mpsc::UnboundedSender<ToNode>;

/// What the daemon tells a node.
#[derive(Clone, Debug)]
pub enum ToNode {
    /// Run this.
    Assign(Box<Assignment>),
    /// Stop it.
    Stop {
        /// Which.
        key: AttemptKey,
        /// Why.
        reason: String,
    },
    /// The end of this attempt is on disk.
    Acknowledge(AttemptKey),
    /// Kill and forget this attempt.
    Discard(AttemptKey),
    /// Let go of what is kept of this attempt.
    Release(AttemptKey),
    /// Push a log from here on.
    FollowLog {
        /// Names the answer.
        request: u64,
        /// Whose log.
        key: AttemptKey,
        /// Of which of the member's processes.
        process: u32,
        /// From where.
        offset: u64,
        /// Until the attempt ends, or only what is there.
        follow: bool,
    },
    /// Join a channel.
    OpenChannel {
        /// Names the answer.
        channel: u64,
        /// Into which attempt.
        key: AttemptKey,
        /// As the client wrote it, and the daemon has checked.
        open: Box<atelier_proto::job::v1::OpenChannel>,
    },
    /// Tell what is kept there.
    AskCache {
        /// Names the answer.
        request: u64,
        /// What is to be removed before.
        prune: Option<PruneNodeCacheRequest>,
    },
    /// Make an environment ready.
    Build {
        /// Names the answers.
        request: u64,
        /// What it is made of.
        environment: Box<InlineEnvironment>,
        /// Refuse images on nodes without a container runtime.
        require_containers: bool,
    },
    /// Answers a heartbeat.
    HeartbeatAck(u64),
}

/// An attempt with everything its node needs.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Which.
    pub key: AttemptKey,
    /// What to run.
    pub spec: Arc<CommandJob>,
    /// With what of the node.
    pub reservation: Reservation,
    /// The rank of the node's member.
    pub rank: u32,
    /// Where the members' nodes are reached, by rank.
    pub addresses: Vec<String>,
    /// The attempt's own token.
    pub token: String,
    /// See [`Door::user_seed`].
    pub user_seed: u64,
    /// Attempts before this one that failed by the job's own fault.
    pub failed: u32,
    /// Each data input.
    pub inputs: BTreeMap<PortName, InputSource>,
    /// Each output.
    pub outputs: BTreeMap<PortName, Grant>,
    /// The run's artifacts.
    pub artifacts: Grant,
    /// Below the artifacts.
    pub log_path: String,
    /// Below the artifacts.
    pub manifest_path: String,
    /// What a named environment is made of.
    pub environment: Option<InlineEnvironment>,
    /// Refuse images on nodes without a container runtime.
    pub require_containers: bool,
    /// Bytes of log kept.
    pub log_limit: u64,
    /// Seconds between terminate and kill.
    pub grace: u64,
    /// Who submitted the job.
    pub created_by: Principal,
    /// Of the run's experiment, as MLflow's clients know it.
    pub experiment_id: String,
}

/// The member of an attempt that a node is given.
struct Member {
    rank: u32,
    addresses: Vec<String>,
    reservation: Reservation,
    failed: u32,
}

/// Where an input comes from.
#[derive(Clone, Debug)]
pub enum InputSource {
    /// A datastore.
    Store(Grant),
    /// The web.
    Url(String),
}

/// A place in a datastore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Which datastore.
    pub datastore: DatastoreName,
    /// Within it.
    pub path: String,
    /// Its folder, for nodes that share the daemon's file system.
    pub shared_root: Option<PathBuf>,
}

/// Turns a named environment into what it is made of.
pub(super) type Resolve = Box<dyn Fn(&AssetRef) -> Option<InlineEnvironment> + Send + Sync>;

/// The id of the experiment that a job's run is in.
pub(super) type ExperimentIds = Box<dyn Fn(&JobName) -> String + Send + Sync>;

/// Performs effects. Owns nothing that decisions depend on.
pub(super) struct Effects {
    pub door: Arc<Door>,
    pub roots: BTreeMap<DatastoreName, PathBuf>,
    pub artifact_store: DatastoreName,
    pub require_containers: bool,
    pub log_limit: u64,
    pub grace: u64,
    pub resolve: Resolve,
    pub experiment_id: ExperimentIds,
    /// Called when a job is over: its metrics can be sealed, and what it has not committed be dropped.
    pub over: Box<dyn Fn(&JobName) + Send + Sync>,
    /// Asked for clusters' nodes.
    pub providers: Providers,
}

impl Effects {
    /// Lets the attempts in that were alive when the daemon stopped.
    pub(super) fn resume<'a>(&self, jobs: impl Iterator<Item = &'a Job>) {
        for job in jobs {
            if let Some(key) = job.attempt_key() {
                self.door.admit_attempt(&key, &job.spec);
            }
        }
    }

    /// Does one thing. A node without a session misses it and is told again when it comes back.
    pub(super) fn perform<'a>(
        &self,
        effect: Effect,
        outbox: impl Fn(&NodeName) -> Option<&'a Outbox>,
    ) {
        let tell = |node: &NodeName, message: ToNode| {
            if let Some(outbox) = outbox(node) {
                // A closed session is noticed by its own task.
                let _ = outbox.send(message);
            }
        };
        match effect {
            Effect::Assign {
                node,
                key,
                spec,
                reservation,
                created_by,
                rank,
                addresses,
                failed,
            } => {
                crate::failpoint::hit("before-assign");
                let member = Member { rank, addresses, reservation, failed };
                let assignment = self.assignment(key, spec, member, created_by);
                tell(&node, ToNode::Assign(Box::new(assignment)));
            }
            Effect::Stop { node, key, reason } => tell(&node, ToNode::Stop { key, reason }),
            Effect::Acknowledge { node, key } => tell(&node, ToNode::Acknowledge(key)),
            Effect::Discard { node, key } => tell(&node, ToNode::Discard(key)),
            Effect::Release { node, key } => tell(&node, ToNode::Release(key)),
            Effect::AttemptOver { key } => self.door.dismiss_attempt(&key),
            Effect::JobOver { job } => (self.over)(&job),
            Effect::AddNode { cluster, node } => self.providers.add(*cluster, node),
            Effect::RemoveNode { cluster, node } => self.providers.remove(*cluster, node),
        }
    }

    fn assignment(
        &self,
        key: AttemptKey,
        spec: Arc<CommandJob>,
        member: Member,
        created_by: Principal,
    ) -> Assignment {
        let Member { rank, addresses, reservation, failed } = member;
        let token = self.door.admit_attempt(&key, &spec);
        let user_seed = self.door.user_seed(&key.job, &created_by);
        let inputs = spec
            .inputs
            .iter()
            .filter_map(|(name, input)| Some((name.clone(), self.source(input)?)))
            .collect();
        let outputs = spec
            .outputs
            .iter()
            .filter(|(_, output)| output.mode != OutputMode::Direct)
            .filter_map(|(name, output)| {
                let (datastore, path) = layout::parse_datastore_uri(output.path.as_deref()?)?;
                Some((name.clone(), self.grant(datastore, path)))
            })
            .collect();
        let environment = match &spec.environment {
            Environment::Named(named) => (self.resolve)(named),
            Environment::Host | Environment::Inline(_) => None,
        };
        Assignment {
            inputs,
            outputs,
            artifacts: self
                .grant(self.artifact_store.clone(), layout::artifact_root(key.job.as_str())),
            log_path: layout::log_path(key.attempt, rank * spec.processes_per_node()),
            manifest_path: layout::manifest_path(key.attempt, rank),
            environment,
            require_containers: self.require_containers,
            log_limit: self.log_limit,
            grace: self.grace,
            created_by,
            experiment_id: (self.experiment_id)(&key.job),
            token,
            user_seed,
            failed,
            rank,
            addresses,
            reservation,
            spec,
            key,
        }
    }

    fn source(&self, input: &Input) -> Option<InputSource> {
        let Input::Data { uri, mode, .. } = input else { return None };
        match uri {
            DataUri::Http(url) => Some(InputSource::Url(url.clone())),
            // The job reads it itself, by the address that it was given.
            DataUri::Cloud(address) if *mode == InputMode::Direct => {
                Some(InputSource::Url(address.clone()))
            }
            // All others were refused or resolved when the job was accepted.
            stored => {
                let (datastore, path) = stored.read_from()?;
                Some(InputSource::Store(self.grant(datastore, path)))
            }
        }
    }

    fn grant(&self, datastore: DatastoreName, path: String) -> Grant {
        let shared_root = self.roots.get(&datastore).cloned();
        Grant { datastore, path, shared_root }
    }
}
