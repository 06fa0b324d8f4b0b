//! Making and changing registered models, each change with its entry of the audit log.

use std::collections::BTreeMap;

use atelier_core::access::{Caller, Role};
use atelier_core::asset::{Draft, Kind, MadeBy, Refusal as AssetRefusal, Version};
use atelier_core::id::{AssetName, LabelName, Principal, VersionName};
use atelier_core::spec::AssetVersion;
use atelier_core::time::Timestamp;
use atelier_core::track::registry::{self, Stage};
use atelier_core::track::{Error as Refusal, RunId, Tag, limits};
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use serde_json::{Value, json};

use super::super::super::IdempotencyKey;
use super::super::super::audit::Asked;
use super::super::{delete, label, put, register, register_once, resource};
use super::{
    Error, ModelVersion, RegisteredModel, VERSION_COLUMNS, VERSIONS, is_of_run_of, model, no_model,
    sql, version, version_row,
};

/// The tag of a logged model that names the versions made of it: a JSON list in Python's spacing.
const MODEL_VERSIONS_TAG: &str = "mlflow.modelVersions";

/// What MLflow keeps of a version beside the asset's own record.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lineage {
    /// As it was registered.
    pub source: String,
    /// The run that made it.
    pub run: Option<RunId>,
    /// Where that run is to be seen.
    pub run_link: Option<String>,
    /// The logged model that it is.
    pub logged: Option<String>,
}

/// A version to be made.
#[derive(Clone, PartialEq, Debug)]
pub struct NewVersion {
    /// What it becomes, its place resolved. Its version is the next number.
    pub draft: Draft,
    /// The job that wrote it.
    pub made_by: Option<MadeBy>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// Of a request that may come again.
    pub key: Option<IdempotencyKey>,
}

/// How a registered model changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModelChange {
    /// What it is for.
    Describe(Option<String>),
    /// Sets a tag, checked.
    SetTag(Tag),
    /// Removes a tag; one that is not there is no fault.
    DeleteTag(String),
}

/// How a version changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VersionChange {
    /// What it is for.
    Describe(Option<String>),
    /// Sets a tag, checked.
    SetTag(Tag),
    /// Removes a tag; one that is not there is no fault.
    DeleteTag(String),
    /// Moves it to a stage.
    Stage {
        /// To which.
        to: Stage,
        /// Whether others that are there are archived.
        alone: bool,
    },
}

fn execute(conn: &Connection, statement: &str, values: &[&dyn ToSql]) -> Result<usize, Error> {
    conn.prepare_cached(statement)
        .and_then(|mut s| s.execute(values))
        .map_err(|error| Error::sqlite("store a registered model", error))
}

fn refused(refusal: AssetRefusal) -> Error {
    Refusal::from(Box::new(refusal)).into()
}

fn resource_of(name: &AssetName) -> String {
    format!("{}/{name}", Kind::Model.word())
}

/// What the audit log tells of a registered model.
fn told(model: &RegisteredModel) -> Value {
    json!({ "owner": model.owner, "description": model.description, "tags": model.tags })
}

fn id_of(conn: &Connection, name: &AssetName) -> Result<Option<i64>, Error> {
    conn.prepare_cached("SELECT id FROM assets WHERE kind = 'model' AND name = ?1")
        .and_then(|mut s| s.query_row([name.as_str()], |row| row.get(0)).optional())
        .map_err(sql)
}

/// Makes a registered model that has no versions yet.
///
/// # Errors
/// [`Refusal::RegisteredModelExists`] if there is one of this name.
pub fn create_model(
    asked: &Asked<'_>,
    name: &AssetName,
    owner: &Principal,
    (description, tags): (Option<String>, BTreeMap<String, String>),
    at: Timestamp,
) -> Result<RegisteredModel, Error> {
    registry::tags(&tags)?;
    execute(
        asked,
        "INSERT INTO assets (kind, name, archived) VALUES ('model', ?1, 0) ON CONFLICT DO NOTHING",
        &[&name.as_str()],
    )?;
    let made = execute(
        asked,
        "INSERT INTO registered_models (asset, owner, description, tags, created, updated)
         SELECT id, ?2, ?3, ?4, ?5, ?5 FROM assets WHERE kind = 'model' AND name = ?1
         ON CONFLICT DO NOTHING",
        &[&name.as_str(), &owner.as_str(), &description, &text_of(&tags)?, &at.as_millis()],
    )?;
    if made == 0 {
        return Err(Refusal::RegisteredModelExists(name.to_string()).into());
    }
    let made = model(asked, name)?;
    asked.changed(resource_of(name), None, Some(&told(&made)));
    Ok(made)
}

