//! `atelier run`

use std::path::PathBuf;
use std::process::ExitCode;

use atelier_core::spec::Override;
use clap::Args;

use super::job::read::{self, KeepFailed};
use super::job::{follow, submit};
use super::{Context, Error, local};

/// Run a job or a command here and follow it to its end
///
/// Without --server it runs in the local workspace, which is started if it does not run yet. Ends
/// with the job's exit code. Ctrl-C leaves the job running.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run job.yml
  atelier run job.yml --set inputs.epochs=20 --cpus 4
  atelier run -- python train.py --lr 0.1            the current folder is the code
  atelier run --gpus 1 --memory 16GiB -- 'python train.py && python test.py'")]
#[command(override_usage = "\
atelier run [OPTIONS] FILE
       atelier run [OPTIONS] -- COMMAND...")]
pub(super) struct Arguments {
    /// The job file; - reads standard input
    #[arg(value_name = "FILE", required_unless_present = "command")]
    file: Option<PathBuf>,
    /// The command and its arguments; a single argument with blanks is a line for the shell
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "file")]
    command: Vec<String>,
    /// CPU cores, for example 2 or 0.5
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Memory, for example 4GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// GPU devices
    #[arg(long, value_name = "N")]
    gpus: Option<String>,
    /// The job's name [default: the file's, else the daemon makes one]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// The experiment [default: the file's, else the current folder's name]
    #[arg(long, value_name = "NAME")]
    experiment_name: Option<String>,
    /// An environment variable for the job; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The folder with the code of a COMMAND [default: the current one]
    #[arg(long, value_name = "FOLDER", conflicts_with = "file")]
    code: Option<PathBuf>,
    /// Change a field before the job is checked, for example limits.timeout=60
    #[arg(long, value_name = "KEY=VALUE", value_parser = read::change)]
    set: Vec<Override>,
    #[command(flatten)]
    kept: KeepFailed,
    #[command(flatten)]
    egress: local::Egress,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

impl Arguments {
    /// The options as changes to the document; later ones win.
    fn changes(&mut self) -> Vec<Override> {
        let mut changes = std::mem::take(&mut self.set);
        let options: [(&str, &[&str], &Option<String>); 5] = [
            ("--cpus", &["resources", "cpus"], &self.cpus),
            ("--memory", &["resources", "memory"], &self.memory),
            ("--gpus", &["resources", "gpus"], &self.gpus),
            ("--name", &["name"], &self.name),
            ("--experiment-name", &["experiment_name"], &self.experiment_name),
        ];
        for (option, path, value) in options {
            changes.extend(value.as_ref().map(|value| Override::text(option, path, value)));
        }
        changes.extend(self.kept.change());
        for (key, value) in &self.env {
            let path = ["environment_variables", key];
            changes.push(Override::text(&format!("--env {key}"), &path, value));
        }
        changes
    }
}

pub(super) async fn run(mut arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let changes = arguments.changes();
    // Whatever is wrong with the job is said before anything is started or asked.
    let job = match &arguments.file {
        Some(file) => read::file(file, &changes, &context.output)?,
        None => {
            let code = arguments.code.as_deref();
            read::command(&arguments.command, code, &changes, &context.output)?
        }
    };
    let allowed = &arguments.egress.allow_egress;
    let client = if context.wanted.is_elsewhere()? {
        if !allowed.is_empty() {
            let cause = "--allow-egress is for the local workspace, and the job goes to another";
            let help = "have its admin start the daemon with --allow-egress";
            return Err(Error::usage(cause.to_owned()).help(help));
        }
        context.client().await?
    } else {
        local::running(context, allowed).await?
    };
    let job = submit::create(context, &client, job).await?;
    context.output.note(&format!("Job {}", job.name));
    follow::to_the_end(context, client, &job.name, 0).await
}
