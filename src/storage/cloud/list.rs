//! Listing a store's keys in the order of whole paths.

use atelier_core::datastore::Source;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::list::PaginatedListOptions;
use object_store::path::Path;

use super::problem::Told;
use super::{Cloud, meta_of};
use crate::storage::{Error, Listed, Meta, ObjectPath, Page};

/// Objects that are looked at at once.
pub(super) const LOOKS: usize = 8;

impl Cloud {
    /// Whether the store gives keys in the order of their bytes, and begins after any of them.
    pub(in crate::storage) fn is_ordered(&self) -> bool {
        match &self.inner.source {
            // Folders of a data lake and of a share come in an order of their own, and other servers than Azure begin
            // from the start.
            Source::AzureDataLakeGen2(_) | Source::OneLake(_) | Source::AzureFile(_) => false,
            Source::AzureBlob(azure) => !azure.endpoint.contains("://"),
            _ => true,
        }
    }

    pub(super) async fn list_page(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Page, Error> {
        let mut found: Vec<_> = self.object_at(folder, after).await?.into_iter().collect();
        let wanted = (limit + 1).saturating_sub(found.len());
        found.extend(match self.is_ordered() {
            true => self.first_ordered(folder, after, wanted).await?,
            false => self.first_walked(folder, after, wanted).await?,
        });
        let is_more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| is_more).map(|(path, _)| path.clone());
        Ok(Page { objects: self.without_markers(found).await?, next })
    }

    /// The object that has the path of `folder` itself, if that comes after `after`.
    pub(super) async fn object_at(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Option<(ObjectPath, Meta)>, Error> {
        let Some(folder) = folder.filter(|folder| after < folder.as_str()) else { return Ok(None) };
        match self.head(folder).await {
            // A hierarchical account answers so for a folder, too.
            Ok(meta) if meta.size == 0 && self.is_lake() && self.has_more(folder).await? => {
                Ok(None)
            }
            Ok(meta) => Ok(Some((folder.clone(), meta))),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key that all others start with, before a `/`.
    pub(super) fn root(&self, folder: Option<&ObjectPath>) -> Result<Option<Path>, Error> {
        match (folder, self.prefix()) {
            (Some(folder), _) => self.key(folder).map(Some),
            // Checked when the datastore was made.
            (None, Some(prefix)) => Ok(Path::parse(prefix).ok()),
            (None, None) => Ok(None),
        }
    }

    async fn first_ordered(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        wanted: usize,
    ) -> Result<Vec<(ObjectPath, Meta)>, Error> {
        let (store, root) = (self.store().await?, self.root(folder)?);
        let offset = ObjectPath::new(after).ok().and_then(|after| self.key(&after).ok());
        let mut keys = match &offset {
            Some(offset) => store.list_with_offset(root.as_ref(), offset),
            None => store.list(root.as_ref()),
        };
        let mut found: Vec<(ObjectPath, Meta)> = Vec::new();
        while found.len() < wanted {
            let Some(object) = keys.next().await else { break };
            let object = object.map_err(|error| self.problem("list", shown(folder), error))?;
            let Some(path) = self.path(&object.location)? else { continue };
            let last = found.last().map_or(after, |(path, _)| path.as_str());
            // What is not in order is the mark of a folder, whose key ends with a '/' that is not in its path.
            if path.as_str() > last && Some(&path) != folder {
                found.push((path, meta_of(&object)));
            }
        }
        Ok(found)
    }

    /// Leaves out the marks of folders that some programs write: an empty object whose key ends with a `/`.
    pub(super) async fn without_markers(
        &self,
        found: Vec<(ObjectPath, Meta)>,
    ) -> Result<Vec<Listed>, Error> {
        let looked = futures::stream::iter(found).map(|(path, meta)| async {
            if meta.size > 0 {
                return Ok(Some(Listed { path, meta }));
            }
            match self.look(&path).await {
                Ok(_) => Ok(Some(Listed { path, meta })),
                Err(Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let listed: Vec<Option<Listed>> = looked.buffered(LOOKS).try_collect().await?;
        Ok(listed.into_iter().flatten().collect())
    }

    /// A file of a web server, which cannot tell what else it has.
    pub(super) async fn list_one(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Page, Error> {
        let no_list = "the files of a web server cannot be listed: name single files";
        let Some(path) = folder else { return Err(self.unsupported(no_list)) };
        match self.head(path).await {
            Ok(_) if path.as_str() <= after => Ok(Page::default()),
            Ok(meta) => Ok(Page { objects: vec![Listed { path: path.clone(), meta }], next: None }),
            Err(Error::NotFound(_)) => {
                Err(self.unsupported(format!("there is no file '{path}', and {no_list}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the bucket is there and knows who asks, as far as that can be told.
    pub(super) async fn check_there(&self) -> Result<(), Error> {
        let Some(pages) = self.client().await?.pages() else { return Ok(()) };
        let options = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        match pages.list_paginated(self.prefix(), options).await {
            Err(error) if self.is_missing(&error) || Told::is_stranger(&error) => {
                Err(self.problem("list", "", error))
            }
            _ => Ok(()),
        }
    }
}

fn shown(folder: Option<&ObjectPath>) -> &str {
    folder.map_or("", ObjectPath::as_str)
}
