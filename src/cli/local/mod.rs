//! `atelier local`: the workspace on this machine.

use std::time::Duration;

use atelier_core::egress::Network;
use atelier_proto::job::v1::{JobStatus, ListJobsRequest};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Context, Error, Kind};
use crate::client::{Client, Home};
use crate::process::{self, Record};

mod files;
mod start;
#[cfg(test)]
mod tests;

use files::{Files, Part};
pub(super) use start::running;

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Subcommand)]
pub(super) enum Command {
    /// Start the local workspace, if it does not run
    #[command(after_help = "\
Examples:
  atelier local start
  atelier local start --allow-egress 10.20.0.0/16")]
    Start(Egress),
    /// Show whether it runs, where it listens and where its files lie
    #[command(after_help = "Example:\n  atelier local status --query server -o tsv")]
    Status,
    /// Print the last lines that its daemon and agent have logged
    #[command(
        after_help = "Examples:\n  atelier local logs\n  atelier local logs agent --lines 200"
    )]
    Logs {
        /// Only one of them
        part: Option<Part>,
        /// How many lines of each
        #[arg(long, value_name = "N", default_value_t = 50)]
        lines: usize,
    },
    /// Stop it; jobs, data and results stay for the next start
    #[command(after_help = "Example:\n  atelier local stop")]
    Stop {
        /// Even though jobs are running
        #[arg(long)]
        force: bool,
    },
}

/// Where the local workspace's node may fetch from.
#[derive(Args)]
pub(super) struct Egress {
    /// Addresses inside your network from which jobs may have inputs that are URLs: ADDRESS or ADDRESS/BITS; may be
    /// given several times. It counts from the local workspace's start until it is stopped
    #[arg(long, value_name = "NETWORK")]
    pub(super) allow_egress: Vec<Network>,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Start(egress) => {
            let client = running(context, &egress.allow_egress).await?;
            context
                .output
                .note(&format!("The local workspace runs at {}.", client.target().server));
            status(context).await
        }
        Command::Status => status(context).await,
        Command::Logs { part, lines } => logs(context, part, lines),
        Command::Stop { force } => stop(context, force).await,
    }
}

fn home(context: &Context) -> Result<&Home, Error> {
    context.wanted.home.as_ref().ok_or_else(|| crate::client::Error::NoHome.into())
}

async fn status(context: &Context) -> Result<(), Error> {
    let home = home(context)?;
    let files = Files::new(home);
    let alive = start::alive(&context.wanted).await;
    let process = |part: Part| -> Value {
        match Record::read(&files.record(part)).filter(Record::is_alive) {
            Some(record) => json!({
                "running": true,
                "pid": record.pid,
                "version": record.version,
                "log": files.log(part).display().to_string(),
            }),
            None => json!({ "running": false }),
        }
    };
    context.output.show(&json!({
        "running": alive.is_some(),
        "server": alive.as_ref().map(|(client, _)| client.target().server.clone()),
        "version": alive.as_ref().map(|(_, workspace)| workspace.version.clone()),
        "daemon": process(Part::Serve),
        "agent": process(Part::Agent),
        "data_dir": home.data().display().to_string(),
        "logs": files.logs().display().to_string(),
    }))
}

fn logs(context: &Context, part: Option<Part>, lines: usize) -> Result<(), Error> {
    let files = Files::new(home(context)?);
    for part in part.map_or_else(|| vec![Part::Serve, Part::Agent], |part| vec![part]) {
        let log = files.log(part);
        context.output.note(&format!("{}:", log.display()));
        let text = process::tail(&log, lines, 0);
        if !text.is_empty() {
            context.output.print(&(text + "\n"))?;
        }
    }
    Ok(())
}

async fn stop(context: &Context, force: bool) -> Result<(), Error> {
    let files = Files::new(home(context)?);
    let _lock = start::lock(&files, &context.output).await?;
    let answering = start::alive(&context.wanted).await;
    if let (Some((client, _)), false) = (&answering, force) {
        refuse_while_jobs_run(client).await?;
    }
    let mut any = false;
    // The agent first: it then does not miss its daemon.
    for part in [Part::Agent, Part::Serve] {
        if let Some(record) = Record::read(&files.record(part)).filter(Record::is_alive) {
            any = true;
            stopped(part, &record)?;
            // Its address is kept for the next start; where its nodes may fetch from is said anew.
            let kept = Record { allow_egress: Vec::new(), ..record };
            let file = files.record(part);
            kept.write(&file).map_err(|error| Error::file("write", &file, &error))?;
        }
    }
    // Those of clusters last: the daemon would start them again.
    for record in cluster_agents(home(context)?) {
        any = true;
        stopped(Part::Agent, &record)?;
    }
    match (any, start::alive(&context.wanted).await) {
        (_, Some((client, _))) => Err(Error::new(
            Kind::Refused,
            format!("the daemon at {} was started by other means", client.target().server),
        )
        .help("stop `atelier serve` where it was started")),
        (true, None) => {
            context.output.note("Stopped. Jobs, data and results stay for the next start.");
            Ok(())
        }
        (false, None) => {
            context.output.note("The local workspace was not running.");
            Ok(())
        }
    }
}

/// The agents that the daemon has started for clusters' nodes.
fn cluster_agents(home: &Home) -> Vec<Record> {
    let nodes = std::fs::read_dir(home.data().join("nodes")).into_iter().flatten();
    nodes
        .filter_map(|node| Record::read(&node.ok()?.path().join("agent.json")))
        .filter(Record::is_alive)
        .collect()
}

fn stopped(part: Part, record: &Record) -> Result<(), Error> {
    record.stop(GRACE).map_err(|error| {
        Error::new(
            Kind::Failed,
            format!("cannot stop the local {} (process {}): {error}", part.word(), record.pid),
        )
        .help("check whose process it is, and end it with `kill`")
    })
}

async fn refuse_while_jobs_run(client: &Client) -> Result<(), Error> {
    let live = |status: &JobStatus| !status.is_final() && *status != JobStatus::Queued;
    let request = ListJobsRequest {
        page_size: 10,
        statuses: JobStatus::ALL.into_iter().filter(live).map(Into::into).collect(),
        include_archived: true,
        ..Default::default()
    };
    let jobs = client.call(client.jobs().list_jobs(request)).await?;
    if jobs.jobs.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = jobs.jobs.iter().map(|job| job.name.as_str()).collect();
    let more = if jobs.next_page_token.is_empty() { "" } else { " and more" };
    Err(Error::new(Kind::Refused, format!("jobs are running: {}{more}", names.join(", "))).help(
        "wait for them or cancel them; with --force the workspace stops now, and its jobs end \
         unless it is started again soon",
    ))
}
