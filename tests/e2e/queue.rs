//! The queue: its order, its reasons, and what would end a wait.

use serde_json::json;

use crate::harness::{Agent, Cluster, History};

fn yaml(command: &str, priority: &str, cpus: u32) -> String {
    format!(
        "command: {command:?}\nqueue_settings: {{priority: {priority}}}\nresources: {{cpus: {cpus}}}\n"
    )
}

#[test]
fn a_job_goes_where_its_labels_and_its_disk_are() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("near").with("--label=zone=a").with("--disk=10GiB"));
    cluster.start_agent(&Agent::new("far").with("--label=zone=b").with("--disk=40GiB"));
    let on = |resources: &str| {
        cluster.create(&format!("command: echo\nresources: {{cpus: 1, {resources}}}\n"))
    };
    for (resources, node) in [
        ("node_labels: {zone: b}", "far"),
        ("node_labels: {zone: a}", "near"),
        ("disk: 20GiB", "far"),
        ("disk: 40GiB, node_labels: {zone: b}", "far"),
    ] {
        let job = on(resources);
        assert_eq!(cluster.completed(&job).node, node, "{resources}");
    }
    let shown = cluster.atelier(["node", "show", "far", "-o", "json"]).ok().json();
    assert_eq!(shown["labels"]["zone"], "b");
    let refused = |resources: &str, says: &[&str]| {
        cluster
            .atelier(["job", "create", "-f", "-"])
            .stdin(format!("command: echo\nresources: {{{resources}}}\n"))
            .fails(1)
            .says(says);
    };
    refused("node_labels: {rack: 7}", &["labels rack=7"]);
    refused("disk: 50GiB", &["50 GiB disk", "40 GiB disk"]);
    refused("gpus: 0.5", &["0.5 GPU"]);
    refused("gpus: 1.5", &["gpus"]);
    refused("gpus: -1", &["gpus"]);
    refused("gpus: .nan", &["gpus"]);
    // A label that a node has had is waited for.
    let waits = on("node_labels: {zone: c}");
    let reason = cluster.rpc().job(&waits).unwrap().wait_reason;
    assert!(reason.contains("zone=c"), "{reason}");
}

