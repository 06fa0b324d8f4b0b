//! Machines become nodes by tokens that open once, and nodes are cut off.

use std::fs;
use std::iter;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, Settings, until};

fn serve(arguments: &[&str]) -> Settings {
    let serve = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Settings { serve, ..Settings::default() }
}

/// A daemon that speaks TLS on loopback, and is asked by its name there: nothing but the token says who it is.
fn encrypted(more: &[&str]) -> Cluster {
    let cluster = Cluster::with(serve(&[&["--tls", "on"], more].concat()));
    cluster.start_daemon();
    cluster
}

/// A join token, as an admin makes it.
fn token(cluster: &Cluster, arguments: &[&str]) -> String {
    let create = ["node", "token", "create", "--query", "token", "-o", "tsv"];
    cluster.atelier(create.iter().chain(arguments)).ok().word()
}

/// An agent that is given the token as people do it, and no file of an authority.
fn joining(cluster: &Cluster, node: &str, token: &str) -> Agent {
    Agent::new(node).server(&cluster.server()).token(token)
}

fn identity(cluster: &Cluster, node: &str) -> PathBuf {
    cluster.agent_data(node).join("identity.json")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
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

#[test]
fn a_machine_joins_once_with_a_token_and_is_known_by_its_certificate() {
    let cluster = encrypted(&[]);
    let bound = token(&cluster, &["--node", "first", "--compute", "local", "--expires", "10m"]);
    let first = joining(&cluster, "first", &bound);
    cluster.start_agent(&first);
    cluster.completed(&cluster.shell("echo here"));
    let kept = identity(&cluster, "first");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!cluster.agent_data("first").join("joining.json").exists());
    let key = read(&kept)["proof"]["certificate"]["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "no key");
    // Neither the token nor the key is where the daemon keeps things, or in what anybody logged.
    let secret = bound.split('.').next().unwrap();
    let lines: Vec<&str> = key.lines().collect();
    for name in [
        "home/local/atelier.db",
        "home/local/atelier.db-wal",
        "logs/daemon.log",
        "logs/agent-first.log",
    ] {
        let Ok(held) = fs::read(cluster.path().join(name)) else { continue };
        for part in [secret, lines[1]] {
            let found = held.windows(part.len()).any(|held| held == part.as_bytes());
            assert!(!found, "{name} holds a secret");
        }
    }

    // Started anew it needs no token; the one that it was started with does no harm.
    for agent in [Agent::new("first").server(&cluster.server()).no_token(), first] {
        cluster.agent("first", |agent| agent.kill());
        cluster.start_agent(&agent);
        cluster.completed(&cluster.shell("echo again"));
    }
    // The daemon started anew knows it by the same.
    cluster.restart_daemon_hard();
    cluster.agent("first", |agent| agent.kill());
    cluster.start_agent(&Agent::new("first").server(&cluster.server()).no_token());
    cluster.completed(&cluster.shell("echo after"));

    // Nobody else joins with it, under this name or another.
    refused(
        &cluster,
        &joining(&cluster, "thief", &bound),
        &["already used, at 20", "by node 'first'"],
    );
    let elsewhere = cluster.path().join("elsewhere");
    let again = joining(&cluster, "first", &bound).data(&elsewhere);
    cluster.agent("first", |agent| agent.kill());
    refused(&cluster, &again, &["already used, at 20", "atelier node token create"]);
    assert!(!elsewhere.join("identity.json").exists());

    // The audit log tells who let it in, and that others were refused.
    let told = |resource: &str| audited(&cluster, &["--resource", resource]);
    let joined = told("node/first");
    assert_eq!(joined.len(), 1, "{joined:?}");
    assert_eq!(joined[0]["action"], "NodeIdentityService/JoinNode");
    assert_eq!(
        (&joined[0]["principal"], &joined[0]["after"]["compute"]),
        (&json!("node:first"), &json!("local"))
    );
    let of_token: Vec<Value> = told("join-token");
    let who: Vec<&Value> = of_token.iter().map(|entry| &entry["principal"]).collect();
    assert_eq!(who, [&json!("node:first"), &json!("admin")]);
    assert_eq!(of_token[0]["after"]["created_by"], "admin");
    until("the refusals are told", || {
        let refused = audited(&cluster, &["--principal", "unknown", "--action", "JoinNode"]);
        let says = |entry: &Value| entry["refused"].to_string().contains("already used");
        refused.iter().any(says).then_some(())
    });
    cluster.atelier(["audit", "verify"]).ok();
}

fn audited(cluster: &Cluster, filters: &[&str]) -> Vec<Value> {
    let list = ["audit", "list", "--limit", "1000", "-o", "json"].iter().chain(filters);
    serde_json::from_value(cluster.atelier(list).ok().json()).unwrap()
}

#[test]
fn a_token_joins_whom_it_is_for_and_while_it_lasts() {
    let cluster = encrypted(&["--compute", "local", "--compute", "gpu"]);
    let create = ["node", "token", "create"];
    cluster
        .atelier(create.iter().chain(&["--compute", "none"]))
        .fails(3)
        .says(&["no compute 'none'"]);
    cluster.atelier(create.iter().chain(&["--expires", "8d"])).fails(1).says(&["at most 7 days"]);
    let bound = token(&cluster, &["--node", "right", "--compute", "gpu"]);
    refused(&cluster, &joining(&cluster, "wrong", &bound), &["for node 'right'", "--node right"]);
    refused(&cluster, &joining(&cluster, "right", &bound), &["for compute 'gpu'", "--compute gpu"]);
    // A refusal uses nothing up.
    let right = joining(&cluster, "right", &bound).compute("gpu");
    cluster.start_agent(&right);
    // And it stays where it was let in.
    cluster.agent("right", |agent| agent.kill());
    refused(&cluster, &joining(&cluster, "right", &bound), &["let in for the compute 'gpu'"]);

    let short = token(&cluster, &["--node", "early", "--expires", "1s"]);
    until("the token has expired", || {
        cluster.launch_agent(&joining(&cluster, "late", &short));
        until("the agent ends", || cluster.agent("late", |agent| agent.ended()));
        cluster.agent("late", |agent| agent.said("has expired, at 20")).then_some(())
    });
    // A token for nobody in particular is not for a name that a node has.
    let open = token(&cluster, &[]);
    let unknown = format!("atj_unknown.{}", open.split_once('.').unwrap().1);
    refused(&cluster, &joining(&cluster, "late", &unknown), &["not known here"]);
    cluster.start_agent(&Agent::new("lasting").server(&cluster.server()).with(&ca(&cluster)));
    cluster.agent("lasting", |agent| agent.kill());
    let other = cluster.path().join("other");
    let taken = joining(&cluster, "lasting", &open).data(&other);
    refused(&cluster, &taken, &["a node 'lasting' already", "--node lasting"]);
    // With one for it the node moves from its token to a certificate.
    let own = token(&cluster, &["--node", "lasting"]);
    cluster.start_agent(&joining(&cluster, "lasting", &own).data(&other));
    cluster.agent("lasting", |agent| agent.kill());
    refused(
        &cluster,
        &Agent::new("lasting").server(&cluster.server()).with(&ca(&cluster)),
        &["not valid here"],
    );

    // Who answers must be the daemon that made the token.
    let foreign = encrypted(&[]);
    let wrong = joining(&cluster, "lost", &token(&foreign, &[]));
    refused(&cluster, &wrong, &["is not the daemon that made the join token"]);
    // A token that lasts is not for the command line.
    let lasting = cluster.token_for("secret", "node");
    refused(&cluster, &joining(&cluster, "secret", &lasting), &["--token-file"]);
    cluster.agent("secret", |agent| assert!(!agent.said(&lasting), "the log holds a token"));
}

fn ca(cluster: &Cluster) -> String {
    format!("--ca-file={}", cluster.authority().display())
}

#[test]
fn an_answer_that_was_lost_is_given_again() {
    let cluster = encrypted(&[]);
    let once = token(&cluster, &[]);
    let dies = joining(&cluster, "one", &once).variable("ATELIER_FAILPOINT", "joined");
    cluster.launch_agent(&dies);
    until("the agent dies", || cluster.agent("one", |agent| agent.ended()));
    assert!(!identity(&cluster, "one").exists());
    // The daemon has let it in; nobody else gets in now, and the machine itself does.
    refused(&cluster, &joining(&cluster, "two", &once), &["already used"]);
    cluster.restart_daemon_hard();
    cluster.start_agent(&joining(&cluster, "one", &once));
    cluster.completed(&cluster.shell("true"));
}

#[test]
fn without_tls_a_node_joins_with_a_token_of_its_own() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let once = token(&cluster, &[]);
    assert!(!once.contains('.'), "a fingerprint of nothing");
    let dies = joining(&cluster, "one", &once).variable("ATELIER_FAILPOINT", "joined");
    cluster.launch_agent(&dies);
    until("the agent dies", || cluster.agent("one", |agent| agent.ended()));
    cluster.start_agent(&joining(&cluster, "one", &once));
    refused(&cluster, &joining(&cluster, "two", &once), &["already used", "by node 'one'"]);
    cluster.agent("one", |agent| agent.kill());
    cluster.restart_daemon_hard();
    cluster.start_agent(&Agent::new("one").server(&cluster.server()).no_token());
    cluster.completed(&cluster.shell("true"));
    // Cut off it is out, and what it has is worth nothing.
    cluster.atelier(["node", "revoke", "one"]).ok();
    let revoked = audited(&cluster, &["--action", "RevokeNode", "--principal", "admin"]);
    let of: Vec<&str> = revoked.iter().map(|entry| entry["resource"].as_str().unwrap()).collect();
    assert_eq!(of, ["node/one", "token/node:one"]);
    assert!(revoked[0]["before"]["revoked_at"].is_null(), "{revoked:?}");
    assert!(revoked[0]["after"]["revoked_at"].is_number(), "{revoked:?}");
    cluster.agent("one", |agent| agent.kill());
    refused(&cluster, &Agent::new("one").server(&cluster.server()).no_token(), &["not valid here"]);
}

