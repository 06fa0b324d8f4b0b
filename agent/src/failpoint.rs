//! Places where a test may have an attempt's task panic. They do nothing unless the `failpoints` feature is on, which
//! no release build has.

/// Panics if `ATELIER_FAILPOINT` names this place.
#[inline]
pub(crate) fn panics(name: &str) {
    // Not left out by an attribute: with the feature and without it the same is checked.
    if cfg!(feature = "failpoints") {
        let wanted = std::env::var("ATELIER_FAILPOINT");
        assert!(wanted.as_deref() != Ok(name), "as the test wants it");
    }
}
