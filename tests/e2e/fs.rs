//! Files of datastores on the command line: listing, copying, printing, removing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::Cluster;

const FILES: &str = "azureml://datastores/workspacefilestore/paths";

fn ls(cluster: &Cluster, more: &[&str]) -> Vec<String> {
    let rows = cluster.atelier([&["fs", "ls", "-o", "json"], more].concat()).ok().json();
    let name = |row: &Value| row["name"].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(name).collect()
}

fn cp(cluster: &Cluster, arguments: &[&str]) -> Value {
    cluster.atelier([&["fs", "cp", "-o", "json"], arguments].concat()).ok().json()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with some files.
fn folder(cluster: &Cluster) -> PathBuf {
    let folder = fs::canonicalize(cluster.path()).unwrap().join("raw");
    fs::create_dir_all(folder.join("b c")).unwrap();
    fs::write(folder.join("a.csv"), "a\n").unwrap();
    fs::write(folder.join("b c/ü#%.csv"), "b\n").unwrap();
    fs::write(folder.join("large"), vec![7; 3 << 20]).unwrap();
    symlink("a.csv", folder.join("link")).unwrap();
    folder
}

#[test]
fn files_go_to_a_datastore_and_come_back() {
    let cluster = Cluster::start();
    let raw = folder(&cluster);
    let copied = cp(&cluster, &["-r", text(&raw), &format!("{FILES}/sets/")]);
    assert_eq!((&copied["files"], &copied["bytes"]), (&json!(4), &json!((3 << 20) + 6)));
    assert_eq!(ls(&cluster, &[&format!("{FILES}/")]), ["sets/"]);
    let all = ["a.csv", "b c/ü#%.csv", "large", "link"];
    assert_eq!(ls(&cluster, &["-r", &format!("{FILES}/sets/raw")]), all);
    assert_eq!(ls(&cluster, &[&format!("{FILES}/sets/raw/")]), ["a.csv", "b c/", "large", "link"]);
    assert_eq!(
        ls(&cluster, &[&format!("{FILES}/**/*.csv")]),
        ["sets/raw/a.csv", "sets/raw/b c/ü#%.csv"]
    );
    let row =
        cluster.atelier(["fs", "ls", "-o", "json", &format!("{FILES}/sets/raw/large")]).ok().json();
    assert_eq!(
        (&row[0]["bytes"], &row[0]["uri"]),
        (&json!(3 << 20), &json!(format!("{FILES}/sets/raw/large")))
    );
    assert!(row[0]["modified"].as_str().unwrap().starts_with("20"), "{row}");
    let printed = cluster.atelier([
        "fs",
        "cat",
        &format!("{FILES}/sets/raw/*.csv"),
        &format!("{FILES}/sets/raw/b c/*"),
    ]);
    assert_eq!(printed.ok().stdout(), "a\nb\n");

    // Back, by pattern into a folder, and a whole folder in a place of its own.
    let back = raw.with_file_name("back");
    cp(&cluster, &["-r", &format!("{FILES}/sets/raw/"), text(&back)]);
    for file in all {
        assert_eq!(fs::read(back.join(file)).unwrap(), fs::read(raw.join(file)).unwrap(), "{file}");
    }
    assert!(!fs::symlink_metadata(back.join("link")).unwrap().is_symlink());
    cp(
        &cluster,
        &[&format!("{FILES}/sets/raw/*"), "-r", &format!("{}/", text(&back.join("deep")))],
    );
    assert_eq!(fs::read_dir(back.join("deep")).unwrap().count(), 4);
    // Between datastores; nothing but whole files is left anywhere.
    let blobs = "azureml://datastores/workspaceblobstore/paths/mine";
    cp(&cluster, &["-r", &format!("{FILES}/sets/raw"), blobs]);
    assert_eq!(ls(&cluster, &["-r", blobs]), all);
    // What lies there is an input.
    let job = cluster.create(&format!(
        "command: cat ${{{{inputs.i}}}}\ninputs: {{i: {{type: uri_file, path: '{blobs}/a.csv'}}}}\n"
    ));
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"a\n");

    cluster.atelier(["fs", "rm", &format!("{blobs}/large"), &format!("{blobs}/l*k")]).ok();
    assert_eq!(ls(&cluster, &["-r", blobs]), all[..2]);
    cluster.atelier(["fs", "rm", blobs]).fails(1).says(&["is a folder", "-r"]);
    cluster.atelier(["fs", "rm", "-r", blobs]).fails(2).says(&["no terminal", "--yes"]);
    cluster.atelier(["fs", "rm", "-r", "--yes", blobs]).ok();
    cluster.atelier(["fs", "ls", blobs]).fails(3).says(&["nothing is stored", "atelier fs ls"]);
}

