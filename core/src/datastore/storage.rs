//! Where the workspace's own datastores lie.

use serde::{Deserialize, Serialize};

use super::Source;

/// Where the workspace's own datastores lie, each below it in a folder of its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoragePlace {
    /// In the daemon's data folder.
    DataFolder,
    /// In another folder of the daemon's machine, or in an object store.
    Elsewhere(Source),
}

impl StoragePlace {
    /// Whether nothing but how it is reached (a region, a style of addresses) differs.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::DataFolder, Self::DataFolder) => true,
            (Self::Elsewhere(one), Self::Elsewhere(other)) => {
                one.kind() == other.kind() && one.location() == other.location()
            }
            _ => false,
        }
    }

    /// Where that is, in one line.
    pub fn location(&self) -> String {
        match self {
            Self::DataFolder => "the data folder".to_owned(),
            Self::Elsewhere(source) => source.location(),
        }
    }
}

/// What the daemon was started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorageWanted {
    /// Where its own datastores are to lie.
    pub place: StoragePlace,
    /// Whether it was given keys or tokens to reach it with.
    pub has_keys: bool,
}

/// Where a workspace's own datastores lie, as it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StorageRecord {
    /// Where.
    pub place: StoragePlace,
    /// Random. The place is marked with it, so that no other is taken for it.
    pub id: String,
    /// Whether it is reached with keys, which the daemon is given each time.
    pub has_keys: bool,
    /// Whether the place is marked. It may be another one until then: nothing has been stored.
    pub is_settled: bool,
}

/// Why a workspace's storage is not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StorageRefusal {
    /// It lies elsewhere.
    #[error(
        "the workspace's data lies in {kept}, and --storage says {wanted}: start the daemon with what it had, or move \
         the data there with 'atelier workspace migrate-storage --to FILE'"
    )]
    Elsewhere {
        /// Where it lies.
        kept: String,
        /// Where it was said to lie.
        wanted: String,
    },
    /// Nothing says with what it is reached.
    #[error(
        "the workspace's data lies in {0}, which is reached with keys: start the daemon with --storage FILE (or \
         ATELIER_STORAGE), the file that has them"
    )]
    NoKeys(String),
}

impl StorageRecord {
    fn new(wanted: StorageWanted, id: String) -> Self {
        let StorageWanted { place, has_keys } = wanted;
        let is_settled = place == StoragePlace::DataFolder;
        Self { place, id, has_keys, is_settled }
    }

    /// Where a workspace's data lies, from what is kept of that, what the daemon was started with, and whether the
    /// workspace is only being made. `id` is random.
    ///
    /// # Errors
    /// [`StorageRefusal`]: nothing is opened in the place of what is there.
    pub fn open(
        kept: Option<Self>,
        wanted: Option<StorageWanted>,
        is_new: bool,
        id: String,
    ) -> Result<Self, StorageRefusal> {
        let usual = || StorageWanted { place: StoragePlace::DataFolder, has_keys: false };
        let kept = match kept {
            Some(kept) if kept.is_settled => kept,
            None if !is_new => Self::new(usual(), id),
            begun => {
                let wanted = wanted.unwrap_or_else(usual);
                // Cut short before, it may have marked the place.
                let id = begun.filter(|begun| begun.place.is(&wanted.place)).map_or(id, |b| b.id);
                return Ok(Self::new(wanted, id));
            }
        };
        match wanted {
            None if kept.has_keys => Err(StorageRefusal::NoKeys(kept.place.location())),
            None => Ok(kept),
            Some(wanted) if wanted.place.is(&kept.place) => {
                Ok(Self { place: wanted.place, has_keys: wanted.has_keys, ..kept })
            }
            Some(wanted) => Err(StorageRefusal::Elsewhere {
                kept: kept.place.location(),
                wanted: wanted.place.location(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, region: Option<&str>) -> StoragePlace {
        StoragePlace::Elsewhere(Source::S3 {
            bucket: name.to_owned(),
            endpoint: None,
            region: region.map(str::to_owned),
            prefix: None,
            path_style: false,
        })
    }

    fn record(place: StoragePlace, has_keys: bool, is_settled: bool) -> StorageRecord {
        StorageRecord { place, id: "kept".to_owned(), has_keys, is_settled }
    }

    fn open(
        kept: Option<StorageRecord>,
        wanted: Option<StoragePlace>,
        is_new: bool,
    ) -> Result<(StoragePlace, String, bool), StorageRefusal> {
        let wanted = wanted.map(|place| StorageWanted { place, has_keys: true });
        let opened = StorageRecord::open(kept, wanted, is_new, "fresh".to_owned())?;
        Ok((opened.place, opened.id, opened.is_settled))
    }

    #[test]
    fn a_new_workspace_lies_where_it_is_told_to() {
        let (folder, there) = (StoragePlace::DataFolder, bucket("a", None));
        let fresh = || "fresh".to_owned();
        assert_eq!(open(None, None, true), Ok((folder.clone(), fresh(), true)));
        assert_eq!(open(None, Some(there.clone()), true), Ok((there.clone(), fresh(), false)));
        // Cut short, it is begun again, there or elsewhere.
        let begun = || Some(record(there.clone(), true, false));
        for is_new in [true, false] {
            let again = open(begun(), Some(there.clone()), is_new);
            assert_eq!(again, Ok((there.clone(), "kept".to_owned(), false)));
            let other = bucket("b", None);
            assert_eq!(open(begun(), Some(other.clone()), is_new), Ok((other, fresh(), false)));
            assert_eq!(open(begun(), None, is_new), Ok((folder.clone(), fresh(), true)));
        }
    }

    #[test]
    fn what_is_there_is_never_left_for_another_place() {
        let there = bucket("a", None);
        let said = |kept, wanted| open(kept, wanted, false).unwrap_err().to_string();
        // A workspace from before there was a choice.
        let text = said(None, Some(there.clone()));
        assert!(text.contains("the data folder") && text.contains("migrate-storage"), "{text}");
        let kept = || Some(record(there.clone(), true, true));
        let text = said(kept(), Some(bucket("b", None)));
        assert!(text.contains("s3://a") && text.contains("s3://b"), "{text}");
        let text = said(kept(), None);
        assert!(text.contains("--storage FILE") && text.contains("ATELIER_STORAGE"), "{text}");
        // Known by its machine, nothing need be said.
        assert!(open(Some(record(there.clone(), false, true)), None, false).is_ok());
        // How it is reached may change.
        let near = bucket("a", Some("eu-central-1"));
        assert_eq!(open(kept(), Some(near.clone()), false), Ok((near, "kept".to_owned(), true)));
    }
}
