//! What a large file consists of: lists of chunks, and lists of lists.

use super::codec::{Reader, put_number};
use super::cut::MAX_CHUNK;
use super::object::{Encoded, Error, LIST};
use super::{Digest, FileContent};

/// The most items of one list. A list of digests and lengths of this many stays below 42 KiB.
const MAX_ITEMS: usize = 1024;
/// Lists above this length are cut in groups; a group ends after a digest whose first byte has its
/// low seven bits zero, so after 128 on average.
const GROUP_ABOVE: usize = 256;
/// More levels than any file can need: each has at least twice fewer lists than the one below.
const MAX_LEVEL: u8 = 32;

/// A part of a file: a chunk, or a list of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Chunk {
    /// Its object.
    pub digest: Digest,
    /// Bytes of the file that it stands for, at least 1.
    pub length: u64,
}

/// Consecutive parts of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    /// 0: the items are chunks. Otherwise they are lists one level below.
    pub level: u8,
    /// At least one.
    pub items: Vec<Chunk>,
}

impl List {
    /// Bytes of the file that the list stands for.
    pub fn length(&self) -> u64 {
        self.items.iter().map(|item| item.length).sum()
    }

    fn encode(&self) -> Encoded {
        let mut out = Vec::with_capacity(8 + 36 * self.items.len());
        out.push(LIST);
        out.push(self.level);
        put_number(&mut out, self.items.len() as u64);
        for item in &self.items {
            out.extend_from_slice(item.digest.as_bytes());
            put_number(&mut out, item.length);
        }
        Encoded::new(out)
    }
}

pub(super) fn read(mut reader: Reader<'_>) -> Result<List, Error> {
    let level = reader.byte()?;
    if level > MAX_LEVEL {
        return Err(Error::Size);
    }
    let count = reader.count(33)?;
    let mut items = Vec::with_capacity(count);
    let mut total = 0_u64;
    for _ in 0..count {
        let item = Chunk { digest: reader.digest()?, length: reader.number()? };
        total = total.checked_add(item.length).ok_or(Error::Size)?;
        if item.length == 0 || (level == 0 && item.length > MAX_CHUNK as u64) {
            return Err(Error::Size);
        }
        items.push(item);
    }
    reader.end()?;
    if items.is_empty() || items.len() > MAX_ITEMS {
        return Err(Error::Size);
    }
    Ok(List { level, items })
}

/// The content of a file that consists of these chunks in order, and the list objects it needs,
/// children before parents.
///
/// The chunks are those of [`super::cut`] (or the single one of a file up to [`MAX_CHUNK`]), so
/// equal files get equal content. No chunks make an empty file.
pub fn content_of(chunks: &[Chunk]) -> (FileContent, Vec<Encoded>) {
    match chunks {
        [] => (FileContent::Inline(Vec::new()), Vec::new()),
        [only] => (FileContent::Chunk(only.digest), Vec::new()),
        many => {
            let mut objects = Vec::new();
            let mut items = many.to_vec();
            let mut level = 0;
            while items.len() > GROUP_ABOVE {
                items = groups(&items)
                    .map(|group| {
                        let list = List { level, items: group.to_vec() };
                        let object = list.encode();
                        let item = Chunk { digest: object.digest, length: list.length() };
                        objects.push(object);
                        item
                    })
                    .collect();
                level += 1;
            }
            let root = List { level, items }.encode();
            let content = FileContent::List(root.digest);
            objects.push(root);
            (content, objects)
        }
    }
}

/// Cuts items after each whose digest says so; a group has 2 to [`MAX_ITEMS`] items, the last one
/// perhaps a single one.
fn groups(mut rest: &[Chunk]) -> impl Iterator<Item = &[Chunk]> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let cut = rest
            .iter()
            .take(MAX_ITEMS)
            .skip(1)
            .position(|item| item.digest.as_bytes()[0] & 0x7f == 0)
            .map_or(rest.len().min(MAX_ITEMS), |after_first| after_first + 2);
        let (group, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        Some(group)
    })
}
