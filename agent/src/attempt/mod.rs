//! One attempt at a job, from its assignment to the report of its end.
//!
//! ```text
//! Prepare -> Launch -> Watch -> Finalize -> Ended
//! ```
//! Each arrow leaves a record in the attempt's folder, so that a new agent goes on where the old
//! one was killed (see [`reattach`]). All but the command itself may be done twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atelier_core::spec::CommandJob;
use atelier_proto::agent::v1 as pb;
use tokio::sync::{Mutex, mpsc, watch};

use crate::cgroup::Cgroups;
use crate::clock;
use crate::container::Containers;
use crate::data::DataPlane;
use crate::disk::Reserve;
use crate::environment::Environments;
use crate::exec::Entrance;
use crate::gpu::Devices;
use crate::isolation::{Abilities, Users};
use crate::looks::Looks;
use crate::monitor;
use crate::reach::Closed;
use crate::session::Client;
use crate::spool::{self, Spools};
use crate::supervisor::{Launcher, Lease};
use crate::trust::Trust;

mod apart;
mod caught;
mod contain;
mod distribution;
mod finalize;
mod folder;
mod kept;
mod launch;
mod lost;
mod mounted;
mod moved;
mod prepare;
mod problem;
mod process;
mod reattach;
mod remove;
mod run;
mod secrets;
mod spares;
mod uncommitted;
mod variables;

pub use variables::MARK as ATTEMPT_MARK;

pub(crate) use contain::{note as note_container, of as container_of, remove as remove_container};
pub(crate) use folder::Folder;
pub(crate) use kept::{Kept, let_go, make_room, make_whole, watch as watch_kept};
pub(crate) use launch::{NEEDED, hidden, some_need_control};
pub(crate) use prepare::{images, surroundings};
pub(crate) use problem::{of as problem_of, problem as make_problem};
pub(crate) use process::{Supervised, supervised};
pub(crate) use reattach::{Decision, Loss, decide, end_forgotten, look};
pub(crate) use remove::remove_tree;
pub(crate) use run::run;
pub(crate) use spares::Spares;
pub(crate) use variables::{MARK, inherited};

/// What all attempts on a node share.
pub(crate) struct Node {
    /// The agent's folder, with all that is below.
    pub(crate) root: PathBuf,
    /// `attempts/`
    pub(crate) attempts: PathBuf,
    pub(crate) spares: Spares,
    /// What failed attempts left.
    pub(crate) kept: Kept,
    /// The shell that runs commands.
    pub(crate) shell: PathBuf,
    pub(crate) boot_id: String,
    /// See [`inherited`].
    pub(crate) inherited: BTreeMap<String, String>,
    pub(crate) launcher: Launcher,
    pub(crate) cgroups: Arc<Cgroups>,
    pub(crate) lease: Lease,
    pub(crate) lease_path: PathBuf,
    /// How often the lease has run out.
    pub(crate) leases_lost: AtomicU64,
    /// Bytes of log that this node keeps at most, whatever the assignment allows.
    pub(crate) log_limit: Option<u64>,
    pub(crate) log_rate: Option<u64>,
    /// Processes and threads of one job at most, whatever its size.
    pub(crate) process_limit: Option<u64>,
    /// How far commands see the node as [`crate::isolation`] says; `None`: they see all of it.
    pub(crate) isolated: Option<Abilities>,
    /// Whom isolated commands run as; `None`: as this agent's user.
    pub(crate) users: Option<Users>,
    /// Holds the node's own token, if a file does.
    pub(crate) token_file: Option<PathBuf>,
    /// The room that no job may take.
    pub(crate) reserve: Arc<Reserve>,
    /// What isolated commands may write besides their own folders.
    pub(crate) writable: Vec<PathBuf>,
    pub(crate) looks: Looks,
    /// How long killed processes may take to die.
    pub(crate) kill_patience_ms: u64,
    pub(crate) news: mpsc::UnboundedSender<News>,
    /// What the daemon offers, from its newest Welcome; `None` before the first.
    pub(crate) services: watch::Receiver<Option<Arc<Services>>>,
    /// Why inputs cannot be mounted on this machine; `None`: they can.
    pub(crate) no_mounts: Option<String>,
    /// Whether inputs that jobs may change can be merged of the cache and those changes, as far as is known.
    pub(crate) merges: AtomicBool,
    /// How long a read of a mounted input waits for the daemon.
    pub(crate) mount_patience: Duration,
    /// Whether the session stands.
    pub(crate) connected: watch::Receiver<bool>,
    pub(crate) environments: Environments,
    /// What runs jobs that name an image; `None`: nothing here does.
    pub(crate) containers: Option<Containers>,
    /// See [`crate::container::own_variables`].
    pub(crate) runtime_variables: BTreeMap<String, String>,
    pub(crate) monitor: monitor::Handle,
    pub(crate) devices: Arc<Devices>,
    /// Where jobs log; `None`: at the daemon itself.
    pub(crate) spools: Option<Spools>,
}

