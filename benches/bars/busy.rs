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
    for (name, view) in [("supervised", serde_json::Value::Null), ("and isolated", view)] {
        let attempt: PathBuf = folder.path().join(name);
        fs::create_dir(&attempt).unwrap();
        let launch = serde_json::json!({
            "version": 1, "program": "/bin/true", "arguments": [], "environment": {},
            "directory": "/", "log": attempt.join("log"), "log_limit": null, "grace_ms": 1000,
            "view": view,
        });
        let p50 = time(&format!("`true` {name}"), RUNS, || {
            fs::write(attempt.join("launch.json"), launch.to_string()).unwrap();
            let begin = Instant::now();
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
