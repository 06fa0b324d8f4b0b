//! Data assets and models: versions, the jobs that use them, and the jobs that make them.

use std::fs;

use atelier_proto::job::v1::JobStatus;
use serde_json::{Value, json};

use crate::harness::{Cluster, http};

fn made(cluster: &Cluster, words: &[&str]) -> Value {
    cluster.atelier(words.iter().chain(&["-o", "json"])).ok().json()
}

fn listed(cluster: &Cluster, noun: &str, more: &[&str]) -> Value {
    let words = [noun, "list", "--query", "[].[name, version]"];
    cluster.atelier(words.iter().chain(more)).ok().json()
}

fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8_lossy(&cluster.log(job)).into_owned()
}

#[test]
fn a_local_path_becomes_a_version_that_jobs_name() {
    let cluster = Cluster::start();
    cluster.write("iris.csv", "a,b\n1,2\n");
    cluster.write(
        "iris.yml",
        "$schema: https://azuremlschemas.azureedge.net/latest/data.schema.json\nname: iris\ntype: uri_file\n\
         path: ./iris.csv\ntags: {team: vision}\n",
    );
    let one = made(&cluster, &["data", "create", "-f", "iris.yml"]);
    assert_eq!((&one["version"], &one["type"]), (&json!("1"), &json!("uri_file")));
    assert_eq!(
        (&one["latest"], &one["creation_context"]["created_by"]),
        (&json!(true), &json!("admin"))
    );
    let place = one["path"].as_str().unwrap().to_owned();
    assert!(
        place.starts_with("azureml://datastores/workspaceblobstore/paths/LocalUpload/"),
        "{place}"
    );
    // The same files are not sent again, and the same version is no change.
    let again =
        cluster.atelier(["data", "create", "-f", "iris.yml", "--version", "1", "-o", "json"]).ok();
    assert_eq!(again.json()["path"], json!(place));
    again.says(&["azureml:iris:1"]).never_says(&["Sent "]);

    cluster.write("iris.csv", "a,b\n3,4\n");
    cluster
        .atelier(["data", "create", "-f", "iris.yml", "--version", "1"])
        .fails(1)
        .says(&["version 1 of data asset 'iris'", "never changes"]);
    let first = cluster.create(&job("uri_file", "azureml:iris@latest"));
    let two = made(&cluster, &["data", "create", "-n", "iris", "-p", "iris.csv", "-t", "uri_file"]);
    assert_eq!(two["version"], "2");
    let second = cluster.create(&job("uri_file", "azureml:iris"));
    let third = cluster.create(&job("uri_file", "azureml:iris:1"));
    for (name, version, line) in [(&first, "1", "1,2"), (&second, "2", "3,4"), (&third, "1", "1,2")]
    {
        cluster.completed(name);
        let log = log(&cluster, name);
        assert!(log.contains(&format!("a,b\n{line}\n")), "{log}");
        let input = made(&cluster, &["job", "show", name, "--inputs"]);
        assert_eq!(input[0]["asset"], json!(format!("azureml:iris:{version}")), "{input}");
        assert!(input[0]["path"].as_str().unwrap().starts_with("azureml://datastores/"), "{input}");
    }
    let users = |which: &str| {
        let words = ["data", "show", which, "--used-by", "--query", "[].[name, status, inputs]"];
        cluster.atelier(words).ok().json()
    };
    assert_eq!(users("iris:1"), json!([[third, "Completed", ["d"]], [first, "Completed", ["d"]]]));
    assert_eq!(users("iris@latest"), json!([[second, "Completed", ["d"]]]));

    // What lies at a folder, and an mltable, are found in their modes.
    cluster.write("table/MLTable", "paths:\n  - file: ./rows.csv\n");
    cluster.write("table/rows.csv", "x\n1\n");
    made(&cluster, &["data", "create", "-n", "table", "-p", "table", "-t", "mltable"]);
    let evaluated = cluster.create(
        "command: find ${{inputs.d}} -name '*.csv' -exec cat {} +\n\
         inputs: {d: {type: mltable, mode: eval_download, path: 'azureml:table:1'}}\n",
    );
    cluster.completed(&evaluated);
    assert!(log(&cluster, &evaluated).contains("x\n1\n"), "{}", log(&cluster, &evaluated));
}

