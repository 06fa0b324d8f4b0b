//! `atelier workspace retention`

use atelier_proto::workspace::v1::{
    self as pb, ApplyRetentionRequest, GetRetentionRequest, PreviewRetentionRequest,
    SetRetentionRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::job::{length, size, time};
use crate::cli::node::seconds;
use crate::cli::{Column, Context, Error};

#[derive(Subcommand)]
pub(in crate::cli) enum Command {
    /// Say how long what finished jobs left and what was deleted is kept, in place of what was said before (admins)
    #[command(after_help = "\
Examples:
  atelier workspace retention set --logs 30d --outputs 90d
  atelier workspace retention set --outputs 1w --keep-tagged paper=icml26 keep
  atelier workspace retention set --deleted-runs 1w
  atelier workspace retention set                # all is kept for ever, deleted runs for 30 days")]
    Set(Set),
    /// Show the rules, and how much is being removed
    #[command(after_help = "Example:\n  atelier workspace retention show")]
    Show,
    /// List what would go now by the rules, and what stays although it is old enough, with the reason (admins)
    #[command(after_help = "Example:\n  atelier workspace retention preview -o json")]
    Preview,
    /// Have it go now; the daemon does so every hour (admins)
    #[command(after_help = "Example:\n  atelier workspace retention apply")]
    Apply,
}

#[derive(Args)]
pub(in crate::cli) struct Set {
    /// Keep logs for so long after their job has ended, for example 30d [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    logs: Option<u64>,
    /// Keep outputs and artifacts for so long [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    outputs: Option<u64>,
    /// Keep deleted runs and experiments for so long, in which they can be restored, and the files of deleted logged
    /// models [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    deleted_runs: Option<u64>,
    /// Keep all of jobs with this tag, whatever its value, or with this value
    #[arg(long, value_name = "KEY[=VALUE]", num_args = 1..)]
    keep_tagged: Vec<String>,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut workspace = client.workspace();
    match command {
        Command::Set(Set { logs, outputs, deleted_runs, keep_tagged }) => {
            if [logs, outputs, deleted_runs].contains(&Some(0)) {
                return Err(Error::usage("nothing is kept for no time").help(
                    "leave the option out to keep it for ever, and deleted runs for 30 days",
                ));
            }
            let (logs_s, outputs_s) = (logs.unwrap_or_default(), outputs.unwrap_or_default());
            let deleted_runs_s = deleted_runs.unwrap_or_default();
            let request = SetRetentionRequest { logs_s, outputs_s, keep_tagged, deleted_runs_s };
            let set = client.call(workspace.set_retention(request)).await?;
            context.output.show(&view(&set))
        }
        Command::Show => {
            let rules = client.call(workspace.get_retention(GetRetentionRequest {})).await?;
            context.output.show(&view(&rules))
        }
        Command::Preview => {
            let request = PreviewRetentionRequest {};
            let report = client.call(workspace.preview_retention(request)).await?;
            context.output.list(report.parts.iter().map(part).collect(), COLUMNS)?;
            tell(context, &report, "would go");
            Ok(())
        }
        Command::Apply => {
            let request = ApplyRetentionRequest {};
            let report = client.call(workspace.apply_retention(request)).await?;
            context.output.list(report.parts.iter().map(part).collect(), COLUMNS)?;
            tell(context, &report, "go");
            Ok(())
        }
    }
}

fn tell(context: &Context, report: &pb::RetentionReport, verb: &str) {
    let (going, staying) = (report.going, report.staying);
    let bytes = size(report.going_bytes);
    let shown = report.parts.len() as u64;
    let rest = if shown < going + staying {
        format!(" The first {shown} are shown.")
    } else {
        String::new()
    };
    context.output.note(&format!("{going} {verb}, {bytes}; {staying} stay.{rest}"));
}

fn view(rules: &pb::Retention) -> Value {
    let kept = |seconds: u64| match seconds {
        0 => Value::Null,
        seconds => length(i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)).into(),
    };
    let by = (!rules.set_by.is_empty()).then_some(&rules.set_by);
    json!({
        "logs": kept(rules.logs_s),
        "outputs": kept(rules.outputs_s),
        "deleted_runs": kept(rules.deleted_runs_s),
        "keep_tagged": rules.keep_tagged,
        "set_by": by,
        "set_at": time(rules.set_at_ms),
        "being_removed": rules.being_removed,
    })
}

fn part(part: &pb::RetentionPart) -> Value {
    json!({
        "name": part.name,
        "what": part.what,
        "bytes": part.bytes,
        "goes": part.stays.is_empty(),
        "stays": (!part.stays.is_empty()).then_some(&part.stays),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |p| Some(p["name"].as_str()?.to_owned()) },
    Column { title: "WHAT", cell: |p| Some(p["what"].as_str()?.to_owned()) },
    Column { title: "SIZE", cell: |p| Some(size(p["bytes"].as_u64()?)) },
    Column { title: "STAYS", cell: |p| Some(p["stays"].as_str().unwrap_or("").to_owned()) },
];
