//! GPUs that break while jobs run. What the devices are and do is a recording, which the tests change.
//! The numbers are those of `docs/reliability.md`.

use std::fs;
use std::path::PathBuf;

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, needs, processes_with, until};

/// The devices of one node.
struct Gpus {
    file: PathBuf,
    gpus: Vec<Value>,
}

impl Gpus {
    /// So many whole devices of 1000 MiB each.
    fn new(cluster: &Cluster, count: usize) -> Self {
        let gpu = |index| {
            json!({
                "index": index,
                "uuid": format!("GPU-{index}"),
                "model": "NVIDIA H200",
                "memory_mib": 1000,
            })
        };
        let file = cluster.path().join("gpus.json");
        let gpus = Self { file, gpus: (0..count).map(gpu).collect() };
        gpus.write();
        gpus
    }

    /// Sets a field of a device.
    fn set(&mut self, index: usize, field: &str, value: Value) {
        self.gpus[index][field] = value;
        self.write();
    }

    /// The driver answers nobody, until something is set.
    fn fall_silent(&self) {
        let silent = json!({ "gpus": self.gpus, "silent": true });
        fs::write(&self.file, silent.to_string()).unwrap();
    }

    fn write(&self) {
        let next = self.file.with_extension("next");
        fs::write(&next, json!({ "gpus": self.gpus }).to_string()).unwrap();
        fs::rename(next, &self.file).unwrap();
    }

    fn agent(&self, name: &str) -> Agent {
        Agent::new(name).cpus(4).with("--gpu-recording").with(&self.file.display().to_string())
    }
}

/// A job with so many GPUs, which prints `runs` and those it has.
fn job(command: &str, gpus: u32, more: &str) -> String {
    let command = format!("echo runs on $CUDA_VISIBLE_DEVICES; {command}");
    format!("command: {command:?}\nresources: {{cpus: 1, gpus: {gpus}{more}}}\n")
}

/// Submits a job and waits until it has said on which devices it runs.
fn started(cluster: &Cluster, yaml: &str) -> String {
    let name = cluster.create(yaml);
    cluster.atelier(["job", "stream", &name]).spawn().prints("runs on");
    name
}

fn node(cluster: &Cluster) -> Value {
    cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json()
}

fn reason(cluster: &Cluster) -> String {
    node(cluster)["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn f41_a_job_whose_gpu_is_lost_goes_on_with_another() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    cluster.start_agent(&gpus.agent("local"));
    let marker = cluster.files().join("first");
    let again = format!("[ -e {0} ] || {{ touch {0}; sleep 1000; }}", marker.display());
    let lost = started(&cluster, &job(&again, 1, ""));
    until("it runs", || marker.exists().then_some(()));

    // An error of the job's own making changes nothing.
    gpus.set(0, "health", json!({ "xids": [13, 43] }));
    gpus.set(1, "health", json!({ "xids": [45] }));
    let other = started(&cluster, &job("true", 1, ""));
    cluster.completed(&other);

    gpus.set(0, "health", json!({ "xids": [13, 43, 79] }));
    let ended = cluster.completed(&lost);
    assert_eq!(ended.attempt, 2, "{ended:?}");
    let log = String::from_utf8(cluster.log(&lost)).unwrap();
    assert!(log.ends_with("runs on 1\n"), "{log}");
    let requeued = cluster.rpc().events(&lost).unwrap().into_iter();
    let requeued: Vec<_> =
        requeued.filter(|e| e.kind == "Requeued").map(|event| event.message).collect();
    assert_eq!(requeued.len(), 1);
    assert!(
        requeued[0].contains("GPU 0 of the node, which the job had, is out: Xid 79"),
        "{requeued:?}"
    );

    // It is in nobody's hands now, and whoever asks is told why.
    let told = "GPU 0 is out: Xid 79, it has fallen off the bus";
    assert_eq!(reason(&cluster), told);
    let shown = node(&cluster);
    assert_eq!(shown["capacity"]["gpus"], 1, "{shown}");
    assert_eq!(shown["gpus"][0]["out"], "Xid 79, it has fallen off the bus", "{shown}");
    assert_eq!(shown["gpus"][1]["out"], Value::Null, "{shown}");
    let listed = cluster.atelier(["compute", "list-nodes", "local"]).ok();
    assert!(listed.stdout().contains(told), "{}", listed.stdout());

    // An agent that starts again has not heard the driver, and yet knows.
    gpus.set(0, "health", json!({}));
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&gpus.agent("local"));
    assert_eq!(reason(&cluster), told);

    // Whoever has mended it says so, and restarts the agent.
    cluster.agent("local", |agent| agent.kill());
    fs::remove_file(cluster.agent_data("local").join("gpus-out.json")).unwrap();
    cluster.start_agent(&gpus.agent("local"));
    until("the device is back", || reason(&cluster).is_empty().then_some(()));
    let both = cluster.create(&job("true", 2, ""));
    cluster.completed(&both);
}

