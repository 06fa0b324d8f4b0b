//! Assets of the workspace: names with versions that never change, and labels that point to some of them.
//!
//! The rules of names, versions and labels are the same for every [`Kind`]. What a version is made of is its
//! kind's: [`Version`] for data and models, [`crate::environment::EnvironmentVersion`] for environments,
//! [`crate::component::ComponentVersion`] for components.

mod version;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{AssetName, LabelName, VersionName};
use crate::spec::AssetVersion;
use crate::suggest;

pub use version::{Change, Draft, MadeBy, Unfit, Version};

/// The label that there always is: the newest version made that is not archived.
pub const LATEST: &str = "latest";

/// What kind of asset a name is of. Each kind has names of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What commands run in.
    Environment,
    /// Files and folders, tables included.
    Data,
    /// Trained models.
    Model,
    /// Commands with declared inputs and outputs.
    Component,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Environment, Self::Data, Self::Model, Self::Component];

    /// As stored, and as the command line's noun.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Data => "data",
            Self::Model => "model",
            Self::Component => "component",
        }
    }

    /// Several of them, in a sentence.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Environment => "environments",
            Self::Data => "data assets",
            Self::Model => "models",
            Self::Component => "components",
        }
    }
}

/// One of them, in a sentence.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data asset",
            Self::Environment | Self::Model | Self::Component => self.word(),
        })
    }
}

/// A word that is no kind's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no kind of asset")]
pub struct NoKind(String);

impl FromStr for Kind {
    type Err = NoKind;
    fn from_str(text: &str) -> Result<Self, NoKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.word() == text);
        found.ok_or_else(|| NoKind(text.chars().take(80).collect()))
    }
}

/// An asset as a whole, without what its versions are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asset {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: AssetName,
    /// Hidden from lists with all its versions, those to come included.
    pub archived: bool,
    /// Versions that are not deleted, the newest first: all of them, or as many as what it is asked needs.
    pub versions: Vec<VersionEntry>,
    /// Versions that were deleted, as far as it matters: their names are not given again.
    pub deleted: Vec<VersionName>,
    /// Where people's own labels point.
    pub labels: BTreeMap<LabelName, VersionName>,
}

/// One of an [`Asset`]'s versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VersionEntry {
    /// Its name.
    pub version: VersionName,
    /// Hidden from lists, and no label points to it.
    pub archived: bool,
}

/// What registering a version comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registration {
    /// A version of this name is made.
    New(VersionName),
    /// The version is there and made of the same; what it is for is as asked.
    Known(VersionName),
}

/// Why a version cannot be made, or put away.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A version never changes.
    #[error(
        "cannot make version {version} of {kind} '{name}': it exists and is made of something else, \
         and a version never changes; leave the version out to make the next one, or choose another"
    )]
    Fixed {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// Who named it must not find something else under its name.
    #[error(
        "cannot make version {version} of {kind} '{name}': it was deleted, and its name is not given again; \
         leave the version out to make the next one, or choose another"
    )]
    Deleted {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// The whole asset is put away.
    #[error(
        "cannot make a version of {kind} '{name}': it is archived; restore it first (atelier \
         {} restore {name}), or choose another name", kind.word()
    )]
    Archived {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
    },
    /// There is no number after its highest.
    #[error("{kind} '{name}' has no next number; give the version a name of its own (--version)")]
    NoNumberLeft {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
    },
    /// A version of an asset that is archived as a whole.
    #[error(
        "cannot restore version {version} alone: {kind} '{name}' is archived as a whole; restore that \
         (atelier {} restore {name})", kind.word()
    )]
    WholeArchived {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// The one label that nobody sets.
    #[error(
        "cannot set the label '{LATEST}' of {kind} '{name}': it always points to the newest version; \
         choose another label"
    )]
    FixedLabel {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
    },
    /// The key of a request was used for another one.
    #[error(
        "the idempotency key was used before, for version {version} of {kind} '{name}' as another request described \
         it; use a new key for a new request"
    )]
    KeyReused {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The version.
        version: VersionName,
    },
    /// Jobs that are not over read it.
    #[error(
        "cannot delete version {version} of {kind} '{name}': {} not over and use it; wait for them, or \
         cancel them (atelier job cancel)",
        jobs_are(jobs)
    )]
    InUse {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The version.
        version: VersionName,
        /// Some of the jobs.
        jobs: Vec<String>,
    },
    /// It is not there.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
}

