//! A job's log, live from any offset, across attempts and restarts.
//!
//! While an attempt lives, its node's file is the log and the node pushes it on demand; when it is
//! over, the stored object is. Both are addressed by byte offset within the attempt, so a watcher
//! that moves from one to the other neither loses nor repeats a byte.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use atelier_core::id::{AttemptNumber, JobName, NodeName};
use atelier_core::job::{Event, Job, State};
use atelier_core::layout;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{broadcast, mpsc};

use super::effects::ToNode;
use super::handle::{self, Handle};
use crate::storage::{self, Datastores, ObjectPath};
use crate::store::{self, Store};

/// Routes pushed logs to those who watch.
#[derive(Clone)]
pub struct LogHub {
    store: Arc<dyn Store>,
    datastores: Datastores,
    handle: Handle,
    requests: Arc<Requests>,
}

#[derive(Default)]
struct Requests {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Watch>>,
}

struct Watch {
    node: NodeName,
    pieces: mpsc::Sender<Pushed>,
}

/// What a node pushed.
enum Pushed {
    Bytes(u64, Bytes),
    End,
}

/// Some bytes of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPiece {
    /// Whose.
    pub attempt: AttemptNumber,
    /// Of the first byte, within the attempt.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// From where on a log is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogStart {
    /// Whose: the process's rank over all members.
    pub rank: u32,
    /// In which attempt.
    pub attempt: AttemptNumber,
    /// The first byte within it.
    pub offset: u64,
}

/// Why a log cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such job.
    #[error("there is no job '{0}'; see 'atelier job list'")]
    NoSuchJob(JobName),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The reactor failed.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

/// Pieces a slow watcher may lag behind before its node waits.
const PIECES: usize = 32;

impl LogHub {
    /// A hub without watchers.
    pub fn new(store: Arc<dyn Store>, datastores: Datastores, handle: Handle) -> Self {
        Self { store, datastores, handle, requests: Arc::default() }
    }

    /// Takes what a node pushed. `false`: nobody watches any more, so the node may stop.
    pub async fn pushed(
        &self,
        node: &NodeName,
        request: u64,
        offset: u64,
        data: Bytes,
        end: bool,
    ) -> bool {
        let pieces = {
            let open = self.requests.open.lock().unwrap_or_else(|p| p.into_inner());
            match open.get(&request) {
                Some(watch) if &watch.node == node => watch.pieces.clone(),
                _ => return false,
            }
        };
        if !data.is_empty() && pieces.send(Pushed::Bytes(offset, data)).await.is_err() {
            return false;
        }
        !end || pieces.send(Pushed::End).await.is_ok()
    }

    /// A node hung up: this watcher asks again.
    pub fn push_ended(&self, node: &NodeName, request: u64) {
        let mut open = self.requests.open.lock().unwrap_or_else(|p| p.into_inner());
        open.retain(|id, watch| *id != request || &watch.node != node);
    }

    /// A node's session ended: its watchers ask again.
    pub fn node_gone(&self, node: &NodeName) {
        let mut open = self.requests.open.lock().unwrap_or_else(|p| p.into_inner());
        open.retain(|_, watch| &watch.node != node);
    }

    /// Sends a member's log from a place on. With `follow`, until the job is over.
    pub async fn stream(
        self,
        name: JobName,
        from: LogStart,
        follow: bool,
        out: mpsc::Sender<Result<LogPiece, Error>>,
    ) {
        let LogStart { rank, attempt, offset } = from;
        let mut place = Place { rank, attempt: AttemptNumber(attempt.0.max(1)), offset };
        if let Err(error) = self.run(&name, &mut place, follow, &out).await
            && let Some(error) = error
        {
            // The watcher may have gone away.
            let _ = out.send(Err(error)).await;
        }
    }

    /// `Err(None)`: the watcher has gone away.
    async fn run(
        &self,
        name: &JobName,
        place: &mut Place,
        follow: bool,
        out: &mpsc::Sender<Result<LogPiece, Error>>,
    ) -> Result<(), Option<Error>> {
        loop {
            // Before looking, lest something happens in between.
            let mut events = self.handle.events();
            let job = self
                .store
                .job(name)
                .map_err(|e| Some(e.into()))?
                .ok_or_else(|| Some(Error::NoSuchJob(name.clone())))?;
            match whereabouts(&job, place) {
                Whereabouts::Stored { last } => {
                    self.stored(&job, place, out).await?;
                    if last {
                        return Ok(());
                    }
                    *place = Place { attempt: place.attempt.next(), offset: 0, ..*place };
                }
                Whereabouts::OnNode(node) => {
                    let told = self.live(&job, node, place, follow, out).await?;
                    if !follow {
                        return Ok(());
                    }
                    // What happened meanwhile is known: it must not make us ask again.
                    events = self.handle.events();
                    if !told {
                        // The node is away; it may come back without a word about this job.
                        let _ = tokio::time::timeout(ASK_AGAIN, changed(&mut events, name)).await;
                    } else if self.still_there(&job, place)? {
                        changed(&mut events, name).await;
                    }
                }
                Whereabouts::StoredSoFar => {
                    self.stored(&job, place, out).await?;
                    if !follow {
                        return Ok(());
                    }
                    changed(&mut events, name).await;
                }
                Whereabouts::Nowhere if follow => changed(&mut events, name).await,
                Whereabouts::Nowhere => return Ok(()),
            }
        }
    }

    /// Whether the attempt has not moved on since `job` was read.
    fn still_there(&self, job: &Job, place: &Place) -> Result<bool, Option<Error>> {
        let fresh = self.store.job(&job.name).map_err(|e| Some(e.into()))?;
        Ok(fresh.is_some_and(|fresh| matches!(whereabouts(&fresh, place), Whereabouts::OnNode(_))))
    }

