//! Models as MLflow's registry has them: what it keeps of a name, and of a version beside the record
//! that all models have. The version itself, its tags, its stage and its labels are the asset's.

mod search;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use atelier_core::asset::{Kind, Version};
use atelier_core::id::{AssetName, JobName, LabelName, Principal, VersionName};
use atelier_core::time::Timestamp;
use atelier_core::track::registry::Stage;
use atelier_core::track::{Error as Refusal, RunId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::super::Error;
use super::super::jobs::{column, parsed};

pub use search::{ModelQuery, VersionQuery, search_models, search_versions};
pub use write::{
    Lineage, ModelChange, NewVersion, VersionChange, change_model, change_version, create_model,
    create_version, delete_model, delete_version, rename_model, set_alias, unset_alias,
};

/// Models that there were before are taken over: whoever made the first version is the model's owner.
pub(in crate::store) const MIGRATION: &str = "
CREATE TABLE registered_models (
    asset       INTEGER PRIMARY KEY REFERENCES assets (id),
    owner       TEXT NOT NULL,
    description TEXT,
    tags        TEXT NOT NULL,           -- JSON: an object of texts
    created     INTEGER NOT NULL,        -- ms since the epoch, as all times here
    updated     INTEGER NOT NULL
) STRICT;
CREATE TABLE model_versions (
    version  INTEGER PRIMARY KEY REFERENCES asset_versions (seq),
    source   TEXT,                       -- as it was registered; without: where it lies
    run      TEXT,                       -- the run that made it
    run_link TEXT,
    logged   TEXT,                       -- the logged model that it is
    created  INTEGER NOT NULL,
    updated  INTEGER NOT NULL
) STRICT;
CREATE INDEX model_versions_run ON model_versions (run) WHERE run IS NOT NULL;
CREATE INDEX model_versions_updated ON model_versions (updated);
INSERT INTO model_versions (version, run, created, updated)
    SELECT v.seq, v.job, json_extract(v.record, '$.created_at'), json_extract(v.record, '$.created_at')
    FROM asset_versions v JOIN assets a ON a.id = v.asset WHERE a.kind = 'model';
INSERT INTO registered_models (asset, owner, tags, created, updated)
    SELECT a.id,
        (SELECT json_extract(v.record, '$.created_by') FROM asset_versions v WHERE v.asset = a.id
         ORDER BY v.seq LIMIT 1),
        '{}', min(m.created), max(m.updated)
    FROM assets a JOIN asset_versions v ON v.asset = a.id JOIN model_versions m ON m.version = v.seq
    WHERE a.kind = 'model' GROUP BY a.id;
";

/// A registered model.
#[derive(Clone, PartialEq, Debug)]
pub struct RegisteredModel {
    /// Its name, an asset's.
    pub name: AssetName,
    /// Who made it.
    pub owner: Principal,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs for people.
    pub tags: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it, or a version of it, was last made or changed; tags and aliases aside.
    pub updated: Timestamp,
    /// Of each stage the version of the highest number, archived ones aside.
    pub latest: Vec<ModelVersion>,
    /// Where its aliases point.
    pub aliases: BTreeMap<LabelName, VersionName>,
}

/// A version of a registered model.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelVersion {
    /// The asset's.
    pub version: Version,
    /// As it was registered, or where it lies.
    pub source: String,
    /// The run that made it.
    pub run: Option<RunId>,
    /// Where that run is to be seen, as the client says.
    pub run_link: Option<String>,
    /// The logged model that it is.
    pub logged: Option<String>,
    /// When it was made, or what is said of it last changed; tags and aliases aside.
    pub updated: Timestamp,
    /// The labels that point to it.
    pub aliases: Vec<LabelName>,
}

impl ModelVersion {
    /// Its stage in MLflow's words, or the word that people gave it.
    pub fn stage(&self) -> String {
        Stage::shown(self.version.stage.as_deref()).into_owned()
    }
}

fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("read registered models", error)
}

fn no_model(name: &AssetName) -> Error {
    Refusal::NoRegisteredModel(name.to_string()).into()
}

fn no_version(name: &AssetName, version: &str) -> Error {
    Refusal::NoModelVersion { name: name.to_string(), version: version.to_owned() }.into()
}

const MODEL_COLUMNS: &str =
    "a.name, r.owner, r.description, r.tags, r.created, r.updated, a.id, a.archived";