fn jobs_are(jobs: &[String]) -> String {
    let are = if jobs.len() == 1 { "job" } else { "jobs" };
    format!("{are} {} {}", jobs.join(", "), if jobs.len() == 1 { "is" } else { "are" })
}

/// Why a reference points to nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unresolved {
    /// The name is unknown.
    #[error("there is no {kind} '{name}'; {}see 'atelier {} list'", did_you_mean(.near), kind.word())]
    NoSuchName {
        /// What it should be.
        kind: Kind,
        /// As written.
        name: String,
        /// Known names like it.
        near: Vec<String>,
    },
    /// The version is unknown.
    #[error(
        "{kind} '{name}' has no version '{version}'; {}see 'atelier {} list --name {name}'",
        it_has(.newest), kind.word()
    )]
    NoSuchVersion {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// As written.
        version: String,
        /// Its newest versions.
        newest: Vec<String>,
    },
    /// The label is unknown.
    #[error("{} have no label '{label}'; write {name}@{LATEST}, or {name}:VERSION", labelled(*.kind, .name))]
    NoSuchLabel {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// As written.
        label: String,
    },
    /// What the label points to is put away.
    #[error(
        "label '{label}' of {kind} '{name}' points to version {version}, which is archived; name it \
         ({name}:{version}), or restore it (atelier {} restore {name} --version {version})", kind.word()
    )]
    ArchivedLabel {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// The label.
        label: LabelName,
        /// The version.
        version: VersionName,
    },
    /// Nothing that a label could point to.
    #[error(
        "{kind} '{name}' is archived, so '{LATEST}' is none of its versions; name one ({name}:{newest}), or \
         restore it (atelier {} restore {name})", kind.word()
    )]
    Archived {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
        /// Its newest version.
        newest: VersionName,
    },
    /// All its versions were deleted.
    #[error("{kind} '{name}' has no version any more: all were deleted; make one (atelier {} create)", kind.word())]
    Empty {
        /// What it is.
        kind: Kind,
        /// The asset.
        name: AssetName,
    },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) }
}

fn it_has(newest: &[String]) -> String {
    if newest.is_empty() { String::new() } else { format!("it has {}; ", newest.join(", ")) }
}

/// Environments have no labels of people's own.
fn labelled(kind: Kind, name: &AssetName) -> String {
    match kind {
        Kind::Environment => kind.plural().to_owned(),
        Kind::Data | Kind::Model | Kind::Component => format!("the versions of {kind} '{name}'"),
    }
}

impl Unresolved {
    /// A name that is not known, with those that are like it.
    pub fn no_such<'a>(kind: Kind, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        /// More would not help.
        const MOST: usize = 3;
        let near = suggest::nearest(name, known).into_iter().take(MOST).map(str::to_owned);
        Self::NoSuchName { kind, name: name.to_owned(), near: near.collect() }
    }
}

