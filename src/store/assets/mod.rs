//! Assets as rows: the names of each kind, their versions in the order in which they were made, labels, and
//! which jobs use which version.
//!
//! What a version is made of is a JSON record of its kind's: [`Record`].

mod kept;
pub mod models;
pub(super) mod requests;
mod uses;

use std::collections::BTreeMap;

use atelier_core::asset::{Asset, Kind, Refusal, Unresolved, VersionEntry};
use atelier_core::id::{AssetName, DatastoreName, JobName, LabelName, VersionName};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::audit::Asked;
use super::jobs::{column, json, parsed};
use super::{Archived, Error};

pub(super) use kept::register_output;
pub use kept::{
    above, below, change, delete, find, label, of_job, register, register_once, within,
};
pub use uses::{Use, uses};
pub(super) use uses::{forget, record};

/// Environments, which were the only ones before, are taken over.
pub(super) const MIGRATION: &str = "
CREATE TABLE assets (
    id       INTEGER PRIMARY KEY,
    kind     TEXT NOT NULL,              -- environment, data, model
    name     TEXT NOT NULL,
    archived INTEGER NOT NULL,           -- 1: as a whole
    UNIQUE (kind, name)
) STRICT;
CREATE TABLE asset_versions (
    seq       INTEGER PRIMARY KEY,       -- order of making
    asset     INTEGER NOT NULL REFERENCES assets (id),
    version   TEXT NOT NULL,
    number    TEXT,                      -- of one that is a number: its 20 digits
    archived  INTEGER NOT NULL,
    deleted   INTEGER NOT NULL,          -- 1: it is kept only so that its name is not given again
    datastore TEXT,                      -- where it lies, if it lies in one
    path      TEXT,
    job       TEXT,                      -- the job, or run, that wrote it
    record    TEXT NOT NULL,             -- JSON, of its kind
    UNIQUE (asset, version)
) STRICT;
CREATE INDEX asset_versions_asset ON asset_versions (asset, seq);
CREATE INDEX asset_versions_number ON asset_versions (asset, number) WHERE number IS NOT NULL;
CREATE INDEX asset_versions_job ON asset_versions (job) WHERE job IS NOT NULL;
CREATE INDEX asset_versions_place ON asset_versions (datastore, path) WHERE path IS NOT NULL;
CREATE TABLE asset_labels (
    asset   INTEGER NOT NULL REFERENCES assets (id),
    label   TEXT NOT NULL,
    version INTEGER NOT NULL REFERENCES asset_versions (seq),
    PRIMARY KEY (asset, label)
) STRICT, WITHOUT ROWID;
CREATE TABLE asset_uses (
    version INTEGER NOT NULL REFERENCES asset_versions (seq),
    job     INTEGER NOT NULL REFERENCES jobs (seq),
    input   TEXT NOT NULL,
    PRIMARY KEY (version, job, input)
) STRICT, WITHOUT ROWID;
CREATE INDEX asset_uses_job ON asset_uses (job);
INSERT INTO assets (kind, name, archived) SELECT 'environment', name, archived FROM environments;
INSERT INTO asset_versions (seq, asset, version, number, archived, deleted, record)
    SELECT v.seq, a.id, v.version,
        CASE WHEN v.version NOT GLOB '*[^0-9]*' AND length(ltrim(v.version, '0')) <= 20
            AND substr('00000000000000000000' || ltrim(v.version, '0'), -20) <= '18446744073709551615'
        THEN substr('00000000000000000000' || ltrim(v.version, '0'), -20) END,
        v.archived, 0, v.record
    FROM environment_versions v JOIN assets a ON a.name = v.name;
DROP TABLE environment_versions;
DROP TABLE environments;
";

