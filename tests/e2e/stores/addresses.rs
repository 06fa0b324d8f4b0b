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
        let input =
            format!("command: ls\ninputs: {{i: {{type: uri_folder, path: '{address}'}}}}\n");
        let output =
            format!("command: ls\noutputs: {{o: {{type: uri_folder, path: '{address}'}}}}\n");
        for yaml in [input, output] {
            cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(code).says(words);
        }
        cluster.atelier(["fs", "ls", address]).fails(code).says(words);
    };
    let with = "printf 'name: none\\ntype: s3\\nbucket: none\\n' | atelier datastore create -f -";
    refused("s3://none/x", 3, &["no datastore has 's3://none/x'", with]);
    refused("s3://bucket/other/x", 3, &["no datastore has", "bucket: bucket"]);
    refused("gs://bucket/x", 3, &["type: gcs"]);
    let second = s3(store.url(), "prefix: team/a").replace("name: store", "name: second");
    create(&cluster, &second);
    refused("s3://bucket/team/a/given", 1, &["several datastores", "second, store"]);
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
                inputs: {i: {type: uri_folder, path: 'abfss://f@other.dfs.core.windows.net/x'}}\n";
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

/// A server that has one public object, `/open/a.txt`, and refuses whoever shows credentials; what it was asked.
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
            let is_open = head.starts_with("GET /open/a.txt ")
                && !head.to_lowercase().contains("\nauthorization:");
            log.lock().unwrap().push(head);
            let (status, body) =
                if is_open { ("200 OK", "public\n") } else { ("403 Forbidden", "") };
            let answer = format!(
                "HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, asked)
}

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
    let job = cluster.create(&yaml("s3://open/a.txt"));
    cluster.completed(&job);
    says(&String::from_utf8(cluster.log(&job)).unwrap(), &["public"]);
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
    assert_eq!(shown["inputs"]["i"]["address"], "s3://open/a.txt");
    let closed = cluster.create(&yaml("s3://closed/a.txt"));
    cluster.ended(&closed);
    let shown = cluster.atelier(["job", "show", &closed, "-o", "json"]).ok().stdout();
    says(&shown, &["403", "not public", "atelier datastore create"]);
    let asked = asked.lock().unwrap().join("");
    assert!(asked.contains("GET /closed/a.txt"), "{asked}");
    assert!(!asked.contains("AKIAAMBIENT") && !asked.contains("ambient-secret"), "{asked}");
}

#[test]
fn an_admin_may_have_inputs_of_datastores_only() {
    let cluster = Cluster::start_with(&["--public-data", "refuse"]);
    for (path, code, words) in [
        ("s3://open/a.txt", 3, "no datastore has"),
        ("https://example.com/a.txt", 1, "--public-data refuse"),
    ] {
        let yaml = format!("command: ls\ninputs: {{i: {{type: uri_file, path: '{path}'}}}}\n");
        cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(code).says(&[words]);
    }
}
