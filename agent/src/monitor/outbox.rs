//! Samples on their way to the daemon. They are sent beside the looks, which no daemon holds up, and kept while
//! it does not take them. What it refuses is lost, and nothing else with it; what it cannot take of one attempt holds
//! up no other's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::session::Client;

/// Samples kept while the daemon does not take them: the oldest go first.
const KEPT: usize = 10_000;
/// In one call.
const BATCH: usize = 500;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before a daemon that is away is tried again, unless there are more samples or a new connection.
const PAUSE: Duration = Duration::from_secs(5);
/// Before samples of an attempt are sent again of which the daemon could not take some: at first, and doubled up to
/// at most, unless there is a new connection.
const PAUSE_OF_ONE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What was measured and has not arrived yet.
pub(super) struct Outbox {
    client: watch::Receiver<Option<Client>>,
    unsent: Mutex<Unsent>,
    more: Notify,
    lost: Lost,
}

/// How many samples this agent has measured and lost.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost(Arc<AtomicU64>);

impl Lost {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, count: usize) -> u64 {
        let count = count as u64;
        self.0.fetch_add(count, Ordering::Relaxed) + count
    }
}

#[derive(Default)]
struct Unsent {
    /// By their numbers.
    samples: VecDeque<Sample>,
    /// The next one's number.
    next: u64,
    /// Attempts that are not sent now, by epoch.
    held: BTreeMap<u64, Held>,
    /// Samples were lost for want of room since something last arrived.
    is_full: bool,
}

struct Sample {
    number: u64,
    sample: pb::RunSample,
    /// Dropped with it: whoever waits is told.
    _leaves: Option<oneshot::Sender<()>>,
}

/// The daemon could not take something of an attempt.
struct Held {
    until: Instant,
    pause: Duration,
}

/// Samples with their numbers, in their order.
type Part = Vec<(u64, pb::RunSample)>;

impl Outbox {
    pub(super) fn new(client: watch::Receiver<Option<Client>>) -> Self {
        let (unsent, more, lost) = (Mutex::default(), Notify::new(), Lost::default());
        Self { client, unsent, more, lost }
    }

    /// Counts what is lost.
    pub(super) fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Puts a sample behind the others. `leaves` is dropped once it has arrived or is given up.
    pub(super) fn put(&self, sample: pb::RunSample, leaves: Option<oneshot::Sender<()>>) {
        let mut unsent = self.unsent();
        let number = unsent.next;
        unsent.next += 1;
        unsent.samples.push_back(Sample { number, sample, _leaves: leaves });
        let too_many = unsent.samples.len().saturating_sub(KEPT);
        if too_many > 0 {
            unsent.samples.drain(..too_many);
            let lost = self.lost.add(too_many);
            if !std::mem::replace(&mut unsent.is_full, true) {
                tracing::warn!(
                    lost,
                    kept = KEPT,
                    "the daemon has not taken samples for long: the oldest are lost"
                );
            }
        }
        self.more.notify_one();
    }

    /// Sends what there is, for ever. Sent twice is stored once.
    pub(super) async fn send(&self) {
        let mut client = self.client.clone();
        loop {
            let connected = client.borrow_and_update().clone();
            let again = match connected {
                Some(client) => self.send_all(|samples| record(client.clone(), samples)).await,
                None => Some(Instant::now() + PAUSE),
            };
            tokio::select! {
                () = self.more.notified() => {}
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
                Ok(()) = client.changed() => self.unsent().held.clear(),
            }
        }
    }