fn text_of(tags: &BTreeMap<String, String>) -> Result<String, Error> {
    super::super::super::jobs::json(tags, "registered model")
}

/// Changes a registered model. An attempt changes only those of its job's owner.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`], or a limit.
pub fn change_model(
    asked: &Asked<'_>,
    by: &Caller,
    name: &AssetName,
    change: ModelChange,
    at: Timestamp,
) -> Result<RegisteredModel, Error> {
    let before = model(asked, name)?;
    if matches!(by.role, Role::Attempt(_)) && by.principal != before.owner {
        return Err(Refusal::NotAllowed(format!(
            "A job's token changes only registered models of the job's owner, and '{name}' is {}'s",
            before.owner
        ))
        .into());
    }
    let (mut description, mut tags) = (before.description.clone(), before.tags.clone());
    let mut updated = before.updated;
    match change {
        ModelChange::Describe(text) => {
            description = text.filter(|text| !text.is_empty());
            updated = at;
        }
        ModelChange::SetTag(tag) => drop(tags.insert(tag.key, tag.value)),
        ModelChange::DeleteTag(key) => drop(tags.remove(&key)),
    }
    registry::tags(&tags)?;
    if (&description, &tags, updated) == (&before.description, &before.tags, before.updated) {
        return Ok(before);
    }
    execute(
        asked,
        "UPDATE registered_models SET description = ?2, tags = ?3, updated = ?4
         WHERE asset = (SELECT id FROM assets WHERE kind = 'model' AND name = ?1)",
        &[&name.as_str(), &description, &text_of(&tags)?, &updated.as_millis()],
    )?;
    let after = model(asked, name)?;
    asked.changed(resource_of(name), Some(&told(&before)), Some(&told(&after)));
    Ok(after)
}

fn touch(conn: &Connection, name: &AssetName, at: Timestamp) -> Result<(), Error> {
    execute(
        conn,
        "UPDATE registered_models SET updated = ?2
         WHERE asset = (SELECT id FROM assets WHERE kind = 'model' AND name = ?1)",
        &[&name.as_str(), &at.as_millis()],
    )
    .map(drop)
}

/// All versions of a model that are not deleted.
fn versions(conn: &Connection, name: &AssetName) -> Result<Vec<ModelVersion>, Error> {
    conn.prepare_cached(&format!(
        "SELECT {VERSION_COLUMNS} FROM {VERSIONS} WHERE a.name = ?1 AND v.deleted = 0 ORDER BY v.seq"
    ))
    .and_then(|mut s| s.query_map([name.as_str()], version_row)?.collect())
    .map_err(sql)
}

/// That who asks made it, or may change what others made: names that jobs may use go away.
fn must_own(by: &Caller, what: &str, found: &ModelVersion) -> Result<(), Error> {
    let Version { name, version, created_by, made_by, .. } = &found.version;
    let run = made_by.as_ref().map_or("", |by| by.job.as_str());
    if by.owns(created_by, run) {
        return Ok(());
    }
    let principal = &by.principal;
    Err(Refusal::NotAllowed(format!(
        "{principal} may not {what} version {version} of model '{name}': it is {created_by}'s; only its \
         owner or an admin may"
    ))
    .into())
}

fn must_own_all(
    by: &Caller,
    what: &str,
    model: &RegisteredModel,
    versions: &[ModelVersion],
) -> Result<(), Error> {
    if !by.owns(&model.owner, "") {
        let (principal, name, owner) = (&by.principal, &model.name, &model.owner);
        return Err(Refusal::NotAllowed(format!(
            "{principal} may not {what} registered model '{name}': it is {owner}'s; only its owner or an \
             admin may"
        ))
        .into());
    }
    versions.iter().try_for_each(|found| must_own(by, what, found))
}

