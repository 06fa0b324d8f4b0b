//! What the workspace keeps of data and models: where they lie, and what people say of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::id::{AssetName, JobName, LabelName, Principal, VersionName};
use crate::spec::{AssetRef, DataKind, DataUri, Diagnostics, validate_asset};
use crate::time::Timestamp;

/// A data asset or a model on its way to become a version.
#[derive(Clone, PartialEq, Debug)]
pub struct Draft {
    /// Whose version it becomes.
    pub name: AssetName,
    /// Which; `None`: the next number.
    pub version: Option<VersionName>,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs for people, which may change.
    pub tags: BTreeMap<String, String>,
    /// Key-value pairs that stay.
    pub properties: BTreeMap<String, String>,
    /// What it is; says too whether it is data or a model.
    pub form: DataKind,
    /// Where it lies.
    pub uri: DataUri,
    /// Of a model: the flavors that it has, as MLflow writes them, each a JSON document.
    pub flavors: BTreeMap<String, serde_json::Value>,
    /// Of a model: how far it is, in its users' words.
    pub stage: Option<String>,
}

impl Draft {
    /// Whether it is data or a model.
    pub fn kind(&self) -> Kind {
        self.form.asset_kind()
    }

    /// Checks it as the daemon does: bounds, and that it lies where the daemon can read.
    ///
    /// # Errors
    /// Every fault, each with its field.
    pub fn check(&self) -> Result<(), Diagnostics> {
        validate_asset(self)
    }

    /// The version that it becomes.
    pub fn made(
        self,
        version: VersionName,
        made_by: Option<MadeBy>,
        by: Principal,
        at: Timestamp,
    ) -> Version {
        let Self { name, version: _, description, tags, properties, form, uri, flavors, stage } =
            self;
        Version {
            name,
            version,
            description,
            tags,
            properties,
            form,
            uri,
            flavors,
            stage,
            made_by,
            created_by: by,
            created_at: at,
        }
    }
}

/// A version of a data asset or a model. Its form, and where it lies, never change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// The asset's name.
    pub name: AssetName,
    /// Which of its versions.
    pub version: VersionName,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Key-value pairs for people, which may change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Key-value pairs that stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What it is.
    pub form: DataKind,
    /// Where it lies: in a datastore, or on the web.
    pub uri: DataUri,
    /// Of a model: its flavors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flavors: BTreeMap<String, serde_json::Value>,
    /// Of a model: how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The job that it is an output of, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeBy>,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
}

/// The job that wrote what became an asset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MadeBy {
    /// The job, also the run's id.
    pub job: JobName,
    /// Which of its outputs; `artifacts` are what its run logged.
    pub output: String,
}

/// What may change of a version.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    /// What it is for; empty: nothing is said any more.
    pub description: Option<String>,
    /// Tags to set.
    pub tags: BTreeMap<String, String>,
    /// Tags to remove.
    pub untag: Vec<String>,
    /// How far a model is; empty: nothing is said any more.
    pub stage: Option<String>,
    /// Labels that point to it from now on, and to no other version of its name.
    pub labels: Vec<LabelName>,
    /// Labels that point to it no more.
    pub unlabel: Vec<LabelName>,
}

/// A version that an input cannot take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{kind} '{asset}' has the type {form}, and the input takes {wanted}; write 'type: {form}', or name another \
     version", kind = .form.asset_kind(), form = .form.word(), wanted = .wanted.word()
)]
pub struct Unfit {
    /// `name:version`.
    pub asset: String,
    /// What it is.
    pub form: DataKind,
    /// What the input takes.
    pub wanted: DataKind,
}

/// Whether both mean the same; a folder may be written with a slash at its end or without.
fn is_same_place(one: &DataUri, other: &DataUri) -> bool {
    let parts = |uri: &DataUri| match uri {
        DataUri::Datastore { datastore, path } => {
            Some((datastore.clone(), path.trim_end_matches('/').to_owned()))
        }
        _ => None,
    };
    one == other || parts(one).is_some_and(|place| parts(other) == Some(place))
}

impl Version {
    /// Whether it is data or a model.
    pub fn kind(&self) -> Kind {
        self.form.asset_kind()
    }

    /// How jobs name this version.
    pub fn reference(&self) -> AssetRef {
        AssetRef::exact(&self.name, &self.version)
    }

    /// Whether it is made of what the draft says: its form, where it lies, and a model's flavors.
    pub fn is_made_of(&self, draft: &Draft) -> bool {
        (self.form, &self.flavors) == (draft.form, &draft.flavors)
            && is_same_place(&self.uri, &draft.uri)
    }

    /// What it says once it is registered again: what it is for is as the draft says.
    pub fn said_again(self, draft: Draft) -> Self {
        let Draft { description, tags, stage, .. } = draft;
        Self { description, tags, stage, ..self }
    }

    /// With what may change of it changed; labels are the asset's.
    #[must_use]
    pub fn changed(mut self, change: &Change) -> Self {
        let said = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        if let Some(description) = &change.description {
            self.description = said(description);
        }
        if let Some(stage) = &change.stage {
            self.stage = said(stage);
        }
        for key in &change.untag {
            self.tags.remove(key);
        }
        self.tags.extend(change.tags.clone());
        self
    }

    /// Whether an input of this kind can take it. What is `custom_model` asks nothing of a model's form; all else
    /// must be what it is called.
    ///
    /// # Errors
    /// If it cannot.
    pub fn fits(&self, wanted: DataKind) -> Result<(), Unfit> {
        let fits =
            self.form == wanted || (wanted == DataKind::CustomModel && self.kind() == Kind::Model);
        if fits {
            return Ok(());
        }
        let asset = format!("{}:{}", self.name, self.version);
        Err(Unfit { asset, form: self.form, wanted })
    }
}
