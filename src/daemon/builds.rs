//! Environments that nodes make ready before a job needs them: each is asked over its session, and what it
//! tells is brought to who asked.

use std::sync::Arc;
use std::time::Duration;

use atelier_core::id::NodeName;
use atelier_core::spec::InlineEnvironment;
use atelier_proto::agent::v1::BuildReport;
use atelier_proto::environment::v1::{BuildResult, NodeBuild};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::asked::Asked;
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
    asked: Arc<Asked<mpsc::Sender<BuildReport>>>,
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
    #[error(
        "{FOLLOWED} builds are followed in this workspace already; ask again when some are ready, or with fewer nodes"
    )]
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
        let (sender, mut reports) = mpsc::channel(WAITING);
        let is_full = |asked: &mut dyn Iterator<Item = &NodeName>| asked.count() >= FOLLOWED;
        let place = self.asked.enter(node, sender, is_full).ok_or(Error::Busy)?;
        let environment = Box::new(environment);
        let message = ToNode::Build { request: place.request, environment, require_containers };
        let session = self.handle.tell(node.clone(), message).await?.ok_or(Error::Away)?;
        place.over(session);
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

    /// Takes what a node tells. Whoever asked may have gone away, or be so slow that progress is left out; the
    /// result is not.
    pub fn told(&self, node: &NodeName, report: BuildReport) {
        self.asked.told(node, report.request_id, |reports| match reports.try_send(report) {
            Ok(()) => true,
            Err(TrySendError::Full(last)) if last.result.is_some() => {
                let reports = reports.clone();
                // Ends when they have taken it, or are gone.
                tokio::spawn(async move { reports.send(last).await });
                true
            }
            Err(TrySendError::Full(_)) => true,
            Err(TrySendError::Closed(_)) => false,
        });
    }

    /// A node's session ended: it tells nobody over it any more.
    pub fn session_ended(&self, node: &NodeName, session: u64) {
        self.asked.session_ended(node, session);
    }
}

fn of(node: &NodeName) -> NodeBuild {
    NodeBuild { node: node.to_string(), ..NodeBuild::default() }
}
