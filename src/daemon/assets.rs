//! Data assets and models that the workspace keeps.

use std::sync::Arc;

use atelier_core::asset::{Change, Draft, Kind, MadeBy, Refusal, Unresolved, Version};
use atelier_core::audit::Actor;
use atelier_core::id::{AssetName, JobName, Principal, VersionName};
use atelier_core::retention::Referrer;
use atelier_core::spec::limits::MAX_ENTRIES;
use atelier_core::spec::{AssetRef, AssetVersion, DataUri, Diagnostics};
use atelier_core::time::Timestamp;
use serde_json::json;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::store::assets::{self, AssetQuery, Listed, Use};
use crate::store::retention::{self, Removal};
use crate::store::{self, IdempotencyKey, SqliteStore};

/// Knows every data asset and model. Cheap to clone.
#[derive(Clone)]
pub struct Assets {
    store: Arc<SqliteStore>,
    /// Held for reading while one is made of what lies somewhere, alone while what jobs wrote is removed.
    places: Arc<RwLock<()>>,
}

/// Why an asset is not to be had, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of versions and labels.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it is breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// The name is of another kind.
    #[error(
        "there is no {wanted} '{name}', but a {is} of this name, which has the type {form}; write 'type: {form}'",
        is = .is.kind(), form = .is.form.word()
    )]
    OtherKind {
        /// What was looked for.
        wanted: Kind,
        /// The name.
        name: String,
        /// The newest version of that name.
        is: Box<Version>,
    },
    /// Registries are Azure's.
    #[error(
        "there is no registry '{registry}' here; name the workspace's own {} (azureml:NAME:VERSION)",
        kind.plural()
    )]
    Registry {
        /// As written.
        registry: String,
        /// What was looked for.
        kind: Kind,
    },
    /// It is somebody else's.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Only its owner, or an admin, deletes a version.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{principal} may not delete version {version} of {kind} '{name}': it is {owner}'s; only its owner or an admin may"
)]
pub struct NotOwner {
    /// Who.
    pub principal: Principal,
    /// What it is.
    pub kind: Kind,
    /// The asset.
    pub name: AssetName,
    /// The version.
    pub version: VersionName,
    /// Whose.
    pub owner: Principal,
}

impl From<Unresolved> for Error {
    fn from(unresolved: Unresolved) -> Self {
        Self::Refused(unresolved.into())
    }
}

/// What is known of where a draft comes from before its place is resolved.
pub(super) fn made_by(uri: &DataUri) -> Option<MadeBy> {
    match uri {
        DataUri::JobOutput { job, output, .. } => {
            Some(MadeBy { job: job.clone(), output: output.clone() })
        }
        DataUri::RunArtifact { run, .. } => {
            let job = JobName::new(run).ok()?;
            Some(MadeBy { job, output: "artifacts".to_owned() })
        }
        _ => None,
    }
}

impl Assets {
    pub(super) fn new(store: Arc<SqliteStore>) -> Self {
        Self { store, places: Arc::default() }
    }

    /// Keeps what jobs wrote from being removed, until it is dropped.
    pub async fn hold(&self) -> OwnedRwLockReadGuard<()> {
        self.places.clone().read_owned().await
    }

    /// Keeps new ones from being made of what jobs wrote, until it is dropped.
    pub async fn let_go(&self) -> OwnedRwLockWriteGuard<()> {
        self.places.clone().write_owned().await
    }

    /// Makes a version, or finds the one that is made of the same, or that the same request made before. Its place
    /// is resolved. It is on disk when this returns.
    pub async fn register(
        &self,
        draft: Draft,
        made_by: Option<MadeBy>,
        (by, key): (Actor, Option<IdempotencyKey>),
        at: Timestamp,
    ) -> Result<Version, Error> {
        let who = by.principal.clone();
        let made = self.store.change(by, move |conn| {
            let written = conn.total_changes();
            let before = assets::before(conn, draft.kind(), &draft.name, draft.version.as_ref())?;
            let made = match &key {
                Some(key) => assets::register_once(conn, draft, made_by, (who, key), at),
                None => assets::register(conn, draft, made_by, who, at),
            }?;
            // A request that comes again writes nothing.
            if let Ok(made) = &made
                && conn.total_changes() > written
            {
                conn.changed(assets::resource(made), before.as_ref(), Some(made));
            }
            Ok(made)
        });
        Ok(made.await??)
    }

