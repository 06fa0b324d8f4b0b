//! Keys of object stores that cannot be named here, and names that are odd and yet work.

use super::*;
use crate::homes::{begin, make, s3 as home};

/// Keys that no path names, as they are written in addresses.
const ODD: [&str; 5] = ["given//c", "given/e%7Ff", "given/./g", "given/b//", "given/full/"];

/// Names that are odd, and what they are in addresses.
const NAMES: [(&str, &str); 12] = [
    ("%20lead", " lead"),
    ("trail%20", "trail "),
    ("two%20%20words", "two  words"),
    ("plus%2Bplus", "plus+plus"),
    ("per%25cent", "per%cent"),
    ("decoded%2520", "decoded%20"),
    ("hash%23", "hash#"),
    ("what%3Fx=1", "what?x=1"),
    ("and%26b%3Bc", "and&b;c"),
    ("%C3%BC%E2%82%AC%F0%9F%90%8D", "ü€🐍"),
    ("quote%27%22%3Ca%3E", "quote'\"<a>"),
    ("%7Etilde%2C(x)%5B0%5D%7B1%7D%5E%60%7C%2A%24%40%3A", "~tilde,(x)[0]{1}^`|*$@:"),
];

const FOLDER: &str = "azureml://datastores/store/paths/given";

/// All that a user does with a folder of which some cannot be named.
fn what_cannot_be_named_is_told(
    cluster: &Cluster,
    put: &dyn Fn(&str, &str),
    delete: &dyn Fn(&str),
) {
    put("given/a.txt", "a\n");
    put("given/b/c.txt", "c\n");
    ODD.iter().for_each(|key| put(key, "odd"));
    // The marks of folders are no matter.
    ["given/", "given/b/", "given/empty/"].iter().for_each(|key| put(key, ""));

    let ls = cluster.atelier(["fs", "ls", "-r", FOLDER, "-o", "json"]).ok();
    let names: Vec<Value> =
        ls.json().as_array().unwrap().iter().map(|entry| entry["name"].clone()).collect();
    assert_eq!(names, ["a.txt", "b/c.txt"]);
    ls.says(&["warning", "5 keys that cannot be named here, among them", "'given/"])
        .never_says(&["\u{7f}"]);
    let ls = cluster.atelier(["fs", "ls", FOLDER]).ok().says(&["cannot be named here"]);
    assert!(ls.stdout().contains("b/") && ls.stdout().contains("a.txt"), "{ls:?}");
    cluster.atelier(["fs", "ls", &format!("{FOLDER}/*")]).ok().says(&["cannot be named here"]);

    let job = cluster.create(COPY);
    let failed = cluster.ended(&job).error.unwrap_or_default().message;
    says(&failed, &["input 'given'", "5 keys that cannot be named here", "'given/", "would lack"]);
    // A file of it is whole.
    let file = cluster.create(
        "command: cat ${{inputs.a}}\n\
         inputs: {a: {type: uri_file, path: 'azureml://datastores/store/paths/given/a.txt'}}\n",
    );
    cluster.completed(&file);
    assert_eq!(cluster.log(&file), b"a\n");

    let to = cluster.path().join("copied").display().to_string();
    cluster
        .atelier(["fs", "cp", "-r", FOLDER, &to])
        .fails(1)
        .says(&["not all of it was copied", "5 keys that cannot be named here"]);
    let read = |path: &str| fs::read_to_string(cluster.path().join("copied").join(path)).unwrap();
    assert_eq!((read("a.txt"), read("b/c.txt")), ("a\n".to_owned(), "c\n".to_owned()));

    let asset = "name: odd\ntype: uri_folder\npath: azureml://datastores/store/paths/given\n";
    let create = || cluster.atelier(["data", "create", "-f", "-"]).stdin(asset).ok();
    create();
    let download = ["data", "download", "odd:1", "-p", &to];
    cluster.atelier(download).fails(1).says(&["whole", "5 keys that cannot be named here"]);
    cluster
        .atelier(["data", "delete", "odd:1", "--with-data"])
        .ok()
        .says(&["gone from", "but for 5 keys that cannot be named here"]);

    // And so it is with patterns.
    put("given/a.txt", "a\n");
    let (pattern, matched) = (format!("{FOLDER}/*"), cluster.path().join("matched"));
    fs::create_dir(&matched).unwrap();
    let matched_to = matched.display().to_string();
    cluster
        .atelier(["fs", "cp", "-r", &pattern, &matched_to])
        .fails(1)
        .says(&["not all of it was copied", "cannot be named here"]);
    assert_eq!(fs::read_to_string(matched.join("a.txt")).unwrap(), "a\n");
    cluster.atelier(["fs", "cat", &format!("{FOLDER}/*.txt")]).ok().says(&["cannot be named here"]);
    cluster
        .atelier(["fs", "rm", "-r", "--yes", &pattern])
        .fails(1)
        .says(&["not all of it was removed", "cannot be named here"]);
    assert_eq!(listed(cluster, "?prefix=given"), Vec::<String>::new());

    put("given/a.txt", "a\n");
    cluster
        .atelier(["fs", "rm", "-r", "--yes", FOLDER])
        .fails(1)
        .says(&["not all of it was removed", "5 keys that cannot be named here"]);
    assert_eq!(listed(cluster, "?prefix=given"), Vec::<String>::new());
    // Without them it is as if they had never been.
    ODD.iter().for_each(|key| delete(key));
    put("given/a.txt", "a\n");
    let ls = cluster.atelier(["fs", "ls", "-r", FOLDER]).ok().never_says(&["named"]);
    assert!(ls.stdout().contains("a.txt"), "{ls:?}");
    cluster.completed(&cluster.create(COPY));
    cluster.atelier(["fs", "rm", "-r", "--yes", FOLDER]).ok().says(&["Removed"]);
}

