//! Environments as the workspace keeps them.

use atelier_core::environment::{Draft, EnvironmentVersion};
use atelier_core::id::{AssetName, VersionName};
use atelier_core::spec::limits::{MAX_DESCRIPTION, MAX_ENTRIES};

use super::{Error, OfField as _, UnderField as _, text, within};
use crate::environment::v1 as pb;

impl From<&Draft> for pb::CreateEnvironmentRequest {
    fn from(draft: &Draft) -> Self {
        Self {
            name: draft.name.to_string(),
            version: draft.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            description: draft.description.clone().unwrap_or_default(),
            tags: draft.tags.clone(),
            content: Some((&draft.environment).into()),
        }
    }
}

impl TryFrom<pb::CreateEnvironmentRequest> for Draft {
    type Error = Error;
    fn try_from(request: pb::CreateEnvironmentRequest) -> Result<Self, Error> {
        let version = Some(request.version).filter(|version| !version.is_empty());
        let description = text(request.description, MAX_DESCRIPTION).of("description")?;
        within(request.tags.len() as u64, 0, MAX_ENTRIES as u64).of("tags")?;
        Ok(Self {
            name: AssetName::new(&request.name).of("name")?,
            version: version.map(|text| VersionName::new(&text)).transpose().of("version")?,
            description: Some(description).filter(|text| !text.is_empty()),
            tags: request.tags,
            environment: request.content.of("content")?.try_into().under("content")?,
        })
    }
}

/// A version, and where it stands among those of its name.
pub fn environment_version(
    version: &EnvironmentVersion,
    latest: bool,
    archived: bool,
) -> pb::Environment {
    pb::Environment {
        name: version.name.to_string(),
        version: version.version.to_string(),
        description: version.description.clone().unwrap_or_default(),
        tags: version.tags.clone(),
        content: Some((&version.environment).into()),
        latest,
        archived,
        created_by: version.created_by.to_string(),
        created_at_ms: version.created_at.as_millis(),
    }
}