#[test]
fn f41_a_job_ends_by_itself_on_a_gpu_that_only_aches() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 1);
    cluster.start_agent(&gpus.agent("local"));
    let go = cluster.files().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let runs = started(&cluster, &job(&waits, 1, ""));
    gpus.set(0, "health", json!({ "remap_pending": true }));
    until("the device is out", || {
        reason(&cluster).contains("GPU 0 is out: rows of its memory wait").then_some(())
    });
    // Nothing new gets it; what runs there goes on to its end.
    let waiting = cluster.create(&job("true", 1, ""));
    fs::write(&go, "").unwrap();
    assert_eq!(cluster.completed(&runs).attempt, 1);
    assert_eq!(cluster.rpc().job(&waiting).unwrap().status(), JobStatus::Queued);
}

#[test]
fn f41_a_job_that_fails_on_a_broken_gpu_does_not_pay_for_it() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    cluster.start_agent(&gpus.agent("local"));
    let (go, marker) = (cluster.files().join("go"), cluster.files().join("first"));
    // The program sees the fault before the agent does, or the other way round: it is the same.
    let fails = format!(
        "[ -e {0} ] && exit 0; touch {0}; while [ ! -e {1} ]; do sleep 0.01; done; exit 1",
        marker.display(),
        go.display()
    );
    let name = started(&cluster, &job(&fails, 1, ""));
    until("it runs", || marker.exists().then_some(()));
    gpus.set(0, "health", json!({ "uncorrected_volatile": 2 }));
    fs::write(&go, "").unwrap();
    let ended = cluster.completed(&name);
    assert_eq!(ended.attempt, 2);
    assert_eq!(reason(&cluster), "GPU 0 is out: 2 uncorrected ECC errors");
}

#[test]
fn f42_a_gpu_whose_memory_is_not_given_back_is_given_to_nobody() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    cluster.start_agent(&gpus.agent("local"));
    let go = cluster.files().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let name = started(&cluster, &job(&waits, 1, ""));
    gpus.set(0, "memory_used_mib", json!(40_000));
    fs::write(&go, "").unwrap();
    cluster.completed(&name);
    let told = reason(&cluster);
    assert!(told.starts_with("GPU 0 is out: 40000 MiB of its memory were not"), "{told}");
    let next = cluster.create(&job("true", 1, ""));
    cluster.completed(&next);
    assert_eq!(cluster.log(&next), b"runs on 1\n");
}

#[test]
fn f43_a_job_that_takes_more_than_its_share_of_a_gpu_is_ended_and_told() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 1);
    cluster.start_agent(&gpus.agent("local"));
    let half = |command: &str| job(command, 0, "").replace("gpus: 0", "gpus: 0.5");
    let go = cluster.files().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let neighbour = started(&cluster, &half(&waits));
    let greedy = started(&cluster, &half("sleep 1000"));
    let on = |name: &str, memory: u64| {
        let pid = processes_with(&format!("ATELIER_JOB={name}\0"))[0];
        json!({ "pid": pid.as_raw_pid(), "memory_mib": memory, "utilization": 25 })
    };
    gpus.set(0, "processes", json!([on(&neighbour, 480), on(&greedy, 510)]));
    let ended = cluster.ended(&greedy);
    assert_eq!(ended.status(), JobStatus::Failed);
    let shown = cluster.atelier(["job", "show", &greedy, "-o", "json"]).ok().json();
    assert_eq!(shown["error"]["code"], "GpuOutOfMemory", "{shown}");
    let said = shown["error"]["message"].as_str().unwrap();
    let expected = "used 510 MiB of the memory of GPU 0; its share of 0.5 is 500 MiB";
    assert!(said.contains(expected) && said.contains("resources.gpus"), "{said}");
    fs::write(&go, "").unwrap();
    cluster.completed(&neighbour);
}

