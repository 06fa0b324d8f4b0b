//! `atelier user`

use atelier_proto::identity::v1::{
    self as pb, BlockUserRequest, CreateUserRequest, DeleteUserRequest, GetUserRequest,
    ListUsersRequest, UnblockUserRequest, UpdateUserRequest,
};
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};

use super::job::time;
use super::output::moment;
use super::{Column, Context, Error, Name, token};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a user, who comes in with a token of theirs
    #[command(after_help = "\
Examples:
  atelier user create ana --role data-scientist --group vision
  atelier token create --user ana --expires 30d       a token to come in with")]
    Create {
        #[command(flatten)]
        name: Name,
        /// admin, compute-operator, data-scientist, reader, or a custom role
        #[arg(long, value_name = "ROLE")]
        role: String,
        /// A group to put them in, to whom computes are given; may be given several times
        #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
        group: Vec<String>,
    },
    /// Give a user another role, or other groups; it holds at once, also for jobs that wait
    #[command(after_help = "\
Examples:
  atelier user update ana --role compute-operator
  atelier user update ana --add-group vision --remove-group nlp")]
    Update {
        #[command(flatten)]
        name: Name,
        /// admin, compute-operator, data-scientist, reader, or a custom role
        #[arg(long, value_name = "ROLE", required_unless_present_any = ["add_group", "remove_group"])]
        role: Option<String>,
        /// A group to put them in; may be given several times
        #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
        add_group: Vec<String>,
        /// A group to take them out of; may be given several times
        #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
        remove_group: Vec<String>,
    },
    /// List the users
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier user list")]
    List,
    /// Show a user with their groups and tokens
    #[command(after_help = "Example:\n  atelier user show ana")]
    Show(Name),
    /// Have somebody not come in any more, with tokens or by signing in; jobs of theirs go on
    ///
    /// It need be no user of the workspace yet: whoever signs in at a provider under that name is refused.
    #[command(after_help = "\
Examples:
  atelier user block ana@example.com --reason 'has left the team'
  atelier user list --query '[?blocked].name'")]
    Block {
        #[command(flatten)]
        name: Name,
        /// Why; they are told when they want to sign in
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Let somebody come in again
    #[command(after_help = "Example:\n  atelier user unblock ana@example.com")]
    Unblock(Name),
    /// Delete a user with all their tokens; what they made stays
    ///
    /// Who signs in at a provider comes back with the next sign-in: to keep them out, block them.
    #[command(after_help = "Example:\n  atelier user delete ana --yes")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    if let Command::Delete { name, yes: false } = &command {
        let name = name.get();
        let question = format!("Delete user '{name}' and all tokens of theirs?");
        context.confirmed(&question, &format!("atelier user delete {name} --yes"))?;
    }
    let client = context.client().await?;
    match command {
        Command::Create { name, role, group } => {
            let request = CreateUserRequest { name: name.get().to_owned(), role, groups: group };
            let made = client.call(client.users().create_user(request)).await?;
            let name = &made.name;
            context.output.note(&format!("A token for them: atelier token create --user {name}"));
            context.output.show(&view(&made))
        }
        Command::Update { name, role, add_group, remove_group } => {
            let request = UpdateUserRequest {
                name: name.get().to_owned(),
                role: role.unwrap_or_default(),
                add_groups: add_group,
                remove_groups: remove_group,
            };
            let changed = client.call(client.users().update_user(request)).await?;
            context.output.show(&view(&changed))
        }
        Command::List => {
            let answer = client.call(client.users().list_users(ListUsersRequest {})).await?;
            context.output.list(listed(&answer), COLUMNS)
        }
        Command::Show(name) => {
            let request = GetUserRequest { name: name.get().to_owned() };
            let found = client.call(client.users().get_user(request)).await?;
            let mut shown = view(&found);
            shown["tokens"] = found.tokens.iter().map(token::view).collect();
            context.output.show(&shown)
        }
        Command::Block { name, reason } => {
            let request = BlockUserRequest { name: name.get().to_owned(), reason };
            let block = client.call(client.users().block_user(request)).await?;
            context.output.note(&format!(
                "'{}' comes in no more; jobs of theirs go on, end them with `atelier job cancel`.",
                block.name
            ));
            context.output.show(&view_block(&block))
        }
        Command::Unblock(name) => {
            let request = UnblockUserRequest { name: name.get().to_owned() };
            let block = client.call(client.users().unblock_user(request)).await?;
            context.output.note(&format!("'{}' may come in again.", block.name));
            Ok(())
        }
        Command::Delete { name, .. } => {
            let request = DeleteUserRequest { name: name.get().to_owned() };
            let gone = client.call(client.users().delete_user(request)).await?;
            context.output.note(&format!("User '{}' is deleted; what they made stays.", gone.name));
            if gone.signs_in {
                context.output.note(&format!(
                    "The provider still vouches for them, so that they come back with their next sign-in; to keep them \
                     out: atelier user block {} --reason TEXT",
                    gone.name
                ));
            }
            Ok(())
        }
    }
}

fn view_block(block: &pb::BlockedUser) -> Value {
    json!({
        "name": block.name,
        "reason": block.reason,
        "by": block.by,
        "at": time(block.at_ms),
    })
}

/// Users, and who is blocked without being one.
fn listed(answer: &pb::ListUsersResponse) -> Vec<Value> {
    let of = |name: &str| answer.blocked.iter().find(|block| block.name == name);
    let users = answer.users.iter().map(|user| {
        let mut shown = view(user);
        shown["blocked"] = json!(of(&user.name).map(view_block));
        shown
    });
    let is_user = |name: &str| answer.users.iter().any(|user| user.name == name);
    let others = answer.blocked.iter().filter(|block| !is_user(&block.name));
    let others = others.map(|block| json!({ "name": block.name, "blocked": view_block(block) }));
    users.chain(others).collect()
}

fn view(user: &pb::User) -> Value {
    json!({
        "name": user.name,
        "role": user.role,
        "groups": user.groups,
        "created_at": time(user.created_at_ms),
        "signs_in": user.signs_in,
        "created_by": (!user.created_by.is_empty()).then_some(&user.created_by),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |u| Some(u["name"].as_str()?.to_owned()) },
    Column { title: "ROLE", cell: |u| Some(u["role"].as_str()?.to_owned()) },
    Column {
        title: "GROUPS",
        cell: |u| {
            let groups: Vec<&str> =
                u["groups"].as_array()?.iter().filter_map(Value::as_str).collect();
            match groups.as_slice() {
                [] => None,
                [first, second, third, rest @ ..] if !rest.is_empty() => {
                    Some(format!("{first}, {second}, {third}, +{}", rest.len()))
                }
                groups => Some(groups.join(", ")),
            }
        },
    },
    Column { title: "CREATED", cell: |u| moment(&u["created_at"]) },
    Column { title: "BLOCKED", cell: |u| Some(u["blocked"]["reason"].as_str()?.to_owned()) },
    Column { title: "BY", cell: |u| Some(u["created_by"].as_str()?.to_owned()) },
];
