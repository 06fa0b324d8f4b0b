//! Whether a job keeps what it was given while the one beside it takes all that it can get.

use std::process::Stdio;
use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;

use crate::cluster::{Cluster, Jobs, runtime, true_job};
use crate::figures::share;

/// One CPU for each of two jobs.
const SLOTS: u32 = 2;
const ROUNDS: usize = 3;
/// Between the start of the job beside and the measurement: floods need a while to be one.
const SETTLE: Duration = Duration::from_secs(1);
/// Of one job here at most, so that the flood of processes is small in memory.
const PROCESSES: &str = "--process-limit=512";

/// A job whose own throughput is measured, and what is beside it instead of an honest one. Each has asked for one
/// CPU.
struct Neighbour {
    /// What of it is measured, for the reader.
    what: &'static str,
    /// Counts for five seconds, and prints how far it came.
    command: &'static str,
    /// By name.
    floods: &'static [(&'static str, &'static str)],
}

const NEIGHBOURS: [Neighbour; 2] = [
    Neighbour {
        what: "throughput",
        command: r#"exec python3 -c '
import time
count, end = 0, time.monotonic() + 5
while time.monotonic() < end:
    for _ in range(10_000):
        pass
    count += 1
print("counted", count)
'"#,
        floods: &[BUSY, FORKS, LOG, WRITES],
    },
    // Each step is on the disk before the next, as where a checkpoint is written.
    Neighbour {
        what: "writes to disk",
        command: r#"exec python3 -c '
import os, time
block, file = bytes(4 << 20), os.open("file", os.O_WRONLY | os.O_CREAT)
count, end = 0, time.monotonic() + 5
while time.monotonic() < end:
    os.pwrite(file, block, count % 16 * len(block))
    os.fdatasync(file)
    count += 1
print("counted", count)
'"#,
        floods: &[WRITES, FILES],
    },
];

/// As much as one CPU, and no more.
const HONEST: &str = r#"exec python3 -c 'while True: pass'"#;

const BUSY: (&str, &str) = (
    "64 busy processes",
    r"for _ in $(seq 63); do while :; do :; done & done; while :; do :; done",
);
const FORKS: (&str, &str) = (
    "processes up to its limit, and more tried",
    r#"exec python3 -c '
import os
while True:
    try:
        os.posix_spawnp("sleep", ["sleep", "600"], os.environ)
    except OSError:
        pass
'"#,
);
const LOG: (&str, &str) = ("`yes` into its log", "exec yes");
const WRITES: (&str, &str) = (
    "writes to disk",
    "while :; do dd if=/dev/zero of=file bs=1M count=256 conv=fsync 2>/dev/null; done",
);
/// At most 20,000 at once.
const FILES: (&str, &str) = (
    "small files, made and removed",
    r#"exec python3 -c '
import itertools, os
for count in itertools.count():
    if count >= 20_000:
        os.remove(str(count - 20_000))
    with open(str(count), "wb") as file:
        file.write(bytes(4096))
        if count % 64 == 0:
            os.fsync(file)
'"#,
);

/// A job's throughput on one of two CPUs beside floods, as a share of that beside an honest job: of one that
/// computes, and of one that writes.
pub(crate) fn neighbour() {
    let cluster = Cluster::start_with(SLOTS, &[PROCESSES]);
    let limited = cluster.fact("limited");
    // Without a bound on processes the machine would be taken down.
    if !["cpu", "pids"].iter().all(|needed| limited.split(' ').any(|name| name == *needed)) {
        println!("neighbour: no figure, this machine's jobs are limited in: {limited}");
        return;
    }
    for neighbour in &NEIGHBOURS {
        measure(&cluster, neighbour);
    }
}

fn measure(cluster: &Cluster, Neighbour { what, command, floods }: &Neighbour) {
    let mut shares = vec![Vec::new(); floods.len()];
    for round in 0..ROUNDS {
        let beside = |other, key: String| {
            beside(cluster, command, other, &format!("{}-{round}-{key}", what.replace(' ', "-")))
        };
        // Before and after each, so that what else the machine does weighs on both.
        let mut before = beside(HONEST, "honest".to_owned());
        for (number, (_, flood)) in floods.iter().enumerate() {
            let counted = beside(flood, number.to_string());
            let after = beside(HONEST, format!("honest-{number}"));
            shares[number].push(2.0 * counted / (before + after));
            before = after;
        }
    }
    for ((name, _), shares) in floods.iter().zip(shares) {
        let what = format!("a neighbour's {what} beside {name}, of that beside an honest job");
        share(&what, shares);
    }
}

/// How far the neighbour counts beside a job that runs `other`.
fn beside(cluster: &Cluster, command: &str, other: &str, key: &str) -> f64 {
    runtime().block_on(async {
        let mut jobs = cluster.jobs().await;
        let other = create(&mut jobs, other, format!("beside-{key}")).await;
        reaches(&mut jobs, &other, pb::JobStatus::Running).await;
        tokio::time::sleep(SETTLE).await;
        let neighbour = create(&mut jobs, command, format!("neighbour-{key}")).await;
        reaches(&mut jobs, &neighbour, pb::JobStatus::Completed).await;
        let request = pb::CancelJobRequest { name: other.clone(), reason: String::new() };
        jobs.cancel_job(request).await.unwrap();
        reaches(&mut jobs, &other, pb::JobStatus::Canceled).await;
        let mut stream = cluster.cli();
        stream.args(["job", "stream", &neighbour, "-q"]).stdout(Stdio::piped());
        let log = stream.output().unwrap().stdout;
        let log = String::from_utf8_lossy(&log).into_owned();
        let counted = log.lines().find_map(|line| line.strip_prefix("counted ")?.parse().ok());
        counted.unwrap_or_else(|| panic!("the neighbour counted nothing: {log}"))
    })
}

async fn create(jobs: &mut Jobs, line: &str, key: String) -> String {
    let mut request = true_job(key);
    if let Some(pb::job_spec::Kind::Command(command)) =
        request.spec.as_mut().and_then(|spec| spec.kind.as_mut())
    {
        command.command = line.to_owned();
    }
    jobs.create_job(request).await.unwrap().into_inner().job.unwrap().name
}

async fn reaches(jobs: &mut Jobs, name: &str, wanted: pb::JobStatus) {
    let begin = Instant::now();
    loop {
        let request = pb::GetJobRequest { name: name.to_owned(), advise: false };
        let job = jobs.get_job(request).await.unwrap().into_inner();
        if job.status() == wanted {
            return;
        }
        let is_late = begin.elapsed() > Duration::from_secs(90);
        assert!(!is_late && job.error.is_none(), "{name} is {:?}: {:?}", job.status(), job.error);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