#[test]
fn certificates_are_renewed_while_jobs_run_on() {
    let cluster = encrypted(&["--node-certificate-life", "15s"]);
    cluster.start_agent(&joining(&cluster, "one", &token(&cluster, &[])));
    let until_of = || read(&identity(&cluster, "one"))["proof"]["certificate"]["until"].clone();
    let first = until_of();
    let gate = cluster.shared_file("gate");
    let job = cluster.shell(&format!("until [ -s {} ]; do sleep 0.1; done", gate.display()));
    cluster.running(&job);
    for _ in 0..2 {
        let before = until_of();
        until("the node has its next certificate", || (until_of() != before).then_some(()));
    }
    assert_ne!(until_of(), first);
    fs::write(&gate, "go").unwrap();
    let job = cluster.completed(&job);
    assert_eq!(job.attempt, 1, "{job:?}");
    // One that ran out while it could not be renewed opens nothing, and the agent says what to do.
    cluster.agent("one", |agent| agent.kill());
    cluster.daemon(|daemon| daemon.kill());
    let without = Agent::new("one").server(&cluster.server()).no_token();
    refused(&cluster, &without, &["certificate expired at 20", "node token create --node one"]);
    cluster.start_daemon();
    let anew = token(&cluster, &["--node", "one"]);
    cluster.start_agent(&joining(&cluster, "one", &anew));
}

