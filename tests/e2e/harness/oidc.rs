//! An OpenID Connect provider on this machine, and somebody with a browser.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::stores::{free_port, program};
use super::wait::until;

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oidc").join(name)
}

/// The program `oidc-provider`.
pub(crate) struct Provider {
    folder: TempDir,
    port: u16,
    process: Process,
}

impl Provider {
    /// One that knows these people, by their logins, with what it says of them.
    pub(crate) fn start(people: &Value) -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-oidc-").tempdir().unwrap();
        let port = free_port();
        fs::write(folder.path().join("people.json"), people.to_string()).unwrap();
        let process = Self::launch(&folder, port);
        let provider = Self { folder, port, process };
        provider.is_ready();
        provider
    }

    fn launch(folder: &TempDir, port: u16) -> Process {
        let mut command = Command::new("node");
        command.arg(script("provider.mjs")).arg(program("ATELIER_TEST_OIDC"));
        command.arg(port.to_string()).arg(folder.path().join("people.json"));
        Process::spawn("oidc-provider", command, &folder.path().join("provider.log"))
    }

    fn is_ready(&self) {
        until("the provider listens", || self.process.said("listening").then_some(()));
    }

    pub(crate) fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it says this of them.
    pub(crate) fn says(&self, people: &Value) {
        let new = self.folder.path().join("people.new");
        fs::write(&new, people.to_string()).unwrap();
        fs::rename(new, self.folder.path().join("people.json")).unwrap();
    }

    /// It ends.
    pub(crate) fn stop(&mut self) {
        self.process.kill();
    }

    /// It starts anew, with other keys, and has forgotten who signed in.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        fs::remove_file(self.folder.path().join("provider.log")).unwrap();
        self.process = Self::launch(&self.folder, self.port);
        self.is_ready();
    }

    /// Opens a page in a browser, signs in as somebody and agrees to everything.
    #[track_caller]
    pub(crate) fn visit(&self, page: &str, login: &str) {
        let python = std::env::var("ATELIER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let answer =
            Command::new(python).arg(script("browser.py")).args([page, login]).output().unwrap();
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }
}
