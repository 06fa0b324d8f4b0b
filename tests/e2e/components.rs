//! Components as assets: made from Azure's files, in versions that never change.

use serde_json::json;

use crate::harness::Cluster;

const TRAIN: &str = "\
name: train
type: command
display_name: Train
inputs:
  data: {type: uri_folder}
  epochs: {type: integer, default: 10, min: 1, max: 100}
outputs:
  model: {type: mlflow_model}
code: ./src
environment: azureml:tools@latest
command: python train.py --data ${{inputs.data}} --epochs ${{inputs.epochs}} --out ${{outputs.model}}
";

#[test]
fn a_component_is_made_versioned_looked_at_and_put_away() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.write("src/train.py", "print('one')\n");
    cluster.write("train.yml", TRAIN);
    let run = |words: &[&str]| cluster.atelier(words.iter().chain(&["-o", "json"]));
    let create = ["component", "create", "-f", "train.yml"];
    run(&create).fails(3).says(&["environment", "tools", "environment list"]);
    cluster.atelier(["environment", "create", "-n", "tools", "--image", "python:3.12"]).ok();

    let first = run(&create).ok().json();
    assert_eq!((&first["name"], &first["version"]), (&json!("train"), &json!("1")));
    assert_eq!(first["environment"], "azureml:tools:1", "it means that version from now on");
    assert_eq!(first["inputs"]["epochs"]["max"], "100");
    assert_eq!(first["outputs"], json!({"model": {"type": "mlflow_model"}}));
    let code = first["code"].as_str().unwrap();
    assert!(code.starts_with("azureml:code:"), "{code}");

    // The same again is no change, whatever is said of it; something else is refused.
    let again = [&create[..], &["--version", "1", "--set", "display_name=Fit"]].concat();
    let again = run(&again).ok().json();
    assert_eq!((&again["version"], &again["display_name"]), (&json!("1"), &json!("Fit")));
    cluster.write("src/train.py", "print('two')\n");
    let other = [&create[..], &["--version", "1"]].concat();
    run(&other).fails(1).says(&["version 1", "never changes"]);
    cluster.atelier(["environment", "create", "-n", "tools", "--image", "python:3.13"]).ok();
    let second = run(&create).ok().json();
    assert_eq!(
        (&second["version"], &second["environment"]),
        (&json!("2"), &json!("azureml:tools:2"))
    );
    assert_ne!(second["code"], first["code"]);
    cluster.restart_daemon_hard();

    // A reference means one version, as of all assets.
    let version = |which: &[&str]| {
        run(&[&["component", "show"], which].concat()).ok().json()["version"].clone()
    };
    assert_eq!(version(&["train"]), "2");
    assert_eq!(version(&["azureml:train:1"]), "1");
    let update = ["component", "update", "train:1", "--set-label", "champion", "--set", "tags.a=b"];
    assert_eq!(run(&update).ok().json()["labels"], json!(["champion"]));
    assert_eq!(version(&["train@champion"]), "1");
    let fixed = ["component", "update", "train:1", "--set", "command=ls"];
    run(&fixed).fails(2).says(&["does not change", "make another version"]);
    run(&["component", "show", "trian"]).fails(3).says(&["train", "component list"]);
    run(&["component", "show", "train:9"]).fails(3).says(&["no version '9'", "2, 1"]);

    let listed = |more: &[&str]| {
        let words = [&["component", "list", "--query", "[].version"], more].concat();
        run(&words).ok().json()
    };
    assert_eq!(listed(&[]), json!(["2"]));
    assert_eq!(listed(&["--name", "train"]), json!(["2", "1"]));
    run(&["component", "archive", "train", "--version", "2"]).ok();
    assert_eq!(version(&["train@latest"]), "1");
    run(&["component", "archive", "train"]).ok();
    assert_eq!(listed(&[]), json!([]));
    assert_eq!(listed(&["--include-archived"]), json!(["1"]));
    run(&create).fails(1).says(&["archived", "component restore train"]);
    run(&["component", "restore", "train"]).ok();
    assert_eq!(listed(&[]), json!(["1"]));

    // A version that is forgotten does not come back; who did not make it may not forget it.
    let sam = cluster.token_for("sam", "data-scientist");
    let by_sam = ["component", "delete", "train", "--version", "2"];
    cluster.atelier_at(&cluster.server(), by_sam).env("ATELIER_TOKEN", &sam).fails(5).says(&[
        "sam may not delete",
        "component 'train'",
        "only its owner",
    ]);
    run(&["component", "delete", "train"]).fails(2).says(&["which version", "component archive"]);
    run(&["component", "delete", "train@champion"]).fails(2).says(&["--version"]);
    run(&["component", "delete", "train:2", "--yes"]).ok().says(&["Version 2", "forgotten"]);
    run(&["component", "show", "train:2"]).fails(3).says(&["no version '2'"]);
    run(&[&create[..], &["--version", "2"]].concat())
        .fails(1)
        .says(&["deleted", "not given again"]);
    run(&["component", "delete", "train:1"]).ok();
    run(&["component", "show", "train@champion"]).fails(3);
    run(&["component", "show", "train"]).fails(3).says(&["no version any more"]);
    assert_eq!(run(&create).ok().json()["version"], "3");

    // Another kind's name is another's.
    run(&["model", "show", "train"]).fails(3);
    let rita = cluster.token_for("rita", "reader");
    let by =
        |words: &[&str]| cluster.atelier_at(&cluster.server(), words).env("ATELIER_TOKEN", &rita);
    by(&["component", "show", "train"]).ok();
    by(&["component", "archive", "train"]).fails(5);
    by(&create).fails(5);
}

