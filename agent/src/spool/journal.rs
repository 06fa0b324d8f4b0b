//! The file in which points wait for the daemon: numbered batches, one after another.
//!
//! ```text
//! head   magic 8 | number of the first batch not sent 8 | its place 8 | check 8
//! batch  length 4 | number 8 | check 8 | how many points 2 | length of the run's id 2 | the run's id | points
//! ```
//! Numbers are little-endian, points as JSON with commas between them.
//!
//! A batch is in the file before its caller hears of it, and a process that dies leaves what it has written. What a
//! power cut leaves may lack its end, which the checks tell; or have an old head, and then batches are sent again
//! that the daemon has. It knows a point by all of its parts, so that adds nothing.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use atelier_core::track::{Metric, limits};

const MAGIC: [u8; 8] = *b"ATSPOOL1";
const HEAD: usize = 32;
/// Before what a batch holds.
const PREFIX: usize = 20;
/// Bytes of a batch. One within MLflow's limits has far fewer.
const LARGEST: u32 = 8 << 20;
/// Bytes of batches that are sent at once, but for the last.
const SENT: u64 = 1 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<File>,
    /// Where the next batch goes.
    end: u64,
    /// Its number.
    next: u64,
    /// Where the first batch lies that is not sent.
    from: u64,
    /// Its number.
    sent: u64,
}

/// A part of the file, which stays as it is until it was sent.
#[derive(Debug)]
pub(super) struct Unsent {
    file: Arc<File>,
    from: u64,
    end: u64,
}

/// Points of one run that are sent at once.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) run: String,
    /// As `runs/log-batch` takes them.
    pub(super) body: String,
    pub(super) points: usize,
    /// The number and place of the batch after it.
    next: u64,
    end: u64,
}

fn check(parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Journal {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let length = file.metadata()?.len();
        let mut journal =
            Self { file: Arc::new(file), end: HEAD as u64, next: 0, from: HEAD as u64, sent: 0 };
        let mut head = [0; HEAD];
        if length >= HEAD as u64 {
            journal.file.read_exact_at(&mut head, 0)?;
            let (said, known) = head.split_at(24);
            // Of another head all is sent again.
            if said.starts_with(&MAGIC) && check(&[said]) == known {
                journal.sent = number(&said[8..16]);
                journal.from = number(&said[16..24]).max(HEAD as u64);
            }
        }
        journal.recover(length)?;
        match journal.from < journal.end {
            true => journal.write_head()?,
            false => journal.clear()?,
        }
        Ok(journal)
    }

    /// Finds the end of what is whole, and cuts off the rest.
    fn recover(&mut self, length: u64) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, self.file.as_ref());
        reader.seek(SeekFrom::Start(self.from))?;
        let (mut at, mut expected) = (self.from, None);
        let mut payload = Vec::new();
        loop {
            let found = match read_batch(&mut reader, &mut payload) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            };
            if expected.is_some_and(|expected| expected != found) {
                break;
            }
            if expected.is_none() && found > self.sent && self.sent > 0 {
                tracing::warn!(
                    lost = found - self.sent,
                    "batches of points are missing in a spool"
                );
            }
            at += (PREFIX + payload.len()) as u64;
            // It was sent: the file was not cut yet.
            if found < self.sent {
                self.from = at;
            } else if expected.is_none() {
                self.sent = found;
            }
            expected = Some(found + 1);
        }
        (self.end, self.next) = (at, expected.unwrap_or(0).max(self.sent));
        if at < length {
            self.file.set_len(at.max(HEAD as u64))?;
        }
        Ok(())
    }

    fn write_head(&self) -> io::Result<()> {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&self.sent.to_le_bytes());
        head[16..24].copy_from_slice(&self.from.to_le_bytes());
        let known = check(&[&head[..24]]);
        head[24..].copy_from_slice(&known);
        self.file.write_all_at(&head, 0)
    }

    /// The number of the batch that is written next.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of what is not sent.
    pub(super) const fn unsent_bytes(&self) -> u64 {
        self.end - self.from
    }

    /// Writes points of a run, at most as many as one request may have.
    pub(super) fn append(&mut self, run: &str, points: &[Metric]) -> io::Result<()> {
        let id = u16::try_from(run.len()).map_err(|_| damaged("the run's id is too long"))?;
        let count = u16::try_from(points.len()).map_err(|_| damaged("too many points"))?;
        let mut batch = vec![0; PREFIX];
        batch.extend_from_slice(&count.to_le_bytes());
        batch.extend_from_slice(&id.to_le_bytes());
        batch.extend_from_slice(run.as_bytes());
        let mut text = String::with_capacity(points.len() * 96);
        for (place, point) in points.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            write_point(&mut text, point)?;
        }
        batch.extend_from_slice(text.as_bytes());
        let length = u32::try_from(batch.len() - PREFIX).ok().filter(|length| *length <= LARGEST);
        let length = length.ok_or_else(|| damaged("the points are too long"))?;
        let own = self.next.to_le_bytes();
        let known = check(&[&own, &batch[PREFIX..]]);
        batch[..4].copy_from_slice(&length.to_le_bytes());
        batch[4..12].copy_from_slice(&own);
        batch[12..20].copy_from_slice(&known);
        // What a full disk took of it is cut off, or written over by the next.
        self.file.write_all_at(&batch, self.end).inspect_err(|_| {
            let _ = self.file.set_len(self.end);
        })?;
        self.end += batch.len() as u64;
        self.next += 1;
        Ok(())
    }

    /// What is to be sent; `None`: nothing.
    pub(super) fn unsent(&self) -> Option<Unsent> {
        let Self { file, from, end, .. } = self;
        (from < end).then(|| Unsent { file: file.clone(), from: *from, end: *end })
    }

    /// The number of the first batch that is not sent.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Notes that the daemon has a batch, or refuses it for good.
    pub(super) fn forget(&mut self, batch: &Batch) -> io::Result<()> {
        (self.sent, self.from) = (batch.next, batch.end);
        if self.from == self.end {
            return self.clear();
        }
        let sent = self.from - HEAD as u64;
        if sent >= SENT && self.unsent_bytes() <= sent {
            return self.move_to_front();
        }
        self.write_head()
    }

    /// Puts what is not sent where there was what is: whoever logs all the time would have the file grow for ever. The head
    /// tells of the old place until all is at the new one.
    fn move_to_front(&mut self) -> io::Result<()> {
        let length = self.unsent_bytes();
        let mut from = At(&self.file, self.from);
        let mut to = HEAD as u64;
        let mut piece = vec![0; SENT.min(length) as usize];
        let mut left = length;
        while left > 0 {
            let some = left.min(SENT) as usize;
            from.read_exact(&mut piece[..some])?;
            self.file.write_all_at(&piece[..some], to)?;
            to += some as u64;
            left -= some as u64;
        }
        (self.from, self.end) = (HEAD as u64, to);
        self.write_head()?;
        self.file.set_len(self.end)
    }

    /// Empties the file; the numbers go on.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.sent = self.next;
        (self.from, self.end) = (HEAD as u64, HEAD as u64);
        // In this order: batches that are in the file yet have numbers that were sent.
        self.write_head()?;
        self.file.set_len(self.end)
    }
}

