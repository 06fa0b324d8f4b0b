//! `atelier secret`

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use atelier_core::secret::MAX_VALUE;
use atelier_proto::vault::v1::{
    self as pb, DeleteSecretRequest, DeleteSecretVersionRequest, GetSecretRequest,
    GrantSecretRequest, ListSecretsRequest, RevokeSecretRequest, SetSecretRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job::time;
use super::output::moment;
use super::{Column, Context, Error, Kind, Name};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Keep a value under a name, sealed; no command shows it again
    ///
    /// The value comes from a file or standard input, never from the command line, which every process of the
    /// machine can read. A value of one line is taken without its line end. A name that there is already gets
    /// its next version.
    #[command(after_help = "\
Examples:
  atelier secret set db-password --value-file password.txt
  pass show db | atelier secret set db-password")]
    Set(Set),
    /// List the secrets: their names, not their values
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier secret list")]
    List,
    /// Show what is known of a secret: all but its value
    #[command(after_help = "Example:\n  atelier secret show db-password")]
    Show(Name),
    /// Let jobs of a user's, or of everybody's, use a secret
    ///
    /// Its owner and admins may use it in their jobs as it is. A job names it as the value of a variable:
    /// `environment_variables: {DB_PASSWORD: azureml:secrets/db-password}`. Whoever may use a secret in a job can
    /// read it there.
    #[command(after_help = "\
Examples:
  atelier secret grant db-password --user ana
  atelier secret grant db-password --everyone")]
    Grant(Grantee),
    /// Take that back: no attempt that starts later gets the value
    #[command(after_help = "\
Examples:
  atelier secret revoke db-password --user ana
  atelier secret revoke db-password --everyone")]
    Revoke(Grantee),
    /// Delete a secret, all its versions or one that is not its latest
    #[command(
        disable_version_flag = true,
        after_help = "\
Examples:
  atelier secret delete db-password --yes
  atelier secret delete db-password --version 2 --yes"
    )]
    Delete {
        #[command(flatten)]
        name: Name,
        /// Only this version, which jobs that are not over must not use
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        version: Option<u32>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Args)]
pub(super) struct Set {
    /// Its name
    #[arg(value_name = "NAME")]
    positional: Option<String>,
    /// Its name, as users of `az` write it
    #[arg(short = 'n', long = "name", value_name = "NAME")]
    option: Option<String>,
    /// A file that holds the value [default: standard input]
    #[arg(long, visible_alias = "file", value_name = "FILE")]
    value_file: Option<PathBuf>,
    // What must not be given: taken here so that no message repeats it.
    #[arg(hide = true, num_args = 0.., allow_hyphen_values = true)]
    word: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, allow_hyphen_values = true)]
    value: Option<Option<String>>,
}

#[derive(Args)]
pub(super) struct Grantee {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct To {
    /// A user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// All users
    #[arg(long)]
    everyone: bool,
}

impl Set {
    fn name(&self) -> Result<&str, Error> {
        let name = self.positional.as_deref().or(self.option.as_deref());
        let as_word = self.value.is_some() || !self.word.is_empty();
        if as_word || (self.positional.is_some() && self.option.is_some()) {
            return Err(Error::usage(
                "a secret's value is not given on the command line, which other processes can read",
            )
            .help("write it to a file for --value-file, or send it through standard input; and choose another value, since this one was shown"));
        }
        name.ok_or_else(|| {
            Error::usage("the secret's name is missing")
                .help("atelier secret set NAME --value-file FILE")
        })
    }
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Set(set) => self::set(&set, context).await,
        Command::List => list(context).await,
        Command::Show(name) => {
            let client = context.client().await?;
            let request = GetSecretRequest { name: name.get().to_owned() };
            let secret = client.call(client.vault().get_secret(request)).await?;
            let mut shown = view(&secret);
            shown["used_by"] = secret.uses.iter().map(view_use).collect();
            context.output.show(&shown)
        }
        Command::Grant(Grantee { name, to: To { user, everyone } }) => {
            let client = context.client().await?;
            let (name, user) = (name.get().to_owned(), user.unwrap_or_default());
            let request = GrantSecretRequest { name, user, everyone };
            let granted = client.call(client.vault().grant_secret(request)).await?;
            context.output.show(&view(&granted))
        }
        Command::Revoke(Grantee { name, to: To { user, everyone } }) => {
            let client = context.client().await?;
            let (name, user) = (name.get().to_owned(), user.unwrap_or_default());
            let request = RevokeSecretRequest { name, user, everyone };
            let revoked = client.call(client.vault().revoke_secret(request)).await?;
            context.output.show(&view(&revoked))
        }
        Command::Delete { name, version, yes } => delete(name.get(), version, yes, context).await,
    }
}

