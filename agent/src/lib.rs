//! The node agent: the daemon's hand on one machine.
mod clock;
pub mod data;
pub mod environment;
mod proc;
mod record;
mod supervisor;

pub use supervisor::supervise_if_asked;
