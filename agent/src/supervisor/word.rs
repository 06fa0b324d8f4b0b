//! What a leader tells its supervisor, through a pipe: words of one length, some with a text behind them, each
//! written at once.

use std::ffi::c_int;
use std::io::{self, Read};

use super::spawn::Step;

/// What a leader says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    Started {
        pid: libc::pid_t,
    },
    NotStarted {
        step: Step,
        errno: c_int,
    },
    /// The view could not be entered: what of it, in words.
    NotIsolated {
        what: String,
        errno: c_int,
    },
    /// A command has ended, with this wait status.
    Ended {
        process: u32,
        status: c_int,
    },
}

/// Bytes of one, without its text.
const WORD: usize = 4 * size_of::<c_int>();
/// The most that comes out of a pipe in one piece, as it went in, is more.
const TEXT: usize = 4096 - WORD;

impl Word {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let number = |value: usize| c_int::try_from(value).unwrap_or(c_int::MAX);
        let (numbers, text): ([c_int; 4], &[u8]) = match self {
            Self::Started { pid } => ([0, *pid, 0, 0], &[]),
            Self::NotStarted { step, errno } => {
                let step = match step {
                    Step::Running => 0,
                    Step::EnteringFolder => 1,
                    Step::EnteringGroup => 2,
                    Step::Forking => 3,
                };
                ([1, step, 0, *errno], &[])
            }
            Self::Ended { process, status } => {
                ([2, c_int::try_from(*process).unwrap_or(c_int::MAX), *status, 0], &[])
            }
            Self::NotIsolated { what, errno } => {
                let text = &what.as_bytes()[..what.len().min(TEXT)];
                ([3, number(text.len()), 0, *errno], text)
            }
        };
        let mut bytes: Vec<u8> = numbers.into_iter().flat_map(c_int::to_ne_bytes).collect();
        bytes.extend_from_slice(text);
        bytes
    }

    /// The next one; an error if there is none, or what came is none.
    pub(super) fn read(pipe: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; WORD];
        pipe.read_exact(&mut bytes)?;
        let mut numbers = [0; 4];
        for (number, place) in numbers.iter_mut().zip(bytes.as_chunks().0) {
            *number = c_int::from_ne_bytes(*place);
        }
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let word = match numbers {
            [0, pid, ..] => Self::Started { pid },
            [1, step, _, errno] => {
                let step = match step {
                    0 => Step::Running,
                    1 => Step::EnteringFolder,
                    2 => Step::EnteringGroup,
                    3 => Step::Forking,
                    _ => return Err(invalid()),
                };
                Self::NotStarted { step, errno }
            }
            [2, process, status, _] => {
                Self::Ended { process: process.try_into().map_err(|_| invalid())?, status }
            }
            [3, length, _, errno] => {
                let length = usize::try_from(length).ok().filter(|length| *length <= TEXT);
                let mut text = vec![0; length.ok_or_else(invalid)?];
                pipe.read_exact(&mut text)?;
                Self::NotIsolated { what: String::from_utf8_lossy(&text).into_owned(), errno }
            }
            _ => return Err(invalid()),
        };
        Ok(word)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_said_and_a_long_text_is_cut() {
        let not_isolated = |what: &str| Word::NotIsolated { what: what.to_owned(), errno: 2 };
        let words = [
            Word::Started { pid: 7 },
            Word::NotStarted { step: Step::EnteringGroup, errno: 13 },
            not_isolated("taking /data"),
            Word::Ended { process: 1, status: 9 },
        ];
        let said: Vec<u8> = words.iter().flat_map(Word::bytes).collect();
        let mut pipe = said.as_slice();
        for word in words {
            assert_eq!(Word::read(&mut pipe).unwrap(), word);
        }
        assert!(Word::read(&mut pipe).is_err());
        let long = not_isolated(&"x".repeat(10_000)).bytes();
        assert_eq!(long.len(), 4096);
        assert_eq!(Word::read(&mut long.as_slice()).unwrap(), not_isolated(&"x".repeat(TEXT)));
    }
}
