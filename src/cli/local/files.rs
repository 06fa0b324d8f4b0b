//! Where the local workspace keeps its own files.

use std::path::{Path, PathBuf};

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(in crate::cli) enum Part {
    /// The daemon
    Serve,
    /// The node's agent
    Agent,
}

impl Part {
    /// As its files are called.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Agent => "agent",
        }
    }
}

/// Where the local workspace's own files lie.
pub(super) struct Files {
    folder: PathBuf,
    logs: PathBuf,
}

impl Files {
    pub(super) fn new(home: &crate::client::Home) -> Self {
        Self { folder: home.path().join("run"), logs: home.logs() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The record of one of the processes.
    pub(super) fn record(&self, part: Part) -> PathBuf {
        self.folder.join(part.word()).with_extension("json")
    }

    /// What it printed.
    pub(super) fn log(&self, part: Part) -> PathBuf {
        self.logs.join(part.word()).with_extension("log")
    }

    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Held by whoever starts or stops the processes.
    pub(super) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }
}