/// The device that stands for a GPU's is one that every machine has: `/dev/full`.
#[test]
fn a_gpu_of_another_job_cannot_be_opened() {
    needs("devices");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    gpus.set(0, "nodes", json!([[1, 7]]));
    cluster.start_agent(&gpus.agent("local"));
    let facts = &node(&cluster)["facts"];
    assert!(facts["limited"].as_str().unwrap().contains("devices"), "{facts}");
    let opens = "if (: < /dev/full) 2>/dev/null; then echo opened; else echo refused; fi";
    let with = cluster.create(&job(opens, 1, ""));
    cluster.completed(&with);
    assert_eq!(cluster.log(&with), b"runs on 0\nopened\n");
    let without = cluster.create(&job(opens, 0, ""));
    cluster.completed(&without);
    assert_eq!(cluster.log(&without), b"runs on\nrefused\n");
}

/// Nobody knows then which device is whose, so that all are closed; they come when the driver does.
#[test]
fn gpus_of_a_driver_that_is_late_come_later_and_are_closed_until_then() {
    needs("devices");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 1);
    gpus.set(0, "nodes", json!([[1, 7]]));
    gpus.fall_silent();
    cluster.start_agent(&gpus.agent("local"));
    let facts = &node(&cluster)["facts"];
    assert!(facts["limited"].as_str().unwrap().contains("devices"), "{facts}");
    let silence = |told: &str| {
        let seconds = told.strip_prefix("the GPU driver has not answered for ");
        let seconds = seconds.and_then(|rest| rest.split_once(" s")?.0.parse::<u64>().ok());
        seconds.unwrap_or_else(|| panic!("{told}"))
    };
    let told = silence(facts["gpu_driver"].as_str().unwrap());
    assert!(told >= 30 && silence(&reason(&cluster)) >= told, "{facts}");
    let opens = "if (: < /dev/full) 2>/dev/null; then echo opened; else echo refused; fi";
    let without = cluster.create(&job(opens, 0, ""));
    cluster.completed(&without);
    assert_eq!(cluster.log(&without), b"runs on\nrefused\n");
    // It is not known to be too much.
    let with = cluster.create(&job(opens, 1, ""));
    assert_eq!(cluster.rpc().job(&with).unwrap().status(), JobStatus::Queued);
    gpus.set(0, "memory_mib", json!(2000));
    cluster.completed(&with);
    assert_eq!(cluster.log(&with), b"runs on 0\nopened\n");
    assert_eq!(node(&cluster)["facts"]["gpu_driver"], Value::Null);
    let without = cluster.create(&job(opens, 0, ""));
    cluster.completed(&without);
    assert_eq!(cluster.log(&without), b"runs on\nrefused\n");
}

/// Whoever looks into what a failed job left has none of its devices: they are given to the next.
#[test]
fn what_is_kept_of_a_failed_job_has_no_gpu() {
    needs("devices");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 1);
    gpus.set(0, "nodes", json!([[1, 7]]));
    cluster.start_agent(&gpus.agent("local"));
    let opens = "if (: < /dev/full) 2>/dev/null; then echo opened; else echo refused; fi";
    let failed = job(&format!("{opens}; exit 3"), 1, "") + "keep_failed: 30m\n";
    let failed = cluster.create(&failed);
    assert_eq!(cluster.ended(&failed).status(), JobStatus::Failed);
    assert_eq!(cluster.log(&failed), b"runs on 0\nopened\n");
    let look = format!("echo \"($CUDA_VISIBLE_DEVICES)\"; {opens}");
    let debug = ["job", "debug", &failed, "--", "sh", "-c", &look];
    for _ in 0..2 {
        assert_eq!(cluster.atelier(debug).ok().stdout(), "()\nrefused\n");
    }
    let next = cluster.create(&job(opens, 1, ""));
    cluster.completed(&next);
    assert_eq!(cluster.log(&next), b"runs on 0\nopened\n");
}

