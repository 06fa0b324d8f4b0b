//! Jobs whose command Ray starts, on a cluster of its own.

use atelier_proto::job::v1::{Job, JobStatus};
use serde_json::Value;

use crate::gangs::{cluster, gang};
use crate::harness::{Agent, Cluster, PATIENCE, Process, until};

fn message(job: &Job) -> String {
    job.error.clone().unwrap_or_default().message
}

/// Stands in for Ray where the platform's part is tested: the head listens and writes down who joins, the
/// others join and stay, and end with a failure when the head is gone.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import os, socket, subprocess, sys, time
told = dict(a[2:].split("=", 1) for a in sys.argv[2:] if a.startswith("--") and "=" in a)
token = os.environ["RAY_AUTH_TOKEN"]
if sys.argv[1] == "serve":
    peers = []
    with socket.create_server(("", int(told["port"]))) as server:
        while True:
            peer, _ = server.accept()
            peers.append(peer)
            line = peer.makefile().readline()
            if line:
                open("joined.txt", "a").write(line)
elif "--head" in sys.argv:
    print("head on", told["port"], "with", told["num-cpus"], flush=True)
    subprocess.Popen([sys.executable, __file__, "serve", "--port=" + told["port"]])
else:
    host, port = told["address"].rsplit(":", 1)
    peer = socket.create_connection((host, int(port)))
    peer.sendall(("%s %s %s\n" % (os.environ["AZUREML_CR_NODE_RANK"], token, told["num-cpus"])).encode())
    print("joined", flush=True)
    peer.settimeout(0.05)
    while not os.path.exists(os.environ["STOP"]):
        try:
            gone = not peer.recv(1)
        except TimeoutError:
            continue
        except OSError:
            gone = True
        if gone:
            open(os.environ["STOP"] + ".alone", "a").write("x")
            sys.exit(1)
    sys.exit(int(open(os.environ["STOP"]).read()))
"#;

/// Waits for two to join, with the head's own token.
const HEAD: &str = r#"
import os, sys, time
bound = time.monotonic() + 60
joined = []
while len(joined) < 2:
    assert time.monotonic() < bound, joined
    time.sleep(0.05)
    joined = open("joined.txt").read().split("\n")[:-1] if os.path.exists("joined.txt") else []
assert all(line.split()[1] == os.environ["RAY_AUTH_TOKEN"] for line in joined), joined
port = os.environ["RAY_ADDRESS"].rsplit(":", 1)[1]
print("joined by", sorted(line.split()[0] for line in joined), "at", port)
"#;

/// A job with a Ray cluster on three nodes, where the stand-in is what `ray` is.
fn stand_in(cluster: &Cluster, command: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    cluster.write("bin/ray", STAND_IN);
    let bin = cluster.files().join("bin");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("ray"), executable).unwrap();
    cluster.write("code/head.py", HEAD);
    let more = format!(
        "distribution: {{type: ray}}\ncode: code\n\
         environment_variables: {{PATH: '{}:/usr/bin:/bin', STOP: '{}'}}\n",
        bin.display(),
        cluster.files().join("stop").display(),
    );
    cluster.write("job.yml", gang(3, command, &more));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    made.ok().word()
}

