//! Listing a folder in the order of whole paths.

use std::os::fd::OwnedFd;

use atelier_core::layout;
use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::{Folder, STAGING, io_error, meta_of, open_folder_at};
use crate::storage::path::MAX_PATH;
use crate::storage::{Error, Listed, ObjectPath, Page};

/// What is not listed at the top of a datastore: what is being written, and where ext4 puts what it finds after a
/// crash, which is root's alone.
fn is_hidden(name: &str) -> bool {
    layout::is_named(name, STAGING) || name == "lost+found"
}

struct Listing<'a> {
    after: &'a str,
    limit: usize,
    page: Page,
}

impl Folder {
    pub(super) fn list_now(
        &self,
        below: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Page, Error> {
        let mut listing = Listing { after, limit, page: Page::default() };
        let Some(path) = below else {
            let root = self
                .inner
                .root
                .try_clone()
                .map_err(|source| io_error("list", "the datastore", source))?;
            listing.folder(&root, "")?;
            return Ok(listing.page);
        };
        let (parent, name) = match self.parent(path, None) {
            Ok(found) => found,
            Err(Error::NotFound(_)) => return Ok(listing.page),
            Err(error) => return Err(error),
        };
        match open_folder_at(&parent, name) {
            Ok(folder) => {
                listing.folder(&folder, &format!("{path}/"))?;
            }
            Err(Errno::NOTDIR) => {
                listing.object(&parent, name, path.as_str())?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io_error("list", path.as_str(), errno.into())),
        }
        Ok(listing.page)
    }
}

impl Listing<'_> {
    /// Adds what lies in a folder. `false`: the page is full.
    ///
    /// Sorting a folder by its name with a `/` behind it gives the order of whole paths: `a-b` comes
    /// before `a/c`, because `-` comes before `/`.
    fn folder(&mut self, folder: &OwnedFd, prefix: &str) -> Result<bool, Error> {
        let failed = |errno: Errno| io_error("list", prefix, errno.into());
        let mut names: Vec<String> = Vec::new();
        for entry in Dir::read_from(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is no text cannot be part of a path, so nothing could read it.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") || (prefix.is_empty() && is_hidden(name)) {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        Err(Errno::NOENT) => continue,
                        Err(errno) => return Err(failed(errno)),
                    }
                }
                known => known,
            };
            match kind {
                FileType::RegularFile if format!("{prefix}{name}").as_str() > self.after => {
                    names.push(name.to_owned());
                }
                // Deeper than any path leads nothing can be read, and each level of a folder holds a file open.
                FileType::Directory
                    if prefix.len() + name.len() < MAX_PATH
                        && self.may_hold_more(&format!("{prefix}{name}/")) =>
                {
                    names.push(format!("{name}/"));
                }
                _ => {}
            }
        }
        names.sort_unstable();
        for name in names {
            let wanted = match name.strip_suffix('/') {
                None => self.object(folder, &name, &format!("{prefix}{name}"))?,
                Some(plain) => match open_folder_at(folder, plain) {
                    Ok(inner) => self.folder(&inner, &format!("{prefix}{name}"))?,
                    // Removed or replaced since it was read.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => true,
                    Err(errno) => return Err(failed(errno)),
                },
            };
            if !wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a path that starts with `prefix` can come after the place where the page starts.
    fn may_hold_more(&self, prefix: &str) -> bool {
        prefix > self.after || self.after.starts_with(prefix)
    }

    /// Adds one object. `false`: the page was full before.
    fn object(&mut self, folder: &OwnedFd, name: &str, path: &str) -> Result<bool, Error> {
        // A name that breaks the rule of paths (a backslash) could not be read either.
        let Ok(path) = ObjectPath::new(path) else { return Ok(true) };
        if path.as_str() <= self.after {
            return Ok(true);
        }
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => stat,
            Ok(_) | Err(Errno::NOENT) => return Ok(true),
            Err(errno) => return Err(io_error("list", path.as_str(), errno.into())),
        };
        if self.page.objects.len() >= self.limit {
            self.page.next = self.page.objects.last().map(|last| last.path.clone());
            return Ok(false);
        }
        self.page.objects.push(Listed { path, meta: meta_of(&stat) });
        Ok(true)
    }
}
