//! Looking into what a failed job left: who may, what is seen there, and when it goes.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use atelier_proto::job::v1::Job;
use rustix::process::Signal;

use crate::exec::on_a_terminal;
use crate::harness::{Agent, Cluster, Disk, Outcome, http, job_yaml, needs, processes_with, until};

/// A job that writes a file and fails; it is over.
fn failed(cluster: &Cluster, more: &str, fields: &str) -> (String, Job) {
    let command = format!("echo mine > note; echo temporary > /tmp/note; {more}\nexit 3");
    let job = cluster
        .create(&format!("{}environment_variables: {{OWN: a word}}\n{fields}", job_yaml(&command)));
    let ended = cluster.ended(&job);
    assert_eq!(ended.exit_code, Some(3), "{ended:?}");
    (job, ended)
}

fn debug(cluster: &Cluster, job: &str, command: &[&str]) -> Outcome {
    let arguments = ["job", "debug", job, "--"];
    cluster.atelier(arguments.iter().chain(command)).run()
}

/// Attempts' folders on the node.
fn folders(cluster: &Cluster) -> usize {
    std::fs::read_dir(cluster.agent_data("local").join("attempts")).unwrap().count()
}

#[test]
fn what_a_failed_job_left_is_as_the_job_saw_it() {
    needs("isolation");
    let cluster = Cluster::start();
    let look = "cat note /tmp/note; pwd; echo $OWN $ATELIER_JOB; ls /; \
                grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp:|Uid)' /proc/self/status; \
                touch /etc/new 2>/dev/null || echo closed";
    let (job, ended) = failed(&cluster, &format!("({look}) > look"), "keep_failed: 30m\n");
    let [kept] = ended.sandboxes.as_slice() else { panic!("{ended:?}") };
    assert_eq!((kept.node.as_str(), kept.attempt, kept.rank), ("local", 1, 0));
    assert!(kept.until_ms > ended.ended_at_ms + 1_790_000, "{kept:?}");
    let told = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().stdout();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["sandboxes"][0]["node"], "local", "{told}");
    assert_eq!(told["status"], "Failed");
    // All of it is the same there, and nothing of the node can be changed.
    let same = format!("({look}) | cmp - look && echo same");
    assert_eq!(debug(&cluster, &job, &["sh", "-c", &same]).ok().word(), "same");
    // Only its own processes are seen, and the first of them is not the command's.
    let seen = debug(&cluster, &job, &["sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l"]).ok();
    let numbers: Vec<u32> = seen.stdout().lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers[0] < 10 && numbers[1] < 10, "{seen:?}");
    // Codes are the command's own, and what it leaves running does not stay.
    debug(&cluster, &job, &["sh", "-c", "exit 7"]).code(7);
    debug(&cluster, &job, &["sh", "-c", "kill -TERM $$"]).code(128 + 15);
    debug(&cluster, &job, &["no-such-program"]).code(127).says(&["no command 'no-such-program'"]);
    debug(&cluster, &job, &["sh", "-c", "STAYS=kept sleep 500 & echo gone"]).ok();
    until("what was left is gone", || processes_with("STAYS=kept").is_empty().then_some(()));
    // What is changed there stays there.
    debug(&cluster, &job, &["sh", "-c", "echo changed > note"]).ok();
    assert_eq!(debug(&cluster, &job, &["cat", "note"]).ok().word(), "changed");
    let events = cluster.rpc().events(&job).unwrap();
    let first = events.iter().find(|event| event.kind == "Debugged").unwrap();
    assert!(first.message.starts_with("ran in what the job left: sh -c"), "{first:?}");
    assert_eq!((first.principal.as_str(), first.attempt), ("admin", 1));
}

