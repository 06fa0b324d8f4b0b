//! A command that somebody runs in an attempt: started, and joined to the client to its end.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use atelier_proto::job::v1 as pb;
use bytes::Bytes;
use pb::client_frame::Frame as FromClient;
use pb::node_frame::Frame as ToClient;
use tokio::sync::watch;
use tonic::Streaming;

use super::channel::{Client, LAST, Left, problem};
use super::inside::{Inside, Stream, Streams, Terminal, pipes};
use super::{Entrance, Order, Place, Way, Word, target};
use crate::attempt::container_of;
use crate::container::{Kind, command, script};
use crate::proc::Stat;

/// How long the command may take to start.
const START: Duration = Duration::from_secs(20);
/// How long output that something holds open may stay silent once the command has ended.
const SILENCE: Duration = Duration::from_millis(300);
/// How much later than what was let in the job's own process may be gone.
const GOES: Duration = Duration::from_millis(500);

/// A command that is to run in an attempt.
pub(super) struct Command<'a> {
    pub(super) place: &'a Place,
    pub(super) entrance: &'a Entrance,
    pub(super) client: &'a Client,
    pub(super) opened: ToClient,
}

impl Command<'_> {
    /// `None`: the client has left.
    pub(super) async fn run(
        self,
        exec: pb::Exec,
        frames: &mut Streaming<pb::ClientFrame>,
    ) -> Option<pb::End> {
        let (inside, streams, main) = match self.start(exec).await {
            Ok(started) => started,
            Err(end) => return Some(end),
        };
        match self.carry(&inside, streams, main.as_ref(), frames).await {
            Ok(end) => Some(end),
            Err(Left) => {
                self.leave(&inside).await;
                None
            }
        }
    }

    /// Starts it in the attempt, beside its command's process if that lives.
    async fn start(&self, exec: pb::Exec) -> Result<(Inside, Streams, Option<Stat>), pb::End> {
        let cannot =
            |error: io::Error| problem(format!("cannot enter the job on its node: {error}"));
        let is_shell = exec.command.is_empty();
        let mut variables = BTreeMap::new();
        if exec.terminal.is_some() && !exec.term.is_empty() {
            variables.insert("TERM".to_owned(), exec.term.clone());
        }
        let mut command = exec.command;
        let docker = container_of(self.place.folder.path()).filter(|it| it.kind == Kind::Docker);
        let (way, main) = match &self.place.kept {
            Some(kept) => {
                variables.extend(kept.variables.clone());
                let cgroup = kept.cgroup.clone();
                match &kept.container {
                    None => (Way::Anew { cgroup }, None),
                    Some(container) => {
                        variables.extend(container.variables().clone());
                        let first = container.first(&self.place.folder).await.map_err(problem)?;
                        let Stat { pid, start_time, .. } = first;
                        (Way::Again { pid, start_time, cgroup }, None)
                    }
                }
            }
            None if let Some(container) = docker => {
                let script = self.place.folder.container().join(script::name(0));
                let name = &container.name;
                let terminal = exec.terminal.map(|_| exec.term.as_str());
                let words = command::exec(name, terminal, &script, &command);
                let program = container.program.to_string_lossy().into_owned();
                command = [program].into_iter().chain(words).collect();
                (Way::Container { cgroup: None }, None)
            }
            None => {
                let folder = self.place.folder.path().to_owned();
                let found = tokio::task::spawn_blocking(move || target::find(&folder)).await;
                let gone = || self.gone();
                let main = found.map_err(|_| gone())?.map_err(cannot)?.ok_or_else(gone)?;
                (Way::Beside { pid: main.pid, start_time: main.start_time }, Some(main))
            }
        };
        let order = Order {
            folder: self.place.folder.path().to_owned(),
            way,
            command,
            terminal: exec.terminal.map(Into::into),
            variables,
        };
        let (ours, theirs) = match order.terminal {
            Some(_) => (None, Vec::new()),
            None => pipes(exec.stdin).map(|(ours, theirs)| (Some(ours), theirs)).map_err(cannot)?,
        };
        let inside = Inside::start(&order, &theirs).map_err(cannot)?;
        drop(theirs);
        let started = async {
            let ours = match ours {
                Some(ours) => ours,
                None => match Streams::of_terminal(inside.terminal().await?, exec.stdin) {
                    Ok(ours) => ours,
                    Err(error) => return Err(Word::unusable(&error)),
                },
            };
            Ok((ours, inside.word().await))
        };
        let started = tokio::select! {
            started = tokio::time::timeout(START, started) => started,
            () = self.entrance.over() => return Err(self.gone()),
        };
        match started {
            Ok(Ok((ours, Word::Started))) => Ok((inside, ours, main)),
            Ok(Ok((_, word)) | Err(word)) => Err(not_started(word, is_shell)),
            Err(_) => Err(problem("the job did not take the command in time")),
        }
    }

    fn gone(&self) -> pb::End {
        problem(match self.place.kept {
            Some(_) => "nothing is kept of the job any more",
            None => {
                "the job's command has just ended, or its container has not begun yet: try again in a moment"
            }
        })
    }

    /// Carries its input and output until it has ended.
    async fn carry(
        &self,
        inside: &Inside,
        streams: Streams,
        main: Option<&Stat>,
        frames: &mut Streaming<pb::ClientFrame>,
    ) -> Result<pb::End, Left> {
        self.client.send(self.opened.clone()).await?;
        let ended = watch::Sender::new(false);
        let output = pump(&streams.output, self.client, &ended, ToClient::Data);
        let error = async {
            match &streams.error {
                Some(error) => pump(error, self.client, &ended, ToClient::ErrorData).await,
                None => Ok(()),
            }
        };
        let outputs = async { tokio::try_join!(output, error).map(|_| ()) };
        let input = feed(frames, streams.input, streams.terminal.as_ref());
        tokio::pin!(outputs, input);
        let (mut reads, mut over) = (true, false);
        let word = loop {
            tokio::select! {
                word = inside.word() => break word,
                sent = &mut outputs, if reads => {
                    sent?;
                    reads = false;
                }
                () = &mut input => return Err(Left),
                () = self.client.left() => return Err(Left),
                () = self.entrance.over(), if !over => {
                    over = true;
                    inside.kill();
                }
            }
        };
        // Whoever ends a job ends what is in it at the same time.
        let is_ended = matches!(word, Word::Signal(libc::SIGKILL | libc::SIGTERM));
        if let Some(main) = main.filter(|_| is_ended) {
            over |= target::goes(main, GOES).await;
        }
        ended.send_replace(true);
        let last = async {
            self.entrance.over().await;
            tokio::time::sleep(LAST).await;
        };
        if reads {
            tokio::select! {
                sent = &mut outputs => sent?,
                () = self.client.left() => return Err(Left),
                () = last => {}
            }
        }
        let ended = match self.place.kept {
            Some(_) => "nothing is kept of the job any more, and the command was ended",
            None => "the job has ended, and the command with it",
        };
        Ok(end_of(word, over.then_some(ended)))
    }

    /// Waits until it has ended, as it is asked to once its client has left.
    async fn leave(&self, inside: &Inside) {
        inside.hang_up();
        let mut over = false;
        loop {
            tokio::select! {
                _ = inside.word() => return,
                () = self.entrance.over(), if !over => {
                    over = true;
                    inside.kill();
                }
            }
        }
    }
}

