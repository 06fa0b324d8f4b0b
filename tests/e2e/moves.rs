//! Moving the workspace's own datastores to another place, whatever happens on the way.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use atelier_proto::job::v1::JobStatus;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Cluster, FaultyWay, PATIENCE, Process, S3, http, until};
use crate::homes::{goes_on, is_whole, make, place, s3, stored_at};

fn migrate<'a>(cluster: &Cluster, to: &'a Path, more: &[&'a str]) -> Vec<String> {
    let data = cluster.data().display().to_string();
    let to = to.display().to_string();
    let words = ["workspace", "migrate-storage", "--data-dir", &data, "--to", &to, "-o", "json"];
    words.iter().chain(more).map(|&word| word.to_owned()).collect()
}

fn file(cluster: &Cluster, method: &str, path: &str) -> u16 {
    let what = format!("{method} /data/v1/workspacefilestore/{path}");
    http(&cluster.server(), &what, &cluster.token(), "mine").unwrap().0
}

#[track_caller]
fn starts(cluster: &Cluster) {
    cluster.start_daemon();
    cluster.node_is_ready("local");
}

/// Killed while it copies, before it switches, and after: the workspace works each time, with all that it had.
#[test]
fn s3_is_moved_to_and_back_whenever_it_is_killed() {
    let store = S3::start();
    let cluster = Cluster::start();
    let first = make(&cluster);
    assert_eq!((file(&cluster, "PUT", "gone"), file(&cluster, "PUT", "kept")), (201, 201));
    let to = place(&cluster, "s3.yml", &s3(&store, "moved"));
    cluster.atelier(migrate(&cluster, &to, &[])).fails(1).says(&["daemon is using", "stop it"]);
    cluster.daemon(Process::stop);

    let killed_at = |point: &str| {
        let out =
            cluster.atelier(migrate(&cluster, &to, &[])).env("ATELIER_FAILPOINT", point).run();
        assert_eq!(out.status.signal(), Some(6), "{out:?}");
    };
    killed_at("object-copied:6");
    // It works where it was, and what it stores and removes there meanwhile is no less moved.
    starts(&cluster);
    is_whole(&cluster, &first);
    let second =
        cluster.create("command: echo 2 && mkdir -p outputs && echo two > outputs/two.txt");
    cluster.completed(&second);
    assert_eq!(file(&cluster, "DELETE", "gone"), 204);
    cluster.daemon(Process::stop);
    killed_at("storage-copied");
    starts(&cluster);
    is_whole(&cluster, &first);
    assert_eq!(file(&cluster, "GET", "kept"), 200);
    cluster.daemon(Process::stop);
    killed_at("storage-switched");
    let again = cluster.atelier(migrate(&cluster, &to, &[])).ok();
    let again = again.says(&["already", "--storage", "s3.yml"]).json();
    assert_eq!((&again["moved_from"], &again["not_moved"]), (&Value::Null, &Value::Null));

    stored_at(&cluster, Some(&to));
    starts(&cluster);
    is_whole(&cluster, &first);
    assert_eq!(cluster.log(&second), b"2\n");
    assert_eq!((file(&cluster, "GET", "kept"), file(&cluster, "GET", "gone")), (200, 404));
    goes_on(&cluster, &first);
    cluster.daemon(Process::stop);

    // Back again: not over what is still there.
    let own = cluster.data().join("storage");
    let back = cluster.write("back.yml", format!("type: local\npath: {}\n", own.display()));
    cluster.atelier(migrate(&cluster, &back, &[])).fails(1).says(&["keys", "--from FILE"]);
    let from = ["--from", to.to_str().unwrap()];
    // Others have put there what cannot be named here.
    store.ask("PUT /bucket/moved/workspacefilestore/a//b", "theirs");
    store.ask("PUT /bucket/moved/workspacefilestore/mark/", "");
    cluster.atelier(migrate(&cluster, &back, &from)).fails(1).says(&["holds data already"]);
    fs::rename(&own, cluster.path().join("old")).unwrap();
    let moved = cluster.atelier(migrate(&cluster, &back, &from)).ok();
    let moved = moved.says(&["still there", "workspacefilestore has a key", "not moved"]).json();
    let left = json!([{ "datastore": "workspacefilestore", "keys": 1, "examples": ["a//b"] }]);
    assert_eq!(moved["not_moved"], left);
    assert_eq!(moved["moved_from"], format!("{}/bucket/moved", store.url()));
    assert_eq!(moved["storage"], own.display().to_string());
    assert!(moved["objects"].as_u64().unwrap() > 10, "{moved}");
    stored_at(&cluster, None);
    drop(store);
    starts(&cluster);
    is_whole(&cluster, &first);
    goes_on(&cluster, &first);
}

