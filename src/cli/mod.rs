//! The command line.

pub mod upload;
