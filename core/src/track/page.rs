//! Page tokens: where a search stopped.

use std::fmt;
use std::fmt::Write as _;

use super::Error;

/// A value that a search is ordered by.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A whole number.
    Int(i64),
    /// A finite double.
    Real(f64),
    /// Text.
    Text(String),
}

/// What identifies a search: a token of one search is refused by another.
pub fn fingerprint(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// The ordering values of the last row of a page. Printed, it is opaque to clients: hexadecimal
/// digits of a version, the search's fingerprint and the values.
#[derive(Clone, PartialEq, Debug)]
pub struct PageToken {
    /// [`fingerprint`] of the search.
    pub search: u64,
    /// The last row's values, in the order of the search's ordering.
    pub after: Vec<Cell>,
}

const VERSION: u8 = 1;

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend(self.search.to_be_bytes());
        for cell in &self.after {
            match cell {
                Cell::Null => bytes.push(0),
                Cell::Int(n) => {
                    bytes.push(1);
                    bytes.extend(n.to_be_bytes());
                }
                Cell::Real(x) => {
                    bytes.push(2);
                    bytes.extend(x.to_bits().to_be_bytes());
                }
                Cell::Text(text) => {
                    bytes.push(3);
                    bytes.extend((text.len() as u64).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        let mut hex = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            write!(hex, "{byte:02x}")?;
        }
        f.write_str(&hex)
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[a, b]| Some((digit(*a)? * 16 + digit(*b)?) as u8)).collect()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn cells(mut bytes: &[u8]) -> Option<Vec<Cell>> {
    let mut cells = Vec::new();
    while let Some([kind]) = take::<1>(&mut bytes) {
        cells.push(match kind {
            0 => Cell::Null,
            1 => Cell::Int(i64::from_be_bytes(take(&mut bytes)?)),
            2 => Cell::Real(f64::from_bits(u64::from_be_bytes(take(&mut bytes)?))),
            3 => {
                let length = usize::try_from(u64::from_be_bytes(take(&mut bytes)?)).ok()?;
                let (text, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Cell::Text(std::str::from_utf8(text).ok()?.to_owned())
            }
            _ => return None,
        });
    }
    Some(cells)
}

impl PageToken {
    /// Reads a token of the search with this fingerprint.
    pub fn parse(text: &str, search: u64) -> Result<Self, Error> {
        let read = || {
            let bytes = bytes_of(text)?;
            let mut rest = bytes.as_slice();
            let [version] = take::<1>(&mut rest)?;
            let from = u64::from_be_bytes(take(&mut rest)?);
            (version == VERSION && from == search).then_some(())?;
            Some(Self { search, after: cells(rest)? })
        };
        read().ok_or_else(|| {
            Error::Invalid(
                "Invalid page token: it is not one that this search gave out. Repeat the search \
                 without a page token."
                    .to_owned(),
            )
        })
    }
}