#[test]
fn what_assets_are_made_of_is_not_removed_unasked() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let raw = folder(&cluster);
    cp(&cluster, &["-r", text(&raw), &format!("{FILES}/sets/")]);
    let create = |kind: &str, name: &str, path: &str, form: &str| {
        let path = format!("{FILES}/{path}");
        let words = [kind, "create", "-n", name, "--path", &path, "--type", form];
        cluster.atelier(words).ok();
    };
    create("data", "all", "sets/raw", "uri_folder");
    create("model", "one", "sets/raw/a.csv", "custom_model");
    let rm = |words: &[&str]| cluster.atelier([&["fs", "rm"], words].concat());
    let file = format!("{FILES}/sets/raw/a.csv");
    // Of a file that is one, of one that is part of one, of a folder above.
    rm(&[&file]).fails(2).says(&["model 'one:1'", "data asset 'all:1'", "no terminal", "--yes"]);
    rm(&[&format!("{FILES}/sets/raw/l*k")]).fails(2).says(&["data asset 'all:1'"]);
    rm(&["-r", &format!("{FILES}/sets")]).fails(2).says(&["model 'one:1'", "--yes"]);
    assert_eq!(ls(&cluster, &["-r", &format!("{FILES}/sets/raw")]).len(), 4);
    cluster.atelier(["model", "delete", "one:1"]).ok();
    cluster.atelier(["data", "delete", "all:1"]).ok();
    create("data", "beside", "sets/ra", "uri_folder");
    rm(&[&file]).ok().says(&["Removed"]);
    create("data", "rest", "sets/raw", "uri_folder");
    rm(&["-r", "--yes", &format!("{FILES}/sets")]).ok().says(&["data asset 'rest:1'", "Removed"]);
}

#[test]
fn results_of_jobs_are_read_and_stay() {
    let cluster = Cluster::start();
    let job = cluster
        .create("command: echo made | tee ${{outputs.o}}/x\noutputs: {o: {type: uri_folder}}\n");
    cluster.completed(&job);
    let output = format!("azureml://jobs/{job}/outputs/o");
    assert_eq!(ls(&cluster, &[&output]), ["x"]);
    assert_eq!(
        cluster.atelier(["fs", "cat", &format!("{output}/paths/x")]).ok().stdout(),
        "made\n"
    );
    let logs = format!("azureml://jobs/{job}/outputs/artifacts/paths/user_logs");
    assert_eq!(ls(&cluster, &[&logs]), ["std_log.txt"]);
    cluster
        .atelier(["fs", "ls", &format!("azureml://jobs/{job}/outputs/p")])
        .fails(3)
        .says(&["no output 'p'", "it has: o"]);
    cluster.atelier(["fs", "ls", "azureml://jobs/no_such_1/outputs/o"]).fails(3);

    let ana = cluster.token_for("ana", "data-scientist");
    let server = cluster.server();
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&server, arguments).env("ATELIER_TOKEN", token)
    };
    let as_ana = |arguments: &[&str]| with(&ana, arguments);
    let input = cluster.path().join("mine");
    fs::write(&input, "ana's\n").unwrap();
    for kept in ["azureml/x", "LocalUpload/x", "ExperimentRun/x"] {
        let to = format!("azureml://datastores/workspaceblobstore/paths/{kept}");
        as_ana(&["fs", "cp", text(&input), &to]).fails(5).says(&["may not write this object"]);
    }
    as_ana(&["fs", "rm", &format!("{output}/paths/x")]).fails(5);
    as_ana(&["fs", "cp", text(&input), &format!("{FILES}/ana/")]).ok();
    let reader = cluster.token_for("rita", "reader");
    let as_rita = |arguments: &[&str]| with(&reader, arguments);
    assert_eq!(as_rita(&["fs", "cat", &format!("{FILES}/ana/mine")]).ok().stdout(), "ana's\n");
    as_rita(&["fs", "rm", &format!("{FILES}/ana/mine")]).fails(5);
    as_rita(&["fs", "cp", text(&input), &format!("{FILES}/rita")]).fails(5);
}

