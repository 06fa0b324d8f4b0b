//! Data named by addresses of cloud storage, and outputs that are kept there while a job writes them.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;
use crate::harness::Settings;

#[test]
fn s3_addresses_lead_to_the_datastores_that_have_them() {
    let store = S3::start();
    let cluster = Cluster::start();
    create(&cluster, &s3(store.url(), "prefix: team/a"));
    store.ask("PUT /bucket/team/a/given/a.txt", "from the store\n");
    store.ask("PUT /bucket/other/x", "another's");
    let job = cluster.create(
        "command: cat ${{inputs.folder}}/a.txt ${{inputs.file}} ${{inputs.asset}}/a.txt > ${{outputs.made}}/all\n\
         inputs:\n\
         \x20 folder: {type: uri_folder, path: 's3://bucket/team/a/given/'}\n\
         \x20 file: {type: uri_file, path: 's3a://bucket/team/a/given/a.txt', mode: download}\n\
         \x20 asset: {type: uri_folder, path: 's3://bucket/team/a/given'}\n\
         outputs: {made: {type: uri_folder, path: 's3://bucket/team/a/made/${{name}}'}}\n",
    );
    cluster.completed(&job);
    let made = store.ask(&format!("GET /bucket/team/a/made/{job}/all"), "");
    assert_eq!(made, (200, "from the store\n".repeat(3)));
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    let file = &shown["inputs"]["file"];
    assert_eq!(file["path"], "azureml://datastores/store/paths/given/a.txt");
    assert_eq!(file["address"], "s3a://bucket/team/a/given/a.txt");
    let made = &shown["outputs"]["made"]["path"];
    assert_eq!(made, &format!("azureml://datastores/store/paths/made/{job}"));

    // Assets and files of people, too.
    let data = "name: given\nversion: '1'\ntype: uri_folder\npath: s3://bucket/team/a/given\n";
    let made = cluster.atelier(["data", "create", "-f", "-", "-o", "json"]).stdin(data).ok().json();
    assert_eq!(made["path"], "azureml://datastores/store/paths/given");
    let listed = cluster.atelier(["fs", "ls", "s3://bucket/team/a/given/", "-o", "json"]).ok();
    says(&listed.json().to_string(), &["given/a.txt"]);
    let file = cluster.write("own.txt", "own\n");
    cluster.atelier(["fs", "cp", file.to_str().unwrap(), "s3://bucket/team/a/own/"]).ok();
    assert_eq!(store.ask("GET /bucket/team/a/own/own.txt", ""), (200, "own\n".to_owned()));
    let read = cluster.atelier(["fs", "cat", "s3://bucket/team/a/own/*.txt"]).ok();
    assert_eq!(read.stdout(), "own\n");

    // What no datastore has, and what two have.
    let refused = |address: &str, code: i32, words: &[&str]| {
        let yaml =
            format!("command: ls\noutputs: {{o: {{type: uri_folder, path: '{address}'}}}}\n");
        cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(code).says(words);
        cluster.atelier(["fs", "ls", address]).fails(code).says(words);
    };
    let with = "printf 'name: none\\ntype: s3\\nbucket: none\\n' | atelier datastore create -f -";
    refused("s3://none/x", 3, &["no datastore has 's3://none/x'", with]);
    refused("s3://bucket/other/x", 3, &["no datastore has", "bucket: bucket"]);
    refused("gs://bucket/x", 3, &["type: gcs"]);
    let second = s3(store.url(), "prefix: team/a").replace("name: store", "name: second");
    create(&cluster, &second);
    refused("s3://bucket/team/a/given", 1, &["several datastores", "second, store"]);
    let yaml = "command: ls\ninputs: {i: {type: uri_folder, path: 's3://bucket/team/a/given'}}\n";
    let refused = cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(1);
    refused.says(&["several datastores", "second, store"]);
}

