//! The audit log as rows, in the same transaction as what they tell of.
//!
//! Whoever changes what people make (tokens, secrets, datastores, assets, rules) does so by
//! [`SqliteStore::change`], which takes an [`Actor`]; or else the change is refused, see [`guard`].

use std::cell::RefCell;
use std::ops::Deref;

use atelier_core::audit::{Actor, Chain, Change, Checkpoint, Draft, Entry, Fault, START};
use atelier_core::content::Digest;
use atelier_core::id::Principal;
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::{Value, json};

use super::Error;
use super::sqlite::SqliteStore;

/// `AUTOINCREMENT`: SQLite remembers the last number, so that an end that is missing is seen.
pub(super) const MIGRATION: &str = "
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,          -- ms since the epoch
    principal TEXT NOT NULL,
    role      TEXT NOT NULL,
    source    TEXT NOT NULL,             -- an address
    action    TEXT NOT NULL,
    resource  TEXT NOT NULL,             -- KIND/NAME
    refused   TEXT,
    before    TEXT,                      -- JSON
    after     TEXT,                      -- JSON
    previous  BLOB NOT NULL,
    hash      BLOB NOT NULL
) STRICT;
";

/// Tables that nobody writes without an entry. Those of jobs, nodes and computes are the reactor's, which also writes
/// what nobody has asked for.
const GUARDED: [(&str, &[&str]); 16] = [
    ("users", &["INSERT", "UPDATE", "DELETE"]),
    ("roles", &["INSERT", "UPDATE", "DELETE"]),
    ("blocked", &["INSERT", "UPDATE", "DELETE"]),
    // When one was last used is written now and then.
    ("tokens", &["INSERT", "UPDATE OF principal, role, created_by, expires_at", "DELETE"]),
    ("join_tokens", &["INSERT", "UPDATE", "DELETE"]),
    ("node_identities", &["INSERT", "UPDATE", "DELETE"]),
    ("secrets", &["INSERT", "UPDATE", "DELETE"]),
    // That a key is changed is told once, not of each.
    ("secret_versions", &["INSERT", "DELETE"]),
    ("secret_grants", &["INSERT", "DELETE"]),
    ("datastores", &["INSERT", "UPDATE", "DELETE"]),
    ("assets", &["UPDATE", "DELETE"]),
    ("asset_labels", &["INSERT", "UPDATE", "DELETE"]),
    ("asset_versions", &["INSERT", "UPDATE", "DELETE"]),
    ("registered_models", &["INSERT", "UPDATE", "DELETE"]),
    ("model_versions", &["INSERT", "UPDATE", "DELETE"]),
    ("retention", &["INSERT", "UPDATE", "DELETE"]),
];

/// Has the writer's connection notice what is written without an entry.
pub(super) fn guard(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("CREATE TEMP TABLE unaudited (what TEXT PRIMARY KEY) WITHOUT ROWID;")?;
    conn.execute_batch(
        "CREATE TEMP TRIGGER audited AFTER INSERT ON main.audit
         BEGIN DELETE FROM temp.unaudited; END;",
    )?;
    // Not `OR IGNORE`: what an upsert says of conflicts holds for its triggers too, instead of what they say.
    for (table, operations) in GUARDED {
        let is_there = conn
            .prepare("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1")?
            .exists([table])?;
        for operation in operations.iter().filter(|_| is_there) {
            conn.execute_batch(&format!(
                "CREATE TEMP TRIGGER \"guard {table} {operation}\" AFTER {operation} ON main.{table}
                 BEGIN INSERT INTO temp.unaudited SELECT '{table}'
                     WHERE NOT EXISTS (SELECT 1 FROM temp.unaudited WHERE what = '{table}'); END;"
            ))?;
        }
    }
    Ok(())
}

/// That what a piece of work has written has its entry.
pub(super) fn check(conn: &Connection) -> Result<(), Error> {
    let found: Option<String> = conn
        .prepare_cached("SELECT what FROM temp.unaudited LIMIT 1")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map_err(sql)?;
    match found {
        None => Ok(()),
        Some(table) => {
            conn.execute_batch("DELETE FROM temp.unaudited").map_err(sql)?;
            Err(Error::Unaudited { table })
        }
    }
}

fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("write the audit log", error)
}

/// A transaction that somebody has asked for.
pub struct Asked<'c> {
    conn: &'c Connection,
    changes: RefCell<Vec<Change>>,
}

impl Deref for Asked<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.conn
    }
}

#[cfg(test)]
impl<'c> Asked<'c> {
    /// What it notes is told nowhere.
    pub(super) fn on(conn: &'c Connection) -> Self {
        Self { conn, changes: RefCell::default() }
    }
}