/// As a machine that is switched off would.
#[test]
fn s3_moves_go_on_after_kill_9() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::start();
    let name = make(&cluster);
    cluster.daemon(Process::stop);
    let there = s3(&store, "moved").replace(store.url(), &way.url());
    let to = place(&cluster, "s3.yml", &there);
    for seen in ["workspaceartifactstore", "workspaceblobstore", "user_logs"] {
        let running = cluster.atelier(migrate(&cluster, &to, &[])).spawn();
        until("an object is on its way", || way.saw(&["PUT", seen]).then_some(()));
        running.signal(Signal::KILL);
        running.wait();
    }
    cluster.atelier(migrate(&cluster, &to, &[])).ok();
    stored_at(&cluster, Some(&to));
    starts(&cluster);
    is_whole(&cluster, &name);
}

/// What nodes have begun they store where they were told to.
#[test]
fn nothing_is_moved_while_jobs_run() {
    let cluster = Cluster::start();
    let job = cluster.shell("echo begun; until [ -e go ]; do sleep 0.1; done; echo done");
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("begun");
    cluster.daemon(Process::stop);
    let place = cluster.path().join("elsewhere");
    fs::create_dir(&place).unwrap();
    let to = cluster.write("to.yml", format!("type: local\npath: {}\n", place.display()));
    cluster.atelier(migrate(&cluster, &to, &[])).fails(1).says(&["jobs are running", &job]);
    starts(&cluster);
    cluster.atelier(["job", "exec", &job, "--", "touch", "go"]).ok();
    cluster.completed(&job);
    cluster.daemon(Process::stop);
    cluster.atelier(migrate(&cluster, &to, &[])).ok();
    starts(&cluster);
    assert_eq!(cluster.log(&job), b"begun\ndone\n");
    let nowhere = cluster.path().join("nowhere").display().to_string();
    let words = ["workspace", "migrate-storage", "--to", "to.yml", "--data-dir", &nowhere];
    cluster.atelier(words).fails(3).says(&["no workspace"]);
}

/// What a queued job has not committed is at the new place, also if the move was cut short after it was copied.
#[test]
fn queued_jobs_find_their_checkpoints_at_the_new_place() {
    let cluster = Cluster::start();
    let job = cluster.create(
        "command: |\n\
         \x20 if [ -e ${{outputs.o}}/step ]; then cat ${{outputs.o}}/step; exit 0; fi\n\
         \x20 echo one > ${{outputs.o}}/step; echo written; sleep 600 & wait\n\
         outputs: {o: {type: uri_folder}}\n",
    );
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("written");
    let below = format!("workspaceblobstore/.uncommitted/{job}/o/0/0/step");
    let stored = |home: &Path| fs::read_to_string(home.join(&below)).is_ok_and(|t| t == "one\n");
    let own = cluster.data().join("storage");
    until("it lies uncommitted", || stored(&own).then_some(()));
    cluster.atelier(["node", "drain", "local", "--reason", "move", "--deadline", "1s"]).ok();
    cluster.rpc().reaches(&job, &[JobStatus::Queued], PATIENCE);
    cluster.daemon(Process::stop);

    let place = cluster.path().join("elsewhere");
    fs::create_dir(&place).unwrap();
    let to = cluster.write("to.yml", format!("type: local\npath: {}\n", place.display()));
    // As if its disk was not mounted.
    fs::rename(&own, cluster.path().join("away")).unwrap();
    cluster.atelier(migrate(&cluster, &to, &[])).fails(1).says(&["is not there", "mounted"]);
    let _ = fs::remove_dir_all(&own);
    fs::rename(cluster.path().join("away"), &own).unwrap();
    for point in ["storage-copied", "storage-copied"] {
        let out =
            cluster.atelier(migrate(&cluster, &to, &[])).env("ATELIER_FAILPOINT", point).run();
        assert_eq!(out.status.signal(), Some(6), "{out:?}");
        assert!(stored(&place));
    }
    cluster.atelier(migrate(&cluster, &to, &[])).ok();
    fs::rename(&own, cluster.path().join("old")).unwrap();
    let within = place.join("workspaceblobstore/within");
    fs::create_dir(&within).unwrap();
    let into = cluster.write("into.yml", format!("type: local\npath: {}\n", within.display()));
    let into = cluster.atelier(migrate(&cluster, &into, &[])).fails(1);
    into.says(&["one within the other"]);
    cluster.start_daemon();
    cluster.atelier(["node", "resume", "local"]).ok();
    assert_eq!(cluster.completed(&job).attempt, 2);
    let log = String::from_utf8_lossy(&cluster.log(&job)).into_owned();
    assert!(log.ends_with("one\n"), "{log}");
}
