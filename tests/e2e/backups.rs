//! Backups of a daemon that runs, their way back, and what `doctor` says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Cluster, History, Process, check_database, until};

/// A key that opens backups; the public one.
fn key(cluster: &Cluster) -> String {
    cluster.atelier(["backup", "keygen", "key", "--query", "recipient", "-o", "tsv"]).ok().word()
}

fn back_up(cluster: &Cluster, recipient: &str, file: &str) {
    let data = cluster.data();
    let arguments = ["backup", "create", file, "--recipient", recipient, "--data-dir"];
    cluster.atelier(arguments.map(Path::new).into_iter().chain([&*data])).ok();
}

fn restore(cluster: &Cluster, file: &str, more: &[&str]) -> crate::harness::Outcome {
    let data = cluster.data();
    let arguments = ["restore", file, "--identity", "key", "--data-dir"];
    let arguments = arguments.map(Path::new).into_iter().chain([&*data]);
    cluster.atelier(arguments.chain(more.iter().map(|&one| Path::new(one)))).run()
}

/// One node with room for one job, and leases that are soon over.
fn small() -> Cluster {
    let cluster = Cluster::empty();
    let serve = ["--lease", "2", "--grace", "1"].map(str::to_owned);
    cluster.settings.borrow_mut().serve = serve.to_vec();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(1));
    cluster
}

/// 70: a backup takes the place of what came after it. What ran on the nodes since is ended before anything
/// starts, and no job runs twice at once.
#[test]
fn f70_a_restored_workspace_goes_on_and_runs_nothing_twice_at_once() {
    let cluster = small();
    let history = History::of(&cluster);
    let recipient = key(&cluster);
    let until_file =
        |name: &str| crate::harness::job_yaml(&history.command_until(&cluster.files().join(name)));
    let first = cluster.create(&until_file("first-may-end"));
    cluster.running(&first);
    let second = cluster.create(&until_file("second-may-end"));
    back_up(&cluster, &recipient, "b.age");

    // The time that will be lost: the first ends, the second runs, a third comes.
    cluster.write("first-may-end", "");
    cluster.completed(&first);
    cluster.running(&second);
    let create = ["job", "create", "-f", "-", "--name", "third"];
    cluster.atelier(create).stdin(history.job(0.1)).ok();
    restore(&cluster, "b.age", &["--force"]).code(1).says(&["another atelier daemon"]);
    cluster.daemon(Process::kill);
    restore(&cluster, "b.age", &[]).code(1).says(&["--force"]);
    restore(&cluster, "b.age", &["--force"]).ok().says(&["revoked since", "lease"]);
    assert_eq!(history.starts(&second), 1);

    cluster.start_daemon();
    let rpc = cluster.rpc();
    assert!(rpc.job("third").is_err(), "it came after the backup");
    assert_eq!(rpc.job(&second).unwrap().status(), JobStatus::Queued);
    cluster.node_is_ready("local");
    // Names of that time are free again.
    cluster.atelier(create).stdin(history.job(0.1)).ok();
    cluster.daemon(|daemon| {
        until("the daemon says what it waits for", || {
            daemon.said("restored from a backup").then_some(())
        });
    });
    until("the second runs again", || (history.starts(&second) == 2).then_some(()));
    history.never_two_at_once();
    cluster.write("second-may-end", "");
    for name in [&first, &second, &"third".to_owned()] {
        cluster.completed(name);
    }
    history.never_two_at_once();
    assert_eq!(history.starts(&first), 2, "nothing in the backup says that it was completed");
    check_database(&cluster);
}

/// A job that runs in the backup and on its node goes on as if nothing had been.
#[test]
fn f70_a_job_that_still_runs_outlives_a_restore() {
    let cluster = small();
    let history = History::of(&cluster);
    let recipient = key(&cluster);
    let end = cluster.files().join("may-end");
    let job = cluster.create(&crate::harness::job_yaml(&history.command_until(&end)));
    cluster.running(&job);
    back_up(&cluster, &recipient, "b.age");
    cluster.daemon(Process::kill);
    restore(&cluster, "b.age", &["--force"]).ok();
    cluster.start_daemon();
    cluster.node_is_ready("local");
    cluster.write("may-end", "");
    assert_eq!(cluster.completed(&job).attempt, 1);
    history.once_each([&job]);
}