impl Unsent {
    /// Whether a batch is all of it.
    pub(super) const fn is(&self, batch: &Batch) -> bool {
        self.end == batch.end
    }

    /// The first points in it, of one run, as many as are sent at once.
    pub(super) fn first(&self) -> io::Result<Option<Batch>> {
        let length = (self.end - self.from).min(SENT);
        let mut reader = BufReader::with_capacity(length as usize, At(&self.file, self.from));
        let mut batch: Option<Batch> = None;
        let (mut at, mut payload) = (self.from, Vec::new());
        while at < self.end {
            let found = read_batch(&mut reader, &mut payload)?;
            let found = found.ok_or_else(|| damaged("the spool is not what was written"))?;
            at += (PREFIX + payload.len()) as u64;
            let (count, run, points) =
                parts(&payload).ok_or_else(|| damaged("a batch has no run"))?;
            match &mut batch {
                None => {
                    let id = serde_json::to_string(run)?;
                    let body = format!("{{\"run_id\":{id},\"metrics\":[{points}");
                    let run = run.to_owned();
                    batch = Some(Batch { run, body, points: count, next: found + 1, end: at });
                }
                Some(all)
                    if all.run == run
                        && all.points + count <= limits::METRICS_PER_BATCH
                        && at - self.from <= SENT =>
                {
                    all.body.push(',');
                    all.body.push_str(points);
                    all.points += count;
                    (all.next, all.end) = (found + 1, at);
                }
                Some(_) => break,
            }
        }
        if let Some(batch) = &mut batch {
            batch.body.push_str("]}");
        }
        Ok(batch)
    }
}

/// Reads a file from a place on, whoever else reads it.
struct At<'a>(&'a File, u64);

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(buffer, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

/// The next batch, if it is whole: its number, and what it holds.
fn read_batch(reader: &mut impl io::Read, payload: &mut Vec<u8>) -> io::Result<Option<u64>> {
    let mut prefix = [0; PREFIX];
    reader.read_exact(&mut prefix)?;
    let length = number(&prefix[..4]);
    if length > u64::from(LARGEST) {
        return Ok(None);
    }
    payload.clear();
    payload.resize(length as usize, 0);
    reader.read_exact(payload)?;
    let is_whole = check(&[&prefix[4..12], payload]) == prefix[12..];
    Ok(is_whole.then(|| number(&prefix[4..12])))
}

/// How many points it has, the run's id, and the points.
fn parts(payload: &[u8]) -> Option<(usize, &str, &str)> {
    let (count, rest) = payload.split_at_checked(2)?;
    let (length, rest) = rest.split_at_checked(2)?;
    let (run, points) = rest.split_at_checked(number(length) as usize)?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some((number(count) as usize, text(run)?, text(points)?))
}

/// As MLflow's wire has a point. A number that is a text is read to the last bit.
fn write_point(text: &mut String, point: &Metric) -> io::Result<()> {
    let Metric { key, value, timestamp, step } = point;
    let key = serde_json::to_string(key)?;
    let value = match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() && *value > 0.0 => "Infinity".to_owned(),
        value if value.is_infinite() => "-Infinity".to_owned(),
        value => format!("{value:e}"),
    };
    let written = write!(
        text,
        "{{\"key\":{key},\"value\":\"{value}\",\"timestamp\":{timestamp},\"step\":{step}}}"
    );
    written.map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
