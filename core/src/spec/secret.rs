//! `azureml:secrets/NAME`: an environment variable whose value is a secret of the workspace's vault.

use std::fmt;

use super::command::CommandJob;
use super::reference::Wrong;
use crate::id::{SecretName, SecretVersion};

/// How a reference to a secret begins. Azure ML has no such references: none of its own begins so.
pub(super) const SECRETS: &str = "azureml:secrets/";
/// What asks for a file.
const AS_FILE: &str = "as=file";
pub(super) const FORM: &str =
    "write azureml:secrets/NAME, azureml:secrets/NAME:VERSION, or azureml:secrets/NAME?as=file";
pub(super) const PLACE: &str = "name it as the whole value of a variable under \
                                'environment_variables', and let the command read that variable";

/// How the job finds the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// As the variable's own value.
    Variable,
    /// In a file in memory; the variable holds its path. It is asked for, and not told by the variable's name:
    /// of those that hold paths only some end in `_FILE`, and `KUBECONFIG` and `GOOGLE_APPLICATION_CREDENTIALS`
    /// do not.
    File,
}

/// A secret that a job names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretRef {
    /// Which.
    pub name: SecretName,
    /// Which version of it; `None`: the latest when the job is submitted.
    pub version: Option<SecretVersion>,
    /// How the job finds the value.
    pub delivery: Delivery,
}

impl SecretRef {
    /// Reads a variable's value; `None`: it names no secret.
    pub(super) fn read(text: &str) -> Option<Result<Self, Wrong>> {
        let rest = text.strip_prefix(SECRETS)?;
        let wrong = |message: String| Wrong { message, help: FORM.to_owned() };
        let shown = super::yaml::shorten(text);
        let read = || {
            let (rest, delivery) = match rest.split_once('?') {
                None => (rest, Delivery::Variable),
                Some((rest, AS_FILE)) => (rest, Delivery::File),
                Some(_) => {
                    return Err(wrong(format!("'{shown}' asks for something unknown after '?'")));
                }
            };
            let (name, version) = match rest.split_once(['@', ':']) {
                None => (rest, None),
                Some((name, "latest")) if rest.contains('@') => (name, None),
                Some((name, version)) => {
                    match version.parse().ok().filter(|version| *version > 0) {
                        Some(version) if !rest.contains('@') => {
                            (name, Some(SecretVersion(version)))
                        }
                        _ => {
                            let problem =
                                "versions are numbers from 1, and the only label is @latest";
                            return Err(wrong(format!("'{shown}' names no version: {problem}")));
                        }
                    }
                }
            };
            match SecretName::new(name) {
                Ok(name) => Ok(Self { name, version, delivery }),
                Err(error) => Err(wrong(format!("'{shown}' names no secret: {error}"))),
            }
        };
        Some(read())
    }

    /// A variable's value, if it names a secret as it should.
    pub fn of(text: &str) -> Option<Self> {
        Self::read(text)?.ok()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SECRETS}{}", self.name)?;
        if let Some(version) = self.version {
            write!(f, ":{version}")?;
        }
        match self.delivery {
            Delivery::Variable => Ok(()),
            Delivery::File => write!(f, "?{AS_FILE}"),
        }
    }
}

impl CommandJob {
    /// The secrets that the job names, by variable.
    pub fn secrets(&self) -> impl Iterator<Item = (&str, SecretRef)> {
        let variables = self.environment_variables.iter();
        variables.filter_map(|(name, value)| Some((name.as_str(), SecretRef::of(value)?)))
    }
}

/// Whether a node sets this variable itself, whatever the job says, or tells the job's processes apart by it.
pub(super) fn is_nodes(variable: &str) -> bool {
    ["ATELIER_", "NVIDIA_"].iter().any(|start| variable.starts_with(start))
        || matches!(
            variable,
            "CUDA_VISIBLE_DEVICES" | "CUDA_DEVICE_ORDER" | "RANK" | "LOCAL_RANK" | "PATH"
        )
}
