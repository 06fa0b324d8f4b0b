//! Atelier's daemon and command line.

pub mod cli;
pub mod client;
pub mod config;
pub mod telemetry;

/// Version and commit of this build, for example `0.1.0 (1a2b3c4d5)`.
pub const VERSION: &str = env!("ATELIER_VERSION");
