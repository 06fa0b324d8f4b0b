//! The user's own terminal, while a command in a job has it.

use std::io;

use atelier_proto::job::v1::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::{Error, Kind};

/// The terminal's size; 24 by 80 where there is none.
pub(in crate::cli) fn size() -> WindowSize {
    let size =
        tcgetwinsize(rustix::stdio::stdout()).or_else(|_| tcgetwinsize(rustix::stdio::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row.into(), columns: size.ws_col.into() }
        }
        Ok(_) | Err(_) => WindowSize { rows: 24, columns: 80 },
    }
}

/// Keys go through as they are, control-C too. Dropping it puts the terminal back as it was.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> Result<Self, Error> {
        let stdin = rustix::stdio::stdin();
        let set = || -> io::Result<Self> {
            let before = tcgetattr(stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(stdin, OptionalActions::Drain, &raw)?;
            Ok(Self { before })
        };
        set().map_err(|error| {
            Error::new(Kind::Failed, format!("cannot set up the terminal: {error}"))
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone away needs nothing.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
