//! `atelier node`

use atelier_core::resource::Memory;
use atelier_proto::compute::v1::{self as pb, GetNodeRequest, ListNodesRequest, NodeState};
use clap::Subcommand;
use serde_json::{Value, json};

use super::compute::{resources, share};
use super::job::time;
use super::output::moment;
use super::{Column, Context, Error, Name};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the nodes
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier node list --compute local")]
    List {
        /// Only those of this compute
        #[arg(long, value_name = "COMPUTE")]
        compute: Option<String>,
    },
    /// Show one node: what it has, what it can, what runs there
    #[command(after_help = "Example:\n  atelier node show local --query facts")]
    Show(Name),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut computes = client.computes();
    match command {
        Command::List { compute } => {
            let request = ListNodesRequest { compute: compute.unwrap_or_default() };
            let answer = client.call(computes.list_nodes(request)).await?;
            context.output.list(answer.nodes.iter().map(view).collect(), COLUMNS)
        }
        Command::Show(name) => {
            let request = GetNodeRequest { name: name.get().to_owned() };
            context.output.show(&view(&client.call(computes.get_node(request)).await?))
        }
    }
}

/// Azure's word for a node's state.
pub(super) const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Idle => "idle",
        NodeState::Running => "running",
        NodeState::Preparing => "preparing",
        NodeState::Unusable => "unusable",
        NodeState::Leaving => "leaving",
    }
}

fn view(node: &pb::Node) -> Value {
    let gpus: Vec<Value> = node
        .gpus
        .iter()
        .map(|gpu| {
            json!({
                "index": gpu.index,
                "model": gpu.model,
                "memory": Memory(gpu.memory_mib).to_string(),
                "uuid": gpu.uuid,
                "free": gpu.free,
            })
        })
        .collect();
    json!({
        "name": node.name,
        "compute": node.compute,
        "state": state(node.state()),
        "reason": node.reason,
        "capacity": resources(node.capacity.as_ref()),
        "free": resources(node.free.as_ref()),
        "gpus": gpus,
        "jobs": node.jobs,
        "last_seen": time(node.last_seen_ms),
        "agent_version": node.agent_version,
        "hostname": node.hostname,
        "os": node.os,
        "facts": node.facts,
        "usage": node.usage,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |n| Some(n["name"].as_str()?.to_owned()) },
    Column { title: "COMPUTE", cell: |n| Some(n["compute"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |n| Some(n["state"].as_str()?.to_owned()) },
    Column { title: "FREE CPUS", cell: |n| share(n, "cpus") },
    Column { title: "FREE MEMORY", cell: |n| share(n, "memory") },
    Column { title: "FREE GPUS", cell: |n| share(n, "gpus") },
    Column { title: "JOBS", cell: |n| Some(n["jobs"].as_array()?.len().to_string()) },
    Column { title: "LAST SEEN", cell: |n| moment(&n["last_seen"]) },
    Column { title: "REASON", cell: |n| Some(n["reason"].as_str()?.to_owned()) },
];
