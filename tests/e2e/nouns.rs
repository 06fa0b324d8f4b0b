//! What is listed and shown: the fields that people's scripts read, in every format.

use serde_json::{Value, json};

use crate::harness::{Cluster, until};

/// Every noun's list is an array of what `show` shows, under the names that `az ml` users know.
#[test]
fn what_there_is_is_listed_and_shown() {
    let cluster = Cluster::start();
    let job = cluster.create("command: ls\nexperiment_name: nouns\n");
    cluster.completed(&job);
    let json = |words: &[&str]| -> Value {
        cluster.atelier(words.iter().chain(&["-o", "json"])).ok().json()
    };
    for (noun, name, fields) in [
        (
            "compute",
            "local",
            json!({"type": "amlcompute", "is_default": true, "nodes": 1, "ready_nodes": 1, "queued_jobs": 0, "running_jobs": 0}),
        ),
        (
            "node",
            "local",
            json!({"compute": "local", "state": "idle", "reason": "", "jobs": [], "drain": null}),
        ),
        ("datastore", "workspaceblobstore", json!({"type": "local", "is_default": true})),
    ] {
        // The node is idle once it has heard that the job's end is known.
        let shown = until(&format!("{noun} is at rest"), || {
            let shown = json(&[noun, "show", name]);
            let same = |(key, value): (&String, &Value)| shown[key] == *value;
            fields.as_object()?.iter().all(same).then(|| shown.clone())
        });
        assert_eq!(shown["name"], name);
        let listed = json(&[noun, "list"]);
        let listed = listed.as_array().unwrap().iter().find(|item| item["name"] == name);
        let keys = |item: &Value| item.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(listed.unwrap()), keys(&shown), "{noun}");
        // The other formats hold the same.
        let yaml = cluster.atelier([noun, "show", name, "-o", "yaml"]).ok().stdout();
        assert!(yaml.starts_with(&format!("name: {name}\n")), "{yaml}");
        let table = cluster.atelier([noun, "list", "-o", "table"]).ok().stdout();
        assert!(table.contains("NAME") && table.contains(name), "{table}");
        let picked = cluster.atelier([noun, "list", "--query", "[].name", "-o", "tsv"]).ok();
        assert!(picked.stdout().lines().any(|line| line == name), "{picked:?}");
        cluster
            .atelier([noun, "show", "nowhere"])
            .fails(3)
            .says(&["nowhere", &format!("{noun} list")]);
    }
    let node = json(&["node", "show", "local"]);
    for (key, value) in [("cpus", json!(2)), ("memory", json!("1 GiB")), ("gpus", json!(0))] {
        assert_eq!(node["capacity"][key], value, "{node}");
    }
    assert!(node["capacity"]["disk"].is_string(), "{node}");
    assert_eq!(node["free"], node["capacity"]);
    let workspace = json(&["workspace", "show"]);
    for (key, value) in [
        ("default_compute", "local"),
        ("default_datastore", "workspaceblobstore"),
        ("principal", "admin"),
        ("role", "admin"),
        ("mlflow_tracking_uri", &cluster.server()),
    ] {
        assert_eq!(workspace[key], value, "{workspace}");
    }
    let experiments = json(&["experiment", "list"]);
    let nouns = experiments.as_array().unwrap().iter().find(|e| e["name"] == "nouns").unwrap();
    assert_eq!((&nouns["runs"], &nouns["lifecycle_stage"]), (&json!(1), &json!("active")));
}

/// Editors are told what each kind of file may say.
#[test]
fn schemas_of_job_and_compute_files() {
    let cluster = Cluster::empty();
    let schema =
        |more: &[&str]| cluster.atelier(["schema", "-o", "json"].iter().chain(more)).ok().json();
    let (job, compute) = (schema(&[]), schema(&["compute"]));
    assert_eq!(job, schema(&["job"]));
    assert_eq!(job["required"], json!(["command"]));
    assert_eq!(compute["required"], json!(["name"]));
    assert!(compute["properties"]["node_labels"].is_object(), "{compute}");
    for (of, first) in [("data", "uri_file"), ("model", "custom_model")] {
        let schema = schema(&[of]);
        assert_eq!(schema["required"], json!(["name"]));
        assert_eq!(schema["properties"]["type"]["enum"][0], json!(first), "{schema}");
    }
    cluster.atelier(["schema", "node"]).fails(2).says(&["job", "compute"]);
}
