//! Jobs of several nodes.

use std::fs;

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, History, PATIENCE, until};

fn four_nodes() -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["a", "b", "c", "d"] {
        cluster.start_agent(&Agent::new(name).cpus(1));
    }
    cluster
}

fn gang(command: &str, members: u32, more: &str) -> String {
    format!("command: {command:?}\nresources: {{cpus: 1, instance_count: {members}}}\n{more}\n")
}

/// Checks what it is told of the others, meets them, and leaves a file of its own.
const MEET: &str = r#"
import os, socket, sys, time
e = os.environ
rank, size = int(e["RANK"]), int(e["WORLD_SIZE"])
assert e["NODE_RANK"] == e["AZUREML_CR_NODE_RANK"] == str(rank) and e["LOCAL_RANK"] == "0"
assert size == int(e["AZUREML_NODE_COUNT"]) == len(e["AZ_BATCH_HOST_LIST"].split(",")) == 4
master, port = e["MASTER_ADDR"], int(e["MASTER_PORT"])
assert e["AZ_BATCH_MASTER_NODE"] == f"{master}:{port}", e["AZ_BATCH_MASTER_NODE"]
assert e["AZ_BATCHAI_JOB_MASTER_NODE_IP"] == master
if rank == 0:
    with socket.create_server((master, port)) as server:
        server.settimeout(60)
        met = {0}
        while len(met) < size:
            peer, _ = server.accept()
            met.add(int(peer.makefile().readline()))
            peer.close()
    assert met == set(range(size)), met
    print("met", *sorted(met))
else:
    end = time.monotonic() + 60
    while True:
        try:
            peer = socket.create_connection((master, port), 5)
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    peer.sendall(f"{rank}\n".encode())
    print("said", rank)
with open(os.path.join(sys.argv[1], f"{rank}.txt"), "w") as out:
    out.write(str(rank))
"#;

#[test]
fn four_members_on_four_nodes_meet_and_leave_what_they_wrote() {
    let cluster = four_nodes();
    cluster.write("code/meet.py", MEET);
    let yaml = gang(
        "python3 meet.py ${{outputs.ranks}}",
        4,
        "code: code\ndistribution: {type: pytorch, process_count_per_instance: 1}\n\
         outputs: {ranks: {type: uri_folder}}\nlimits: {timeout: 120}",
    );
    let file = cluster.write("gang.yml", &yaml);
    let file = file.display().to_string();
    let job =
        cluster.atelier(["job", "create", "-f", &file, "--query", "name", "-o", "tsv"]).ok().word();
    let ended = cluster.completed(&job);
    assert_eq!(String::from_utf8(cluster.log(&job)).unwrap(), "met 0 1 2 3\n");
    let mut nodes: Vec<&str> = ended.members.iter().map(|member| member.node.as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["a", "b", "c", "d"]);
    assert!(ended.members.iter().all(|member| member.exit_code == Some(0)), "{ended:?}");
    assert_eq!(ended.outputs[0].files, 4, "{:?}", ended.outputs);

    let artifacts = cluster.rpc().artifacts(&job);
    for rank in 0..4 {
        let output = format!("named-outputs/ranks/{rank}.txt");
        assert!(artifacts.contains(&output), "{artifacts:?}");
        let log = match rank {
            0 => "user_logs/std_log.txt".to_owned(),
            rank => format!("user_logs/std_log_process_{rank}.txt"),
        };
        assert!(artifacts.contains(&log), "{artifacts:?}");
    }
    cluster.atelier(["job", "download", &job, "--all", "--download-path", "got"]).ok();
    let got = cluster.files().join("got");
    let read = |path: &str| {
        let found = std::process::Command::new("find").arg(&got).args(["-name", path]).output();
        let found = String::from_utf8(found.unwrap().stdout).unwrap();
        fs::read_to_string(found.trim()).unwrap()
    };
    assert_eq!(read("2.txt"), "2");
    assert_eq!(read("std_log_process_3.txt"), "said 3\n");
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["members"][3]["rank"], 3, "{shown}");
}

#[test]
fn the_first_member_that_fails_ends_the_others_and_is_named() {
    let cluster = four_nodes();
    let flag = cluster.files().join("stopped");
    let command = format!(
        "me=$AZUREML_CR_NODE_RANK; if [ $me = 2 ]; then \
         until [ -e {0}.0 ] && [ -e {0}.1 ]; do sleep 0.05; done; exit 3; fi; \
         trap 'echo $me >> {0}; exit 0' TERM; touch {0}.$me; sleep 600 & wait",
        flag.display()
    );
    let job = cluster.create(&gang(&command, 3, ""));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let error = ended.error.unwrap();
    let node = &ended.members[2].node;
    let named = format!("member 2 on node {node} failed: the command ended with exit code 3");
    assert_eq!((error.code.as_str(), error.message), ("UserError", named));
    assert_eq!(ended.members[2].exit_code, Some(3));
    let mut stopped: Vec<String> =
        fs::read_to_string(&flag).unwrap().lines().map(str::to_owned).collect();
    stopped.sort();
    assert_eq!(stopped, ["0", "1"], "they were asked to stop");
    // Everything is free again.
    let next = cluster.create(&gang("echo", 4, ""));
    cluster.completed(&next);
}

#[test]
fn a_gang_waits_for_all_of_its_nodes_and_one_that_is_too_large_is_refused() {
    let cluster = four_nodes();
    let history = History::of(&cluster);
    let long = cluster.create(&history.job(2.0));
    cluster.running(&long);
    let job = cluster.create(&gang(&history.command(0.0), 4, ""));
    let told = cluster.atelier(["job", "explain", &job, "-o", "json"]).ok().json();
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("4 nodes with 1 CPU each, all at once, and 3 have room"), "{told}");
    assert!(!history.has("start", &job), "part of it runs");
    cluster.completed(&long);
    let ended = cluster.completed(&job);
    assert_eq!(ended.members.len(), 4);

    cluster.atelier(["job", "create", "-f", "-"]).stdin(gang("echo", 5, "")).fails(1).says(&[
        "5 nodes with 1 CPU each",
        "compute 'local' can have 4 such nodes at most",
        "resources.instance_count to 4",
    ]);
    cluster.atelier(["job", "create", "-f", "-"]).stdin(gang("echo", 0, "")).fails(1);

    // Cancelled, all of it stops.
    let endless = cluster.create(&gang("sleep 600", 4, ""));
    cluster.running(&endless);
    cluster.atelier(["job", "cancel", &endless]).ok();
    cluster.rpc().reaches(&endless, &[JobStatus::Canceled], PATIENCE);
    until("all nodes are free", || {
        let nodes = cluster.atelier(["node", "list", "-o", "json"]).ok().json();
        nodes.as_array()?.iter().all(|node| node["state"] == "idle").then_some(())
    });
}

/// The daemon is killed while a gang runs; it goes on, and its end is known.
#[test]
fn a_gang_outlives_the_daemon() {
    let cluster = four_nodes();
    let history = History::of(&cluster);
    let job = cluster.create(&gang(&history.command(2.0), 3, ""));
    cluster.running(&job);
    cluster.restart_daemon_hard();
    let ended = cluster.completed(&job);
    assert_eq!(ended.attempt, 1);
    assert_eq!(ended.members.len(), 3);
}