/// A row of [`MODEL_COLUMNS`], without latest versions and aliases; its asset, and whether that is archived.
fn model_row(row: &Row<'_>) -> rusqlite::Result<(RegisteredModel, i64)> {
    let model = RegisteredModel {
        name: parsed(row, 0)?,
        owner: parsed(row, 1)?,
        description: row.get(2)?,
        tags: column(row, 3)?,
        created: Timestamp::from_millis(row.get(4)?),
        updated: Timestamp::from_millis(row.get(5)?),
        latest: Vec::new(),
        aliases: BTreeMap::new(),
    };
    Ok((model, row.get(6)?))
}

const VERSION_COLUMNS: &str =
    "v.record, m.source, m.run, m.run_link, m.logged, m.updated, v.datastore, v.path,
    (SELECT json_group_array(b.label ORDER BY b.label) FROM asset_labels b
     WHERE b.asset = v.asset AND b.version = v.seq)";

const VERSIONS: &str = "asset_versions v JOIN assets a ON a.id = v.asset AND a.kind = 'model'
    JOIN model_versions m ON m.version = v.seq";

fn version_row(row: &Row<'_>) -> rusqlite::Result<ModelVersion> {
    let version: Version = column(row, 0)?;
    let place = || -> rusqlite::Result<String> {
        let (datastore, path): (Option<String>, Option<String>) = (row.get(6)?, row.get(7)?);
        let datastore = datastore.unwrap_or_default();
        Ok(atelier_core::layout::datastore_uri(&datastore, &path.unwrap_or_default()))
    };
    Ok(ModelVersion {
        version,
        source: row.get::<_, Option<String>>(1)?.map_or_else(place, Ok)?,
        // What is no run's id any more is no run.
        run: row.get::<_, Option<String>>(2)?.and_then(|run| RunId::new(&run).ok()),
        run_link: row.get(3)?,
        logged: row.get(4)?,
        updated: Timestamp::from_millis(row.get(5)?),
        aliases: column(row, 8)?,
    })
}

/// A registered model.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`] if there is none.
pub fn model(conn: &Connection, name: &AssetName) -> Result<RegisteredModel, Error> {
    let found = conn
        .prepare_cached(&format!(
            "SELECT {MODEL_COLUMNS} FROM registered_models r JOIN assets a ON a.id = r.asset
             WHERE a.kind = 'model' AND a.name = ?1"
        ))
        .and_then(|mut s| s.query_row([name.as_str()], model_row).optional())
        .map_err(sql)?;
    let (mut model, asset) = found.ok_or_else(|| no_model(name))?;
    fill(conn, asset, &mut model)?;
    Ok(model)
}

/// Adds the latest versions and aliases.
fn fill(conn: &Connection, asset: i64, model: &mut RegisteredModel) -> Result<(), Error> {
    model.latest = latest(conn, asset)?;
    model.aliases = conn
        .prepare_cached(
            "SELECT l.label, v.version FROM asset_labels l JOIN asset_versions v ON v.seq = l.version
             WHERE l.asset = ?1",
        )
        .and_then(|mut s| {
            s.query_map([asset], |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))?.collect()
        })
        .map_err(sql)?;
    Ok(())
}

/// Of each stage the version of the highest number. Clients count with them, so versions that are words are
/// left out, and a number is written as MLflow writes it.
fn latest(conn: &Connection, asset: i64) -> Result<Vec<ModelVersion>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {VERSION_COLUMNS} FROM {VERSIONS} WHERE v.seq IN (
            SELECT seq FROM (
                SELECT v.seq AS seq, row_number() OVER (
                    PARTITION BY lower(coalesce(json_extract(v.record, '$.stage'), 'none'))
                    ORDER BY v.number DESC) AS place
                FROM asset_versions v JOIN assets a ON a.id = v.asset
                WHERE v.asset = ?1 AND v.deleted = 0 AND NOT (v.archived OR a.archived)
                    AND v.version = ltrim(v.number, '0'))
            WHERE place = 1)
         ORDER BY v.number DESC"
    ))
    .and_then(|mut s| s.query_map([asset], version_row)?.collect())
    .map_err(sql)
}

/// One version; archived ones, too.
///
/// # Errors
/// [`Refusal::NoModelVersion`] if there is none.
pub fn version(
    conn: &Connection,
    name: &AssetName,
    version: &VersionName,
) -> Result<ModelVersion, Error> {
    let found = conn
        .prepare_cached(&format!(
            "SELECT {VERSION_COLUMNS} FROM {VERSIONS}
             WHERE a.name = ?1 AND v.version = ?2 AND v.deleted = 0"
        ))
        .and_then(|mut s| s.query_row([name.as_str(), version.as_str()], version_row).optional())
        .map_err(sql)?;
    found.ok_or_else(|| no_version(name, version.as_str()))
}

