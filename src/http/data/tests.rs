use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use atelier_core::access::AttemptScope;
use atelier_core::id::{AttemptNumber, Epoch, JobName, Principal};
use axum::Extension;
use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Attempts reach what lies below their own run; everybody else reaches everything.
struct OwnPrefix;

impl Authorize for OwnPrefix {
    fn authorize_data(
        &self,
        caller: &Caller,
        _: &DatastoreName,
        path: &str,
        _: bool,
    ) -> Result<(), String> {
        match &caller.role {
            Role::Attempt(scope) => {
                let own = format!("ExperimentRun/dcid.{}", scope.job);
                match path.strip_prefix(&own) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => Ok(()),
                    _ => Err(format!("'{path}' is not below {own}")),
                }
            }
            _ => Ok(()),
        }
    }

    fn still_open(&self, _: &Caller) -> Result<(), String> {
        Ok(())
    }
}

/// Lets nobody in once it is shut.
#[derive(Default)]
struct Shut(AtomicBool);

impl Authorize for Shut {
    fn authorize_data(
        &self,
        caller: &Caller,
        _: &DatastoreName,
        _: &str,
        _: bool,
    ) -> Result<(), String> {
        self.still_open(caller)
    }

    fn still_open(&self, _: &Caller) -> Result<(), String> {
        if self.0.load(Ordering::SeqCst) { Err("it is over".to_owned()) } else { Ok(()) }
    }
}

/// Lets in so often, and then nobody: as if an attempt ended while it is served.
struct Closing(AtomicUsize);

impl Authorize for Closing {
    fn authorize_data(
        &self,
        caller: &Caller,
        _: &DatastoreName,
        _: &str,
        _: bool,
    ) -> Result<(), String> {
        self.still_open(caller)
    }

    fn still_open(&self, _: &Caller) -> Result<(), String> {
        let left =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| "it is over".to_owned())
    }
}

fn attempt_of(job: &str) -> Role {
    Role::Attempt(AttemptScope {
        job: JobName::new(job).unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    })
}

struct Gateway {
    _folder: tempfile::TempDir,
    address: SocketAddr,
    client: reqwest::Client,
    stores: Datastores,
}

impl Gateway {
    async fn with(caller: Option<Role>) -> Self {
        Self::behind(Arc::new(OwnPrefix), caller).await
    }