/// A backup that is made while jobs come has those that were acknowledged before it began, and opens elsewhere.
#[test]
fn a_backup_is_of_one_instant_while_jobs_come() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let recipient = key(&cluster);
    let before: Vec<String> = (0..10).map(|_| cluster.shell("true")).collect();
    let data = cluster.data();
    let arguments = ["backup", "create", "b.age", "--recipient", &recipient, "--data-dir"];
    let making = cluster.atelier(arguments.map(Path::new).into_iter().chain([&*data])).spawn();
    let meanwhile: Vec<String> = (0..10).map(|_| cluster.shell("true")).collect();
    let made = making.wait().ok().says(&["Not in it", "storage"]).json();
    assert_eq!(made["has_vault_key"], false);
    let verified = cluster.atelier(["backup", "verify", "b.age", "--identity", "key"]).ok().json();
    assert!(verified["live_jobs"].as_u64() >= Some(10), "{verified}");

    let arguments = ["restore", "b.age", "--identity", "key", "--data-dir", "elsewhere"];
    cluster.atelier(arguments).ok();
    let database =
        rusqlite::Connection::open(cluster.files().join("elsewhere/atelier.db")).unwrap();
    let names = |table: &str| -> Vec<String> {
        let mut rows = database.prepare(&format!("SELECT name FROM {table} ORDER BY seq")).unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let restored = names("jobs");
    let all: Vec<String> = before.iter().chain(&meanwhile).cloned().collect();
    assert!(restored.len() >= before.len());
    assert_eq!(restored, all[..restored.len()], "those and no others, in their order");
    let secret = ["admin.token", "token.key"].map(|name| fs::read(data.join(name)).unwrap());
    let sealed = fs::read(cluster.files().join("b.age")).unwrap();
    let holds = |text: &[u8]| sealed.windows(text.len()).any(|window| window == text);
    assert!(!secret.iter().any(|text| holds(text)));
}

/// A backup that is killed leaves no file of its name, and the plain text that it left goes at the next start.
#[cfg(feature = "failpoints")]
#[test]
fn a_backup_that_is_killed_leaves_nothing() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let recipient = key(&cluster);
    let data = cluster.data();
    let arguments = ["backup", "create", "b.age", "--recipient", &recipient, "--data-dir"];
    let killed = cluster
        .atelier(arguments.map(Path::new).into_iter().chain([&*data]))
        .env("ATELIER_FAILPOINT", "backup-written:1")
        .run();
    assert!(!killed.status.success());
    assert!(!cluster.files().join("b.age").exists());
    assert!(data.join("backup.tmp").exists());
    cluster.restart_daemon_hard();
    assert!(!data.join("backup.tmp").exists());
    back_up(&cluster, &recipient, "b.age");
    assert!(!cluster.files().join(".b.age.part").exists());

    // One that is looked at has its database in the open, which no name leads to.
    let verify = ["backup", "verify", "b.age", "--identity", "key"];
    cluster.atelier(verify).env("ATELIER_FAILPOINT", "verify-unpacked:1").run();
    let mut folders = 0;
    for found in fs::read_dir(cluster.files()).unwrap().flatten() {
        if found.file_name().to_string_lossy().starts_with(".b.age.verify-") {
            folders += 1;
            assert_eq!(found.metadata().unwrap().permissions().mode() & 0o777, 0o700);
            assert_eq!(fs::read_dir(found.path()).unwrap().count(), 0);
        }
    }
    assert_eq!(folders, 1);
    cluster.atelier(verify).ok();
}

/// A restore that is killed before it touches anything: the daemon starts on what was there, and removes what lies in
/// the open of the backup.
#[cfg(feature = "failpoints")]
#[test]
fn f70_a_restore_that_is_killed_early_leaves_the_workspace_and_nothing_else() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let recipient = key(&cluster);
    back_up(&cluster, &recipient, "b.age");
    let job = cluster.shell("true");
    cluster.daemon(Process::kill);
    let data = cluster.data();
    let arguments = ["restore", "b.age", "--identity", "key", "--force", "--data-dir"];
    cluster
        .atelier(arguments.map(Path::new).into_iter().chain([&*data]))
        .env("ATELIER_FAILPOINT", "restore-staged:1")
        .run();
    assert!(data.join("restore.tmp/atelier.db").exists());
    cluster.start_daemon();
    assert!(!data.join("restore.tmp").exists());
    assert!(cluster.rpc().job(&job).is_ok(), "it came after the backup");
}

