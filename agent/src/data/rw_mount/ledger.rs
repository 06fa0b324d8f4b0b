//! Which files of an attempt's outputs lie in a datastore, uncommitted, and as what. Kept in the attempt's folder, so
//! that a new agent need not send them again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use atelier_core::content::Digest;
use serde::{Deserialize, Serialize};

use super::below::Version;
use crate::data::Error;

/// Read at once while a file is hashed.
const READ: usize = 256 * 1024;

/// A file as it was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: Version,
    pub(super) digest: Digest,
}

impl Stored {
    /// Of a file that nobody changes. Waits for the disk.
    pub(super) fn of(file: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io("read", file, error);
        let mut open = File::open(file).map_err(failed)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; READ];
        loop {
            match open.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => drop(hasher.update(&buffer[..read])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let version = Version::of(&open.metadata().map_err(failed)?);
        Ok(Self { version, digest: Digest::from_bytes(*hasher.finalize().as_bytes()) })
    }
}

/// A line of the file: the newest of a path counts.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The output and what is below it.
    path: (String, String),
    /// `None`: it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<Stored>,
}

/// The files that lie there, by output and the path below it.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: PathBuf,
    known: Mutex<BTreeMap<(String, String), Stored>>,
}

impl Ledger {
    /// Opens what is kept in a file, which need not be there. A line that is not whole was never acted upon.
    pub(crate) fn open(file: PathBuf) -> Self {
        let mut known = BTreeMap::new();
        let text = fs::read(&file).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line { path, stored: Some(stored) }) => drop(known.insert(path, stored)),
                Ok(Line { path, stored: None }) => drop(known.remove(&path)),
                Err(_) => {}
            }
        }
        Self { file, known: Mutex::new(known) }
    }

    /// Forgets all: the outputs begin anew.
    pub(crate) fn clear(&self) {
        self.known().clear();
        let _ = fs::remove_file(&self.file);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, String), Stored>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, output: &str, below: &str) -> Option<Stored> {
        self.known().get(&(output.to_owned(), below.to_owned())).copied()
    }

    pub(super) fn put(&self, output: &str, below: &str, stored: Stored) {
        self.note((output.to_owned(), below.to_owned()), Some(stored));
    }

    pub(super) fn remove(&self, output: &str, below: &str) {
        self.note((output.to_owned(), below.to_owned()), None);
    }

    /// The paths of an output that lie there.
    pub(super) fn below(&self, output: &str) -> Vec<String> {
        let known = self.known();
        let all = known.range((output.to_owned(), String::new())..);
        all.map_while(|((of, below), _)| (of == output).then(|| below.clone())).collect()
    }

    fn note(&self, path: (String, String), stored: Option<Stored>) {
        let mut known = self.known();
        let line = Line { path: path.clone(), stored };
        match stored {
            Some(stored) => drop(known.insert(path, stored)),
            None => drop(known.remove(&path)),
        }
        let append = || -> io::Result<()> {
            let mut text = serde_json::to_vec(&line)?;
            text.push(b'\n');
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).open(&self.file)?.write_all(&text)
        };
        // A new agent would only send the file again.
        if let Err(error) = append() {
            tracing::debug!(%error, "cannot note what was stored of an output");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_last_is_known_to_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let (data, file) = (folder.path().join("data"), folder.path().join("ledger"));
        fs::write(&data, "some").unwrap();
        let stored = Stored::of(&data).unwrap();
        assert_eq!((stored.version.bytes, stored.digest), (4, Digest::of(b"some")));
        let ledger = Ledger::open(file.clone());
        ledger.put("out", "a", stored);
        ledger.put("out", "b/c", stored);
        ledger.put("outer", "", stored);
        ledger.remove("out", "a");
        // Killed while it wrote.
        let mut open = OpenOptions::new().append(true).open(&file).unwrap();
        open.write_all(b"{\"path\":[\"out\",\"d\"],\"sto").unwrap();
        let again = Ledger::open(file.clone());
        assert_eq!((again.get("out", "b/c"), again.get("out", "a")), (Some(stored), None));
        assert_eq!(
            (again.below("out"), again.below("outer")),
            (vec!["b/c".into()], vec!["".into()])
        );
        again.clear();
        assert!(Ledger::open(file).below("out").is_empty());
    }
}
