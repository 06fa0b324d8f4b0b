//! `atelier top`

use atelier_core::time::Timestamp;
use atelier_proto::compute::v1::{self as compute, ListNodesRequest};
use atelier_proto::job::v1::{self as pb, JobStatus, ListJobsRequest, ListQueueRequest};
use clap::Args;
use serde_json::{Value, json};

use super::compute::resources;
use super::job::time;
use super::output::{printable, table};
use super::{Column, Context, Error, node};
use crate::client::Client;

pub(super) mod nodes;
#[cfg(test)]
mod tests;
mod watch;

use watch::{Pace, watch};

/// Watch nodes, what runs on them and what waits
///
/// A picture that is drawn anew every two seconds, until Ctrl-C; where it cannot be drawn, or with
/// --once, it is printed once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier top
  atelier top --interval 0.5
  atelier top --once -o json --query 'nodes[].usage'")]
pub(super) struct Arguments {
    #[command(flatten)]
    pace: Pace,
    /// Only this compute's
    #[arg(long, value_name = "COMPUTE")]
    compute: Option<String>,
}

/// Jobs that run, at most so many are shown; and so many that wait of each compute.
const RUNNING: u32 = 200;
const WAITING: u32 = 20;
/// Cells of a bar.
const BAR: usize = 10;

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let compute = arguments.compute.unwrap_or_default();
    let look = async || look(&client, &compute).await;
    watch(&arguments.pace, context, look, picture).await
}

/// What there is, as data.
async fn look(client: &Client, compute: &str) -> Result<Value, Error> {
    let mut computes = client.computes();
    let mut jobs = client.jobs();
    let request = ListNodesRequest { compute: compute.to_owned() };
    let nodes = client.call(computes.list_nodes(request)).await?.nodes;
    let alive = [
        JobStatus::Starting,
        JobStatus::Preparing,
        JobStatus::Running,
        JobStatus::Finalizing,
        JobStatus::CancelRequested,
        JobStatus::NotResponding,
    ];
    let request = ListJobsRequest {
        page_size: RUNNING,
        statuses: alive.iter().map(|&status| status.into()).collect(),
        ..ListJobsRequest::default()
    };
    let running = client.call(jobs.list_jobs(request)).await?.jobs;
    let request = ListQueueRequest { compute: compute.to_owned(), limit: WAITING };
    let queue = client.call(jobs.list_queue(request)).await?;
    let running = running.iter().filter(|job| compute.is_empty() || job.compute == compute);
    Ok(json!({
        "nodes": nodes.iter().map(node_view).collect::<Vec<_>>(),
        "running": running.map(job_view).collect::<Vec<_>>(),
        "waiting": queue.jobs.iter().map(waiting_view).collect::<Vec<_>>(),
        "waiting_in_all": queue.waiting,
    }))
}

fn node_view(node: &compute::Node) -> Value {
    json!({
        "name": node.name,
        "compute": node.compute,
        "state": node::state(node.state()),
        "reason": node.reason,
        "usage": node.usage,
        "capacity": resources(node.capacity.as_ref()),
        "free": resources(node.free.as_ref()),
        "jobs": node.jobs,
    })
}

fn job_view(job: &pb::Job) -> Value {
    json!({
        "name": job.name,
        "status": job.status().word(),
        "compute": job.compute,
        "node": job.node,
        "created_by": job.created_by,
        "start_time": time(job.started_at_ms),
        "started_at_ms": job.started_at_ms,
    })
}

fn waiting_view(job: &pb::QueuedJob) -> Value {
    json!({ "name": job.name, "compute": job.compute, "place": job.place, "reason": job.reason })
}

/// The things under a key.
fn list(seen: &Value, key: &str) -> Vec<Value> {
    seen[key].as_array().cloned().unwrap_or_default()
}

/// The first line: the time, and how many there are of what.
fn heading(now: Timestamp, counts: &[(&str, usize)]) -> String {
    let mut heading =
        now.to_string().replace('T', " ").get(..19).map(str::to_owned).unwrap_or_default();
    heading.extend(counts.iter().map(|(what, count)| format!("  {what}: {count}")));
    heading + "\n"
}

