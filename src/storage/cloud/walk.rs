//! Listing stores that give names in an order of their own, and do not begin where one says: folder by folder.
//!
//! Only the folders that a page comes from are read, and of each as many names are kept as the page may need. A folder
//! with few names below it is read at once, however deep they lie.

use std::collections::BTreeMap;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStoreExt as _};

use super::list::LOOKS;
use super::{Cloud, meta_of};
use crate::storage::{Error, Level, Listed, Meta, ObjectPath};

/// As many names as come with one request.
#[cfg(not(test))]
const REQUEST: usize = 5000;
#[cfg(test)]
const REQUEST: usize = 3;

/// What lies right below a folder.
#[derive(Clone, Debug)]
enum Entry {
    Object(ObjectPath, Meta),
    Folder(ObjectPath),
}

/// The first entries of a folder, by their paths, those of folders with a `/` behind them: the order of whole paths.
#[derive(Debug, Default)]
struct Entries {
    first: BTreeMap<String, Entry>,
    /// Whether there are more after these.
    is_cut: bool,
}

impl Entries {
    fn add(&mut self, key: String, entry: Entry, most: usize) {
        match (self.first.get(&key), &entry) {
            // The mark of a folder may have the same path.
            (Some(Entry::Object(..)), Entry::Object(_, meta)) if meta.size == 0 => {}
            _ => drop(self.first.insert(key, entry)),
        }
        if self.first.len() > most {
            self.first.pop_last();
            self.is_cut = true;
        }
    }
}

impl Cloud {
    async fn pages(&self) -> Result<&dyn PaginatedListStore, Error> {
        let pages = self.client().await?.pages();
        pages.ok_or_else(|| self.unsupported("the files of a web server cannot be listed"))
    }

    /// What all keys below a folder start with.
    fn below(&self, folder: Option<&ObjectPath>) -> Result<Option<String>, Error> {
        Ok(self.root(folder)?.map(|root| format!("{root}/")))
    }

    /// One request for names that start with `below`; where the next one continues.
    async fn names(
        &self,
        below: Option<&str>,
        delimiter: Option<&'static str>,
        from: Option<String>,
    ) -> Result<(ListResult, Option<String>), Error> {
        let options = PaginatedListOptions {
            delimiter: delimiter.map(Into::into),
            max_keys: Some(REQUEST),
            page_token: from,
            ..Default::default()
        };
        let page = self.pages().await?.list_paginated(below, options).await;
        let shown = below.unwrap_or_default().trim_end_matches('/');
        let page = page.map_err(|error| self.problem("list", shown, error))?;
        Ok((page.result, page.page_token))
    }

    /// Whether anything lies below a folder.
    pub(super) async fn has_more(&self, folder: &ObjectPath) -> Result<bool, Error> {
        let below = self.below(Some(folder))?;
        let (result, next) = self.names(below.as_deref(), Some("/"), None).await?;
        Ok(next.is_some() || !(result.objects.is_empty() && result.common_prefixes.is_empty()))
    }

    /// The first entries right below `folder` that come after `after`, and those that hold something after it.
    async fn entries(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        most: usize,
    ) -> Result<Entries, Error> {
        let (mut entries, mut from) = (Entries::default(), None);
        let below = self.below(folder)?;
        loop {
            let (result, next) = self.names(below.as_deref(), Some("/"), from).await?;
            for name in &result.common_prefixes {
                let Some(path) = self.path(name)? else { continue };
                let key = format!("{path}/");
                let is_within = after.starts_with(&key) && after != end_of(path.as_str());
                if key.as_str() > after || is_within {
                    entries.add(key, Entry::Folder(path), most);
                }
            }
            for object in &result.objects {
                if let Some((path, meta)) = self.after(folder, object, after)? {
                    entries.add(path.to_string(), Entry::Object(path, meta), most);
                }
            }
            match next {
                Some(next) => from = Some(next),
                None => return Ok(entries),
            }
        }
    }

    fn after(
        &self,
        folder: Option<&ObjectPath>,
        object: &ObjectMeta,
        after: &str,
    ) -> Result<Option<(ObjectPath, Meta)>, Error> {
        let found = self.path(&object.location)?;
        let found = found.filter(|path| path.as_str() > after && Some(path) != folder);
        Ok(found.map(|path| (path, meta_of(object))))
    }

