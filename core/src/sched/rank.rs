//! A job's place in the queue.

use crate::id::SubmitSeq;
use crate::spec::Priority;
use crate::time::Timestamp;

/// A place in a queue; the lowest is first.
///
/// A level of priority is worth a day of waiting: a job goes before those of the level below that
/// were submitted up to a day earlier, and after those that have waited longer. So nothing starves,
/// and a place never changes while a job waits. Among equals the order of submission decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank {
    /// Milliseconds since the epoch: the submission, less what the priority is worth.
    counted_from: i64,
    seq: SubmitSeq,
}

/// What a level of priority is worth, in milliseconds.
const LEVEL_MS: i64 = 24 * 60 * 60 * 1000;

impl Rank {
    /// The place of a job that was submitted at `created_at`.
    pub fn new(priority: Priority, created_at: Timestamp, seq: SubmitSeq) -> Self {
        let worth = match priority {
            Priority::Low => -LEVEL_MS,
            Priority::Medium => 0,
            Priority::High => LEVEL_MS,
        };
        Self { counted_from: created_at.as_millis().saturating_sub(worth), seq }
    }

    /// The job's number in the order of submission.
    pub fn seq(self) -> SubmitSeq {
        self.seq
    }
}
