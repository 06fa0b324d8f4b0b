//! A tree in which what is root's is another user's (idmapped mounts, mount_setattr(2)): it is one and the same for all
//! to whom it is shown, and nothing of it is given to anybody.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

use super::enter::{MountAttributes, set_attributes};

/// From linux/mount.h; not in all versions of libc for all targets.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Shows `tree` at `at` as well, where what is root's in it is the user's and its group's. Needs root's privileges.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::InvalidInput`] among others where the file system cannot.
pub(crate) fn show_as(user: u32, tree: &Path, at: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, tree, flags)?;
    let namespace = namespace(user)?;
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        user_namespace: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
        ..MountAttributes::default()
    };
    // SAFETY: The name ends.
    if !unsafe { set_attributes(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes) } {
        return Err(io::Error::last_os_error());
    }
    Ok(move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// A namespace in which root is this user, and nobody else is anybody. It is there while it is open.
fn namespace(user: u32) -> io::Result<OwnedFd> {
    let process = Process::waiting()?;
    let of_it = |name: &str| format!("/proc/{}/{name}", process.0.as_raw_nonzero());
    for map in ["uid_map", "gid_map"] {
        fs::write(of_it(map), format!("0 {user} 1"))?;
    }
    Ok(File::open(of_it("ns/user"))?.into())
}

/// A process in a user namespace of its own that does nothing, and ends with this.
struct Process(Pid);

impl Process {
    fn waiting() -> io::Result<Self> {
        // With the calling process's files, none of which it would hold longer then.
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
        let parent = getpid().as_raw_nonzero().get();
        // SAFETY: Without a stack of its own, clone is fork. Of a process of several threads, the child makes nothing
        // but system calls.
        let pid =
            unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
        if pid == 0 {
            // SAFETY: As above. Should its parent end before it is told to, it is told by that.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::getppid() != parent {
                    libc::_exit(0);
                }
                loop {
                    libc::pause();
                }
            }
        }
        let failed = io::Error::last_os_error();
        // Its number for too many is that of a full disk.
        let failed = || io::Error::other(format!("a user namespace cannot be made: {failed}"));
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(Self).ok_or_else(failed)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}
