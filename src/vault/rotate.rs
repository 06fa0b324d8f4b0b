//! Sealing anew: with the newest key, under new data keys, past what does not open.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use atelier_core::id::SecretVersion;
use atelier_core::secret::SealedName;
use atelier_core::time::Timestamp;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::envelope::{self, Place};
use super::key::KeyId;
use super::ring::Wrapper;
use super::{AT_ONCE, Error, Vault};
use crate::store::secrets::{self, RotationNumber, SealedRow};

/// Versions that are sealed anew in one transaction.
pub(super) const BATCH: usize = 32;
/// Versions that do not open are named, so many at most.
const NAMED: usize = 100;
/// What is sealed anew is on disk after so long, however few those are: a call that is cut short loses no more.
const FLUSH: Duration = Duration::from_secs(2);

/// How far the calls of a rotation have come. A call that goes on there does not meet again with what does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The last row that was looked at.
    after: i64,
    /// What was sealed anew since all was gone through from its beginning.
    written: u64,
    /// What did not open since then.
    damaged: u64,
}

impl Cursor {
    const START: Self = Self { after: i64::MIN, written: 0, damaged: 0 };
}

/// For the next call, to which it means nothing.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, written, damaged } = self;
        write!(f, "{after}.{written}.{damaged}")
    }
}

impl FromStr for Cursor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let mut parts = text.split('.');
            let after = parts.next()?.parse().ok()?;
            let written = parts.next()?.parse().ok()?;
            let damaged = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { after, written, damaged })
        };
        read().ok_or_else(|| "it is not one that a call before has given".to_owned())
    }
}

/// How a rotation stands.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rotation {
    /// The key that everything is to be sealed with; `None`: nothing is sealed.
    pub key: Option<KeyId>,
    /// Versions that were sealed anew now.
    pub versions: u64,
    /// Versions that are as they are to be.
    pub done: u64,
    /// Versions that there are.
    pub total: u64,
    /// Where the next call goes on; `None`: all are done but those that do not open.
    pub next: Option<Cursor>,
    /// When the rotation began that makes new data keys.
    pub begun_at: Option<Timestamp>,
    /// Whether that was before this call: what was sealed since then has not got another data key.
    pub was_begun: bool,
    /// Those that this call met and that do not open, the first of them. They stay as they are.
    pub damaged: Vec<Damage>,
    /// How many those are, with those of the calls before that this one went on from.
    pub damaged_total: u64,
}

/// A version that does not open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Of what.
    pub name: SealedName,
    /// Which.
    pub version: SecretVersion,
    /// Why.
    pub problem: String,
}

impl Error {
    /// Whether it is what is kept that is at fault, or the old key that it was sealed with: what else is kept may open.
    fn is_damage(&self, is_old: bool) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::NotOpened { error, .. } => {
                error.is_of_what_was_sent() || (is_old && error.is_of_no_key())
            }
            _ => false,
        }
    }
}

/// What was made of a batch.
#[derive(Default)]
struct Made {
    /// How many were written.
    written: u64,
    /// The key of the last of them.
    key: Option<KeyId>,
    damaged: Vec<Damage>,
    /// The last row that was begun: all before it were too.
    after: Option<i64>,
    /// Why it was not gone through to its end.
    error: Option<Error>,
}

/// What is sealed anew, and how.
struct Work<'a> {
    vault: &'a Vault,
    newest: Wrapper,
    /// That which makes new data keys; `None`: they stay.
    rotation: Option<RotationNumber>,
    /// No further one is begun after that.
    until: Instant,
}

