//! The audit log, as an admin reads it and as somebody tampers with it.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::harness::{Cluster, Process, http, job_yaml, until};
use crate::secrets::set;

/// What the log must never hold.
const CANARY: &str = "canary-Kq81LzT0vXbW3mRd";

fn listed(cluster: &Cluster, more: &[&str]) -> Vec<Value> {
    let list = ["audit", "list", "--limit", "1000", "-o", "json"].iter().chain(more);
    serde_json::from_value(cluster.atelier(list).ok().json()).unwrap()
}

fn database(cluster: &Cluster) -> rusqlite::Connection {
    rusqlite::Connection::open(cluster.data().join("atelier.db")).unwrap()
}

#[test]
fn what_admins_do_is_told_and_tampering_is_named() {
    let cluster = Cluster::start();
    let ana = cluster.token_for("ana", "data-scientist");
    let as_ana = |arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", &ana)
    };
    set(&cluster, "hf", CANARY);
    cluster.atelier(["secret", "grant", "hf", "--user", "ana"]).ok();
    cluster.atelier(["compute", "quota", "set", "local", "--cpus", "2"]).ok();
    cluster.atelier(["node", "drain", "local", "--reason", "a new disk"]).ok();
    cluster.atelier(["node", "resume", "local"]).ok();
    cluster.atelier(["workspace", "retention", "set", "--logs", "30d"]).ok();
    let place = cluster.shared_folder("place");
    let yaml = |said: &str| {
        let place = place.display();
        format!(
            "name: place\ntype: local\npath: {place}\ndescription: https://u:{CANARY}@host/{said}\n"
        )
    };
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml("one")).ok();
    cluster.atelier(["datastore", "update", "-f", "-"]).stdin(yaml("two")).ok();
    cluster.atelier(["datastore", "delete", "place", "--yes"]).ok();
    let job = as_ana(&["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
        .stdin(format!("{}environment_variables: {{KEY: {CANARY}}}\n", job_yaml("sleep 600")))
        .ok()
        .word();
    cluster.running(&job);
    cluster.atelier(["job", "cancel", &job, "--reason", "too long"]).ok();
    cluster.ended(&job);
    as_ana(&["job", "archive", &job]).ok();
    as_ana(&["job", "delete", &job, "--yes"]).ok();
    cluster.atelier(["user", "create", "kim", "--role", "reader"]).ok();
    cluster.atelier(["user", "update", "kim", "--role", "data-scientist"]).ok();
    let role = "name: looks\nactions: [workspaces/jobs/read]\n";
    cluster.atelier(["role", "create", "-f", "-"]).stdin(role).ok();
    cluster.atelier(["role", "update", "-f", "-"]).stdin(role.replace("jobs", "computes")).ok();
    cluster.atelier(["role", "delete", "looks", "--yes"]).ok();
    let kims = cluster.token_for("kim", "reader");
    let of_kim = cluster.atelier(["token", "list", "--user", "kim", "-o", "json"]).ok().json();
    let id = of_kim[0]["id"].as_str().unwrap();
    cluster.atelier(["token", "revoke", id]).ok();
    cluster.atelier(["user", "delete", "kim", "--yes"]).ok();
    // Who is refused is told of too: at the door, and where it is known whose a thing is; once, however often.
    for _ in 0..3 {
        as_ana(&["audit", "list"]).fails(5).says(&["ana", "read the audit log"]);
        cluster
            .atelier_at(&cluster.server(), ["job", "list"])
            .env("ATELIER_TOKEN", CANARY)
            .fails(5);
    }
    as_ana(&["secret", "delete", "hf", "--yes"]).fails(5);
    let refusals = || -> Vec<Value> {
        let all = listed(&cluster, &[]).into_iter();
        all.filter(|entry| !entry["refused"].is_null()).collect()
    };
    until("refusals are told", || (refusals().len() >= 3).then_some(()));
    let refused: BTreeSet<(String, String)> = refusals()
        .iter()
        .map(|entry| {
            let word = |field: &str| entry[field].as_str().unwrap().to_owned();
            (word("principal"), word("action"))
        })
        .collect();
    let of = |who: &str, what: &str| (who.to_owned(), what.to_owned());
    assert_eq!(
        refused,
        [
            of("ana", "AuditService/ListAuditEntries"),
            of("ana", "VaultService/DeleteSecret"),
            of("unknown", "JobService/ListJobs"),
        ]
        .into()
    );
    assert_eq!(refusals().len(), 3);

    let entries = listed(&cluster, &[]);
    let one = |action: &str, resource: &str| -> &Value {
        let is = |entry: &&Value| entry["action"] == action && entry["resource"] == resource;
        let found: Vec<_> =
            entries.iter().filter(|entry| entry["refused"].is_null()).filter(is).collect();
        assert_eq!(found.len(), 1, "{action} {resource}: {entries:#?}");
        found[0]
    };
    let job_of = format!("job/{job}");
    for (action, resource, who) in [
        ("TokenService/CreateToken", "token/ana", "admin"),
        ("TokenService/CreateToken", "user/ana", "admin"),
        ("UserService/CreateUser", "user/kim", "admin"),
        ("UserService/UpdateUser", "user/kim", "admin"),
        ("UserService/DeleteUser", "user/kim", "admin"),
        ("TokenService/CreateToken", "token/kim", "admin"),
        ("TokenService/RevokeToken", "token/kim", "admin"),
        ("RoleService/CreateRole", "role/looks", "admin"),
        ("RoleService/UpdateRole", "role/looks", "admin"),
        ("RoleService/DeleteRole", "role/looks", "admin"),
        ("VaultService/SetSecret", "secret/hf", "admin"),
        ("VaultService/GrantSecret", "secret/hf", "admin"),
        ("ComputeService/SetQuota", "compute/local", "admin"),
        ("ComputeService/DrainNode", "node/local", "admin"),
        ("ComputeService/ResumeNode", "node/local", "admin"),
        ("WorkspaceService/SetRetention", "retention/rules", "admin"),
        ("WorkspaceService/CreateDatastore", "datastore/place", "admin"),
        ("WorkspaceService/UpdateDatastore", "datastore/place", "admin"),
        ("WorkspaceService/DeleteDatastore", "datastore/place", "admin"),
        ("JobService/CreateJob", &job_of, "ana"),
        ("JobService/CancelJob", &job_of, "admin"),
        ("JobService/ArchiveJob", &job_of, "ana"),
        ("JobService/DeleteJob", &job_of, "ana"),
    ] {
        let entry = one(action, resource);
        assert_eq!((&entry["principal"], &entry["from"]), (&json!(who), &json!("127.0.0.1")));
    }
    let cancel = one("JobService/CancelJob", &job_of);
    assert_eq!(cancel["after"]["reason"], "too long");
    assert_eq!(cancel["role"], "admin");
    let resume = one("ComputeService/ResumeNode", "node/local");
    assert_eq!(
        (&resume["before"]["reason"], &resume["after"]),
        (&json!("a new disk"), &Value::Null)
    );
    let update = one("WorkspaceService/UpdateDatastore", "datastore/place");
    assert_eq!(update["before"]["datastore"]["description"], "https://[hidden]@host/one");
    assert_eq!(update["after"]["datastore"]["description"], "https://[hidden]@host/two");
    let promoted = one("UserService/UpdateUser", "user/kim");
    assert_eq!(
        (&promoted["before"]["role"], &promoted["after"]["role"]),
        (&json!("reader"), &json!("data_scientist"))
    );
    let revoked = one("TokenService/RevokeToken", "token/kim");
    assert_eq!((&revoked["before"]["id"], &revoked["after"]), (&json!(id), &Value::Null));
    let role = one("RoleService/UpdateRole", "role/looks");
    assert_eq!(role["before"]["actions"], json!(["workspaces/jobs/read"]));
    assert_eq!(role["after"]["actions"], json!(["workspaces/computes/read"]));
    let quota = one("ComputeService/SetQuota", "compute/local");
    assert_ne!(quota["before"], quota["after"]);
    // As it is asked for.
    let of_ana = listed(&cluster, &["--principal", "ana", "--resource", "job", "--since", "1h"]);
    assert_eq!(of_ana.len(), 3);
    assert_eq!(listed(&cluster, &["--since", "2100-01-01T00:00:00Z"]), Vec::<Value>::new());
    assert_eq!(listed(&cluster, &["--action", "setquota"]).len(), 1);

    // The chain holds, here and in an export.
    let verified = cluster.atelier(["audit", "verify", "-o", "json"]).ok().json();
    let head = verified["head"].as_str().unwrap().to_owned();
    cluster.atelier(["audit", "verify", "--head", &head]).ok();
    cluster.atelier(["audit", "export", "--file", "audit.jsonl"]).ok();
    let export = cluster.files().join("audit.jsonl");
    let lines = fs::read_to_string(&export).unwrap();
    assert_eq!(lines.lines().count() as u64, verified["entries"].as_u64().unwrap());
    assert_eq!(cluster.atelier(["audit", "export"]).ok().stdout(), lines);
    let nobody = "http://127.0.0.1:1";
    cluster.atelier_at(nobody, ["audit", "verify", "audit.jsonl", "--head", &head]).ok();
    // The end of it alone.
    let rest = cluster.atelier(["audit", "export", "--after", "5"]).ok().stdout();
    assert_eq!(rest.lines().count(), lines.lines().count() - 5);
    cluster.write("rest.jsonl", rest);
    cluster.atelier(["audit", "verify", "rest.jsonl", "--head", &head]).ok();
    cluster.write("edited.jsonl", lines.replacen("too long", "too wrong", 1));
    let edited = cluster.atelier(["audit", "verify", "edited.jsonl"]);
    edited.fails(1).says(&["is not as it was written", &format!("entry {}", cancel["seq"])]);

    // No secret is in it.
    cluster.daemon(Process::stop);
    let database = database(&cluster);
    let all: Vec<String> = {
        let text = "SELECT concat_ws(' ', principal, role, source, action, resource, refused, before, after) FROM audit";
        let mut all = database.prepare(text).unwrap();
        all.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let tokens = [cluster.token(), ana.clone(), kims];
    for secret in tokens.iter().map(String::as_str).chain([CANARY]) {
        assert!(!lines.contains(secret));
        assert!(!all.iter().any(|entry| entry.contains(secret)), "{all:#?}");
    }

    // Somebody edits an entry while the daemon is down.
    let edit = "UPDATE audit SET principal = 'ben' WHERE resource = 'compute/local'";
    assert_eq!(database.execute(edit, []).unwrap(), 1);
    drop(database);
    cluster.start_daemon();
    let entry = format!("entry {}", quota["seq"]);
    cluster.atelier(["audit", "verify"]).fails(1).says(&[&entry, "is not as it was written"]);
    cluster.daemon(Process::stop);
    let database = self::database(&cluster);
    let back = "UPDATE audit SET principal = 'admin' WHERE resource = 'compute/local'";
    database.execute(back, []).unwrap();
    // Somebody takes the end away, and has the database forget that there was one.
    let gone = "DELETE FROM audit WHERE resource = 'job/' || ?1 AND action LIKE '%DeleteJob'
                OR seq > (SELECT seq FROM audit WHERE action LIKE '%DeleteJob')";
    assert!(database.execute(gone, [&job]).unwrap() >= 1);
    drop(database);
    cluster.start_daemon();
    cluster.atelier(["audit", "verify"]).fails(1).says(&["are missing"]);
    cluster.daemon(Process::stop);
    let database = self::database(&cluster);
    let forget =
        "UPDATE sqlite_sequence SET seq = (SELECT max(seq) FROM audit) WHERE name = 'audit'";
    database.execute(forget, []).unwrap();
    drop(database);
    cluster.start_daemon();
    cluster.atelier(["audit", "verify"]).ok();
    cluster.atelier(["audit", "verify", "--head", &head]).fails(1).says(&[&head, "no entry"]);
}

/// Writes and reads two files with the job's own token.
const USE: &str = r#"
import os, urllib.request as web
env = os.environ
root = env["AZUREML_SERVICE_ENDPOINT"] + "/data/v1/workspaceartifactstore/ExperimentRun/dcid." + env["AZUREML_RUN_ID"]
for name in ["a", "b"]:
    for method, body in [("PUT", b"x"), ("GET", None)]:
        headers = {"Authorization": "Bearer " + env["MLFLOW_TRACKING_TOKEN"]}
        web.urlopen(web.Request(root + "/used/" + name, body, headers, method=method)).read()
"#;

#[test]
fn reading_data_is_told() {
    let cluster = Cluster::start();
    // Twice each, through the gateway: a node on this machine needs none for what it links.
    cluster.write("code/use.py", USE);
    cluster.write(
        "job.yml",
        "command: python3 use.py && echo x > outputs/x\ncode: code\nenvironment_variables: {KEY: azureml:secrets/hf}\n",
    );
    set(&cluster, "hf", CANARY);
    let create = ["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"];
    let job = cluster.atelier(create).ok().word();
    cluster.completed(&job);
    cluster.atelier(["job", "download", &job, "--download-path", "got"]).ok();
    let told = |principal: &str, action: &str| -> Vec<String> {
        let found = listed(&cluster, &["--principal", principal, "--action", action]);
        found.iter().map(|entry| entry["resource"].as_str().unwrap().to_owned()).collect()
    };
    let attempt = format!("attempt:{job}/1");
    // One entry each, of the folder that was granted, although there are two files.
    until("what the attempt did is told", || {
        let both = ["data/read", "data/write"].map(|action| told(&attempt, action));
        both.iter().all(|told| !told.is_empty()).then_some(())
    });
    let own = format!("datastore/workspaceartifactstore/ExperimentRun/dcid.{job}");
    for action in ["data/read", "data/write"] {
        let told = told(&attempt, action);
        assert_eq!(told.iter().filter(|place| **place == own).count(), 1, "{action}: {told:?}");
    }
    until("the user's download is told", || {
        told("admin", "data/read").iter().any(|place| place.contains(&job)).then_some(())
    });
    assert_eq!(told("admin", "secret/use"), ["secret/hf"]);
    cluster.atelier(["audit", "verify"]).ok();
}

/// What is logged is not told, and what is taken away is, with who did it and from where.
#[test]
fn what_is_deleted_through_mlflow_is_told() {
    let cluster = Cluster::start();
    let (server, token) = (cluster.server(), cluster.token());
    let call = |method: &str, body: Value| -> Value {
        let path = format!("POST /api/2.0/mlflow/{method}");
        let (status, said) = http(&server, &path, &token, &body.to_string()).unwrap();
        assert_eq!(status, 200, "{method}: {said}");
        serde_json::from_str(&said).unwrap()
    };
    let made = call("experiments/create", json!({ "name": "one" }));
    let experiment = made["experiment_id"].as_str().unwrap();
    let run = call("runs/create", json!({ "experiment_id": experiment, "start_time": 1 }));
    let run = run["run"]["info"]["run_id"].as_str().unwrap();
    call("runs/log-metric", json!({ "run_id": run, "key": "loss", "value": 1, "timestamp": 1 }));
    call("runs/delete", json!({ "run_id": run }));
    call("runs/restore", json!({ "run_id": run }));
    let name = json!({ "experiment_id": experiment, "new_name": "two" });
    call("experiments/update", name);
    call("experiments/delete", json!({ "experiment_id": experiment }));
    call("experiments/restore", json!({ "experiment_id": experiment }));
    let told = |resource: String| -> Vec<(Value, Value, Value)> {
        let entries = listed(&cluster, &["--resource", &resource]).into_iter().rev();
        entries
            .map(|mut entry| {
                assert_eq!(
                    (&entry["principal"], &entry["from"]),
                    (&json!("admin"), &json!("127.0.0.1"))
                );
                let before = entry["before"]["lifecycle_stage"].take();
                (entry["action"].take(), before, entry["after"]["lifecycle_stage"].take())
            })
            .collect()
    };
    let change =
        |action: &str, before: &str, after: &str| (json!(action), json!(before), json!(after));
    assert_eq!(
        told(format!("run/{run}")),
        [
            change("mlflow/runs/delete", "active", "deleted"),
            change("mlflow/runs/restore", "deleted", "active"),
        ]
    );
    assert_eq!(
        told(format!("experiment/{experiment}")),
        [
            change("mlflow/experiments/update", "active", "active"),
            change("mlflow/experiments/delete", "active", "deleted"),
            change("mlflow/experiments/restore", "deleted", "active"),
        ]
    );
    cluster.atelier(["audit", "verify"]).ok();

    // The last day stays.
    let refused = cluster.atelier(["audit", "prune", "--before", "1h", "--yes"]);
    refused.fails(1).says(&["entries of the last day stay"]);
    let nothing = ["audit", "prune", "--before", "2d", "--yes", "-o", "json"];
    assert_eq!(cluster.atelier(nothing).ok().json()["entries"], 0);
}

/// 71: the daemon is killed around commits: an entry is there with its change, or neither.
#[cfg(feature = "failpoints")]
#[test]
fn f71_an_entry_is_there_with_its_change_or_neither_is() {
    for point in ["before-commit", "after-commit"] {
        let cluster = Cluster::empty();
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), format!("{point}:9"))];
        cluster.start_daemon();
        let mut number = 0;
        while cluster.daemon(Process::ended).is_none() && number < 20 {
            number += 1;
            let user = format!("user-{number}");
            cluster.atelier(["token", "create", "--user", &user, "--role", "reader"]).run();
        }
        until("the daemon dies", || cluster.daemon(Process::ended));
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        cluster.atelier(["audit", "verify"]).ok();
        let database = database(&cluster);
        let all = |text: &str| -> Vec<String> {
            let mut all = database.prepare(text).unwrap();
            all.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let tokens = all("SELECT 'token/' || principal FROM tokens ORDER BY 1");
        let told = all("SELECT resource FROM audit WHERE resource LIKE 'token/%' ORDER BY 1");
        assert_eq!(tokens, told, "{point}");
        assert!(tokens.len() > 3, "{tokens:?}");
    }
}
