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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: Version,
    pub(super) digest: Digest,
    /// The datastore's tag of it; empty if it gave none.
    pub(super) tag: String,
}

impl Stored {
    /// Of a file that nobody changes, which is stored with this tag. Waits for the disk.
    pub(super) fn of(file: &Path, tag: String) -> Result<Self, Error> {
        let open = File::open(file).map_err(|error| Error::io("read", file, error))?;
        Self::of_open(open, file, tag)
    }

    /// The same of one that is open, which is named in errors.
    pub(super) fn of_open(mut open: File, file: &Path, tag: String) -> Result<Self, Error> {
        let failed = |error| Error::io("read", file, error);
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
        Ok(Self { version, digest: Digest::from_bytes(*hasher.finalize().as_bytes()), tag })
    }
}

/// What is known of what lies at a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    Stored(Stored),
    /// Something may lie there: it was sent, and no answer has come.
    Sent,
    Removed,
}

/// A line of the file: the newest of a path counts.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The output and what is below it.
    path: (String, String),
    known: Known,
}

/// What lies there, by output and the path below it. Nothing of it is [`Known::Removed`].
type All = BTreeMap<(String, String), Known>;

/// The files that lie there.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: PathBuf,
    known: Mutex<All>,
}

impl Ledger {
    /// Opens what is kept in a file, which need not be there. A line that is not whole was never acted upon.
    pub(crate) fn open(file: PathBuf) -> Self {
        let mut known = BTreeMap::new();
        let text = fs::read(&file).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n') {
            if let Ok(line) = serde_json::from_slice(line) {
                take(&mut known, line);
            }
        }
        // Only with what counts; what is appended to half a line would be lost with it.
        if let Err(error) = rewrite(&file, &known, &text) {
            tracing::debug!(%error, "cannot write anew what was stored of outputs");
        }
        Self { file, known: Mutex::new(known) }
    }

    /// Forgets all: the outputs begin anew.
    pub(crate) fn clear(&self) {
        self.known().clear();
        let _ = fs::remove_file(&self.file);
    }

    fn known(&self) -> MutexGuard<'_, All> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies there, as far as that is sure.
    pub(super) fn get(&self, output: &str, below: &str) -> Option<Stored> {
        match self.known().get(&(output.to_owned(), below.to_owned()))? {
            Known::Stored(stored) => Some(stored.clone()),
            Known::Sent | Known::Removed => None,
        }
    }

    /// Whether something may lie there.
    pub(super) fn has(&self, output: &str, below: &str) -> bool {
        self.known().contains_key(&(output.to_owned(), below.to_owned()))
    }

    /// Another is sent from now on, and may lie there although no answer comes.
    pub(super) fn sent(&self, output: &str, below: &str) {
        self.note(output, below, Known::Sent);
    }

    pub(super) fn put(&self, output: &str, below: &str, stored: Stored) {
        self.note(output, below, Known::Stored(stored));
    }

    pub(super) fn remove(&self, output: &str, below: &str) {
        self.note(output, below, Known::Removed);
    }

    /// The paths of an output at which something may lie.
    pub(super) fn below(&self, output: &str) -> Vec<String> {
        let known = self.known();
        let all = known.range((output.to_owned(), String::new())..);
        all.map_while(|((of, below), _)| (of == output).then(|| below.clone())).collect()
    }

    /// Those of them that are a path or lie below it; all, if it is empty.
    pub(super) fn within(&self, output: &str, path: &str) -> Vec<String> {
        if path.is_empty() {
            return self.below(output);
        }
        let known = self.known();
        let of = |below: String| (output.to_owned(), below);
        let itself = known.get_key_value(&of(path.to_owned())).into_iter();
        // What begins with it and a slash; the character after that one ends it.
        let inner = known.range(of(format!("{path}/"))..of(format!("{path}0")));
        itself.chain(inner).map(|((_, below), _)| below.clone()).collect()
    }

    fn note(&self, output: &str, below: &str, is: Known) {
        let mut known = self.known();
        let line = Line { path: (output.to_owned(), below.to_owned()), known: is };
        let text = line.text();
        take(&mut known, line);
        let append = || -> io::Result<()> {
            let text = text?;
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).open(&self.file)?.write_all(&text)
        };
        // A new agent would only send the file again.
        if let Err(error) = append() {
            tracing::debug!(%error, "cannot note what was stored of an output");
        }
    }
}

impl Line {
    fn text(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Has a line count.
fn take(all: &mut All, Line { path, known }: Line) {
    match known {
        Known::Removed => drop(all.remove(&path)),
        known => drop(all.insert(path, known)),
    }
}

/// Has the file be what counts of it, whole lines, in place of its text.
fn rewrite(file: &Path, all: &All, text: &[u8]) -> io::Result<()> {
    let mut short = Vec::new();
    for (path, known) in all {
        short.extend(Line { path: path.clone(), known: known.clone() }.text()?);
    }
    let is_whole = text.is_empty() || text.ends_with(b"\n");
    if is_whole && short.len() == text.len() {
        return Ok(());
    }
    let beside = file.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?.write_all(&short)?;
    fs::rename(beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_last_is_known_to_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let (data, file) = (folder.path().join("data"), folder.path().join("ledger"));
        fs::write(&data, "some").unwrap();
        let stored = Stored::of(&data, "\"1\"".to_owned()).unwrap();
        assert_eq!((stored.version.bytes, stored.digest), (4, Digest::of(b"some")));
        let ledger = Ledger::open(file.clone());
        ledger.put("out", "a", stored.clone());
        ledger.put("out", "b/c", stored.clone());
        ledger.put("outer", "", stored.clone());
        ledger.remove("out", "a");
        ledger.put("out", "e", stored.clone());
        ledger.sent("out", "e");
        // Killed while it wrote.
        let mut open = OpenOptions::new().append(true).open(&file).unwrap();
        open.write_all(b"{\"path\":[\"out\",\"d\"],\"sto").unwrap();
        let again = Ledger::open(file.clone());
        assert_eq!(again.get("out", "b/c"), Some(stored.clone()));
        assert_eq!((again.get("out", "a"), again.has("out", "a")), (None, false));
        assert_eq!((again.get("out", "e"), again.has("out", "e")), (None, true));
        assert_eq!(
            (again.below("out"), again.below("outer")),
            (vec!["b/c".into(), "e".into()], vec!["".into()])
        );
        let within = |path| again.within("out", path);
        assert_eq!((within(""), within("b")), (again.below("out"), vec!["b/c".to_owned()]));
        assert_eq!((within("e"), within("b/c")), (vec!["e".into()], vec!["b/c".into()]));
        assert!(within("b/").is_empty() && within("b/c/d").is_empty() && within("a").is_empty());
        // Half a line takes nothing along with it, and what counts no more is gone.
        again.put("out", "d", stored.clone());
        assert_eq!(Ledger::open(file.clone()).get("out", "d"), Some(stored));
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 4);
        again.clear();
        assert!(Ledger::open(file).below("out").is_empty());
    }
}
