//! How long the workspace keeps what finished jobs left, their logs and their outputs, and runs that were deleted.
//!
//! The rules are an admin's. What goes is decided here, from what is known of a job and of who refers to what it
//! left; a job's record, its metrics and its manifests stay until the job itself is deleted.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::asset::Kind;
use crate::id::{AssetName, JobName, VersionName};
use crate::job::Job;
use crate::layout;
use crate::time::Timestamp;

#[cfg(test)]
mod tests;

/// The shortest that anything is kept, in seconds.
pub const SHORTEST_S: u64 = 1;
/// The longest, in seconds: a hundred years.
pub const LONGEST_S: u64 = 100 * 366 * 86_400;
/// How long a deleted run can be restored, in seconds, where no rule says so.
pub const RECOVERY_S: u64 = 30 * 86_400;
/// Tags in the rules at most.
pub const MOST_TAGS: usize = 64;

/// Something that a finished job left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Standard output and error, and `./logs`.
    Logs,
    /// Its named outputs where they lie by default, `./outputs`, and what it logged as artifacts.
    Outputs,
}

impl What {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Logs, Self::Outputs];

    /// As the store has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Outputs => "outputs",
        }
    }

    /// Where it lies.
    pub fn places(self, job: &Job) -> Vec<Place> {
        let root = layout::artifact_root(job.name.as_str());
        let artifacts = |path: String, except: Vec<String>| Place {
            datastore: layout::ARTIFACT_STORE,
            path,
            except,
        };
        let first = ["user_logs", "logs"].map(|folder| format!("{root}/{folder}"));
        let others = (1..job.spec.resources.instance_count)
            .map(|rank| format!("{root}/{}", layout::member_path(rank, "logs")));
        let logs = first.into_iter().chain(others);
        match self {
            Self::Logs => logs.map(|path| artifacts(path, Vec::new())).collect(),
            Self::Outputs => {
                let kept = ["system_logs", "metrics"].map(|folder| format!("{root}/{folder}"));
                let except = logs.chain(kept).collect();
                let outputs = layout::outputs_root(&job.name);
                let named =
                    Place { datastore: layout::BLOB_STORE, path: outputs, except: Vec::new() };
                vec![named, artifacts(root, except)]
            }
        }
    }

    /// Whether an object of a job is of it.
    pub fn holds(self, job: &Job, datastore: &str, key: &str) -> bool {
        let below = |folder: &String| {
            key.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.places(job).iter().any(|place| {
            place.datastore == datastore && below(&place.path) && !place.except.iter().any(below)
        })
    }

    /// How much of it a job committed, in bytes. What was logged as artifacts while it ran is not counted.
    pub fn bytes(self, job: &Job) -> u64 {
        let Some(ended) = job.ended() else { return 0 };
        match self {
            Self::Logs => ended.left.log_bytes,
            Self::Outputs => ended.left.outputs.iter().map(|output| output.bytes).sum(),
        }
    }
}

/// A folder of one of the workspace's own datastores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The datastore.
    pub datastore: &'static str,
    /// The object, or the folder of all that goes.
    pub path: String,
    /// Folders in it that stay.
    pub except: Vec<String>,
}

/// A tag that keeps what a job left.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Tag {
    /// `KEY` or `KEY=VALUE`.
    pub fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self { key: key.to_owned(), value: Some(value.to_owned()) },
            None => Self { key: text.to_owned(), value: None },
        }
    }

    fn is_on(&self, tags: &BTreeMap<String, String>) -> bool {
        tags.get(&self.key).is_some_and(|on| self.value.as_ref().is_none_or(|value| value == on))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// The rules of the workspace.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Seconds that logs are kept after their job has ended; `None`: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs_s: Option<u64>,
    /// The same of outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs_s: Option<u64>,
    /// Seconds that a deleted run can be restored; `None`: [`RECOVERY_S`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_runs_s: Option<u64>,
    /// Of jobs with one of these tags nothing goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep_tagged: Vec<Tag>,
}

/// Why rules are refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Too short or too long.
    #[error(
        "cannot keep {what} for {seconds} s: at least {SHORTEST_S} s and at most 100 years are allowed"
    )]
    Length {
        /// Of what.
        what: &'static str,
        /// So long.
        seconds: u64,
    },
    /// There are too many tags, or one has no key.
    #[error("tags to keep jobs by: at most {MOST_TAGS} are allowed, each a KEY or KEY=VALUE")]
    Tags,
}

impl Rules {
    /// Seconds that something is kept; `None`: for ever.
    pub fn kept_s(&self, what: What) -> Option<u64> {
        match what {
            What::Logs => self.logs_s,
            What::Outputs => self.outputs_s,
        }
    }

