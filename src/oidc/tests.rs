use std::sync::Mutex;

use atelier_core::access::Role;
use atelier_core::sign_in::passing::{Endpoint, Parameters};
use atelier_core::sign_in::{Given, Group, Rules};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::*;

/// A key of a provider's.
struct Key {
    id: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate().unwrap() }
    }

    fn public(&self) -> Value {
        use rcgen::PublicKeyData as _;
        let point = self.pair.der_bytes();
        let [x, y] = [&point[1..33], &point[33..65]].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id, "x": x, "y": y })
    }

    fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &EncodingKey::from_ec_der(&self.pair.serialize_der())).unwrap()
    }
}

/// What a provider publishes, over a port.
struct Published {
    metadata: Value,
    keys: Value,
    asked: usize,
    /// How often it was asked who it is.
    met: usize,
    /// Who wants a token waits for this first.
    gate: std::sync::Arc<Semaphore>,
    /// What it says to who wants a token.
    answer: (StatusCode, String),
    /// How they showed who they are, and what they asked.
    forms: Vec<(Option<String>, String)>,
}

struct World {
    issuer: String,
    published: std::sync::Arc<Mutex<Published>>,
}

type Shared = State<std::sync::Arc<Mutex<Published>>>;

impl World {
    async fn start(keys: &[&Key]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let metadata = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/auth"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/keys"),
        });
        let answer = (StatusCode::BAD_REQUEST, json!({ "error": "invalid_grant" }).to_string());
        let (metadata, forms) = (metadata, Vec::new());
        let gate = std::sync::Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let published =
            Published { metadata, keys: Value::Null, asked: 0, met: 0, gate, answer, forms };
        let published = std::sync::Arc::new(Mutex::new(published));
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(|State(p): Shared| async move {
                    let mut published = p.lock().unwrap();
                    published.met += 1;
                    Json(published.metadata.clone())
                }),
            )
            .route(
                "/keys",
                get(|State(p): Shared| async move {
                    let mut published = p.lock().unwrap();
                    published.asked += 1;
                    Json(published.keys.clone())
                }),
            )
            .route(
                "/token",
                post(|State(p): Shared, headers: HeaderMap, form: String| async move {
                    let shown =
                        headers.get("authorization").map(|v| v.to_str().unwrap().to_owned());
                    let gate = {
                        let mut published = p.lock().unwrap();
                        published.forms.push((shown, form));
                        published.gate.clone()
                    };
                    let _open = gate.acquire().await.unwrap();
                    let (status, said) = p.lock().unwrap().answer.clone();
                    // Nobody goes there, whatever is said there.
                    (status, [("location", "http://192.0.2.1/")], said)
                }),
            )
            .with_state(published.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let world = Self { issuer, published };
        world.has(keys);
        world
    }

    fn has(&self, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
        self.published.lock().unwrap().keys = json!({ "keys": keys });
    }

    fn asked(&self) -> usize {
        self.published.lock().unwrap().asked
    }

    fn provider(&self) -> Provider {
        let everybody = Given { to: Group::Everybody, role: Role::Reader };
        let rules = Rules {
            user_claim: "sub".to_owned(),
            user_prefix: String::new(),
            groups_claim: "groups".to_owned(),
            roles: vec![everybody],
        };
        Provider::new(&self.issuer, "cli", &[], Duration::from_secs(60), rules).unwrap()
    }

    fn claims(&self) -> Value {
        json!({ "iss": self.issuer, "aud": "cli", "sub": "ana", "exp": now() + 300, "iat": now() })
    }
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

