//! How much one caller may ask for: so many requests a second on average, more of them for a while, and so many at
//! the same time.

use std::time::Duration;

use crate::access::Role;

/// What one caller may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Requests a second, on average; at least one.
    pub per_second: u32,
    /// As many at once where nothing was asked for before; at least one.
    pub burst: u32,
    /// Requests that are answered at the same time, streams included.
    pub at_once: u32,
}

/// Seconds' worth of requests that may come at once.
const BURST_S: u32 = 20;
/// How much more machines may ask for than people: a node moves the data of many jobs, a job logs in a loop.
const MACHINES: u32 = 10;
const MACHINES_AT_ONCE: u32 = 4;

impl Allowance {
    /// What a caller of a role may ask for, where people may ask for so much.
    pub fn of(role: &Role, per_second: u32, at_once: u32) -> Self {
        let (often, many) = match role {
            Role::Node(_) | Role::Attempt(_) => (MACHINES, MACHINES_AT_ONCE),
            _ => (1, 1),
        };
        let per_second = per_second.max(1).saturating_mul(often);
        Self {
            per_second,
            burst: per_second.saturating_mul(BURST_S),
            at_once: at_once.max(1).saturating_mul(many),
        }
    }
}

/// A token bucket, kept as the moment at which it is full again (the generic cell rate algorithm).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Nanoseconds since whatever `now` counts from.
    full_at: u64,
}

impl Bucket {
    /// Takes one token, or says how long it takes until there is one. A clock that goes back gives nothing.
    ///
    /// # Errors
    /// The time until a token is there, if nobody takes it before.
    pub fn take(&mut self, now: Duration, allowance: Allowance) -> Result<(), Duration> {
        let now = nanos(now);
        let each = each(allowance);
        let full_at = self.full_at.max(now).saturating_add(each);
        let most = each.saturating_mul(u64::from(allowance.burst.max(1)));
        match full_at.saturating_sub(now).saturating_sub(most) {
            0 => {
                self.full_at = full_at;
                Ok(())
            }
            early => Err(Duration::from_nanos(early)),
        }
    }

    /// Whether nothing is lost if the bucket is forgotten.
    pub fn is_full(&self, now: Duration) -> bool {
        self.full_at <= nanos(now)
    }
}

/// Nanoseconds for each token; those of more than a thousand million a second come with no wait.
fn each(allowance: Allowance) -> u64 {
    1_000_000_000 / u64::from(allowance.per_second.max(1))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