fn job(kind: &str, asset: &str) -> String {
    format!("command: cat ${{{{inputs.d}}}}\ninputs: {{d: {{type: {kind}, path: '{asset}'}}}}\n")
}

#[test]
fn what_does_not_fit_is_told_at_submission() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.write("f", "x");
    cluster.write("folder/f", "x");
    made(&cluster, &["data", "create", "-n", "file", "-p", "f", "-t", "uri_file"]);
    made(&cluster, &["model", "create", "-n", "m", "-p", "folder", "-t", "mlflow_model"]);
    for (kind, asset, code, says) in [
        ("uri_folder", "file:1", 1, &["'file:1' has the type uri_file", "type: uri_file"][..]),
        ("uri_file", "flie", 3, &["no data asset 'flie'", "did you mean file?"]),
        ("uri_file", "file:7", 3, &["data asset 'file' has no version '7'", "it has 1"]),
        ("uri_file", "file@blue", 3, &["no label 'blue'", "file@latest"]),
        ("uri_file", "m:1", 3, &["no data asset 'm', but a model", "type: mlflow_model"]),
        ("custom_model", "file:1", 3, &["no model 'file', but a data asset"]),
        ("triton_model", "m:1", 1, &["has the type mlflow_model", "takes triton_model"]),
        ("uri_file", "//registries/azureml/data/x/versions/1", 3, &["no registry 'azureml'"]),
    ] {
        let create = cluster.atelier(["job", "create", "-f", "-"]);
        create.stdin(job(kind, &format!("azureml:{asset}"))).fails(code).says(says);
    }
    // What is archived is found by its version, and by no label.
    cluster.atelier(["data", "archive", "file"]).ok();
    let create = cluster.atelier(["job", "create", "-f", "-"]);
    create
        .stdin(job("uri_file", "azureml:file@latest"))
        .fails(1)
        .says(&["data asset 'file' is archived", "atelier data restore file"]);
    cluster.create(&job("uri_file", "azureml:file:1"));
    cluster.create(&job("custom_model", "azureml:m"));
    for wrong in ["data", "model"] {
        cluster.atelier([wrong, "create"]).fails(2);
        cluster.atelier([wrong, "create", "-n", "x", "-p", "nowhere"]).fails(1).says(&["nowhere"]);
        cluster.atelier([wrong, "show", "nowhere"]).fails(3).says(&[&format!("{wrong} list")]);
        cluster.atelier([wrong, "list", "-n", "nowhere"]).fails(3).says(&["nowhere"]);
    }
    let far = "azureml://datastores/nowhere/paths/x";
    cluster.atelier(["data", "create", "-n", "x", "-p", far]).fails(3).says(&["no datastore"]);
}

