//! Which environments stay: those in use always, of the others those used last, up to a bound.
//!
//! An attempt outlives the agent that prepared it, so what it uses is written down beside the
//! environments: a use stands as long as the attempt's folder does. Until then a pin in memory holds
//! the environment. **Invariant:** a folder is moved away only while the pins are locked, after they
//! and the uses were looked at, so that nobody who has found an environment sees it go.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atelier_core::content::Digest;

use super::build::{self, Built, MARKER, Temporary};
use super::lock;
use super::shared::Builds;
use crate::bound;

/// Folder of what is in use: a file for each use, `KEY.ATTEMPT`, with the path of the attempt's folder.
const USES: &str = ".uses";
/// What the installer keeps, unless the machine says otherwise.
pub(super) const PACKAGES: &str = ".uv-cache";

/// The environments of a folder, as far as they come and go.
#[derive(Debug)]
pub(super) struct Keep {
    root: PathBuf,
    /// Bytes at most, but for what is in use; `None`: as the file system allows.
    limit: Option<u64>,
    pins: Mutex<HashMap<String, usize>>,
    /// Held while things are removed: one sweep at a time.
    sweeping: Mutex<()>,
}

/// Holds an environment until an attempt's use of it is written down.
#[derive(Debug)]
pub(super) struct Pin {
    keep: Arc<Keep>,
    key: String,
}

impl Pin {
    /// Writes down that the attempt of this folder uses the environment. Waits for the disk.
    pub(super) fn note_use(&self, attempt: &Path) -> io::Result<()> {
        self.keep.note_use(&self.key, attempt)
    }
}

impl PartialEq for Pin {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.keep.pins();
        if let Some(count) = pins.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.key);
            }
        }
    }
}

/// An environment that is kept.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Kept {
    pub(crate) key: String,
    /// What it is made of; `None`: it is incomplete, or still being built.
    built: Option<Built>,
    /// On the disk. Files that environments share count for each.
    pub(crate) bytes: u64,
    pub(crate) last_used: SystemTime,
    /// By how many attempts it is in use.
    pub(crate) in_use: u64,
    pub(crate) building: bool,
}

impl Kept {
    /// For people: `Python 3.11.7, 45 packages`.
    pub(crate) fn description(&self) -> String {
        match &self.built {
            Some(built) => format!("Python {}, {} packages", built.python, built.packages.len()),
            None if self.building => "being built".to_owned(),
            None => "incomplete".to_owned(),
        }
    }
}

