//! Places where a test may have an attempt's task panic. Compiled to nothing unless the `failpoints` feature
//! is on, which no release build has.

/// Panics if `ATELIER_FAILPOINT` names this place.
#[cfg(feature = "failpoints")]
pub(crate) fn panics(name: &str) {
    let wanted = std::env::var("ATELIER_FAILPOINT");
    assert!(wanted.as_deref() != Ok(name), "as the test wants it");
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn panics(_name: &str) {}
