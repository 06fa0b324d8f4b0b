//! Inputs that are mounted on nodes which do not share the daemon's storage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atelier_proto::job::v1::JobStatus;
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::harness::{Agent, Cluster, Process, needs, processes_with, until};

const MIB: usize = 1 << 20;

fn agent() -> Agent {
    Agent::new("local").with("--no-shared-store")
}

/// A cluster with a datastore `data`, whose folder is given.
fn cluster(agent: &Agent) -> (Cluster, PathBuf) {
    needs("fuse");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let store = fs::canonicalize(cluster.path()).unwrap().join("data-store");
    fs::create_dir_all(store.join("set/more")).unwrap();
    let yaml = format!("name: data\ntype: local\npath: {}\n", store.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    cluster.start_agent(agent);
    (cluster, store)
}

/// Bytes that are nowhere the same.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..length.div_ceil(4)).map(next).flat_map(u32::to_le_bytes).take(length).collect()
}

/// A job with the folder `set` as its input.
fn job(command: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n{block}inputs: {{set: {{type: uri_folder, path: \
         'azureml://datastores/data/paths/set'}}}}\n"
    )
}

fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8(cluster.log(job)).unwrap()
}

/// What is mounted below the node's folder, as the agent sees it.
fn mounts(cluster: &Cluster) -> Vec<String> {
    let pid = cluster.agent("local", |agent| agent.pid());
    let text = fs::read_to_string(format!("/proc/{}/mounts", pid.as_raw_nonzero())).unwrap();
    let folder = cluster.agent_data("local").canonicalize().unwrap();
    let ours =
        |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(&folder));
    text.lines().filter(ours).map(str::to_owned).collect()
}

/// The server of a job's inputs.
fn server(cluster: &Cluster) -> Pid {
    let attempts = cluster.agent_data("local").join("attempts");
    until("somebody serves the job's inputs", || {
        let attempt = fs::read_dir(&attempts)
            .ok()?
            .find_map(|entry| fs::read(entry.ok()?.path().join("mounts.json")).ok())?;
        let record: serde_json::Value = serde_json::from_slice(&attempt).ok()?;
        Pid::from_raw(record["pid"].as_i64()? as i32)
    })
}

#[track_caller]
fn nothing_is_left(cluster: &Cluster) {
    until("nothing is mounted", || mounts(cluster).is_empty().then_some(()));
}

fn whole_files(cluster: &Cluster) -> Vec<u64> {
    let parts = fs::read_dir(cluster.agent_data("local").join("cache/files")).unwrap().flatten();
    let files = parts.flat_map(|part| fs::read_dir(part.path()).unwrap().flatten());
    let mut sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
    sizes.sort_unstable();
    sizes
}

#[test]
fn inputs_are_mounted_and_kept_once_they_are_read() {
    let (cluster, store) = cluster(&agent());
    let large = bytes(21 * MIB + 17);
    fs::write(store.join("set/large.bin"), &large).unwrap();
    fs::write(store.join("set/more/small.txt"), "small\n").unwrap();
    fs::write(store.join("set/empty"), "").unwrap();
    fs::write(store.join("set/unread.bin"), bytes(9 * MIB)).unwrap();
    fs::write(cluster.path().join("large"), &large).unwrap();
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    assert_eq!(node["facts"]["mounts"], "fuse", "{node}");

    let name = cluster.create(&job(
        "cd ${{inputs.set}}\nstat -f -c %T .\nfind . | sort\nstat -c '%n %s %A' large.bin empty\n\
         sha256sum large.bin | cut -d' ' -f1\ncat more/small.txt empty\n\
         tail -c 5 large.bin | od -An -tx1\ntouch new 2>/dev/null || echo 'read only'\n\
         rm -f large.bin 2>/dev/null || echo kept\ntest -e nothing || echo nothing",
    ));
    cluster.completed(&name);
    let sum = sha256(&cluster, "large");
    let end: String = large[large.len() - 5..].iter().map(|byte| format!(" {byte:02x}")).collect();
    let expected = format!(
        "fuseblk\n.\n./empty\n./large.bin\n./more\n./more/small.txt\n./unread.bin\n\
         large.bin {} -r--r--r--\nempty 0 -r--r--r--\n{sum}\nsmall\n{end}\nread only\nkept\nnothing\n",
        large.len()
    );
    assert_eq!(log(&cluster, &name).replace("fuse\n", "fuseblk\n"), expected);
    nothing_is_left(&cluster);
    // What was read whole is a file like any other, and what was not read was not fetched.
    until("what was read is kept", || {
        (whole_files(&cluster) == [6, large.len() as u64]).then_some(())
    });
    let blocks = cluster.agent_data("local").join("cache/blocks");
    assert_eq!(fs::read_dir(&blocks).unwrap().count(), 0);

    // A single file has its own name; and a copy is made of what is kept.
    let single = "inputs: {f: {type: uri_file, path: 'azureml://datastores/data/paths/set/large.bin', \
                  mode: MODE}}\ncommand: 'sha256sum ${{inputs.f}}; basename ${{inputs.f}}'\n";
    for mode in ["ro_mount", "download"] {
        let name = cluster.create(&single.replace("MODE", mode));
        cluster.completed(&name);
        let log = log(&cluster, &name);
        assert!(log.starts_with(&sum) && log.ends_with("\nlarge.bin\n"), "{mode}: {log}");
    }
    nothing_is_left(&cluster);
}

fn sha256(cluster: &Cluster, file: &str) -> String {
    let output = std::process::Command::new("sha256sum").arg(cluster.path().join(file)).output();
    String::from_utf8(output.unwrap().stdout).unwrap()[..64].to_owned()
}
