//! The stat cache: what files held when their stat was what it still is, per folder.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use atelier_core::content::{Chunk, Digest};
use prost::Message as _;

use super::hash::{Content, Hashed};
use super::scan::{FoundFile, Stat};

/// Another one is not read.
const VERSION: u32 = 1;
/// Folders that are remembered; beyond it the one used longest ago is forgotten.
const MAX_CACHES: usize = 128;

/// As on disk: this message, then the BLAKE3-256 of its bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct CacheFile {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// The folder's absolute path.
    #[prost(bytes = "vec", tag = "2")]
    root: Vec<u8>,
    /// The snapshot that a workspace last had in whole; empty if none.
    #[prost(bytes = "vec", tag = "3")]
    acknowledged: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    files: Vec<CachedFile>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CachedFile {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(sfixed64, tag = "3")]
    modified: i64,
    #[prost(sfixed64, tag = "4")]
    changed: i64,
    #[prost(uint64, tag = "5")]
    inode: u64,
    #[prost(uint64, tag = "6")]
    device: u64,
    /// The bytes of a small file.
    #[prost(bytes = "vec", optional, tag = "7")]
    inline: Option<Vec<u8>>,
    /// For each chunk its digest, then its length in eight bytes, lowest first.
    #[prost(bytes = "vec", tag = "8")]
    chunks: Vec<u8>,
}

/// The cache of one folder.
#[derive(Debug)]
pub(super) struct StatCache {
    file: PathBuf,
    root: PathBuf,
    acknowledged: Option<Digest>,
    files: HashMap<Vec<u8>, CachedFile>,
}

impl StatCache {
    /// The cache of `root`. One that cannot be read is as good as empty.
    pub(super) fn load(home: &Path, root: &Path) -> Self {
        let name = Digest::of(root.as_os_str().as_bytes()).to_string();
        let file = home.join("cache").join("snapshots").join(&name[..32]);
        let mut cache =
            Self { file, root: root.to_owned(), acknowledged: None, files: HashMap::new() };
        if let Some(read) = read(&cache.file, root) {
            cache.acknowledged = Digest::try_from(&*read.acknowledged).ok();
            cache.files = read.files.into_iter().map(|file| (file.path.clone(), file)).collect();
        }
        cache
    }

    /// What the file holds, if its stat is still the same.
    pub(super) fn find(&self, file: &FoundFile) -> Option<Hashed> {
        let cached = self.files.get(file.relative.as_os_str().as_bytes())?;
        let Stat { size, modified, changed, inode, device, executable: _ } = file.stat;
        let same = (cached.size, cached.modified, cached.changed, cached.inode, cached.device)
            == (size, modified, changed, inode, device);
        let content = cached.content().filter(|content| same && content.size() == size)?;
        Some(Hashed { content, stat: file.stat, provable: true })
    }

    /// What a file of its name was cut into when it was read last, whatever its stat is now; nothing if it was small.
    pub(super) fn chunks(&self, file: &FoundFile) -> Vec<Chunk> {
        let cached = self.files.get(file.relative.as_os_str().as_bytes());
        cached.and_then(|cached| unpack(&cached.chunks)).unwrap_or_default()
    }

    /// The snapshot that a workspace last had.
    pub(super) fn acknowledged(&self) -> Option<Digest> {
        self.acknowledged
    }

    /// Remembers these contents and nothing else; writes if that is a change.
    pub(super) fn update(&mut self, files: &[FoundFile], contents: &[Hashed]) {
        let files: HashMap<Vec<u8>, CachedFile> = files
            .iter()
            .zip(contents)
            .filter(|(_, hashed)| hashed.provable)
            .map(|(file, hashed)| {
                let cached = CachedFile::new(file, hashed);
                (cached.path.clone(), cached)
            })
            .collect();
        if files != self.files {
            self.files = files;
            self.save();
        }
    }

    /// Remembers that a workspace has this snapshot.
    pub(super) fn acknowledge(&mut self, root: Digest) {
        if self.acknowledged != Some(root) {
            self.acknowledged = Some(root);
            self.save();
        }
    }

    /// A cache that cannot be written only costs time later.
    fn save(&mut self) {
        if let Err(error) = self.write() {
            let file = self.file.display();
            tracing::debug!(%file, %error, "the cache of file contents cannot be written");
        }
    }

    fn write(&self) -> io::Result<()> {
        let message = CacheFile {
            version: VERSION,
            root: self.root.as_os_str().as_bytes().to_vec(),
            acknowledged: self.acknowledged.map_or(Vec::new(), |d| d.as_bytes().to_vec()),
            files: self.files.values().cloned().collect(),
        };
        let mut bytes = message.encode_to_vec();
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Whole or not at all for a reader; after a power failure the digest tells.
        let temporary = self.file.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, &self.file)?;
        forget_oldest(folder)
    }
}

fn forget_oldest(folder: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort_unstable();
    let surplus = files.len().saturating_sub(MAX_CACHES);
    files.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

fn read(file: &Path, root: &Path) -> Option<CacheFile> {
    let bytes = fs::read(file).ok()?;
    let (message, digest) = bytes.split_last_chunk::<32>()?;
    let whole = Digest::of(message).as_bytes() == digest;
    let read = CacheFile::decode(message).ok().filter(|_| whole)?;
    (read.version == VERSION && read.root == root.as_os_str().as_bytes()).then_some(read)
}

impl CachedFile {
    fn new(file: &FoundFile, hashed: &Hashed) -> Self {
        let Stat { size, modified, changed, inode, device, executable: _ } = hashed.stat;
        let (inline, chunks) = match &hashed.content {
            Content::Inline(bytes) => (Some(bytes.clone()), Vec::new()),
            Content::Chunks(chunks) => (None, pack(chunks)),
        };
        let path = file.relative.as_os_str().as_bytes().to_vec();
        Self { path, size, modified, changed, inode, device, inline, chunks }
    }

    fn content(&self) -> Option<Content> {
        match &self.inline {
            Some(bytes) => Some(Content::Inline(bytes.clone())),
            None => unpack(&self.chunks).map(Content::Chunks),
        }
    }
}

fn pack(chunks: &[Chunk]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(40 * chunks.len());
    for chunk in chunks {
        packed.extend_from_slice(chunk.digest.as_bytes());
        packed.extend_from_slice(&chunk.length.to_le_bytes());
    }
    packed
}

fn unpack(packed: &[u8]) -> Option<Vec<Chunk>> {
    let (chunks, rest) = packed.as_chunks::<40>();
    let unpacked = chunks.iter().map(|chunk| {
        let (digest, length) = chunk.split_first_chunk::<32>()?;
        let length = u64::from_le_bytes(*length.first_chunk()?);
        Some(Chunk { digest: Digest::from_bytes(*digest), length })
    });
    if rest.is_empty() { unpacked.collect() } else { None }
}
