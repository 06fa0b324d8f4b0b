//! Where the local workspace lives.

use std::path::{Path, PathBuf};

use atelier_agent::trust::OWN_CA;

/// The folder of this user's local workspace and everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The home at `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The local daemon's data folder.
    pub fn data(&self) -> PathBuf {
        self.0.join("local")
    }

    /// The local agent's data folder.
    pub fn agent(&self) -> PathBuf {
        self.0.join("local-agent")
    }

    /// What the local daemon and agent print.
    pub fn logs(&self) -> PathBuf {
        self.data().join("logs")
    }

    /// Where the local daemon says its address once it is ready.
    pub fn endpoint(&self) -> PathBuf {
        self.data().join("endpoint")
    }

    /// Who vouches for the local daemon, where it speaks TLS.
    pub fn authority(&self) -> PathBuf {
        self.data().join(OWN_CA)
    }

    /// The token of the local workspace's owner.
    pub fn admin_token(&self) -> PathBuf {
        self.data().join("admin.token")
    }

    /// The token of the local node's agent.
    pub fn agent_token(&self) -> PathBuf {
        self.data().join("agent.token")
    }
}
