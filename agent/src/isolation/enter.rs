//! The way into a view: a list of system calls, made ready by the supervisor and done by the child that
//! becomes the command, which shares its memory and must not allocate.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

use super::{Means, View, is_below};

/// All that is to be done, in order.
#[derive(Debug)]
pub(crate) struct Entry {
    user_namespace: bool,
    actions: Vec<Action>,
    /// Mounts that were taken from where they are now and have no place yet.
    trees: Vec<c_int>,
}

#[derive(Debug)]
enum Action {
    /// Writes a file of `/proc/self`.
    Write { path: CString, text: CString },
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
    /// Makes an empty file, on which another can be put.
    MakeFile { path: CString },
    /// A mount, with all below it or alone, can be read only from now on, or written again.
    ReadOnly { path: CString, recursive: bool, read_only: bool },
    /// No capabilities, and no way to get any.
    GiveUpPrivileges,
}

// From linux/mount.h; not in all versions of libc for all targets.
const OPEN_TREE_CLONE: c_uint = 1;
const AT_RECURSIVE: c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;

#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
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

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// An entry that is being made.
struct Making {
    actions: Vec<Action>,
    trees: usize,
}

impl Making {
    /// Everything that is to stay is taken first. Then the temporary folders are put in place, all becomes
    /// read only, what others may write comes back, the hidden folders are covered, also where they lie in
    /// what just came back, and what is shown of them is put into the covers.
    fn all(&mut self, view: &View) -> io::Result<()> {
        let View { hidden, readable, writable, temporary, means: _ } = view;
        let places = [Path::new("/tmp"), Path::new("/var/tmp")];
        let places = places.into_iter().filter_map(|place| place.canonicalize().ok());
        let mut places: Vec<PathBuf> = places.filter(|place| !is_below(place, hidden)).collect();
        let mut temporaries = Vec::new();
        for place in places.clone() {
            temporaries.push((self.take(temporary)?, place));
        }
        let memory = Path::new("/dev/shm").canonicalize().ok();
        let memory =
            memory.filter(|memory| !is_below(memory, &places) && !is_below(memory, hidden));
        places.extend(memory.clone());
        let (own, outer): (Vec<PathBuf>, Vec<PathBuf>) =
            writable.iter().cloned().partition(|path| is_below(path, hidden));
        let (own, outer) = (outermost(&own), outermost(&outer));
        let in_outer = |path: &Path| is_below(path, &outer);
        // What lies in a folder for temporary files is out of sight with it.
        let is_covered =
            |path: &Path| is_below(path, hidden) || (is_below(path, &places) && !in_outer(path));
        let mut shown = Vec::new();
        for path in readable.iter().filter(|path| is_covered(path)) {
            shown.push((self.take(path)?, path, false));
        }
        for path in &own {
            shown.push((self.take(path)?, path, true));
        }
        let mut back = Vec::new();
        for path in &outer {
            back.push((self.take(path)?, path));
        }

        for (tree, place) in &temporaries {
            self.put(*tree, place)?;
        }
        if let Some(memory) = &memory {
            self.actions.push(Action::Cover { path: text(memory)?, options: c"mode=1777".into() });
        }
        for (_, path) in &back {
            self.make_room(path, &places)?;
        }
        self.read_only(Path::new("/"), true, true)?;
        for place in &places {
            self.read_only(place, false, false)?;
        }
        for (tree, path) in back {
            self.put(tree, path)?;
        }
        let covers: Vec<PathBuf> = hidden
            .iter()
            .filter(|folder| !is_below(folder, &places) || in_outer(folder))
            .cloned()
            .collect();
        for folder in &covers {
            let options = c"size=1m,mode=755".into();
            self.actions.push(Action::Cover { path: text(folder)?, options });
        }
        let bases = [covers.as_slice(), places.as_slice()].concat();
        for (tree, path, is_writable) in shown {
            self.make_room(path, &bases)?;
            self.put(tree, path)?;
            if !is_writable {
                self.read_only(path, true, true)?;
            }
        }
        for folder in &covers {
            self.read_only(folder, false, true)?;
        }
        Ok(())
    }

    fn take(&mut self, path: &Path) -> io::Result<usize> {
        self.actions.push(Action::Take { path: text(path)?, tree: self.trees });
        self.trees += 1;
        Ok(self.trees - 1)
    }

    fn put(&mut self, tree: usize, path: &Path) -> io::Result<()> {
        self.actions.push(Action::Put { tree, path: text(path)? });
        Ok(())
    }

    fn read_only(&mut self, path: &Path, recursive: bool, read_only: bool) -> io::Result<()> {
        self.actions.push(Action::ReadOnly { path: text(path)?, recursive, read_only });
        Ok(())
    }

    /// Makes what is mounted at `path` a place in the first of the new file systems that covers it.
    fn make_room(&mut self, path: &Path, bases: &[PathBuf]) -> io::Result<()> {
        let Some(base) = bases.iter().find(|base| path.starts_with(base)) else { return Ok(()) };
        let above = path.ancestors().skip(1).take_while(|above| *above != base.as_path());
        let mut above: Vec<&Path> = above.collect();
        above.reverse();
        for folder in above {
            self.actions.push(Action::MakeFolder { path: text(folder)? });
        }
        self.actions.push(match path.is_dir() {
            true => Action::MakeFolder { path: text(path)? },
            false => Action::MakeFile { path: text(path)? },
        });
        Ok(())
    }
}

