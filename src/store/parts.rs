//! Uploads that are written to stores part by part and that are not complete, as rows: what is left of one whose
//! attempt is over, or that somebody has left lying, can be removed, also after the daemon was killed.

use atelier_core::access::AttemptScope;
use atelier_core::id::{DatastoreName, Principal};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::Error;
use super::jobs::{column, json, parsed};

pub(super) const MIGRATION: &str = "
CREATE TABLE part_uploads (
    id        TEXT PRIMARY KEY,
    attempt   TEXT NOT NULL,             -- JSON: whose it is
    datastore TEXT NOT NULL,
    path      TEXT NOT NULL,
    upload    TEXT NOT NULL,             -- the store's own id of it
    begun_at  INTEGER NOT NULL           -- ms since the epoch
) STRICT, WITHOUT ROWID;
";

/// Whose an upload is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Uploader {
    /// An attempt's.
    Attempt(AttemptScope),
    /// A person's.
    Person {
        /// Who.
        principal: Principal,
    },
}

/// An upload in parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartUpload {
    /// Its name between the daemon and the agent.
    pub id: String,
    /// Whose it is.
    pub by: Uploader,
    /// Where the object is to be.
    pub datastore: DatastoreName,
    /// Its path there.
    pub path: String,
    /// The store's id of it.
    pub upload: String,
    /// When it was begun.
    pub begun_at: Timestamp,
}

const COLUMNS: &str = "id, attempt, datastore, path, upload, begun_at";

fn upload_of(row: &Row<'_>) -> rusqlite::Result<PartUpload> {
    Ok(PartUpload {
        id: row.get(0)?,
        by: column(row, 1)?,
        datastore: parsed(row, 2)?,
        path: row.get(3)?,
        upload: row.get(4)?,
        begun_at: Timestamp::from_millis(row.get(5)?),
    })
}

/// Remembers one.
pub fn begin(conn: &Connection, upload: &PartUpload) -> Result<(), Error> {
    let PartUpload { id, by, datastore, path, upload, begun_at } = upload;
    let by = json(by, "whose an upload is")?;
    conn.prepare_cached("INSERT OR REPLACE INTO part_uploads VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .and_then(|mut s| {
            let begun_at = begun_at.as_millis();
            s.execute(params![id, by, datastore.as_str(), path, upload, begun_at])
        })
        .map(drop)
        .map_err(|error| Error::sqlite("remember an upload", error))
}

/// The one with that id.
pub fn find(conn: &Connection, id: &str) -> Result<Option<PartUpload>, Error> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM part_uploads WHERE id = ?1"))
        .and_then(|mut s| s.query_row([id], upload_of).optional())
        .map_err(|error| Error::sqlite("look for an upload", error))
}

/// All of them, at most `limit` after the one with the id `after`.
pub fn page(conn: &Connection, after: &str, limit: u32) -> Result<Vec<PartUpload>, Error> {
    let query = format!("SELECT {COLUMNS} FROM part_uploads WHERE id > ?1 ORDER BY id LIMIT ?2");
    conn.prepare_cached(&query)
        .and_then(|mut s| s.query_map(params![after, limit], upload_of)?.collect())
        .map_err(|error| Error::sqlite("read uploads", error))
}

/// Forgets one.
pub fn end(conn: &Connection, id: &str) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM part_uploads WHERE id = ?1")
        .and_then(|mut s| s.execute([id]))
        .map(drop)
        .map_err(|error| Error::sqlite("forget an upload", error))
}
