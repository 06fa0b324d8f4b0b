//! What nodes keep of what they built and fetched: each is asked over its session.

use std::sync::Arc;
use std::time::Duration;

use atelier_core::id::NodeName;
use atelier_proto::compute::v1::{NodeCache, PruneNodeCacheRequest};
use tokio::sync::oneshot;

use super::asked::Asked;
use super::effects::ToNode;
use super::handle::{self, Handle};

/// How long a node may take: less than a client waits for a call.
const ANSWER: Duration = Duration::from_secs(45);
/// How many may ask a node at once; it looks through its disk for each.
const ASKERS: usize = 8;

/// Asks nodes what they keep, and brings each answer to who asked.
#[derive(Clone)]
pub struct NodeCaches {
    handle: Handle,
    /// `None` once it is given.
    asked: Arc<Asked<Option<oneshot::Sender<NodeCache>>>>,
}

/// Why a node did not tell.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no session, or lost it while it was asked.
    #[error(
        "node '{0}' cannot be asked what it keeps: it has no session with the daemon; see why with \
         'atelier node show {0}', and ask again when it is back"
    )]
    Away(NodeName),
    /// It has not answered in time.
    #[error(
        "node '{node}' did not tell what it keeps within {seconds} s; if it was to remove something \
         it goes on, look later with 'atelier node cache show {node}'",
        seconds = ANSWER.as_secs()
    )]
    Silent {
        /// Which.
        node: NodeName,
    },
    /// Too many ask it.
    #[error("node '{0}' is asked what it keeps by {ASKERS} others at this moment")]
    Busy(NodeName),
    /// The reactor failed.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

impl NodeCaches {
    /// Nobody has been asked.
    pub fn new(handle: Handle) -> Self {
        Self { handle, asked: Arc::default() }
    }

    /// What the node keeps; with `prune` after it has removed what that says.
    ///
    /// # Errors
    /// The node cannot be asked, or does not answer in time.
    pub async fn ask(
        &self,
        node: NodeName,
        prune: Option<PruneNodeCacheRequest>,
    ) -> Result<NodeCache, Error> {
        let (answer, told) = oneshot::channel();
        let is_full = |asked: &mut dyn Iterator<Item = &NodeName>| {
            asked.filter(|other| **other == node).count() >= ASKERS
        };
        let Some(place) = self.asked.enter(&node, Some(answer), is_full) else {
            return Err(Error::Busy(node));
        };
        let message = ToNode::AskCache { request: place.request, prune };
        let Some(session) = self.handle.tell(node.clone(), message).await? else {
            return Err(Error::Away(node));
        };
        place.over(session);
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(cache)) => Ok(cache),
            Ok(Err(_)) => Err(Error::Away(node)),
            Err(_) => Err(Error::Silent { node }),
        }
    }

    /// Takes a node's answer. Whoever asked may have gone away.
    pub fn told(&self, node: &NodeName, request: u64, cache: NodeCache) {
        self.asked.told(node, request, |answer| {
            // They may be gone.
            let _ = answer.take().map(|answer| answer.send(cache));
            true
        });
    }

    /// A node's session ended: it answers nobody over it any more.
    pub fn session_ended(&self, node: &NodeName, session: u64) {
        self.asked.session_ended(node, session);
    }
}
