//! The workspace's certificate authority is replaced while all goes on, and wherever the daemon is killed meanwhile.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use atelier_agent::trust::Trust;
use serde_json::{Value, json};
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;

use crate::harness::{Agent, Cluster, Rpc, Settings, job_yaml, until};

/// A daemon that speaks TLS at an address that stays.
fn encrypted() -> Cluster {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serve = ["--tls", "on", "--listen", &free.to_string()].map(str::to_owned).to_vec();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    cluster
}

fn token(cluster: &Cluster, node: &str) -> String {
    let create = ["node", "token", "create", "--query", "token", "-o", "tsv", "--node", node];
    cluster.atelier(create).ok().word()
}

/// An agent that knows the daemon by what the token said of it, and what it learnt since.
fn joining(cluster: &Cluster, node: &str, token: &str) -> Agent {
    Agent::new(node).server(&cluster.server()).token(token)
}

fn kept(cluster: &Cluster, node: &str) -> Agent {
    Agent::new(node).server(&cluster.server()).no_token()
}

fn identity(cluster: &Cluster, node: &str) -> Value {
    let file = cluster.agent_data(node).join("identity.json");
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn status(cluster: &Cluster) -> Value {
    cluster.atelier(["ca", "status", "-o", "json"]).ok().json()
}

fn ca(cluster: &Cluster) -> String {
    cluster.atelier(["ca", "show"]).ok().stdout()
}

/// By which key a certificate is issued, and of which it is, as its extensions say.
fn keys(pem: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut issuer, mut own) = (Vec::new(), Vec::new());
    let first = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
    for extension in first.parse_x509().unwrap().extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(of) => {
                issuer = of.key_identifier.clone().unwrap().0.to_vec();
            }
            ParsedExtension::SubjectKeyIdentifier(of) => own = of.0.to_vec(),
            _ => {}
        }
    }
    (issuer, own)
}

/// The agent ends, and says why.
#[track_caller]
fn refused(cluster: &Cluster, agent: &Agent, says: &[&str]) {
    cluster.launch_agent(agent);
    until("the agent gives up", || cluster.agent(&agent.name, |agent| agent.ended()));
    cluster.agent(&agent.name, |agent| {
        for part in says {
            assert!(agent.said(part), "{part}: {}", agent.tail(5));
        }
    });
}

/// Logs a metric over a connection of its own, as programs with OpenSSL do, and prints what became of it.
const ASKS: &str = "\
curl -s -o /dev/null -w '%{http_code}\\n' --cacert $ATELIER_CA_FILE \
-H \"Authorization: Bearer $MLFLOW_TRACKING_TOKEN\" -H 'Content-Type: application/json' \
-d '{\"run_id\":\"'$MLFLOW_RUN_ID'\",\"key\":\"k\",\"value\":1,\"timestamp\":1}' \
$AZUREML_SERVICE_ENDPOINT/api/2.0/mlflow/runs/log-metric";

/// The command of a job that asks all the time.
fn asking(gate: &Path) -> String {
    format!("until [ -s {} ]; do {ASKS}; sleep 0.05; done", gate.display())
}

/// A job on the node whose agent has a token and the authorities' file.
fn on_local(cluster: &Cluster, command: &str) -> String {
    let command = job_yaml(command);
    cluster.create(&format!("{command}resources: {{node_labels: {{at: here}}}}\n"))
}

/// An admin's client, elsewhere, that knows these authorities alone.
fn elsewhere(cluster: &Cluster, authority: &Path) -> crate::harness::Cli {
    let cli = cluster.atelier(["job", "list"]).env("ATELIER_SERVER", cluster.server());
    cli.env("ATELIER_TOKEN", cluster.token()).env("ATELIER_CA_FILE", authority)
}

/// Ends what goes on beside, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn copied(cluster: &Cluster, name: &str, text: &str) -> PathBuf {
    cluster.write(name, text)
}

