//! Copies of the database: made while it is written to, looked through, and put back.

use std::path::Path;
use std::time::{Duration, Instant};

use atelier_core::content::Digest;
use atelier_core::datastore::{DatastoreRecord, StorageRecord};
use atelier_core::id::JobName;
use atelier_core::time::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::storage::Role;
use super::{Error, audit, datastores, jobs, schema, secrets, storage};
use crate::vault::KeyId;

/// How long a copy waits for a lock that another program holds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a database holds, as far as it matters to who backs it up or restores it.
#[derive(Debug)]
pub struct Contents {
    /// Its version.
    pub schema: usize,
    /// Jobs that are not over.
    pub live_jobs: u64,
    /// Those among them that wait, and go on when their node is lost.
    pub kept: Vec<JobName>,
    /// Which keys its secrets are sealed with, and how many versions each.
    pub vault_keys: Vec<(KeyId, u64)>,
    /// Datastores that were made.
    pub datastores: Vec<DatastoreRecord>,
    /// Where the workspace's own lie.
    pub storage: Option<StorageRecord>,
    /// The last entry of its audit log: by its hash all before it are known too.
    pub audit: Option<(u64, Digest)>,
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let fail = |error: rusqlite::Error| Error::Open {
        path: path.display().to_string(),
        problem: error.to_string(),
    };
    let conn = Connection::open_with_flags(path, flags).map_err(fail)?;
    conn.busy_timeout(PATIENCE).map_err(fail)?;
    Ok(conn)
}

fn read_only(path: &Path) -> Result<Connection, Error> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
}

/// Copies a database as it is at one instant, whoever writes to it meanwhile. The copy is one file, which exists
/// already, is empty and private.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn copy(from: &Path, to: &Path) -> Result<Contents, Error> {
    let sql = |error| Error::sqlite("copy the database", error);
    let source = read_only(from)?;
    let mut conn = open(to, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    {
        let copying = Backup::new(&source, &mut conn).map_err(sql)?;
        let until = Instant::now() + PATIENCE;
        // In one step, which is one read transaction: with several, each write in between would begin it anew.
        while copying.step(-1).map_err(sql)? != StepResult::Done {
            if Instant::now() > until {
                return Err(Error::Locked { operation: "copy the database" });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    drop(conn);
    let conn = open(to, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Without a log beside it, until the daemon has it.
    conn.pragma_update(None, "journal_mode", "DELETE").map_err(sql)?;
    examine(&conn, to, "integrity_check")
}

/// Looks through a whole database that nobody writes to.
///
/// # Errors
/// It is damaged, newer than this build, or another program's.
pub fn check(path: &Path) -> Result<Contents, Error> {
    examine(&read_only(path)?, path, "integrity_check")
}

/// The same of a database that nobody else is to find: it loses its name once it is open, so that nothing is left of it
/// however this ends.
///
/// # Errors
/// As [`check`].
pub fn check_and_forget(path: &Path) -> Result<Contents, Error> {
    let conn = read_only(path)?;
    // Where a file that is open keeps its name, its folder is removed afterwards.
    let _ = std::fs::remove_file(path);
    let contents = examine(&conn, path, "integrity_check")?;
    if contents.audit.is_some() {
        audit::follow(&conn)?.map_err(|fault| Error::Open {
            path: path.display().to_string(),
            problem: format!("its audit log is not as it was written: {fault}"),
        })?;
    }
    Ok(contents)
}

/// Looks a database over, which may be written to meanwhile: its pages, not whether its indexes fit.
///
/// # Errors
/// As [`check`].
pub fn look_over(path: &Path) -> Result<Contents, Error> {
    examine(&read_only(path)?, path, "quick_check")
}

/// Makes a copy ready to be started on, in the place of one that went on after it was made.
///
/// # Errors
/// It cannot be written.
pub fn put_back(path: &Path, now: Timestamp) -> Result<(), Error> {
    let conn = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let sql = |error| Error::sqlite("set a restored database apart", error);
    conn.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    let change = conn.unchecked_transaction().map_err(sql)?;
    jobs::fence(&change, now)?;
    audit::restored(&change)?;
    change.commit().map_err(sql)
}

fn examine(conn: &Connection, path: &Path, pragma: &str) -> Result<Contents, Error> {
    let unfit = |problem: String| Error::Open { path: path.display().to_string(), problem };
    let sql = |error| Error::sqlite("look through the database", error);
    let schema = schema::version(conn).map_err(|problem| unfit(problem.to_string()))?;
    if schema == 0 {
        return Err(unfit("it is empty".to_owned()));
    }
    let found: String = conn.pragma_query_value(None, pragma, |row| row.get(0)).map_err(sql)?;
    if found != "ok" {
        return Err(unfit(format!("it is damaged ({found}); restore it from a backup")));
    }
    // Tables that older versions lack are looked for.
    let has = |table: &str| -> Result<bool, Error> {
        conn.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)",
            [table],
            |row| row.get(0),
        )
        .map_err(sql)
    };
    let live_jobs = conn
        .query_row("SELECT count(*) FROM jobs WHERE live = 1", [], |row| row.get(0))
        .map_err(sql)?;
    let kept = conn
        .prepare(
            "SELECT name FROM jobs WHERE live = 1 AND status = 'Queued'
                 AND json_extract(spec, '$.on_node_loss') = 'keep' ORDER BY seq",
        )
        .and_then(|mut s| s.query_map([], |row| jobs::parsed(row, 0))?.collect())
        .map_err(sql)?;
    Ok(Contents {
        schema,
        live_jobs,
        kept,
        vault_keys: if has("secret_versions")? { secrets::keys(conn)? } else { Vec::new() },
        datastores: if has("datastores")? { datastores::all(conn)? } else { Vec::new() },
        storage: if has("storage")? { storage::get(conn, Role::Current)? } else { None },
        audit: if has("audit")? { audit::last(conn)? } else { None },
    })
}
