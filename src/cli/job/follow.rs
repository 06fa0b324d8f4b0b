//! Following a job: its log to standard output, its progress to standard error, to its end and
//! across restarts of the daemon.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use atelier_proto::job::v1::{self as pb, JobStatus, StreamLogRequest, WatchEventsRequest};
use tokio::time::{MissedTickBehavior, interval};

use super::patience::{Broken, Patience};
use super::summary;
use crate::cli::{Context, Error, Kind, Output};
use crate::client::Client;

/// As a shell reports a program that ended because nobody read what it wrote: 128 and SIGPIPE.
pub(super) const BROKEN_PIPE: u8 = 141;
/// How often the reason of a waiting job is asked for, while somebody watches the terminal.
const WAIT_REASON: Duration = Duration::from_secs(2);

/// Follows the job and the log of one of its processes, prints how it ended, and gives its exit code. Ctrl-C
/// detaches: the job goes on.
pub(in crate::cli) async fn to_the_end(
    context: &Context,
    client: Client,
    name: &str,
    rank: u32,
) -> Result<ExitCode, Error> {
    let output = &context.output;
    let ended = interruptible(follow(context, client, name, rank)).await;
    output.settle();
    match ended {
        // It says nothing of the job, whose end nobody has seen: no success, and no failure of ours.
        Some(Err(error)) if error.kind == Kind::Quiet => {
            output.note(&format!(
                "The reader of the log went away; {name} goes on. Follow it again with `atelier job \
                 stream {name}`."
            ));
            Ok(ExitCode::from(BROKEN_PIPE))
        }
        Some(job) => {
            let job = job?;
            output.note(&summary::text(&job));
            Ok(ExitCode::from(summary::exit_code(&job)))
        }
        None => {
            Err(Error::new(Kind::Interrupted, format!("detached; {name} goes on")).help(format!(
                "follow it again with `atelier job stream {name}`, stop it with `atelier job \
                 cancel {name}`"
            )))
        }
    }
}

/// `None` if Ctrl-C came first.
pub(in crate::cli) async fn interruptible<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        // Without the handler Ctrl-C ends the program at once, which is also fine.
        Ok(()) = tokio::signal::ctrl_c() => None,
    }
}

/// How far it has been seen.
struct Follower<'a> {
    output: &'a Output,
    name: &'a str,
    /// Whose log: the rank.
    rank: u32,
    /// The attempt and the next byte of its log.
    attempt: u32,
    offset: u64,
    /// The last event.
    seq: u64,
    status: JobStatus,
    shown: String,
    patience: Patience,
}

async fn follow(
    context: &Context,
    mut client: Client,
    name: &str,
    rank: u32,
) -> Result<pb::Job, Error> {
    let mut follower = Follower {
        output: &context.output,
        name,
        rank,
        attempt: 0,
        offset: 0,
        seq: 0,
        status: JobStatus::Unspecified,
        shown: String::new(),
        patience: Patience::new(),
    };
    loop {
        let broken = match follower.until_it_breaks(&client).await {
            Ok(Some(job)) => return Ok(job),
            // The streams ended before the job did: the daemon is shutting down.
            Ok(None) => Broken::Lost("the daemon closed the stream".to_owned()),
            Err(broken) => broken,
        };
        follower.patience.again(context, &mut client, name, broken).await?;
    }
}

impl Follower<'_> {
    /// Follows over one connection. `None` if the streams ended although the job has not.
    async fn until_it_breaks(&mut self, client: &Client) -> Result<Option<pb::Job>, Broken> {
        let (mut log_calls, mut event_calls) = (client.jobs(), client.jobs());
        let log = log_calls.stream_log(StreamLogRequest {
            job: self.name.to_owned(),
            attempt: self.attempt,
            offset: self.offset,
            follow: true,
            rank: self.rank,
        });
        let events = event_calls
            .watch_events(WatchEventsRequest { job: self.name.to_owned(), after_seq: self.seq });
        let (log, events) = tokio::join!(client.call(log), client.call(events));
        let (mut log, mut events) = (log?, events?);
        let (mut log_open, mut events_open) = (true, true);
        let mut reason = interval(WAIT_REASON);
        reason.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while log_open || events_open {
            tokio::select! {
                // Events first, so that "Running" stands before the first line of the log.
                biased;
                event = events.message(), if events_open => match event? {
                    Some(event) => self.happened(&event),
                    None => events_open = false,
                },
                chunk = log.message(), if log_open => match chunk? {
                    Some(chunk) => self.logged(&chunk).await?,
                    None => log_open = false,
                },
                _ = reason.tick(), if self.waits() => {
                    let job = get_again(client, self.name).await?;
                    if job.status() == JobStatus::Queued && !job.wait_reason.is_empty() {
                        self.output.waiting(&format!("Queued: {}", job.wait_reason));
                    }
                }
            }
            self.patience.heard();
        }
        let job = get_again(client, self.name).await?;
        Ok(job.status().is_final().then_some(job))
    }

    fn waits(&self) -> bool {
        self.output.draws() && self.status == JobStatus::Queued
    }

    /// Writes what is new of a chunk. A daemon that came back may send again what was seen.
    async fn logged(&mut self, chunk: &pb::LogChunk) -> Result<(), Error> {
        if chunk.attempt < self.attempt {
            return Ok(());
        }
        if chunk.attempt > self.attempt {
            if self.attempt > 0 {
                self.output.note(&format!("Attempt {} of {}.", chunk.attempt, self.name));
            }
            (self.attempt, self.offset) = (chunk.attempt, 0);
        }
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        let seen = self.offset.saturating_sub(chunk.offset);
        if end > self.offset {
            let seen = usize::try_from(seen).unwrap_or(usize::MAX).min(chunk.data.len());
            let (output, new) = (self.output.clone(), chunk.data.slice(seen..));
            // Whoever reads may take their time, and Ctrl-C must be heard meanwhile.
            let written = tokio::task::spawn_blocking(move || output.bytes(&new)).await;
            written.map_err(|error| {
                Error::new(Kind::Failed, format!("cannot write the log: {error}"))
            })??;
            self.offset = end;
        }
        Ok(())
    }

    fn happened(&mut self, event: &pb::Event) {
        self.seq = self.seq.max(event.seq);
        self.status = event.status();
        // What became of an output stays to be read.
        match event.kind.as_str() {
            "AssetRegistered" => return self.output.note(&event.message),
            "AssetRefused" => return self.output.warn(&event.message),
            _ => {}
        }
        let text = told(event.status().word(), &event.message);
        if !self.output.draws() {
            // The end has its own lines.
            if text != self.shown && !self.status.is_final() {
                self.output.note(&text);
            }
        } else if self.status == JobStatus::Running || self.status.is_final() {
            self.output.settle();
        } else {
            self.output.waiting(&text);
        }
        self.shown = text;
    }
}

/// The status and what is said of it; a message that begins with the status stands alone.
fn told(word: &str, message: &str) -> String {
    if message.is_empty() {
        return word.to_owned();
    }
    let same = message.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let rest = if same { message[word.len()..].trim_start_matches([':', ' ']) } else { message };
    if rest.is_empty() { word.to_owned() } else { format!("{word}: {rest}") }
}

async fn get_again(client: &Client, name: &str) -> Result<pb::Job, Broken> {
    let request = pb::GetJobRequest { name: name.to_owned(), advise: false };
    Ok(client.call(client.jobs().get_job(request)).await?)
}
