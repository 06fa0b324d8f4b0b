//! Addresses that jobs have no way to: cloud metadata, and the port by which the daemon is told what to do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Agent, Cluster, Registry, http, needs, processes_with, until};

/// Tries each and prints by what error it failed, and in how many whole seconds; then logs a metric. `CONTROL`
/// is the daemon's control port.
const TRY: &str = r#"
import errno, json, os, socket, time, urllib.request
port = int(os.environ["CONTROL"].rsplit(":", 1)[1])
v4, v6 = socket.AF_INET, socket.AF_INET6
places = [
    ("metadata", v4, ("169.254.169.254", 80)), ("mapped", v6, ("::ffff:169.254.169.254", 80)),
    ("azure", v4, ("168.63.129.16", 80)), ("amazon", v6, ("fd00:ec2::254", 80)),
    ("control", v4, ("127.0.0.1", port)), ("control-mapped", v6, ("::ffff:127.0.0.1", port)),
    ("control-6", v6, ("::1", port)), ("control-any", v4, ("0.0.0.0", port)),
    ("control-host", v4, (socket.gethostbyname(socket.gethostname()), port)),
]
for name, family, to in places:
    for way, kind in [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM), ("send", None)]:
        made = socket.socket(family, kind or socket.SOCK_DGRAM)
        made.settimeout(5)
        began = time.monotonic()
        try:
            made.connect(to) if kind else made.sendto(b"x", to)
            said = "done"
        except OSError as error:
            said = errno.errorcode.get(error.errno, str(error))
        print(f"{name}-{way}={said} {time.monotonic() - began:.0f}")
jobs = int(os.environ["AZUREML_SERVICE_ENDPOINT"].rsplit(":", 1)[1])
spool = int(os.environ["MLFLOW_TRACKING_URI"].rsplit(":", 1)[1])
for name, family, to in [
    ("listen", v4, ("127.0.0.1", port)), ("listen-any", v4, ("0.0.0.0", port)), ("listen-6", v6, ("::1", port)),
    ("listen-jobs", v4, ("127.0.0.1", jobs)), ("listen-jobs-any", v6, ("::", jobs)),
    ("listen-spool", v4, ("127.0.0.1", spool)), ("listen-spool-any", v4, ("0.0.0.0", spool)),
]:
    try:
        socket.socket(family).bind(to)
        said = "done"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    print(f"{name}={said} 0")
body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "loss", "value": 1.5, "timestamp": 1, "step": 7}
request = urllib.request.Request(
    os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric", json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"})
print("logged", urllib.request.urlopen(request).status)
"#;

/// Nine places, in three ways each, and seven at which others would find the job instead of the daemon or the agent.
const TRIED: usize = 27 + 7;

fn yaml(cluster: &Cluster, command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    let control = cluster.server();
    format!("command: |\n{block}environment_variables: {{CONTROL: \"{control}\"}}\n{more}")
}

/// What a job on this agent says.
fn said(cluster: &Cluster) -> Vec<String> {
    cluster.write("code/try.py", TRY);
    let job = cluster.create(&yaml(cluster, "python3 try.py", "code: code\n"));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    assert!(log.ends_with("logged 200\n"), "{log}");
    let path = format!("GET /api/2.0/mlflow/metrics/get-history?run_id={job}&metric_key=loss");
    let (status, answer) = http(&cluster.server(), &path, &cluster.token(), "").unwrap();
    assert!(status == 200 && answer.contains("1.5"), "{answer}");
    log.lines().filter(|line| line.contains('=')).map(str::to_owned).collect()
}

fn facts(cluster: &Cluster) -> serde_json::Value {
    cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json()["facts"].clone()
}

#[test]
fn a_job_has_no_way_to_metadata_and_orders_and_logs_all_the_same() {
    needs("addresses");
    // It is not by what it sees of its node, nor by whom it runs as.
    for isolation in ["--isolation=auto", "--isolation=none"] {
        let cluster = Cluster::empty();
        cluster.start_daemon();
        cluster.start_agent(&Agent::new("local").with(isolation));
        let said = said(&cluster);
        assert_eq!(said.len(), TRIED, "{said:#?}");
        assert!(said.iter().all(|line| line.ends_with("=EPERM 0")), "{said:#?}");
        let facts = facts(&cluster);
        assert_eq!(facts["closed"], "metadata and control", "{facts}");
        assert_eq!(facts["not_closed"], serde_json::Value::Null, "{facts}");
    }
}

#[test]
fn a_command_in_a_job_has_no_more_ways_than_the_job() {
    needs("addresses");
    let cluster = Cluster::start();
    let job = cluster.shell("exec sleep 600.05172");
    until("the job runs", || processes_with("sleep\x00600.05172").first().copied());
    let look = "import socket; socket.socket().connect((\"169.254.169.254\", 80))";
    let arguments = ["job", "exec", &job, "--", "python3", "-c", look];
    cluster.atelier(arguments).fails(1).says(&["Operation not permitted"]);
    cluster.atelier(["job", "cancel", &job]).ok();
}

#[test]
fn containers_have_no_way_to_metadata_and_orders() {
    needs("addresses");
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    let command = "jobs=${AZUREML_SERVICE_ENDPOINT#http://}; control=${CONTROL#http://}\n\
                   for one in 169.254.169.254:80 $control $jobs ${MLFLOW_TRACKING_URI#http://}; do\n\
                   echo x | nc -w 5 ${one%:*} ${one##*:} && echo reached\ndone";
    let image = format!("environment: {{image: {}}}\n", registry.shell());
    let job = cluster.create(&yaml(&cluster, command, &image));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    assert_eq!(log.matches("Operation not permitted").count(), 2, "{log}");
    assert!(log.ends_with("reached\n") && log.matches("reached").count() == 2, "{log}");
}