#[test]
fn what_cannot_be_copied_is_refused_before_anything_is() {
    let cluster = Cluster::start();
    let raw = folder(&cluster);
    let target = format!("{FILES}/t/");
    let refused = |arguments: &[&str], code, says: &[&str]| {
        cluster.atelier([&["fs", "cp"], arguments].concat()).fails(code).says(says);
        assert_eq!(ls(&cluster, &[&format!("{FILES}/")]), [""; 0], "{arguments:?}");
    };
    refused(&[text(&raw), &target], 1, &["is a folder", "-r"]);
    refused(&["no-such-file", &target], 3, &["no-such-file"]);
    refused(&[text(&raw), "elsewhere"], 2, &["neither"]);
    refused(
        &[text(&raw.join("a.csv")), "azureml://datastores/nowhere/paths/x"],
        3,
        &["no datastore 'nowhere'"],
    );
    refused(&[text(&raw.join("a.csv")), &format!("{FILES}/../x")], 1, &["not a valid path"]);
    refused(
        &[text(&raw.join("a.csv")), text(&raw.join("a.csv")), &target],
        1,
        &["two of the sources"],
    );
    symlink("/etc/hostname", raw.join("out")).unwrap();
    refused(&["-r", text(&raw), &target], 1, &["out", "is a link"]);
    fs::remove_file(raw.join("out")).unwrap();
    fs::write(raw.join("back\\slash"), "").unwrap();
    refused(&["-r", text(&raw), &target], 1, &["not a valid path"]);
    fs::remove_file(raw.join("back\\slash")).unwrap();

    cp(&cluster, &["-r", text(&raw), &target]);
    // A file beside an object would be its own target, and empty.
    let (kept, object) = (raw.join("a.csv"), format!("{target}raw/x.bin"));
    let before = fs::read(&kept).unwrap();
    let mixed = cluster.atelier(["fs", "cp", text(&kept), &object, text(&raw)]);
    mixed.fails(2).says(&["a.csv", "both lie on this machine"]);
    assert_eq!(fs::read(&kept).unwrap(), before);
    // A link that was there leads nothing out of the folder that was named.
    let trap = raw.with_file_name("trap");
    fs::create_dir_all(trap.join("outside")).unwrap();
    fs::create_dir_all(trap.join("in/raw")).unwrap();
    symlink("../../outside", trap.join("in/raw/b c")).unwrap();
    let all = format!("{target}raw");
    let led = cluster.atelier(["fs", "cp", "-r", &all, text(&trap.join("in"))]);
    led.fails(1).says(&["leads out of"]);
    assert_eq!(fs::read_dir(trap.join("outside")).unwrap().count(), 0);
    // Nor does a folder give way to a file.
    fs::create_dir_all(trap.join("other/a.csv")).unwrap();
    let led = cluster.atelier([
        "fs",
        "cp",
        &format!("{all}/a.csv"),
        &format!("{}/", text(&trap.join("other"))),
    ]);
    led.fails(1).says(&["a.csv is a folder"]);
    // A folder in the way, and one that is no file.
    cluster.atelier(["fs", "cat", &all]).fails(1).says(&["is a folder"]);
    let none = format!("{target}x*");
    let none = none.as_str();
    for words in [&["ls", none][..], &["rm", none], &["cp", none, "."], &["cat", none]] {
        cluster.atelier([&["fs"], words].concat()).fails(3).says(&["nothing matches"]);
    }
    cluster
        .atelier(["fs", "ls", "azureml://x"])
        .fails(2)
        .says(&["azureml://datastores/NAME/paths/PATH"]);
}
