//! Listing stores that give names in an order of their own, and do not begin where one says: folder by folder.
//!
//! Only the folders that a page comes from are read, and of each as many names are kept as the page may need. A folder
//! with few names below it is read at once, however deep they lie.

use std::collections::BTreeMap;

use atelier_core::datastore::Unnamed;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::list::{LOOKS, Named, Run};
use super::listing::Entry as Object;
use super::{Cloud, exact};
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
    /// What lies there without a name; of the first page of a folder alone.
    unnamed: Unnamed,
}

impl Entries {
    fn add(&mut self, key: String, entry: Entry, most: usize) {
        self.first.insert(key, entry);
        if self.first.len() > most {
            self.first.pop_last();
            self.is_cut = true;
        }
    }
}

impl Cloud {
    /// Whether anything lies below a folder.
    pub(super) async fn has_more(&self, folder: &ObjectPath) -> Result<bool, Error> {
        let below = self.below(Some(folder))?;
        let found = self.names(below.as_deref(), Some("/"), None, REQUEST, None).await?;
        Ok(found.next.is_some() || !(found.objects.is_empty() && found.folders.is_empty()))
    }

    /// The first entries right below `folder` that come after `after`, and those that hold something after it.
    async fn entries(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        most: usize,
    ) -> Result<Entries, Error> {
        let (mut entries, mut from) = (Entries::default(), None);
        let (below, begins) = (self.below(folder)?, begins(folder, after));
        loop {
            let page = self.names(below.as_deref(), Some("/"), None, REQUEST, from).await?;
            for key in &page.folders {
                match self.folder(key) {
                    Ok(Some(path)) => {
                        let key = format!("{path}/");
                        let is_within = after.starts_with(&key) && after != end_of(path.as_str());
                        if key.as_str() > after || is_within {
                            entries.add(key, Entry::Folder(path), most);
                        }
                    }
                    Err(unnamed) if begins => entries.unnamed.add(&unnamed),
                    Ok(None) | Err(_) => {}
                }
            }
            for object in page.objects {
                match self.named(&object) {
                    Named::Object(path) if is_after(folder, &path, after) => {
                        entries.add(path.to_string(), Entry::Object(path, object.meta), most);
                    }
                    Named::Not(unnamed) if begins => entries.unnamed.add(unnamed),
                    _ => {}
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(entries),
            }
        }
    }

    /// All objects below `folder`, in order, if one request has them; those that come after `after`.
    pub(super) async fn few(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Option<Run>, Error> {
        let below = self.below(folder)?;
        let page = self.names(below.as_deref(), None, None, REQUEST, None).await?;
        if page.next.is_some() {
            return Ok(None);
        }
        let (mut found, mut run) = (BTreeMap::new(), Run::default());
        for object in page.objects {
            match self.named(&object) {
                Named::Object(path) if is_after(folder, &path, after) => {
                    found.insert(path, object.meta);
                }
                Named::Not(unnamed) if begins(folder, after) => run.rest.add(unnamed),
                _ => {}
            }
        }
        found.into_iter().for_each(|(path, meta)| run.push(path, meta));
        Ok(Some(run))
    }

    /// The first `wanted` objects below `folder` that come after `after`.
    pub(super) async fn first_walked(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        wanted: usize,
    ) -> Result<Run, Error> {
        if let Some(mut few) = self.few(folder, after).await? {
            few.truncate(wanted);
            return Ok(few);
        }
        self.first_of_many(folder, after, wanted).await
    }

    /// The same, of a folder that one request does not tell whole.
    pub(super) async fn first_of_many(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        wanted: usize,
    ) -> Result<Run, Error> {
        let (mut found, mut after) = (Run::default(), after.to_owned());
        loop {
            let entries = self.entries(folder, &after, wanted - found.len()).await?;
            found.rest.merge(entries.unnamed);
            let last = entries.first.keys().next_back().cloned();
            let mut parts = self.parts(entries.first.into_values(), &after, wanted);
            while let Some(part) = parts.try_next().await? {
                found.append(part);
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
    ) -> BoxStream<'a, Result<Run, Error>> {
        let parts = futures::stream::iter(entries).map(move |entry| async move {
            match entry {
                Entry::Object(path, meta) => Ok(Run::of(path, meta)),
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
        let Entries { first, is_cut, unnamed } = self.entries(folder, after, limit.max(1)).await?;
        level.unnamed = unnamed;
        let mut last = None;
        for (key, entry) in first {
            last = Some(key.strip_suffix('/').map_or(key.clone(), end_of));
            match entry {
                // It was told before, if what was told ended within it.
                Entry::Folder(_) if after.starts_with(&key) => {}
                Entry::Folder(path) => level.folders.push(path),
                Entry::Object(path, meta) => level.objects.push(Listed { path, meta }),
            }
        }
        level.next = last.filter(|_| is_cut);
        Ok(level)
    }
}

impl Cloud {
    /// Removes what lies at a key and below it, each folder after what is in it: in a hierarchical account a folder
    /// is an object, too, and goes once it is empty. What stays.
    pub(super) async fn delete_tree(&self, key: &Path) -> Result<Unnamed, Error> {
        let (store, below, mut from) = (self.store().await?, format!("{key}/"), None);
        let mut stays = Unnamed::default();
        let delete = |key: Path| async move {
            match store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.problem("delete", key.as_ref(), error)),
            }
        };
        loop {
            let page = self.names(Some(&below), Some("/"), None, REQUEST, from).await?;
            for folder in &page.folders {
                match exact(folder.strip_suffix('/').unwrap_or(folder)) {
                    Some(folder) => stays.merge(Box::pin(self.delete_tree(&folder)).await?),
                    None => stays.add(self.shown(folder)),
                }
            }
            let objects = self.that_go(&page.objects, &mut stays);
            let gone = futures::stream::iter(objects.into_iter().map(delete));
            gone.buffer_unordered(LOOKS).try_collect::<Vec<()>>().await?;
            match page.next {
                Some(next) => from = Some(next),
                None if stays.is_empty() => return delete(key.clone()).await.map(|()| stays),
                None => return Ok(stays),
            }
        }
    }

    /// Those keys that can be deleted; what stays is counted, but for the marks of folders.
    pub(super) fn that_go(&self, objects: &[Object], stays: &mut Unnamed) -> Vec<Path> {
        let mut go = Vec::with_capacity(objects.len());
        for object in objects {
            match (exact(&object.key), self.named(object)) {
                (Some(key), _) => go.push(key),
                (None, Named::Not(unnamed)) => stays.add(unnamed),
                (None, _) => {}
            }
        }
        go
    }
}

/// Whether a page of what lies below `folder` begins with the folder itself.
fn begins(folder: Option<&ObjectPath>, after: &str) -> bool {
    match folder {
        Some(folder) => !after.starts_with(&format!("{folder}/")),
        None => after.is_empty(),
    }
}

fn is_after(folder: Option<&ObjectPath>, path: &ObjectPath, after: &str) -> bool {
    path.as_str() > after && Some(path) != folder
}

/// After all that lies below the folder of this name.
pub(super) fn end_of(folder: &str) -> String {
    format!("{folder}/{}", char::MAX)
}
