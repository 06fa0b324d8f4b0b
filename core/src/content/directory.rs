//! Directories: sorted entries, cut in parts where they are many.

use std::fmt;

use super::Digest;
use super::codec::{Reader, put_bytes, put_number};
use super::cut::MAX_CHUNK;
use super::object::{DIRECTORY, Encoded, Error, MAX_OBJECT, PARTS};

/// Files up to this many bytes lie in their directory's object instead of a chunk of their own.
pub const MAX_INLINE: usize = 1024;

/// A directory whose entries take more bytes than this is cut in parts.
const PART_ABOVE: usize = 64 * 1024;
/// A part ends before it grows beyond this; usually a name ends it earlier.
const MAX_PART: usize = 256 * 1024;
/// As many digests as an object has room for.
const MAX_PARTS: usize = 32_000;
/// The longest target of a link that Linux takes, without its NUL.
const MAX_TARGET: usize = 4095;

/// The name of a directory's entry: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
///
/// Bytes, not text: Linux file names need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Box<[u8]>);

/// Bytes that cannot name a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot name a file: use 1 to 255 bytes without '/' and NUL, not '.' or '..'")]
pub struct InvalidEntryName(pub String);

impl EntryName {
    /// Checks the rule and makes the name.
    ///
    /// # Errors
    /// [`InvalidEntryName`].
    pub fn new(name: &[u8]) -> Result<Self, InvalidEntryName> {
        let good = (1..=255).contains(&name.len())
            && !matches!(name, b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if good {
            Ok(Self(name.into()))
        } else {
            let shown = &name[..name.len().min(80)];
            Err(InvalidEntryName(String::from_utf8_lossy(shown).escape_debug().to_string()))
        }
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).escape_debug().fmt(f)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The target of a symbolic link: 1 to 4095 bytes without NUL, relative.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkTarget(Box<[u8]>);

impl LinkTarget {
    /// Checks the rule; `None` if it is broken. Whether the target stays inside the snapshot is
    /// not part of the rule: the link's own place decides it.
    pub fn new(target: &[u8]) -> Option<Self> {
        let good =
            (1..=MAX_TARGET).contains(&target.len()) && target[0] != b'/' && !target.contains(&0);
        good.then(|| Self(target.into()))
    }

    /// The target's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", String::from_utf8_lossy(&self.0).escape_debug())
    }
}

/// Where a file's bytes are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum FileContent {
    /// Here; at most [`MAX_INLINE`].
    Inline(Vec<u8>),
    /// In one chunk.
    Chunk(Digest),
    /// In the chunks of a list.
    List(Digest),
}

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Whether its owner may execute it: all that is kept of a file's mode.
        executable: bool,
        /// Its length in bytes; what `content` holds or leads to must have it.
        size: u64,
        /// Its bytes.
        content: FileContent,
    },
    /// A directory: the digest of a directory or of its parts.
    Directory(Digest),
    /// A symbolic link that could not be followed when the snapshot was taken.
    Symlink(LinkTarget),
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Unique in its directory.
    pub name: EntryName,
    /// What it is.
    pub kind: EntryKind,
}

impl Entry {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.name.as_bytes());
        match &self.kind {
            EntryKind::File { executable, size, content } => {
                let tag = match content {
                    FileContent::Inline(_) => 0,
                    FileContent::Chunk(_) => 2,
                    FileContent::List(_) => 4,
                };
                out.push(tag | u8::from(*executable));
                match content {
                    FileContent::Inline(bytes) => put_bytes(out, bytes),
                    FileContent::Chunk(digest) | FileContent::List(digest) => {
                        put_number(out, *size);
                        out.extend_from_slice(digest.as_bytes());
                    }
                }
            }
            EntryKind::Directory(digest) => {
                out.push(6);
                out.extend_from_slice(digest.as_bytes());
            }
            EntryKind::Symlink(target) => {
                out.push(8);
                put_bytes(out, target.as_bytes());
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let name = EntryName::new(reader.bytes()?)?;
        let tag = reader.byte()?;
        let executable = tag & 1 == 1;
        let kind = match tag {
            0 | 1 => {
                let bytes = reader.bytes()?;
                let content = FileContent::Inline(bytes.to_vec());
                EntryKind::File { executable, size: bytes.len() as u64, content }
            }
            2..=5 => {
                let size = reader.number()?;
                let digest = reader.digest()?;
                let content =
                    if tag < 4 { FileContent::Chunk(digest) } else { FileContent::List(digest) };
                EntryKind::File { executable, size, content }
            }
            6 => EntryKind::Directory(reader.digest()?),
            8 => {
                let target = LinkTarget::new(reader.bytes()?);
                EntryKind::Symlink(target.ok_or_else(|| Error::Target(name.to_string()))?)
            }
            other => return Err(Error::Kind(other)),
        };
        let entry = Self { name, kind };
        entry.check()?;
        Ok(entry)
    }

    /// The rules that tie a file's size to its content.
    fn check(&self) -> Result<(), Error> {
        let EntryKind::File { size, content, .. } = &self.kind else { return Ok(()) };
        let good = match content {
            FileContent::Inline(bytes) => bytes.len() as u64 == *size && bytes.len() <= MAX_INLINE,
            FileContent::Chunk(_) => (1..=MAX_CHUNK as u64).contains(size),
            FileContent::List(_) => *size > MAX_CHUNK as u64,
        };
        if good { Ok(()) } else { Err(Error::Size) }
    }
}