#[test]
fn versions_are_labelled_changed_archived_and_deleted() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let create = |path: &str| {
        let path = format!("azureml://datastores/workspaceblobstore/paths/{path}");
        made(&cluster, &["model", "create", "-n", "digits", "-p", &path])["version"].clone()
    };
    for (path, version) in [("a", "1"), ("b", "2"), ("c", "3")] {
        assert_eq!(create(path), json!(version));
    }
    let update = |more: &[&str]| made(&cluster, &[&["model", "update"], more].concat());
    let changed = update(&[
        "digits:1",
        "--set",
        "description=the best",
        "stage=Production",
        "tags.team=vision",
        "--set-label",
        "champion",
    ]);
    for (key, value) in [
        ("description", json!("the best")),
        ("stage", json!("Production")),
        ("tags", json!({"team": "vision"})),
        ("labels", json!(["champion"])),
    ] {
        assert_eq!(changed[key], value, "{changed}");
    }
    cluster.restart_daemon_hard();
    let champion = || made(&cluster, &["model", "show", "digits@champion"])["version"].clone();
    assert_eq!(champion(), "1");
    update(&["digits:2", "--set-label", "champion"]);
    assert_eq!(champion(), "2");
    let words = ["model", "update", "digits:1", "--set", "path=x"];
    cluster.atelier(words).fails(2).says(&["does not change"]);
    let words = ["model", "update", "digits:1", "--set-label", "latest"];
    cluster.atelier(words).fails(1).says(&["always points to the newest"]);
    assert_eq!(update(&["digits:1", "--remove", "tags.team"])["tags"], json!({}));

    cluster.atelier(["model", "archive", "digits", "--version", "3"]).ok();
    assert_eq!(listed(&cluster, "model", &[]), json!([["digits", "2"]]));
    assert_eq!(
        listed(&cluster, "model", &["-n", "digits", "--archived"]),
        json!([["digits", "3"]])
    );
    cluster.atelier(["model", "restore", "digits:3"]).ok();
    assert_eq!(listed(&cluster, "model", &[]), json!([["digits", "3"]]));

    // A job that waits uses it.
    let waits = cluster.create(&job("custom_model", "azureml:digits:3"));
    cluster.atelier(["model", "delete", "digits:3"]).fails(1).says(&[
        "version 3 of model 'digits'",
        &waits,
        "not over",
    ]);
    cluster.atelier(["job", "cancel", &waits]).ok();
    cluster
        .atelier(["model", "delete", "digits:3"])
        .ok()
        .says(&["still lies at azureml://datastores/workspaceblobstore/paths/c"]);
    cluster.atelier(["model", "delete", "digits"]).fails(2).says(&["which version"]);
    assert_eq!(
        listed(&cluster, "model", &["-n", "digits"]),
        json!([["digits", "2"], ["digits", "1"]])
    );
    assert_eq!(create("c"), json!("4"));
    let place = "azureml://datastores/workspaceblobstore/paths/c";
    cluster
        .atelier(["model", "create", "-n", "digits", "-v", "3", "-p", place])
        .fails(1)
        .says(&["version 3", "was deleted"]);
}

#[test]
fn outputs_become_versions_when_their_job_is_completed() {
    let cluster = Cluster::start();
    let train = train("");
    let first = cluster.create(&train);
    // Whoever follows it is told, from the daemon's live events as from its log of them.
    cluster
        .atelier(["job", "stream", &first])
        .run()
        .ok()
        .says(&["output 'model' is version 1 of model 'digits'"]);
    cluster.completed(&first);
    let shown = made(&cluster, &["model", "show", "digits:1"]);
    assert_eq!(shown["created_by_job"], json!(first), "{shown}");
    assert_eq!(shown["created_by_output"], json!("model"));
    assert_eq!(shown["type"], json!("custom_model"));
    let output = made(&cluster, &["job", "show", &first, "--query", "outputs.model"]);
    assert_eq!(output["asset"], json!("azureml:digits:1"), "{output}");
    assert_eq!(output["path"], shown["path"]);

    // A version that is there stays, and a job that fails makes none.
    let fixed = train.replace("name: digits", "name: digits, version: 1");
    let second = cluster.create(&fixed);
    cluster.atelier(["job", "stream", &second]).run().ok().says(&["warning", "not registered"]);
    cluster.completed(&second);
    let events = cluster.atelier(["job", "events", &second]).ok().stdout();
    assert!(events.contains("not registered: cannot make version 1 of model 'digits'"), "{events}");
    assert_eq!(made(&cluster, &["model", "show", "digits:1"])["created_by_job"], json!(first));
    let fails = cluster.create(&train.replace("&& echo", "&& exit 3; echo"));
    assert_eq!(cluster.ended(&fails).status(), JobStatus::Failed);
    let newest = made(&cluster, &["model", "show", "digits"]);
    assert_ne!(newest["created_by_job"], json!(fails));

    // What became an asset is not deleted with its job.
    cluster
        .atelier(["job", "delete", &first, "--yes"])
        .fails(1)
        .says(&["model 'digits:1'", "atelier model delete"]);
    let used = cluster.create(
        "command: cat ${{inputs.m}}/weights\ninputs: {m: {type: custom_model, path: 'azureml:digits:1'}}\n",
    );
    cluster.completed(&used);
    assert!(log(&cluster, &used).contains("one\n"));
    // Nor need its name be said again for what a job wrote.
    let path = format!("azureml://jobs/{first}/outputs/model/paths/weights");
    let registered = made(&cluster, &["data", "create", "-n", "w", "-t", "uri_file", "-p", &path]);
    assert_eq!(registered["created_by_job"], json!(first), "{registered}");
    assert!(registered["path"].as_str().unwrap().ends_with("/model/weights"), "{registered}");
    for (noun, which) in [("model", "digits:1"), ("data", "w:1")] {
        cluster.atelier([noun, "delete", which]).ok();
    }
    cluster.atelier(["job", "delete", &first, "--yes"]).ok();
}

