//! Environments as assets of the workspace.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AssetName, Principal, VersionName};
use crate::spec::{Diagnostics, InlineEnvironment, validate_environment};
use crate::time::Timestamp;

/// An environment on its way to become a version.
#[derive(Clone, PartialEq, Debug)]
pub struct Draft {
    /// Whose version it becomes.
    pub name: AssetName,
    /// Which; `None`: the next number.
    pub version: Option<VersionName>,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs for people.
    pub tags: BTreeMap<String, String>,
    /// What it is made of; its own name is not used.
    pub environment: InlineEnvironment,
}

impl Draft {
    /// Checks it as the daemon does: bounds, and that nothing of it lies on a user's machine.
    ///
    /// # Errors
    /// Every fault, each with its field.
    pub fn check(&self) -> Result<(), Diagnostics> {
        validate_environment(self)
    }

    /// The version that it becomes.
    pub fn made(self, version: VersionName, by: Principal, at: Timestamp) -> EnvironmentVersion {
        let Self { name, version: _, description, tags, environment } = self;
        let environment = InlineEnvironment { name: None, ..environment };
        EnvironmentVersion {
            name,
            version,
            description,
            tags,
            environment,
            created_by: by,
            created_at: at,
        }
    }
}

/// A version of an environment. What it is made of never changes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EnvironmentVersion {
    /// The environment's name.
    pub name: AssetName,
    /// Which of its versions.
    pub version: VersionName,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Key-value pairs for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// What it is made of.
    pub environment: InlineEnvironment,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
}

impl EnvironmentVersion {
    /// Whether it is made of the same, whatever that is called.
    pub fn is_made_of(&self, environment: &InlineEnvironment) -> bool {
        let InlineEnvironment { name: _, image, conda, build } = environment;
        (&self.environment.image, &self.environment.conda, &self.environment.build)
            == (image, conda, build)
    }
}

#[cfg(test)]
mod tests;
