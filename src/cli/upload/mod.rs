//! What a job needs from this machine, on its way to the workspace: the code folder as a snapshot of
//! content objects, local inputs as objects of a datastore.
//!
//! A folder is scanned (names and stat only), files that the stat cache does not know are read and
//! hashed, the workspace is asked what it lacks, and only that is sent. For an unchanged folder that
//! is one scan and one question about one digest.

mod cache;
mod error;
pub mod git;
mod hash;
mod inputs;
pub(in crate::cli) mod object;
mod plan;
mod recut;
mod scan;
mod send;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use atelier_core::content::Digest;
use atelier_proto::content::v1::content_service_client::ContentServiceClient;

use crate::client::data::again_where;
use crate::client::{Authorized, broken};

pub use error::Error;
pub use inputs::{Gateway, LocalInput};
pub(in crate::cli) use scan::{FoundFile, Stat};

/// How far an upload is; for a progress display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Files are read and hashed.
    Reading {
        /// Bytes read so far.
        done: u64,
        /// Bytes to read.
        total: u64,
    },
    /// What the workspace lacks is sent.
    Sending {
        /// Bytes sent so far.
        done: u64,
        /// Bytes to send.
        total: u64,
    },
}

/// Takes the progress; called from several threads, often, so it should return at once.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// A code folder that the workspace has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uploaded {
    /// The snapshot.
    pub root: Digest,
    /// Files in it.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
    /// Files that had to be read, because they are new or changed.
    pub files_read: u64,
    /// Objects that the workspace lacked.
    pub objects_sent: u64,
    /// Bytes of these objects.
    pub bytes_sent: u64,
    /// What was left out though it is not ignored, and why; one line each, for the user.
    pub warnings: Vec<String>,
}

/// Sends snapshots of code folders. Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    client: ContentServiceClient<Authorized>,
    home: PathBuf,
}

impl Uploader {
    /// Sends with this stub of the service; `home` is Atelier's home folder, where the stat cache
    /// lies.
    pub fn new(client: ContentServiceClient<Authorized>, home: &Path) -> Self {
        Self { client, home: home.to_owned() }
    }

    /// Makes the workspace have the code folder at `folder`.
    ///
    /// A file that changes while it is read is read again, once. A connection that breaks is made again, and what the
    /// workspace lacks then is sent.
    ///
    /// # Errors
    /// [`Error`] names the file or folder and what to do.
    pub async fn code(&self, folder: &Path, report: Report) -> Result<Uploaded, Error> {
        let is_lost = |error: &Error| matches!(error, Error::Workspace(status) if broken(status));
        let attempt = || again_where(is_lost, async || self.attempt(folder, &report).await);
        match attempt().await {
            Err(Error::Changed(path)) => {
                tracing::debug!(path = %path.display(), "changed while it was sent; starting over");
                attempt().await
            }
            other => other,
        }
    }

    async fn attempt(&self, folder: &Path, report: &Report) -> Result<Uploaded, Error> {
        let (folder, home, reading) = (folder.to_owned(), self.home.clone(), report.clone());
        let prepared = blocking(move || Prepared::new(&folder, &home, &reading)).await?;
        let Prepared { plan, mut cache, files_read, warnings } = prepared;
        let plan = Arc::new(plan);
        let sent = send::send(self.client.clone(), &plan, cache.acknowledged(), report).await?;
        let root = plan.root;
        blocking(move || {
            cache.acknowledge(root);
            Ok(())
        })
        .await?;
        Ok(Uploaded {
            root,
            files: plan.files.len() as u64,
            bytes: plan.bytes,
            files_read,
            objects_sent: sent.objects,
            bytes_sent: sent.bytes,
            warnings,
        })
    }
}

/// A folder, scanned and hashed.
struct Prepared {
    plan: plan::Plan,
    cache: cache::StatCache,
    files_read: u64,
    warnings: Vec<String>,
}

impl Prepared {
    fn new(folder: &Path, home: &Path, report: &Report) -> Result<Self, Error> {
        let scan = scan::scan(folder, home)?;
        let mut cache = cache::StatCache::load(home, &scan.root);
        let (contents, files_read) = hash::contents(&scan.files, &cache, report)?;
        // Hashing is kept even if sending fails.
        cache.update(&scan.files, &contents);
        let plan = plan::Plan::new(scan.tree, scan.files, &contents)?;
        let warnings = scan.warnings;
        Ok(Self { plan, cache, files_read, warnings })
    }
}

/// Runs work that waits for the disk, or computes for long, away from the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

#[cfg(test)]
mod tests;