#[test]
fn azure_addresses_lead_to_the_datastores_that_have_them() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start();
    create(&cluster, &azure(&store.url(), "made", KEY));
    assert_eq!(store.ask(KEY, "PUT", "/made/given/a.txt", "", "from the store\n").0, 201);
    let page = format!("{}/made/given/a.txt", store.url());
    let job = cluster.create(&format!(
        "command: cat ${{{{inputs.blob}}}} ${{{{inputs.lake}}}}/a.txt ${{{{inputs.page}}}} > ${{{{outputs.made}}}}/all\n\
         inputs:\n\
         \x20 blob: {{type: uri_file, path: 'wasbs://made@teststore.blob.core.windows.net/given/a.txt'}}\n\
         \x20 lake: {{type: uri_folder, path: 'abfss://made@teststore.dfs.core.windows.net/given'}}\n\
         \x20 page: {{type: uri_file, path: '{page}'}}\n\
         outputs: {{made: {{type: uri_folder, path: 'wasbs://made@teststore.blob.core.windows.net/out'}}}}\n"
    ));
    cluster.completed(&job);
    let made = store.ask(KEY, "GET", "/made/out/all", "", "");
    assert_eq!(made, (200, "from the store\n".repeat(3)));
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["inputs"]["page"]["address"], page);
    let listed = cluster
        .atelier(["fs", "ls", "abfss://made@teststore.dfs.core.windows.net/out/", "-o", "json"])
        .ok();
    says(&listed.json().to_string(), &["out/all"]);
    // Whoever writes another account's is told how to have it.
    let yaml = "command: ls\n\
                outputs: {o: {type: uri_folder, path: 'abfss://f@other.dfs.core.windows.net/x'}}\n";
    cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(3).says(&[
        "name: other_f\\ntype: azure_data_lake_gen2\\naccount_name: other\\nfilesystem: f\\n",
        "atelier datastore create -f -",
    ]);
    let yaml =
        "command: ls\ninputs: {i: {type: uri_folder, path: 'adl://x.azuredatalakestore.net/x'}}\n";
    cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(1).says(&["Gen1", "abfss://"]);
}

/// What was stored while the job ran is copied by the store, and then gone; what was changed is sent.
fn kept_while_it_is_written(cluster: &Cluster, has: &dyn Fn(&str) -> Option<String>) {
    let (go, told) = (cluster.files().join("go"), cluster.files().join("told"));
    let job = cluster.create(&format!(
        "command: |\n\
         \x20 cd ${{{{outputs.made}}}}\n\
         \x20 head -c 20000000 /dev/zero > large; echo first > changed; echo written\n\
         \x20 until [ -e {} ]; do sleep 0.05; done\n\
         \x20 echo second > changed; echo done > {}\n\
         outputs: {{made: {{type: uri_folder, path: 'azureml://datastores/store/paths/made'}}}}\n",
        go.display(),
        told.display()
    ));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("written");
    let kept = format!(".uncommitted/{job}/made/0/0");
    until("it is kept", || has(&format!("{kept}/large")).and(has(&format!("{kept}/changed"))));
    assert_eq!(has("made/large"), None);
    assert_eq!(listed(cluster, "?prefix="), Vec::<String>::new());
    fs::write(go, "").unwrap();
    cluster.completed(&job);
    assert_eq!(has("made/large").unwrap().len(), 20_000_000);
    assert_eq!(has("made/changed").unwrap(), "second\n");
    until("it is dropped", || has(&format!("{kept}/large")).is_none().then_some(()));
    assert_eq!(listed(cluster, "?prefix="), ["made/changed", "made/large"]);
}

#[test]
fn s3_outputs_are_kept_while_they_are_written() {
    let store = S3::start();
    let way = FaultyWay::to(store.url());
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--no-shared-store"));
    create(&cluster, &s3(&way.url(), ""));
    kept_while_it_is_written(&cluster, &|path| {
        let (status, body) = store.ask(&format!("GET /bucket/{path}"), "");
        (status == 200).then_some(body)
    });
    assert!(way.saw(&["PUT", ".uncommitted", "large", "partNumber=1"]));
    assert!(!way.saw(&["/bucket/made/large", "partNumber"]), "it was sent again");
}

#[test]
fn azure_outputs_are_kept_while_they_are_written() {
    let store = Azure::start(KEY);
    let cluster = Cluster::start();
    create(&cluster, &azure(&store.url(), "made", KEY));
    kept_while_it_is_written(&cluster, &|path| {
        let (status, body) = store.ask(KEY, "GET", &format!("/made/{path}"), "", "");
        (status == 200).then_some(body)
    });
}

/// A server that has one public object, `/open/data/a.txt`, and refuses whoever shows credentials; what it was asked.
fn public_store() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
            let is_signed = head.to_lowercase().contains("\nauthorization:");
            let (method, asked) = head.split_once(' ').unwrap_or_default();
            let (status, body) = match () {
                () if is_signed => ("403 Forbidden", ""),
                () if asked.starts_with("/open/data/a.txt ") && head.contains("bytes=0-6") => {
                    ("206 Partial Content\r\nContent-Range: bytes 0-6/7", "public\n")
                }
                () if asked.starts_with("/open/data/a.txt ") => ("200 OK", "public\n"),
                () if asked.starts_with("/open?list-type=2") => ("200 OK", LISTING),
                () if asked.starts_with("/open/") => ("404 Not Found", ""),
                () => ("403 Forbidden", ""),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{}",
                body.len(),
                if method == "HEAD" { "" } else { body }
            );
            log.lock().unwrap().push(head);
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, asked)
}