impl Keep {
    pub(super) fn new(root: PathBuf, limit: Option<u64>) -> Self {
        Self { root, limit, pins: Mutex::default(), sweeping: Mutex::default() }
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes kept at most, but for what is in use.
    pub(super) fn limit(&self) -> u64 {
        let limit = || bound::default_limit(self.root.parent().unwrap_or(&self.root));
        self.limit.unwrap_or_else(limit)
    }

    /// Holds an environment, there or not.
    pub(super) fn pin(self: &Arc<Self>, key: &str) -> Pin {
        *self.pins().entry(key.to_owned()).or_default() += 1;
        Pin { keep: Arc::clone(self), key: key.to_owned() }
    }

    fn note_use(&self, key: &str, attempt: &Path) -> io::Result<()> {
        let uses = self.root.join(USES);
        fs::create_dir_all(&uses)?;
        let path = attempt.as_os_str().as_bytes();
        let short = &Digest::of(path).to_string()[..16];
        let name = uses.join(format!("{key}.{short}"));
        let draft = uses.join(format!(".{short}"));
        fs::write(&draft, path)?;
        fs::rename(draft, name)?;
        self.touch(key);
        Ok(())
    }

    /// Notes that it was used now.
    fn touch(&self, key: &str) {
        let marker = self.root.join(key).join(MARKER);
        let noted = File::options()
            .write(true)
            .open(&marker)
            .and_then(|marker| marker.set_modified(SystemTime::now()));
        if let Err(error) = noted
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, key, "cannot note that an environment was used");
        }
    }

    /// By how many attempts each environment is in use. Uses of attempts that are gone are forgotten.
    fn uses(&self) -> HashMap<String, u64> {
        let mut uses = HashMap::new();
        for entry in fs::read_dir(self.root.join(USES)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some((key, _)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Ok(attempt) = fs::read(entry.path()) else { continue };
            if key.is_empty() {
                continue;
            }
            let attempt = PathBuf::from(std::ffi::OsString::from_vec(attempt));
            // Only what is certainly gone is forgotten.
            match fs::symlink_metadata(&attempt) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // It ended since somebody looked last.
                    self.touch(key);
                    let _ = fs::remove_file(entry.path());
                }
                _ => *uses.entry(key.to_owned()).or_default() += 1,
            }
        }
        uses
    }

    /// Every environment, by its key. Waits for the disk.
    pub(super) fn list(&self, builds: &Builds<Built>) -> Vec<Kept> {
        let mut uses = self.uses();
        let mut building = builds.keys();
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(key) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let marked = fs::metadata(entry.path().join(MARKER)).and_then(|meta| meta.modified());
            let last_used = marked.or_else(|_| entry.metadata().and_then(|meta| meta.modified()));
            let built = build::read(&entry.path());
            let bytes = built.as_ref().and_then(|built| built.bytes);
            all.push(Kept {
                key: key.to_owned(),
                bytes: bytes.unwrap_or_else(|| build::size(&entry.path(), |_| true)),
                built,
                last_used: last_used.unwrap_or(UNIX_EPOCH),
                in_use: uses.remove(key).unwrap_or(0),
                building: building.remove(key),
            });
        }
        all.extend(building.into_iter().map(|key| Kept {
            in_use: uses.remove(&key).unwrap_or(0),
            key,
            built: None,
            bytes: 0,
            last_used: SystemTime::now(),
            building: true,
        }));
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all
    }

    /// Bytes that the installer's packages take beside the environments that share their files.
    pub(super) fn packages(&self) -> u64 {
        build::size(&self.root.join(PACKAGES), |meta| meta.nlink() == 1)
    }

    /// Removes an environment that nobody uses or builds; whether it went.
    fn remove(&self, kept: &Kept) -> bool {
        if kept.in_use > 0 || kept.building {
            return false;
        }
        // A build that another process has under way holds it.
        let Ok(Some(_lock)) = lock::try_acquire(&self.root, &kept.key) else { return false };
        let moved = {
            let pins = self.pins();
            if pins.contains_key(&kept.key) || self.uses().contains_key(&kept.key) {
                return false;
            }
            Temporary::taking(&self.root, &kept.key)
        };
        if let Err(error) = &moved {
            tracing::warn!(%error, key = kept.key, "cannot remove an environment");
        }
        moved.is_ok()
    }

    /// Removes the installer's packages, unless something is being installed; whether they went.
    fn remove_packages(&self, builds: &Builds<Built>) -> bool {
        let moved = builds.if_idle(|| Temporary::taking(&self.root, PACKAGES));
        // Deleted outside of the builds' lock.
        moved.is_some_and(|moved| moved.is_ok())
    }

    /// Removes what is not in use and was not used for `unused_for`, with `packages` also the
    /// installer's; what went, and how many bytes of packages. Waits for the disk.
    pub(super) fn prune(
        &self,
        builds: &Builds<Built>,
        unused_for: Duration,
        packages: bool,
    ) -> (Vec<Kept>, u64) {
        let _sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = self.list(builds);
        gone.retain(|kept| bound::unused_for(kept.last_used, unused_for) && self.remove(kept));
        let own = if packages { self.packages() } else { 0 };
        let freed = if own > 0 && self.remove_packages(builds) { own } else { 0 };
        (gone, freed)
    }

    /// Keeps to the bound. The installer's packages go first: they serve builds to come, environments
    /// serve jobs; and files that they share are freed only when both are gone. Waits for the disk.
    pub(super) fn shrink(&self, builds: &Builds<Built>) {
        let _sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.list(builds);
        let packages = self.packages();
        let limit = self.limit();
        let mut total = packages + all.iter().map(|kept| kept.bytes).sum::<u64>();
        if total > limit && packages > 0 && self.remove_packages(builds) {
            tracing::info!(bytes = packages, limit, "the installer's packages were removed");
            total -= packages;
        }
        let unused = all.iter().filter(|kept| kept.in_use == 0 && !kept.building);
        bound::shrink(total, limit, unused.map(|kept| (kept.last_used, kept)).collect(), |kept| {
            let gone = self.remove(kept);
            if gone {
                let (key, bytes) = (&kept.key, kept.bytes);
                tracing::info!(
                    key,
                    bytes,
                    limit,
                    "an environment that was not used for longest was removed"
                );
            }
            if gone { kept.bytes } else { 0 }
        });
    }
}

#[cfg(test)]
mod tests;
