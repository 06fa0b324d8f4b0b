//! `atelier compute`

mod access;
mod quota;

use std::collections::BTreeMap;
use std::path::PathBuf;

use atelier_core::compute::SizeTable;
use atelier_core::resource::Memory;
use atelier_core::spec::{Origin, Override, parse_compute};
use atelier_proto::compute::v1::{
    self as pb, DeleteComputeRequest, DrainComputeRequest, GetComputeRequest, ListComputesRequest,
    ListSizesRequest, PutComputeRequest, ResumeComputeRequest, UpdateComputeRequest, cluster,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job::{read, time};
use super::node;
use super::{Column, Context, Error, Name};
use crate::client::Client;
use crate::config::Here;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the computes
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier compute list -o json")]
    List,
    /// Show one compute
    #[command(after_help = "Example:\n  atelier compute show local")]
    Show(Name),
    /// Make a cluster from its file, or change one that is there
    ///
    /// Azure's amlcompute files are read as they are.
    #[command(after_help = "\
Examples:
  atelier compute create -f compute.yml
  atelier compute create -f compute.yml --set max_instances=8
  atelier compute create -n cpu-cluster --size STANDARD_DS3_v2 --max-instances 4")]
    Create(Create),
    /// Change a cluster's bounds, its idle time or its description
    #[command(
        after_help = "Example:\n  atelier compute update cpu-cluster --idle-time-before-scale-down 600"
    )]
    Update(Update),
    /// Say how many nodes a cluster may have
    #[command(after_help = "\
Examples:
  atelier compute scale cpu-cluster --min 1 --max 8
  atelier compute scale cpu-cluster --max 1")]
    Scale(Scale),
    /// Delete a cluster; its nodes leave. Refused while jobs are on it
    #[command(after_help = "Example:\n  atelier compute delete cpu-cluster")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// As users of `az ml` write it: nothing is asked either way
        #[arg(long, short)]
        yes: bool,
    },
    /// List the nodes of one compute
    #[command(after_help = "Example:\n  atelier compute list-nodes cpu-cluster")]
    ListNodes(Name),
    /// List the sizes that nodes may have, and what each offers
    #[command(after_help = "Example:\n  atelier compute list-sizes --query \"[?gpus>`0`].name\"")]
    ListSizes,
    /// Keep new jobs away from a whole compute, until it is resumed
    ///
    /// Jobs that run there run to their end, unless --deadline or --requeue says otherwise.
    #[command(after_help = "\
Examples:
  atelier compute drain gpu-cluster --reason 'the room is too warm'
  atelier compute drain gpu-cluster --reason 'power cut at noon' --deadline 30m")]
    Drain(node::Drain),
    /// Let a drained compute have jobs again
    #[command(after_help = "Example:\n  atelier compute resume gpu-cluster")]
    Resume(Name),
    /// Say what the jobs of each user and group may hold of a compute at once
    #[command(subcommand)]
    Quota(quota::Command),
    /// Say who may use a compute
    #[command(subcommand)]
    Access(access::Command),
}

#[derive(Args)]
pub(super) struct Create {
    /// The cluster's file; - reads standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "name")]
    file: Option<PathBuf>,
    /// Change a field before the file is checked, for example max_instances=8
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// The size of its nodes
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Nodes that are kept even when there is no work
    #[arg(long, value_name = "N")]
    min_instances: Option<u32>,
    /// Nodes at most
    #[arg(long, value_name = "N")]
    max_instances: Option<u32>,
    /// Seconds without work after which a node is given up
    #[arg(long, value_name = "SECONDS")]
    idle_time_before_scale_down: Option<u64>,
    /// dedicated or low_priority
    #[arg(long, value_name = "TIER")]
    tier: Option<String>,
    /// The kind of compute; amlcompute
    #[arg(short, long, value_name = "TYPE", default_value = "amlcompute", hide = true)]
    r#type: String,
}

