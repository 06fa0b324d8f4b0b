//! `atelier job debug`: a shell or a command in what a failed job left.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use atelier_proto::job::v1 as pb;
use clap::Args;
use pb::open_channel::What;
use serde_json::{Value, json};

use super::exec::{self, Entry};
use super::view::time;
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error, Name};

/// Open a shell, or run a command, in what a failed job left
///
/// Its node keeps the files, environment and inputs of an attempt whose command failed for as long as the
/// job's `keep_failed` says, or else the node itself. What is run there sees what the job saw, with the job's
/// variables and working directory, but no GPUs and no token of the job's, little CPU where others want it,
/// and little memory. It ends with this program, and when the time is up. What it changes is not stored
/// anywhere. Without a command it is a shell on a terminal.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job debug calm_apple_x1
  atelier job debug calm_apple_x1 -- tail -n 50 outputs/log.txt
  atelier job debug calm_apple_x1 -it -- python -m pdb train.py
  atelier job debug calm_apple_x1 --release")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    name: Name,
    /// Give the command this program's standard input; without it, it has none
    #[arg(short = 'i', long, requires = "command")]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long, requires = "command")]
    tty: bool,
    /// Of a job on several nodes, what this member left, from 0
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rank: u32,
    /// Let go of all that is kept of the job, before its time
    #[arg(long, conflicts_with_all = ["rank", "command"])]
    release: bool,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let Arguments { name, stdin, tty, rank, release, command } = arguments;
    let name = name.get();
    if release {
        return let_go(context, name).await;
    }
    let is_shell = command.is_empty();
    if is_shell && !std::io::stdin().is_terminal() {
        let help = format!("for a script use `atelier job debug {name} -i -- sh`");
        return Err(Error::usage("a shell needs a terminal, and standard input is none").help(help));
    }
    let exec = exec::checked(command, is_shell || stdin, is_shell || tty)?;
    let (stdin, tty) = (exec.stdin, exec.terminal.is_some());
    let after = format!("what {name} left is still there");
    let entry = Entry { job: name, rank, what: What::Debug(exec), stdin, tty, after };
    exec::run(context, entry).await
}

async fn let_go(context: &Context, job: &str) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    let request = pb::ReleaseSandboxRequest { job: job.to_owned() };
    let gone = client.call(client.jobs().release_sandbox(request)).await?;
    context.output.list(rows(&gone.sandboxes), COLUMNS)?;
    context.output.note(&match gone.sandboxes.as_slice() {
        [] => format!("Nothing was kept of {job}."),
        [one] => format!("Let go of what {job} left on node {}.", one.node),
        several => format!("Let go of what {job} left on {} nodes.", several.len()),
    });
    Ok(ExitCode::SUCCESS)
}

/// What nodes keep of a job.
pub(super) fn kept(sandboxes: &[pb::Sandbox]) -> Value {
    rows(sandboxes).into()
}

fn rows(sandboxes: &[pb::Sandbox]) -> Vec<Value> {
    let of = |kept: &pb::Sandbox| {
        json!({
            "rank": kept.rank,
            "attempt": kept.attempt,
            "node": kept.node,
            "until": time(kept.until_ms),
        })
    };
    sandboxes.iter().map(of).collect()
}

const COLUMNS: &[Column] = &[
    Column { title: "RANK", cell: |kept| Some(kept["rank"].to_string()) },
    Column { title: "ATTEMPT", cell: |kept| Some(kept["attempt"].to_string()) },
    Column { title: "NODE", cell: |kept| Some(kept["node"].as_str()?.to_owned()) },
    Column { title: "UNTIL", cell: |kept| moment(&kept["until"]) },
];
