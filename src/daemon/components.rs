//! Components that the workspace keeps.

use std::sync::Arc;

use atelier_core::asset::{Kind, Refusal, Unresolved};
use atelier_core::audit::Actor;
use atelier_core::component::{Change, ComponentVersion, Draft};
use atelier_core::id::{AssetName, VersionName};
use atelier_core::spec::{AssetRef, AssetVersion, Diagnostics};
use atelier_core::time::Timestamp;
use serde_json::json;

use super::assets::NotOwner;
use crate::identity::Asking;
use crate::store::assets::{self, AssetQuery};
use crate::store::components::{self, ListedComponent};
use crate::store::{self, Archived, SqliteStore};

const KIND: Kind = Kind::Component;

/// Knows every component. Cheap to clone.
#[derive(Clone)]
pub struct Components {
    store: Arc<SqliteStore>,
}

/// Why a component is not to be had, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of versions and labels.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it is breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// Registries are Azure's.
    #[error(
        "there is no registry '{0}' here; name the workspace's own components (azureml:NAME:VERSION)"
    )]
    Registry(String),
    /// It is somebody else's.
    #[error(transparent)]
    NotOwner(#[from] NotOwner),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<Unresolved> for Error {
    fn from(unresolved: Unresolved) -> Self {
        Self::Refused(unresolved.into())
    }
}

impl Components {
    pub(super) fn new(store: Arc<SqliteStore>) -> Self {
        Self { store }
    }

    /// Makes a version, or finds the one that is made of the same. Its code is there, and its environment means one
    /// version. It is on disk when this returns.
    pub async fn register(
        &self,
        draft: Draft,
        by: Actor,
        at: Timestamp,
    ) -> Result<ComponentVersion, Error> {
        let who = by.principal.clone();
        let made = self.store.change(by, move |conn| {
            let before = assets::before(conn, KIND, &draft.name, draft.version.as_ref())?;
            let made = components::register(conn, draft, who, at)?;
            if let Ok(made) = &made {
                conn.changed(assets::resource(made), before.as_ref(), Some(made));
            }
            Ok(made)
        });
        Ok(made.await??)
    }

    /// What a reference means.
    pub fn find(&self, component: &AssetRef) -> Result<ListedComponent, Error> {
        if let Some(registry) = component.registry.clone() {
            return Err(Error::Registry(registry));
        }
        // What is no valid name is no component's.
        let Ok(name) = AssetName::new(&component.name) else {
            return Err(self.no_such(&component.name)?);
        };
        let exact = component.version.exact();
        let known = self.store.read(|conn| assets::asset(conn, KIND, &name, exact))?;
        let Some(known) = known else { return Err(self.no_such(name.as_str())?) };
        self.version(&name, known.resolve(&component.version)?)
    }

    fn version(&self, name: &AssetName, version: &VersionName) -> Result<ListedComponent, Error> {
        let query = AssetQuery {
            name: Some(name.clone()),
            version: Some(version.clone()),
            archived: Archived::With,
            limit: 1,
            ..AssetQuery::default()
        };
        match self.list(&query)?.0.pop() {
            Some(found) => Ok(found),
            None => Err(self.no_such(name.as_str())?),
        }
    }

    /// Versions, and whether there are more.
    pub fn list(&self, query: &AssetQuery) -> Result<(Vec<ListedComponent>, bool), Error> {
        Ok(self.store.read(|conn| assets::list(conn, KIND, query))?)
    }

    /// That there is such a name, whatever becomes of its versions.
    pub fn must_know(&self, name: &AssetName) -> Result<(), Error> {
        match self.store.read(|conn| assets::asset(conn, KIND, name, None))? {
            Some(_) => Ok(()),
            None => Err(self.no_such(name.as_str())?),
        }
    }

    /// Changes what may change of a version.
    pub async fn change(
        &self,
        component: &AssetRef,
        change: Change,
        by: Actor,
    ) -> Result<ListedComponent, Error> {
        let found = self.find(component)?.version;
        let (name, which) = (found.name.clone(), AssetVersion::Exact(found.version.to_string()));
        // As a draft with it would be.
        found.clone().changed(&change).draft().check()?;
        let key = name.clone();
        let changed = self.store.change(by, move |conn| {
            let changed = components::change(conn, &key, &which, &change)?;
            if let Ok(after) = &changed {
                let labels = json!({ "labels": &change.labels, "unlabel": &change.unlabel });
                conn.changed(assets::resource(after), Some(&found), Some(after));
                if !change.labels.is_empty() || !change.unlabel.is_empty() {
                    conn.done(assets::resource(after), &labels);
                }
            }
            Ok(changed)
        });
        let changed = changed.await??;
        self.version(&name, &changed.version)
    }

    /// Hides a component or one of its versions from lists, or shows it again.
    pub async fn archive(
        &self,
        name: &str,
        version: &str,
        archived: bool,
        by: Actor,
    ) -> Result<ListedComponent, Error> {
        let Ok(own) = AssetName::new(name) else { return Err(self.no_such(name)?) };
        let known = self.store.read(|conn| assets::asset(conn, KIND, &own, Some(version)))?;
        let Some(known) = known else { return Err(self.no_such(name)?) };
        let version = match version {
            "" => None,
            version => Some(known.entry(version)?.version.clone()),
        };
        let (key, which) = (own.clone(), version.clone());
        self.store
            .change(by, move |conn| {
                assets::archive_asked(conn, KIND, &key, which.as_ref(), archived)
            })
            .await??;
        let newest = || known.versions.first().map(|entry| entry.version.clone());
        match version.or_else(newest) {
            Some(version) => self.version(&own, &version),
            None => Err(Unresolved::Empty { kind: KIND, name: own }.into()),
        }
    }

    /// Forgets a version, which must be the caller's own unless that is an admin. Its code stays: others may be made
    /// of the same.
    pub async fn delete(
        &self,
        component: &AssetRef,
        caller: &Asking,
    ) -> Result<ListedComponent, Error> {
        let found = self.find(component)?;
        let ComponentVersion { name, version, created_by, .. } = found.version.clone();
        if !caller.owns(&created_by, "") {
            let (principal, owner) = (caller.principal.clone(), created_by);
            return Err(NotOwner { principal, kind: KIND, name, version, owner }.into());
        }
        let which = AssetVersion::Exact(version.to_string());
        let deleted = self.store.change(caller.actor(), move |conn| {
            let deleted = assets::delete::<ComponentVersion>(conn, KIND, &name, &which)?;
            if let Ok(gone) = &deleted {
                conn.changed(assets::resource(gone), Some(gone), None);
            }
            Ok(deleted)
        });
        let version: ComponentVersion = deleted.await??;
        Ok(ListedComponent { version, latest: false, ..found })
    }

    /// That there is no component of this name, with what is like it.
    fn no_such(&self, name: &str) -> Result<Error, Error> {
        let known = self.store.read(|conn| assets::names(conn, KIND))?;
        Ok(Unresolved::no_such(KIND, name, known.iter().map(String::as_str)).into())
    }
}
