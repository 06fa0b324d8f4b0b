//! Sealing: when a run has ended, or has very many points, its points leave the store for a Parquet file.
//!
//! 1. A new generation of rows is opened, so that those to be sealed stand still.
//! 2. They are written, merged with an earlier file's, to the artifact store; durable when done.
//! 3. The pointer to the file is committed.
//! 4. The rows are removed, some at a time.
//!
//! A crash between any two loses nothing and is repaired by doing it again: before 3 the run is
//! still due, after it its rows are still to be removed.

use std::time::Duration;

use atelier_core::track::{RunId, RunInfo, StoredMetric};
use bytes::BytesMut;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::parquet::{File, Piece, Pipe, Writer};
use super::{Error, Tracking};
use crate::storage::{self, ObjectPath};
use crate::store::tracking::{self, SealedPointer, TrackReply, TrackWrite};

/// Hot rows read at once.
const PAGE: usize = 8192;
/// Runs taken at once.
const RUNS: usize = 100;
/// Runs that end within this time are looked for together.
const GATHER: Duration = Duration::from_secs(1);
/// Without a call, runs are looked for this often.
const PATROL: Duration = Duration::from_secs(300);

/// The path of a run's sealed metrics, below the run's root.
pub(crate) const OBJECT: &str = "metrics/metrics.parquet";

/// The key of a run's sealed metrics in the artifact store.
pub(crate) fn object(run: &RunId) -> String {
    format!("{}/{OBJECT}", RunInfo::artifact_root(run))
}

