//! `atelier job exec` and `atelier job shell`: a command inside a running job.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use atelier_proto::job::v1 as pb;
use bytes::Bytes;
use clap::Args;
use pb::client_frame::Frame as ToNode;
use pb::node_frame::Frame as FromNode;
use pb::open_channel::What;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::follow::BROKEN_PIPE;
use super::terminal::{self, Raw};
use crate::cli::{Context, Error, Kind, Name, Output};
use crate::client::Client;

/// Bytes of standard input in one frame.
const CHUNK: usize = 32 << 10;
/// Frames on their way; the rest waits where it comes from.
pub(super) const AHEAD: usize = 4;

/// Run a command inside a running job
///
/// It has the job's variables, working directory, files, limits and user, and ends with the job at the
/// latest. Ends with the command's exit code, 128 plus the number of the signal that ended it, 127 if there
/// is no such command. If this program ends first, so does the command.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job exec calm_apple_x1 -- nvidia-smi
  atelier job exec calm_apple_x1 -it -- python
  atelier job exec calm_apple_x1 --rank 2 -- sh -c 'tail -n 20 outputs/log.txt'
  atelier job exec calm_apple_x1 -i -- tar -xf - -C /tmp < files.tar")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    name: Name,
    /// Give the command this program's standard input; without it, it has none
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Of a job on several nodes, in this member, from 0
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rank: u32,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Open a shell inside a running job
///
/// The same as `exec` with a terminal: $SHELL of the job if there is one, else bash, else sh.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job shell calm_apple_x1
  atelier job shell calm_apple_x1 --rank 2")]
pub(in crate::cli) struct Shell {
    #[command(flatten)]
    name: Name,
    /// Of a job on several nodes, in this member, from 0
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rank: u32,
}

pub(super) async fn exec(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let Arguments { name, stdin, tty, rank, command } = arguments;
    run(context, Entry::beside(name.get(), rank, checked(command, stdin, tty)?)).await
}

pub(super) async fn shell(arguments: Shell, context: &Context) -> Result<ExitCode, Error> {
    let name = arguments.name.get();
    if !std::io::stdin().is_terminal() {
        let help = format!("for a script use `atelier job exec {name} -i -- sh`");
        return Err(Error::usage("a shell needs a terminal, and standard input is none").help(help));
    }
    run(context, Entry::beside(name, arguments.rank, checked(Vec::new(), true, true)?)).await
}

/// A command with this program's input and terminal, as far as it is to have them.
pub(super) fn checked(command: Vec<String>, stdin: bool, tty: bool) -> Result<pb::Exec, Error> {
    if stdin && tty && !std::io::stdin().is_terminal() {
        return Err(Error::usage("-t: standard input is no terminal")
            .help("leave -t out: the command then reads standard input as it is"));
    }
    Ok(pb::Exec {
        command,
        stdin,
        terminal: tty.then(terminal::size),
        term: std::env::var("TERM").unwrap_or_default(),
    })
}

/// What is to be run, and where.
pub(super) struct Entry<'a> {
    pub(super) job: &'a str,
    pub(super) rank: u32,
    pub(super) what: What,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    /// What holds after the command was cut short.
    pub(super) after: String,
}

impl<'a> Entry<'a> {
    /// In a job that runs.
    fn beside(job: &'a str, rank: u32, exec: pb::Exec) -> Self {
        let (stdin, tty) = (exec.stdin, exec.terminal.is_some());
        let after = format!("{job} goes on");
        Self { job, rank, what: What::Exec(exec), stdin, tty, after }
    }
}

/// A channel's two ways.
pub(super) struct Channel {
    pub(super) frames: mpsc::Sender<pb::ClientFrame>,
    pub(super) heard: Streaming<pb::NodeFrame>,
}

/// Opens a channel into a job.
pub(super) async fn open(client: &Client, open: pb::OpenChannel) -> Result<Channel, Error> {
    let (frames, stream) = mpsc::channel(AHEAD);
    let _ = frames.send(frame(ToNode::Open(open))).await;
    let mut jobs = client.jobs();
    let heard = client.call(jobs.enter_job(ReceiverStream::new(stream))).await?;
    Ok(Channel { frames, heard })
}

pub(super) fn frame(frame: ToNode) -> pb::ClientFrame {
    pb::ClientFrame { frame: Some(frame) }
}

