//! Who adds and removes clusters' nodes.
//!
//! The reactor decides which nodes there shall be and asks a provider for each, by name. A provider
//! is asked at least once: again after a restart, and again after a failure. A second order for the
//! same node is taken for the first; an order to remove one ends an order to add it.

mod command;
mod local;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_core::access::Role;
use atelier_core::audit::Actor;
use atelier_core::compute::{Cluster, InstanceState, Provider};
use atelier_core::id::{ComputeName, NodeName, Principal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use crate::daemon::{Clock, Handle, Nodes, Provided};
use crate::identity::{Door, write_private};

/// Orders of one kind carried out at the same time for one cluster.
const AT_ONCE: usize = 16;

/// Why a provider could not do what it was asked, in words for the admin.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(pub(crate) String);

impl Failed {
    pub(crate) fn of(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// Carries orders out and tells the reactor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Providers {
    shared: Arc<Shared>,
}

struct Shared {
    site: Site,
    local: local::Local,
    /// Set once the daemon can be reached: no order is carried out before.
    handle: watch::Sender<Option<Handle>>,
    orders: Mutex<Orders>,
    room: Mutex<HashMap<(ComputeName, bool), Arc<Semaphore>>>,
}

#[derive(Default)]
struct Orders {
    by_node: HashMap<NodeName, Order>,
    watches: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to run something: so many at the same time for each cluster, and apart for adding and
    /// removing, so that one that hangs holds up nobody else.
    async fn room(&self, cluster: &ComputeName, adds: bool) -> Option<OwnedSemaphorePermit> {
        let room = {
            let mut rooms = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            let room = rooms.entry((cluster.clone(), adds));
            room.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
        };
        room.acquire_owned().await.ok()
    }
}

/// What a provider needs of the daemon.
pub(crate) struct Site {
    /// The daemon's folder.
    pub(crate) folder: PathBuf,
    /// Makes the nodes' tokens.
    pub(crate) door: Arc<Door>,
    /// Lets them in no more.
    pub(crate) nodes: Nodes,
    /// For the tokens' dates.
    pub(crate) clock: Clock,
}

impl Site {
    /// The folder of a node, below that of the daemon; it holds the node's token.
    pub(crate) fn node_folder(&self, node: &NodeName) -> PathBuf {
        self.folder.join("nodes").join(node.as_str())
    }

    /// Makes sure that the node's folder and token are there; the token's file.
    pub(crate) async fn token(&self, node: &NodeName) -> Result<PathBuf, Failed> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = self.node_folder(node);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| Failed::of(format!("cannot create {}", folder.display()), error))?;
        let file = folder.join("token");
        let what = || format!("cannot make the token of node {node}");
        let principal =
            Principal::new(&format!("node:{node}")).map_err(|e| Failed::of(what(), e))?;
        let role = Role::Node(node.clone());
        self.door
            .token_file(&file, principal, role, self.clock.wall())
            .await
            .map_err(|error| Failed::of(what(), error))?;
        Ok(file)
    }

    /// Makes a join token for the node, which opens for so long, in the place of one that was made before; its file.
    pub(crate) async fn join_token(
        &self,
        node: &NodeName,
        compute: &ComputeName,
        opens: Duration,
    ) -> Result<PathBuf, Failed> {
        let what = || format!("cannot make the join token of node {node}");
        let by = Principal::new("daemon").map_err(|error| Failed::of(what(), error))?;
        let by = Actor::daemon(by, "node added");
        let (compute, name) = (Some(compute.clone()), Some(node.clone()));
        let made = self.nodes.make_token(compute, name, Some(opens), by).await;
        let made = made.map_err(|error| Failed::of(what(), error))?;
        let file = self.node_folder(node).join("join.token");
        let written = write_private(&file, format!("{}\n", made.token).as_bytes());
        written.map_err(|error| Failed::of(what(), error))?;
        Ok(file)
    }

    /// Makes the node's token worthless and removes its folder with all that is in it.
    pub(crate) async fn clear(&self, node: &NodeName) -> Result<(), Failed> {
        let revoked = self.nodes.forget(node).await;
        revoked.map_err(|e| Failed::of(format!("cannot revoke the token of node {node}"), e))?;
        let folder = self.node_folder(node);
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failed::of(format!("cannot remove {}", folder.display()), error))
            }
            _ => Ok(()),
        }
    }
}

/// An order that is being carried out.
struct Order {
    adds: bool,
    task: JoinHandle<()>,
}

