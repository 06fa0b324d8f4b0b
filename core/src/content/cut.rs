//! Where a large file is cut.

use fastcdc::v2020::FastCDC;

/// The shortest chunk of a file that is cut, its last one excepted, in bytes.
pub const MIN_CHUNK: usize = 64 * 1024;
/// About the mean length of a chunk, in bytes.
pub const AVERAGE_CHUNK: usize = 256 * 1024;
/// The longest chunk, in bytes; a file up to this length is one chunk.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// How many bytes at the start of `buffer` are the next chunk.
///
/// `None` if the cut may lie beyond the buffer (fewer than [`MAX_CHUNK`] bytes and more to come) or
/// if there is nothing left. The answer depends only on the bytes since the last cut, so any way of
/// filling the buffer cuts a file at the same places.
pub fn cut(buffer: &[u8], at_end: bool) -> Option<usize> {
    if buffer.is_empty() || (buffer.len() < MAX_CHUNK && !at_end) {
        return None;
    }
    let window = &buffer[..buffer.len().min(MAX_CHUNK)];
    FastCDC::new(window, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK).next().map(|chunk| chunk.length)
}
