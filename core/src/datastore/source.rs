//! Where the data of datastores lies.

use serde::{Deserialize, Serialize};

/// A container, share or file system of an Azure storage account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AzureStorage {
    /// The storage account.
    pub account_name: String,
    /// The container, the share or the file system.
    pub container: String,
    /// The cloud's suffix, for example `core.windows.net`; or the URL of the account at another server.
    pub endpoint: String,
    /// `https`, `wasbs` or `abfss`.
    pub protocol: String,
}

/// Where a datastore's data lies, as its author wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Azure Blob Storage.
    AzureBlob(AzureStorage),
    /// Azure Files.
    AzureFile(AzureStorage),
    /// Azure Data Lake Storage Gen2.
    AzureDataLakeGen2(AzureStorage),
    /// A lakehouse of Microsoft Fabric.
    OneLake(OneLake),
    /// A bucket of S3, Amazon's or another's.
    S3 {
        /// The bucket.
        bucket: String,
        /// The server's URL; `None`: Amazon's.
        endpoint: Option<String>,
        /// The region.
        region: Option<String>,
        /// All paths start with it: one that a datastore's object may have.
        prefix: Option<String>,
        /// Whether the bucket is part of the path rather than of the host's name.
        path_style: bool,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// All paths start with it: one that a datastore's object may have.
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
            Self::OneLake(_) => "one_lake",
            Self::S3 { .. } => "s3",
            Self::Gcs { .. } => "gcs",
            Self::Folder(folder) => folder.kind.as_str(),
            Self::Http { .. } => "http",
        }
    }

    /// Where that is, in one line.
    pub fn location(&self) -> String {
        let below = |root: String, prefix: &Option<String>| match prefix {
            Some(prefix) => format!("{root}/{prefix}"),
            None => root,
        };
        match self {
            Self::AzureBlob(azure) | Self::AzureDataLakeGen2(azure) => {
                format!("{}/{}", azure.blob_url(), azure.container)
            }
            Self::AzureFile(azure) => format!("{}/{}", azure.file_url(), azure.container),
            Self::OneLake(lake) => {
                format!("{}/{}/{}", lake.blob_url(), lake.workspace, lake.root())
            }
            Self::S3 { bucket, endpoint: Some(endpoint), prefix, .. } => {
                below(format!("{}/{bucket}", endpoint.trim_end_matches('/')), prefix)
            }
            Self::S3 { bucket, prefix, .. } => below(format!("s3://{bucket}"), prefix),
            Self::Gcs { bucket, prefix } => below(format!("gs://{bucket}"), prefix),
            Self::Folder(folder) => folder.path.clone(),
            Self::Http { url } => url.clone(),
        }
    }

    /// Below what files may be written, with a `/` at its end; empty: anywhere.
    pub const fn files(&self) -> &'static str {
        match self {
            Self::OneLake(_) => "Files/",
            _ => "",
        }
    }

    /// Whether nothing can be written there, ever.
    pub const fn is_read_only(&self) -> bool {
        matches!(self, Self::Http { .. })
    }
}

impl AzureStorage {
    /// The account's address for blobs, without a `/` at its end.
    pub fn blob_url(&self) -> String {
        self.url("blob")
    }

    /// The account's address for files, without a `/` at its end.
    pub fn file_url(&self) -> String {
        self.url("file")
    }

    fn url(&self, service: &str) -> String {
        match self.endpoint.contains("://") {
            true => self.endpoint.trim_end_matches('/').to_owned(),
            false => format!("https://{}.{service}.{}", self.account_name, self.endpoint),
        }
    }
}

/// A lakehouse of Microsoft Fabric. All paths start with `Files` or `Tables`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OneLake {
    /// The Fabric workspace, by its name or its id.
    pub workspace: String,
    /// The lakehouse, by its name or its id.
    pub lakehouse: String,
    /// The host, or the URL of another server; `None`: Fabric's own.
    pub endpoint: Option<String>,
}

impl OneLake {
    const ENDPOINT: &str = "onelake.dfs.fabric.microsoft.com";

    /// The address by which it is reached as blobs are, without a `/` at its end.
    pub fn blob_url(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or(Self::ENDPOINT).trim_end_matches('/');
        match endpoint.contains("://") {
            true => endpoint.to_owned(),
            false => format!("https://{}", endpoint.replacen(".dfs.", ".blob.", 1)),
        }
    }

    /// What is above its files in the workspace: the lakehouse with its kind, or its id alone.
    pub fn root(&self) -> String {
        let is_whole = is_id(&self.lakehouse) || self.lakehouse.ends_with(".Lakehouse");
        match is_whole {
            true => self.lakehouse.clone(),
            false => format!("{}.Lakehouse", self.lakehouse),
        }
    }
}

/// Whether it is written as `01234567-89ab-cdef-0123-456789abcdef` is.
fn is_id(text: &str) -> bool {
    let words: Vec<&str> = text.split('-').collect();
    let lengths = words.iter().map(|word| word.len());
    lengths.eq([8, 4, 4, 4, 12])
        && words.iter().all(|word| word.bytes().all(|b| b.is_ascii_hexdigit()))
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
