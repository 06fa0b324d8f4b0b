//! Misfortunes of nodes: their agents, their power, their network. The numbers are those of
//! `docs/reliability.md`.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_proto::compute::v1::{ListNodesRequest, NodeState};
use atelier_proto::job::v1::JobStatus;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    Agent, Cluster, History, PROGRAM, Process, check_database, job_yaml, memory, processes_with,
    supervisor, until,
};

mod partitions;

/// How many events of this kind a job has.
fn count(cluster: &Cluster, job: &str, kind: &str) -> usize {
    cluster.rpc().events(job).unwrap().iter().filter(|event| event.kind == kind).count()
}

/// How often an agent has joined.
fn joined(cluster: &Cluster, node: &str) -> usize {
    cluster.agent(node, |agent| agent.printed().matches("joined the workspace").count())
}

/// What a node does, if the daemon hears from it.
fn state(cluster: &Cluster, node: &str) -> Option<NodeState> {
    let rpc = cluster.rpc();
    let nodes =
        rpc.wait(rpc.client.call(rpc.client.computes().list_nodes(ListNodesRequest::default())));
    let found = nodes.unwrap().nodes.into_iter().find(|found| found.name == node)?;
    Some(found.state()).filter(|state| matches!(state, NodeState::Idle | NodeState::Running))
}

/// The living processes of the attempt whose folder this is, without its supervisor.
fn attempt_processes(folder: &Path) -> Vec<Pid> {
    processes_with(&format!("ATELIER_ATTEMPT_FOLDER={}\0", folder.display()))
}

/// The parent of a process; `None` if that process is gone.
fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    Pid::from_raw(parent.parse().ok()?).filter(|_| state != "Z")
}

/// The launcher of supervisors that an agent has, if it has started one.
fn launcher(agent: Pid) -> Option<Pid> {
    processes_with("supervise\0--launcher\0").into_iter().find(|&pid| parent(pid) == Some(agent))
}

/// 8: the agent is killed in the middle of a job; the job and its log do not notice.
#[test]
fn f08_killing_the_agent_loses_nothing() {
    let cluster = Cluster::start();
    let go = cluster.files().join("go");
    let name = cluster.shell(&format!(
        "seq 1 1000\nwhile [ ! -e {} ]; do sleep 0.05; done\nseq 1001 2000; echo kept > outputs/k",
        go.display()
    ));
    let watcher = cluster.atelier(["job", "stream", &name, "-q"]).spawn();
    watcher.prints("\n1000\n");
    cluster.agent("local", Process::kill);
    cluster.launch_agent(&Agent::new("local"));
    cluster.node_is_ready("local");
    cluster.restart_daemon_hard();
    fs::write(&go, "").unwrap();
    let job = cluster.completed(&name);
    assert_eq!(job.attempt, 1);
    let whole: String = (1..=2000).map(|n| format!("{n}\n")).collect();
    assert_eq!(watcher.wait().ok().stdout(), whole);
    assert_eq!(cluster.log(&name), whole.as_bytes());
    assert!(cluster.rpc().artifacts(&name).contains(&"outputs/k".to_owned()));
}

