//! MLflow's model registry: what its stages, aliases, tags and sources mean for the workspace's
//! models. A version of a registered model is the version of the model asset of that name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{ArtifactPath, Error, ExperimentId, RunId, Tag, limits};
use crate::id::{AssetName, LabelName, VersionName};
use crate::spec::{DataUri, data_uri};

/// The tag by which MLflow tells prompts, which it keeps among its models, from models.
pub const PROMPT_TAG: &str = "mlflow.prompt.is_prompt";
/// The alias that always points to the latest version.
pub const LATEST: &str = "latest";
/// Characters of a tag's value.
pub const TAG_CHARS: usize = 100_000;
/// Characters of an alias.
pub const ALIAS_CHARS: usize = 255;
/// Bytes of what tells of a model or a version: its tags together, a description, a source, a link.
pub const TEXT_BYTES: usize = 1 << 20;
/// Tags of a model or a version.
pub const TAGS: usize = 1000;
/// Registered models on one page of a search.
pub const MODELS_PAGE: usize = 1000;
/// Registered models on a page when the client does not say.
pub const MODELS_PAGE_DEFAULT: usize = 100;
/// Versions on one page of a search.
pub const VERSIONS_PAGE: usize = 200_000;

/// How far a version is, in MLflow's words.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Nothing is said.
    None,
    /// It is tried.
    Staging,
    /// It is in use.
    Production,
    /// It was in use.
    Archived,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Staging, Self::Production, Self::Archived];

    /// The wire's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Staging => "Staging",
            Self::Production => "Production",
            Self::Archived => "Archived",
        }
    }

    /// Reads the wire's name, in any case.
    ///
    /// # Errors
    /// If it is none of MLflow's.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::known(text).ok_or_else(|| {
            Error::Invalid(format!(
                "Invalid Model Version stage: {}. Value must be one of None, Staging, Production, \
                 Archived.",
                limits::excerpt(text)
            ))
        })
    }

    fn known(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str().eq_ignore_ascii_case(text))
    }

    /// What people say of a version, as MLflow shows it: its own word where it is one.
    pub fn shown(said: Option<&str>) -> Cow<'_, str> {
        match said {
            None => Cow::Borrowed(Self::None.as_str()),
            Some(said) => {
                Self::known(said).map_or(Cow::Borrowed(said), |stage| stage.as_str().into())
            }
        }
    }

    /// What is kept of it: nothing, where nothing is said.
    pub fn said(self) -> Option<String> {
        (self != Self::None).then(|| self.as_str().to_owned())
    }

    /// Whether versions are in it to be used, so that one takes the place of the others.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Staging | Self::Production)
    }
}

/// Which version of a registered model is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    /// The one of the highest number.
    Latest,
    /// This one.
    Version(VersionName),
    /// The one of the highest number in this stage.
    Stage(Stage),
    /// The one that this alias points to.
    Alias(LabelName),
}

/// What a version is to be made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// What a run has logged: `runs:/R/P`, `mlflow-artifacts:/E/R/artifacts/P`.
    Artifacts {
        /// The run's experiment, if it is written.
        experiment: Option<ExperimentId>,
        /// The run.
        run: RunId,
        /// The folder or file in it.
        path: ArtifactPath,
    },
    /// A logged model: `models:/m-…`, or its place `mlflow-artifacts:/E/models/m-…/artifacts`.
    LoggedModel {
        /// Its id.
        id: String,
        /// Its experiment, if it is written.
        experiment: Option<ExperimentId>,
    },
    /// Another version: `models:/NAME/VERSION`, `models:/NAME/STAGE`, `models:/NAME@ALIAS`.
    Registered {
        /// The model.
        name: AssetName,
        /// Which of its versions.
        which: Which,
    },
    /// A place of the workspace: `azureml://…`, or an address of cloud storage.
    Place(DataUri),
}

const ABSOLUTE: &str = "If supplying a source as an http, https, local file path, ftp, objectstore, or \
                        mlflow-artifacts uri, an absolute path must be provided without relative path \
                        references present. Please provide an absolute path.";

/// The refusal of a source.
pub fn invalid_source(source: &str, why: &str) -> Error {
    Error::Invalid(format!("Invalid model version source: '{}'. {why}", limits::excerpt(source)))
}

/// The refusal of a source that is not in what the request names, in MLflow's words.
pub fn not_contained(source: &str, parameter: &str) -> Error {
    let why = format!(
        "The {parameter} request parameter must identify the resource that contains the source."
    );
    invalid_source(source, &why)
}

/// How often a source may be percent-encoded over itself.
const DECODINGS: usize = 8;