/// Gives a registered model another name. The names that its versions had are not given again.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`]; [`Refusal::RegisteredModelExists`] of the new name.
pub fn rename_model(
    asked: &Asked<'_>,
    by: &Caller,
    name: &AssetName,
    new: &AssetName,
    at: Timestamp,
) -> Result<RegisteredModel, Error> {
    let before = model(asked, name)?;
    if name == new {
        return Ok(before);
    }
    let own = versions(asked, name)?;
    must_own_all(by, "rename", &before, &own)?;
    if model(asked, new).is_ok() {
        return Err(Refusal::RegisteredModelExists(new.to_string()).into());
    }
    if id_of(asked, new)?.is_some() {
        return Err(Refusal::Invalid(format!(
            "Cannot rename registered model '{name}' to '{new}': there were versions of that name before, \
             which jobs may name, and their names are not given again. Choose another name."
        ))
        .into());
    }
    let id = id_of(asked, name)?.ok_or_else(|| no_model(name))?;
    execute(asked, "UPDATE assets SET name = ?2 WHERE id = ?1", &[&id, &new.as_str()])?;
    execute(
        asked,
        "UPDATE asset_versions SET record = json_set(record, '$.name', ?2) WHERE asset = ?1",
        &[&id, &new.as_str()],
    )?;
    execute(
        asked,
        "UPDATE model_versions SET updated = ?2
         WHERE version IN (SELECT seq FROM asset_versions WHERE asset = ?1)",
        &[&id, &at.as_millis()],
    )?;
    touch(asked, new, at)?;
    let has_versions: bool = asked
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM asset_versions WHERE asset = ?1)")
        .and_then(|mut s| s.query_row([id], |row| row.get(0)))
        .map_err(sql)?;
    if has_versions {
        execute(
            asked,
            "INSERT INTO assets (kind, name, archived) VALUES ('model', ?1, 0)",
            &[&name.as_str()],
        )?;
        let old = asked.last_insert_rowid();
        execute(
            asked,
            "INSERT INTO asset_versions (asset, version, number, archived, deleted, record)
             SELECT ?2, version, number, 0, 1, record FROM asset_versions WHERE asset = ?1
             ORDER BY seq",
            &[&id, &old],
        )?;
    }
    let after = model(asked, new)?;
    let names = [name, new].map(|name| json!({ "name": name }));
    asked.changed(resource_of(name), Some(&names[0]), Some(&names[1]));
    Ok(after)
}

/// Forgets a registered model and all its versions, unless jobs that are not over use one. A model that is made
/// anew by this name counts on: names of versions are not given again.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`]; what is somebody else's, or in use.
pub fn delete_model(asked: &Asked<'_>, by: &Caller, name: &AssetName) -> Result<(), Error> {
    let before = model(asked, name)?;
    let own = versions(asked, name)?;
    must_own_all(by, "delete", &before, &own)?;
    for found in &own {
        forget(asked, &found.version)?;
    }
    let id = id_of(asked, name)?.ok_or_else(|| no_model(name))?;
    execute(asked, "DELETE FROM registered_models WHERE asset = ?1", &[&id])?;
    execute(asked, "UPDATE assets SET archived = 0 WHERE id = ?1 AND archived = 1", &[&id])?;
    asked.changed(resource_of(name), Some(&told(&before)), None);
    Ok(())
}

fn forget(asked: &Asked<'_>, found: &Version) -> Result<(), Error> {
    let which = AssetVersion::Exact(found.version.to_string());
    let deleted: Version = delete(asked, Kind::Model, &found.name, &which)?.map_err(refused)?;
    asked.changed(resource(&deleted), Some(&deleted), None);
    Ok(())
}

