//! What a datastore is: a name for a place where data lies, and which of these the daemon serves.

mod address;
mod credentials;
mod source;
mod storage;
mod unnamed;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{DatastoreName, JobName, Principal};
use crate::spec::{Diagnostics, validate_datastore};
use crate::suggest;
use crate::time::Timestamp;

pub use address::{Address, AddressError, PublicBucket, PublicServers, find_https};
pub use credentials::{
    CredentialKind, Credentials, KeptCredentials, Malformed, Proof, Secret, ServicePrincipal,
};
pub use source::{AzureStorage, FolderKind, FolderSource, OneLake, Source};
pub use storage::{StoragePlace, StorageRecord, StorageRefusal, StorageWanted};
pub use unnamed::Unnamed;

#[cfg(test)]
mod tests;
/// A datastore as its file describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Its name.
    pub name: DatastoreName,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs for people.
    pub tags: BTreeMap<String, String>,
    /// Key-value pairs that stay.
    pub properties: BTreeMap<String, String>,
    /// Where its data lies.
    pub source: Source,
    /// With what it is reached; `None`: it does not say, and what there is stays.
    pub credentials: Option<Credentials>,
}

impl Definition {
    /// What is sent to the daemon.
    pub fn draft(self) -> (Draft, Option<Credentials>) {
        let Self { name, description, tags, properties, source, credentials } = self;
        (Draft { name, description, tags, properties, source }, credentials)
    }
}

/// A datastore that the daemon serves, on its way to be kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Its name.
    pub name: DatastoreName,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Key-value pairs for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Key-value pairs that stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Where its data lies.
    #[serde(flatten)]
    pub source: Source,
}

impl Draft {
    /// Checks it as the daemon does, as far as its text goes.
    ///
    /// # Errors
    /// Every fault, each with its field.
    pub fn check(&self) -> Result<(), Diagnostics> {
        validate_datastore(self)
    }
}

/// A datastore that was made. Where its data lies never changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatastoreRecord {
    /// What it is.
    pub datastore: Draft,
    /// With what it is reached.
    #[serde(default, skip_serializing_if = "KeptCredentials::is_none")]
    pub credentials: KeptCredentials,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
}

/// A datastore that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing<'a> {
    /// One that the workspace came with.
    Default(&'a DatastoreName),
    /// One that was made.
    Made(&'a DatastoreRecord),
}

impl Existing<'_> {
    fn name(&self) -> &DatastoreName {
        match self {
            Self::Default(name) => name,
            Self::Made(record) => &record.datastore.name,
        }
    }
}

/// Why a datastore is not made, changed or deleted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Another one has the name.
    #[error(
        "there is a datastore '{0}' already, and it is not the same; change it with 'atelier datastore \
         update', or choose another name"
    )]
    Taken(DatastoreName),
    /// Another one's name differs by case only.
    #[error("datastore '{name}' would differ from '{known}' by case only; choose another name")]
    SameButForCase {
        /// The name asked for.
        name: DatastoreName,
        /// The one that is there.
        known: DatastoreName,
    },
    /// The workspace came with it.
    #[error("datastore '{0}' is one that the workspace came with: it cannot be changed or deleted")]
    Default(DatastoreName),
    /// Where its data would lie are the workspace's own datastores.
    #[error(
        "the workspace's own datastore '{own}' lies in {location}, or around it; use that one, or name another place"
    )]
    Own {
        /// Where it would lie.
        location: String,
        /// The datastore that is there.
        own: DatastoreName,
    },
    /// Where its data lies cannot change.
    #[error(
        "where the data of datastore '{name}' lies ({kind} {location}) cannot be changed, since jobs rely on it; \
         make another datastore"
    )]
    FixedPlace {
        /// Which.
        name: DatastoreName,
        /// Its type.
        kind: &'static str,
        /// Where it lies.
        location: String,
    },
    /// Its credentials are for something else.
    #[error("datastore '{name}': credentials: {why}")]
    Credentials {
        /// Which.
        name: DatastoreName,
        /// Why they are not taken.
        why: &'static str,
    },
    /// Its credentials cannot be what they are said to be.
    #[error("datastore '{name}': {fault}")]
    Malformed {
        /// Which.
        name: DatastoreName,
        /// What is wrong.
        fault: Malformed,
    },
    /// Jobs that are not over use it.
    #[error(
        "datastore '{name}' is used by jobs that are not over ({jobs}); wait for them or cancel them",
        jobs = some(.jobs)
    )]
    InUse {
        /// Which.
        name: DatastoreName,
        /// The jobs.
        jobs: Vec<JobName>,
    },
    /// Assets lie in it, which would come to mean something else if another one had the name.
    #[error(
        "{} in datastore '{name}' ({}): delete what lies there first (atelier data delete, atelier model delete)",
        if .assets.len() == 1 { "an asset lies" } else { "assets lie" },
        .assets.join(", ")
    )]
    HoldsAssets {
        /// Which.
        name: DatastoreName,
        /// Some of them, as `NAME:VERSION`.
        assets: Vec<String>,
    },
    /// There is none.
    #[error("there is no datastore '{name}'{near}; see 'atelier datastore list'", near = meant(.near.as_ref()))]
    NoSuch {
        /// The name asked for.
        name: String,
        /// The known name that is nearest.
        near: Option<DatastoreName>,
    },
}