/// A directory, or one part of a large one. Its entries are in strictly ascending order of the
/// bytes of their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Directory {
    entries: Vec<Entry>,
}

/// A directory as objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EncodedDirectory {
    /// The digest that stands for the directory.
    pub digest: Digest,
    /// The objects it takes, the one with `digest` last.
    pub objects: Vec<Encoded>,
}

impl Directory {
    /// Sorts the entries and checks them.
    ///
    /// # Errors
    /// A name that is there twice, or a size that contradicts its content.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, Error> {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries.iter().try_for_each(Entry::check)?;
        check_order(&entries)?;
        Ok(Self { entries })
    }

    /// In ascending order of their names.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries themselves.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// The one encoding of this directory: equal directories have equal digests.
    ///
    /// # Errors
    /// [`Error::TooManyEntries`].
    pub fn encode(&self) -> Result<EncodedDirectory, Error> {
        let mut encoded: Vec<Vec<u8>> = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let mut bytes = Vec::with_capacity(entry.name.as_bytes().len() + 48);
            entry.encode(&mut bytes);
            encoded.push(bytes);
        }
        let total: usize = encoded.iter().map(Vec::len).sum();
        if total <= PART_ABOVE {
            let whole = part(&encoded);
            return Ok(EncodedDirectory { digest: whole.digest, objects: vec![whole] });
        }
        let mut objects: Vec<Encoded> = Vec::new();
        let mut start = 0;
        let mut length = 0;
        for (i, entry) in self.entries.iter().enumerate() {
            if i > start && length + encoded[i].len() > MAX_PART {
                objects.push(part(&encoded[start..i]));
                (start, length) = (i, 0);
            }
            length += encoded[i].len();
            if ends_part(&entry.name) {
                objects.push(part(&encoded[start..=i]));
                (start, length) = (i + 1, 0);
            }
        }
        if start < encoded.len() {
            objects.push(part(&encoded[start..]));
        }
        if objects.len() > MAX_PARTS {
            return Err(Error::TooManyEntries(MAX_PARTS * 128));
        }
        let mut index = Vec::with_capacity(8 + 32 * objects.len());
        index.push(PARTS);
        put_number(&mut index, objects.len() as u64);
        for object in &objects {
            index.extend_from_slice(object.digest.as_bytes());
        }
        let index = Encoded::new(index);
        let digest = index.digest;
        objects.push(index);
        Ok(EncodedDirectory { digest, objects })
    }
}

/// Whether a part of a large directory ends with this name: one in 128 does.
fn ends_part(name: &EntryName) -> bool {
    Digest::of(name.as_bytes()).as_bytes()[0] & 0x7f == 0
}

fn part(entries: &[Vec<u8>]) -> Encoded {
    let mut out = Vec::with_capacity(8 + entries.iter().map(Vec::len).sum::<usize>());
    out.push(DIRECTORY);
    put_number(&mut out, entries.len() as u64);
    for entry in entries {
        out.extend_from_slice(entry);
    }
    debug_assert!(out.len() <= MAX_OBJECT);
    Encoded::new(out)
}

fn check_order(entries: &[Entry]) -> Result<(), Error> {
    match entries.windows(2).find(|pair| pair[0].name >= pair[1].name) {
        Some(pair) => Err(Error::Order(pair[1].name.to_string())),
        None => Ok(()),
    }
}

/// The whole of a large directory from its parts, in order.
///
/// # Errors
/// [`Error::Order`] if they do not follow one another.
pub fn join(parts: impl IntoIterator<Item = Directory>) -> Result<Directory, Error> {
    let entries: Vec<Entry> = parts.into_iter().flat_map(|part| part.entries).collect();
    check_order(&entries)?;
    Ok(Directory { entries })
}

pub(super) fn read(mut reader: Reader<'_>) -> Result<Directory, Error> {
    // The shortest entry is an empty file with a name of one byte: four bytes.
    let count = reader.count(4)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(Entry::read(&mut reader)?);
    }
    reader.end()?;
    check_order(&entries)?;
    Ok(Directory { entries })
}

pub(super) fn read_parts(mut reader: Reader<'_>) -> Result<Vec<Digest>, Error> {
    let count = reader.count(32)?;
    if count == 0 {
        return Err(Error::Size);
    }
    let parts = (0..count).map(|_| reader.digest()).collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(parts)
}