    /// What a reference means.
    pub fn find(&self, kind: Kind, asset: &AssetRef) -> Result<Listed<Version>, Error> {
        if let Some(registry) = asset.registry.clone() {
            return Err(Error::Registry { registry, kind });
        }
        let missing = || self.no_such(kind, &asset.name);
        // What is no valid name is no asset's.
        let Ok(name) = AssetName::new(&asset.name) else { return Err(missing()) };
        let known =
            self.store.read(|conn| assets::asset(conn, kind, &name, asset.version.exact()))?;
        let Some(known) = known else { return Err(missing()) };
        let version = known.resolve(&asset.version)?;
        self.listed(kind, &name, version)?.ok_or_else(missing)
    }

    fn listed(
        &self,
        kind: Kind,
        name: &AssetName,
        version: &VersionName,
    ) -> Result<Option<Listed<Version>>, Error> {
        let query = AssetQuery {
            name: Some(name.clone()),
            version: Some(version.clone()),
            archived: store::Archived::With,
            after: None,
            limit: 1,
        };
        Ok(self.list(kind, &query)?.0.pop())
    }

    /// Versions, and whether there are more.
    pub fn list(
        &self,
        kind: Kind,
        query: &AssetQuery,
    ) -> Result<(Vec<Listed<Version>>, bool), Error> {
        Ok(self.store.read(|conn| assets::list(conn, kind, query))?)
    }

    /// That there is such a name, whatever becomes of its versions.
    pub fn must_know(&self, kind: Kind, name: &str) -> Result<(), Error> {
        let known = match AssetName::new(name) {
            Ok(own) => self.store.read(|conn| assets::asset(conn, kind, &own, None))?,
            Err(_) => None,
        };
        known.map(drop).ok_or_else(|| self.no_such(kind, name))
    }

    /// Changes what may change of a version.
    pub async fn change(
        &self,
        kind: Kind,
        asset: &AssetRef,
        change: Change,
        by: Actor,
        at: Timestamp,
    ) -> Result<Listed<Version>, Error> {
        let found = self.find(kind, asset)?.version;
        let (name, which) = (found.name.clone(), exact(&found.version));
        // As a draft with it would be.
        let changed = found.clone().changed(&change);
        let Version { name: own, description, tags, properties, form, uri, flavors, stage, .. } =
            changed;
        let version = None;
        // What is there already was checked when it was written: MLflow's tags may be longer.
        let is_new = |key: &String| change.tags.contains_key(key) || tags.len() > MAX_ENTRIES;
        let tags = tags.iter().filter(|(key, _)| is_new(key));
        let tags = tags.map(|(key, value)| (key.clone(), value.clone())).collect();
        let draft =
            Draft { name: own, version, description, tags, properties, form, uri, flavors, stage };
        draft.check()?;
        let key = name.clone();
        let changed = self
            .store
            .change(by, move |conn| {
                let changed = assets::change(conn, kind, &key, &which, &change, at)?;
                if let Ok(after) = &changed {
                    let labels = json!({ "labels": &change.labels, "unlabel": &change.unlabel });
                    conn.changed(assets::resource(after), Some(&found), Some(after));
                    if !change.labels.is_empty() || !change.unlabel.is_empty() {
                        conn.done(assets::resource(after), &labels);
                    }
                }
                Ok(changed)
            })
            .await??;
        let listed = self.listed(kind, &name, &changed.version)?;
        listed.ok_or_else(|| self.no_such(kind, name.as_str()))
    }

