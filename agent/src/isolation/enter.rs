//! The way into a view: a list of system calls, made and done by the child that leads the job's processes.
//!
//! Already to make it the view's paths are looked at, and a file system that does not answer can take any time
//! for that: the child can be killed meanwhile, and its parent goes on listening.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong};
use std::io;
use std::ptr;

use rustix::process::{Gid, Uid};

use super::filter::Filter;
use super::plan::Plan;
use super::rules::Rules;
use super::users::User;
use super::{Means, View};

/// A view, and who enters it: known before the child is there, in which a user has no number at first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    view: &'a View,
    user: Uid,
    group: Gid,
}

/// What a child could not do to enter a view, in words, and why.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) error: io::Error,
}

/// All that is to be done once the child has its user, in order.
#[derive(Debug)]
pub(super) struct Steps {
    rules: Option<Rules>,
    actions: Vec<Action>,
    /// Mounts that were taken from where they are now and have no place yet.
    trees: Vec<c_int>,
}

#[derive(Debug)]
pub(super) enum Action {
    /// Writes a file of `/proc/self`.
    Write { path: CString, text: String },
    /// Mount events stay in the namespace.
    KeepApart,
    /// Takes a copy of what is at a path, before it is covered.
    Take { path: CString, tree: usize },
    /// Puts it there again, or somewhere else.
    Put { tree: usize, path: CString },
    /// Mounts an empty file system in memory; its options.
    Cover { path: CString, options: CString },
    /// Makes a folder; one that is there is fine.
    MakeFolder { path: CString },
    /// Makes an empty file, on which another can be put; one that is there is fine.
    MakeFile { path: CString },
    /// Makes a symbolic link.
    MakeLink { path: CString, to: &'static CStr },
    /// Mounts terminals of the namespace's own.
    ShowTerminals { path: CString },
    /// A mount, with all below it or alone, can be read only from now on, or written again.
    ReadOnly { path: CString, recursive: bool, read_only: bool },
    /// Mounts what `/proc` says of the process namespace that this process is in.
    ShowProcesses,
    /// What is made from now on others may read.
    OpenMask,
    /// No capabilities, and no way to get any, as another user from now on where there is one.
    GiveUpPrivileges(Option<User>),
    /// The rules are in force from now on.
    Restrict,
    /// From now on some system calls fail.
    Filter(&'static Filter),
}

// From linux/mount.h; not in all versions of libc for all targets.
const OPEN_TREE_CLONE: c_uint = 1;
const AT_RECURSIVE: c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
pub(super) struct MountAttributes {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) propagation: u64,
    pub(super) user_namespace: u64,
}

/// From linux/capability.h, version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// More than there are.
const CAPABILITIES: c_ulong = 64;

impl<'a> Entry<'a> {
    /// The calling process's way into a view, or that of a child of it.
    pub(super) fn new(view: &'a View) -> Self {
        Self { view, user: rustix::process::geteuid(), group: rustix::process::getegid() }
    }

    /// What to clone the child with.
    pub(crate) fn clone_flags(&self) -> c_int {
        let flag = |is_set: bool, flag: c_int| if is_set { flag } else { 0 };
        match self.view.means {
            Means::Rules => 0,
            Means::UserNamespace | Means::Root => {
                let user_namespace = self.view.means == Means::UserNamespace;
                libc::CLONE_NEWNS
                    | libc::CLONE_NEWIPC
                    | flag(user_namespace, libc::CLONE_NEWUSER)
                    | flag(self.view.own_processes, libc::CLONE_NEWPID)
            }
        }
    }

    /// Whether the child is the first process of those that the job sees, all of which die with it.
    pub(crate) fn owns_processes(&self) -> bool {
        self.clone_flags() & libc::CLONE_NEWPID != 0
    }

    /// Does it all, in the child. That takes as long as the file systems do of all that the view names.
    ///
    /// # Errors
    /// What failed; then the calling process is somewhere between here and there.
    ///
    /// # Safety
    /// The calling process must have been cloned with [`Self::clone_flags`]: this changes its namespaces
    /// for good, and it must have one thread.
    pub(crate) unsafe fn enter(&self) -> Result<(), Failed> {
        let mut keep_user = Steps::of(self.keep_user());
        // SAFETY: As the caller promises.
        unsafe { keep_user.take() }?;
        let looking = |error| Failed { what: "looking at what the job may see".to_owned(), error };
        let mut steps = self.steps().map_err(looking)?;
        // SAFETY: As above.
        unsafe { steps.take() }
    }

