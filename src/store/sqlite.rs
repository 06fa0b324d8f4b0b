//! The embedded store: SQLite in WAL mode, `synchronous=FULL`, one writer, several readers.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_core::access::CustomRole;
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, JobName};
use atelier_core::job::{Event, Job};
use atelier_core::live::PastUse;
use atelier_core::time::Timestamp;
use futures::future::BoxFuture;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use super::blocked::{self, BlockRecord};
use super::people::{self, PeopleChange, UserRecord};
use super::writer::{Work, Writer};
use super::{
    Batch, Error, JobQuery, Known, Lookup, Past, Recovered, Store, TokenRecord, audit, jobs,
    schema, usage,
};

/// SQLite on a local disk.
pub struct SqliteStore {
    writer: Writer,
    /// Set by a batch that failed; those after it are refused.
    failed: Arc<AtomicBool>,
    readers: Mutex<Vec<Connection>>,
    path: std::path::PathBuf,
}

/// Readers kept open between questions.
const IDLE_READERS: usize = 4;
/// How long another program may hold the database before we give up.
const PATIENCE: Duration = Duration::from_secs(5);

impl SqliteStore {
    /// Opens the database `path`, making or migrating it.
    ///
    /// # Errors
    /// If `must_exist` and there is none: an empty workspace in the place of one that was there
    /// would forget every job. If it is newer than this build, damaged, or not ours.
    pub fn open(path: &Path, must_exist: bool) -> Result<Self, Error> {
        let fail = |problem: String| Error::Open { path: path.display().to_string(), problem };
        if must_exist && !path.exists() {
            return Err(fail(
                "it is missing, although this folder has held a workspace; restore it from a \
                 backup, or remove the whole folder to start anew"
                    .to_owned(),
            ));
        }
        keep_private(path).map_err(|e| fail(e.to_string()))?;
        let mut conn = Connection::open(path).map_err(|e| fail(e.to_string()))?;
        let unfit = |problem| match problem {
            schema::Problem::Sqlite(error) => fail(damage(&error)),
            other => fail(other.to_string()),
        };
        conn.busy_timeout(PATIENCE).map_err(|e| fail(e.to_string()))?;
        // Before anything is changed: it may be somebody else's.
        if schema::version(&conn).map_err(unfit)? == 0 && must_exist {
            return Err(fail(
                "it is empty, although this folder has held a workspace; restore it from a \
                 backup, or remove the whole folder to start anew"
                    .to_owned(),
            ));
        }
        prepare(&conn).map_err(|e| fail(damage(&e)))?;
        let check: String = conn
            .pragma_query_value(None, "quick_check", |row| row.get(0))
            .map_err(|e| fail(damage(&e)))?;
        if check != "ok" {
            return Err(fail(format!("it is damaged ({check}); restore it from a backup")));
        }
        schema::migrate(&mut conn).map_err(unfit)?;
        // The file's own name must survive a power cut too.
        if let Some(folder) = path.parent() {
            fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| fail(e.to_string()))?;
        }
        audit::guard(&conn).map_err(|e| fail(damage(&e)))?;
        let writer = Writer::start(conn).map_err(|e| fail(e.to_string()))?;
        Ok(Self {
            writer,
            failed: Arc::default(),
            readers: Mutex::new(Vec::new()),
            path: path.to_owned(),
        })
    }

    /// Applies `change` in the next transaction and returns once it is durable. It is for what the daemon notes for
    /// itself: what somebody asked for goes by [`SqliteStore::change`].
    pub async fn write<T, F>(&self, change: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        self.writer.write(change).await
    }

    /// Moves everything committed into the database file itself, as a stopping daemon should: a
    /// copy of the one file is then a whole backup. Nothing is lost if it fails.
    pub fn checkpoint(&self) -> Result<(), Error> {
        let move_all = || -> rusqlite::Result<()> {
            let conn = Connection::open(&self.path)?;
            conn.busy_timeout(Duration::from_secs(2))?;
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        move_all().map_err(|e| Error::sqlite("move the log into the database", e))
    }

    /// Asks a question of everything committed so far. Short questions only: it blocks.
    pub fn read<T>(&self, ask: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        let idle = self.readers.lock().ok().and_then(|mut idle| idle.pop());
        let conn = match idle {
            Some(conn) => conn,
            None => self.reader()?,
        };
        let answer = ask(&conn);
        if let Ok(mut idle) = self.readers.lock()
            && idle.len() < IDLE_READERS
        {
            idle.push(conn);
        }
        answer
    }

    fn reader(&self) -> Result<Connection, Error> {
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(&self.path, flags)?;
            conn.busy_timeout(PATIENCE)?;
            conn.set_prepared_statement_cache_capacity(64);
            conn.pragma_update(None, "cache_size", -2048)?;
            Ok(conn)
        };
        open().map_err(|e| Error::sqlite("open for reading", e))
    }
}

