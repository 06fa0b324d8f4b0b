//! Where the workspace's own datastores lie, as a row.

use atelier_core::datastore::StorageRecord;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::Error;
use super::jobs::{column, json};

pub(super) const MIGRATION: &str = "
CREATE TABLE storage (
    role   TEXT PRIMARY KEY,             -- current, or next: where it is being moved to
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE storage_copies (            -- what has been moved there, or is on its way
    store  TEXT NOT NULL,
    path   TEXT NOT NULL,
    etag   TEXT NOT NULL,                -- of what was copied
    digest BLOB,                         -- NULL until the copy was read back
    PRIMARY KEY (store, path)
) STRICT, WITHOUT ROWID;
";

/// Which of a workspace's storages is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Where its data lies.
    Current,
    /// Where its data is being moved to.
    Next,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
        }
    }
}

/// Where the data lies, or is moved to; `None`: nothing was kept of that.
pub fn get(conn: &Connection, role: Role) -> Result<Option<StorageRecord>, Error> {
    conn.prepare_cached("SELECT record FROM storage WHERE role = ?1")
        .and_then(|mut s| s.query_row([role.as_str()], |row| column(row, 0)).optional())
        .map_err(|error| Error::sqlite("read where the storage is", error))
}

/// Keeps where the data lies, or is moved to.
pub fn put(conn: &Connection, role: Role, record: &StorageRecord) -> Result<(), Error> {
    let record = json(record, "storage")?;
    conn.prepare_cached(
        "INSERT INTO storage (role, record) VALUES (?1, ?2)
         ON CONFLICT (role) DO UPDATE SET record = excluded.record",
    )
    .and_then(|mut s| s.execute(params![role.as_str(), record]))
    .map(drop)
    .map_err(|error| Error::sqlite("store where the storage is", error))
}
