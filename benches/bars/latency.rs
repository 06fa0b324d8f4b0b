//! How long one small job takes, and how long a submission takes from the shell.

use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, runtime, true_job};
use crate::figures::millis;

const WARM: usize = 20;
const RUNS: usize = 200;

/// From `CreateJob` to `Completed`, seen by the client.
pub(crate) fn job() {
    let cluster = Cluster::start(Some(4));
    let samples = runtime().block_on(async {
        let mut jobs = cluster.jobs().await;
        let mut samples = Vec::new();
        for run in 0..WARM + RUNS {
            let begin = Instant::now();
            let created = jobs.create_job(true_job(format!("latency-{run}"))).await.unwrap();
            let name = created.into_inner().job.unwrap().name;
            let request = pb::WatchEventsRequest { job: name, after_seq: 0 };
            let mut events = jobs.watch_events(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(event) = events.message().await.unwrap() {
                last = Some(event);
            }
            let took = begin.elapsed();
            assert_eq!(last.unwrap().status(), pb::JobStatus::Completed);
            if run >= WARM {
                samples.push(took);
            }
        }
        samples
    });
    millis("job create to Completed, `true`, host environment", samples);
    let samples: Vec<Duration> = (0..WARM + 60)
        .map(|_| {
            let begin = Instant::now();
            let mut run = cluster.cli();
            let status = run.args(["job", "create", "--stream", "-f"]).arg(yaml(&cluster)).status();
            assert!(status.unwrap().success());
            begin.elapsed()
        })
        .skip(WARM)
        .collect();
    millis("the same as one process, `job create --stream`", samples);
}

/// `job create` as a whole process, durable when it returns.
pub(crate) fn submission() {
    let cluster = Cluster::start(None);
    let file = yaml(&cluster);
    let samples: Vec<Duration> = (0..WARM + RUNS)
        .map(|_| {
            let begin = Instant::now();
            let status = cluster.cli().args(["job", "create", "-f"]).arg(&file).status();
            assert!(status.unwrap().success());
            begin.elapsed()
        })
        .skip(WARM)
        .collect();
    millis("job create, whole process, durable", samples);
    let floor: Vec<Duration> = (0..WARM + RUNS)
        .map(|_| {
            let begin = Instant::now();
            assert!(cluster.cli().arg("--version").status().unwrap().success());
            begin.elapsed()
        })
        .skip(WARM)
        .collect();
    millis("floor: `atelier --version`, whole process", floor);
}

fn yaml(cluster: &Cluster) -> std::path::PathBuf {
    cluster.file("job.yml", "command: \"true\"\n")
}
