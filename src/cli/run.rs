//! `atelier run`: runs a job and follows it; or looks at what runs have logged.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use atelier_core::spec::Override;
use clap::{Args, Subcommand};

use super::job::read::{self, KeepFailed};
use super::job::{follow, submit};
use super::{Context, Error, Kind, local};
use crate::client::tracking;

mod bin;
mod download;
mod look;
mod metrics;
mod plot;

/// Run a job or a command here and follow it to its end; or look at what runs have logged
///
/// Without --server it runs in the local workspace, which is started if it does not run yet. Ends
/// with the job's exit code. Ctrl-C leaves the job running.
///
/// A job file that is called like one of the commands is given as ./list.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  atelier run job.yml
  atelier run job.yml --set inputs.epochs=20 --cpus 4
  atelier run -- python train.py --lr 0.1            the current folder is the code
  atelier run --gpus 1 --memory 16GiB -- 'python train.py && python test.py'
  atelier run list --order-by 'metrics.loss ASC'
  atelier run metrics calm_apple_x1 loss --plot")]
#[command(override_usage = "\
atelier run [OPTIONS] FILE
       atelier run [OPTIONS] -- COMMAND...
       atelier run list|show|compare|metrics|download|delete|restore [OPTIONS] ...")]
pub(super) struct Arguments {
    #[command(subcommand)]
    look: Option<Look>,
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

/// What is asked of runs, of jobs or made elsewhere.
#[derive(Subcommand)]
enum Look {
    /// List runs with their latest metrics
    #[command(visible_alias = "ls")]
    List(look::ListArguments),
    /// Show what was logged to a run
    Show(look::ShowArguments),
    /// Put runs beside each other: what differs in their parameters and metrics
    Compare(look::CompareArguments),
    /// A run's metrics: curves, points, a file of them, new ones as they come
    Metrics(metrics::Arguments),
    /// Bring a run's artifacts here
    Download(download::Arguments),
    /// Delete runs with what was logged to them; for a while they can be restored
    ///
    /// How long is an admin's to say (atelier workspace retention set --deleted-runs), 30 days if nobody does. Of a job's
    /// run what was logged goes; the job stays, and its files, until it is deleted itself (atelier job delete).
    Delete(bin::DeleteArguments),
    /// Restore deleted runs
    Restore(bin::RestoreArguments),
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

async fn look(look: Look, context: &Context) -> Result<(), Error> {
    match look {
        Look::List(arguments) => look::list(arguments, context).await,
        Look::Show(arguments) => look::show(&arguments, context).await,
        Look::Compare(arguments) => look::compare(&arguments, context).await,
        Look::Metrics(arguments) => metrics::run(arguments, context).await,
        Look::Download(arguments) => download::run(&arguments, context).await,
        Look::Delete(arguments) => bin::delete(&arguments, context).await,
        Look::Restore(arguments) => bin::restore(&arguments, context).await,
    }
}

/// What the daemon said to a question about runs.
fn failed(doing: &str) -> impl Fn(tracking::Error) -> Error + use<> {
    let doing = doing.to_owned();
    move |error| {
        let cause = format!("cannot {doing}: {error}");
        match &error {
            tracking::Error::Lost(_) => {
                Error::new(Kind::Unreachable, cause).help("run the command again")
            }
            tracking::Error::Refused { status, .. } => match status {
                401 | 403 => Error::new(Kind::NotAllowed, cause),
                404 => Error::new(Kind::NotFound, cause)
                    .help("see what there is: atelier run list, atelier experiment list"),
                502..=504 => Error::new(Kind::Unreachable, cause).help("run the command again"),
                400..=499 => Error::new(Kind::Refused, cause),
                _ => Error::new(Kind::Failed, cause),
            },
        }
    }
}

/// The ids of experiments that are named; `known` has the names by id.
fn ids_of(known: &HashMap<String, String>, wanted: &[String]) -> Result<Vec<String>, Error> {
    let id = |name: &String| {
        let found = known.iter().find(|(_, known)| *known == name).map(|(id, _)| id.clone());
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no experiment '{name}'"))
                .help("see which there are: atelier experiment list")
        })
    };
    wanted.iter().map(id).collect()
}

/// A number for a narrow place, with four digits that count.
fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let places = match size {
        0.0 => 0,
        ..0.01 => 6,
        0.01..0.1 => 5,
        0.1..1.0 => 4,
        1.0..10.0 => 3,
        10.0..100.0 => 2,
        100.0..1000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

pub(super) async fn run(mut arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    if let Some(asked) = arguments.look {
        return look(asked, context).await.map(|()| ExitCode::SUCCESS);
    }
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

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_number_for_a_narrow_place_has_four_digits_that_count() {
        for (value, text) in [
            (0.0, "0"),
            (0.001_234_5, "0.001234"),
            (0.012_345, "0.01235"),
            (0.123_456, "0.1235"),
            (1.5, "1.5"),
            (-12.345_6, "-12.35"),
            (100.0, "100"),
            (123_456.7, "123457"),
            (1.5e-7, "1.500e-7"),
            (2e9, "2.000e9"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