impl Asset {
    /// A name that has no version yet.
    pub fn new(kind: Kind, name: AssetName) -> Self {
        let (versions, deleted, labels) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { kind, name, archived: false, versions, deleted, labels }
    }

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
        let (kind, name) = (self.kind, || self.name.clone());
        match which {
            AssetVersion::Exact(version) => self.entry(version).map(|entry| &entry.version),
            AssetVersion::Label(label) if label != LATEST => {
                let found = self.labels.iter().find(|(known, _)| known.as_str() == label);
                let Some((label, version)) = found else {
                    return Err(Unresolved::NoSuchLabel {
                        kind,
                        name: name(),
                        label: label.clone(),
                    });
                };
                if self.archived || self.entry(version.as_str())?.archived {
                    let (label, version) = (label.clone(), version.clone());
                    return Err(Unresolved::ArchivedLabel { kind, name: name(), label, version });
                }
                Ok(version)
            }
            AssetVersion::Label(_) | AssetVersion::Default => {
                self.latest().ok_or_else(|| match self.versions.first() {
                    Some(newest) => {
                        Unresolved::Archived { kind, name: name(), newest: newest.version.clone() }
                    }
                    None => Unresolved::Empty { kind, name: name() },
                })
            }
        }
    }

    /// The version of this name.
    ///
    /// # Errors
    /// If there is none, with the newest that there are.
    pub fn entry(&self, version: &str) -> Result<&VersionEntry, Unresolved> {
        let entry = self.versions.iter().find(|known| known.version.as_str() == version);
        entry.ok_or_else(|| {
            let newest = self.versions.iter().take(5).map(|known| known.version.to_string());
            Unresolved::NoSuchVersion {
                kind: self.kind,
                name: self.name.clone(),
                version: version.to_owned(),
                newest: newest.collect(),
            }
        })
    }

    /// The number after the highest of its versions that are numbers, deleted ones included, as Azure counts:
    /// `1`, `2`, … `None` if there is no higher one.
    pub fn next_version(&self) -> Option<VersionName> {
        let all = self.versions.iter().map(|known| &known.version).chain(&self.deleted);
        let numbers = all.filter_map(|version| version.as_str().parse().ok());
        let next = numbers.max().map_or(Some(1), |highest: u64| highest.checked_add(1))?;
        VersionName::new(&next.to_string()).ok()
    }

    /// What registering a version comes to. `asked` is its name, if it was given one; `is_same` says of the
    /// version of that name, if there is one, whether it is made of the same.
    ///
    /// # Errors
    /// If the version is made of something else or was deleted, or the asset is archived.
    pub fn register(
        &self,
        asked: Option<&VersionName>,
        is_same: Option<bool>,
    ) -> Result<Registration, Refusal> {
        let (kind, name) = (self.kind, self.name.clone());
        match (asked, is_same) {
            (Some(version), Some(true)) => return Ok(Registration::Known(version.clone())),
            (Some(version), Some(false)) => {
                return Err(Refusal::Fixed { kind, name, version: version.clone() });
            }
            (None, _) | (Some(_), None) => {}
        }
        if self.archived {
            return Err(Refusal::Archived { kind, name });
        }
        match asked {
            Some(version) if self.deleted.contains(version) => {
                Err(Refusal::Deleted { kind, name, version: version.clone() })
            }
            Some(version) => Ok(Registration::New(version.clone())),
            None => self
                .next_version()
                .map(Registration::New)
                .ok_or(Refusal::NoNumberLeft { kind, name }),
        }
    }

    /// Whether a version, or the asset as a whole, may be hidden or shown again.
    ///
    /// # Errors
    /// If there is no such version, or it is to be shown while the asset as a whole is hidden.
    pub fn may_archive(
        &self,
        version: Option<&VersionName>,
        archived: bool,
    ) -> Result<(), Refusal> {
        let Some(version) = version else { return Ok(()) };
        self.entry(version.as_str())?;
        if self.archived && !archived {
            let (kind, name, version) = (self.kind, self.name.clone(), version.clone());
            return Err(Refusal::WholeArchived { kind, name, version });
        }
        Ok(())
    }

    /// Whether a label may be set.
    ///
    /// # Errors
    /// If it is the one that always points to the newest version.
    pub fn may_label(&self, label: &LabelName) -> Result<(), Refusal> {
        match label.as_str() {
            LATEST => Err(Refusal::FixedLabel { kind: self.kind, name: self.name.clone() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