/// What is kept of a version, as its kind has it.
pub trait Record: Serialize + DeserializeOwned {
    /// What it is.
    fn kind(&self) -> Kind;
    /// The asset's name.
    fn name(&self) -> &AssetName;
    /// Which of its versions.
    fn version(&self) -> &VersionName;
    /// Where it lies, if it lies in a datastore.
    fn place(&self) -> Option<(&DatastoreName, &str)> {
        None
    }
    /// The job that wrote it.
    fn job(&self) -> Option<&JobName> {
        None
    }
}

/// Which versions to list.
#[derive(Clone, Default, Debug)]
pub struct AssetQuery {
    /// Those of this asset, the newest first; `None`: the latest of each, by name.
    pub name: Option<AssetName>,
    /// Only this version, of the asset that is named.
    pub version: Option<VersionName>,
    /// Which of archived and others.
    pub archived: Archived,
    /// Only what comes after this one: a name, or the number of a version.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// A version, and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed<T> {
    /// The version.
    pub version: T,
    /// Whether the label `latest` points to it.
    pub latest: bool,
    /// Hidden, by itself or with all its versions.
    pub archived: bool,
    /// People's own labels that point to it.
    pub labels: Vec<LabelName>,
    /// What to ask for the next page with.
    pub after: String,
}

/// A page ends when what its assets are made of reaches so many bytes of JSON.
const PAGE_BYTES: usize = 8 << 20;

/// The version that a draft would be, as it is before it is made, if it is there: for the audit log.
pub fn before<T: Record>(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    asked: Option<&VersionName>,
) -> Result<Option<T>, Error> {
    asked.map_or(Ok(None), |asked| version(conn, kind, name, asked))
}

/// [`archive`], told in the audit log.
pub fn archive_asked(
    asked: &Asked<'_>,
    kind: Kind,
    name: &AssetName,
    version: Option<&VersionName>,
    archived: bool,
) -> Result<Result<(), Refusal>, Error> {
    let done = archive(asked, kind, name, version, archived)?;
    if done.is_ok() {
        let version = version.map(|version| format!(":{version}")).unwrap_or_default();
        let [before, after] = [!archived, archived].map(|is| json!({ "archived": is }));
        let resource = format!("{}/{name}{version}", kind.word());
        asked.changed(resource, Some(&before), Some(&after));
    }
    Ok(done)
}

/// How the audit log names a version.
pub fn resource(record: &impl Record) -> String {
    format!("{}/{}:{}", record.kind().word(), record.name(), record.version())
}

fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("read assets", error)
}

/// Keeps a version: a new one, or what is said anew of one that is there.
pub(super) fn put<T: Record>(conn: &Connection, record: &T) -> Result<(), Error> {
    let text = json(record, "asset")?;
    let (kind, name) = (record.kind().word(), record.name().as_str());
    let (datastore, path) = record.place().map(|(d, path)| (d.as_str(), path)).unzip();
    let job = record.job().map(JobName::as_str);
    let version = record.version().as_str();
    let number = version.parse().ok().map(|number: u64| format!("{number:020}"));
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT INTO assets (kind, name, archived) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING",
        )?
        .execute([kind, name])?;
        conn.prepare_cached(
            "INSERT INTO asset_versions
                 (asset, version, number, archived, deleted, datastore, path, job, record)
             SELECT id, ?3, ?4, 0, 0, ?5, ?6, ?7, ?8 FROM assets WHERE kind = ?1 AND name = ?2
             ON CONFLICT (asset, version) DO UPDATE SET record = excluded.record",
        )?
        .execute(params![kind, name, version, number, datastore, path, job, text])?;
        Ok(())
    };
    write().map_err(|error| Error::sqlite("store an asset", error))
}

