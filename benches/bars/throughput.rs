//! Submissions a second, and whole jobs a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, runtime, true_job};
use crate::figures::rate;

const IN_FLIGHT: usize = 64;

/// Durable submissions with 64 in flight over one connection.
pub(crate) fn submissions() {
    const EACH: usize = 20_000;
    let cluster = Cluster::start(None);
    let rounds = (0..5).map(|round| runtime().block_on(submit(&cluster, EACH, round))).collect();
    rate("durable submissions, 64 in flight", rounds);
}

async fn submit(cluster: &Cluster, count: usize, round: usize) -> f64 {
    let jobs = cluster.jobs().await;
    let next = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let workers: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (mut jobs, next) = (jobs.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    jobs.create_job(true_job(format!("submit-{round}-{index}"))).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

/// Whole jobs of `true` through one agent with 64 slots: from the first submission to the last
/// end.
pub(crate) fn jobs() {
    const EACH: usize = 3_000;
    let cluster = Cluster::start(Some(64));
    let rounds = (0..5)
        .map(|round| {
            runtime().block_on(async {
                let mut jobs = cluster.jobs().await;
                let last = last_event(&mut jobs).await;
                let request = pb::WatchEventsRequest { job: String::new(), after_seq: last };
                let mut events = jobs.watch_events(request).await.unwrap().into_inner();
                let begin = Instant::now();
                let submitted = submit(&cluster, EACH, 100 + round);
                let ended = async {
                    let mut ended = 0;
                    while ended < EACH {
                        let event = events.message().await.unwrap().unwrap();
                        assert!(!matches!(event.kind.as_str(), "Failed" | "Requeued"));
                        ended += usize::from(event.kind == "Completed");
                    }
                };
                futures::join!(submitted, ended);
                EACH as f64 / begin.elapsed().as_secs_f64()
            })
        })
        .collect();
    rate("whole jobs of `true`, one agent, 64 slots", rounds);
}

async fn last_event(jobs: &mut crate::cluster::Jobs) -> u64 {
    let mut last = 0;
    loop {
        let request = pb::ListEventsRequest { job: String::new(), after_seq: last, limit: 10_000 };
        let page = jobs.list_events(request).await.unwrap().into_inner().events;
        match page.last() {
            Some(event) => last = event.seq,
            None => return last,
        }
    }
}
