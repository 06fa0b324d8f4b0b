//! Datastores that people make: what they are refused for, and jobs that read from them and write to them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Cluster, Disk, http, job_yaml, needs, until};

/// A folder beside the daemon's own, with a file in it.
fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = fs::canonicalize(cluster.path()).unwrap().join(name);
    fs::create_dir_all(folder.join("given")).unwrap();
    fs::write(folder.join("given/a.txt"), "from the datastore\n").unwrap();
    folder
}

fn yaml(name: &str, path: &Path) -> String {
    format!("name: {name}\ntype: local\npath: {}\ndescription: ours\n", path.display())
}

fn create(cluster: &Cluster, yaml: &str) -> Value {
    cluster.atelier(["datastore", "create", "-f", "-", "-o", "json"]).stdin(yaml).ok().json()
}

#[track_caller]
fn refused(cluster: &Cluster, yaml: &str, says: &[&str]) {
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).fails(1).says(says);
}

fn names(cluster: &Cluster) -> Value {
    cluster.atelier(["datastore", "list", "--query", "[].name", "-o", "json"]).ok().json()
}

/// `datastore test` says that the folder cannot be used, and why.
#[track_caller]
fn cannot_be_used(cluster: &Cluster, name: &str, why: &str) {
    let tried = cluster.atelier(["datastore", "test", name, "-o", "json"]).fails(1);
    let trials = tried.json();
    let told = |trial: &Value| trial["problem"].as_str().is_some_and(|text| text.contains(why));
    assert!(trials.as_array().unwrap().iter().all(told), "{trials}");
    tried.says(&["cannot list, write"]);
}

const OWN: [&str; 3] = ["workspaceartifactstore", "workspaceblobstore", "workspacefilestore"];

#[test]
fn jobs_read_from_a_datastore_and_write_to_it() {
    let cluster = Cluster::start();
    let place = folder(&cluster, "datasets");
    let made = create(&cluster, &yaml("datasets", &place));
    assert_eq!((&made["type"], &made["path"]), (&json!("local"), &json!(place)));
    assert_eq!(made["creation_context"]["created_by"], "admin");
    assert_eq!(names(&cluster), json!(["datasets", OWN[0], OWN[1], OWN[2]]));
    // Nothing is made in a folder that is only looked at.
    assert!(!place.join(".staging").exists());

    // A restart keeps it.
    cluster.restart_daemon_hard();
    let shown = cluster.atelier(["datastore", "show", "datasets", "-o", "json"]).ok().json();
    assert_eq!(shown, made);
    let job = cluster.create(
        "command: cat ${{inputs.given}}/a.txt; cp ${{inputs.given}}/a.txt ${{outputs.made}}/b.txt\n\
         inputs: {given: {type: uri_folder, path: 'azureml://datastores/datasets/paths/given/'}}\n\
         outputs: {made: {type: uri_folder, path: 'azureml://datastores/datasets/paths/made/by-${{name}}'}}\n",
    );
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"from the datastore\n");
    let written = place.join(format!("made/by-{job}/b.txt"));
    assert_eq!(fs::read_to_string(written).unwrap(), "from the datastore\n");
    assert_eq!(fs::read_dir(place.join(".staging")).unwrap().count(), 0);
    // What people keep there stays theirs: as it was, and under one name.
    let kept = fs::metadata(place.join("given/a.txt")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o222, 0o200, "{kept:?}");
    let next = cluster.create(&format!(
        "command: cat ${{{{inputs.made}}}}\ninputs: {{made: {{type: uri_file, path: \
         'azureml://jobs/{job}/outputs/made/paths/b.txt'}}}}\n"
    ));
    cluster.completed(&next);
    assert_eq!(cluster.log(&next), b"from the datastore\n");

    let tried = cluster.atelier(["datastore", "test", "datasets", "-o", "json"]).ok().json();
    let tried: Vec<_> = tried.as_array().unwrap().iter().map(|t| t["operation"].clone()).collect();
    assert_eq!(tried, ["list", "write", "read", "delete"]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 3, "the probe is gone");

    // A name that is nearly it is told.
    cluster
        .atelier(["job", "create", "-f", "-"])
        .stdin("command: ls\ninputs: {i: {type: uri_file, path: 'azureml://datastores/dataset/paths/x'}}\n")
        .fails(3)
        .says(&["inputs.i", "no datastore 'dataset'", "did you mean 'datasets'?"]);

    cluster.atelier(["datastore", "delete", "datasets", "--yes"]).ok();
    assert_eq!(names(&cluster), json!(OWN));
    assert!(place.join("given/a.txt").exists());
    cluster
        .atelier(["datastore", "show", "datasets"])
        .fails(3)
        .says(&["no datastore 'datasets'", "datastore list"]);
    // Jobs that are over stay as they are, and can be deleted.
    cluster.atelier(["job", "show", &job]).ok();
    cluster.atelier(["job", "delete", &job, "--yes"]).ok();
}

