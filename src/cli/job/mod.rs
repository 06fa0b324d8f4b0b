//! `atelier job`

use std::process::ExitCode;

use atelier_proto::job::v1::{
    ArchiveJobRequest, CancelJobRequest, DeleteJobRequest, ExplainJobRequest, GetJobRequest,
};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Column, Context, Error, Name};

mod create;
mod debug;
mod download;
mod events;
mod exec;
pub(super) mod follow;
mod forward;
mod list;
pub(super) mod materials;
mod patience;
pub(super) mod read;
pub(super) mod submit;
mod summary;
pub(super) mod terminal;
#[cfg(test)]
mod tests;
pub(super) mod view;

pub(super) use summary::{length, size};
pub(super) use view::time;

const INPUTS: &[Column] = &[
    Column { title: "INPUT", cell: |i| Some(i["name"].as_str()?.to_owned()) },
    Column { title: "TYPE", cell: |i| Some(i["type"].as_str().unwrap_or("literal").to_owned()) },
    Column { title: "MODE", cell: |i| Some(i["mode"].as_str()?.to_owned()) },
    Column { title: "ASSET", cell: |i| Some(i["asset"].as_str()?.to_owned()) },
    Column {
        title: "PATH OR VALUE",
        cell: |i| Some(i["path"].as_str().or_else(|| i["value"].as_str())?.to_owned()),
    },
];

#[derive(Subcommand)]
pub(super) enum Command {
    /// Submit a job; it is on the daemon's disk when this returns
    Create(create::Arguments),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(list::Arguments),
    /// Show one job: status, error, times, outputs, what it used, and all that was asked for
    #[command(after_help = "\
Examples:
  atelier job show calm_apple_x1
  atelier job show calm_apple_x1 --usage
  atelier job show calm_apple_x1 --inputs
  atelier job show calm_apple_x1 --query status -o tsv")]
    Show {
        #[command(flatten)]
        name: Name,
        /// Only what was asked for, what it uses or used, and what past runs of the command say of it
        #[arg(long)]
        usage: bool,
        /// Only what it reads: literals and data, and which version of an asset that is
        #[arg(long, conflicts_with = "usage")]
        inputs: bool,
    },
    /// Say why a job waits, when it may start, and what would start it now
    ///
    /// Each change that is named was tried: the scheduler itself would start the job with it. The
    /// forecast is the scheduler's too: it is rolled forward many times, with lengths of the jobs drawn
    /// from those that ran on the compute before. Jobs and nodes yet to come are not in it.
    #[command(after_help = "\
Examples:
  atelier job explain calm_apple_x1
  atelier job explain calm_apple_x1 --query expected_start.p90 -o tsv
  atelier job explain calm_apple_x1 --query 'changes[].settings[]' -o tsv")]
    Explain(Name),
    /// Print a job's log as it comes; ends with the job, and with its exit code
    #[command(after_help = "\
Examples:
  atelier job stream calm_apple_x1
  atelier job stream calm_apple_x1 -q > log.txt")]
    Stream {
        #[command(flatten)]
        name: Name,
        /// Of a job of several processes, the log of the one with this rank, from 0
        #[arg(
            long,
            alias = "member",
            value_name = "N",
            default_value_t = 0,
            hide_default_value = true
        )]
        rank: u32,
    },
    Exec(exec::Arguments),
    Shell(exec::Shell),
    Forward(forward::Arguments),
    Debug(debug::Arguments),
    /// Ask a job to stop: terminate, a time of grace, kill
    #[command(after_help = "Example:\n  atelier job cancel calm_apple_x1 --reason 'wrong data'")]
    Cancel {
        #[command(flatten)]
        name: Name,
        /// Why; kept in the job's events
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Download what a job wrote: artifacts and logs, a named output, or everything
    Download(download::Arguments),
    /// Print what happened to a job, and when, and why
    Events(events::Arguments),
    /// Hide a finished job from lists
    #[command(after_help = "Example:\n  atelier job archive calm_apple_x1")]
    Archive(Name),
    /// Show an archived job in lists again
    #[command(after_help = "Example:\n  atelier job restore calm_apple_x1")]
    Restore(Name),
    /// Delete a finished job with its logs, metrics and default outputs
    #[command(after_help = "Example:\n  atelier job delete calm_apple_x1 --yes")]
    Delete(Delete),
}

