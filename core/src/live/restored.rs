//! What a workspace does after it was restored from a backup.
//!
//! Between the backup and the restore the nodes lived on: jobs that wait here may run there, and attempts that
//! are being given out here may have ended there. Nothing in the backup says so. So the numbers of that time are
//! never used again, nothing starts until what may still run of it has ended, and no attempt of before is given
//! out a second time.

use super::{Decisions, Live};
use crate::id::{Epoch, NodeName};
use crate::node::{Mono, Now};
use crate::time::Timestamp;

/// What the store keeps of the last restore.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Restored {
    /// The last epoch that the backup knows; 0 if the workspace was never restored.
    pub fence: Epoch,
    /// Whether nothing has started since.
    pub holds: bool,
}

impl Restored {
    /// So many numbers are left for each millisecond between two restores, which no daemon gives out.
    const EACH_MS: u64 = 1 << 10;

    /// So far ahead go the numbers where the clock is behind them.
    const AHEAD: u64 = 1 << 40;

    /// The last of the numbers that are left out when a backup is restored that ends with `last`. It follows from the
    /// time of the restore, so that restoring a backup again, or an older one, leaves out those of the first time too.
    /// It has 53 bits until the year 2248: whatever reads numbers as JSON can hold it.
    pub fn left_out(last: u64, now: Timestamp) -> u64 {
        let by_time = u64::try_from(now.as_millis()).unwrap_or(0).saturating_mul(Self::EACH_MS);
        if by_time > last { by_time } else { last.saturating_add(Self::AHEAD) }
    }

    /// Why no node gets jobs meanwhile.
    pub const HOLDS: &str = "the workspace was restored from a backup: jobs start once what may still run of the \
                             time since has ended, after the lease and its margin";
}

impl Live {
    /// Takes note of a restore, after [`Live::recover`].
    pub fn recover_restored(&mut self, restored: Restored, mono: Mono) {
        self.fence = restored.fence;
        if restored.holds {
            self.held_until = Some(self.held_from(mono));
            self.close_all();
        }
    }

    /// Whether nothing starts yet after a restore.
    pub fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// A node runs an attempt of the time that was lost, and is told to end it. It may not hear that, and its lease
    /// began anew when it came.
    pub(super) fn hold_on(&mut self, epoch: Epoch, now: Now) {
        // Nothing has started since: whatever the backup does not know is of that time.
        if epoch > self.fence && self.held_until.is_some() {
            self.held_until = Some(self.held_from(now.mono));
        }
    }

    fn held_from(&self, mono: Mono) -> Mono {
        Mono(mono.0 + self.lease.lease_ms + self.lease.margin_ms)
    }

    /// Lets jobs start once the time for that has come.
    pub(super) fn end_hold(&mut self, now: Now, out: &mut Decisions) {
        if self.held_until.is_some_and(|until| now.mono >= until) {
            self.held_until = None;
            out.hold_over = true;
            self.close_all();
        }
    }

    fn close_all(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            self.close(&name);
        }
    }
}
