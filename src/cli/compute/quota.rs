//! `atelier compute quota`

use atelier_core::resource::{Gpus, Memory};
use atelier_core::spec::amount;
use atelier_proto::compute::v1::{
    self as pb, DeleteQuotaRequest, GetComputeRequest, SetQuotaRequest,
};
use clap::{Args, Subcommand, value_parser};
use serde_json::{Value, json};

use super::{cpus, view};
use crate::cli::{Column, Context, Error, Name};
use crate::client::Client;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say what the jobs of a user, or of all members of a group, may hold of a compute at once
    ///
    /// It takes the place of all that was said for that user or group before. What is not given is not
    /// limited. A group's quota holds beside what each of its members may hold. Jobs that run already
    /// are left alone.
    #[command(after_help = "\
Examples:
  atelier compute quota set gpu-cluster --gpus 4 --jobs 10
  atelier compute quota set gpu-cluster --user ada --gpus 8 --memory 256Gi
  atelier compute quota set gpu-cluster --group vision --gpus 4")]
    Set(Set),
    /// List who may hold how much of a compute
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  atelier compute quota list gpu-cluster"
    )]
    List(Name),
    /// Take a quota back
    #[command(after_help = "\
Examples:
  atelier compute quota delete gpu-cluster
  atelier compute quota delete gpu-cluster --user ada
  atelier compute quota delete gpu-cluster --group vision")]
    Delete(Delete),
}

#[derive(Args)]
pub(crate) struct Set {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    of: Of,
    /// GPUs at most, or a share of one
    #[arg(long, value_name = "N", value_parser = amount::milli_gpus, allow_hyphen_values = true)]
    gpus: Option<u64>,
    /// CPUs at most
    #[arg(long, value_name = "N", value_parser = amount::cpus, allow_hyphen_values = true)]
    cpus: Option<u64>,
    /// Memory at most, for example 256Gi
    #[arg(long, value_name = "SIZE", value_parser = amount::memory, allow_hyphen_values = true)]
    memory: Option<u64>,
    /// Nodes at most
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..), allow_hyphen_values = true)]
    nodes: Option<u32>,
    /// Jobs that run at the same time
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..), allow_hyphen_values = true)]
    jobs: Option<u32>,
}

#[derive(Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    of: Of,
}

#[derive(Args)]
struct Of {
    /// Of this user [default: of everybody who has none of their own]
    #[arg(long, value_name = "USER", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// Of all members of this group together
    #[arg(
        long,
        value_name = "GROUP",
        conflicts_with = "user",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    group: Option<String>,
}

pub(super) async fn run(command: Command, client: &Client, context: &Context) -> Result<(), Error> {
    let mut computes = client.computes();
    match command {
        Command::Set(set) => {
            let limits = pb::Limits {
                cpu_milli: set.cpus,
                memory_mib: set.memory,
                milli_gpus: set.gpus,
                nodes: set.nodes,
                jobs: set.jobs,
            };
            let request = SetQuotaRequest {
                name: set.name.get().to_owned(),
                user: set.of.user.unwrap_or_default(),
                group: set.of.group.unwrap_or_default(),
                limits: Some(limits),
            };
            let compute = client.call(computes.set_quota(request)).await?;
            context.output.show(&view(&compute))
        }
        Command::List(name) => {
            let request = GetComputeRequest { name: name.get().to_owned() };
            let compute = client.call(computes.get_compute(request)).await?;
            context.output.list(views(&compute), COLUMNS)
        }
        Command::Delete(delete) => {
            let request = DeleteQuotaRequest {
                name: delete.name.get().to_owned(),
                user: delete.of.user.unwrap_or_default(),
                group: delete.of.group.unwrap_or_default(),
            };
            let compute = client.call(computes.delete_quota(request)).await?;
            context.output.show(&view(&compute))
        }
    }
}

/// A compute's quotas as people read them; that of everybody has neither user nor group.
pub(super) fn views(compute: &pb::Compute) -> Vec<Value> {
    let view = |quota: &pb::Quota| {
        let limits = quota.limits.unwrap_or_default();
        json!({
            "user": (!quota.user.is_empty()).then_some(&quota.user),
            "group": (!quota.group.is_empty()).then_some(&quota.group),
            "gpus": limits.milli_gpus.map(|milli| Gpus(milli).to_string()),
            "cpus": limits.cpu_milli.map(cpus),
            "memory": limits.memory_mib.map(|mib| Memory(mib).to_string()),
            "nodes": limits.nodes,
            "jobs": limits.jobs,
        })
    };
    compute.quotas.iter().map(view).collect()
}

fn limit(quota: &Value, key: &str) -> Option<String> {
    match &quota[key] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

const COLUMNS: &[Column] = &[
    Column {
        title: "USER",
        cell: |q| match (q["user"].as_str(), q["group"].as_str()) {
            (None, None) => Some("(everybody else)".to_owned()),
            (user, _) => user.map(str::to_owned),
        },
    },
    Column { title: "GROUP", cell: |q| Some(q["group"].as_str()?.to_owned()) },
    Column { title: "GPUS", cell: |q| limit(q, "gpus") },
    Column { title: "CPUS", cell: |q| limit(q, "cpus") },
    Column { title: "MEMORY", cell: |q| limit(q, "memory") },
    Column { title: "NODES", cell: |q| limit(q, "nodes") },
    Column { title: "JOBS", cell: |q| limit(q, "jobs") },
];