#[test]
fn a_failed_job_s_node_is_free_and_its_token_dead() {
    let cluster = Cluster::start();
    let (job, _) = failed(&cluster, "echo $MLFLOW_TRACKING_TOKEN > token", "keep_failed: 30m\n");
    let token = debug(&cluster, &job, &["cat", "token"]).ok().word();
    let search = |token: &str| {
        let what = "POST /api/2.0/mlflow/experiments/search";
        http(&cluster.server(), what, token, "{\"max_results\": 1}").unwrap().0
    };
    assert_eq!((search(&token), search(&cluster.token())), (401, 200));
    let own = "echo \"($MLFLOW_TRACKING_TOKEN)($AZUREML_RUN_TOKEN)($CUDA_VISIBLE_DEVICES)\"";
    assert_eq!(debug(&cluster, &job, &["sh", "-c", own]).ok().word(), "()()()");
    // All of the node is there for others, while somebody is in what is kept.
    let inside =
        cluster.atelier(["job", "debug", &job, "--", "sh", "-c", "echo in; sleep 600"]).spawn();
    inside.prints("in");
    cluster.completed(&cluster.create(&format!("{}resources: {{cpus: 2}}\n", job_yaml("true"))));
    inside.signal(Signal::INT);
    inside.wait().code(130).says(&["still there"]);
}

#[test]
fn what_is_let_in_afterwards_has_limits_of_its_own() {
    needs("cgroup");
    let cluster = Cluster::start();
    let fields = "keep_failed: 30m\nresources: {cpus: 1, memory: 128MiB}\n";
    let (job, _) = failed(&cluster, "", fields);
    let groups = debug(&cluster, &job, &["cat", "/proc/self/cgroup"]).ok().stdout();
    assert!(groups.contains("/atelier-local-"), "{groups}");
    let eat = "import sys; b = bytearray(400 << 20); print(len(b))";
    let eaten = debug(&cluster, &job, &["python3", "-c", eat]);
    assert_eq!(eaten.stdout(), "", "{eaten:?}");
    eaten.code(137);
    // It is there for the next.
    assert_eq!(debug(&cluster, &job, &["cat", "note"]).ok().word(), "mine");
}

#[test]
fn only_its_owner_and_admins_look_into_what_a_job_left() {
    let cluster = Cluster::start();
    let (ana, ben) =
        (cluster.token_for("ana", "data-scientist"), cluster.token_for("ben", "data-scientist"));
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", token)
    };
    let job = with(
        &ana,
        &["job", "create", "-f", "-", "--keep-failed=5m", "--query", "name", "-o", "tsv"],
    )
    .stdin(job_yaml("exit 3"))
    .ok()
    .word();
    cluster.ended(&job);
    let run = ["job", "debug", &job, "--", "echo", "hello"];
    assert_eq!(with(&ana, &run).ok().word(), "hello");
    with(&ben, &run).fails(5).says(&["ben", "ana's"]);
    with(&ben, &["job", "debug", &job, "--release"]).fails(5).says(&["ben", "ana's"]);
    assert_eq!(with(&ana, &run).ok().word(), "hello");
}

#[test]
fn a_shell_in_what_is_kept_has_a_terminal() {
    let cluster = Cluster::start();
    let (job, _) = failed(&cluster, "", "keep_failed: 30m\n");
    on_a_terminal(&cluster, &["job", "debug", &job]);
    let events = cluster.rpc().events(&job).unwrap();
    let opened = "a shell was opened in what the job left";
    assert!(events.iter().any(|event| event.message == opened), "{events:?}");
}

#[test]
fn what_is_not_kept_is_told_with_the_remedy() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--keep-failed=0"));
    let (job, ended) = failed(&cluster, "", "");
    assert!(ended.sandboxes.is_empty());
    let refused = debug(&cluster, &job, &["true"]).code(1);
    refused.says(&["nothing is kept of job", "--keep-failed=2h", "keep_failed: 2h"]);
    cluster.atelier(["job", "debug", "no_such_job", "--", "true"]).fails(3).says(&["no job"]);
    cluster.atelier(["job", "debug", &job]).fails(2).says(&["terminal", "job debug"]);
    let good = cluster.create(&format!("{}keep_failed: 5m\n", job_yaml("true")));
    cluster.completed(&good);
    debug(&cluster, &good, &["true"]).code(1).says(&["it completed, and only what failed"]);
    let runs = cluster.create(&format!("{}keep_failed: 5m\n", job_yaml("echo in; sleep 600")));
    let log = cluster.atelier(["job", "stream", &runs, "-q"]).spawn();
    log.prints("in");
    debug(&cluster, &runs, &["true"]).code(1).says(&["not over", "atelier job shell"]);
    cluster.atelier(["job", "cancel", &runs]).ok();
    cluster.ended(&runs);
    debug(&cluster, &runs, &["true"]).code(1).says(&["it was canceled, and only what failed"]);
    until("nothing is left on the node", || (folders(&cluster) == 0).then_some(()));
}

