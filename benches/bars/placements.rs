//! Durable placements a second: decided, committed, and on their way to simulated agents.

use std::sync::Arc;
use std::time::Instant;

use atelier::config::ServeArgs;
use atelier::daemon::{self, Join, SubmitRequest, ToNode};
use atelier_core::id::{JobName, Principal};
use atelier_core::spec::Priority;
use atelier_core::testkit::{capacity, command_job, demand, node_record};
use clap::Parser;
use futures::stream::{self, StreamExt as _};
use tokio::sync::mpsc;

use crate::cluster::runtime;
use crate::figures::rate;

const NODES: usize = 200;
const JOBS: usize = 20_000;
/// Who submits them.
const USERS: usize = 20;
/// One job of so many is on several nodes.
const GANG_EVERY: usize = 50;
const MEMBERS: u32 = 4;
/// Submissions in flight while the queue is filled.
const IN_FLIGHT: usize = 512;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A daemon in this process with a full queue; then nodes come that have room for all of it. Counted
/// from the first node to the last assignment, each of which is on disk.
pub(crate) fn placements() {
    let rounds = (0..3).map(|_| runtime().block_on(round())).collect();
    rate("durable placements, 200 simulated agents, fair share, priorities, gangs", rounds);
}

async fn round() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let line = ["serve", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let running = daemon::start(Line::parse_from(line).serve).await.unwrap();
    let handle = running.handle.clone();
    let users: Vec<Principal> =
        (0..USERS).map(|number| Principal::new(&format!("user{number}")).unwrap()).collect();
    stream::iter(0..JOBS)
        .for_each_concurrent(IN_FLIGHT, |number| {
            let mut spec = command_job(demand(1 + number as u64 % 4, 0, 0));
            if number % GANG_EVERY == 0 {
                spec.resources.instance_count = MEMBERS;
            }
            spec.queue.priority = [Priority::Low, Priority::Medium, Priority::High][number % 3];
            let request = SubmitRequest {
                name: JobName::new(&format!("job{number}")).unwrap(),
                spec: Arc::new(spec),
                by: users[number % USERS].clone().into(),
                manages: false,
                key: None,
            };
            let handle = handle.clone();
            async move {
                handle.submit(request).await.unwrap();
            }
        })
        .await;
    let (assigned, mut assignments) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let joins = (0..NODES).map(|number| {
        let record = node_record(&format!("node{number}"), "local", capacity(1_000, 1_000_000, 0));
        let (outbox, mut orders) = mpsc::unbounded_channel();
        let assigned = assigned.clone();
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                if matches!(order, ToNode::Assign(_)) && assigned.send(()).is_err() {
                    return;
                }
            }
        });
        handle.node_joined(Join {
            record,
            reports: Vec::new(),
            kept: Vec::new(),
            session: number as u64 + 1,
            instance: format!("{number}"),
            outbox,
        })
    });
    for joined in futures::future::join_all(joins).await {
        joined.unwrap();
    }
    let gangs = JOBS.div_ceil(GANG_EVERY);
    for _ in 0..JOBS + gangs * (MEMBERS as usize - 1) {
        assignments.recv().await.unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    running.stop().await.unwrap();
    JOBS as f64 / seconds
}