#[test]
fn the_queue_says_who_is_next_and_why_and_priority_decides() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(2));
    let history = History::of(&cluster);
    let go = cluster.files().join("go");
    let held = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let running = cluster.create(&yaml(&held, "medium", 2));
    cluster.running(&running);
    let low = cluster.create(&yaml(&history.command(0.0), "low", 2));
    let medium = cluster.create(&yaml(&history.command(0.0), "medium", 1));
    let high = cluster.create(&yaml(&history.command(0.0), "high", 2));

    let queue = cluster.atelier(["queue", "-o", "json"]).ok().json();
    let names: Vec<&str> =
        queue.as_array().unwrap().iter().map(|j| j["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&high, &medium, &low], "{queue}");
    assert_eq!(queue[0]["place"], 1);
    assert_eq!(queue[0]["priority"], "high");
    assert_eq!(queue[0]["demand"], "2 CPU");
    assert!(queue[0]["reason"].as_str().unwrap().contains("too little CPU free"), "{queue}");
    let behind = queue[2]["reason"].as_str().unwrap();
    assert!(behind.contains("2 jobs are before it") && behind.contains(&high), "{queue}");
    let page = cluster.atelier(["queue", "--limit", "1", "--query", "[].name", "-o", "json"]).ok();
    assert_eq!(page.json(), json!([high]));
    page.says(&["1 of 3"]);
    cluster.atelier(["queue", "--compute", "none"]).fails(3).says(&["compute list"]);
    cluster.atelier(["queue", "--limit", "5000"]).fails(1).says(&["at most 1000"]);

    let told = cluster.atelier(["job", "explain", &medium, "-o", "json"]).ok().json();
    assert_eq!((&told["status"], &told["ahead"]), (&json!("Queued"), &json!(1)), "{told}");
    assert_eq!(told["changes"], json!([]), "everything is taken: nothing would start it now");

    std::fs::write(&go, "").unwrap();
    for job in [&high, &medium, &low] {
        cluster.completed(job);
    }
    assert_eq!(cluster.atelier(["queue", "-o", "json"]).ok().json(), json!([]));
    let started = |job: &String| cluster.rpc().job(job).unwrap().started_at_ms;
    assert!(started(&high) <= started(&medium) && started(&medium) <= started(&low));
    let told = cluster.atelier(["job", "explain", &high, "-o", "json"]).ok().json();
    assert!(told["reason"].as_str().unwrap().contains("it ended at"), "{told}");
    cluster.atelier(["job", "explain", "none"]).fails(3).says(&["job list"]);
}

/// What is suggested is true: a job changed as told starts at once.
#[test]
fn a_suggested_change_starts_the_job() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--compute", "local", "--compute", "big"].map(str::to_owned).to_vec();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4));
    cluster.start_agent(&Agent::new("large").cpus(8).compute("big"));
    let history = History::of(&cluster);
    let running = cluster.create(&yaml(&history.command(600.0), "medium", 3));
    cluster.running(&running);
    let first = cluster.create(&yaml(&history.command(0.0), "medium", 2));
    let second = cluster.create(&yaml(&history.command(0.0), "medium", 1));

    let explain = |job: &str| cluster.atelier(["job", "explain", job, "-o", "json"]).ok().json();
    let told = explain(&first);
    assert_eq!(
        told["changes"],
        json!([
            {"change": "ask for 1 CPU instead of 2", "set": ["resources.cpus=1"]},
            {"change": "send it to compute 'big'", "set": ["compute=big"]},
        ]),
        "{told}"
    );
    let told = explain(&second);
    assert_eq!(
        told["changes"],
        json!([
            {"change": "send it to compute 'big'", "set": ["compute=big"]},
            {"change": "give it priority high", "set": ["queue_settings.priority=high"]},
        ]),
        "{told}"
    );
    // What would become of another, without its being created.
    let dry = |settings: &[&str]| {
        let words = ["job", "create", "-f", "-", "--dry-run", "-o", "json"];
        let sets = settings.iter().flat_map(|setting| ["--set", setting]);
        let yaml = "command: cat ${{inputs.f}}\ncode: .\ninputs: {f: {type: uri_file, path: n}}\n";
        cluster.write("n", "here");
        cluster.atelier(words.into_iter().chain(sets)).stdin(yaml)
    };
    let told = dry(&["compute=big", "resources.cpus=8"]).ok().json();
    assert_eq!((&told["starts_now"], &told["node"]), (&json!(true), &json!("large")), "{told}");
    assert_eq!((&told["nodes"], &told["preempts"]), (&json!(["large"]), &json!([])), "{told}");
    assert_eq!(told["downloads"]["f"]["type"], "uri_file", "{told}");
    let told = dry(&["resources.cpus=2"]).ok().json();
    assert_eq!((&told["starts_now"], &told["ahead"]), (&json!(false), &json!(2)), "{told}");
    assert!(told["reason"].as_str().unwrap().contains(&first), "{told}");
    assert_eq!(told["changes"][0]["set"], json!(["compute=big"]), "{told}");
    dry(&["resources.cpus=9"]).fails(1).says(&["largest node", "ask for less"]);
    // What creating it would refuse, trying it refuses too.
    dry(&["distribution.type=tensorflow", "distribution.worker_count=2"]).fails(1).says(&[
        "distribution.worker_count",
        "2",
        "resources.instance_count",
        "1",
    ]);
    dry(&["compute=none"]).fails(3).says(&["none", "compute list"]);
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 3, "nothing was created");

    for (number, setting) in ["compute=big", "queue_settings.priority=high"].iter().enumerate() {
        let name = format!("changed-{number}");
        cluster
            .atelier(["job", "create", "-f", "-", "--name", &name, "--set", setting])
            .stdin(yaml(&history.command(0.0), "medium", 1))
            .ok();
        cluster.completed(&name);
    }
    let waits = cluster.rpc().job(&second).unwrap();
    assert!(!waits.wait_reason.is_empty(), "{waits:?}");
    cluster.atelier(["job", "cancel", &running]).ok();
    cluster.completed(&second);
}

