//! `atelier job forward`: ports of a running job's node, on this machine.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;

use atelier_proto::job::v1 as pb;
use bytes::Bytes;
use clap::Args;
use pb::client_frame::Frame as ToNode;
use pb::node_frame::Frame as FromNode;
use pb::open_channel::What;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Streaming;

use super::exec::{Channel, frame, open, problem};
use crate::cli::{Column, Context, Error, Kind, Output};
use crate::client::{Client, Target};

/// Bytes in one frame.
const CHUNK: usize = 32 << 10;
/// Connections carried at once.
const CONNECTIONS: usize = 128;

/// Reach ports of a running job from this machine
///
/// Listens on this machine's loopback address and carries each connection to the same address of the node
/// where the job runs, until the job or this program ends.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job forward calm_apple_x1 6006
  atelier job forward calm_apple_x1 8080:80 :8888       port 80 here as 8080, 8888 as any that is free")]
pub(in crate::cli) struct Arguments {
    /// The job's name
    #[arg(value_name = "NAME")]
    name: String,
    /// The job's port, or LOCAL:PORT to listen on another one here, or :PORT for any that is free
    #[arg(required = true, value_name = "[LOCAL:]PORT", value_parser = pair)]
    ports: Vec<Pair>,
    /// Of a job on several nodes, of this member, from 0
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rank: u32,
}

/// A port here (zero: any) and one there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: u16,
}

fn pair(text: &str) -> Result<Pair, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let pair = match text.split_once(':') {
        None => port(text).map(|port| Pair { local: port, remote: port }),
        Some(("", remote)) => port(remote).map(|remote| Pair { local: 0, remote }),
        Some((local, remote)) => match (local.parse(), port(remote)) {
            (Ok(local), Some(remote)) => Some(Pair { local, remote }),
            _ => None,
        },
    };
    pair.ok_or_else(|| {
        "write it as PORT, LOCAL:PORT or :PORT, with ports from 1 to 65535".to_owned()
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "LISTENS", cell: |f| f["listens"].as_str().map(str::to_owned) },
    Column { title: "NODE", cell: |f| f["node"].as_str().map(str::to_owned) },
    Column { title: "PORT", cell: |f| Some(f["port"].to_string()) },
];

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let Arguments { name, ports, rank } = arguments;
    let mut listeners = Vec::new();
    for Pair { local, remote } in ports {
        listeners.push((listen(local, remote).await?, remote));
    }
    let client = context.client().await?;
    let ports = listeners.iter().map(|(_, remote)| u32::from(*remote)).collect();
    let what = Some(What::Forward(pb::Forward { ports }));
    let mut channel = open(&client, pb::OpenChannel { job: name.clone(), rank, what }).await?;
    let opened = opened(&mut channel.heard).await.map_err(problem)?;
    for (listener, remote) in &listeners {
        let listens = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        let shown = json!({ "listens": listens, "node": opened.node, "port": remote });
        context.output.item(&shown, COLUMNS)?;
    }
    context.output.note(&format!("Forwarding until {name} or this program ends (Ctrl-C)."));
    let forward = Arc::new(Forward {
        output: context.output.clone(),
        target: client.target().clone(),
        job: name.clone(),
        rank,
        channel: opened.channel,
    });
    let mut accepting = JoinSet::new();
    for (listener, remote) in listeners {
        accepting.spawn(forward.clone().accept(listener, remote));
    }
    tokio::select! {
        end = over(&mut channel.heard) => match end {
            end if end.lost => Err(problem(end)),
            end => {
                context.output.note(&format!("No longer forwarding: {}.", end.problem));
                Ok(ExitCode::SUCCESS)
            }
        },
        _ = tokio::signal::ctrl_c() => {
            Err(Error::new(Kind::Interrupted, format!("no longer forwarding; {name} goes on")))
        }
    }
}

