//! What lies right below a folder.

use atelier_core::datastore::Unnamed;

use super::{Datastore, Error, Listed, ObjectPath, PAGE, Page, Served, uncommitted};

/// Some of what lies right below a folder: objects, and folders that have objects below them. Each in ascending
/// order of the bytes of their paths.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Level {
    /// Folders.
    pub folders: Vec<ObjectPath>,
    /// Objects. If what was asked for is an object and no folder, it is the only one.
    pub objects: Vec<Listed>,
    /// Where the next part continues. `None`: this was the last.
    pub next: Option<String>,
    /// What lies right there that no path names.
    pub unnamed: Unnamed,
}

/// The first answer to one who can ask for several parts of a listing at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// The first page, after which it goes on.
    Page(Page),
    /// All objects but those that lie below these folders, each of which is to be listed by itself. They may lie
    /// deeper than right below what was asked for. Nothing lies there that no path names.
    Folders(Level),
}

impl Level {
    /// `told`: the folder that was told before all of these.
    fn add(&mut self, folder: &str, told: Option<&str>, listed: Listed) -> Result<(), Error> {
        let last = self.folders.last().map(ObjectPath::as_str).or(told);
        match first_below(folder, listed.path.as_str()) {
            None => self.objects.push(listed),
            inner if inner == last => {}
            Some(inner) => self.folders.push(ObjectPath::new(inner)?),
        }
        Ok(())
    }
}

/// The folder right below `folder` (which ends with `/` unless it is empty) that a path leads through.
pub(super) fn first_below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    let below = path.strip_prefix(folder)?;
    Some(&path[..folder.len() + below.find('/')?])
}

impl Datastore {
    /// As [`Datastore::list`], in parts that can be asked for at once where that is sooner and the listing begins here:
    /// `after` is none, or `folder` itself, for only what lies below it.
    ///
    /// # Errors
    /// As [`Datastore::list`].
    pub async fn list_part(
        &self,
        folder: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Part, Error> {
        let begins =
            after.is_none_or(|after| folder.is_some_and(|folder| folder.as_str() == after));
        // A folder on a disk is read sooner than it is asked for, and a web server has no listing.
        let cloud = match self.served().await? {
            Served::Cloud(cloud) if begins && !cloud.is_read_only() => cloud,
            _ => return self.list(folder, after, limit).await.map(Part::Page),
        };
        Ok(match cloud.list_part(folder, after.unwrap_or_default(), limit).await? {
            Part::Page(page) => Part::Page(uncommitted::shown(folder, page)),
            Part::Folders(level) => Part::Folders(shown(folder, level)),
        })
    }

    /// What lies right below `folder` (the datastore if `None`) and comes after `after`, which a part before ended
    /// with: at most `limit`, and some more.
    ///
    /// Whatever lies deeper is stepped over, so that it takes no longer than there are entries.
    ///
    /// # Errors
    /// As [`Datastore::list`].
    pub async fn level(
        &self,
        folder: Option<&ObjectPath>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Level, Error> {
        if let Served::Cloud(cloud) = self.served().await?
            && !cloud.is_read_only()
        {
            let after = after.unwrap_or_default();
            let level = match cloud.is_ordered() {
                true => cloud.level_ordered(folder, after, limit).await?,
                false => cloud.level(folder, after, limit).await?,
            };
            return Ok(shown(folder, level));
        }
        let prefix = folder.map_or_else(String::new, |folder| format!("{folder}/"));
        let told = after.and_then(|after| first_below(&prefix, after));
        let (mut level, mut after) = (Level::default(), after.map(str::to_owned));
        loop {
            let page = self.list(folder, after.as_deref(), PAGE).await?;
            for listed in page.objects {
                level.add(&prefix, told, listed)?;
            }
            let Some(next) = page.next else { return Ok(level) };
            // No path of the folder comes after this, but for those that go on with the last character of all.
            let past = first_below(&prefix, next.as_str())
                .map(|inner| format!("{inner}/{}", char::MAX))
                .unwrap_or_default();
            let next = past.max(next.to_string());
            if level.folders.len() + level.objects.len() >= limit {
                level.next = Some(next);
                return Ok(level);
            }
            after = Some(next);
        }
    }
}

/// What lies below a folder as it is told.
fn shown(folder: Option<&ObjectPath>, mut level: Level) -> Level {
    level.folders.retain(|path| uncommitted::is_shown(folder, path));
    level.objects.retain(|listed| uncommitted::is_shown(folder, &listed.path));
    level
}

#[cfg(test)]
mod tests {
    use atelier_core::layout::BLOB_STORE;
    use bytes::Bytes;

    use super::*;
    use crate::storage::Datastores;

    async fn whole(
        store: &Datastore,
        folder: Option<&str>,
        limit: usize,
    ) -> (Vec<String>, Vec<String>) {
        let folder = folder.map(|folder| ObjectPath::new(folder).unwrap());
        let (mut folders, mut objects, mut after) = (Vec::new(), Vec::new(), None::<String>);
        loop {
            let level = store.level(folder.as_ref(), after.as_deref(), limit).await.unwrap();
            folders.extend(level.folders.iter().map(ToString::to_string));
            objects.extend(level.objects.iter().map(|object| object.path.to_string()));
            match level.next {
                Some(next) => after = Some(next),
                None => return (folders, objects),
            }
        }
    }

    #[tokio::test]
    async fn what_lies_deeper_is_one_folder() {
        let disk = tempfile::tempdir().unwrap();
        let store = Datastores::open_folders(disk.path()).unwrap().get(BLOB_STORE).unwrap();
        let last = format!("b/{}x", char::MAX);
        for path in ["a.b/x", "a/no", "b-c", &*last, "b/1", "b0", "c/d/e/f", "c/d/g", "c/h"] {
            store.put(&ObjectPath::new(path).unwrap(), Bytes::new()).await.unwrap();
        }
        // More than is read at once.
        let many = disk.path().join(BLOB_STORE).join("b/many");
        std::fs::create_dir_all(&many).unwrap();
        for number in 0..PAGE * 2 + 3 {
            std::fs::write(many.join(format!("{number:05}")), "").unwrap();
        }
        for limit in [1, 3, PAGE] {
            let (folders, objects) = whole(&store, None, limit).await;
            // `.` comes before `/`.
            assert_eq!(folders, ["a.b", "a", "b", "c"], "{limit}");
            assert_eq!(objects, ["b-c", "b0"]);
            assert_eq!(
                whole(&store, Some("c"), limit).await,
                (vec!["c/d".into()], vec!["c/h".into()])
            );
            let (folders, objects) = whole(&store, Some("b"), limit).await;
            assert_eq!(
                (folders, objects),
                (vec!["b/many".into()], vec!["b/1".into(), last.clone()])
            );
            assert_eq!(whole(&store, Some("b/many"), limit).await.1.len(), PAGE * 2 + 3);
            assert_eq!(whole(&store, Some("c/h"), limit).await, (vec![], vec!["c/h".into()]));
            assert_eq!(whole(&store, Some("nothing"), limit).await, (vec![], vec![]));
        }
    }
}