#[test]
fn a_ray_job_is_completed_when_its_command_is_over_on_the_head() {
    let cluster = cluster(3);
    let job = stand_in(&cluster, "python3 head.py; echo kept > outputs/kept.txt");
    let ended = cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let port = log.split("head on ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert_eq!(log, format!("head on {port} with 1\njoined by ['1', '2'] at {port}\n"));
    for rank in ["1", "2"] {
        let log = cluster.atelier(["job", "stream", &job, "-q", "--rank", rank]).ok().stdout();
        assert_eq!(log, "joined\n");
    }
    assert_eq!(ended.members[0].exit_code, Some(0));
    assert!(cluster.rpc().artifacts(&job).contains(&"outputs/kept.txt".to_owned()));
    // One more finds the nodes free.
    cluster.completed(&cluster.create(&gang(3, "true", "")));
}

#[test]
fn a_ray_job_fails_as_its_command_does_on_the_head() {
    let cluster = cluster(3);
    let job = stand_in(&cluster, "python3 head.py && exit 4");
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let node = &ended.members[0].node;
    let expected = format!("member 0 on node {node} failed: the command ended with exit code 4");
    assert_eq!(message(&ended), expected);
}

#[test]
fn a_ray_job_fails_when_a_member_is_over_before_the_head() {
    for code in ["0", "9"] {
        let cluster = cluster(3);
        let job = stand_in(&cluster, "python3 head.py; sleep 600");
        cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("joined by");
        cluster.write("stop", code);
        let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
        let said = message(&ended);
        // One that ends well ends too early, too.
        let code = if code == "0" { "1" } else { code };
        assert!(!said.contains("member 0"), "{said}");
        assert!(said.ends_with(&format!("the command ended with exit code {code}")), "{said}");
    }
}

/// The members that joined end with their head, and are heard of before it.
#[test]
fn a_ray_job_that_was_over_while_the_daemon_was_away_is_completed() {
    let cluster = cluster(3);
    let go = cluster.files().join("go");
    let command = format!("python3 head.py; while ! test -e {}; do sleep 0.1; done", go.display());
    let job = stand_in(&cluster, &command);
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("joined by");
    let head = cluster.rpc().job(&job).unwrap().members[0].node.clone();
    cluster.daemon(Process::kill);
    std::fs::write(&go, "").unwrap();
    until("the others find themselves alone", || {
        let alone = std::fs::read_to_string(cluster.files().join("stop.alone")).ok()?;
        (alone == "xx").then_some(())
    });
    cluster.agent(&head, Process::kill);
    cluster.start_daemon();
    until("the daemon hears of the others", || {
        let nodes = cluster.atelier(["node", "list", "-o", "json"]).ok().json();
        let is_back = |node: &&Value| node["state"] == "running" && node["name"] != head.as_str();
        (nodes.as_array()?.iter().filter(is_back).count() == 2).then_some(())
    });
    cluster.start_agent(&Agent::new(&head).cpus(1));
    let ended = cluster.completed(&job);
    assert_eq!(ended.members[0].exit_code, Some(0));
    assert!(ended.members[1..].iter().all(|member| member.exit_code != Some(1)), "{ended:?}");
}

#[test]
fn a_ray_that_is_missing_is_told() {
    let cluster = cluster(2);
    let more = "distribution: {type: ray}\nenvironment_variables: {PATH: /nowhere}\n";
    let job = cluster.create(&gang(2, "true", more));
    let ended = cluster.rpc().reaches(&job, &[JobStatus::Failed], PATIENCE);
    let said = message(&ended);
    assert!(said.contains("'ray' was not found") && said.contains("environment"), "{said}");
}

/// Where tasks ran, by Ray's own word.
const TASKS: &str = r#"
import os, time, ray
ray.init()
bound = time.monotonic() + 90
while sum(node["Alive"] for node in ray.nodes()) < 2:
    assert time.monotonic() < bound, ray.nodes()
    time.sleep(0.2)
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where(number):
    time.sleep(0.5)
    return os.environ["AZUREML_CR_NODE_RANK"]
print("cpus", ray.cluster_resources()["CPU"], "ran in", sorted(set(ray.get([where.remote(n) for n in range(6)]))))
"#;

#[test]
fn ray_runs_tasks_on_all_nodes() {
    let Ok(python) = std::env::var("ATELIER_TEST_RAY") else {
        panic!("ATELIER_TEST_RAY is to name a Python with Ray; leave this out with --skip ray_runs")
    };
    let bin = std::path::Path::new(&python).parent().unwrap().display().to_string();
    let cluster = cluster(2);
    cluster.write("code/tasks.py", TASKS);
    let more = format!(
        "distribution: {{type: ray, include_dashboard: false}}\ncode: code\n\
         environment_variables: {{PATH: '{bin}:/usr/bin:/bin'}}\n"
    );
    cluster.write("job.yml", gang(2, "python3 tasks.py", &more));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    let ended = cluster.rpc().reaches(
        &job,
        &[JobStatus::Completed, JobStatus::Failed],
        std::time::Duration::from_secs(150),
    );
    let log = String::from_utf8_lossy(&cluster.log(&job)).into_owned();
    assert_eq!(ended.status(), JobStatus::Completed, "{}\n{log}", message(&ended));
    assert!(log.contains("cpus 2.0 ran in ['0', '1']"), "{log}");
}
