//! Tracking as a service: writes through the store's writer, reads from rows and from sealed files,
//! and the sealing of runs that have ended.

mod history;
pub(crate) mod parquet;
mod seal;
mod summary;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use atelier_core::access::AttemptScope;
use atelier_core::audit::Actor;
use atelier_core::time::Timestamp;
use atelier_core::track::{Error as Refusal, Metric, limits};
use rusqlite::Connection;
use tokio::sync::Notify;

pub use self::history::History;
pub(crate) use self::seal::OBJECT as SEALED_OBJECT;
use crate::storage::{self, Datastore};
use crate::store::audit::Asked;
use crate::store::tracking::{TrackReply, TrackWrite};
use crate::store::{self, SqliteStore};

/// The wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What may go wrong with tracking.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refuses, or fails.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The artifact store fails.
    #[error("artifacts: {0}")]
    Storage(#[from] storage::Error),
    /// A sealed file is not what was written.
    #[error("the sealed metrics {object} cannot be read or written: {source}")]
    Sealed {
        /// Key in the artifact store.
        object: String,
        /// What the Parquet library says.
        #[source]
        source: ::parquet::errors::ParquetError,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping; try again")]
    Stopping,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Store(store::Error::Track(refusal))
    }
}

/// One sample of an attempt's monitor.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// When it was taken.
    pub at: Timestamp,
    /// Its number within the attempt: the points' step.
    pub step: i64,
    /// Values by metric, for example `system/cpu_utilization_percentage`.
    pub values: Vec<(String, f64)>,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Tracking {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<SqliteStore>,
    artifacts: Datastore,
    clock: Clock,
    wake: Notify,
    /// Held while runs are sealed: two at once would seal the same rows.
    sealing: tokio::sync::Mutex<()>,
    files: parquet::Files,
}

impl Tracking {
    /// The service over a store and the datastore `workspaceartifactstore`.
    pub fn new(store: Arc<SqliteStore>, artifacts: Datastore, clock: Clock) -> Self {
        let files = parquet::Files::default();
        let (wake, sealing) = (Notify::new(), tokio::sync::Mutex::new(()));
        Self { inner: Arc::new(Inner { store, artifacts, clock, wake, sealing, files }) }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.inner.clock)()
    }

    /// The datastore of the runs' artifacts.
    pub fn artifacts(&self) -> &Datastore {
        &self.inner.artifacts
    }

    /// Makes a change; durable when this returns.
    ///
    /// # Errors
    /// [`store::Error::Track`] inside [`Error::Store`] if a rule refuses it.
    pub async fn write(&self, write: TrackWrite) -> Result<TrackReply, Error> {
        let reply = self.inner.store.write(move |conn| write.apply(conn)).await?;
        if reply == TrackReply::ToSeal {
            self.wake();
        }
        Ok(reply)
    }

    /// Makes a change that the audit log tells of; durable when this returns.
    ///
    /// # Errors
    /// What the change answers; then nothing of it was made.
    pub async fn change<T, F>(&self, by: Actor, change: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Asked<'_>) -> Result<T, store::Error> + Send + 'static,
    {
        Ok(self.inner.store.change(by, change).await?)
    }

    /// Asks the store a question, off the threads that serve requests.
    ///
    /// # Errors
    /// What the question answers.
    pub async fn read<T, F>(&self, ask: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, store::Error> + Send + 'static,
    {
        let store = self.inner.store.clone();
        let answer = tokio::task::spawn_blocking(move || store.read(ask)).await;
        Ok(answer.map_err(|_| Error::Stopping)??)
    }

    /// Asks the store a short question where the caller is, which waits for the answer.
    ///
    /// # Errors
    /// What the question answers.
    pub fn read_here<T>(
        &self,
        ask: impl FnOnce(&Connection) -> Result<T, store::Error>,
    ) -> Result<T, Error> {
        Ok(self.inner.store.read(ask)?)
    }

    /// Adds the samples of an attempt's monitor to its run. The caller has checked that the attempt
    /// is the job's present one. Sending the same samples again adds nothing.
    ///
    /// # Errors
    /// If a name breaks a rule, or the store fails.
    pub async fn record_samples(
        &self,
        scope: &AttemptScope,
        samples: Vec<Sample>,
    ) -> Result<(), Error> {
        let mut points = Vec::new();
        for sample in samples {
            for (key, value) in sample.values {
                let point =
                    Metric { key, value, timestamp: sample.at.as_millis(), step: sample.step };
                limits::metric(&point, "")?;
                points.push(point);
            }
        }
        if points.is_empty() {
            return Ok(());
        }
        self.write(TrackWrite::Samples { job: scope.job.clone(), points }).await?;
        Ok(())
    }

    /// Says that runs may have ended: to be called after a transaction with a
    /// [`TrackWrite::FollowJob`]. Costs nothing; many calls are one.
    pub fn wake(&self) {
        self.inner.wake.notify_one();
    }
}
