//! Where the workspace's own datastores lie, as a row.

use atelier_core::content::Digest;
use atelier_core::datastore::StorageRecord;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

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

/// An object that was moved, or is on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Where it lies in its datastore.
    pub path: String,
    /// The tag of what was copied.
    pub etag: String,
    /// Of its bytes; `None` until they were read back from where they are now.
    pub digest: Option<Digest>,
}

/// What is noted of objects whose paths come after `after`, up to `until` (to the end if `None`), in their order.
pub fn copies(
    conn: &Connection,
    store: &str,
    after: &str,
    until: Option<&str>,
) -> Result<Vec<Copied>, Error> {
    let read = |row: &Row<'_>| {
        let digest: Option<[u8; 32]> = row.get(2)?;
        let digest = digest.map(Digest::from_bytes);
        Ok(Copied { path: row.get(0)?, etag: row.get(1)?, digest })
    };
    conn.prepare_cached(
        "SELECT path, etag, digest FROM storage_copies
         WHERE store = ?1 AND path > ?2 AND (?3 IS NULL OR path <= ?3) ORDER BY path",
    )
    .and_then(|mut s| s.query_map(params![store, after, until], read)?.collect())
    .map_err(|error| Error::sqlite("read what was copied", error))
}

/// Notes objects as they are now.
pub fn note_copies(conn: &Connection, store: &str, objects: &[Copied]) -> Result<(), Error> {
    let note = || -> rusqlite::Result<()> {
        let mut statement = conn.prepare_cached(
            "INSERT INTO storage_copies (store, path, etag, digest) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (store, path) DO UPDATE SET etag = excluded.etag, digest = excluded.digest",
        )?;
        for Copied { path, etag, digest } in objects {
            let digest = digest.as_ref().map(Digest::as_bytes);
            statement.execute(params![store, path, etag, digest])?;
        }
        Ok(())
    };
    note().map_err(|error| Error::sqlite("note what was copied", error))
}

/// Notes that an object is not there any more.
pub fn forget_copy(conn: &Connection, store: &str, path: &str) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM storage_copies WHERE store = ?1 AND path = ?2")
        .and_then(|mut s| s.execute([store, path]))
        .map(drop)
        .map_err(|error| Error::sqlite("note what was removed", error))
}

/// Forgets all that was copied.
pub fn forget_copies(conn: &Connection) -> Result<(), Error> {
    conn.execute("DELETE FROM storage_copies", [])
        .map(drop)
        .map_err(|error| Error::sqlite("forget what was copied", error))
}

/// From now on the data lies here, and is not being moved.
pub fn switch(conn: &Connection, record: &StorageRecord) -> Result<(), Error> {
    put(conn, Role::Current, record)?;
    conn.execute("DELETE FROM storage WHERE role = ?1", [Role::Next.as_str()])
        .map_err(|error| Error::sqlite("store where the storage is", error))?;
    forget_copies(conn)
}
