//! On a server that gives tokens as Entra does, as far as its documents say, and has blobs.

use std::collections::HashMap;
use std::sync::Mutex as Plain;

use atelier_core::datastore::{
    AzureStorage, Credentials, OneLake, Proof, ServicePrincipal, Source,
};
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use bytes::Bytes;

use super::super::Cloud;
use super::*;
use crate::storage::{Error, ObjectPath};

/// A certificate that was made for these tests, with its key; nothing takes it.
const PEM: &str = include_str!("testing.pem");
const THUMBPRINT: &str = "9C:73:52:45:A9:DA:90:18:FF:00:80:D6:5F:1D:6C:F9:46:6C:C6:5C";
const DIGEST: &str = "wDzvd6F45ZC6Dlwip2hIySfMBDxbGzgg1Jj4scrmg0I";

/// What the server was asked, and with how many refusals it begins.
#[derive(Default)]
struct Asked {
    requests: Vec<String>,
    bodies: Vec<String>,
    /// Statuses of the next answers to who asks for a token.
    refuse: Vec<(u16, &'static str)>,
    tokens: usize,
    lives: u64,
}

type Log = Arc<Plain<Asked>>;

async fn start(lives: u64) -> (String, Log) {
    let log: Log = Arc::new(Plain::new(Asked { lives, ..Asked::default() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = log.clone();
    let app = axum::Router::new().fallback(move |request: Request| answer(state, request));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, log)
}

async fn answer(log: Log, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let who = head.headers.get("authorization").map_or("nobody", |who| who.to_str().unwrap());
    let mut log = log.lock().unwrap();
    log.requests.push(format!("{} {} {who}", head.method, head.uri));
    let told = |status: u16, body: String| {
        Response::builder().status(status).body(Body::from(body)).unwrap()
    };
    if head.uri.path().ends_with("/token") {
        log.bodies.push(String::from_utf8(body.to_vec()).unwrap());
        if let Some((status, body)) = log.refuse.pop() {
            return told(status, body.to_owned());
        }
        log.tokens += 1;
        let (token, lives) = (format!("token-{}", log.tokens), log.lives);
        return told(200, json!({"access_token": token, "expires_in": lives}).to_string());
    }
    let query = head.uri.query().unwrap_or_default();
    if !who.starts_with("Bearer token-") {
        return told(401, "<Error><Code>NoAuthenticationInformation</Code></Error>".to_owned());
    }
    if query.contains("comp=list") {
        let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or("");
        let prefix = percent_encoding::percent_decode_str(prefix).decode_utf8().unwrap();
        let blob = |name: &str| {
            format!(
                "<Blob><Name>{prefix}{name}</Name><Properties><Content-Length>5</Content-Length>\
                 <Last-Modified>Sat, 28 Nov 2026 10:00:00 GMT</Last-Modified><Etag>x</Etag>\
                 <Content-Type>a/b</Content-Type></Properties></Blob>"
            )
        };
        return told(
            200,
            format!(
                "<?xml version=\"1.0\"?><EnumerationResults><Blobs>{}{}</Blobs><NextMarker/></EnumerationResults>",
                blob("b"),
                blob("a/c")
            ),
        );
    }
    let stored = || {
        Response::builder()
            .header("ETag", "\"x\"")
            .header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
    };
    // There are no objects where folders are.
    if head.method == "HEAD" && head.uri.path().ends_with("/in") {
        return told(404, String::new());
    }
    match head.method.as_str() {
        "PUT" => stored().status(StatusCode::CREATED).body(Body::empty()).unwrap(),
        _ => stored().header("Content-Length", "5").body(Body::from("bytes")).unwrap(),
    }
}

fn principal(authority: &str, pem: &str, thumbprint: &str) -> Credentials {
    Credentials::ServicePrincipal(ServicePrincipal {
        tenant_id: "tenant".to_owned(),
        client_id: "client".to_owned(),
        proof: Proof::Certificate {
            certificate: Secret::new(pem.to_owned()),
            thumbprint: thumbprint.to_owned(),
        },
        authority_url: Some(authority.to_owned()),
        resource_url: None,
    })
}

fn cloud(source: Source, credentials: Credentials) -> Cloud {
    let unlock = Arc::new(move || Ok(credentials.clone()));
    Cloud::new("data".parse().unwrap(), source, unlock).hasty()
}

fn blobs(address: &str) -> Source {
    Source::AzureBlob(AzureStorage {
        account_name: "acc".to_owned(),
        container: "c".to_owned(),
        endpoint: format!("{address}/acc"),
        protocol: "https".to_owned(),
    })
}

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

/// A form's fields.
fn fields(body: &str) -> HashMap<String, String> {
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    let plain =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into();
    pairs.map(|(name, value)| (plain(name), plain(value))).collect()
}

#[tokio::test]
async fn a_certificates_assertion_gets_a_token_that_is_kept_while_it_lives() {
    let (address, log) = start(3600).await;
    let store = cloud(blobs(&address), principal(&address, PEM, THUMBPRINT));
    for _ in 0..2 {
        assert_eq!(store.head(&path("x")).await.unwrap().size, 5);
    }
    let asked = log.lock().unwrap();
    assert_eq!(asked.requests[0], "POST /tenant/oauth2/v2.0/token nobody");
    assert_eq!(asked.requests[1..], ["HEAD /acc/c/x Bearer token-1"; 2]);
    let form = fields(&asked.bodies[0]);
    for (name, value) in [
        ("client_id", "client"),
        ("grant_type", "client_credentials"),
        ("scope", "https://storage.azure.com/.default"),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
    ] {
        assert_eq!(form[name], value);
    }
    // Signed with the certificate's key, and saying whose it is.
    let (signed, signature) = form["client_assertion"].rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let read = |part: &str| -> serde_json::Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!(read(header), json!({"alg": "PS256", "typ": "JWT", "x5t#S256": DIGEST}));
    let claims = read(claims);
    assert_eq!(claims["aud"], format!("{address}/tenant/oauth2/v2.0/token"));
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!("client"), &json!("client")));
    let lasts = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert_eq!(lasts, ASSERTED.as_secs());
    let key = PrivateKeyDer::from_pem_slice(PEM.as_bytes()).unwrap();
    let key = RsaKeyPair::from_pkcs8(key.secret_der()).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.public_key());
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    public.verify(signed.as_bytes(), &signature).unwrap();
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_and_a_refusal_is_told() {
    let (address, log) = start(0).await;
    let store = cloud(blobs(&address), principal(&address, PEM, THUMBPRINT));
    log.lock().unwrap().refuse = vec![(429, ""), (503, "busy")];
    for _ in 0..2 {
        store.head(&path("x")).await.unwrap();
    }
    assert_eq!(log.lock().unwrap().tokens, 2, "one that has no life is used once");
    let jti = |body: &str| fields(body)["client_assertion"].clone();
    let bodies = log.lock().unwrap().bodies.clone();
    assert_ne!(jti(&bodies[0]), jti(&bodies[3]), "no assertion is sent twice");
    log.lock().unwrap().refuse =
        vec![(401, r#"{"error":"invalid_client","error_description":"AADSTS700027: no"}"#)];
    let error = store.head(&path("x")).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
}

#[test]
fn what_is_no_certificate_is_told_without_it() {
    let (certificate, key) = PEM.split_at(PEM.find("-----BEGIN PRIVATE").unwrap());
    for (pem, thumbprint, words) in [
        ("S3CR3T", THUMBPRINT, "no certificate"),
        (certificate, THUMBPRINT, "no private key"),
        (key, THUMBPRINT, "no certificate"),
        (PEM, "00:11", "thumbprint is not that"),
    ] {
        let read = Certificate::read(&Secret::new(pem.to_owned()), thumbprint);
        let said = read.err().unwrap();
        assert!(said.contains(words) && !said.contains("S3CR3T"), "{said}");
        assert!(!said.contains(&key[40..60]));
    }
    let plain = THUMBPRINT.replace(':', "").to_lowercase();
    assert!(Certificate::read(&Secret::new(PEM.to_owned()), &plain).is_ok());
}

#[tokio::test]
async fn a_lakehouse_is_reached_as_blobs_are_below_its_name() {
    let (address, log) = start(3600).await;
    let lake = Source::OneLake(OneLake {
        workspace: "team".to_owned(),
        lakehouse: "sales".to_owned(),
        endpoint: Some(address.clone()),
    });
    let store = cloud(lake, principal(&address, PEM, THUMBPRINT));
    let page = store.list_page(Some(&path("Files/in")), "", 10).await.unwrap();
    let found: Vec<&str> = page.objects.iter().map(|object| object.path.as_str()).collect();
    assert_eq!(found, ["Files/in/a/c", "Files/in/b"]);
    let whole = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"bytes"))]);
    store.put_stream(&path("Files/new"), whole, &(Arc::new(|| Ok(())) as _)).await.unwrap();
    assert_eq!(store.head(&path("Files/new")).await.unwrap().size, 5);
    let asked = log.lock().unwrap().requests.clone();
    let seen = |words: &[&str]| {
        asked.iter().any(|request| words.iter().all(|word| request.contains(word)))
    };
    assert!(
        seen(&["GET /team?", "comp=list", "prefix=sales.Lakehouse%2FFiles%2Fin%2F"]),
        "{asked:?}"
    );
    // What has an object seen is asked for by a client of its own, which has a token of its own.
    for (method, token) in [("PUT", "Bearer token-2"), ("HEAD", "Bearer token-1")] {
        let at = format!("{method} /team/sales.Lakehouse/Files/new");
        assert!(seen(&[&at, token]), "{at}: {asked:?}");
    }
}
