//! Nodes that read from object stores and write to them past the daemon, by addresses that it signs.

use crate::harness::{Agent, Azure, Cluster, Fault, FaultyWay, S3, http, needs, until};
use crate::stores::{COPY, KEY, azure, create, s3};

/// What a job does to have an address signed, or something else said by the daemon, as itself.
const ASK: &str = "import json, os, urllib.error, urllib.request\n\
     def ask(path, word, method='POST'):\n\
     \x20   request = urllib.request.Request(os.environ['AZUREML_SERVICE_ENDPOINT'].rstrip('/') + '/data/v1/' + path,\n\
     \x20       json.dumps(word).encode(), {'Authorization': 'Bearer ' + os.environ['MLFLOW_TRACKING_TOKEN']},\n\
     \x20       method=method)\n\
     \x20   try: return urllib.request.urlopen(request).read().decode()\n\
     \x20   except urllib.error.HTTPError as error: return str(error.code) + ' ' + error.read().decode()\n";

fn job(code: &str) -> String {
    let lines: String = format!("{ASK}{code}").lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "command: |\n  exec python3 -u - <<'END'\n{lines}  END\n\
         inputs: {{given: {{type: uri_folder, mode: download, path: 'azureml://datastores/store/paths/given/'}}}}\n\
         outputs: {{made: {{type: uri_folder, path: 'azureml://datastores/store/paths/made'}}}}\n"
    )
}

fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8(cluster.log(job)).unwrap()
}

/// Faults of networks and stores on the node's way to them change nothing of what is read and stored.
#[test]
fn s3_a_node_reads_and_writes_past_the_daemon() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::start();
    create(&cluster, &s3(&way.url(), ""));
    let text: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    store.ask("PUT /bucket/given/a.txt", &text);
    let large: String = "0123456789abcdef".repeat(40 << 16);
    store.ask("PUT /bucket/given/b.txt", &large);
    way.spoil(&["GET", "given/a.txt", "X-Amz-Signature"], 1, Fault::Refused(503));
    way.spoil(&["GET", "given/b.txt", "X-Amz-Signature"], 1, Fault::Cut);
    way.spoil(&["PUT", "made/large", "partNumber=2", "X-Amz-Signature"], 1, Fault::Refused(503));
    way.spoil(&["PUT", "made/large", "partNumber=3", "X-Amz-Signature"], 1, Fault::Denied(500));
    let copy =
        COPY.replace("given: {type: uri_folder,", "given: {type: uri_folder, mode: download,");
    let job = cluster.create(&copy);
    cluster.completed(&job);
    assert_eq!(way.left(), 0, "faults that did not happen");
    assert!(store.ask("GET /bucket/made/a.txt", "") == (200, text), "other bytes");
    assert!(store.ask("GET /bucket/made/b.txt", "") == (200, large), "other bytes");
    assert_eq!(store.ask("GET /bucket/made/large", "").1.len(), 20_000_000);
    assert!(!way.saw(&["HEAD", "given/a.txt"]), "the daemon has read it");
    assert!(!store.ask("GET /bucket?uploads", "").1.contains("<UploadId>"));
}

