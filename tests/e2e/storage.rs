//! The daemon's storage full, failing, slow, or gone with the power. The numbers are those of
//! `docs/reliability.md`.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use atelier_proto::job::v1::JobStatus;

use crate::harness::{
    Agent, Cluster, Disk, FaultyIo, History, Process, check_database, job_yaml, needs, until,
};

/// A job whose record takes some KiB of the database.
const BULKY: usize = 60_000;

fn bulky() -> String {
    format!("command: ls\ndescription: {}\n", "x".repeat(BULKY))
}

/// 23: the database's disk is full. Nothing is acknowledged that is not kept (I14), reading goes on,
/// a job that ends meanwhile is not forgotten, and room heals it all (I18).
#[test]
fn f23_a_full_disk_acknowledges_nothing_and_heals() {
    needs("disk");
    let disk = Disk::create("24M");
    let cluster = Cluster::empty_on(disk.path());
    let history = History::of(&cluster);
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let before = cluster.shell("echo kept");
    cluster.completed(&before);
    let go = cluster.files().join("go");
    let meanwhile = cluster.shell(&format!("while [ ! -e {} ]; do sleep 0.05; done", go.display()));
    cluster.running(&meanwhile);

    disk.fill();
    let mut acknowledged = BTreeSet::new();
    // The log of the database has some room left in blocks that it has already.
    let refused = (0..200)
        .find_map(|_| {
            let out = cluster
                .atelier(["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
                .stdin(bulky())
                .run();
            if out.status.success() {
                acknowledged.insert(out.word());
                return None;
            }
            Some(out)
        })
        .expect("a full disk refuses at some point");
    refused.says(&["disk", "full", "free"]);
    fs::write(&go, "").unwrap();
    // Reading works.
    assert_eq!(cluster.rpc().job(&before).unwrap().status(), JobStatus::Completed);
    assert_eq!(cluster.log(&before), b"kept\n");
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 2 + acknowledged.len());
    cluster.atelier(["job", "create", "-f", "-"]).stdin(bulky()).run().says(&["disk", "full"]);
    until("the job ended on its node", || {
        let attempts = fs::read_dir(cluster.agent_data("local").join("attempts")).ok()?;
        attempts.flatten().any(|entry| entry.path().join("exited.json").exists()).then_some(())
    });

    disk.drain();
    cluster.completed(&meanwhile);
    let after = cluster.create(&history.job(0.1));
    cluster.completed(&after);
    for name in &acknowledged {
        cluster.ended(name);
    }
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 3 + acknowledged.len());
    history.once_each([&after]);
    check_database(&cluster);
}

/// 24: the node's disk is full. A job that fills it fails with its own exit code; one that the node
/// cannot take says why and fails in the end; the agent lives, and room heals it all (I18).
#[test]
fn f24_a_full_disk_of_a_node_fails_its_jobs_with_the_reason_and_heals() {
    needs("disk");
    let disk = Disk::create("24M");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = Agent::new("local").data(&disk.path().join("agent")).with("--no-shared-store");
    // Or the greedy job would be ended before the disk is full, and what it left would make room later.
    cluster.start_agent(&agent.with("--disk-reserve=0").with("--keep-failed=0"));
    let greedy =
        cluster.shell("said=$(head -c 200M /dev/zero 2>&1 >big); rm big; echo $said; exit 3");
    let job = cluster.ended(&greedy);
    assert_eq!(job.status(), JobStatus::Failed);
    let log = String::from_utf8_lossy(&cluster.log(&greedy)).into_owned();
    assert!(log.contains("No space left"), "{log}");
    assert_eq!(job.error.unwrap().code, "UserError");

    disk.fill();
    let name = cluster.shell("echo never");
    let job = cluster.ended(&name);
    assert_eq!(job.status(), JobStatus::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, "DiskFull");
    assert!(error.message.contains("disk is full"), "{error:?}");
    assert_eq!(cluster.agent("local", Process::ended), None, "the agent must live");

    disk.drain();
    let after = cluster.shell("echo after");
    cluster.completed(&after);
    assert_eq!(cluster.log(&after), b"after\n");
}