async fn set(set: &Set, context: &Context) -> Result<(), Error> {
    let name = set.name()?.to_owned();
    let value = read(set.value_file.as_deref())?;
    let client = context.client().await?;
    let request = SetSecretRequest { name, value: value.into() };
    context.output.show(&view(&client.call(client.vault().set_secret(request)).await?))
}

async fn list(context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let (mut secrets, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListSecretsRequest { page_size: 0, page_token };
        let page = client.call(client.vault().list_secrets(request)).await?;
        secrets.extend(page.secrets.iter().map(view));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return context.output.list(secrets, COLUMNS);
        }
    }
}

async fn delete(
    name: &str,
    version: Option<u32>,
    yes: bool,
    context: &Context,
) -> Result<(), Error> {
    let (what, option) = match version {
        Some(version) => (format!("version {version}"), format!(" --version {version}")),
        None => ("all versions".to_owned(), String::new()),
    };
    if !yes {
        let question = format!("Delete {what} of secret {name}?");
        context.confirmed(&question, &format!("atelier secret delete {name}{option} --yes"))?;
    }
    let client = context.client().await?;
    let of = name.to_owned();
    context.output.note(&match version {
        Some(version) => {
            let request = DeleteSecretVersionRequest { name: of, version };
            client.call(client.vault().delete_secret_version(request)).await?;
            format!("Deleted version {version} of {name}.")
        }
        None => {
            client.call(client.vault().delete_secret(DeleteSecretRequest { name: of })).await?;
            format!("Deleted {name}.")
        }
    });
    Ok(())
}

/// The value from its file, or from standard input; of one that is too long, no more than tells so.
fn read(file: Option<&Path>) -> Result<Vec<u8>, Error> {
    // A line end that is taken away may be beyond the bound.
    let bounded = |source: &mut dyn io::Read| {
        let mut value = Vec::with_capacity(MAX_VALUE + 4);
        source.take(MAX_VALUE as u64 + 3).read_to_end(&mut value).map(|_| value)
    };
    let path = file.filter(|path| path.as_os_str() != "-");
    let value = match path {
        Some(path) => File::open(path)
            .and_then(|mut file| bounded(&mut file))
            .map_err(|error| Error::file("read", path, &error))?,
        None if io::stdin().is_terminal() => {
            return Err(Error::usage(
                "there is no value: standard input is a terminal, which would show it",
            )
            .help("give it by --value-file FILE, or through a pipe"));
        }
        None => bounded(&mut io::stdin()).map_err(|error| {
            Error::new(Kind::Failed, format!("cannot read standard input: {error}"))
        })?,
    };
    let value = without_line_end(value);
    if value.len() > MAX_VALUE {
        let cause = format!("the value is too long: at most {MAX_VALUE} bytes are allowed");
        return Err(Error::new(Kind::Refused, cause));
    }
    Ok(value)
}

/// A value of one line without its end: most programs write one that does not belong to the value.
/// One of several lines (a key, a certificate) stays as it is.
fn without_line_end(mut value: Vec<u8>) -> Vec<u8> {
    if value.iter().filter(|&&byte| byte == b'\n').count() == 1 && value.ends_with(b"\n") {
        value.pop();
        if value.ends_with(b"\r") {
            value.pop();
        }
    }
    value
}

fn view(secret: &pb::Secret) -> Value {
    json!({
        "name": secret.name,
        "version": secret.version,
        "creation_context": {
            "created_at": time(secret.created_at_ms),
            "created_by": secret.created_by,
            "last_modified_at": time(secret.updated_at_ms),
            "last_modified_by": secret.updated_by,
        },
        "granted_to": secret.grants.iter().map(grantee).collect::<Vec<_>>(),
    })
}

fn grantee(grant: &pb::SecretGrant) -> &str {
    match grant.user.as_str() {
        "" => EVERYONE,
        user => user,
    }
}

fn view_use(one: &pb::SecretUse) -> Value {
    json!({
        "job": one.job,
        "version": one.version,
        "user": one.used_by,
        "at": time(one.used_at_ms),
    })
}

/// No user is called so: names begin with a letter or digit.
const EVERYONE: &str = "*";

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |s| Some(s["name"].as_str()?.to_owned()) },
    Column { title: "VERSION", cell: |s| Some(s["version"].to_string()) },
    Column {
        title: "CREATED BY",
        cell: |s| Some(s["creation_context"]["created_by"].as_str()?.to_owned()),
    },
    Column {
        title: "GRANTED TO",
        cell: |s| {
            let users = s["granted_to"].as_array()?.iter().filter_map(Value::as_str);
            Some(users.collect::<Vec<_>>().join(", "))
        },
    },
    Column { title: "MODIFIED", cell: |s| moment(&s["creation_context"]["last_modified_at"]) },
];
