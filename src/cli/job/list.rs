//! `atelier job list`

use atelier_proto::job::v1::{JobStatus, ListJobsRequest};
use clap::Args;
use serde_json::Value;

use super::view;
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error};

/// The largest page a daemon gives.
const PAGE: u32 = 1000;

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job list
  atelier job list --status Failed --experiment-name digits
  atelier job list --all-results --query \"[?exit_code==`1`].name\" -o tsv")]
pub(in crate::cli) struct Arguments {
    /// How many at most
    #[arg(short = 'r', long, value_name = "N", default_value_t = 50)]
    max_results: u32,
    /// All of them
    #[arg(long, conflicts_with = "max_results")]
    all_results: bool,
    /// Only those of this status; may be given several times
    #[arg(long, value_name = "STATUS")]
    status: Vec<JobStatus>,
    /// Only those of this experiment
    #[arg(short, long, value_name = "NAME")]
    experiment_name: Option<String>,
    /// Archived ones too
    #[arg(long)]
    include_archived: bool,
    /// Archived ones only
    #[arg(long, conflicts_with = "include_archived")]
    archived_only: bool,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut jobs = client.jobs();
    let wanted = if arguments.all_results { usize::MAX } else { arguments.max_results as usize };
    let mut request = ListJobsRequest {
        page_size: 0,
        page_token: String::new(),
        statuses: arguments.status.iter().map(|&status| status.into()).collect(),
        experiment_name: arguments.experiment_name.unwrap_or_default(),
        include_archived: arguments.include_archived,
        archived_only: arguments.archived_only,
    };
    let mut items: Vec<Value> = Vec::new();
    let more = loop {
        let lacking = wanted.saturating_sub(items.len());
        if lacking == 0 {
            break !request.page_token.is_empty();
        }
        request.page_size = u32::try_from(lacking).unwrap_or(PAGE).min(PAGE);
        let page = client.call(jobs.list_jobs(request.clone())).await?;
        items.extend(page.jobs.iter().map(view::job));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break false;
        }
    };
    if more {
        let shown = items.len();
        context.output.note(&format!("The newest {shown} jobs; --all-results shows all."));
    }
    context.output.list(items, COLUMNS)
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "STATUS", cell: |j| Some(j["status"].as_str()?.to_owned()) },
    Column { title: "EXPERIMENT", cell: |j| Some(j["experiment_name"].as_str()?.to_owned()) },
    Column {
        title: "DISPLAY NAME",
        cell: |j| {
            let shown = j["display_name"].as_str()?;
            Some(if j["name"] == shown { "" } else { shown }.to_owned())
        },
    },
    Column { title: "CREATED", cell: |j| moment(&j["creation_context"]["created_at"]) },
    Column {
        title: "DURATION",
        cell: |j| Some(super::summary::length((j["duration"].as_f64()? * 1000.0) as i64)),
    },
    Column {
        title: "NODE",
        cell: |j| {
            let node = j["node"].as_str()?;
            Some(match j["members"].as_array().map_or(0, Vec::len) {
                0 | 1 => node.to_owned(),
                members => format!("{node} +{}", members - 1),
            })
        },
    },
    Column {
        title: "REASON",
        cell: |j| {
            let reason = j["wait_reason"].as_str().or_else(|| j["error"]["message"].as_str())?;
            Some(reason.lines().next().unwrap_or_default().chars().take(60).collect())
        },
    },
];
