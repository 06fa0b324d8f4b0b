//! Waiting for a state, never for a time.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long anything ordinary may take on a slow, busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is looked at.
const LOOK: Duration = Duration::from_millis(15);

/// As many times as long as elsewhere may anything take here, as `ATELIER_TEST_SLOWNESS` says: in a machine that
/// is emulated, say.
static SLOWNESS: LazyLock<u32> = LazyLock::new(|| match std::env::var("ATELIER_TEST_SLOWNESS") {
    Ok(times) => times.parse().expect("ATELIER_TEST_SLOWNESS is a whole number"),
    Err(_) => 1,
});

/// Whether what may take so long has taken longer since then.
pub(crate) fn is_over(begun: Instant, patience: Duration) -> bool {
    begun.elapsed() > patience * *SLOWNESS
}

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
        assert!(!is_over(begun, patience), "waited {patience:?} in vain: {what}");
        std::thread::sleep(LOOK);
    }
}
