//! Environments as assets of the workspace: a name with versions that never change, and a label that
//! points to one of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AssetName, Principal, VersionName};
use crate::spec::{AssetVersion, Diagnostics, InlineEnvironment, validate_environment};
use crate::suggest;
use crate::time::Timestamp;

/// The one label there is: the newest version made that is not archived.
pub const LATEST: &str = "latest";

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

/// An environment as a whole, without what its versions are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asset {
    /// Its name.
    pub name: AssetName,
    /// Hidden from lists with all its versions, those to come included.
    pub archived: bool,
    /// Every version, the newest first.
    pub versions: Vec<VersionEntry>,
}

/// One of an [`Asset`]'s versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VersionEntry {
    /// Its name.
    pub version: VersionName,
    /// Hidden from lists, and no label points to it.
    pub archived: bool,
}

/// What registering a [`Draft`] comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registration {
    /// A version of this name is made.
    New(VersionName),
    /// The version is there and made of the same; what it is for is as the draft says.
    Known(VersionName),
}

/// Why an environment cannot be registered, or put away.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A version never changes.
    #[error(
        "cannot make version {version} of environment '{name}': it exists and is made of something else, \
         and a version never changes; leave the version out to make the next one, or choose another"
    )]
    Fixed {
        /// The environment.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// The whole environment is put away.
    #[error(
        "cannot make a version of environment '{0}': it is archived; restore it first (atelier \
         environment restore {0}), or choose another name"
    )]
    Archived(AssetName),
    /// There is no number after its highest.
    #[error("environment '{0}' has no next number; give the version a name of its own (--version)")]
    NoNumberLeft(AssetName),
    /// A version of an environment that is archived as a whole.
    #[error(
        "cannot restore version {version} alone: environment '{name}' is archived as a whole; restore that \
         (atelier environment restore {name})"
    )]
    WholeArchived {
        /// The environment.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// It is not there.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
}

/// Why a reference points to nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unresolved {
    /// The name is unknown.
    #[error("there is no environment '{name}'; {}see 'atelier environment list'", did_you_mean(.near))]
    NoSuchEnvironment {
        /// As written.
        name: String,
        /// Known names like it.
        near: Vec<String>,
    },
    /// The version is unknown.
    #[error(
        "environment '{name}' has no version '{version}'; {}see 'atelier environment list --name {name}'",
        it_has(.newest)
    )]
    NoSuchVersion {
        /// The environment.
        name: AssetName,
        /// As written.
        version: String,
        /// Its newest versions.
        newest: Vec<String>,
    },
    /// The label is unknown.
    #[error("environments have no label '{label}'; write {name}@{LATEST}, or {name}:VERSION")]
    NoSuchLabel {
        /// The environment.
        name: AssetName,
        /// As written.
        label: String,
    },
    /// Nothing that a label could point to.
    #[error(
        "environment '{name}' is archived, so '{LATEST}' is none of its versions; name one ({name}:{newest}), or \
         restore it (atelier environment restore {name})"
    )]
    Archived {
        /// The environment.
        name: AssetName,
        /// Its newest version.
        newest: VersionName,
    },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) }
}

fn it_has(newest: &[String]) -> String {
    if newest.is_empty() { String::new() } else { format!("it has {}; ", newest.join(", ")) }
}

impl Unresolved {
    /// A name that is not known, with those that are like it.
    pub fn no_such<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        /// More would not help.
        const MOST: usize = 3;
        let near = suggest::nearest(name, known).into_iter().take(MOST).map(str::to_owned);
        Self::NoSuchEnvironment { name: name.to_owned(), near: near.collect() }
    }
}

impl Asset {
    /// The newest version that is not archived.
    pub fn latest(&self) -> Option<&VersionName> {
        let shown = self.versions.iter().filter(|_| !self.archived);
        shown.filter(|entry| !entry.archived).map(|entry| &entry.version).next()
    }

    /// The version that a reference means. Without a version or label that is the latest; an archived
    /// one is found by its name alone, so that jobs which name it go on.
    ///
    /// # Errors
    /// If it points to nothing, with what would do.
    pub fn resolve(&self, which: &AssetVersion) -> Result<&VersionName, Unresolved> {
        let name = || self.name.clone();
        match which {
            AssetVersion::Exact(version) => {
                let entry = self.versions.iter().find(|known| known.version.as_str() == version);
                entry.map(|entry| &entry.version).ok_or_else(|| {
                    let newest =
                        self.versions.iter().take(5).map(|known| known.version.to_string());
                    Unresolved::NoSuchVersion {
                        name: name(),
                        version: version.clone(),
                        newest: newest.collect(),
                    }
                })
            }
            AssetVersion::Label(label) if label != LATEST => {
                Err(Unresolved::NoSuchLabel { name: name(), label: label.clone() })
            }
            AssetVersion::Label(_) | AssetVersion::Default => {
                self.latest().ok_or_else(|| match self.versions.first() {
                    Some(newest) => {
                        Unresolved::Archived { name: name(), newest: newest.version.clone() }
                    }
                    None => Unresolved::no_such(self.name.as_str(), []),
                })
            }
        }
    }

    /// The number after the highest of its versions that are numbers, as Azure counts: `1`, `2`, …
    /// `None` if there is no higher one.
    pub fn next_version(&self) -> Option<VersionName> {
        let numbers = self.versions.iter().filter_map(|known| known.version.as_str().parse().ok());
        let next = numbers.max().map_or(Some(1), |highest: u64| highest.checked_add(1))?;
        VersionName::new(&next.to_string()).ok()
    }
}

impl Draft {
    /// What registering it comes to, given the environment of its name as it is, and the version that
    /// it names if that is there.
    ///
    /// # Errors
    /// If the version is made of something else, or the environment is archived.
    pub fn register(
        &self,
        asset: Option<&Asset>,
        same: Option<&EnvironmentVersion>,
    ) -> Result<Registration, Refusal> {
        let name = || self.name.clone();
        if let Some(same) = same {
            let version = same.version.clone();
            return if same.is_made_of(&self.environment) {
                Ok(Registration::Known(version))
            } else {
                Err(Refusal::Fixed { name: name(), version })
            };
        }
        if asset.is_some_and(|asset| asset.archived) {
            return Err(Refusal::Archived(name()));
        }
        let version = match (&self.version, asset) {
            (Some(version), _) => Some(version.clone()),
            (None, Some(asset)) => asset.next_version(),
            (None, None) => VersionName::new("1").ok(),
        };
        version.map(Registration::New).ok_or_else(|| Refusal::NoNumberLeft(name()))
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