/// What an attempt needs of a daemon.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) client: Client,
    pub(crate) data: DataPlane,
    pub(crate) http_url: String,
    /// Who vouches for the daemon, there and everywhere.
    pub(crate) trust: Trust,
    /// Whether that is at a port for jobs alone.
    pub(crate) apart: bool,
    pub(crate) workspace: String,
    pub(crate) workspace_id: String,
    /// The daemon's folder and those of its vault's keys, if it is on this machine.
    pub(crate) hidden: Vec<PathBuf>,
    /// Files with such keys that lie elsewhere.
    pub(crate) masked: Vec<PathBuf>,
    /// Where jobs have no way to.
    pub(crate) closed: Arc<Closed>,
}

/// What attempts tell the session.
#[derive(Debug)]
pub(crate) enum News {
    /// Where an attempt stands now.
    Report(Box<pb::AttemptReport>),
    /// What is kept of failed attempts has changed.
    Kept,
    /// What the cache holds of inputs.
    Held(pb::HeldInputs),
    /// A discarded attempt is dead and its folder is gone.
    Gone(u64),
}

/// What the session wants of an attempt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Order {
    #[default]
    Run,
    /// End it, keep what it wrote, report.
    Cancel(String),
    /// Kill it and forget it.
    Discard,
}

/// An attempt as its task holds it.
pub(crate) struct Attempt {
    pub(crate) node: Arc<Node>,
    pub(crate) key: pb::AttemptKey,
    pub(crate) folder: Folder,
    pub(crate) assignment: pb::Assignment,
    pub(crate) spec: CommandJob,
    pub(crate) orders: watch::Receiver<Order>,
    /// [`Node::leases_lost`] when the node took it.
    pub(crate) under_lease: u64,
    /// Turns true when the log has its last byte.
    pub(crate) log_complete: watch::Sender<bool>,
    pub(crate) entrance: Entrance,
    /// Where it logs; `None`: at the daemon itself.
    pub(crate) spool: Option<spool::Held>,
    /// Held by who mounts or unmounts its inputs.
    pub(crate) mounting: Arc<Mutex<()>>,
}

impl Attempt {
    /// Whether the lease has run out since the node took this attempt. Then the daemon may have given
    /// it up and started another, and will say so only after it has renewed the lease.
    fn has_outlived_its_lease(&self) -> bool {
        let until = self.node.lease.until().unwrap_or(0);
        clock::boottime_ms() >= until
            || self.node.leases_lost.load(Ordering::Relaxed) != self.under_lease
    }

    fn report(&self, phase: pb::attempt_report::Phase) {
        let report = pb::AttemptReport { key: Some(self.key.clone()), phase: Some(phase) };
        // The session outlives all attempts; if it is gone, so is this process.
        let _ = self.node.news.send(News::Report(Box::new(report)));
    }

    /// The newest services; waits for the first.
    async fn services(&self) -> Arc<Services> {
        let mut services = self.node.services.clone();
        loop {
            if let Some(services) = services.borrow_and_update().clone() {
                return services;
            }
            if services.changed().await.is_err() {
                // The session ended, and with it this runtime.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The order that stands, once it is another than to run.
    async fn interrupted(&self) -> Order {
        let mut orders = self.orders.clone();
        let order =
            orders.wait_for(|order| *order != Order::Run).await.ok().map(|order| order.clone());
        match order {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }

    /// Once it is to be discarded.
    async fn discarded(&self) {
        let mut orders = self.orders.clone();
        let session_ended = orders.wait_for(|order| *order == Order::Discard).await.is_err();
        if session_ended {
            std::future::pending::<()>().await;
        }
    }
}

/// The shell that runs commands: bash, which Azure uses, or else what every machine has.
pub(crate) fn find_shell() -> PathBuf {
    ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
        .unwrap_or(Path::new("/bin/sh"))
        .to_owned()
}
