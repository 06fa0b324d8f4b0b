//! Atelier's daemon and command line.

pub mod audit;
pub mod backup;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
mod failpoint;
#[doc(hidden)]
pub mod fuzz;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod oidc;
mod process;
mod provider;
pub mod storage;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod track;
pub mod vault;

/// Version and commit of this build, for example `0.1.0 (1a2b3c4d5)`.
pub const VERSION: &str = env!("ATELIER_VERSION");
