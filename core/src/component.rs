//! Components: commands with declared inputs and outputs, kept as assets to be used again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{AssetName, LabelName, PortName, Principal, VersionName};
use crate::spec::{
    Code, DataKind, Diagnostics, Distribution, Environment, JobResources, validate_component,
};
use crate::time::Timestamp;

/// What an input takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// Data, or a model.
    Data(DataKind),
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl InputKind {
    /// The `type` that says it in YAML.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Data(kind) => kind.word(),
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    /// Whether this text is a value of it. Data is given by its place, and has none.
    pub fn takes(self, text: &str) -> bool {
        match self {
            Self::Data(_) => false,
            Self::String => true,
            Self::Integer => {
                let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            }
            Self::Number => text.parse().is_ok_and(|number: f64| !number.is_nan()),
            Self::Boolean => matches!(text.to_ascii_lowercase().as_str(), "true" | "false"),
        }
    }
}

/// An input of a component.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InputPort {
    /// What it takes.
    pub kind: InputKind,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether it may be left without a value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// The value where none is given, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Of a number: the least that it may be, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// Of a number: the most that it may be, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// The only values that it may have; none: any.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
}

/// An output of a component.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutputPort {
    /// What it is.
    pub kind: DataKind,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What a component is made of. It never changes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Content {
    /// The shell command, with expressions that name its inputs and outputs.
    pub command: String,
    /// The folder with the code; `None`: an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What the command runs in.
    pub environment: Environment,
    /// What it takes, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<PortName, InputPort>,
    /// What it gives, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<PortName, OutputPort>,
    /// What a job of it takes of its nodes, unless somebody says otherwise.
    pub resources: JobResources,
    /// How several processes are launched, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// Whether the same inputs give the same outputs.
    pub is_deterministic: bool,
}

/// A component on its way to become a version.
#[derive(Clone, PartialEq, Debug)]
pub struct Draft {
    /// Whose version it becomes.
    pub name: AssetName,
    /// Which; `None`: the next number.
    pub version: Option<VersionName>,
    /// A name for people.
    pub display_name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// Key-value pairs for people.
    pub tags: BTreeMap<String, String>,
    /// What it is made of.
    pub content: Content,
}

impl Draft {
    /// Checks it as the daemon does: bounds, expressions, and that nothing of it lies on a user's machine.
    ///
    /// # Errors
    /// Every fault, each with its field.
    pub fn check(&self) -> Result<(), Diagnostics> {
        validate_component(self)
    }

    /// The version that it becomes.
    pub fn made(self, version: VersionName, by: Principal, at: Timestamp) -> ComponentVersion {
        let Self { name, version: _, display_name, description, tags, content } = self;
        ComponentVersion {
            name,
            version,
            display_name,
            description,
            tags,
            content,
            created_by: by,
            created_at: at,
        }
    }
}

/// A version of a component.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ComponentVersion {
    /// The component's name.
    pub name: AssetName,
    /// Which of its versions.
    pub version: VersionName,
    /// A name for people, which may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// What it is for, which may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Key-value pairs for people, which may change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// What it is made of.
    pub content: Content,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
}

/// What may change of a version.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Change {
    /// A name for people; empty: none any more.
    pub display_name: Option<String>,
    /// What it is for; empty: nothing is said any more.
    pub description: Option<String>,
    /// Tags to set.
    pub tags: BTreeMap<String, String>,
    /// Tags to remove.
    pub untag: Vec<String>,
    /// Labels that point to it from now on.
    pub labels: Vec<LabelName>,
    /// Labels that point to it no longer.
    pub unlabel: Vec<LabelName>,
}

impl ComponentVersion {
    /// The version with something said anew.
    pub fn changed(mut self, change: &Change) -> Self {
        let said = |given: &Option<String>, was: Option<String>| match given {
            Some(given) => Some(given.clone()).filter(|text| !text.is_empty()),
            None => was,
        };
        self.display_name = said(&change.display_name, self.display_name);
        self.description = said(&change.description, self.description);
        self.tags.extend(change.tags.clone());
        self.tags.retain(|key, _| !change.untag.contains(key));
        self
    }

    /// As somebody would send it, to be checked again.
    pub fn draft(self) -> Draft {
        let Self { name, version, display_name, description, tags, content, .. } = self;
        Draft { name, version: Some(version), display_name, description, tags, content }
    }
}
