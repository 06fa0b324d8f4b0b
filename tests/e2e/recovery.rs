//! Misfortunes: what is killed, frozen, cut or damaged, and what must hold all the same. The
//! numbers are those of `docs/reliability.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use atelier_proto::job::v1::{self as pb, JobStatus};
use rustix::process::Signal;

use crate::harness::{Agent, Cluster, Process, http, until};
#[cfg(feature = "failpoints")]
use crate::harness::{History, check_database};

/// A job that writes a durable line when it starts and when it ends.
fn recorded(cluster: &Cluster, seconds: &str) -> String {
    let ledger = cluster.shared_file("ledger");
    format!(
        "command: |\n  echo \"start $AZUREML_RUN_ID\" >> {0}; sync {0}\n  sleep {seconds}\n  \
         echo \"end $AZUREML_RUN_ID\" >> {0}; sync {0}\n",
        ledger.display()
    )
}

/// I1: no job was ever started while it ran, and each of these started and ended once.
fn never_twice(cluster: &Cluster, names: &BTreeSet<String>) {
    let ledger = fs::read_to_string(cluster.files().join("ledger")).unwrap();
    for name in names {
        let lines: Vec<&str> =
            ledger.lines().filter(|line| line.split(' ').nth(1) == Some(name)).collect();
        assert_eq!(lines, [format!("start {name}"), format!("end {name}")], "{ledger}");
    }
}

/// 1: the daemon dies just before or just after a submission is on disk. What was acknowledged is
/// there; what was not is there whole or not at all.
#[cfg(feature = "failpoints")]
#[test]
fn f01_a_submission_is_whole_or_not_at_all() {
    for (point, kept) in [("before-commit", false), ("after-commit", true)] {
        let cluster = Cluster::empty();
        // Four commits are the daemon's own: where its data lies, its admin, its tokens. The fifth is the first submission.
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), format!("{point}:6"))];
        cluster.start_daemon();
        let first = cluster.shell("true");
        let second = cluster
            .atelier(["job", "create", "-f", "-", "--name", "second"])
            .stdin("command: ls\n")
            .spawn();
        until("the daemon dies", || cluster.daemon(|daemon| daemon.ended()));
        drop(second);
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        let rpc = cluster.rpc();
        assert_eq!(rpc.job(&first).unwrap().status(), JobStatus::Queued);
        assert_eq!(rpc.job("second").is_ok(), kept, "{point}");
        let events = rpc.events(&first).unwrap();
        assert_eq!(events[0].kind, "Submitted");
    }
}

/// 2: placements are on disk and the daemon dies before it has told the node of the first, of some,
/// or of the last. The next daemon knows them and the node is told once.
#[cfg(feature = "failpoints")]
#[test]
fn f02_a_placement_that_was_not_dispatched_happens_once() {
    for dies_at in 1..=3 {
        let cluster = Cluster::empty();
        let history = History::of(&cluster);
        cluster.start_daemon();
        let names: Vec<String> = (0..4).map(|_| cluster.create(&history.job(0.2))).collect();
        cluster.daemon(Process::kill);
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), format!("before-assign:{dies_at}"))];
        cluster.start_daemon();
        // Room for three: all of them are placed in the batch that the node joins in.
        cluster.launch_agent(&Agent::new("local").cpus(3));
        until("the daemon dies", || cluster.daemon(Process::ended));
        check_database(&cluster);
        assert_eq!(held(&cluster), 3, "the placements are on disk");
        assert!(names.iter().all(|name| !history.has("start", name)), "nothing was dispatched");

        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        cluster.node_is_ready("local");
        for name in &names {
            assert_eq!(cluster.completed(name).attempt, 1);
            let events = cluster.rpc().events(name).unwrap();
            let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
            assert_eq!((count("Assigned"), count("Completed")), (1, 1), "{events:?}");
        }
        history.once_each(&names);
        check_database(&cluster);
        assert_eq!(held(&cluster), 0);
    }
}

/// I9: CPUs that attempts hold, as the database has them; never more than the node's three.
#[cfg(feature = "failpoints")]
fn held(cluster: &Cluster) -> i64 {
    let database = rusqlite::Connection::open(cluster.data().join("atelier.db")).unwrap();
    let sum = "SELECT coalesce(sum(json_extract(state, '$.active.reservation.cpu')), 0) FROM jobs";
    let milli: i64 = database.query_row(sum, [], |row| row.get(0)).unwrap();
    assert!(milli <= 3000, "{milli}");
    milli / 1000
}