/// Names go through a job and come back.
fn odd_names_work(
    cluster: &Cluster,
    put: &dyn Fn(&str, &str),
    read: &dyn Fn(&str) -> (u16, String),
) {
    for (key, name) in NAMES {
        put(&format!("given/{key}"), name);
        put(&format!("given/in%20{key}/{key}"), name);
    }
    for mode in ["ro_mount", "download"] {
        let copy =
            COPY.replace("{type: uri_folder,", &format!("{{type: uri_folder, mode: {mode},"));
        let copy = copy.replacen(
            &format!("mode: {mode}, path: 'azureml://datastores/store/paths/made'"),
            &format!("path: 'azureml://datastores/store/paths/{mode}'"),
            1,
        );
        cluster.completed(&cluster.create(&copy));
        for (key, name) in NAMES {
            for at in [format!("{mode}/{key}"), format!("{mode}/in%20{key}/{key}")] {
                assert_eq!(read(&at), (200, name.to_owned()), "{at}");
            }
        }
    }
    let ls =
        cluster.atelier(["fs", "ls", "-r", FOLDER, "-o", "json"]).ok().never_says(&["warning"]);
    let ls = ls.json();
    let found: Vec<&str> =
        ls.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    for (_, name) in NAMES {
        assert!(found.contains(&name) && found.contains(&&*format!("in {name}/{name}")), "{name}");
    }
    cluster.atelier(["fs", "rm", "-r", "--yes", FOLDER]).ok();
    assert_eq!(listed(cluster, "?prefix=given"), Vec::<String>::new());
    for (key, _) in NAMES {
        assert_eq!(read(&format!("given/{key}")).0, 404, "{key}");
    }
}

