//! On a real server, OpenBao in memory, and on one that only misbehaves.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atelier_core::id::SecretVersion;
use atelier_core::secret::SealedName;
use serde_json::{Value, json};

use super::*;

mod toy;

pub(in crate::vault) use toy::Toy;

/// A server with transit at its usual place. Dropping it ends it.
pub(in crate::vault) struct Bao {
    process: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Bao {
    pub(in crate::vault) fn start() -> Self {
        let Ok(program) = std::env::var("ATELIER_TEST_BAO") else {
            panic!("ATELIER_TEST_BAO is to name a program; see tests/scripts/prepare")
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(program)
            .args(["server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root"])
            .arg(format!("-dev-listen-address={address}"))
            .env("HOME", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bao = Self { process, folder, address };
        let begun = Instant::now();
        while bao.try_ask("POST", "sys/mounts/transit", json!({"type": "transit"})).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "OpenBao does not answer");
            std::thread::sleep(Duration::from_millis(15));
        }
        bao
    }

    fn try_ask(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let Self { address, .. } = self;
        let body = body.to_string();
        let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        write!(
            stream,
            "{method} /v1/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nX-Vault-Token: root\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => {
                // It may come in pieces, each after its length.
                let json = body.find('{').zip(body.rfind('}')).map(|(a, b)| &body[a..=b]);
                Ok(json.map_or(Value::Null, |json| serde_json::from_str(json).unwrap()))
            }
            _ => Err(answer),
        }
    }

