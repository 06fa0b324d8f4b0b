//! The wall clocks of the daemon and of nodes jump, or differ. The number is that of `docs/reliability.md`.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    Agent, Cluster, FaultyClock, History, Settings, check_database, needs, until,
};

const HOUR: i64 = 3_600;
/// More than the certificate of a node lasts.
const MORE_THAN_A_DAY: i64 = 26 * HOUR;
/// Seconds, so that a test can outwait it.
const LEASE: u64 = 4;

fn encrypted(variables: &[(String, String)], more: &[&str]) -> Cluster {
    let serve = ["--tls", "on"].iter().chain(more).map(|&argument| argument.to_owned()).collect();
    let cluster = Cluster::with(Settings { serve, variables: variables.to_vec() });
    cluster.start_daemon();
    cluster
}

/// A node that has a certificate of its own, and its agent, to be started again.
fn joined(cluster: &Cluster, variables: &[(String, String)]) -> Agent {
    let create = ["node", "token", "create", "--query", "token", "-o", "tsv"];
    let token = cluster.atelier(create).ok().word();
    let mut agent = Agent::new("far").token(&token);
    agent.variables = variables.to_vec();
    cluster.start_agent(&agent);
    agent.no_token()
}

/// What is recorded of a job is in the order in which it was.
#[track_caller]
fn is_in_order(cluster: &Cluster, job: &str) {
    let events = cluster.rpc().events(job).unwrap();
    let times: Vec<i64> = events.iter().map(|event| event.at_ms).collect();
    assert!(times.is_sorted(), "{job}: {events:?}");
    let job = cluster.rpc().job(job).unwrap();
    let times = [job.created_at_ms, job.started_at_ms, job.ended_at_ms];
    assert!(times.is_sorted(), "{job:?}");
}

/// What doctor finds of clocks.
fn of_clocks(cluster: &Cluster) -> Vec<String> {
    let data = cluster.data().display().to_string();
    let found = cluster.atelier(["doctor", "-o", "json", "--data-dir", &data]).run().json();
    let found = found.as_array().unwrap().iter().filter(|one| one["check"] == "clock");
    found.map(|one| one["found"].as_str().unwrap().to_owned()).collect()
}

fn shown(cluster: &Cluster, node: &str) -> Value {
    cluster.atelier(["node", "show", node, "-o", "json"]).ok().json()
}

/// 20: the clock of the daemon's machine jumps by more than a day, back, and is behind when the daemon starts anew.
#[test]
fn f20_a_daemon_whose_clock_jumps_loses_nothing() {
    needs("preload");
    let control = tempfile::NamedTempFile::new().unwrap();
    let clock = FaultyClock::new(control.path());
    let cluster = encrypted(&clock.variables, &["--lease", &LEASE.to_string()]);
    let history = History::of(&cluster);
    let agent = joined(&cluster, &[]);
    let create = |expires: &str| {
        let create = ["token", "create", "--user", "ana", "--role", "reader"];
        let query = ["--expires", expires, "--query", "token", "-o", "tsv"];
        cluster.atelier(create.iter().chain(&query)).ok().word()
    };
    let asks = |token: &str| {
        cluster.atelier_at(&cluster.server(), ["job", "list"]).env("ATELIER_TOKEN", token)
    };
    let (lasting, brief) = (create("1h"), create("1s"));
    until("the token is over", || (!asks(&brief).run().status.success()).then_some(()));
    let go = cluster.files().join("go");
    let long = cluster.create(&crate::harness::job_yaml(&history.command_until(&go)));
    cluster.running(&long);

    let mut jobs = vec![long.clone()];
    for jump in [MORE_THAN_A_DAY, 0, -MORE_THAN_A_DAY, -HOUR] {
        clock.jump(jump);
        let begun = Instant::now();
        // Who comes anew while the clock is off is known as before.
        cluster.agent("far", |agent| agent.kill());
        cluster.start_agent(&agent);
        let short = cluster.create(&history.job(0.1));
        cluster.completed(&short);
        jobs.push(short);
        asks(&lasting).ok();
        asks(&brief).fails(5).says(&["expired", "the daemon's clock says"]);
        until("more than a lease has passed", || {
            (begun.elapsed() > Duration::from_secs(LEASE + 2)).then_some(())
        });
        if jump.abs() > HOUR {
            let told = of_clocks(&cluster).join("\n");
            for part in ["the daemon's clock is ", "jumped and is ", "the clock of node far is "] {
                assert!(told.contains(part), "{jump}: {told}");
            }
        }
    }
    // It starts with the clock an hour behind, and what it records goes on from what there is.
    cluster.restart_daemon_hard();
    assert!(cluster.daemon(|daemon| daemon.said("was it set back?")));
    asks(&brief).fails(5).says(&["expired"]);
    fs::write(&go, "").unwrap();
    for job in &jobs {
        assert_eq!(cluster.completed(job).attempt, 1, "{job} was tried again");
        is_in_order(&cluster, job);
    }
    history.once_each(&jobs);
    let entries = cluster.atelier(["audit", "list", "--limit", "1000", "-o", "json"]).ok().json();
    let mut times: Vec<&str> =
        entries.as_array().unwrap().iter().map(|entry| entry["at"].as_str().unwrap()).collect();
    times.reverse();
    assert!(times.is_sorted(), "{times:?}");
    check_database(&cluster);
}

/// 20: the clock of a node jumps, differs, and is behind when its agent starts.
#[test]
fn f20_a_node_whose_clock_is_wrong_keeps_its_jobs_and_is_told() {
    needs("preload");
    let control = tempfile::NamedTempFile::new().unwrap();
    let clock = FaultyClock::new(control.path());
    let cluster = encrypted(&[], &[]);
    let history = History::of(&cluster);
    let agent = joined(&cluster, &clock.variables);
    let go = cluster.files().join("go");
    let long = cluster.create(&crate::harness::job_yaml(&history.command_until(&go)));
    cluster.running(&long);

    let mut jobs = vec![long.clone()];
    // The daemon's certificate lasts for ninety days.
    for jump in [100 * 24 * HOUR, -MORE_THAN_A_DAY] {
        clock.jump(jump);
        // The agent has to come again.
        cluster.restart_daemon_hard();
        until("the skew is told", || {
            let ahead = shown(&cluster, "far")["clock_ahead_s"].as_i64()?;
            ((ahead - jump).abs() < 60).then_some(())
        });
        let told = of_clocks(&cluster).join("\n");
        assert!(told.contains("the clock of node far is "), "{told}");
        let short = cluster.create(&history.job(0.1));
        cluster.completed(&short);
        jobs.push(short);
    }
    // One that starts a day behind does not take the daemon for what it is, says why, and does so once it is right.
    cluster.agent("far", |agent| agent.kill());
    cluster.launch_agent(&agent);
    until("it says what is wrong", || {
        cluster
            .agent("far", |agent| agent.said("compare the clocks of this machine and the daemon's"))
            .then_some(())
    });
    clock.jump(0);
    cluster.node_is_ready("far");
    fs::write(&go, "").unwrap();
    for job in &jobs {
        assert_eq!(cluster.completed(job).attempt, 1, "{job} was tried again");
        is_in_order(&cluster, job);
    }
    history.once_each(&jobs);
    check_database(&cluster);
}