#[test]
fn what_is_kept_goes_when_its_user_or_its_time_says_so() {
    let cluster = Cluster::start();
    let (job, _) = failed(&cluster, "", "keep_failed: 30m\n");
    let inside =
        cluster.atelier(["job", "debug", &job, "--", "sh", "-c", "echo in; sleep 600"]).spawn();
    inside.prints("in");
    let released = cluster.atelier(["job", "debug", &job, "--release"]).ok();
    assert!(released.stderr.contains("on node local"), "{released:?}");
    inside.wait().code(137).says(&["nothing is kept of the job any more"]);
    debug(&cluster, &job, &["true"]).code(1).says(&["nothing is kept of job"]);
    assert!(cluster.rpc().job(&job).unwrap().sandboxes.is_empty());
    until("its folder is gone", || (folders(&cluster) == 0).then_some(()));
    cluster.atelier(["job", "debug", &job, "--release"]).ok().says(&["Nothing was kept"]);

    let (job, ended) = failed(&cluster, "", "keep_failed: 3s\n");
    let inside =
        cluster.atelier(["job", "debug", &job, "--", "sh", "-c", "echo in; sleep 600"]).spawn();
    inside.prints("in");
    inside.wait().code(137).says(&["nothing is kept of the job any more"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(now.as_millis() as i64 >= ended.sandboxes[0].until_ms, "too early");
    until("its folder is gone", || (folders(&cluster) == 0).then_some(()));
    // Whoever deletes a job deletes what is kept of it.
    let (job, _) = failed(&cluster, "", "keep_failed: 30m\n");
    assert_eq!(folders(&cluster), 1);
    cluster.atelier(["job", "delete", &job, "--yes"]).ok();
    until("its folder is gone", || (folders(&cluster) == 0).then_some(()));
}

#[test]
fn what_is_kept_outlives_agent_and_daemon() {
    let cluster = Cluster::start();
    let (long, _) = failed(&cluster, "", "keep_failed: 30m\n");
    let begun = Instant::now();
    let (short, _) = failed(&cluster, "", "keep_failed: 6s\n");
    let inside = cluster
        .atelier(["job", "debug", &long, "--", "sh", "-c", "echo in; LOST=agent sleep 600"])
        .spawn();
    inside.prints("in");
    cluster.agent("local", |agent| agent.kill());
    inside.wait().code(4).says(&["lost node 'local'"]);
    until("the command is gone", || processes_with("LOST=agent").is_empty().then_some(()));
    cluster.start_agent(&Agent::new("local"));
    assert_eq!(debug(&cluster, &long, &["cat", "note"]).ok().word(), "mine");
    cluster.restart_daemon_hard();
    cluster.node_is_ready("local");
    assert_eq!(debug(&cluster, &long, &["cat", "note"]).ok().word(), "mine");
    until("the other's time is over", || (folders(&cluster) == 1).then_some(()));
    assert!(begun.elapsed() >= Duration::from_secs(6));
    debug(&cluster, &short, &["true"]).code(1).says(&["nothing is kept of job"]);
}

/// As what an attempt started, and nobody waits for any more.
fn stray(attempt: &Path) -> Child {
    let mut sleep = Command::new("sleep");
    sleep.arg("600").env("ATELIER_ATTEMPT_FOLDER", attempt).spawn().unwrap()
}

#[test]
fn what_a_new_agent_ends_is_told_by_what_is_there_of_it() {
    let cluster = Cluster::start();
    failed(&cluster, "", "keep_failed: 30m\n");
    let attempts = cluster.agent_data("local").join("attempts");
    let [kept] = &fs::read_dir(&attempts)
        .unwrap()
        .map(|found| found.unwrap().path())
        .collect::<Vec<_>>()[..]
    else {
        panic!("there is one attempt")
    };
    until("the daemon has its end", || {
        let record = fs::read_to_string(kept.join("kept.json")).unwrap();
        record.contains(r#""settled":true"#).then_some(())
    });
    cluster.agent("local", |agent| agent.kill());
    let gone = attempts.join("700000");
    let mut strays = [stray(kept), stray(&gone)];
    cluster.start_agent(&Agent::new("local"));
    for stray in &mut strays {
        until("it is ended", || stray.try_wait().unwrap());
    }
    let printed = cluster.agent("local", |agent| agent.printed());
    let line = |of: &Path| {
        let of = format!("folder={}", of.display());
        printed.lines().find(|line| line.contains("ending what") && line.contains(&of)).unwrap()
    };
    assert!(line(kept).contains("in what is kept of an attempt"), "{printed}");
    assert!(line(&gone).contains("an attempt whose folder is gone"), "{printed}");
}

#[test]
fn what_is_kept_has_the_time_that_it_was_given_first() {
    let cluster = Cluster::start();
    let marks = cluster.shared_folder("marks");
    let command = format!(
        "cd {}; touch begun; until [ -e go ]; do sleep 0.02; done; exit 3",
        marks.display()
    );
    let job = cluster.create(&format!("{}keep_failed: 30m\n", job_yaml(&command)));
    until("it runs", || marks.join("begun").exists().then_some(()));
    // The daemon is away when it fails, and the agent is another one when it comes back.
    cluster.daemon(|daemon| daemon.kill());
    std::fs::write(marks.join("go"), "").unwrap();
    let attempts = cluster.agent_data("local").join("attempts");
    let until_ms = || {
        let folder = std::fs::read_dir(&attempts).unwrap().next()?.unwrap().path();
        let kept = std::fs::read(folder.join("kept.json")).ok()?;
        let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        kept["until_ms"].as_i64()
    };
    let first = until("it is kept", until_ms);
    cluster.agent("local", |agent| agent.kill());
    // An agent that was killed while it removed a folder leaves this.
    let left = cluster.agent_data("local").join("removed");
    std::fs::create_dir_all(left.join("3/work")).unwrap();
    cluster.launch_agent(&Agent::new("local"));
    cluster.start_daemon();
    let [kept] = &cluster.ended(&job).sandboxes[..] else { panic!("not kept once") };
    assert_eq!((kept.until_ms, until_ms()), (first, Some(first)));
    assert_eq!(debug(&cluster, &job, &["echo", "in"]).ok().word(), "in");
    assert!(!left.exists());
}

#[test]
fn what_is_kept_holds_up_no_drain() {
    let cluster = Cluster::start();
    let (job, _) = failed(&cluster, "", "keep_failed: 30m\n");
    let drain = ["node", "drain", "local", "--reason", "a new fan", "-o", "json"];
    let shown = cluster.atelier(drain).ok().json();
    assert!(!shown["reason"].as_str().unwrap_or_default().contains("job runs"), "{shown}");
    assert_eq!(debug(&cluster, &job, &["cat", "note"]).ok().word(), "mine");
}

/// A node whose disk is its own, so that what it keeps depends on nothing else of the machine.
fn on_a_disk(size: &str) -> (Disk, Cluster) {
    let disk = Disk::create(size);
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").data(&disk.path().join("agent")));
    (disk, cluster)
}

#[test]
fn a_node_keeps_some_of_what_nobody_asked_for() {
    needs("disk");
    let (_disk, cluster) = on_a_disk("256M");
    let is_kept = |job: &str| !cluster.rpc().job(job).unwrap().sandboxes.is_empty();
    let (job, _) = failed(&cluster, "", "");
    assert_eq!(debug(&cluster, &job, &["cat", "note"]).ok().word(), "mine");
    let (own, _) = failed(&cluster, "", "keep_failed: 0\n");
    debug(&cluster, &own, &["true"]).code(1).says(&["nothing is kept of job"]);
    // A bounded number; what was asked for stays.
    let (asked, _) = failed(&cluster, "", "keep_failed: 30m\n");
    let last = (0..15).map(|_| failed(&cluster, "", "").0).last().unwrap();
    until("the oldest is gone", || (!is_kept(&job)).then_some(()));
    debug(&cluster, &job, &["true"]).code(1).says(&["nothing is kept of job"]);
    for _ in 0..15 {
        failed(&cluster, "", "keep_failed: 30m\n");
    }
    until("what nobody asked for is gone", || (!is_kept(&last)).then_some(()));
    let (_, ended) = failed(&cluster, "", "");
    assert!(
        ended.sandboxes.is_empty(),
        "nobody asked for it, and there are 16 that were asked for"
    );
    assert_eq!(debug(&cluster, &asked, &["cat", "note"]).ok().word(), "mine");
    failed(&cluster, "", "keep_failed: 30m\n");
    until("the oldest goes for one that is asked for", || (!is_kept(&asked)).then_some(()));
}

#[test]
fn what_nobody_asked_for_needs_room_for_bytes_and_files() {
    needs("disk");
    let (disk, cluster) = on_a_disk("64M");
    let free = || rustix::fs::statvfs(disk.path()).unwrap();
    let bytes = disk.path().join("bytes");
    let files = disk.path().join("files");
    let gone = |job: &str| {
        until("it goes for the room that it takes", || {
            cluster.rpc().job(job).unwrap().sandboxes.is_empty().then_some(())
        });
    };
    let (job, ended) = failed(&cluster, "", "");
    assert_eq!(ended.sandboxes.len(), 1);
    let file = std::fs::File::create(&bytes).unwrap();
    let most = (free().f_bavail - free().f_blocks / 20) * free().f_frsize;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    gone(&job);
    assert!(failed(&cluster, "", "").1.sandboxes.is_empty());
    assert_eq!(failed(&cluster, "", "keep_failed: 30m\n").1.sandboxes.len(), 1);
    drop(file);
    std::fs::remove_file(&bytes).unwrap();
    let (job, ended) = failed(&cluster, "", "");
    assert_eq!(ended.sandboxes.len(), 1);
    std::fs::create_dir(&files).unwrap();
    for number in 0..free().f_favail - free().f_files / 20 {
        std::fs::File::create(files.join(number.to_string())).unwrap();
    }
    gone(&job);
    assert!(failed(&cluster, "", "").1.sandboxes.is_empty());
}

#[test]
fn nobody_gets_into_what_a_deleted_job_of_the_same_name_left() {
    let cluster = Cluster::start();
    let (ana, ben) =
        (cluster.token_for("ana", "data-scientist"), cluster.token_for("ben", "data-scientist"));
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", token)
    };
    let create = ["job", "create", "-f", "-", "--name", "x", "--keep-failed=30m"];
    with(&ana, &create).stdin(job_yaml("echo secret > note; exit 3")).ok();
    assert_eq!(cluster.ended("x").sandboxes.len(), 1);
    cluster.agent("local", |agent| agent.kill());
    with(&ana, &["job", "delete", "x", "--yes"]).ok();
    cluster.start_agent(&Agent::new("other"));
    with(&ben, &create).stdin(job_yaml("echo own > note; exit 3")).ok();
    assert_eq!(cluster.ended("x").sandboxes[0].node, "other");
    let run = ["job", "debug", "x", "--", "cat", "note"];
    assert_eq!(with(&ben, &run).ok().word(), "own");
    // The node that was away comes back, and lets go of it.
    assert_eq!(folders(&cluster), 1);
    cluster.start_agent(&Agent::new("local"));
    cluster.node_is_ready("local");
    until("what the deleted job left is gone", || (folders(&cluster) == 0).then_some(()));
    assert_eq!(with(&ben, &run).ok().word(), "own");
    with(&ben, &["job", "debug", "x", "--release"]).ok();
    with(&ben, &run).fails(1).says(&["nothing is kept of job"]);
}

#[test]
fn what_is_kept_on_a_node_that_is_not_back_is_not_said_to_be_gone() {
    let cluster = Cluster::start();
    let (job, _) = failed(&cluster, "", "keep_failed: 30m\n");
    cluster.agent("local", |agent| agent.kill());
    cluster.restart_daemon_hard();
    let release = ["job", "debug", &job, "--release", "-o", "json"];
    debug(&cluster, &job, &["true"]).code(1).says(&["its node 'local' does not answer"]);
    cluster.atelier(release).fails(1).says(&["its node 'local' does not answer"]);
    cluster.start_agent(&Agent::new("local"));
    cluster.node_is_ready("local");
    assert_eq!(debug(&cluster, &job, &["cat", "note"]).ok().word(), "mine");
    let gone = cluster.atelier(release).ok().json();
    assert_eq!((&gone[0]["node"], &gone[0]["rank"]), (&"local".into(), &0.into()), "{gone}");
    assert_eq!(cluster.atelier(release).ok().json(), serde_json::json!([]));
    let events = cluster.rpc().events(&job).unwrap();
    let released: Vec<_> = events.iter().filter(|event| event.kind == "Released").collect();
    let [released] = released.as_slice() else { panic!("{events:?}") };
    assert_eq!((released.principal.as_str(), released.attempt), ("admin", 1));
}
