//! `atelier datastore`

use atelier_proto::workspace::v1::{self as pb, GetDatastoreRequest, ListDatastoresRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Column, Context, Error, Name};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the datastores
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier datastore list")]
    List,
    /// Show one datastore
    #[command(after_help = "Example:\n  atelier datastore show workspaceblobstore")]
    Show(Name),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut workspace = client.workspace();
    match command {
        Command::List => {
            let answer = client.call(workspace.list_datastores(ListDatastoresRequest {})).await?;
            context.output.list(answer.datastores.iter().map(view).collect(), COLUMNS)
        }
        Command::Show(name) => {
            let request = GetDatastoreRequest { name: name.get().to_owned() };
            context.output.show(&view(&client.call(workspace.get_datastore(request)).await?))
        }
    }
}

fn view(datastore: &pb::Datastore) -> Value {
    json!({
        "name": datastore.name,
        "type": datastore.r#type,
        "is_default": datastore.is_default,
        "description": datastore.description,
        "location": datastore.location,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |d| Some(d["name"].as_str()?.to_owned()) },
    Column { title: "TYPE", cell: |d| Some(d["type"].as_str()?.to_owned()) },
    Column {
        title: "DEFAULT",
        cell: |d| Some(if d["is_default"] == true { "yes" } else { "" }.to_owned()),
    },
    Column { title: "LOCATION", cell: |d| Some(d["location"].as_str()?.to_owned()) },
];
