use std::cell::RefCell;
use std::future::ready;

use super::*;

fn sample(epoch: u64, step: u64) -> pb::RunSample {
    let key = pb::AttemptKey { epoch, ..pb::AttemptKey::default() };
    pb::RunSample { key: Some(key), step, ..pb::RunSample::default() }
}

fn outbox(samples: impl IntoIterator<Item = (u64, u64)>) -> Outbox {
    let (_client, clients) = watch::channel(None);
    let outbox = Outbox::new(clients);
    for (epoch, step) in samples {
        outbox.put(sample(epoch, step), None);
    }
    outbox
}

/// A daemon that stores what is not refused, all of a call or nothing.
#[derive(Default)]
struct Daemon {
    stored: RefCell<BTreeSet<(u64, u64)>>,
    calls: RefCell<usize>,
}

impl Daemon {
    fn takes(
        &self,
        samples: &[pb::RunSample],
        refuses: impl Fn((u64, u64)) -> Option<Code>,
    ) -> Result<(), Status> {
        *self.calls.borrow_mut() += 1;
        let all = samples.iter().map(|sample| (epoch(sample), sample.step));
        if let Some(code) = all.clone().find_map(refuses) {
            return Err(Status::new(code, "for the test"));
        }
        self.stored.borrow_mut().extend(all);
        Ok(())
    }

    fn calls(&self) -> usize {
        std::mem::take(&mut *self.calls.borrow_mut())
    }

    fn stored(&self) -> usize {
        self.stored.borrow().len()
    }
}

#[test]
fn the_oldest_go_first_and_whoever_waits_for_them_is_told() {
    let outbox = outbox([]);
    let (leaves, mut waits) = oneshot::channel();
    outbox.put(sample(1, 0), Some(leaves));
    for step in 1..KEPT as u64 {
        outbox.put(sample(1, step), None);
    }
    let under_way = outbox.unsent().batch(Instant::now());
    assert_eq!((under_way.len(), under_way[0].1.step), (BATCH, 0));
    assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    assert_eq!(outbox.lost().count(), 0);
    outbox.put(sample(1, KEPT as u64), None);
    assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    assert_eq!(outbox.lost().count(), 1);
    // What was on its way meanwhile takes no more with it than itself.
    outbox.unsent().arrived(&under_way);
    assert_eq!(outbox.unsent().batch(Instant::now())[0].1.step, BATCH as u64);
}

#[tokio::test]
async fn what_is_refused_takes_nothing_with_it() {
    let outbox = outbox((0..BATCH as u64 + 10).map(|step| (1 + step % 3, step)));
    let daemon = Daemon::default();
    let bad = [(2, 301), (1, 9), (3, 509)];
    let send = |samples: Vec<_>| {
        let refuses = |sample| bad.contains(&sample).then_some(Code::InvalidArgument);
        ready(daemon.takes(&samples, refuses))
    };
    assert_eq!(outbox.send_all(send).await, None);
    assert_eq!((daemon.stored(), outbox.lost().count()), (BATCH + 7, 3));
    assert!(outbox.unsent().samples.is_empty());
    let calls = daemon.calls();
    assert!(calls < 50, "{calls} calls for three samples");
}

#[tokio::test]
async fn a_daemon_that_takes_nothing_of_this_node_is_not_asked_for_each_sample() {
    let outbox = outbox((0..40).map(|step| (step % 4, step)));
    let daemon = Daemon::default();
    let send = |samples: Vec<_>| ready(daemon.takes(&samples, |_| Some(Code::PermissionDenied)));
    assert_eq!(outbox.send_all(send).await, None);
    assert_eq!((daemon.calls(), outbox.lost().count()), (1, 40));
}

#[tokio::test]
async fn an_attempt_that_cannot_be_stored_holds_up_no_other_and_comes_later() {
    let outbox = outbox((0..30).map(|step| (1 + step % 3, step)));
    let daemon = Daemon::default();
    let ill = |samples: Vec<_>| {
        ready(daemon.takes(&samples, |(epoch, _)| (epoch == 2).then_some(Code::Internal)))
    };
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let before = Instant::now();
        let again = outbox.send_all(ill).await.unwrap();
        pauses.push(again.duration_since(before).as_secs_f64().round() as u64);
        assert_eq!(daemon.stored(), 20);
        // More of the others does not wake it.
        daemon.calls();
        assert_eq!(outbox.send_all(ill).await, Some(again));
        assert_eq!(daemon.calls(), 0);
        outbox.unsent().held.values_mut().for_each(|held| held.until = Instant::now());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(outbox.lost().count(), 0);
    let well = |samples: Vec<_>| ready(daemon.takes(&samples, |_| None));
    assert_eq!(outbox.send_all(well).await, None);
    assert_eq!((daemon.stored(), outbox.unsent().held.len()), (30, 0));
}

#[tokio::test]
async fn a_daemon_that_is_away_gets_it_all_when_it_is_back() {
    let outbox = outbox((0..30).map(|step| (1 + step % 3, step)));
    let daemon = Daemon::default();
    let away = |samples: Vec<_>| ready(daemon.takes(&samples, |_| Some(Code::Unavailable)));
    assert!(outbox.send_all(away).await.is_some());
    assert_eq!((daemon.calls(), outbox.unsent().held.len()), (1, 0));
    let back = |samples: Vec<_>| ready(daemon.takes(&samples, |_| None));
    assert_eq!(outbox.send_all(back).await, None);
    assert_eq!((daemon.calls(), daemon.stored(), outbox.lost().count()), (1, 30, 0));
}
