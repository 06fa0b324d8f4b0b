//! Azure ML's status words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job stands, in Azure ML's words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum JobStatus {
    /// Accepted.
    NotStarted,
    /// Waits for resources.
    Queued,
    /// Given to a node.
    Starting,
    /// Environment, code and inputs are being made ready.
    Preparing,
    /// The command runs.
    Running,
    /// Outputs are being collected.
    Finalizing,
    /// Asked to stop.
    CancelRequested,
    /// Its node is silent; it may come back.
    NotResponding,
    /// Over, as asked.
    Completed,
    /// Over, not as asked.
    Failed,
    /// Over, on somebody's word or because a limit was reached.
    Canceled,
}

impl JobStatus {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 11] = [
        Self::NotStarted,
        Self::Queued,
        Self::Starting,
        Self::Preparing,
        Self::Running,
        Self::Finalizing,
        Self::CancelRequested,
        Self::NotResponding,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "NotStarted",
            Self::Queued => "Queued",
            Self::Starting => "Starting",
            Self::Preparing => "Preparing",
            Self::Running => "Running",
            Self::Finalizing => "Finalizing",
            Self::CancelRequested => "CancelRequested",
            Self::NotResponding => "NotResponding",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }

    /// Whether the job is over.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no job status")]
pub struct UnknownStatus(String);

impl FromStr for JobStatus {
    type Err = UnknownStatus;
    fn from_str(word: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(word))
            .ok_or_else(|| UnknownStatus(word.chars().take(40).collect()))
    }
}
