//! `atelier datastore`

use std::path::PathBuf;

use atelier_core::datastore::Draft;
use atelier_core::spec::{Origin, Override, parse_datastore};
use atelier_proto::workspace::v1::{
    self as pb, CreateDatastoreRequest, DeleteDatastoreRequest, GetDatastoreRequest,
    ListDatastoresRequest, TestDatastoreRequest, UpdateDatastoreRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job::{read, time};
use super::{Column, Context, Error, Kind, Name};
use crate::client::Client;
use crate::config::Here;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the datastores
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier datastore list")]
    List,
    /// Show one datastore
    #[command(after_help = "Example:\n  atelier datastore show workspaceblobstore")]
    Show(Name),
    /// Make a datastore from its file. Admins only
    ///
    /// Azure's datastore files are read as they are. Data can be in folders of the daemon's machine (the types
    /// local and nfs), in object stores (azure_blob, azure_data_lake_gen2, s3, gcs), in shares of Azure Files (azure_file) and on web servers (http). An
    /// object store is not asked: 'atelier datastore test' does. Credentials are sealed in the vault, and no command
    /// shows them. The same again is no change.
    #[command(after_help = "\
Examples:
  atelier datastore create -f datasets.yml
  atelier datastore create -f datasets.yml --name datasets --set path=/srv/datasets")]
    Create(Create),
    /// Change what is said of a datastore, and its credentials. Admins only
    ///
    /// Credentials that a file does not have stay as they are; 'credentials: {}' in it removes them. Jobs that run
    /// go on with the new ones.
    #[command(after_help = "\
Examples:
  atelier datastore update datasets --set description='What everybody trains on'
  atelier datastore update datasets --set tags.team=vision
  atelier datastore update --file datasets.yml")]
    Update(Update),
    /// Delete a datastore; its data stays where it is. Refused while jobs use it. Admins only
    #[command(after_help = "Example:\n  atelier datastore delete datasets")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// As users of `az ml` write it: nothing is asked either way
        #[arg(long, short)]
        yes: bool,
    },
    /// Try a datastore: list it, and write, read and delete a small file
    ///
    /// Files of a web server are only tried to be reached.
    ///
    /// Exits with 1 if one of these fails, and says why.
    #[command(after_help = "Example:\n  atelier datastore test datasets")]
    Test(Name),
}

#[derive(Args)]
pub(super) struct Create {
    /// The datastore's file; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change a field before the file is checked, for example path=/srv/datasets
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
    /// Its name [default: the file's]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Args)]
pub(super) struct Update {
    /// Its name [default: the file's]
    #[arg(value_name = "NAME", required_unless_present_any = ["file", "named"])]
    name: Option<String>,
    /// The same, as users of `az ml` write it
    #[arg(short, long = "name", value_name = "NAME", conflicts_with = "name")]
    named: Option<String>,
    /// A file that says all of it anew; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Change a field, for example tags.team=vision
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., value_parser = read::change)]
    set: Vec<Override>,
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
            context.output.show(&view(&get(&client, name.get().to_owned()).await?))
        }
        Command::Create(Create { file, mut set, name }) => {
            set.extend(name.map(|name| Override::text("--name", &["name"], &name)));
            let document = read::document(&file, "datastore")?;
            let Sent { datastore, credentials } =
                sent(&document.text, document.name, &set, context)?;
            let request = CreateDatastoreRequest { datastore: Some(datastore), credentials };
            let made = client.call(workspace.create_datastore(request)).await?;
            context.output.show(&view(&made))?;
            context.output.note(&format!(
                "Jobs name what lies in it as azureml://datastores/{}/paths/PATH.",
                made.name
            ));
            if made.source.is_some() {
                let test = format!("atelier datastore test {}", made.name);
                context.output.note(&format!("Whether it can be used is tried by '{test}'."));
            }
            Ok(())
        }
        Command::Update(update) => {
            let Sent { datastore, credentials } = updated(update, &client, context).await?;
            let request = UpdateDatastoreRequest { datastore: Some(datastore), credentials };
            context.output.show(&view(&client.call(workspace.update_datastore(request)).await?))
        }
        Command::Delete { name, yes: _ } => {
            let request = DeleteDatastoreRequest { name: name.get().to_owned() };
            client.call(workspace.delete_datastore(request)).await?;
            context
                .output
                .note(&format!("Datastore {} is deleted; its data is where it was.", name.get()));
            Ok(())
        }
        Command::Test(name) => test(name.get(), &client, context).await,
    }
}

async fn get(client: &Client, name: String) -> Result<pb::Datastore, Error> {
    Ok(client.call(client.workspace().get_datastore(GetDatastoreRequest { name })).await?)
}

/// A datastore as it is sent.
struct Sent {
    datastore: pb::DatastoreDraft,
    credentials: Option<pb::DatastoreCredentials>,
}

