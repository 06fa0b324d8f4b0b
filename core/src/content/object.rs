//! The objects, their kinds, and what may be wrong with one.

use super::codec::Reader;
use super::cut::MAX_CHUNK;
use super::directory::{self, Directory, InvalidEntryName};
use super::list::{self, List};
use super::{Digest, EntryKind, FileContent};

/// The longest object, in bytes: a full chunk and its first byte. Lists and directories stay below
/// it too, so any object fits one message.
pub const MAX_OBJECT: usize = MAX_CHUNK + 1;

/// The deepest directory below a root that a snapshot may have.
///
/// Digests make cycles impossible, but nested directories cost a reader stack and path length.
pub const MAX_DEPTH: usize = 256;

pub(super) const CHUNK: u8 = 1;
pub(super) const LIST: u8 = 2;
pub(super) const DIRECTORY: u8 = 3;
pub(super) const PARTS: u8 = 4;

/// Bytes that are no valid object, or content that no object can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Ends in the middle of a value, or announces more than it holds.
    #[error("content object ends too early")]
    Truncated,
    /// Bytes follow its end.
    #[error("content object has {0} bytes too many")]
    Trailing(usize),
    /// A number that is too large or not in its shortest form.
    #[error("content object holds a badly written number")]
    Number,
    /// A first byte that this version does not know.
    #[error("content object is of unknown kind {0}: written by a newer version?")]
    Kind(u8),
    /// One kind where another was due.
    #[error("content object is not {expected}")]
    Unexpected {
        /// What was due, with its article.
        expected: &'static str,
    },
    /// Longer than any object may be.
    #[error("content object has {0} bytes, at most {MAX_OBJECT} are allowed")]
    TooLarge(usize),
    /// A name that could not stand in a directory.
    #[error(transparent)]
    Name(#[from] InvalidEntryName),
    /// Entries out of order, or one name twice.
    #[error("directory entry '{0}' is out of order or there twice")]
    Order(String),
    /// A link's target that is empty, absolute, too long or has a NUL.
    #[error("link '{0}' has a target that is empty, absolute, too long or has a NUL byte")]
    Target(String),
    /// Sizes that contradict one another or exceed their bounds.
    #[error("content object holds sizes that cannot be")]
    Size,
    /// More than an object can refer to.
    #[error("a directory has too many entries (about {0} at most)")]
    TooManyEntries(usize),
}

/// An object's bytes and its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// BLAKE3-256 of `bytes`.
    pub digest: Digest,
    /// The object as stored and sent.
    pub bytes: Vec<u8>,
}

impl Encoded {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }
}

/// An object, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object<'a> {
    /// Bytes of a file.
    Chunk(&'a [u8]),
    /// What a large file consists of.
    List(List),
    /// A whole directory, or one part of a large one.
    Directory(Directory),
    /// The parts of a large directory, in order; each is a [`Object::Directory`]. [`super::join`]
    /// puts them together.
    Parts(Vec<Digest>),
}

/// The digest of the chunk with these bytes, without copying them.
pub fn chunk_digest(data: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[CHUNK]);
    hasher.update(data);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// The chunk with these bytes, at most [`MAX_CHUNK`].
///
/// # Errors
/// [`Error::TooLarge`].
pub fn encode_chunk(data: &[u8]) -> Result<Encoded, Error> {
    if data.len() > MAX_CHUNK {
        return Err(Error::TooLarge(data.len()));
    }
    let mut bytes = Vec::with_capacity(1 + data.len());
    bytes.push(CHUNK);
    bytes.extend_from_slice(data);
    Ok(Encoded { digest: chunk_digest(data), bytes })
}

/// Reads an object. The caller has checked that the bytes hash to the digest it asked for.
///
/// # Errors
/// If the bytes are not exactly what [`encode_chunk`], [`super::content_of`] or
/// [`Directory::encode`] of this version write.
pub fn decode(bytes: &[u8]) -> Result<Object<'_>, Error> {
    if bytes.len() > MAX_OBJECT {
        return Err(Error::TooLarge(bytes.len()));
    }
    let mut reader = Reader::new(bytes);
    match reader.byte()? {
        CHUNK => Ok(Object::Chunk(&bytes[1..])),
        LIST => list::read(reader).map(Object::List),
        DIRECTORY => directory::read(reader).map(Object::Directory),
        PARTS => directory::read_parts(reader).map(Object::Parts),
        other => Err(Error::Kind(other)),
    }
}

/// The objects that an object refers to directly, each once, in ascending order. Empty for a chunk.
///
/// # Errors
/// As [`decode`].
pub fn objects_of(bytes: &[u8]) -> Result<Vec<Digest>, Error> {
    let mut digests: Vec<Digest> = match decode(bytes)? {
        Object::Chunk(_) => Vec::new(),
        Object::List(list) => list.items.iter().map(|item| item.digest).collect(),
        Object::Parts(parts) => parts,
        Object::Directory(directory) => directory
            .entries()
            .iter()
            .filter_map(|entry| match &entry.kind {
                EntryKind::Directory(digest)
                | EntryKind::File {
                    content: FileContent::Chunk(digest) | FileContent::List(digest),
                    ..
                } => Some(*digest),
                EntryKind::File { content: FileContent::Inline(_), .. } | EntryKind::Symlink(_) => {
                    None
                }
            })
            .collect(),
    };
    digests.sort_unstable();
    digests.dedup();
    Ok(digests)
}
