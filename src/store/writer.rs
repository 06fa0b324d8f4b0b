//! The one thread that writes. It takes whatever has gathered while the last transaction was being
//! made durable and commits it as the next: one fsync for all of them.

use std::sync::{Arc, mpsc};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{Error, audit};

/// A write waiting for its transaction.
pub(super) trait Work: Send {
    /// Makes the changes. An error undoes this work only, unless the disk is at fault.
    fn apply(&mut self, conn: &Connection) -> Result<(), Error>;
    /// Called once, after the transaction is on disk (or is not).
    fn done(self: Box<Self>, failed: Option<Error>);
}

/// Hands work to the thread. Dropping the last one ends it after what is queued.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::SyncSender<Box<dyn Work>>,
    /// Room for changes that wait.
    room: Arc<Semaphore>,
}

/// At most so many in one transaction, so that the first of them does not wait for long.
const GROUP: usize = 256;
/// At most so many changes waiting; beyond it callers wait for room.
const QUEUE: usize = 4096;

impl Writer {
    pub(super) fn start(conn: Connection) -> std::io::Result<Self> {
        // Half for changes, half for what is pushed.
        let (queue, work) = mpsc::sync_channel(2 * QUEUE);
        thread::Builder::new().name("store-writer".to_owned()).spawn(move || run(&conn, &work))?;
        Ok(Self { queue, room: Arc::new(Semaphore::new(QUEUE)) })
    }

    /// Queues work, in the order of the calls. The caller keeps few of them waiting: when thousands
    /// do, this blocks. Work that is not taken, because the thread has ended, is dropped.
    pub(super) fn push(&self, work: Box<dyn Work>) {
        let _ = self.queue.send(work);
    }

    /// Applies `change` in the next transaction and returns once it is durable.
    pub(super) async fn write<T, F>(&self, change: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let room = self.room.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        self.push(Box::new(Change { change: Some(change), result: None, reply, _room: room }));
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

struct Change<T, F> {
    change: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, Error>>,
    _room: OwnedSemaphorePermit,
}

impl<T, F> Work for Change<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, Error> + Send,
{
    fn apply(&mut self, conn: &Connection) -> Result<(), Error> {
        if let Some(change) = self.change.take() {
            self.result = Some(change(conn)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, failed: Option<Error>) {
        let outcome = match (failed, self.result) {
            (None, Some(result)) => Ok(result),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Closed),
        };
        // A caller that has gone away is no longer interested.
        let _ = self.reply.send(outcome);
    }
}

fn run(conn: &Connection, work: &mpsc::Receiver<Box<dyn Work>>) {
    while let Ok(first) = work.recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            match work.try_recv() {
                Ok(next) => group.push(next),
                Err(_) => break,
            }
        }
        if let Err(error) = commit(conn, group)
            && error.is_fatal()
        {
            // What is on disk is uncertain now. Callers see `Closed` from here on.
            tracing::error!(%error, "the database failed; the daemon must be restarted");
            return;
        }
    }
}

/// One transaction for the group; every member is told how it went.
fn commit(conn: &Connection, group: Vec<Box<dyn Work>>) -> Result<(), Error> {
    let mut applied = Vec::with_capacity(group.len());
    let alone = group.len() == 1;
    let begun = conn.execute_batch("BEGIN IMMEDIATE").map_err(|e| Error::sqlite("begin", e));
    let mut broken = begun.err();
    for mut work in group {
        if broken.is_some() {
            applied.push((work, Some(Error::Closed)));
            continue;
        }
        let result = apply(conn, work.as_mut(), alone);
        if let Err(error) = &result
            && (error.is_fatal() || conn.is_autocommit() || matches!(error, Error::Full { .. }))
        {
            broken = Some(rebuild(error));
        }
        applied.push((work, result.err()));
    }
    crate::failpoint::hit("before-commit");
    if broken.is_none() {
        broken = conn.execute_batch("COMMIT").map_err(|e| Error::sqlite("commit", e)).err();
        crate::failpoint::hit("after-commit");
    }
    if let Some(error) = broken {
        if !conn.is_autocommit() {
            let _ = conn.execute_batch("ROLLBACK");
        }
        for (work, own) in applied {
            let told = match own {
                Some(own) if !matches!(own, Error::Closed) => own,
                _ => rebuild(&error),
            };
            work.done(Some(told));
        }
        return Err(error);
    }
    for (work, failed) in applied {
        work.done(failed);
    }
    Ok(())
}

fn apply(conn: &Connection, work: &mut dyn Work, alone: bool) -> Result<(), Error> {
    if alone {
        // Nothing else is in the transaction; an error still must leave it empty.
        let result = work.apply(conn).and_then(|()| audit::check(conn));
        // After some errors, a full disk's too, SQLite has rolled back by itself.
        if result.is_err() && !conn.is_autocommit() {
            let undone = conn.execute_batch("ROLLBACK; BEGIN IMMEDIATE");
            undone.map_err(|e| Error::sqlite("roll back", e))?;
        }
        return result;
    }
    let mark = |sql, operation| {
        conn.prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map_err(|e| Error::sqlite(operation, e))
    };
    mark("SAVEPOINT work", "set a savepoint")?;
    match work.apply(conn).and_then(|()| audit::check(conn)) {
        Ok(()) => mark("RELEASE work", "release a savepoint").map(drop),
        Err(error) => {
            if !conn.is_autocommit() {
                mark("ROLLBACK TO work", "roll back to a savepoint")?;
                mark("RELEASE work", "release a savepoint")?;
            }
            Err(error)
        }
    }
}

/// The same failure, for another caller.
fn rebuild(error: &Error) -> Error {
    match error {
        Error::Full { operation } => Error::Full { operation },
        Error::Locked { operation } => Error::Locked { operation },
        _ => Error::Closed,
    }
}