impl Asked<'_> {
    /// Notes what has become of a record: how it was, and how it is.
    pub fn changed<T: Serialize>(
        &self,
        resource: impl Into<String>,
        before: Option<&T>,
        after: Option<&T>,
    ) {
        self.note(Change::new(resource, before, after));
    }

    /// Notes what was done.
    pub fn done(&self, resource: impl Into<String>, what: &Value) {
        self.note(Change::done(resource, what));
    }

    fn note(&self, change: Change) {
        self.changes.borrow_mut().push(change);
    }
}

impl SqliteStore {
    /// Applies a change that somebody asked for, with what it notes of itself as entries of the audit log, in the next
    /// transaction; returns once both are durable.
    pub async fn change<T, F>(&self, by: impl Into<Actor>, change: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Asked<'_>) -> Result<T, Error> + Send + 'static,
    {
        let by = by.into();
        self.write(move |conn| {
            let asked = Asked { conn, changes: RefCell::default() };
            let result = change(&asked)?;
            let drafts = asked.changes.into_inner().into_iter();
            append(conn, drafts.map(|change| by.clone().changes(change)))?;
            Ok(result)
        })
        .await
    }

    /// Takes away the entries from before this time, and tells of it in one that follows those that stay: how many
    /// went, and the last of them. Nothing is told where none is that old.
    pub async fn prune_audit(
        &self,
        by: Actor,
        before: Timestamp,
    ) -> Result<Option<(u64, Checkpoint)>, Error> {
        // Up to the first that stays: what follows it stays too, whatever its time.
        const LAST: &str = "SELECT seq, hash FROM audit
            WHERE seq < coalesce((SELECT min(seq) FROM audit WHERE at >= ?1), 9223372036854775807)
            ORDER BY seq DESC LIMIT 1";
        self.write(move |conn| {
            let last = conn
                .query_row(LAST, [before.as_millis()], |row| Ok((row.get(0)?, hash_of(row, 1)?)))
                .optional()
                .map_err(sql)?;
            let Some((through, head)) = last else { return Ok(None) };
            let cut = Checkpoint { through, head };
            let what = serde_json::to_value(cut).unwrap_or_default();
            append(conn, [by.changes(Change::done(Checkpoint::RESOURCE, &what))])?;
            let gone = conn.execute("DELETE FROM audit WHERE seq <= ?1", [through]).map_err(sql)?;
            Ok(Some((gone as u64, cut)))
        })
        .await
    }

    /// Appends what happened outside of a transaction.
    pub async fn audit(&self, drafts: Vec<Draft>) -> Result<(), Error> {
        self.write(move |conn| append(conn, drafts)).await
    }

    /// Entries, as the query says.
    pub fn audited(&self, query: &AuditQuery) -> Result<Vec<Entry>, Error> {
        self.read(|conn| list(conn, query))
    }

    /// When the last of all that is recorded happened: an event of a job, or an entry here.
    pub fn recorded_last(&self) -> Result<Option<Timestamp>, Error> {
        const LAST: &str = "SELECT max(at) FROM (
            SELECT at FROM (SELECT at FROM events ORDER BY seq DESC LIMIT 1)
            UNION ALL SELECT at FROM (SELECT at FROM audit ORDER BY seq DESC LIMIT 1))";
        self.read(|conn| {
            let last = conn.query_row(LAST, [], |row| row.get::<_, Option<i64>>(0));
            Ok(last.map_err(sql)?.map(Timestamp::from_millis))
        })
    }

    /// The number that the last entry was given, and the number and hash of the last that there is.
    pub fn audit_head(&self) -> Result<(u64, u64, Digest), Error> {
        self.read(|conn| {
            let (last, hash) = head(conn)?;
            Ok((given(conn)?, last, hash))
        })
    }
}

fn now() -> Timestamp {
    atelier_agent::clock::wall()
}

/// The number and the hash of the last entry; `None`: there is none.
pub(super) fn last(conn: &Connection) -> Result<Option<(u64, Digest)>, Error> {
    Ok(Some(head(conn)?).filter(|(last, _)| *last > 0))
}

/// Follows the whole log, entry by entry; what is wrong with it, if anything is.
pub(super) fn follow(conn: &Connection) -> Result<Result<(), Fault>, Error> {
    let mut chain = Chain::whole();
    let mut query = AuditQuery { oldest_first: true, limit: 1000, ..AuditQuery::default() };
    loop {
        let page = list(conn, &query)?;
        let Some(last) = page.last() else { break };
        query.after = Some(last.seq);
        for entry in &page {
            if let Err(fault) = chain.follow(entry) {
                return Ok(Err(fault));
            }
        }
    }
    let last = match chain.end() {
        Ok(found) => found.map_or(0, |(_, last, _)| last),
        Err(fault) => return Ok(Err(fault)),
    };
    match given(conn)? {
        given if given > last => Ok(Err(Fault::Missing { first: last + 1, last: given })),
        _ => Ok(Ok(())),
    }
}