/// Of a whole datastore, and through the gateway as well as by links.
#[test]
fn an_input_may_be_a_whole_datastore() {
    let cluster = Cluster::start();
    let place = folder(&cluster, "datasets");
    fs::write(place.join("b.txt"), "").unwrap();
    create(&cluster, &yaml("datasets", &place));
    cluster.atelier(["datastore", "test", "datasets"]).ok();
    for uri in ["azureml://datastores/datasets/paths/", "azureml://datastores/datasets"] {
        let job = cluster.create(&format!(
            "command: cd ${{{{inputs.all}}}} && find . -type f | sort\n\
             inputs: {{all: {{type: uri_folder, path: '{uri}'}}}}\n"
        ));
        cluster.completed(&job);
        assert_eq!(cluster.log(&job), b"./b.txt\n./given/a.txt\n", "{uri}");
    }
    // One of the workspace's own, which nodes here read as a folder; what is being written there is not seen.
    let files = cluster.create(
        "command: mkdir -p ${{outputs.o}}/deep && echo kept > ${{outputs.o}}/deep/file\n\
         outputs: {o: {type: uri_folder, path: 'azureml://datastores/workspacefilestore/paths/kept'}}\n",
    );
    cluster.completed(&files);
    let job = cluster.create(
        "command: cd ${{inputs.all}} && find . | sort\n\
         inputs: {all: {type: uri_folder, path: 'azureml://datastores/workspacefilestore/paths/'}}\n",
    );
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b".\n./kept\n./kept/deep\n./kept/deep/file\n");
}

#[test]
fn one_that_jobs_use_is_not_deleted() {
    let cluster = Cluster::start();
    let place = folder(&cluster, "datasets");
    create(&cluster, &yaml("datasets", &place));
    let reader = cluster.create(&format!(
        "{}inputs: {{i: {{type: uri_file, path: 'azureml://datastores/datasets/paths/given/a.txt'}}}}\n",
        job_yaml("echo ready; sleep 600")
    ));
    cluster.atelier(["job", "stream", &reader, "-q"]).spawn().prints("ready");
    let waiting = cluster.create(
        "command: ls\nresources: {cpus: 2}\n\
         outputs: {o: {type: uri_folder, path: 'azureml://datastores/datasets/paths/out'}}\n",
    );
    let delete = || cluster.atelier(["datastore", "delete", "datasets"]);
    delete().fails(1).says(&[&reader, &waiting, "cancel"]);
    cluster.atelier(["job", "cancel", &reader]).ok();
    cluster.ended(&reader);
    cluster.completed(&waiting);
    delete().ok();
}

