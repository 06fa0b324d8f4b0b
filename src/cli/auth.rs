//! `atelier auth`

use std::process::ExitCode;

use atelier_proto::identity::v1::{CheckActionRequest, WhoAmIRequest};
use clap::Subcommand;
use serde_json::json;

use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Say whether you may do something: 'yes' with exit code 0, or 'no' with 1, and why
    #[command(after_help = "\
Examples:
  atelier auth can-i workspaces/jobs/write
  atelier auth can-i workspaces/jobs/write --compute gpu-cluster
  atelier auth can-i workspaces/computes/write -q      for scripts: by the exit code alone
  atelier role list-actions                    all actions there are")]
    CanI {
        /// The action, as Azure names it: workspaces/jobs/cancel/action
        #[arg(value_name = "ACTION")]
        action: String,
        /// Whether you may do it there: jobs and environment builds are for those to whom a compute is given
        #[arg(long, value_name = "COMPUTE")]
        compute: Option<String>,
    },
    /// Say who you are for the daemon, in which role and groups, and what the role allows
    #[command(after_help = "\
Examples:
  atelier auth whoami
  atelier auth whoami --query role -o tsv")]
    Whoami,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<ExitCode, Error> {
    let client = context.client().await?;
    match command {
        Command::CanI { action, compute } => {
            let compute = compute.unwrap_or_default();
            let request = CheckActionRequest { action, compute };
            let answer = client.call(client.auth().check_action(request)).await?;
            let word = if answer.allowed { "yes" } else { "no" };
            if context.output.is_plain() {
                context.output.note(&answer.reason);
                context.output.print(&format!("{word}\n"))?;
            } else {
                context.output.show(&json!({
                    "action": answer.action,
                    "allowed": answer.allowed,
                    "reason": answer.reason,
                }))?;
            }
            Ok(if answer.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Whoami => {
            let answer = client.call(client.auth().who_am_i(WhoAmIRequest {})).await?;
            if let Some(name) = context.wanted.in_place_of_token()? {
                context.output.warn(&format!(
                    "ATELIER_TOKEN is set and not used: the context '{name}' has its own token; --server goes past it"
                ));
            }
            context.output.show(&json!({
                "principal": answer.principal,
                "role": answer.role,
                "groups": answer.groups,
                "server": client.target().server,
                "allows": answer.allows,
            }))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