/// What a file and changes to it describe, if the daemon can serve it.
fn sent(text: &[u8], name: String, changes: &[Override], context: &Context) -> Result<Sent, Error> {
    let origin = Origin { name, folder: String::new(), experiment: String::new() };
    let parsed = parse_datastore(text, &origin, changes, &Here).map_err(read::faults)?;
    for warning in &parsed.warnings {
        context.output.warn(&warning.to_string());
    }
    let (draft, credentials) = parsed.definition.draft();
    let Draft { name, source, .. } = &draft;
    if let Some(why) = credentials.as_ref().and_then(|given| given.misfit(source)) {
        return Err(Error::new(Kind::Refused, format!("datastore '{name}': credentials: {why}")));
    }
    Ok(Sent {
        datastore: (&draft).into(),
        credentials: credentials.as_ref().map(pb::DatastoreCredentials::from),
    })
}

/// A datastore with changes, which apply to a file that says all of it, or else to what there is.
async fn updated(update: Update, client: &Client, context: &Context) -> Result<Sent, Error> {
    let Update { name, named, file, mut set } = update;
    let name = name.or(named);
    if let Some(file) = file {
        set.extend(name.map(|name| Override::text("--name", &["name"], &name)));
        let document = read::document(&file, "datastore")?;
        return sent(&document.text, document.name, &set, context);
    }
    if set.is_empty() {
        return Err(Error::usage("nothing is to be changed")
            .help("say what, for example --set description='What everybody trains on'"));
    }
    let known = get(client, name.unwrap_or_default()).await?;
    sent(view(&known).to_string().as_bytes(), known.name, &set, context)
}

async fn test(name: &str, client: &Client, context: &Context) -> Result<(), Error> {
    let request = TestDatastoreRequest { name: name.to_owned() };
    let trials = client.call(client.workspace().test_datastore(request)).await?.trials;
    let shown = |trial: &pb::DatastoreTrial| {
        let problem = (!trial.problem.is_empty()).then_some(&trial.problem);
        json!({ "operation": trial.operation, "works": problem.is_none(), "problem": problem })
    };
    context.output.list(trials.iter().map(shown).collect(), TRIALS)?;
    let failed = trials.iter().filter(|trial| !trial.problem.is_empty());
    let failed: Vec<&str> = failed.map(|trial| &*trial.operation).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let failed = failed.join(", ");
    Err(Error::new(Kind::Refused, format!("datastore '{name}' cannot {failed}")))
}

/// As a datastore's file may say it, and where it lies and who made it.
fn view(datastore: &pb::Datastore) -> Value {
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let mut shown = json!({
        "name": datastore.name,
        "type": datastore.r#type,
        "is_default": datastore.is_default,
        "description": optional(&datastore.description),
        "tags": datastore.tags,
        "properties": datastore.properties,
        "location": datastore.location,
    });
    if !datastore.created_by.is_empty() {
        match &datastore.source {
            Some(source) => place(source, &mut shown),
            None => shown["path"] = json!(datastore.location),
        }
        shown["credential_type"] = json!(datastore.credential_type);
        shown["creation_context"] = json!({
            "created_at": time(datastore.created_at_ms),
            "created_by": datastore.created_by,
        });
    }
    shown
}

/// Where the data lies, in the keys of the datastore's file.
fn place(source: &pb::datastore::Source, shown: &mut Value) {
    use pb::datastore::Source;
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            shown[key] = json!(value);
        }
    };
    match source {
        Source::AzureBlob(azure) | Source::AzureDataLakeGen2(azure) | Source::AzureFile(azure) => {
            let container = match source {
                Source::AzureBlob(_) => "container_name",
                Source::AzureFile(_) => "file_share_name",
                _ => "filesystem",
            };
            put("account_name", &azure.account_name);
            put(container, &azure.container);
            put("endpoint", &azure.endpoint);
            put("protocol", &azure.protocol);
        }
        Source::S3(s3) => {
            put("bucket", &s3.bucket);
            put("endpoint", &s3.endpoint);
            put("region", &s3.region);
            put("prefix", &s3.prefix);
            shown["path_style"] = json!(s3.path_style);
        }
        Source::Gcs(gcs) => {
            put("bucket", &gcs.bucket);
            put("prefix", &gcs.prefix);
        }
        Source::Http(http) => put("url", &http.url),
        Source::OneLake(lake) => {
            put("one_lake_workspace_name", &lake.workspace);
            put("endpoint", &lake.endpoint);
            shown["artifact"] = json!({ "type": "lake_house", "name": lake.lakehouse });
        }
    }
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |d| Some(d["name"].as_str()?.to_owned()) },
    Column { title: "TYPE", cell: |d| Some(d["type"].as_str()?.to_owned()) },
    Column {
        title: "DEFAULT",
        cell: |d| Some(if d["is_default"] == true { "yes" } else { "" }.to_owned()),
    },
    Column { title: "LOCATION", cell: |d| Some(d["location"].as_str()?.to_owned()) },
    Column {
        title: "CREDENTIALS",
        cell: |d| Some(d["credential_type"].as_str().unwrap_or("").to_owned()),
    },
];

const TRIALS: &[Column] = &[
    Column { title: "OPERATION", cell: |t| Some(t["operation"].as_str()?.to_owned()) },
    Column {
        title: "WORKS",
        cell: |t| Some(if t["works"] == true { "yes" } else { "no" }.to_owned()),
    },
    Column { title: "PROBLEM", cell: |t| Some(t["problem"].as_str().unwrap_or("").to_owned()) },
];
