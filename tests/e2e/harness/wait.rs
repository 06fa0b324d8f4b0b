//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

/// How long anything ordinary may take on a slow, busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(15);

/// Looks until `look` finds something; fails the test after [`PATIENCE`].
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// Looks until `look` finds something; fails the test after `patience`.
#[track_caller]
pub(crate) fn until_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} in vain: {what}");
        std::thread::sleep(LOOK);
    }
}
