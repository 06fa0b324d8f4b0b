//! Content-addressed trees: how code snapshots are cut, named and put together again.
//!
//! A snapshot is named by the [`Digest`] of its root. Every object is named by the BLAKE3-256 of
//! its bytes, and its first byte says what it is:
//!
//! | first byte | object | what follows |
//! |---|---|---|
//! | 1 | chunk | up to 1 MiB of a file |
//! | 2 | list | the chunks of a file above 1 MiB, or the lists below this one |
//! | 3 | directory | entries in ascending order of their names |
//! | 4 | parts | the directories that, one after the other, are one large directory |
//!
//! Because the first byte is part of what is hashed, a file whose bytes look like a directory is
//! still a chunk. A directory names its content by digest, so a root that is stored and whose
//! objects were stored children first stands for everything below it.
//!
//! Files above [`MAX_CHUNK`] are cut where their content says (FastCDC, Xia et al., USENIX ATC
//! 2016), long lists where a digest says, large directories where a name says: an edit moves only
//! the cuts beside it, so a byte changed in gigabytes makes a few new objects.

mod codec;
mod cut;
mod digest;
mod directory;
mod list;
pub mod manifest;
mod object;

pub use cut::{AVERAGE_CHUNK, MAX_CHUNK, MIN_CHUNK, cut};
pub use digest::{Digest, InvalidDigest};
pub use directory::{
    Directory, EncodedDirectory, Entry, EntryKind, EntryName, FileContent, InvalidEntryName,
    LinkTarget, MAX_INLINE, join,
};
pub use list::{Chunk, List, content_of};
pub use object::{
    Encoded, Error, MAX_DEPTH, MAX_OBJECT, Object, chunk_digest, decode, encode_chunk, objects_of,
};

#[cfg(test)]
mod tests;