/// Refuses what leaves its root, in whatever encoding: for addresses whose path nobody here checks again.
fn check_traversal(source: &str) -> Result<(), Error> {
    let mut text = source.to_owned();
    for _ in 0..DECODINGS {
        let leaves = text.split(['/', '\\']).any(|part| matches!(part, "." | ".."));
        if leaves || text.chars().any(char::is_control) {
            return Err(invalid_source(source, ABSOLUTE));
        }
        let decoded = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if decoded == text {
            return Ok(());
        }
        text = decoded;
    }
    Err(invalid_source(source, "It is percent-encoded over and over."))
}

/// What follows a scheme: a path from its root, without a host before it.
fn path_of<'a>(source: &str, rest: &'a str) -> Result<&'a str, Error> {
    let below = rest.strip_prefix("///").or_else(|| rest.strip_prefix('/'));
    match below {
        Some(path) if !path.starts_with('/') => Ok(path.trim_end_matches('/')),
        _ => Err(invalid_source(
            source,
            "It must name something of this workspace, without a host: runs:/RUN_ID/PATH, \
             models:/NAME/VERSION, mlflow-artifacts:/EXPERIMENT_ID/RUN_ID/artifacts/PATH.",
        )),
    }
}

impl Source {
    /// Takes an address apart. What it names may not be there.
    ///
    /// # Errors
    /// If it has none of the forms, or leaves what it names.
    pub fn parse(source: &str) -> Result<Self, Error> {
        if source.len() > TEXT_BYTES {
            return Err(invalid_source(source, "It is too long."));
        }
        check_traversal(source)?;
        let (scheme, rest) = source.split_once(':').unwrap_or(("", source));
        match scheme {
            "runs" => {
                let path = path_of(source, rest)?;
                let (run, path) = path.split_once('/').unwrap_or((path, ""));
                Self::artifacts(source, None, run, path)
            }
            "mlflow-artifacts" => Self::proxied(source, path_of(source, rest)?),
            "models" => Self::model(source, path_of(source, rest)?),
            _ => match data_uri(source) {
                Ok(
                    uri @ (DataUri::Datastore { .. }
                    | DataUri::JobOutput { .. }
                    | DataUri::Cloud(_)),
                ) => Ok(Self::Place(uri)),
                Ok(DataUri::Asset(_)) => Err(invalid_source(
                    source,
                    "A version is not made of an asset by this name: write models:/NAME/VERSION.",
                )),
                Ok(DataUri::Http(_)) => {
                    Err(invalid_source(source, "A model lies in a datastore, not on the web."))
                }
                Ok(_) => Err(invalid_source(
                    source,
                    "It lies on your machine: log it to a run (mlflow.log_artifacts), or make the \
                     version with 'atelier model create --path'.",
                )),
                Err(why) => Err(invalid_source(source, &why)),
            },
        }
    }

    fn artifacts(
        source: &str,
        experiment: Option<ExperimentId>,
        run: &str,
        path: &str,
    ) -> Result<Self, Error> {
        let run = RunId::new(run).map_err(|_| not_contained(source, "run_id"))?;
        if path.is_empty() {
            return Err(invalid_source(
                source,
                "It names a whole run, which changes: name the model's folder in it.",
            ));
        }
        Ok(Self::Artifacts { experiment, run, path: ArtifactPath::new(path)? })
    }

    /// Below `mlflow-artifacts:/`.
    fn proxied(source: &str, path: &str) -> Result<Self, Error> {
        let other = || {
            invalid_source(
                source,
                "Artifacts lie at mlflow-artifacts:/EXPERIMENT_ID/RUN_ID/artifacts/PATH.",
            )
        };
        let mut parts = path.splitn(3, '/');
        let (Some(experiment), Some(owner), Some(rest)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Err(other());
        };
        let experiment = experiment.parse().map(ExperimentId).map_err(|_| other())?;
        // A run may be called `models`; none is called `models/m-…`.
        if owner == "models" && rest.starts_with("m-") {
            return match rest.split_once('/') {
                Some((id, "artifacts")) if is_model_id(id) => {
                    Ok(Self::LoggedModel { id: id.to_owned(), experiment: Some(experiment) })
                }
                _ => Err(other()),
            };
        }
        match rest.split_once('/') {
            Some(("artifacts", path)) => Self::artifacts(source, Some(experiment), owner, path),
            None if rest == "artifacts" => Self::artifacts(source, Some(experiment), owner, ""),
            _ => Err(other()),
        }
    }