    /// Hides an asset or one of its versions from lists, or shows it again.
    pub async fn archive(
        &self,
        kind: Kind,
        name: &str,
        version: &str,
        archived: bool,
        by: Actor,
    ) -> Result<Listed<Version>, Error> {
        let Ok(own) = AssetName::new(name) else { return Err(self.no_such(kind, name)) };
        let known = self.store.read(|conn| assets::asset(conn, kind, &own, Some(version)))?;
        let Some(known) = known else { return Err(self.no_such(kind, name)) };
        let version = match version {
            "" => None,
            version => Some(known.entry(version)?.version.clone()),
        };
        let (key, which) = (own.clone(), version.clone());
        self.store
            .change(by, move |conn| {
                assets::archive_asked(conn, kind, &key, which.as_ref(), archived)
            })
            .await??;
        let newest = || known.versions.first().map(|entry| entry.version.clone());
        let Some(version) = version.or_else(newest) else {
            return Err(Unresolved::Empty { kind, name: own }.into());
        };
        let listed = self.listed(kind, &own, &version)?;
        listed.ok_or_else(|| self.no_such(kind, name))
    }

    /// Forgets a version, unless jobs that are not over use it; and has `data`, what it is made of, go, unless somebody
    /// refers to that, who is told.
    pub async fn delete(
        &self,
        found: &Version,
        data: Option<Removal>,
        by: Actor,
    ) -> Result<(Version, Option<Referrer>), Error> {
        let (kind, name, which) = (found.kind(), found.name.clone(), exact(&found.version));
        let deleted = self.store.change(by, move |conn| {
            let deleted: Version = match assets::delete(conn, kind, &name, &which)? {
                Ok(deleted) => deleted,
                Err(refusal) => return Ok(Err(refusal)),
            };
            conn.changed(assets::resource(&deleted), Some(&deleted), None);
            let Some(data) = data else { return Ok(Ok((deleted, None))) };
            let referrer = retention::referrer(conn, &data.datastore, &data.path, None)?;
            if referrer.is_none() {
                retention::enqueue(conn, &[data])?;
            }
            Ok(Ok((deleted, referrer)))
        });
        Ok(deleted.await??)
    }

    /// Jobs that used a version, the newest first.
    pub fn uses(
        &self,
        version: &Version,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Use>, Error> {
        let (kind, name, version) = (version.kind(), &version.name, &version.version);
        Ok(self.store.read(|conn| assets::uses(conn, kind, name, version, before, limit))?)
    }

    /// What a job's outputs became.
    pub fn of_job(&self, job: &JobName) -> Result<Vec<Version>, Error> {
        Ok(self.store.read(|conn| assets::of_job(conn, job))?)
    }

    /// The first few that lie at or below a folder.
    pub fn below(&self, datastore: &str, folder: &str) -> Result<Vec<Version>, Error> {
        const MOST: usize = 5;
        Ok(self.store.read(|conn| assets::below(conn, datastore, folder, MOST))?)
    }

    /// Some that have something at or below one of these paths: that lie there, or that one is a part of.
    pub fn at(&self, datastore: &str, paths: &[String]) -> Result<Vec<Version>, Error> {
        const MOST: usize = 5;
        let found = self.store.read(|conn| {
            let mut found: Vec<Version> = Vec::new();
            for path in paths {
                let below = assets::below(conn, datastore, path, MOST)?;
                for version in below.into_iter().chain(assets::above(conn, datastore, path)?) {
                    if !found.contains(&version) {
                        found.push(version);
                    }
                }
                if found.len() >= MOST {
                    found.truncate(MOST);
                    break;
                }
            }
            Ok(found)
        });
        Ok(found?)
    }

    /// That there is no asset of this name, with what is like it.
    fn no_such(&self, kind: Kind, name: &str) -> Error {
        let other = match kind {
            Kind::Data => Kind::Model,
            Kind::Model | Kind::Environment | Kind::Component => Kind::Data,
        };
        let query = AssetQuery {
            name: AssetName::new(name).ok(),
            archived: store::Archived::With,
            limit: 1,
            ..AssetQuery::default()
        };
        if query.name.is_some()
            && let Ok((mut found, _)) = self.list(other, &query)
            && let Some(found) = found.pop()
        {
            let is = Box::new(found.version);
            return Error::OtherKind { wanted: kind, name: name.to_owned(), is };
        }
        match self.store.read(|conn| assets::names(conn, kind)) {
            Ok(known) => Unresolved::no_such(kind, name, known.iter().map(String::as_str)).into(),
            Err(error) => error.into(),
        }
    }
}

fn exact(version: &VersionName) -> AssetVersion {
    AssetVersion::Exact(version.to_string())
}