#[test]
fn a_node_that_is_revoked_is_out_and_its_job_goes_elsewhere() {
    let cluster = encrypted(&["--lease", "4", "--grace", "1"]);
    cluster.start_agent(&joining(&cluster, "bad", &token(&cluster, &[])));
    // Writes as long as it is let.
    let told = cluster.shared_file("told");
    let script = format!(
        "while [ $ATELIER_ATTEMPT = 1 ]; do \
         curl -s -o /dev/null -w '%{{http_code}}\\n' --cacert $ATELIER_CA_FILE \
         -H \"Authorization: Bearer $MLFLOW_TRACKING_TOKEN\" -H 'Content-Type: application/json' \
         -d '{{\"run_id\":\"'$MLFLOW_RUN_ID'\",\"key\":\"k\",\"value\":1,\"timestamp\":1}}' \
         $AZUREML_SERVICE_ENDPOINT/api/2.0/mlflow/runs/log-metric >> {}; sleep 0.05; done",
        told.display()
    );
    let job = cluster.shell(&script);
    let codes = || fs::read_to_string(&told).unwrap_or_default();
    until("the job logs", || codes().contains("200").then_some(()));
    let revoked = cluster.atelier(["node", "revoke", "bad", "-o", "json"]).ok().json();
    assert_eq!(revoked["attempts"], 1, "{revoked}");
    // The answer is after the cut: what was asked from then on is refused.
    let seen = codes().lines().count();
    until("the job is refused", || {
        let after: Vec<String> = codes().lines().skip(seen + 1).map(str::to_owned).collect();
        assert!(!after.iter().any(|code| code == "200"), "{after:?}");
        (after.len() > 2).then_some(())
    });
    until("the agent is out", || {
        cluster.agent("bad", |agent| agent.said("was revoked, at 20")).then_some(())
    });
    cluster.daemon(|daemon| assert!(daemon.said("node was cut off"), "{}", daemon.tail(9)));
    cluster
        .atelier(["node", "revoke", "nobody"])
        .fails(3)
        .says(&["no node 'nobody'", "token list"]);
    // Once its lease is over the job runs elsewhere.
    cluster.start_agent(&joining(&cluster, "good", &token(&cluster, &[])));
    let ended = cluster.completed(&job);
    assert_eq!(ended.attempt, 2, "{ended:?}");
    assert_eq!(ended.status(), JobStatus::Completed);

    // It stays out, after a restart too, and comes back with a token for its name.
    cluster.restart_daemon_hard();
    cluster.agent("bad", |agent| agent.kill());
    let without = Agent::new("bad").server(&cluster.server()).no_token();
    refused(&cluster, &without, &["was revoked, at 20", "atelier node token create --node bad"]);
    refused(&cluster, &joining(&cluster, "bad", &token(&cluster, &[])), &["was revoked"]);
    let back = joining(&cluster, "bad", &token(&cluster, &["--node", "bad"]));
    cluster.start_agent(&back);
}