/// Of a job that was tried again, a version has what the last attempt wrote.
#[test]
fn what_an_earlier_attempt_left_is_no_part_of_a_version() {
    let cluster = Cluster::start();
    let tried = cluster.shared_file("tried");
    let job = cluster.create(&format!(
        "command: |\n  mkdir -p ${{{{outputs.model}}}}\n  if test -s {0}; then echo good > ${{{{outputs.model}}}}/new; \
         else echo x > {0}; echo stale > ${{{{outputs.model}}}}/old; exit 1; fi\n\
         outputs:\n  model: {{type: custom_model, name: digits}}\nretry: {{max_attempts: 2, backoff: 0}}\n",
        tried.display()
    ));
    assert_eq!(cluster.completed(&job).attempt, 2);
    let versions = listed(&cluster, "model", &["-n", "digits"]);
    assert_eq!(versions, json!([["digits", "1"]]));
    cluster.atelier(["model", "download", "digits"]).ok();
    let files = fs::read_dir(cluster.files().join("digits")).unwrap();
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, ["new"]);
}

/// A job that waits for what is said, and writes a model.
fn train(wait: &str) -> String {
    format!(
        "command: {wait} mkdir -p ${{{{outputs.model}}}} && echo one > ${{{{outputs.model}}}}/weights\n\
         outputs:\n  model: {{type: custom_model, name: digits}}\n"
    )
}

/// The daemon dies before the end of a job is on disk, or right after: the output is registered once.
#[cfg(feature = "failpoints")]
#[test]
fn an_output_becomes_one_version_however_the_daemon_dies() {
    let cluster = Cluster::start();
    for (dies_at, versions) in [("asset-registered", 1), ("asset-committed", 2)] {
        let go = cluster.files().join(dies_at);
        let wait = format!("echo ready; while ! test -e {}; do sleep 0.05; done;", go.display());
        let job = cluster.create(&train(&wait));
        cluster.atelier(["job", "stream", &job]).spawn().prints("ready");
        cluster.daemon(crate::harness::Process::kill);
        cluster.settings.borrow_mut().variables =
            vec![("ATELIER_FAILPOINT".to_owned(), dies_at.to_owned())];
        cluster.start_daemon();
        fs::write(go, "").unwrap();
        crate::harness::until("the daemon dies", || cluster.daemon(crate::harness::Process::ended));
        cluster.settings.borrow_mut().variables.clear();
        cluster.start_daemon();
        cluster.completed(&job);
        let all = listed(&cluster, "model", &["-n", "digits"]);
        assert_eq!(all.as_array().unwrap().len(), versions, "{dies_at}: {all}");
        let newest = made(&cluster, &["model", "show", "digits"]);
        assert_eq!(newest["created_by_job"], json!(job));
        let events = cluster.rpc().events(&job).unwrap();
        let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
        assert_eq!((count("AssetRegistered"), count("Completed")), (1, 1), "{events:?}");
    }
}

