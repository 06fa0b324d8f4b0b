//! Files of a failed attempt that were published by giving them a second name: before anybody is let in to
//! look, the attempt gets copies, so that nobody writes what is published.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::folder::Folder;

/// What is copied of an attempt that nobody asked to keep, at most.
const MOST: u64 = 1 << 30;
/// What a copy is called until it is whole.
const DRAFT: &str = ".atelier-copy";

/// Makes the attempt's own what has other names too; false if it is too much for one that nobody `asked` to
/// keep. No process of the attempt may live.
///
/// # Errors
/// The file system fails, or is full. Then it must not be let in anybody.
pub(super) fn part(folder: &Folder, asked: bool) -> io::Result<bool> {
    let mut shared = Vec::new();
    for root in [folder.work(), folder.outputs()] {
        find(root, &mut shared)?;
    }
    let bytes: u64 = shared.iter().map(|(_, found)| found.len()).sum();
    if !asked && bytes > MOST {
        return Ok(false);
    }
    shared.iter().try_for_each(|(path, found)| copy(path, found)).map(|()| true)
}

fn find(root: PathBuf, shared: &mut Vec<(PathBuf, Metadata)>) -> io::Result<()> {
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            // Of a link, not of what it leads to.
            let found = entry.metadata()?;
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.is_file() && found.nlink() > 1 {
                shared.push((entry.path(), found));
            }
        }
    }
    Ok(())
}

/// Puts a copy in the place of one of a file's names.
fn copy(path: &Path, found: &Metadata) -> io::Result<()> {
    let draft = path.with_file_name(DRAFT);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (mut from, mut to) = (File::open(path)?, File::create_new(&draft)?);
    let copied = match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Ok(()),
        Err(_) => io::copy(&mut from, &mut to).map(drop),
    };
    // It was made read-only when it was published.
    let mode = Permissions::from_mode(found.mode() & 0o777 | 0o200);
    let made = copied
        .and_then(|()| to.set_permissions(mode))
        .and_then(|()| like_its_folder(path, &to))
        .and_then(|()| fs::rename(&draft, path));
    made.inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}

/// What is published belongs to the agent; the copy to whom the folder around it does.
fn like_its_folder(path: &Path, copy: &File) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let folder = fs::symlink_metadata(path.parent().unwrap_or(path))?;
    std::os::unix::fs::fchown(copy, Some(folder.uid()), Some(folder.gid()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_has_a_second_name_is_the_attempts_own_afterwards() {
        let place = tempfile::tempdir().unwrap();
        let attempts = place.path().join("attempts");
        let folder = Folder::new(&attempts, 7);
        fs::create_dir_all(folder.work().join("outputs/deep")).unwrap();
        let (own, published) =
            (folder.work().join("outputs/deep/model"), place.path().join("published"));
        fs::write(&own, "as it was").unwrap();
        fs::hard_link(&own, &published).unwrap();
        fs::set_permissions(&own, Permissions::from_mode(0o444)).unwrap();
        let alone = folder.work().join("alone");
        fs::write(&alone, "").unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let before = inode(&alone);

        assert!(part(&folder, false).unwrap());
        assert_ne!(inode(&own), inode(&published));
        assert_eq!(inode(&alone), before);
        fs::write(&own, "changed").unwrap();
        assert_eq!(fs::read_to_string(&published).unwrap(), "as it was");
        assert_eq!(fs::read_dir(own.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_lot_is_copied_only_for_whoever_asked() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::new(&place.path().join("attempts"), 7);
        fs::create_dir_all(folder.outputs()).unwrap();
        let own = folder.outputs().join("large");
        // It takes no room.
        File::create(&own).unwrap().set_len(MOST + 1).unwrap();
        fs::hard_link(&own, place.path().join("published")).unwrap();
        assert!(!part(&folder, false).unwrap());
        assert_eq!(fs::metadata(&own).unwrap().nlink(), 2);
    }
}
