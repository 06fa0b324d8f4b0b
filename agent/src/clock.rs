//! The clocks an agent reads. Leases count [`boottime_ms`], records for people carry [`now_ms`].

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use atelier_core::time::{Steady, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// One for the process: what it says later is later.
static WALL: Mutex<Steady> = Mutex::new(Steady::new());

/// Wall-clock time that neither goes back nor leaps: milliseconds since the Unix epoch. Never compare for a lease.
pub(crate) fn now_ms() -> i64 {
    wall().as_millis()
}

/// The same.
pub fn wall() -> Timestamp {
    WALL.lock().unwrap_or_else(PoisonError::into_inner).tell(system_us(), boottime_us())
}

/// Has it go on from a moment that was recorded before this process began, if that is later; `false`: that is more
/// than a day later.
pub fn resume(recorded: Timestamp) -> bool {
    let mut wall = WALL.lock().unwrap_or_else(PoisonError::into_inner);
    wall.tell(system_us(), boottime_us());
    wall.resume(recorded)
}

/// Wall-clock time as the system has it, which may step: for what others compare with their own.
pub fn system() -> Timestamp {
    Timestamp::from_millis(system_us() / 1000)
}

fn system_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Milliseconds since the machine started, time asleep included; the same for every process.
pub(crate) fn boottime_ms() -> u64 {
    boottime_us() / 1000
}

fn boottime_us() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}
