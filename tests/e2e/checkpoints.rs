//! What a job has written to outputs of mode `rw_mount` and closed is there for its next attempt, on whichever node,
//! and for nobody else before the job is over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::harness::{Agent, Cluster, Process, http, supervisor, until};

const STORE: &str = "workspaceblobstore";

/// The files below a folder, by path.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let path = entry.path();
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    found.insert(name, fs::read_to_string(path).unwrap_or_default());
                }
            }
        }
    }
    found
}

/// Where what a job has not committed lies on the daemon's disk.
fn uncommitted(cluster: &Cluster, job: &str) -> PathBuf {
    cluster.data().join("storage").join(STORE).join(".uncommitted").join(job)
}

#[track_caller]
fn lie_there(cluster: &Cluster, job: &str, expected: &[(&str, &str)]) {
    let folder = uncommitted(cluster, job);
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    let mut last = BTreeMap::new();
    until(&format!("{expected:?} lie uncommitted"), || {
        last = files(&folder);
        (last == expected).then_some(())
    });
}

#[track_caller]
fn downloaded(cluster: &Cluster, job: &str, output: &str) -> BTreeMap<String, String> {
    let to = cluster.files().join(format!("got-{job}"));
    let download = ["job", "download", job, "--output-name", output, "-p"];
    cluster.atelier(download.iter().map(AsRef::as_ref).chain([to.as_os_str()])).ok();
    files(&to)
}

/// Nobody sees it, whoever asks and however.
fn nobody_sees(cluster: &Cluster, job: &str) {
    let server = cluster.server();
    let scientist = cluster.token_for("ana", "data-scientist");
    for token in [&cluster.token(), &scientist] {
        let ask =
            |what: &str| http(&server, &format!("{what}/data/v1/{STORE}"), token, "").unwrap();
        let get =
            |rest: &str| http(&server, &format!("GET /data/v1/{STORE}{rest}"), token, "").unwrap();
        let (status, all) = ask("GET ");
        assert!(status == 200 && !all.contains(job), "{all}");
        let (status, top) = get("?delimiter=/");
        assert!(status == 200 && !top.contains(".uncommitted"), "{top}");
        let file = format!("/.uncommitted/{job}/model/0/0/step/2");
        assert_eq!(get(&file).0, 403);
        assert_eq!(get(&format!("?prefix=.uncommitted/{job}")).0, 403);
        assert_eq!(get("?prefix=.uncommitted").0, 403);
        // As a store that tells no cases apart would read it.
        assert_eq!(get(&format!("?prefix=.Uncommitted./{job}")).0, 403);
        for what in ["PUT", "DELETE"] {
            let (status, _) =
                http(&server, &format!("{what} /data/v1/{STORE}{file}"), token, "x").unwrap();
            assert_eq!(status, 403, "{what}");
        }
        let copy = format!("PUT /data/v1/{STORE}/mine?from={}&size=4", &file[1..]);
        assert_eq!(http(&server, &copy, token, "").unwrap().0, 403);
    }
    let path = format!("azureml://datastores/{STORE}/paths/.uncommitted/{job}/");
    let input = format!("command: ls\ninputs: {{i: {{type: uri_folder, path: '{path}'}}}}\n");
    let output = format!("command: ls\noutputs: {{o: {{type: uri_folder, path: '{path}'}}}}\n");
    for yaml in [input, output] {
        cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(1).says(&["is kept for"]);
    }
}

