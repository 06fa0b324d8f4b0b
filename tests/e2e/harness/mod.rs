//! What the tests stand on: a cluster of real processes, the command line, waiting, checking.

mod cli;
mod cluster;
mod process;
mod rpc;
mod wait;

pub(crate) use cli::{Outcome, Running};
pub(crate) use cluster::{Agent, Cluster, Settings, answers, job_yaml};
pub(crate) use process::{Process, processes_with};
pub(crate) use rpc::Rpc;
pub(crate) use wait::{PATIENCE, until, until_within};