/// Runs it to its end; this program's exit code.
pub(super) async fn run(context: &Context, entry: Entry<'_>) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let Entry { job, rank, what, stdin, tty, after } = entry;
    let wanted = pb::OpenChannel { job: job.to_owned(), rank, what: Some(what) };
    let opened = open(&client, wanted).await?;
    let mut session = Session { output: &context.output, after: &after, channel: opened };
    let ended = tokio::select! {
        ended = session.carry(stdin, tty) => ended,
        () = terminated() => {
            let ended = format!("the command was ended; {after}");
            Err(Error::new(Kind::Interrupted, ended))
        }
    };
    match ended {
        Err(error) if error.kind == Kind::Quiet => Ok(ExitCode::from(BROKEN_PIPE)),
        Err(error) => Err(error),
        Ok(end) => ended_with(&context.output, end),
    }
}

/// Ctrl-C, or somebody asks this program to end.
async fn terminated() {
    let one = async |kind| match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        // Without a handler the signal ends the program at once.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = one(SignalKind::interrupt()) => {}
        () = one(SignalKind::terminate()) => {}
        () = one(SignalKind::hangup()) => {}
    }
}

/// Tells what went wrong, if anything did; the command's exit code as a shell has it.
fn ended_with(output: &Output, end: pb::End) -> Result<ExitCode, Error> {
    let code = match end.how {
        Some(pb::end::How::Code(code)) => code,
        Some(pb::end::How::Signal(signal)) => 128 + signal,
        None => return Err(problem(end)),
    };
    if !end.problem.is_empty() {
        output.error(&Error::new(Kind::Refused, end.problem));
    }
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

/// What ended a channel that led to no exit code.
pub(super) fn problem(end: pb::End) -> Error {
    let kind = if end.lost { Kind::Unreachable } else { Kind::Refused };
    Error::new(kind, end.problem)
}

struct Session<'a> {
    output: &'a Output,
    after: &'a str,
    channel: Channel,
}

impl Session<'_> {
    /// Carries input and output until the command has ended.
    async fn carry(&mut self, stdin: bool, tty: bool) -> Result<pb::End, Error> {
        let mut raw = None;
        let mut resized = match tty {
            true => signal(SignalKind::window_change()).ok(),
            false => None,
        };
        loop {
            let changed = async {
                match &mut resized {
                    Some(resized) => resized.recv().await,
                    None => std::future::pending().await,
                }
            };
            let heard = tokio::select! {
                heard = self.channel.heard.message() => heard,
                _ = changed => {
                    let size = frame(ToNode::Window(terminal::size()));
                    // One that finds no room is followed by the next.
                    let _ = self.channel.frames.try_send(size);
                    continue;
                }
            };
            match heard.map_err(|status| self.lost(&status))?.and_then(|frame| frame.frame) {
                Some(FromNode::Opened(_)) if stdin => {
                    if tty && raw.is_none() {
                        raw = Some(Raw::enter()?);
                    }
                    feed(self.channel.frames.clone());
                }
                Some(FromNode::Data(bytes)) => self.write(bytes, Output::bytes).await?,
                Some(FromNode::ErrorData(bytes)) => self.write(bytes, Output::error_bytes).await?,
                Some(FromNode::End(end)) => return Ok(end),
                Some(FromNode::Opened(_) | FromNode::EndOfData(_)) => {}
                None => return Err(self.closed()),
            }
        }
    }

    async fn write(
        &self,
        bytes: Bytes,
        write: impl Fn(&Output, &[u8]) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let output = self.output.clone();
        // Whoever reads may take their time, and signals must be heard meanwhile.
        let written = tokio::task::spawn_blocking(move || write(&output, &bytes)).await;
        written.map_err(|error| Error::new(Kind::Failed, format!("cannot write: {error}")))?
    }

    fn lost(&self, status: &tonic::Status) -> Error {
        Error::from(status).help(format!("the command was ended with it; {}", self.after))
    }

    fn closed(&self) -> Error {
        let cause = "the daemon closed the channel before the command's end";
        Error::new(Kind::Unreachable, cause).help(self.after)
    }
}

/// Sends standard input, from a thread of its own: reading it cannot be given up.
fn feed(frames: mpsc::Sender<pb::ClientFrame>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            let bytes = match stdin.read(&mut buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let sent = match buffer.get(..bytes) {
                Some(read) if bytes > 0 => ToNode::Data(Bytes::copy_from_slice(read)),
                _ => ToNode::EndOfData(pb::EndOfData {}),
            };
            if frames.blocking_send(frame(sent)).is_err() || bytes == 0 {
                return;
            }
        }
    });
}
