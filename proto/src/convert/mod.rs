//! Between the wire and core: the only code that knows both.
//!
//! To the wire cannot fail. From the wire checks names, digests, enum numbers and bounds, fills in
//! the defaults that Azure ML documents, and names the field that breaks a rule.

use std::collections::BTreeMap;
use std::fmt::Display;

use atelier_core::content::InvalidDigest;
use atelier_core::id::InvalidName;

mod asset;
mod attempt;
mod audit;
mod command;
mod component;
mod compute;
mod data;
mod data_asset;
mod datastore;
mod environment;
mod job;
mod sign_in;
mod status;
#[cfg(test)]
mod tests;

pub use asset::environment_version;
pub use attempt::{held_inputs, node_change, node_record, sandboxes};
pub use component::component_version;
pub use data_asset::asset_version;
pub use datastore::{shown_source, told_source};
pub use job::{JobDetails, input_holder, job, sandbox};
pub use status::UnknownStatus;

/// A message that cannot become a core value: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Error {
    /// Path of wire field names from the message converted, for example `inputs.train.data.uri`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A field without a default was left out, or a `oneof` has none of the fields known here.
    #[error("is required, or is of a kind that this version does not know")]
    Missing,
    /// A name breaks its rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Not the 32 bytes of a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// An enum number that this version does not know.
    #[error("has the unknown value {0}; the sender may be newer than the receiver")]
    UnknownNumber(i32),
    /// A number beyond what the product counts with.
    #[error("is {value}, and at most {max} is allowed")]
    TooLarge {
        /// The number sent.
        value: u64,
        /// The largest allowed.
        max: u64,
    },
    /// A number below what makes sense.
    #[error("is {value}, and at least {min} is needed")]
    TooSmall {
        /// The number sent.
        value: u64,
        /// The smallest allowed.
        min: u64,
    },
    /// A text longer than allowed.
    #[error("is {bytes} bytes long, and at most {max} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// Not a host's name or address.
    #[error("is '{value}', which is no host name or address")]
    NotAnAddress {
        /// What was sent.
        value: String,
    },
    /// Not JSON where JSON is due.
    #[error("is not valid JSON: {0}")]
    Json(String),
    /// A NUL character, which no program can be given.
    #[error("holds a NUL character; remove it")]
    Nul,
    /// A name that no process environment can hold.
    #[error(
        "is not a valid environment variable name; use letters, digits and '_', not starting \
         with a digit, at most {}",
        atelier_core::spec::limits::MAX_TAG_KEY
    )]
    VariableName,
}

impl Error {
    fn new(field: impl Display, problem: impl Into<Problem>) -> Self {
        Self { field: field.to_string(), problem: problem.into() }
    }

    /// The same error, seen from the message that holds this one in `parent`.
    #[must_use]
    pub fn under(mut self, parent: impl Display) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}

/// Gives a problem its field.
trait OfField<T> {
    fn of(self, field: impl Display) -> Result<T, Error>;
}

impl<T, E: Into<Problem>> OfField<T> for Result<T, E> {
    fn of(self, field: impl Display) -> Result<T, Error> {
        self.map_err(|problem| Error::new(field, problem))
    }
}

impl<T> OfField<T> for Option<T> {
    fn of(self, field: impl Display) -> Result<T, Error> {
        self.ok_or_else(|| Error::new(field, Problem::Missing))
    }
}

/// Gives an error of a part its place in the whole.
trait UnderField<T> {
    fn under(self, parent: impl Display) -> Result<T, Error>;
}

impl<T> UnderField<T> for Result<T, Error> {
    fn under(self, parent: impl Display) -> Result<T, Error> {
        self.map_err(|error| error.under(parent))
    }
}

fn within(value: u64, min: u64, max: u64) -> Result<u64, Problem> {
    if value < min {
        Err(Problem::TooSmall { value, min })
    } else if value > max {
        Err(Problem::TooLarge { value, max })
    } else {
        Ok(value)
    }
}

fn within_u32(value: u32, min: u32, max: u32) -> Result<u32, Problem> {
    within(value.into(), min.into(), max.into()).map(|_| value)
}

fn text(value: String, max: usize) -> Result<String, Problem> {
    if value.len() > max {
        Err(Problem::TooLong { bytes: value.len(), max })
    } else if value.contains('\0') {
        Err(Problem::Nul)
    } else {
        Ok(value)
    }
}

fn json_map(
    values: BTreeMap<String, String>,
    field: &str,
) -> Result<BTreeMap<String, serde_json::Value>, Error> {
    values
        .into_iter()
        .map(|(key, value)| match serde_json::from_str(&value) {
            Ok(value) => Ok((key, value)),
            Err(error) => {
                Err(Error::new(format_args!("{field}.{key}"), Problem::Json(error.to_string())))
            }
        })
        .collect()
}

fn to_json_map(values: &BTreeMap<String, serde_json::Value>) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| (key.clone(), value.to_string())).collect()
}
