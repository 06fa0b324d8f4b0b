//! Environments of the workspace as rows: [`super::assets`] of their kind.

use atelier_core::asset::{Asset, Kind, Refusal, Registration};
use atelier_core::environment::{Draft, EnvironmentVersion};
use atelier_core::id::{AssetName, Principal, VersionName};
use atelier_core::time::Timestamp;
use rusqlite::Connection;

use super::Error;
use super::assets::{self, AssetQuery, Listed, Record};

/// As it was before there were other assets; [`assets::MIGRATION`] takes it over.
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

/// A version, and where it stands.
pub type ListedEnvironment = Listed<EnvironmentVersion>;

impl Record for EnvironmentVersion {
    fn kind(&self) -> Kind {
        Kind::Environment
    }

    fn name(&self) -> &AssetName {
        &self.name
    }

    fn version(&self) -> &VersionName {
        &self.version
    }
}

/// Makes a version, or finds the one that is made of the same and says anew what it is for.
pub fn register(
    conn: &Connection,
    draft: Draft,
    by: Principal,
    at: Timestamp,
) -> Result<Result<EnvironmentVersion, Refusal>, Error> {
    let asked = draft.version.as_ref().map(VersionName::as_str);
    let known = asset(conn, &draft.name, asked)?;
    let known = known.unwrap_or_else(|| Asset::new(Kind::Environment, draft.name.clone()));
    let same = match &draft.version {
        Some(version) => self::version(conn, &draft.name, version)?,
        None => None,
    };
    let is_same = same.as_ref().map(|same| same.is_made_of(&draft.environment));
    let made = match (known.register(draft.version.as_ref(), is_same), same) {
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(Registration::Known(_)), Some(same)) => {
            EnvironmentVersion { description: draft.description, tags: draft.tags, ..same }
        }
        (Ok(Registration::New(version) | Registration::Known(version)), _) => {
            draft.made(version, by, at)
        }
    };
    assets::put(conn, &made)?;
    Ok(Ok(made))
}

/// Hides an environment or one of its versions from lists, or shows it again.
pub fn archive(
    conn: &Connection,
    name: &AssetName,
    version: Option<&VersionName>,
    archived: bool,
) -> Result<Result<(), Refusal>, Error> {
    assets::archive(conn, Kind::Environment, name, version, archived)
}

/// An environment, as [`assets::asset`] tells it.
pub fn asset(
    conn: &Connection,
    name: &AssetName,
    version: Option<&str>,
) -> Result<Option<Asset>, Error> {
    assets::asset(conn, Kind::Environment, name, version)
}

/// One version.
pub fn version(
    conn: &Connection,
    name: &AssetName,
    version: &VersionName,
) -> Result<Option<EnvironmentVersion>, Error> {
    assets::version(conn, Kind::Environment, name, version)
}

/// The names of all environments.
pub fn names(conn: &Connection) -> Result<Vec<String>, Error> {
    assets::names(conn, Kind::Environment)
}

/// Versions, and whether there are more.
pub fn list(
    conn: &Connection,
    query: &AssetQuery,
) -> Result<(Vec<ListedEnvironment>, bool), Error> {
    assets::list(conn, Kind::Environment, query)
}
