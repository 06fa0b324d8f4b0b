//! The monitor: one task that looks at all running jobs at a steady pace, and sleeps while there
//! are none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::session::Client;
use crate::{clock, proc};

pub(crate) mod gpu;
mod node;
mod tree;

pub(crate) use node::NodeSampler;

/// Samples kept while the daemon is away: the oldest go first.
const KEPT: usize = 10_000;
/// In one call.
const BATCH: usize = 500;
/// A job that ran for less has no last sample: it would say little and cost a call.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long the end of a job waits for its last sample to arrive.
const LAST_SAMPLE: Duration = Duration::from_secs(2);

/// Tells the monitor which jobs run.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

enum Command {
    Watch(Watched),
    /// Makes a last sample of what the job used in all and says when it has arrived.
    Finish(u64, Whole, oneshot::Sender<()>),
    Forget(u64),
}

struct Watched {
    key: pb::AttemptKey,
    supervisor: i32,
    gpus: Vec<u32>,
    before: tree::Totals,
    /// When the job started, wall clock.
    started_at_ms: i64,
    /// The next sample's number, at least.
    step: u64,
}

/// What a job used in its whole life.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Whole {
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_memory_bytes: u64,
}

/// A job that is watched, until this is finished or dropped.
pub(crate) struct Sampling {
    handle: Handle,
    epoch: u64,
    since: Instant,
    finished: bool,
}

impl Handle {
    /// Starts watching a job that runs since `started_at_ms`.
    pub(crate) fn watch(
        &self,
        key: &pb::AttemptKey,
        supervisor: i32,
        gpus: &[u32],
        started_at_ms: i64,
    ) -> Sampling {
        let now = clock::boottime_ms();
        let watched = Watched {
            key: key.clone(),
            supervisor,
            gpus: gpus.to_vec(),
            before: tree::Totals { at_ms: now, ..tree::Totals::default() },
            started_at_ms,
            step: 0,
        };
        let _ = self.commands.send(Command::Watch(watched));
        Sampling { handle: self.clone(), epoch: key.epoch, since: Instant::now(), finished: false }
    }
}

impl Sampling {
    /// Stops watching; waits a little for what was measured to arrive, because a run that has
    /// ended takes no more metrics.
    pub(crate) async fn finish(mut self, whole: Whole) {
        if self.since.elapsed() < SHORTEST {
            return;
        }
        self.finished = true;
        let (done, arrived) = oneshot::channel();
        let _ = self.handle.commands.send(Command::Finish(self.epoch, whole, done));
        let _ = tokio::time::timeout(LAST_SAMPLE, arrived).await;
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.handle.commands.send(Command::Forget(self.epoch));
        }
    }
}

impl Watched {
    /// A sample with its number: that of the interval it falls into, so that a new agent goes on
    /// where the old one stopped.
    fn numbered(&mut self, metrics: BTreeMap<String, f64>, interval: Duration) -> pb::RunSample {
        let at_ms = clock::now_ms();
        let age = u64::try_from(at_ms.saturating_sub(self.started_at_ms)).unwrap_or(0);
        let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let step = (age / interval).max(self.step);
        self.step = step + 1;
        pb::RunSample { key: Some(self.key.clone()), at_ms, step, metrics }
    }

    /// The tree is gone; what the kernel counted for it is not.
    fn last_sample(mut self, whole: &Whole) -> pb::RunSample {
        let mut now = tree::Totals {
            at_ms: clock::boottime_ms(),
            cpu_seconds: whole.cpu_seconds,
            resident_bytes: whole.peak_memory_bytes,
            ..self.before
        };
        if self.step > 0 {
            now.resident_bytes = self.before.resident_bytes;
        }
        let metrics = tree::metrics(&self.before, &now, &[]);
        self.numbered(metrics, Duration::MAX)
    }
}

/// The monitor's task and the handle to it.
pub(crate) struct Monitor {
    commands: mpsc::UnboundedReceiver<Command>,
    gpus: Arc<dyn gpu::Gpus>,
    interval: Duration,
    client: watch::Receiver<Option<Client>>,
    watched: BTreeMap<u64, Watched>,
    unsent: VecDeque<pb::RunSample>,
}

impl Monitor {
    pub(crate) fn new(
        gpus: Arc<dyn gpu::Gpus>,
        interval: Duration,
        client: watch::Receiver<Option<Client>>,
    ) -> (Self, Handle) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (watched, unsent) = (BTreeMap::new(), VecDeque::new());
        let monitor = Self { commands, gpus, interval, client, watched, unsent };
        (monitor, Handle { commands: sender })
    }

    /// Runs until all handles are gone.
    pub(crate) async fn run(mut self) {
        let mut next = Instant::now() + self.interval;
        loop {
            let idle = self.watched.is_empty();
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Watch(watched)) => {
                        if idle {
                            next = Instant::now() + self.interval;
                        }
                        self.watched.insert(watched.key.epoch, watched);
                    }
                    Some(Command::Forget(epoch)) => {
                        self.watched.remove(&epoch);
                    }
                    Some(Command::Finish(epoch, whole, done)) => {
                        if let Some(watched) = self.watched.remove(&epoch) {
                            self.keep(watched.last_sample(&whole));
                        }
                        self.send().await;
                        let _ = done.send(());
                    }
                },
                () = tokio::time::sleep_until(next), if !idle => {
                    self.sample().await;
                    self.send().await;
                    next = Instant::now() + self.interval;
                }
            }
        }
    }

    /// Looks at all jobs.
    async fn sample(&mut self) {
        // Thousands of small files on a busy machine: not on this thread.
        let Ok(all) = tokio::task::spawn_blocking(proc::all).await else { return };
        let now = clock::boottime_ms();
        let mut samples = Vec::with_capacity(self.watched.len());
        for watched in self.watched.values_mut() {
            let totals = tree::totals(&all, watched.supervisor, now);
            if totals.resident_bytes == 0 {
                continue;
            }
            let gpus = tree::gpus(self.gpus.as_ref(), &watched.gpus);
            let metrics = tree::metrics(&watched.before, &totals, &gpus);
            watched.before = totals;
            samples.push(watched.numbered(metrics, self.interval));
        }
        for sample in samples {
            self.keep(sample);
        }
    }

    fn keep(&mut self, sample: pb::RunSample) {
        self.unsent.push_back(sample);
        while self.unsent.len() > KEPT {
            self.unsent.pop_front();
        }
    }

    /// Sends what there is; keeps it if the daemon does not answer. Sent twice is stored once.
    async fn send(&mut self) {
        let Some(mut client) = self.client.borrow().clone() else { return };
        while !self.unsent.is_empty() {
            let count = self.unsent.len().min(BATCH);
            let samples: Vec<_> = self.unsent.range(..count).cloned().collect();
            let mut request = tonic::Request::new(pb::RecordMetricsRequest { samples });
            request.set_timeout(Duration::from_secs(5));
            match client.record_metrics(request).await {
                Ok(_) => {
                    self.unsent.drain(..count);
                }
                // The daemon is away: later. Anything else will not get better by waiting.
                Err(status) if status.code() == tonic::Code::Unavailable => return,
                Err(status) => {
                    tracing::debug!(%status, "the daemon refused samples");
                    self.unsent.drain(..count);
                }
            }
        }
    }
}
