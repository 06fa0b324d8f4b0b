//! Which inputs this node's cache holds, and how much of each: told to the daemon, so that the next job that reads
//! them comes here.
//!
//! The cache knows contents, not where they are from, so that is noted beside it: for each input that was used what
//! objects it had then. How much of them is still there is looked up in the cache, whoever added or removed it
//! meanwhile. Notes outlive the agent as the cache does; those of the inputs used last are kept.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use atelier_core::content::Digest;
use atelier_core::sched::HELD_INPUTS;
use atelier_proto::agent::v1 as pb;
use serde::{Deserialize, Serialize};

use super::cache::{Cache, write_draft};
use super::input::object_id;
use super::store::Found;
use super::{Error, path};

/// The folder of notes, in the cache's.
const FOLDER: &str = "inputs";
/// Of an input with more objects the largest are noted, and of the others nothing is said.
const OBJECTS: usize = 1024;

/// What an input was when it was last used here.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    datastore: String,
    path: String,
    objects: Vec<Digest>,
}

/// The notes of a cache.
#[derive(Debug)]
pub(super) struct HeldInputs {
    cache: Arc<Cache>,
    /// As they were read last, with the times of their files.
    read: Mutex<HashMap<PathBuf, (SystemTime, Arc<Note>)>>,
}

impl HeldInputs {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, read: Mutex::default() }
    }

    /// Notes an input that is used now. Waits for the disk.
    pub(super) fn note(&self, datastore: &str, key: &str, found: &[Found]) -> Result<(), Error> {
        let mut largest: Vec<&Found> = found.iter().filter(|object| object.size > 0).collect();
        largest.sort_by(|one, other| {
            other.size.cmp(&one.size).then_with(|| one.below.cmp(&other.below))
        });
        let id = |object: &&Found| {
            object_id(datastore, &path::join(key, &object.below), object.size, &object.etag)
        };
        let objects = largest.iter().take(OBJECTS).map(id).collect();
        let note = Note { datastore: datastore.to_owned(), path: key.to_owned(), objects };
        let folder = self.cache.folder().join(FOLDER);
        let to = folder.join(Digest::of(format!("{datastore}\n{key}").as_bytes()).to_string());
        let failed = |error| Error::io("note an input of the cache at", &to, error);
        let bytes = serde_json::to_vec(&note).map_err(|error| failed(error.into()))?;
        let draft = self.cache.draft();
        write_draft(&draft, &bytes)?;
        fs::create_dir_all(&folder).and_then(|()| fs::rename(&draft.path, &to)).map_err(failed)?;
        for (_, old) in newest(&folder).into_iter().skip(HELD_INPUTS) {
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// How much is held of each input, those used last. Waits for the disk.
    pub(super) fn told(&self) -> pb::HeldInputs {
        let newest = newest(&self.cache.folder().join(FOLDER));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes = HashMap::new();
        for (at, path) in newest.into_iter().take(HELD_INPUTS) {
            let known = read.remove(&path).filter(|(known, _)| *known == at);
            // One that was torn by a loss of power says nothing.
            let note = known.map(|(_, note)| note).or_else(|| {
                let bytes = fs::read(&path).ok()?;
                serde_json::from_slice(&bytes).ok().map(Arc::new)
            });
            notes.extend(note.map(|note| (path, (at, note))));
        }
        *read = notes;
        let notes: Vec<&Arc<Note>> = read.values().map(|(_, note)| note).collect();
        let bytes = self.cache.bytes_of(notes.iter().map(|note| note.objects.as_slice()));
        let told = notes.iter().zip(bytes).filter(|(_, bytes)| *bytes > 0).map(|(note, bytes)| {
            pb::HeldInput { datastore: note.datastore.clone(), path: note.path.clone(), bytes }
        });
        let mut inputs: Vec<pb::HeldInput> = told.collect();
        inputs.sort_by(|one, other| {
            (&one.datastore, &one.path).cmp(&(&other.datastore, &other.path))
        });
        pb::HeldInputs { inputs }
    }
}

/// Files of a folder with the times of their last change, the newest first.
fn newest(folder: &Path) -> Vec<(SystemTime, PathBuf)> {
    let found: io::Result<fs::ReadDir> = fs::read_dir(folder);
    let mut files: Vec<(SystemTime, PathBuf)> = found
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let changed = entry.metadata().and_then(|meta| meta.modified());
            (changed.unwrap_or(UNIX_EPOCH), entry.path())
        })
        .collect();
    files.sort_by(|one, other| other.cmp(one));
    files
}

/// What a job's inputs were, and what of them was fetched for it: the rest lay on the node already, or nobody read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Bytes of all objects.
    pub(crate) bytes: u64,
    /// Bytes that were fetched from elsewhere.
    pub(crate) fetched: u64,
}

impl Moved {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, fetched: self.fetched + other.fetched }
    }
}
