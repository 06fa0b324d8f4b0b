//! Requests that made a version, by their keys: one that comes again finds what it made.

use atelier_core::asset::{Kind, Version};
use atelier_core::id::Principal;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::IdempotencyKey;
use super::super::jobs::column;
use super::{Error, sql};

pub(in crate::store) const MIGRATION: &str = "
CREATE TABLE asset_requests (
    principal   TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    version     INTEGER NOT NULL REFERENCES asset_versions (seq),
    PRIMARY KEY (principal, key)
) STRICT, WITHOUT ROWID;
";

/// What a request has made before.
pub(super) enum Before {
    /// This version, by the same request.
    Made(Box<Version>),
    /// This version, by a request for something else.
    OfAnother(Box<Version>),
}

/// What the request of this key has made, if it has come before.
pub(super) fn before(
    conn: &Connection,
    by: &Principal,
    key: &IdempotencyKey,
) -> Result<Option<Before>, Error> {
    let found: Option<(Version, Vec<u8>)> = conn
        .prepare_cached(
            "SELECT v.record, r.fingerprint FROM asset_requests r
             JOIN asset_versions v ON v.seq = r.version WHERE r.principal = ?1 AND r.key = ?2",
        )
        .and_then(|mut s| {
            let read = |row: &rusqlite::Row<'_>| Ok((column(row, 0)?, row.get(1)?));
            s.query_row([by.as_str(), &key.key], read).optional()
        })
        .map_err(sql)?;
    Ok(found.map(|(version, fingerprint)| {
        let same = fingerprint == key.fingerprint.as_bytes();
        let version = Box::new(version);
        if same { Before::Made(version) } else { Before::OfAnother(version) }
    }))
}

/// Remembers what a request has made.
pub(super) fn remember(
    conn: &Connection,
    by: &Principal,
    key: &IdempotencyKey,
    made: &Version,
) -> Result<(), Error> {
    let kind: Kind = made.kind();
    let (name, version) = (made.name.as_str(), made.version.as_str());
    conn.prepare_cached(
        "INSERT INTO asset_requests (principal, key, fingerprint, version)
         SELECT ?1, ?2, ?3, v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
         WHERE a.kind = ?4 AND a.name = ?5 AND v.version = ?6",
    )
    .and_then(|mut s| {
        let fingerprint = key.fingerprint.as_bytes();
        s.execute(params![by.as_str(), key.key, fingerprint, kind.word(), name, version])
    })
    .map(drop)
    .map_err(|error| Error::sqlite("store an asset", error))
}