#[test]
fn a_version_is_brought_here_and_goes_on_where_it_broke_off() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.write("set/a.txt", "one");
    cluster.write("set/deep/b.txt", "two");
    made(&cluster, &["data", "create", "-n", "set", "-p", "set"]);
    let download = |more: &[&str]| made(&cluster, &[&["data", "download", "set"], more].concat());
    let report = download(&["-p", "here"]);
    assert_eq!((&report["files"], &report["downloaded_files"]), (&json!(2), &json!(2)));
    let read = |path: &str| fs::read_to_string(cluster.files().join(path)).unwrap();
    assert_eq!((read("here/set/a.txt"), read("here/set/deep/b.txt")), ("one".into(), "two".into()));
    let names = fs::read_dir(cluster.files().join("here/set")).unwrap().count();
    assert_eq!(names, 2, "nothing else is left");

    // As a download leaves it that broke off after its first file: that is not fetched again.
    let path = format!("{}a.txt", place(&cluster, "set"));
    let etag = etag(&cluster, &path);
    cluster.write("here/.set.atelier-download", format!("azureml:set:1\n{etag}\t{path}\n"));
    cluster.write("here/set/a.txt", "ONE");
    fs::remove_file(cluster.files().join("here/set/deep/b.txt")).unwrap();
    assert_eq!(download(&["-p", "here"])["downloaded_files"], json!(1));
    assert_eq!((read("here/set/a.txt"), read("here/set/deep/b.txt")), ("ONE".into(), "two".into()));
    // Of another version nothing is believed.
    cluster.write("here/.set.atelier-download", format!("azureml:set:9\n{etag}\t{path}\n"));
    assert_eq!(download(&["-p", "here"])["downloaded_files"], json!(2));
    assert_eq!(read("here/set/a.txt"), "one");

    // With files of another version among its own it would be neither; what is written over is its own.
    cluster.write("other/a.txt", "other");
    cluster.write("other/.atelier-download", "the asset's own");
    made(&cluster, &["data", "create", "-n", "set", "-p", "other"]);
    let into = ["data", "download", "set", "-p", "here"];
    cluster
        .atelier(into)
        .fails(1)
        .says(&["azureml:set:2 has not: 'deep/b.txt'", "--download-path"]);
    assert_eq!(read("here/set/a.txt"), "one", "nothing was changed");
    fs::remove_file(cluster.files().join("here/set/deep/b.txt")).unwrap();
    assert_eq!(download(&["-p", "here"])["downloaded_files"], json!(2));
    let own = read("here/set/.atelier-download");
    assert_eq!((read("here/set/a.txt"), own), ("other".into(), "the asset's own".into()));
    assert_eq!(
        fs::read_dir(cluster.files().join("here")).unwrap().count(),
        1,
        "nothing else is left"
    );

    cluster.write("one.bin", "x");
    made(&cluster, &["model", "create", "-n", "one", "-p", "one.bin"]);
    cluster.atelier(["model", "download", "-n", "one", "-v", "1"]).ok();
    assert_eq!(read("one/one.bin"), "x");
    made(
        &cluster,
        &["data", "create", "-n", "web", "-t", "uri_file", "-p", "https://example.org/x"],
    );
    cluster.atelier(["data", "download", "web"]).fails(1).says(&["https://example.org/x"]);
    let gone = "azureml://datastores/workspaceblobstore/paths/none/";
    made(&cluster, &["data", "create", "-n", "gone", "-p", gone]);
    cluster.atelier(["data", "download", "gone"]).fails(3).says(&["nothing at"]);
}