/// What a dead attempt had under way is seen by nobody, and the store does not keep it.
#[test]
fn s3_an_attempt_that_is_over_completes_nothing() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::start();
    create(&cluster, &s3(&way.url(), ""));
    store.ask("PUT /bucket/given/a", "text");
    let begins = job("print(ask('store/elsewhere?size=20000000', None))\n\
         begun = json.loads(ask('store/made/x?size=20000000', None))\n\
         at = 'store/made/x?upload=' + begun['upload']\n\
         [url] = json.loads(ask(at, {'sign': {'from': 1, 'to': 2}}))['urls']\n\
         put = urllib.request.urlopen(urllib.request.Request(url, b'x' * 100,\n\
         \x20   {'Content-Type': 'application/octet-stream'}, method='PUT'))\n\
         print('READY', at, put.headers['ETag'], os.environ['MLFLOW_TRACKING_TOKEN'], url, 'END')\n\
         import time; time.sleep(600)");
    let job = cluster.create(&begins);
    let following = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    following.prints("END\n");
    let said = following.stdout();
    assert!(said.starts_with("403 "), "{said}");
    let line = said.lines().find(|line| line.starts_with("READY")).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    assert!(words[4].contains("partNumber=1") && words[4].contains("X-Amz-Expires=300"), "{line}");
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
    let complete = format!("{{\"complete\": [{}]}}", serde_json::json!(words[2]));
    let server = cluster.server();
    let (status, answer) =
        http(&server, &format!("POST /data/v1/{}", words[1]), words[3], &complete).unwrap();
    assert_eq!(status, 401, "{answer}");
    assert_eq!(store.ask("GET /bucket/made/x", "").0, 404);
    until("the store has nothing left of it", || {
        let uploads = store.ask("GET /bucket?uploads", "").1;
        (!uploads.contains("<UploadId>")).then_some(())
    });
}

/// Where an address for a part would let a job copy what it may not read, it is given none, and its large files go
/// through the daemon. moto is such a server: it does what a header says that nobody has signed.
#[test]
fn s3_that_copies_for_whoever_asks_takes_no_parts_of_nodes() {
    let store = S3::start();
    let cluster = Cluster::start();
    create(&cluster, &s3(store.url(), ""));
    store.ask("PUT /bucket/given/a", "text");
    let begins = job("print('BEGUN', ask('store/made/x?size=20000000', None))\n\
         out = open(os.environ['AZURE_ML_OUTPUT_made'] + '/large', 'wb'); out.write(b'x' * 20000000)");
    let job = cluster.create(&begins);
    cluster.completed(&job);
    let said = log(&cluster, &job);
    assert!(said.contains("\"upload\":null"), "{said}");
    assert_eq!(store.ask("GET /bucket/made/large", "").1.len(), 20_000_000);
    assert!(!store.ask("GET /bucket?uploads", "").1.contains("<UploadId>"));
}

/// An address opens one object for reading and nothing else, and is given for the job's own inputs alone.
#[test]
fn azure_an_address_opens_one_object() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start();
    create(&cluster, &azure(&store.url(), "made", KEY));
    for path in ["given/a", "given/b", "other/c"] {
        let (status, said) =
            http(&cluster.server(), &format!("PUT /data/v1/store/{path}"), &cluster.token(), path)
                .unwrap();
        assert_eq!(status, 201, "{said}");
    }
    let asks = job("print(ask('store', {'sign': ['given/a', 'other/c']}))\n\
         print(ask('store', {'sign': ['../a']}))\n\
         print('URL', json.loads(ask('store', {'sign': ['given/a']}))['urls'][0])\n\
         print(ask('store/made/x?size=20000000&untagged=true', None))");
    let job = cluster.create(&asks);
    cluster.completed(&job);
    let said = log(&cluster, &job);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("403 ") && lines[0].contains("Forbidden"), "{said}");
    assert!(lines[1].starts_with("400 "), "{said}");
    let url = lines[2].strip_prefix("URL ").unwrap();
    // It would have the store copy what passes by the daemon here at no cost.
    assert!(lines[3].contains("\"upload\":null"), "{said}");
    let (base, path) = url.split_at(url.find("/teststore").unwrap());
    let open = |what: &str| http(base, what, "", "").unwrap();
    assert_eq!(open(&format!("GET {path}")), (200, "given/a".to_owned()));
    let other = path.replace("given/a", "given/b");
    let altered = path.replace("sp=r", "sp=rw");
    assert_ne!(altered, path);
    for refused in [
        format!("GET {other}"),
        format!("GET {altered}"),
        format!("DELETE {path}"),
        format!("PUT {path}&comp=block&blockid=AAAA"),
    ] {
        assert_eq!(open(&refused).0, 403, "{refused}");
    }
    // People go through the gateway.
    let (status, answer) =
        http(&cluster.server(), "POST /data/v1/store", &cluster.token(), "{\"sign\": []}").unwrap();
    assert_eq!(status, 403, "{answer}");
}