#[test]
fn join_tokens_are_listed_and_deleted_and_a_name_that_nobody_joined_is_revoked() {
    let cluster = encrypted(&[]);
    let create = ["node", "token", "create", "-o", "json", "--node", "gpu-1", "--compute", "local"];
    let made = cluster.atelier(create).ok().json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (secret, id) = (text(&made["token"]), text(&made["id"]));
    let open = token(&cluster, &[]);
    let list = || cluster.atelier(["node", "token", "list", "-o", "json"]).ok();
    let listed = list();
    let secrets = [&secret, &open].map(|token| token.split('.').next().unwrap().to_owned());
    assert!(secrets.iter().all(|secret| !listed.stdout().contains(secret)));
    let listed = listed.json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let bound = listed.as_array().unwrap().iter().find(|token| token["id"] == json!(id)).unwrap();
    let what = (&bound["node"], &bound["compute"], &bound["created_by"]);
    assert_eq!(what, (&json!("gpu-1"), &json!("local"), &json!("admin")));
    assert_eq!(bound["expires_at"], made["expires_at"]);
    let table = cluster.atelier(["node", "token", "list"]).ok().stdout();
    assert!([&*id, "gpu-1", "any"].iter().all(|part| table.contains(part)), "{table}");
    cluster.atelier(["node", "token", "delete", &id]).ok();
    cluster.atelier(["node", "token", "delete", &id]).fails(3).says(&["node token list"]);
    refused(&cluster, &joining(&cluster, "gpu-1", &secret), &["not known here"]);
    // What was used opens nothing, and is not listed.
    cluster.start_agent(&joining(&cluster, "one", &open));
    assert_eq!(list().json(), json!([]));
    // Nobody has joined under the name: its tokens go, and it is not taken from then on.
    let bound = token(&cluster, &["--node", "gpu-1"]);
    let revoked = cluster.atelier(["node", "revoke", "gpu-1", "-o", "json"]).ok();
    assert_eq!(revoked.json()["join_tokens"], 1);
    cluster.atelier(["node", "revoke", "gpu-1"]).fails(3).says(&["no node 'gpu-1'", "token list"]);
    refused(&cluster, &joining(&cluster, "gpu-1", &bound), &["not known here"]);
    cluster.start_agent(&joining(&cluster, "gpu-1", &token(&cluster, &[])));
    let deleted = audited(&cluster, &["--action", "DeleteJoinToken", "--principal", "admin"]);
    assert_eq!(deleted[0]["resource"], json!(format!("join-token/{id}")));
}

