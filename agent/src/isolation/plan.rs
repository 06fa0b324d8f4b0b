//! In which order a view is made.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::enter::Action;
use super::users::PASSWD;
use super::{View, is_below};

/// What a job sees of the machine's devices: those without which programs do not work.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// How the names of accelerators begin, and of what moves data between them. Which of them a job may use is
/// not decided here ([`View::withheld`]).
const ACCELERATORS: [&str; 15] = [
    "nvidia",
    "dri",
    "kfd",
    "infiniband",
    "accel",
    "davinci",
    "neuron",
    "dxg",
    "hl",
    "vfio",
    "hfi1",
    "cxi",
    "gdrdrv",
    "knem",
    "xpmem",
];

pub(super) const DEVICE_FOLDER: &str = "/dev";
pub(super) const PROCESSES: &str = "/proc";
const LINKS: [(&str, &CStr); 5] = [
    ("fd", c"/proc/self/fd"),
    ("stdin", c"/proc/self/fd/0"),
    ("stdout", c"/proc/self/fd/1"),
    ("stderr", c"/proc/self/fd/2"),
    ("ptmx", c"pts/ptmx"),
];

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn is_accelerator(name: &str) -> bool {
    ACCELERATORS.iter().any(|start| name.starts_with(start))
}

/// The groups that may use accelerators among these devices which others may not, as `render` and `video` do.
pub(super) fn accelerator_groups(devices: &Path) -> Vec<u32> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut groups = Vec::new();
    for entry in entries(devices) {
        if !entry.file_name().to_str().is_some_and(is_accelerator) {
            continue;
        }
        // `dri` and the like are folders.
        for path in entries(&entry.path()).map(|inner| inner.path()).chain([entry.path()]) {
            let Ok(found) = fs::metadata(&path) else { continue };
            let may = |bits: u32| found.mode() & bits == bits;
            let is_device = found.file_type().is_char_device();
            if is_device && may(0o060) && !may(0o006) && found.gid() != 0 {
                groups.push(found.gid());
            }
        }
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Actions that are being collected.
#[derive(Default)]
pub(super) struct Plan {
    actions: Vec<Action>,
    trees: usize,
}

impl Plan {
    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The actions, and how many mounts they take from their places.
    pub(super) fn done(self) -> (Vec<Action>, usize) {
        (self.actions, self.trees)
    }

    /// Everything that is to stay is taken first. Then the temporary folders are put in place, all becomes
    /// read only, what others may write comes back, the hidden folders are covered, also where they lie in
    /// what just came back, and what is shown of them is put into the covers.
    pub(super) fn all(&mut self, view: &View) -> io::Result<()> {
        let View { hidden, masked, readable, writable, temporary, user, .. } = view;
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
        let mut masks = Vec::new();
        for path in masked.iter().filter(|path| !is_covered(path)) {
            masks.push((self.take(Path::new("/dev/null"))?, path.as_path()));
        }
        let names = Path::new(PASSWD).canonicalize();
        if let (Some(user), Ok(names)) = (user, &names) {
            masks.push((self.take(&user.passwd)?, names));
        }

        self.devices(&view.withheld)?;
        for (tree, place) in &temporaries {
            self.put(*tree, place)?;
        }
        if let Some(memory) = &memory {
            self.push(Action::MakeFolder { path: text(memory)? });
            self.push(Action::Cover { path: text(memory)?, options: c"mode=1777".into() });
        }
        let devices = PathBuf::from(DEVICE_FOLDER);
        let new = [places.as_slice(), &[devices]].concat();
        for (_, path) in &back {
            self.make_room(path, &new)?;
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
            self.push(Action::Cover { path: text(folder)?, options });
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
        for (tree, path) in masks {
            self.put(tree, path)?;
        }
        Ok(())
    }

    /// Makes `/dev` anew: the machine's disks and memory are open to root, in whatever namespace, and a file
    /// system that is read only does not change that.
    fn devices(&mut self, withheld: &[String]) -> io::Result<()> {
        let folder = Path::new(DEVICE_FOLDER);
        let mut devices = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_shown = is_accelerator(name) || DEVICES.contains(&name);
            if is_shown && !withheld.iter().any(|withheld| withheld == name) {
                devices.push((self.take(&entry.path())?, entry.path()));
            }
        }
        self.push(Action::Cover { path: text(folder)?, options: c"size=1m,mode=755".into() });
        for (tree, path) in devices {
            self.make_room(&path, &[folder.to_owned()])?;
            self.put(tree, &path)?;
        }
        for (name, to) in LINKS {
            self.push(Action::MakeLink { path: text(&folder.join(name))?, to });
        }
        let terminals = text(&folder.join("pts"))?;
        self.push(Action::MakeFolder { path: terminals.clone() });
        self.push(Action::ShowTerminals { path: terminals });
        Ok(())
    }

    /// What `/proc` says of processes may be written by those whose it is, as names of threads are: NVIDIA's driver
    /// gives one, and fails where it cannot. The rest of it is the machine's. `own`: it is mounted anew. `as_root`:
    /// for a job with root's number, which changes much of the machine without any privilege. To others the kernel
    /// refuses that, but for being told of pressure, and to cover all for each costs a third of what a view takes.
    pub(super) fn processes(&mut self, own: bool, as_root: bool) -> io::Result<()> {
        let folder = Path::new(PROCESSES);
        if own {
            self.push(Action::ShowProcesses);
        } else if rustix::fs::statvfs(folder)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(());
        } else {
            self.read_only(folder, false, false)?;
        }
        let machines = match as_root {
            true => machines(folder)?,
            false => Vec::from_iter(Some(folder.join("pressure")).filter(|path| path.exists())),
        };
        for path in machines {
            let tree = self.take(&path)?;
            self.put(tree, &path)?;
            self.read_only(&path, true, true)?;
        }
        Ok(())
    }

    fn take(&mut self, path: &Path) -> io::Result<usize> {
        self.push(Action::Take { path: text(path)?, tree: self.trees });
        self.trees += 1;
        Ok(self.trees - 1)
    }

    fn put(&mut self, tree: usize, path: &Path) -> io::Result<()> {
        self.push(Action::Put { tree, path: text(path)? });
        Ok(())
    }

    fn read_only(&mut self, path: &Path, recursive: bool, read_only: bool) -> io::Result<()> {
        self.push(Action::ReadOnly { path: text(path)?, recursive, read_only });
        Ok(())
    }

    /// Makes what is mounted at `path` a place in the first of the new file systems that covers it.
    fn make_room(&mut self, path: &Path, bases: &[PathBuf]) -> io::Result<()> {
        let Some(base) = bases.iter().find(|base| path.starts_with(base)) else { return Ok(()) };
        let above = path.ancestors().skip(1).take_while(|above| *above != base.as_path());
        let mut above: Vec<&Path> = above.collect();
        above.reverse();
        for folder in above {
            self.push(Action::MakeFolder { path: text(folder)? });
        }
        self.push(match path.is_dir() {
            true => Action::MakeFolder { path: text(path)? },
            false => Action::MakeFile { path: text(path)? },
        });
        Ok(())
    }
}

/// What of `/proc` is no process and may be written, or is a folder of such. The kernel names processes last.
fn machines(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            break;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() || kind.is_file() && entry.metadata()?.mode() & 0o222 != 0 {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Of paths that lie in each other the outermost.
pub(super) fn outermost(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut kept = paths.to_vec();
    kept.sort();
    kept.dedup_by(|next, kept| next.starts_with(&*kept));
    kept
}
