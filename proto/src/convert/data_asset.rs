//! Data assets and models as the workspace keeps them.

use atelier_core::asset::{Change, Draft, Kind, Version};
use atelier_core::id::{AssetName, LabelName, VersionName};
use atelier_core::spec::limits::{MAX_DESCRIPTION, MAX_ENTRIES, MAX_TAG_VALUE};

use super::data::number;
use super::{Error, OfField as _, Problem, UnderField as _, json_map, text, to_json_map, within};
use crate::asset::v1 as pb;
use crate::job::v1 as job;

impl From<Kind> for pb::AssetKind {
    fn from(kind: Kind) -> Self {
        match kind {
            // Have services of their own.
            Kind::Environment | Kind::Component => Self::Unspecified,
            Kind::Data => Self::Data,
            Kind::Model => Self::Model,
        }
    }
}

impl pb::AssetKind {
    /// The kind in core's words.
    ///
    /// # Errors
    /// If it was left out.
    pub fn to_core(self) -> Result<Kind, Error> {
        match self {
            Self::Unspecified => Err(Error::new("kind", Problem::Missing)),
            Self::Data => Ok(Kind::Data),
            Self::Model => Ok(Kind::Model),
        }
    }
}

impl From<&Draft> for pb::CreateAssetRequest {
    fn from(draft: &Draft) -> Self {
        Self {
            name: draft.name.to_string(),
            version: draft.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            description: draft.description.clone().unwrap_or_default(),
            tags: draft.tags.clone(),
            properties: draft.properties.clone(),
            r#type: job::DataKind::from(draft.form).into(),
            uri: Some((&draft.uri).into()),
            flavors_json: to_json_map(&draft.flavors),
            stage: draft.stage.clone().unwrap_or_default(),
            idempotency_key: String::new(),
        }
    }
}

impl TryFrom<pb::CreateAssetRequest> for Draft {
    type Error = Error;
    fn try_from(request: pb::CreateAssetRequest) -> Result<Self, Error> {
        let version = Some(request.version).filter(|version| !version.is_empty());
        let description = text(request.description, MAX_DESCRIPTION).of("description")?;
        let stage = text(request.stage, MAX_TAG_VALUE).of("stage")?;
        for (field, pairs) in [
            ("tags", &request.tags),
            ("properties", &request.properties),
            ("flavors_json", &request.flavors_json),
        ] {
            within(pairs.len() as u64, 0, MAX_ENTRIES as u64).of(field)?;
        }
        Ok(Self {
            name: AssetName::new(&request.name).of("name")?,
            version: version.map(|text| VersionName::new(&text)).transpose().of("version")?,
            description: Some(description).filter(|text| !text.is_empty()),
            tags: request.tags,
            properties: request.properties,
            form: number::<job::DataKind, _>(request.r#type).of("type")?,
            uri: request.uri.of("uri")?.try_into().under("uri")?,
            flavors: json_map(request.flavors_json, "flavors_json")?,
            stage: Some(stage).filter(|text| !text.is_empty()),
        })
    }
}

impl TryFrom<pb::UpdateAssetRequest> for Change {
    type Error = Error;
    fn try_from(request: pb::UpdateAssetRequest) -> Result<Self, Error> {
        let said = |value: Option<String>, most, field| {
            value.map(|value| text(value, most)).transpose().of(field)
        };
        within(request.set_tags.len() as u64, 0, MAX_ENTRIES as u64).of("set_tags")?;
        Ok(Self {
            description: said(request.description, MAX_DESCRIPTION, "description")?,
            tags: request.set_tags,
            untag: request.remove_tags,
            stage: said(request.stage, MAX_TAG_VALUE, "stage")?,
            labels: labels(request.set_labels, "set_labels")?,
            unlabel: labels(request.remove_labels, "remove_labels")?,
        })
    }
}

pub(super) fn labels(names: Vec<String>, field: &str) -> Result<Vec<LabelName>, Error> {
    within(names.len() as u64, 0, MAX_ENTRIES as u64).of(field)?;
    names.iter().map(|name| LabelName::new(name)).collect::<Result<_, _>>().of(field)
}

/// A version, and where it stands among those of its name.
pub fn asset_version(
    version: &Version,
    latest: bool,
    archived: bool,
    labels: &[LabelName],
) -> pb::Asset {
    let made_by = version.made_by.as_ref();
    pb::Asset {
        kind: pb::AssetKind::from(version.kind()).into(),
        name: version.name.to_string(),
        version: version.version.to_string(),
        description: version.description.clone().unwrap_or_default(),
        tags: version.tags.clone(),
        properties: version.properties.clone(),
        r#type: job::DataKind::from(version.form).into(),
        uri: Some((&version.uri).into()),
        flavors_json: to_json_map(&version.flavors),
        stage: version.stage.clone().unwrap_or_default(),
        job: made_by.map(|by| by.job.to_string()).unwrap_or_default(),
        output: made_by.map(|by| by.output.clone()).unwrap_or_default(),
        latest,
        labels: labels.iter().map(ToString::to_string).collect(),
        archived,
        created_by: version.created_by.to_string(),
        created_at_ms: version.created_at.as_millis(),
        data_kept: String::new(),
        data_left: String::new(),
        data_going: false,
    }
}