#[test]
fn what_a_job_did_on_its_gpu_is_told() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    gpus.set(0, "utilization", json!(50));
    gpus.set(0, "memory_used_mib", json!(750));
    cluster.start_agent(&gpus.agent("local").with("--monitor-interval").with("1"));
    let go = cluster.files().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let name = started(&cluster, &job(&waits, 1, ""));
    let usage = || cluster.atelier(["job", "show", &name, "--usage", "-o", "json"]).ok().json();
    until("the device is looked at", || {
        let percent = &usage()["last_samples"]["system/gpu_0_memory_usage_percentage"];
        (percent.as_f64() == Some(75.0)).then_some(())
    });

    let top = || cluster.atelier(["node", "top", "-o", "json"]).ok().json();
    // With the node's first heartbeat.
    let told = |top: &Value| top["nodes"][0]["gpus"][0]["utilization"].is_number();
    let top = until("the node tells", || Some(top()).filter(told));
    let seen = &top["nodes"][0]["gpus"];
    assert_eq!(seen[0]["utilization"], 50.0, "{top}");
    assert_eq!(seen[0]["memory_used_mib"], 750.0, "{top}");
    assert_eq!(
        (&seen[0]["free_share"], &seen[1]["free_share"]),
        (&json!(0.0), &json!(1.0)),
        "{top}"
    );
    assert_eq!(top["nodes"][0]["jobs"], json!([name]), "{top}");
    let drawn = cluster.atelier(["node", "top", "--once"]).ok();
    assert!(drawn.stdout().contains("NVIDIA H200"), "{}", drawn.stdout());
    assert!(drawn.stdout().contains("0.7 of 1.0 GiB"), "{}", drawn.stdout());

    fs::write(&go, "").unwrap();
    cluster.completed(&name);
    let used = &usage()["usage"];
    assert_eq!(used["peak_gpu_memory"], "750 MiB", "{used}");
    let (busy, wall) =
        (used["gpu_seconds"].as_f64().unwrap(), used["wall_seconds"].as_f64().unwrap());
    assert!(busy > 0.0 && busy <= wall, "{used}");
    let without = cluster.create("command: 'true'\n");
    cluster.completed(&without);
    let shown = cluster.atelier(["job", "show", &without, "--usage", "-o", "json"]).ok().json();
    assert_eq!(shown["usage"]["gpu_seconds"], Value::Null, "{shown}");
}

#[test]
fn a_job_whose_gpus_do_nothing_is_stopped_or_told() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let mut gpus = Gpus::new(&cluster, 2);
    gpus.set(1, "utilization", json!(70));
    cluster.start_agent(&gpus.agent("local"));
    let go = cluster.files().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let idle =
        |action| format!("{}idle_gpu: {{action: {action}, after: 2s}}\n", job(&waits, 1, ""));
    let stopped = started(&cluster, &idle("stop"));
    let told = started(&cluster, &idle("notify"));
    let ended = cluster.ended(&stopped);
    assert_eq!(ended.status(), JobStatus::Canceled, "{ended:?}");
    let why = ended.error.unwrap_or_default().message;
    assert!(why.contains("GPUs did nothing for 2 s") && why.contains("idle_gpu"), "{why}");

    // The other's device has been working; each time it stops there is one event.
    let events = || {
        let all = cluster.rpc().events(&told).unwrap().into_iter();
        all.filter(|event| event.kind == "GpuIdle").collect::<Vec<_>>()
    };
    assert_eq!(events().len(), 0);
    gpus.set(1, "utilization", json!(0));
    until("its user is told", || (events().len() == 1).then_some(()));
    let said = &events()[0].message;
    assert!(said.starts_with("its GPUs on node local have done nothing since 20"), "{said}");
    fs::write(&go, "").unwrap();
    cluster.completed(&told);
    assert_eq!(events().len(), 1);

    let without = format!("{}idle_gpu: {{}}\n", job("true", 0, ""));
    let create = cluster.atelier(["job", "create", "-f", "-"]);
    create.stdin(without).fails(1).says(&["no GPU is asked for"]);
}
