//! Channels into running jobs: a client's stream and its node's, joined end to end.
//!
//! Nothing is kept here: what one side does not read, the other cannot send, by the flow control of the
//! two connections. A channel is over when either side leaves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atelier_core::audit::Actor;
use atelier_core::id::{JobName, NodeName, Principal};
use atelier_core::job::AttemptKey;
use atelier_core::live::{Entered, Entering};
use atelier_core::spec::quote;
use atelier_proto::agent::v1 as agent_pb;
use atelier_proto::job::v1 as pb;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use pb::open_channel::What;
use tokio::sync::{oneshot, watch};
use tonic::{Status, Streaming};

use super::status::told;
use crate::daemon::{DebugRequest, EnterRequest, Handle, Shared, ToNode};
use crate::identity::Pass;

/// What a node hears of its client.
pub(super) type FromClient = BoxStream<'static, Result<pb::ClientFrame, Status>>;
/// What a client hears of its node.
pub(super) type FromNode = BoxStream<'static, Result<pb::NodeFrame, Status>>;

/// How long a client may take to say what it wants.
const FIRST: Duration = Duration::from_secs(10);
/// How long a node may take to join a channel.
const ANSWER: Duration = Duration::from_secs(15);
/// Channels open at once.
const CHANNELS: usize = 1024;
/// Bytes of a command with its arguments.
const COMMAND: usize = 64 << 10;
/// Ports of one forward.
const PORTS: usize = 32;

/// The channels of a daemon.
#[derive(Clone)]
pub(super) struct Channels {
    handle: Handle,
    stopping: watch::Receiver<bool>,
    table: Arc<Table>,
}

#[derive(Default)]
struct Table {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Channel>>,
}

/// An open channel, or one that waits for its node.
struct Channel {
    by: Principal,
    node: NodeName,
    key: AttemptKey,
    /// What connections may reach through it.
    ports: Vec<u16>,
    /// The client, until its node has come.
    waiting: Option<Waiting>,
}

struct Waiting {
    client: Streaming<pb::ClientFrame>,
    joined: oneshot::Sender<(Streaming<agent_pb::JoinChannelRequest>, Pass)>,
}

/// A channel's place in the table.
struct Place {
    table: Arc<Table>,
    channel: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.open().remove(&self.channel);
    }
}

impl Table {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Channel>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, channel: Channel) -> Result<Place, Status> {
        let mut open = self.open();
        if open.len() >= CHANNELS {
            return Err(Status::resource_exhausted(format!(
                "cannot enter the job: {CHANNELS} channels into jobs are open, and no more are allowed"
            )));
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        open.insert(number, channel);
        Ok(Place { table: self.clone(), channel: number })
    }
}

impl Channels {
    pub(super) fn new(shared: &Shared) -> Self {
        let (handle, stopping) = (shared.handle.clone(), shared.stopping.clone());
        Self { handle, stopping, table: Arc::default() }
    }

    /// What a client wants.
    pub(super) async fn first(
        frames: &mut Streaming<pb::ClientFrame>,
    ) -> Result<pb::OpenChannel, Status> {
        let first = tokio::time::timeout(FIRST, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the client did not say what it wants"))??;
        match first.and_then(|first| first.frame) {
            Some(pb::client_frame::Frame::Open(open)) => Ok(open),
            _ => Err(Status::invalid_argument("the first message must be open")),
        }
    }

    /// Opens a channel into a job for somebody who may, once its node has joined it.
    pub(super) async fn open(
        &self,
        by: Actor,
        job: JobName,
        open: pb::OpenChannel,
        client: Streaming<pb::ClientFrame>,
    ) -> Result<FromNode, Status> {
        let (Entered { node, key }, ports) = match checked(&open)? {
            Wanted::Connection { forward, port } => {
                (self.of_forward(&by.principal, &job, forward, port)?, vec![])
            }
            Wanted::Entry(what) => {
                let ports = match &what {
                    Entering::Ports(ports) => ports.clone(),
                    Entering::Command(_) | Entering::Shell => Vec::new(),
                };
                let request = EnterRequest { job, rank: open.rank, what, by: by.clone() };
                (self.handle.enter(request).await.map_err(told)?, ports)
            }
            Wanted::Debug(command) => {
                let request = DebugRequest { job, rank: open.rank, command, by: by.clone() };
                (self.handle.debug(request).await.map_err(told)?, vec![])
            }
        };
        let (joined, answer) = oneshot::channel();
        let waiting = Some(Waiting { client, joined });
        let place = self.table.enter(Channel {
            by: by.principal,
            node: node.clone(),
            key: key.clone(),
            ports,
            waiting,
        })?;
        let order = ToNode::OpenChannel { channel: place.channel, key, open: Box::new(open) };
        if self.handle.tell(node.clone(), order).await.map_err(told)?.is_none() {
            return Err(Status::failed_precondition(format!(
                "cannot enter the job: its node '{node}' has no session with the daemon now; look at \
                 'atelier node show {node}'"
            )));
        }
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(frames)) => Ok(self.carried(node, frames, place)),
            Ok(Err(_)) | Err(_) => Err(Status::failed_precondition(format!(
                "cannot enter the job: its node '{node}' did not answer within {} s; look at \
                 'atelier node show {node}' and the agent's log, and whether the agent is older than the \
                 daemon",
                ANSWER.as_secs()
            ))),
        }
    }

    /// Where a connection goes: through a forward that the same user has open to the same job.
    fn of_forward(
        &self,
        by: &Principal,
        job: &JobName,
        forward: u64,
        port: u16,
    ) -> Result<Entered, Status> {
        let table = self.table.open();
        let found = table.get(&forward).filter(|forward| {
            &forward.by == by && &forward.key.job == job && forward.ports.contains(&port)
        });
        let found = found.ok_or_else(|| {
            Status::failed_precondition(format!(
                "cannot reach port {port} of job '{job}': it is not forwarded (any more); see 'atelier \
                 job forward'"
            ))
        })?;
        Ok(Entered { node: found.node.clone(), key: found.key.clone() })
    }

    /// A node has come for a channel.
    pub(super) fn join(
        &self,
        node: &NodeName,
        channel: u64,
        frames: Streaming<agent_pb::JoinChannelRequest>,
        pass: Pass,
    ) -> Result<FromClient, Status> {
        let gone = || Status::not_found("nobody waits for this channel any more");
        let waiting = {
            let mut open = self.table.open();
            let channel = open.get_mut(&channel).filter(|channel| &channel.node == node);
            channel.and_then(|channel| channel.waiting.take()).ok_or_else(gone)?
        };
        waiting.joined.send((frames, pass.clone())).map_err(|_| gone())?;
        let client = waiting.client.take_until(self.stopped());
        Ok(client.take_until(pass.void()).boxed())
    }

    /// What a node sends, to its last frame; the channel is over with it.
    fn carried(
        &self,
        node: NodeName,
        (frames, pass): (Streaming<agent_pb::JoinChannelRequest>, Pass),
        place: Place,
    ) -> FromNode {
        let carried =
            Carried { node, frames, pass, stopping: self.stopping.clone(), _place: place };
        let frames = stream::unfold(Some(carried), |carried| async move {
            let mut carried = carried?;
            let frame = carried.next().await;
            let is_last = matches!(frame.frame, Some(pb::node_frame::Frame::End(_)));
            Some((Ok(frame), (!is_last).then_some(carried)))
        });
        frames.boxed()
    }

    /// Returns once the daemon is asked to stop.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopping = self.stopping.clone();
        async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    }
}

