//! Inputs that a job may change, without a copy of each: the node's cache shows through where it has changed nothing
//! (overlayfs, Documentation/filesystems/overlayfs.rst of Linux).
//!
//! ```text
//! inputs/NAME            what the job has: merged of
//!   overlays/NAME/upper    what it has changed, added and removed, and
//!   overlays/NAME/lower    links to files of the cache, which nothing changes
//! ```
//! To the job all of it belongs to its own user: `lower` goes through a map from root's number to that user's
//! (an idmapped mount, mount_setattr(2)), so that no file of the cache is given to anybody.
//!
//! Only root may mount so, for the job's processes, their containers and whoever is let in later alike. Where the
//! kernel or the file system cannot, as [`probe`] finds out, jobs get copies.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Error;
use super::files::{self, Stop};
use crate::isolation;

/// The name of what is mounted, in `/proc/mounts`.
const NAME: &str = "atelier";
/// A folder is renamed and a file's mode changed without its content being copied.
const OPTIONS: &str = "redirect_dir=on,metacopy=on";

/// The folders that one input is merged of.
#[derive(Clone, Debug)]
pub(super) struct Overlay(PathBuf);

impl Overlay {
    /// Makes them, empty, among an attempt's `overlays`.
    pub(super) fn make(overlays: &Path, name: &str) -> Result<Self, Error> {
        let made = Self(overlays.join(name));
        files::remove_any(&made.0)?;
        for folder in [made.lower(), made.upper(), made.work(), made.mapped()] {
            fs::create_dir_all(&folder)
                .map_err(|error| Error::io("create the folder", &folder, error))?;
        }
        // What is in there is root's alone, but for what is shown of it.
        fs::set_permissions(overlays, fs::Permissions::from_mode(0o700))
            .map_err(|error| Error::io("close", overlays, error))?;
        Ok(made)
    }

    /// Where the files go.
    pub(super) fn lower(&self) -> PathBuf {
        self.0.join("lower")
    }

    fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// What the kernel needs besides.
    fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// Where `lower` is seen as the user's, until it is part of the whole.
    fn mapped(&self) -> PathBuf {
        self.0.join("mapped")
    }

    /// Merges them at `at`, for a user.
    fn mount(&self, at: &Path, user: Option<u32>) -> io::Result<()> {
        let Some(user) = user else { return self.merge(&self.lower(), at) };
        chown(self.upper(), Some(user), Some(user))?;
        let mapped = self.mapped();
        isolation::show_as(user, &self.lower(), &mapped)?;
        let merged = self.merge(&mapped, at);
        // What is merged holds on to it.
        unmount(&mapped, UnmountFlags::DETACH)?;
        merged
    }

    fn merge(&self, lower: &Path, at: &Path) -> io::Result<()> {
        let folders = [("lowerdir", lower), ("upperdir", &self.upper()), ("workdir", &self.work())];
        let mut options = OPTIONS.as_bytes().to_vec();
        for (option, folder) in folders {
            options.extend([b",", option.as_bytes(), b"=", folder.as_os_str().as_bytes()].concat());
        }
        let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        Ok(mount(NAME, at, "overlay", flags, options.as_c_str())?)
    }
}

/// Makes a link to a file of the cache, or a copy where that cannot be.
pub(super) fn link(from: &Path, to: &Path, stop: &Stop) -> Result<(), Error> {
    // Its owner is to be able to write it, and it is not for this to change what others have.
    let may_write = fs::metadata(from).is_ok_and(|found| found.mode() & 0o777 == 0o644);
    match may_write.then(|| rustix::fs::link(from, to)) {
        Some(Ok(())) => Ok(()),
        // Another file system, or as many links as there can be.
        _ => files::copy(from, to, stop),
    }
}

/// Mounts an attempt's inputs that are made of `overlays`, for the user that its command runs as (`None`: root), unless
/// that is done. Waits for the disk.
///
/// # Errors
/// The kernel's.
pub(crate) fn mount_all(overlays: &Path, inputs: &Path, user: Option<u32>) -> io::Result<()> {
    each(overlays, |overlay, name| {
        let at = inputs.join(name);
        match is_mounted(&at)? {
            true => Ok(()),
            false => overlay.mount(&at, user),
        }
    })
}

/// Takes them away, whoever still uses them.
pub(crate) fn unmount_all(overlays: &Path, inputs: &Path) {
    let _ = each(overlays, |overlay, name| {
        // One that is not mounted is fine.
        let _ = unmount(inputs.join(name), UnmountFlags::DETACH);
        let _ = unmount(overlay.mapped(), UnmountFlags::DETACH);
        Ok(())
    });
}

fn each(
    overlays: &Path,
    mut act: impl FnMut(&Overlay, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match fs::read_dir(overlays) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        act(&Overlay(entry.path()), &entry.file_name())?;
    }
    Ok(())
}

fn is_mounted(at: &Path) -> io::Result<bool> {
    let found = statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Finds out whether inputs can be merged below an agent's folder, for a user that its jobs may have. Waits for the
/// disk.
///
/// # Errors
/// Why not, in words.
pub(crate) fn probe(root: &Path, user: Option<u32>) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("the agent is not root".to_owned());
    }
    let place = root.join("overlay-probe");
    let (overlays, inputs) = (place.join("overlays"), place.join("inputs"));
    let tried = try_one(&overlays, &inputs, user);
    unmount_all(&overlays, &inputs);
    let _ = fs::remove_dir_all(&place);
    tried
}

fn try_one(overlays: &Path, inputs: &Path, user: Option<u32>) -> Result<(), String> {
    let unready = |error: io::Error| format!("cannot prepare to try it: {error}");
    // One that was killed meanwhile has left it.
    unmount_all(overlays, inputs);
    let overlay = Overlay::make(overlays, "input").map_err(|error| error.to_string())?;
    let at = inputs.join("input");
    fs::create_dir_all(&at).map_err(unready)?;
    let (file, seen) = (overlay.lower().join("file"), at.join("file"));
    drop(files::write_new(&file, b"as it was", 0o644).map_err(|error| error.to_string())?);
    mount_all(overlays, inputs, user).map_err(|error| format!("overlayfs: {error}"))?;
    let wrong = |error: io::Error| format!("overlayfs is not as expected: {error}");
    let found = fs::metadata(&seen).map_err(wrong)?;
    if user.is_some_and(|user| (found.uid(), found.gid()) != (user, user)) {
        return Err("overlayfs does not show files as another user's".to_owned());
    }
    fs::write(&seen, "changed").map_err(wrong)?;
    let owner = fs::metadata(&seen).map_err(wrong)?.uid();
    match fs::read(&file).map_err(wrong)? == b"as it was" && owner == user.unwrap_or(0) {
        true => Ok(()),
        false => Err("overlayfs does not keep what is changed apart".to_owned()),
    }
}
