//! What the daemon and the agent cost when nothing happens, and after much has happened.

use std::fs;
use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, runtime, true_job};
use crate::figures::millis;

/// Proportional memory of a process in MiB; `None` if it has just ended.
pub(crate) fn pss(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// CPU time of a process so far, in clock ticks.
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Memory and CPU of both, monitoring on.
pub(crate) fn idle() {
    const SECONDS: u64 = 30;
    let cluster = Cluster::start(Some(4));
    let pids = [("daemon", cluster.daemon.id()), ("agent", cluster.agent.as_ref().unwrap().id())];
    std::thread::sleep(Duration::from_secs(3));
    let before = pids.map(|(_, pid)| ticks(pid));
    std::thread::sleep(Duration::from_secs(SECONDS));
    for ((name, pid), before) in pids.into_iter().zip(before) {
        let cpu = (ticks(pid) - before) as f64 / SECONDS as f64;
        println!("idle {name}: {:.1} MiB PSS, {cpu:.2} % of a core", pss(pid).unwrap());
    }
}

/// Memory and the first page after 100,000 finished jobs. They are cancelled rather than run: the
/// daemon keeps the same of both.
pub(crate) fn history() {
    const JOBS: usize = 100_000;
    let cluster = Cluster::start(None);
    let daemon = cluster.daemon.id();
    runtime().block_on(async {
        let jobs = cluster.jobs().await;
        finish(&jobs, 2_000, "warm").await;
        let before = pss(daemon).unwrap();
        finish(&jobs, JOBS, "many").await;
        let after = pss(daemon).unwrap();
        println!(
            "daemon after {JOBS} finished jobs: {after:.1} MiB PSS, {:+.1} MiB against before",
            after - before
        );
        let mut jobs = jobs;
        let mut samples = Vec::new();
        for _ in 0..50 {
            let begin = Instant::now();
            jobs.list_jobs(pb::ListJobsRequest::default()).await.unwrap();
            samples.push(begin.elapsed());
        }
        millis("first page of the job list", samples);
    });
}

async fn finish(jobs: &crate::cluster::Jobs, count: usize, prefix: &str) {
    let each = count / 64;
    let workers: Vec<_> = (0..64)
        .map(|worker| {
            let (mut jobs, prefix) = (jobs.clone(), prefix.to_owned());
            tokio::spawn(async move {
                for index in 0..each {
                    let request = true_job(format!("{prefix}-{worker}-{index}"));
                    let job = jobs.create_job(request).await.unwrap().into_inner().job.unwrap();
                    let request = pb::CancelJobRequest { name: job.name, reason: String::new() };
                    jobs.cancel_job(request).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
}
