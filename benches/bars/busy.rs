//! What an agent costs while jobs run, and what being held to limits and isolated costs each of them.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use atelier_proto::job::v1 as pb;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};

use crate::cluster::{ATELIER, Cluster, runtime, true_job};
use crate::figures::millis;
use crate::idle::{pss, ticks};

const JOBS: usize = 100;

/// Memory and CPU of the agent, and memory of each supervisor, with a hundred jobs that run.
pub(crate) fn busy() {
    const SECONDS: u64 = 20;
    let cluster = Cluster::start(Some(JOBS as u32));
    let mut names = Vec::new();
    runtime().block_on(async {
        let mut jobs = cluster.jobs().await;
        for number in 0..JOBS {
            let mut request = true_job(format!("busy-{number}"));
            if let Some(pb::job_spec::Kind::Command(command)) =
                request.spec.as_mut().and_then(|spec| spec.kind.as_mut())
            {
                command.command = "exec sleep 600".to_owned();
            }
            names.push(jobs.create_job(request).await.unwrap().into_inner().job.unwrap().name);
        }
    });
    let begin = Instant::now();
    // Each attempt has two: the supervisor and the leader of its processes.
    while processes().len() < 2 * JOBS {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} run", processes().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let agent = cluster.agent.as_ref().unwrap().id();
    std::thread::sleep(Duration::from_secs(3));
    let before = ticks(agent);
    std::thread::sleep(Duration::from_secs(SECONDS));
    let cpu = (ticks(agent) - before) as f64 / SECONDS as f64;
    println!("agent with {JOBS} jobs: {:.1} MiB PSS, {cpu:.2} % of a core", pss(agent).unwrap());
    let all: Vec<f64> = processes().into_iter().filter_map(pss).collect();
    let each = all.iter().sum::<f64>() / JOBS as f64;
    println!(
        "an attempt: {each:.2} MiB PSS beside its command ({} processes for {JOBS})",
        all.len()
    );
    // They would outlive their agent, and be counted the next time.
    runtime().block_on(async {
        let mut jobs = cluster.jobs().await;
        for name in names {
            let request = pb::CancelJobRequest { name, reason: String::new() };
            jobs.cancel_job(request).await.unwrap();
        }
    });
    let begin = Instant::now();
    while !processes().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} are left", processes().len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The processes that are called after an attempt.
fn processes() -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.filter(|pid| name(pid).starts_with("atelier:")).collect()
}

/// `true` by fork and exec, and under a supervisor that an agent's launcher forks: plain, and with a view of its
/// own as a node's are.
pub(crate) fn attempt() {
    const RUNS: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let bare = time("`true` by fork and exec", RUNS, || {
        let begin = Instant::now();
        Command::new("/bin/true").status().unwrap();
        begin.elapsed()
    });
    let hidden = folder.path().join("hidden");
    let temporary = folder.path().join("tmp");
    for folder in [&hidden, &temporary] {
        fs::create_dir(folder).unwrap();
    }
    let passwd = folder.path().join("passwd");
    fs::copy("/etc/passwd", &passwd).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let user = serde_json::json!({"id": 0x7000_0000, "groups": [], "passwd": passwd});
    let view = serde_json::json!({
        "hidden": [hidden, "/run"], "readable": [], "writable": [temporary], "temporary": temporary,
        "means": if is_root { "root" } else { "user_namespace" },
        "own_processes": true, "filtered": true,
        "user": if is_root { user } else { serde_json::Value::Null },
    });
    let launcher = Launcher::start();
    let found = Groups::find();
    let mut ways = vec![
        ("supervised".to_owned(), serde_json::Value::Null, None),
        ("and isolated".to_owned(), view.clone(), None),
    ];
    for (what, groups) in &found {
        ways.push((format!("isolated and in {what}"), view.clone(), Some(groups)));
    }
    for (name, view, groups) in ways {
        let attempt: PathBuf = folder.path().join(&name);
        fs::create_dir(&attempt).unwrap();
        let launch = serde_json::json!({
            "version": 1, "program": "/bin/true", "arguments": [], "environment": {},
            "directory": "/", "log": attempt.join("log"), "log_limit": null, "grace_ms": 1000,
            "view": view, "cgroup": groups.map(Groups::record),
        });
        let p50 = time(&format!("`true` {name}"), RUNS, || {
            fs::write(attempt.join("launch.json"), launch.to_string()).unwrap();
            let begin = Instant::now();
            if let Some(groups) = groups {
                groups.make();
            }
            launcher.run(&attempt);
            let took = begin.elapsed();
            let exited = fs::read_to_string(attempt.join("exited.json")).unwrap();
            assert!(exited.contains("{\"code\":0}"), "{exited}");
            // An agent uses the files of an attempt that is over again for the next.
            for record in ["started.json", "exited.json"] {
                let file = File::options().write(true).open(attempt.join(record)).unwrap();
                file.set_len(0).unwrap();
                fs::rename(attempt.join(record), attempt.join(format!(".{record}"))).unwrap();
            }
            took
        });
        println!("`true` {name}: {:.2} ms over fork and exec at p50", p50 - bare);
    }
}

