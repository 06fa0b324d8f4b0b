//! Typed identifiers. A name of one kind cannot be passed where another is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

mod words;

/// A name that breaks its kind's rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{value}' is not valid: {rule}")]
pub struct InvalidName {
    /// What the name was for, for example `job name`.
    pub kind: &'static str,
    /// The offending value, cut to 80 characters.
    pub value: String,
    /// The rule in words.
    pub rule: &'static str,
}

fn check(
    kind: &'static str,
    rule: &'static str,
    max: usize,
    value: &str,
    first: impl Fn(char) -> bool,
    rest: impl Fn(char) -> bool,
) -> Result<(), InvalidName> {
    let mut chars = value.chars();
    let starts_well = chars.next().is_some_and(first);
    if starts_well && chars.all(rest) && value.len() <= max {
        Ok(())
    } else {
        Err(InvalidName { kind, value: value.chars().take(80).collect(), rule })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident, $kind:literal, max $max:literal, $rule:literal, first $first:expr, rest $rest:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Checks the rule and makes the name.
            pub fn new(value: &str) -> Result<Self, InvalidName> {
                check($kind, $rule, $max, value, $first, $rest)?;
                Ok(Self(value.into()))
            }
        }

        impl FromStr for $Name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $Name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(&value)
            }
        }

        impl From<$Name> for String {
            fn from(name: $Name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $Name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

fn alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn dotted(c: char) -> bool {
    word(c) || c == '.'
}

name!(
    /// A job's name, unique in its workspace; also the name of its run.
    JobName, "job name", max 255,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    first alphanumeric, rest dotted
);
name!(
    /// A compute's name: a cluster of nodes, an instance or an attached compute.
    ComputeName, "compute name", max 64,
    "use letters, digits, '-' and '_', start with a letter, at most 64 characters",
    first |c| c.is_ascii_alphabetic(), rest word
);
name!(
    /// A node's name, unique in its workspace.
    NodeName, "node name", max 128,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 128 characters",
    first alphanumeric, rest dotted
);
name!(
    /// A datastore's name: a reference to storage.
    DatastoreName, "datastore name", max 255,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    first alphanumeric, rest dotted
);
name!(
    /// The name of an asset: what a workspace keeps under a name, in versions.
    AssetName, "asset name", max 255,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    first alphanumeric, rest dotted
);
name!(
    /// The version of an asset, unique among those of its name: `3`, `2024-05-01`.
    VersionName, "version", max 255,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    first alphanumeric, rest dotted
);
name!(
    /// A label that points to one version of an asset: `champion`, `latest`.
    LabelName, "label", max 255,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 255 characters",
    first alphanumeric, rest dotted
);
name!(
    /// The name of a secret, as Azure Key Vault has them. Two that differ in case only are one.
    SecretName, "secret name", max 127,
    "use letters, digits and '-', at most 127 characters",
    first |c| c.is_ascii_alphanumeric() || c == '-', rest |c| c.is_ascii_alphanumeric() || c == '-'
);
name!(
    /// The workspace's name. A daemon serves one workspace.
    WorkspaceName, "workspace name", max 64,
    "use letters, digits, '-' and '_', start with a letter or digit, at most 64 characters",
    first alphanumeric, rest word
);
name!(
    /// Who did something: a user's name, `node:NAME` or `attempt:JOB/N`.
    Principal, "principal", max 400,
    "use letters, digits and '-_.@:/+', start with a letter or digit, at most 400 characters",
    first alphanumeric, rest |c| dotted(c) || matches!(c, '@' | ':' | '/' | '+')
);
name!(
    /// The name of a custom role.
    RoleName, "role name", max 64,
    "use letters, digits, '-', '_' and '.', start with a letter or digit, at most 64 characters",
    first alphanumeric, rest dotted
);
name!(
    /// The name of a group that users are in, as an admin or an identity provider says it: `vision`,
    /// `/research/vision`, `cn=Vision Lab,ou=groups`.
    GroupName, "group name", max 255,
    "use anything but control characters, start with something else than a blank, at most 255 bytes",
    first |c| !c.is_whitespace() && !c.is_control(), rest |c| !c.is_control()
);
name!(
    /// The name of a job's input or output.
    PortName, "input or output name", max 255,
    "use letters, digits and '_', start with a letter or '_', at most 255 characters",
    first |c| c.is_ascii_alphabetic() || c == '_', rest |c| c.is_ascii_alphanumeric() || c == '_'
);

/// An experiment's name groups runs. Free text as in MLflow, except control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExperimentName(Arc<str>);

impl ExperimentName {
    /// Checks the rule and makes the name.
    pub fn new(value: &str) -> Result<Self, InvalidName> {
        let good = !value.trim().is_empty()
            && value.chars().count() <= 500
            && !value.chars().any(|c| c.is_control());
        if good {
            Ok(Self(value.into()))
        } else {
            Err(InvalidName {
                kind: "experiment name",
                value: value.chars().take(80).collect(),
                rule: "use 1 to 500 characters without control characters",
            })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ExperimentName {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        Self::new(&value)
    }
}

impl From<ExperimentName> for String {
    fn from(name: ExperimentName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for ExperimentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl NodeName {
    /// Sorts before every valid name; for range queries only.
    pub(crate) fn lowest() -> Self {
        Self("".into())
    }
}

impl NodeName {
    /// Stands for a node that is not there yet. Sorts after every valid name, and by its number.
    pub(crate) fn to_come(number: u32) -> Self {
        Self(format!("\u{10ffff}{number:010}").into())
    }

    /// The name of a cluster's node.
    pub(crate) fn numbered(compute: &ComputeName, number: u64) -> Self {
        Self(format!("{compute}-{number}").into())
    }
}

impl JobName {
    /// A name as Azure makes them: `adjective_noun_suffix`, from 64 random bits.
    ///
    /// The ten-character suffix carries 50 of the bits, so that names do not collide in practice;
    /// the daemon still refuses a duplicate.
    pub fn generate(random: u64) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789bcdfghjklmnpqrstvwxyz7";
        let adjective = words::ADJECTIVES[(random >> 50) as usize % words::ADJECTIVES.len()];
        let noun = words::NOUNS[(random >> 57) as usize % words::NOUNS.len()];
        let suffix: String =
            (0..10).map(|i| char::from(ALPHABET[(random >> (5 * i)) as usize & 31])).collect();
        Self(format!("{adjective}_{noun}_{suffix}").into())
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $Name:ident($Int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $Name(pub $Int);

        impl $Name {
            /// The next one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Which try of a job this is, from 1.
    AttemptNumber(u32)
);
counter!(
    /// A fencing number: every write of an attempt carries the epoch it was given, and a write
    /// with an older one is refused. Grows with every assignment in the workspace.
    Epoch(u64)
);
counter!(
    /// The version of a secret, from 1. Never given twice to secrets of one name, also after one was deleted.
    SecretVersion(u32)
);
counter!(
    /// The place of an event in the workspace's log, from 1, without gaps.
    EventSeq(u64)
);
counter!(
    /// The order of submission in the workspace, from 1.
    SubmitSeq(u64)
);