#[derive(Args)]
pub(super) struct Update {
    #[command(flatten)]
    name: Name,
    /// Nodes that are kept even when there is no work
    #[arg(long, value_name = "N")]
    min_instances: Option<u32>,
    /// Nodes at most
    #[arg(long, value_name = "N")]
    max_instances: Option<u32>,
    /// Seconds without work after which a node is given up
    #[arg(long, value_name = "SECONDS")]
    idle_time_before_scale_down: Option<u64>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

#[derive(Args)]
pub(super) struct Scale {
    /// Nodes that are kept even when there is no work
    #[arg(long, value_name = "N", required_unless_present = "max")]
    min: Option<u32>,
    /// Nodes at most
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    #[command(flatten)]
    name: Name,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut computes = client.computes();
    let show = |compute: &pb::Compute| context.output.show(&view(compute));
    match command {
        Command::List => {
            let answer = client.call(computes.list_computes(ListComputesRequest {})).await?;
            context.output.list(answer.computes.iter().map(view).collect(), COLUMNS)
        }
        Command::Show(name) => {
            let request = GetComputeRequest { name: name.get().to_owned() };
            show(&client.call(computes.get_compute(request)).await?)
        }
        Command::Create(arguments) => {
            let cluster = cluster(arguments, &client, context).await?;
            let request = PutComputeRequest { cluster: Some(cluster) };
            show(&client.call(computes.put_compute(request)).await?)
        }
        Command::Update(update) => {
            let request = UpdateComputeRequest {
                name: update.name.get().to_owned(),
                min_instances: update.min_instances,
                max_instances: update.max_instances,
                idle_time_before_scale_down_s: update.idle_time_before_scale_down,
                description: update.description,
            };
            show(&client.call(computes.update_compute(request)).await?)
        }
        Command::Scale(scale) => {
            let request = UpdateComputeRequest {
                name: scale.name.get().to_owned(),
                min_instances: scale.min,
                max_instances: scale.max,
                ..UpdateComputeRequest::default()
            };
            show(&client.call(computes.update_compute(request)).await?)
        }
        Command::Delete { name, yes: _ } => {
            let request = DeleteComputeRequest { name: name.get().to_owned() };
            client.call(computes.delete_compute(request)).await?;
            context.output.note(&format!(
                "Compute {} is deleted; it is shown until the last of its nodes is gone.",
                name.get()
            ));
            Ok(())
        }
        Command::ListNodes(name) => {
            // Or a name that is none would look like one without nodes.
            let request = GetComputeRequest { name: name.get().to_owned() };
            client.call(computes.get_compute(request)).await?;
            node::list(&client, context, name.get()).await
        }
        Command::ListSizes => {
            let answer = client.call(computes.list_sizes(ListSizesRequest {})).await?;
            context.output.list(answer.sizes.iter().map(size).collect(), SIZE_COLUMNS)
        }
        Command::Drain(drain) => {
            let request = DrainComputeRequest {
                name: drain.name.get().to_owned(),
                deadline_s: drain.deadline_s(),
                reason: drain.reason,
                update: drain.update,
            };
            let compute = client.call(computes.drain_compute(request)).await?;
            show(&compute)?;
            context.output.note(&format!(
                "Let it have jobs again with `atelier compute resume {}`.",
                compute.name
            ));
            Ok(())
        }
        Command::Resume(name) => {
            let request = ResumeComputeRequest { name: name.get().to_owned() };
            show(&client.call(computes.resume_compute(request)).await?)
        }
        Command::Quota(command) => quota::run(command, &client, context).await,
        Command::Access(command) => access::run(command, &client, context).await,
    }
}

/// The cluster that a file and the arguments describe. What a size stands for is the daemon's to
/// say.
async fn cluster(
    arguments: Create,
    client: &Client,
    context: &Context,
) -> Result<pb::Cluster, Error> {
    let mut changes = arguments.set;
    let text = |flag: &str, key: &str, value: Option<String>| {
        value.map(|value| Override::text(flag, &[key], &value))
    };
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    changes.extend(text("--name", "name", arguments.name));
    changes.extend(text("--size", "size", arguments.size));
    changes.extend(text("--tier", "tier", arguments.tier));
    changes.extend(text(
        "--min-instances",
        "min_instances",
        number(arguments.min_instances.map(u64::from)),
    ));
    changes.extend(text(
        "--max-instances",
        "max_instances",
        number(arguments.max_instances.map(u64::from)),
    ));
    changes.extend(text(
        "--idle-time-before-scale-down",
        "idle_time_before_scale_down",
        number(arguments.idle_time_before_scale_down),
    ));
    let (text, name, folder) = match &arguments.file {
        Some(file) => {
            let document = read::document(file, "compute")?;
            (document.text, document.name, read::utf8(&document.folder)?.to_owned())
        }
        None => {
            let kind = json!({ "type": arguments.r#type }).to_string();
            (kind.into_bytes(), "<command line>".to_owned(), String::new())
        }
    };
    let known = client.call(client.computes().list_sizes(ListSizesRequest {})).await?;
    let mut rows = Vec::with_capacity(known.sizes.len());
    for size in known.sizes {
        let node = size.node.unwrap_or_default().try_into().map_err(|error| {
            Error::new(super::Kind::Failed, format!("the daemon's size {}: {error}", size.name))
        })?;
        rows.push((size.name, node));
    }
    let sizes = SizeTable::default().with(rows);
    let origin = Origin { name, folder, experiment: String::new() };
    let parsed = parse_compute(&text, &origin, &changes, &Here, &sizes).map_err(read::faults)?;
    for warning in &parsed.warnings {
        context.output.warn(&warning.to_string());
    }
    Ok((&parsed.cluster).into())
}

/// CPU, memory and GPUs as people read them.
pub(super) fn resources(resources: Option<&pb::Resources>) -> Value {
    resources.map_or(Value::Null, |resources| {
        json!({
            "cpus": cpus(resources.cpu_milli),
            "memory": Memory(resources.memory_mib).to_string(),
            "gpus": resources.gpus,
            "disk": resources.disk_mib.map(|mib| Memory(mib).to_string()),
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

/// Why a node or a compute gets no jobs.
pub(super) fn drained(drain: Option<&pb::Drain>) -> Value {
    drain.map_or(Value::Null, |drain| {
        json!({
            "by": drain.by,
            "reason": drain.reason,
            "since": time(drain.since_ms),
            "deadline": drain.deadline_ms.map(time),
        })
    })
}

fn view(compute: &pb::Compute) -> Value {
    let mut shown = json!({
        "name": compute.name,
        "type": compute.r#type,
    });
    let mut put = |key: &str, value: Value| {
        shown[key] = value;
    };
    if let Some(cluster) = &compute.cluster {
        let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        put("description", json!(optional(&cluster.description)));
        put("tags", json!(cluster.tags));
        put("location", json!(optional(&cluster.location)));
        put("node_labels", json!(cluster.node_labels.iter().collect::<BTreeMap<_, _>>()));
        let strict = cluster.strict_containment;
        put("containment", json!(if strict { "strict" } else { "best_effort" }));
        put("size", json!(cluster.size));
        put("node", cluster.node.as_ref().map_or(Value::Null, shape));
        put(
            "tier",
            json!(match cluster.tier() {
                pb::Tier::LowPriority => "low_priority",
                pb::Tier::Unspecified | pb::Tier::Dedicated => "dedicated",
            }),
        );
        put("min_instances", json!(cluster.min_instances));
        put("max_instances", json!(cluster.max_instances));
        put("idle_time_before_scale_down", json!(cluster.idle_time_before_scale_down_s));
        put("provider", provider(cluster));
        put("created_by", json!(compute.created_by));
        put("created_at", json!(time(compute.created_at_ms)));
    }
    put("placement", json!(compute.placement));
    put("is_default", json!(compute.is_default));
    put("allocation_state", json!(compute.allocation_state));
    put("drain", drained(compute.drain.as_ref()));
    put(
        "trouble",
        compute.trouble.as_ref().map_or(Value::Null, |trouble| {
            json!({
                "message": trouble.message,
                "failures": trouble.failures,
                "at": time(trouble.at_ms),
                "next_try": time(trouble.until_ms),
            })
        }),
    );
    put("quotas", json!(quota::views(compute)));
    put("access", access::shown(compute));
    put("nodes", json!(compute.nodes));
    put("ready_nodes", json!(compute.ready_nodes));
    put("node_states", json!(compute.node_states));
    put("capacity", resources(compute.capacity.as_ref()));
    put("free", resources(compute.free.as_ref()));
    put("running_jobs", json!(compute.running_jobs));
    put("queued_jobs", json!(compute.queued_jobs));
    shown
}

fn provider(cluster: &pb::Cluster) -> Value {
    match &cluster.provider {
        None | Some(cluster::Provider::Local(_)) => json!("local"),
        Some(cluster::Provider::Joined(_)) => json!("joined"),
        Some(cluster::Provider::Command(command)) => json!({
            "type": "command",
            "create": command.create,
            "delete": command.delete,
            "list": command.list,
            "timeout": command.timeout_s,
            "retries": command.retries,
        }),
    }
}

fn shape(node: &pb::NodeShape) -> Value {
    let memory = |mib: u64| (mib > 0).then(|| Memory(mib).to_string());
    json!({
        "cpus": cpus(node.cpu_milli),
        "memory": memory(node.memory_mib),
        "disk": memory(node.disk_mib),
        "gpus": node.gpus,
        "gpu_model": (!node.gpu_model.is_empty()).then_some(&node.gpu_model),
        "gpu_memory": memory(node.gpu_memory_mib),
    })
}

fn size(size: &pb::Size) -> Value {
    let mut shown = json!({ "name": size.name });
    if let (Value::Object(shown), Some(Value::Object(node))) =
        (&mut shown, size.node.as_ref().map(shape))
    {
        shown.extend(node);
    }
    shown
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |c| Some(c["name"].as_str()?.to_owned()) },
    Column { title: "SIZE", cell: |c| Some(c["size"].as_str().unwrap_or_default().to_owned()) },
    Column {
        title: "NODES",
        cell: |c| {
            let states = c["node_states"].as_object()?;
            let states: Vec<String> =
                states.iter().map(|(state, count)| format!("{count} {state}")).collect();
            let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
            Some(match (c["min_instances"].as_u64(), c["max_instances"].as_u64()) {
                (Some(min), Some(max)) if c["provider"] != "joined" => {
                    format!("{states} ({min} to {max})")
                }
                _ => states,
            })
        },
    },
    Column { title: "FREE CPUS", cell: |c| share(c, "cpus") },
    Column { title: "FREE MEMORY", cell: |c| share(c, "memory") },
    Column { title: "FREE GPUS", cell: |c| share(c, "gpus") },
    Column { title: "RUNNING", cell: |c| Some(c["running_jobs"].to_string()) },
    Column { title: "QUEUED", cell: |c| Some(c["queued_jobs"].to_string()) },
    Column {
        title: "STATE",
        cell: |c| {
            if !c["drain"].is_null() {
                return Some("drained".to_owned());
            }
            if !c["trouble"].is_null() {
                return Some("no nodes to be had".to_owned());
            }
            Some(c["allocation_state"].as_str()?.to_lowercase())
        },
    },
    Column {
        title: "DEFAULT",
        cell: |c| Some(if c["is_default"] == true { "yes" } else { "" }.to_owned()),
    },
];

const SIZE_COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |s| Some(s["name"].as_str()?.to_owned()) },
    Column { title: "CPUS", cell: |s| Some(s["cpus"].to_string()) },
    Column { title: "MEMORY", cell: |s| Some(s["memory"].as_str()?.to_owned()) },
    Column { title: "DISK", cell: |s| Some(s["disk"].as_str().unwrap_or_default().to_owned()) },
    Column {
        title: "GPUS",
        cell: |s| {
            let gpus = s["gpus"].as_u64().filter(|&gpus| gpus > 0)?;
            let model = s["gpu_model"].as_str().unwrap_or("GPU");
            Some(match s["gpu_memory"].as_str() {
                Some(memory) => format!("{gpus} × {model} ({memory})"),
                None => format!("{gpus} × {model}"),
            })
        },
    },
];
