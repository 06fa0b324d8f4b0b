//! Environments that the workspace keeps: versions, labels, and the jobs that name them.

use serde_json::{Value, json};

use crate::harness::{Cluster, until};

/// An environment without packages: jobs see which one it is by a variable.
fn yaml(which: &str) -> String {
    format!("name: train\nconda_file:\n  dependencies: [python]\n  variables: {{WHICH: {which}}}\n")
}

fn create(cluster: &Cluster, more: &[&str], which: &str) -> Value {
    let words = ["environment", "create", "-f", "-", "-o", "json"];
    cluster.atelier(words.iter().chain(more)).stdin(yaml(which)).ok().json()
}

fn listed(cluster: &Cluster, more: &[&str]) -> Value {
    let words = ["environment", "list", "--query", "[?!curated].[name, version, archived]"];
    cluster.atelier(words.iter().chain(more)).ok().json()
}

fn job(environment: &str) -> String {
    format!("command: echo it is $WHICH\nenvironment: {environment}\n")
}

fn environment_of(cluster: &Cluster, name: &str) -> String {
    cluster.atelier(["job", "show", name, "--query", "environment", "-o", "tsv"]).ok().word()
}

#[test]
fn a_job_keeps_the_version_that_its_reference_meant() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let made = create(&cluster, &[], "one");
    assert_eq!((&made["name"], &made["version"]), (&json!("train"), &json!("1")));
    assert_eq!(made["conda_file"]["variables"]["WHICH"], "one");
    assert_eq!(made["creation_context"]["created_by"], "admin");
    // It waits: there is no node yet.
    let first = cluster.create(&job("azureml:train@latest"));
    let second = cluster.create(&job("azureml:train"));
    assert_eq!(environment_of(&cluster, &first), "azureml:train:1");
    assert_eq!(create(&cluster, &[], "two")["version"], "2");
    let third = cluster.create(&job("azureml:train@latest"));
    cluster.restart_daemon_hard();
    cluster.start_agent(&crate::harness::Agent::new("local"));
    for (name, version, which) in [(&first, 1, "one"), (&second, 1, "one"), (&third, 2, "two")] {
        cluster.completed(name);
        assert_eq!(environment_of(&cluster, name), format!("azureml:train:{version}"));
        let log = String::from_utf8_lossy(&cluster.log(name)).into_owned();
        assert!(log.contains(&format!("it is {which}\n")), "{log}");
    }

    // What is archived is found by its version, and by no label.
    cluster.atelier(["environment", "archive", "train", "--version", "2"]).ok();
    let fourth = cluster.create(&job("azureml:train@latest"));
    let fifth = cluster.create(&job("azureml:train:2"));
    cluster.completed(&fourth);
    cluster.completed(&fifth);
    assert_eq!(environment_of(&cluster, &fourth), "azureml:train:1");
    assert_eq!(environment_of(&cluster, &fifth), "azureml:train:2");
    assert!(String::from_utf8_lossy(&cluster.log(&fifth)).contains("it is two"));
}

#[test]
fn versions_are_made_listed_archived_and_restored() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &[], "one");
    // The same again is no change, but for what it is for.
    let again = create(&cluster, &["--version", "1", "--description", "ours"], "one");
    assert_eq!((&again["version"], &again["description"]), (&json!("1"), &json!("ours")));
    cluster
        .atelier(["environment", "create", "-f", "-", "--version", "1"])
        .stdin(yaml("other"))
        .fails(1)
        .says(&["version 1 of environment 'train'", "never changes", "leave the version out"]);
    create(&cluster, &["--version", "blue", "--tags", "team=vision"], "blue");
    assert_eq!(create(&cluster, &[], "two")["version"], "2");
    // As `az ml` users write it, without a file.
    cluster.write("conda.yml", "dependencies: [python]\n");
    let words = ["environment", "create", "--name", "bare", "--conda-file", "conda.yml"];
    let bare = cluster.atelier(words.iter().chain(&["-o", "json"])).ok().json();
    assert_eq!(
        (&bare["version"], &bare["conda_file"]["dependencies"][0]),
        (&json!("1"), &json!("python"))
    );

    assert_eq!(listed(&cluster, &[]), json!([["bare", "1", false], ["train", "2", false]]));
    let versions = listed(&cluster, &["--name", "train"]);
    assert_eq!(
        versions,
        json!([["train", "2", false], ["train", "blue", false], ["train", "1", false]])
    );
    for words in [
        &["train@latest"][..],
        &["train"],
        &["train:2"],
        &["azureml:train:2"],
        &["--name", "train", "--version", "2"],
        &["-n", "train", "--label", "latest"],
    ] {
        let show = ["environment", "show", "--query", "id", "-o", "tsv"];
        let shown = cluster.atelier(show.iter().chain(words)).ok().word();
        assert_eq!(shown, "azureml:train:2", "{words:?}");
    }
    cluster.restart_daemon_hard();
    cluster.atelier(["environment", "archive", "train:2"]).ok();
    assert_eq!(listed(&cluster, &[]), json!([["bare", "1", false], ["train", "blue", false]]));
    assert_eq!(
        listed(&cluster, &["--name", "train", "--archived-only"]),
        json!([["train", "2", true]])
    );
    cluster.atelier(["environment", "archive", "--name", "train"]).ok();
    assert_eq!(listed(&cluster, &[]), json!([["bare", "1", false]]));
    assert_eq!(listed(&cluster, &["--name", "train"]), json!([]));
    let all = listed(&cluster, &["--include-archived"]);
    assert_eq!(all, json!([["bare", "1", false], ["train", "blue", true]]));
    cluster.atelier(["environment", "show", "train"]).fails(1).says(&["archived", "restore train"]);
    cluster
        .atelier(["job", "create", "-f", "-"])
        .stdin(job("azureml:train@latest"))
        .fails(1)
        .says(&["environment 'train' is archived", "train:2", "restore train"]);
    cluster
        .atelier(["environment", "create", "-f", "-"])
        .stdin(yaml("three"))
        .fails(1)
        .says(&["archived", "restore it first"]);
    cluster.atelier(["environment", "restore", "train:2"]).fails(1).says(&["as a whole"]);
    cluster.atelier(["environment", "restore", "train"]).ok();
    cluster.atelier(["environment", "restore", "train:2"]).ok();
    assert_eq!(listed(&cluster, &[]), json!([["bare", "1", false], ["train", "2", false]]));
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &[], "one");
    for (reference, code, says) in [
        ("azureml:tarin@latest", 3, &["no environment 'tarin'", "did you mean train?"][..]),
        ("azureml:sklearn-1.6x", 3, &["did you mean sklearn-1."]),
        ("azureml:train:7", 3, &["no version '7'", "it has 1"]),
        ("azureml:train@stable", 3, &["no label 'stable'", "train@latest"]),
    ] {
        let create = cluster.atelier(["job", "create", "-f", "-"]).stdin(job(reference));
        create.fails(code).says(says);
        cluster.atelier(["environment", "show", reference]).fails(code).says(says);
    }
    cluster.atelier(["environment", "list", "--name", "tarin"]).fails(3).says(&["train"]);
    cluster.atelier(["environment", "archive", "tarin"]).fails(3).says(&["train"]);
    cluster.atelier(["environment", "archive", "train:7"]).fails(3).says(&["it has 1"]);
    cluster.atelier(["environment", "archive", "train@latest"]).fails(2).says(&["label"]);
    cluster.atelier(["environment", "show", "train:1", "--version", "2"]).fails(2).says(&["once"]);
    cluster.atelier(["environment", "create"]).fails(2);
    let nameless = cluster.atelier(["environment", "create", "-f", "-"]).stdin("image: x\n");
    nameless.fails(1).says(&["no 'name'", "--name"]);

    // A build's folder travels as code does.
    cluster.write("context/Dockerfile", "FROM scratch\n");
    cluster.write("env.yml", "name: built\nbuild: {path: context}\n");
    let built =
        cluster.atelier(["environment", "create", "-f", "env.yml", "-o", "json"]).ok().json();
    assert_eq!(built["build"]["dockerfile_path"], "Dockerfile");
    cluster.atelier(["job", "create", "-f", "-"]).stdin(job("azureml:built:1")).ok();
}

