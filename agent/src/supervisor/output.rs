//! The job's output: from a pipe into the log, up to a bound; what follows is read and dropped, so
//! that a job that prints without end neither waits nor fills the disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, futimens, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, pipe_with, splice};

use super::journal::LogError;
use super::pace::Pace;
use crate::secrets::Redactor;

/// At most this much is moved before the supervisor looks at its signals again.
const STEP: usize = 1024 * 1024;
/// For file systems that cannot splice.
const BUFFER: usize = 64 * 1024;

/// The reading end of the job's output and the log it goes into.
pub(super) struct Output {
    pipe: OwnedFd,
    log: File,
    limit: u64,
    /// The log's length so far.
    pub(super) written: u64,
    /// Bytes read and not kept.
    pub(super) dropped: u64,
    /// Why nothing can be written any more.
    pub(super) error: Option<LogError>,
    /// Opened when the first byte is dropped.
    sink: Option<OwnedFd>,
    cannot_splice: bool,
    pace: Pace,
    /// Takes secrets out of what comes; it may hold some of it back.
    pub(super) redactor: Option<Redactor>,
}

/// What a look at the pipe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Data,
    Nothing,
    /// Nobody can write to it any more.
    End,
}

impl Output {
    /// Opens the log, and the pipe of which the job gets the returned end: the named one, if there is a name.
    pub(super) fn open(
        log: &Path,
        limit: Option<u64>,
        rate: Option<u64>,
        name: Option<&Path>,
    ) -> io::Result<(Self, OwnedFd)> {
        // Not in append mode, which splice refuses; nobody else writes while a supervisor lives.
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let log = options.open(log)?;
        let written = rustix::fs::seek(&log, rustix::fs::SeekFrom::End(0))?;
        let (pipe, writer) = match name {
            None => pipe_with(PipeFlags::CLOEXEC)?,
            Some(name) => open_both(name)?,
        };
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let output = Self {
            pipe,
            log,
            limit: limit.unwrap_or(u64::MAX),
            written,
            dropped: 0,
            error: None,
            sink: None,
            cannot_splice: false,
            pace: Pace::new(rate),
            redactor: None,
        };
        Ok((output, writer))
    }