#[tokio::test]
async fn only_what_the_provider_signed_for_this_workspace_and_now_is_taken() {
    let (key, other) = (Key::new("a"), Key::new("a"));
    let world = World::start(&[&key]).await;
    let provider = world.provider();
    let good = world.claims();
    assert_eq!(provider.user(&key.sign(Some("a"), &good)).await.unwrap().principal.as_str(), "ana");
    // A key without a name is found where there is only one.
    provider.user(&key.sign(None, &good)).await.unwrap();
    for (name, value) in [
        ("iss", json!("https://elsewhere.example")),
        ("iss", Value::Null),
        ("aud", json!("another")),
        ("aud", json!(["cli", "another"])),
        ("aud", Value::Null),
        ("azp", json!("another")),
        ("exp", json!(now() - 300)),
        ("exp", Value::Null),
        ("exp", json!("tomorrow")),
        ("nbf", json!(now() + 300)),
        ("sub", Value::Null),
    ] {
        let claims = with(good.clone(), name, value);
        let rejected = provider.user(&key.sign(Some("a"), &claims)).await.unwrap_err();
        assert!(matches!(rejected, Rejected::BadToken(_)), "{claims}: {rejected}");
    }
    let several = with(with(good.clone(), "aud", json!(["cli", "another"])), "azp", json!("cli"));
    provider.user(&key.sign(Some("a"), &several)).await.unwrap();

    // Another's key by the same name; no signature; one made with what everybody knows.
    let forged = other.sign(Some("a"), &good);
    assert!(provider.user(&forged).await.unwrap_err().to_string().contains("signature"));
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}.", part(&json!({ "alg": "none", "kid": "a" })), part(&good));
    let header = Header { kid: Some("a".to_owned()), ..Header::new(Algorithm::HS256) };
    let public = EncodingKey::from_secret(key.public()["x"].as_str().unwrap().as_bytes()).unwrap();
    let symmetric = encode(&header, &good, &public).unwrap();
    for bad in [unsigned.as_str(), &symmetric, "", "a.b.c", &"x".repeat(100_000)] {
        assert!(matches!(provider.user(bad).await, Err(Rejected::BadToken(_))));
    }
}

#[tokio::test]
async fn keys_that_are_new_are_asked_for_but_not_with_every_token() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let world = World::start(&[&old]).await;
    let provider = world.provider();
    provider.user(&old.sign(Some("old"), &world.claims())).await.unwrap();
    provider.user(&old.sign(Some("old"), &world.claims())).await.unwrap();
    assert_eq!(world.asked(), 1);
    // Tokens of keys that nobody has do not make it ask again and again.
    world.has(&[&old, &new]);
    let token = new.sign(Some("new"), &world.claims());
    for _ in 0..20 {
        provider.user(&token).await.unwrap_err();
    }
    assert_eq!(world.asked(), 1);
    let provider = provider.asks_again_after(Duration::ZERO);
    provider.user(&token).await.unwrap();
    assert_eq!(world.asked(), 2);
}

#[tokio::test]
async fn a_provider_that_calls_itself_otherwise_or_is_not_safe_is_refused() {
    for bad in ["http://id.example.com", "ftp://x", "id.example.com", "https://a@b", "https://x?y"]
    {
        assert!(matches!(Asker::new(bad), Err(Error::BadIssuer { .. })), "{bad}");
    }
    let world = World::start(&[]).await;
    let asker = Asker::new(&world.issuer).unwrap();
    asker.metadata().await.unwrap();
    world.published.lock().unwrap().metadata["jwks_uri"] = json!("http://192.0.2.1/keys");
    let error = asker.metadata().await.unwrap_err().to_string();
    assert!(error.contains("not safe"), "{error}");
    world.published.lock().unwrap().metadata["issuer"] = json!("https://id.example.com");
    assert!(matches!(asker.metadata().await, Err(Error::OtherIssuer { .. })));
}

/// With a token somebody comes in once, however it is written; another of the same person is another.
#[tokio::test]
async fn a_token_is_taken_once() {
    let key = Key::new("a");
    let world = World::start(&[&key]).await;
    let provider = world.provider();
    let one = key.sign(Some("a"), &world.claims());
    let other = key.sign(Some("a"), &with(world.claims(), "jti", json!("2")));
    provider.user(&one).await.unwrap();
    provider.take(&one).unwrap();
    provider.user(&one).await.unwrap();
    let refused = provider.take(&one).unwrap_err();
    assert!(matches!(refused, Rejected::Taken), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("atelier login") && !said.contains(&one), "{said}");
    // A signature of this algorithm can be made again, and is another.
    let again = key.sign(Some("a"), &world.claims());
    let (signed, _) = one.rsplit_once('.').unwrap();
    if again.starts_with(signed) {
        assert!(provider.take(&again).is_err());
    }
    provider.take(&other).unwrap();
}

