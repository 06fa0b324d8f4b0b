//! What each user's jobs may hold of a compute, as an admin says it and as a user meets it.

use std::fs;

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, until};

fn node_of_four() -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4));
    cluster
}

fn listed(cluster: &Cluster) -> Value {
    cluster.atelier(["compute", "quota", "list", "local", "-o", "json"]).ok().json()
}

fn set(cluster: &Cluster, more: &[&str]) {
    cluster.atelier(["compute", "quota", "set", "local"].iter().chain(more)).ok();
}

#[test]
fn a_quota_holds_jobs_back_and_survives_the_daemon() {
    let cluster = node_of_four();
    let go = cluster.files().join("go");
    let waits = |cpus: u32| {
        format!(
            "command: while [ ! -e {} ]; do sleep 0.05; done\nresources: {{cpus: {cpus}}}\n",
            go.display()
        )
    };
    set(&cluster, &["--cpus", "2"]);
    set(
        &cluster,
        &[
            "--user", "ana", "--cpus", "1.5", "--memory", "2Gi", "--gpus", "0.5", "--nodes", "3",
            "--jobs", "9",
        ],
    );
    let everybody = json!({"user": null, "group": null, "gpus": null, "cpus": 2, "memory": null, "nodes": null, "jobs": null});
    let ana = json!({"user": "ana", "group": null, "gpus": "0.5", "cpus": 1.5, "memory": "2 GiB", "nodes": 3, "jobs": 9});
    assert_eq!(listed(&cluster), json!([everybody, ana]));
    let shown = cluster.atelier(["compute", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(shown["quotas"], json!([everybody, ana]));

    let first = cluster.create(&waits(2));
    cluster.running(&first);
    let second = cluster.create(&waits(1));
    until("the reason is told", || {
        let job = cluster.rpc().job(&second).unwrap();
        let told = job.wait_reason.contains("may hold 2 CPU of the compute at once");
        (job.status() == JobStatus::Queued && told).then_some(())
    });
    cluster.restart_daemon_hard();
    assert_eq!(listed(&cluster), json!([everybody, ana]));
    assert_eq!(cluster.rpc().job(&second).unwrap().status(), JobStatus::Queued);
    // A job that it can never allow does not wait for ever.
    cluster.atelier(["job", "create", "-f", "-"]).stdin(waits(3)).fails(1).says(&[
        "3 CPU, and the quota is 2 CPU",
        "compute 'local'",
        "ask for less",
        "atelier compute quota set local",
    ]);
    // Setting it again takes the place of what was said, at once.
    set(&cluster, &["--cpus", "3"]);
    cluster.running(&second);
    fs::write(&go, "").unwrap();
    cluster.completed(&first);
    cluster.completed(&second);

    cluster.atelier(["compute", "quota", "delete", "local", "--user", "ana"]).ok();
    cluster.atelier(["compute", "quota", "delete", "local"]).ok();
    assert_eq!(listed(&cluster), json!([]));
}

#[test]
fn a_quota_that_makes_no_sense_is_refused_with_the_reason() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let fails = |code: i32, more: &[&str], says: &[&str]| {
        cluster.atelier(["compute", "quota"].iter().chain(more)).fails(code).says(says);
    };
    for (flag, value, says) in [
        ("--gpus", "nan", "must be a number"),
        ("--gpus", "-1", "must be more than 0"),
        ("--gpus", "0", "must be more than 0"),
        ("--gpus", "99999999999", "at most 10240000 GPUs"),
        ("--cpus", "-2", "must be more than 0"),
        ("--cpus", "many", "expected a number of CPUs"),
        ("--memory", "256", "has no unit"),
        ("--memory", "0Gi", "must be more than 0"),
        ("--nodes", "0", "0"),
        ("--jobs", "-1", "-1"),
    ] {
        fails(2, &["set", "local", flag, value], &[says, flag]);
    }
    fails(2, &["set", "local", "--user", "", "--jobs", "1"], &["--user"]);
    fails(1, &["set", "local"], &["it limits nothing", "--gpus"]);
    fails(1, &["set", "local", "--user", "a b\tc", "--jobs", "1"], &["user"]);
    fails(3, &["set", "none", "--jobs", "1"], &["there is no compute 'none'"]);
    fails(3, &["list", "none"], &["there is no compute 'none'"]);
    fails(3, &["delete", "local"], &["has no quota of everybody"]);
    fails(3, &["delete", "local", "--user", "ana"], &["has no quota of user 'ana'"]);
    assert_eq!(listed(&cluster), json!([]));
    // Only admins say what others may hold; everybody may know.
    let scientist = cluster.token_for("ana", "data-scientist");
    let server = cluster.server();
    let as_ana = |more: &[&str]| {
        cluster
            .atelier_at(&server, ["compute", "quota"].iter().chain(more))
            .env("ATELIER_TOKEN", &scientist)
    };
    as_ana(&["set", "local", "--user", "ana", "--jobs", "99"]).fails(5).says(&["manage computes"]);
    as_ana(&["delete", "local"]).fails(5).says(&["manage computes"]);
    as_ana(&["list", "local"]).ok();
}
