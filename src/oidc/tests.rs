use std::sync::Mutex;

use atelier_core::access::Role;
use atelier_core::sign_in::{Given, Group, Rules};
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

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
        let published = Published { metadata, keys: Value::Null, asked: 0 };
        let published = std::sync::Arc::new(Mutex::new(published));
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(|State(p): Shared| async move { Json(p.lock().unwrap().metadata.clone()) }),
            )
            .route(
                "/keys",
                get(|State(p): Shared| async move {
                    let mut published = p.lock().unwrap();
                    published.asked += 1;
                    Json(published.keys.clone())
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
