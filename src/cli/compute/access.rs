//! `atelier compute access`

use atelier_proto::compute::v1::{self as pb, ChangeAccessRequest, GetComputeRequest};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::view;
use crate::cli::{Column, Context, Error, Name};
use crate::client::Client;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Give a compute to users and groups, who then have it for themselves
    ///
    /// Until a compute is given to somebody, everybody may use it whose role has them submit jobs. From then
    /// on only those may to whom it was given, and who manages computes.
    #[command(after_help = "\
Examples:
  atelier compute access grant gpu-cluster --group vision
  atelier compute access grant gpu-cluster --user ada --user bob
  atelier compute access grant gpu-cluster --everybody")]
    Grant(Change),
    /// Take a compute from users and groups
    ///
    /// Jobs of theirs that wait there are held until they may use it again; those that run go on.
    #[command(after_help = "\
Examples:
  atelier compute access revoke gpu-cluster --user ada
  atelier compute access revoke gpu-cluster --everybody     it is for those who manage computes, and who is let in next")]
    Revoke(Change),
    /// List who may use a compute
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  atelier compute access list gpu-cluster"
    )]
    List(Name),
}

#[derive(Args)]
pub(crate) struct Change {
    #[command(flatten)]
    name: Name,
    /// This user; may be given several times
    #[arg(long, value_name = "USER", value_parser = NonEmptyStringValueParser::new())]
    user: Vec<String>,
    /// Whoever is in this group; may be given several times
    #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    group: Vec<String>,
    /// Everybody whose role has them submit jobs
    #[arg(long, conflicts_with_all = ["user", "group"], required_unless_present_any = ["user", "group"])]
    everybody: bool,
}

fn request(change: Change) -> ChangeAccessRequest {
    let Change { name, user, group, everybody } = change;
    ChangeAccessRequest { name: name.get().to_owned(), users: user, groups: group, everybody }
}

pub(super) async fn run(command: Command, client: &Client, context: &Context) -> Result<(), Error> {
    let mut computes = client.computes();
    let changed = match command {
        Command::Grant(change) => client.call(computes.grant_access(request(change))).await?,
        Command::Revoke(change) => client.call(computes.revoke_access(request(change))).await?,
        Command::List(name) => {
            let request = GetComputeRequest { name: name.get().to_owned() };
            let compute = client.call(computes.get_compute(request)).await?;
            return context.output.list(rows(&compute), COLUMNS);
        }
    };
    context.output.show(&view(&changed))
}

/// Who may use a compute, as a part of it.
pub(super) fn shown(compute: &pb::Compute) -> Value {
    match &compute.access {
        // One of an earlier version keeps nobody away.
        None => json!({ "everybody": true, "groups": [], "users": [] }),
        Some(pb::Access { everybody, users, groups }) => {
            json!({ "everybody": everybody, "groups": groups, "users": users })
        }
    }
}

/// The same as a list. Who manages computes is always among them.
fn rows(compute: &pb::Compute) -> Vec<Value> {
    let row = |kind: &str, name: Option<&String>| json!({ "kind": kind, "name": name });
    match &compute.access {
        None | Some(pb::Access { everybody: true, .. }) => vec![row("everybody", None)],
        Some(pb::Access { users, groups, .. }) => {
            let groups = groups.iter().map(|group| row("group", Some(group)));
            let users = users.iter().map(|user| row("user", Some(user)));
            [row("managers", None)].into_iter().chain(groups).chain(users).collect()
        }
    }
}

const COLUMNS: &[Column] = &[
    Column { title: "KIND", cell: |row| Some(row["kind"].as_str()?.to_owned()) },
    Column {
        title: "NAME",
        cell: |row| match (row["kind"].as_str(), row["name"].as_str()) {
            (Some("managers"), _) => Some("(who manages computes)".to_owned()),
            (_, name) => name.map(str::to_owned),
        },
    },
];