/// The forecast says nothing where nothing is known, and is right where all jobs take equally long;
/// also after a restart.
#[test]
fn a_forecast_comes_from_past_jobs() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(2));
    let history = History::of(&cluster);
    let explain = |job: &str| cluster.atelier(["job", "explain", job, "-o", "json"]).ok().json();
    let go = cluster.files().join("go");
    let steady = format!("until [ -e {} ]; do sleep 0.05; done; sleep 3", go.display());
    let steady = yaml(&steady, "medium", 2);
    let first = cluster.create(&steady);
    let second = cluster.create(&steady);
    let told = explain(&second);
    let nothing = "no forecast: nothing is known of how long jobs run here";
    assert_eq!(told["forecast"], nothing, "{told}");
    assert_eq!(told["expected_start"], json!({"p50": null, "p90": null}), "{told}");
    std::fs::write(&go, "").unwrap();
    cluster.completed(&first);
    let ended = cluster.completed(&second);
    cluster.restart_daemon_hard();
    cluster.daemon_is_ready();
    cluster.node_is_ready("local");

    let running = cluster.create(&yaml(&history.command(600.0), "medium", 2));
    cluster.running(&running);
    let waits = cluster.create(&steady);
    let last = cluster.create(&steady);
    let (told, after) = (explain(&waits), explain(&last));
    let text = told["forecast"].as_str().unwrap();
    assert!(text.contains("from 32 runs of the scheduler over 2 past jobs"), "{told}");
    let time = |told: &serde_json::Value, percentile: &str| {
        let text = told["expected_start"][percentile].as_str().unwrap();
        text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
    };
    assert!(time(&told, "p50") > ended.ended_at_ms, "{told}");
    assert!(time(&told, "p90") < ended.ended_at_ms + 600_000, "{told}");
    let took = time(&after, "p50") - time(&told, "p50");
    assert!((2_500..60_000).contains(&took), "{told} {after}");
    let dry = cluster
        .atelier(["job", "create", "-f", "-", "--dry-run", "-o", "json"])
        .stdin(steady.clone())
        .ok()
        .json();
    assert!(dry["forecast"].as_str().unwrap().contains("past jobs"), "{dry}");
    assert!(time(&dry, "p50") >= time(&after, "p50"), "{dry} {after}");
    let told = explain(&running);
    assert_eq!(told["forecast"], "", "it does not wait: {told}");
    cluster.atelier(["job", "cancel", &running]).ok();
}

/// A replay of what was comes near it, and two nodes more would have spared the waits.
#[test]
fn a_replay_tells_what_was_beside_what_would_be() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(2));
    cluster.atelier(["simulate", "replay"]).fails(1).says(&["cannot replay", "--since"]);
    let jobs: Vec<String> = (0..3).map(|_| cluster.create(&yaml("sleep 2", "medium", 2))).collect();
    jobs.iter().for_each(|job| drop(cluster.completed(job)));
    let replay = |more: &[&str]| {
        let words = ["simulate", "replay", "--since", "1h", "-o", "json"];
        cluster.atelier(words.iter().chain(more)).ok().json()
    };
    let told = replay(&[]);
    assert_eq!((&told["jobs"], &told["nodes"]), (&json!(3), &json!(1)), "{told}");
    let of = |told: &serde_json::Value, which: &str, what: &str| {
        told["wait_seconds"][which][what].as_f64().unwrap()
    };
    assert!(of(&told, "was", "p99") >= 3.0, "two were before it: {told}");
    let apart = of(&told, "was", "mean") - of(&told, "would_be", "mean");
    assert!(apart.abs() < 2.0, "{told}");
    assert!(told["compared"].as_str().unwrap().contains("on the nodes that are there now"));
    let more = replay(&["--add-nodes", "2"]);
    assert_eq!((&more["nodes"], &more["nodes_added"]), (&json!(3), &json!(2)), "{more}");
    assert_eq!(of(&more, "would_be", "p99"), 0.0, "{more}");
    assert_eq!(of(&more, "was", "p99"), of(&told, "was", "p99"));
    cluster.atelier(["simulate", "replay", "--compute", "none"]).fails(3).says(&["'none'"]);
    cluster.atelier(["simulate", "replay", "--add-nodes", "1xA10"]).fails(1).says(&["A10"]);
    cluster.atelier(["simulate", "replay", "--since", "soon"]).fails(2).says(&["24h"]);
}
