//! Who may do what, as the command line meets it.

use crate::harness::{Cluster, job_yaml};

#[test]
fn a_reader_looks_and_does_not_submit() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo seen");
    cluster.completed(&name);
    let reader = cluster.token_for("rita", "reader");
    let as_reader = |arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", &reader)
    };
    assert_eq!(as_reader(&["job", "list", "--query", "[].name", "-o", "tsv"]).ok().word(), name);
    let log = as_reader(&["job", "stream", &name, "-q"]).ok();
    assert_eq!(log.word(), "seen");
    as_reader(&["job", "create", "-f", "-"])
        .stdin(job_yaml("true"))
        .fails(5)
        .says(&["reader", "submit"])
        .never_says(&[&reader]);
    as_reader(&["job", "cancel", &name]).fails(5).says(&["rita"]);
    as_reader(&["job", "delete", &name, "--yes"]).fails(5);
    as_reader(&["token", "create", "--user", "eve", "--role", "admin"]).fails(5);
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 1);
}

#[test]
fn a_data_scientist_cancels_own_jobs_only() {
    let cluster = Cluster::start();
    let (ana, ben) =
        (cluster.token_for("ana", "data-scientist"), cluster.token_for("ben", "data-scientist"));
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", token)
    };
    let name = with(&ana, &["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
        .stdin(job_yaml("sleep 600"))
        .ok()
        .word();
    cluster.running(&name);
    with(&ben, &["job", "cancel", &name]).fails(5).says(&["ben", "ana"]);
    assert_eq!(cluster.rpc().job(&name).unwrap().created_by, "ana");
    with(&ana, &["job", "cancel", &name, "--reason", "my own"]).ok();
    let ended = cluster.ended(&name);
    assert_eq!(ended.status().word(), "Canceled");
    let events = cluster.rpc().events(&name).unwrap();
    assert!(
        events.iter().any(|event| event.principal == "ana" && event.message.contains("my own")),
        "{events:?}"
    );
}

#[test]
fn only_the_right_token_opens_the_door() {
    let cluster = Cluster::start();
    let server = cluster.server();
    cluster
        .atelier_at(&server, ["job", "list"])
        .env("ATELIER_TOKEN", "not-a-token")
        .fails(5)
        .says(&["token", "--token-file"])
        .never_says(&["not-a-token"]);
    cluster
        .atelier_at(&server, ["job", "list"])
        .env_remove("ATELIER_TOKEN")
        .fails(5)
        .says(&["no token", "atelier token create"]);
    // The tokens' files are their owner's alone.
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["admin.token", "agent.token", "token.key"] {
        let mode = std::fs::metadata(cluster.data().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_job_sees_one_token_and_it_dies_with_the_attempt() {
    let cluster = Cluster::start();
    let name = cluster.shell("printenv MLFLOW_TRACKING_TOKEN > outputs/token; env > outputs/env");
    cluster.completed(&name);
    cluster.atelier(["job", "download", &name, "--download-path", "got"]).ok();
    let outputs = cluster.files().join("got/artifacts/outputs");
    let token = std::fs::read_to_string(outputs.join("token")).unwrap().trim().to_owned();
    let variables = std::fs::read_to_string(outputs.join("env")).unwrap();
    assert!(!variables.contains(&cluster.token()), "the admin's token is in a job's environment");
    let node = std::fs::read_to_string(cluster.data().join("agent.token")).unwrap();
    assert!(!variables.contains(node.trim()), "the node's token is in a job's environment");
    cluster
        .atelier_at(&cluster.server(), ["job", "show", &name])
        .env("ATELIER_TOKEN", token)
        .fails(5);
}
