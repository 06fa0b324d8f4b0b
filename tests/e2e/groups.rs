//! Who may use a compute, and what the members of a group may hold of it together.

use std::fs;
use std::path::PathBuf;

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::harness::{Agent, Cli, Cluster, until};

/// A node of four CPUs, and people: ana and bob in vision, cleo in nlp.
struct World {
    cluster: Cluster,
    tokens: [(&'static str, String); 3],
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::empty();
        cluster.start_daemon();
        cluster.start_agent(&Agent::new("local").cpus(4));
        let people = [("ana", "vision"), ("bob", "vision"), ("cleo", "nlp")];
        let tokens = people.map(|(user, group)| {
            let made = ["user", "create", user, "--role", "data-scientist", "--group", group];
            cluster.atelier(made).ok();
            let token = ["token", "create", "--user", user, "--query", "token", "-o", "tsv"];
            (user, cluster.atelier(token).ok().word())
        });
        Self { cluster, tokens }
    }

    fn as_user(&self, user: &str, arguments: &[&str]) -> Cli {
        let token = self.tokens.iter().find(|(name, _)| *name == user).map(|(_, token)| token);
        let server = self.cluster.server();
        self.cluster.atelier_at(&server, arguments).env("ATELIER_TOKEN", token.unwrap())
    }

    /// A user's job with so many CPUs, which ends once there is a file; its name and the file.
    fn waits(&self, user: &str, cpus: u32, file: &str) -> (String, PathBuf) {
        let file = self.cluster.files().join(file);
        let create = ["job", "create", "-f", "-", "--query", "name", "-o", "tsv"];
        let name = self.as_user(user, &create).stdin(job(cpus, &file)).ok().word();
        (name, file)
    }

    #[track_caller]
    fn told(&self, name: &str, reason: &str) {
        until(reason, || {
            let job = self.cluster.rpc().job(name).unwrap();
            let is_told = job.wait_reason.contains(reason);
            (job.status() == JobStatus::Queued && is_told).then_some(())
        });
    }

    /// Something that was done, as the audit log has it.
    fn audited(&self, action: &str, resource: &str) -> Value {
        let entries = self.cluster.atelier(["audit", "list", "-o", "json"]).ok().json();
        let found = entries
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["action"] == action && entry["resource"] == resource);
        found.unwrap_or_else(|| panic!("no {action} of {resource} in {entries}")).clone()
    }
}

fn job(cpus: u32, file: &std::path::Path) -> String {
    let file = file.display();
    format!("command: while [ ! -e {file} ]; do sleep 0.05; done\nresources: {{cpus: {cpus}}}\n")
}

