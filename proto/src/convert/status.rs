//! Status words as Azure ML prints them.

use std::str::FromStr;

use crate::job::v1::JobStatus;

/// A word that is no job status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a job status; use one of {all}", all = JobStatus::names().join(", "))]
pub struct UnknownStatus(pub String);

impl JobStatus {
    /// Every status a job can have, in the order a job passes them.
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

    /// Azure's word. `Unknown` for a number left out or not known here.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "Unknown",
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

    /// Whether the job has ended for good.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|status| status.word()).collect()
    }
}

/// Azure's word, in any case; `Cancelled` is taken too.
impl FromStr for JobStatus {
    type Err = UnknownStatus;
    fn from_str(word: &str) -> Result<Self, UnknownStatus> {
        if word.eq_ignore_ascii_case("cancelled") {
            return Ok(Self::Canceled);
        }
        Self::ALL
            .into_iter()
            .find(|status| status.word().eq_ignore_ascii_case(word))
            .ok_or_else(|| UnknownStatus(word.to_owned()))
    }
}
