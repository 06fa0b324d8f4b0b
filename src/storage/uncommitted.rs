//! What jobs that are not over have written: it is copied when it is committed, and is in no listing but its own.

use atelier_core::layout;

use super::{Datastore, Error, Meta, ObjectPath, Page, Served, Still};

/// By what an object is known to be the one that is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Its length in bytes.
    pub size: u64,
    /// Its tag; `None`: whoever asks does not know it.
    pub tag: Option<String>,
}

impl Expected {
    /// # Errors
    /// [`Error::Changed`]: what lies at `path` is another.
    pub(super) fn check(&self, path: &ObjectPath, meta: &Meta) -> Result<(), Error> {
        let is_it = meta.size == self.size && self.tag.as_ref().is_none_or(|tag| *tag == meta.etag);
        if is_it { Ok(()) } else { Err(Error::Changed(path.to_string())) }
    }
}

impl Datastore {
    /// Whether things can be written right below its root, as what is not committed is.
    pub fn takes_anything_at_its_root(&self) -> bool {
        self.record().is_none_or(|record| record.datastore.source.files().is_empty())
    }

    /// Makes `to` a copy of the object at `from`, unless that is another than `expected`, or `still` finds a reason
    /// against it right before it is seen. The bytes do not leave the store.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Changed`] if it is another, [`Error::Unsupported`] if the store copies none so
    /// large, and those of [`Datastore::put_stream_if`].
    pub async fn copy_if(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        expected: &Expected,
        still: Still,
    ) -> Result<Meta, Error> {
        match self.served().await? {
            Served::Folder(folder) => folder.copy(from, to, expected, still).await,
            Served::Cloud(cloud) => cloud.copy(from, to, expected, &still).await,
        }
    }
}

/// A page of a folder's listing as it is told.
pub(super) fn shown(folder: Option<&ObjectPath>, mut page: Page) -> Page {
    page.objects.retain(|listed| is_shown(folder, &listed.path));
    page
}

/// Whether what lies at a path is told of to who looks at a folder.
pub(super) fn is_shown(folder: Option<&ObjectPath>, path: &ObjectPath) -> bool {
    let is_uncommitted = |path: &ObjectPath| layout::is_uncommitted(path.as_str());
    !is_uncommitted(path) || folder.is_some_and(is_uncommitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_committed_is_told_only_to_who_names_it() {
        let path = |path: &str| ObjectPath::new(path).unwrap();
        let (root, own) = (path(".uncommitted"), path(".uncommitted/job/out/0/0/x"));
        for (folder, is_told) in
            [(None, false), (Some(path("a")), false), (Some(root.clone()), true)]
        {
            assert_eq!(is_shown(folder.as_ref(), &own), is_told, "{folder:?}");
            assert_eq!(is_shown(folder.as_ref(), &root), is_told, "{folder:?}");
            assert!(is_shown(folder.as_ref(), &path(".uncommitted-too/x")));
        }
    }
}
