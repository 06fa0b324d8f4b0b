//! The monitor: one task that looks at all running jobs at a steady pace, and sleeps while there
//! are none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::cgroup::{Cgroup, Traffic};
use crate::gpu::{Devices, Excess, GpuSample, Idle, Look, Share};
use crate::session::Client;
use crate::{clock, proc};

mod node;
mod outbox;
mod tree;

pub(crate) use node::NodeSampler;
use outbox::{Lost, Outbox};
pub(crate) use tree::Seen;

/// Between two looks at a job. What is sent sums up the looks since the last time.
const LOOK: Duration = Duration::from_secs(1);
/// A job that ran for less has no last sample: it would say little and cost a call.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long the end of a job waits for its last sample to arrive.
const LAST_SAMPLE: Duration = Duration::from_secs(2);

/// Tells the monitor which jobs run.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    lost: Lost,
}

enum Command {
    Watch(Box<Watched>),
    /// Makes a last sample of what the job used in all; dropped once that has arrived or is given up.
    Finish(u64, Whole, oneshot::Sender<()>),
    Forget(u64),
}

struct Watched {
    key: pb::AttemptKey,
    supervisor: i32,
    gpus: Granted,
    excess: watch::Sender<Option<Excess>>,
    idle_since: watch::Sender<Option<i64>>,
    /// The groups that the job runs in.
    cgroup: Option<Cgroup>,
    /// What it receives and sends, from the first look on: who is gone before has sent little. Nothing where
    /// that cannot be counted.
    traffic: Arc<OnceLock<Option<Traffic>>>,
    /// When samples were last made of it.
    before: tree::Totals,
    /// The last look.
    latest: tree::Totals,
    /// The most memory since samples were last made, and in all.
    recent_peak: u64,
    seen: watch::Sender<Seen>,
    gpu_looks: Vec<GpuSample>,
    looks: u32,
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

/// The devices of a job, and what is watched of them.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) indices: Vec<u32>,
    /// Where it shares its device with others.
    pub(crate) share: Option<Share>,
    /// Where somebody wants to know.
    pub(crate) idle: Option<Idle>,
}

/// A job that is watched, until this is finished or dropped.
pub(crate) struct Sampling {
    handle: Handle,
    epoch: u64,
    seen: watch::Receiver<Seen>,
    excess: watch::Receiver<Option<Excess>>,
    idle_since: watch::Receiver<Option<i64>>,
    since: Instant,
    finished: bool,
}

impl Handle {
    /// What is to be known of the monitor itself, for the node's heartbeat.
    pub(crate) fn usage(&self) -> BTreeMap<String, f64> {
        let lost = self.lost.count();
        (lost > 0).then(|| ("samples_lost".to_owned(), lost as f64)).into_iter().collect()
    }

    /// Starts watching a job that runs since `started_at_ms`.
    pub(crate) fn watch(
        &self,
        key: &pb::AttemptKey,
        supervisor: i32,
        gpus: Granted,
        cgroup: Option<Cgroup>,
        started_at_ms: i64,
    ) -> Sampling {
        let now = tree::Totals { at_ms: clock::boottime_ms(), ..tree::Totals::default() };
        let (seen, all_seen) = watch::channel(Seen::default());
        let (excess, excess_seen) = watch::channel(None);
        let (idle_since, idle_seen) = watch::channel(None);
        let watched = Watched {
            key: key.clone(),
            supervisor,
            gpus,
            excess,
            idle_since,
            cgroup,
            traffic: Arc::default(),
            before: now,
            latest: now,
            recent_peak: 0,
            seen,
            gpu_looks: Vec::new(),
            looks: 0,
            started_at_ms,
            step: 0,
        };
        let _ = self.commands.send(Command::Watch(Box::new(watched)));
        let (handle, epoch, since) = (self.clone(), key.epoch, Instant::now());
        Sampling {
            handle,
            epoch,
            seen: all_seen,
            excess: excess_seen,
            idle_since: idle_seen,
            since,
            finished: false,
        }
    }
}

impl Sampling {
    /// What looks have found so far.
    pub(crate) fn seen(&self) -> Seen {
        *self.seen.borrow()
    }

