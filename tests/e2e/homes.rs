//! The workspace's own datastores in another place than the data folder: an object store, another folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use atelier_proto::job::v1::JobStatus;

use crate::harness::{Agent, Azure, Cluster, Process, S3, Settings, http, processes_with, until};
use crate::secrets::with;

/// The secret half of the keys for S3.
const SECRET: &str = "home-canary-9Kd3sLq7VtYw2MnB";
/// An account's key: Base64 of `home-canary-9Kd3sLq7VtYw2MnB`.
const KEY: &str = "aG9tZS1jYW5hcnktOUtkM3NMcTdWdFl3Mk1uQg==";

pub(crate) fn s3(store: &S3, prefix: &str) -> String {
    format!(
        "type: s3\nbucket: bucket\nendpoint: {}\npath_style: true\nprefix: {prefix}\n\
         credentials: {{access_key_id: AKIATEST, secret_access_key: {SECRET}}}\n",
        store.url()
    )
}

fn azure(store: &Azure, kind: &str, container: &str) -> String {
    format!(
        "type: {kind}\naccount_name: {}\n{container}: made\nendpoint: {}\ncredentials: {{account_key: {KEY}}}\n",
        Azure::ACCOUNT,
        store.url()
    )
}

/// Writes a file for `--storage`, which nobody else may read.
pub(crate) fn place(cluster: &Cluster, name: &str, yaml: &str) -> PathBuf {
    let file = cluster.write(name, yaml);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// What the daemon is started with from now on.
pub(crate) fn stored_at(cluster: &Cluster, file: Option<&PathBuf>) {
    let option = file.map(|file| vec!["--storage".to_owned(), file.display().to_string()]);
    cluster.settings.borrow_mut().serve = option.unwrap_or_default();
}

/// Puts an artifact of its own run, as MLflow's client does.
const ARTIFACT: &str = "import os, urllib.request\n\
url = os.environ['MLFLOW_TRACKING_URI'] + '/api/2.0/mlflow-artifacts/artifacts/%s/%s/artifacts/notes/a.txt' % (\n\
    os.environ['MLFLOW_EXPERIMENT_ID'], os.environ['MLFLOW_RUN_ID'])\n\
request = urllib.request.Request(url, b'noted', method='PUT')\n\
request.add_header('Authorization', 'Bearer ' + os.environ['MLFLOW_TRACKING_TOKEN'])\n\
urllib.request.urlopen(request).read()\n";

/// Runs a job that uses all of the workspace's own datastores; its name. [`is_whole`] tells whether all is there.
pub(crate) fn make(cluster: &Cluster) -> String {
    cluster.write("code/say.sh", "echo \"said $1\"\n");
    cluster.write("code/artifact.py", ARTIFACT);
    cluster.write("folder/deep/b.txt", "B");
    let job = cluster.write(
        "job.yml",
        "code: code\n\
         command: sh say.sh one && cat ${{inputs.folder}}/deep/b.txt && python3 artifact.py && mkdir -p outputs \
         && echo kept > outputs/kept.txt && echo named > ${{outputs.model}}/m.txt \
         && head -c 9000000 /dev/zero > ${{outputs.model}}/large && touch ${{outputs.model}}/empty\n\
         inputs: {folder: {type: uri_folder, path: folder}}\n\
         outputs: {model: {type: uri_folder}}\n",
    );
    let query = ["--query", "name", "-o", "tsv"];
    let create = ["job", "create", "-f"].into_iter().map(str::to_owned);
    let create = create.chain([job.display().to_string()]).chain(query.map(str::to_owned));
    let name = cluster.atelier(create).ok().word();
    // Followed while it runs, and from what is stored afterwards.
    let followed = cluster.atelier(["job", "stream", &name, "-q"]).ok().stdout();
    assert_eq!(followed, "said one\nB");
    cluster.completed(&name);
    is_whole(cluster, &name);
    name
}

/// The job's log, outputs, artifacts, inputs and code are there.
#[track_caller]
pub(crate) fn is_whole(cluster: &Cluster, name: &str) {
    assert_eq!(cluster.log(name), b"said one\nB");
    let got = cluster.files().join(format!("got-{name}"));
    let _ = fs::remove_dir_all(&got);
    let to = got.display().to_string();
    cluster.atelier(["job", "download", name, "--all", "--download-path", &to]).ok();
    let read = |path: &str| fs::read(got.join(path)).unwrap();
    assert_eq!(read("artifacts/outputs/kept.txt"), b"kept\n");
    assert_eq!(read("artifacts/notes/a.txt"), b"noted");
    assert_eq!(read("named-outputs/model/m.txt"), b"named\n");
    assert_eq!(read("named-outputs/model/large"), vec![0; 9_000_000]);
    assert_eq!(read("named-outputs/model/empty"), b"");
    let listed = format!("GET /api/2.0/mlflow/artifacts/list?run_id={name}");
    let listed = http(&cluster.server(), &listed, &cluster.token(), "").unwrap();
    assert!(listed.0 == 200 && listed.1.contains("notes"), "{listed:?}");
}

/// The code and the inputs that one job came with serve another one, which is sent none of them.
#[track_caller]
pub(crate) fn goes_on(cluster: &Cluster, name: &str) {
    let again = ["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"];
    let again = cluster.atelier(again).ok();
    let again = again.never_says(&["Sent"]);
    let second = again.word();
    cluster.completed(&second);
    is_whole(cluster, &second);
    let next = cluster.create(&format!(
        "command: cat ${{{{inputs.m}}}}/m.txt\ninputs:\n  m:\n    type: uri_folder\n    \
         path: azureml://jobs/{name}/outputs/model/paths/\n"
    ));
    cluster.completed(&next);
    assert_eq!(cluster.log(&next), b"named\n");
}

#[track_caller]
fn storage(cluster: &Cluster) -> String {
    cluster.atelier(["workspace", "show", "--query", "storage", "-o", "tsv"]).ok().word()
}

/// A workspace whose own datastores lie there from its first start.
pub(crate) fn begin(yaml: &str) -> Cluster {
    let cluster = Cluster::with(Settings::default());
    let file = place(&cluster, "storage.yml", yaml);
    stored_at(&cluster, Some(&file));
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    cluster
}

/// Nothing of the workspace's data lies in the data folder, and its keys are in the one file only.
#[track_caller]
fn is_elsewhere(cluster: &Cluster, key: &str) {
    let stores = fs::read_dir(cluster.data().join("storage")).unwrap().flatten();
    let names: Vec<_> = stores.map(|entry| entry.file_name()).collect();
    assert_eq!(names, [".shared-probe"]);
    let found = with(cluster.path(), key.as_bytes());
    assert_eq!(found, [cluster.files().join("storage.yml")]);
    let processes = processes_with(&cluster.path().display().to_string());
    assert!(!processes.is_empty());
    for pid in processes {
        for part in ["environ", "cmdline"] {
            let text = fs::read(format!("/proc/{}/{part}", pid.as_raw_pid())).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(key), "{part} of {pid:?}");
        }
    }
    for words in [&["workspace", "show"][..], &["datastore", "list"]] {
        cluster.atelier(words.iter().chain(&["-o", "json"])).ok().never_says(&[key]);
    }
}

