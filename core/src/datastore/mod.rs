//! What a datastore is: a name for a place where data lies, and which of these the daemon serves.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{DatastoreName, JobName, Principal};
use crate::spec::{Diagnostics, validate_datastore};
use crate::suggest;
use crate::time::Timestamp;

#[cfg(test)]
mod tests;

/// A text that opens something: a key, a token, a password.
///
/// **Invariant:** it is never printed, and never written in any format: there is neither `Display` nor
/// `Serialize`, and `Debug` shows that it is there.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text as it is.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whoever uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// With what a datastore is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// Nothing: everybody may, or whoever asks is known otherwise.
    None,
    /// An Azure storage account's key.
    AccountKey(Secret),
    /// An Azure shared access signature.
    SasToken(Secret),
    /// A service principal of Azure (Entra), by its secret or its certificate.
    ServicePrincipal(ServicePrincipal),
    /// Keys of S3.
    S3Keys {
        /// The public half.
        access_key_id: String,
        /// The other.
        secret_access_key: Secret,
        /// Of keys that end.
        session_token: Option<Secret>,
    },
    /// The JSON key of a service account of Google.
    ServiceAccount(Secret),
}

/// A service principal of Azure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePrincipal {
    /// The directory that knows it.
    pub tenant_id: String,
    /// Which.
    pub client_id: String,
    /// How it proves who it is.
    pub proof: Proof,
    /// Who is asked for tokens; `None`: Azure's public cloud.
    pub authority_url: Option<String>,
    /// For what tokens are asked; `None`: Azure storage.
    pub resource_url: Option<String>,
}

/// How a service principal proves who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// By a secret.
    ClientSecret(Secret),
    /// By a certificate.
    Certificate {
        /// With its private key, in PEM.
        certificate: Secret,
        /// The certificate's SHA-1 digest.
        thumbprint: String,
    },
}

/// A container, share or file system of an Azure storage account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AzureStorage {
    /// The storage account.
    pub account_name: String,
    /// The container, the share or the file system.
    pub container: String,
    /// The cloud's suffix, for example `core.windows.net`.
    pub endpoint: String,
    /// `https`, `wasbs` or `abfss`.
    pub protocol: String,
}

/// Where a datastore's data lies, as its author wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Azure Blob Storage.
    AzureBlob(AzureStorage),
    /// Azure Files.
    AzureFile(AzureStorage),
    /// Azure Data Lake Storage Gen2.
    AzureDataLakeGen2(AzureStorage),
    /// A lakehouse of Microsoft Fabric.
    OneLake {
        /// The Fabric workspace.
        workspace: String,
        /// The lakehouse.
        lakehouse: String,
        /// The host; `None`: Fabric's own.
        endpoint: Option<String>,
    },
    /// A bucket of S3, Amazon's or another's.
    S3 {
        /// The bucket.
        bucket: String,
        /// The server's URL; `None`: Amazon's.
        endpoint: Option<String>,
        /// The region.
        region: Option<String>,
        /// All paths start with it.
        prefix: Option<String>,
        /// Whether the bucket is part of the path rather than of the host's name.
        path_style: bool,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// All paths start with it.
        prefix: Option<String>,
    },
    /// A folder on the daemon's machine.
    Folder(FolderSource),
    /// Files of a web server.
    Http {
        /// All paths are below it.
        url: String,
    },
}

impl Source {
    /// The `type` that says it in YAML.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AzureBlob(_) => "azure_blob",
            Self::AzureFile(_) => "azure_file",
            Self::AzureDataLakeGen2(_) => "azure_data_lake_gen2",
            Self::OneLake { .. } => "one_lake",
            Self::S3 { .. } => "s3",
            Self::Gcs { .. } => "gcs",
            Self::Folder(folder) => folder.kind.as_str(),
            Self::Http { .. } => "http",
        }
    }
}

/// What kind of folder a datastore is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderKind {
    /// Any folder.
    Local,
    /// Where a file system is mounted: without the mount nothing is read or written.
    Nfs,
}

impl FolderKind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nfs => "nfs",
        }
    }
}

/// A folder on the daemon's machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FolderSource {
    /// Which kind.
    pub kind: FolderKind,
    /// Absolute, without `.` and `..`, not the root.
    pub path: String,
}

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
    /// With what it is reached.
    pub credentials: Credentials,
}

/// A type of datastore that is read and cannot be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "datastore '{name}': data of type {kind} cannot be served yet; datastores of the types local and nfs can"
)]
pub struct NotServed {
    /// The datastore.
    pub name: DatastoreName,
    /// Its type.
    pub kind: &'static str,
}

impl NotServed {
    /// What can be done instead.
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            "http" => {
                "give jobs the file's https:// address as an input, or download the files into a local datastore"
            }
            _ => {
                "mount it on the daemon's machine (rclone, s3fs, gcsfuse, blobfuse2, a share) and make a \
                 datastore of type nfs with the mount's path"
            }
        }
    }
}

impl Definition {
    /// What is sent to the daemon.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn draft(self) -> Result<Draft, NotServed> {
        let Self { name, description, tags, properties, source, credentials: _ } = self;
        let kind = source.kind();
        let Source::Folder(folder) = source else { return Err(NotServed { name, kind }) };
        Ok(Draft { name, description, tags, properties, folder })
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
    pub folder: FolderSource,
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
    /// Where its data lies cannot change.
    #[error(
        "where the data of datastore '{name}' lies ({kind} {path}) cannot be changed, since jobs rely on it; \
         make another datastore"
    )]
    FixedPlace {
        /// Which.
        name: DatastoreName,
        /// Its type.
        kind: &'static str,
        /// Where it lies.
        path: String,
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

    /// The record that this makes of one that is there.
    ///
    /// # Errors
    /// [`Refusal::FixedPlace`].
    pub fn update(self, known: &DatastoreRecord) -> Result<DatastoreRecord, Refusal> {
        let FolderSource { kind, path } = &known.datastore.folder;
        if self.folder != known.datastore.folder {
            let (name, kind, path) = (self.name, kind.as_str(), path.clone());
            return Err(Refusal::FixedPlace { name, kind, path });
        }
        Ok(DatastoreRecord { datastore: self, ..known.clone() })
    }
}
