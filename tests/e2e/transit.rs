//! The vault's key in transit of a real OpenBao.

use std::path::PathBuf;

use serde_json::json;

use crate::harness::{Agent, Bao, Cluster, Process, until};
use crate::secrets::{set, with};

const CANARY: &str = "canary-9Kd3tYw2RmXc6VnQ";

fn restart(cluster: &Cluster, arguments: &[&str]) {
    cluster.daemon(Process::stop);
    cluster.settings.borrow_mut().serve = arguments.iter().map(|&word| word.to_owned()).collect();
    cluster.start_daemon();
}

/// Writes down that it got the value.
fn job(cluster: &Cluster, name: &str) -> String {
    let told = cluster.files().join(name);
    cluster.create(&format!(
        "command: test \"$DB\" = {CANARY} && touch {}\nenvironment_variables:\n  DB: azureml:secrets/db\n",
        told.display()
    ))
}

#[test]
fn bao_has_the_key_of_secrets_that_jobs_use() {
    let bao = Bao::start();
    let token = bao.token();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    set(&cluster, "db", CANARY);
    let status = |query: &str| cluster.atelier(["vault", "status", "--query", query]).ok().json();
    let file = status("source").as_str().unwrap().to_owned();

    // From the file to the server.
    let url = bao.url();
    let at =
        ["--vault-transit-address", url.as_str(), "--vault-transit-token", "env:TRANSIT_TOKEN"];
    let key = ["--vault-key", "transit:transit/atelier"];
    let there = [&key[..], &at[..]].concat();
    cluster.settings.borrow_mut().variables = vec![
        ("TRANSIT_TOKEN".to_owned(), token.clone()),
        ("ATELIER_LOG".to_owned(), "debug".to_owned()),
    ];
    restart(&cluster, &[&there[..], &["--vault-old-key", &file]].concat());
    assert_eq!(cluster.atelier(["vault", "rotate", "-o", "json"]).ok().json()["versions"], 1);
    restart(&cluster, &there);
    assert_eq!(status("key"), "transit:transit/atelier:v1");
    assert_eq!(status("keys[].[versions, is_newest]"), json!([[1, true]]));
    cluster.completed(&job(&cluster, "one"));

    // A daemon starts while the server is sealed, says so, and a job waits.
    bao.seal();
    restart(&cluster, &there);
    let problem = status("problem").as_str().unwrap().to_owned();
    assert!(problem.contains("sealed") && problem.contains(&url), "{problem}");
    until("the daemon's log says so", || {
        cluster.daemon(|daemon| daemon.said("is sealed")).then_some(())
    });
    cluster
        .atelier(["secret", "set", "other"])
        .stdin("x")
        .fails(4)
        .says(&["sealed", "transit/atelier"]);
    let waits = job(&cluster, "two");
    until("the agent asks again for the job's secret", || {
        let told = cluster.agent("local", |agent| agent.said("cannot get a job's secrets"));
        told.then_some(())
    });
    // Whose job it is sees why it does not start.
    let said = cluster.atelier(["job", "stream", &waits, "-q"]).spawn();
    said.prints("waiting for the job's secrets");
    bao.unseal();
    cluster.completed(&waits);
    assert_eq!(status("problem"), json!(null));

    // A new version of the key, and back to a file.
    bao.ask("POST transit/keys/atelier/rotate", &json!({}));
    assert_eq!(status("keys[].is_newest"), json!([false]));
    let rotated = cluster.atelier(["vault", "rotate", "-o", "json"]).ok().json();
    let key_2 = "transit:transit/atelier:v2";
    assert_eq!(
        rotated,
        json!({"key": key_2, "versions": 1, "total": 1, "damaged": [], "damaged_total": 0})
    );
    let both = ["--vault-key", file.as_str(), "--vault-old-key", key[1]];
    restart(&cluster, &[&both[..], &at[..]].concat());
    assert_eq!(cluster.atelier(["vault", "rotate", "-o", "json"]).ok().json()["versions"], 1);
    restart(&cluster, &["--vault-key", &file]);
    cluster.completed(&job(&cluster, "three"));
    for name in ["one", "two", "three"] {
        assert!(cluster.files().join(name).exists(), "{name}");
    }
    // Neither the token nor the value is in a log, whatever is logged, or on a disk.
    for text in [token.as_str(), CANARY] {
        for folder in [cluster.data(), cluster.path().join("logs")] {
            let of_jobs =
                |path: &PathBuf| path.ends_with("atelier.db") || path.ends_with("atelier.db-wal");
            let found: Vec<PathBuf> = with(&folder, text.as_bytes());
            // The jobs' commands have the value to compare with.
            let found: Vec<&PathBuf> =
                found.iter().filter(|path| text == token || !of_jobs(path)).collect();
            assert!(found.is_empty(), "{text}: {found:?}");
        }
    }
}

#[test]
fn bao_that_denies_is_told_and_stops_nothing_else() {
    let bao = Bao::start();
    let cluster = Cluster::empty();
    let url = bao.url();
    let serve = [
        "--vault-key",
        "transit:transit/atelier",
        "--vault-transit-address",
        &url,
        "--vault-transit-token",
        "env:TRANSIT_TOKEN",
    ];
    cluster.settings.borrow_mut().serve = serve.map(str::to_owned).to_vec();
    // What lies with the daemon must be right when it starts.
    cluster.launch_daemon();
    until("the daemon refuses to start", || cluster.daemon(|daemon| daemon.ended()));
    let said = cluster.daemon(|daemon| daemon.tail(5));
    assert!(said.contains("env:TRANSIT_TOKEN") && said.contains("there is none"), "{said}");

    let variable = |token: &str| vec![("TRANSIT_TOKEN".to_owned(), token.to_owned())];
    cluster.settings.borrow_mut().variables = variable("s.wrong");
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let job = cluster.create("command: 'true'\n");
    cluster.completed(&job);
    cluster.atelier(["secret", "set", "db"]).stdin("x").fails(1).says(&["denies it", "policy"]);
    until("the daemon's log says so", || {
        cluster.daemon(|daemon| daemon.said("denies it")).then_some(())
    });
    cluster.daemon(Process::stop);
    cluster.settings.borrow_mut().variables = variable(&bao.token());
    cluster.start_daemon();
    set(&cluster, "db", "x");
}
