//! The local workspace: started, found again, and back where it was.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Cluster, until};

fn record(cluster: &Cluster) -> Value {
    serde_json::from_slice(&fs::read(cluster.home().join("run/serve.json")).unwrap()).unwrap()
}

/// Jobs know the daemon by its address, so it comes back there; also if the command that started it
/// was interrupted before it noted the address.
#[test]
fn a_local_workspace_comes_back_at_its_address() {
    let cluster = Cluster::empty();
    cluster.atelier(["local", "start"]).ok();
    let before = record(&cluster);
    let server = before["server"].as_str().unwrap().to_owned();
    assert!(server.starts_with("http://127.0.0.1:"), "{before}");

    let mut interrupted = before.clone();
    interrupted["server"] = "".into();
    fs::write(cluster.home().join("run/serve.json"), interrupted.to_string()).unwrap();
    cluster.atelier(["local", "start"]).ok();
    assert_eq!(record(&cluster), before);

    let pid = i32::try_from(before["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    // Nobody is asked at an address that the dead one left behind.
    until("it is known to be gone", || {
        let list = cluster.atelier(["job", "list"]).run();
        list.stderr.contains("no local workspace is running").then_some(())
    });
    cluster.atelier(["local", "start"]).ok();
    let after = record(&cluster);
    assert_eq!(after["server"], before["server"]);
    assert_ne!(after["pid"], before["pid"]);
    cluster.atelier(["local", "stop"]).ok();
}
