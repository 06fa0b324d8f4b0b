//! What the tests stand on: a cluster of real processes, the command line, waiting, checking.

mod bao;
mod cli;
mod cluster;
mod faults;
mod history;
mod keyring;
mod many;
mod oidc;
mod process;
mod proxy;
mod registry;
mod rpc;
pub(crate) mod share;
mod stores;
mod wait;

pub(crate) use bao::Bao;
pub(crate) use cli::{Cli, Outcome, Running};
pub(crate) use cluster::{Agent, Cluster, PROGRAM, Settings, http, job_yaml};
pub(crate) use faults::{Disk, FaultyClock, FaultyIo, Hang, can, needs};
pub(crate) use history::{History, check_database};
pub(crate) use keyring::Session;
pub(crate) use many::Answering;
pub(crate) use oidc::Provider;
pub(crate) use process::{Process, memory, processes_with, supervisor};
pub(crate) use proxy::{BOTH, Proxy, Way};
pub(crate) use registry::{Engine, Registry};
pub(crate) use rpc::Rpc;
pub(crate) use stores::{Azure, Fault, FaultyWay, S3};
pub(crate) use wait::{PATIENCE, until};
