//! Environments of the workspace as rows: names, and their versions in the order in which they were
//! made.

use atelier_core::environment::{
    Asset, Draft, EnvironmentVersion, Refusal, Registration, Unresolved, VersionEntry,
};
use atelier_core::id::{AssetName, Principal, VersionName};
use atelier_core::spec::AssetVersion;
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::jobs::{column, json, parsed};
use super::{Archived, Error};

pub(super) const MIGRATION: &str = "
CREATE TABLE environments (
    name     TEXT PRIMARY KEY,
    archived INTEGER NOT NULL            -- 1: as a whole
) STRICT, WITHOUT ROWID;
CREATE TABLE environment_versions (
    seq      INTEGER PRIMARY KEY,        -- order of making
    name     TEXT NOT NULL REFERENCES environments (name),
    version  TEXT NOT NULL,
    archived INTEGER NOT NULL,
    record   TEXT NOT NULL,              -- JSON
    UNIQUE (name, version)
) STRICT;
CREATE INDEX environment_versions_name ON environment_versions (name, seq);
";

/// Which versions to list.
#[derive(Clone, Default, Debug)]
pub struct EnvironmentQuery {
    /// Those of this environment, the newest first; `None`: the latest of each, by name.
    pub name: Option<AssetName>,
    /// Only this version, of the environment that is named.
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
pub struct ListedEnvironment {
    /// The version.
    pub version: EnvironmentVersion,
    /// Whether the label `latest` points to it.
    pub latest: bool,
    /// Hidden, by itself or with all its versions.
    pub archived: bool,
    /// What to ask for the next page with.
    pub after: String,
}

/// A page ends when what its environments are made of reaches so many bytes of JSON.
const PAGE_BYTES: usize = 8 << 20;

fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("read environments", error)
}

/// Makes a version, or finds the one that is made of the same and says anew what it is for.
pub fn register(
    conn: &Connection,
    draft: Draft,
    by: Principal,
    at: Timestamp,
) -> Result<Result<EnvironmentVersion, Refusal>, Error> {
    let asset = asset(conn, &draft.name)?;
    let same = match &draft.version {
        Some(version) => self::version(conn, &draft.name, version)?,
        None => None,
    };
    let (version, seen) = match draft.register(asset.as_ref(), same.as_ref()) {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(Registration::New(version)) => (version, None),
        Ok(Registration::Known(version)) => (version, same),
    };
    let made = match seen {
        None => draft.made(version, by, at),
        Some(seen) => {
            EnvironmentVersion { description: draft.description, tags: draft.tags, ..seen }
        }
    };
    let record = json(&made, "environment")?;
    let (name, version) = (made.name.as_str(), made.version.as_str());
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached("INSERT INTO environments VALUES (?1, 0) ON CONFLICT DO NOTHING")?
            .execute([name])?;
        conn.prepare_cached(
            "INSERT INTO environment_versions (name, version, archived, record) VALUES (?1, ?2, 0, ?3)
             ON CONFLICT (name, version) DO UPDATE SET record = excluded.record",
        )?
        .execute(params![name, version, record])?;
        Ok(())
    };
    write().map_err(|error| Error::sqlite("store an environment", error))?;
    Ok(Ok(made))
}

/// Hides an environment or one of its versions from lists, or shows it again.
pub fn archive(
    conn: &Connection,
    name: &AssetName,
    version: Option<&VersionName>,
    archived: bool,
) -> Result<Result<(), Refusal>, Error> {
    let write = |error| Error::sqlite("archive an environment", error);
    let Some(asset) = asset(conn, name)? else {
        return Ok(Err(Unresolved::no_such(name.as_str(), []).into()));
    };
    let Some(version) = version else {
        conn.prepare_cached("UPDATE environments SET archived = ?2 WHERE name = ?1")
            .and_then(|mut s| s.execute(params![name.as_str(), archived]))
            .map_err(write)?;
        return Ok(Ok(()));
    };
    if let Err(unresolved) = asset.resolve(&AssetVersion::Exact(version.to_string())) {
        return Ok(Err(unresolved.into()));
    }
    if asset.archived && !archived {
        let (name, version) = (name.clone(), version.clone());
        return Ok(Err(Refusal::WholeArchived { name, version }));
    }
    conn.prepare_cached(
        "UPDATE environment_versions SET archived = ?3 WHERE name = ?1 AND version = ?2",
    )
    .and_then(|mut s| s.execute(params![name.as_str(), version.as_str(), archived]))
    .map_err(write)?;
    Ok(Ok(()))
}

