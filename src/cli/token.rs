//! `atelier token`

use atelier_proto::identity::v1::{self as pb, CreateTokenRequest};
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a token for a user or a node; it is shown once
    #[command(after_help = "\
Examples:
  atelier token create --user ana --role data-scientist --query token -o tsv > ana.token
  atelier token create --user gpu-1 --role node      for the agent of the node 'gpu-1'")]
    Create {
        /// The user, or the node's name for the role 'node'
        #[arg(long, value_name = "NAME")]
        user: String,
        /// What the token may do
        #[arg(long, value_enum)]
        role: Role,
    },
}

/// A role that can be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Role {
    /// Everything, computes and tokens included
    Admin,
    /// Submits jobs, reads everything, changes its own
    DataScientist,
    /// Reads
    Reader,
    /// A node's agent
    Node,
}

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::DataScientist => Self::DataScientist,
            Role::Reader => Self::Reader,
            Role::Node => Self::Node,
        }
    }
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let Command::Create { user, role } = command;
    let client = context.client().await?;
    let request = CreateTokenRequest { user: user.clone(), role: pb::Role::from(role).into() };
    let answer = client.call(client.tokens().create_token(request)).await?;
    context.output.note("Keep the token: it is stored hashed and cannot be shown again.");
    let role = role.to_possible_value().map(|value| value.get_name().to_owned());
    context.output.show(&json!({ "user": user, "role": role, "token": answer.token }))
}