#[test]
fn checkpoints_outlive_their_node() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().serve =
        ["--lease", "4", "--grace", "1"].map(str::to_owned).into();
    cluster.start_daemon();
    let agent = |name: &str| Agent::new(name).cpus(1).with("--no-shared-store");
    cluster.start_agent(&agent("a"));
    let (clean, go) = (cluster.files().join("clean"), cluster.files().join("go"));
    let command = format!(
        "cd ${{{{outputs.model}}}}\n\
         if [ -e step/2 ]; then\n\
         find . -type f | sort; cat step/2; echo more >> step/2; echo 3 > step/3; exit 0\n\
         fi\n\
         mkdir step; echo one > step/1; echo two > step/part; mv step/part step/2\n\
         mkdir -p old/inner; echo x > old/inner/file; echo x > gone; ln -s /etc/passwd link\n\
         exec 3> open; echo half >&3\n\
         echo written\n\
         until [ -e {} ]; do sleep 0.05; done\n\
         mv old step/new; rm gone; echo cleaned\n\
         until [ -e {} ]; do echo half >&3; sleep 0.05; done\n",
        clean.display(),
        go.display()
    );
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    let job =
        cluster.create(&format!("command: |\n{block}outputs: {{model: {{type: uri_folder}}}}\n"));
    let watcher = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    watcher.prints("written");
    let first = [("model/0/0/step/1", "one\n"), ("model/0/0/step/2", "two\n")];
    let before = [&first[..], &[("model/0/0/old/inner/file", "x\n"), ("model/0/0/gone", "x\n")]];
    lie_there(&cluster, &job, &before.concat());
    nobody_sees(&cluster, &job);
    fs::write(&clean, "").unwrap();
    watcher.prints("cleaned");
    let after = [&first[..], &[("model/0/0/step/new/inner/file", "x\n")]].concat();
    lie_there(&cluster, &job, &after);

    // The node is gone, with its disk.
    let attempts = cluster.agent_data("a").join("attempts");
    let attempt = fs::read_dir(&attempts).unwrap().flatten().next().unwrap().path();
    cluster.agent("a", Process::kill);
    kill_process(supervisor(&attempt), Signal::KILL).unwrap();
    fs::rename(cluster.agent_data("a"), cluster.path().join("lost")).unwrap();
    cluster.start_agent(&agent("b"));
    let ended = cluster.completed(&job);
    assert_eq!((ended.attempt, &*ended.node), (2, "b"));
    let log = String::from_utf8_lossy(&cluster.log(&job)).into_owned();
    let said = "output 'model' has 3 files of the attempt before\n\
                ./step/1\n./step/2\n./step/new/inner/file\ntwo\n";
    assert!(log.ends_with(said), "{log}");
    let all = downloaded(&cluster, &job, "model");
    let expected = [
        ("step/1", "one\n"),
        ("step/2", "two\nmore\n"),
        ("step/3", "3\n"),
        ("step/new/inner/file", "x\n"),
    ];
    let found: Vec<(String, String)> = all
        .into_iter()
        .map(|(name, text)| (name[name.find("step/").unwrap()..].to_owned(), text))
        .collect();
    assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    until("it is dropped", || (!uncommitted(&cluster, &job).exists()).then_some(()));
}

/// What a job writes when it is told to stop is there too, also in a single file, and on a node that shares the store.
#[test]
fn the_last_checkpoint_of_an_evicted_job_is_there() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["a", "b"] {
        cluster.start_agent(&Agent::new(name).cpus(1));
    }
    let job = cluster.create(
        "command: |\n\
         \x20 f=${{outputs.file}}\n\
         \x20 if [ -e $f ]; then cat $f ${{outputs.folder}}/*; exit 0; fi\n\
         \x20 trap 'echo last > $f; rm ${{outputs.folder}}/x; exit 1' TERM\n\
         \x20 echo first > $f; echo x > ${{outputs.folder}}/x; echo y > ${{outputs.folder}}/y; echo written\n\
         \x20 sleep 600 & wait\n\
         outputs: {file: {type: uri_file}, folder: {type: uri_folder}, \
         late: {type: uri_folder, mode: upload}}\n",
    );
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("written");
    let first = [("file/0/0", "first\n"), ("folder/0/0/x", "x\n"), ("folder/0/0/y", "y\n")];
    lie_there(&cluster, &job, &first);
    let node = cluster.running(&job).node;
    cluster.atelier(["node", "drain", &node, "--reason", "test", "--deadline", "1s"]).ok();
    let ended = cluster.completed(&job);
    assert_eq!(ended.attempt, 2);
    assert_ne!(ended.node, node);
    let log = String::from_utf8_lossy(&cluster.log(&job)).into_owned();
    assert!(log.ends_with("last\ny\n"), "{log}");
    until("it is dropped", || (!uncommitted(&cluster, &job).exists()).then_some(()));
    let mut outputs = cluster.rpc().artifacts(&job);
    outputs.retain(|path| path.starts_with("named-outputs/"));
    assert_eq!(outputs, ["named-outputs/file", "named-outputs/folder/y"], "{outputs:?}");
}

/// A job that is over leaves nothing, however it ended and whatever the daemon missed.
#[test]
fn what_is_not_committed_goes_with_its_job() {
    let cluster = Cluster::start();
    let yaml = "command: echo x > ${{outputs.o}}/x; echo written; sleep 600\n\
                outputs: {o: {type: uri_folder}}\n";
    let job = cluster.create(yaml);
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("written");
    lie_there(&cluster, &job, &[("o/0/0/x", "x\n")]);
    // A new agent and a new daemon go on with it.
    cluster.agent("local", Process::kill);
    cluster.restart_daemon_hard();
    cluster.launch_agent(&Agent::new("local"));
    cluster.node_is_ready("local");
    lie_there(&cluster, &job, &[("o/0/0/x", "x\n")]);
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
    until("it is dropped", || (!uncommitted(&cluster, &job).exists()).then_some(()));
    // Of jobs that nobody knows, too.
    cluster.daemon(Process::kill);
    let stray = uncommitted(&cluster, "stray");
    fs::create_dir_all(stray.join("o/0/0")).unwrap();
    fs::write(stray.join("o/0/0/x"), "x").unwrap();
    cluster.start_daemon();
    until("it is dropped", || (!stray.exists()).then_some(()));
    let shown: Value = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["status"], "Canceled");
}
