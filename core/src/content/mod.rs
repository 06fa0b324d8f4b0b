//! Content-addressed trees: how code snapshots are cut, named and put together again.

mod digest;

pub use digest::{Digest, InvalidDigest};
