//! Nodes that an admin drains and resumes.

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, History, PATIENCE, until};

/// Two nodes of one CPU each.
fn cluster() -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["a", "b"] {
        cluster.start_agent(&Agent::new(name).cpus(1));
    }
    cluster
}

/// The node that a job runs on.
fn node_of(cluster: &Cluster, job: &str) -> String {
    cluster.running(job).node
}

#[test]
fn a_drained_node_keeps_its_jobs_and_gets_no_other() {
    let cluster = cluster();
    let history = History::of(&cluster);
    let long = cluster.create(&history.job(3.0));
    let node = node_of(&cluster, &long);
    let shown = cluster
        .atelier(["node", "drain", &node, "--reason", "the fan is loud", "-o", "json"])
        .ok()
        .says(&["node resume"])
        .json();
    assert_eq!(shown["state"], "leaving");
    assert_eq!(shown["drain"]["by"], "admin");
    assert_eq!(shown["drain"]["reason"], "the fan is loud");
    assert!(shown["reason"].as_str().unwrap().contains("1 job runs to its end"), "{shown}");

    let others: Vec<String> = (0..6).map(|_| cluster.create(&history.job(0.05))).collect();
    for other in &others {
        let job = cluster.completed(other);
        assert_ne!(job.node, node, "{other} was given to a drained node");
    }
    assert_eq!(cluster.completed(&long).attempt, 1);

    // It holds across restarts of both.
    cluster.restart_daemon_hard();
    until("both are back", || {
        let nodes = cluster.atelier(["node", "list", "-o", "json"]).ok().json();
        let mut states = nodes.as_array()?.iter().map(|n| (n["name"] == *node, n["state"].clone()));
        let back = |(drained, state)| state == if drained { "leaving" } else { "idle" };
        states.all(back).then_some(())
    });
    let other = cluster.create(&history.job(0.0));
    assert_ne!(cluster.completed(&other).node, node);

    cluster.atelier(["node", "drain", &node, "--reason", "again"]).fails(1).says(&[
        "drained already, by admin: the fan is loud",
        "--update",
        "node resume",
    ]);
    cluster.atelier(["node", "resume", &node]).ok();
    cluster.atelier(["node", "resume", &node]).fails(1).says(&["is not drained"]);
    let both: Vec<String> = (0..2).map(|_| cluster.create(&history.job(1.0))).collect();
    let mut nodes: Vec<String> = both.iter().map(|job| node_of(&cluster, job)).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    for job in &both {
        cluster.completed(job);
    }
    history.once_each(others.iter().chain(&both).chain([&long]));
}

#[test]
fn jobs_of_a_drained_node_make_way_at_the_deadline() {
    let cluster = cluster();
    // It notices that it must stop, and leaves at once; the second time it has what it needs.
    let flag = cluster.files().join("stopped-once");
    let command = format!(
        "trap 'touch {0}; exit 1' TERM; test -e {0} || {{ sleep 600 & wait; }}",
        flag.display()
    );
    let job = cluster.shell(&command);
    let node = node_of(&cluster, &job);
    cluster.atelier(["node", "drain", &node, "--reason", "new driver", "--deadline", "1s"]).ok();
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Completed], PATIENCE);
    assert_eq!(ended.attempt, 2);
    assert_ne!(ended.node, node);
    let events = cluster.rpc().events(&job).unwrap();
    let said = |kind: &str| {
        let event = events.iter().find(|event| event.kind == kind);
        event.unwrap_or_else(|| panic!("no {kind} among {events:?}")).clone()
    };
    assert_eq!(said("Evicting").principal, "admin");
    assert!(said("Requeued").message.contains("new driver"), "{events:?}");
    until("nothing runs there", || {
        let shown = cluster.atelier(["node", "show", &node, "-o", "json"]).ok().json();
        (shown["jobs"] == serde_json::json!([])).then_some(())
    });
}

#[test]
fn only_an_admin_drains_and_what_makes_no_sense_is_refused() {
    let cluster = cluster();
    for role in ["data-scientist", "reader"] {
        let token = cluster.token_for("ana", role);
        cluster
            .atelier_at(&cluster.server(), ["node", "drain", "a", "--reason", "mine"])
            .env("ATELIER_TOKEN", token)
            .fails(5)
            .says(&["may not", "drain computes"]);
    }
    cluster.atelier(["node", "drain", "none", "--reason", "x"]).fails(3).says(&["node list"]);
    cluster.atelier(["node", "drain", "a", "--reason", " "]).fails(1).says(&["say why"]);
    cluster.atelier(["node", "drain", "a"]).fails(2).says(&["--reason"]);
    let drain = ["node", "drain", "a", "--reason", "x", "--deadline"];
    for (deadline, said) in [("soon", "30m"), ("5 parsecs", "30m"), ("9999999999", "136 years")] {
        let code = if said == "30m" { 2 } else { 1 };
        cluster.atelier(drain.iter().chain([&deadline])).fails(code).says(&[said]);
    }
    let shown = cluster.atelier(["node", "show", "a", "-o", "json"]).ok().json();
    assert_eq!(shown["drain"], serde_json::Value::Null);
}
