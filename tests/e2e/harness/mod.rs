//! What the tests stand on: a cluster of real processes, the command line, waiting, checking.

mod cli;
mod cluster;
mod process;
mod rpc;
mod wait;

pub(crate) use cluster::{Agent, Cluster, job_yaml};
pub(crate) use process::Process;
pub(crate) use wait::until;
