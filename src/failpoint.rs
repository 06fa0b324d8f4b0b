//! Places where a test may kill the daemon. They do nothing unless the `failpoints` feature is on, which no release
//! build has.

use std::sync::atomic::{AtomicU64, Ordering};

/// Aborts the process if `ATELIER_FAILPOINT` names this place. `NAME:N` means the N-th time.
#[inline]
pub(crate) fn hit(name: &str) {
    static HITS: AtomicU64 = AtomicU64::new(0);
    // Not left out by an attribute: with the feature and without it the same is checked.
    if !cfg!(feature = "failpoints") {
        return;
    }
    let Ok(wanted) = std::env::var("ATELIER_FAILPOINT") else { return };
    let (wanted, count) = match wanted.split_once(':') {
        Some((wanted, count)) => (wanted, count.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if wanted == name && HITS.fetch_add(1, Ordering::SeqCst) + 1 == count {
        std::process::abort();
    }
}