/// An attempt's control groups, as an agent makes them for each; the supervisor removes them.
struct Groups(Vec<(PathBuf, &'static str, &'static str)>);

impl Groups {
    /// Those of each version that the machine has and lets us make: three of the first, one of the second.
    fn find() -> Vec<(&'static str, Self)> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("atelier-bench-{}", std::process::id());
        let v1 = [("memory", "memory.limit_in_bytes"), ("pids", "pids.max"), ("cpu", "cpu.shares")];
        let v1 = v1.map(|(controller, limit)| (root.join(controller), controller, limit));
        let v2 = [root.to_owned(), root.join("unified")].map(|at| (at, "v2", "memory.max"));
        let there = |all: &[(PathBuf, &'static str, &'static str)], file: &str| {
            let found = all.iter().filter(|(at, ..)| at.join(file).exists());
            Self(found.map(|(at, name_of, limit)| (at.join(&name), *name_of, *limit)).collect())
        };
        let found = [
            ("control groups of version 1", there(&v1, "cgroup.procs")),
            ("a control group of version 2", there(&v2, "cgroup.controllers")),
        ];
        let can = |groups: &Self| {
            let made = groups.0.iter().all(|(folder, ..)| fs::create_dir(folder).is_ok());
            groups.0.iter().for_each(|(folder, ..)| drop(fs::remove_dir(folder)));
            made && !groups.0.is_empty()
        };
        let found: Vec<_> = found.into_iter().filter(|(_, groups)| can(groups)).collect();
        if found.is_empty() {
            println!("no figure with control groups: they cannot be made here");
        }
        found
    }

    fn make(&self) {
        for (folder, _, limit) in &self.0 {
            fs::create_dir(folder).unwrap();
            // A version 2 without controllers has no limits.
            let value =
                if *limit == "pids.max" || *limit == "cpu.shares" { "2048" } else { "1073741824" };
            let _ = fs::write(folder.join(limit), value);
        }
    }

    fn record(&self) -> serde_json::Value {
        let groups = self.0.iter().map(|(folder, name, _)| {
            let (version, controllers) = match *name {
                "v2" => ("v2", vec!["memory", "pids", "cpu"]),
                name => ("v1", vec![name]),
            };
            serde_json::json!({"folder": folder, "version": version, "controllers": controllers})
        });
        serde_json::json!({"groups": groups.collect::<Vec<_>>()})
    }
}

/// The process by which an agent starts supervisors (`agent/src/supervisor/launcher.rs`).
struct Launcher {
    process: Child,
    socket: OwnedFd,
}

impl Launcher {
    fn start() -> Self {
        let (own, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let mut command = Command::new(ATELIER);
        command.args(["supervise", "--launcher"]).stdin(theirs).env_clear();
        Self { process: command.spawn().unwrap(), socket: own }
    }

    /// Has a supervisor started on the folder and waits for its end.
    fn run(&self, folder: &Path) {
        send(&self.socket, folder.as_os_str().as_encoded_bytes(), SendFlags::NOSIGNAL).unwrap();
        let mut number = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut number)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&self.socket, &mut parts, &mut ancillary, flags).unwrap();
        let pidfd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let pidfd = pidfd.expect("the launcher gives the supervisor's pidfd");
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Prints percentiles of what `run` measures; gives the median in milliseconds.
fn time(name: &str, runs: usize, mut run: impl FnMut() -> Duration) -> f64 {
    millis(name, (0..runs + 20).map(|_| run()).skip(20).collect())
}