    /// Tells of each look.
    pub(crate) fn looks(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Once the job has held more of a device than its share.
    pub(crate) async fn excess(&self) -> Excess {
        next(&self.excess, |excess| *excess).await
    }

    /// Once its devices have been idle for long enough: since when, wall clock; or once they are not so
    /// any more. `known`: what was last told.
    pub(crate) async fn idle_other_than(&self, known: Option<i64>) -> Option<i64> {
        next(&self.idle_since, |since| (*since != known).then_some(*since)).await
    }

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

/// Waits for the first value of which there is something to say.
async fn next<T, U>(values: &watch::Receiver<T>, say: impl Fn(&T) -> Option<U>) -> U {
    let mut values = values.clone();
    loop {
        if let Some(said) = say(&values.borrow_and_update()) {
            return said;
        }
        if values.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The totals of jobs, each from its groups or else from the process table, which is read once.
fn look_at(jobs: &[Tree]) -> Vec<(u64, tree::Totals)> {
    let now = clock::boottime_ms();
    let mut all = None;
    jobs.iter()
        .map(|Tree { epoch, supervisor, cgroup, traffic }| {
            let totals = cgroup.as_ref().and_then(|cgroup| tree::totals_of(cgroup, now));
            let totals = totals.unwrap_or_else(|| {
                tree::totals(all.get_or_insert_with(proc::all), *supervisor, now)
            });
            let count = || cgroup.as_ref()?.count_traffic().ok();
            let traffic = traffic.get_or_init(count).as_ref();
            let network_bytes = traffic.and_then(|traffic| traffic.bytes().ok());
            (*epoch, tree::Totals { network_bytes, ..totals })
        })
        .collect()
}

/// One job's processes, as a look needs them.
struct Tree {
    epoch: u64,
    supervisor: i32,
    cgroup: Option<Cgroup>,
    traffic: Arc<OnceLock<Option<Traffic>>>,
}

impl Watched {
    /// What a look found of its devices, in the order in which the job sees them: of one that it shares,
    /// what its own processes do, as far as that is told.
    fn gpus_looked(&mut self, looks: &BTreeMap<u32, Look>) -> Vec<GpuSample> {
        let mut samples = Vec::new();
        for index in &self.gpus.indices {
            let seen = looks.get(index).map(|look| look.of(self.key.epoch)).unwrap_or_default();
            let mut sample = seen.device;
            if let Some(share) = &mut self.gpus.share {
                sample.utilization = seen.utilization.or(sample.utilization);
                let memory = seen.memory_mib.map(|memory| memory as f64);
                sample.memory_used_mib = memory.unwrap_or(sample.memory_used_mib);
                let excess = share.looked(*index, &seen);
                if excess.is_some() {
                    self.excess.send_replace(excess);
                }
            }
            samples.push(sample);
        }
        samples
    }

    fn looked(&mut self, totals: tree::Totals, gpus: Vec<GpuSample>) {
        if let Some(idle) = &mut self.gpus.idle {
            let idle_ms = idle.looked(&gpus, totals.at_ms);
            self.idle_since.send_if_modified(|since| {
                // As it was first told: the two clocks need not agree to the millisecond.
                let now = || clock::now_ms().saturating_sub_unsigned(idle_ms.unwrap_or(0));
                let differs = since.is_some() != idle_ms.is_some();
                if differs {
                    *since = idle_ms.map(|_| now());
                }
                differs
            });
        }
        let passed_ms = totals.at_ms.saturating_sub(self.latest.at_ms);
        self.latest = totals;
        self.recent_peak = self.recent_peak.max(totals.resident_bytes);
        self.seen.send_modify(|seen| seen.add(&totals, &gpus, passed_ms));
        self.looks += 1;
        if self.gpu_looks.len() == gpus.len() {
            for (sum, gpu) in self.gpu_looks.iter_mut().zip(gpus) {
                sum.add(&gpu);
            }
        } else {
            self.gpu_looks = gpus;
        }
    }

    /// What the looks since the last sample have seen: rates over that time, and the most memory.
    fn sample(&mut self, interval: Duration) -> Option<pb::RunSample> {
        // The job is just starting, or gone.
        if self.looks == 0 || self.recent_peak == 0 {
            return None;
        }
        let looks = f64::from(std::mem::take(&mut self.looks));
        let mut gpus = std::mem::take(&mut self.gpu_looks);
        gpus.iter_mut().for_each(|sum| sum.divide(looks));
        let resident_bytes = std::mem::take(&mut self.recent_peak);
        let now = tree::Totals { resident_bytes, ..self.latest };
        let metrics = tree::metrics(&self.before, &now, &gpus);
        self.before = now;
        Some(self.numbered(metrics, interval))
    }

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
    devices: Arc<Devices>,
    interval: Duration,
    outbox: Arc<Outbox>,
    watched: BTreeMap<u64, Watched>,
}

impl Monitor {
    pub(crate) fn new(
        devices: Arc<Devices>,
        interval: Duration,
        client: watch::Receiver<Option<Client>>,
    ) -> (Self, Handle) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (outbox, watched) = (Arc::new(Outbox::new(client)), BTreeMap::new());
        let lost = outbox.lost();
        let monitor = Self { commands, devices, interval, outbox, watched };
        (monitor, Handle { commands: sender, lost })
    }

    /// Runs until all handles are gone.
    pub(crate) async fn run(self) {
        let outbox = Arc::clone(&self.outbox);
        tokio::select! {
            () = self.keep_looking() => {}
            () = outbox.send() => {}
        }
    }

    async fn keep_looking(mut self) {
        let (mut next, mut look_next) = (Instant::now() + self.interval, Instant::now());
        loop {
            let idle = self.watched.is_empty();
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Watch(watched)) => {
                        if idle {
                            next = Instant::now() + self.interval;
                            look_next = Instant::now() + self.interval.min(LOOK);
                        }
                        self.watched.insert(watched.key.epoch, *watched);
                    }
                    Some(Command::Forget(epoch)) => {
                        self.watched.remove(&epoch);
                    }
                    Some(Command::Finish(epoch, whole, done)) => {
                        if let Some(watched) = self.watched.remove(&epoch) {
                            self.outbox.put(watched.last_sample(&whole), Some(done));
                        }
                    }
                },
                () = tokio::time::sleep_until(look_next), if !idle => {
                    self.look().await;
                    look_next = Instant::now() + self.interval.min(LOOK);
                    if look_next > next {
                        self.sample();
                        next = Instant::now() + self.interval;
                    }
                }
            }
        }
    }