/// Of paths that lie in each other the outermost.
pub(super) fn outermost(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut kept = paths.to_vec();
    kept.sort();
    kept.dedup_by(|next, kept| next.starts_with(&*kept));
    kept
}

impl Entry {
    /// The way into a view of which all paths are plain.
    pub(super) fn new(view: &View) -> io::Result<Self> {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let user_namespace = view.means == Means::UserNamespace;
        let mut actions = Vec::new();
        if user_namespace {
            let map = |id: u32| format!("{id} {id} 1");
            for (path, written) in [
                (c"/proc/self/setgroups", "deny".to_owned()),
                (c"/proc/self/uid_map", map(user.as_raw())),
                (c"/proc/self/gid_map", map(group.as_raw())),
            ] {
                actions.push(Action::Write { path: path.into(), text: CString::new(written)? });
            }
        }
        actions.push(Action::KeepApart);
        let mut making = Making { actions, trees: 0 };
        making.all(view)?;
        making.actions.push(Action::GiveUpPrivileges);
        Ok(Self { user_namespace, actions: making.actions, trees: vec![-1; making.trees] })
    }

    /// What to clone the child with.
    pub(crate) fn clone_flags(&self) -> c_int {
        let user = if self.user_namespace { libc::CLONE_NEWUSER } else { 0 };
        user | libc::CLONE_NEWNS | libc::CLONE_NEWIPC
    }

    /// Does it all, in the child; false if something failed, whose number [`Self::describe`] takes.
    ///
    /// # Safety
    /// The calling process must have been cloned with [`Self::clone_flags`]: this changes its namespaces
    /// for good. Only system calls are made.
    pub(crate) unsafe fn enter(&mut self) -> Result<(), usize> {
        let (actions, trees) = (&self.actions, &mut self.trees);
        for (number, action) in actions.iter().enumerate() {
            // SAFETY: As the caller promises.
            if !unsafe { act(action, trees) } {
                return Err(number);
            }
        }
        Ok(())
    }

    /// What the action of this number does, in words.
    pub(crate) fn describe(&self, number: usize) -> String {
        let shown = |path: &CStr| path.to_string_lossy().into_owned();
        match self.actions.get(number) {
            None => "isolating the job".to_owned(),
            Some(Action::Write { path, .. }) => {
                format!("isolating the job: writing {}", shown(path))
            }
            Some(Action::KeepApart) => "isolating the job: keeping its mounts apart".to_owned(),
            Some(Action::Take { path, .. }) => format!("isolating the job: taking {}", shown(path)),
            Some(Action::Put { path, .. }) => {
                format!("isolating the job: mounting {}", shown(path))
            }
            Some(Action::Cover { path, .. }) => {
                format!("isolating the job: covering {}", shown(path))
            }
            Some(Action::MakeFolder { path } | Action::MakeFile { path }) => {
                format!("isolating the job: making {}", shown(path))
            }
            Some(Action::ReadOnly { path, .. }) => {
                format!("isolating the job: what may be written at {}", shown(path))
            }
            Some(Action::GiveUpPrivileges) => "isolating the job: giving up privileges".to_owned(),
        }
    }
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
                let length = text.count_bytes();
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
                libc::syscall(
                    libc::SYS_move_mount,
                    *number,
                    nowhere,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    MOVE_MOUNT_F_EMPTY_PATH,
                ) == 0
            }
            Action::Cover { path, options } => {
                let (kind, flags) = (c"tmpfs".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
                libc::mount(kind, path.as_ptr(), kind, flags, options.as_ptr().cast()) == 0
            }
            Action::MakeFolder { path } => {
                libc::mkdir(path.as_ptr(), 0o755) == 0 || *libc::__errno_location() == libc::EEXIST
            }
            Action::MakeFile { path } => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
                let file = libc::open(path.as_ptr(), flags, 0o644);
                if file >= 0 {
                    libc::close(file);
                }
                file >= 0
            }
            Action::ReadOnly { path, recursive, read_only } => {
                let (set, clear) = match read_only {
                    true => (MOUNT_ATTR_RDONLY, 0),
                    false => (0, MOUNT_ATTR_RDONLY),
                };
                let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
                let flags = if *recursive { AT_RECURSIVE } else { 0 };
                let set: c_long = libc::syscall(
                    libc::SYS_mount_setattr,
                    libc::AT_FDCWD,
                    path.as_ptr(),
                    flags,
                    &raw const attributes,
                    size_of::<MountAttributes>(),
                );
                set == 0
            }
            Action::GiveUpPrivileges => give_up_privileges(),
        }
    }
}

/// # Safety
/// Only system calls.
unsafe fn give_up_privileges() -> bool {
    // SAFETY: See above.
    unsafe {
        for capability in 0..CAPABILITIES {
            // Those that there are not, or that may not be given up, are none to be had.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
        // Effective, permitted and inheritable, twice 32 of them.
        let none = [0_u32; 6];
        let gave = libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr());
        gave == 0 && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    }
}
