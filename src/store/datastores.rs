//! Datastores that were made, as rows.

use atelier_core::datastore::DatastoreRecord;
use atelier_core::id::DatastoreName;
use rusqlite::{Connection, params};

use super::Error;
use super::jobs::{column, json};

pub(super) const MIGRATION: &str = "
CREATE TABLE datastores (
    name   TEXT PRIMARY KEY COLLATE NOCASE,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
";

/// All of them, by name.
pub fn all(conn: &Connection) -> Result<Vec<DatastoreRecord>, Error> {
    conn.prepare_cached("SELECT record FROM datastores ORDER BY name")
        .and_then(|mut s| s.query_map([], |row| column(row, 0))?.collect())
        .map_err(|error| Error::sqlite("read datastores", error))
}

/// Keeps one, in place of what was kept under its name.
pub fn put(conn: &Connection, record: &DatastoreRecord) -> Result<(), Error> {
    let name = record.datastore.name.as_str();
    let record = json(record, "datastore")?;
    conn.prepare_cached(
        "INSERT INTO datastores (name, record) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET record = excluded.record",
    )
    .and_then(|mut s| s.execute(params![name, record]))
    .map(drop)
    .map_err(|error| Error::sqlite("store a datastore", error))
}

/// Forgets one.
pub fn delete(conn: &Connection, name: &DatastoreName) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM datastores WHERE name = ?1")
        .and_then(|mut s| s.execute([name.as_str()]))
        .map(drop)
        .map_err(|error| Error::sqlite("delete a datastore", error))
}