/// Starts the daemon, which refuses and says this.
#[track_caller]
fn refused(cluster: &Cluster, words: &[&str]) {
    cluster.launch_daemon();
    let status = cluster.daemon(Process::wait);
    let said = cluster.daemon(|daemon| daemon.printed());
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "not all of {words:?} in {said}");
}

#[test]
fn s3_holds_a_workspace_from_its_first_start() {
    let store = S3::start();
    let cluster = begin(&s3(&store, "team"));
    assert_eq!(storage(&cluster), format!("{}/bucket/team", store.url()));
    let shown = ["datastore", "show", "workspaceblobstore", "-o", "json"];
    let shown = cluster.atelier(shown).ok().json();
    assert_eq!((&shown["type"], &shown["is_default"]), (&"s3".into(), &true.into()));
    assert_eq!(shown["location"], format!("{}/bucket/team/workspaceblobstore", store.url()));
    cluster.atelier(["datastore", "test", "workspaceartifactstore"]).ok();
    let name = make(&cluster);
    let log =
        format!("team/workspaceartifactstore/ExperimentRun/dcid.{name}/user_logs/std_log.txt");
    assert_eq!(store.ask(&format!("GET /bucket/{log}"), ""), (200, "said one\nB".to_owned()));
    is_elsewhere(&cluster, SECRET);
    cluster.restart_daemon_hard();
    cluster.node_is_ready("local");
    is_whole(&cluster, &name);
    goes_on(&cluster, &name);

    // Another place is refused, and so is none, whose keys would be missing.
    cluster.daemon(Process::stop);
    let other = place(&cluster, "other.yml", &s3(&store, "other"));
    stored_at(&cluster, Some(&other));
    refused(&cluster, &["bucket/team", "bucket/other", "migrate-storage --to"]);
    stored_at(&cluster, None);
    refused(&cluster, &["bucket/team", "--storage FILE"]);
    // Another workspace does not take its place, nor one where something lies.
    let file = cluster.files().join("storage.yml");
    let second = Cluster::empty();
    stored_at(&second, Some(&file));
    refused(&second, &["data of another workspace"]);
    store.ask("PUT /bucket/full/workspaceblobstore/x", "precious");
    let full = place(&cluster, "full.yml", &s3(&store, "full"));
    stored_at(&second, Some(&full));
    refused(&second, &["holds data already", "workspaceblobstore/x"]);
    // What was never begun may begin elsewhere.
    let empty = place(&cluster, "empty.yml", &s3(&store, "empty"));
    stored_at(&second, Some(&empty));
    second.start_daemon();
    // A place that was emptied is not taken for one that is empty.
    second.daemon(Process::stop);
    store.ask("DELETE /bucket/empty/atelier-storage.json", "");
    refused(&second, &["does not hold the workspace's data any more", "backup"]);
    // A daemon starts although the store is away: what needs no data goes on.
    stored_at(&cluster, Some(&file));
    drop(store);
    cluster.start_daemon();
    cluster.node_is_ready("local");
    assert_eq!(cluster.rpc().job(&name).unwrap().status(), JobStatus::Completed);
}