/// The same as a picture.
fn picture(seen: &Value, now: Timestamp) -> String {
    let (nodes, mut running) = (list(seen, "nodes"), list(seen, "running"));
    let waiting = list(seen, "waiting");
    for job in &mut running {
        let started = job["started_at_ms"].as_i64().filter(|&at| at > 0);
        job["for"] = started.map_or(Value::Null, |at| lasting(now.as_millis() - at).into());
    }
    let in_all = seen["waiting_in_all"].as_u64().unwrap_or_default() as usize;
    let counts = [("nodes", nodes.len()), ("running", running.len()), ("waiting", in_all)];
    let mut picture = heading(now, &counts);
    for (items, columns) in [(&nodes, NODES), (&running, JOBS), (&waiting, QUEUE)] {
        if !items.is_empty() {
            picture.push('\n');
            picture.push_str(&table::of(items, columns));
        }
    }
    picture
}

/// `3 h 05 min`, `2 min 10 s`, `4 s`.
fn lasting(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// `████░░░░░░  41 %`
fn bar(percent: f64) -> String {
    let percent = percent.clamp(0.0, 100.0);
    let full = (percent / 100.0 * BAR as f64).round() as usize;
    format!("{}{} {percent:3.0} %", "█".repeat(full), "░".repeat(BAR - full))
}

/// What is used of memory: `████░░░░░░  41 % 1.6 of 4.0 GiB`
fn of_total(of: &Value) -> Option<String> {
    let used = of["memory_used_mib"].as_f64()?;
    let total = of["memory_total_mib"].as_f64().filter(|&total| total > 0.0)?;
    // In tenths of a GiB: more says nothing.
    let gib = |mib: f64| format!("{:.1}", mib / 1024.0);
    Some(format!("{} {} of {} GiB", bar(100.0 * used / total), gib(used), gib(total)))
}

/// How much of the time kernels run on a node's GPUs, on average.
fn gpus_in_use(node: &Value) -> Option<String> {
    let told = node["usage"].as_object()?.iter();
    let of_gpus =
        told.filter(|(name, _)| name.starts_with("gpu_") && name.ends_with("_utilization"));
    let each: Vec<f64> = of_gpus.filter_map(|(_, percent)| percent.as_f64()).collect();
    (!each.is_empty()).then(|| bar(each.iter().sum::<f64>() / each.len() as f64))
}

const NODES: &[Column] = &[
    Column { title: "NODE", cell: |n| Some(printable(n["name"].as_str()?)) },
    Column { title: "COMPUTE", cell: |n| Some(n["compute"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |n| Some(n["state"].as_str()?.to_owned()) },
    Column { title: "CPU", cell: |n| Some(bar(n["usage"]["cpu_utilization"].as_f64()?)) },
    Column { title: "MEMORY", cell: |n| of_total(&n["usage"]) },
    Column { title: "GPU", cell: gpus_in_use },
    Column { title: "FREE CPUS", cell: |n| super::compute::share(n, "cpus") },
    Column { title: "FREE GPUS", cell: |n| super::compute::share(n, "gpus") },
    Column {
        title: "JOBS",
        cell: |n| {
            let jobs = n["jobs"].as_array()?;
            let first = jobs.first().and_then(Value::as_str).unwrap_or_default();
            Some(match jobs.len() {
                0 | 1 => first.to_owned(),
                more => format!("{first} and {}", more - 1),
            })
        },
    },
];

const JOBS: &[Column] = &[
    Column { title: "JOB", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "STATUS", cell: |j| Some(j["status"].as_str()?.to_owned()) },
    Column { title: "NODE", cell: |j| Some(j["node"].as_str()?.to_owned()) },
    Column { title: "FOR", cell: |j| Some(j["for"].as_str().unwrap_or_default().to_owned()) },
    Column { title: "CREATED BY", cell: |j| Some(j["created_by"].as_str()?.to_owned()) },
];

const QUEUE: &[Column] = &[
    Column { title: "WAITING", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "COMPUTE", cell: |j| Some(j["compute"].as_str()?.to_owned()) },
    Column { title: "REASON", cell: |j| Some(j["reason"].as_str()?.to_owned()) },
];
