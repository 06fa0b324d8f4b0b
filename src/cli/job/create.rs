//! `atelier job create`

use std::path::PathBuf;
use std::process::ExitCode;

use atelier_core::spec::Override;
use clap::Args;

use super::{follow, read, submit, view};
use crate::cli::{Context, Error};

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job create -f job.yml
  atelier job create -f job.yml --set resources.cpus=4 --set inputs.epochs=20 --stream
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
    /// Follow its log to the end, and end with its exit code
    #[arg(short, long)]
    stream: bool,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let mut changes = arguments.set;
    changes.extend(arguments.name.map(|name| Override::text("--name", &["name"], &name)));
    let job = read::file(&arguments.file, &changes, &context.output)?;
    let client = context.client().await?;
    let job = submit::create(context, &client, job).await?;
    if arguments.stream {
        context.output.note(&format!("Job {}", job.name));
        return follow::to_the_end(context, client, &job.name).await;
    }
    context.output.show(&view::job(&job))?;
    context.output.note(&format!("Follow it with `atelier job stream {}`.", job.name));
    Ok(ExitCode::SUCCESS)
}