/// A provider whose client has a secret, which lies in a file.
struct WithSecret {
    world: World,
    provider: Provider,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl WithSecret {
    async fn start(shown: Option<Shown>) -> Self {
        let world = World::start(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        write(&file, "s3cret: +%\n");
        let source = format!("file:{}", file.display()).parse().unwrap();
        let passing = Passing::new("a client", source, shown, folder.path().join("data")).unwrap();
        let provider = world.provider().with_secret(Some(passing));
        Self { world, provider, file, _folder: folder }
    }

    async fn refresh(&self, from: [u8; 4]) -> Result<Passed, NotAsked> {
        let asked = parameters(&[("grant_type", "refresh_token"), ("refresh_token", "r")]);
        self.provider.ask(Endpoint::Token, &asked, Some(from.into())).await
    }

    fn says(&self, status: StatusCode, said: &str) {
        self.world.published.lock().unwrap().answer = (status, said.to_owned());
    }

    fn forms(&self) -> Vec<(Option<String>, String)> {
        std::mem::take(&mut self.world.published.lock().unwrap().forms)
    }
}

fn parameters(pairs: &[(&str, &str)]) -> Parameters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn write(file: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_secret_is_shown_to_the_provider_and_nobody_else() {
    let at = WithSecret::start(None).await;
    let tokens = json!({ "access_token": "a", "id_token": "i", "token_type": "Bearer" });
    at.says(StatusCode::OK, &tokens.to_string());
    let passed = at.refresh([127, 0, 0, 1]).await.unwrap();
    let expected = json!({ "access_token": "", "id_token": "i", "token_type": "Bearer" });
    assert_eq!(passed, Passed { succeeded: true, body: expected });
    // As RFC 6749 wants it, section 2.3.1: `a+client:s3cret%3A+%2B%25`.
    let basic = "Basic YStjbGllbnQ6czNjcmV0JTNBKyUyQiUyNQ==";
    let form = "grant_type=refresh_token&refresh_token=r";
    assert_eq!(at.forms(), [(Some(basic.to_owned()), form.to_owned())]);

    // A new one counts at once; of one that is not there only the admin is told more.
    write(&at.file, "new");
    at.refresh([127, 0, 0, 1]).await.unwrap();
    assert_ne!(at.forms()[0].0.as_deref(), Some(basic));
    std::fs::remove_file(&at.file).unwrap();
    let refused = at.refresh([127, 0, 0, 1]).await.unwrap_err();
    assert!(matches!(refused, NotAsked::Secret), "{refused}");
    let source = format!("file:{}", at.file.display()).parse().unwrap();
    let absent = Passing::new("a", source, None, "/data".into()).err().unwrap().to_string();
    assert!(
        absent.contains("--oidc-client-secret") && absent.contains("there is none"),
        "{absent}"
    );

    let at = WithSecret::start(Some(Shown::Post)).await;
    at.refresh([127, 0, 0, 1]).await.unwrap();
    let form = format!("{form}&client_id=a+client&client_secret=s3cret%3A+%2B%25");
    assert_eq!(at.forms(), [(None, form)]);
    // One that knows only that is asked so.
    let at = WithSecret::start(None).await;
    at.world.published.lock().unwrap().metadata["token_endpoint_auth_methods_supported"] =
        json!(["client_secret_post"]);
    at.refresh([127, 0, 0, 1]).await.unwrap();
    assert_eq!(at.forms()[0].0, None);
}

#[tokio::test]
async fn what_is_not_for_signing_in_never_reaches_the_provider() {
    let at = WithSecret::start(None).await;
    for asked in [
        &[("grant_type", "client_credentials")][..],
        &[("grant_type", "authorization_code"), ("code", "c")],
        &[("grant_type", "refresh_token"), ("refresh_token", "r"), ("scope", "everything")],
        &[("grant_type", "refresh_token"), ("refresh_token", "r"), ("client_secret", "x")],
    ] {
        let refused = at.provider.ask(Endpoint::Token, &parameters(asked), None).await.unwrap_err();
        assert!(matches!(refused, NotAsked::NotPassedOn(_)), "{asked:?}: {refused}");
    }
    let token = parameters(&[("token", "r")]);
    let none = at.provider.ask(Endpoint::Revocation, &token, None).await.unwrap_err();
    assert!(none.to_string().contains("names no place for that"), "{none}");
    assert_eq!(at.forms(), []);
    let refused = at.world.provider().ask(Endpoint::Revocation, &token, None).await.unwrap_err();
    assert!(matches!(refused, NotAsked::NoSecret), "{refused}");
}

#[tokio::test]
async fn what_the_provider_says_is_passed_back_in_few_words() {
    let at = WithSecret::start(None).await;
    let home = [127, 0, 0, 1];
    let code = json!({ "error": "invalid_grant" });
    assert_eq!(at.refresh(home).await.unwrap(), Passed { succeeded: false, body: code });
    let said = json!({ "error": "invalid_client", "error_description": "s3cret: +% is wrong" });
    at.says(StatusCode::UNAUTHORIZED, &said.to_string());
    let told = at.refresh(home).await.unwrap();
    let text = told.body.to_string();
    assert!(!told.succeeded && text.contains("an admin finds more"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    for (status, said) in [
        (StatusCode::FOUND, "{}"),
        (StatusCode::OK, "<html>"),
        (StatusCode::BAD_GATEWAY, "busy"),
        (StatusCode::OK, &"x".repeat(2 << 20)),
    ] {
        at.says(status, said);
        let failed = at.refresh(home).await.unwrap_err();
        assert!(matches!(failed, NotAsked::Provider(_)), "{status}: {failed}");
    }
}

#[tokio::test]
async fn who_asks_too_often_waits_and_others_do_not() {
    let at = WithSecret::start(None).await;
    let mut refused = None;
    for _ in 0..1000 {
        match at.refresh([10, 0, 0, 1]).await {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let told = refused.expect("a limit").to_string();
    assert!(told.contains("too often") && told.contains("try again in"), "{told}");
    at.refresh([10, 0, 0, 2]).await.unwrap();
}

#[tokio::test]
async fn a_provider_that_is_slow_leaves_places_to_others() {
    let at = WithSecret::start(None).await;
    let gate = std::sync::Arc::new(Semaphore::new(0));
    at.world.published.lock().unwrap().gate = gate.clone();
    let mut waiting = FuturesUnordered::new();
    for _ in 0..16 {
        waiting.push(at.refresh([10, 0, 0, 1]));
    }
    let everybody_has_come = async {
        while at.world.published.lock().unwrap().forms.len() < 16 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = waiting.next() => panic!("{answer:?}"),
        () = everybody_has_come => {}
    }
    let told = at.refresh([10, 0, 0, 1]).await.unwrap_err().to_string();
    assert!(told.contains("try again in"), "{told}");
    waiting.push(at.refresh([10, 0, 0, 2]));
    gate.add_permits(1);
    while let Some(answer) = waiting.next().await {
        answer.unwrap();
    }
    at.refresh([10, 0, 0, 1]).await.unwrap();
    assert_eq!(at.forms().len(), 18);
}

#[tokio::test]
async fn a_provider_that_told_nothing_is_not_asked_by_each_in_turn() {
    let at = WithSecret::start(None).await;
    let metadata = at.world.published.lock().unwrap().metadata.take();
    for _ in 0..3 {
        let failed = at.refresh([127, 0, 0, 1]).await.unwrap_err();
        assert!(matches!(failed, NotAsked::Provider(_)), "{failed}");
    }
    at.world.published.lock().unwrap().metadata = metadata;
    assert_eq!(at.world.published.lock().unwrap().met, 1);
    let again = async {
        while at.refresh([127, 0, 0, 1]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
    assert_eq!(at.world.published.lock().unwrap().met, 2);
}

/// Google has another word for refresh tokens than OpenID Connect, and refuses the one of that.
#[tokio::test]
async fn a_provider_is_asked_for_refresh_tokens_as_it_knows_it() {
    let world = World::start(&[]).await;
    let page = async || {
        let scopes = ["openid", "offline_access"].map(str::to_owned);
        let app = flows::App::new(&world.issuer, "cli", &scopes, None).await.unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let waits = app.browser(move |page| drop(tell.take().unwrap().send(page.to_owned())));
        tokio::select! {
            _ = waits => unreachable!("nobody signs in"),
            page = told => page.unwrap(),
        }
    };
    let usual = page().await;
    assert!(usual.contains("offline_access") && !usual.contains("access_type"), "{usual}");
    world.published.lock().unwrap().metadata["scopes_supported"] = json!(["openid", "email"]);
    let other = page().await;
    assert!(other.contains("access_type=offline") && !other.contains("offline_access"), "{other}");
}