    /// In a user namespace of its own, the child keeps the user and the group that it was cloned with.
    fn keep_user(&self) -> Vec<Action> {
        if self.view.means != Means::UserNamespace {
            return Vec::new();
        }
        let map = |id: u32| format!("{id} {id} 1");
        let written = [
            (c"/proc/self/setgroups", "deny".to_owned()),
            (c"/proc/self/uid_map", map(self.user.as_raw())),
            (c"/proc/self/gid_map", map(self.group.as_raw())),
        ];
        written.map(|(path, text)| Action::Write { path: path.into(), text }).into()
    }

    /// Looks at all that the view names.
    pub(super) fn steps(&self) -> io::Result<Steps> {
        let view = self.view.plain()?;
        let mut plan = Plan::default();
        if view.user.is_some() {
            // The agent's may keep its own user's files from others, among which the job's user is.
            plan.push(Action::OpenMask);
        }
        let rules = match view.means {
            Means::Rules => Some(Rules::new(&view)?),
            Means::UserNamespace | Means::Root => {
                plan.push(Action::KeepApart);
                plan.all(&view)?;
                plan.processes(view.own_processes, view.stays_root())?;
                None
            }
        };
        plan.push(Action::GiveUpPrivileges(view.user.clone()));
        if rules.is_some() {
            plan.push(Action::Restrict);
        }
        if view.filtered {
            plan.push(Action::Filter(Filter::get(view.stays_root())?));
        }
        let (actions, trees) = plan.done();
        Ok(Steps { rules, actions, trees: vec![-1; trees] })
    }
}

impl Steps {
    fn of(actions: Vec<Action>) -> Self {
        Self { rules: None, actions, trees: Vec::new() }
    }