/// Sends what comes, to its end. What something else than the command holds open ends with silence.
async fn pump(
    stream: &Stream,
    client: &Client,
    ended: &watch::Sender<bool>,
    frame: impl Fn(Bytes) -> ToClient,
) -> Result<(), Left> {
    let mut ended = ended.subscribe();
    loop {
        let silent = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(SILENCE).await;
        };
        let bytes = tokio::select! {
            biased;
            bytes = stream.read() => bytes,
            () = silent => return Ok(()),
        };
        if bytes.is_empty() {
            return Ok(());
        }
        client.send(frame(bytes)).await?;
    }
}

/// Gives the command what the client sends; returns once the client has left.
async fn feed(
    frames: &mut Streaming<pb::ClientFrame>,
    mut input: Option<Stream>,
    terminal: Option<&Terminal>,
) {
    while let Ok(Some(frame)) = frames.message().await {
        match frame.frame {
            Some(FromClient::Data(bytes)) => {
                if let Some(stream) = &input
                    && stream.write(&bytes).await.is_err()
                {
                    // It reads no more; what comes yet is for nobody.
                    input = None;
                }
            }
            Some(FromClient::EndOfData(_)) => {
                if let (Some(stream), Some(_)) = (&input, terminal) {
                    // As a terminal says it: control-D.
                    let _ = stream.write(&[4]).await;
                }
                input = None;
            }
            Some(FromClient::Window(size)) => {
                if let Some(terminal) = terminal {
                    terminal.resize(size);
                }
            }
            Some(FromClient::Open(_)) | None => {}
        }
    }
}

/// `over`: why it was ended from outside, if it was.
fn end_of(word: Word, over: Option<&str>) -> pb::End {
    let how = match word {
        // However it was asked to end with its job.
        Word::Signal(libc::SIGTERM) if over.is_some() => Some(pb::end::How::Signal(libc::SIGKILL)),
        Word::Code(code) => Some(pb::end::How::Code(code)),
        Word::Signal(signal) => Some(pb::end::How::Signal(signal)),
        Word::Terminal | Word::Started | Word::NotStarted { .. } | Word::NotRun { .. } => None,
    };
    pb::End { how, problem: over.unwrap_or_default().to_owned(), lost: false }
}

/// As shells tell it: 127 for what there is not, 126 for what cannot be run.
fn not_started(word: Word, shell: bool) -> pb::End {
    let why = io::Error::from_raw_os_error;
    let (code, problem) = match word {
        Word::NotStarted { errno: libc::ESRCH | libc::ENODEV, .. } => {
            return problem("the job's command has just ended");
        }
        Word::NotStarted { what, errno } => {
            return problem(format!("cannot enter the job on its node: {what}: {}", why(errno)));
        }
        Word::NotRun { errno: libc::ENOENT, .. } if shell => {
            (127, "there is no shell on the node".to_owned())
        }
        Word::NotRun { program, errno: libc::ENOENT } => (
            127,
            format!("there is no command '{program}' in the job; look at its PATH, or give a path"),
        ),
        Word::NotRun { program, errno } => {
            (126, format!("cannot run '{program}' in the job: {}", why(errno)))
        }
        word => return end_of(word, None),
    };
    pb::End { how: Some(pb::end::How::Code(code)), problem, lost: false }
}