/// Makes the next version of a registered model.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`]; what assets refuse, as of a model that is archived.
pub fn create_version(
    asked: &Asked<'_>,
    by: &Principal,
    new: NewVersion,
    at: Timestamp,
) -> Result<ModelVersion, Error> {
    let NewVersion { draft, made_by, lineage, key } = new;
    registry::tags(&draft.tags)?;
    model(asked, &draft.name)?;
    let written = asked.total_changes();
    let made = match &key {
        Some(key) => register_once(asked, draft, made_by, (by.clone(), key), at),
        None => register(asked, draft, made_by, by.clone(), at),
    }?;
    let made = made.map_err(refused)?;
    // A request that comes again writes nothing.
    if asked.total_changes() > written {
        execute(
            asked,
            "UPDATE model_versions SET source = ?3, run = ?4, run_link = ?5, logged = ?6
             WHERE version = (SELECT v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
                              WHERE a.kind = 'model' AND a.name = ?1 AND v.version = ?2)",
            &[
                &made.name.as_str(),
                &made.version.as_str(),
                &lineage.source,
                &lineage.run.as_ref().map(RunId::as_str),
                &lineage.run_link,
                &lineage.logged,
            ],
        )?;
        if let Some(logged) = &lineage.logged {
            tell_logged(asked, logged, &made)?;
        }
        asked.changed(resource(&made), None, Some(&made));
    }
    version(asked, &made.name, &made.version)
}

/// Has a logged model say which versions were made of it, as MLflow's own server does: in a tag, which its web page shows.
fn tell_logged(conn: &Connection, logged: &str, made: &Version) -> Result<(), Error> {
    let told: Option<Option<String>> = conn
        .prepare_cached(
            "SELECT (SELECT value FROM logged_model_tags WHERE model = m.seq AND key = ?2)
             FROM logged_models m WHERE m.id = ?1",
        )
        .and_then(|mut s| s.query_row([logged, MODEL_VERSIONS_TAG], |row| row.get(0)).optional())
        .map_err(sql)?;
    let Some(told) = told else { return Ok(()) };
    // Somebody may have set it to something else.
    let told = told.unwrap_or_default();
    let others = told.strip_prefix('[').and_then(|told| told.strip_suffix(']')).unwrap_or_default();
    let between = if others.is_empty() { "" } else { ", " };
    let (name, number) = (json!(made.name), made.version.as_str());
    let number = number.parse::<u64>().map_or_else(|_| json!(number), |number| json!(number));
    let told = format!("[{others}{between}{{\"name\": {name}, \"version\": {number}}}]");
    if told.chars().count() > limits::MODEL_VALUE_CHARS {
        return Ok(());
    }
    execute(
        conn,
        "INSERT OR REPLACE INTO logged_model_tags (model, key, value)
         SELECT seq, ?2, ?3 FROM logged_models WHERE id = ?1",
        &[&logged, &MODEL_VERSIONS_TAG, &told],
    )?;
    Ok(())
}

/// That an attempt changes only what its job made. People may change what others made, as assets are changed.
fn may_change(conn: &Connection, by: &Caller, found: &ModelVersion) -> Result<(), Error> {
    let Role::Attempt(scope) = &by.role else { return Ok(()) };
    if is_of_run_of(conn, found, &scope.job)? {
        return Ok(());
    }
    let Version { name, version, .. } = &found.version;
    Err(Refusal::NotAllowed(format!(
        "A job's token changes only versions that the job made, not version {version} of model '{name}'"
    ))
    .into())
}

/// Changes what is said of a version.
///
/// # Errors
/// [`Refusal::NoModelVersion`], or a limit.
pub fn change_version(
    asked: &Asked<'_>,
    by: &Caller,
    (name, which): (&AssetName, &VersionName),
    change: VersionChange,
    at: Timestamp,
) -> Result<ModelVersion, Error> {
    let found = version(asked, name, which)?;
    may_change(asked, by, &found)?;
    let mut changed = found.version.clone();
    let mut is_update = true;
    match change {
        VersionChange::Describe(text) => changed.description = text.filter(|text| !text.is_empty()),
        VersionChange::SetTag(tag) => {
            changed.tags.insert(tag.key, tag.value);
            is_update = false;
        }
        VersionChange::DeleteTag(key) => {
            changed.tags.remove(&key);
            is_update = false;
        }
        VersionChange::Stage { to, alone } => {
            if alone {
                archive_others(asked, by, &found, to, at)?;
            }
            changed.stage = to.said();
            touch(asked, name, at)?;
        }
    }
    registry::tags(&changed.tags)?;
    keep(asked, &found.version, &changed, is_update.then_some(at))?;
    version(asked, name, which)
}

