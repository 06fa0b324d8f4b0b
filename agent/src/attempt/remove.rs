//! Removes what jobs leave: folders of any depth, and such as somebody made read only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Folders that are open at once, and how far calls go down. What lies deeper is brought up first: a job can
/// nest folders until neither file numbers nor the stack would do.
const DEPTH: usize = 64;

/// Removes a tree; one that is not there is fine. Links are not followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let removed = match open(CWD, &name) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(folder) => {
            let mut removal = Removal { top: folder, deep: Vec::new(), named: 0 };
            removal.all().and_then(|()| unlinkat(CWD, &*name, AtFlags::REMOVEDIR))
        }
        // A file, or a link.
        Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(CWD, &*name, AtFlags::empty()),
        Err(errno) => Err(errno),
    };
    removed.map_err(io::Error::from)
}

struct Removal {
    top: OwnedFd,
    /// Folders that were brought up to the top and are still to be removed.
    deep: Vec<CString>,
    named: usize,
}

impl Removal {
    fn all(&mut self) -> Result<(), Errno> {
        let top = self.top.try_clone().map_err(|error| Errno::from_io_error(&error));
        let top = top.map_err(|errno| errno.unwrap_or(Errno::MFILE))?;
        self.empty(top.as_fd(), 0)?;
        while let Some(name) = self.deep.pop() {
            let folder = open(top.as_fd(), &name)?;
            self.empty(folder.as_fd(), 1)?;
            unlinkat(&top, &*name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }

    /// Removes all that is in a folder.
    fn empty(&mut self, folder: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"."
                || name == c".."
                || (depth == 0 && self.deep.iter().any(|own| **own == *name))
            {
                continue;
            }
            if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                unlink(folder, name)?;
                continue;
            }
            match open(folder, name) {
                Ok(_) if depth >= DEPTH => self.bring_up(folder, name)?,
                Ok(within) => {
                    self.empty(within.as_fd(), depth + 1)?;
                    unlinkat(folder, name, AtFlags::REMOVEDIR)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => unlink(folder, name)?,
                // Somebody else was faster.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn bring_up(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.named += 1;
            let to = CString::new(format!(".deep-{}", self.named)).map_err(|_| Errno::INVAL)?;
            match renameat(folder, name, &self.top, &*to) {
                // The job has such a folder itself, or a file.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno),
                Ok(()) => {
                    self.deep.push(to);
                    return Ok(());
                }
            }
        }
    }
}

/// Removes a file, unless somebody else was faster.
fn unlink(folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Opens a folder to remove what is in it, which its owner may have been kept from.
fn open(within: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(within, name, flags, Mode::empty());
    // Whether it may be written shows only when something in it is removed; asking costs as much.
    let is_closed = |folder: &OwnedFd| {
        rustix::fs::fstat(folder)
            .is_ok_and(|stat| stat.st_mode & Mode::RWXU.bits() != Mode::RWXU.bits())
    };
    match opened {
        Ok(folder) if !is_closed(&folder) => Ok(folder),
        Ok(folder) => {
            rustix::fs::fchmod(&folder, Mode::RWXU)?;
            Ok(folder)
        }
        Err(Errno::ACCESS) => {
            chmodat(within, name, Mode::RWXU, AtFlags::empty())?;
            openat(within, name, flags, Mode::empty())
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn whatever_a_job_leaves_can_be_removed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir_all(tree.join("a/.deep-1/b")).unwrap();
        fs::write(tree.join(".deep-1"), "in the way").unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        symlink(outside.path(), tree.join("link")).unwrap();
        for closed in ["a/.deep-1", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o500)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.path().join("kept").exists());
        remove_tree(&tree).unwrap();
        symlink(outside.path(), &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(outside.path().join("kept").exists() && !tree.is_symlink());
    }

    #[test]
    fn folders_in_folders_without_end_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut folder = open(CWD, &CString::new(tree.as_os_str().as_bytes()).unwrap()).unwrap();
        for _ in 0..2_000 {
            rustix::fs::mkdirat(&folder, c"deeper", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&folder, c"beside", Mode::RWXU).unwrap();
            folder = open(folder.as_fd(), c"deeper").unwrap();
        }
        drop(folder);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
