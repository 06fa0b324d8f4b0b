//! The network between a node and the daemon, and what a node does that hears nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use super::{attempt_processes, count, joined, only_attempt, state};
use crate::harness::{
    Agent, BOTH, Cluster, History, Process, Proxy, Way, check_database, job_yaml, until,
};

/// A job on node `a`, which reaches the daemon through a proxy; node `b`, where it could run too, came
/// later. The job goes on until it may end.
struct Scene {
    cluster: Cluster,
    proxy: Proxy,
    history: History,
    job: String,
    /// The folder of its first attempt.
    first: PathBuf,
    may_end: PathBuf,
}

impl Scene {
    fn set(serve: &[&str]) -> Self {
        Self::with_job(serve, "")
    }

    /// `begins`: what the job does before anything else.
    fn with_job(serve: &[&str], begins: &str) -> Self {
        let cluster = Cluster::empty();
        cluster.settings.borrow_mut().serve = serve.iter().map(|&word| word.to_owned()).collect();
        cluster.start_daemon();
        let proxy = Proxy::to(&cluster.server());
        cluster.start_agent(&Agent::new("a").server(&proxy.url()));
        let history = History::of(&cluster);
        let may_end = cluster.files().join("may-end");
        let command = format!("{begins}\n{}", history.command_until(&may_end));
        let job = cluster.create(&job_yaml(&command));
        until("the job runs", || history.has("tick", &job).then_some(()));
        cluster.running(&job);
        let first = only_attempt(&cluster, "a");
        cluster.start_agent(&Agent::new("b"));
        Self { cluster, proxy, history, job, first, may_end }
    }

    fn a_is_heard(&self, heard: bool) {
        until(&format!("node a is heard: {heard}"), || {
            (state(&self.cluster, "a").is_some() == heard).then_some(())
        });
    }

    /// The job is started a second time, and nothing of the first is left at that moment (I1).
    #[track_caller]
    fn moves(&self) {
        until("the job is started elsewhere", || {
            (self.history.starts(&self.job) == 2).then_some(())
        });
        assert_eq!(attempt_processes(&self.first), [], "two at once");
    }

    /// The job may end now, and has run `starts` times, as many as its attempts.
    #[track_caller]
    fn ends_after(&self, starts: usize) {
        fs::write(&self.may_end, "").unwrap();
        let job = self.cluster.completed(&self.job);
        let requeued = count(&self.cluster, &self.job, "Requeued");
        let told = (self.history.starts(&self.job), job.attempt as usize, requeued);
        assert_eq!(told, (starts, starts, starts - 1));
        assert_eq!(count(&self.cluster, &self.job, "Completed"), 1);
        self.history.never_two_at_once();
        check_database(&self.cluster);
    }
}

/// 12: nothing gets through for less than the lease, and then every connection breaks.
#[test]
fn f12_a_short_partition_costs_nothing() {
    let scene = Scene::set(&["--lease", "10"]);
    scene.proxy.hold(&BOTH);
    scene.a_is_heard(false);
    let before = joined(&scene.cluster, "a");
    scene.proxy.heal();
    until("the agent is there again", || (joined(&scene.cluster, "a") > before).then_some(()));
    scene.proxy.reset();
    until("and once more", || (joined(&scene.cluster, "a") > before + 1).then_some(()));
    scene.a_is_heard(true);
    scene.ends_after(1);
}

/// 13: nothing gets through for longer than the lease: the node has ended the job before it is
/// started elsewhere, and is of use again afterwards.
#[test]
fn f13_a_long_partition_ends_the_job_before_it_starts_elsewhere() {
    let scene = Scene::set(&["--lease", "4", "--grace", "1"]);
    scene.proxy.hold(&BOTH);
    scene.moves();
    scene.proxy.heal();
    scene.a_is_heard(true);
    scene.ends_after(2);
}

/// 13: no agent lives that could end the job, and the job ignores that it is asked to. Its
/// supervisor kills it before the daemon starts it elsewhere, however short the lease is.
#[test]
fn f13_a_job_that_does_not_want_to_end_ends_with_the_lease() {
    let scene = Scene::with_job(&["--lease", "3", "--grace", "6"], "trap '' TERM");
    scene.cluster.agent("a", Process::kill);
    scene.moves();
    scene.cluster.start_agent(&Agent::new("a").server(&scene.proxy.url()));
    scene.ends_after(2);
}

