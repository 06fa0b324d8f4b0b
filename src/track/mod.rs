//! Tracking as a service: writes through the store's writer, reads from rows and from sealed files,
//! and the sealing of runs that have ended.

pub(crate) mod parquet;
mod seal;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use atelier_core::access::AttemptScope;
use atelier_core::audit::Actor;
use atelier_core::time::Timestamp;
use atelier_core::track::{
    Cell, Error as Refusal, Metric, PageToken, RunId, StoredMetric, fingerprint, limits,
};
use rusqlite::Connection;
use tokio::sync::Notify;

pub(crate) use self::seal::OBJECT as SEALED_OBJECT;
use crate::storage::{self, Datastore};
use crate::store::audit::Asked;
use crate::store::tracking::{self, TrackReply, TrackWrite};
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

/// A part of a metric's history.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    /// Points by timestamp, step and value.
    pub points: Vec<StoredMetric>,
    /// Where the next part begins, if there is one.
    pub next: Option<PageToken>,
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

    /// A metric's history: hot rows and sealed points, each point once.
    ///
    /// # Errors
    /// If there is no such run, or the token is not of this history.
    pub async fn history(
        &self,
        run: &RunId,
        key: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<History, Error> {
        let search = fingerprint(&["history", run.as_str(), key]);
        let after = after.map(|token| PageToken::parse(token, search)).transpose()?;
        let after = after.map(|token| place(key, &token)).transpose()?;
        let (run, key) = (run.clone(), key.to_owned());
        let name = key.clone();
        let (mut points, sealed) = self
            .read(move |conn| {
                Ok((tracking::hot_history(conn, &run, &name)?, tracking::sealed(conn, &run)?))
            })
            .await?;
        if let Some(pointer) = sealed {
            points.extend(self.inner.files.points(&self.inner.artifacts, &pointer, &key).await?);
        }
        points.sort_by(StoredMetric::in_history);
        points.dedup();
        if let Some(after) = after {
            points.retain(|point| point.in_history(&after).is_gt());
        }
        let more = points.len() > limit;
        points.truncate(limit);
        let next = points.last().filter(|_| more).map(|last| PageToken {
            search,
            after: vec![
                Cell::Int(last.timestamp),
                Cell::Int(last.step),
                Cell::Real(last.value),
                Cell::Int(i64::from(last.is_nan)),
            ],
        });
        Ok(History { points, next })
    }

    /// Says that runs may have ended: to be called after a transaction with a
    /// [`TrackWrite::FollowJob`]. Costs nothing; many calls are one.
    pub fn wake(&self) {
        self.inner.wake.notify_one();
    }
}

/// The point that a page of a history stopped at.
fn place(key: &str, token: &PageToken) -> Result<StoredMetric, Refusal> {
    match token.after.as_slice() {
        [Cell::Int(timestamp), Cell::Int(step), Cell::Real(value), Cell::Int(is_nan)] => {
            Ok(StoredMetric {
                key: key.to_owned(),
                step: *step,
                timestamp: *timestamp,
                value: *value,
                is_nan: *is_nan == 1,
            })
        }
        _ => Err(Refusal::Invalid("Invalid page token".to_owned())),
    }
}