/// What is beside the objects of the container `made`, whether it is complete or not.
fn beside(store: &Azure) -> usize {
    let url = store.url();
    let (base, account) = url.split_at(url.find("/teststore").unwrap());
    let list = "made?restype=container&comp=list&include=uncommittedblobs";
    let (status, listed) =
        http(base, &format!("GET {account}/{list}&{}", Azure::sas(KEY, 2099)), "", "").unwrap();
    assert_eq!(status, 200, "{listed}");
    listed.matches(".atelier-upload-").count()
}

#[test]
fn azure_a_node_writes_past_the_daemon() {
    let store = Azure::start(KEY);
    let way = FaultyWay::to(store.url().trim_end_matches("/teststore"));
    let cluster = Cluster::start_with(&["--signed-urls", "always"]);
    create(&cluster, &azure(&format!("{}/teststore", way.url()), "made", KEY));
    assert_eq!(store.ask(KEY, "PUT", "/made/given/a.txt", "", "text").0, 201);
    let large = "0123456789abcdef".repeat(40 << 16);
    assert_eq!(store.ask(KEY, "PUT", "/made/given/b.txt", "", &large).0, 201);
    // The node's blocks, and then the store's own copies of them.
    way.spoil(
        &["PUT", "made/made/.atelier-upload-", "comp=block&", "sp=w"],
        1,
        Fault::Refused(503),
    );
    way.spoil(&["PUT", "made/made/.atelier-upload-", "comp=block&", "sp=w"], 1, Fault::Denied(500));
    way.spoil(&["PUT", "made/made/.atelier-upload-", "comp=blocklist"], 1, Fault::Denied(500));
    way.spoil(&["PUT", "made/large?", "comp=block&", "sp=w"], 1, Fault::Refused(503));
    way.spoil(&["PUT", "made/large?", "comp=blocklist"], 1, Fault::Refused(503));
    let copy =
        COPY.replace("given: {type: uri_folder,", "given: {type: uri_folder, mode: download,");
    let job = cluster.create(&copy);
    cluster.completed(&job);
    assert_eq!(way.left(), 0, "faults that did not happen");
    assert!(way.saw(&["GET", "given/b.txt", "sp=r"]), "not read past the daemon");
    assert!(!way.saw(&["HEAD", "given/b.txt"]), "the daemon has read it");
    assert!(store.ask(KEY, "GET", "/made/made/b.txt", "", "").1 == large, "other bytes");
    assert_eq!(store.ask(KEY, "GET", "/made/made/large", "", "").1.len(), 20_000_000);
    assert_eq!(store.ask(KEY, "GET", "/made/made/a.txt", "", ""), (200, "text".to_owned()));
    assert_eq!(beside(&store), 0);
}

