//! One attempt's folder on the node: all that is known of it, so that a new agent can go on where
//! an old one was killed.

use std::fs::{self, File};
use std::io;
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use prost::Message as _;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::Spares;
use super::remove::remove_tree;
use super::spares;
use crate::data::rw_mount::Ledger;
use crate::data::{mount, overlay};
use crate::record;

pub(super) const ASSIGNMENT: &str = "assignment.pb";
const ENDED: &str = "ended.pb";
const CANCEL: &str = "cancel.json";
const SETTLED: &str = "settled.json";
const VERDICT: &str = "verdict.pb";
pub(super) const LOG: &str = "std_log.txt";
pub(super) const WORK: &str = "work";
/// See [`Folder::launcher`].
pub(super) const LAUNCHER: &str = "launcher";
/// What an isolated command sees as `/tmp`.
pub(super) const TEMPORARY: &str = "tmp";
/// What a command with a user of its own sees as `/etc/passwd`.
pub(super) const PASSWD: &str = "passwd";
/// Who vouches for the daemon, where the job has to be told.
pub(super) const AUTHORITIES: &str = "ca.pem";
/// Beside `attempts/`: folders that are being removed.
const REMOVED: &str = "removed";
/// How often a removal is begun anew, and after how long.
const ROUNDS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// Folders of the working directory that a job finds when it starts.
pub(super) const ARTIFACTS: [&str; 2] = ["outputs", "logs"];

