//! Jobs log on their own node: nothing is lost or doubled while daemons and agents come and go, and nobody else gets
//! in.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, Settings, http, until};
use crate::tls::python;

/// Logs with MLflow's own client, and goes on when it is told to.
const LOGS: &str = r#"
import os, sys, time
# Its threads change variables while others read them, which fails now and then.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow

def wait(name):
    while not os.path.exists(sys.argv[1] + "/" + name):
        time.sleep(0.02)

def tell(name):
    open(sys.argv[1] + "/" + name, "w").close()

def log(*steps):
    for step in range(*steps):
        mlflow.log_metric("loss", step / 10, step=step)

def latest():
    return mlflow.get_run(os.environ["ATELIER_JOB"]).data.metrics["loss"]

with mlflow.start_run():
    log(0, 30)
    assert latest() == 2.9, latest()
    with mlflow.start_run(nested=True) as child:
        for step in range(20):
            mlflow.log_metric("inner", step, step=step)
        print("child", child.info.run_id)
    tell("first")
    wait("away")
    log(30, 80)
    mlflow.log_metrics({"a": 1.5, "b": float("nan")}, step=1)
    tell("logged")
    wait("again")
    log(80, 130)
    tell("more")
    wait("back")
    assert latest() == 12.9, latest()
    mlflow.log_text("hello", "notes/a.txt")
    log(130, 140)
"#;

fn history(cluster: &Cluster, run: &str, key: &str) -> Vec<Value> {
    let path = format!("GET /api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key={key}");
    let (status, answer) = http(&cluster.server(), &path, &cluster.token(), "").unwrap();
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["metrics"].as_array().cloned().unwrap_or_default()
}

/// The file in which the points of the one attempt on this node wait.
fn spool(cluster: &Cluster) -> PathBuf {
    let attempts = fs::read_dir(cluster.agent_data("local").join("attempts")).unwrap();
    let mut found = attempts.map(|attempt| attempt.unwrap().path().join("spool"));
    found.find(|path| path.exists()).unwrap()
}

/// Bytes of one that holds nothing.
const EMPTY: u64 = 32;

fn bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn points_are_all_there_once_whatever_comes_and_goes_while_they_are_logged() {
    let serve = ["--lease", "300"].map(str::to_owned).to_vec();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    // The Python may lie where only this user has a way.
    let agent = Agent::new("local").with("--job-users=none");
    cluster.start_agent(&agent);
    let script = cluster.write("logs.py", LOGS);
    let shared = cluster.shared_folder("shared");
    let told = |name: &str| until(name, || shared.join(name).exists().then_some(()));
    let tell = |name: &str| fs::write(shared.join(name), "").unwrap();
    let (python, script) = (python(), script.display());
    let job = cluster.shell(&format!("{} {script} {}", python.display(), shared.display()));

    told("first");
    cluster.daemon(|daemon| daemon.kill());
    tell("away");
    told("logged");
    cluster.agent("local", |agent| agent.kill());
    cluster.launch_agent(&agent);
    tell("again");
    told("more");
    let spool = spool(&cluster);
    assert!(bytes(&spool) > EMPTY + 100 * 50, "{}", bytes(&spool));
    let unsent = fs::read(&spool).unwrap();
    // One that is asked to stop leaves all of it to the next, too.
    cluster.agent("local", |agent| agent.stop());
    assert_eq!(fs::read(&spool).unwrap(), unsent);
    cluster.launch_agent(&agent);

    cluster.start_daemon();
    until("all is sent", || (bytes(&spool) == EMPTY).then_some(()));
    // As after a power cut, which may bring back a file from before.
    cluster.agent("local", |agent| agent.kill());
    fs::write(&spool, unsent).unwrap();
    cluster.start_agent(&agent);
    tell("back");
    cluster.completed(&job);

    let points = history(&cluster, &job, "loss");
    let steps: BTreeSet<i64> = points.iter().map(|point| point["step"].as_i64().unwrap()).collect();
    assert_eq!((points.len(), steps), (140, (0..140).collect()));
    for point in &points {
        assert_eq!(point["value"], json!(point["step"].as_f64().unwrap() / 10.0));
    }
    assert_eq!(history(&cluster, &job, "a").len(), 1);
    assert_eq!(history(&cluster, &job, "b")[0]["value"], "NaN");
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let child = log.lines().find_map(|line| line.strip_prefix("child ")).unwrap();
    assert_eq!(history(&cluster, child, "inner").len(), 20);
    assert!(!spool.exists());
}

