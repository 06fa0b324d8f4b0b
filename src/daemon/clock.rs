//! The one place where the daemon reads clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use atelier_core::node::{Mono, Now};
use atelier_core::time::Timestamp;

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

    /// The wall clock.
    pub fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
