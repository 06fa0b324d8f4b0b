//! Whether entries follow one another as they were written.

use serde::{Deserialize, Serialize};

use super::{Entry, START};
use crate::content::Digest;

/// What is wrong with a log, at the first entry that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Its hash is not that of what it says.
    #[error("entry {0} is not as it was written: its hash is not that of what it says")]
    Changed(u64),
    /// Entries are missing.
    #[error("entries {first} to {last} are missing")]
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// It does not come where it belongs.
    #[error("entry {found} stands where entry {expected} belongs")]
    Moved {
        /// Which.
        found: u64,
        /// Which belongs there.
        expected: u64,
    },
    /// It was written after another entry than the one before it.
    #[error(
        "entry {0} does not follow the entry before it: one of the two is not as it was written"
    )]
    Unlinked(u64),
    /// The head is none of the entries'.
    #[error(
        "no entry has the hash {head}: entries were taken from the end, or all were written anew; the last one is {last}"
    )]
    Headless {
        /// The head that was noted.
        head: Digest,
        /// The last entry.
        last: u64,
    },
}

/// Follows a log from entry to entry.
#[derive(Clone, Debug)]
pub struct Chain {
    first: Option<u64>,
    last: Option<(u64, Digest)>,
    /// A head that was noted before, and by which entry it was found.
    head: Option<(Digest, Option<u64>)>,
    /// Of a whole log whose first entries are gone: what the last of them must have been. An entry that comes later
    /// has to tell that they were pruned.
    gone: Option<Checkpoint>,
}

/// Where a log was cut: the last entry that was taken away. An entry tells of it, which follows those that stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its number.
    pub through: u64,
    /// Its hash.
    pub head: Digest,
}

impl Checkpoint {
    /// What is pruned, as entries name it.
    pub const RESOURCE: &str = "audit/log";
    /// What its entry is called.
    pub const ACTION: &str = "AuditService/PruneAuditLog";

    /// What an entry tells of it, if it tells that.
    fn of(entry: &Entry) -> Option<Self> {
        let is_one = entry.resource == Self::RESOURCE
            && entry.action == Self::ACTION
            && entry.refused.is_none();
        let told = entry.after.as_deref().filter(|_| is_one)?;
        serde_json::from_str(told).ok()
    }
}

impl Chain {
    /// A whole log, from its first entry on, or from where it was pruned.
    pub const fn whole() -> Self {
        Self { first: None, last: Some((0, START)), head: None, gone: None }
    }

    /// A part of a log, from whichever entry comes first on.
    pub const fn part() -> Self {
        Self { first: None, last: None, head: None, gone: None }
    }

    /// The same, in which one of the entries must have this hash.
    #[must_use]
    pub const fn with_head(mut self, head: Digest) -> Self {
        self.head = Some((head, None));
        self
    }

    /// The next entry.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Fault> {
        // Whether they were pruned comes out later.
        if self.first.is_none() && self.last == Some((0, START)) && entry.seq > 1 {
            let gone = Checkpoint { through: entry.seq - 1, head: entry.previous };
            self.last = Some((gone.through, gone.head));
            self.gone = Some(gone);
        }
        if let Some((last, hash)) = self.last {
            let expected = last.saturating_add(1);
            if entry.seq > expected {
                return Err(Fault::Missing { first: expected, last: entry.seq - 1 });
            }
            if entry.seq < expected {
                return Err(Fault::Moved { found: entry.seq, expected });
            }
            if entry.previous != hash {
                // Whichever of the two it is: what this one says tells.
                return Err(match entry.hash == entry.digest() {
                    true => Fault::Unlinked(entry.seq),
                    false => Fault::Changed(entry.seq),
                });
            }
        }
        if entry.hash != entry.digest() {
            return Err(Fault::Changed(entry.seq));
        }
        if self.gone.is_some() && Checkpoint::of(entry) == self.gone {
            self.gone = None;
        }
        self.first.get_or_insert(entry.seq);
        self.last = Some((entry.seq, entry.hash));
        if let Some((head, found)) = &mut self.head
            && *head == entry.hash
        {
            *found = Some(entry.seq);
        }
        Ok(())
    }

    /// There are no more: the numbers of the first and the last entry and the hash of the last, if there are any.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Headless`].
    pub fn end(self) -> Result<Option<(u64, u64, Digest)>, Fault> {
        if let Some(Checkpoint { through, .. }) = self.gone {
            return Err(Fault::Missing { first: 1, last: through });
        }
        let last = self.last.map_or(0, |(last, _)| last);
        if let Some((head, None)) = self.head {
            return Err(Fault::Headless { head, last });
        }
        Ok(self.first.zip(self.last).map(|(first, (last, hash))| (first, last, hash)))
    }
}