/// One request with these headers.
fn ask(address: &str, what: &str, headers: &[&str], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_node_serves_its_own_jobs_alone_and_refuses_in_the_daemons_words() {
    let cluster = Cluster::start();
    let shared = cluster.shared_folder("shared");
    let at = shared.display();
    let job = cluster.shell(&format!(
        "echo $MLFLOW_TRACKING_URI $AZUREML_SERVICE_ENDPOINT $MLFLOW_TRACKING_TOKEN >{at}/.told\n\
         mv {at}/.told {at}/told; until [ -e {at}/go ]; do sleep 0.05; done"
    ));
    let told = until("the job tells its address", || fs::read_to_string(shared.join("told")).ok());
    let [node, daemon, token] = told.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{told}");
    };
    assert_ne!(node, daemon);
    let post = |server: &str, call: &str, body: &str| {
        http(server, &format!("POST /api/2.0/mlflow/runs/{call}"), token, body).unwrap()
    };
    let metric = |key: &str, more: &str| {
        format!(r#"{{"run_id":"{job}","key":"{key}","value":0.5,"timestamp":1{more}}}"#)
    };

    // What is wrong is told in the same words, whoever is asked.
    let point = json!({ "key": "k", "value": 1, "timestamp": 1, "step": 1 });
    let many = json!({ "run_id": job, "metrics": vec![point; 1001] }).to_string();
    let mut wrong = vec![
        ("log-metric", "{}".to_owned()),
        ("log-metric", metric("k", r#","step":"x""#)),
        ("log-metric", metric("k", r#","timestamp":-1"#)),
        ("log-metric", metric(&"k".repeat(251), "")),
        ("log-metric", metric("../k", "")),
        ("log-metric", metric("k", r#","value":NaN"#)),
        ("log-metric", metric("k", "")[..20].to_owned()),
        ("log-metric", metric("k", "").replace(&job, "no/run")),
        ("log-metric", metric("k", "").replace(&job, "nobody")),
        ("log-metric", metric("k", r#","model_id":"m-nobody""#)),
        ("log-batch", many),
        ("log-batch", format!(r#"{{"run_id":"{job}","metrics":{{}}}}"#)),
        ("log-batch", format!(r#"{{"run_id":"{job}","metrics":[{{"key":"a"}}]}}"#)),
    ];
    wrong.push(("log-batch", "[]".to_owned()));
    for (call, body) in wrong {
        let answer = post(node, call, &body);
        assert!((400..500).contains(&answer.0), "{call} {body}: {answer:?}");
        assert_eq!(answer, post(daemon, call, &body), "{call} {body}");
    }

    // What is right is taken, and read at once.
    assert_eq!(post(node, "log-metric", &metric("k", "")), (200, "{}".to_owned()));
    let (_, run) =
        http(node, &format!("GET /api/2.0/mlflow/runs/get?run_id={job}"), token, "").unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["run"]["data"]["metrics"][0]["value"], 0.5, "{run}");

    // Others are not let in, nor are pages that a browser shows.
    let (path, body) = ("POST /api/2.0/mlflow/runs/log-metric", metric("stranger", ""));
    let host = format!("Host: {}", node.trim_start_matches("http://"));
    let own = format!("Authorization: Bearer {token}");
    let admin = format!("Authorization: Bearer {}", cluster.token());
    for (headers, expected) in [
        (vec![&*host], 401),
        (vec![&*host, &*admin], 401),
        (vec![&*host, "Authorization: Bearer "], 401),
        (vec!["Host: evil.example", &*own], 403),
        (vec![&*host, &*own, "Origin: http://evil.example"], 403),
        (vec![&*host, &*own, "Sec-Fetch-Site: cross-site"], 403),
    ] {
        let (status, said) = ask(node, path, &headers, &body);
        assert_eq!(status, expected, "{headers:?}: {said}");
        assert!(said.contains("error_code"), "{said}");
    }
    for path in
        ["GET /data/v1/workspaceartifactstore?prefix=", "GET /healthz", "GET /api/../healthz"]
    {
        let (status, said) = ask(node, path, &[&host, &own], "");
        assert_eq!(status, 404, "{path}: {said}");
        assert!(said.contains("AZUREML_SERVICE_ENDPOINT"), "{said}");
    }
    assert!(history(&cluster, &job, "stranger").is_empty());

    // What the daemon takes no more is told, and then the job hears it itself.
    let id = json!({ "run_id": job }).to_string();
    let to_daemon = |call: &str| {
        let path = format!("POST /api/2.0/mlflow/runs/{call}");
        assert_eq!(http(&cluster.server(), &path, &cluster.token(), &id).unwrap().0, 200);
    };
    to_daemon("delete");
    assert_eq!(post(node, "log-metric", &metric("late", "")).0, 200);
    until("the agent tells", || {
        cluster.agent("local", |agent| agent.said("refuses points")).then_some(())
    });
    let (status, said) = post(node, "log-metric", &metric("late", ""));
    assert!(status == 400 && said.contains("'active' state"), "{status} {said}");
    to_daemon("restore");
    assert_eq!(post(node, "log-metric", &metric("late", r#","step":2"#)).0, 200);
    fs::write(shared.join("go"), "").unwrap();
    cluster.completed(&job);
    let late = history(&cluster, &job, "late");
    assert_eq!((late.len(), &late[0]["step"]), (1, &json!(2)));
    // Its token is nobody's now.
    assert_eq!(post(node, "log-metric", &metric("k", "")).0, 401);
}
