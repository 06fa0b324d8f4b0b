//! Datastores in object stores: jobs that read from them and write to them, what happens when a store is away or
//! refuses, and that nobody finds the keys.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::harness::{Agent, Azure, Cluster, Fault, FaultyWay, S3, http, processes_with, until};
use crate::secrets::with;

mod addresses;
mod keys;
mod shares;

/// The secret half of the keys for S3.
const SECRET: &str = "s3-canary-4Qm2vXw9ZpLr4KtB";
/// An account's key: Base64 of `azure-canary-4Qm2vXw9ZpLr4KtB`.
pub(crate) const KEY: &str = "YXp1cmUtY2FuYXJ5LTRRbTJ2WHc5WnBMcjRLdEI=";
/// Base64 of what is not that.
const WRONG: &str = "YXp1cmUtd3JvbmdmdWwta2V5LTAwMDA=";

pub(crate) fn s3(url: &str, more: &str) -> String {
    format!(
        "name: store\ntype: s3\nbucket: bucket\nendpoint: {url}\npath_style: true\n{more}\n\
         credentials: {{access_key_id: AKIATEST, secret_access_key: {SECRET}}}\n"
    )
}

pub(crate) fn azure(url: &str, container: &str, key: &str) -> String {
    format!(
        "name: store\ntype: azure_blob\naccount_name: {}\ncontainer_name: {container}\nendpoint: {url}\n\
         credentials: {{account_key: {key}}}\n",
        Azure::ACCOUNT
    )
}

pub(crate) fn create(cluster: &Cluster, yaml: &str) -> Value {
    cluster.atelier(["datastore", "create", "-f", "-", "-o", "json"]).stdin(yaml).ok().json()
}

/// Copies the folder `given` of the datastore to its folder `made`, with a large file beside it.
pub(crate) const COPY: &str = "command: cp -r ${{inputs.given}}/. ${{outputs.made}}; head -c 20000000 /dev/zero > \
     ${{outputs.made}}/large; ls ${{inputs.given}}\n\
     inputs: {given: {type: uri_folder, path: 'azureml://datastores/store/paths/given/'}}\n\
     outputs: {made: {type: uri_folder, path: 'azureml://datastores/store/paths/made'}}\n";

fn put(cluster: &Cluster, path: &str, body: &str) -> (u16, String) {
    http(&cluster.server(), &format!("PUT /data/v1/store/{path}"), &cluster.token(), body).unwrap()
}

/// What `datastore test` says is wrong.
#[track_caller]
fn problems(cluster: &Cluster) -> String {
    let tried = cluster.atelier(["datastore", "test", "store", "-o", "json"]).fails(1);
    tried.json().to_string()
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|word| text.contains(word)), "not all of {words:?} in {text}");
}

fn get(cluster: &Cluster, path: &str) -> (u16, String) {
    http(&cluster.server(), &format!("GET /data/v1/store{path}"), &cluster.token(), "").unwrap()
}

fn listed(cluster: &Cluster, query: &str) -> Vec<String> {
    let (status, page) = get(cluster, query);
    assert_eq!(status, 200, "{page}");
    let page: Value = serde_json::from_str(&page).unwrap();
    let paths = page["objects"].as_array().unwrap().iter();
    paths.map(|object| object["path"].as_str().unwrap().to_owned()).collect()
}

/// No file below the cluster's folder and no process of it holds the key.
#[track_caller]
fn is_hidden(cluster: &Cluster, key: &str) {
    let found = with(cluster.path(), key.as_bytes());
    assert!(found.is_empty(), "{found:?}");
    let processes = processes_with(&cluster.path().display().to_string());
    assert!(!processes.is_empty());
    for pid in processes {
        for part in ["environ", "cmdline"] {
            let file = format!("/proc/{}/{part}", pid.as_raw_pid());
            let text = fs::read(file).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(key), "{part} of {pid:?}");
        }
    }
    for words in [&["datastore", "show", "store"][..], &["datastore", "list"], &["secret", "list"]]
    {
        for format in ["table", "json", "yaml"] {
            let shown = cluster.atelier(words.iter().chain(&["-o", format]));
            shown.ok().never_says(&[key]);
        }
    }
}

