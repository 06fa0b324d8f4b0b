//! The environments that jobs may name: the workspace's own versions, and the curated ones.

use std::sync::Arc;

use atelier_core::asset::{Asset, Kind, Refusal, Unresolved};
use atelier_core::audit::Actor;
use atelier_core::environment::{CuratedTable, Draft, EnvironmentVersion};
use atelier_core::id::{AssetName, VersionName};
use atelier_core::spec::{AssetRef, AssetVersion, Code, Diagnostics, InlineEnvironment};
use atelier_core::time::Timestamp;

use crate::storage::{self, ContentStore};
use crate::store::assets::{self, AssetQuery};
use crate::store::environments::{self, ListedEnvironment};
use crate::store::{self, SqliteStore};

/// The registry that curated environments are said to be of, as in Azure.
const CURATED_REGISTRY: &str = "azureml";

/// Knows every environment that has a name. Cheap to clone.
#[derive(Clone)]
pub struct Environments {
    store: Arc<SqliteStore>,
    curated: Arc<CuratedTable>,
    content: ContentStore,
}

/// Why an environment is not to be had, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of versions and labels.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it is made of breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// The folder of its build context was not uploaded.
    #[error(
        "build.path: the workspace has no snapshot {0}; upload it first (atelier environment create does)"
    )]
    NoSnapshot(atelier_core::content::Digest),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    /// Whether there is nothing but what is archived.
    pub fn is_archived(&self) -> bool {
        matches!(self, Self::Refused(Refusal::Unresolved(Unresolved::Archived { .. })))
    }
}

impl From<Unresolved> for Error {
    fn from(unresolved: Unresolved) -> Self {
        Self::Refused(unresolved.into())
    }
}

/// What a reference means.
#[derive(Clone, PartialEq, Debug)]
pub enum Found {
    /// A version that the workspace keeps.
    Version(Box<ListedEnvironment>),
    /// A curated environment.
    Curated(Box<Curated>),
}

/// A curated environment.
#[derive(Clone, PartialEq, Debug)]
pub struct Curated {
    /// Its name.
    pub name: String,
    /// What the workspace's table says of it.
    pub description: Option<String>,
    /// What it is made of.
    pub content: InlineEnvironment,
}

impl Environments {
    pub(super) fn new(
        store: Arc<SqliteStore>,
        curated: Arc<CuratedTable>,
        content: ContentStore,
    ) -> Self {
        Self { store, curated, content }
    }

    /// Makes a version, or finds the one that is made of the same. It is on disk when this returns.
    pub async fn register(
        &self,
        draft: Draft,
        by: Actor,
        at: Timestamp,
    ) -> Result<EnvironmentVersion, Error> {
        draft.check()?;
        if let Some(build) = &draft.environment.build
            && let Code::Snapshot(root) = build.path
            && !self.content.missing(vec![root]).await?.is_empty()
        {
            return Err(Error::NoSnapshot(root));
        }
        let who = by.principal.clone();
        let made = self.store.change(by, move |conn| {
            let kind = Kind::Environment;
            let before = assets::before(conn, kind, &draft.name, draft.version.as_ref())?;
            let made = environments::register(conn, draft, who, at)?;
            if let Ok(made) = &made {
                conn.changed(assets::resource(made), before.as_ref(), Some(made));
            }
            Ok(made)
        });
        Ok(made.await??)
    }

    /// Hides an environment or one of its versions from lists, or shows it again.
    pub async fn archive(
        &self,
        name: &str,
        version: &str,
        archived: bool,
        by: Actor,
    ) -> Result<Found, Error> {
        let own = AssetName::new(name)
            .ok()
            .map(|name| Ok::<_, Error>((self.asset(&name, Some(version))?, name)));
        let Some((Some(asset), name)) = own.transpose()? else { return Err(self.no_such(name)?) };
        let version = match version {
            "" => None,
            version => Some(asset.resolve(&AssetVersion::Exact(version.to_owned()))?.clone()),
        };
        let (key, which) = (name.clone(), version.clone());
        self.store
            .change(by, move |conn| {
                assets::archive_asked(conn, Kind::Environment, &key, which.as_ref(), archived)
            })
            .await??;
        let newest = || asset.versions.first().map(|entry| entry.version.clone());
        match version.or_else(newest) {
            Some(version) => self.version(&name, &version),
            None => Err(self.no_such(name.as_str())?),
        }
    }

    /// Versions that the workspace keeps, and whether there are more.
    pub fn list(&self, query: &AssetQuery) -> Result<(Vec<ListedEnvironment>, bool), Error> {
        Ok(self.store.read(|conn| environments::list(conn, query))?)
    }

    /// The curated environments worth listing, by name.
    pub fn curated(&self) -> Vec<Curated> {
        let names = self.curated.names();
        names.into_iter().filter_map(|name| self.curated_of(name)).collect()
    }

    /// What a reference means: the workspace's own before a curated one of the same name.
    pub fn find(&self, asset: &AssetRef) -> Result<Found, Error> {
        let own = match (&asset.registry, AssetName::new(&asset.name)) {
            (None, Ok(name)) => self.asset(&name, asset.version.exact())?,
            (Some(_), _) | (None, Err(_)) => None,
        };
        if let Some(own) = own {
            let version = own.resolve(&asset.version)?;
            return self.version(&own.name, version);
        }
        match self.curated_of(&asset.name) {
            Some(curated) => Ok(Found::Curated(Box::new(curated))),
            None => Err(self.no_such(&asset.name)?),
        }
    }

    /// The one environment that a job's reference means from now on, and what it is made of.
    pub fn pin(&self, asset: &AssetRef) -> Result<(AssetRef, InlineEnvironment), Error> {
        Ok(match self.find(asset)? {
            Found::Version(found) => {
                let EnvironmentVersion { name, version, environment, .. } = found.version;
                (AssetRef::exact(&name, &version), environment)
            }
            Found::Curated(curated) => {
                let registry = asset.registry.clone();
                let registry = registry.or_else(|| Some(CURATED_REGISTRY.to_owned()));
                (AssetRef { registry, ..asset.clone() }, curated.content)
            }
        })
    }

    fn curated_of(&self, name: &str) -> Option<Curated> {
        Some(Curated {
            name: name.to_owned(),
            description: self.curated.description(name).map(str::to_owned),
            content: self.curated.get(name)?,
        })
    }

    fn asset(&self, name: &AssetName, version: Option<&str>) -> Result<Option<Asset>, Error> {
        Ok(self.store.read(|conn| environments::asset(conn, name, version))?)
    }

    fn version(&self, name: &AssetName, version: &VersionName) -> Result<Found, Error> {
        let query = AssetQuery {
            name: Some(name.clone()),
            archived: store::Archived::With,
            version: Some(version.clone()),
            limit: 1,
            ..AssetQuery::default()
        };
        match self.list(&query)?.0.pop() {
            Some(found) => Ok(Found::Version(Box::new(found))),
            None => Err(self.no_such(name.as_str())?),
        }
    }

    /// That there is no environment of this name, with those that are like it.
    fn no_such(&self, name: &str) -> Result<Error, Error> {
        let own = self.store.read(environments::names)?;
        let known = own.iter().map(String::as_str).chain(self.curated.names());
        Ok(Unresolved::no_such(Kind::Environment, name, known).into())
    }
}