#[test]
fn a_component_comes_back_as_files_that_make_the_same_version() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.write("src/train.py", "print('one')\n");
    cluster.write("src/lib/part.py", "x = 1\n");
    cluster.write("docker/Dockerfile", "FROM python:3.12\n");
    let inline = TRAIN.replace(
        "environment: azureml:tools@latest",
        "environment: {build: {path: ./docker}}\nresources: {instance_count: 2, memory: 2g, shm_size: 1g}\n\
         distribution: {type: pytorch, process_count_per_instance: 2}\ntags: {team: '007'}",
    );
    cluster.write("train.yml", &inline);
    cluster.atelier(["component", "create", "-f", "train.yml"]).ok();
    cluster.write("bare.yml", "name: bare\ncommand: 'echo hi'\n");
    cluster.atelier(["component", "create", "-f", "bare.yml"]).ok();

    let download = |which: &str| {
        cluster.atelier(["component", "download", which, "--download-path", "here", "-o", "json"])
    };
    let told = download("train@latest").ok().json();
    assert_eq!(told["id"], "azureml:train:1");
    let here = cluster.files().join("here");
    let read = |path: &str| std::fs::read_to_string(here.join(path)).unwrap();
    assert_eq!(read("train/code/train.py"), "print('one')\n");
    assert_eq!(read("train/code/lib/part.py"), "x = 1\n");
    assert_eq!(read("train/context/Dockerfile"), "FROM python:3.12\n");
    download("bare:1").ok();
    assert!(!here.join("bare/code").exists());
    let names = std::fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 2, "nothing else is left");

    // The same version: made of something else it would be refused, and said anew it would differ.
    let show = |name: &str| cluster.atelier(["component", "show", name, "-o", "json"]).ok().json();
    for name in ["train", "bare"] {
        let before = show(name);
        let file = format!("here/{name}/component.yml");
        cluster.atelier(["component", "create", "-f", &file]).ok();
        assert_eq!(show(name), before);
    }

    // Nothing is put among other files.
    download("train:1").fails(1).says(&["holds files", "--download-path"]);
    std::fs::remove_dir_all(here.join("train")).unwrap();
    std::fs::create_dir(here.join("train")).unwrap();
    // What an earlier one left is gone on with, and does not count as the component.
    std::fs::create_dir_all(here.join(".train.atelier-component/whole/code")).unwrap();
    std::fs::write(here.join(".train.atelier-component/whole/code/stale.py"), "").unwrap();
    download("train:1").ok();
    assert!(!here.join("train/code/stale.py").exists());
    download("train:9").fails(3).says(&["no version '9'"]);
}

#[test]
fn what_is_wrong_with_a_component_is_told_before_anything_is_sent() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.write("bad.yml", "name: a\ncommand: ls ${{inputs.x}}\ninputs: {y: {type: strng}}\n");
    let said = cluster.atelier(["component", "create", "-f", "bad.yml"]).fails(1);
    said.says(&["bad.yml:3", "strng", "string"]);
    cluster.write("pipeline.yml", "name: a\ntype: pipeline\njobs: {}\n");
    cluster.atelier(["component", "create", "-f", "pipeline.yml"]).fails(1).says(&["type"]);
    let schema = cluster.atelier(["schema", "component", "-o", "json"]).ok().json();
    assert_eq!(schema["properties"]["inputs"]["type"], "object");
}