    /// Looks at all jobs.
    async fn look(&mut self) {
        let of = |(epoch, watched): (&u64, &Watched)| Tree {
            epoch: *epoch,
            supervisor: watched.supervisor,
            cgroup: watched.cgroup.clone(),
            traffic: watched.traffic.clone(),
        };
        let jobs: Vec<Tree> = self.watched.iter().map(of).collect();
        let indices: BTreeSet<u32> =
            self.watched.values().flat_map(|watched| watched.gpus.indices.clone()).collect();
        // Many small files on a busy machine: not on this thread.
        let looking = tokio::task::spawn_blocking(move || look_at(&jobs));
        let (seen, looks) = tokio::join!(looking, self.look_at_gpus(indices));
        let Ok(seen) = seen else { return };
        for (epoch, totals) in seen {
            let Some(watched) = self.watched.get_mut(&epoch) else { continue };
            let gpus = watched.gpus_looked(&looks);
            watched.looked(totals, gpus);
        }
    }

    /// Looks at each of some devices once; at none where the driver takes longer than until the next look.
    async fn look_at_gpus(&self, indices: BTreeSet<u32>) -> BTreeMap<u32, Look> {
        if indices.is_empty() {
            return BTreeMap::new();
        }
        let look = |devices: &Devices| {
            indices.into_iter().map(|index| (index, devices.look_at(index))).collect()
        };
        let looking = tokio::time::timeout(LOOK, self.devices.ask(look)).await;
        looking.ok().flatten().unwrap_or_default()
    }

    /// Makes samples of what the looks have seen.
    fn sample(&mut self) {
        for watched in self.watched.values_mut() {
            if let Some(sample) = watched.sample(self.interval) {
                self.outbox.put(sample, None);
            }
        }
    }
}
