//! A job's place in the queue.

use crate::id::SubmitSeq;
use crate::spec::{JobTier, Priority};
use crate::time::Timestamp;

/// A place in a queue; the lowest is first.
///
/// Tiers come first: `premium` before `standard`, `basic` and `spot`. Within a tier a level of
/// priority is worth a day of waiting: a job goes before those of the level below that were submitted
/// up to a day earlier, and after those that have waited longer. So nothing starves in its tier, and a
/// place never changes while a job waits. Among equals the order of submission decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank {
    /// Highest first.
    tier: std::cmp::Reverse<JobTier>,
    /// Milliseconds since the epoch: the submission, less what the priority is worth.
    counted_from: i64,
    seq: SubmitSeq,
}

/// What a level of priority is worth, in milliseconds.
pub(super) const LEVEL_MS: i64 = 24 * 60 * 60 * 1000;

impl Rank {
    /// The place of a job of this tier and level that was submitted at `created_at`.
    pub fn new(tier: JobTier, priority: Priority, created_at: Timestamp, seq: SubmitSeq) -> Self {
        let worth = match priority {
            Priority::Low => -LEVEL_MS,
            Priority::Medium => 0,
            Priority::High => LEVEL_MS,
        };
        let counted_from = created_at.as_millis().saturating_sub(worth);
        Self { tier: std::cmp::Reverse(tier), counted_from, seq }
    }

    /// The job's number in the order of submission.
    pub fn seq(self) -> SubmitSeq {
        self.seq
    }

    /// The job's tier.
    pub fn tier(self) -> JobTier {
        self.tier.0
    }

    /// The place of one that was submitted so many milliseconds later; earlier if less than zero.
    pub(super) fn later_by(self, millis: i64) -> Self {
        Self { counted_from: self.counted_from.saturating_add(millis), ..self }
    }
}
