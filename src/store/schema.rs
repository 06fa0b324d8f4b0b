//! The database's shape and how it came to be: numbered migrations, each in a transaction.

use rusqlite::Connection;

/// Marks the file as ours (`atel`).
const APPLICATION_ID: i32 = 0x6174_656c;

/// Migrations in order; the n-th makes version n. Never change one that has been released.
const MIGRATIONS: &[&str] = &[
    JOBS,
    super::tracking::MIGRATION,
    EVENTS_BY_NUMBER,
    COMPUTES,
    JOBS_BY_END,
    super::environments::MIGRATION,
    super::secrets::MIGRATION,
    super::datastores::MIGRATION,
    super::assets::MIGRATION,
    super::secret_uses::MIGRATION,
    super::parts::MIGRATION,
    super::assets::requests::MIGRATION,
    super::retention::MIGRATION,
    super::storage::MIGRATION,
    super::retention::BY_PATH,
    super::secrets::ROTATION,
    super::people::MIGRATION,
    super::nodes::MIGRATION,
    super::audit::MIGRATION,
    super::blocked::MIGRATION,
    super::tracking::MODELS_MIGRATION,
    super::assets::models::MIGRATION,
    super::tracking::DELETED_MIGRATION,
    super::tracking::RANKED_MIGRATION,
    super::tracking::DELETED_MODELS_MIGRATION,
    super::secrets::BY_NUMBER,
];

/// The version this build writes.
pub const LATEST: usize = MIGRATIONS.len();

const JOBS: &str = "
CREATE TABLE jobs (
    seq        INTEGER PRIMARY KEY,      -- order of submission
    name       TEXT NOT NULL UNIQUE,
    experiment TEXT NOT NULL,
    status     TEXT NOT NULL,
    live       INTEGER NOT NULL,         -- 1 until it is over
    archived   INTEGER NOT NULL DEFAULT 0,
    compute    TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,         -- ms since the epoch
    spec       TEXT NOT NULL,            -- JSON, written once
    state      TEXT NOT NULL,            -- JSON
    tries      TEXT NOT NULL             -- JSON
) STRICT;
CREATE INDEX jobs_live ON jobs (seq) WHERE live = 1;
CREATE INDEX jobs_experiment ON jobs (experiment, seq);
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY,
    job       TEXT NOT NULL,
    at        INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    principal TEXT NOT NULL,
    status    TEXT NOT NULL,
    kind      TEXT NOT NULL              -- JSON, tagged by its name
) STRICT;
CREATE INDEX events_job ON events (job, seq);
CREATE TABLE idempotency (
    principal   TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    job         TEXT NOT NULL,
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE nodes (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    hash       BLOB PRIMARY KEY,
    principal  TEXT NOT NULL,
    role       TEXT NOT NULL,            -- JSON
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('epoch', 0), ('seq', 0), ('event', 0);
";

/// Events know their job by its number: numbers grow, so the index grows at its end. By name, each
/// event wrote a page of the index of its own.
const EVENTS_BY_NUMBER: &str = "
ALTER TABLE events RENAME TO events_by_name;
DROP INDEX events_job;
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY,
    job       INTEGER NOT NULL REFERENCES jobs (seq),
    at        INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    principal TEXT NOT NULL,
    status    TEXT NOT NULL,
    kind      TEXT NOT NULL              -- JSON, tagged by its name
) STRICT;
INSERT INTO events
    SELECT e.seq, j.seq, e.at, e.attempt, e.principal, e.status, e.kind
    FROM events_by_name e JOIN jobs j ON j.name = e.job;
DROP TABLE events_by_name;
CREATE INDEX events_job ON events (job, seq);
";

/// Clusters and the nodes that they have asked for.
const COMPUTES: &str = "
CREATE TABLE computes (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
    node   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
";

/// Finished jobs by when they ended, for what users have used lately; and by compute, the newest last:
/// how long jobs take there is asked often.
const JOBS_BY_END: &str = "
CREATE INDEX jobs_ended ON jobs (json_extract(state, '$.ended.at')) WHERE live = 0;
CREATE INDEX jobs_over ON jobs (compute, seq) WHERE live = 0;
";

/// Says whose the database is and of which version, and changes nothing: 0 is a new one.
pub(super) fn version(conn: &Connection) -> Result<usize, Problem> {
    let application: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: usize = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: usize =
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    // Most programs leave the application id at zero; so does a new file.
    let new = application == 0 && version == 0 && tables == 0;
    if application != APPLICATION_ID && !new {
        return Err(Problem::NotOurs);
    }
    if version > LATEST {
        return Err(Problem::Newer(version));
    }
    Ok(version)
}

/// Brings a database to [`LATEST`]. Each step is one transaction, version number included, so a
/// crash leaves either the old shape or the new one.
pub(super) fn migrate(conn: &mut Connection) -> Result<(), Problem> {
    let version = version(conn)?;
    upgrade(conn, version, LATEST)
}

fn upgrade(conn: &mut Connection, from: usize, to: usize) -> Result<(), Problem> {
    for (index, sql) in MIGRATIONS.iter().enumerate().take(to).skip(from) {
        let step = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
        step.execute_batch(sql)?;
        crate::failpoint::hit("migrate");
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", index + 1)?;
        step.commit()?;
    }
    Ok(())
}

/// The version of a database that is the last without this migration.
#[cfg(test)]
pub(super) fn before(migration: &str) -> usize {
    MIGRATIONS.iter().position(|sql| *sql == migration).unwrap_or(LATEST)
}

/// Makes what an earlier build made: a database of `version`.
#[cfg(test)]
pub(super) fn migrate_to(conn: &mut Connection, version: usize) -> Result<(), Problem> {
    upgrade(conn, 0, version)
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it was made by another program; choose another data folder")]
    NotOurs,
    #[error(
        "it has version {0}, and this build knows versions up to {LATEST}; use the newer atelier"
    )]
    Newer(usize),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}