/// Hides an asset or one of its versions from lists, or shows it again.
pub fn archive(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    version: Option<&VersionName>,
    archived: bool,
) -> Result<Result<(), Refusal>, Error> {
    let Some(asset) = asset(conn, kind, name, version.map(VersionName::as_str))? else {
        return Ok(Err(Unresolved::no_such(kind, name.as_str(), []).into()));
    };
    if let Err(refusal) = asset.may_archive(version, archived) {
        return Ok(Err(refusal));
    }
    let key = (kind.word(), name.as_str());
    let write = || match version {
        None => conn
            .prepare_cached("UPDATE assets SET archived = ?3 WHERE kind = ?1 AND name = ?2")?
            .execute(params![key.0, key.1, archived]),
        Some(version) => conn
            .prepare_cached(
                "UPDATE asset_versions SET archived = ?4 WHERE version = ?3
                 AND asset = (SELECT id FROM assets WHERE kind = ?1 AND name = ?2)",
            )?
            .execute(params![key.0, key.1, version.as_str(), archived]),
    };
    write().map_err(|error| Error::sqlite("archive an asset", error))?;
    Ok(Ok(()))
}

/// Of an asset's versions: the newest five, the newest that is shown, the one of this name, those that labels point
/// to, and that of the highest number. All that [`Asset`] is asked for follows from these, however many there are.
const TELLING: &str = "
    SELECT version, archived, deleted FROM asset_versions WHERE seq IN (
        SELECT * FROM (SELECT seq FROM asset_versions WHERE asset = ?1 AND deleted = 0
                       ORDER BY seq DESC LIMIT 5)
        UNION SELECT * FROM (SELECT seq FROM asset_versions
                             WHERE asset = ?1 AND deleted = 0 AND archived = 0
                             ORDER BY seq DESC LIMIT 1)
        UNION SELECT seq FROM asset_versions WHERE asset = ?1 AND version = ?2
        UNION SELECT version FROM asset_labels WHERE asset = ?1
        UNION SELECT * FROM (SELECT seq FROM asset_versions WHERE asset = ?1 AND number IS NOT NULL
                             ORDER BY number DESC LIMIT 1)
    ) ORDER BY seq DESC";