    /// Below `models:/`.
    fn model(source: &str, path: &str) -> Result<Self, Error> {
        let unnamed = || not_contained(source, "model_id");
        if let Some((name, which)) = path.split_once('/') {
            let name = AssetName::new(name).map_err(|_| unnamed())?;
            let which = if which.eq_ignore_ascii_case(LATEST) {
                Which::Latest
            } else if which.bytes().all(|b| b.is_ascii_digit()) {
                Which::Version(VersionName::new(which).map_err(|_| unnamed())?)
            } else {
                // Words are versions here, too; MLflow's stages come first.
                match (Stage::known(which), VersionName::new(which)) {
                    (Some(stage), _) => Which::Stage(stage),
                    (None, Ok(version)) => Which::Version(version),
                    (None, Err(_)) => return Err(unnamed()),
                }
            };
            return Ok(Self::Registered { name, which });
        }
        if let Some((name, alias)) = path.rsplit_once('@') {
            let name = AssetName::new(name).map_err(|_| unnamed())?;
            let which = match alias.eq_ignore_ascii_case(LATEST) {
                true => Which::Latest,
                false => Which::Alias(LabelName::new(alias).map_err(|_| unnamed())?),
            };
            return Ok(Self::Registered { name, which });
        }
        if is_model_id(path) {
            return Ok(Self::LoggedModel { id: path.to_owned(), experiment: None });
        }
        Err(unnamed())
    }
}

fn is_model_id(text: &str) -> bool {
    // The rule is a run id's.
    RunId::new(text).is_ok()
}

/// Checks a registered model's name: an asset's, which is narrower than MLflow's.
///
/// # Errors
/// Says the rule.
pub fn model_name(name: &str) -> Result<AssetName, Error> {
    AssetName::new(name).map_err(|invalid| {
        Error::Invalid(format!("Invalid model name '{}': {}", limits::excerpt(name), invalid.rule))
    })
}

/// The name of a version as it is asked for. `007` is looked for as it is written; MLflow's own are numbers.
///
/// # Errors
/// If no version has such a name.
pub fn version_name(text: &str) -> Result<VersionName, Error> {
    VersionName::new(text).map_err(|_| {
        let shown = limits::excerpt(text);
        Error::Invalid(format!("Parameter 'version' must be an integer, got '{shown}'."))
    })
}

/// Checks an alias that is looked up or taken away.
///
/// # Errors
/// Says the rule.
pub fn alias(text: &str) -> Result<LabelName, Error> {
    if text.chars().count() > ALIAS_CHARS {
        return Err(Error::Invalid(format!(
            "'Registered model alias name' exceeds the maximum length of {ALIAS_CHARS} characters"
        )));
    }
    LabelName::new(text).map_err(|_| {
        Error::Invalid(format!(
            "Invalid alias name: '{}'. Names may only contain alphanumerics, underscores (_), and \
             dashes (-), and start with an alphanumeric.",
            limits::excerpt(text)
        ))
    })
}

/// Checks an alias that is set.
///
/// # Errors
/// Says the rule; also for what would be read as something else.
pub fn new_alias(text: &str) -> Result<LabelName, Error> {
    let name = alias(text)?;
    if text.eq_ignore_ascii_case(LATEST) {
        return Err(Error::Invalid(
            "'latest' alias name (case insensitive) is reserved.".to_owned(),
        ));
    }
    let digits = text.strip_prefix(['v', 'V']).unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::Invalid(format!("Version alias name '{text}' is reserved.")));
    }
    Ok(name)
}

/// Checks a tag of a registered model or of one of its versions.
///
/// # Errors
/// Says the rule or the limit.
pub fn tag(tag: &Tag) -> Result<(), Error> {
    limits::key(&tag.key, "key")?;
    limits::at_most("key", limits::KEY_CHARS, &tag.key)?;
    limits::at_most("value", TAG_CHARS, &tag.value)
}

/// Checks all tags of a registered model or a version together.
///
/// # Errors
/// Says the limit.
pub fn tags(tags: &BTreeMap<String, String>) -> Result<(), Error> {
    let bytes: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if tags.len() > TAGS || bytes > TEXT_BYTES {
        return Err(Error::Invalid(format!(
            "A model or a version may have at most {TAGS} tags, of {TEXT_BYTES} bytes together; these \
             are {} of {bytes} bytes. Delete some.",
            tags.len()
        )));
    }
    Ok(())
}

/// Checks a description or a link.
///
/// # Errors
/// Says the limit.
pub fn text(name: &str, limit: usize, value: &str) -> Result<(), Error> {
    if value.len() <= limit {
        return Ok(());
    }
    Err(Error::Invalid(format!("'{name}' exceeds the maximum length of {limit} bytes")))
}
