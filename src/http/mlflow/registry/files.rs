//! Files of registered versions, through the artifact proxy: `mlflow-artifacts:/models/<name>/<version>/<path>`,
//! wherever the version lies. They are read, never written.

use std::collections::BTreeMap;

use atelier_core::access::{Caller, Role};
use atelier_core::asset::Version;
use atelier_core::id::{AssetName, VersionName};
use atelier_core::layout::ARTIFACT_STORE;
use atelier_core::spec::DataUri;
use atelier_core::track::{ArtifactPath, Error as Refusal};
use rusqlite::Connection;

use super::super::State;
use super::super::failure::Failure;
use super::source::reads_files;
use crate::storage::{self, Datastore, ObjectPath, PAGE};
use crate::store;
use crate::store::assets::{self, models};

/// What lies in one folder and is told at most.
const MOST: usize = 100_000;

/// A registered version's files.
pub(in super::super) struct Root {
    name: AssetName,
    version: VersionName,
}

impl Root {
    pub(super) fn of(found: &models::ModelVersion) -> Self {
        let Version { name, version, .. } = &found.version;
        Self { name: name.clone(), version: version.clone() }
    }

    pub(super) fn named(name: AssetName, version: VersionName) -> Self {
        Self { name, version }
    }

    /// Where MLflow's client finds them.
    pub(super) fn uri(&self) -> String {
        format!("mlflow-artifacts:/models/{}/{}", self.name, self.version)
    }

    /// Reads `models/<name>/<version>[/<path>]`, already decoded once; nothing, if it has not that form.
    pub(in super::super) fn parse(
        text: &str,
    ) -> Result<Option<(Self, Option<ArtifactPath>)>, Refusal> {
        let Some(rest) = text.trim_end_matches('/').strip_prefix("models/") else {
            return Ok(None);
        };
        let mut parts = rest.splitn(3, '/');
        let (Some(name), Some(version)) = (parts.next(), parts.next()) else { return Ok(None) };
        let missing = || Refusal::NoModelVersion {
            name: atelier_core::track::limits::excerpt(name),
            version: atelier_core::track::limits::excerpt(version),
        };
        let root = Self {
            name: AssetName::new(name).map_err(|_| missing())?,
            version: VersionName::new(version).map_err(|_| missing())?,
        };
        Ok(Some((root, parts.next().map(ArtifactPath::new).transpose()?)))
    }

    /// The version, if the caller may read its files. A job reads those that it made, and its inputs.
    pub(super) async fn readable(
        &self,
        state: &State,
        caller: &Caller,
    ) -> Result<models::ModelVersion, Failure> {
        let (name, version, by) = (self.name.clone(), self.version.clone(), caller.clone());
        let found = state
            .tracking
            .read(move |conn| {
                let found = models::version(conn, &name, &version)?;
                let why = match &by.role {
                    Role::Attempt(scope) if models::is_of_job(conn, &found, &scope.job)? => None,
                    Role::Attempt(_) => Some(format!(
                        "A job's token reads only models that the job made, and its inputs: declare one as \
                         'type: {}', 'path: azureml:{name}:{version}'",
                        found.version.form.word()
                    )),
                    _ if reads_files(&by) => None,
                    role => {
                        Some(format!("{} ({role}) may not read files of models", by.principal))
                    }
                };
                match why {
                    None => Ok(found),
                    Some(why) => Err(Refusal::NotAllowed(why).into()),
                }
            })
            .await?;
        Ok(found)
    }

    /// Where the version lies, once nothing lies there but what was committed.
    async fn place(
        &self,
        state: &State,
        caller: &Caller,
    ) -> Result<(Datastore, ObjectPath), Failure> {
        let found = self.readable(state, caller).await?.version;
        if let Some(by) = &found.made_by {
            state.places.settle(&by.job).await.map_err(Failure::unavailable)?;
        }
        let DataUri::Datastore { datastore, path } = &found.uri else {
            return Err(Refusal::NoArtifact(self.uri()).into());
        };
        let path = ObjectPath::new(path.trim_end_matches('/')).map_err(storage::Error::from)?;
        Ok((state.datastores.get(datastore.as_str())?, path))
    }
}

/// What lies directly in a folder of a version: name, and a file's size.
pub(in super::super) async fn list(
    state: &State,
    caller: &Caller,
    root: &Root,
    path: Option<&ArtifactPath>,
) -> Result<BTreeMap<String, Option<u64>>, Failure> {
    let (store, place) = root.place(state, caller).await?;
    let folder = match path {
        None => place.clone(),
        Some(path) => below(&place, path)?,
    };
    let (mut found, mut after) = (BTreeMap::new(), None::<String>);
    loop {
        let level = store.level(Some(&folder), after.as_deref(), PAGE).await?;
        found.extend(level.folders.iter().map(|inner| (own_name(inner), None)));
        for listed in level.objects {
            // A version may be one file, which is all that is in it. In it there are no files.
            if listed.path != folder || path.is_none() {
                found.insert(own_name(&listed.path), Some(listed.meta.size));
            }
        }
        if found.len() > MOST {
            return Err(Refusal::Invalid(format!(
                "'{folder}' in datastore '{}' has more than {MOST} files, more than one answer tells: see \
                 'atelier fs ls azureml://datastores/{}/paths/{folder}/'",
                store.name(),
                store.name()
            ))
            .into());
        }
        match level.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

fn own_name(place: &ObjectPath) -> String {
    place.as_str().rsplit('/').next().unwrap_or_default().to_owned()
}

fn below(place: &ObjectPath, path: &ArtifactPath) -> Result<ObjectPath, Failure> {
    Ok(ObjectPath::new(&format!("{place}/{path}")).map_err(storage::Error::from)?)
}

/// Where the bytes of a file of a version lie.
pub(in super::super) async fn download(
    state: &State,
    caller: &Caller,
    root: &Root,
    path: Option<&ArtifactPath>,
) -> Result<(Datastore, ObjectPath), Failure> {
    let (store, place) = root.place(state, caller).await?;
    let Some(path) = path else { return Err(Refusal::NoArtifact(root.uri()).into()) };
    if path.as_str() == own_name(&place) && store.head(&place).await.is_ok() {
        return Ok((store, place));
    }
    let object = below(&place, path)?;
    Ok((store, object))
}

/// The asset that is made of what lies at a place in the store of artifacts, or of what that is a part of: it stays as
/// it is.
pub(in super::super) fn kept_by(
    conn: &Connection,
    place: &str,
) -> Result<Option<Version>, store::Error> {
    let mut found = assets::below(conn, ARTIFACT_STORE, place, 1)?;
    found.extend(assets::above(conn, ARTIFACT_STORE, place)?);
    Ok(found.into_iter().next())
}
