//! `atelier token`

use atelier_proto::identity::v1::{
    self as pb, CreateTokenRequest, ListTokensRequest, RevokeTokenRequest,
};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::node::seconds;
use super::output::moment;
use super::{Column, Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a token for a user or a node; it is shown once
    ///
    /// A token does what its user may, or with --role less. A user who is not there yet is made, with the role of
    /// --role. Whoever makes a token must have all that it allows.
    #[command(after_help = "\
Examples:
  atelier token create --user ana --expires 30d --query token -o tsv > ana.token
  atelier token create --user ben --role data-scientist      also makes the user 'ben'
  atelier token create --user gpu-1 --role node              for the agent of the node 'gpu-1'")]
    Create {
        /// The user, or the node's name for the role 'node'
        #[arg(long, value_name = "NAME")]
        user: String,
        /// admin, compute-operator, data-scientist, reader, a custom role, or node [default: the user's]
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
        /// For how long it opens something: 12h, 30d, 52w [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        expires: Option<u64>,
    },
    /// List tokens: their ids, users and when each was last used; for who is no admin their own
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  atelier token list
  atelier token list --user ana --query '[?expired].id' -o tsv"
    )]
    List {
        /// Only this user's, or node:NAME
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Make a token worthless, at once; what it has open ends within a minute
    #[command(after_help = "\
Example:
  atelier token revoke 4f2a9c01b7d3      the id as 'atelier token list' shows it")]
    Revoke {
        /// Its id
        #[arg(value_name = "ID")]
        id: String,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    match command {
        Command::Create { user, role, expires } => {
            let request = CreateTokenRequest {
                user: user.clone(),
                role_name: role.unwrap_or_default(),
                expires_after_s: expires,
                ..CreateTokenRequest::default()
            };
            let answer = client.call(client.tokens().create_token(request)).await?;
            context.output.note("Keep the token: it is stored hashed and cannot be shown again.");
            let listed = answer.listed.unwrap_or_default();
            context.output.show(&json!({
                "user": user,
                "role": listed.role,
                "id": listed.id,
                "expires_at": time(listed.expires_at_ms),
                "token": answer.token,
            }))
        }
        Command::List { user } => {
            let request = ListTokensRequest { user: user.unwrap_or_default() };
            let answer = client.call(client.tokens().list_tokens(request)).await?;
            context.output.list(answer.tokens.iter().map(view).collect(), COLUMNS)
        }
        Command::Revoke { id } => {
            let gone = client.call(client.tokens().revoke_token(RevokeTokenRequest { id })).await?;
            context.output.note(&format!(
                "The token of {} opens nothing any more; what it has open ends within a minute.",
                gone.user
            ));
            context.output.show(&view(&gone))
        }
    }
}

/// As it is shown, without the token itself.
pub(super) fn view(token: &pb::Token) -> Value {
    json!({
        "id": token.id,
        "user": token.user,
        "role": token.role,
        "created_at": time(token.created_at_ms),
        "created_by": (!token.created_by.is_empty()).then_some(&token.created_by),
        "expires_at": time(token.expires_at_ms),
        "expired": token.expired,
        "last_used_at": time(token.last_used_at_ms),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "ID", cell: |t| Some(t["id"].as_str()?.to_owned()) },
    Column { title: "USER", cell: |t| Some(t["user"].as_str()?.to_owned()) },
    Column { title: "ROLE", cell: |t| Some(t["role"].as_str()?.to_owned()) },
    Column { title: "CREATED", cell: |t| moment(&t["created_at"]) },
    Column { title: "BY", cell: |t| Some(t["created_by"].as_str()?.to_owned()) },
    Column {
        title: "EXPIRES",
        cell: |t| match t["expired"].as_bool()? {
            true => Some("expired".to_owned()),
            false => moment(&t["expires_at"]),
        },
    },
    Column { title: "LAST USED", cell: |t| moment(&t["last_used_at"]) },
];