/// 8: the agent is killed again and again while jobs of different lengths run, at times with the process that
/// starts supervisors, the daemon, or both.
fn kills(rounds: u64) {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = Agent::new("local").cpus(4);
    cluster.start_agent(&agent);
    let history = History::of(&cluster);
    let mut jobs = Vec::new();
    for round in 0..rounds {
        for (seconds, code) in [(0.05, 0), (1.0, 0), (0.1, 7)] {
            let lived = history.command(seconds);
            let name = cluster.shell(&format!("seq 1 500\n{lived}seq 501 1000\nexit {code}"));
            jobs.push((name, code));
        }
        // A different moment of the jobs' lives in each round.
        std::thread::sleep(std::time::Duration::from_millis(round * 61 % 200));
        let pid = cluster.agent("local", |agent| agent.pid());
        if round % 2 == 1
            && let Some(launcher) = launcher(pid)
        {
            let _ = kill_process(launcher, Signal::KILL);
        }
        if round % 4 != 2 {
            cluster.agent("local", Process::kill);
        }
        if round % 4 > 1 {
            cluster.restart_daemon_hard();
        }
        if round % 4 != 2 {
            cluster.launch_agent(&agent);
        }
    }
    let whole: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    for (name, code) in &jobs {
        let job = cluster.ended(name);
        assert_eq!((job.exit_code, job.attempt), (Some(*code), 1), "{job:?}");
        let events = cluster.rpc().events(name).unwrap();
        let finals = events.iter().filter(|event| event.status().is_final()).count();
        assert_eq!(finals, 1, "{events:?}");
        let log = cluster.log(name);
        assert_eq!(String::from_utf8_lossy(&log), whole);
    }
    history.once_each(jobs.iter().map(|(name, _)| name));
    assert_eq!(cluster.rpc().jobs().unwrap().len(), jobs.len());
    let attempts = cluster.agent_data("local").join("attempts");
    let mark = format!("ATELIER_ATTEMPT_FOLDER={}/", attempts.display());
    assert_eq!(processes_with(&mark), [], "processes outlived their jobs (I13)");
    check_database(&cluster);
}

#[test]
fn f08_killing_the_agent_again_and_again_loses_nothing() {
    kills(8);
}

#[test]
fn soak_f08_two_hundred_kills_of_agent_and_daemon_lose_nothing() {
    kills(200);
}

/// 9: the program is replaced while its agent and a job run. The old agent still starts jobs, and the
/// new one goes on with what it finds.
#[test]
fn f09_an_agent_is_upgraded_under_its_jobs() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let program = cluster.path().join("atelier");
    // Each copy is a file of its own, as an installer's is.
    let install = || {
        let fresh = cluster.path().join("atelier.new");
        fs::copy(PROGRAM, &fresh).unwrap();
        fs::rename(fresh, &program).unwrap();
    };
    install();
    let agent = Agent::new("local").program(&program);
    cluster.start_agent(&agent);
    let history = History::of(&cluster);
    let may_end = cluster.files().join("may-end");
    let command = format!("seq 1 500\n{}seq 501 1000", history.command_until(&may_end));
    let first = cluster.shell(&command);
    until("the job runs", || history.has("tick", &first).then_some(()));
    let supervisor = supervisor(&only_attempt(&cluster, "local"));
    install();
    let second = cluster.shell(&command);
    until("the old agent starts another", || history.has("tick", &second).then_some(()));
    cluster.agent("local", Process::stop);
    cluster.start_agent(&agent);
    assert!(parent(supervisor).is_some(), "the job is under the supervisor that it began under");
    fs::write(&may_end, "").unwrap();
    let whole: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    for name in [&first, &second] {
        assert_eq!(cluster.completed(name).attempt, 1);
        assert_eq!(cluster.log(name), whole.as_bytes());
    }
    history.once_each([&first, &second]);
}

/// The folder of the one attempt that a node has.
fn only_attempt(cluster: &Cluster, node: &str) -> PathBuf {
    let mut found = fs::read_dir(cluster.agent_data(node).join("attempts")).unwrap();
    let only = found.next().unwrap().unwrap().path();
    assert!(found.next().is_none());
    only
}