/// The way from a node to its client.
struct Carried {
    node: NodeName,
    frames: Streaming<agent_pb::JoinChannelRequest>,
    /// The node's.
    pass: Pass,
    stopping: watch::Receiver<bool>,
    _place: Place,
}

impl Carried {
    /// The next frame. A client is always told why there are no more.
    async fn next(&mut self) -> pb::NodeFrame {
        let message = tokio::select! {
            message = self.frames.message() => message,
            () = self.pass.clone().void() => Ok(None),
            _ = self.stopping.wait_for(|stop| *stop) => {
                return end("the daemon is stopping; what was started is ended".to_owned());
            }
        };
        match message.ok().flatten().and_then(|message| message.message) {
            Some(agent_pb::join_channel_request::Message::Frame(frame)) => frame,
            Some(agent_pb::join_channel_request::Message::Channel(_)) | None => end(format!(
                "lost node '{}': its agent ended or the connection broke; what was started is ended",
                self.node
            )),
        }
    }
}

/// What a client may want.
enum Wanted {
    Entry(Entering),
    /// To run a command in what was left of it, as a shell shows it; empty: a shell.
    Debug(String),
    Connection {
        forward: u64,
        port: u16,
    },
}

/// The end of a channel that was lost.
fn end(problem: String) -> pb::NodeFrame {
    let end = pb::End { how: None, problem, lost: true };
    pb::NodeFrame { frame: Some(pb::node_frame::Frame::End(end)) }
}

fn checked(open: &pb::OpenChannel) -> Result<Wanted, Status> {
    match &open.what {
        Some(What::Exec(exec)) => {
            let command = command(exec, "exec")?;
            Ok(Wanted::Entry(match command.is_empty() {
                true => Entering::Shell,
                false => Entering::Command(command),
            }))
        }
        Some(What::Debug(exec)) => Ok(Wanted::Debug(command(exec, "debug")?)),
        Some(What::Forward(forward)) => {
            let ports: Result<Vec<u16>, Status> = forward.ports.iter().map(|&p| port(p)).collect();
            match ports? {
                ports if ports.is_empty() || ports.len() > PORTS => Err(Status::invalid_argument(
                    format!("forward.ports: give 1 to {PORTS} of them"),
                )),
                ports => Ok(Wanted::Entry(Entering::Ports(ports))),
            }
        }
        Some(What::Connect(connect)) => {
            Ok(Wanted::Connection { forward: connect.forward, port: port(connect.port)? })
        }
        None => Err(Status::invalid_argument("open.what: is required")),
    }
}

/// A command as a shell takes it; empty: a shell.
fn command(exec: &pb::Exec, field: &str) -> Result<String, Status> {
    let bytes: usize = exec.command.iter().map(|word| word.len() + 1).sum();
    if bytes > COMMAND {
        return Err(Status::invalid_argument(format!(
            "{field}.command: is {bytes} bytes long, at most {COMMAND} are allowed; put it into a file, and \
             give that as standard input"
        )));
    }
    if exec.command.iter().any(|word| word.contains('\0')) {
        return Err(Status::invalid_argument(format!("{field}.command: holds a NUL")));
    }
    let words: Vec<String> = exec.command.iter().map(|word| quote(word)).collect();
    Ok(words.join(" "))
}

fn port(number: u32) -> Result<u16, Status> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Status::invalid_argument(format!("{number} is no port; give 1 to 65535")))
}

#[cfg(test)]
mod tests;