#[test]
fn an_authority_is_replaced_while_jobs_run_and_clients_ask() {
    let cluster = encrypted();
    for node in ["one", "away"] {
        cluster.start_agent(&joining(&cluster, node, &token(&cluster, node)));
    }
    cluster.agent("away", |agent| agent.stop());
    let [early, unused] = ["late", "never"].map(|node| token(&cluster, node));
    let old = copied(&cluster, "old.pem", &ca(&cluster));
    let server = cluster.server();
    let mut add = vec!["context", "add", "team", "--server", &server, "--ca-file"];
    add.push(old.to_str().unwrap());
    cluster.atelier(&add).stdin(cluster.token()).ok();
    let team = |command: &[&str]| cluster.atelier(["--context", "team"].iter().chain(command));

    let gate = cluster.shared_file("gate");
    let job = cluster.shell(&asking(&gate));
    let logs = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    logs.prints("200");
    cluster.start_agent(&Agent::new("local").with("--label=at=here"));
    let other = on_local(&cluster, &asking(&gate));
    cluster.running(&other);
    cluster.atelier(["ca", "retire"]).fails(1).says(&["no other", "atelier ca rotate"]);
    let before = identity(&cluster, "one");

    // Somebody asks all the time, each time anew, and knows the one before alone.
    let (over, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let (admin, known) = (cluster.token(), Trust::of_file(&old).unwrap());
    let new = std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let rpc = Rpc::trusting(&server, &admin, known.clone()).unwrap();
                rpc.jobs().unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        until("the client asks", || (asked.load(Ordering::Relaxed) > 2).then_some(()));
        let rotated = cluster.atelier(["ca", "rotate", "-o", "json"]).ok().json();
        assert!(rotated["previous"]["rotated_at"].is_string(), "{rotated}");
        until("the connected node has moved", || {
            (status(&cluster)["previous"]["nodes"] == json!(["away"])).then_some(())
        });
        let since = asked.load(Ordering::Relaxed);
        until("the client asks on", || (asked.load(Ordering::Relaxed) > since + 5).then_some(()));
        copied(&cluster, "new.pem", &ca(&cluster))
    });
    println!("{} requests, none failed", asked.load(Ordering::Relaxed));

    // The node's certificate is of the new one, which it knows, and it was kept as one.
    let after = identity(&cluster, "one");
    let text = fs::read_to_string(&new).unwrap();
    let certificate = |identity: &Value| {
        identity["proof"]["certificate"]["certificate"].as_str().unwrap().to_owned()
    };
    let (new_key, old_key) = (keys(&text).1, keys(&fs::read_to_string(&old).unwrap()).1);
    assert_eq!(keys(&certificate(&before)).0, old_key);
    assert_eq!(keys(&certificate(&after)).0, new_key);
    let both = format!("{text}{}", fs::read_to_string(&old).unwrap());
    assert_eq!(after["authority"], json!(both));
    assert_ne!(text, fs::read_to_string(&old).unwrap());
    elsewhere(&cluster, &new).ok();
    elsewhere(&cluster, &old).ok();

    // The one before is relied on still.
    cluster.atelier(["ca", "rotate"]).fails(1).says(&["atelier ca retire"]);
    cluster.atelier(["ca", "retire"]).fails(1).says(&["'away'", &job, "--force"]);
    let doctor = cluster.atelier(["doctor", "-o", "json"]).env("ATELIER_DATA_DIR", cluster.data());
    assert!(doctor.run().stdout().contains("atelier ca retire"));
    // A token from before opens, and who was away comes back.
    cluster.start_agent(&joining(&cluster, "late", &early));
    cluster.start_agent(&kept(&cluster, "away"));
    until("the node that was away has moved", || {
        (status(&cluster)["previous"]["nodes"] == json!([])).then_some(())
    });
    cluster.atelier(["ca", "retire"]).fails(1).says(&[&job]).never_says(&["away"]);
    team(&["context", "update", "team"]).ok();
    fs::write(&gate, "go").unwrap();
    for job in [&job, &other] {
        let ended = cluster.completed(job);
        assert_eq!(ended.attempt, 1, "{ended:?}");
        let log = String::from_utf8(cluster.log(job)).unwrap();
        assert!(log.lines().count() > 5 && log.lines().all(|code| code == "200"), "{log}");
    }
    logs.wait().ok();

    let retired = cluster.atelier(["ca", "retire", "-o", "json"]).ok().json();
    assert_eq!(retired["previous"], json!(null));
    elsewhere(&cluster, &new).ok();
    elsewhere(&cluster, &old).fails(4).says(&["not trusted here", "atelier ca rotate"]);
    team(&["job", "list"]).ok();
    cluster.completed(&cluster.shell("true"));
    // One without a certificate has come again, and its jobs know the new one.
    let later = on_local(&cluster, ASKS);
    cluster.completed(&later);
    assert_eq!(cluster.log(&later), b"200\n");
    refused(
        &cluster,
        &joining(&cluster, "never", &unused),
        &["is not the daemon that made the join token", "atelier ca retire"],
    );
    for node in ["one", "late", "away"] {
        cluster.agent(node, |agent| agent.kill());
    }
    cluster.restart_daemon_hard();
    for node in ["one", "late", "away"] {
        cluster.start_agent(&kept(&cluster, node));
    }
    assert_eq!(ca(&cluster), text);
    let audited = ["audit", "list", "--resource", "certificate-authority", "-o", "json"];
    let audited = cluster.atelier(audited).ok().json();
    let audited: Vec<&Value> = audited.as_array().unwrap().iter().map(|e| &e["action"]).collect();
    assert_eq!(audited, ["AuthorityService/RetireAuthority", "AuthorityService/RotateAuthority"]);
    cluster.atelier(["audit", "verify"]).ok();
}