#[test]
fn azure_holds_a_workspace_from_its_first_start() {
    let store = Azure::start(KEY);
    let cluster = begin(&azure(&store, "azure_blob", "container_name"));
    assert_eq!(storage(&cluster), format!("{}/made", store.url()));
    let name = make(&cluster);
    is_elsewhere(&cluster, KEY);
    cluster.restart_daemon_hard();
    cluster.node_is_ready("local");
    goes_on(&cluster, &name);
}

#[test]
fn azure_as_a_data_lake_holds_a_workspace() {
    let store = Azure::start(KEY);
    let cluster = begin(&azure(&store, "azure_data_lake_gen2", "filesystem"));
    make(&cluster);
}

#[test]
fn another_folder_holds_a_workspace_and_is_shared_with_its_node() {
    let cluster = Cluster::empty();
    let own = cluster.path().join("elsewhere");
    fs::create_dir(&own).unwrap();
    let file = cluster.write("storage.yml", format!("type: local\npath: {}\n", own.display()));
    stored_at(&cluster, Some(&file));
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let name = make(&cluster);
    assert_eq!(storage(&cluster), own.display().to_string());
    assert!(own.join("workspaceblobstore/azureml").join(&name).join("model/m.txt").exists());
    for path in [own.clone(), own.join("workspaceblobstore/azureml")] {
        let over = format!("name: over\ntype: local\npath: {}\n", path.display());
        let over = cluster.atelier(["datastore", "create", "-f", "-"]).stdin(over).fails(1);
        over.says(&["the workspace's own datastore", "name another place"]);
    }
    // Nothing more need be said.
    cluster.daemon(Process::stop);
    stored_at(&cluster, None);
    cluster.start_daemon();
    cluster.node_is_ready("local");
    goes_on(&cluster, &name);
    cluster.daemon(Process::stop);
    fs::rename(&own, cluster.path().join("away")).unwrap();
    refused(&cluster, &["elsewhere", "no folder"]);
}

/// A store that stays away is told of, soon, to whoever asks; what comes back goes on.
#[test]
fn azure_that_stays_away_is_told_of() {
    let mut store = Azure::start(KEY);
    let cluster = Cluster::empty();
    let yaml = azure(&store, "azure_blob", "container_name");
    let file = place(&cluster, "storage.yml", &yaml);
    stored_at(&cluster, Some(&file));
    cluster.settings.borrow_mut().serve.extend(["--store-patience", "1"].map(str::to_owned));
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local"));
    let kept = cluster.shell("echo kept");
    cluster.completed(&kept);
    let job = cluster.shell(
        "echo begun; until [ -e go ]; do sleep 0.1; done; mkdir -p outputs; echo made > outputs/a.txt",
    );
    let following = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    following.prints("begun");
    store.go_away();
    // A log that is stored cannot be read, one that is being written can.
    let begun = std::time::Instant::now();
    cluster.atelier(["job", "stream", &kept, "-q"]).run().says(&["cannot read", "just now"]);
    let refused = cluster.atelier(["datastore", "test", "workspaceblobstore", "-o", "json"]);
    assert!(refused.fails(1).stdout().contains("just now"));
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    cluster.atelier(["job", "exec", &job, "--", "touch", "go"]).ok();
    until("what the job made meets with nobody", || {
        cluster.daemon(|daemon| daemon.said("a store is away")).then_some(())
    });
    store.come_back(KEY);
    let ended = cluster.ended(&job);
    assert_eq!(ended.status(), JobStatus::Completed, "{ended:?}");
    assert_eq!(cluster.log(&job), b"begun\n");
    assert_eq!(cluster.log(&kept), b"kept\n");
}