    async fn stored(
        &self,
        job: &Job,
        place: &mut Place,
        out: &mpsc::Sender<Result<LogPiece, Error>>,
    ) -> Result<(), Option<Error>> {
        let key = format!(
            "{}/{}",
            layout::artifact_root(job.name.as_str()),
            layout::log_path(place.attempt, place.rank)
        );
        let read = async {
            let path = ObjectPath::new(&key).map_err(storage::Error::from)?;
            self.datastores.get(layout::ARTIFACT_STORE)?.open(&path).await
        };
        let opened = match read.await {
            Ok(opened) => opened,
            // An attempt that never printed, or was lost with its node.
            Err(storage::Error::NotFound(_)) => return Ok(()),
            Err(error) => return Err(Some(error.into())),
        };
        let size = opened.meta.size;
        if place.offset >= size {
            return Ok(());
        }
        let mut bytes = opened.stream(place.offset..size);
        while let Some(piece) = bytes.next().await {
            let data = piece.map_err(|e| Some(e.into()))?;
            place.send(data, out).await?;
        }
        Ok(())
    }

    /// Follows the node's file. `false`: the node could not be asked.
    async fn live(
        &self,
        job: &Job,
        node: NodeName,
        place: &mut Place,
        follow: bool,
        out: &mpsc::Sender<Result<LogPiece, Error>>,
    ) -> Result<bool, Option<Error>> {
        let Some(key) = job.attempt_key() else { return Ok(false) };
        let request = self.requests.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (pieces, mut pushed) = mpsc::channel(PIECES);
        let watch = Watch { node: node.clone(), pieces };
        self.requests.open.lock().unwrap_or_else(|p| p.into_inner()).insert(request, watch);
        let _guard = Guard { requests: &self.requests, request };
        let mut events = self.handle.events();
        let process = place.rank % job.spec.processes_per_node();
        let message = ToNode::FollowLog { request, key, process, offset: place.offset, follow };
        let heard = self.handle.tell(node, message).await.map_err(|e| Some(e.into()))?;
        if heard.is_none() || !self.still_there(job, place)? {
            return Ok(false);
        }
        loop {
            let piece = tokio::select! {
                piece = pushed.recv() => piece,
                () = out.closed() => return Err(None),
                // Once the attempt is over its node may have forgotten it, and never answers.
                () = changed(&mut events, &job.name) => {
                    if self.still_there(job, place)? {
                        continue;
                    }
                    // All of it is stored by now; what has arrived need not be read again.
                    while let Ok(Pushed::Bytes(offset, data)) = pushed.try_recv() {
                        place.take(offset, data, out).await?;
                    }
                    return Ok(true);
                }
            };
            match piece {
                Some(Pushed::Bytes(offset, data)) => place.take(offset, data, out).await?,
                Some(Pushed::End) => return Ok(true),
                None => return Ok(false),
            }
        }
    }
}

/// How soon a watcher asks again for the log of a node that is away.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

struct Guard<'a> {
    requests: &'a Requests,
    request: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.requests.open.lock().unwrap_or_else(|p| p.into_inner()).remove(&self.request);
    }
}

/// The next byte that a watcher wants.
#[derive(Clone, Copy)]
struct Place {
    rank: u32,
    attempt: AttemptNumber,
    offset: u64,
}

impl Place {
    async fn send(
        &mut self,
        data: Bytes,
        out: &mpsc::Sender<Result<LogPiece, Error>>,
    ) -> Result<(), Option<Error>> {
        let piece = LogPiece { attempt: self.attempt, offset: self.offset, data };
        self.offset += piece.data.len() as u64;
        out.send(Ok(piece)).await.map_err(|_| None)
    }

    /// Takes what is new of a pushed piece. One that leaves a gap is dropped: what it holds comes
    /// again from the stored log.
    async fn take(
        &mut self,
        offset: u64,
        mut data: Bytes,
        out: &mpsc::Sender<Result<LogPiece, Error>>,
    ) -> Result<(), Option<Error>> {
        if offset > self.offset {
            return Ok(());
        }
        let known = usize::try_from(self.offset - offset).unwrap_or(usize::MAX);
        if known >= data.len() {
            return Ok(());
        }
        let _ = data.split_to(known);
        self.send(data, out).await
    }
}

enum Whereabouts {
    /// In storage; whether it is the job's last attempt.
    Stored {
        last: bool,
    },
    /// In storage, although the attempt goes on: its other members do.
    StoredSoFar,
    OnNode(NodeName),
    /// There is no such attempt yet.
    Nowhere,
}

fn whereabouts(job: &Job, place: &Place) -> Whereabouts {
    let attempt = place.attempt;
    match &job.state {
        State::Active(active) if active.attempt == attempt => {
            let member = place.rank / job.spec.processes_per_node();
            match active.members().nth(member as usize) {
                Some(member) if member.end.is_none() => Whereabouts::OnNode(member.node.clone()),
                Some(_) | None => Whereabouts::StoredSoFar,
            }
        }
        State::Ended(_) if attempt >= job.tries.made => Whereabouts::Stored { last: true },
        _ if attempt <= job.tries.made => Whereabouts::Stored { last: false },
        _ => Whereabouts::Nowhere,
    }
}

/// Returns when something has happened to the job (or may have).
async fn changed(events: &mut broadcast::Receiver<Arc<Event>>, name: &JobName) {
    loop {
        match events.recv().await {
            Ok(event) if &event.job == name => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => {
                // The daemon is stopping: the watcher's stream ends with it.
                std::future::pending::<()>().await;
            }
        }
    }
}
