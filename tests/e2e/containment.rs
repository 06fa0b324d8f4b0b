//! Jobs that take more than they were given, or will not go, on nodes that can hold them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use atelier_proto::job::v1::{Job, JobStatus};
use rustix::process::{Signal, kill_process};

use crate::harness::{Agent, Cluster, http, needs, processes_with, supervisor, until};

/// A job of one CPU and so much memory.
fn yaml(command: &str, memory: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}resources: {{cpus: 1, memory: {memory}}}\n")
}

fn message(job: &Job) -> String {
    job.error.as_ref().map(|error| error.message.clone()).unwrap_or_default()
}

/// Groups that were made for attempts of this cluster's agent, by what is in its launch record.
fn groups_of(cluster: &Cluster, node: &str) -> Vec<PathBuf> {
    let attempts = fs::read_dir(cluster.agent_data(node).join("attempts")).unwrap();
    let launch = attempts
        .filter_map(|attempt| fs::read(attempt.ok()?.path().join("launch.json")).ok())
        .filter_map(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let groups = launch.flat_map(|launch| launch["cgroup"]["groups"].as_array().cloned());
    groups.flatten().map(|group| PathBuf::from(group["folder"].as_str().unwrap())).collect()
}

#[test]
fn f37_a_job_that_takes_too_much_memory_is_killed_and_told() {
    needs("cgroup");
    let cluster = Cluster::start();
    let signals = cluster.shared_folder("signals");
    let waits = format!("until [ -e {}/go ]; do sleep 0.1; done; echo over", signals.display());
    let neighbour = cluster.create(&yaml(&waits, "100MiB"));
    cluster.running(&neighbour);
    // The shell would go on without the program that was killed.
    let command =
        "echo begins\npython3 -c 'print(len(b\"x\" * (400 << 20)))'\nsleep 5\necho went on";
    let greedy = cluster.create(&yaml(command, "64MiB"));
    let ended = cluster.ended(&greedy);
    assert_eq!(ended.status(), JobStatus::Failed);
    let said = message(&ended);
    assert!(said.contains("ran out of memory") && said.contains("limit was 64 MiB"), "{said}");
    let shown = cluster.atelier(["job", "show", &greedy, "-o", "json"]).ok().json();
    assert_eq!(shown["error"]["code"], "OutOfMemory", "{shown}");
    let log = String::from_utf8(cluster.log(&greedy)).unwrap();
    assert!(log.starts_with("begins\n") && !log.contains("went on"), "{log}");
    fs::write(signals.join("go"), "").unwrap();
    cluster.completed(&neighbour);
    assert_eq!(cluster.log(&neighbour), b"over\n");
}

#[test]
fn f37_the_next_try_has_more_memory_where_its_user_wants() {
    needs("cgroup");
    let cluster = Cluster::start();
    // 150 MiB do not fit into 100, and do into 200.
    let command = "python3 -c 'print(len(b\"x\" * (150 << 20)))'";
    let retry = "retry: {max_attempts: 2, backoff: 0, memory: 2x}\n";
    let job = cluster.create(&(yaml(command, "100MiB") + retry));
    cluster.completed(&job);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(
        (&shown["attempt"], &shown["attempt_memory"]),
        (&2.into(), &"200 MiB".into()),
        "{shown}"
    );
    let events = cluster.rpc().events(&job).unwrap();
    let told = events.iter().any(|event| {
        event.message.contains("ran out of memory") && event.message.contains("with 200 MiB memory")
    });
    assert!(told, "{events:?}");
}

#[test]
fn f37_jobs_that_do_not_say_what_they_need_leave_the_node_its_own() {
    needs("cgroup");
    let cluster = Cluster::start();
    // The node offers a gibibyte to all of them together.
    let command = "python3 -c 'print(len(b\"x\" * (3 << 30)))'";
    let ended = cluster.ended(&cluster.shell(command));
    assert_eq!(ended.status(), JobStatus::Failed);
    let said = message(&ended);
    assert!(said.contains("the memory that it has for jobs"), "{said}");
    cluster.completed(&cluster.shell("true"));
}

#[test]
fn f36_a_fork_bomb_harms_only_itself() {
    needs("cgroup");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--process-limit=120"));
    // On a node without limits it would harm more than itself.
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert!(node["facts"]["limited"].as_str().unwrap().contains("pids"), "{node}");
    let bomb = cluster.create(&yaml("bomb() { bomb | bomb & }\nbomb\nsleep 600", "300MiB"));
    cluster.running(&bomb);
    let watcher = cluster.atelier(["job", "stream", &bomb, "-q"]).spawn();
    watcher.prints("Resource temporarily unavailable");
    let groups = groups_of(&cluster, "local");
    let counts: Vec<usize> = groups
        .iter()
        .map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count())
        .collect();
    assert!(!counts.is_empty() && counts.iter().all(|&count| count <= 120), "{counts:?}");
    // The neighbour starts, forks and ends beside it.
    let neighbour =
        cluster.create(&yaml("for i in $(seq 50); do /bin/true; done; echo done", "50MiB"));
    cluster.completed(&neighbour);
    assert_eq!(cluster.log(&neighbour), b"done\n");
    cluster.atelier(["job", "cancel", &bomb]).ok();
    assert_eq!(cluster.ended(&bomb).status(), JobStatus::Canceled);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

/// Leaves a process behind that has a session of its own, ignores what asks it to end, and does not
/// know by its environment whose it is.
const STRAY: &str = r#"
import os, signal, sys
if os.fork():
    sys.exit(0)
os.setsid()
if os.fork():
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; echo $$ > " + sys.argv[1] + "; while :; do sleep 1; done"], {})
"#;

/// A cluster of one node with a job that has left such a process behind and goes on; what the process is
/// found by, and the file upon which the job ends.
fn with_stray(isolation: &str) -> (Cluster, String, String, PathBuf) {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with(&format!("--isolation={isolation}")));
    let (script, found) = (cluster.write("stray.py", STRAY), cluster.files().join("stray"));
    let go = cluster.files().join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let job = cluster.shell(&format!("python3 {} {}\n{wait}", script.display(), found.display()));
    let mark = format!("echo $$ > {}", found.display());
    until("what hides has started", || found.exists().then_some(()));
    // A child of it that has not become `sleep` yet looks like it.
    until("only it is found", || (processes_with(&mark).len() == 1).then_some(()));
    (cluster, job, mark, go)
}

