//! Environments that nodes make ready before a job needs them.

use serde_json::{Value, json};

use crate::containers::{in_image, log};
use crate::harness::{Agent, Cluster, Registry, needs, until};

fn create(cluster: &Cluster, yaml: &str) {
    cluster.atelier(["environment", "create", "-f", "-"]).stdin(yaml).ok();
}

/// What `environment build` says of each node.
fn built(cluster: &Cluster, more: &[&str]) -> Value {
    let words = ["environment", "build", "-o", "json"];
    cluster.atelier(words.iter().chain(more)).ok().json()
}

fn environments(cluster: &Cluster, node: &str) -> Vec<Value> {
    let query = "entries[?kind=='environment']";
    let words = ["node", "cache", "show", node, "--query", query];
    cluster.atelier(words).ok().json().as_array().unwrap().clone()
}

#[test]
fn an_environment_is_built_on_all_nodes_of_a_compute_before_a_job_needs_it() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for node in ["one", "two"] {
        cluster.start_agent(&Agent::new(node));
    }
    create(&cluster, "name: train\nconda_file: {dependencies: [python]}\n");
    let words = ["environment", "build", "train@latest", "-o", "json"];
    let told = cluster.atelier(words).ok();
    let told =
        told.says(&["Building train:1 on 2 nodes of local.", "one: building the environment"]);
    let nodes = told.json();
    for (nth, name) in ["one", "two"].into_iter().enumerate() {
        let node = &nodes[nth];
        assert_eq!((&node["node"], &node["state"]), (&json!(name), &json!("Ready")), "{nodes}");
        assert!(node["environment"].as_str().unwrap().starts_with("Python 3."), "{nodes}");
        assert_eq!(environments(&cluster, name).len(), 1);
    }
    // A job finds it there, and another build too.
    let job = cluster.create("command: python -c 'print(1)'\nenvironment: azureml:train:1\n");
    cluster.completed(&job);
    assert!(!log(&cluster, &job).contains("building"), "{}", log(&cluster, &job));
    let again = cluster.atelier(["environment", "build", "train"]).ok();
    assert!(again.stdout().contains("Ready") && !again.stdout().contains("building"));
    assert_eq!(built(&cluster, &["--name", "train", "-v", "1", "--no-wait"])[1]["node"], "two");
}

#[test]
fn a_build_that_fails_says_why_and_where() {
    let cluster = Cluster::start();
    create(&cluster, "name: wrong\nconda_file: {dependencies: [python, {pip: [six==99.9]}]}\n");
    let failed = cluster.atelier(["environment", "build", "wrong"]).fails(1);
    let failed = failed.says(&["not ready on 1 of 1 nodes", "node 'local'", "six==99.9"]);
    assert!(failed.stdout().contains("Failed"), "{}", failed.stdout());
    // Of an image the node does what it would for a job.
    create(&cluster, "name: image\nimage: example.com/team/shell:1\n");
    cluster.atelier(["environment", "build", "image"]).ok().says(&["is not used"]);

    cluster.atelier(["environment", "build", "nothing"]).fails(3).says(&["no environment"]);
    let words = ["environment", "build", "image", "--compute", "nowhere"];
    cluster.atelier(words).fails(3).says(&["no compute 'nowhere'"]);
    cluster.atelier(["environment", "build"]).fails(2);
    let server = cluster.server();
    let reader = cluster.token_for("rita", "reader");
    let build = cluster.atelier_at(&server, ["environment", "build", "image"]);
    build.env("ATELIER_TOKEN", &reader).fails(5).says(&["rita", "build"]);
    cluster.completed(&cluster.shell("echo the node goes on"));
}

#[test]
fn a_build_that_nobody_follows_goes_on() {
    let cluster = Cluster::start();
    // An index that answers only after the client has gone.
    let slow = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    slow.set_nonblocking(true).unwrap();
    let index = format!("--index-url http://{}/simple", slow.local_addr().unwrap());
    create(
        &cluster,
        &format!("name: slow\nconda_file: {{dependencies: [python, {{pip: ['{index}', six]}}]}}\n"),
    );
    let nodes = built(&cluster, &["slow", "--no-wait"]);
    assert_eq!(nodes[0]["state"], "Building", "{nodes}");
    let asked = until("the installer asks the index", || slow.accept().ok()).0;
    let entries = environments(&cluster, "local");
    assert_eq!(entries[0]["building"], true, "{entries:?}");
    drop(asked);
    drop(slow);
    until("the build is over", || environments(&cluster, "local").is_empty().then_some(()));
}

#[test]
fn a_build_that_hangs_is_ended() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--build-timeout=3s"));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let index = format!("--index-url http://{}/simple", silent.local_addr().unwrap());
    create(
        &cluster,
        &format!("name: hung\nconda_file: {{dependencies: [python, {{pip: ['{index}', six]}}]}}\n"),
    );
    let failed = cluster.atelier(["environment", "build", "hung"]).fails(1);
    failed.says(&["took longer than 3 s", "--build-timeout"]);
    until("nothing is built any more", || {
        let is_built = |entry: &Value| entry["building"] == true;
        (!environments(&cluster, "local").iter().any(is_built)).then_some(())
    });
    cluster.completed(&cluster.shell("echo the node goes on"));
}

#[test]
fn nodes_that_get_no_jobs_build_nothing() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, "name: train\nconda_file: {dependencies: [python]}\n");
    let words = ["environment", "build", "train"];
    cluster.atelier(words).fails(1).says(&["no node that is ready", "atelier node list"]);
    for node in ["one", "two"] {
        cluster.start_agent(&Agent::new(node));
    }
    cluster.atelier(["node", "drain", "one", "--reason", "repair"]).ok();
    let nodes = built(&cluster, &["train"]);
    assert_eq!((nodes.as_array().unwrap().len(), &nodes[0]["node"]), (1, &json!("two")), "{nodes}");
}

#[test]
fn images_are_pulled_before_a_job_needs_them() {
    needs("containers");
    let registry = Registry::start();
    let cluster = crate::containers::start(&registry);
    let image = registry.shell();
    create(&cluster, &format!("name: image\nimage: {image}\n"));
    let nodes = built(&cluster, &["image"]);
    assert!(nodes[0]["environment"].as_str().unwrap().starts_with("image sha256:"), "{nodes}");
    assert!(registry.podman(&["images", "--format={{.Repository}}"]).contains("team/shell"));
    cluster.completed(&cluster.create(&in_image(&image, "echo x", "")));
}
