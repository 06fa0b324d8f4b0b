//! Jobs go to the node that holds their inputs already.

use std::fs;

use serde_json::Value;

use crate::harness::{Agent, Cluster, Process, needs, until};

const MIB: usize = 1 << 20;

/// A job of one CPU that reads all of its input, and is over once the file is there.
fn reads(mode: &str, go: &str) -> String {
    format!(
        "command: cat ${{{{inputs.set}}}}/* | wc -c && echo begun && \
         while [ ! -e {go} ]; do sleep 0.05; done\nresources: {{cpus: 1}}\n\
         inputs: {{set: {{type: uri_folder, mode: {mode}, path: \
         'azureml://datastores/data/paths/set'}}}}\n"
    )
}

fn explained(cluster: &Cluster, job: &str) -> Value {
    cluster.atelier(["job", "explain", job, "-o", "json"]).ok().json()
}

fn shown(cluster: &Cluster, job: &str) -> Value {
    cluster.atelier(["job", "show", job, "-o", "json"]).ok().json()
}

/// Where a job ran, how much its inputs were, and how much of them was fetched.
fn moved(cluster: &Cluster, job: &str) -> (String, u64, u64) {
    cluster.completed(job);
    let job = shown(cluster, job);
    let bytes = |name: &str| job["usage"][name].as_u64().unwrap_or_else(|| panic!("{name}: {job}"));
    let node = job["node"].as_str().unwrap().to_owned();
    (node, bytes("input_bytes"), bytes("input_fetched_bytes"))
}

fn is_followed(mode: &str) {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(store.join("set")).unwrap();
    fs::write(store.join("set/large.bin"), vec![7; 19 * MIB]).unwrap();
    fs::write(store.join("set/small.bin"), vec![8; MIB]).unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    let agents = ["a", "b"].map(|name| Agent::new(name).cpus(2).with("--no-shared-store"));
    agents.iter().for_each(|agent| cluster.start_agent(agent));
    let file = |name: &str| cluster.files().join(name).display().to_string();
    let begun = |job: &str| cluster.atelier(["job", "stream", job]).spawn().prints("begun");
    let (go, gone, there) = (file("go"), file("gone"), file("there"));
    fs::write(&there, "").unwrap();
    let all = 20 * MIB as u64;

    // Of nodes that are alike the first is taken, so that it is to be full while the other gets the input.
    let full = format!(
        "command: echo begun && while [ ! -e {go} ]; do sleep 0.05; done\nresources: {{cpus: 2}}\n"
    );
    let full = cluster.create(&full);
    begun(&full);
    let first = cluster.create(&reads(mode, &there));
    assert_eq!(moved(&cluster, &first), ("b".to_owned(), all, all));
    fs::write(&go, "").unwrap();
    cluster.completed(&full);

    let second = cluster.create(&reads(mode, &gone));
    begun(&second);
    let holds = ["b holds 20.0 MiB of the job's inputs"];
    assert_eq!(explained(&cluster, &second)["input_holders"], serde_json::json!(holds));
    let show = shown(&cluster, &second);
    assert_eq!(show["input_holders"], serde_json::json!([{ "node": "b", "bytes": all }]));

    // It is the node that knows, whoever was started anew meanwhile.
    cluster.agent("b", Process::kill);
    cluster.restart_daemon_hard();
    cluster.start_agent(&agents[1]);
    until("the daemon knows what the node holds", || {
        (explained(&cluster, &second)["input_holders"] == serde_json::json!(holds)).then_some(())
    });
    fs::write(&gone, "").unwrap();
    assert_eq!(moved(&cluster, &second), ("b".to_owned(), all, 0));
    cluster.node_is_ready("a");
    let third = cluster.create(&reads(mode, &there));
    assert_eq!(moved(&cluster, &third), ("b".to_owned(), all, 0));

    // What holds nobody: the daemon says nothing of it.
    fs::write(store.join("set/large.bin"), vec![9; 3 * MIB]).unwrap();
    let changed = cluster.create(&reads(mode, &there));
    assert_eq!(moved(&cluster, &changed), ("b".to_owned(), 4 * MIB as u64, 3 * MIB as u64));
    assert_eq!(shown(&cluster, &changed)["input_holders"], Value::Null, "it is over");
}

#[test]
fn a_job_goes_where_its_downloaded_inputs_are() {
    is_followed("download");
}

#[test]
fn a_job_goes_where_its_mounts_were_read() {
    needs("fuse");
    is_followed("ro_mount");
}
