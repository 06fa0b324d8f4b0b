//! Listing what lies below a folder in several parts at once: each of its folders by itself.
//!
//! A store tells a thousand keys with an answer, and the next ones only once these are there. Where its folders are
//! large, each can be asked for its own at the same time, for a few requests more.

use std::collections::{BTreeMap, BTreeSet};

use super::Cloud;
use super::list::{Named, Run};
use crate::storage::level::first_below;
use crate::storage::{Error, Level, Listed, ObjectPath, Page, Part};

/// The most entries of a folder that is listed in parts: as many as S3 tells with one answer, since stores have told a
/// folder twice, or not at all, where one answer ends and the next begins.
#[cfg(not(test))]
const MOST: usize = 1000;
#[cfg(test)]
const MOST: usize = 6;
/// Objects of a folder for which a request of its own is worth it.
#[cfg(not(test))]
const LARGE: usize = 100;
#[cfg(test)]
const LARGE: usize = 2;
/// Folders that hold nothing but one folder are gone through, so many at most.
const DEPTH: usize = 8;

impl Cloud {
    /// The first page of what lies at or below `folder`, or the folders that are to be listed instead; without what lies
    /// at its own path if `after` is that.
    pub(in crate::storage) async fn list_part(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Part, Error> {
        match self.is_ordered() {
            true => self.part_ordered(folder, after, limit).await,
            false => self.part_walked(folder, after, limit).await,
        }
    }

    pub(super) async fn part_ordered(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Part, Error> {
        let page = self.list_page(folder, after, limit).await?;
        if page.next.is_none() || !has_large_folders(folder, &page) {
            return Ok(Part::Page(page));
        }
        let itself = page.objects.first().filter(|first| Some(&first.path) == folder);
        let level = self.folders(folder, itself.cloned()).await?;
        // A store that leaves out folders would have the job read less, and nobody would see that.
        Ok(match level.filter(|level| page.objects.iter().all(|listed| has(level, listed))) {
            Some(level) => Part::Folders(level),
            None => Part::Page(page),
        })
    }

    /// Such a store is listed folder by folder in any case.
    pub(super) async fn part_walked(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Part, Error> {
        let itself = self.object_at(folder, after).await?;
        let few = self.few(folder, after).await?.filter(|few| few.len() < limit);
        if few.is_none() {
            let itself = itself.clone().map(|(path, meta)| Listed { path, meta });
            if let Some(level) = self.folders(folder, itself).await? {
                return Ok(Part::Folders(level));
            }
        }
        let mut found = Run::default();
        if let Some((path, meta)) = itself {
            found.push(path, meta);
        }
        found.append(match few {
            Some(few) => few,
            None => self.first_of_many(folder, after, limit + 1 - found.len()).await?,
        });
        Ok(Part::Page(found.page(limit)))
    }

    /// What lies right below `folder`, or below the only folder there, after what lies at its own path, if that is
    /// folders, not too many, and all of it has names.
    async fn folders(
        &self,
        folder: Option<&ObjectPath>,
        itself: Option<Listed>,
    ) -> Result<Option<Level>, Error> {
        let mut at = folder.cloned();
        for _ in 0..DEPTH {
            let Some(mut level) = self.whole_level(at.as_ref()).await? else { return Ok(None) };
            match level.folders.as_slice() {
                [] => return Ok(None),
                [only] if level.objects.is_empty() => at = Some(only.clone()),
                _ => {
                    level.objects.splice(..0, itself);
                    return Ok(Some(level));
                }
            }
        }
        Ok(None)
    }

    /// All that lies right below `folder`, if one answer tells it.
    async fn whole_level(&self, folder: Option<&ObjectPath>) -> Result<Option<Level>, Error> {
        let below = self.below(folder)?;
        let page = self.names(below.as_deref(), Some("/"), None, MOST, None).await?;
        if page.next.is_some() {
            return Ok(None);
        }
        // Some stores tell a folder more than once, and some have an order of their own.
        let (mut folders, mut objects) = (BTreeSet::new(), BTreeMap::new());
        for key in &page.folders {
            match self.folder(key) {
                Ok(Some(path)) => drop(folders.insert(path)),
                Ok(None) => {}
                Err(_) => return Ok(None),
            }
        }
        for object in page.objects {
            match self.named(&object) {
                Named::Object(path) if Some(&path) != folder => {
                    objects.insert(path, object.meta);
                }
                Named::Not(_) => return Ok(None),
                Named::Object(_) | Named::Mark => {}
            }
        }
        let objects = objects.into_iter().map(|(path, meta)| Listed { path, meta }).collect();
        Ok(Some(Level { folders: folders.into_iter().collect(), objects, ..Level::default() }))
    }
}

/// Whether an object is one of those that a level tells, or lies in one of its folders.
fn has(level: &Level, listed: &Listed) -> bool {
    let path = listed.path.as_str();
    let is_below = |folder: &ObjectPath| {
        path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
    };
    level.folders.iter().any(is_below)
        || level.objects.iter().any(|other| other.path == listed.path)
}

/// Whether the objects of a page lie in folders right below `folder` that are worth requests of their own. Others may
/// be small: that costs at most as many requests as there are folders, and saves one after the other for large ones.
fn has_large_folders(folder: Option<&ObjectPath>, page: &Page) -> bool {
    let within = folder.map_or_else(String::new, |folder| format!("{folder}/"));
    let mut folders: Vec<_> = page
        .objects
        .iter()
        .filter_map(|listed| first_below(&within, listed.path.as_str()))
        .collect();
    let objects = folders.len();
    folders.dedup();
    objects > 0 && objects >= folders.len() * LARGE
}
