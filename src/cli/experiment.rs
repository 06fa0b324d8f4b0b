//! `atelier experiment`

use atelier_proto::workspace::v1::{self as pb, ListExperimentsRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::output::moment;
use super::{Column, Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the experiments
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier experiment list")]
    List,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let Command::List = command;
    let client = context.client().await?;
    let call = client.call(client.workspace().list_experiments(ListExperimentsRequest {})).await?;
    context.output.list(call.experiments.iter().map(view).collect(), COLUMNS)
}

fn view(experiment: &pb::Experiment) -> Value {
    json!({
        "name": experiment.name,
        "id": experiment.id,
        "runs": experiment.runs,
        "lifecycle_stage": experiment.lifecycle_stage,
        "created_at": time(experiment.created_at_ms),
        "last_updated_at": time(experiment.last_update_ms),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |e| Some(e["name"].as_str()?.to_owned()) },
    Column { title: "ID", cell: |e| Some(e["id"].as_str()?.to_owned()) },
    Column { title: "RUNS", cell: |e| Some(e["runs"].to_string()) },
    Column { title: "UPDATED", cell: |e| moment(&e["last_updated_at"]) },
];
