//! What nodes keep of what they built and fetched: each is asked over its session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_core::id::NodeName;
use atelier_proto::compute::v1::{NodeCache, PruneNodeCacheRequest};
use tokio::sync::oneshot;

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
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Asker>>,
}

struct Asker {
    node: NodeName,
    answer: oneshot::Sender<NodeCache>,
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
        let request = self.asked.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, told) = oneshot::channel();
        let _guard = self.asked.enter(request, Asker { node: node.clone(), answer })?;
        let message = ToNode::AskCache { request, prune };
        if !self.handle.tell(node.clone(), message).await? {
            return Err(Error::Away(node));
        }
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(cache)) => Ok(cache),
            Ok(Err(_)) => Err(Error::Away(node)),
            Err(_) => Err(Error::Silent { node }),
        }
    }

    /// Takes a node's answer. Whoever asked may have gone away.
    pub fn told(&self, node: &NodeName, request: u64, cache: NodeCache) {
        let mut open = self.asked.open();
        if open.get(&request).is_some_and(|asker| &asker.node == node)
            && let Some(asker) = open.remove(&request)
        {
            let _ = asker.answer.send(cache);
        }
    }

    /// A node's session ended: it answers nobody any more.
    pub fn node_gone(&self, node: &NodeName) {
        self.asked.open().retain(|_, asker| &asker.node != node);
    }
}

impl Asked {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Asker>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, request: u64, asker: Asker) -> Result<Guard<'_>, Error> {
        let mut open = self.open();
        if open.values().filter(|other| other.node == asker.node).count() >= ASKERS {
            return Err(Error::Busy(asker.node));
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