/// The first few of them.
fn some(jobs: &[JobName]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<&str> = jobs.iter().take(SHOWN).map(JobName::as_str).collect();
    let more = format!("{} more", jobs.len().saturating_sub(SHOWN));
    if jobs.len() > SHOWN {
        text.push(&more);
    }
    text.join(", ")
}

fn meant(near: Option<&DatastoreName>) -> String {
    near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default()
}

impl Refusal {
    /// That there is no datastore of this name, with the one that is most like it.
    pub fn no_such<'a>(
        name: &str,
        known: impl IntoIterator<Item = &'a DatastoreName> + Clone,
    ) -> Self {
        let names = known.clone().into_iter().map(DatastoreName::as_str);
        let near = suggest::closest(name, names);
        let near = known.into_iter().find(|known| Some(known.as_str()) == near).cloned();
        Self::NoSuch { name: name.chars().take(80).collect(), near }
    }
}

/// What becomes of a draft.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Registration {
    /// It is made.
    New,
    /// The very same is there already.
    Known,
}

impl Draft {
    /// Whether it may be made beside those that are there. Case does not make a name another one: people
    /// would take the one for the other.
    ///
    /// # Errors
    /// [`Refusal::Taken`], [`Refusal::SameButForCase`] or [`Refusal::Default`].
    pub fn register<'a>(
        &self,
        known: impl IntoIterator<Item = Existing<'a>>,
    ) -> Result<Registration, Refusal> {
        let same = |known: &DatastoreName| known.as_str().eq_ignore_ascii_case(self.name.as_str());
        match known.into_iter().find(|known| same(known.name())) {
            None => Ok(Registration::New),
            Some(known) if known.name() != &self.name => {
                let (name, known) = (self.name.clone(), known.name().clone());
                Err(Refusal::SameButForCase { name, known })
            }
            Some(Existing::Default(name)) => Err(Refusal::Default(name.clone())),
            Some(Existing::Made(record)) if record.datastore == *self => Ok(Registration::Known),
            Some(Existing::Made(_)) => Err(Refusal::Taken(self.name.clone())),
        }
    }

    /// The record that this makes of one that is there. Its credentials stay.
    ///
    /// # Errors
    /// [`Refusal::FixedPlace`].
    pub fn update(self, known: &DatastoreRecord) -> Result<DatastoreRecord, Refusal> {
        let source = &known.datastore.source;
        if self.source != *source {
            let (name, kind, location) = (self.name, source.kind(), source.location());
            return Err(Refusal::FixedPlace { name, kind, location });
        }
        Ok(DatastoreRecord { datastore: self, ..known.clone() })
    }
}
