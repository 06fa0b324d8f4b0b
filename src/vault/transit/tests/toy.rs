//! A server that answers as transit does, with one key that hides nothing, and hangs, dawdles or forgets when told.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

/// A server. It is gone with the test's runtime.
pub(in crate::vault) struct Toy {
    address: String,
    state: Arc<Mutex<Behaviour>>,
    folder: tempfile::TempDir,
}

#[derive(Default)]
struct Behaviour {
    /// What is in the path, or in what a data key is bound to, of requests that are never answered.
    hangs: HashSet<String>,
    /// What ends the paths of requests for keys that are not there.
    forgotten: HashSet<String>,
    /// What is in the paths of requests that nobody may make.
    denied: HashSet<String>,
    /// How long each answer takes.
    takes: Duration,
    /// How many seconds a token lives; 0: it does not end.
    ttl: u64,
    /// What was asked: path, and what the data key is bound to.
    asked: Vec<(String, String)>,
    /// Requests that are being answered, and the most that were at the same time.
    open: usize,
    most: usize,
}

impl Toy {
    pub(in crate::vault) async fn start() -> Self {
        let state = Arc::new(Mutex::new(Behaviour::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, folder: tempfile::tempdir().unwrap() }
    }

    pub(in crate::vault) fn address(&self) -> &str {
        &self.address
    }

    pub(in crate::vault) fn settings(&self) -> Settings {
        Settings {
            address: self.address.clone(),
            namespace: None,
            ca: None,
            login: Login::Token(file_in(self.folder.path(), "token", "s.toy")),
        }
    }

    /// The same for who logs in as a role.
    pub(super) fn settings_of_role(&self) -> Settings {
        let login = Login::AppRole {
            mount: "approle".to_owned(),
            role_id: "role".to_owned(),
            secret_id: file_in(self.folder.path(), "secret-id", "secret"),
        };
        Settings { login, ..self.settings() }
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.state.lock().unwrap()
    }

    /// Requests with this in their path or their place are not answered.
    pub(in crate::vault) fn hang(&self, what: &str) {
        self.behaviour().hangs.insert(what.to_owned());
    }

    /// Keys whose path ends so are not there any more.
    pub(in crate::vault) fn forget(&self, what: &str) {
        self.behaviour().forgotten.insert(what.to_owned());
    }

    /// Requests with this in their path are refused, whoever asks.
    pub(super) fn deny(&self, what: &str) {
        self.behaviour().denied.insert(what.to_owned());
    }

    /// New requests are answered again.
    pub(in crate::vault) fn recover(&self) {
        self.behaviour().hangs.clear();
    }

    pub(in crate::vault) fn take(&self, time: Duration) {
        self.behaviour().takes = time;
    }

    pub(super) fn let_tokens_live(&self, seconds: u64) {
        self.behaviour().ttl = seconds;
    }

    /// How many requests have had this in their path or their place.
    pub(in crate::vault) fn asked(&self, what: &str) -> usize {
        let behaviour = self.behaviour();
        behaviour
            .asked
            .iter()
            .filter(|(path, place)| path.contains(what) || place.contains(what))
            .count()
    }

    /// The most requests that it had at the same time since this was asked last.
    pub(in crate::vault) fn most_at_once(&self) -> usize {
        std::mem::take(&mut self.behaviour().most)
    }
}

/// Counts a request as long as it is being answered.
struct Open(Arc<Mutex<Behaviour>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

async fn answer(State(state): State<Arc<Mutex<Behaviour>>>, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let bound = STANDARD.decode(text("associated_data")).unwrap();
    let bound = String::from_utf8_lossy(&bound).into_owned();
    let (hangs, is_gone, is_denied, takes, ttl, nth) = {
        let mut behaviour = state.lock().unwrap();
        behaviour.asked.push((path.clone(), bound.clone()));
        behaviour.open += 1;
        behaviour.most = behaviour.most.max(behaviour.open);
        let hangs = behaviour.hangs.iter().any(|what| path.contains(what) || bound.contains(what));
        let is_gone = behaviour.forgotten.iter().any(|what| path.ends_with(what));
        let is_denied = behaviour.denied.iter().any(|what| path.contains(what));
        (hangs, is_gone, is_denied, behaviour.takes, behaviour.ttl, behaviour.asked.len())
    };
    let _open = Open(state);
    if hangs {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(takes).await;
    if is_gone {
        return StatusCode::NOT_FOUND.into_response();
    }
    if is_denied {
        let words = json!({ "errors": ["permission denied"] });
        return (StatusCode::FORBIDDEN, Json(words)).into_response();
    }
    let data = |data: Value| Json(json!({ "data": data })).into_response();
    let refused =
        |words: &str| (StatusCode::BAD_REQUEST, Json(json!({ "errors": [words] }))).into_response();
    match path.rsplit('/').nth(1) {
        Some("token") if path.ends_with("renew-self") => {
            let auth = json!({"client_token": "s.toy", "lease_duration": ttl, "renewable": true});
            Json(json!({ "auth": auth })).into_response()
        }
        Some("approle") => {
            let token = format!("s.toy-{nth}");
            let auth = json!({"client_token": token, "lease_duration": ttl, "renewable": true});
            Json(json!({ "auth": auth })).into_response()
        }
        Some("token") => data(json!({"ttl": ttl, "renewable": true})),
        Some("keys") => {
            data(json!({"type": "aes256-gcm96", "derived": false, "latest_version": 1}))
        }
        Some("encrypt") => {
            let sealed = STANDARD.encode(json!([text("plaintext"), bound]).to_string());
            data(json!({ "ciphertext": format!("vault:v1:{sealed}") }))
        }
        Some("decrypt") => {
            let sealed =
                text("ciphertext").strip_prefix("vault:v1:").map(|text| STANDARD.decode(text));
            let Some(Ok(sealed)) = sealed else { return refused("invalid ciphertext: no prefix") };
            let sealed: Value = serde_json::from_slice(&sealed).unwrap_or_default();
            match sealed[1] == bound.as_str() {
                true => data(json!({ "plaintext": sealed[0] })),
                false => refused("cipher: message authentication failed"),
            }
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
