//! Takes the values of secrets out of a job's output.
//!
//! What is looked for is each value as it is, each longer line of one that has several, and what these are in a
//! URL. Output comes in pieces, and a value may begin in one and end in another: what may yet become one is
//! held back, and no more.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Values with fewer bytes than this stay: they would be found everywhere.
pub(crate) const SHORTEST: usize = 6;
/// Lines of a value with fewer than this: they tell too little of it.
const SHORTEST_LINE: usize = 16;
/// What stands for a value.
const MASK: &[u8] = b"***";
/// What RFC 3986 leaves as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path.
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// What to look for.
pub(crate) struct Patterns {
    finder: AhoCorasick,
    all: Vec<Pattern>,
}

/// One text, and for each length of its beginnings that of the longest shorter one which that ends with (Knuth,
/// Morris and Pratt).
struct Pattern {
    text: Vec<u8>,
    shorter: Vec<usize>,
}

impl Pattern {
    fn new(text: Vec<u8>) -> Self {
        let mut shorter = vec![0; text.len() + 1];
        let mut length = 0;
        for at in 1..text.len() {
            while length > 0 && text[at] != text[length] {
                length = shorter[length];
            }
            length += usize::from(text[at] == text[length]);
            shorter[at + 1] = length;
        }
        Self { text, shorter }
    }

    /// The length of its longest beginning that the bytes end with and that is not all of it.
    fn begins_at_end_of(&self, bytes: &[u8]) -> usize {
        let start = bytes.len().saturating_sub(self.text.len() - 1);
        let mut length = 0;
        for byte in &bytes[start..] {
            while length > 0 && *byte != self.text[length] {
                length = self.shorter[length];
            }
            length += usize::from(*byte == self.text[length]);
        }
        length
    }
}

impl Patterns {
    /// `None`: there is nothing to look for.
    ///
    /// # Errors
    /// There is more to look for than can be.
    pub(crate) fn new<'a>(values: impl Iterator<Item = &'a [u8]>) -> io::Result<Option<Self>> {
        let mut texts = Vec::new();
        for value in values {
            // Output rarely has the line end that a file ends with.
            let value = value.trim_ascii();
            let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            let lines = lines.filter(|line| line.len() >= SHORTEST_LINE);
            for text in lines.chain([value]).filter(|text| text.len() >= SHORTEST) {
                let form = percent_encode(text, UNRESERVED).to_string().replace("%20", "+");
                texts.extend([
                    text.to_vec(),
                    percent_encode(text, UNRESERVED).to_string().into_bytes(),
                    percent_encode(text, PATH).to_string().into_bytes(),
                    form.into_bytes(),
                ]);
            }
        }
        texts.sort();
        texts.dedup();
        if texts.is_empty() {
            return Ok(None);
        }
        // The fastest kind takes a kilobyte for each byte of a value, in every supervisor.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let mut finder = AhoCorasick::builder();
        let finder = finder.match_kind(MatchKind::Standard).kind(kind).build(&texts);
        let finder = finder.map_err(io::Error::other)?;
        Ok(Some(Self { finder, all: texts.into_iter().map(Pattern::new).collect() }))
    }

    /// Where one of them stands, each place once and in order.
    fn places(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut places: Vec<Range<usize>> = Vec::new();
        for found in self.finder.find_overlapping_iter(bytes) {
            let mut place = found.range();
            // By their ends; a later one may be longer, and so begin before.
            while let Some(last) = places.last().filter(|last| last.end > place.start) {
                place.start = place.start.min(last.start);
                places.pop();
            }
            places.push(place);
        }
        places
    }
}

/// One output on its way to its log.
pub(crate) struct Redactor {
    patterns: Arc<Patterns>,
    /// What may be the beginning of a value.
    held: Vec<u8>,
    /// How much of that belongs to a value which stands masked in the log already.
    masked: usize,
}

impl Redactor {
    pub(crate) fn new(patterns: Arc<Patterns>) -> Self {
        Self { patterns, held: Vec::new(), masked: 0 }
    }

    /// How many bytes are held back.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes more output; gives what of it can go to the log.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let open = self.patterns.all.iter().map(|pattern| pattern.begins_at_end_of(&self.held));
        let end = self.held.len() - open.max().unwrap_or(0);
        let places = self.patterns.places(&self.held);
        self.give(end, &places)
    }

    /// There is no more; gives what was held back. What has as many bytes as would be looked for is taken for the
    /// value that it begins as.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let end = self.held.len();
        let whole = 0..end;
        let places = if end >= SHORTEST { std::slice::from_ref(&whole) } else { &[] };
        self.give(end, places)
    }

    /// Gives what is held up to `end`, with a mask at each of the places.
    fn give(&mut self, end: usize, places: &[Range<usize>]) -> Vec<u8> {
        let mut given = Vec::with_capacity(end);
        // Up to here it was given, or belongs to what is masked.
        let mut done = self.masked;
        for place in places.iter().filter(|place| place.start < end) {
            // What goes on where a mask stands has that mask.
            let is_masked = place.start < done && done == self.masked;
            if !is_masked {
                given.extend_from_slice(&self.held[done.min(place.start)..place.start]);
                given.extend_from_slice(MASK);
            }
            done = done.max(place.end);
        }
        if done < end {
            given.extend_from_slice(&self.held[done..end]);
        }
        self.masked = done.saturating_sub(end);
        self.held.drain(..end);
        given
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
