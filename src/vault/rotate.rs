//! Sealing anew: with the newest key, under new data keys, past what does not open.

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
use crate::store::secrets::{self, SealedRow};

/// Versions that are sealed anew in one transaction.
pub(super) const BATCH: usize = 32;
/// What is sealed anew is on disk after so long, however few those are: a call that is cut short loses no more.
const FLUSH: Duration = Duration::from_secs(2);

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
    /// Whether all are done but those that do not open. Otherwise the next call goes on.
    pub is_over: bool,
    /// Those that were met and do not open. They stay as they are.
    pub damaged: Vec<Damage>,
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
    /// Whether it is what is kept that is at fault: what else is kept may open.
    fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::NotOpened { error, .. } => error.is_of_what_was_sent(),
            _ => false,
        }
    }
}

/// What was made of a batch.
#[derive(Default)]
struct Sealed {
    /// How many were written.
    written: u64,
    /// The key of the last of them.
    key: Option<KeyId>,
    damaged: Vec<Damage>,
    /// Why it was not gone through to its end.
    error: Option<Error>,
}

/// What is sealed anew, and how.
struct Work<'a> {
    vault: &'a Vault,
    newest: Wrapper,
    /// When the rotation began that makes new data keys; `None`: they stay.
    begun_at: Option<Timestamp>,
    /// No further one is begun after that.
    until: Instant,
}

impl Vault {
    /// Seals with the newest key what is sealed with an older one; with `data_keys` every value from before the
    /// rotation began, under a data key of its own made anew. No version is begun after `slice`: what is done stays
    /// done, and the next call goes on, as it does when one is cut short. What does not open stays as it is, and is
    /// told.
    pub async fn rotate(
        &self,
        data_keys: bool,
        now: Timestamp,
        slice: Duration,
    ) -> Result<Rotation, Error> {
        if self.store.read(secrets::keys)?.is_empty() {
            return Ok(Rotation { is_over: true, ..Rotation::default() });
        }
        let newest = self.keys.to_seal()?;
        let mut id = newest.newest().await?;
        let begun_at = match data_keys {
            true => Some(self.store.write(move |conn| secrets::begin_rotation(conn, now)).await?),
            false => None,
        };
        let until = Instant::now() + slice;
        let work = Work { vault: self, newest, begun_at, until };
        let mut rotation = Rotation::default();
        let (mut after, mut in_pass) = (i64::MIN, 0);
        loop {
            let rows = self.store.read(|conn| secrets::older(conn, &id, begun_at, after, BATCH))?;
            let Some(last) = rows.last() else {
                // Transit's key may have got another version meanwhile, with which what was sealed first is not.
                let (total, left) = self.store.read(|conn| secrets::left(conn, &id, begun_at))?;
                if left <= rotation.damaged.len() as u64 || in_pass == 0 {
                    rotation.is_over = true;
                    (rotation.done, rotation.total) = (total.saturating_sub(left), total);
                    break;
                }
                (after, in_pass) = (i64::MIN, 0);
                rotation.damaged.clear();
                continue;
            };
            after = last.seq;
            let Sealed { written, key, damaged, error } = work.seal(rows).await?;
            rotation.versions += written;
            in_pass += written;
            id = key.unwrap_or(id);
            rotation.damaged.extend(damaged);
            let is_late = Instant::now() >= until;
            if error.is_none() && !is_late {
                continue;
            }
            let (total, left) = self.store.read(|conn| secrets::left(conn, &id, begun_at))?;
            let done = total.saturating_sub(left);
            if let Some(error) = error {
                return Err(Error::Stopped { done, total, error: Box::new(error) });
            }
            (rotation.done, rotation.total) = (done, total);
            break;
        }
        if let (Some(begun_at), true) = (begun_at, rotation.is_over) {
            self.store.write(move |conn| secrets::end_rotation(conn, begun_at)).await?;
        }
        rotation.key = Some(id);
        Ok(rotation)
    }
}

impl Work<'_> {
    /// Seals these anew, as far as that goes, and writes what is sealed.
    async fn seal(&self, rows: Vec<SealedRow>) -> Result<Sealed, Error> {
        let mut made = Sealed::default();
        let mut batch = Vec::with_capacity(rows.len());
        let in_time = rows.into_iter().take_while(|_| Instant::now() < self.until);
        let sealing = in_time.map(|row| async move {
            let (was, name, version) = (row.sealed.data_key.clone(), row.name.clone(), row.version);
            match self.anew(row).await {
                Ok(row) => Ok(Ok((was, row))),
                Err(error) if error.is_damage() => {
                    Ok(Err(Damage { name, version, problem: error.to_string() }))
                }
                Err(error) => Err(error),
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
        Ok(made)
    }

    async fn write(
        &self,
        batch: Vec<(Vec<u8>, SealedRow)>,
        made: &mut Sealed,
    ) -> Result<(), Error> {
        let Some((_, last)) = batch.last() else { return Ok(()) };
        made.key = Some(last.sealed.key.clone());
        let begun_at = self.begun_at;
        let write = self.vault.store.write(move |conn| {
            let mut done = 0;
            for (was, row) in &batch {
                done += secrets::reseal(conn, row, was, begun_at)?;
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
        let sealed = if self.begun_at.is_some() {
            let value = key.open(place, &row.sealed).await?;
            envelope::seal(place, &value, &self.newest.make(place).await?)?
        } else {
            key.rewrap(place, row.sealed, &self.newest).await?
        };
        Ok(SealedRow { sealed, ..row })
    }
}