    /// All objects below `folder`, in order, if one request has them; those that come after `after`.
    async fn few(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Option<Vec<(ObjectPath, Meta)>>, Error> {
        let (result, next) = self.names(self.below(folder)?.as_deref(), None, None).await?;
        if next.is_some() {
            return Ok(None);
        }
        let mut found = Entries::default();
        for object in &result.objects {
            if let Some((path, meta)) = self.after(folder, object, after)? {
                found.add(path.to_string(), Entry::Object(path, meta), usize::MAX);
            }
        }
        let objects = found.first.into_values().filter_map(|entry| match entry {
            Entry::Object(path, meta) => Some((path, meta)),
            Entry::Folder(_) => None,
        });
        Ok(Some(objects.collect()))
    }

    /// The first `wanted` objects below `folder` that come after `after`.
    pub(super) async fn first_walked(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        wanted: usize,
    ) -> Result<Vec<(ObjectPath, Meta)>, Error> {
        if let Some(mut few) = self.few(folder, after).await? {
            few.truncate(wanted);
            return Ok(few);
        }
        let (mut found, mut after) = (Vec::new(), after.to_owned());
        loop {
            let entries = self.entries(folder, &after, wanted - found.len()).await?;
            let last = entries.first.keys().next_back().cloned();
            let mut parts = self.parts(entries.first.into_values(), &after, wanted);
            while let Some(part) = parts.try_next().await? {
                found.extend(part);
                if found.len() >= wanted {
                    found.truncate(wanted);
                    return Ok(found);
                }
            }
            drop(parts);
            match last.filter(|_| entries.is_cut) {
                // Folders may have been empty.
                Some(last) => after = last.strip_suffix('/').map_or(last.clone(), end_of),
                None => return Ok(found),
            }
        }
    }

    /// The objects of entries, in their order, some folders at once.
    fn parts<'a>(
        &'a self,
        entries: impl Iterator<Item = Entry> + Send + 'a,
        after: &'a str,
        wanted: usize,
    ) -> BoxStream<'a, Result<Vec<(ObjectPath, Meta)>, Error>> {
        let parts = futures::stream::iter(entries).map(move |entry| async move {
            match entry {
                Entry::Object(path, meta) => Ok(vec![(path, meta)]),
                Entry::Folder(path) => {
                    Box::pin(self.first_walked(Some(&path), after, wanted)).await
                }
            }
        });
        parts.buffered(LOOKS).boxed()
    }

    /// What lies right below `folder` and comes after `after`: at most `limit` entries.
    pub(in crate::storage) async fn level(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Level, Error> {
        let mut level = Level::default();
        let itself = self.object_at(folder, after).await?;
        level.objects.extend(itself.map(|(path, meta)| Listed { path, meta }));
        let Entries { first, is_cut } = self.entries(folder, after, limit.max(1)).await?;
        let (mut objects, mut last) = (Vec::new(), None);
        for (key, entry) in first {
            last = Some(key.strip_suffix('/').map_or(key.clone(), end_of));
            match entry {
                // It was told before, if what was told ended within it.
                Entry::Folder(_) if after.starts_with(&key) => {}
                Entry::Folder(path) => level.folders.push(path),
                Entry::Object(path, meta) => objects.push((path, meta)),
            }
        }
        level.objects.extend(self.without_markers(objects).await?);
        level.next = last.filter(|_| is_cut);
        Ok(level)
    }
}

impl Cloud {
    /// Removes what lies at a key and below it, each folder after what is in it: in a hierarchical account a folder
    /// is an object, too, and goes once it is empty.
    pub(super) async fn delete_tree(&self, key: &Path) -> Result<(), Error> {
        let (store, below, mut from) = (self.store().await?, format!("{key}/"), None);
        let delete = |key: Path| async move {
            match store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.problem("delete", key.as_ref(), error)),
            }
        };
        loop {
            let (result, next) = self.names(Some(&below), Some("/"), from).await?;
            for folder in &result.common_prefixes {
                Box::pin(self.delete_tree(folder)).await?;
            }
            let objects = result.objects.into_iter().map(|object| delete(object.location));
            let gone = futures::stream::iter(objects).buffer_unordered(LOOKS);
            gone.try_collect::<Vec<()>>().await?;
            match next {
                Some(next) => from = Some(next),
                None => return delete(key.clone()).await,
            }
        }
    }
}

/// After all that lies below the folder of this name.
fn end_of(folder: &str) -> String {
    format!("{folder}/{}", char::MAX)
}
