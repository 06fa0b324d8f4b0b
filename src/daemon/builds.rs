//! Environments that nodes make ready before a job needs them: each is asked over its session, and what it
//! tells is brought to who asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_core::id::NodeName;
use atelier_core::spec::InlineEnvironment;
use atelier_proto::agent::v1::BuildReport;
use atelier_proto::environment::v1::{BuildResult, NodeBuild};
use tokio::sync::mpsc;

use super::effects::ToNode;
use super::handle::{self, Handle};

/// How long a node may take to begin. One whose agent knows nothing of builds never does.
const BEGIN: Duration = Duration::from_secs(45);
/// Reports of a node that wait for who asked; a node sends some a second at most.
const WAITING: usize = 256;
/// Builds that are followed at once in this workspace.
const FOLLOWED: usize = 1000;

/// Asks nodes for environments.
#[derive(Clone)]
pub struct Builds {
    handle: Handle,
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Asker>>,
}

struct Asker {
    node: NodeName,
    reports: mpsc::Sender<BuildReport>,
}

/// Why a node's build is not followed to its end.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// It has no session, or lost it.
    #[error("it has no session with the daemon any more; what it builds goes on")]
    Away,
    /// It has not begun in time.
    #[error(
        "it has not begun within {} s; its agent may be of a version that builds nothing ahead of a job",
        BEGIN.as_secs()
    )]
    Silent,
    /// Too many are followed.
    #[error("{FOLLOWED} builds are followed in this workspace already")]
    Busy,
    /// The reactor failed.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

impl Builds {
    /// Nobody has been asked.
    pub fn new(handle: Handle) -> Self {
        Self { handle, asked: Arc::default() }
    }

    /// Has each of these nodes make the environment ready, and tells what they tell; the last of each node
    /// has its result. They go on when nobody listens any more.
    pub fn start(
        &self,
        nodes: &[NodeName],
        environment: &InlineEnvironment,
        require_containers: bool,
    ) -> mpsc::Receiver<NodeBuild> {
        let (out, told) = mpsc::channel(WAITING);
        for node in nodes {
            let (builds, out) = (self.clone(), out.clone());
            let (node, environment) = (node.clone(), environment.clone());
            tokio::spawn(async move {
                let followed = builds.follow(&node, environment, require_containers, &out);
                let ended = tokio::select! {
                    ended = followed => ended,
                    () = out.closed() => return,
                };
                if let Err(error) = ended {
                    let result = BuildResult { error: error.to_string(), ..BuildResult::default() };
                    let last = NodeBuild { result: Some(result), ..of(&node) };
                    // Nobody may listen any more.
                    let _ = out.send(last).await;
                }
            });
        }
        told
    }

    async fn follow(
        &self,
        node: &NodeName,
        environment: InlineEnvironment,
        require_containers: bool,
        out: &mpsc::Sender<NodeBuild>,
    ) -> Result<(), Error> {
        let request = self.asked.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, mut reports) = mpsc::channel(WAITING);
        let _guard = self.asked.enter(request, Asker { node: node.clone(), reports: sender })?;
        let environment = Box::new(environment);
        let message = ToNode::Build { request, environment, require_containers };
        if !self.handle.tell(node.clone(), message).await? {
            return Err(Error::Away);
        }
        let mut report =
            tokio::time::timeout(BEGIN, reports.recv()).await.map_err(|_| Error::Silent)?;
        loop {
            let BuildReport { lines, result, .. } = report.ok_or(Error::Away)?;
            let is_last = result.is_some();
            if out.send(NodeBuild { lines, result, ..of(node) }).await.is_err() || is_last {
                return Ok(());
            }
            report = reports.recv().await;
        }
    }

    /// Takes what a node tells. Whoever asked may have gone away, or be so slow that it is given up.
    pub fn told(&self, node: &NodeName, report: BuildReport) {
        let request = report.request_id;
        let mut open = self.asked.open();
        if let Some(asker) = open.get(&request)
            && &asker.node == node
            && asker.reports.try_send(report).is_err()
        {
            open.remove(&request);
        }
    }

    /// A node's session ended: it tells nobody any more.
    pub fn node_gone(&self, node: &NodeName) {
        self.asked.open().retain(|_, asker| &asker.node != node);
    }
}

fn of(node: &NodeName) -> NodeBuild {
    NodeBuild { node: node.to_string(), ..NodeBuild::default() }
}

impl Asked {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Asker>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, request: u64, asker: Asker) -> Result<Guard<'_>, Error> {
        let mut open = self.open();
        if open.len() >= FOLLOWED {
            return Err(Error::Busy);
        }
        open.insert(request, asker);
        Ok(Guard { asked: self, request })
    }
}

/// Forgets who asked when they no longer wait.
struct Guard<'a> {
    asked: &'a Asked,
    request: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.asked.open().remove(&self.request);
    }
}
