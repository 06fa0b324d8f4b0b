//! `atelier queue`

use atelier_proto::job::v1::{self as pb, ListQueueRequest};
use clap::Args;
use serde_json::{Value, json};

use super::job::time;
use super::output::moment;
use super::{Column, Context, Error};

/// List the jobs that wait, in order, and why each does
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier queue
  atelier queue --compute gpu --limit 1000 -o json
  atelier queue --query '[].name' -o tsv")]
pub(super) struct Arguments {
    /// Only this compute's
    #[arg(long, value_name = "COMPUTE")]
    compute: Option<String>,
    /// At most so many of each compute
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let Arguments { compute, limit } = arguments;
    let request = ListQueueRequest { compute: compute.unwrap_or_default(), limit };
    let answer = client.call(client.jobs().list_queue(request)).await?;
    context.output.list(answer.jobs.iter().map(view).collect(), COLUMNS)?;
    let shown = answer.jobs.len() as u64;
    if answer.waiting > shown {
        let waiting = answer.waiting;
        context.output.note(&format!("{shown} of {waiting}; show more with --limit."));
    }
    Ok(())
}

fn view(job: &pb::QueuedJob) -> Value {
    json!({
        "place": job.place,
        "name": job.name,
        "compute": job.compute,
        "priority": job.priority,
        "created_by": job.created_by,
        "queued_at": time(job.queued_at_ms),
        "demand": job.demand,
        "reason": job.reason,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "PLACE", cell: |j| Some(j["place"].to_string()) },
    Column { title: "NAME", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "COMPUTE", cell: |j| Some(j["compute"].as_str()?.to_owned()) },
    Column { title: "PRIORITY", cell: |j| Some(j["priority"].as_str()?.to_owned()) },
    Column { title: "CREATED BY", cell: |j| Some(j["created_by"].as_str()?.to_owned()) },
    Column { title: "SINCE", cell: |j| moment(&j["queued_at"]) },
    Column { title: "ASKS FOR", cell: |j| Some(j["demand"].as_str()?.to_owned()) },
    Column { title: "REASON", cell: |j| Some(j["reason"].as_str()?.to_owned()) },
];
