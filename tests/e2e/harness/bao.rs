//! OpenBao on this machine: transit, that has a key of the vault's.

use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::Process;
use super::stores::{exchange, free_port, program};
use super::wait::until;

/// A server with transit at its usual place and the key `atelier`, in memory. What it has is gone when it is dropped.
pub(crate) struct Bao {
    _folder: TempDir,
    address: String,
    process: Process,
}

impl Bao {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-bao-").tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program("ATELIER_TEST_BAO"));
        command
            .args(["server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root"])
            .arg(format!("-dev-listen-address={address}"))
            .env("HOME", folder.path());
        let process = Process::spawn("OpenBao", command, &folder.path().join("bao.log"));
        let bao = Self { _folder: folder, address, process };
        until("OpenBao listens", || std::net::TcpStream::connect(&bao.address).ok());
        until("OpenBao has transit", || {
            bao.try_ask("POST sys/mounts/transit", &json!({"type": "transit"}))
        });
        bao.ask("POST transit/keys/atelier", &json!({}));
        bao
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A token that may use the key and nothing else.
    pub(crate) fn token(&self) -> String {
        let policy = r#"path "transit/keys/atelier" { capabilities = ["read"] }
            path "transit/encrypt/atelier" { capabilities = ["update"] }
            path "transit/decrypt/atelier" { capabilities = ["update"] }"#;
        self.ask("POST sys/policies/acl/atelier", &json!({ "policy": policy }));
        let asked = json!({"policies": ["atelier"], "period": "1h"});
        let made = self.ask("POST auth/token/create", &asked);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    fn try_ask(&self, what: &str, body: &Value) -> Option<Value> {
        let (method, path) = what.split_once(' ').unwrap();
        let what = format!("{method} /v1/{path}");
        let answer = exchange(&self.address, &what, "X-Vault-Token: root\r\n", &body.to_string());
        let (status, body) = answer;
        let json = body.find('{').zip(body.rfind('}')).map(|(a, b)| &body[a..=b]);
        let json = json.map_or(Value::Null, |json| serde_json::from_str(json).unwrap());
        (200..300).contains(&status).then_some(json)
    }

    /// Asks as an admin: `POST path`.
    #[track_caller]
    pub(crate) fn ask(&self, what: &str, body: &Value) -> Value {
        self.try_ask(what, body).unwrap_or_else(|| panic!("OpenBao refuses {what}"))
    }

    /// It answers, and opens nothing.
    pub(crate) fn seal(&self) {
        self.ask("PUT sys/seal", &json!({}));
    }

    pub(crate) fn unseal(&self) {
        let printed = self.process.printed();
        let key = printed.lines().find_map(|line| line.strip_prefix("Unseal Key: ")).unwrap();
        let state = self.ask("PUT sys/unseal", &json!({ "key": key }));
        assert_eq!(state["sealed"], false);
    }
}
