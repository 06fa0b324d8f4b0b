//! Samples on their way to the daemon. They are sent beside the looks, which no daemon holds up, and kept while
//! it does not take them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use tokio::sync::{Notify, oneshot, watch};
use tonic::Code;

use crate::session::Client;

/// Samples kept while the daemon is away: the oldest go first.
const KEPT: usize = 10_000;
/// In one call.
const BATCH: usize = 500;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the same samples are sent again, unless there are more or a new connection.
const PAUSE: Duration = Duration::from_secs(5);

/// What was measured and has not arrived yet.
pub(super) struct Outbox {
    client: watch::Receiver<Option<Client>>,
    unsent: Mutex<Unsent>,
    more: Notify,
}

#[derive(Default)]
struct Unsent {
    samples: VecDeque<Sample>,
    /// How many have left, sent or not.
    gone: u64,
}

struct Sample {
    sample: pb::RunSample,
    /// Dropped with it: whoever waits is told.
    _leaves: Option<oneshot::Sender<()>>,
}

impl Outbox {
    pub(super) fn new(client: watch::Receiver<Option<Client>>) -> Self {
        Self { client, unsent: Mutex::default(), more: Notify::new() }
    }

    /// Puts a sample behind the others. `leaves` is dropped once it has arrived or is given up.
    pub(super) fn put(&self, sample: pb::RunSample, leaves: Option<oneshot::Sender<()>>) {
        let mut unsent = self.unsent();
        unsent.samples.push_back(Sample { sample, _leaves: leaves });
        let too_many = unsent.samples.len().saturating_sub(KEPT);
        unsent.leave(too_many);
        self.more.notify_one();
    }

    /// Sends what there is, for ever. Sent twice is stored once.
    pub(super) async fn send(&self) {
        let mut client = self.client.clone();
        loop {
            self.more.notified().await;
            while !self.send_all().await {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = self.more.notified() => {}
                    Ok(()) = client.changed() => {}
                }
            }
        }
    }

    /// Whether nothing is left to send.
    async fn send_all(&self) -> bool {
        loop {
            let next = self.unsent().first();
            let Some((up_to, samples)) = next else { return true };
            let Some(mut client) = self.client.borrow().clone() else { return false };
            let count = samples.len();
            let mut request = tonic::Request::new(pb::RecordMetricsRequest { samples });
            request.set_timeout(PATIENCE);
            match client.record_metrics(request).await {
                Err(status) if !is_refusal(status.code()) => return false,
                Err(status) => {
                    tracing::warn!(%status, count, "the daemon refused samples, which are lost");
                }
                Ok(_) => {}
            }
            let mut unsent = self.unsent();
            // Of those that were sent some may have been given up meanwhile.
            let left = up_to.saturating_sub(unsent.gone);
            unsent.leave(usize::try_from(left).unwrap_or(usize::MAX));
        }
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unsent {
    /// The next to be sent, and how many will have left with them; `None`: there are none.
    fn first(&self) -> Option<(u64, Vec<pb::RunSample>)> {
        let next = self.samples.iter().take(BATCH).map(|next| next.sample.clone());
        let samples: Vec<_> = next.collect();
        (!samples.is_empty()).then(|| (self.gone + samples.len() as u64, samples))
    }

    /// The first leave.
    fn leave(&mut self, count: usize) {
        let count = count.min(self.samples.len());
        self.samples.drain(..count);
        self.gone += count as u64;
    }
}

/// Whether the daemon will never take what it was sent. All else is its state, the connection's or this node's,
/// and may get better: it is away, stops, was frozen for too long, or its disk is full.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64) -> pb::RunSample {
        pb::RunSample { step, ..pb::RunSample::default() }
    }

    #[test]
    fn the_oldest_go_first_and_whoever_waits_for_them_is_told() {
        let (_client, clients) = watch::channel(None);
        let outbox = Outbox::new(clients);
        let (leaves, mut waits) = oneshot::channel();
        outbox.put(sample(0), Some(leaves));
        for step in 1..KEPT as u64 {
            outbox.put(sample(step), None);
        }
        let (up_to, samples) = outbox.unsent().first().unwrap();
        assert_eq!((up_to, samples.len(), samples[0].step), (BATCH as u64, BATCH, 0));
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        outbox.put(sample(KEPT as u64), None);
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        // What was on its way meanwhile takes no more with it than itself.
        let left = up_to - outbox.unsent().gone;
        outbox.unsent().leave(left as usize);
        assert_eq!(outbox.unsent().first().unwrap().1[0].step, BATCH as u64);
    }
}
