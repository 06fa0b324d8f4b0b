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

/// The networks that are named at the start are the daemon's, also of one that has died and is started again.
#[test]
fn a_local_workspace_fetches_from_the_networks_that_it_was_started_with() {
    let cluster = Cluster::empty();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.txt", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut asked = [0; 1024];
            let _ = std::io::Read::read(&mut stream, &mut asked);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
            let _ = std::io::Write::write_all(&mut stream, answer);
        }
    });
    let job = cluster.write(
        "job.yml",
        format!(
            "command: cat ${{{{inputs.a}}}}\ninputs: {{a: {{type: uri_file, path: '{url}'}}}}\n"
        ),
    );
    let job = job.to_str().unwrap();
    cluster.atelier(["run", job, "--allow-egress", "127.0.0.0/8"]).ok();
    assert_eq!(record(&cluster)["allow_egress"][0], "127.0.0.0/8");
    // The daemon knows them from its start.
    cluster
        .atelier(["run", job, "--allow-egress", "10.0.0.0/8"])
        .fails(2)
        .says(&["runs already, without --allow-egress 10.0.0.0/8", "atelier local stop"]);
    cluster.atelier(["local", "start", "--allow-egress", "127.0.0.0/8"]).ok();
    let pid = i32::try_from(record(&cluster)["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    until("it is known to be gone", || {
        let list = cluster.atelier(["job", "list"]).run();
        list.stderr.contains("no local workspace is running").then_some(())
    });
    cluster.atelier(["run", job]).ok();
    cluster.atelier(["local", "stop"]).ok();
    // One that was stopped starts with what is given then: nothing.
    cluster.atelier(["run", job]).run().says(&["--allow-egress"]);
    cluster.atelier(["local", "stop"]).ok();
}
