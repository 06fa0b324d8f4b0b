//! `mlflow/registered-models/…` and `mlflow/model-versions/…`: the workspace's models as MLflow's
//! registry. A version of a registered model is the version of the model asset of that name.
//!
//! Who may what is what holds for assets: whoever writes assets makes and changes them, what one's own
//! is one deletes. A job's token reads the registry, makes versions of what its runs have logged, and
//! changes only these.

mod files;
mod models;
mod reply;
mod retries;
mod source;
mod versions;

use std::any::Any;

use atelier_core::access::{Caller, Permission, Role};
use atelier_core::asset::{Draft, MadeBy};
use atelier_core::id::{AssetName, JobName, VersionName};
use atelier_core::track::{Error as Refusal, Tag, registry};
use axum::routing::{MethodRouter, delete, get, patch, post};
use futures::future::BoxFuture;

pub(super) use files::{Root, download, kept_by, list};
pub(crate) use retries::Retries;
pub(super) use versions::{file, of_runs};

use super::State;
use super::artifacts;
use super::call::{Call, Fields};
use super::experiments::tag_of;
use super::failure::Failure;
use crate::store;
use crate::store::audit::Asked;

/// Follows what a model is made of to where it lies.
pub trait Places: Send + Sync + 'static {
    /// Checks what is to be made a version, and resolves its place.
    ///
    /// # Errors
    /// What is wrong with it, or why that cannot be told now.
    fn locate(&self, draft: Draft) -> BoxFuture<'_, Result<Located, NotLocated>>;

    /// Sees to it that what a job wrote is what it committed, before somebody reads it.
    ///
    /// # Errors
    /// Why that cannot be seen to.
    fn settle<'a>(&'a self, job: &'a JobName) -> BoxFuture<'a, Result<(), String>>;

    /// Waits until nobody holds a place, and keeps others from it, until what it answers is dropped.
    fn let_go(&self) -> BoxFuture<'_, Box<dyn Any + Send>>;
}

/// What is to be made a version, where it lies.
pub struct Located {
    /// With its place resolved.
    pub draft: Draft,
    /// The job that wrote it, if the place says.
    pub made_by: Option<MadeBy>,
    /// Until this is dropped, what lies there stays.
    pub held: Box<dyn Any + Send>,
}

/// Why a place is not to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotLocated {
    /// It is none, or nothing that a model may lie in.
    Refused(String),
    /// It cannot be told now.
    Away(String),
}

impl From<NotLocated> for Failure {
    fn from(error: NotLocated) -> Self {
        match error {
            NotLocated::Refused(why) => Refusal::Invalid(why).into(),
            NotLocated::Away(why) => Self::unavailable(why),
        }
    }
}

/// The calls: path below `mlflow/`, and methods.
pub(super) fn routes() -> Vec<(&'static str, MethodRouter<State>)> {
    vec![
        ("registered-models/create", post(models::create)),
        ("registered-models/get", get(models::get)),
        ("registered-models/rename", post(models::rename)),
        ("registered-models/update", patch(models::update)),
        ("registered-models/delete", delete(models::delete)),
        ("registered-models/search", get(models::search)),
        (
            "registered-models/get-latest-versions",
            get(models::latest_versions).post(models::latest_versions),
        ),
        ("registered-models/set-tag", post(models::set_tag)),
        ("registered-models/delete-tag", delete(models::delete_tag)),
        (
            "registered-models/alias",
            get(versions::by_alias).post(versions::set_alias).delete(versions::delete_alias),
        ),
        ("model-versions/create", post(versions::create)),
        ("model-versions/get", get(versions::get)),
        ("model-versions/update", patch(versions::update)),
        ("model-versions/delete", delete(versions::delete)),
        ("model-versions/search", get(versions::search)),
        ("model-versions/transition-stage", post(versions::transition)),
        ("model-versions/get-download-uri", get(versions::download_uri)),
        ("model-versions/get-artifact", get(artifacts::file_of_version)),
        ("model-versions/set-tag", post(versions::set_tag)),
        ("model-versions/delete-tag", delete(versions::delete_tag)),
    ]
}

