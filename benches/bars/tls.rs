//! What encryption costs: requests a second with it and without, in turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, Jobs, runtime, true_job};
use crate::figures::{rate, share};

const CONNECTIONS: usize = 8;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const JOB: &str = "tls";

/// `GetJob` over eight connections, one request at a time on each. The bar is a share of 0.85.
pub(crate) fn tls() {
    let (plain, secure) = (Cluster::start(None), Cluster::start_secure());
    runtime().block_on(async {
        let (plain, secure) = (connections(&plain).await, connections(&secure).await);
        let (mut rates, mut shares) = ((Vec::new(), Vec::new()), Vec::new());
        for _ in 0..ROUNDS {
            let (without, with) = (requests(&plain).await, requests(&secure).await);
            rates.0.push(without);
            rates.1.push(with);
            shares.push(with / without);
        }
        rate("GetJob over 8 connections, plain", rates.0);
        rate("GetJob over 8 connections, TLS", rates.1);
        share("the same with TLS to without", shares);
    });
}

/// Connections, and a job to ask for.
async fn connections(cluster: &Cluster) -> Vec<(Jobs, String)> {
    let created = cluster.jobs().await.create_job(true_job(JOB.to_owned())).await.unwrap();
    let name = created.into_inner().job.unwrap().name;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push((cluster.jobs().await, name.clone()));
    }
    connections
}

/// How many are answered in a second.
async fn requests(connections: &[(Jobs, String)]) -> f64 {
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let begin = Instant::now();
    let askers: Vec<_> = connections
        .iter()
        .map(|(jobs, name)| {
            let (mut jobs, name) = (jobs.clone(), name.clone());
            let (over, answered) = (over.clone(), answered.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let request = pb::GetJobRequest { name: name.clone(), advise: false };
                    jobs.get_job(request).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(ROUND).await;
    over.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.await.unwrap();
    }
    answered.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()
}