    /// Sends all that may be sent now. When to go on at the latest; `None`: nothing is left.
    async fn send_all<F: Future<Output = Result<(), Status>>>(
        &self,
        send: impl Fn(Vec<pb::RunSample>) -> F,
    ) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let batch = self.unsent().batch(now);
            if batch.is_empty() {
                return self.unsent().due();
            }
            let mut refused: Option<(usize, Status)> = None;
            let mut parts = vec![batch];
            let mut away = false;
            while let Some(part) = parts.pop() {
                let samples = part.iter().map(|(_, sample)| sample.clone()).collect();
                let Err(status) = send(samples).await else {
                    self.unsent().arrived(&part);
                    continue;
                };
                match Answer::of(status.code()) {
                    Answer::Away => {
                        away = true;
                        break;
                    }
                    Answer::Refused(Whose::Samples) | Answer::Later if is_of_several(&part) => {
                        parts.extend(by_attempt(part));
                    }
                    Answer::Refused(Whose::Samples) if part.len() > 1 => {
                        let mut first = part;
                        let second = first.split_off(first.len() / 2);
                        parts.extend([second, first]);
                    }
                    Answer::Refused(_) => {
                        self.unsent().leave(&part);
                        refused.get_or_insert((0, status)).0 += part.len();
                    }
                    Answer::Later => {
                        tracing::debug!(%status, "the daemon cannot take samples of an attempt now");
                        self.unsent().hold(&part, now);
                    }
                }
            }
            if let Some((count, status)) = refused {
                let lost = self.lost.add(count);
                tracing::warn!(%status, count, lost, "the daemon refused samples, which are lost");
            }
            if away {
                return Some(Instant::now() + PAUSE);
            }
        }
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn record(mut client: Client, samples: Vec<pb::RunSample>) -> Result<(), Status> {
    let mut request = tonic::Request::new(pb::RecordMetricsRequest { samples });
    request.set_timeout(PATIENCE);
    client.record_metrics(request).await.map(drop)
}

impl Unsent {
    /// The next to be sent.
    fn batch(&self, now: Instant) -> Part {
        let may_go = |sample: &&Sample| {
            let held = self.held.get(&epoch(&sample.sample));
            held.is_none_or(|held| held.until <= now)
        };
        let next = self.samples.iter().filter(may_go).take(BATCH);
        next.map(|next| (next.number, next.sample.clone())).collect()
    }

    /// When samples that are there may be sent.
    fn due(&self) -> Option<Instant> {
        let epochs = self.samples.iter().map(|sample| epoch(&sample.sample));
        let all: BTreeSet<u64> = epochs.collect();
        all.iter().filter_map(|epoch| Some(self.held.get(epoch)?.until)).min()
    }

    fn arrived(&mut self, part: &Part) {
        self.leave(part);
        self.is_full = false;
        for (_, sample) in part {
            self.held.remove(&epoch(sample));
        }
    }

    /// Of those some may have been given up already.
    fn leave(&mut self, part: &Part) {
        let goes = |sample: &Sample| part.binary_search_by_key(&sample.number, |(n, _)| *n).is_ok();
        self.samples.retain(|sample| !goes(sample));
    }

    /// The attempt of these waits longer each time.
    fn hold(&mut self, part: &Part, now: Instant) {
        let Some((_, first)) = part.first() else { return };
        let epoch_of_part = epoch(first);
        let pause = match self.held.get(&epoch_of_part) {
            Some(held) => (held.pause * 2).min(LONGEST_PAUSE),
            None => PAUSE_OF_ONE,
        };
        // Of attempts without samples nothing is kept.
        let there: BTreeSet<u64> =
            self.samples.iter().map(|sample| epoch(&sample.sample)).collect();
        self.held.retain(|epoch, _| there.contains(epoch));
        self.held.insert(epoch_of_part, Held { until: now + pause, pause });
    }
}

fn epoch(sample: &pb::RunSample) -> u64 {
    sample.key.as_ref().map_or(0, |key| key.epoch)
}

fn is_of_several(part: &Part) -> bool {
    part.windows(2).any(|two| epoch(&two[0].1) != epoch(&two[1].1))
}

/// Each attempt's own.
fn by_attempt(part: Part) -> impl Iterator<Item = Part> {
    let mut parts: BTreeMap<u64, Part> = BTreeMap::new();
    for (number, sample) in part {
        parts.entry(epoch(&sample)).or_default().push((number, sample));
    }
    parts.into_values()
}

/// What an answer that is an error says of what was sent.
enum Answer {
    /// The daemon is not there, stops, or was frozen for too long.
    Away,
    /// It will never take some of it, or nothing of this node's.
    Refused(Whose),
    /// It may take it later: its disk is full, or what it knows of an attempt cannot be read.
    Later,
}

/// Whose fault a refusal is.
enum Whose {
    Samples,
    Node,
}

impl Answer {
    fn of(code: Code) -> Self {
        match code {
            Code::Ok
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unauthenticated => Self::Away,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange => Self::Refused(Whose::Samples),
            Code::PermissionDenied | Code::Unimplemented => Self::Refused(Whose::Node),
            Code::Internal
            | Code::Unknown
            | Code::DataLoss
            | Code::Aborted
            | Code::ResourceExhausted => Self::Later,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