/// An environment as a whole.
pub fn asset(conn: &Connection, name: &AssetName) -> Result<Option<Asset>, Error> {
    let archived = conn
        .prepare_cached("SELECT archived FROM environments WHERE name = ?1")
        .and_then(|mut s| s.query_row([name.as_str()], |row| row.get(0)).optional())
        .map_err(sql)?;
    let Some(archived) = archived else { return Ok(None) };
    let versions = conn
        .prepare_cached(
            "SELECT version, archived FROM environment_versions WHERE name = ?1 ORDER BY seq DESC",
        )
        .and_then(|mut s| {
            s.query_map([name.as_str()], |row| {
                Ok(VersionEntry { version: parsed(row, 0)?, archived: row.get(1)? })
            })?
            .collect()
        })
        .map_err(sql)?;
    Ok(Some(Asset { name: name.clone(), archived, versions }))
}

/// One version.
pub fn version(
    conn: &Connection,
    name: &AssetName,
    version: &VersionName,
) -> Result<Option<EnvironmentVersion>, Error> {
    conn.prepare_cached("SELECT record FROM environment_versions WHERE name = ?1 AND version = ?2")
        .and_then(|mut s| {
            s.query_row([name.as_str(), version.as_str()], |row| column(row, 0)).optional()
        })
        .map_err(sql)
}

/// The names of all environments.
pub fn names(conn: &Connection) -> Result<Vec<String>, Error> {
    conn.prepare_cached("SELECT name FROM environments ORDER BY name")
        .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
        .map_err(sql)
}

/// Versions, and whether there are more.
pub fn list(
    conn: &Connection,
    query: &EnvironmentQuery,
) -> Result<(Vec<ListedEnvironment>, bool), Error> {
    let only = query.version.as_ref().map(VersionName::as_str);
    let (text, name, after) = match &query.name {
        Some(name) => {
            let after = query.after.clone().unwrap_or_else(|| i64::MAX.to_string());
            (of_one(query.archived), name.as_str(), after)
        }
        None => (latest_of_each(query.archived), "", query.after.clone().unwrap_or_default()),
    };
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let read = || -> rusqlite::Result<(Vec<ListedEnvironment>, bool)> {
        let mut statement = conn.prepare_cached(&text)?;
        let mut rows = statement.query(params![name, after, only, limit.saturating_add(1)])?;
        let (mut listed, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if listed.len() == query.limit || bytes > PAGE_BYTES {
                return Ok((listed, true));
            }
            bytes += row.get_ref(0)?.as_bytes().map_or(0, <[u8]>::len);
            listed.push(ListedEnvironment {
                version: column(row, 0)?,
                archived: row.get(1)?,
                latest: row.get(2)?,
                after: row.get(3)?,
            });
        }
        Ok((listed, false))
    };
    read().map_err(sql)
}

/// The latest version of a name, archived or not: where the label points.
const LATEST: &str = "
    SELECT max(l.seq) FROM environment_versions l
    WHERE l.name = v.name AND l.archived = 0 AND e.archived = 0";

const fn shown(archived: Archived) -> &'static str {
    match archived {
        Archived::Without => "AND NOT (v.archived OR e.archived)",
        Archived::With => "",
        Archived::Only => "AND (v.archived OR e.archived)",
    }
}

/// Parameters: the name, the number before which to go on, the version or nothing, how many.
fn of_one(archived: Archived) -> String {
    let shown = shown(archived);
    format!(
        "SELECT v.record, v.archived OR e.archived, v.seq IS ({LATEST}), CAST(v.seq AS TEXT)
         FROM environment_versions v JOIN environments e ON e.name = v.name
         WHERE v.name = ?1 AND v.seq < CAST(?2 AS INTEGER)
         AND (?3 IS NULL OR v.version = ?3) {shown} ORDER BY v.seq DESC LIMIT ?4"
    )
}

/// Parameters: nothing, the name after which to go on, nothing, how many. Of an environment that has no latest
/// version the newest is shown.
fn latest_of_each(archived: Archived) -> String {
    let shown = shown(archived);
    format!(
        "SELECT v.record, v.archived OR e.archived, v.seq IS ({LATEST}), v.name
         FROM environments e JOIN environment_versions v ON v.name = e.name
         WHERE ?1 = '' AND e.name > ?2 AND ?3 IS NULL
         AND v.seq = (
             SELECT n.seq FROM environment_versions n WHERE n.name = e.name
             ORDER BY n.archived, n.seq DESC LIMIT 1)
         {shown} ORDER BY e.name LIMIT ?4"
    )
}
