//! `atelier workspace`

mod migrate;
mod retention;

use atelier_proto::workspace::v1::{self as pb, GetWorkspaceRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::{Context, Error};
use crate::client::Client;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the workspace: its name, version, defaults, and who you are there
    #[command(after_help = "Example:\n  atelier workspace show --query version -o tsv")]
    Show,
    /// How long what finished jobs left is kept
    #[command(subcommand)]
    Retention(retention::Command),
    /// Move the data of the workspace's own datastores to another place, while the daemon is stopped
    ///
    /// Code, inputs, outputs, logs and artifacts are copied to an object store or another folder, read back and
    /// compared; then the workspace lies there. Cut short at any moment, the workspace works where it did, and the
    /// same command goes on from there. Nothing is removed from the old place. Refused while jobs run.
    #[command(after_help = "\
Examples:
  atelier workspace migrate-storage --to s3.yml
  atelier workspace migrate-storage --from s3.yml --to folder.yml --data-dir /srv/atelier")]
    MigrateStorage(migrate::Migrate),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Show => {
            let client = context.client().await?;
            context.output.show(&view(&get(&client).await?, &client.target().server))
        }
        Command::Retention(command) => retention::run(command, context).await,
        Command::MigrateStorage(arguments) => migrate::run(arguments, context).await,
    }
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