#[test]
fn a_compute_that_is_given_to_a_group_is_for_its_members() {
    let world = World::new();
    let cluster = &world.cluster;
    let shown = |query: &str| {
        cluster.atelier(["compute", "show", "local", "--query", query, "-o", "json"]).ok().json()
    };
    assert_eq!(shown("access"), json!({"everybody": true, "groups": [], "users": []}));
    let access = |more: &[&str]| {
        let [action, rest @ ..] = more else { panic!("an action") };
        let words: Vec<&str> =
            ["compute", "access", action, "local"].iter().chain(rest).copied().collect();
        cluster.atelier(words)
    };
    access(&["revoke", "--user", "cleo"]).fails(1).says(&["everybody may use it", "access grant"]);
    access(&["grant", "--group", "vision"]).ok();
    assert_eq!(shown("access"), json!({"everybody": false, "groups": ["vision"], "users": []}));
    let rows = access(&["list", "-o", "json"]).ok().json();
    let group = json!({"kind": "group", "name": "vision"});
    assert_eq!(rows, json!([{"kind": "managers", "name": null}, group]));
    let entry = world.audited("ComputeService/GrantAccess", "compute/local");
    assert_eq!(
        (&entry["before"]["access"], &entry["after"]["access"]["given"]["groups"]),
        (&Value::Null, &json!(["vision"]))
    );
    let who = world.as_user("cleo", &["auth", "whoami", "-o", "json"]).ok().json();
    assert_eq!(who["groups"], json!(["nlp"]));

    // Who is in the group submits; who is not is told whom it is for, what they are in and who may help.
    let (first, go) = world.waits("ana", 4, "go");
    cluster.running(&first);
    let refused = [
        "compute 'local' is for group 'vision'",
        "cleo, who is in group 'nlp'",
        "ask an admin",
        "atelier compute access grant local --user cleo",
    ];
    for words in [&["job", "create", "-f", "-"][..], &["job", "create", "-f", "-", "--dry-run"]] {
        world.as_user("cleo", words).stdin(job(1, &go)).fails(5).says(&refused);
    }
    let yaml = "name: train\nconda_file: {dependencies: [python]}\n";
    cluster.atelier(["environment", "create", "-f", "-"]).stdin(yaml).ok();
    world.as_user("cleo", &["environment", "build", "train"]).fails(5).says(&refused);
    world
        .as_user("cleo", &["compute", "access", "grant", "local", "--user", "cleo"])
        .fails(5)
        .says(&["manage computes"]);
    let can = |user: &str, action: &str| {
        let words = ["auth", "can-i", action, "--compute", "local", "-o", "json"];
        world.as_user(user, &words)
    };
    let told = can("ana", "workspaces/jobs/write").ok().json();
    let reason = told["reason"].as_str().unwrap();
    assert!(told["allowed"] == true && reason.contains("ana is in group 'vision'"), "{told}");
    let told = can("cleo", "workspaces/jobs/write").fails(1).json();
    let reason = told["reason"].as_str().unwrap();
    assert!(told["allowed"] == false && reason.contains("is for group 'vision'"), "{told}");
    let nowhere = ["auth", "can-i", "workspaces/jobs/write", "--compute", "nowhere"];
    world.as_user("cleo", &nowhere).fails(3).says(&["there is no compute 'nowhere'"]);

    // Out of the group: what runs goes on, what waits is held, also by a daemon that starts anew.
    let (second, _) = world.waits("ana", 1, "go");
    world.told(&second, "too little");
    cluster.atelier(["user", "update", "ana", "--remove-group", "vision"]).ok();
    world.told(&second, "ana may not use the compute any more, which is for group 'vision'");
    let entry = world.audited("UserService/UpdateUser", "user/ana");
    assert_eq!(
        (&entry["before"]["groups"], &entry["after"]["groups"]),
        (&json!(["vision"]), &Value::Null)
    );
    cluster.restart_daemon_hard();
    world.told(&second, "ana may not use the compute any more");
    fs::write(&go, "").unwrap();
    cluster.completed(&first);
    // An admin's job that came later starts on what is free now.
    let later = cluster.shell("true");
    cluster.completed(&later);
    world.told(&second, "ana may not use the compute any more");
    cluster.atelier(["user", "update", "ana", "--add-group", "vision"]).ok();
    cluster.completed(&second);

    access(&["revoke", "--group", "vision"]).ok();
    let (create, go) = (["job", "create", "-f", "-"], cluster.files().join("go"));
    world
        .as_user("ana", &create)
        .stdin(job(1, &go))
        .fails(5)
        .says(&["those alone who manage computes"]);
    access(&["grant", "--everybody"]).ok();
    let (third, _) = world.waits("cleo", 1, "go");
    cluster.completed(&third);
}

#[test]
fn a_groups_quota_is_of_all_its_members_together() {
    let world = World::new();
    let cluster = &world.cluster;
    let quota = |more: &[&str]| {
        let [action, rest @ ..] = more else { panic!("an action") };
        let words: Vec<&str> =
            ["compute", "quota", action, "local"].iter().chain(rest).copied().collect();
        cluster.atelier(words)
    };
    quota(&["set", "--group", "vision", "--cpus", "2"]).ok();
    let row = json!({
        "user": null, "group": "vision", "gpus": null, "cpus": 2, "memory": null, "nodes": null, "jobs": null,
    });
    assert_eq!(quota(&["list", "-o", "json"]).ok().json(), json!([row]));
    quota(&["set", "--group", "vision", "--user", "ana", "--cpus", "2"]).fails(2);
    let (first, _) = world.waits("ana", 1, "first");
    let (second, go) = world.waits("bob", 1, "second");
    cluster.running(&first);
    cluster.running(&second);
    let (third, go_third) = world.waits("ana", 1, "third");
    let reason = "the jobs of all who are in group 'vision' may hold 2 CPU of the compute at once, and hold 2 CPU";
    world.told(&third, reason);
    let told = cluster.atelier(["job", "explain", &third, "-o", "json"]).ok().json();
    assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    cluster.restart_daemon_hard();
    world.told(&third, reason);
    // Who is in another group is not held back, and who could never have so much does not wait for ever.
    let (other, go_other) = world.waits("cleo", 2, "other");
    cluster.running(&other);
    fs::write(go_other, "").unwrap();
    cluster.completed(&other);
    world.told(&third, reason);
    let much = job(3, &go_third);
    world
        .as_user("bob", &["job", "create", "-f", "-"])
        .stdin(much)
        .fails(1)
        .says(&["3 CPU, and the quota is 2 CPU, for group 'vision'"]);
    fs::write(go, "").unwrap();
    cluster.completed(&second);
    cluster.running(&third);
    fs::write(go_third, "").unwrap();
    cluster.completed(&third);
    quota(&["delete", "--group", "nlp"]).fails(3).says(&["has no quota of group 'nlp'"]);
    quota(&["delete", "--group", "vision"]).ok();
    assert_eq!(quota(&["list", "-o", "json"]).ok().json(), json!([]));
}