    /// What to poll.
    pub(super) fn pipe(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// When to look at the pipe again.
    pub(super) fn next(&self) -> u64 {
        self.pace.next()
    }

    /// The same as [`Self::pump`], in time for the pace.
    pub(super) fn pump_at(&mut self, now: u64) -> Found {
        let before = self.written + self.dropped;
        let found = self.pump();
        self.pace.read((self.written + self.dropped).saturating_sub(before), now);
        found
    }

    /// Moves what is in the pipe, at most [`STEP`] bytes. Never waits.
    pub(super) fn pump(&mut self) -> Found {
        let held = self.redactor.as_ref().map_or(0, |redactor| redactor.held() as u64);
        let room = self.limit.saturating_sub(self.written + held);
        // What is held back may need less room in the end; what follows what was dropped has none all the same.
        let moved = if room == 0 || self.dropped > 0 || self.error.is_some() {
            self.drop_some()
        } else {
            let step = usize::try_from(room).unwrap_or(STEP).min(STEP);
            self.keep_some(step)
        };
        match moved {
            Ok(0) => Found::End,
            Ok(_) | Err(Errno::INTR) => Found::Data,
            Err(Errno::AGAIN) => Found::Nothing,
            // Cannot happen for a pipe of our own; treated as its end rather than as a busy loop.
            Err(_) => Found::End,
        }
    }

    fn keep_some(&mut self, step: usize) -> Result<usize, Errno> {
        let moved = if self.cannot_splice || self.redactor.is_some() {
            self.copy_some(step)
        } else {
            let moved = splice(&self.pipe, None, &self.log, None, step, SpliceFlags::NONBLOCK);
            moved.inspect(|bytes| self.written += *bytes as u64).inspect(|_| self.tell())
        };
        match moved {
            Ok(bytes) => Ok(bytes),
            Err(Errno::INVAL | Errno::NOSYS) if !self.cannot_splice => {
                self.cannot_splice = true;
                Err(Errno::INTR)
            }
            Err(errno @ (Errno::AGAIN | Errno::INTR)) => Err(errno),
            Err(errno) => {
                self.error = Some(match errno {
                    Errno::NOSPC | Errno::DQUOT => LogError::DiskFull,
                    other => LogError::Other(other.raw_os_error()),
                });
                Err(Errno::INTR)
            }
        }
    }

    /// Has whoever follows the log look at it: before Linux 6.5 what is spliced into a file is told to nobody
    /// (inotify(7)), but a change of its time alone is told as a change of its content.
    fn tell(&self) {
        let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // Who is not told sees it with the next look.
        let _ = futimens(&self.log, &Timestamps { last_access: keep, last_modification: now });
    }

    fn copy_some(&mut self, step: usize) -> Result<usize, Errno> {
        let mut buffer = vec![0; BUFFER.min(step)];
        let bytes = rustix::io::read(&self.pipe, &mut buffer)?;
        let read = &buffer[..bytes];
        match &mut self.redactor {
            None => self.write(read)?,
            Some(redactor) => {
                let given = redactor.push(read);
                self.write(&given)?;
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, mut rest: &[u8]) -> Result<(), Errno> {
        while !rest.is_empty() {
            match rustix::io::write(&self.log, rest) {
                Ok(written) => {
                    self.written += written as u64;
                    rest = &rest[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    self.dropped += rest.len() as u64;
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// Writes what is held back: nothing follows it in the log.
    fn release(&mut self) {
        let held = self.redactor.as_mut().map(Redactor::finish).unwrap_or_default();
        if self.error.is_some() {
            self.dropped += held.len() as u64;
        } else if let Err(errno) = self.write(&held) {
            self.error = Some(LogError::Other(errno.raw_os_error()));
        }
    }

    fn drop_some(&mut self) -> Result<usize, Errno> {
        if self.sink.is_none() {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            self.sink = Some(open("/dev/null", flags, Mode::empty())?);
        }
        let Some(sink) = &self.sink else { return Err(Errno::BADF) };
        let bytes = splice(&self.pipe, None, sink, None, STEP, SpliceFlags::NONBLOCK)?;
        if bytes > 0 && self.dropped == 0 && self.error.is_none() {
            self.release();
            self.note(&format!(
                "log limit of {} bytes reached: further output is dropped",
                self.limit
            ));
        }
        self.dropped += bytes as u64;
        Ok(bytes)
    }

    /// Takes what is still in the pipe and closes the log with a word on what is missing in it.
    ///
    /// The job is dead by now. Whoever else may hold the pipe's other end (a process outside the
    /// tree that was handed it) gets one pipe's worth of attention and no more.
    pub(super) fn finish(&mut self) {
        let mut budget = 2 * fcntl_getpipe_size(&self.pipe).unwrap_or(BUFFER) as u64;
        loop {
            let before = self.written + self.dropped;
            if self.pump() != Found::Data || budget == 0 {
                break;
            }
            budget = budget.saturating_sub((self.written + self.dropped).saturating_sub(before));
        }
        self.release();
        if let Some(told) = self.pace.told() {
            self.note(&told);
        }
        match self.error {
            None if self.dropped == 0 => {}
            None => self.note(&format!("{} bytes of output were dropped", self.dropped)),
            Some(LogError::DiskFull) => self.note(&format!(
                "the node's disk is full: {} bytes of output were dropped",
                self.dropped
            )),
            Some(LogError::Other(errno)) => self.note(&format!(
                "the log could not be written ({}): {} bytes of output were dropped",
                io::Error::from_raw_os_error(errno),
                self.dropped
            )),
        }
    }

    /// A line of our own at the log's end; lost if the disk is full.
    fn note(&mut self, text: &str) {
        let mut last = [b'\n'];
        if self.written > 0 {
            let _ = self.log.read_exact_at(&mut last, self.written - 1);
        }
        let open_line = if last == [b'\n'] { "" } else { "\n" };
        let line = format!("{open_line}[atelier] {text}\n");
        if self.log.write_all_at(line.as_bytes(), self.written).is_ok() {
            self.written += line.len() as u64;
        }
    }
}

/// Both ends of a named pipe. Neither opening waits for the other.
fn open_both(name: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let reader = open(name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let writer = open(name, flags | OFlags::WRONLY, Mode::empty())?;
    Ok((reader, writer))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
