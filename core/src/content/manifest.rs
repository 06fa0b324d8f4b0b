//! The manifest: what an attempt leaves behind becomes visible when its manifest is stored, all at
//! once.

use serde::{Deserialize, Serialize};

use super::Digest;
use crate::id::{AttemptNumber, DatastoreName, Epoch, JobName};

/// The version that this code writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// What one attempt stored, as JSON beside its artifacts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The job.
    pub job: JobName,
    /// Which try.
    pub attempt: AttemptNumber,
    /// Its fencing number.
    pub epoch: Epoch,
    /// Whether the attempt failed or was cancelled, so that its outputs may be incomplete.
    pub partial: bool,
    /// Every object, in ascending order of `path`.
    pub entries: Vec<ManifestEntry>,
}

/// One stored object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The datastore it lies in.
    pub datastore: DatastoreName,
    /// Where in the datastore.
    pub key: String,
    /// The artifact's path (`outputs/model.pkl`, `logs/…`, `user_logs/std_log.txt`) or
    /// `named-outputs/<output>/<path>`.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3-256 of its bytes.
    pub digest: Digest,
}

/// A manifest that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON of a manifest.
    #[error("manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("manifest has version {0}, this program reads version {VERSION}: upgrade it")]
    Version(u32),
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Text that is no manifest, or one of a newer version.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        // The version first: a newer manifest may have another shape.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_slice(json)?;
        if head.version != VERSION {
            return Err(Error::Version(head.version));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// The manifest as stored.
    ///
    /// # Errors
    /// [`Error::Json`]; cannot happen with the types as they are.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        Ok(serde_json::to_vec(self)?)
    }
}