/// The versions that these runs have made, of each the last made first; archived ones, too.
///
/// # Errors
/// [`Error`] if the store cannot be read.
pub fn of_runs(conn: &Connection, runs: &[RunId]) -> Result<Vec<ModelVersion>, Error> {
    let runs = serde_json::json!(runs.iter().map(RunId::as_str).collect::<Vec<_>>()).to_string();
    conn.prepare_cached(&format!(
        "SELECT {VERSION_COLUMNS} FROM {VERSIONS}
         WHERE m.run IN (SELECT value FROM json_each(?1)) AND v.deleted = 0 ORDER BY v.seq DESC"
    ))
    .and_then(|mut s| s.query_map([runs], version_row)?.collect())
    .map_err(sql)
}

/// The version that an alias points to.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`], or [`Refusal::NoAlias`]; also for one that points to what is archived.
pub fn by_alias(
    conn: &Connection,
    name: &AssetName,
    alias: &LabelName,
) -> Result<ModelVersion, Error> {
    use atelier_core::spec::AssetVersion;
    let known = super::asset(conn, Kind::Model, name, None)?;
    let (Some(known), Ok(model)) = (known, model(conn, name)) else { return Err(no_model(name)) };
    if !model.aliases.contains_key(alias) {
        return Err(Refusal::NoAlias(alias.to_string()).into());
    }
    let found = known.resolve(&AssetVersion::Label(alias.to_string()));
    let found = found.map_err(|unresolved| Refusal::from(Box::new(unresolved.into())))?;
    version(conn, name, found)
}

/// Whether the job, or a run within it, made the version; not one of that name that is gone.
pub(super) fn is_of_run_of(
    conn: &Connection,
    found: &ModelVersion,
    job: &JobName,
) -> Result<bool, Error> {
    let is_later: bool = conn
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM jobs WHERE name = ?1 AND created_at > ?2)")
        .and_then(|mut s| {
            let made = found.version.created_at.as_millis();
            s.query_row(params![job.as_str(), made], |row| row.get(0))
        })
        .map_err(sql)?;
    if is_later {
        return Ok(false);
    }
    if found.version.made_by.as_ref().is_some_and(|by| &by.job == job) {
        return Ok(true);
    }
    let run = found.run.as_ref().map(RunId::as_str);
    conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM runs WHERE id = ?1 AND job = ?2)")
        .and_then(|mut s| s.query_row(params![run, job.as_str()], |row| row.get(0)))
        .map_err(sql)
}

/// Whether the job made the version, or is given it as an input.
pub fn is_of_job(conn: &Connection, found: &ModelVersion, job: &JobName) -> Result<bool, Error> {
    if is_of_run_of(conn, found, job)? {
        return Ok(true);
    }
    let Version { name, version, .. } = &found.version;
    conn.prepare_cached(
        "SELECT EXISTS (
            SELECT 1 FROM asset_uses u JOIN jobs j ON j.seq = u.job
            JOIN asset_versions v ON v.seq = u.version JOIN assets a ON a.id = v.asset
            WHERE j.name = ?1 AND a.kind = 'model' AND a.name = ?2 AND v.version = ?3)",
    )
    .and_then(|mut s| {
        s.query_row([job.as_str(), name.as_str(), version.as_str()], |row| row.get(0))
    })
    .map_err(sql)
}

/// Notes that a version was made, or said anew, whoever did it.
pub(super) fn made(conn: &Connection, made: &Version, at: Timestamp) -> Result<(), Error> {
    if made.kind() != Kind::Model {
        return Ok(());
    }
    let key = (made.name.as_str(), made.version.as_str());
    let run = made.made_by.as_ref().map(|by| by.job.as_str());
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT INTO registered_models (asset, owner, tags, created, updated)
             SELECT id, ?2, '{}', ?3, ?3 FROM assets WHERE kind = 'model' AND name = ?1
             ON CONFLICT (asset) DO UPDATE SET updated = excluded.updated",
        )?
        .execute(params![key.0, made.created_by.as_str(), at.as_millis()])?;
        conn.prepare_cached(
            "INSERT INTO model_versions (version, run, created, updated)
             SELECT v.seq, ?3, ?4, ?4 FROM asset_versions v JOIN assets a ON a.id = v.asset
             WHERE a.kind = 'model' AND a.name = ?1 AND v.version = ?2
             ON CONFLICT (version) DO UPDATE SET updated = excluded.updated",
        )?
        .execute(params![key.0, key.1, run, at.as_millis()])?;
        Ok(())
    };
    write().map_err(|error| Error::sqlite("store a registered model", error))
}