    pub(in crate::vault) fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        self.try_ask(method, path, body).unwrap()
    }

    /// Makes a policy for the key `atelier`, and a token with it alone.
    fn token(&self, more: Value) -> String {
        let policy = r#"path "transit/keys/atelier" { capabilities = ["read"] }
            path "transit/+/atelier" { capabilities = ["read", "update"] }"#;
        self.ask("POST", "sys/policies/acl/atelier", json!({ "policy": policy }));
        let mut body = json!({"policies": ["atelier"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = self.ask("POST", "auth/token/create", body);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> TextSource {
        file_in(self.folder.path(), name, text)
    }

    pub(in crate::vault) fn settings(&self) -> Settings {
        Settings {
            address: format!("http://{}/", self.address),
            namespace: None,
            ca: None,
            login: Login::Token(self.file("token", "root\n")),
        }
    }

    fn client(&self, login: Login) -> Transit {
        let settings = Settings { login, ..self.settings() };
        Transit::new(settings, Path::new("/nowhere"), Limits::default()).unwrap()
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file for its owner alone.
fn file_in(folder: &Path, name: &str, text: &str) -> TextSource {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    TextSource::File(path)
}

fn place(name: &SealedName, version: u32) -> Place<'_> {
    Place { workspace: "w", name, version: SecretVersion(version) }
}

fn db() -> SealedName {
    "db".parse().unwrap()
}

#[tokio::test]
async fn bao_opens_a_data_key_in_its_place_alone() {
    let bao = Bao::start();
    let server = bao.client(bao.settings().login);
    let name = db();
    for (key, derived) in [("plain", false), ("derived", true)] {
        bao.ask("POST", &format!("transit/keys/{key}"), json!({ "derived": derived }));
        let key = server.key(format!("transit/{key}").parse().unwrap());
        let made = key.wrap(place(&name, 1), envelope::new_data_key().unwrap()).await.unwrap();
        assert_eq!(made.key.as_str(), format!("transit:{}:v1", key.name()));
        assert!(made.key.is_of_transit(key.name()));
        assert!(!made.key.is_of_transit(&"transit/plai".parse().unwrap()));
        assert_eq!(key.unwrap(place(&name, 1), &made.kept).await.unwrap(), made.plain);
        for wrong in [place(&name, 2), Place { workspace: "v", ..place(&name, 1) }] {
            let said = key.unwrap(wrong, &made.kept).await.unwrap_err();
            assert!(said.to_string().contains("authentication failed"), "{said}");
            assert!(!said.passes());
        }
        // The server itself seals it with a newer version where it can.
        bao.ask("POST", &format!("{}/rotate", key.name.at("keys")), json!({}));
        assert_eq!(key.newest().await.unwrap().as_str(), format!("transit:{}:v2", key.name()));
        let anew = key.rewrap(place(&name, 1), &made.kept).await.unwrap();
        assert_eq!(anew.is_some(), derived);
        if let Some((kept, id)) = anew {
            assert!(id.as_str().ends_with(":v2"), "{id}");
            assert_eq!(key.unwrap(place(&name, 1), &kept).await.unwrap(), made.plain);
            assert!(key.unwrap(place(&name, 2), &kept).await.is_err());
        }
    }
}

#[tokio::test]
async fn bao_tells_what_is_wrong_and_a_token_is_not_repeated() {
    let bao = Bao::start();
    let server = bao.client(bao.settings().login);
    bao.ask("POST", "transit/keys/rsa", json!({"type": "rsa-2048"}));
    bao.ask("POST", "transit/keys/atelier", json!({}));
    let said = async |server: &Transit, key: &str| {
        let key = server.key(key.parse().unwrap());
        let failed = key.wrap(place(&db(), 1), envelope::new_data_key().unwrap()).await;
        let error = failed.err().unwrap();
        (error.to_string(), error.passes())
    };
    for (key, words) in
        [("transit/none", "no such key"), ("other/k", "no such key"), ("transit/rsa", "rsa-2048")]
    {
        let (said, passes) = said(&server, key).await;
        assert!(said.contains(words) && said.contains(key) && !passes, "{said}");
        assert!(said.contains(&bao.address), "{said}");
    }
    // A key that is not there was not made by asking.
    assert!(bao.try_ask("GET", "transit/keys/none", json!({})).is_err());

    let token = bao.token(json!({}));
    let file = bao.file("own", &token);
    let own = bao.client(Login::Token(file));
    let key = own.key("transit/atelier".parse().unwrap());
    key.wrap(place(&db(), 1), envelope::new_data_key().unwrap()).await.unwrap();
    let (denied, passes) = said(&own, "transit/rsa").await;
    assert!(denied.contains("denies it") && denied.contains("policy") && !passes, "{denied}");
    assert!(!denied.contains(&token));
    // Another token in the same place is taken up when the first is not taken any more.
    bao.ask("POST", "auth/token/revoke", json!({ "token": token }));
    bao.file("own", &bao.token(json!({})));
    key.newest().await.unwrap();
    let strange = bao.client(Login::Token(bao.file("strange", "not a token\n")));
    let (said_of, _) = said(&strange, "transit/atelier").await;
    assert!(said_of.contains("no token") && !said_of.contains("not a token"), "{said_of}");

    bao.ask("PUT", "sys/seal", json!({}));
    let (sealed, passes) = said(&server, "transit/atelier").await;
    assert!(sealed.contains("sealed") && passes, "{sealed}");
    let Bao { process, .. } = &mut { bao };
    process.kill().unwrap();
    process.wait().unwrap();
    let (gone, passes) = said(&server, "transit/atelier").await;
    assert!(gone.contains("cannot be reached") && passes, "{gone}");
}

/// Waits for something that is on its way.
pub(in crate::vault) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn bao_keeps_the_daemon_logged_in() {
    let bao = Bao::start();
    bao.ask("POST", "transit/keys/atelier", json!({}));
    bao.token(json!({}));
    // A token that may be renewed lives on beyond its first life.
    let token = bao.token(json!({"ttl": "2s", "renewable": true}));
    let server = bao.client(Login::Token(bao.file("short", &token)));
    let key = server.key("transit/atelier".parse().unwrap());
    let begun = Instant::now();
    let tending = tokio::spawn({
        let server = server.clone();
        async move { server.tend().await }
    });
    until("it is older than it was to become", async || {
        key.newest().await.unwrap();
        begun.elapsed() > Duration::from_secs(4)
    })
    .await;
    tending.abort();

    // A role gets another token when the first cannot be renewed any more.
    bao.ask("POST", "sys/auth/approle", json!({"type": "approle"}));
    let role = json!({"token_policies": "atelier", "token_ttl": "1s", "token_max_ttl": "2s"});
    bao.ask("POST", "auth/approle/role/atelier", role);
    let id = bao.ask("GET", "auth/approle/role/atelier/role-id", json!({}));
    let secret = bao.ask("POST", "auth/approle/role/atelier/secret-id", json!({}));
    let secret = secret["data"]["secret_id"].as_str().unwrap();
    let login = |secret: &str| Login::AppRole {
        mount: "approle".to_owned(),
        role_id: id["data"]["role_id"].as_str().unwrap().to_owned(),
        secret_id: bao.file("secret-id", secret),
    };
    let server = bao.client(login(secret));
    let key = server.key("transit/atelier".parse().unwrap());
    let tending = tokio::spawn({
        let server = server.clone();
        async move { server.tend().await }
    });
    let first = server.token().await.unwrap();
    until("it logs in again", async || {
        key.newest().await.unwrap();
        server.token().await.unwrap() != first
    })
    .await;
    tending.abort();
    let error = bao.client(login("wrong")).key(key.name.clone()).newest().await.unwrap_err();
    assert!(error.to_string().contains("invalid role or secret ID"), "{error}");
}

/// Answers each connection with the next of these, then with the last for ever; tells what it was asked.
fn answering(answers: Vec<String>) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, told) = std::sync::mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 8192];
            let length = stream.read(&mut request).unwrap();
            let _ = asked.try_send(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = stream.write_all(answers[n.min(answers.len() - 1)].as_bytes());
        }
    });
    (address, told)
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_server_that_stumbles_is_asked_again_and_one_that_sends_away_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let mut text: TextSource = "env:ATELIER_TEST_TRANSIT_TOKEN".parse().unwrap();
    if let TextSource::Variable { text, .. } = &mut text {
        *text = Some(crate::vault::source::HeldText::of(b"s.token"));
    }
    let settings = |address: String| Settings {
        address,
        namespace: Some("/team/".to_owned()),
        ca: None,
        login: Login::Token(text.clone()),
    };
    let lookup = answer("200 OK", r#"{"data": {"ttl": 0, "renewable": false}}"#);
    let key = r#"{"data": {"type": "aes256-gcm96", "derived": false, "latest_version": 3}}"#;
    let (address, asked) = answering(vec![
        answer("502 Bad Gateway", "<html>"),
        lookup.clone(),
        answer("429 Too Many Requests", ""),
        answer("500 Internal Server Error", r#"{"errors": ["1 error occurred"]}"#),
        answer("200 OK", key),
    ]);
    let server = Transit::new(settings(address), folder.path(), Limits::default()).unwrap();
    let newest = server.key("transit/a".parse().unwrap()).newest().await.unwrap();
    assert_eq!(newest.as_str(), "transit:transit/a:v3");
    let asked: Vec<String> = asked.try_iter().collect();
    assert_eq!(asked.len(), 5);
    for request in &asked {
        let request = request.to_ascii_lowercase();
        assert!(
            request.contains("x-vault-token: s.token")
                && request.contains("x-vault-namespace: team")
        );
    }
    assert!(asked[4].starts_with("GET /v1/transit/keys/a "));

    let (other, told) = answering(vec![answer("200 OK", key)]);
    let away = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {other}/x\r\nContent-Length: 0\r\n\r\n"
    );
    let (address, _asked) = answering(vec![lookup.clone(), away]);
    let server = Transit::new(settings(address), folder.path(), Limits::default()).unwrap();
    let error = server.key("transit/a".parse().unwrap()).newest().await.unwrap_err();
    assert!(error.to_string().contains(&other), "{error}");
    assert!(told.try_recv().is_err(), "the token went elsewhere");

    let (address, _asked) = answering(vec![lookup, answer("200 OK", "<html>")]);
    let server = Transit::new(settings(address), folder.path(), Limits::default()).unwrap();
    let error = server.key("transit/a".parse().unwrap()).newest().await.unwrap_err();
    assert!(error.to_string().contains("not one of transit's"), "{error}");
}