/// An address for a block opens nothing that anybody sees, also when it is used for more than a block.
#[test]
fn azure_what_an_attempt_writes_is_seen_when_it_is_complete() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start_with(&["--signed-urls", "always"]);
    create(&cluster, &azure(&store.url(), "made", KEY));
    assert_eq!(store.ask(KEY, "PUT", "/made/given/a.txt", "", "text").0, 201);
    let writes = job("def put(url, body, **headers):\n\
         \x20   headers = {'Content-Type': 'application/octet-stream', **headers}\n\
         \x20   request = urllib.request.Request(url, body, headers, method='PUT')\n\
         \x20   try: return urllib.request.urlopen(request).status\n\
         \x20   except urllib.error.HTTPError as error: return error.code\n\
         def begin(name):\n\
         \x20   at = f'store/made/{name}?size=20000000&untagged=true'\n\
         \x20   at = f'store/made/{name}?upload=' + json.loads(ask(at, None))['upload']\n\
         \x20   urls = json.loads(ask(at, {'sign': {'from': 1, 'to': 3}}))['urls']\n\
         \x20   whole = urls[0].replace('comp=block&', '').split('&blockid')[0].replace('?comp=block', '?')\n\
         \x20   blob = {'x-ms-blob-type': 'BlockBlob'}\n\
         \x20   return at, urls, lambda url, body: put(url, body, **blob), whole\n\
         at, urls, blob, whole = begin('x')\n\
         upload = whole.split('?')[0].rsplit('/', 1)[1]\n\
         print(put(urls[1], b'and more'), put(urls[0], b'text '), blob(whole.replace(upload, 'x'), b'evil'))\n\
         print(ask(at, {'complete': ['', '']}), blob(whole, b'evil'), ask(at, {'complete': ['', '']}))\n\
         at, urls, blob, whole = begin('y')\n\
         print(put(urls[0], b'text'), blob(whole, b'evil'))\n\
         print('READY', at, os.environ['MLFLOW_TRACKING_TOKEN'], whole.split('?')[0], 'END')\n\
         import time; time.sleep(600)");
    let job = cluster.create(&writes);
    let following = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    following.prints("END\n");
    let said = following.stdout();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "201 201 403", "{said}");
    assert!(lines[1].starts_with(" 201 404 ") && lines[1].contains("NoSuchUpload"), "{said}");
    assert_eq!(lines[2], "201 201", "{said}");
    let words: Vec<&str> = lines[3].split(' ').collect();
    assert_eq!(store.ask(KEY, "GET", "/made/made/x", "", "").1, "text and more");
    let listed = || {
        let folder = "azureml://datastores/store/paths/made/";
        cluster.atelier(["fs", "ls", folder, "-r", "-o", "json"]).ok().json().to_string()
    };
    assert!(listed().contains("made/x") && !listed().contains(".atelier"), "{}", listed());
    let (status, said) = http(
        &cluster.server(),
        "PUT /data/v1/store/made/.atelier-upload-1",
        &cluster.token(),
        "text",
    )
    .unwrap();
    assert!(status == 400 && said.contains("uploads under way"), "{status} {said}");

    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
    let complete = format!("POST /data/v1/{}", words[1]);
    let (status, answer) =
        http(&cluster.server(), &complete, words[2], "{\"complete\": [\"\"]}").unwrap();
    assert_eq!(status, 401, "{answer}");
    assert_eq!(store.ask(KEY, "GET", "/made/made/y", "", "").0, 404);
    let left = words[3].split_once("/teststore").unwrap().1;
    until("the store has nothing left of it", || {
        (store.ask(KEY, "GET", left, "", "").0 == 404).then_some(())
    });
}

/// A mounted input comes from the store itself, too.
#[test]
fn s3_what_is_mounted_is_read_past_the_daemon() {
    needs("fuse");
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--no-shared-store"));
    create(&cluster, &s3(&way.url(), ""));
    let large = "0123456789abcdef".repeat(12 << 16);
    store.ask("PUT /bucket/given/b.txt", &large);
    way.spoil(&["GET", "given/b.txt", "X-Amz-Signature"], 1, Fault::Cut);
    let job = cluster.create(
        "command: md5sum < ${{inputs.given}}/b.txt\n\
         inputs: {given: {type: uri_folder, path: 'azureml://datastores/store/paths/given/'}}\n",
    );
    cluster.completed(&job);
    let expected = std::process::Command::new("sh")
        .args(["-c", "for _ in $(seq 786432); do printf 0123456789abcdef; done | md5sum"])
        .output()
        .unwrap();
    assert_eq!(log(&cluster, &job).as_bytes(), expected.stdout);
    assert!(way.saw(&["GET", "given/b.txt", "X-Amz-Signature"]));
    assert_eq!(way.left(), 0, "faults that did not happen");
}