#[test]
fn curated_environments_are_listed_and_pinned() {
    let cluster = Cluster::empty();
    let table = cluster.write(
        "curated.json",
        json!({"team": {"description": "what the team agreed on", "conda": {
            "dependencies": ["python"], "variables": {"WHICH": "curated"}}}})
        .to_string(),
    );
    cluster.settings.borrow_mut().serve =
        vec!["--curated-environments".to_owned(), table.display().to_string()];
    cluster.start_daemon();
    cluster.start_agent(&crate::harness::Agent::new("local"));
    let query = ["environment", "list", "--query", "[?curated].name", "-o", "tsv"];
    let names = cluster.atelier(query).ok().stdout();
    assert!(names.lines().any(|name| name == "team"), "{names}");
    assert!(names.lines().any(|name| name == "sklearn-1.5"), "{names}");
    let shown = cluster.atelier(["environment", "show", "team", "-o", "json"]).ok().json();
    let id = "azureml://registries/azureml/environments/team/labels/latest";
    for (key, value) in [
        ("id", json!(id)),
        ("version", Value::Null),
        ("curated", json!(true)),
        ("description", json!("what the team agreed on")),
    ] {
        assert_eq!(shown[key], value, "{shown}");
    }
    let table = cluster.atelier(["environment", "list", "-o", "table"]).ok().stdout();
    assert!(table.contains("curated") && table.contains("conda file"), "{table}");
    // One of the workspace's own goes before it, for jobs to come.
    let first = cluster.create(&job("azureml:team@latest"));
    cluster.atelier(["environment", "create", "-f", "-", "--name", "team"]).stdin(yaml("own")).ok();
    let second = cluster.create(&job("azureml:team@latest"));
    let third = cluster.create(&job(id));
    for (name, which) in [(&first, "curated"), (&second, "own"), (&third, "curated")] {
        cluster.completed(name);
        let log = String::from_utf8_lossy(&cluster.log(name)).into_owned();
        assert!(log.contains(&format!("it is {which}\n")), "{log}");
    }
    assert_eq!(environment_of(&cluster, &first), id);
    cluster.atelier(["environment", "archive", "sklearn-1.5"]).fails(3);
}

#[test]
fn a_reader_looks_at_environments_and_makes_none() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &[], "one");
    let server = cluster.server();
    let (reader, scientist) =
        (cluster.token_for("rita", "reader"), cluster.token_for("ana", "data-scientist"));
    let with = |token: &str, words: &[&str]| {
        cluster.atelier_at(&server, ["environment"].iter().chain(words)).env("ATELIER_TOKEN", token)
    };
    with(&reader, &["list"]).ok();
    with(&reader, &["show", "train"]).ok();
    with(&reader, &["archive", "train"]).fails(5).says(&["make or archive environments"]);
    with(&reader, &["create", "-f", "-"]).stdin(yaml("x")).fails(5).says(&["rita"]);
    let made =
        with(&scientist, &["create", "-f", "-", "-o", "json"]).stdin(yaml("two")).ok().json();
    assert_eq!(made["creation_context"]["created_by"], "ana");
    with(&scientist, &["archive", "train"]).ok();
    until("it is hidden", || (listed(&cluster, &[]) == json!([])).then_some(()));
}
