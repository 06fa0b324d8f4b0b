//! `atelier workspace`

use atelier_proto::workspace::v1::{self as pb, GetWorkspaceRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::{Context, Error};
use crate::client::Client;

mod retention;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the workspace: its name, version, defaults, and who you are there
    #[command(after_help = "Example:\n  atelier workspace show --query version -o tsv")]
    Show,
    /// How long what finished jobs left is kept
    #[command(subcommand)]
    Retention(retention::Command),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    if let Command::Retention(command) = command {
        return retention::run(command, context).await;
    }
    let client = context.client().await?;
    context.output.show(&view(&get(&client).await?, &client.target().server))
}

/// Asks the daemon about its workspace; also the way to learn whether it is well.
pub(super) async fn get(client: &Client) -> Result<pb::Workspace, Error> {
    Ok(client.call(client.workspace().get_workspace(GetWorkspaceRequest {})).await?)
}

fn view(workspace: &pb::Workspace, server: &str) -> Value {
    json!({
        "name": workspace.name,
        "id": workspace.id,
        "server": server,
        "version": workspace.version,
        "default_datastore": workspace.default_datastore,
        "storage": workspace.storage,
        "default_compute": workspace.default_compute,
        "created_at": time(workspace.created_at_ms),
        "principal": workspace.principal,
        "role": workspace.role,
        "mlflow_tracking_uri": server,
    })
}
