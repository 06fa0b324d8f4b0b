//! A large file of which most is as it was: what it holds now, without looking for all its cuts again.
//!
//! Where a file is cut depends only on the bytes since the last cut ([`cut`]). So a chunk that still lies where it
//! lay, after a cut, is cut there still; whether it does its digest tells, which takes a fraction of the time and can
//! be asked of all parts of the file at once. Only what has changed is cut anew, until a cut meets one of before.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use atelier_core::content::{Chunk, MAX_CHUNK, chunk_digest, cut};

/// Of so many chunks in a row that differ the rest is not expected to be the same: bytes were put in or taken out.
const HOPELESS: usize = 16;
/// How much is read at once where cuts are looked for.
const BUFFER: usize = 4 * MAX_CHUNK;

/// What a file of `size` bytes holds that held `known`. `read` is told how many bytes have been looked at.
///
/// A file that changes meanwhile gives chunks that were never all there together, or that do not add up to `size`:
/// its stat tells.
pub(super) fn recut(
    source: &File,
    size: u64,
    known: &[Chunk],
    threads: usize,
    read: &mut dyn FnMut(u64),
) -> io::Result<Vec<Chunk>> {
    let known = Known::new(known, size);
    let same = known.same(source, threads, read)?;
    let mut window = Window { source, bytes: Vec::new(), start: 0 };
    let (mut chunks, mut at) = (Vec::with_capacity(known.chunks.len()), 0);
    while at < size {
        let chunk = match known.starts.binary_search(&at) {
            Ok(i) if same[i] => known.chunks[i],
            _ => {
                let bytes = window.at(at, size)?;
                let at_end = at + bytes.len() as u64 == size;
                let Some(length) = cut(bytes, at_end) else { break };
                Chunk { digest: chunk_digest(&bytes[..length]), length: length as u64 }
            }
        };
        at += chunk.length;
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// What a file held, and where in it.
struct Known<'a> {
    chunks: &'a [Chunk],
    starts: Vec<u64>,
    size: u64,
}

impl<'a> Known<'a> {
    fn new(chunks: &'a [Chunk], size: u64) -> Self {
        let starts = chunks.iter().scan(0_u64, |at, chunk| {
            let start = *at;
            *at = start.saturating_add(chunk.length);
            Some(start)
        });
        Self { chunks, starts: starts.collect(), size }
    }

    /// Whether each chunk still lies where it lay.
    fn same(
        &self,
        source: &File,
        threads: usize,
        read: &mut dyn FnMut(u64),
    ) -> io::Result<Vec<bool>> {
        let mut same = vec![false; self.chunks.len()];
        let share = same.len().div_ceil(threads.max(1)).max(1);
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            let mut shares = same.chunks_mut(share).enumerate();
            let own = shares.next();
            let others: Vec<_> = shares
                .map(|(i, part)| {
                    let done = &done;
                    scope.spawn(move || {
                        self.compare(source, i * share, part, &mut |bytes| {
                            done.fetch_add(bytes, Ordering::Relaxed);
                        })
                    })
                })
                .collect();
            if let Some((i, part)) = own {
                self.compare(source, i * share, part, &mut |bytes| {
                    read(bytes + done.swap(0, Ordering::Relaxed));
                })?;
            }
            for other in others {
                other.join().map_err(|_| io::Error::other("a thread that read it failed"))??;
                read(done.swap(0, Ordering::Relaxed));
            }
            Ok(())
        })
        .map(|()| same)
    }

    /// Compares the chunks from the one numbered `first` on.
    fn compare(
        &self,
        source: &File,
        first: usize,
        same: &mut [bool],
        read: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let mut buffer = vec![0; MAX_CHUNK];
        let mut differ = 0;
        for (i, same) in (first..).zip(same) {
            let (chunk, start) = (&self.chunks[i], self.starts[i]);
            let Some(bytes) = usize::try_from(chunk.length).ok().and_then(|n| buffer.get_mut(..n))
            else {
                return Ok(());
            };
            let end = start.saturating_add(chunk.length);
            // The last was cut by the end of the file, and only there it is again.
            let was_last = i + 1 == self.chunks.len();
            if end > self.size || (was_last && end != self.size) {
                return Ok(());
            }
            source.read_exact_at(bytes, start)?;
            *same = chunk_digest(bytes) == chunk.digest;
            read(chunk.length);
            differ = if *same { 0 } else { differ + 1 };
            if differ == HOPELESS {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A part of the file.
struct Window<'a> {
    source: &'a File,
    bytes: Vec<u8>,
    start: u64,
}

impl Window<'_> {
    /// At least [`MAX_CHUNK`] bytes from there on, or all that there are.
    fn at(&mut self, at: u64, size: u64) -> io::Result<&[u8]> {
        let left = usize::try_from(size - at).unwrap_or(usize::MAX);
        let enough = left.min(MAX_CHUNK);
        let held = at.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        let held = held.filter(|skip| self.bytes.len() >= skip.saturating_add(enough));
        let skip = match held {
            Some(skip) => skip,
            None => {
                self.bytes.resize(left.min(BUFFER), 0);
                self.source.read_exact_at(&mut self.bytes, at)?;
                self.start = at;
                0
            }
        };
        Ok(&self.bytes[skip..])
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Bytes that are cut by what they hold.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn plainly(mut bytes: &[u8]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        while let Some(length) = cut(bytes, true) {
            let (chunk, rest) = bytes.split_at(length);
            chunks.push(Chunk { digest: chunk_digest(chunk), length: length as u64 });
            bytes = rest;
        }
        chunks
    }

    fn again(bytes: &[u8], known: &[Chunk], threads: usize) -> (Vec<Chunk>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut seen = 0;
        let chunks = recut(&file, bytes.len() as u64, known, threads, &mut |bytes| seen += bytes);
        (chunks.unwrap(), seen)
    }

    #[test]
    fn a_byte_that_changed_costs_its_chunk_alone() {
        let mut bytes = noise(12 << 20, 7);
        let known = plainly(&bytes);
        bytes[5 << 20] ^= 1;
        let (chunks, seen) = again(&bytes, &known, 3);
        assert_eq!(chunks, plainly(&bytes));
        let new = chunks.iter().filter(|chunk| !known.contains(chunk)).count();
        assert!((1..4).contains(&new), "{new}");
        assert_eq!(seen, bytes.len() as u64);
        // Nothing that was known, of another file.
        assert_eq!(again(&bytes, &plainly(&noise(9 << 20, 3)), 2).0, plainly(&bytes));
        assert_eq!(again(&bytes, &[], 2).0, plainly(&bytes));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_cut_as_if_nothing_had_been_known(
            seed in any::<u64>(),
            length in 1_usize..5 << 20,
            edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0_usize..3, 1_usize..300_000), 0..4),
            zeros in any::<bool>(),
            threads in 1_usize..4,
        ) {
            let mut bytes = noise(length, seed);
            if zeros {
                // Cut by their length alone.
                bytes[length / 2..].fill(0);
            }
            let known = plainly(&bytes);
            for (place, kind, count) in edits {
                let at = if bytes.is_empty() { 0 } else { place.index(bytes.len()) };
                let end = (at + count).min(bytes.len());
                match kind {
                    0 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x55),
                    1 => drop(bytes.drain(at..end)),
                    _ => drop(bytes.splice(at..at, noise(count, seed ^ 9))),
                }
            }
            prop_assert_eq!(again(&bytes, &known, threads).0, plainly(&bytes));
        }
    }
}
