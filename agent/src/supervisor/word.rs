//! What a leader tells its supervisor, through a pipe: words of one length, each written at once.

use std::ffi::c_int;

use super::spawn::Step;

/// What a leader says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    Started {
        pid: libc::pid_t,
    },
    NotStarted {
        step: Step,
        errno: c_int,
    },
    /// A command has ended, with this wait status.
    Ended {
        process: u32,
        status: c_int,
    },
}

/// Bytes of one.
pub(super) const WORD: usize = 4 * size_of::<c_int>();

impl Word {
    pub(super) fn bytes(self) -> [u8; WORD] {
        let numbers: [c_int; 4] = match self {
            Self::Started { pid } => [0, pid, 0, 0],
            Self::NotStarted { step, errno } => {
                let (step, action) = match step {
                    Step::Running => (0, 0),
                    Step::EnteringFolder => (1, 0),
                    Step::EnteringGroup => (2, 0),
                    Step::Forking => (3, 0),
                    Step::Isolating(number) => (4, c_int::try_from(number).unwrap_or(c_int::MAX)),
                };
                [1, step, action, errno]
            }
            Self::Ended { process, status } => {
                [2, c_int::try_from(process).unwrap_or(c_int::MAX), status, 0]
            }
        };
        let mut bytes = [0; WORD];
        for (place, number) in bytes.chunks_exact_mut(size_of::<c_int>()).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    pub(super) fn of(bytes: [u8; WORD]) -> Option<Self> {
        let mut numbers = [0; 4];
        for (number, place) in numbers.iter_mut().zip(bytes.chunks_exact(size_of::<c_int>())) {
            *number = c_int::from_ne_bytes(place.try_into().ok()?);
        }
        let word = match numbers {
            [0, pid, ..] => Self::Started { pid },
            [1, step, action, errno] => {
                let step = match step {
                    0 => Step::Running,
                    1 => Step::EnteringFolder,
                    2 => Step::EnteringGroup,
                    3 => Step::Forking,
                    _ => Step::Isolating(usize::try_from(action).ok()?),
                };
                Self::NotStarted { step, errno }
            }
            [2, process, status, _] => Self::Ended { process: process.try_into().ok()?, status },
            _ => return None,
        };
        Some(word)
    }
}