/// `attempts/<epoch>/`.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder of the attempt with this epoch; nothing is touched.
    pub(crate) fn new(attempts: &Path, epoch: u64) -> Self {
        Self { path: attempts.join(epoch.to_string()) }
    }

    /// The attempt's folder that is there.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The command's working directory: the code's root.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// The command's `/tmp`, made if it is not there: empty, because no command ran here before.
    pub(crate) fn make_temporary(&self) -> io::Result<PathBuf> {
        let temporary = self.path.join(TEMPORARY);
        match fs::create_dir(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(temporary),
        }
    }

    /// What the attempt's container runs, if it has one.
    pub(crate) fn container(&self) -> PathBuf {
        self.path.join("container")
    }

    /// Where inputs are made available, each under its name.
    pub(crate) fn inputs(&self) -> PathBuf {
        self.path.join("inputs")
    }

    /// Where inputs are mounted, each under its name.
    pub(crate) fn mounts(&self) -> PathBuf {
        self.path.join("mounts")
    }

    /// Ends who serves the mounted inputs, if any are.
    pub(crate) fn unmount(&self) {
        mount::end(&self.path, &self.mounts());
    }

    /// What inputs are merged of that the job may change, each under its name.
    pub(crate) fn overlays(&self) -> PathBuf {
        self.path.join("overlays")
    }

    /// Merges them, for the user that the command runs as (`None`: the agent's), unless that is done.
    pub(crate) fn merge(&self, user: Option<u32>) -> io::Result<()> {
        overlay::mount_all(&self.overlays(), &self.inputs(), user)
    }

    /// Takes all mounts away that are in here.
    fn unmount_all(&self) {
        self.unmount();
        overlay::unmount_all(&self.overlays(), &self.inputs());
    }

    /// The job's own layer of its environment, into which it may install more.
    pub(crate) fn environment(&self) -> PathBuf {
        self.path.join("environment")
    }

    /// Where the job writes its named outputs.
    pub(crate) fn outputs(&self) -> PathBuf {
        self.path.join("outputs")
    }

    /// Where the job writes a named output.
    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.outputs().join(name)
    }

    /// Which of the outputs' files lie in datastores, uncommitted.
    pub(super) fn ledger(&self) -> Ledger {
        Ledger::open(self.path.join("uncommitted.jsonl"))
    }

    /// What a program that starts the job's processes finds here.
    pub(crate) fn launcher(&self) -> PathBuf {
        self.path.join(LAUNCHER)
    }

    /// Where the job finds who vouches for the daemon.
    pub(crate) fn authorities(&self) -> PathBuf {
        self.path.join(AUTHORITIES)
    }

    /// Writes who vouches for the daemon, as PEM, for the job to read.
    pub(super) fn write_authorities(&self, pem: &str) -> io::Result<()> {
        let path = self.authorities();
        fs::write(&path, pem)?;
        // Whatever the agent's mask is: the job may have a user of its own.
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
    }

    /// Standard output and error, of the first process.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// The same of one of several processes.
    pub(crate) fn log_of(&self, process: u32) -> PathBuf {
        match process {
            0 => self.log(),
            further => self.path.join(format!("std_log_{further}.txt")),
        }
    }

    /// Makes the folder and writes the assignment, whole or not at all.
    pub(crate) fn create(&self, assignment: &pb::Assignment, spares: &Spares) -> io::Result<()> {
        if !spares.take(&self.path) {
            let mut builder = fs::DirBuilder::new();
            match builder.mode(0o700).create(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        record::write_bytes(&self.path, ASSIGNMENT, &assignment.encode_to_vec())
    }

    /// The assignment, if it was written whole and can be read.
    pub(crate) fn assignment(&self) -> Option<pb::Assignment> {
        self.read_assignment().ok().flatten()
    }

    /// The assignment, if it was written whole.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(crate) fn read_assignment(&self) -> io::Result<Option<pb::Assignment>> {
        match fs::read(self.path.join(ASSIGNMENT)) {
            Ok(bytes) => Ok(pb::Assignment::decode(bytes.as_slice()).ok()),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the command's surroundings anew: an earlier preparation that was cut short leaves no
    /// trace in them. The log stays, somebody may have read it. `bare`: no code comes into it.
    pub(crate) fn make_work(&self, bare: bool) -> io::Result<()> {
        let work = self.work();
        let spare = self.path.join(spares::WORK);
        if !bare {
            remove_tree(&spare)?;
        }
        match rustix::fs::renameat_with(CWD, &spare, CWD, &work, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // Where the file system cannot do it in one step, a spare is of no use.
            Err(Errno::INVAL | Errno::NOSYS) => remove_tree(&spare)?,
            Err(_) => {}
        }
        match fs::create_dir(&work) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.unmount_all();
                // Last what says that there is something: whoever is killed meanwhile begins anew.
                for old in [&self.inputs(), &self.overlays(), &self.outputs(), &work] {
                    remove_tree(old)?;
                }
                fs::create_dir(&work)
            }
            other => other,
        }
    }

    /// `./outputs` and `./logs`, which Azure's jobs find when they start.
    pub(crate) fn make_artifact_folders(&self) -> io::Result<()> {
        for name in ARTIFACTS {
            match fs::create_dir(self.work().join(name)) {
                // Part of the code, perhaps as a link or a file; then it is what it is.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The report of the attempt's end, once there is one.
    pub(crate) fn ended(&self) -> Option<pb::AttemptReport> {
        let bytes = fs::read(self.path.join(ENDED)).ok()?;
        pb::AttemptReport::decode(bytes.as_slice()).ok()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.path.join(ENDED).exists()
    }

    pub(crate) fn write_ended(&self, report: &pb::AttemptReport) -> io::Result<()> {
        record::write_bytes(&self.path, ENDED, &report.encode_to_vec())
    }

    /// Notes that the daemon asked for the end, and why: the supervisor only knows that somebody
    /// did.
    pub(crate) fn write_cancel(&self, reason: &str) -> io::Result<()> {
        record::write(&self.path, CANCEL, &reason)
    }

    pub(crate) fn cancel(&self) -> Option<String> {
        record::read(&self.path, CANCEL).ok().flatten()
    }

    /// Notes why this node itself ends the attempt.
    pub(crate) fn write_verdict(&self, problem: &pb::Problem) -> io::Result<()> {
        record::write_bytes(&self.path, VERDICT, &problem.encode_to_vec())
    }

    pub(crate) fn verdict(&self) -> Option<pb::Problem> {
        let bytes = fs::read(self.path.join(VERDICT)).ok()?;
        pb::Problem::decode(bytes.as_slice()).ok()
    }

    /// Puts the records on the disk.
    fn sync(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_data()?;
            }
        }
        File::open(&self.path)?.sync_all()
    }

    /// Puts all that the attempt left on the disk, and notes that it is there: files of another boot are taken
    /// for whole only then.
    pub(crate) fn settle(&self) -> io::Result<()> {
        // Everything on the file system, once, is cheaper than thousands of files one by one.
        rustix::fs::syncfs(File::open(&self.path)?)?;
        record::write(&self.path, SETTLED, &true)?;
        self.sync()
    }

    /// Whether [`Self::settle`] came to its end.
    pub(super) fn is_settled(&self) -> bool {
        matches!(record::read(&self.path, SETTLED), Ok(Some(true)))
    }

    /// Removes the folder and all in it. It is out of the way at once, so that no new agent takes what is half
    /// removed for an attempt.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.unmount_all();
        match self.put_aside() {
            Ok(aside) => {
                // What somebody was about to look into may have been mounted until its name was another.
                Self::at(&aside).unmount_all();
                insist(&aside)
            }
            // It is gone, or on a file system of its own.
            Err(_) => insist(&self.path),
        }
    }

    fn put_aside(&self) -> io::Result<PathBuf> {
        let (Some(attempts), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let removed = attempts.with_file_name(REMOVED);
        match fs::create_dir(&removed) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let aside = removed.join(name);
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    /// Removes what an earlier agent was kept from removing to the end.
    pub(crate) fn remove_left(attempts: &Path) -> io::Result<()> {
        remove_tree(&attempts.with_file_name(REMOVED))
    }
}

/// Removes a tree in which something that was killed may still write its last.
fn insist(tree: &Path) -> io::Result<()> {
    let mut rounds = 0..ROUNDS;
    loop {
        match remove_tree(tree) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                rounds.next().ok_or(error)?;
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