/// Keeps what is said of a version, and tells of it if it is something else.
fn keep(
    asked: &Asked<'_>,
    before: &Version,
    after: &Version,
    updated: Option<Timestamp>,
) -> Result<(), Error> {
    if before != after || updated.is_some() {
        put(asked, after)?;
        asked.changed(resource(after), Some(before), Some(after));
    }
    let Some(at) = updated else { return Ok(()) };
    execute(
        asked,
        "UPDATE model_versions SET updated = ?3
         WHERE version = (SELECT v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
                          WHERE a.kind = 'model' AND a.name = ?1 AND v.version = ?2)",
        &[&after.name.as_str(), &after.version.as_str(), &at.as_millis()],
    )
    .map(drop)
}

fn archive_others(
    asked: &Asked<'_>,
    by: &Caller,
    found: &ModelVersion,
    stage: Stage,
    at: Timestamp,
) -> Result<(), Error> {
    let others: Vec<ModelVersion> = asked
        .prepare_cached(&format!(
            "SELECT {VERSION_COLUMNS} FROM {VERSIONS} WHERE a.name = ?1 AND v.version <> ?2
             AND v.deleted = 0 AND lower(json_extract(v.record, '$.stage')) = lower(?3)"
        ))
        .and_then(|mut s| {
            let Version { name, version, .. } = &found.version;
            s.query_map(params![name.as_str(), version.as_str(), stage.as_str()], version_row)?
                .collect()
        })
        .map_err(sql)?;
    for other in others {
        may_change(asked, by, &other)?;
        let changed = Version { stage: Stage::Archived.said(), ..other.version.clone() };
        keep(asked, &other.version, &changed, Some(at))?;
    }
    Ok(())
}

/// Has an alias point to a version, and to no other.
///
/// # Errors
/// [`Refusal::NoModelVersion`].
pub fn set_alias(
    asked: &Asked<'_>,
    by: &Caller,
    (name, which): (&AssetName, &VersionName),
    alias: &LabelName,
) -> Result<(), Error> {
    let found = version(asked, name, which)?;
    may_change(asked, by, &found)?;
    if found.aliases.contains(alias) {
        return Ok(());
    }
    // It is taken away from another.
    if let Some(other) = model(asked, name)?.aliases.get(alias) {
        may_change(asked, by, &version(asked, name, other)?)?;
    }
    label(asked, &found.version, std::slice::from_ref(alias), &[])?;
    asked.done(resource(&found.version), &json!({ "labels": [alias], "unlabel": [] }));
    Ok(())
}

/// Has an alias point to nothing; one that does so anyway is no fault.
///
/// # Errors
/// [`Refusal::NoRegisteredModel`].
pub fn unset_alias(
    asked: &Asked<'_>,
    by: &Caller,
    name: &AssetName,
    alias: &LabelName,
) -> Result<(), Error> {
    let known = model(asked, name)?;
    let Some(which) = known.aliases.get(alias) else { return Ok(()) };
    let found = version(asked, name, which)?;
    may_change(asked, by, &found)?;
    label(asked, &found.version, &[], std::slice::from_ref(alias))?;
    asked.done(resource(&found.version), &json!({ "labels": [], "unlabel": [alias] }));
    Ok(())
}

/// Forgets a version, unless jobs that are not over use it. Its number is not given again.
///
/// # Errors
/// [`Refusal::NoModelVersion`]; what is somebody else's, or in use.
pub fn delete_version(
    asked: &Asked<'_>,
    by: &Caller,
    (name, which): (&AssetName, &VersionName),
    at: Timestamp,
) -> Result<(), Error> {
    let found = version(asked, name, which)?;
    must_own(by, "delete", &found)?;
    forget(asked, &found.version)?;
    touch(asked, name, at)
}