impl Vault {
    /// Seals with the newest key what is sealed with an older one; with `data_keys` every value from before the
    /// rotation began, under a data key of its own made anew. No version is begun after `slice`: what is done stays
    /// done, and the next call goes on from where this one says, or from the beginning when one is cut short. What does
    /// not open stays as it is, and is told.
    pub async fn rotate(
        &self,
        data_keys: bool,
        from: Option<Cursor>,
        now: Timestamp,
        slice: Duration,
    ) -> Result<Rotation, Error> {
        if self.store.read(secrets::keys)?.is_empty() {
            // One that was cut short has nothing left to do.
            self.store.write(|conn| secrets::end_rotation(conn, None)).await?;
            return Ok(Rotation::default());
        }
        let newest = self.keys.to_seal()?;
        let mut id = newest.newest().await?;
        let begun = match data_keys {
            true => Some(self.store.write(move |conn| secrets::begin_rotation(conn, now)).await?),
            false => None,
        };
        let (number, was_begun) =
            (begun.map(|begun| begun.number), begun.is_some_and(|begun| begun.was_begun));
        let until = Instant::now() + slice;
        let work = Work { vault: self, newest, rotation: number, until };
        let begun_at = begun.map(|begun| begun.at);
        let mut rotation = Rotation { begun_at, was_begun, ..Rotation::default() };
        // It is of no use where somebody else has come to the end meanwhile.
        let mut at = from.filter(|_| !data_keys || was_begun).unwrap_or(Cursor::START);
        loop {
            let rows =
                self.store.read(|conn| secrets::older(conn, &id, number, at.after, BATCH))?;
            if rows.is_empty() {
                // Transit's key may have got another version meanwhile, with which what was sealed first is not.
                let (total, left) = self.store.read(|conn| secrets::left(conn, &id, number))?;
                if left <= at.damaged || at.written == 0 {
                    (rotation.done, rotation.total) = (total.saturating_sub(left), total);
                    break;
                }
                at = Cursor::START;
                rotation.damaged.clear();
                continue;
            }
            let Made { written, key, damaged, after, error } = work.seal(rows).await?;
            rotation.versions += written;
            at.after = after.unwrap_or(at.after);
            at.written += written;
            at.damaged += damaged.len() as u64;
            id = key.unwrap_or(id);
            let room = NAMED.saturating_sub(rotation.damaged.len());
            rotation.damaged.extend(damaged.into_iter().take(room));
            let is_late = Instant::now() >= until;
            if error.is_none() && !is_late {
                continue;
            }
            let (total, left) = self.store.read(|conn| secrets::left(conn, &id, number))?;
            let done = total.saturating_sub(left);
            if let Some(error) = error {
                return Err(Error::Stopped { done, total, error: Box::new(error) });
            }
            (rotation.done, rotation.total) = (done, total);
            rotation.next = Some(at);
            break;
        }
        rotation.damaged_total = at.damaged;
        if let (Some(_), None) = (number, rotation.next) {
            self.store.write(move |conn| secrets::end_rotation(conn, number)).await?;
        }
        rotation.key = Some(id);
        Ok(rotation)
    }
}

impl Work<'_> {
    /// Seals these anew, as far as that goes, and writes what is sealed.
    async fn seal(&self, rows: Vec<SealedRow>) -> Result<Made, Error> {
        let mut made = Made::default();
        let begun = AtomicI64::new(i64::MIN);
        let mut batch = Vec::with_capacity(rows.len());
        let in_time = rows.into_iter().take_while(|_| Instant::now() < self.until);
        let sealing = in_time.map(|row| {
            begun.store(row.seq, Ordering::Relaxed);
            async move {
                let (was, name, version) =
                    (row.sealed.data_key.clone(), row.name.clone(), row.version);
                let is_old = !self.newest.is(&row.sealed.key);
                match self.anew(row).await {
                    Ok(row) => Ok(Ok((was, row))),
                    Err(error) if error.is_damage(is_old) => {
                        Ok(Err(Damage { name, version, problem: error.to_string() }))
                    }
                    Err(error) => Err(error),
                }
            }
        });
        let mut sealing = std::pin::pin!(futures::stream::iter(sealing).buffer_unordered(AT_ONCE));
        let mut flush = Instant::now() + FLUSH;
        loop {
            match tokio::time::timeout_at(flush, sealing.next()).await {
                Ok(Some(Ok(Ok(sealed)))) => batch.push(sealed),
                Ok(Some(Ok(Err(damage)))) => made.damaged.push(damage),
                Ok(Some(Err(error))) => {
                    made.error = Some(error);
                    break;
                }
                Ok(None) => break,
                Err(_) => {
                    self.write(std::mem::take(&mut batch), &mut made).await?;
                    flush = Instant::now() + FLUSH;
                }
            }
        }
        self.write(batch, &mut made).await?;
        made.after = Some(begun.load(Ordering::Relaxed)).filter(|&seq| seq > i64::MIN);
        Ok(made)
    }

    async fn write(&self, batch: Vec<(Vec<u8>, SealedRow)>, made: &mut Made) -> Result<(), Error> {
        let Some((_, last)) = batch.last() else { return Ok(()) };
        made.key = Some(last.sealed.key.clone());
        let rotation = self.rotation;
        let write = self.vault.store.write(move |conn| {
            let mut done = 0;
            for (was, row) in &batch {
                done += secrets::reseal(conn, row, was, rotation)?;
            }
            crate::failpoint::hit("rotate");
            Ok(done)
        });
        made.written += write.await?;
        Ok(())
    }

    /// A version, sealed with the newest key.
    async fn anew(&self, row: SealedRow) -> Result<SealedRow, Error> {
        let workspace = &self.vault.workspace;
        let place = Place { workspace, name: &row.name, version: row.version };
        let key = self.vault.keys.of(&row.sealed.key)?;
        let sealed = if self.rotation.is_some() {
            let value = key.open(place, &row.sealed).await?;
            envelope::seal(place, &value, &self.newest.make(place).await?)?
        } else {
            key.rewrap(place, row.sealed, &self.newest).await?
        };
        Ok(SealedRow { sealed, ..row })
    }
}
