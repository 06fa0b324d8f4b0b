//! One channel: joined to its client through the daemon, and what goes through it.

use std::sync::Arc;
use std::time::Duration;

use atelier_proto::agent::v1 as agent_pb;
use atelier_proto::job::v1 as pb;
use pb::node_frame::Frame as ToClient;
use pb::open_channel::What;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::command::Command;
use super::{Place, Stage, forward};
use crate::args::AgentArgs;
use crate::reach::Closed;
use crate::session::{chain, connect};

/// Frames on their way to the client; the rest waits where it comes from.
const AHEAD: usize = 4;
/// How long a client may take to hear the last of it once the attempt is over.
pub(super) const LAST: Duration = Duration::from_secs(3);

/// What is asked for, and of which attempt.
pub(crate) struct Channel {
    pub(crate) request: agent_pb::OpenChannel,
    pub(crate) node: String,
    /// Or why there is no way into it.
    pub(crate) attempt: Result<Place, String>,
    /// Where jobs have no way to.
    pub(crate) closed: Option<Arc<Closed>>,
}

/// The way to the client.
pub(super) struct Client {
    frames: mpsc::Sender<agent_pb::JoinChannelRequest>,
}

/// The client has left.
pub(super) struct Left;

impl Client {
    pub(super) async fn send(&self, frame: ToClient) -> Result<(), Left> {
        let frame = pb::NodeFrame { frame: Some(frame) };
        let message = agent_pb::join_channel_request::Message::Frame(frame);
        let message = agent_pb::JoinChannelRequest { message: Some(message) };
        self.frames.send(message).await.map_err(|_| Left)
    }

    /// Once the client has left, or the daemon.
    pub(super) async fn left(&self) {
        self.frames.closed().await;
    }
}

pub(super) fn problem(problem: impl Into<String>) -> pb::End {
    pb::End { problem: problem.into(), ..pb::End::default() }
}

/// Joins a channel and carries it to its end.
pub(crate) async fn answer(args: AgentArgs, channel: Channel) {
    let number = channel.request.channel;
    if let Err(error) = joined(&args, channel).await {
        tracing::warn!(channel = number, %error, "a channel could not be joined");
    }
}

async fn joined(args: &AgentArgs, channel: Channel) -> Result<(), String> {
    // Of its own: what a client does not read must not hold up the session.
    let mut connection = connect(args).await.map_err(|error| chain(&error))?.client;
    let (frames, stream) = mpsc::channel(AHEAD);
    let number = agent_pb::join_channel_request::Message::Channel(channel.request.channel);
    let first = agent_pb::JoinChannelRequest { message: Some(number) };
    let _ = frames.send(first).await;
    let joined = connection.join_channel(ReceiverStream::new(stream)).await;
    let mut frames_in = joined.map_err(|status| status.message().to_owned())?.into_inner();
    let client = Client { frames };
    let end = match &channel.attempt {
        Ok(place) if place.entrance.stage() == Stage::Runs => {
            let work = carry(&channel, place, &client, &mut frames_in);
            place.entrance.inside.track_future(work).await
        }
        Ok(place) if place.entrance.stage() == Stage::Before => {
            Some(problem("the job's command has not started on its node yet; try again"))
        }
        Ok(place) if place.kept.is_some() => Some(problem("nothing is kept of the job any more")),
        Ok(_) => Some(problem("the job's command has ended on its node")),
        Err(why) => Some(problem(why)),
    };
    if let Some(end) = end {
        let _ = tokio::time::timeout(LAST, client.send(ToClient::End(end))).await;
    }
    // To hang up first would take the last frame back, if it is still on its way.
    drop(client.frames);
    let hung_up = async { while let Ok(Some(_)) = frames_in.message().await {} };
    let _ = tokio::time::timeout(LAST, hung_up).await;
    Ok(())
}

/// `None`: the client has left.
async fn carry(
    channel: &Channel,
    place: &Place,
    client: &Client,
    frames: &mut Streaming<pb::ClientFrame>,
) -> Option<pb::End> {
    let entrance = &place.entrance;
    let (number, node) = (channel.request.channel, channel.node.clone());
    let opened = ToClient::Opened(pb::Opened { channel: number, node });
    let what = channel.request.open.as_ref().and_then(|open| open.what.clone());
    match what {
        Some(What::Exec(exec) | What::Debug(exec)) => {
            let command = Command { place, entrance, client, opened };
            command.run(exec, frames).await
        }
        Some(What::Forward(_)) => forward::keep(entrance, client, opened, frames).await,
        Some(What::Connect(connect)) => {
            let to = forward::To {
                port: u16::try_from(connect.port).unwrap_or_default(),
                node: &channel.node,
                closed: channel.closed.as_deref(),
            };
            forward::connect(entrance, client, opened, frames, to).await
        }
        None => Some(problem("this node's agent does not know what was asked for; update it")),
    }
}