#[test]
fn f38_a_process_that_hides_is_dead_when_its_job_is() {
    needs("cgroup");
    for isolation in ["auto", "none"] {
        let (cluster, job, mark, go) = with_stray(isolation);
        fs::write(go, "").unwrap();
        cluster.completed(&job);
        assert_eq!(processes_with(&mark), [], "{isolation}");
    }
}

#[test]
fn f38_a_process_that_hides_is_dead_when_its_supervisor_was_killed() {
    needs("cgroup");
    for isolation in ["auto", "none"] {
        let (cluster, job, mark, _) = with_stray(isolation);
        dies_with_its_supervisor(&cluster, &job, &mark);
    }
}

fn dies_with_its_supervisor(cluster: &Cluster, job: &str, mark: &str) {
    let attempts = fs::read_dir(cluster.agent_data("local").join("attempts")).unwrap();
    let [attempt] = &attempts.map(|found| found.unwrap().path()).collect::<Vec<_>>()[..] else {
        panic!("there is one attempt")
    };
    let groups = groups_of(cluster, "local");
    kill_process(supervisor(attempt), Signal::KILL).unwrap();
    until("what was hidden is found and killed", || processes_with(mark).is_empty().then_some(()));
    until("its groups are gone", || groups.iter().all(|group| !group.exists()).then_some(()));
    // The platform's failure: it is tried again, and the second try starts anew.
    until("the second try started", || {
        cluster.rpc().job(job).ok().filter(|job| job.attempt == 2).map(drop)
    });
    cluster.atelier(["job", "cancel", job]).ok();
    cluster.ended(job);
}

