//! What the tracking rules refuse, and the code the wire gives it.

use crate::asset;

/// MLflow's `error_code`, as far as tracking uses it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Code {
    /// The request is malformed or breaks a limit.
    InvalidParameterValue,
    /// The thing named does not exist.
    ResourceDoesNotExist,
    /// The name is taken.
    ResourceAlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// The thing is not in a state that allows this.
    InvalidState,
}

impl Code {
    /// The code's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidParameterValue => "INVALID_PARAMETER_VALUE",
            Self::ResourceDoesNotExist => "RESOURCE_DOES_NOT_EXIST",
            Self::ResourceAlreadyExists => "RESOURCE_ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::InvalidState => "INVALID_STATE",
        }
    }

    /// The status of an answer with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::ResourceDoesNotExist => 404,
            Self::PermissionDenied => 403,
            // MLflow answers INVALID_STATE with 500, which its clients then repeat in vain.
            Self::InvalidParameterValue | Self::ResourceAlreadyExists | Self::InvalidState => 400,
        }
    }
}

/// A refusal by the tracking rules. Its text is meant for the user and says what to change.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A value breaks a rule or a limit.
    #[error("{0}")]
    Invalid(String),
    /// No run has this id.
    #[error("Run with id={0} not found")]
    NoRun(String),
    /// No experiment has this id.
    #[error("No Experiment with id={0} exists")]
    NoExperiment(String),
    /// No experiment has this name.
    #[error("Could not find experiment with name '{0}'")]
    NoExperimentNamed(String),
    /// An experiment of this name exists, active or deleted.
    #[error("Experiment(name={0}) already exists.")]
    ExperimentExists(String),
    /// The run is deleted and takes no writes until it is restored.
    #[error("The run {0} must be in the 'active' state. Current state is deleted.")]
    RunDeleted(String),
    /// The experiment is deleted and takes no writes until it is restored.
    #[error("The experiment {0} must be in the 'active' state. Current state is deleted.")]
    ExperimentDeleted(String),
    /// A deleted experiment cannot be renamed.
    #[error("Cannot rename a non-active experiment.")]
    RenameDeleted,
    /// A parameter already has another value.
    #[error(
        "Changing param values is not allowed. Param with key='{key}' was already logged with \
         value='{old}' for run ID='{run}'. Attempted logging new value '{new}'."
    )]
    ParamChanged {
        /// The run.
        run: String,
        /// The parameter's key.
        key: String,
        /// The value it keeps.
        old: String,
        /// The value refused.
        new: String,
    },
    /// A tag of a logged model that is to be deleted is not there.
    #[error("No tag with key '{key}' found for model with ID '{model}'.")]
    NoModelTag {
        /// The tag's key.
        key: String,
        /// The model.
        model: String,
    },
    /// A tag to be deleted is not there.
    #[error("No tag with name: {key} in {owner}")]
    NoTag {
        /// The tag's key.
        key: String,
        /// Whose tag, for example `run with id abc`.
        owner: String,
    },
    /// No logged model has this id.
    #[error("Logged model with ID '{0}' not found.")]
    NoModel(String),
    /// The logged model is deleted, and takes no more.
    #[error("The logged model {0} must be in the 'active' state. Current state is deleted.")]
    ModelDeleted(String),
    /// No such artifact.
    #[error("No such artifact: '{0}'")]
    NoArtifact(String),
    /// The caller may not do this; the text names what it may.
    #[error("{0}")]
    NotAllowed(String),
    /// No registered model has this name.
    #[error("Registered Model with name={0} not found")]
    NoRegisteredModel(String),
    /// A registered model of this name exists.
    #[error("Registered Model (name={0}) already exists.")]
    RegisteredModelExists(String),
    /// A registered model has no such version.
    #[error("Model Version (name={name}, version={version}) not found")]
    NoModelVersion {
        /// The model.
        name: String,
        /// As asked for.
        version: String,
    },
    /// No version has this alias.
    #[error("Registered model alias {0} not found.")]
    NoAlias(String),
    /// A rule of assets.
    #[error(transparent)]
    Asset(#[from] Box<asset::Refusal>),
}

impl Error {
    /// The wire's code for this refusal.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_)
            | Self::RunDeleted(_)
            | Self::ExperimentDeleted(_)
            | Self::NoAlias(_)
            | Self::ModelDeleted(_)
            | Self::ParamChanged { .. } => Code::InvalidParameterValue,
            Self::NoRun(_)
            | Self::NoExperiment(_)
            | Self::NoExperimentNamed(_)
            | Self::NoTag { .. }
            | Self::NoModelTag { .. }
            | Self::NoArtifact(_)
            | Self::NoModel(_)
            | Self::NoRegisteredModel(_)
            | Self::NoModelVersion { .. } => Code::ResourceDoesNotExist,
            Self::ExperimentExists(_) | Self::RegisteredModelExists(_) => {
                Code::ResourceAlreadyExists
            }
            Self::Asset(refusal) if matches!(**refusal, asset::Refusal::Unresolved(_)) => {
                Code::ResourceDoesNotExist
            }
            Self::RenameDeleted | Self::Asset(_) => Code::InvalidState,
            Self::NotAllowed(_) => Code::PermissionDenied,
        }
    }
}
