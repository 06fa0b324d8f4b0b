//! Ports of this node's loopback address, for as long as an attempt's command runs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use atelier_proto::job::v1 as pb;
use pb::client_frame::Frame as FromClient;
use pb::node_frame::Frame as ToClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tonic::Streaming;

use super::Entrance;
use super::channel::{Client, Left, problem};
use crate::reach::Closed;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes in a frame.
const CHUNK: usize = 32 << 10;

/// Keeps a forward open until the client leaves (`None`) or the attempt ends.
pub(super) async fn keep(
    entrance: &Entrance,
    client: &Client,
    opened: ToClient,
    frames: &mut Streaming<pb::ClientFrame>,
) -> Option<pb::End> {
    client.send(opened).await.ok()?;
    let left = async { while let Ok(Some(_)) = frames.message().await {} };
    tokio::select! {
        () = left => None,
        () = client.left() => None,
        () = entrance.over() => Some(problem("the job has ended")),
    }
}

/// Carries one connection.
pub(super) async fn connect(
    entrance: &Entrance,
    client: &Client,
    opened: ToClient,
    frames: &mut Streaming<pb::ClientFrame>,
    to: To<'_>,
) -> Option<pb::End> {
    let To { port, node, closed } = to;
    // It is the agent that connects, which no group keeps from anything.
    let why = |to: SocketAddr| closed.and_then(|closed| closed.why(to));
    if let Some(why) = to.addresses().into_iter().find_map(why) {
        return Some(problem(format!("port {port} on node '{node}' is not forwarded: {why}")));
    }
    let stream = match tokio::time::timeout(CONNECT, reach(to.addresses())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Some(problem(format!("cannot reach port {port} on node '{node}': {error}")));
        }
        Err(_) => {
            return Some(problem(format!("port {port} on node '{node}' does not answer")));
        }
    };
    client.send(opened).await.ok()?;
    let (reads, writes) = stream.into_split();
    let both = async { tokio::try_join!(to_client(reads, client), to_port(writes, frames)) };
    tokio::select! {
        carried = both => carried.ok().map(|_| problem("")),
        () = client.left() => None,
        () = entrance.over() => Some(problem("the job has ended")),
    }
}

/// A port of this node.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) port: u16,
    pub(super) node: &'a str,
    /// Where jobs have no way to.
    pub(super) closed: Option<&'a Closed>,
}

impl To<'_> {
    /// Those that a program listens on that thinks of its own machine only.
    fn addresses(&self) -> [SocketAddr; 2] {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        loopback.map(|address| (address, self.port).into())
    }
}

/// By the first address, or else by the second.
async fn reach([first, second]: [SocketAddr; 2]) -> io::Result<TcpStream> {
    let stream = match TcpStream::connect(first).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            TcpStream::connect(second).await.map_err(|_| error)?
        }
        other => other?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn to_client(mut from: OwnedReadHalf, client: &Client) -> Result<(), Left> {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A connection that was reset has ended too.
        let bytes = from.read(&mut buffer).await.unwrap_or(0);
        if bytes == 0 {
            return client.send(ToClient::EndOfData(pb::EndOfData {})).await;
        }
        let data = bytes::Bytes::copy_from_slice(buffer.get(..bytes).unwrap_or_default());
        client.send(ToClient::Data(data)).await?;
    }
}

async fn to_port(
    mut to: OwnedWriteHalf,
    frames: &mut Streaming<pb::ClientFrame>,
) -> Result<(), Left> {
    let mut open = true;
    while let Ok(Some(frame)) = frames.message().await {
        match frame.frame {
            Some(FromClient::Data(bytes)) if open => open = to.write_all(&bytes).await.is_ok(),
            Some(FromClient::EndOfData(_)) => {
                let _ = to.shutdown().await;
                return Ok(());
            }
            Some(FromClient::Data(_) | FromClient::Window(_) | FromClient::Open(_)) | None => {}
        }
    }
    Err(Left)
}