/// Refuses who may not read the registry.
fn reads(caller: &Caller) -> Result<(), Refusal> {
    needs(caller, Permission::ReadAssets, "read registered models")
}

/// Refuses who may not make or change models.
fn writes(caller: &Caller) -> Result<(), Refusal> {
    needs(caller, Permission::WriteAssets, "make or change registered models")
}

fn needs(caller: &Caller, permission: Permission, what: &str) -> Result<(), Refusal> {
    match &caller.role {
        Role::Attempt(_) => Ok(()),
        _ if caller.may(permission) => Ok(()),
        role => Err(Refusal::NotAllowed(format!("{} ({role}) may not {what}", caller.principal))),
    }
}

/// Refuses who may not delete models, as jobs may not.
fn deletes(caller: &Caller) -> Result<(), Refusal> {
    if caller.role.is_for_people() && caller.may(Permission::DeleteAssets) {
        return Ok(());
    }
    let Caller { principal, role } = caller;
    Err(Refusal::NotAllowed(format!(
        "{principal} ({role}) may not delete or rename registered models"
    )))
}

impl Call {
    /// The registered model that the call is about.
    fn model(&self) -> Result<AssetName, Failure> {
        let name = self.fields.required_text("name")?;
        // A name that breaks the rule is no model's either, which MLflow says where it is looked up.
        Ok(registry::model_name(name)?)
    }

    /// The version that the call is about.
    fn version(&self) -> Result<(AssetName, VersionName), Failure> {
        let name = self.model()?;
        let version = self.fields.word("version")?.filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| self.fields.missing("version"))?;
        Ok((name, registry::version_name(&version)?))
    }

    /// A text of at most so many bytes.
    fn bounded(&self, name: &str, limit: usize) -> Result<Option<String>, Failure> {
        let text = self.fields.text(name)?.map(str::to_owned);
        if let Some(text) = &text {
            registry::text(name, limit, text)?;
        }
        Ok(text)
    }

    fn description(&self) -> Result<Option<String>, Failure> {
        self.bounded("description", atelier_core::spec::limits::MAX_DESCRIPTION)
    }

    /// Makes a change that the audit log tells of.
    async fn change<T, F>(&self, change: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Asked<'_>, &Caller) -> Result<T, store::Error> + Send + 'static,
    {
        self.still_open()?;
        let (by, caller) = (self.origin.actor(&self.caller), self.caller.clone());
        Ok(self.state.tracking.change(by, move |asked| change(asked, &caller)).await?)
    }

    /// Refuses an attempt that is over.
    fn still_open(&self) -> Result<(), Failure> {
        Ok(self.state.door.still_open(&self.caller).map_err(Refusal::NotAllowed)?)
    }
}

/// A tag, checked.
fn checked_tag(fields: &Fields) -> Result<Tag, Failure> {
    let tag = tag_of(fields)?;
    registry::tag(&tag)?;
    Ok(tag)
}

/// The tags of what is made; of two of one key the last holds. Prompts are told by one.
fn tags(fields: &Fields) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    let tags = fields.objects("tags")?.iter().map(checked_tag).collect::<Result<Vec<_>, _>>()?;
    let tags = tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
    no_prompt(&tags)?;
    registry::tags(&tags)?;
    Ok(tags)
}

fn no_prompt(tags: &std::collections::BTreeMap<String, String>) -> Result<(), Refusal> {
    match tags.get(registry::PROMPT_TAG) {
        Some(said) if said.eq_ignore_ascii_case("true") => Err(Refusal::Invalid(
            "Prompts are not kept here: the registry is the workspace's models.".to_owned(),
        )),
        _ => Ok(()),
    }
}

/// A tag that is set later; it makes no prompt of a model.
fn later_tag(fields: &Fields) -> Result<Tag, Failure> {
    let tag = checked_tag(fields)?;
    no_prompt(&[(tag.key.clone(), tag.value.clone())].into())?;
    Ok(tag)
}