/// 10: all that the agent knew is gone. What of the job still runs is ended, and only then is the job
/// started again.
#[test]
fn f10_an_agent_that_has_lost_its_folder_runs_nothing_twice() {
    let cluster = Cluster::start_with(&["--lease", "4", "--grace", "1"]);
    let history = History::of(&cluster);
    let may_end = cluster.files().join("may-end");
    let job = cluster.create(&job_yaml(&history.command_until(&may_end)));
    until("the job runs", || history.has("tick", &job).then_some(()));
    let folder = only_attempt(&cluster, "local");
    let supervisor = supervisor(&folder);
    cluster.agent("local", Process::kill);
    fs::remove_dir_all(cluster.agent_data("local")).unwrap();
    cluster.start_agent(&Agent::new("local"));
    until("the job is started again", || (history.starts(&job) == 2).then_some(()));
    assert_eq!(attempt_processes(&folder), [], "two at once");
    assert_eq!(parent(supervisor), None, "the first supervisor has nothing to do and lives");
    fs::write(&may_end, "").unwrap();
    assert_eq!(cluster.completed(&job).attempt, 2);
    assert_eq!(count(&cluster, &job, "Requeued"), 1);
    history.never_two_at_once();
    check_database(&cluster);
}

/// 10: a job that has no lease is ended too: nobody could ever tell its end or keep its outputs.
#[test]
fn f10_an_agent_that_has_lost_its_folder_leaves_nothing_running() {
    let cluster = Cluster::start_with(&["--lease", "4", "--grace", "1"]);
    let history = History::of(&cluster);
    let never = cluster.files().join("never");
    let yaml = job_yaml(&format!("trap '' TERM\n{}", history.command_until(&never)));
    let job = cluster.create(&format!("{yaml}on_node_loss: keep\n"));
    until("the job runs", || history.has("tick", &job).then_some(()));
    let folder = only_attempt(&cluster, "local");
    let supervisor = supervisor(&folder);
    cluster.agent("local", Process::kill);
    fs::remove_dir_all(cluster.agent_data("local")).unwrap();
    cluster.start_agent(&Agent::new("local"));
    until("its supervisor has ended", || parent(supervisor).is_none().then_some(()));
    assert_eq!(attempt_processes(&folder), []);
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
    assert_eq!(history.starts(&job), 1);
    check_database(&cluster);
}

/// What a node finds when its agent starts after all of its processes have died at once.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    /// Its records, in the same boot.
    All,
    /// Its records, in another boot.
    AfterBoot,
    /// The same, but the record that the job was started had not reached the disk.
    Torn,
}

/// 11: every process of a node dies at once.
fn power_loss(found: Found) {
    let cluster = Cluster::start();
    let history = History::of(&cluster);
    let may_end = cluster.files().join("may-end");
    let job = cluster.create(&job_yaml(&history.command_until(&may_end)));
    until("the job runs", || history.has("tick", &job).then_some(()));
    cluster.running(&job);
    let folder = only_attempt(&cluster, "local");
    let agent = cluster.agent("local", |agent| agent.pid());
    let supervisor = supervisor(&folder);
    // Frozen first: none of them sees another die.
    cluster.agent("local", |agent| agent.freeze());
    kill_process(supervisor, Signal::STOP).unwrap();
    let launcher = launcher(agent).expect("a supervisor has a launcher");
    cluster.agent("local", Process::kill);
    for pid in [launcher, supervisor].into_iter().chain(attempt_processes(&folder)) {
        let _ = kill_process(pid, Signal::KILL);
    }
    until("all are dead", || attempt_processes(&folder).is_empty().then_some(()));
    if found != Found::All {
        another_boot(&cluster, &folder);
        if found == Found::Torn {
            fs::write(folder.join("started.json"), "").unwrap();
        }
    }
    fs::write(&may_end, "").unwrap();
    cluster.start_agent(&Agent::new("local"));
    let ended = cluster.completed(&job);
    assert_eq!((ended.attempt, history.starts(&job)), (2, 2));
    let events = cluster.rpc().events(&job).unwrap();
    let requeued: Vec<_> = events.iter().filter(|event| event.kind == "Requeued").collect();
    let reason = match found {
        Found::All => "supervisor was killed",
        Found::AfterBoot | Found::Torn => "the node was restarted",
    };
    assert!(requeued.len() == 1 && requeued[0].message.contains(reason), "{events:?}");
    assert_eq!(events.iter().filter(|event| event.status().is_final()).count(), 1);
    history.never_two_at_once();
    check_database(&cluster);
}