/// The daemon dies when the version is on its disk, before it has said so: asked again it makes no second one.
#[test]
fn a_version_is_made_once_although_its_answer_was_lost() {
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().variables =
        vec![("ATELIER_FAILPOINT".to_owned(), "asset-created".to_owned())];
    cluster.start_daemon();
    cluster.write("set/a.txt", "one");
    let create =
        cluster.atelier(["data", "create", "-n", "set", "-p", "set", "-o", "json"]).spawn();
    crate::harness::until("the daemon dies", || cluster.daemon(crate::harness::Process::ended));
    cluster.settings.borrow_mut().variables.clear();
    cluster.start_daemon();
    assert_eq!(create.wait().ok().json()["version"], json!("1"));
    assert_eq!(listed(&cluster, "data", &["-n", "set"]).as_array().unwrap().len(), 1);
    // Another request makes the next, of the same folder too.
    assert_eq!(
        made(&cluster, &["data", "create", "-n", "set", "-p", "set"])["version"],
        json!("2")
    );
}

/// What the gateway calls an object's content.
fn etag(cluster: &Cluster, path: &str) -> String {
    let what = format!("GET /data/v1/workspaceblobstore?prefix={path}");
    let (_, body) = http(&cluster.server(), &what, &cluster.token(), "").unwrap();
    let page: Value = serde_json::from_str(&body).unwrap();
    page["objects"][0]["etag"].as_str().unwrap().to_owned()
}

/// The path within its datastore.
fn place(cluster: &Cluster, name: &str) -> String {
    let shown = made(cluster, &["data", "show", name, "--query", "path"]);
    shown.as_str().unwrap().split_once("/paths/").unwrap().1.to_owned()
}

#[test]
fn who_may_do_what_with_assets() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let server = cluster.server();
    let (reader, ana, bob) = (
        cluster.token_for("rita", "reader"),
        cluster.token_for("ana", "data-scientist"),
        cluster.token_for("bob", "data-scientist"),
    );
    let with = |token: &str, words: &[&str]| {
        cluster.atelier_at(&server, ["data"].iter().chain(words)).env("ATELIER_TOKEN", token)
    };
    let place = "azureml://datastores/workspaceblobstore/paths/x";
    with(&ana, &["create", "-n", "d", "-p", place]).ok();
    with(&reader, &["show", "d"]).ok();
    with(&reader, &["show", "d", "--used-by"]).ok();
    with(&reader, &["create", "-n", "d", "-p", place]).fails(5).says(&["rita", "assets"]);
    with(&reader, &["update", "d", "--set", "tags.a=b"]).fails(5);
    with(&reader, &["delete", "d:1"]).fails(5);
    with(&bob, &["archive", "d"]).ok();
    with(&bob, &["restore", "d"]).ok();
    with(&bob, &["delete", "d:1"]).fails(5).says(&["bob", "it is ana's"]);
    with(&ana, &["delete", "d:1"]).ok();
}

/// Another datastore of the name would make something else of it.
#[test]
fn a_datastore_is_not_deleted_while_assets_lie_in_it() {
    let cluster = Cluster::start();
    let folder = fs::canonicalize(cluster.path()).unwrap().join("datasets");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("iris.csv"), "1\n").unwrap();
    let yaml = format!("name: datasets\ntype: local\npath: {}\n", folder.display());
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).ok();
    let path = "azureml://datastores/datasets/paths/iris.csv";
    made(&cluster, &["data", "create", "-n", "iris", "-t", "uri_file", "-p", path]);
    let delete = || cluster.atelier(["datastore", "delete", "datasets"]);
    delete().fails(1).says(&["an asset lies in datastore 'datasets' (iris:1)", "data delete"]);
    cluster.atelier(["data", "delete", "iris:1", "--yes"]).ok();
    delete().ok();
}