impl Tracking {
    /// Seals what is due, until the end of the process: drop the future to stop it. Stopping it at
    /// any point is like a crash there.
    pub async fn run_sealer(&self) {
        let mut patrolled = Instant::now();
        loop {
            if let Err(error) = self.seal_due().await {
                // Nothing is lost: the points stay rows until a later round.
                tracing::warn!(error = &error as &dyn std::error::Error, "metrics not sealed");
            }
            let patrol = patrolled.elapsed() >= PATROL;
            if patrol {
                patrolled = Instant::now();
            }
            if let Err(error) = self.rank_due(patrol).await {
                // Searches look at each such run until a later round.
                tracing::warn!(error = &error as &dyn std::error::Error, "runs not ranked");
            }
            let woken = tokio::time::timeout(PATROL, self.inner.wake.notified()).await;
            if woken.is_ok() {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    /// Seals every run that is due and removes every row that is sealed; how many runs were sealed.
    ///
    /// # Errors
    /// The first failure; the others were tried.
    pub async fn seal_due(&self) -> Result<usize, Error> {
        let _alone = self.inner.sealing.lock().await;
        let mut sealed = 0;
        let mut failed = None;
        loop {
            let runs = self.read(|conn| tracking::to_seal(conn, RUNS)).await?;
            let mut progress = false;
            for run in &runs {
                match self.seal(run).await {
                    Ok(()) => {
                        sealed += 1;
                        progress = true;
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if runs.len() < RUNS || !progress {
                break;
            }
        }
        loop {
            let runs = self.read(|conn| tracking::to_purge(conn, RUNS)).await?;
            if runs.is_empty() {
                break;
            }
            for run in runs {
                while self.write(TrackWrite::Purge(run.clone())).await? != TrackReply::Purged(0) {}
            }
        }
        // Only reading: each write waits for the disk.
        while self.read(tracking::has_gone).await? {
            self.write(TrackWrite::PurgeGone).await?;
        }
        failed.map_or(Ok(sealed), Err)
    }

    /// Ranks the runs that have ended; on a patrol also those to which nothing was logged since the last one.
    ///
    /// # Errors
    /// What the store says.
    pub async fn rank_due(&self, patrol: bool) -> Result<(), Error> {
        while self.read(move |conn| tracking::has_unranked(conn, patrol)).await? {
            self.write(TrackWrite::Rank { quiet: patrol }).await?;
        }
        if patrol && self.read(tracking::has_unmarked).await? {
            self.write(TrackWrite::MarkQuiet).await?;
        }
        Ok(())
    }

    pub(super) async fn seal(&self, run: &RunId) -> Result<(), Error> {
        let begun = self.write(TrackWrite::BeginSeal(run.clone())).await?;
        let TrackReply::Generation { of, generation } = begun else { return Ok(()) };
        let asked = run.clone();
        let earlier = self.read(move |conn| tracking::sealed(conn, &asked)).await?;
        let object = object(run);
        let path = ObjectPath::new(&object).map_err(storage::Error::from)?;
        let (out, pieces) = mpsc::channel(2);
        let (tracking, asked) = (self.clone(), run.clone());
        let encoding = tokio::task::spawn_blocking(move || {
            tracking.encode(&asked, generation, earlier.as_ref(), out)
        });
        let body = stream::unfold(Some(pieces), |pieces| async move {
            let mut pieces = pieces?;
            match pieces.recv().await {
                Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(pieces))),
                Some(Piece::End) => None,
                // The encoder failed: a file cut short is never stored.
                None => Some((Err(Error::Stopping), None)),
            }
        });
        let stored = self.inner.artifacts.put_stream(&path, body).await;
        let Encoded { points, hot } = encoding.await.map_err(|_| Error::Stopping)??;
        let bytes = stored?.size;
        let at = self.now();
        self.inner.files.forget(&object);
        let run = run.clone();
        let sealed = TrackWrite::Sealed { run, of, object, points, hot, bytes, generation, at };
        if self.write(sealed).await? == TrackReply::Gone {
            // Nobody else removes what was written after the run's files were.
            self.inner.artifacts.delete_object(&path).await?;
        }
        Ok(())
    }

    /// Writes the rows up to `generation` and the points of an earlier file, each point once.
    fn encode(
        &self,
        run: &RunId,
        generation: i64,
        earlier: Option<&SealedPointer>,
        out: mpsc::Sender<Piece>,
    ) -> Result<Encoded, Error> {
        let failed = |source| Error::Sealed { object: object(run), source };
        let mut hot = Hot {
            tracking: self,
            run,
            generations: earlier.map_or(-1, |pointer| pointer.generation)..generation,
            page: Vec::new().into_iter(),
            last: None,
            done: false,
            read: 0,
        };
        let mut old = Old::open(self, earlier)?;
        let mut writer =
            Writer::new(Pipe { out: out.clone(), buffer: BytesMut::new() }, run).map_err(failed)?;
        let (mut left, mut right) = (hot.next()?, old.next()?);
        loop {
            let order = match (&left, &right) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.in_storage(b),
            };
            let point = if order.is_le() { left.take() } else { right.take() };
            if let Some(point) = point {
                writer.add(point).map_err(failed)?;
            }
            if order.is_eq() {
                right = None;
            }
            if left.is_none() {
                left = hot.next()?;
            }
            if right.is_none() {
                right = old.next()?;
            }
        }
        let points = writer.finish().map_err(failed)?;
        out.blocking_send(Piece::End).map_err(|_| Error::Stopping)?;
        Ok(Encoded { points, hot: hot.read })
    }
}

/// What was written.
struct Encoded {
    /// Points in the file.
    points: u64,
    /// How many of them were rows.
    hot: u64,
}

/// The hot rows of a run, page after page.
struct Hot<'a> {
    tracking: &'a Tracking,
    run: &'a RunId,
    /// After the first, up to and with the last.
    generations: std::ops::Range<i64>,
    page: std::vec::IntoIter<StoredMetric>,
    last: Option<StoredMetric>,
    done: bool,
    read: u64,
}

impl Hot<'_> {
    fn next(&mut self) -> Result<Option<StoredMetric>, Error> {
        if let Some(point) = self.page.next() {
            return Ok(Some(point));
        }
        if self.done {
            return Ok(None);
        }
        let page = self.tracking.inner.store.read(|conn| {
            tracking::hot_page(conn, self.run, &self.generations, self.last.as_ref(), PAGE)
        })?;
        self.done = page.len() < PAGE;
        self.read += page.len() as u64;
        self.last = page.last().cloned();
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}

/// The points of an earlier file, row group after row group.
struct Old {
    file: Option<File>,
    next_group: usize,
    group: std::vec::IntoIter<StoredMetric>,
}

impl Old {
    fn open(tracking: &Tracking, earlier: Option<&SealedPointer>) -> Result<Self, Error> {
        let file = match earlier {
            None => None,
            Some(pointer) => {
                let open = File::open(&tracking.inner.artifacts, &pointer.object);
                Some(tokio::runtime::Handle::current().block_on(open)?)
            }
        };
        Ok(Self { file, next_group: 0, group: Vec::new().into_iter() })
    }

    fn next(&mut self) -> Result<Option<StoredMetric>, Error> {
        loop {
            if let Some(point) = self.group.next() {
                return Ok(Some(point));
            }
            let Some(file) = self.file.as_ref().filter(|file| self.next_group < file.groups())
            else {
                return Ok(None);
            };
            let read = file.group(self.next_group);
            // No one but this task replaces a run's file.
            let group = tokio::runtime::Handle::current().block_on(read)?;
            self.group = group.ok_or(Error::Stopping)?.into_iter();
            self.next_group += 1;
        }
    }
}
