//! Datastores as they are made.

use atelier_core::datastore::{Draft, FolderKind, FolderSource};
use atelier_core::id::DatastoreName;
use atelier_core::spec::limits::{MAX_DESCRIPTION, MAX_ENTRIES, MAX_VALUE};

use super::{Error, OfField as _, text, within};
use crate::workspace::v1 as pb;
use pb::datastore_draft::Source;

impl From<&Draft> for pb::DatastoreDraft {
    fn from(draft: &Draft) -> Self {
        let path = draft.folder.path.clone();
        Self {
            name: draft.name.to_string(),
            description: draft.description.clone().unwrap_or_default(),
            tags: draft.tags.clone(),
            properties: draft.properties.clone(),
            source: Some(match draft.folder.kind {
                FolderKind::Local => Source::Local(pb::LocalFolder { path }),
                FolderKind::Nfs => Source::Nfs(pb::NfsFolder { path }),
            }),
        }
    }
}

impl TryFrom<pb::DatastoreDraft> for Draft {
    type Error = Error;
    fn try_from(draft: pb::DatastoreDraft) -> Result<Self, Error> {
        let (kind, field, path) = match draft.source.of("source")? {
            Source::Local(folder) => (FolderKind::Local, "local.path", folder.path),
            Source::Nfs(folder) => (FolderKind::Nfs, "nfs.path", folder.path),
        };
        let description = text(draft.description, MAX_DESCRIPTION).of("description")?;
        for (pairs, name) in [(&draft.tags, "tags"), (&draft.properties, "properties")] {
            within(pairs.len() as u64, 0, MAX_ENTRIES as u64).of(name)?;
        }
        Ok(Self {
            name: DatastoreName::new(&draft.name).of("name")?,
            description: Some(description).filter(|text| !text.is_empty()),
            tags: draft.tags,
            properties: draft.properties,
            folder: FolderSource { kind, path: text(path, MAX_VALUE).of(field)? },
        })
    }
}
