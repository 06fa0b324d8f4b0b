//! Listing what lies below a folder in several parts at once: each of its folders by itself.
//!
//! A store tells a thousand keys with an answer, and the next ones only once these are there. Where its folders are
//! large, each can be asked for its own at the same time, for a few requests more.

use super::Cloud;
use super::list::{Named, Run};
use crate::storage::level::first_below;
use crate::storage::{Error, Level, Listed, ObjectPath, Page, Part};

/// The most entries of a folder that is listed in parts.
#[cfg(not(test))]
const MOST: usize = 1000;
#[cfg(test)]
const MOST: usize = 6;
/// Objects of a folder for which a request of its own is worth it.
#[cfg(not(test))]
const LARGE: usize = 100;
#[cfg(test)]
const LARGE: usize = 2;
/// Folders that hold nothing but one folder are gone through, so many at a time.
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
        Ok(self.folders(folder, after).await?.map_or(Part::Page(page), Part::Folders))
    }

    /// Such a store is listed folder by folder in any case.
    pub(super) async fn part_walked(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Part, Error> {
        if let Some(few) = self.few(folder, after).await?.filter(|few| few.len() < limit) {
            let mut found = Run::default();
            if let Some((path, meta)) = self.object_at(folder, after).await? {
                found.push(path, meta);
            }
            found.append(few);
            return Ok(Part::Page(found.page(limit)));
        }
        match self.folders(folder, after).await? {
            Some(level) => Ok(Part::Folders(level)),
            None => self.list_page(folder, after, limit).await.map(Part::Page),
        }
    }

    /// What lies right below `folder`, or below the only folder there, if that is folders, not too many, and all of
    /// it has names.
    async fn folders(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
    ) -> Result<Option<Level>, Error> {
        let mut at = folder.cloned();
        for depth in 1.. {
            let Some(mut level) = self.whole_level(at.as_ref()).await? else { return Ok(None) };
            match level.folders.as_slice() {
                [] => return Ok(None),
                [only] if level.objects.is_empty() && depth < DEPTH => at = Some(only.clone()),
                _ => {
                    if let Some((path, meta)) = self.object_at(folder, after).await? {
                        level.objects.push(Listed { path, meta });
                    }
                    return Ok(Some(level));
                }
            }
        }
        Ok(None)
    }

    async fn whole_level(&self, folder: Option<&ObjectPath>) -> Result<Option<Level>, Error> {
        let (mut level, mut from) = (Level::default(), None);
        let below = self.below(folder)?;
        loop {
            let page = self.names(below.as_deref(), Some("/"), None, MOST, from).await?;
            for key in &page.folders {
                match self.folder(key) {
                    Ok(Some(path)) => level.folders.push(path),
                    Ok(None) => {}
                    Err(_) => return Ok(None),
                }
            }
            for object in page.objects {
                match self.named(&object) {
                    Named::Object(path) if Some(&path) != folder => {
                        level.objects.push(Listed { path, meta: object.meta });
                    }
                    Named::Not(_) => return Ok(None),
                    Named::Object(_) | Named::Mark => {}
                }
            }
            match page.next {
                _ if level.folders.len() + level.objects.len() > MOST => return Ok(None),
                Some(next) => from = Some(next),
                None => return Ok(Some(level)),
            }
        }
    }
}

/// Whether the objects of a page lie in folders right below `folder` that are worth requests of their own.
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
