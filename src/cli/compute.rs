//! `atelier compute`

use atelier_core::resource::Memory;
use atelier_proto::compute::v1::{self as pb, GetComputeRequest, ListComputesRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Column, Context, Error, Name};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the computes
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier compute list -o json")]
    List,
    /// Show one compute
    #[command(after_help = "Example:\n  atelier compute show local")]
    Show(Name),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut computes = client.computes();
    match command {
        Command::List => {
            let answer = client.call(computes.list_computes(ListComputesRequest {})).await?;
            context.output.list(answer.computes.iter().map(view).collect(), COLUMNS)
        }
        Command::Show(name) => {
            let request = GetComputeRequest { name: name.get().to_owned() };
            context.output.show(&view(&client.call(computes.get_compute(request)).await?))
        }
    }
}

/// CPU, memory and GPUs as people read them.
pub(super) fn resources(resources: Option<&pb::Resources>) -> Value {
    resources.map_or(Value::Null, |resources| {
        json!({
            "cpus": cpus(resources.cpu_milli),
            "memory": Memory(resources.memory_mib).to_string(),
            "gpus": resources.gpus,
        })
    })
}

/// Cores; whole ones without a decimal point.
pub(super) fn cpus(milli: u64) -> Value {
    if milli.is_multiple_of(1000) { json!(milli / 1000) } else { json!(milli as f64 / 1000.0) }
}

/// `free of all`, for a column.
pub(super) fn share(item: &Value, of: &str) -> Option<String> {
    let text = |side: &str| match &item[side][of] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Some(format!("{} of {}", text("free")?, text("capacity")?))
}

fn view(compute: &pb::Compute) -> Value {
    json!({
        "name": compute.name,
        "type": compute.r#type,
        "placement": compute.placement,
        "is_default": compute.is_default,
        "nodes": compute.nodes,
        "ready_nodes": compute.ready_nodes,
        "capacity": resources(compute.capacity.as_ref()),
        "free": resources(compute.free.as_ref()),
        "running_jobs": compute.running_jobs,
        "queued_jobs": compute.queued_jobs,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |c| Some(c["name"].as_str()?.to_owned()) },
    Column { title: "TYPE", cell: |c| Some(c["type"].as_str()?.to_owned()) },
    Column {
        title: "NODES",
        cell: |c| Some(format!("{} of {} ready", c["ready_nodes"], c["nodes"])),
    },
    Column { title: "FREE CPUS", cell: |c| share(c, "cpus") },
    Column { title: "FREE MEMORY", cell: |c| share(c, "memory") },
    Column { title: "FREE GPUS", cell: |c| share(c, "gpus") },
    Column { title: "RUNNING", cell: |c| Some(c["running_jobs"].to_string()) },
    Column { title: "QUEUED", cell: |c| Some(c["queued_jobs"].to_string()) },
    Column {
        title: "DEFAULT",
        cell: |c| Some(if c["is_default"] == true { "yes" } else { "" }.to_owned()),
    },
];
