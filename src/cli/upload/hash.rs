//! From files to contents: reading and hashing what the stat cache does not know.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use atelier_core::content::{Chunk, Digest, MAX_CHUNK, MAX_INLINE, chunk_digest, cut};

use super::cache::StatCache;
use super::recut::recut;
use super::scan::{FoundFile, Stat};
use super::{Error, Progress, Report};

/// Threads that read; more would wait for the disk or for each other.
const THREADS: usize = 4;
/// Below this, threads cost more than they save.
const ALONE_BYTES: u64 = 1024 * 1024;
const ALONE_FILES: usize = 32;
/// How much of a large file is held at once.
const BUFFER: usize = 4 * MAX_CHUNK;

/// What a file holds, without its bytes unless they are few.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Inline(Vec<u8>),
    /// One for a file up to [`MAX_CHUNK`].
    Chunks(Vec<Chunk>),
}

/// A content, and whether the stat taken before it was read is proof of it from now on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hashed {
    pub(super) content: Content,
    pub(super) stat: Stat,
    pub(super) provable: bool,
}

/// The contents of `files`, in their order, and how many had to be read.
pub(super) fn contents(
    files: &[FoundFile],
    cache: &StatCache,
    report: &Report,
) -> Result<(Vec<Hashed>, u64), Error> {
    let mut contents: Vec<Option<Hashed>> = files.iter().map(|file| cache.find(file)).collect();
    let unknown: Vec<usize> = (0..files.len()).filter(|&i| contents[i].is_none()).collect();
    if !unknown.is_empty() {
        let total = unknown.iter().map(|&i| files[i].stat.size).sum();
        let work = Work {
            files,
            unknown: &unknown,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            done: AtomicU64::new(0),
            total,
            report,
            results: Mutex::new(Vec::with_capacity(unknown.len())),
            cache,
            alone: unknown.len() == 1,
        };
        let threads = match total < ALONE_BYTES && unknown.len() < ALONE_FILES {
            true => 1,
            false => threads(),
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| work.run());
            }
            work.run();
        });
        for (i, result) in work.results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            contents[i] = Some(result?);
        }
    }
    // Only a failure, returned above, leaves one out.
    let contents: Option<Vec<Hashed>> = contents.into_iter().collect();
    let contents = contents.ok_or_else(|| Error::Internal("a file was not read".to_owned()))?;
    Ok((contents, unknown.len() as u64))
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS)
}

struct Work<'a> {
    files: &'a [FoundFile],
    unknown: &'a [usize],
    next: AtomicUsize,
    failed: AtomicBool,
    done: AtomicU64,
    total: u64,
    report: &'a Report,
    results: Mutex<Vec<(usize, Result<Hashed, Error>)>>,
    cache: &'a StatCache,
    /// Whether it is one file alone, so that its parts are what can be read at once.
    alone: bool,
}

impl Work<'_> {
    fn run(&self) {
        let mut buffer = Vec::new();
        let mut results = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let Some(&i) = self.unknown.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let file = &self.files[i];
            let mut read = |bytes: u64| {
                let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                (self.report)(Progress::Reading { done, total: self.total });
            };
            let known = self.cache.chunks(file);
            let known = Known { chunks: &known, threads: if self.alone { threads() } else { 1 } };
            let result = match hash(file, known, &mut buffer, &mut read) {
                Err(Error::Changed(_)) => hash(file, known, &mut buffer, &mut |_| {}),
                other => other,
            };
            if result.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            results.push((i, result));
        }
        self.results.lock().unwrap_or_else(PoisonError::into_inner).append(&mut results);
    }
}

/// What a file was cut into before, and how many threads compare it.
#[derive(Clone, Copy)]
struct Known<'a> {
    chunks: &'a [Chunk],
    threads: usize,
}

/// Reads one file, which may have been cut before. [`Error::Changed`] if it is not the same before and
/// after.
fn hash(
    file: &FoundFile,
    known: Known<'_>,
    buffer: &mut Vec<u8>,
    read: &mut dyn FnMut(u64),
) -> Result<Hashed, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Changed(file.path.clone()),
        _ => Error::Io { operation: "read", path: file.path.clone(), source },
    };
    let now = std::time::SystemTime::now();
    let mut source = File::open(&file.path).map_err(failed)?;
    let before = Stat::of(&source.metadata().map_err(failed)?);
    buffer.clear();
    let content = if before.size <= MAX_CHUNK as u64 {
        // One byte more than there should be tells that it grew.
        (&mut source).take(before.size + 1).read_to_end(buffer).map_err(failed)?;
        read(buffer.len() as u64);
        match buffer.len() {
            0..=MAX_INLINE => Content::Inline(buffer.clone()),
            length => {
                Content::Chunks(vec![Chunk { digest: chunk_digest(buffer), length: length as u64 }])
            }
        }
    } else if known.chunks.is_empty() {
        Content::Chunks(hash_large(&mut source, buffer, read).map_err(failed)?)
    } else {
        Content::Chunks(
            recut(&source, before.size, known.chunks, known.threads, read).map_err(failed)?,
        )
    };
    let after = Stat::of(&source.metadata().map_err(failed)?);
    if before != after || content.size() != before.size {
        return Err(Error::Changed(file.path.clone()));
    }
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    Ok(Hashed { content, stat: before, provable: is_settled(&before, now) })
}

fn hash_large(
    source: &mut File,
    buffer: &mut Vec<u8>,
    read: &mut dyn FnMut(u64),
) -> io::Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    let mut at_end = false;
    let mut start = 0;
    loop {
        match cut(&buffer[start..], at_end) {
            Some(length) => {
                let chunk = &buffer[start..start + length];
                chunks.push(Chunk { digest: chunk_digest(chunk), length: length as u64 });
                start += length;
                read(length as u64);
            }
            None if at_end => return Ok(chunks),
            None => {
                buffer.drain(..start);
                start = 0;
                let wanted = (BUFFER - buffer.len()) as u64;
                at_end = (&mut *source).take(wanted).read_to_end(buffer)? == 0;
            }
        }
    }
}

/// Whether a later change would show in the stat: not if it could fall into the same tick of the
/// file system's clock as the last one.
fn is_settled(stat: &Stat, now: i64) -> bool {
    // A time of whole seconds may come from a file system that has no finer ones.
    let coarse = stat.changed % 1_000_000_000 == 0;
    let tick = if coarse { 2_000_000_000 } else { 20_000_000 };
    stat.changed.saturating_add(tick) <= now
}

impl Content {
    /// The file's length in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Chunks(chunks) => chunks.iter().map(|chunk| chunk.length).sum(),
        }
    }

    /// The chunks with the place in the file where each starts.
    pub(super) fn places(&self) -> impl Iterator<Item = (Digest, u64, u64)> {
        let chunks: &[Chunk] = match self {
            Self::Inline(_) => &[],
            Self::Chunks(chunks) => chunks,
        };
        chunks.iter().scan(0, |offset, chunk| {
            let start = *offset;
            *offset += chunk.length;
            Some((chunk.digest, start, chunk.length))
        })
    }
}