impl Providers {
    pub(crate) fn new(site: Site) -> Self {
        let shared = Shared {
            site,
            local: local::Local::default(),
            handle: watch::Sender::new(None),
            orders: Mutex::default(),
            room: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins to tell the reactor, and takes up what was there when the daemon stopped.
    pub(crate) async fn start(&self, handle: Handle) {
        let known = handle
            .look(|live, _| {
                let cluster = |instance: &atelier_core::compute::Instance| {
                    live.compute(&instance.compute)?.cluster.clone()
                };
                let there = |state: &InstanceState| {
                    !matches!(state, InstanceState::Creating { .. } | InstanceState::Leaving { .. })
                };
                live.instances()
                    .filter(|instance| there(&instance.state))
                    .filter_map(|instance| Some((instance.node.clone(), cluster(instance)?)))
                    .collect::<Vec<_>>()
            })
            .await
            .unwrap_or_default();
        for (node, cluster) in known {
            if cluster.provider == Provider::Local {
                self.shared.local.adopt(&self.shared.site, node, &cluster);
            }
        }
        self.shared.handle.send_replace(Some(handle));
        let shared = Arc::downgrade(&self.shared);
        let mut orders = self.shared.orders();
        orders.watches.push(tokio::spawn(local::watch(shared.clone())));
        orders.watches.push(tokio::spawn(command::watch(shared)));
    }

    /// Ends what is being carried out, with the programs that run for it. It is asked for again when
    /// the daemon is back.
    pub(crate) async fn stop(&self) {
        let (by_node, watches) = {
            let mut orders = self.shared.orders();
            orders.stopped = true;
            (std::mem::take(&mut orders.by_node), std::mem::take(&mut orders.watches))
        };
        let tasks: Vec<JoinHandle<()>> =
            by_node.into_values().map(|order| order.task).chain(watches).collect();
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            // Aborted, or done.
            let _ = task.await;
        }
    }

    pub(crate) fn add(&self, cluster: Cluster, node: NodeName) {
        self.order(cluster, node, true);
    }

    pub(crate) fn remove(&self, cluster: Cluster, node: NodeName) {
        self.order(cluster, node, false);
    }

    fn order(&self, cluster: Cluster, node: NodeName, adds: bool) {
        let mut orders = self.shared.orders();
        if orders.stopped {
            return;
        }
        orders.by_node.retain(|_, order| !order.task.is_finished());
        let before = orders.by_node.remove(&node);
        if let Some(order) = before.as_ref().filter(|order| order.adds == adds || adds) {
            // A second order is taken for the first, and adding never follows removing.
            tracing::debug!(%node, adds, busy_adding = order.adds, "an order is under way already");
            orders.by_node.extend(before.map(|order| (node, order)));
            return;
        }
        let shared = self.shared.clone();
        let task = tokio::spawn(carry_out(shared, cluster, node.clone(), adds, before));
        orders.by_node.insert(node, Order { adds, task });
    }
}

async fn carry_out(
    shared: Arc<Shared>,
    cluster: Cluster,
    node: NodeName,
    adds: bool,
    before: Option<Order>,
) {
    let mut handle = shared.handle.subscribe();
    let handle = match handle.wait_for(Option::is_some).await {
        Ok(handle) => handle.clone(),
        Err(_) => return,
    };
    if let Some(order) = before {
        order.task.abort();
        // Whatever it had begun must have ended, or it would go on behind this one's back.
        let _ = order.task.await;
    }
    let site = &shared.site;
    let what = if adds { "add" } else { "remove" };
    tracing::info!(%node, cluster = %cluster.name, what, "a node is asked for");
    let done = match (&cluster.provider, adds) {
        (Provider::Local, true) => shared.local.add(site, &node, &cluster).await,
        (Provider::Local, false) => shared.local.remove(site, &node).await,
        (Provider::Command(program), true) => command::add(&shared, program, &node, &cluster).await,
        (Provider::Command(program), false) => {
            command::remove(&shared, program, &node, &cluster).await
        }
        // Nobody asks for them.
        (Provider::Joined, _) => Ok(()),
    };
    if let Err(error) = &done {
        tracing::warn!(%node, cluster = %cluster.name, what, %error, "a provider failed");
    }
    let result = done.map_err(|error| error.to_string());
    let word =
        if adds { Provided::Added { node, result } } else { Provided::Removed { node, result } };
    if let Some(handle) = handle {
        // The daemon may be stopping.
        let _ = handle.provided(word).await;
    }
}
