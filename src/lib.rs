//! Atelier's daemon and command line.

pub mod daemon;
mod failpoint;
pub mod http;
pub mod identity;
pub mod store;
pub mod storage;
pub mod track;
