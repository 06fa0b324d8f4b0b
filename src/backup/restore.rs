//! Puts a backup back.
//!
//! All of it is opened, compared and written below the data folder before anything there is touched. Then the files
//! change places, which a marker tells of: cut short there, no daemon starts, and the same command goes on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use atelier_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::choice::{ASIDE, STAGE, stays};
use super::open::{contents, unpack, write};
use super::seal::Opening;
use super::{
    DATABASE, Error, Manifest, VAULT_KEY, fail, hex, must_be_outside, must_be_own, private_folder,
    remove, synced,
};
use crate::config;
use crate::daemon::{Workspace, lock_folder};
use crate::store::copy::{self, Contents};

/// In a data folder whose restore was cut short.
pub const MARKER: &str = "restoring.json";

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The backup.
    pub file: PathBuf,
    /// Where to.
    pub data_dir: PathBuf,
    /// Whether a workspace that is there is put aside.
    pub force: bool,
    /// Where the vault's key goes, if the backup has it.
    pub vault_key_file: Option<PathBuf>,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What was in it.
    pub manifest: Manifest,
    /// What its database holds.
    pub contents: Contents,
    /// Where it is now, absolute.
    pub data_dir: PathBuf,
    /// Where what was there before is.
    pub aside: Option<PathBuf>,
    /// Where the vault's key is, if the backup had it.
    pub vault_key: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    /// The folder with what was there before.
    aside: String,
    /// What takes its place.
    backup: Option<Begun>,
}

/// Which backup it is.
#[derive(Serialize, Deserialize)]
struct Begun {
    created_at: Timestamp,
    file: PathBuf,
    /// BLAKE3 of its manifest, which has the digests of all else.
    manifest: String,
}

impl Begun {
    fn of(manifest: &Manifest, file: &Path) -> Self {
        let text = serde_json::to_vec(manifest).unwrap_or_default();
        Self {
            created_at: manifest.created_at,
            file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
            manifest: hex(&blake3::hash(&text)),
        }
    }
}

