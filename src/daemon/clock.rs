//! The one place where the daemon reads clocks.

use std::time::{Duration, Instant};

use atelier_agent::clock;
use atelier_core::node::{Mono, Now};
use atelier_core::time::Timestamp;

/// How often the system's clock is compared, and from which difference on that is told.
const LOOK: Duration = Duration::from_secs(10);
const TOLD_MS: i64 = 60_000;

/// Both clocks, from the daemon's start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock {
    /// This moment.
    pub fn now(&self) -> Now {
        let mono = Mono(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        Now { wall: self.wall(), mono }
    }

    /// A wall clock that neither goes back nor leaps when the system's does: what is recorded and decided goes by it.
    pub fn wall(&self) -> Timestamp {
        clock::wall()
    }

    /// The system's wall clock as it is: for what others compare with their own.
    pub fn system(&self) -> Timestamp {
        clock::system()
    }

    /// Has the wall clock go on from what was recorded last, and says what is wrong with the system's.
    pub(super) fn resume(&self, recorded: Timestamp) {
        let system = self.system();
        let is_near = clock::resume(recorded);
        if system.plus_millis(TOLD_MS) < recorded {
            tracing::warn!(
                %system, %recorded, is_near,
                "the system's clock is behind what this workspace recorded last; was it set back?"
            );
        }
    }

    /// Says when the system's clock has jumped, for as long as the daemon runs.
    pub(super) async fn watch(self) {
        let mut look = tokio::time::interval(LOOK);
        let mut before = 0;
        loop {
            look.tick().await;
            let (system, steady) = (self.system(), self.wall());
            let ahead = system.as_millis() - steady.as_millis();
            if (ahead - before).abs() >= TOLD_MS && ahead.abs() > TOLD_MS {
                tracing::warn!(
                    ahead_ms = ahead, %system, %steady,
                    "the system's clock has jumped; the daemon's goes on and is drawn to it, a restart takes it at once"
                );
            }
            before = ahead;
        }
    }
}