/// 3: the daemon is killed again and again under load; 4: jobs do not notice.
fn kills(rounds: usize) {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4));
    let mut names = BTreeSet::new();
    for round in 0..rounds {
        let yaml = recorded(&cluster, if round % 3 == 0 { "0.5" } else { "0.05" });
        for _ in 0..3 {
            names.insert(cluster.create(&yaml));
        }
        // A different moment of the jobs' lives in each round.
        std::thread::sleep(std::time::Duration::from_millis((round as u64 * 37) % 200));
        cluster.restart_daemon_hard();
    }
    for name in &names {
        let job = cluster.completed(name);
        assert_eq!(job.attempt, 1, "{job:?}");
        let events = cluster.rpc().events(name).unwrap();
        let finals = events.iter().filter(|event| event.status().is_final()).count();
        assert_eq!(finals, 1, "{events:?}");
    }
    never_twice(&cluster, &names);
}

#[test]
fn f03_killing_the_daemon_loses_nothing() {
    kills(12);
}

#[test]
fn soak_f03_killing_the_daemon_two_hundred_times_loses_nothing() {
    kills(200);
}

/// 6: a second daemon on the same folder is refused, and the first does not notice.
#[test]
fn f06_a_second_daemon_is_refused() {
    let cluster = Cluster::start();
    let data = cluster.data();
    cluster
        .atelier([
            "serve".as_ref(),
            "--listen".as_ref(),
            "127.0.0.1:0".as_ref(),
            "--data-dir".as_ref(),
            data.as_os_str(),
        ])
        .fails(1)
        .says(&["another atelier daemon", "--data-dir"]);
    let name = cluster.shell("true");
    cluster.completed(&name);
}

/// 7: a daemon that was frozen wakes; what its node did meanwhile is taken up once.
#[test]
fn f07_a_frozen_daemon_wakes() {
    let cluster = Cluster::start();
    let name = cluster.create(&recorded(&cluster, "0.5"));
    cluster.running(&name);
    cluster.daemon(|daemon| daemon.freeze());
    // It still is the one: another is refused, however long it sleeps (I12).
    let data = cluster.data();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir"].map(std::ffi::OsStr::new);
    let second = serve.into_iter().chain([data.as_os_str()]);
    cluster.atelier(second).fails(1).says(&["another atelier daemon"]);
    let ledger = cluster.files().join("ledger");
    until("the job ended", || {
        fs::read_to_string(&ledger).ok().filter(|text| text.contains("end ")).map(|_| ())
    });
    cluster.daemon(|daemon| daemon.signal(Signal::CONT));
    cluster.completed(&name);
    never_twice(&cluster, &BTreeSet::from([name]));
}

/// 17: the client does not hear the answer and asks again: one job.
#[test]
fn f17_a_repeated_submission_finds_the_first() {
    let cluster = Cluster::start();
    let rpc = cluster.rpc();
    let request = |command: &str| pb::CreateJobRequest {
        idempotency_key: "the-same".to_owned(),
        spec: Some(pb::JobSpec {
            kind: Some(pb::job_spec::Kind::Command(pb::CommandJob {
                command: command.to_owned(),
                experiment_name: "retry".to_owned(),
                environment: Some(pb::Environment {
                    source: Some(pb::environment::Source::Host(pb::HostEnvironment {})),
                }),
                ..pb::CommandJob::default()
            })),
        }),
    };
    let create =
        |command: &str| rpc.wait(rpc.client.call(rpc.client.jobs().create_job(request(command))));
    let first = create("true").unwrap().job.unwrap().name;
    assert_eq!(create("true").unwrap().job.unwrap().name, first);
    cluster.restart_daemon_hard();
    let rpc = cluster.rpc();
    let again = rpc.wait(rpc.client.call(rpc.client.jobs().create_job(request("true"))));
    assert_eq!(again.unwrap().job.unwrap().name, first);
    let other = rpc.wait(rpc.client.call(rpc.client.jobs().create_job(request("false"))));
    assert!(other.unwrap_err().to_string().contains(&first));
    assert_eq!(rpc.jobs().unwrap().len(), 1);
}