#[test]
fn a_node_that_was_away_all_the_while_is_told_to_join_anew() {
    let cluster = encrypted();
    cluster.start_agent(&joining(&cluster, "away", &token(&cluster, "away")));
    cluster.agent("away", |agent| agent.kill());
    cluster.atelier(["ca", "rotate"]).ok();
    cluster.atelier(["ca", "retire"]).fails(1).says(&["'away'"]);
    cluster.atelier(["ca", "retire", "--force"]).ok();
    let says = ["authority that this node does not know", "node token create --node away"];
    refused(&cluster, &kept(&cluster, "away"), &says);
    // One that was given the new authority takes the daemon for it, and is not taken for the node.
    let given = format!("--ca-file={}", cluster.authority().display());
    let says = ["authority that issued it was retired", "node token create --node away"];
    refused(&cluster, &kept(&cluster, "away").with(&given), &says);
    cluster.start_agent(&joining(&cluster, "away", &token(&cluster, "away")));
    cluster.completed(&cluster.shell("true"));
}

#[test]
fn wherever_the_daemon_is_killed_there_is_one_authority_or_the_next() {
    let cluster = encrypted();
    let job_node = joining(&cluster, "one", &token(&cluster, "one"));
    cluster.start_agent(&job_node);
    let dies_at = |place: &str, command: &str| {
        let variable = ("ATELIER_FAILPOINT".to_owned(), place.to_owned());
        cluster.daemon(|daemon| daemon.kill());
        cluster.settings.borrow_mut().variables = vec![variable];
        cluster.start_daemon();
        let known = copied(&cluster, "known.pem", &ca(&cluster));
        // After its start the daemon has seen no node yet.
        let force = (command == "retire").then_some("--force");
        cluster.atelier(["ca", command].into_iter().chain(force)).run();
        until("the daemon dies", || cluster.daemon(|daemon| daemon.ended()));
        cluster.settings.borrow_mut().variables = Vec::new();
        cluster.start_daemon();
        // Who knew the daemon before knows it now, and the node comes back by itself.
        elsewhere(&cluster, &known).ok();
        elsewhere(&cluster, &cluster.authority()).ok();
        cluster.node_is_ready("one");
        assert!(!cluster.data().join("tls/ca.key.next").exists(), "{place}");
    };
    let moved = || {
        until("the node has moved", || {
            (status(&cluster)["previous"]["nodes"] == json!([])).then_some(())
        });
    };
    for (place, took_over) in
        [("ca-key-written", false), ("ca-link-written", false), ("ca-named", true)]
    {
        let before = ca(&cluster);
        dies_at(place, "rotate");
        assert_eq!(ca(&cluster) != before, took_over, "{place}");
        if !took_over {
            cluster.atelier(["ca", "rotate"]).ok();
        }
        moved();
        cluster.completed(&cluster.shell("true"));
        cluster.atelier(["ca", "retire"]).ok();
    }
    for (place, is_over) in [("ca-retired-written", false), ("ca-retired", true)] {
        cluster.atelier(["ca", "rotate"]).ok();
        moved();
        dies_at(place, "retire");
        assert_eq!(status(&cluster)["previous"] == json!(null), is_over, "{place}");
        if !is_over {
            moved();
            cluster.atelier(["ca", "retire"]).ok();
        }
        cluster.completed(&cluster.shell("true"));
    }
    // A node that loses its certificate's answer has the one before, whole.
    cluster.agent("one", |agent| agent.kill());
    cluster.start_agent(&kept(&cluster, "one").variable("ATELIER_FAILPOINT", "renewed"));
    let before = identity(&cluster, "one");
    cluster.atelier(["ca", "rotate"]).ok();
    until("the agent dies", || cluster.agent("one", |agent| agent.ended()));
    assert_eq!(identity(&cluster, "one"), before);
    cluster.start_agent(&kept(&cluster, "one"));
    moved();
    assert_ne!(identity(&cluster, "one"), before);
    cluster.completed(&cluster.shell("true"));
}