/// Which job to delete, and whether to ask.
#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    name: Name,
    /// Also what it was told to write elsewhere, unless somebody refers to it
    #[arg(long)]
    with_data: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<ExitCode, Error> {
    match command {
        Command::Create(arguments) => return create::run(arguments, context).await,
        Command::List(arguments) => list::run(arguments, context).await?,
        Command::Show { name, usage, inputs } => {
            let client = context.client().await?;
            let request = GetJobRequest { name: name.get().to_owned(), advise: true };
            let job = client.call(client.jobs().get_job(request)).await?;
            if inputs {
                context.output.list(view::inputs(&job), INPUTS)?;
                return Ok(ExitCode::SUCCESS);
            }
            context.output.show(&if usage { view::usage(&job) } else { view::job(&job) })?;
        }
        Command::Explain(name) => explain(context, name.get()).await?,
        Command::Stream { name, rank } => {
            let client = context.client().await?;
            return follow::to_the_end(context, client, name.get(), rank).await;
        }
        Command::Exec(arguments) => return exec::exec(arguments, context).await,
        Command::Shell(arguments) => return exec::shell(arguments, context).await,
        Command::Forward(arguments) => return forward::run(arguments, context).await,
        Command::Debug(arguments) => return debug::run(arguments, context).await,
        Command::Cancel { name, reason } => {
            let client = context.client().await?;
            let request = CancelJobRequest { name: name.get().to_owned(), reason };
            let job = client.call(client.jobs().cancel_job(request)).await?;
            context.output.show(&view::job(&job))?;
        }
        Command::Download(arguments) => download::run(&arguments, context).await?,
        Command::Events(arguments) => events::run(&arguments, context).await?,
        Command::Archive(name) => archive(context, name.get(), true).await?,
        Command::Restore(name) => archive(context, name.get(), false).await?,
        Command::Delete(arguments) => delete(context, &arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn explain(context: &Context, name: &str) -> Result<(), Error> {
    let client = context.client().await?;
    let request = ExplainJobRequest { name: name.to_owned() };
    let told = client.call(client.jobs().explain_job(request)).await?;
    context.output.show(&json!({
        "name": told.name,
        "status": told.status().word(),
        "compute": told.compute,
        "reason": told.reason,
        "ahead": told.ahead,
        "expected_start": view::expected(told.expected_start_p50_ms, told.expected_start_p90_ms),
        "forecast": told.forecast,
        "input_holders": told.holders.iter().map(view::holds).collect::<Vec<_>>(),
        "changes": told.changes.iter().map(view::change).collect::<Vec<_>>(),
    }))
}

async fn archive(context: &Context, name: &str, archived: bool) -> Result<(), Error> {
    let client = context.client().await?;
    let request = ArchiveJobRequest { name: name.to_owned(), archived };
    let job = client.call(client.jobs().archive_job(request)).await?;
    context.output.show(&view::job(&job))
}

async fn delete(context: &Context, arguments: &Delete) -> Result<(), Error> {
    let name = arguments.name.get();
    if !arguments.yes {
        let outputs = if arguments.with_data { "all outputs" } else { "default outputs" };
        let question = format!("Delete job {name} with its logs, metrics and {outputs}?");
        context.confirmed(&question, &format!("atelier job delete {name} --yes"))?;
    }
    let client = context.client().await?;
    let request = DeleteJobRequest { name: name.to_owned(), with_data: arguments.with_data };
    let deleted = client.call(client.jobs().delete_job(request)).await?;
    let rest = if deleted.going { " Its data goes in the background." } else { "" };
    context.output.note(&format!("Deleted {name}.{rest}"));
    for kept in deleted.kept {
        context.output.note(&format!("Kept: {kept}."));
    }
    Ok(())
}