const LISTING: &str = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>data/a.txt</Key>\
                       <LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;1&quot;</ETag><Size>7</Size>\
                       </Contents></ListBucketResult>";

#[test]
fn public_files_need_no_datastore_and_no_credentials() {
    let (url, asked) = public_store();
    let keys = [("AWS_ACCESS_KEY_ID", "AKIAAMBIENT"), ("AWS_SECRET_ACCESS_KEY", "ambient-secret")];
    let settings = Settings {
        serve: ["--public-s3", &url].map(str::to_owned).to_vec(),
        variables: keys.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
    };
    let cluster = Cluster::with(settings);
    cluster.start_daemon();
    let agent =
        keys.iter().fold(Agent::new("local"), |agent, (name, value)| agent.variable(name, value));
    cluster.start_agent(&agent);
    let yaml = |path: &str| {
        format!(
            "command: cat ${{{{inputs.i}}}}\ninputs: {{i: {{type: uri_file, path: '{path}'}}}}\n"
        )
    };
    let job = cluster.create(&yaml("s3://open/data/a.txt"));
    cluster.completed(&job);
    says(&String::from_utf8(cluster.log(&job)).unwrap(), &["public"]);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["inputs"]["i"]["address"], "s3://open/data/a.txt");
    // Folders come by way of the daemon, which shows as little of what it has.
    let folder = cluster.create(
        "command: cat ${{inputs.i}}/a.txt\n\
         inputs: {i: {type: uri_folder, path: 's3://open/data/', mode: download}}\n",
    );
    cluster.completed(&folder);
    says(&String::from_utf8(cluster.log(&folder)).unwrap(), &["public"]);
    let closed = cluster.create(&yaml("s3://closed/a.txt"));
    cluster.ended(&closed);
    let shown = cluster.atelier(["job", "show", &closed, "-o", "json"]).ok().stdout();
    says(&shown, &["403", "not public", "atelier datastore create"]);
    let asked = asked.lock().unwrap().join("");
    assert!(asked.contains("GET /closed/a.txt"), "{asked}");
    assert!(asked.contains("GET /open?list-type=2") && asked.contains("GET /open/data/a.txt"));
    assert!(!asked.contains("AKIAAMBIENT") && !asked.contains("ambient-secret"), "{asked}");
}

#[test]
fn an_admin_may_have_inputs_of_datastores_only() {
    let cluster = Cluster::start_with(&["--public-data", "refuse"]);
    let container = "https://acct.blob.core.windows.net/data/";
    for (kind, path, code, words) in [
        ("uri_file", "s3://open/a.txt", 3, "no datastore has"),
        ("uri_folder", "s3://open/data/", 3, "no datastore has"),
        ("uri_file", "https://example.com/a.txt", 1, "--public-data refuse"),
        ("uri_folder", container, 1, "--public-data refuse"),
    ] {
        let yaml = format!("command: ls\ninputs: {{i: {{type: {kind}, path: '{path}'}}}}\n");
        cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(code).says(&[words]);
    }
}

/// Reads a public folder in each way there is, and prints what was found.
fn read_in_all_ways(cluster: &Cluster, folder: &str, table: &str, page: &str) -> String {
    let job = cluster.create(&format!(
        "command: |\n\
         \x20 cat ${{{{inputs.download}}}}/a.txt ${{{{inputs.mount}}}}/below/b.txt\n\
         \x20 ls ${{{{inputs.mount}}}}; ls ${{{{inputs.table}}}}\n\
         \x20 cat ${{{{inputs.file}}}}; echo ${{{{inputs.direct}}}}\n\
         inputs:\n\
         \x20 download: {{type: uri_folder, path: '{folder}', mode: download}}\n\
         \x20 mount: {{type: uri_folder, path: '{page}', mode: ro_mount}}\n\
         \x20 table: {{type: mltable, path: '{table}', mode: eval_download}}\n\
         \x20 file: {{type: custom_model, path: '{folder}/a.txt'}}\n\
         \x20 direct: {{type: uri_folder, path: '{folder}', mode: direct}}\n",
    ));
    cluster.completed(&job);
    let said = String::from_utf8(cluster.log(&job)).unwrap();
    assert_eq!(said, format!("first\nsecond\na.txt\nbelow\nkept.csv\nfirst\n{folder}\n"));
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    let input = &shown["inputs"]["download"];
    assert_eq!((&input["path"], &input["address"]), (&json!(folder), &Value::Null));
    shown["inputs"]["mount"].to_string()
}

const TABLE: &str = "type: mltable\npaths: [{file: ./kept.csv}]\n";
const PUBLIC: [(&str, &str); 5] = [
    ("data/a.txt", "first\n"),
    ("data/below/b.txt", "second\n"),
    ("table/MLTable", TABLE),
    ("table/kept.csv", "1"),
    ("table/left.csv", "2"),
];