#[test]
fn s3_keys_that_cannot_be_named_are_told() {
    let store = S3::start();
    let cluster = Cluster::start();
    create(&cluster, &s3(store.url(), "prefix: team/a"));
    let put = |key: &str, body: &str| {
        assert_eq!(store.ask(&format!("PUT /bucket/team/a/{key}"), body).0, 200, "{key}");
    };
    let delete = |key: &str| {
        let (status, said) = store.ask(&format!("DELETE /bucket/team/a/{key}"), "");
        assert_eq!(status, 204, "{key}: {said}");
    };
    what_cannot_be_named_is_told(&cluster, &put, &delete);
    odd_names_work(&cluster, &put, &|key| store.ask(&format!("GET /bucket/team/a/{key}"), ""));

    // One that begins with a '/' is not the one without.
    cluster.atelier(["datastore", "delete", "store"]).ok();
    create(&cluster, &s3(store.url(), ""));
    store.ask("PUT /bucket//lead", "slashed");
    store.ask("PUT /bucket/lead", "plain");
    let lead = ["fs", "cat", "azureml://datastores/store/paths/lead"];
    assert_eq!(cluster.atelier(lead).ok().stdout(), "plain");
    cluster.atelier(["fs", "rm", "azureml://datastores/store/paths/lead"]).ok();
    let ls = cluster.atelier(["fs", "ls", "azureml://datastores/store/paths/"]).ok();
    let ls = ls.says(&["'/lead'"]);
    assert!(!ls.stdout().contains("lead"), "{ls:?}");
    assert_eq!(store.ask("GET /bucket//lead", ""), (200, "slashed".to_owned()));
}

#[test]
fn azure_keys_that_cannot_be_named_are_told() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start();
    create(&cluster, &azure(&store.url(), "made", KEY));
    let put = |key: &str, body: &str| {
        let (status, said) = store.ask(KEY, "PUT", &format!("/made/{key}"), "", body);
        assert_eq!(status, 201, "{key}: {said}");
    };
    let delete = |key: &str| {
        let (status, said) = store.ask(KEY, "DELETE", &format!("/made/{key}"), "", "");
        assert_eq!(status, 202, "{key}: {said}");
    };
    what_cannot_be_named_is_told(&cluster, &put, &delete);
    let read = |key: &str| store.ask(KEY, "GET", &format!("/made/{key}"), "", "");
    odd_names_work(&cluster, &put, &read);
}

/// What somebody has put below a job's outputs, where the workspace's own data lies.
#[test]
fn s3_a_job_that_is_deleted_says_what_it_leaves() {
    let store = S3::start();
    let cluster = begin(&home(&store, "team"));
    let job = make(&cluster);
    let root = format!("/bucket/team/workspaceartifactstore/ExperimentRun/dcid.{job}");
    assert_eq!(store.ask(&format!("PUT {root}/x//y"), "odd").0, 200);
    cluster.atelier(["job", "delete", &job, "--yes"]).ok().says(&[
        "Deleted",
        "Kept",
        "a key that cannot be named here",
        "x//y",
    ]);
    assert_eq!(store.ask(&format!("GET {root}/x//y"), ""), (200, "odd".to_owned()));
    assert_eq!(store.ask(&format!("GET {root}/outputs/kept.txt"), "").0, 404);
}

/// Of what the rules keep nothing is left.
#[test]
fn s3_the_rules_say_what_they_leave_and_not_what_they_keep() {
    let store = S3::start();
    let cluster = begin(&home(&store, "team"));
    let job = cluster.create("command: mkdir -p outputs && echo x > outputs/x\n");
    cluster.completed(&job);
    let root = format!("/bucket/team/workspaceartifactstore/ExperimentRun/dcid.{job}");
    for key in ["user_logs/kept//y", "system_logs//y", "left//y"] {
        assert_eq!(store.ask(&format!("PUT {root}/{key}"), "odd").0, 200, "{key}");
    }
    let retention = ["workspace", "retention"];
    cluster.atelier(retention.iter().chain(&["set", "--outputs", "1s"])).ok();
    let said = |words: &str| cluster.daemon(|daemon| daemon.said(words));
    until("the outputs are old enough", || {
        let applied = cluster.atelier(retention.iter().chain(&["apply", "-o", "json"])).ok();
        (!applied.json().as_array().unwrap().is_empty()).then_some(())
    });
    until("the outputs have gone", || said("not all of it was removed").then_some(()));
    assert!(said("a key that cannot be named here") && said("left//y"));
    assert!(!said("kept//y") && !said("system_logs//y"));
}
