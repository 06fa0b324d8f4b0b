//! `atelier role`

use std::io::Read as _;
use std::path::{Path, PathBuf};

use atelier_core::access::RoleFile;
use atelier_proto::identity::v1::{
    self as pb, DeleteRoleRequest, GetRoleRequest, ListActionsRequest, ListRolesRequest,
    PutRoleRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job::time;
use super::{Column, Context, Error, Kind, Name};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a role of actions, from a file as Azure's
    ///
    /// The file lists `name`, `description`, `actions` and `not_actions`; a `*` stands for any characters. JSON as
    /// Azure writes it (`Name`, `Actions`, `NotActions`) is taken too. Nobody makes a role that allows more than
    /// they may themselves.
    #[command(after_help = "\
Examples:
  atelier role create -f role.yml

role.yml:
  name: job-keeper
  description: Cancels and deletes jobs, and looks at all
  actions: [\"*/read\", \"workspaces/jobs/*\", workspaces/changeAny/action]
  not_actions: [workspaces/jobs/write, workspaces/jobs/enter/action]")]
    Create(File),
    /// Change a role of one's own; it holds at once for all who have it
    #[command(after_help = "Example:\n  atelier role update -f role.yml")]
    Update(File),
    /// List the roles: those of every workspace, and one's own
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier role list")]
    List,
    /// Show a role, and all that it allows
    #[command(after_help = "\
Examples:
  atelier role show data-scientist
  atelier role show 'AzureML Compute Operator' --query allows")]
    Show(Name),
    /// Delete a role that nobody has
    #[command(after_help = "Example:\n  atelier role delete job-keeper --yes")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// List the actions of which roles are made
    #[command(after_help = "Example:\n  atelier role list-actions")]
    ListActions,
}

#[derive(Args)]
pub(super) struct File {
    /// The role's file, YAML or JSON; '-' for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// More than any role's file has.
const MOST: u64 = 1 << 20;

impl File {
    fn read(&self) -> Result<PutRoleRequest, Error> {
        let mut text = String::new();
        let read = if self.file == Path::new("-") {
            std::io::stdin().take(MOST).read_to_string(&mut text)
        } else {
            std::fs::File::open(&self.file)
                .and_then(|file| file.take(MOST).read_to_string(&mut text))
        };
        read.map_err(|error| Error::file("read", &self.file, &error))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let RoleFile { name, description, actions, not_actions, .. } =
            serde_saphyr::from_str(text).map_err(|error| {
                let file = self.file.display();
                Error::new(Kind::Refused, format!("{file}: {error}")).help(
                    "a role has name, description, actions and not_actions; see 'atelier role create --help'",
                )
            })?;
        Ok(PutRoleRequest { name, description, actions, not_actions })
    }
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    if let Command::Delete { name, yes: false } = &command {
        let name = name.get();
        let question = format!("Delete role '{name}'?");
        context.confirmed(&question, &format!("atelier role delete {name} --yes"))?;
    }
    match command {
        Command::Create(file) => {
            let request = file.read()?;
            let client = context.client().await?;
            let made = client.call(client.roles().create_role(request)).await?;
            context.output.show(&view(&made))
        }
        Command::Update(file) => {
            let request = file.read()?;
            let client = context.client().await?;
            let made = client.call(client.roles().update_role(request)).await?;
            context.output.show(&view(&made))
        }
        Command::List => {
            let client = context.client().await?;
            let answer = client.call(client.roles().list_roles(ListRolesRequest {})).await?;
            context.output.list(answer.roles.iter().map(view).collect(), COLUMNS)
        }
        Command::Show(name) => {
            let client = context.client().await?;
            let request = GetRoleRequest { name: name.get().to_owned() };
            let found = client.call(client.roles().get_role(request)).await?;
            context.output.show(&view(&found))
        }
        Command::Delete { name, .. } => {
            let client = context.client().await?;
            let request = DeleteRoleRequest { name: name.get().to_owned() };
            let gone = client.call(client.roles().delete_role(request)).await?;
            context.output.note(&format!("Role '{}' is deleted.", gone.name));
            Ok(())
        }
        Command::ListActions => {
            let client = context.client().await?;
            let answer = client.call(client.auth().list_actions(ListActionsRequest {})).await?;
            let action = |action: &pb::Action| json!({ "name": action.name, "description": action.description });
            context.output.list(answer.actions.iter().map(action).collect(), ACTIONS)
        }
    }
}

fn view(role: &pb::RoleDefinition) -> Value {
    json!({
        "name": role.name,
        "azure_name": (!role.azure_name.is_empty()).then_some(&role.azure_name),
        "description": role.description,
        "actions": role.actions,
        "not_actions": role.not_actions,
        "allows": role.allows,
        "is_custom": role.is_custom,
        "created_at": time(role.created_at_ms),
        "created_by": (!role.created_by.is_empty()).then_some(&role.created_by),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |r| Some(r["name"].as_str()?.to_owned()) },
    Column { title: "IN AZURE", cell: |r| Some(r["azure_name"].as_str()?.to_owned()) },
    Column { title: "ACTIONS", cell: |r| Some(r["allows"].as_array()?.len().to_string()) },
    Column { title: "DESCRIPTION", cell: |r| Some(r["description"].as_str()?.to_owned()) },
];

const ACTIONS: &[Column] = &[
    Column { title: "ACTION", cell: |a| Some(a["name"].as_str()?.to_owned()) },
    Column { title: "ALLOWS TO", cell: |a| Some(a["description"].as_str()?.to_owned()) },
];
