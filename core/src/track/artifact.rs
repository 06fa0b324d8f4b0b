//! Paths of artifacts within a run.

use std::fmt;

use super::{Error, limits};

/// A file's path below its run's root: one or more segments joined by `/`, none of them empty,
/// `.` or `..`, in whatever encoding the reader may apply to it.
///
/// A path is refused if any number of percent-decodings makes it leave the run or hides a
/// separator, so that no proxy, browser or store on the way can be talked into it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ArtifactPath(String);

/// Bytes in a path.
const BYTES: usize = 900;
/// Bytes in a segment: what file systems take.
const SEGMENT_BYTES: usize = 255;
/// How often a path may be percent-encoded over itself.
const DECODINGS: usize = 8;

fn refused(path: &str, why: &str) -> Error {
    Error::Invalid(format!("Invalid path: '{}': {why}", limits::excerpt(path)))
}

/// The text with each `%XX` replaced by its byte; `None` if nothing was.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let mut changed = false;
    while i < bytes.len() {
        if let (b'%', Some(high), Some(low)) = (bytes[i], digit(i + 1), digit(i + 2)) {
            out.push((high * 16 + low) as u8);
            changed = true;
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    changed.then_some(out)
}

fn check(whole: &str, path: &str) -> Result<(), Error> {
    if path.starts_with('/') {
        return Err(refused(whole, "it must be relative to the run"));
    }
    if path.chars().any(|c| c.is_control() || c == '\\' || c == '#') {
        return Err(refused(whole, "it must not contain control characters, '\\' or '#'"));
    }
    for segment in path.split('/') {
        if matches!(segment, "" | "." | "..") {
            return Err(refused(whole, "it must not have empty, '.' or '..' segments"));
        }
        if segment.len() > SEGMENT_BYTES {
            return Err(refused(whole, "each name in it must have at most 255 bytes"));
        }
    }
    Ok(())
}

impl ArtifactPath {
    /// Checks the rule.
    pub fn new(path: &str) -> Result<Self, Error> {
        if path.len() > BYTES {
            return Err(refused(path, "it must have at most 900 bytes"));
        }
        check(path, path)?;
        let mut text = path.to_owned();
        for _ in 0..DECODINGS {
            let Some(bytes) = decoded(&text) else { return Ok(Self(path.to_owned())) };
            text = String::from_utf8_lossy(&bytes).into_owned();
            check(path, &text)?;
        }
        Err(refused(path, "it is percent-encoded over and over"))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ArtifactPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
