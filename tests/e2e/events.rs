//! The events that a watcher sees.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use atelier_proto::job::v1 as pb;

use crate::harness::{Cluster, Rpc, until};

/// Watches from where it left off, until the stream ends, `seen` has what is wanted, or it goes by
/// itself, as it does now and then.
fn watch(data: &Path, seen: &Mutex<Vec<u64>>) {
    let told =
        |file: &str| fs::read_to_string(data.join(file)).unwrap_or_default().trim().to_owned();
    let Ok(rpc) = Rpc::connect(&told("endpoint"), &told("admin.token")) else { return };
    let after_seq = seen.lock().unwrap().last().copied().unwrap_or_default();
    let request = pb::WatchEventsRequest { job: String::new(), after_seq };
    rpc.wait(async {
        let mut calls = rpc.client.jobs();
        let Ok(mut events) = rpc.client.call(calls.watch_events(request)).await else { return };
        let patience = Duration::from_millis(300);
        while let Ok(Ok(Some(event))) = tokio::time::timeout(patience, events.message()).await {
            seen.lock().unwrap().push(event.seq);
            if event.seq % 37 == 0 {
                return;
            }
        }
    });
}

/// A watcher that comes again where it left off, also at another daemon, sees every event once.
#[test]
fn a_watcher_that_comes_again_misses_no_event_and_sees_none_twice() {
    let cluster = Cluster::start();
    let over = AtomicBool::new(false);
    let seen = Mutex::new(Vec::new());
    let files = cluster.data();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                watch(&files, &seen);
            }
        });
        for round in 0..3 {
            for _ in 0..8 {
                cluster.shell("true");
            }
            if round < 2 {
                cluster.restart_daemon_hard();
            }
        }
        for job in cluster.rpc().jobs().unwrap() {
            cluster.completed(&job.name);
        }
        let last = cluster.rpc().events("").unwrap().last().unwrap().seq;
        until("the watcher has seen the last event", || {
            seen.lock().unwrap().last().is_some_and(|seen| *seen >= last).then_some(())
        });
        over.store(true, Ordering::SeqCst);
    });
    let all: Vec<u64> = cluster.rpc().events("").unwrap().iter().map(|e| e.seq).collect();
    assert_eq!(*seen.lock().unwrap(), all);
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>(), "without gaps");
}