/// 11: a node loses its power while what a job left waits for the daemon; `settled`: long enough to be on the disk.
fn power_loss_before_the_end_is_known(settled: bool) {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // As on another machine than the daemon's: what the job left is stored through the daemon.
    let agent = Agent::new("local").with("--no-shared-store");
    cluster.start_agent(&agent);
    let may_end = cluster.files().join("may-end");
    let command = format!(
        "echo kept > outputs/kept.txt; echo ready; while [ ! -e {} ]; do sleep 0.05; done",
        may_end.display()
    );
    let job = cluster.create(&job_yaml(&command));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("ready");
    let folder = only_attempt(&cluster, "local");
    cluster.daemon(Process::kill);
    fs::write(&may_end, "").unwrap();
    until("the job has ended", || folder.join("exited.json").exists().then_some(()));
    if settled {
        until("it is on the disk", || folder.join("settled.json").exists().then_some(()));
    }
    cluster.agent("local", Process::kill);
    assert_eq!(folder.join("settled.json").exists(), settled);
    another_boot(&cluster, &folder);
    cluster.start_daemon();
    cluster.start_agent(&agent);
    let ended = cluster.completed(&job);
    assert_eq!(ended.attempt, if settled { 1 } else { 2 });
    let artifacts = cluster.rpc().artifacts(&job);
    assert!(artifacts.iter().any(|path| path == "outputs/kept.txt"), "{artifacts:?}");
    check_database(&cluster);
}

/// As after another start of the machine.
fn another_boot(cluster: &Cluster, folder: &Path) {
    let path = folder.join("started.json");
    let mut started: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    started["boot_id"] = "the-boot-before".into();
    fs::write(&path, serde_json::to_vec(&started).unwrap()).unwrap();
    let boot = cluster.agent_data("local").join("boot.json");
    assert!(boot.exists());
    fs::write(boot, "\"the-boot-before\"").unwrap();
}

#[test]
fn f11_what_may_be_half_on_the_disk_is_not_published() {
    power_loss_before_the_end_is_known(false);
}

#[test]
fn f11_what_waits_for_the_daemon_outlasts_a_power_loss() {
    power_loss_before_the_end_is_known(true);
}

#[test]
fn f11_a_node_that_loses_its_power_costs_one_attempt() {
    power_loss(Found::AfterBoot);
}

#[test]
fn f11_a_power_loss_that_takes_the_newest_records_along_costs_one_attempt() {
    power_loss(Found::Torn);
}

#[test]
fn f11_a_node_whose_processes_are_all_killed_costs_one_attempt() {
    power_loss(Found::All);
}

/// 33: a job that fails and fails is tried as often as it wanted, and no more.
#[test]
fn f33_a_job_that_always_fails_stops() {
    let cluster = Cluster::start();
    let history = History::of(&cluster);
    let command = format!("{}exit 1", history.command(0.05));
    let job =
        cluster.create(&format!("{}retry: {{max_attempts: 3, backoff: 0}}\n", job_yaml(&command)));
    let ended = cluster.ended(&job);
    assert_eq!((ended.status(), ended.exit_code), (JobStatus::Failed, Some(1)));
    assert_eq!((ended.attempt, history.starts(&job)), (3, 3));
    assert_eq!((count(&cluster, &job, "Requeued"), count(&cluster, &job, "Failed")), (2, 1));
    // Others are not kept from running.
    cluster.completed(&cluster.shell("true"));
}

