//! Instants and durations as the product stores and prints them.

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

/// A wall-clock instant: whole milliseconds since the Unix epoch, UTC.
///
/// It is for people and records. Leases count a monotonic clock instead, because wall clocks jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This instant, `millis` milliseconds later; saturates at the ends of the range.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to `self`, zero if `earlier` is later (clocks do step back).
    pub const fn millis_since(self, earlier: Self) -> i64 {
        let millis = self.0.saturating_sub(earlier.0);
        if millis < 0 { 0 } else { millis }
    }
}

/// RFC 3339 in UTC with milliseconds, as Azure prints times.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(instant) => write!(f, "{instant:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A wall clock for decisions and records that never goes back and never leaps.
///
/// It starts as the system's. From then on it counts the time that passes, and is drawn towards the system's clock:
/// at most twice as fast as time passes where that is ahead, at least half as fast where it is behind. When somebody
/// sets the system's clock, or two of its sources disagree, no deadline comes at once because of that, none is out of
/// reach, and what is recorded later bears a later time.
#[derive(Debug, Default)]
pub struct Steady {
    /// What was told last, and how much time had passed then, in microseconds.
    last: Option<(i64, u64)>,
    /// What was recorded before and is more than a day later, in microseconds. Once the system's clock is there the
    /// record was right, and that clock wrong before.
    awaited: Option<i64>,
}

impl Steady {
    /// One that has told nothing yet.
    pub const fn new() -> Self {
        Self { last: None, awaited: None }
    }

    /// This moment, as the system's clock tells `system`, and some count of the time that passes `elapsed`: both in
    /// microseconds.
    pub fn tell(&mut self, system: i64, elapsed: u64) -> Timestamp {
        let told = match self.last {
            None => system,
            Some(_) if self.awaited.is_some_and(|awaited| system >= awaited) => {
                self.awaited = None;
                system
            }
            Some((last, before)) => {
                let passed = i64::try_from(elapsed.saturating_sub(before)).unwrap_or(i64::MAX);
                let ahead = system.saturating_sub(last).saturating_sub(passed);
                last.saturating_add(passed).saturating_add(ahead.clamp(-(passed / 2), passed))
            }
        };
        let elapsed = self.last.map_or(elapsed, |(_, before)| before.max(elapsed));
        self.last = Some((told, elapsed));
        Timestamp(told.div_euclid(1000))
    }

    /// Goes on from a moment that was recorded before, if that is later: a clock that was set back while nobody
    /// looked. `false`: that is more than a day later, and one of both is wrong. Should the system's clock come to be that
    /// late too, it is taken as it is.
    pub fn resume(&mut self, recorded: Timestamp) -> bool {
        const DAY_US: i64 = 86_400_000_000;
        let Some((told, _)) = &mut self.last else { return true };
        let recorded = recorded.0.saturating_mul(1000);
        let is_near = recorded.saturating_sub(*told) <= DAY_US;
        if is_near {
            *told = recorded.max(*told);
        } else {
            self.awaited = Some(recorded);
        }
        is_near
    }
}