/// Names as people give them come back as they were, in the order of their bytes; and no more than was asked for.
fn names_come_back(cluster: &Cluster) {
    let names = [
        "a%20b",
        "a%23b",
        "a%25b",
        "a%2520b",
        "a-b",
        "a/%3Fx=1",
        "a/it's",
        "a/%C3%A4",
        "a/%5Bx%5D+",
    ];
    for name in names {
        let (status, body) = put(cluster, &format!("names/{name}"), name);
        assert_eq!(status, 201, "{name}: {body}");
    }
    for name in names {
        assert_eq!(get(cluster, &format!("/names/{name}")), (200, name.to_owned()));
    }
    let expected = [
        "names/a b",
        "names/a#b",
        "names/a%20b",
        "names/a%b",
        "names/a-b",
        "names/a/?x=1",
        "names/a/[x]+",
        "names/a/it's",
        "names/a/ä",
    ];
    assert_eq!(listed(cluster, "?prefix=names"), expected);
    assert_eq!(listed(cluster, "?prefix=names/&after=names/a-b"), expected[5..]);
    assert_eq!(listed(cluster, "?prefix=names/a"), expected[5..]);
    assert_eq!(listed(cluster, "?prefix=names/a-b"), ["names/a-b"]);
    assert_eq!(listed(cluster, "?prefix=names/b"), Vec::<String>::new());
    let (status, said) = get(cluster, "/names/b");
    assert!(status == 404 && said.contains("nothing is stored"), "{said}");
}

#[test]
fn s3_jobs_read_from_it_and_write_to_it() {
    let store = S3::start();
    let cluster = Cluster::start();
    let made = create(&cluster, &s3(store.url(), "prefix: team/a"));
    assert_eq!((&made["type"], &made["credential_type"]), (&json!("s3"), &json!("access_key")));
    assert_eq!(made["location"], format!("{}/bucket/team/a", store.url()));
    cluster.atelier(["datastore", "test", "store"]).ok();
    store.ask("PUT /bucket/team/a/given/a.txt", "from the store\n");
    store.ask("PUT /bucket/team/a/given/b/c%20%23%25.txt", "odd\n");
    // The mark of a folder, as consoles make them; and what is beside the prefix.
    store.ask("PUT /bucket/team/a/given/b/", "");
    store.ask("PUT /bucket/team/ab/given/x", "another's");
    // A restart keeps it.
    cluster.restart_daemon_hard();
    let job = cluster.create(COPY);
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"a.txt\nb\n");
    assert_eq!(
        store.ask("GET /bucket/team/a/made/a.txt", ""),
        (200, "from the store\n".to_owned())
    );
    assert_eq!(
        store.ask("GET /bucket/team/a/made/b/c%20%23%25.txt", ""),
        (200, "odd\n".to_owned())
    );
    let large = store.ask("GET /bucket/team/a/made/large", "").1;
    assert!(large.len() == 20_000_000 && large.bytes().all(|byte| byte == 0));
    names_come_back(&cluster);
    is_hidden(&cluster, SECRET);

    // The same again is no change; other keys are one.
    let again = s3(store.url(), "prefix: team/a");
    create(&cluster, &again);
    let other = again.replace(SECRET, "another");
    cluster.atelier(["datastore", "create", "-f", "-"]).stdin(&*other).fails(1).says(&["already"]);
    cluster.atelier(["datastore", "update", "-f", "-"]).stdin(&*other).ok();
    let said = cluster.atelier(["datastore", "update", "store", "--set", "tags.a=b", "-o", "json"]);
    assert_eq!(said.ok().json()["credential_type"], "access_key");
    cluster
        .atelier(["datastore", "update", "store", "--set", "bucket=b"])
        .fails(1)
        .says(&["cannot be changed"]);
    // It is rotated with all that is sealed, and goes with the datastore.
    let keys = |expected: usize| {
        let status = cluster.atelier(["vault", "status", "-o", "json"]).ok().json();
        let keys = status["keys"].as_array().unwrap().iter();
        assert_eq!(keys.map(|key| key["versions"].as_u64().unwrap()).sum::<u64>(), expected as u64);
    };
    keys(1);
    cluster.atelier(["datastore", "delete", "store"]).ok();
    keys(0);
}

#[test]
fn s3_that_cannot_be_used_says_why() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &s3(&way.url(), "").replace("bucket: bucket", "bucket: other"));
    says(&problems(&cluster), &["no bucket 'other'", "list", "write"]);
    let (status, said) = get(&cluster, "/x");
    assert!(status == 503 && said.contains("no bucket 'other'"), "{status} {said}");
    cluster.atelier(["datastore", "delete", "store"]).ok();
    create(&cluster, &s3(&way.url(), ""));
    way.spoil(&["GET"], 1, Fault::Refused(403));
    says(&problems(&cluster), &["cannot list: the credentials do not allow it (HTTP 403 SlowDown"]);
    drop(way);
    drop(store);
    says(&problems(&cluster), &["cannot list just now", "cannot write just now"]);
    is_hidden(&cluster, SECRET);
}

