//! Jobs of several users and tiers on nodes that are too few for all of them.

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, History, PATIENCE, until};

fn node_of_four() -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4));
    cluster
}

/// A job that asks for so many CPUs, with further lines of YAML.
fn job(command: &str, cpus: u32, more: &str) -> String {
    format!("command: {command:?}\nresources: {{cpus: {cpus}}}\n{more}\n")
}

/// A job of a low tier trains in steps and keeps what it has done where it finds it again. It is told
/// to stop, puts its last step away, makes way for a usual job, and goes on from there afterwards.
#[test]
fn a_preempted_job_goes_on_from_its_checkpoint() {
    let cluster = node_of_four();
    let (steps, go) = (cluster.files().join("steps"), cluster.files().join("go"));
    let train = format!(
        "trap 'echo stopped >> {steps}; exit 1' TERM; touch {steps}; echo \"from $(grep -c step {steps})\" \
         >> {steps}.log; while [ ! -e {go} ]; do sleep 0.05 & wait $!; echo step >> {steps}; done",
        steps = steps.display(),
        go = go.display()
    );
    let low = cluster.create(&job(&train, 3, "queue_settings: {job_tier: spot}"));
    until("it has trained for a while", || {
        let text = std::fs::read_to_string(&steps).ok()?;
        (text.lines().count() > 3).then_some(())
    });

    // While it runs, a job that has room does not make it go, and neither does one of its own tier.
    let small = cluster.create(&job("echo", 1, ""));
    cluster.completed(&small);
    let history = History::of(&cluster);
    let peer = cluster.create(&job("echo", 4, "queue_settings: {job_tier: spot}"));
    assert_eq!(cluster.rpc().job(&low).unwrap().attempt, 1);
    let usual = job(&history.command(0.5), 4, "");
    let words = ["job", "create", "-f", "-", "--dry-run", "-o", "json"];
    let told = cluster.atelier(words).stdin(usual.clone()).ok().json();
    assert_eq!(told["preempts"], serde_json::json!([low]), "{told}");
    let usual = cluster.create(&usual);
    let ended = cluster.completed(&usual);
    assert_eq!(ended.attempt, 1);
    std::fs::write(&go, "").unwrap();
    let ended = cluster.rpc().reaches(&low, &[JobStatus::Completed], PATIENCE);
    assert_eq!(ended.attempt, 2);
    cluster.completed(&peer);

    let text = std::fs::read_to_string(&steps).unwrap();
    let before = text.lines().take_while(|line| *line == "step").count();
    assert_eq!(text.lines().nth(before), Some("stopped"), "{text}");
    let begun = std::fs::read_to_string(format!("{}.log", steps.display())).unwrap();
    assert_eq!(begun.lines().collect::<Vec<_>>(), ["from 0".to_owned(), format!("from {before}")]);
    let events = cluster.rpc().events(&low).unwrap();
    let said = events.iter().find(|event| event.kind == "Evicting").unwrap();
    let why = format!("job {usual} of tier standard needs its node");
    assert!(said.message.contains(&why), "{events:?}");
    let shown = cluster.atelier(["job", "show", &low, "-o", "json"]).ok().json();
    assert_eq!(shown["status"], "Completed");
}

#[test]
fn users_take_turns_and_a_short_job_does_not_delay_a_large_one() {
    let cluster = node_of_four();
    let history = History::of(&cluster);
    // ada has the node, and a queue.
    let create = |user: &str, yaml: &str| {
        let token = cluster.token_for(user, "data-scientist");
        cluster
            .atelier_at(
                &cluster.server(),
                ["job", "create", "-f", "-", "--query", "name", "-o", "tsv"],
            )
            .env("ATELIER_TOKEN", token)
            .stdin(yaml.to_owned())
            .ok()
            .word()
    };
    let hold = "limits: {timeout: 600}";
    let go = cluster.files().join("go");
    let held = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    let first = create("ada", &job(&held, 3, hold));
    cluster.running(&first);
    let now = || jiff::Timestamp::now().as_millisecond();
    let earlier = now();
    let queue: Vec<String> =
        (0..3).map(|_| create("ada", &job(&history.command(0.0), 4, hold))).collect();
    let bobs = create("bob", &job(&history.command(0.0), 4, hold));
    let bob_is_late_by = now() - earlier;
    let order = || -> Vec<String> {
        let shown = cluster.atelier(["queue", "-o", "json"]).ok().json();
        shown.as_array().unwrap().iter().map(|j| j["name"].as_str().unwrap().to_owned()).collect()
    };
    // Who has less comes first.
    let expected = [&bobs, &queue[0], &queue[1], &queue[2]].map(String::clone);
    assert_eq!(order(), expected);
    let told = cluster.atelier(["job", "explain", &queue[1], "-o", "json"]).ok().json();
    assert!(told["reason"].as_str().unwrap().contains("2 jobs are before it"), "{told}");
    // One CPU is free. A job that says that it is over before the first could start runs at once;
    // one that does not say waits.
    let silent = create("bob", &job("echo", 1, ""));
    let short = create("bob", &job("echo", 1, "limits: {timeout: 5}"));
    cluster.completed(&short);
    let shown = cluster.rpc().job(&silent).unwrap();
    assert_eq!(shown.status(), JobStatus::Queued, "{}", shown.wait_reason);
    // What ada has had moves her jobs back little by little, until it is more than bob was later.
    let started = |job: &str| cluster.rpc().job(job).unwrap().started_at_ms;
    let began = started(&first);
    // By a quarter of the time for three quarters of the node.
    let enough = 5 * bob_is_late_by;
    until("ada has had some seconds", || (now() - began > enough).then_some(()));
    std::fs::write(&go, "").unwrap();
    for job in queue.iter().chain([&first, &bobs, &silent]) {
        cluster.completed(job);
    }
    let starts = [&bobs, &queue[0], &queue[1]].map(|job| started(job));
    assert!(starts.is_sorted_by(|one, other| one < other), "{starts:?}");
}

/// Jobs come all the time while a node is drained with a deadline and taken back.
#[test]
fn a_drain_under_load_loses_nothing_and_runs_nothing_twice() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["a", "b", "c"] {
        cluster.start_agent(&Agent::new(name).cpus(2));
    }
    let history = History::of(&cluster);
    let mut jobs: Vec<String> = Vec::new();
    for round in 0..3 {
        jobs.extend((0..8).map(|number| cluster.create(&history.job(0.1 * f64::from(number)))));
        let node = ["a", "b", "c"][round];
        let deadline = if round == 1 { "0s" } else { "1s" };
        let drain = ["node", "drain", node, "--reason", "update", "--deadline", deadline];
        cluster.atelier(drain).ok();
        jobs.extend((0..4).map(|_| cluster.create(&history.job(0.1))));
        until("its jobs have gone elsewhere", || {
            let shown = cluster.atelier(["node", "show", node, "-o", "json"]).ok().json();
            (shown["jobs"] == serde_json::json!([])).then_some(())
        });
        cluster.atelier(["node", "resume", node]).ok();
    }
    for job in &jobs {
        cluster.completed(job);
    }
    history.never_two_at_once();
}
