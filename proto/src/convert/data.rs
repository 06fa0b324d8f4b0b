//! References to data, inputs and outputs.

use atelier_core::id::{DatastoreName, JobName};
use atelier_core::spec;

use super::environment::MAX_REFERENCE;
use super::{Error, OfField as _, Problem, UnderField as _, text};
use crate::job::v1 as pb;

impl From<&spec::DataUri> for pb::DataUri {
    fn from(uri: &spec::DataUri) -> Self {
        use pb::data_uri::{self as wire, Form};
        let form = match uri {
            spec::DataUri::Local(path) => Form::Local(path.clone()),
            spec::DataUri::Datastore { datastore, path } => Form::Datastore(wire::Datastore {
                name: datastore.as_str().to_owned(),
                path: path.clone(),
            }),
            spec::DataUri::JobOutput { job, output, path } => Form::JobOutput(wire::JobOutput {
                job: job.as_str().to_owned(),
                output: output.clone(),
                path: path.clone(),
            }),
            spec::DataUri::RunArtifact { run, path } => {
                Form::RunArtifact(wire::RunArtifact { run: run.clone(), path: path.clone() })
            }
            spec::DataUri::Asset(asset) => Form::Asset(asset.into()),
            spec::DataUri::Http(url) => Form::Http(url.clone()),
            spec::DataUri::Cloud(url) => Form::Cloud(url.clone()),
        };
        Self { form: Some(form) }
    }
}

impl TryFrom<pb::DataUri> for spec::DataUri {
    type Error = Error;
    fn try_from(uri: pb::DataUri) -> Result<Self, Error> {
        use pb::data_uri::Form;
        let reference = |value, field: &str| text(value, MAX_REFERENCE).of(field);
        Ok(match uri.form.of("form")? {
            Form::Local(path) => Self::Local(reference(path, "local")?),
            Form::Datastore(form) => Self::Datastore {
                datastore: DatastoreName::new(&form.name).of("datastore.name")?,
                path: reference(form.path, "datastore.path")?,
            },
            Form::JobOutput(form) => Self::JobOutput {
                job: JobName::new(&form.job).of("job_output.job")?,
                output: reference(form.output, "job_output.output")?,
                path: reference(form.path, "job_output.path")?,
            },
            Form::RunArtifact(form) => Self::RunArtifact {
                run: reference(form.run, "run_artifact.run")?,
                path: reference(form.path, "run_artifact.path")?,
            },
            Form::Asset(asset) => Self::Asset(asset.try_into().under("asset")?),
            Form::Http(url) => Self::Http(reference(url, "http")?),
            Form::Cloud(url) => Self::Cloud(reference(url, "cloud")?),
        })
    }
}

/// Converts an enum both ways; an unspecified number becomes Azure's default.
macro_rules! choices {
    ($Core:ident, default $default:ident, $($variant:ident = $wire:ident),+) => {
        impl From<spec::$Core> for pb::$Core {
            fn from(value: spec::$Core) -> Self {
                match value {
                    $(spec::$Core::$variant => Self::$wire),+
                }
            }
        }

        impl From<pb::$Core> for spec::$Core {
            fn from(value: pb::$Core) -> Self {
                match value {
                    pb::$Core::Unspecified => Self::$default,
                    $(pb::$Core::$wire => Self::$variant),+
                }
            }
        }
    };
}

choices!(
    DataKind, default UriFolder,
    UriFile = UriFile, UriFolder = UriFolder, MlTable = Mltable, MlflowModel = MlflowModel,
    CustomModel = CustomModel, TritonModel = TritonModel
);
choices!(
    InputMode, default RoMount,
    RoMount = RoMount, Download = Download, Direct = Direct, EvalMount = EvalMount,
    EvalDownload = EvalDownload
);
choices!(OutputMode, default RwMount, RwMount = RwMount, Upload = Upload, Direct = Direct);
choices!(Priority, default Medium, Low = Low, Medium = Medium, High = High);
choices!(IdleAction, default Notify, Notify = Notify, Stop = Stop);
choices!(OnNodeLoss, default Requeue, Requeue = Requeue, Keep = Keep);

/// The core value of an enum number.
pub(super) fn number<W, C>(value: i32) -> Result<C, Problem>
where
    W: TryFrom<i32>,
    C: From<W>,
{
    W::try_from(value).map(C::from).map_err(|_| Problem::UnknownNumber(value))
}

impl From<&spec::Input> for pb::Input {
    fn from(input: &spec::Input) -> Self {
        use pb::input::{self as wire, Value};
        let value = match input {
            spec::Input::Literal { value } => Value::Literal(value.clone()),
            spec::Input::Data { kind, mode, uri, asset, address } => Value::Data(wire::Data {
                kind: pb::DataKind::from(*kind).into(),
                mode: pb::InputMode::from(*mode).into(),
                uri: Some(uri.into()),
                asset: asset.as_ref().map(Into::into),
                address: address.clone(),
            }),
            spec::Input::Unset => Value::Unset(wire::Unset {}),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<pb::Input> for spec::Input {
    type Error = Error;
    fn try_from(input: pb::Input) -> Result<Self, Error> {
        use pb::input::Value;
        Ok(match input.value.of("value")? {
            Value::Literal(value) => {
                Self::Literal { value: text(value, spec::limits::MAX_VALUE).of("literal")? }
            }
            Value::Data(data) => Self::Data {
                kind: number::<pb::DataKind, _>(data.kind).of("data.kind")?,
                mode: number::<pb::InputMode, _>(data.mode).of("data.mode")?,
                uri: data.uri.of("data.uri")?.try_into().under("data.uri")?,
                asset: data.asset.map(TryInto::try_into).transpose().under("data.asset")?,
                address: data
                    .address
                    .map(|address| text(address, MAX_REFERENCE))
                    .transpose()
                    .of("data.address")?,
            },
            Value::Unset(_) => Self::Unset,
        })
    }
}

impl From<&spec::Output> for pb::Output {
    fn from(output: &spec::Output) -> Self {
        Self {
            kind: pb::DataKind::from(output.kind).into(),
            mode: pb::OutputMode::from(output.mode).into(),
            path: output.path.clone(),
            asset_name: output.asset_name.clone(),
            asset_version: output.asset_version.clone(),
        }
    }
}

impl TryFrom<pb::Output> for spec::Output {
    type Error = Error;
    fn try_from(output: pb::Output) -> Result<Self, Error> {
        let optional = |value: Option<String>, field: &str| {
            value.map(|value| text(value, MAX_REFERENCE)).transpose().of(field)
        };
        Ok(Self {
            kind: number::<pb::DataKind, _>(output.kind).of("kind")?,
            mode: number::<pb::OutputMode, _>(output.mode).of("mode")?,
            path: optional(output.path, "path")?,
            asset_name: optional(output.asset_name, "asset_name")?,
            asset_version: optional(output.asset_version, "asset_version")?,
        })
    }
}