async fn listen(local: u16, remote: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.map_err(|error| {
        Error::new(Kind::Refused, format!("cannot listen on 127.0.0.1:{local}: {error}")).help(
            format!("choose another port here: LOCAL:{remote}, or :{remote} for any that is free"),
        )
    })
}

/// Waits until the channel leads somewhere.
async fn opened(heard: &mut Streaming<pb::NodeFrame>) -> Result<pb::Opened, pb::End> {
    match heard.message().await {
        Ok(Some(pb::NodeFrame { frame: Some(FromNode::Opened(opened)) })) => Ok(opened),
        Ok(Some(pb::NodeFrame { frame: Some(FromNode::End(end)) })) => Err(end),
        Ok(_) => Err(lost("the node answered with something else".to_owned())),
        Err(status) => Err(lost(Error::from(status).cause)),
    }
}

fn lost(problem: String) -> pb::End {
    pb::End { how: None, problem, lost: true }
}

/// Waits for the channel's end.
async fn over(heard: &mut Streaming<pb::NodeFrame>) -> pb::End {
    loop {
        match heard.message().await {
            Ok(Some(pb::NodeFrame { frame: Some(FromNode::End(end)) })) => return end,
            Ok(Some(_)) => {}
            Ok(None) => return lost("the daemon closed the channel".to_owned()),
            Err(status) => return lost(Error::from(status).cause),
        }
    }
}

/// What every connection needs.
struct Forward {
    output: Output,
    target: Target,
    job: String,
    rank: u32,
    channel: u64,
}

impl Forward {
    async fn accept(self: Arc<Self>, listener: TcpListener, port: u16) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(self.clone().carry(stream, port));
                    }
                    // Out of file descriptors, most likely: those in use will come free.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }

    /// Carries one connection to its end, and tells what went wrong.
    async fn carry(self: Arc<Self>, stream: TcpStream, port: u16) {
        if let Err(error) = self.try_to_carry(stream, port).await {
            self.output.warn(&error.cause);
        }
    }

    async fn try_to_carry(&self, stream: TcpStream, port: u16) -> Result<(), Error> {
        // A connection of its own: what one does not read must not hold up the others.
        let client = Client::connect(self.target.clone()).await?;
        let connect = pb::Connect { forward: self.channel, port: port.into() };
        let what = Some(What::Connect(connect));
        let (job, rank) = (self.job.clone(), self.rank);
        let mut channel = open(&client, pb::OpenChannel { job, rank, what }).await?;
        opened(&mut channel.heard).await.map_err(problem)?;
        // It is a connection all the same.
        let _ = stream.set_nodelay(true);
        let (reads, writes) = stream.into_split();
        let Channel { frames, heard } = channel;
        let up = async {
            // The sender stays: the channel is over when nobody can send any more.
            to_job(reads, &frames).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = from_job(heard, writes) => ended,
            () = up => Ok(()),
        }
    }
}

async fn to_job(mut from: OwnedReadHalf, frames: &mpsc::Sender<pb::ClientFrame>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = frames.closed() => return,
        };
        let sent = match buffer.get(..bytes) {
            Some(read) if bytes > 0 => ToNode::Data(Bytes::copy_from_slice(read)),
            _ => ToNode::EndOfData(pb::EndOfData {}),
        };
        if frames.send(frame(sent)).await.is_err() || bytes == 0 {
            return;
        }
    }
}

async fn from_job(
    mut heard: Streaming<pb::NodeFrame>,
    mut to: OwnedWriteHalf,
) -> Result<(), Error> {
    loop {
        let frame = heard.message().await?;
        match frame.and_then(|frame| frame.frame) {
            Some(FromNode::Data(bytes)) => {
                if to.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Some(FromNode::EndOfData(_)) => {
                let _ = to.shutdown().await;
            }
            Some(FromNode::End(end)) if end.problem.is_empty() => return Ok(()),
            Some(FromNode::End(end)) => return Err(problem(end)),
            Some(FromNode::Opened(_) | FromNode::ErrorData(_)) => {}
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