/// 13: the agent is stopped and cannot end anything; the supervisor does. Woken, it changes nothing.
#[test]
fn f13_a_frozen_agents_job_is_ended_by_its_supervisor() {
    let scene = Scene::set(&["--lease", "4", "--grace", "1"]);
    scene.cluster.agent("a", |agent| agent.freeze());
    scene.moves();
    scene.cluster.agent("a", |agent| agent.signal(Signal::CONT));
    scene.a_is_heard(true);
    scene.ends_after(2);
}

/// 13: the agent is stopped while a job is on its way to it, and reads of it when its lease is long
/// over.
#[test]
fn f13_an_assignment_that_is_read_too_late_starts_nothing() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--lease", "4", "--grace", "1"].map(str::to_owned).into();
    cluster.start_daemon();
    let proxy = Proxy::to(&cluster.server());
    cluster.start_agent(&Agent::new("a").server(&proxy.url()));
    let history = History::of(&cluster);
    let may_end = cluster.files().join("may-end");
    proxy.hold(&[Way::Down]);
    let job = cluster.create(&job_yaml(&history.command_until(&may_end)));
    until("it is given to a", || (count(&cluster, &job, "Assigned") == 1).then_some(()));
    cluster.agent("a", |agent| agent.freeze());
    proxy.heal();
    cluster.start_agent(&Agent::new("b"));
    until("it runs on b", || history.has("tick", &job).then_some(()));
    let before = joined(&cluster, "a");
    cluster.agent("a", |agent| agent.signal(Signal::CONT));
    until("the agent is there again", || (joined(&cluster, "a") > before).then_some(()));
    fs::write(&may_end, "").unwrap();
    assert_eq!((cluster.completed(&job).attempt, history.starts(&job)), (2, 1));
    history.never_two_at_once();
    check_database(&cluster);
}

/// 14: the node hears and is not heard.
#[test]
fn f14_a_node_that_is_not_heard_has_lost_its_job() {
    let scene = Scene::set(&["--lease", "4", "--grace", "1"]);
    scene.proxy.hold(&[Way::Up]);
    scene.moves();
    scene.proxy.heal();
    scene.a_is_heard(true);
    scene.ends_after(2);
}

/// 14: the node is heard and does not hear. It takes the daemon for lost and ends the job; where the
/// job goes then, the daemon may learn only once the node hears it again.
#[test]
fn f14_a_node_that_does_not_hear_ends_its_job() {
    let scene = Scene::set(&["--lease", "4", "--grace", "1"]);
    scene.proxy.hold(&[Way::Down]);
    until("the node ends the job", || attempt_processes(&scene.first).is_empty().then_some(()));
    scene.proxy.heal();
    scene.moves();
    scene.a_is_heard(true);
    scene.ends_after(2);
}

/// 16: everything takes a second, and now and then nothing comes for longer than between two
/// heartbeats.
#[test]
fn f16_a_slow_network_loses_no_node() {
    let scene = Scene::set(&["--lease", "16"]);
    let before = joined(&scene.cluster, "a");
    scene.proxy.delay(Duration::from_secs(1));
    let watcher = scene.cluster.atelier(["job", "stream", &scene.job, "-q"]).spawn();
    for stall in [3_000, 2_000] {
        scene.proxy.hold(&BOTH);
        // How long is what is tried out; nothing waits for it.
        std::thread::sleep(Duration::from_millis(stall));
        scene.proxy.heal();
        // Work goes on meanwhile: this comes and goes through the slow network or past it.
        let other = scene.cluster.shell("echo through");
        scene.cluster.completed(&other);
    }
    scene.ends_after(1);
    watcher.wait().ok();
    assert_eq!(count(&scene.cluster, &scene.job, "NodeUnreachable"), 0);
    assert_eq!(joined(&scene.cluster, "a"), before, "the session broke");
}

/// 13: the job makes way, has long to do so, and the node is cut off: the lease ends it all the same.
#[test]
fn f13_a_job_that_is_asked_to_end_ends_with_the_lease_too() {
    let scene = Scene::with_job(&["--lease", "3", "--grace", "40"], "trap '' TERM");
    scene.cluster.atelier(["node", "drain", "a", "--reason", "x", "--deadline", "0s"]).ok();
    // The supervisor has been told: SIGTERM is no longer pending and `cancel.json` is there.
    until("it is asked to end", || scene.first.join("cancel.json").exists().then_some(()));
    scene.cluster.agent("a", Process::kill);
    scene.moves();
}