    async fn behind(door: Arc<dyn Authorize>, caller: Option<Role>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = Datastores::open_folders(folder.path()).unwrap();
        let uploads = Uploads::for_test(folder.path());
        let mut app = router(State { datastores: stores.clone(), door, uploads });
        if let Some(role) = caller {
            app =
                app.layer(Extension(Caller { principal: Principal::new("tester").unwrap(), role }));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { _folder: folder, address, client: reqwest::Client::new(), stores }
    }

    async fn new() -> Self {
        Self::with(Some(Role::DataScientist)).await
    }

    fn url(&self, rest: &str) -> String {
        format!("http://{}/data/v1/{rest}", self.address)
    }

    async fn put(&self, rest: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.client.put(self.url(rest)).body(body).send().await.unwrap()
    }

    async fn get(&self, rest: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let mut request = self.client.get(self.url(rest));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// A request line as it is written, which no client library would let pass.
    async fn raw(&self, method: &str, target: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

async fn error_of(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    (status, answer["error"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn objects_travel_both_ways() {
    let gateway = Gateway::new().await;
    let at = "workspaceblobstore/azureml/a%20b/%C3%BC%23%3F+%25.bin";
    let (status, code) = error_of(gateway.get(at, &[]).await).await;
    assert_eq!((status, code.as_str()), (404, "NotFound"));
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        data.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let stored = gateway.put(at, streamed).await;
    assert_eq!(stored.status(), 201);
    let tag = stored.headers()["etag"].clone();
    let stored_at = ObjectPath::new("azureml/a b/ü#?+%.bin").unwrap();
    let store = gateway.stores.get("workspaceblobstore").unwrap();
    assert_eq!(store.head(&stored_at).await.unwrap().size, 3_000_000);

    let whole = gateway.get(at, &[]).await;
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.headers()["etag"], tag);
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.headers()["content-length"], "3000000");
    assert_eq!(whole.bytes().await.unwrap(), data);

    let head = gateway.client.head(gateway.url(at)).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "3000000");
    assert_eq!(head.headers()["etag"], tag);
    assert!(head.bytes().await.unwrap().is_empty());

    let tag = tag.to_str().unwrap();
    for (headers, expected) in [
        (vec![("if-none-match", tag)], 304),
        (vec![("if-none-match", "\"x\", *")], 304),
        (vec![("if-none-match", "\"x\"")], 200),
        (vec![("if-match", tag)], 200),
        (vec![("if-match", "\"x\"")], 412),
    ] {
        assert_eq!(gateway.get(at, &headers).await.status(), expected, "{headers:?}");
    }
}

#[tokio::test]
async fn ranges() {
    let gateway = Gateway::new().await;
    let at = "workspaceblobstore/r";
    let tag = gateway.put(at, "0123456789").await.headers()["etag"].clone();
    let tag = tag.to_str().unwrap();
    for (range, expected, described) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-30", "0123456789", "bytes 0-9/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
        ("bytes=9-18446744073709551615", "9", "bytes 9-9/10"),
    ] {
        let part = gateway.get(at, &[("range", range)]).await;
        assert_eq!(part.status(), 206, "{range}");
        assert_eq!(part.headers()["content-range"], described);
        assert_eq!(part.text().await.unwrap(), expected);
    }
    for ignored in ["bytes=3-2", "bytes=a-b", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=5-1x"]
    {
        let whole = gateway.get(at, &[("range", ignored)]).await;
        assert_eq!(whole.status(), 200, "{ignored}");
        assert_eq!(whole.text().await.unwrap(), "0123456789");
    }
    for outside in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
        let refused = gateway.get(at, &[("range", outside)]).await;
        assert_eq!(refused.headers()["content-range"], "bytes */10", "{outside}");
        assert_eq!(error_of(refused).await, (416, "RangeNotSatisfiable".into()));
    }
    let same = gateway.get(at, &[("range", "bytes=1-1"), ("if-range", tag)]).await;
    assert_eq!(same.status(), 206);
    let other = gateway.get(at, &[("range", "bytes=1-1"), ("if-range", "\"x\"")]).await;
    assert_eq!(other.status(), 200);
    gateway.put("workspaceblobstore/empty", "").await;
    let empty = gateway.get("workspaceblobstore/empty", &[("range", "bytes=0-")]).await;
    assert_eq!(empty.status(), 416);
    assert_eq!(gateway.get("workspaceblobstore/empty", &[]).await.status(), 200);
}

#[tokio::test]
async fn paths_that_lead_out_are_refused_in_every_writing() {
    let gateway = Gateway::new().await;
    let storage =
        gateway.stores.get("workspaceblobstore").unwrap().own_folder().unwrap().to_owned();
    std::fs::write(storage.parent().unwrap().join("secret"), "s").unwrap();
    for path in [
        "../secret",
        "..%2fsecret",
        "%2e%2e/secret",
        "%2E%2E%2Fsecret",
        "%252e%252e/secret",
        "%252e%252e%252fsecret",
        "a/../../secret",
        "a/..%2f..%2fsecret",
        "..%5csecret",
        "..\\secret",
        "./secret",
        "%2e/secret",
        "/secret",
        "%2fsecret",
        "a//secret",
        "a/",
        "x%00y",
        "%ff%fe",
        "a/.%2e/secret",
        "",
        ".",
        "..",
    ] {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let target = format!("/data/v1/workspaceblobstore/{path}");
            let (status, answer) = gateway.raw(method, &target).await;
            // A doubly encoded slash is part of a name; what it names is not there.
            let name = path.contains("%252f") && method != "PUT";
            let expected: &[u16] = if name { &[400, 404] } else { &[400] };
            if path.contains("%252f") && matches!(method, "PUT" | "DELETE") {
                assert_eq!(status, if method == "PUT" { 201 } else { 204 }, "{target}");
                continue;
            }
            assert!(expected.contains(&status), "{method} {target}: {answer}");
        }
    }
    for target in ["/data/v1/../v1/workspaceblobstore/x", "/data/v1/%2e%2e/x", "/data/v1/nostore/x"]
    {
        assert_eq!(gateway.raw("GET", target).await.0, 404, "{target}");
    }
    for query in ["prefix=..", "prefix=a/../..", "prefix=%2e%2e", "prefix=/etc", "prefix=a%5cb"] {
        let target = format!("/data/v1/workspaceblobstore?{query}");
        assert_eq!(gateway.raw("GET", &target).await.0, 400, "{target}");
    }
    assert_eq!(gateway.raw("PATCH", "/data/v1/workspaceblobstore/x").await.0, 405);
    assert_eq!(gateway.raw("PUT", "/data/v1/workspaceblobstore").await.0, 405);
    let refused = gateway.put("workspaceblobstore/azureml/content/ab/abcd", "forged").await;
    assert_eq!(error_of(refused).await, (403, "Forbidden".into()));
}

#[tokio::test]
async fn listings_come_in_pages() {
    let gateway = Gateway::new().await;
    let store = gateway.stores.get("workspaceartifactstore").unwrap();
    for i in 0..2_300 {
        let path = format!("many/{i:05} &%.txt");
        let folder = store.own_folder().unwrap().join("many");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(path.strip_prefix("many/").unwrap()), "x").unwrap();
    }
    gateway.put("workspaceartifactstore/many-other", "y").await;
    let (mut found, mut pages, mut after) = (Vec::new(), 0, None::<String>);
    loop {
        let mut query = vec![("prefix", "many/".to_owned())];
        query.extend(after.take().map(|after| ("after", after)));
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| {
                let all = percent_encoding::NON_ALPHANUMERIC;
                format!("{name}={}", percent_encoding::utf8_percent_encode(value, all))
            })
            .collect();
        let answer = gateway.get(&format!("workspaceartifactstore?{}", query.join("&")), &[]).await;
        assert_eq!(answer.status(), 200);
        let page: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let objects = page["objects"].as_array().unwrap();
        assert!(objects.len() <= storage::PAGE);
        found.extend(objects.iter().map(|o| o["path"].as_str().unwrap().to_owned()));
        assert!(objects.iter().all(|o| o["size"] == 1 && o["etag"].as_str().is_some()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    let expected: Vec<String> = (0..2_300).map(|i| format!("many/{i:05} &%.txt")).collect();
    assert_eq!(found, expected);
    assert_eq!(pages, 3);
    let none = gateway.get("workspaceartifactstore?prefix=nothing", &[]).await;
    assert_eq!(none.text().await.unwrap(), r#"{"objects":[],"next":null}"#);
    let everything = gateway.get("workspaceartifactstore?after=many%2F99999", &[]).await;
    assert_eq!(everything.text().await.unwrap(), r#"{"objects":[],"next":null}"#);
}

#[tokio::test]
async fn a_folder_is_looked_at_and_objects_are_removed() {
    let gateway = Gateway::new().await;
    let delete = async |rest: &str| {
        let url = format!("http://{}/data/v1/{rest}", gateway.address);
        gateway.client.delete(url).send().await.unwrap()
    };
    for path in ["a/b/1", "a/b/2", "a/c", "a d/x"] {
        gateway.put(&format!("workspaceblobstore/{path}"), "x").await;
    }
    let listed = async |query: &str| -> Value {
        let answer = gateway.get(&format!("workspaceblobstore?{query}"), &[]).await;
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    };
    let level = listed("prefix=a/&delimiter=%2F").await;
    assert_eq!(level["folders"], serde_json::json!(["a/b"]));
    let object = &level["objects"][0];
    assert_eq!((&object["path"], &level["objects"].as_array().unwrap().len()), (&"a/c".into(), &1));
    assert!(object["modified"].as_i64().unwrap() > 1_600_000_000_000, "{object}");
    assert_eq!(listed("delimiter=/").await["folders"], serde_json::json!(["a d", "a"]));
    let other = gateway.get("workspaceblobstore?delimiter=x", &[]).await;
    assert_eq!(error_of(other).await, (400, "InvalidRequest".into()));

    // A folder is not removed by mistake.
    assert_eq!(error_of(delete("workspaceblobstore/a/b").await).await, (404, "NotFound".into()));
    assert_eq!(delete("workspaceblobstore/a/c").await.status(), 204);
    assert_eq!(error_of(delete("workspaceblobstore/a/c").await).await.0, 404);
    assert_eq!(delete("workspaceblobstore/a?recursive=true").await.status(), 204);
    assert_eq!(listed("").await["objects"].as_array().unwrap().len(), 1);
    for path in ["azureml", "azureml/content", "azureml/content/ab/abcd"] {
        let refused = delete(&format!("workspaceblobstore/{path}?recursive=true")).await;
        assert_eq!(error_of(refused).await, (403, "Forbidden".into()), "{path}");
    }
    assert_eq!(delete("workspaceblobstore/a%2f..%2fb?recursive=true").await.status(), 400);

    let scope = AttemptScope {
        job: JobName::new("brave_owl_1").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    let attempt = Gateway::with(Some(Role::Attempt(scope))).await;
    let own = "workspaceartifactstore/ExperimentRun/dcid.brave_owl_1/outputs/m";
    attempt.put(own, "m").await;
    let url = format!("http://{}/data/v1/{own}", attempt.address);
    assert_eq!(attempt.client.delete(url).send().await.unwrap().status(), 403);
    let reader = Gateway::with(Some(Role::Reader)).await;
    let url = format!("http://{}/data/v1/workspaceblobstore/x", reader.address);
    assert_eq!(reader.client.delete(url).send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn concurrent_writers_each_store_a_whole() {
    let gateway = Arc::new(Gateway::new().await);
    let writes: Vec<_> = (0..20_u8)
        .map(|i| {
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let body = vec![b'a' + i; 700_000];
                gateway.put("workspaceblobstore/new/same", body.clone()).await.status().as_u16()
                    + gateway
                        .put(&format!("workspaceblobstore/new/{i}"), body)
                        .await
                        .status()
                        .as_u16()
            })
        })
        .collect();
    for write in writes {
        assert_eq!(write.await.unwrap(), 402);
    }
    let bytes = gateway.get("workspaceblobstore/new/same", &[]).await.bytes().await.unwrap();
    assert_eq!(bytes.len(), 700_000);
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_stored() {
    let gateway = Gateway::new().await;
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let head =
        "PUT /data/v1/workspaceblobstore/half HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"only this").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(gateway.get("workspaceblobstore/half", &[]).await.status(), 404);
}

#[tokio::test]
async fn callers_reach_what_is_theirs() {
    let nobody = Gateway::with(None).await;
    let (status, code) = error_of(nobody.get("workspaceblobstore/x", &[]).await).await;
    assert_eq!((status, code.as_str()), (401, "Unauthenticated"));

    let node = Role::Node(atelier_core::id::NodeName::new("n1").unwrap());
    let node = Gateway::with(Some(node)).await;
    assert_eq!(error_of(node.get("workspaceblobstore/x", &[]).await).await.0, 403);

    let reader = Gateway::with(Some(Role::Reader)).await;
    assert_eq!(error_of(reader.put("workspaceblobstore/x", "x").await).await.0, 403);
    assert_eq!(error_of(reader.get("workspaceblobstore/x", &[]).await).await.0, 404);

    let scope = AttemptScope {
        job: JobName::new("brave_owl_1").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    let attempt = Gateway::with(Some(Role::Attempt(scope))).await;
    let own = "workspaceartifactstore/ExperimentRun/dcid.brave_owl_1";
    assert_eq!(attempt.put(&format!("{own}/outputs/m"), "m").await.status(), 201);
    assert_eq!(attempt.get(&format!("{own}/outputs/m"), &[]).await.status(), 200);
    let listed =
        attempt.get("workspaceartifactstore?prefix=ExperimentRun/dcid.brave_owl_1/", &[]).await;
    assert_eq!(listed.status(), 200);
    for other in [
        "workspaceartifactstore/ExperimentRun/dcid.brave_owl_10/outputs/m",
        "workspaceartifactstore/ExperimentRun/dcid.brave_owl_1%2f..%2fdcid.x/m",
        "workspaceartifactstore?prefix=ExperimentRun",
        "workspaceartifactstore",
    ] {
        let status = attempt.get(other, &[]).await.status().as_u16();
        assert!(matches!(status, 400 | 403), "{other}: {status}");
    }
}

#[tokio::test]
async fn an_upload_that_outlasts_its_attempt_stores_nothing() {
    let door = Arc::new(Shut::default());
    let gateway = Gateway::behind(door.clone(), Some(Role::DataScientist)).await;
    let at = "workspaceblobstore/azureml/j/o/x";
    assert_eq!(gateway.put(at, "kept").await.status(), 201);
    let slow = futures::stream::iter(["for", "ged"]).map(move |piece| {
        // The gateway has let it in by the time it asks for the bytes.
        door.0.store(true, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Bytes::from(piece))
    });
    let refused = gateway.put(at, reqwest::Body::wrap_stream(slow)).await;
    assert_eq!(error_of(refused).await, (403, "Forbidden".to_owned()));
    let store = gateway.stores.get("workspaceblobstore").unwrap();
    let object = ObjectPath::new("azureml/j/o/x").unwrap();
    assert_eq!(store.get(&object, 100).await.unwrap(), "kept");
}

/// A folder signs nothing, and what an attempt may not reach is refused before that is said.
#[tokio::test]
async fn addresses_are_given_to_attempts_for_what_is_theirs() {
    let scope = AttemptScope {
        job: JobName::new("job_a").unwrap(),
        attempt: AttemptNumber(1),
        epoch: Epoch(1),
    };
    let gateway = Gateway::with(Some(Role::Attempt(scope))).await;
    let post = async |rest: &str, body: &str| {
        let sent =
            gateway.client.post(gateway.url(rest)).body(body.to_owned()).send().await.unwrap();
        (sent.status().as_u16(), sent.text().await.unwrap())
    };
    let own = "ExperimentRun/dcid.job_a/outputs/x";
    let many = format!("{{\"sign\": [{}\"{own}\"]}}", format!("\"{own}\",").repeat(1000));
    for (rest, body, status, words) in [
        ("workspaceblobstore", &*format!("{{\"sign\": [\"{own}\"]}}"), 200, "\"urls\":null"),
        ("workspaceblobstore", "{\"sign\": [\"ExperimentRun/dcid.job_b/x\"]}", 403, "not below"),
        (
            "workspaceblobstore",
            "{\"sign\": [\"ExperimentRun/dcid.job_a/../x\"]}",
            400,
            "InvalidPath",
        ),
        ("workspaceblobstore", "{\"sign\": [\"/etc/passwd\"]}", 400, "InvalidPath"),
        ("workspaceblobstore", &many, 400, "at most 1000"),
        ("workspaceblobstore", "sign", 400, "not understood"),
        ("nostore", "{\"sign\": []}", 404, "nostore"),
        (&format!("workspaceblobstore/{own}?size=9"), "", 200, "\"upload\":null"),
        (&format!("workspaceblobstore/{own}?upload=x"), "{\"complete\": []}", 404, "NoSuchUpload"),
        (&format!("workspaceblobstore/{own}"), "", 400, "either the size"),
        ("workspaceblobstore/azureml/content/x?size=9", "", 403, "not below"),
    ] {
        let answer = post(rest, body).await;
        assert!(answer.0 == status && answer.1.contains(words), "{rest} {body:.99}: {answer:?}");
    }
    let people = Gateway::new().await;
    let url = people.url("workspaceblobstore");
    let refused = people.client.post(url).body("{\"sign\": []}").send().await.unwrap();
    assert_eq!(error_of(refused).await, (403, "Forbidden".into()));
}

#[tokio::test]
async fn an_object_is_stored_as_a_copy() {
    let gateway = Gateway::behind(Arc::new(Shut::default()), Some(attempt_of("mine"))).await;
    let one = ".uncommitted/mine/one";
    let at = format!("workspaceblobstore/{one}");
    let stored = gateway.put(&at, "text").await;
    assert_eq!(stored.status(), 201);
    let tag = stored.headers()["etag"].to_str().unwrap().replace('"', "%22");
    let copy = |to: &str, from: &str, size: u64| {
        let query = format!("from={from}&size={size}&tag={tag}");
        let url = gateway.url(&format!("workspaceblobstore/{to}?{query}"));
        gateway.client.put(url).send()
    };
    for _ in 0..2 {
        // Again, as after a lost answer: it is there, and nothing is left where it was made.
        let copied = copy("b/two%20%23", one, 4).await.unwrap();
        // Which a daemon that would store an empty object does not answer.
        assert_eq!(copied.status(), 200);
        assert!(copied.headers().contains_key("etag"));
        let got = gateway.get("workspaceblobstore/b/two%20%23", &[]).await;
        assert_eq!(got.text().await.unwrap(), "text");
        let root = gateway.stores.get(BLOB_STORE).unwrap().own_folder().unwrap().to_owned();
        assert_eq!(std::fs::read_dir(root.join(".staging")).unwrap().count(), 0);
    }
    // Each goes on by itself.
    gateway.put(&at, "same").await;
    let got = gateway.get("workspaceblobstore/b/two%20%23", &[]).await;
    assert_eq!(got.text().await.unwrap(), "text");
    for (to, from, size, status) in [
        // Another of the same length; of another length; none.
        ("c", one, 4, 412),
        ("c", one, 5, 412),
        ("c", ".uncommitted/mine/none", 4, 404),
        ("c", ".uncommitted/mine", 4, 404),
        ("c", "../x", 4, 400),
        // What is not an attempt's own, and where it must not be.
        ("c", "b/two%20%23", 4, 403),
        ("azureml/content/ab/abcd", one, 4, 403),
    ] {
        let copied = copy(to, from, size).await.unwrap();
        assert_eq!(copied.status(), status, "{to} {from}");
    }
    // One that says no tag, below what is a file.
    let url = gateway.url(&format!("workspaceblobstore/b/two%20%23/x?from={one}&size=4"));
    assert_eq!(gateway.client.put(url).send().await.unwrap().status(), 409);
    let people = Gateway::new().await;
    people.put(&at, "text").await;
    let url = people.url(&format!("workspaceblobstore/c?from={one}&size=4"));
    let refused = people.client.put(url).send().await.unwrap();
    assert_eq!(error_of(refused).await, (403, "Forbidden".into()));
}

#[tokio::test]
async fn a_copy_that_outlasts_its_attempt_is_not_seen() {
    // Asked of what is copied, of its place, and once more.
    let door = Arc::new(Closing(AtomicUsize::new(2)));
    let gateway = Gateway::behind(door.clone(), Some(attempt_of("mine"))).await;
    let store = gateway.stores.get(BLOB_STORE).unwrap();
    let from = ObjectPath::new(".uncommitted/mine/x").unwrap();
    store.put(&from, Bytes::from_static(b"text")).await.unwrap();
    let url = gateway.url(&format!("{BLOB_STORE}/y?from={from}&size=4"));
    let refused = gateway.client.put(&url).send().await.unwrap();
    assert_eq!(error_of(refused).await, (403, "Forbidden".to_owned()));
    let to = ObjectPath::new("y").unwrap();
    assert!(matches!(store.head(&to).await, Err(storage::Error::NotFound(_))));
    let staging = store.own_folder().unwrap().join(".staging");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0);
    door.0.store(3, Ordering::SeqCst);
    assert_eq!(gateway.client.put(url).send().await.unwrap().status(), 200);
    assert_eq!(store.get(&to, 100).await.unwrap(), "text");
}

#[tokio::test]
async fn what_is_not_committed_is_in_no_other_listing() {
    let gateway = Gateway::new().await;
    for path in ["a", ".uncommitted/j/o/0/x", "z"] {
        gateway.put(&format!("workspaceblobstore/{path}"), "x").await;
    }
    let list = async |query: &str| gateway.get(query, &[]).await.text().await.unwrap();
    for query in ["workspaceblobstore", "workspaceblobstore?prefix=&delimiter=/"] {
        let page = list(query).await;
        assert!(page.contains("\"a\"") && page.contains("\"z\""), "{page}");
        assert!(!page.contains("uncommitted"), "{page}");
    }
    // Whoever may ask for it is told.
    let page = list("workspaceblobstore?prefix=.uncommitted/j").await;
    assert!(page.contains(".uncommitted/j/o/0/x"), "{page}");
}
