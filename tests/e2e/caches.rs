//! What nodes keep of what they built and fetched.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, Process, until};

/// Two environments that need no package index.
const IMAGE: &str = "{image: 'python:3'}";
const CONDA: &str = "{conda_file: {dependencies: [python]}}";

fn kept(cluster: &Cluster) -> Value {
    cluster.atelier(["node", "cache", "show", "local", "-o", "json"]).ok().json()
}

/// In how much use each thing of this kind is.
fn uses(cache: &Value, list: &str, kind: &str) -> Vec<u64> {
    let entries = cache[list].as_array().unwrap().iter().filter(|entry| entry["kind"] == kind);
    entries.map(|entry| entry["in_use"].as_u64().unwrap()).collect()
}

fn prune(cluster: &Cluster, more: &[&str]) -> Value {
    let words = ["node", "cache", "prune", "local", "-o", "json"];
    cluster.atelier(words.iter().chain(more)).ok().json()
}

/// A job that goes on until the file is there, and uses its environment then.
fn waits_for(file: &Path, environment: &str) -> String {
    format!(
        "command: |\n  echo begun\n  while [ ! -e {} ]; do sleep 0.05; done\n  \
         python -c 'import sys; print(\"ran in\", sys.prefix)'\nenvironment: {environment}\n",
        file.display()
    )
}

fn at_work(cluster: &Cluster, job: &str) {
    let following = cluster.atelier(["job", "stream", job]).spawn();
    following.prints("begun");
}

#[test]
fn what_a_job_uses_stays_and_the_rest_goes_when_asked() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // As on another machine: code and inputs come over the network and are kept.
    let agent = Agent::new("local").with("--no-shared-store");
    cluster.start_agent(&agent);
    let empty = kept(&cluster);
    assert_eq!((&empty["node"], &empty["entries"]), (&json!("local"), &json!([])));
    assert!(empty["environments"]["limit_bytes"].as_u64().unwrap() > 0, "{empty}");

    cluster.write("code/main.py", "print('from the code')\n");
    let first = format!("command: python main.py\ncode: code\nenvironment: {IMAGE}\n");
    let done = cluster.create(&first);
    cluster.completed(&done);
    let go = cluster.files().join("go");
    let second = cluster.create(&waits_for(&go, CONDA));
    at_work(&cluster, &second);
    let cache = until("one of two environments is in use", || {
        let cache = kept(&cluster);
        let mut uses = uses(&cache, "entries", "environment");
        uses.sort_unstable();
        (uses == [0, 1]).then_some(cache)
    });
    assert_eq!(uses(&cache, "entries", "code").len(), 1, "{cache}");
    let bytes = |cache: &Value| cache["environments"]["bytes"].as_u64().unwrap();
    assert!(bytes(&cache) > 10_000, "{cache}");
    let table = cluster.atelier(["node", "cache", "show", "local"]).ok();
    assert!(table.stdout().contains("Python 3."), "{}", table.stdout());
    table.says(&["environments and packages", "of at most"]);

    // The node's next agent knows what its attempts use.
    cluster.agent("local", Process::kill);
    cluster.start_agent(&agent);
    // The daemon may have taken the killed agent's session for the new one's.
    until("the new agent can be asked", || {
        cluster.atelier(["node", "cache", "show", "local"]).run().status.success().then_some(())
    });
    assert_eq!(prune(&cluster, &["--all", "--older-than", "7d"])["removed"], json!([]));
    let pruned = prune(&cluster, &[]);
    assert_eq!(uses(&pruned, "removed", "environment"), [0]);
    assert_eq!(uses(&pruned, "entries", "environment"), [1]);
    assert_eq!(uses(&pruned, "entries", "code").len(), 1, "environments only: {pruned}");
    assert!(bytes(&pruned) < bytes(&cache), "{pruned}");
    std::fs::write(&go, "").unwrap();
    cluster.completed(&second);
    let log = String::from_utf8_lossy(&cluster.log(&second)).into_owned();
    assert!(log.contains("ran in /"), "{log}");

    until("nothing is in use", || {
        prune(&cluster, &["--all"]);
        let cache = kept(&cluster);
        (cache["entries"] == json!([])).then_some(())
    });
    // What was removed is made again.
    let again = cluster.create(&first);
    cluster.completed(&again);
    assert!(String::from_utf8_lossy(&cluster.log(&again)).contains("from the code"));
    let table = cluster.atelier(["node", "cache", "prune", "local", "--older-than", "1h"]).ok();
    table.says(&["Removed 0 B. Left: environments"]);
}

#[test]
fn environments_keep_to_their_bound() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = Agent::new("local").with("--environment-cache").with("1KiB");
    cluster.start_agent(&agent);
    let first = cluster.create(&format!("command: 'true'\nenvironment: {IMAGE}\n"));
    cluster.completed(&first);
    let go = cluster.files().join("go");
    let second = cluster.create(&waits_for(&go, CONDA));
    at_work(&cluster, &second);
    // What is in use stays, though it is beyond the bound by itself.
    until("only what is in use is left", || {
        let cache = kept(&cluster);
        assert_eq!(cache["environments"]["limit_bytes"], 1024);
        let uses = uses(&cache, "entries", "environment");
        assert!(uses.contains(&1), "{cache}");
        (uses == [1]).then_some(())
    });
    std::fs::write(&go, "").unwrap();
    cluster.completed(&second);
    until("it is not in use", || {
        (uses(&kept(&cluster), "entries", "environment") == [0]).then_some(())
    });
    // An agent that starts looks at its bound.
    cluster.agent("local", Process::stop);
    cluster.start_agent(&agent);
    until("nothing is left", || (kept(&cluster)["entries"] == json!([])).then_some(()));
}

#[test]
fn a_node_that_cannot_be_asked_is_told_with_what_to_do() {
    let cluster = Cluster::start();
    let server = cluster.server();
    let reader = cluster.token_for("rita", "reader");
    let with = |words: &[&str]| {
        let cache = ["node", "cache"].iter().chain(words);
        cluster.atelier_at(&server, cache).env("ATELIER_TOKEN", &reader)
    };
    with(&["show", "local"]).ok();
    with(&["prune", "local"]).fails(5).says(&["rita"]);
    cluster.atelier(["node", "cache", "show", "nowhere"]).fails(3).says(&["no node 'nowhere'"]);
    let words = ["node", "cache", "prune", "local", "--older-than", "a while"];
    cluster.atelier(words).fails(2).says(&["7d"]);
    cluster.agent("local", Process::stop);
    let says = ["no session with the daemon", "atelier node show local"];
    until("the daemon knows that it left", || {
        let shown = cluster.atelier(["node", "cache", "show", "local"]).run();
        (shown.status.code() == Some(1)).then(|| shown.says(&says))
    });
    cluster.atelier(["node", "cache", "prune", "local"]).fails(1).says(&says);
}
