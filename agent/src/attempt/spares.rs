//! Folders of ended attempts, emptied and kept for the next ones.
//!
//! The smallest job needs nine files and folders on its node. Making and removing them costs little
//! on most file systems, but ext4 without a journal steps over every inode that was freed in the
//! last minutes to find one to give: at some hundred jobs a second that took a third of the
//! machine. A folder that is used again frees no inode.
//!
//! Only what is beyond doubt is kept: an attempt whose supervisor saw the last of its processes
//! end, and which left nothing but our records and empty `./outputs` and `./logs`, with the owner,
//! mode and attributes that we gave them. Everything else is removed as it always was, and so is
//! the log: somebody may still read it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::folder::{self, Folder};
use super::remove::remove_tree;
use crate::isolation;
use crate::record;
use crate::supervisor::{EXITED, Exited, LAUNCH, Launch, STARTED};

/// What the working directory of a spare is called, until it is one.
pub(super) const WORK: &str = ".work";
/// Records whose files are kept, under the name by which a new one is written.
const RECORDS: [&str; 4] = [folder::ASSIGNMENT, LAUNCH, STARTED, EXITED];
/// More are never of use: so many attempts begin at once at most.
const KEPT: usize = 256;

/// The folders kept.
pub(crate) struct Spares {
    root: PathBuf,
    free: Mutex<Free>,
    /// As a folder and a record of ours look.
    like: Likeness,
}

#[derive(Default)]
struct Free {
    numbers: Vec<u64>,
    made: u64,
}

#[derive(Clone, Copy)]
struct Likeness {
    owner: u32,
    folder_mode: u32,
}

impl Spares {
    /// Keeps them below `root`, which is made anew: nothing of an earlier agent's is trusted.
    pub(crate) fn new(root: PathBuf) -> io::Result<Self> {
        remove_tree(&root)?;
        fs::create_dir(&root)?;
        let made = fs::symlink_metadata(&root)?;
        let like = Likeness { owner: made.uid(), folder_mode: made.mode() };
        Ok(Self { root, free: Mutex::default(), like })
    }

    /// Moves a spare to `to`, where nothing may be. False if there is none.
    pub(super) fn take(&self, to: &Path) -> bool {
        let number = self.free.lock().ok().and_then(|mut free| free.numbers.pop());
        number.is_some_and(|number| fs::rename(self.path(number), to).is_ok())
    }

    /// Keeps the folder of an attempt that is over and forgotten, or removes it.
    pub(crate) fn put(&self, over: &Folder) -> io::Result<()> {
        let number = self.free.lock().ok().and_then(|mut free| {
            free.made += 1;
            (free.numbers.len() < KEPT).then_some(free.made)
        });
        if let Some(number) = number
            && self.empty(over.path()).unwrap_or(false)
            && fs::rename(over.path(), self.path(number)).is_ok()
        {
            if let Ok(mut free) = self.free.lock() {
                free.numbers.push(number);
            }
            return Ok(());
        }
        over.remove()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
    }

    /// Empties the folder as far as it is ours; false if it is not to be used again.
    fn empty(&self, folder: &Path) -> io::Result<bool> {
        let exited: Option<Exited> = record::read(folder, EXITED)?;
        if exited.is_none_or(|exited| exited.survivors > 0) {
            return Ok(false);
        }
        let owner = job_user(folder).unwrap_or(self.like.owner);
        let jobs = Likeness { owner, ..self.like };
        let mut records = Vec::with_capacity(RECORDS.len());
        let mut has_work = false;
        for entry in fs::read_dir(folder)? {
            let (entry, name) = named(entry)?;
            let Some(name) = name.to_str() else { return Ok(false) };
            if name == folder::WORK {
                has_work = true;
            } else if name == folder::TEMPORARY {
                if !jobs.folder(&entry)? || fs::read_dir(entry)?.next().is_some() {
                    return Ok(false);
                }
            } else if let Some(record) = record_of(name) {
                if !self.like.record(&fs::symlink_metadata(&entry)?) {
                    return Ok(false);
                }
                records.push((entry, record));
            } else if ![folder::LOG, folder::PASSWD, folder::AUTHORITIES].contains(&name) {
                return Ok(false);
            }
        }
        let work = folder.join(folder::WORK);
        if !has_work || !jobs.is_untouched(&work)? {
            return Ok(false);
        }
        if owner != self.like.owner {
            isolation::give(&[work.clone(), folder.join(folder::TEMPORARY)], self.like.owner)?;
        }
        for file in [folder::LOG, folder::AUTHORITIES] {
            match fs::remove_file(folder.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for (path, record) in records {
            // Nothing of one job is left for the next.
            let mut options = File::options();
            options.write(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
            drop(options.open(&path)?);
            fs::rename(path, folder.join(record::temporary(record)))?;
        }
        fs::rename(work, folder.join(WORK))?;
        Ok(true)
    }
}

fn named(entry: io::Result<fs::DirEntry>) -> io::Result<(PathBuf, std::ffi::OsString)> {
    let entry = entry?;
    Ok((entry.path(), entry.file_name()))
}

/// The user that the attempt's command had, if it had one of its own.
fn job_user(folder: &Path) -> Option<u32> {
    let launch: Launch = record::read(folder, LAUNCH).ok()??;
    launch.user()
}

/// The record that this file holds, or would have held.
fn record_of(name: &str) -> Option<&'static str> {
    RECORDS.into_iter().find(|record| name == *record || name == record::temporary(record))
}

impl Likeness {
    fn record(self, found: &Metadata) -> bool {
        found.is_file()
            && found.uid() == self.owner
            && found.mode() & 0o7777 == 0o600
            // A link elsewhere would show the next job's.
            && found.nlink() == 1
    }

    fn folder(self, path: &Path) -> io::Result<bool> {
        let found = fs::symlink_metadata(path)?;
        Ok(found.is_dir()
            && found.uid() == self.owner
            && found.mode() == self.folder_mode
            && has_no_attributes(path))
    }

    /// Nothing is in the working directory but the two folders that we put there, empty.
    fn is_untouched(self, work: &Path) -> io::Result<bool> {
        let mut seen = 0;
        for entry in fs::read_dir(work)? {
            let (path, name) = named(entry)?;
            let ours = folder::ARTIFACTS.iter().any(|artifacts| name == OsStr::new(artifacts));
            if !ours || !self.folder(&path)? || fs::read_dir(path)?.next().is_some() {
                return Ok(false);
            }
            seen += 1;
        }
        Ok(seen == folder::ARTIFACTS.len() && self.folder(work)?)
    }
}

/// No access list that would outlive the job. A file system without attributes has none.
fn has_no_attributes(path: &Path) -> bool {
    let mut none: [u8; 0] = [];
    match rustix::fs::llistxattr(path, &mut none) {
        Ok(bytes) => bytes == 0,
        Err(errno) => errno == rustix::io::Errno::OPNOTSUPP,
    }
}

#[cfg(test)]
mod tests;