    /// # Safety
    /// As for [`Entry::enter`].
    unsafe fn take(&mut self) -> Result<(), Failed> {
        let (actions, trees) = (&self.actions, &mut self.trees);
        for action in actions {
            let done = match action {
                Action::Restrict => self.rules.take().map_or(Ok(()), Rules::restrict).is_ok(),
                // SAFETY: As the caller promises.
                other => unsafe { act(other, trees) },
            };
            if !done {
                let error = io::Error::last_os_error();
                return Err(Failed { what: action.describe(), error });
            }
        }
        Ok(())
    }
}

impl Action {
    /// What it does, in words.
    fn describe(&self) -> String {
        let shown = |path: &CStr| path.to_string_lossy().into_owned();
        let what = match self {
            Self::Write { path, .. } => format!("writing {}", shown(path)),
            Self::KeepApart => "keeping its mounts apart".to_owned(),
            Self::Take { path, .. } => format!("taking {}", shown(path)),
            Self::Put { path, .. } | Self::ShowTerminals { path } => {
                format!("mounting {}", shown(path))
            }
            Self::Cover { path, .. } => format!("covering {}", shown(path)),
            Self::MakeFolder { path } | Self::MakeFile { path } | Self::MakeLink { path, .. } => {
                format!("making {}", shown(path))
            }
            Self::ReadOnly { path, .. } => format!("what may be written at {}", shown(path)),
            Self::ShowProcesses => "mounting /proc".to_owned(),
            Self::OpenMask => "setting its mask".to_owned(),
            Self::GiveUpPrivileges(Some(_)) => "becoming its user".to_owned(),
            Self::GiveUpPrivileges(None) => "giving up privileges".to_owned(),
            Self::Restrict => "rules on files".to_owned(),
            Self::Filter(_) => "filtering system calls".to_owned(),
        };
        format!("isolating the job: {what}")
    }
}

/// Changes a mount (mount_setattr(2)); whether it worked. `errno` says why not.
///
/// # Safety
/// Only a system call; `at` must be open, or stand for the working directory.
pub(super) unsafe fn set_attributes(
    at: c_int,
    path: &CStr,
    flags: c_int,
    attributes: &MountAttributes,
) -> bool {
    // SAFETY: The attributes are as long as is said.
    let set: c_long = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    set == 0
}

/// Does one; whether it worked. `errno` says why not.
///
/// # Safety
/// Only system calls, on texts that end; the process must be alone in its mount namespace.
unsafe fn act(action: &Action, trees: &mut [c_int]) -> bool {
    // SAFETY: See above. All pointers are to what outlives the calls.
    unsafe {
        match action {
            Action::Write { path, text } => {
                let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if file < 0 {
                    return false;
                }
                let length = text.len();
                let written = libc::write(file, text.as_ptr().cast(), length);
                libc::close(file);
                usize::try_from(written) == Ok(length)
            }
            Action::KeepApart => {
                let flags = libc::MS_REC | libc::MS_PRIVATE;
                libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()) == 0
            }
            Action::Take { path, tree } => {
                let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC as c_uint;
                let number =
                    libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
                match trees.get_mut(*tree) {
                    Some(place) => *place = number as c_int,
                    None => return false,
                }
                number >= 0
            }
            Action::Put { tree, path } => {
                let Some(number) = trees.get(*tree) else { return false };
                let nowhere: *const c_char = c"".as_ptr();
                let put = libc::syscall(
                    libc::SYS_move_mount,
                    *number,
                    nowhere,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    MOVE_MOUNT_F_EMPTY_PATH,
                ) == 0;
                let errno = *libc::__errno_location();
                libc::close(*number);
                *libc::__errno_location() = errno;
                put
            }
            Action::Cover { path, options } => {
                let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
                libc::mount(kind, path.as_ptr(), kind, flags, options.as_ptr().cast()) == 0
            }
            Action::MakeFolder { path } => {
                libc::mkdir(path.as_ptr(), 0o755) == 0 || *libc::__errno_location() == libc::EEXIST
            }
            Action::MakeFile { path } => {
                // Unlike open, it tells a file that is there from a file system that is read only.
                libc::mknod(path.as_ptr(), libc::S_IFREG | 0o644, 0) == 0
                    || *libc::__errno_location() == libc::EEXIST
            }
            Action::MakeLink { path, to } => libc::symlink(to.as_ptr(), path.as_ptr()) == 0,
            Action::ShowTerminals { path } => {
                let (kind, flags) = (c"devpts".as_ptr(), libc::MS_NOSUID | libc::MS_NOEXEC);
                let options = c"newinstance,ptmxmode=0666,mode=620".as_ptr();
                libc::mount(kind, path.as_ptr(), kind, flags, options.cast()) == 0
            }
            Action::ReadOnly { path, recursive, read_only } => {
                let (set, clear) = match read_only {
                    true => (MOUNT_ATTR_RDONLY, 0),
                    false => (0, MOUNT_ATTR_RDONLY),
                };
                let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
                let flags = if *recursive { AT_RECURSIVE as c_int } else { 0 };
                set_attributes(libc::AT_FDCWD, path, flags, &attributes)
            }
            Action::ShowProcesses => {
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                let kind = c"proc".as_ptr();
                libc::mount(kind, c"/proc".as_ptr(), kind, flags, ptr::null()) == 0
            }
            Action::OpenMask => {
                libc::umask(0o022);
                true
            }
            Action::GiveUpPrivileges(user) => give_up_privileges(user.as_ref()),
            // Done by whoever has the rules.
            Action::Restrict => true,
            Action::Filter(filter) => filter.set(),
        }
    }
}

/// No capabilities, and no way to get any, and another user where there is one; whether it worked. `errno`
/// says why not.
///
/// # Safety
/// Only system calls, which change the calling process for good.
pub(super) unsafe fn give_up_privileges(user: Option<&User>) -> bool {
    // SAFETY: See above.
    unsafe {
        for capability in 0..CAPABILITIES {
            // Those that there are not, or that may not be given up, are none to be had.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        if user.is_some_and(|user| !become_user(user)) {
            return false;
        }
        let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        // Effective, permitted and inheritable, twice 32 of them.
        let none = [0_u32; 6];
        let gave = libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr());
        gave == 0 && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}

/// Real, effective and saved, user and groups; whether it worked. `errno` says why not.
///
/// # Safety
/// Only system calls, which change the calling process for good; it must have one thread, since those of the
/// C library would change the others too.
unsafe fn become_user(User { id, groups, .. }: &User) -> bool {
    // SAFETY: See above. The list is as long as is said.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, *id, *id, *id) == 0
            && libc::syscall(libc::SYS_setresuid, *id, *id, *id) == 0
    }
}