#[test]
fn what_cannot_be_a_datastore_is_refused() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let place = folder(&cluster, "datasets");
    let file = place.join("given/a.txt");
    let (missing, inner) = (place.join("nothing"), cluster.data().join("storage"));
    let link = cluster.path().join("link");
    symlink(&inner, &link).unwrap();
    for (path, says) in [
        ("data", &["3:7", "absolute path"][..]),
        ("/srv/../etc", &["3:7", "'..'"]),
        ("/", &["3:7", "below '/'"]),
        (missing.to_str().unwrap(), &["no folder", "make it first"]),
        (file.to_str().unwrap(), &["not a folder"]),
        (inner.to_str().unwrap(), &["data folder"]),
        (cluster.path().to_str().unwrap(), &["data folder"]),
        // It leads into the daemon's folder.
        (link.to_str().unwrap(), &["data folder"]),
    ] {
        refused(&cluster, &yaml("datasets", Path::new(path)), says);
    }
    // A link to another place is followed once.
    let other = cluster.path().join("other");
    symlink(&place, &other).unwrap();
    assert_eq!(create(&cluster, &yaml("datasets", &other))["path"], json!(place));
    // The same again is no change, however the path is written; another one is.
    create(&cluster, &yaml("datasets", &place));
    refused(&cluster, &yaml("datasets", &place.join("given")), &["already", "update"]);
    refused(&cluster, &yaml("Datasets", &place), &["'datasets'", "case only"]);
    refused(&cluster, &yaml(OWN[0], &place), &["came with"]);
    refused(&cluster, &yaml("WorkspaceBlobStore", &place), &["case only"]);
    refused(
        &cluster,
        &format!("{}credentials: {{}}\n", "name: n\ntype: s3\nbucket: a/b\n"),
        &["3:9", "cannot be a name there"],
    );
    refused(&cluster, &yaml("n", &place).replace("local", "nfs"), &["nothing is mounted at"]);
    assert_eq!(names(&cluster), json!(["datasets", OWN[0], OWN[1], OWN[2]]));

    let update =
        |words: &[&str]| cluster.atelier(["datastore", "update", "-o", "json"].iter().chain(words));
    let changed = update(&["datasets", "--set", "description=theirs", "tags.team=vision"]);
    let changed = changed.ok().json();
    assert_eq!(
        (&changed["description"], &changed["tags"]),
        (&json!("theirs"), &json!({"team": "vision"}))
    );
    update(&["datasets", "--set", "path=/srv"]).fails(1).says(&["cannot be changed", "another"]);
    update(&[OWN[1], "--set", "description=x"]).fails(1);
    cluster.atelier(["datastore", "delete", OWN[1]]).fails(1).says(&["came with"]);
    cluster.atelier(["datastore", "delete", "nowhere"]).fails(3).says(&["datastore list"]);

    // Only admins change what of the machine is open to all; everybody may look.
    let user = |role: &str, words: &[&str]| {
        let token = cluster.token_for("bob", role);
        let words = ["datastore"].iter().chain(words);
        cluster.atelier_at(&cluster.server(), words).env("ATELIER_TOKEN", token)
    };
    for words in [
        &["create", "-f", "-"][..],
        &["update", "datasets", "--set", "description=x"],
        &["delete", "datasets"],
    ] {
        let refused = user("data-scientist", words).stdin(yaml("bobs", &place));
        refused.fails(5).says(&["bob", "datastores"]);
    }
    user("data-scientist", &["test", "datasets"]).ok();
    user("reader", &["show", "datasets"]).ok();
    user("reader", &["test", "datasets"]).fails(5);
}

/// Bytes meant for a mount never go to the empty folder below it, and the mount is not kept busy.
#[test]
fn a_mount_that_is_gone_is_neither_read_nor_written() {
    needs("disk");
    let disk = Disk::create("16M");
    let cluster = Cluster::start();
    let place = fs::canonicalize(disk.path()).unwrap();
    create(&cluster, &yaml("share", &place).replace("local", "nfs"));
    let write = |more: &str| {
        cluster.create(&format!(
            "command: echo kept > ${{{{outputs.o}}}}/x\noutputs: {{o: {{type: uri_folder, path: \
             'azureml://datastores/share/paths/{more}'}}}}\n"
        ))
    };
    cluster.completed(&write("first"));
    assert_eq!(fs::read_to_string(place.join("first/x")).unwrap(), "kept\n");

    let unmounted = std::process::Command::new("umount").arg(&place).status().unwrap();
    assert!(unmounted.success(), "the daemon keeps it busy");
    cannot_be_used(&cluster, "share", "nothing is mounted at");
    // A job that ends meanwhile has its output kept once the mount is back.
    let waiting = write("second");
    until("its output is refused", || {
        cluster.daemon(|daemon| daemon.said("nothing is mounted at")).then_some(())
    });
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    disk.remount();
    cluster.completed(&waiting);
    assert_eq!(fs::read_to_string(place.join("second/x")).unwrap(), "kept\n");
    cluster.atelier(["datastore", "test", "share"]).ok();
}