/// 24: a job that fills the disk is ended while the node still has the room that it keeps for itself; others go on.
#[test]
fn f24_a_job_that_fills_the_disk_is_ended_before_the_nodes_own_room_is_gone() {
    needs("disk");
    let disk = Disk::create("96M");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = Agent::new("local").cpus(2).data(&disk.path().join("agent"));
    cluster.start_agent(&agent.with("--no-shared-store").with("--disk-reserve=32MiB"));
    let go = cluster.files().join("go");
    let neighbour =
        format!("head -c 4M /dev/zero >some; while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let neighbour = cluster.shell(&neighbour);
    let greedy = cluster.shell("while head -c 1M /dev/zero >>big; do sleep 0.1; done; exit 3");
    let job = cluster.ended(&greedy);
    assert_eq!(job.status(), JobStatus::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, "DiskFull");
    assert!(error.message.contains("that it keeps for itself"), "{error:?}");
    fs::write(go, "").unwrap();
    cluster.completed(&neighbour);
}

/// 24: what is kept of a failed job goes before another job is ended for the room that it takes.
#[test]
fn f24_what_is_kept_goes_before_a_job_is_ended_for_the_disk() {
    needs("disk");
    let disk = Disk::create("96M");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let agent = Agent::new("local").data(&disk.path().join("agent"));
    cluster.start_agent(&agent.with("--no-shared-store").with("--disk-reserve=32MiB"));
    let failed = cluster
        .create(&format!("{}keep_failed: 30m\n", job_yaml("head -c 40M /dev/zero >big; exit 3")));
    assert_eq!(cluster.ended(&failed).sandboxes.len(), 1);
    let other = "for _ in $(seq 30); do head -c 1M /dev/zero >>big; sleep 0.05; done; sleep 3";
    let other = cluster.shell(other);
    until("there is room again", || {
        cluster.rpc().job(&failed).unwrap().sandboxes.is_empty().then_some(())
    });
    cluster.completed(&other);
}

/// 25: fsync fails. What was to be acknowledged is not; the daemon ends rather than guess what is on
/// disk (I14), and the next one has all that was acknowledged. The client asks again by itself and
/// makes one job.
#[test]
fn f25_a_failed_sync_ends_the_daemon_and_acknowledges_nothing() {
    needs("preload");
    let cluster = Cluster::empty();
    fs::create_dir(cluster.data()).unwrap();
    let faulty = FaultyIo::below(&cluster.data(), &cluster.path().join("faults"));
    cluster.settings.borrow_mut().variables = faulty.variables.clone();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let before = cluster.shell("echo before");
    cluster.completed(&before);

    faulty.set("sync EIO\n");
    let client = cluster
        .atelier(["job", "create", "-f", "-", "--name", "caught"])
        .stdin("command: ls\n")
        .spawn();
    let status = until("the daemon ends", || cluster.daemon(Process::ended));
    assert!(!status.success(), "{status}");
    let said = cluster.daemon(|daemon| daemon.tail(40));
    assert!(said.contains("database"), "{said}");
    assert_eq!(client.stdout(), "", "acknowledged before it was on disk");

    faulty.set("");
    cluster.start_daemon();
    client.wait().ok();
    cluster.completed("caught");
    assert_eq!(cluster.log(&before), b"before\n");
    assert_eq!(cluster.rpc().jobs().unwrap().len(), 2);
    check_database(&cluster);
}

/// 26: the power goes while jobs are submitted and run. What was acknowledged is there afterwards,
/// and no job ran twice.
fn power_losses(rounds: usize) {
    let disk = Disk::create("48M");
    let cluster = Cluster::empty_on(disk.path());
    let history = History::of(&cluster);
    cluster.start_daemon();
    // The node is another machine: its power stays.
    cluster.start_agent(&Agent::new("local").cpus(4).with("--no-shared-store"));
    let mut acknowledged = BTreeSet::new();
    for round in 0..rounds {
        let ledger = Mutex::new(BTreeSet::new());
        let over = AtomicBool::new(false);
        let (server, token) = (cluster.server(), cluster.token());
        std::thread::scope(|scope| {
            for submitter in 0..3 {
                let (ledger, over, server, token, history) =
                    (&ledger, &over, &server, &token, &history);
                scope.spawn(move || {
                    let rpc = crate::harness::Rpc::connect(server, token).unwrap();
                    for number in 0.. {
                        let name = format!("r{round}-s{submitter}-{number}");
                        let seconds = if number % 40 == 0 { 0.1 } else { 0.0 };
                        let command = history.command(seconds);
                        if rpc.create(&name, &command).is_err() {
                            assert!(over.load(Ordering::SeqCst), "refused with the power on");
                            return;
                        }
                        ledger.lock().unwrap().insert(name);
                    }
                });
            }
            // Another moment each time; some jobs have been acknowledged.
            let enough = 5 + round * 7 % 30;
            until("jobs are acknowledged", || {
                (ledger.lock().unwrap().len() >= enough).then_some(())
            });
            over.store(true, Ordering::SeqCst);
            // The machine goes with its disk, so the daemon says nothing after that instant. An fsync
            // that is under way then may return success, although nothing reached the disk (seen
            // with Linux 6.18 and FS_IOC_SHUTDOWN): no machine without power would tell anybody.
            cluster.daemon(|daemon| daemon.freeze());
            disk.power_loss();
            cluster.daemon(Process::kill);
        });
        disk.remount();
        cluster.start_daemon();
        acknowledged.extend(ledger.into_inner().unwrap());
        let rpc = cluster.rpc();
        for name in &acknowledged {
            rpc.job(name).unwrap_or_else(|error| panic!("{name} is lost: {error}"));
        }
    }
    for job in cluster.rpc().jobs().unwrap() {
        assert_eq!(cluster.completed(&job.name).attempt, 1, "{}", job.name);
    }
    history.once_each(&acknowledged);
    check_database(&cluster);
}

#[test]
fn f26_power_loss_loses_nothing_acknowledged() {
    needs("disk-power-loss");
    power_losses(3);
}

#[test]
fn soak_f26_thirty_power_losses_lose_nothing_acknowledged() {
    needs("disk-power-loss");
    power_losses(30);
}

/// 28: every sync of the daemon takes longer than a heartbeat. Heartbeats go on: no node is lost and
/// no job ended, and work is done, only later.
#[test]
fn f28_a_slow_disk_loses_no_node() {
    needs("preload");
    let cluster = Cluster::empty();
    fs::create_dir(cluster.data()).unwrap();
    let faulty = FaultyIo::below(&cluster.data(), &cluster.path().join("faults"));
    cluster.settings.borrow_mut().variables = faulty.variables.clone();
    // A heartbeat each second; a node is lost after two without, its jobs end after four.
    cluster.settings.borrow_mut().serve = vec!["--lease".to_owned(), "4".to_owned()];
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let history = History::of(&cluster);
    let long = cluster.create(&history.job(8.0));
    cluster.running(&long);
    faulty.set("sync delay 1500\n");
    let short = cluster.create(&history.job(0.05));
    let rpc = cluster.rpc();
    until("the long job is over", || history.has("end", &long).then_some(()));
    faulty.set("");
    for name in [&long, &short] {
        assert_eq!(cluster.completed(name).attempt, 1);
        let events = rpc.events(name).unwrap();
        assert!(
            events.iter().all(|event| event.status() != JobStatus::NotResponding),
            "the node was given up: {events:?}"
        );
    }
    let log = cluster.daemon(|daemon| daemon.printed());
    assert_eq!(log.matches("node joined").count(), 1, "{log}");
    history.once_each([&long, &short]);
}

/// 28, by the kernel: the disk takes a few writes a second.
#[test]
fn f28_a_disk_of_few_writes_a_second_loses_no_node() {
    needs("disk-slow");
    let disk = Disk::create("24M");
    let cluster = Cluster::empty_on(disk.path());
    cluster.settings.borrow_mut().serve = vec!["--lease".to_owned(), "4".to_owned()];
    let history = History::of(&cluster);
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--no-shared-store"));
    let long = cluster.create(&history.job(5.0));
    cluster.running(&long);
    disk.slow(6);
    std::thread::scope(|scope| {
        // Something to write, so that the disk is never done.
        let (server, token) = (cluster.server(), cluster.token());
        let history = &history;
        let long = &long;
        scope.spawn(move || {
            let rpc = crate::harness::Rpc::connect(&server, &token).unwrap();
            for number in 0.. {
                if history.has("end", long) {
                    return;
                }
                rpc.create(&format!("filler-{number}"), "true").unwrap();
            }
        });
        until("the long job is over", || history.has("end", long).then_some(()));
        disk.slow(0);
    });
    assert_eq!(cluster.completed(&long).attempt, 1);
    let log = cluster.daemon(|daemon| daemon.printed());
    assert_eq!(log.matches("node joined").count(), 1, "{log}");
    history.once_each([&long]);
}
