//! Secrets of attempts on this node: in memory alone, for as long as the attempt runs.
//!
//! ```text
//! <folder in memory>/<epoch>/values.json    what the supervisor needs, and whoever lets somebody into the job
//!                            job/NAME       what the job asked for as a file; all that the job sees of this
//!                            job/variables.sh   what its container's script reads
//! ```
//! An agent that is killed leaves them to the supervisor and to the next agent; a new boot finds nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::record;

mod redact;

pub(crate) use redact::{Patterns, Redactor, SHORTEST};

const VALUES: &str = "values.json";
const JOB: &str = "job";
/// No variable is called so.
pub(crate) const SCRIPT: &str = "variables.sh";
/// File systems that have no disk: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The values of an attempt's secrets.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Values {
    /// Those that come as variables.
    pub(crate) variables: BTreeMap<String, String>,
    /// Those that come as files.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Values {
    /// All of them, each under its variable.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let variables = self.variables.iter().map(|(name, value)| (&**name, value.as_bytes()));
        variables.chain(self.files.iter().map(|(name, value)| (&**name, value.as_slice())))
    }

    /// What to look for in the job's output.
    ///
    /// # Errors
    /// There is more of it than can be looked for.
    pub(crate) fn patterns(&self) -> io::Result<Option<Patterns>> {
        Patterns::new(self.all().map(|(_, value)| value))
    }
}

/// Where one attempt's secrets lie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    path: PathBuf,
}

impl Held {
    /// Writes the secrets of an attempt, in the place of what an earlier preparation wrote.
    ///
    /// `script`: for a container of it.
    ///
    /// # Errors
    /// This node has no file system in memory where the agent may write.
    pub(crate) fn write(
        root: &Path,
        epoch: u64,
        values: &Values,
        script: Option<&str>,
    ) -> io::Result<Self> {
        let held = Self::make(root, epoch)?;
        record::write(&held.path, VALUES, values)?;
        DirBuilder::new().mode(0o755).create(held.job())?;
        for (name, value) in &values.files {
            write_file(&held.job().join(name), value)?;
        }
        if let Some(script) = script {
            write_file(&held.job().join(SCRIPT), script.as_bytes())?;
        }
        Ok(held)
    }

    /// A folder of the attempt's own.
    fn make(root: &Path, epoch: u64) -> io::Result<Self> {
        const TRIES: u32 = 16;
        for _ in 0..TRIES {
            let held = Self { path: make_folder(root)?.join(epoch.to_string()) };
            held.remove()?;
            match DirBuilder::new().mode(0o711).create(&held.path) {
                // Another attempt's were the last, and it took the folder of all away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                made => return made.map(|()| held),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The values, unless the attempt is over.
    pub(crate) fn values(&self) -> io::Result<Option<Values>> {
        record::read(&self.path, VALUES)
    }

    /// The folder of what the job sees.
    pub(crate) fn job(&self) -> PathBuf {
        self.path.join(JOB)
    }

    /// An empty folder in the place of what the job saw: a container that is started again must find one.
    pub(crate) fn make_empty(&self) -> io::Result<()> {
        fs::create_dir_all(self.job())
    }

    /// Removes the secrets of an attempt of the agent with this folder, wherever they lie.
    pub(crate) fn remove_of(root: &Path, epoch: u64) -> io::Result<()> {
        for folder in folders(root) {
            Self { path: folder.join(epoch.to_string()) }.remove()?;
            // With the last.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Removes what earlier agents left of attempts that are not `known`.
pub(crate) fn sweep(root: &Path, known: impl Fn(u64) -> bool) {
    for folder in folders(root) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let epoch = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if epoch.is_some_and(|epoch| !known(epoch)) {
                let path = entry.path();
                if let Err(error) = (Held { path }).remove() {
                    tracing::warn!(?epoch, %error, "cannot remove secrets of an attempt that is over");
                }
            }
        }
    }
}

/// The folders of this agent's that there are: no other job may see into them.
pub(crate) fn folders(root: &Path) -> Vec<PathBuf> {
    places(root).into_iter().filter(|folder| is_ours(folder)).collect()
}

fn make_folder(root: &Path) -> io::Result<PathBuf> {
    let mut failed = io::Error::new(
        io::ErrorKind::Unsupported,
        "there is no file system in memory here; mount a tmpfs at /dev/shm",
    );
    for folder in places(root) {
        match DirBuilder::new().mode(0o711).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_ours(&folder) {
                    return Ok(folder);
                }
                let told = format!("{} is there and somebody else's: remove it", folder.display());
                failed = io::Error::new(io::ErrorKind::PermissionDenied, told);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Nobody else may have made it, or write to it.
fn is_ours(folder: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0)
}

/// Where secrets of the agent with this folder may lie, the best place first: what services run in is out of
/// jobs' sight as a whole.
fn places(root: &Path) -> Vec<PathBuf> {
    let own = match rustix::process::geteuid().is_root() {
        true => Some(PathBuf::from("/run")),
        false => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let hash = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
    let is_in_memory = |place: &PathBuf| {
        rustix::fs::statfs(place).is_ok_and(|found| {
            IN_MEMORY.iter().any(|kind| i128::from(*kind) == i128::from(found.f_type))
        })
    };
    let places = own.into_iter().chain([PathBuf::from("/dev/shm")]);
    places
        .filter(is_in_memory)
        .map(|place| place.join(format!("atelier-{}", &hash[..16])))
        .collect()
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o400).open(path)?.write_all(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
