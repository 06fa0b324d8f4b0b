//! A folder as objects, in the order in which they are stored: children before parents.

use std::collections::HashMap;

use atelier_core::content::{
    self, Digest, Directory, Encoded, Entry, EntryKind, EntryName, FileContent,
};
use bytes::Bytes;

use super::Error;
use super::hash::{Content, Hashed};
use super::scan::{Found, FoundFile};

/// Where an object's bytes are.
#[derive(Debug)]
pub(super) enum Source {
    /// Here: lists and directories.
    Here(Bytes),
    /// A chunk, in a file.
    File { index: usize, offset: u64, length: u64 },
}

/// An object to be stored.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) digest: Digest,
    pub(super) source: Source,
}

impl Planned {
    /// The object's length in bytes.
    pub(super) fn length(&self) -> u64 {
        match &self.source {
            Source::Here(bytes) => bytes.len() as u64,
            Source::File { length, .. } => length + 1,
        }
    }
}

/// A folder as objects.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) root: Digest,
    pub(super) files: Vec<FoundFile>,
    /// The length of all files together.
    pub(super) bytes: u64,
    /// Each once, children before parents, the root last.
    pub(super) objects: Vec<Planned>,
    index: HashMap<Digest, usize>,
}

impl Plan {
    pub(super) fn new(
        tree: Vec<(EntryName, Found)>,
        files: Vec<FoundFile>,
        contents: &[Hashed],
    ) -> Result<Self, Error> {
        let bytes = contents.iter().map(|hashed| hashed.stat.size).sum();
        let mut plan = Self {
            root: Digest::from_bytes([0; 32]),
            files,
            bytes,
            objects: Vec::new(),
            index: HashMap::new(),
        };
        plan.root = plan.folder(tree, contents)?;
        Ok(plan)
    }

    fn folder(
        &mut self,
        entries: Vec<(EntryName, Found)>,
        contents: &[Hashed],
    ) -> Result<Digest, Error> {
        let mut encoded = Vec::with_capacity(entries.len());
        for (name, found) in entries {
            let kind = match found {
                Found::File(index) => self.file(index, &contents[index]),
                Found::Folder(entries) => EntryKind::Directory(self.folder(entries, contents)?),
                Found::Link(target) => EntryKind::Symlink(target),
            };
            encoded.push(Entry { name, kind });
        }
        let directory = Directory::new(encoded)?.encode()?;
        self.add_all(directory.objects);
        Ok(directory.digest)
    }

    fn file(&mut self, index: usize, hashed: &Hashed) -> EntryKind {
        for (digest, offset, length) in hashed.content.places() {
            self.add(digest, Source::File { index, offset, length });
        }
        let content = match &hashed.content {
            Content::Inline(bytes) => FileContent::Inline(bytes.clone()),
            Content::Chunks(chunks) => {
                let (content, lists) = content::content_of(chunks);
                self.add_all(lists);
                content
            }
        };
        EntryKind::File { executable: hashed.stat.executable, size: hashed.stat.size, content }
    }

    fn add_all(&mut self, objects: Vec<Encoded>) {
        for object in objects {
            self.add(object.digest, Source::Here(object.bytes.into()));
        }
    }

    fn add(&mut self, digest: Digest, source: Source) {
        let next = self.objects.len();
        if *self.index.entry(digest).or_insert(next) == next {
            self.objects.push(Planned { digest, source });
        }
    }

    /// The object with this digest.
    pub(super) fn get(&self, digest: &Digest) -> Option<&Planned> {
        self.index.get(digest).map(|&i| &self.objects[i])
    }
}