/// An asset, with as many of its versions as tell what becomes of `version`, of a further one and of labels.
pub fn asset(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    version: Option<&str>,
) -> Result<Option<Asset>, Error> {
    let found: Option<(i64, bool)> = conn
        .prepare_cached("SELECT id, archived FROM assets WHERE kind = ?1 AND name = ?2")
        .and_then(|mut s| {
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            s.query_row([kind.word(), name.as_str()], read).optional()
        })
        .map_err(sql)?;
    let Some((id, archived)) = found else { return Ok(None) };
    let mut asset = Asset { archived, ..Asset::new(kind, name.clone()) };
    let mut read = || -> rusqlite::Result<BTreeMap<LabelName, VersionName>> {
        let mut versions = conn.prepare_cached(TELLING)?;
        let mut rows = versions.query(params![id, version])?;
        while let Some(row) = rows.next()? {
            let entry = VersionEntry { version: parsed(row, 0)?, archived: row.get(1)? };
            match row.get(2)? {
                true => asset.deleted.push(entry.version),
                false => asset.versions.push(entry),
            }
        }
        conn.prepare_cached(
            "SELECT l.label, v.version FROM asset_labels l JOIN asset_versions v ON v.seq = l.version
             WHERE l.asset = ?1",
        )?
        .query_map([id], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?
        .collect()
    };
    asset.labels = read().map_err(sql)?;
    Ok(Some(asset))
}

/// One version that is not deleted.
pub fn version<T: Record>(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    version: &VersionName,
) -> Result<Option<T>, Error> {
    conn.prepare_cached(
        "SELECT v.record FROM asset_versions v JOIN assets a ON a.id = v.asset
         WHERE a.kind = ?1 AND a.name = ?2 AND v.version = ?3 AND v.deleted = 0",
    )
    .and_then(|mut s| {
        let key = [kind.word(), name.as_str(), version.as_str()];
        s.query_row(key, |row| column(row, 0)).optional()
    })
    .map_err(sql)
}

/// The names of all assets of a kind.
pub fn names(conn: &Connection, kind: Kind) -> Result<Vec<String>, Error> {
    conn.prepare_cached("SELECT name FROM assets WHERE kind = ?1 ORDER BY name")
        .and_then(|mut s| s.query_map([kind.word()], |row| row.get(0))?.collect())
        .map_err(sql)
}

/// Versions, and whether there are more.
pub fn list<T: Record>(
    conn: &Connection,
    kind: Kind,
    query: &AssetQuery,
) -> Result<(Vec<Listed<T>>, bool), Error> {
    let only = query.version.as_ref().map(VersionName::as_str);
    let (text, name, after) = match &query.name {
        Some(name) => {
            let after = query.after.clone().unwrap_or_else(|| i64::MAX.to_string());
            (of_one(query.archived), name.as_str(), after)
        }
        None => (latest_of_each(query.archived), "", query.after.clone().unwrap_or_default()),
    };
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let read = || -> rusqlite::Result<(Vec<Listed<T>>, bool)> {
        let mut statement = conn.prepare_cached(&text)?;
        let values = params![name, after, only, limit.saturating_add(1), kind.word()];
        let mut rows = statement.query(values)?;
        let (mut listed, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if listed.len() == query.limit || bytes > PAGE_BYTES {
                return Ok((listed, true));
            }
            bytes += row.get_ref(0)?.as_bytes().map_or(0, <[u8]>::len);
            listed.push(Listed {
                version: column(row, 0)?,
                archived: row.get(1)?,
                latest: row.get(2)?,
                after: row.get(3)?,
                labels: column(row, 4)?,
            });
        }
        Ok((listed, false))
    };
    read().map_err(sql)
}

/// Where the label `latest` points.
const LATEST: &str = "
    SELECT l.seq FROM asset_versions l
    WHERE l.asset = a.id AND l.deleted = 0 AND l.archived = 0 AND a.archived = 0
    ORDER BY l.seq DESC LIMIT 1";

const LABELS: &str = "
    SELECT json_group_array(b.label ORDER BY b.label) FROM asset_labels b
    WHERE b.asset = v.asset AND b.version = v.seq";

const fn shown(archived: Archived) -> &'static str {
    match archived {
        Archived::Without => "AND NOT (v.archived OR a.archived)",
        Archived::With => "",
        Archived::Only => "AND (v.archived OR a.archived)",
    }
}

/// Parameters: the name, the number before which to go on, the version or nothing, how many, the kind.
fn of_one(archived: Archived) -> String {
    let shown = shown(archived);
    format!(
        "SELECT v.record, v.archived OR a.archived, v.seq IS ({LATEST}), CAST(v.seq AS TEXT), ({LABELS})
         FROM asset_versions v JOIN assets a ON a.id = v.asset
         WHERE a.kind = ?5 AND a.name = ?1 AND v.deleted = 0 AND v.seq < CAST(?2 AS INTEGER)
         AND (?3 IS NULL OR v.version = ?3) {shown} ORDER BY v.seq DESC LIMIT ?4"
    )
}

/// Parameters: nothing, the name after which to go on, nothing, how many, the kind. Of an asset that has no
/// latest version the newest is shown.
fn latest_of_each(archived: Archived) -> String {
    let shown = shown(archived);
    format!(
        "SELECT v.record, v.archived OR a.archived, v.seq IS ({LATEST}), a.name, ({LABELS})
         FROM assets a JOIN asset_versions v ON v.asset = a.id
         WHERE a.kind = ?5 AND ?1 = '' AND a.name > ?2 AND ?3 IS NULL
         AND v.seq = (
             SELECT n.seq FROM asset_versions n WHERE n.asset = a.id AND n.deleted = 0
             ORDER BY n.archived, n.seq DESC LIMIT 1)
         {shown} ORDER BY a.name LIMIT ?4"
    )
}
