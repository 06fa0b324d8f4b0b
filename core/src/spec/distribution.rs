//! `distribution:`: what it may say, read and checked.

use serde::{Deserialize, Serialize};

use super::command::CommandJob;
use super::job::{count, given, text};
use super::limits::{MAX_PROCESSES, MAX_PROCESSES_PER_NODE, MAX_VALUE};
use super::shape::{boolean, word};
use super::shell::split;
use super::validate::Check;
use super::yaml::Node;

/// How several processes are launched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Distribution {
    /// `torch.distributed` by environment variables.
    #[serde(rename = "pytorch")]
    PyTorch {
        /// Processes on each node.
        process_count_per_instance: u32,
    },
    /// `TF_CONFIG`.
    #[serde(rename = "tensorflow")]
    TensorFlow {
        /// Workers in all. With the parameter servers they are as many as the job's members.
        worker_count: u32,
        /// Parameter servers in all.
        parameter_server_count: u32,
    },
    /// `mpirun`.
    Mpi {
        /// Processes on each node.
        process_count_per_instance: u32,
    },
    /// A Ray cluster for the job's duration.
    Ray(Ray),
}

/// How a job's Ray cluster is started. What is not said is chosen where it starts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ray {
    /// The head's port; otherwise one of the attempt's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where the others reach the head, `HOST` or `HOST:PORT`; otherwise at its node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the head starts the dashboard; otherwise Ray decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_dashboard: Option<bool>,
    /// The dashboard's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dashboard_port: Option<u16>,
    /// Further arguments of `ray start` on the head, as one would write them in a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_node_additional_args: Option<String>,
    /// The same on the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_node_additional_args: Option<String>,
}

impl Ray {
    /// The further arguments of `ray start`, on the head or on another member.
    pub fn additional_args(&self, is_head: bool) -> Vec<String> {
        let line = match is_head {
            true => &self.head_node_additional_args,
            false => &self.worker_node_additional_args,
        };
        line.as_deref().and_then(split).unwrap_or_default()
    }
}

impl Distribution {
    /// How often the command is run at once on each node. What `mpirun` starts, and Ray, is started by one
    /// command.
    pub fn commands_per_node(&self) -> u32 {
        match self {
            Self::PyTorch { process_count_per_instance } => *process_count_per_instance,
            Self::TensorFlow { .. } | Self::Mpi { .. } | Self::Ray(_) => 1,
        }
    }

    /// How many processes of the job's own there are on each node, each with a log of its own.
    pub fn processes_per_node(&self) -> u32 {
        match self {
            Self::PyTorch { process_count_per_instance }
            | Self::Mpi { process_count_per_instance } => *process_count_per_instance,
            Self::TensorFlow { .. } | Self::Ray(_) => 1,
        }
    }

    /// Whether the command runs in the member of rank 0 alone, and the others serve it until it is over.
    pub fn has_head(&self) -> bool {
        match self {
            Self::PyTorch { .. } | Self::TensorFlow { .. } => false,
            Self::Mpi { .. } | Self::Ray(_) => true,
        }
    }
}

/// Reads it, of a job of so many members.
pub(super) fn read(node: &Node, members: u32) -> Distribution {
    let processes = count(node, "process_count_per_instance").unwrap_or(1);
    let kind = node.get("type").and_then(Node::as_text).unwrap_or_default();
    match word(kind, &["pytorch", "tensorflow", "mpi", "ray"]) {
        Some("tensorflow") => {
            let parameter_server_count = count(node, "parameter_server_count").unwrap_or(0);
            let rest = members.saturating_sub(parameter_server_count);
            Distribution::TensorFlow {
                worker_count: count(node, "worker_count").unwrap_or(rest),
                parameter_server_count,
            }
        }
        Some("mpi") => Distribution::Mpi { process_count_per_instance: processes },
        Some("ray") => Distribution::Ray(ray(node)),
        _ => Distribution::PyTorch { process_count_per_instance: processes },
    }
}

fn ray(node: &Node) -> Ray {
    let port = |key| count(node, key).and_then(|port| u16::try_from(port).ok());
    Ray {
        port: port("port"),
        address: text(node, "address"),
        include_dashboard: given(node, "include_dashboard").and_then(boolean),
        dashboard_port: port("dashboard_port"),
        head_node_additional_args: text(node, "head_node_additional_args"),
        worker_node_additional_args: text(node, "worker_node_additional_args"),
    }
}

/// The faults of a job's distribution.
pub(super) fn faults(check: &mut Check, job: &CommandJob) {
    match &job.distribution {
        Some(
            Distribution::PyTorch { process_count_per_instance: count }
            | Distribution::Mpi { process_count_per_instance: count },
        ) => {
            let path = &["distribution", "process_count_per_instance"];
            check.at(path).range((*count).into(), 1, MAX_PROCESSES_PER_NODE.into());
        }
        Some(Distribution::TensorFlow { worker_count, parameter_server_count }) => {
            tensorflow_faults(check, job, *worker_count, *parameter_server_count);
        }
        Some(Distribution::Ray(ray)) => ray_faults(check, ray),
        None => {}
    }
}

fn tensorflow_faults(check: &mut Check, job: &CommandJob, workers: u32, servers: u32) {
    let members = job.resources.instance_count;
    let most = MAX_PROCESSES.into();
    check.at(&["distribution", "parameter_server_count"]).range(servers.into(), 0, most);
    if servers > 0 && servers >= members {
        return check.fault(
            format!(
                "'distribution.parameter_server_count' is {servers}, and 'resources.instance_count' \
                 {members}: at least one member has to be a worker"
            ),
            "set it lower, or 'resources.instance_count' higher",
        );
    }
    let before = check.count();
    check.at(&["distribution", "worker_count"]).range(workers.into(), 1, most);
    if check.count() > before || workers.saturating_add(servers) == members {
        return;
    }
    let with = match servers {
        0 => String::new(),
        _ => format!(" with 'distribution.parameter_server_count' {servers}"),
    };
    let rest = members.saturating_sub(servers);
    check.fault(
        format!(
            "'distribution.worker_count' is {workers}{with}, and 'resources.instance_count' {members}: each \
             member is one of them"
        ),
        format!(
            "write {rest}, or leave it out; or set 'resources.instance_count' to {}",
            workers.saturating_add(servers)
        ),
    );
}

fn ray_faults(check: &mut Check, ray: &Ray) {
    let ports = [("port", ray.port), ("dashboard_port", ray.dashboard_port)];
    for (key, port) in ports {
        // Only a client of its own sends zero.
        if let Some(port) = port {
            check.at(&["distribution", key]).range(port.into(), 1, u16::MAX.into());
        }
    }
    if let Some(address) = &ray.address {
        check.at(&["distribution", "address"]).size(address, MAX_VALUE, "write a host's name");
        if address.is_empty() || address.contains(char::is_whitespace) || address.starts_with('-') {
            check.fault(
                "'distribution.address' is not an address",
                "write HOST or HOST:PORT, or leave it out: the head's node is known",
            );
        }
    }
    let lines = [
        ("head_node_additional_args", &ray.head_node_additional_args),
        ("worker_node_additional_args", &ray.worker_node_additional_args),
    ];
    for (key, line) in lines {
        let Some(line) = line else { continue };
        check.at(&["distribution", key]).size(line, MAX_VALUE, "give fewer arguments");
        if split(line).is_none() {
            check.fault(format!("'distribution.{key}': a quote is not closed"), "close it");
        }
    }
}