/// Files of a node's certificate and key, as its agent has them.
fn shown_by(cluster: &Cluster, node: &str) -> [PathBuf; 2] {
    let proof = read(&identity(cluster, node))["proof"]["certificate"].clone();
    ["certificate", "key"]
        .map(|part| cluster.write(&format!("{node}.{part}.pem"), proof[part].as_str().unwrap()))
}

/// What the daemon answers to a node that writes metrics of jobs: gRPC's code.
fn writes(cluster: &Cluster, [certificate, key]: &[PathBuf; 2]) -> String {
    let empty = cluster.write("empty", [0_u8; 5]);
    let url = format!("{}/atelier.agent.v1.AgentService/RecordMetrics", cluster.server());
    let ask = || {
        std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-D", "-", "--http2", "--max-time", "20"])
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            .arg("--cacert")
            .arg(cluster.authority())
            .arg("--cert")
            .arg(certificate)
            .arg("--key")
            .arg(key)
            .arg("--data-binary")
            .arg(format!("@{}", empty.display()))
            .arg(&url)
            .output()
            .unwrap()
    };
    // A refusal at the door does not wait for the body, and says so by a reset after the answer
    // (RFC 9113, section 8.1). When that overtakes the body, curl drops the answer (its status 92).
    let mut answers = iter::repeat_with(ask).take(10);
    let asked = answers.find(|asked| asked.status.code() != Some(92));
    let asked = asked.expect("one of ten tries has an answer");
    let said = String::from_utf8_lossy(&asked.stdout).to_ascii_lowercase();
    let code = said.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    code.unwrap_or_else(|| panic!("{said} {asked:?}")).trim().to_owned()
}