#[test]
fn containers_are_built_where_there_is_no_way_to_metadata() {
    needs("addresses");
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    let steps = "RUN cat /proc/self/cgroup > /groups; echo x | nc -w 5 169.254.169.254 80 > /said 2>&1; true\n";
    cluster.write("context/Dockerfile", format!("FROM {}\n{steps}{steps}", registry.shell()));
    let image = "environment: {build: {path: context}}\n";
    let job = cluster.create(&format!("command: cat /said /groups\n{image}"));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    assert!(log.contains("Operation not permitted"), "{log}");
    // Within what all jobs have.
    assert!(
        log.lines().any(|line| line.starts_with("0::") && line.contains("/build-images/")),
        "{log}"
    );
}

#[test]
fn a_job_from_before_there_were_two_ports_logs_where_it_was_told() {
    needs("addresses");
    let cluster = Cluster::start();
    let connect = "import os, socket\nhost, port = os.environ['CONTROL'][7:].split(':')\n\
                   socket.create_connection((host, int(port)))";
    cluster.write("code/connect.py", connect);
    let go = cluster.files().join("go");
    let wait = format!(
        "until [ -e {} ]; do sleep 0.05; done; python3 connect.py && echo reached",
        go.display()
    );
    let job = cluster.create(&yaml(&cluster, &wait, "code: code\n"));
    cluster.running(&job);
    let attempts = cluster.agent_data("local").join("attempts");
    let attempt = fs::read_dir(attempts).unwrap().next().unwrap().unwrap().path();
    let record = attempt.join("launch.json");
    let mut launch: serde_json::Value =
        serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!(launch["apart"], true, "{launch}");
    launch.as_object_mut().unwrap().remove("apart");
    cluster.agent("local", |agent| agent.kill());
    fs::write(&record, launch.to_string()).unwrap();
    cluster.start_agent(&Agent::new("local"));
    let told = facts(&cluster);
    assert_eq!(told["closed"], "none", "{told}");
    assert_eq!(told["not_closed"], "jobs of an earlier version need the control port", "{told}");
    fs::write(&go, "").unwrap();
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"reached\n");
    // Once it is over it is closed again.
    let is_closed = || (facts(&cluster)["closed"] == "metadata and control").then_some(());
    until("the node closes it", is_closed);
    let job = cluster.create(&yaml(&cluster, "python3 connect.py", "code: code\n"));
    let ended = cluster.ended(&job);
    assert_eq!(ended.exit_code, Some(1), "{ended:?}");
    assert!(String::from_utf8(cluster.log(&job)).unwrap().contains("PermissionError"));
}

#[test]
fn a_job_does_not_listen_in_the_daemons_stead_while_that_is_away() {
    needs("addresses");
    let cluster = Cluster::start();
    let listen = "import errno, os, socket\n\
                  for url in [os.environ['CONTROL'], os.environ['AZUREML_SERVICE_ENDPOINT']]:\n    \
                  port = int(url.rsplit(':', 1)[1])\n    \
                  try:\n        socket.socket().bind(('127.0.0.1', port)); print('taken')\n    \
                  except OSError as error: print(errno.errorcode[error.errno])";
    cluster.write("code/listen.py", listen);
    let (go, tried) = (cluster.files().join("go"), cluster.files().join("tried"));
    let command = format!(
        "until [ -e {} ]; do sleep 0.05; done; python3 listen.py; touch {}",
        go.display(),
        tried.display()
    );
    let writable = format!("--writable={}", cluster.files().display());
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&Agent::new("local").with(&writable));
    let job = cluster.create(&yaml(&cluster, &command, "code: code\n"));
    cluster.running(&job);
    cluster.daemon(|daemon| daemon.kill());
    // Nor under an agent that has not found one.
    cluster.agent("local", |agent| agent.kill());
    cluster.launch_agent(&Agent::new("local").with(&writable));
    until("the agent waits for the daemon", || {
        let said = cluster.agent("local", |process| process.printed());
        said.contains("no session with the daemon").then_some(())
    });
    fs::write(&go, "").unwrap();
    until("it has tried", || tried.exists().then_some(()));
    cluster.start_daemon();
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"EPERM\nEPERM\n");
}

#[test]
fn jobs_find_a_daemon_that_was_restarted_where_it_was_and_orders_elsewhere_stay_closed() {
    needs("addresses");
    let cluster = Cluster::start();
    let before = fs::read_to_string(cluster.data().join("jobs.address")).unwrap();
    let control = cluster.server();
    // A port that is free: the daemon comes back at another one.
    cluster.restart_daemon_hard();
    cluster.node_is_ready("local");
    assert_ne!(cluster.server(), control);
    assert_eq!(fs::read_to_string(cluster.data().join("jobs.address")).unwrap(), before);
    let said = said(&cluster);
    assert!(said.iter().all(|line| line.ends_with("=EPERM 0")), "{said:#?}");
    // Agents are told of the jobs' port before they offer to run any.
    let asked = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let mut daemon = TcpStream::connect(cluster.server().trim_start_matches("http://")).unwrap();
    daemon.write_all(asked.as_bytes()).unwrap();
    let mut answer = String::new();
    daemon.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("atelier-jobs-url: http://{before}\r\n")), "{answer}");
    // What gives orders is not on the jobs' port.
    let list = cluster.atelier_at(&format!("http://{before}"), ["job", "list"]);
    list.fails(1).says(&["the daemon's port for jobs", "endpoint"]);
}
