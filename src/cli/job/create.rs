//! `atelier job create`

use std::path::PathBuf;
use std::process::ExitCode;

use atelier_core::spec::{Code, CommandJob, DataUri, Input, Override};
use atelier_proto::job::v1::{self as pb, CreateJobRequest, JobSpec};
use clap::Args;
use serde_json::{Value, json};

use super::read::{self, KeepFailed};
use super::{follow, submit, view};
use crate::cli::{Context, Error};
use crate::client::Client;

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job create -f job.yml
  atelier job create -f job.yml --dry-run
  atelier job create -f job.yml --set resources.cpus=4 --set inputs.epochs=20 --stream
  atelier job create -f job.yml --keep-failed=2h --stream
  name=$(atelier job create -f job.yml --query name -o tsv)")]
pub(in crate::cli) struct Arguments {
    /// The job file; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change a field before the job is checked, for example limits.timeout=60
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's, else the daemon makes one]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    kept: KeepFailed,
    /// Follow its log to the end, and end with its exit code
    #[arg(short, long)]
    stream: bool,
    /// Say where it would start, or why it would wait and what would help; create nothing
    #[arg(long, conflicts_with = "stream")]
    dry_run: bool,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let mut changes = arguments.set;
    changes.extend(arguments.name.map(|name| Override::text("--name", &["name"], &name)));
    changes.extend(arguments.kept.change());
    let job = read::file(&arguments.file, &changes, &context.output)?;
    let client = context.client().await?;
    if arguments.dry_run {
        return context.output.show(&plan(&client, job).await?).map(|()| ExitCode::SUCCESS);
    }
    let job = submit::create(context, &client, job).await?;
    if arguments.stream {
        context.output.note(&format!("Job {}", job.name));
        return follow::to_the_end(context, client, &job.name, 0).await;
    }
    context.output.show(&view::job(&job))?;
    context.output.note(&format!("Follow it with `atelier job stream {}`.", job.name));
    Ok(ExitCode::SUCCESS)
}

/// What the scheduler would do. What lies on this machine has no part in that, and is not sent.
async fn plan(client: &Client, mut job: CommandJob) -> Result<Value, Error> {
    let inputs = serde_json::Value::Object(
        pb::CommandJob::from(&job)
            .inputs
            .iter()
            .filter_map(|(name, input)| Some((name.clone(), view::fetched(input)?)))
            .collect(),
    );
    job.code = job.code.filter(|code| !matches!(code, Code::Local(_)));
    job.inputs.retain(|_, input| !matches!(input, Input::Data { uri: DataUri::Local(_), .. }));
    let request =
        CreateJobRequest { spec: Some(JobSpec::from(&job)), idempotency_key: String::new() };
    let plan = client.call(client.jobs().plan_job(request)).await?;
    let node = (!plan.node.is_empty()).then_some(plan.node);
    Ok(json!({
        "compute": plan.compute,
        "starts_now": node.is_some(),
        "node": node,
        "nodes": plan.nodes,
        "preempts": plan.preempts,
        "downloads": inputs,
        "reason": plan.reason,
        "ahead": plan.ahead,
        "expected_start": view::expected(plan.expected_start_p50_ms, plan.expected_start_p90_ms),
        "forecast": plan.forecast,
        "changes": plan.changes.iter().map(view::change).collect::<Vec<_>>(),
    }))
}