/// Faults of networks and stores that pass are tried over, and change nothing of what is read and stored: by the
/// daemon, through which all goes.
#[test]
fn s3_faults_on_the_way_change_nothing() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::start_with(&["--signed-urls", "none"]);
    create(&cluster, &s3(&way.url(), ""));
    let text: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    store.ask("PUT /bucket/given/a.txt", &text);
    store.ask("PUT /bucket/made/a.txt", "what was there before");
    way.spoil(&["GET", "list-type"], 2, Fault::Refused(503));
    way.spoil(&["HEAD", "given/a.txt"], 1, Fault::Refused(500));
    way.spoil(&["GET", "given/a.txt"], 1, Fault::Refused(429));
    way.spoil(&["GET", "given/a.txt"], 2, Fault::Cut);
    way.spoil(&["PUT", "made/a.txt"], 1, Fault::Refused(503));
    way.spoil(&["PUT", "made/a.txt"], 1, Fault::Denied(500));
    way.spoil(&["PUT", "made/large", "partNumber=2"], 1, Fault::Denied(500));
    way.spoil(&["POST", "made/large", "uploadId"], 1, Fault::Denied(503));
    let job = cluster.create(COPY);
    cluster.completed(&job);
    assert_eq!(way.left(), 0, "faults that did not happen");
    assert!(store.ask("GET /bucket/made/a.txt", "") == (200, text), "other bytes");
    assert_eq!(store.ask("GET /bucket/made/large", "").1.len(), 20_000_000);
}

/// Parts of an upload whose sender goes away are given up, and nothing of it is seen.
#[test]
fn s3_an_upload_that_breaks_off_leaves_nothing() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::empty();
    cluster.start_daemon();
    create(&cluster, &s3(&way.url(), ""));
    let server = cluster.server();
    let mut sender = TcpStream::connect(server.trim_start_matches("http://")).unwrap();
    let token = cluster.token();
    write!(
        sender,
        "PUT /data/v1/store/half HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: 30000000\r\n\r\n"
    )
    .unwrap();
    sender.write_all(&vec![7; 20_000_000]).unwrap();
    until("a part is on its way", || way.saw(&["PUT", "half", "partNumber=2"]).then_some(()));
    sender.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = sender.read(&mut [0; 100]);
    drop(sender);
    until("the upload is given up", || way.saw(&["DELETE", "half", "uploadId"]).then_some(()));
    until("no upload is left", || {
        let uploads = store.ask("GET /bucket?uploads", "").1;
        (!uploads.contains("<UploadId>")).then_some(())
    });
    assert_eq!(store.ask("GET /bucket/half", "").0, 404);
}

#[test]
fn azure_jobs_read_from_it_and_write_to_it() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start();
    let made = create(&cluster, &azure(&store.url(), "made", WRONG));
    assert_eq!(made["credential_type"], "account_key");
    assert_eq!(made["location"], format!("{}/made", store.url()));
    let refused = ["does not accept the credentials", "cannot write", "datastore update"];
    says(&problems(&cluster), &refused);
    let job = cluster.create(COPY);
    let failed = cluster.ended(&job).error.unwrap_or_default().message;
    assert!(failed.contains("does not accept the credentials"), "{failed}");
    // Other credentials do without a restart.
    cluster
        .atelier(["datastore", "update", "-f", "-"])
        .stdin(azure(&store.url(), "made", KEY))
        .ok();
    cluster.atelier(["datastore", "test", "store"]).ok();

    let put = |path: &str, body: &str| store.ask(KEY, "PUT", path, "", body).0;
    assert_eq!(put("/made/given/a.txt", "from the store\n"), 201);
    assert_eq!(put("/made/given/b/c.txt", "deep\n"), 201);
    let job = cluster.create(COPY);
    cluster.completed(&job);
    assert_eq!(cluster.log(&job), b"a.txt\nb\n");
    let read = |path: &str| store.ask(KEY, "GET", path, "", "");
    assert_eq!(read("/made/made/b/c.txt"), (200, "deep\n".to_owned()));
    assert_eq!(read("/made/made/large").1.len(), 20_000_000);
    names_come_back(&cluster);
    is_hidden(&cluster, KEY);
    is_hidden(&cluster, WRONG);

    // Read as a data lake it is the same.
    let lake = azure(&store.url(), "made", KEY)
        .replace("azure_blob", "azure_data_lake_gen2")
        .replace("container_name", "filesystem")
        .replace("name: store", "name: lake");
    create(&cluster, &lake);
    cluster.atelier(["datastore", "test", "lake"]).ok();
    // A container that is not there.
    cluster.atelier(["datastore", "delete", "store"]).ok();
    create(&cluster, &azure(&store.url(), "gone", KEY));
    says(&problems(&cluster), &["has no container 'gone'", "list", "write"]);
}