/// A restore that is killed while files change places: no daemon starts, and the same command goes on.
#[cfg(feature = "failpoints")]
#[test]
fn f70_a_restore_that_is_killed_goes_on() {
    for point in ["restore-marked:1", "restore-aside:1"] {
        let cluster = Cluster::empty();
        cluster.start_daemon();
        let recipient = key(&cluster);
        let job = cluster.shell("true");
        back_up(&cluster, &recipient, "b.age");
        back_up(&cluster, &recipient, "later.age");
        cluster.daemon(Process::kill);
        let data = cluster.data();
        let arguments = ["restore", "b.age", "--identity", "key", "--force", "--data-dir"];
        cluster
            .atelier(arguments.map(Path::new).into_iter().chain([&*data]))
            .env("ATELIER_FAILPOINT", point)
            .run();
        let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir"].map(Path::new);
        let refused = cluster.atelier(serve.into_iter().chain([&*data])).fails(1);
        refused.says(&["cut short", "atelier restore"]);
        restore(&cluster, "later.age", &["--force"])
            .code(1)
            .says(&["go on with that one", "b.age"]);
        restore(&cluster, "b.age", &[]).ok();
        cluster.start_daemon();
        assert!(cluster.rpc().job(&job).is_ok(), "{point}");
    }
}

/// 27, the drill: a damaged database is found, and a backup takes its place.
#[test]
fn f27_doctor_finds_what_is_unsafe_and_a_backup_mends_it() {
    let cluster = Cluster::start();
    let recipient = key(&cluster);
    let data = cluster.data();
    let doctor = |more: &[&str]| {
        let arguments = ["doctor", "-o", "json", "--data-dir"].map(Path::new);
        let arguments = arguments.into_iter().chain([&*data]);
        cluster.atelier(arguments.chain(more.iter().map(|&one| Path::new(one))))
    };
    let severity = |found: &serde_json::Value, check: &str| -> String {
        let all = found.as_array().unwrap().iter();
        let of: Vec<&str> = all
            .filter(|one| one["check"] == check)
            .map(|one| one["severity"].as_str().unwrap())
            .collect();
        of.join(" ")
    };
    let found = doctor(&[]).ok().json();
    for check in ["permissions", "database", "daemon", "version", "encryption", "vault"] {
        assert_eq!(severity(&found, check), "ok", "{found}");
    }
    assert_eq!(severity(&found, "clock"), "ok ok", "{found}");
    assert_eq!(severity(&found, "backup"), "warning");
    assert_eq!(severity(&found, "datastore"), "ok ok ok");
    assert!(found.to_string().contains("local runs no containers"), "{found}");
    back_up(&cluster, &recipient, "b.age");
    assert_eq!(severity(&doctor(&[]).ok().json(), "backup"), "ok");

    // What others may read.
    let token_key = data.join("token.key");
    fs::set_permissions(&token_key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = doctor(&[]).fails(1).json();
    assert_eq!(severity(&open, "permissions"), "error");
    assert!(open.to_string().contains("chmod go="), "{open}");
    fs::set_permissions(&token_key, fs::Permissions::from_mode(0o600)).unwrap();

    // As a client, elsewhere: what the daemon tells.
    let server = cluster.server();
    let client = cluster.atelier_at(&server, ["doctor", "-o", "json"]).ok().json();
    assert_eq!(
        (severity(&client, "daemon"), severity(&client, "database")),
        ("ok".into(), String::new())
    );

    // A context leads elsewhere too, whatever runs on the folder that is looked at.
    let add = ["context", "add", "gone", "--server", "http://127.0.0.1:1"];
    cluster.atelier(add).stdin("token").ok();
    let gone = doctor(&["--context", "gone"]).ok().json();
    assert_eq!(
        (severity(&gone, "daemon"), severity(&gone, "database")),
        ("warning".into(), "ok".into())
    );

    cluster.daemon(|daemon| daemon.signal(rustix::process::Signal::TERM));
    until("the daemon ends", || cluster.daemon(Process::ended));
    let database = data.join("atelier.db");
    let mut bytes = fs::read(&database).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(&database, &bytes).unwrap();
    let damaged = doctor(&[]).fails(1).json();
    assert_eq!(severity(&damaged, "database"), "error");
    assert_eq!(severity(&damaged, "daemon"), "warning");
    // And no backup is made of it.
    let arguments = ["backup", "create", "bad.age", "--recipient", &recipient, "--data-dir"];
    cluster.atelier(arguments.map(Path::new).into_iter().chain([&*data])).fails(6);
    assert!(!cluster.files().join("bad.age").exists());
    restore(&cluster, "b.age", &["--force"]).ok();
    cluster.start_daemon();
    assert_eq!(severity(&doctor(&[]).run().json(), "database"), "ok");
}