/// A job that takes down each node that it comes to: the agent, what starts supervisors, its own
/// supervisor.
fn killer(history: &History) -> String {
    job_yaml(&format!(
        "{}parent() {{ cut -d ' ' -f 4 /proc/$1/stat; }}\nsupervisor=$(parent $PPID)\n\
         launcher=$(parent $supervisor)\nkill -9 $(parent $launcher) $launcher $supervisor\nsleep 600",
        history.command(0.05)
    ))
}

#[track_caller]
fn stopped_after_three(cluster: &Cluster, history: &History, job: &str) {
    let ended = cluster.ended(job);
    assert_eq!(ended.status(), JobStatus::Failed);
    let error = ended.error.unwrap();
    assert!(error.message.contains("failed the job 3 times, which is the limit"), "{error:?}");
    assert_eq!((ended.attempt, history.starts(job)), (3, 3));
    history.never_two_at_once();
    check_database(cluster);
}

/// 34: three nodes go down and stay down; a fourth is spared. Started again, they are of use.
#[test]
fn f34_a_job_that_takes_nodes_down_stops() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--lease", "3", "--grace", "1"].map(str::to_owned).into();
    cluster.start_daemon();
    let nodes = ["a", "b", "c", "d"];
    for node in nodes {
        // Isolated, it would not see them.
        cluster.start_agent(&Agent::new(node).with("--isolation=none"));
    }
    let history = History::of(&cluster);
    let job = cluster.create(&killer(&history));
    stopped_after_three(&cluster, &history, &job);
    let down = |node: &&&str| cluster.agent(node, |agent| agent.ended()).is_some();
    let down: Vec<_> = nodes.iter().filter(down).collect();
    assert_eq!(down.len(), 3);
    for node in down {
        cluster.start_agent(&Agent::new(node));
    }
    cluster.completed(&cluster.shell("true"));
}

/// 34: the same on one node, whose agent is started again each time, as a service is.
#[test]
fn f34_a_job_that_takes_one_node_down_again_and_again_stops() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = || Agent::new("local").with("--isolation=none");
    cluster.start_agent(&agent());
    let history = History::of(&cluster);
    let job = cluster.create(&killer(&history));
    until("the job has stopped", || {
        if cluster.agent("local", Process::ended).is_some() {
            cluster.launch_agent(&agent());
        }
        cluster.rpc().job(&job).unwrap().status().is_final().then_some(())
    });
    stopped_after_three(&cluster, &history, &job);
    cluster.completed(&cluster.shell("true"));
}

/// 35: a job prints without end. Its log is bounded, and so is what the node keeps in memory; the log
/// says what is missing.
#[test]
fn f35_endless_output_is_bounded_and_marked() {
    const KEPT: usize = 1_000_000;
    let cluster = Cluster::start_with(&["--log-limit", &KEPT.to_string()]);
    let agent = cluster.agent("local", |agent| agent.pid());
    let before = memory(agent);
    let job = cluster.shell("yes");
    cluster.running(&job);
    let folder = only_attempt(&cluster, "local");
    let supervisor = supervisor(&folder);
    // It goes on taking what the job prints, many times what it keeps.
    let printed = || {
        let all = attempt_processes(&folder).into_iter().filter_map(|pid| {
            let io = fs::read_to_string(format!("/proc/{}/io", pid.as_raw_pid())).ok()?;
            io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok())
        });
        all.max().filter(|&bytes| bytes > 100 * KEPT as u64)
    };
    until("far more than the limit was printed", printed);
    let written = fs::metadata(folder.join("std_log.txt")).unwrap().len();
    assert!(written < KEPT as u64 + 1000, "{written} bytes");
    let grown = memory(agent).saturating_sub(before);
    assert!(grown < 32 << 20, "the agent grew by {grown} bytes");
    assert!(memory(supervisor) < 32 << 20);
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
    let log = cluster.log(&job);
    assert!(log.len() < KEPT + 1000, "{} bytes", log.len());
    let end = String::from_utf8_lossy(&log[log.len() - 300..]).into_owned();
    assert!(end.contains("dropped"), "{end}");
}
