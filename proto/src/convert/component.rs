//! Components as the workspace keeps them.

use atelier_core::component::{
    Change, ComponentVersion, Content, Draft, InputKind, InputPort, OutputPort,
};
use atelier_core::id::{AssetName, LabelName, VersionName};
use atelier_core::spec::limits::{MAX_COMMAND, MAX_DESCRIPTION, MAX_ENTRIES, MAX_VALUE};

use super::command::{checked_ports, distribution, ports, resources};
use super::data::number;
use super::data_asset::labels;
use super::{Error, OfField as _, Problem, UnderField as _, text, within};
use crate::component::v1 as pb;
use crate::job::v1 as job;

impl From<InputKind> for pb::InputType {
    fn from(kind: InputKind) -> Self {
        use pb::LiteralType as L;
        use pb::input_type::Of;
        let literal = |of: L| Of::Literal(of.into());
        let of = match kind {
            InputKind::Data(kind) => Of::Data(job::DataKind::from(kind).into()),
            InputKind::String => literal(L::String),
            InputKind::Integer => literal(L::Integer),
            InputKind::Number => literal(L::Number),
            InputKind::Boolean => literal(L::Boolean),
        };
        Self { of: Some(of) }
    }
}

impl TryFrom<pb::InputType> for InputKind {
    type Error = Error;
    fn try_from(sent: pb::InputType) -> Result<Self, Error> {
        use pb::LiteralType as L;
        use pb::input_type::Of;
        let literal = match sent.of.of("of")? {
            Of::Data(kind) => {
                return number::<job::DataKind, _>(kind).of("data").map(Self::Data);
            }
            Of::Literal(literal) => literal,
        };
        match L::try_from(literal) {
            Ok(L::String) => Ok(Self::String),
            Ok(L::Integer) => Ok(Self::Integer),
            Ok(L::Number) => Ok(Self::Number),
            Ok(L::Boolean) => Ok(Self::Boolean),
            Ok(L::Unspecified) => Err(Error::new("literal", Problem::Missing)),
            Err(_) => Err(Error::new("literal", Problem::UnknownNumber(literal))),
        }
    }
}

impl From<&InputPort> for pb::ComponentInput {
    fn from(port: &InputPort) -> Self {
        Self {
            r#type: Some(port.kind.into()),
            description: port.description.clone().unwrap_or_default(),
            optional: port.optional,
            default: port.default.clone(),
            min: port.min.clone(),
            max: port.max.clone(),
            r#enum: port.choices.clone(),
        }
    }
}

