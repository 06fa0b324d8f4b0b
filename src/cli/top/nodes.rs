//! `atelier node top`

use atelier_core::time::Timestamp;
use atelier_proto::compute::v1::{self as pb, ListNodesRequest};
use clap::Args;
use serde_json::{Value, json};

use super::watch::{Pace, watch};
use super::{NODES, bar, heading, list, node_view, of_total};
use crate::cli::output::{printable, table};
use crate::cli::{Column, Context, Error};
use crate::client::Client;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    pace: Pace,
    /// Only this compute's
    #[arg(long, value_name = "COMPUTE")]
    compute: Option<String>,
}

pub(in crate::cli) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let compute = arguments.compute.unwrap_or_default();
    let look = async || look(&client, &compute).await;
    watch(&arguments.pace, context, look, picture).await
}

/// What there is, as data.
async fn look(client: &Client, compute: &str) -> Result<Value, Error> {
    let request = ListNodesRequest { compute: compute.to_owned() };
    let nodes = client.call(client.computes().list_nodes(request)).await?.nodes;
    let view = |node: &pb::Node| {
        let mut view = node_view(node);
        view["gpus"] = node.gpus.iter().map(|gpu| gpu_view(node, gpu)).collect();
        view
    };
    Ok(json!({ "nodes": nodes.iter().map(view).collect::<Vec<_>>() }))
}

/// A device; what it does is null where its node has not told.
fn gpu_view(node: &pb::Node, gpu: &pb::Gpu) -> Value {
    let told = |name: &str| node.usage.get(&format!("gpu_{}_{name}", gpu.index));
    json!({
        "index": gpu.index,
        "model": gpu.model,
        "utilization": told("utilization"),
        "memory_used_mib": told("memory_used_mib"),
        "memory_total_mib": told("memory_total_mib"),
        "free_share": f64::from(gpu.free_milli) / 1000.0,
        "out": (!gpu.out.is_empty()).then_some(&gpu.out),
    })
}

/// The same as a picture.
pub(super) fn picture(seen: &Value, now: Timestamp) -> String {
    let nodes = list(seen, "nodes");
    let gpus = nodes.iter().flat_map(|node| {
        list(node, "gpus").into_iter().map(|mut gpu| {
            gpu["node"] = node["name"].clone();
            gpu
        })
    });
    let gpus: Vec<Value> = gpus.collect();
    let mut picture = heading(now, &[("nodes", nodes.len()), ("GPUs", gpus.len())]);
    for (items, columns) in [(&nodes, NODES), (&nodes, LOAD), (&gpus, GPUS)] {
        if !items.is_empty() {
            picture.push('\n');
            picture.push_str(&table::of(items, columns));
        }
    }
    picture
}

/// What goes to and from disks and other machines, and how much of the time something had to wait.
const LOAD: &[Column] = &[
    Column { title: "NODE", cell: |n| Some(printable(n["name"].as_str()?)) },
    Column { title: "READ", cell: |n| rate(n, "disk_read") },
    Column { title: "WRITTEN", cell: |n| rate(n, "disk_write") },
    Column { title: "RECEIVED", cell: |n| rate(n, "network_receive") },
    Column { title: "SENT", cell: |n| rate(n, "network_transmit") },
    Column { title: "CACHED", cell: cached },
    Column { title: "WAITS FOR CPU", cell: |n| pressure(n, "cpu") },
    Column { title: "MEMORY", cell: |n| pressure(n, "memory") },
    Column { title: "DISK", cell: |n| pressure(n, "io") },
];

fn rate(node: &Value, name: &str) -> Option<String> {
    let mib_per_second = node["usage"][format!("{name}_mib_per_second")].as_f64()?;
    Some(format!("{mib_per_second:.1} MiB/s"))
}

fn cached(node: &Value) -> Option<String> {
    Some(format!("{:.1} GiB", node["usage"]["memory_cached_mib"].as_f64()? / 1024.0))
}

fn pressure(node: &Value, name: &str) -> Option<String> {
    Some(format!("{:.0} %", node["usage"][format!("{name}_pressure")].as_f64()?))
}

const GPUS: &[Column] = &[
    Column { title: "NODE", cell: |g| Some(g["node"].as_str()?.to_owned()) },
    Column { title: "GPU", cell: |g| Some(g["index"].to_string()) },
    Column { title: "MODEL", cell: |g| Some(g["model"].as_str()?.to_owned()) },
    Column { title: "USE", cell: |g| Some(bar(g["utilization"].as_f64()?)) },
    Column { title: "MEMORY", cell: of_total },
    Column { title: "FREE", cell: |g| Some(g["free_share"].to_string()) },
    Column { title: "OUT", cell: |g| Some(g["out"].as_str()?.to_owned()) },
];