/// The number that the last entry was given, also if that is gone.
fn given(conn: &Connection) -> Result<u64, Error> {
    let given: Option<u64> = conn
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'audit'")
        .and_then(|mut s| s.query_row([], |row| row.get(0)).optional())
        .map_err(sql)?;
    Ok(given.unwrap_or_default())
}

/// Tells that a backup took the place of what came after this log's last entry. Nothing in a database of before there
/// was a log.
pub(super) fn restored(conn: &Connection) -> Result<(), Error> {
    let is_there = conn
        .prepare("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'audit'")
        .and_then(|mut s| s.exists([]))
        .map_err(sql)?;
    let Ok(daemon) = Principal::new("daemon") else { return Ok(()) };
    if !is_there {
        return Ok(());
    }
    let (seq, head) = head(conn)?;
    let what = json!({ "after_entry": seq, "head": head.to_string() });
    let by = Actor::daemon(daemon, "backup/restore");
    append(conn, [by.changes(Change::done("workspace/database", &what))])
}

fn hash_of(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    // One of another length is no hash of any entry.
    Ok(row.get_ref(index)?.as_blob().ok().and_then(|blob| blob.try_into().ok()).unwrap_or(START))
}

/// The last entry.
fn head(conn: &Connection) -> Result<(u64, Digest), Error> {
    conn.prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .and_then(|mut s| s.query_row([], |row| Ok((row.get(0)?, hash_of(row, 1)?))).optional())
        .map(|head| head.unwrap_or((0, START)))
        .map_err(sql)
}

/// Appends entries. Those of a transaction that is rolled back go with it, and the next has their numbers.
pub(super) fn append(
    conn: &Connection,
    drafts: impl IntoIterator<Item = Draft>,
) -> Result<(), Error> {
    let mut drafts = drafts.into_iter().peekable();
    if drafts.peek().is_none() {
        return Ok(());
    }
    let (mut last, at) = (head(conn)?, now());
    let mut insert = conn
        .prepare_cached(
            "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )
        .map_err(sql)?;
    for draft in drafts {
        let entry = draft.after(last, at);
        insert
            .execute(params![
                entry.seq,
                entry.at.as_millis(),
                entry.principal,
                entry.role,
                entry.from,
                entry.action,
                entry.resource,
                entry.refused,
                entry.before,
                entry.after,
                entry.previous.as_bytes(),
                entry.hash.as_bytes(),
            ])
            .map_err(sql)?;
        last = (entry.seq, entry.hash);
    }
    Ok(())
}

/// Which entries to list.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AuditQuery {
    /// The oldest first, instead of the newest.
    pub oldest_first: bool,
    /// Only those after this one in that order.
    pub after: Option<u64>,
    /// Only those since.
    pub since: Option<Timestamp>,
    /// Only this one's; empty: anybody's.
    pub principal: String,
    /// Only those whose action has this in it.
    pub action: String,
    /// Only those of this resource, or of this kind.
    pub resource: String,
    /// At most so many.
    pub limit: usize,
}

fn list(conn: &Connection, query: &AuditQuery) -> Result<Vec<Entry>, Error> {
    let (is_after, order) = match query.oldest_first {
        true => (">", "ASC"),
        false => ("<", "DESC"),
    };
    let text = format!(
        "SELECT seq, at, principal, role, source, action, resource, refused, before, after, previous, hash
         FROM audit WHERE seq {is_after} ?1 AND at >= ?2 AND (?3 = '' OR principal = ?3)
         AND (?4 = '' OR instr(lower(action), lower(?4)) > 0)
         AND (?5 = '' OR resource = ?5 OR substr(resource, 1, length(?5) + 1) = ?5 || '/')
         ORDER BY seq {order} LIMIT ?6"
    );
    let after = query.after.and_then(|after| i64::try_from(after).ok());
    let after = after.unwrap_or(if query.oldest_first { 0 } else { i64::MAX });
    let since = query.since.map_or(i64::MIN, Timestamp::as_millis);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let entry_of = |row: &Row<'_>| {
        Ok(Entry {
            seq: row.get(0)?,
            at: Timestamp::from_millis(row.get(1)?),
            principal: row.get(2)?,
            role: row.get(3)?,
            from: row.get(4)?,
            action: row.get(5)?,
            resource: row.get(6)?,
            refused: row.get(7)?,
            before: row.get(8)?,
            after: row.get(9)?,
            previous: hash_of(row, 10)?,
            hash: hash_of(row, 11)?,
        })
    };
    let (principal, action, resource) = (&query.principal, &query.action, &query.resource);
    conn.prepare_cached(&text)
        .and_then(|mut s| {
            s.query_map(params![after, since, principal, action, resource, limit], entry_of)?
                .collect()
        })
        .map_err(|error| Error::sqlite("read the audit log", error))
}