#[test]
fn azure_folders_that_everybody_may_read_need_no_datastore() {
    let store = Azure::start(KEY);
    store.make_public(KEY, "open");
    for (path, body) in PUBLIC {
        assert_eq!(store.ask(KEY, "PUT", &format!("/open/{path}"), "", body).0, 201);
    }
    let cluster = Cluster::start_with(&["--public-azure", &store.server()]);
    let (root, page) = ("wasbs://open@teststore.blob.core.windows.net", "/open/data/");
    let page = format!("https://teststore.blob.core.windows.net{page}");
    let mounted =
        read_in_all_ways(&cluster, &format!("{root}/data"), &format!("{root}/table/"), &page);
    says(&mounted, &[&format!("{root}/data/"), &page]);

    // An asset of what lies there; and a data lake's address of the same.
    let data = format!("name: open\nversion: '1'\ntype: uri_folder\npath: {root}/data/\n");
    let made = cluster.atelier(["data", "create", "-f", "-", "-o", "json"]).stdin(data).ok().json();
    assert_eq!(made["path"], format!("{root}/data/"));
    let refused = cluster.atelier(["data", "download", "open:1"]);
    refused.fails(1).says(&["public storage", &format!("{root}/data/")]);
    let yaml = "command: cat ${{inputs.asset}}/a.txt ${{inputs.lake}}/below/b.txt\n\
                inputs:\n\
                \x20 asset: {type: uri_folder, path: 'azureml:open:1'}\n\
                \x20 lake: {type: uri_folder, path: 'abfss://open@teststore.dfs.core.windows.net/data'}\n";
    let job = cluster.create(yaml);
    cluster.completed(&job);
    says(&String::from_utf8(cluster.log(&job)).unwrap(), &["first\nsecond\n"]);

    // What its owner keeps, and what is not there, fail the job at once, with what can be done.
    let closed = "wasbs://made@teststore.blob.core.windows.net/given";
    for (path, words) in [
        (closed, &["not everybody may list it", "container_name: made"][..]),
        ("wasbs://none@teststore.blob.core.windows.net/x", &["not everybody may list it"]),
        ("wasbs://open@teststore.blob.core.windows.net/none", &["none", "nothing"]),
    ] {
        let yaml = format!("command: ls\ninputs: {{i: {{type: uri_folder, path: '{path}'}}}}\n");
        let job = cluster.create(&yaml);
        cluster.ended(&job);
        let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().stdout();
        says(&shown, words);
    }

    // The name that stands for it is for attempts, and for what their inputs name.
    let name = "public-storage.azure.teststore.open.core.windows.net";
    let asked = format!("GET /data/v1/{name}?prefix=data");
    let (status, said) = http(&cluster.server(), &asked, &cluster.token(), "").unwrap();
    assert!(status == 404 && said.contains("DatastoreNotFound"), "{status} {said}");
    let input = format!("azureml://datastores/{name}/paths/data");
    let yaml = format!("command: ls\ninputs: {{i: {{type: uri_folder, path: '{input}'}}}}\n");
    let refused = cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(3);
    refused.says(&["there is no datastore"]);
    let yaml = format!("name: {name}\ntype: local\npath: /srv\n");
    let refused = cluster.atelier(["datastore", "create", "-f", "-"]).stdin(yaml).fails(1);
    refused.says(&["stands for storage"]);

    // Once a datastore has it, that has it.
    create(&cluster, &azure(&store.url(), "open", KEY));
    let job = cluster.create(
        "command: cat ${{inputs.asset}}/a.txt\n\
         inputs: {asset: {type: uri_folder, path: 'azureml:open:1'}}\n",
    );
    cluster.completed(&job);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["inputs"]["asset"]["path"], "azureml://datastores/store/paths/data/");
}

#[test]
fn s3_folders_that_everybody_may_read_need_no_datastore() {
    let store = S3::start();
    for (path, body) in PUBLIC {
        store.put_public(path, body);
    }
    let cluster = Cluster::start_with(&["--public-s3", store.url()]);
    let folder = "s3://bucket/data";
    let mounted = read_in_all_ways(&cluster, folder, "s3a://bucket/table/", folder);
    says(&mounted, &[folder]);
    assert_eq!(store.ask("PUT /bucket/closed/x", "kept").0, 200);
    let job = cluster.create(
        "command: ls\n\
         inputs: {i: {type: uri_folder, path: 's3://bucket/closed', mode: download}}\n",
    );
    cluster.ended(&job);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().stdout();
    says(&shown, &["cannot read 's3://bucket/closed/x'", "not everybody may read it"]);
}
