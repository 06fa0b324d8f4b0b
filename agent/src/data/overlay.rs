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
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let is_ours = |found: &Metadata| found.uid() == user.as_raw() && found.gid() == group.as_raw();
    let may_write = |found: &Metadata| match found.mode() & 0o777 {
        0o644 => true,
        // An agent of before kept all of them so; whoever has a link to it relies on that.
        0o444 if found.nlink() == 1 => {
            fs::set_permissions(from, fs::Permissions::from_mode(0o644)).is_ok()
        }
        _ => false,
    };
    let found = fs::symlink_metadata(from).ok();
    // Another agent's would be nobody's to the job.
    let may_link = found.is_some_and(|found| is_ours(&found) && may_write(&found));
    match may_link.then(|| rustix::fs::link(from, to)) {
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
    // Two that come at once do not mount it twice.
    static MOUNTING: Mutex<()> = Mutex::new(());
    let _turn = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
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
        for at in [inputs.join(name), overlay.mapped()] {
            // Until there is none any more: who was killed may have left one below another.
            while unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        }
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

/// Finds out whether inputs can be merged below a folder of the agent's, for a user that its jobs may have. Waits for
/// the disk.
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
    fs::write(&file, "as it was").map_err(unready)?;
    for folder in ["renamed", "removed"] {
        fs::create_dir(overlay.lower().join(folder)).map_err(unready)?;
        fs::write(overlay.lower().join(folder).join("file"), "").map_err(unready)?;
    }
    mount_all(overlays, inputs, user).map_err(|error| format!("overlayfs: {error}"))?;
    let wrong = |error: io::Error| format!("overlayfs is not as expected: {error}");
    if !is_mounted(&at).map_err(wrong)? {
        return Err("the kernel does not tell what is mounted (Linux 5.8 does)".to_owned());
    }
    let found = fs::metadata(&seen).map_err(wrong)?;
    if user.is_some_and(|user| (found.uid(), found.gid()) != (user, user)) {
        return Err("overlayfs does not show files as another user's".to_owned());
    }
    fs::write(&seen, "changed").map_err(wrong)?;
    let owner = fs::metadata(&seen).map_err(wrong)?.uid();
    if fs::read(&file).map_err(wrong)? != b"as it was" || owner != user.unwrap_or(0) {
        return Err("overlayfs does not keep what is changed apart".to_owned());
    }
    // Without attributes that a file system, or a namespace in which this is root, may not have, neither can be done.
    fs::rename(at.join("renamed"), at.join("new")).map_err(wrong)?;
    fs::remove_dir_all(at.join("removed")).map_err(wrong)?;
    fs::create_dir(at.join("removed")).map_err(wrong)?;
    match fs::read_dir(at.join("removed")).map_err(wrong)?.next().is_none()
        && at.join("new/file").exists()
    {
        true => Ok(()),
        false => Err("overlayfs does not know what was removed and renamed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_its_user_could_not_change_through_a_link_is_copied() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let cached = |name: &str, mode: u32| {
            fs::write(path(name), name).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
            path(name)
        };
        let links = |name: &str| {
            let to = path(&format!("{name}-given"));
            link(&path(name), &to, &Stop::default()).unwrap();
            let found = fs::metadata(&to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), name);
            assert_eq!(found.mode() & 0o777, 0o644, "{name}");
            found.nlink()
        };
        cached("usual", 0o644);
        assert_eq!(links("usual"), 2);
        cached("of-before", 0o444);
        assert_eq!(links("of-before"), 2);
        fs::hard_link(cached("read-elsewhere", 0o444), path("there")).unwrap();
        assert_eq!(links("read-elsewhere"), 1);
        assert_eq!(fs::metadata(path("there")).unwrap().mode() & 0o777, 0o444);
        if rustix::process::geteuid().is_root() {
            chown(cached("of-another", 0o644), Some(1234), None).unwrap();
            assert_eq!(links("of-another"), 1);
        }
    }

    #[test]
    fn what_can_be_tried_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let tried = probe(place.path(), Some(0x7000_0000));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{tried:?}");
    }
}