#[test]
fn what_a_job_used_is_known_and_says_what_to_ask_for() {
    needs("cgroup");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--monitor-interval=0.1"));
    // Two processes of 60 MiB each: the largest alone would tell half of it.
    let hold = "python3 -c 'import time; b = b\"x\" * (60 << 20); time.sleep(2.5)'";
    let job = cluster.create(&yaml(&format!("{hold} &\n{hold}\nwait"), "900MiB"));
    cluster.completed(&job);
    let shown = usage_of(&cluster, &job);
    let peak = shown["usage"]["peak_memory"].as_str().unwrap();
    let peak: f64 = peak.strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!((120.0..250.0).contains(&peak), "{shown}");
    assert!(shown["usage"]["wall_seconds"].as_f64().unwrap() >= 2.5, "{shown}");
    assert!(shown["usage"]["cpu_seconds"].as_f64().unwrap() > 0.0, "{shown}");
    let advice = shown["memory_advice"].as_str().unwrap();
    assert!(advice.contains("one completed run") && advice.contains("would do"), "{advice}");
    // The last one may be of the moment at which they end.
    let memory = "system/system_memory_usage_megabytes";
    assert!(shown["last_samples"][memory].is_number(), "{shown}");
    let path = format!("GET /api/2.0/mlflow/metrics/get-history?run_id={job}&metric_key={memory}");
    let (_, history) = http(&cluster.server(), &path, &cluster.token(), "").unwrap();
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    let samples = history["metrics"].as_array().unwrap().iter();
    assert!(samples.filter_map(|one| one["value"].as_f64()).any(|held| held > 60.0), "{history}");
    // Another command has another history.
    let other = cluster.create(&yaml("python3 -c pass", "900MiB"));
    cluster.completed(&other);
    let shown = usage_of(&cluster, &other);
    assert!(shown["usage"]["wall_seconds"].is_number(), "{shown}");
    assert!(shown["memory_advice"].as_str().unwrap().contains("=64MiB"), "{shown}");
}

fn usage_of(cluster: &Cluster, job: &str) -> serde_json::Value {
    cluster.atelier(["job", "show", job, "--usage", "-o", "json"]).ok().json()
}

/// No look of the monitor need have seen it.
#[test]
fn what_a_short_job_used_is_known_unless_the_cache_may_be_most_of_it() {
    needs("cgroup");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    // The largest process alone would tell a third of it.
    let brief = "for _ in 1 2 3; do python3 -c 'import time; b = b\"x\" * (80 << 20); time.sleep(1)' & done; wait";
    let job = cluster.create(&yaml(brief, "900MiB"));
    cluster.completed(&job);
    let shown = usage_of(&cluster, &job);
    let peak = shown["usage"]["peak_memory"].as_str().unwrap();
    let peak: f64 = peak.strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!((240.0..400.0).contains(&peak), "{shown}");
    let advice = shown["memory_advice"].as_str().unwrap();
    assert!(advice.contains("one completed run") && advice.contains("would do"), "{advice}");
    // What this one had at once is anything up to what it wrote.
    let writes = "head -c 300000000 /dev/zero > written";
    let job = cluster.create(&yaml(writes, "900MiB"));
    cluster.completed(&job);
    let shown = usage_of(&cluster, &job);
    assert_eq!(shown["usage"]["peak_memory"], serde_json::Value::Null, "{shown}");
    assert_eq!(shown["memory_advice"], serde_json::Value::Null, "{shown}");
}

/// Leaves a process behind that the kernel lets nobody kill: version 1's freezer holds it.
const FROZEN: &str = r#"
set -e
group=/sys/fs/cgroup/freezer/$1
mkdir "$group"
sleep 600 &
echo $! > "$group/tasks"
echo FROZEN > "$group/freezer.state"
until grep -q FROZEN "$group/freezer.state"; do sleep 0.05; done
"#;

/// Lets what is frozen go, whatever becomes of the test.
struct Thaw(PathBuf);

impl Drop for Thaw {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        // What was frozen dies now; the group is empty a moment later.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn f39_a_node_with_a_process_that_does_not_die_gets_no_more_jobs() {
    needs("freezer");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--kill-patience=1").with("--isolation=none"));
    let name = format!("atelier-test-{}", std::process::id());
    let _thaw = Thaw(PathBuf::from("/sys/fs/cgroup/freezer").join(&name));
    let script = cluster.write("frozen.sh", FROZEN);
    let job = cluster.shell(&format!("bash {} {name}", script.display()));
    // Its own end counts.
    cluster.completed(&job);
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    let reason = node["drain"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(&format!("a process of job {job} did not die")), "{node}");
    let next = cluster.shell("true");
    let waits = cluster.rpc().job(&next).unwrap().wait_reason;
    assert!(waits.contains("drained"), "{waits}");
    cluster.atelier(["node", "resume", "local"]).ok();
    cluster.completed(&next);
}