/// Restores a backup into a data folder that no daemon uses.
///
/// # Errors
/// [`Error`]. Up to the last steps the folder is as it was.
pub fn restore(wanted: Restore, opening: &Opening, now: Timestamp) -> Result<Restored, Error> {
    let Restore { file, data_dir, force, vault_key_file } = wanted;
    if data_dir.exists() {
        must_be_own(&data_dir)?;
    }
    let (data_dir, _lock) = lock_folder(&data_dir)?;
    let begun: Option<Marker> =
        fs::read(data_dir.join(MARKER)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let is_half = data_dir.join(MARKER).exists();
    let occupant = occupant(&data_dir);
    if let (Some(name), false, false) = (&occupant, force, is_half) {
        return Err(Error::Occupied { path: data_dir.display().to_string(), name: name.clone() });
    }
    must_be_outside(&file, &data_dir)?;
    let stage = data_dir.join(STAGE);
    remove(&stage)?;
    let staged = Staged { path: stage };
    private_folder(&staged.path)?;
    let manifest = unpack(&file, opening, &mut |entry, content| {
        let path = staged.path.join(&entry.name);
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mode = entry.mode & 0o755;
        let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        write(content, &mut to)
    })?;
    let this = Begun::of(&manifest, &file);
    if let Some(Marker { aside, backup: Some(other) }) = &begun
        && other.manifest != this.manifest
    {
        return Err(Error::OtherBackup {
            path: data_dir.display().to_string(),
            created_at: other.created_at,
            file: other.file.display().to_string(),
            aside: aside.clone(),
        });
    }
    let database = staged.path.join(DATABASE);
    let contents = contents(&file, &manifest, || copy::check(&database))?;
    copy::put_back(&database, now)?;
    crate::failpoint::hit("restore-staged");
    let key = staged.path.join(VAULT_KEY);
    let vault_key = match key.exists() {
        true => Some(put_key(&key, vault_key_file, &manifest.workspace)?),
        false => None,
    };
    let is_new = begun.is_none();
    let aside = begun.map_or_else(|| format!("{ASIDE}{}", stamp(now)), |begun| begun.aside);
    let marker = Marker { aside, backup: Some(this) };
    let aside = change_places(&data_dir, &staged.path, &marker, is_new)?;
    drop(staged);
    Ok(Restored { manifest, contents, data_dir, aside, vault_key })
}

/// What is staged is gone when this is.
struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The name of the workspace that a folder holds.
fn occupant(data_dir: &Path) -> Option<String> {
    match fs::read(data_dir.join("workspace.json")) {
        Ok(text) => {
            let workspace: Option<Workspace> = serde_json::from_slice(&text).ok();
            Some(workspace.map_or_else(|| "?".to_owned(), |found| found.name.to_string()))
        }
        Err(_) => data_dir.join(DATABASE).exists().then(|| "?".to_owned()),
    }
}

fn stamp(now: Timestamp) -> String {
    now.to_string().chars().filter(|c| c.is_ascii_alphanumeric()).collect()
}

/// Puts the vault's key where the daemon looks for it, and nothing in the place of another one.
fn put_key(
    staged: &Path,
    wanted: Option<PathBuf>,
    workspace: &Workspace,
) -> Result<PathBuf, Error> {
    let to = wanted.or_else(|| config::vault_key(&workspace.id)).ok_or(Error::NoPlace)?;
    let to = std::path::absolute(&to).map_err(fail("find", &to))?;
    let key = zeroize::Zeroizing::new(fs::read(staged).map_err(fail("read", staged))?);
    match fs::read(&to) {
        Ok(there) if there.trim_ascii() == key.trim_ascii() => {}
        Ok(_) => return Err(Error::OtherKey(to.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = to.parent() {
                private_folder(folder)?;
            }
            // Whole or not at all: half a key would pass for another one the next time.
            let name_of = to.file_name().unwrap_or_default().to_string_lossy();
            let half = to.with_file_name(format!(".{name_of}.new"));
            let _ = fs::remove_file(&half);
            let mut file = super::private_file(&half, 0o600)?;
            let written = write(&mut &**key, &mut file).map_err(fail("write", &half));
            crate::failpoint::hit("restore-key-written");
            written.and_then(|()| super::name(&half, &to)).map_err(|error| {
                let _ = fs::remove_file(&half);
                match error {
                    Error::Exists(path) => Error::OtherKey(path),
                    other => other,
                }
            })?;
        }
        Err(error) => return Err(fail("read", &to)(error)),
    }
    fs::remove_file(staged).map_err(fail("remove", staged))?;
    Ok(to)
}

/// Puts aside what a workspace has there, and what is staged in its place.
fn change_places(
    data_dir: &Path,
    stage: &Path,
    said: &Marker,
    is_new: bool,
) -> Result<Option<PathBuf>, Error> {
    let going = || -> Result<Vec<OsString>, Error> {
        let is_going = |name: &OsString| !name.to_str().is_some_and(stays);
        Ok(names(data_dir)?.into_iter().filter(is_going).collect())
    };
    // Before anything is touched: a folder that is another's goes nowhere.
    for name in going()? {
        let path = data_dir.join(name);
        let is_folder = fs::symlink_metadata(&path).map_err(fail("look at", &path))?.is_dir();
        if is_folder {
            rustix::fs::access(&path, rustix::fs::Access::WRITE_OK)
                .map_err(|error| fail("put aside", &path)(error.into()))?;
        }
    }
    let marker = data_dir.join(MARKER);
    let text = serde_json::to_vec(said).unwrap_or_default();
    fs::write(&marker, text).map_err(fail("write", &marker))?;
    synced(&marker)?;
    synced_below(stage)?;
    synced(data_dir)?;
    crate::failpoint::hit("restore-marked");
    let aside = data_dir.join(&said.aside);
    let mut is_untouched = is_new;
    for name in going()? {
        private_folder(&aside)?;
        let (from, to) = (data_dir.join(&name), aside.join(&name));
        // It was put aside before this was cut short, and what is there now is of the backup.
        if to.exists() {
            let gone =
                if from.is_dir() { fs::remove_dir_all(&from) } else { fs::remove_file(&from) };
            gone.map_err(fail("remove", &from))?;
        } else if let Err(error) = fs::rename(&from, &to) {
            if is_untouched {
                // Then the folder is as it was, and the daemon may start on it.
                let _ = fs::remove_dir(&aside);
                fs::remove_file(&marker).map_err(fail("remove", &marker))?;
                synced(data_dir)?;
            }
            return Err(fail("put aside", &from)(error));
        }
        is_untouched = false;
    }
    if aside.exists() {
        synced(&aside)?;
    }
    crate::failpoint::hit("restore-aside");
    for name in names(stage)? {
        let (from, to) = (stage.join(&name), data_dir.join(&name));
        if name == "nodes" {
            merge(&from, &to)?;
        } else {
            fs::rename(&from, &to).map_err(fail("restore", &to))?;
        }
    }
    synced(data_dir)?;
    fs::remove_file(&marker).map_err(fail("remove", &marker))?;
    synced(data_dir)?;
    Ok(aside.exists().then_some(aside))
}

/// Puts files into folders that stay.
fn merge(from: &Path, to: &Path) -> Result<(), Error> {
    private_folder(to)?;
    for name in names(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            merge(&from, &to)?;
        } else {
            fs::rename(&from, &to).map_err(fail("restore", &to))?;
        }
    }
    synced(to)
}

/// Names as they are, UTF-8 or not.
fn names(folder: &Path) -> Result<BTreeSet<OsString>, Error> {
    let entries = fs::read_dir(folder).map_err(fail("list", folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name()));
    names.collect::<io::Result<_>>().map_err(fail("list", folder))
}

/// Puts folders on the disk, and lets others pass through where a file in them is for others.
fn synced_below(folder: &Path) -> Result<(), Error> {
    let mut is_open = false;
    for name in names(folder)? {
        let path = folder.join(&name);
        let found = fs::metadata(&path).map_err(fail("look at", &path))?;
        if found.is_dir() {
            synced_below(&path)?;
        } else {
            is_open |= found.permissions().mode() & 0o004 != 0;
        }
    }
    if is_open && !folder.ends_with(STAGE) {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder, mode).map_err(fail("open", folder))?;
    }
    synced(folder)
}
