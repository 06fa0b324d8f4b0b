//! Code and environments.

use atelier_core::content::Digest;
use atelier_core::spec;

use super::{Error, OfField as _, Problem, UnderField as _, text};
use crate::job::v1 as pb;

/// The longest conda document taken, in bytes of JSON, which may be longer than its YAML.
const MAX_CONDA: usize = 2 * spec::limits::MAX_DOCUMENT;
/// The longest path, reference or image name taken, in bytes.
pub(super) const MAX_REFERENCE: usize = spec::limits::MAX_VALUE;

impl From<&spec::Code> for pb::Code {
    fn from(code: &spec::Code) -> Self {
        let source = match code {
            spec::Code::Local(path) => pb::code::Source::Local(path.clone()),
            spec::Code::Snapshot(digest) => {
                pb::code::Source::Snapshot(digest.as_bytes().to_vec().into())
            }
        };
        Self { source: Some(source) }
    }
}

impl TryFrom<pb::Code> for spec::Code {
    type Error = Error;
    fn try_from(code: pb::Code) -> Result<Self, Error> {
        Ok(match code.source.of("source")? {
            pb::code::Source::Local(path) => Self::Local(text(path, MAX_REFERENCE).of("local")?),
            pb::code::Source::Snapshot(digest) => {
                Self::Snapshot(Digest::try_from(&digest[..]).of("snapshot")?)
            }
        })
    }
}

impl From<&spec::Environment> for pb::Environment {
    fn from(environment: &spec::Environment) -> Self {
        use pb::environment::Source;
        let source = match environment {
            spec::Environment::Host => Source::Host(pb::HostEnvironment {}),
            spec::Environment::Named(asset) => Source::Named(asset.into()),
            spec::Environment::Inline(inline) => Source::Inline(inline.into()),
        };
        Self { source: Some(source) }
    }
}

impl From<&spec::InlineEnvironment> for pb::InlineEnvironment {
    fn from(inline: &spec::InlineEnvironment) -> Self {
        Self {
            name: inline.name.clone(),
            image: inline.image.clone(),
            conda_json: inline.conda.as_ref().map(ToString::to_string),
            build: inline.build.as_ref().map(|build| pb::BuildContext {
                path: Some((&build.path).into()),
                dockerfile_path: build.dockerfile_path.clone(),
            }),
        }
    }
}

impl TryFrom<pb::Environment> for spec::Environment {
    type Error = Error;
    fn try_from(environment: pb::Environment) -> Result<Self, Error> {
        use pb::environment::Source;
        Ok(match environment.source.of("source")? {
            Source::Host(pb::HostEnvironment {}) => Self::Host,
            Source::Named(asset) => Self::Named(asset.try_into().under("named")?),
            Source::Inline(inline) => Self::Inline(inline.try_into().under("inline")?),
        })
    }
}

impl TryFrom<pb::InlineEnvironment> for spec::InlineEnvironment {
    type Error = Error;
    fn try_from(inline: pb::InlineEnvironment) -> Result<Self, Error> {
        let conda = inline
            .conda_json
            .map(|json| {
                let json = text(json, MAX_CONDA)?;
                serde_json::from_str(&json).map_err(|error| Problem::Json(error.to_string()))
            })
            .transpose()
            .of("conda_json")?;
        let image = inline.image.map(|image| text(image, MAX_REFERENCE)).transpose().of("image")?;
        let build = inline.build.map(build_context).transpose().under("build")?;
        Ok(Self { name: inline.name, image, conda, build })
    }
}

fn build_context(build: pb::BuildContext) -> Result<spec::BuildContext, Error> {
    let dockerfile = if build.dockerfile_path.is_empty() {
        "Dockerfile".to_owned()
    } else {
        text(build.dockerfile_path, MAX_REFERENCE).of("dockerfile_path")?
    };
    Ok(spec::BuildContext {
        path: build.path.of("path")?.try_into().under("path")?,
        dockerfile_path: dockerfile,
    })
}

impl From<&spec::AssetRef> for pb::AssetRef {
    fn from(asset: &spec::AssetRef) -> Self {
        use pb::asset_ref::Which;
        Self {
            registry: asset.registry.clone().unwrap_or_default(),
            name: asset.name.clone(),
            which: match &asset.version {
                spec::AssetVersion::Default => None,
                spec::AssetVersion::Exact(version) => Some(Which::Version(version.clone())),
                spec::AssetVersion::Label(label) => Some(Which::Label(label.clone())),
            },
        }
    }
}

impl TryFrom<pb::AssetRef> for spec::AssetRef {
    type Error = Error;
    fn try_from(asset: pb::AssetRef) -> Result<Self, Error> {
        use pb::asset_ref::Which;
        if asset.name.is_empty() {
            return Err(Error::new("name", Problem::Missing));
        }
        let version = match asset.which {
            None => spec::AssetVersion::Default,
            Some(Which::Version(version)) => {
                spec::AssetVersion::Exact(text(version, MAX_REFERENCE).of("version")?)
            }
            Some(Which::Label(label)) => {
                spec::AssetVersion::Label(text(label, MAX_REFERENCE).of("label")?)
            }
        };
        Ok(Self {
            registry: Some(asset.registry).filter(|registry| !registry.is_empty()),
            name: text(asset.name, MAX_REFERENCE).of("name")?,
            version,
        })
    }
}