/// What the audit log tells of a token: enough of its hash to tell it from others of the same holder.
pub(super) fn told(token: &TokenRecord) -> serde_json::Value {
    let hash = token.hash.to_string();
    serde_json::json!({
        "user": token.principal,
        "role": token.role,
        "created_at": token.created_at.to_string(),
        "expires_at": token.expires_at.map(|at| at.to_string()),
        "id": hash.get(..12),
    })
}

/// A batch of decisions on its way to the disk.
struct BatchWrite {
    batch: Arc<Batch>,
    failed: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<(), Error>>,
}

impl Work for BatchWrite {
    fn apply(&mut self, conn: &Connection) -> Result<(), Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::Superseded);
        }
        let written = jobs::write(conn, &self.batch)
            .and_then(|()| audit::append(conn, self.batch.audit.iter().cloned()));
        // At once: the next may be in this very transaction.
        self.failed.store(written.is_err(), Ordering::Release);
        written
    }

    fn done(self: Box<Self>, failed: Option<Error>) {
        let Self { batch, failed: fence, reply } = *self;
        if failed.is_some() {
            fence.store(true, Ordering::Release);
        }
        // Before it is answered, so that the asker has it for itself again.
        drop(batch);
        // An asker that has gone away is no longer interested.
        let _ = reply.send(failed.map_or(Ok(()), Err));
    }
}

/// Jobs' environment variables are in it. SQLite gives the files beside it the mode of this one.
fn keep_private(path: &Path) -> io::Result<()> {
    let file =
        fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o700))?;
    }
    Ok(())
}

fn prepare(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_prepared_statement_cache_capacity(128);
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit that has returned survives a power cut. NORMAL would not in WAL mode.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "cache_size", -8192)?;
    // In pages. A page that is written again before its time is moved only once; measured with
    // 64 submissions in flight, the usual 1000 spent a fifth of the writer on moving them.
    conn.pragma_update(None, "wal_autocheckpoint", 8000)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}

fn damage(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            format!("it is damaged ({error}); restore it from a backup")
        }
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            "another program holds it locked; close it (a backup, a sqlite3 shell) and start again"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

impl Store for SqliteStore {
    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<(), Error>> {
        let (reply, written) = oneshot::channel();
        self.writer.push(Box::new(BatchWrite { batch, failed: self.failed.clone(), reply }));
        Box::pin(async { written.await.unwrap_or(Err(Error::Closed)) })
    }

    fn put_token(&self, token: TokenRecord, by: Actor) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.change(by, move |conn| {
            jobs::put_token(conn, &token)?;
            conn.changed(format!("token/{}", token.principal), None, Some(&told(&token)));
            Ok(())
        }))
    }

    fn forget_tokens(&self, hashes: Vec<Digest>, by: Actor) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.change(by, move |conn| {
            let known = jobs::tokens(conn)?;
            jobs::forget_tokens(conn, &hashes)?;
            for token in known.iter().filter(|token| hashes.contains(&token.hash)) {
                conn.changed(format!("token/{}", token.principal), Some(&told(token)), None);
            }
            Ok(())
        }))
    }

    fn tokens(&self) -> Result<Vec<TokenRecord>, Error> {
        self.read(jobs::tokens)
    }

    fn change_people(&self, change: PeopleChange, by: Actor) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.change(by, move |conn| change.apply(conn)))
    }

    fn note_uses(&self, uses: Vec<(Digest, Timestamp)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.write(move |conn| people::note_uses(conn, &uses)))
    }

    fn users(&self) -> Result<Vec<UserRecord>, Error> {
        self.read(people::users)
    }

    fn blocked(&self) -> Result<Vec<BlockRecord>, Error> {
        self.read(blocked::all)
    }

    fn roles(&self) -> Result<Vec<CustomRole>, Error> {
        self.read(people::roles)
    }

    fn recover(&self) -> Result<Recovered, Error> {
        self.failed.store(false, Ordering::Release);
        self.read(jobs::recover)
    }

    fn usage_since(&self, from: Timestamp) -> Result<Vec<PastUse>, Error> {
        self.read(|conn| usage::since(conn, from, usage::MOST))
    }

    fn job(&self, name: &JobName) -> Result<Option<Job>, Error> {
        self.read(|conn| jobs::job(conn, name))
    }

    fn jobs(&self, query: &JobQuery) -> Result<Vec<Job>, Error> {
        self.read(|conn| jobs::list(conn, query))
    }

    fn look_up(&self, submissions: &[Lookup<'_>]) -> Result<Vec<Known>, Error> {
        self.read(|conn| jobs::look_up(conn, submissions))
    }

    fn past(&self, compute: &ComputeName, limit: usize) -> Result<Vec<Past>, Error> {
        self.read(|conn| jobs::past(conn, compute, limit))
    }

    fn events(&self, job: Option<&JobName>, after: u64, limit: usize) -> Result<Vec<Event>, Error> {
        self.read(|conn| jobs::events(conn, job, after, limit))
    }
}
