//! What an agent costs while jobs run, and what being held to limits and isolated costs each of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;

use crate::cluster::{ATELIER, Cluster, runtime, true_job};
use crate::figures::millis;
use crate::idle::{pss, ticks};

const JOBS: usize = 100;

/// Memory and CPU of the agent, and memory of each supervisor, with a hundred jobs that run.
pub(crate) fn busy() {
    const SECONDS: u64 = 20;
    let cluster = Cluster::start(Some(JOBS as u32));
    runtime().block_on(async {
        let mut jobs = cluster.jobs().await;
        for number in 0..JOBS {
            let mut request = true_job(format!("busy-{number}"));
            if let Some(pb::job_spec::Kind::Command(command)) =
                request.spec.as_mut().and_then(|spec| spec.kind.as_mut())
            {
                command.command = "exec sleep 600".to_owned();
            }
            jobs.create_job(request).await.unwrap();
        }
    });
    let begin = Instant::now();
    while supervisors().len() < JOBS {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} run", supervisors().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let agent = cluster.agent.as_ref().unwrap().id();
    std::thread::sleep(Duration::from_secs(3));
    let before = ticks(agent);
    std::thread::sleep(Duration::from_secs(SECONDS));
    let cpu = (ticks(agent) - before) as f64 / SECONDS as f64;
    println!("agent with {JOBS} jobs: {:.1} MiB PSS, {cpu:.2} % of a core", pss(agent).unwrap());
    let all: Vec<f64> = supervisors().into_iter().filter_map(pss).collect();
    let sum: f64 = all.iter().sum();
    println!("supervisor: {:.2} MiB PSS each ({} of them)", sum / all.len() as f64, all.len());
}

/// The processes that are called after an attempt.
fn supervisors() -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.filter(|pid| name(pid).starts_with("atelier:")).collect()
}

/// `true` by fork and exec, and under a supervisor that is a process anew: plain, in control groups and
/// with a view of its own as a node's are. A supervisor that the launcher forks costs less.
pub(crate) fn attempt() {
    const RUNS: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let bare = Command::new("/bin/true");
    time("`true` by fork and exec", RUNS, bare, |_| {});
    let mut none = Command::new(ATELIER);
    none.args(["supervise", "/no/such/attempt"]);
    time("the program started and ended at once", RUNS, none, |_| {});
    let hidden = folder.path().join("hidden");
    let temporary = folder.path().join("tmp");
    for folder in [&hidden, &temporary] {
        fs::create_dir(folder).unwrap();
    }
    let view = serde_json::json!({
        "hidden": [hidden, "/run"], "readable": [], "writable": [temporary], "temporary": temporary,
        "own_processes": true, "filtered": true,
    });
    for (name, view) in [("supervised", serde_json::Value::Null), ("and isolated", view)] {
        let attempt: PathBuf = folder.path().join(name);
        fs::create_dir(&attempt).unwrap();
        let launch = serde_json::json!({
            "version": 1, "program": "/bin/true", "arguments": [], "environment": {},
            "directory": "/", "log": attempt.join("log"), "log_limit": null, "grace_ms": 1000,
            "view": view,
        });
        let mut command = Command::new(ATELIER);
        command.arg("supervise").arg(&attempt);
        time(&format!("`true` {name}"), RUNS, command, |_| {
            let exited = fs::read_to_string(attempt.join("exited.json"));
            assert!(exited.is_err() || exited.unwrap().contains("{\"code\":0}"));
            for record in ["started.json", "exited.json"] {
                let _ = fs::remove_file(attempt.join(record));
            }
            fs::write(attempt.join("launch.json"), launch.to_string()).unwrap();
        });
    }
}

fn time(name: &str, runs: usize, mut command: Command, mut before: impl FnMut(usize)) {
    let samples = (0..runs + 20)
        .map(|run| {
            before(run);
            let begin = Instant::now();
            command.status().unwrap();
            begin.elapsed()
        })
        .skip(20)
        .collect();
    millis(name, samples);
}