#[test]
fn a_folder_that_went_away_is_told_when_it_is_used() {
    let cluster = Cluster::start();
    let place = folder(&cluster, "datasets");
    create(&cluster, &yaml("datasets", &place));
    // A link in it leads nowhere, also not out of it.
    fs::write(cluster.path().join("private"), "private\n").unwrap();
    symlink(cluster.path(), place.join("out")).unwrap();
    let read = |path: &str| {
        let what = format!("GET /data/v1/datasets/{path}");
        http(&cluster.server(), &what, &cluster.token(), "").unwrap()
    };
    assert_eq!(read("given/a.txt"), (200, "from the datastore\n".to_owned()));
    let (status, out) = read("out/private");
    assert!(status == 403 && out.contains("symbolic link"), "{status}: {out}");

    fs::rename(&place, place.with_extension("moved")).unwrap();
    cannot_be_used(&cluster, "datasets", "is not there");
    // The place of another folder now, through a link.
    symlink(cluster.path(), &place).unwrap();
    cannot_be_used(&cluster, "datasets", "has become a link");
    cluster.restart_daemon_hard();
    assert_eq!(names(&cluster), json!(["datasets", OWN[0], OWN[1], OWN[2]]));
    fs::remove_file(&place).unwrap();
    fs::rename(place.with_extension("moved"), &place).unwrap();
    cluster.atelier(["datastore", "test", "datasets"]).ok();
}

/// A certificate that was made for tests, with its key.
const PRINCIPAL: &str = include_str!("../../src/storage/cloud/entra/testing.pem");

#[test]
fn a_service_principals_certificate_is_sent_sealed_and_found_nowhere() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let key = PRINCIPAL.lines().rev().nth(1).unwrap();
    // Not among what is looked through.
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("principal.pem");
    std::fs::write(&pem, PRINCIPAL).unwrap();
    let yaml = |thumbprint: &str| {
        format!(
            "name: sales\ntype: one_lake\none_lake_workspace_name: team\nendpoint: http://127.0.0.1:1\n\
             artifact: {{type: lake_house, name: sales}}\ncredentials:\n  tenant_id: t\n  client_id: c\n  \
             authority_url: http://127.0.0.1:1\n  certificate: {}\n  thumbprint: '{thumbprint}'\n",
            pem.display()
        )
    };
    cluster.write("sales.yml", yaml("9C:73:52:45:A9:DA:90:18:FF:00:80:D6:5F:1D:6C:F9:46:6C:C6:5C"));
    cluster.atelier(["datastore", "create", "-f", "sales.yml"]).ok().never_says(&[key]);
    let shown =
        cluster.atelier(["datastore", "show", "sales", "-o", "json"]).ok().never_says(&[key]);
    let shown = shown.json();
    assert_eq!(shown["credential_type"], "service_principal");
    assert_eq!(shown["artifact"], serde_json::json!({"type": "lake_house", "name": "sales"}));
    // Nobody gives it a token; it says so.
    let tried = cluster.atelier(["datastore", "test", "sales"]).fails(1).never_says(&[key]);
    let said = format!("{}{}", tried.stdout(), tried.stderr);
    assert!(said.contains("no token for the service principal"), "{said}");
    // One that is not the file's is no way in.
    cluster.write("sales.yml", yaml("00"));
    let short = cluster.atelier(["datastore", "update", "-f", "sales.yml"]).fails(1);
    short.says(&["thumbprint", "40 hexadecimal digits"]).never_says(&[key]);
    cluster.write("sales.yml", yaml(&"00".repeat(20)));
    cluster.atelier(["datastore", "update", "-f", "sales.yml"]).ok();
    let tried = cluster.atelier(["datastore", "test", "sales"]).fails(1);
    let said = format!("{}{}", tried.stdout(), tried.stderr);
    assert!(said.contains("thumbprint is not that"), "{said}");
    assert!(crate::secrets::with(cluster.path(), key.as_bytes()).is_empty());
}