/// A signature is part of addresses, which errors hold: nobody is shown it.
#[test]
fn azure_takes_signatures_and_says_when_they_have_expired() {
    let store = Azure::start(KEY);
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let (good, over) = (Azure::sas(KEY, 2099), Azure::sas(KEY, 2020));
    let url = store.url();
    let given = |sas: &str| given_at(&url, sas);
    let made = create(&cluster, &given(&good));
    assert_eq!(made["credential_type"], "sas_token");
    assert_eq!(put(&cluster, "a%20b", "c").0, 201);
    assert_eq!(get(&cluster, "/a%20b"), (200, "c".to_owned()));
    // Azurite deletes with no signature: of the trials that one fails.
    assert_eq!(listed(&cluster, "?prefix="), ["a b"]);
    cluster.atelier(["datastore", "update", "-f", "-"]).stdin(given(&over)).ok();
    let said = problems(&cluster);
    says(&said, &["does not accept the credentials", "datastore update"]);
    for sas in [&good, &over] {
        let (_, signature) = sas.rsplit_once("sig=").unwrap();
        let start = &signature[..20];
        assert!(!said.contains(start), "{said}");
        is_hidden(&cluster, start);
    }
    // A store that is not reached is told of with its address.
    drop(store);
    cluster
        .atelier(["datastore", "update", "-f", "-"])
        .stdin(given_at("http://127.0.0.1:1/a", &good))
        .fails(1);
    cluster.atelier(["datastore", "delete", "store"]).ok();
    create(&cluster, &given_at("http://127.0.0.1:1/a", &good));
    let said = problems(&cluster);
    assert!(said.contains("just now") && !said.contains("sig="), "{said}");
}

fn given_at(url: &str, sas: &str) -> String {
    azure(url, "made", "x").replace("account_key: x", &format!("sas_token: '?{sas}'"))
}

#[test]
fn azure_that_is_away_is_waited_for() {
    let mut store = Azure::start(KEY);
    let cluster = Cluster::start();
    create(&cluster, &azure(&store.url(), "made", KEY));
    store.ask(KEY, "PUT", "/made/given/a.txt", "", "given\n");
    let job = cluster.create(
        "command: echo ready; until [ -e go ]; do sleep 0.1; done; cp ${{inputs.i}} ${{outputs.o}}/a.txt\n\
         inputs: {i: {type: uri_file, path: 'azureml://datastores/store/paths/given/a.txt'}}\n\
         outputs: {o: {type: uri_folder, path: 'azureml://datastores/store/paths/out'}}\n",
    );
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("ready");
    store.go_away();
    cluster.atelier(["job", "exec", &job, "--", "touch", "go"]).ok();
    // The daemon has tried and is trying again.
    until("the upload meets with nobody", || {
        cluster.daemon(|daemon| daemon.said("backing off")).then_some(())
    });
    store.come_back(KEY);
    cluster.completed(&job);
    assert_eq!(store.ask(KEY, "GET", "/made/out/a.txt", "", ""), (200, "given\n".to_owned()));
}

/// Files of a web server are read by their names, and nothing else can be done with them.
#[test]
fn web_files_are_read() {
    let cluster = Cluster::start();
    // A daemon's own gateway wants a token; its health does not.
    let files = crate::harness::Cluster::empty();
    files.start_daemon();
    create(&cluster, &format!("name: store\ntype: http\nurl: {}\n", files.server()));
    let (status, body) = get(&cluster, "/healthz");
    assert!(status == 200 && !body.is_empty(), "{status} {body}");
    cluster.atelier(["datastore", "test", "store"]).ok();
    let (status, said) = put(&cluster, "x", "y");
    assert!(status == 400 && said.contains("can only be read"), "{status} {said}");
    let (status, said) = get(&cluster, "?prefix=");
    assert!(status == 400 && said.contains("cannot be listed"), "{status} {said}");
    cluster
        .atelier(["datastore", "create", "-f", "-"])
        .stdin("name: n\ntype: http\nurl: https://x.example/?sig=1\n")
        .fails(1)
        .says(&["credentials"]);
}
