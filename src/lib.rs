//! The daemon and the command line.

pub mod cli;
pub mod grpc;
pub mod http;
pub mod storage;