impl TryFrom<pb::ComponentInput> for InputPort {
    type Error = Error;
    fn try_from(sent: pb::ComponentInput) -> Result<Self, Error> {
        let value = |value: Option<String>, field| {
            value.map(|value| text(value, MAX_VALUE)).transpose().of(field)
        };
        within(sent.r#enum.len() as u64, 0, MAX_ENTRIES as u64).of("enum")?;
        let choices = sent.r#enum.into_iter().map(|choice| text(choice, MAX_VALUE));
        Ok(Self {
            kind: sent.r#type.of("type")?.try_into().under("type")?,
            description: said(sent.description, "description")?,
            optional: sent.optional,
            default: value(sent.default, "default")?,
            min: value(sent.min, "min")?,
            max: value(sent.max, "max")?,
            choices: choices.collect::<Result<_, _>>().of("enum")?,
        })
    }
}

impl From<&OutputPort> for pb::ComponentOutput {
    fn from(port: &OutputPort) -> Self {
        Self {
            r#type: job::DataKind::from(port.kind).into(),
            description: port.description.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::ComponentOutput> for OutputPort {
    type Error = Error;
    fn try_from(sent: pb::ComponentOutput) -> Result<Self, Error> {
        Ok(Self {
            kind: number::<job::DataKind, _>(sent.r#type).of("type")?,
            description: said(sent.description, "description")?,
        })
    }
}

impl From<&Content> for pb::ComponentContent {
    fn from(content: &Content) -> Self {
        Self {
            command: content.command.clone(),
            code: content.code.as_ref().map(Into::into),
            environment: Some((&content.environment).into()),
            inputs: ports(&content.inputs),
            outputs: ports(&content.outputs),
            resources: Some((&content.resources).into()),
            distribution: content.distribution.as_ref().map(Into::into),
            is_deterministic: content.is_deterministic,
        }
    }
}

impl TryFrom<pb::ComponentContent> for Content {
    type Error = Error;
    fn try_from(sent: pb::ComponentContent) -> Result<Self, Error> {
        let resources = sent.resources.map(resources).transpose().under("resources")?;
        let resources = resources.unwrap_or_default();
        let members = resources.instance_count;
        within(sent.inputs.len() as u64, 0, MAX_ENTRIES as u64).of("inputs")?;
        within(sent.outputs.len() as u64, 0, MAX_ENTRIES as u64).of("outputs")?;
        Ok(Self {
            command: text(sent.command, MAX_COMMAND).of("command")?,
            code: sent.code.map(TryInto::try_into).transpose().under("code")?,
            environment: sent.environment.of("environment")?.try_into().under("environment")?,
            inputs: checked_ports(sent.inputs, "inputs")?,
            outputs: checked_ports(sent.outputs, "outputs")?,
            distribution: sent
                .distribution
                .map(|sent| distribution(sent, members))
                .transpose()
                .under("distribution")?,
            resources,
            is_deterministic: sent.is_deterministic,
        })
    }
}

fn said(value: String, field: &str) -> Result<Option<String>, Error> {
    let value = text(value, MAX_DESCRIPTION).of(field)?;
    Ok(Some(value).filter(|text| !text.is_empty()))
}

impl From<&Draft> for pb::CreateComponentRequest {
    fn from(draft: &Draft) -> Self {
        Self {
            name: draft.name.to_string(),
            version: draft.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            display_name: draft.display_name.clone().unwrap_or_default(),
            description: draft.description.clone().unwrap_or_default(),
            tags: draft.tags.clone(),
            content: Some((&draft.content).into()),
        }
    }
}

impl TryFrom<pb::CreateComponentRequest> for Draft {
    type Error = Error;
    fn try_from(request: pb::CreateComponentRequest) -> Result<Self, Error> {
        let version = Some(request.version).filter(|version| !version.is_empty());
        within(request.tags.len() as u64, 0, MAX_ENTRIES as u64).of("tags")?;
        Ok(Self {
            name: AssetName::new(&request.name).of("name")?,
            version: version.map(|text| VersionName::new(&text)).transpose().of("version")?,
            display_name: said(request.display_name, "display_name")?,
            description: said(request.description, "description")?,
            tags: request.tags,
            content: request.content.of("content")?.try_into().under("content")?,
        })
    }
}

impl TryFrom<pb::UpdateComponentRequest> for Change {
    type Error = Error;
    fn try_from(request: pb::UpdateComponentRequest) -> Result<Self, Error> {
        let value = |value: Option<String>, field| {
            value.map(|value| text(value, MAX_DESCRIPTION)).transpose().of(field)
        };
        within(request.set_tags.len() as u64, 0, MAX_ENTRIES as u64).of("set_tags")?;
        Ok(Self {
            display_name: value(request.display_name, "display_name")?,
            description: value(request.description, "description")?,
            tags: request.set_tags,
            untag: request.remove_tags,
            labels: labels(request.set_labels, "set_labels")?,
            unlabel: labels(request.remove_labels, "remove_labels")?,
        })
    }
}

/// A version, and where it stands among those of its name.
pub fn component_version(
    version: &ComponentVersion,
    latest: bool,
    archived: bool,
    labels: &[LabelName],
) -> pb::Component {
    pb::Component {
        name: version.name.to_string(),
        version: version.version.to_string(),
        display_name: version.display_name.clone().unwrap_or_default(),
        description: version.description.clone().unwrap_or_default(),
        tags: version.tags.clone(),
        content: Some((&version.content).into()),
        latest,
        labels: labels.iter().map(ToString::to_string).collect(),
        archived,
        created_by: version.created_by.to_string(),
        created_at_ms: version.created_at.as_millis(),
    }
}