#[test]
fn what_a_node_asks_after_its_revocation_has_returned_is_refused() {
    use atelier_proto::node::v1::RevokeNodeRequest;

    let cluster = encrypted(&[]);
    cluster.start_agent(&joining(&cluster, "bad", &token(&cluster, &[])));
    let told = cluster.shared_file("token");
    let job = cluster.shell(&format!(
        "echo $MLFLOW_TRACKING_TOKEN > {}; while :; do sleep 1; done",
        told.display()
    ));
    let read = || fs::read_to_string(&told).ok().filter(|token| token.ends_with('\n'));
    let own = until("the job runs", read);
    let shown = shown_by(&cluster, "bad");
    assert_eq!(writes(&cluster, &shown), "0");
    let asks = || {
        let body = format!("{{\"run_id\":\"{job}\",\"key\":\"k\",\"value\":1,\"timestamp\":1}}");
        let url = format!("{}/api/2.0/mlflow/runs/log-metric", cluster.server());
        let asked = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", "--cacert"])
            .arg(cluster.authority())
            .args(["-H", &format!("Authorization: Bearer {}", own.trim())])
            .args(["-H", "Content-Type: application/json", "-d", &body, &url])
            .output();
        String::from_utf8(asked.unwrap().stdout).unwrap()
    };
    assert_eq!(asks(), "200");
    let rpc = cluster.rpc();
    let begun = std::time::Instant::now();
    let request = RevokeNodeRequest { name: "bad".to_owned() };
    let revoked = rpc.wait(rpc.client.call(rpc.client.nodes().revoke_node(request))).unwrap();
    let answered = begun.elapsed();
    // The very next requests, of the node and of its job.
    let (node, job) = (writes(&cluster, &shown), asks());
    let refused = begun.elapsed();
    assert_eq!((revoked.attempts, &*node), (1, "16"));
    // It is told so, or cut off before it hears it.
    assert!(matches!(&*job, "401" | "000"), "{job}");
    // What it had open has ended at both ends.
    until("the daemon hears it no more", || {
        cluster.daemon(|daemon| daemon.said("session ended")).then_some(())
    });
    until("the node hears of it", || {
        cluster.agent("bad", |agent| agent.said("no session with the daemon")).then_some(())
    });
    let cut = begun.elapsed();
    println!("revoked in {answered:?}, refused by {refused:?}, the session cut by {cut:?}");
    assert_eq!(writes(&cluster, &shown), "16");
}

#[test]
fn a_gang_writes_again_once_each_of_its_nodes_is_let_in_again() {
    let cluster = encrypted(&["--lease", "120"]);
    for node in ["a", "b"] {
        cluster.start_agent(&joining(&cluster, node, &token(&cluster, &["--node", node])));
    }
    let told = cluster.shared_file("told");
    let gate = cluster.shared_file("gate");
    let script = format!(
        "[ $AZUREML_CR_NODE_RANK = 0 ] || until [ -s {gate} ]; do sleep 0.05; done\n\
         until [ -s {gate} ]; do \
         curl -s -o /dev/null -w '%{{http_code}}\\n' --cacert $ATELIER_CA_FILE \
         -H \"Authorization: Bearer $MLFLOW_TRACKING_TOKEN\" -H 'Content-Type: application/json' \
         -d '{{\"run_id\":\"'$MLFLOW_RUN_ID'\",\"key\":\"k\",\"value\":1,\"timestamp\":1}}' \
         $AZUREML_SERVICE_ENDPOINT/api/2.0/mlflow/runs/log-metric >> {told}; sleep 0.05; done",
        gate = gate.display(),
        told = told.display()
    );
    let job = cluster.create(&crate::gangs::gang(2, &script, ""));
    let codes = || fs::read_to_string(&told).unwrap_or_default();
    let refused = |what: &str| {
        // One may have been on its way.
        let seen = codes().lines().count() + 1;
        until(what, || {
            let after: Vec<String> = codes().lines().skip(seen).map(str::to_owned).collect();
            assert!(!after.iter().any(|code| code == "200"), "{what}: {after:?}");
            (after.iter().filter(|code| *code == "401").count() > 4).then_some(())
        });
    };
    until("the gang logs", || codes().contains("200").then_some(()));
    for node in ["a", "b"] {
        cluster.atelier(["node", "revoke", node]).ok();
    }
    refused("the gang is refused");
    let back = |node: &str| {
        cluster.agent(node, |agent| agent.kill());
        cluster.start_agent(&joining(&cluster, node, &token(&cluster, &["--node", node])));
    };
    back("a");
    refused("with one of its nodes cut off it is refused still");
    back("b");
    let seen = codes().len();
    until("it writes again", || codes()[seen..].contains("200").then_some(()));
    fs::write(&gate, "go").unwrap();
    assert_eq!(cluster.completed(&job).attempt, 1);
}
