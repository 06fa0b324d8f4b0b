//! Atelier's daemon and command line.

pub mod daemon;
mod failpoint;
pub mod identity;
pub mod store;