/// 17: the same for metrics: what is sent again, also to another daemon, is there once, and in order.
#[test]
fn f17_metrics_that_are_sent_again_are_there_once() {
    let cluster = Cluster::start();
    let token = cluster.token();
    let mlflow = |what: &str, body: &str| -> serde_json::Value {
        let path = format!("POST /api/2.0/mlflow/{what}");
        let (status, answer) = http(&cluster.server(), &path, &token, body).unwrap();
        assert_eq!(status, 200, "{what}: {answer}");
        serde_json::from_str(&answer).unwrap()
    };
    let run = mlflow("runs/create", r#"{"experiment_id": "0", "start_time": 1}"#);
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let batch = |from: u32| {
        let metrics: Vec<String> = (from..from + 50)
            .map(|step| {
                format!(
                    r#"{{"key": "loss", "value": {step}.5, "timestamp": {step}, "step": {step}}}"#
                )
            })
            .collect();
        format!(r#"{{"run_id": "{run}", "metrics": [{}]}}"#, metrics.join(","))
    };
    for round in 0..4 {
        mlflow("runs/log-batch", &batch(round * 50));
        // The answer was lost, with the daemon or without.
        if round % 2 == 0 {
            cluster.restart_daemon_hard();
        }
        mlflow("runs/log-batch", &batch(round * 50));
    }
    let path = format!("GET /api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=loss");
    let (status, answer) = http(&cluster.server(), &path, &token, "").unwrap();
    assert_eq!(status, 200, "{answer}");
    let history: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let steps: Vec<u64> = history["metrics"].as_array().unwrap().iter().map(step_of).collect();
    assert_eq!(steps, (0..200).collect::<Vec<u64>>());
}

/// MLflow's own clients send whole numbers as numbers or as text.
fn step_of(metric: &serde_json::Value) -> u64 {
    let step = &metric["step"];
    step.as_u64().or_else(|| step.as_str()?.parse().ok()).unwrap()
}

/// 21: a cancellation that meets the end: one final state, whichever came first. The instants are
/// spread from before the job runs to after it must have ended, so that both do.
#[test]
fn f21_a_cancellation_may_race_the_end() {
    let cluster = Cluster::start();
    let rpc = cluster.rpc();
    let mut seen = BTreeMap::new();
    for round in 0..40 {
        let name = cluster.shell("sleep 0.03");
        // The instant is what is tried out; nothing waits for it.
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        let request = pb::CancelJobRequest { name: name.clone(), reason: "enough".to_owned() };
        rpc.wait(rpc.client.call(rpc.client.jobs().cancel_job(request))).unwrap();
        let job = cluster.ended(&name);
        let events = rpc.events(&name).unwrap();
        assert_eq!(events.iter().filter(|event| event.status().is_final()).count(), 1);
        *seen.entry(job.status().word()).or_insert(0) += 1;
    }
    let words: Vec<&str> = seen.keys().copied().collect();
    assert_eq!(words, ["Canceled", "Completed"], "{seen:?}");
}

/// 22: killed in the middle of a migration: the next start finds the old shape or the new one.
#[cfg(feature = "failpoints")]
#[test]
fn f22_a_migration_is_whole_or_not_at_all() {
    for step in 1..=atelier::store::SCHEMA_VERSION {
        let cluster = Cluster::empty();
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), format!("migrate:{step}"))];
        cluster.launch_daemon();
        until("the daemon died", || cluster.daemon(|daemon| daemon.ended()));
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        cluster.shell("true");
    }
}

/// 27: a damaged page is noticed, nothing is served from it, and a copy of the folder restores.
#[test]
fn f27_a_damaged_database_is_refused_and_a_copy_restores() {
    let cluster = Cluster::start();
    for _ in 0..30 {
        cluster.shell("true");
    }
    let name = cluster.shell("echo kept");
    cluster.completed(&name);
    cluster.daemon(Process::stop);
    let database = cluster.data().join("atelier.db");
    let whole = fs::read(&database).unwrap();
    let mut damaged = whole.clone();
    for page in 2..damaged.len() / 4096 {
        let at = page * 4096;
        damaged[at..at + 64].fill(0xAA);
    }
    fs::write(&database, &damaged).unwrap();
    cluster.launch_daemon();
    until("the daemon refuses to start", || cluster.daemon(|daemon| daemon.ended()));
    let said = cluster.daemon(|daemon| daemon.tail(30));
    assert!(said.contains("damaged") && said.contains("backup"), "{said}");
    fs::write(&database, &whole).unwrap();
    cluster.start_daemon();
    assert_eq!(cluster.rpc().job(&name).unwrap().status(), JobStatus::Completed);
    // A database that has gone is no new beginning.
    cluster.daemon(Process::stop);
    fs::remove_file(&database).unwrap();
    cluster.launch_daemon();
    until("the daemon refuses to start", || cluster.daemon(|daemon| daemon.ended()));
    let said = cluster.daemon(|daemon| daemon.tail(30));
    assert!(said.contains("missing"), "{said}");
}