    /// Checks what an admin says.
    ///
    /// # Errors
    /// It breaks a rule.
    pub fn check(&self) -> Result<(), Refusal> {
        let parts = What::ALL.map(|what| (what.word(), self.kept_s(what)));
        for (what, kept) in parts.into_iter().chain([("deleted runs", self.deleted_runs_s)]) {
            if let Some(seconds) = kept
                && !(SHORTEST_S..=LONGEST_S).contains(&seconds)
            {
                return Err(Refusal::Length { what, seconds });
            }
        }
        let all_have_keys = self.keep_tagged.iter().all(|tag| !tag.key.is_empty());
        let few = self.keep_tagged.len() <= MOST_TAGS;
        if few && all_have_keys { Ok(()) } else { Err(Refusal::Tags) }
    }

    /// The latest end of a job of which something may go now; `None`: nothing ever goes.
    pub fn ended_before(&self, now: Timestamp) -> Option<Timestamp> {
        let shortest = What::ALL.into_iter().filter_map(|what| self.kept_s(what)).min()?;
        Some(now.plus_millis(-millis(shortest)))
    }

    /// The latest time at which a run or a logged model was deleted that cannot be restored any more.
    pub fn deleted_before(&self, now: Timestamp) -> Timestamp {
        now.plus_millis(-millis(self.deleted_runs_s.unwrap_or(RECOVERY_S)))
    }

    /// What becomes of a run or a logged model that was deleted then. `refers`: who refers to its files, if anybody does.
    pub fn fate_of_deleted(
        &self,
        deleted: Timestamp,
        refers: Option<Referrer>,
        now: Timestamp,
    ) -> Fate {
        let until = deleted.plus_millis(millis(self.deleted_runs_s.unwrap_or(RECOVERY_S)));
        if until > now {
            return Fate::Stays(Stay::Until(until));
        }
        refers.map_or(Fate::Goes, |referrer| Fate::Stays(Stay::Used(referrer)))
    }

    /// What becomes of something that a job left. `gone`: it was removed before. `refers`: who refers to it, if
    /// anybody does.
    pub fn fate(
        &self,
        what: What,
        job: &Job,
        gone: bool,
        refers: Option<Referrer>,
        now: Timestamp,
    ) -> Fate {
        let Some(ended) = job.ended() else { return Fate::Stays(Stay::NotOver) };
        if gone {
            return Fate::Gone;
        }
        let Some(seconds) = self.kept_s(what) else { return Fate::Stays(Stay::NoRule) };
        if let Some(tag) = self.keep_tagged.iter().find(|tag| tag.is_on(&job.spec.tags)) {
            return Fate::Stays(Stay::Tagged(tag.clone()));
        }
        let until = ended.at.plus_millis(millis(seconds));
        if until > now {
            return Fate::Stays(Stay::Until(until));
        }
        refers.map_or(Fate::Goes, |referrer| Fate::Stays(Stay::Used(referrer)))
    }
}

fn millis(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// Who refers to what lies at a place, so that it stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Referrer {
    /// A version of data or a model lies there.
    Asset {
        /// Which of both.
        kind: Kind,
        /// Its name.
        name: AssetName,
        /// Its version.
        version: VersionName,
    },
    /// A job that is not over reads or writes there.
    LiveJob(JobName),
    /// Another job wrote there.
    OutputOf(JobName),
}

impl fmt::Display for Referrer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asset { kind, name, version } => {
                write!(f, "{kind} '{name}:{version}' lies there")
            }
            Self::LiveJob(job) => write!(f, "job '{job}' is not over and uses it"),
            Self::OutputOf(job) => write!(f, "job '{job}' wrote there too"),
        }
    }
}

/// What becomes of something that a job left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It goes now.
    Goes,
    /// It went before.
    Gone,
    /// It stays.
    Stays(Stay),
}

/// Why something stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stay {
    /// Its job is not over.
    NotOver,
    /// No rule says when it goes.
    NoRule,
    /// It is kept until then.
    Until(Timestamp),
    /// Its job has this tag.
    Tagged(Tag),
    /// Somebody refers to it.
    Used(Referrer),
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOver => f.write_str("the job is not over"),
            Self::NoRule => f.write_str("no rule says when it goes"),
            Self::Until(until) => write!(f, "kept until {until}"),
            Self::Tagged(tag) => write!(f, "the job is tagged {tag}"),
            Self::Used(referrer) => referrer.fmt(f),
        }
    }
}

/// Whether one of two paths of a datastore is the other, or lies below it: what is removed at one takes from the
/// other.
pub fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (one.trim_end_matches('/'), other.trim_end_matches('/'));
    let is_below = |path: &str, folder: &str| {
        folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    one == other || is_below(one, other) || is_below(other, one)
}
