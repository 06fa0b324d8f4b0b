//! Why a read of a mounted input fails.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::record;

/// In the attempt's folder: the first failure.
const RECORD: &str = "mounts_failed.json";

/// Why bytes of an object cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// Somebody has replaced or removed the object since the job was given it.
    #[error(
        "'{path}' was changed or removed while the job read it: keep data under a path of its own for each version"
    )]
    Changed {
        /// `datastore/path`
        path: String,
    },
    /// It was asked for again and again.
    #[error("'{path}' could not be read for {seconds} s: {problem}")]
    Away {
        /// `datastore/path`
        path: String,
        seconds: u64,
        problem: String,
    },
    /// The gateway will not have it.
    #[error("'{path}' is refused: {problem}")]
    Refused {
        /// `datastore/path`
        path: String,
        problem: String,
    },
    /// The server is ending.
    #[error("reading was stopped")]
    Stopped,
}

/// Notes of the failures of one server.
#[derive(Debug)]
pub(super) struct Failures {
    folder: PathBuf,
    first: Mutex<Option<Failure>>,
}

impl Failures {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, first: Mutex::default() }
    }

    /// Logs a failure; the first one is kept for the report of the attempt's end.
    pub(super) fn note(&self, failure: &Failure) {
        tracing::error!(%failure, "a job's read fails");
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() && *failure != Failure::Stopped {
            // At once: this process may be killed.
            let _ = record::write(&self.folder, RECORD, failure);
            *first = Some(failure.clone());
        }
    }
}

/// The first failure that the server of an attempt has noted.
pub(super) fn first(folder: &Path) -> Option<Failure> {
    record::read(folder, RECORD).ok().flatten()
}