#[tokio::test]
async fn a_renewal_that_hangs_keeps_nobody_from_the_token_that_there_is() {
    let toy = Toy::start().await;
    toy.let_tokens_live(3);
    toy.hang("renew-self");
    let server = Transit::new(toy.settings(), Path::new("/nowhere"), Limits::default()).unwrap();
    let key = server.key("transit/a".parse().unwrap());
    key.newest().await.unwrap();
    let tending = tokio::spawn({
        let server = server.clone();
        async move { server.tend().await }
    });
    until("the token is being renewed", async || toy.asked("renew-self") > 0).await;
    tokio::time::timeout(Duration::from_secs(4), key.newest()).await.unwrap().unwrap();
    assert!(!tending.is_finished());
    tending.abort();
}

#[tokio::test]
async fn who_waits_for_a_login_that_hangs_waits_no_longer_than_the_first() {
    let toy = Toy::start().await;
    toy.hang("lookup-self");
    let limits = Limits { answer: Duration::from_millis(500), all: Duration::from_secs(3) };
    let server = Transit::new(toy.settings(), Path::new("/nowhere"), limits).unwrap();
    let key = server.key("transit/a".parse().unwrap());
    let begun = Instant::now();
    let asked = (0..12).map(|_| key.newest());
    for asked in futures::future::join_all(asked).await {
        let said = asked.unwrap_err().to_string();
        assert!(said.contains("cannot be reached") && said.contains("see that it runs"), "{said}");
        assert!(said.contains(toy.address()), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    assert!(toy.asked("lookup-self") < 8, "one asks for all");
    // It is not held against the server for ever.
    toy.recover();
    key.newest().await.unwrap();
}

#[tokio::test]
async fn a_role_logs_in_no_more_often_for_what_it_may_not_do() {
    for says_nothing in [false, true] {
        let toy = Toy::start().await;
        toy.deny("keys/forbidden");
        if says_nothing {
            toy.deny("lookup-self");
        }
        let settings = toy.settings_of_role();
        let server = Transit::new(settings, Path::new("/nowhere"), Limits::default()).unwrap();
        for _ in 0..10 {
            let key = server.key("transit/forbidden".parse().unwrap());
            let said = key.newest().await.unwrap_err().to_string();
            assert!(said.contains("permission denied"), "{said}");
            server.key("transit/a".parse().unwrap()).newest().await.unwrap();
        }
        assert_eq!(toy.asked("approle/login"), 1);
    }
}

#[tokio::test]
async fn the_server_has_so_many_requests_at_once_whoever_asks() {
    let toy = Toy::start().await;
    let server = Transit::new(toy.settings(), Path::new("/nowhere"), Limits::default()).unwrap();
    let key = server.key("transit/a".parse().unwrap());
    key.newest().await.unwrap();
    toy.most_at_once();
    toy.take(Duration::from_millis(300));
    for asked in futures::future::join_all((0..AT_ONCE + 20).map(|_| key.newest())).await {
        asked.unwrap();
    }
    assert_eq!(toy.most_at_once(), AT_ONCE);
}

#[test]
fn a_token_goes_over_no_open_line() {
    for good in [
        "https://vault.example:8200",
        "http://127.0.0.1:8200",
        "http://localhost:1",
        "http://[::1]:1",
    ] {
        assert_eq!(request::unfit_address(good), None, "{good}");
    }
    for bad in [
        "http://vault.example:8200",
        "http://10.0.0.1",
        "vault.example:8200",
        "ftp://127.0.0.1",
        "https://u:p@vault.example",
        "https://vault.example/v1",
        "https://vault.example/?a",
        "",
    ] {
        assert!(request::unfit_address(bad).is_some(), "{bad}");
    }
}
