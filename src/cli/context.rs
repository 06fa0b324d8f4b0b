//! `atelier context`

use std::io::{IsTerminal as _, Read as _};

use atelier_agent::trust::{Trust, server_url};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Column, Context, Error, Kind, Name, workspace};
use crate::client::contexts::{Contexts, Entry, Known, LOCAL, New};
use crate::client::{Client, Place, Wanted};
use crate::tls::Certificate;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the daemons that have a name here; the one in use has a '*'
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier context list")]
    List,
    /// Use a daemon from now on, where no other is named; 'local' is the local workspace
    #[command(after_help = "\
Examples:
  atelier context use team
  atelier context use local
  atelier --context team job list       once, without changing which is in use")]
    Use(Name),
    /// Keep a daemon's address, authority and token under a name
    ///
    /// The token comes from --token-file or standard input, never from the command line. It is kept in the keyring of your
    /// session; where there is none, or it is locked, or ATELIER_KEYRING is 'off', in a file that only you can read. So is
    /// the authority's file.
    #[command(after_help = "\
Examples:
  atelier context add team --server https://gate.example.com:7420 --ca-file ca.pem --token-file ana.token
  atelier context add team --server https://gate.example.com:7420 --sign-in --use
  atelier login
  pass show atelier | atelier context add team --server https://gate.example.com:7420")]
    Add {
        #[command(flatten)]
        name: Name,
        /// Put it in the place of one of that name
        #[arg(long)]
        replace: bool,
        /// Keep no token: you sign in there with `atelier login`
        #[arg(long)]
        sign_in: bool,
        /// Use it from now on
        #[arg(long = "use")]
        choose: bool,
    },
    /// Get the daemon's certificate authority anew, in place of the one that a context has
    ///
    /// From the daemon itself, over a connection that the present one vouches for, as while an authority that was
    /// replaced (`atelier ca rotate`) counts still; afterwards from a file with --ca-file.
    #[command(after_help = "\
Examples:
  atelier context update team
  atelier context update team --ca-file ca.pem")]
    Update(Name),
    /// Forget a daemon and the token for it
    #[command(visible_alias = "rm", after_help = "Example:\n  atelier context remove team")]
    Remove(Name),
    /// Show a context; without a name the one in use
    #[command(
        visible_alias = "current",
        after_help = "\
Examples:
  atelier context show
  atelier context show team --query server -o tsv"
    )]
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
}

/// More than any token has.
const MOST: u64 = 64 << 10;

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let contexts = contexts(context)?;
    match command {
        Command::List => {
            let known = contexts.known()?;
            let current = current(context, &known);
            let mut all = vec![view(LOCAL, None, current == LOCAL, context)?];
            for (name, entry) in &known.contexts {
                all.push(view(name, Some(entry), *name == current, context)?);
            }
            context.output.list(all, COLUMNS)
        }
        Command::Use(name) => {
            contexts.choose(name.get())?;
            context.output.note(&format!("Commands use '{}' from now on.", name.get()));
            if context.wanted.server.is_some() {
                context.output.warn("ATELIER_SERVER is set, which comes before the context in use");
            }
            Ok(())
        }
        Command::Add { name, replace, choose, sign_in } => {
            let new = new(name.get(), sign_in, context)?;
            let not_kept = contexts.add(new, replace)?;
            for told in not_kept.iter().flat_map(|not_kept| not_kept.told("token")) {
                context.output.warn(&told);
            }
            if choose {
                contexts.choose(name.get())?;
            } else {
                let name = name.get();
                context.output.note(&format!("Use it with: atelier context use {name}"));
            }
            Ok(())
        }
        Command::Update(name) => update(name.get(), contexts, context).await,
        Command::Remove(name) => {
            if name.get() == LOCAL {
                return Err(Error::new(Kind::Refused, "'local' is the local workspace and stays")
                    .help("`atelier context use NAME` uses another"));
            }
            if let Some(problem) = contexts.remove(name.get())? {
                let told = format!(
                    "{problem}: it still has the token of '{}'; remove it there, or have it revoked (`atelier token \
                     revoke`)",
                    name.get()
                );
                context.output.warn(&told);
            }
            context.output.note(&format!("'{}' is forgotten, and the token for it.", name.get()));
            Ok(())
        }
        Command::Show { name } => {
            let known = contexts.known()?;
            let current = current(context, &known);
            let name = name.unwrap_or_else(|| current.clone());
            let entry = contexts.find(&name)?;
            context.output.show(&view(&name, entry.as_ref(), name == current, context)?)
        }
    }
}

async fn update(name: &str, contexts: &Contexts, context: &Context) -> Result<(), Error> {
    let Some(entry) = contexts.find(name)? else {
        return Err(Error::new(Kind::Refused, "'local' reads its authority from its own folder")
            .help("name another context: `atelier context list`"));
    };
    let authority = match &context.wanted.given_ca_file {
        Some(file) => {
            Trust::of_file(file).map_err(crate::client::Error::from)?;
            std::fs::read(file).map_err(|error| Error::file("read", file, &error))?
        }
        None if entry.ca_file.is_none() => {
            let why = format!("'{name}' knows its daemon by the system's authorities");
            return Err(Error::new(Kind::Refused, why)
                .help("to have it know its daemon by others add --ca-file FILE"));
        }
        None => {
            let wanted =
                Wanted { server: None, context: Some(name.to_owned()), ..context.wanted.clone() };
            let client = Client::connect(wanted.resolve()?).await?;
            let workspace = workspace::get(&client).await?;
            if workspace.has_given_certificate || workspace.certificate_authority.is_empty() {
                let why =
                    format!("'{name}' does not know its daemon by the workspace's own authority");
                return Err(Error::new(Kind::Refused, why)
                    .help("add --ca-file FILE with the authority of the daemon's --tls-cert"));
            }
            workspace.certificate_authority.into_bytes()
        }
    };
    contexts.trust(name, &authority)?;
    let read = String::from_utf8_lossy(&authority);
    let said = Certificate::of_pem(&read).map_err(|problem| {
        Error::new(Kind::Failed, format!("the daemon's authority cannot be read: {problem}"))
    })?;
    context.output.show(&json!({
        "name": name,
        "fingerprint_sha256": said.fingerprint,
        "not_after": said.not_after.to_string(),
    }))
}

fn contexts(context: &Context) -> Result<&Contexts, Error> {
    context.wanted.contexts.as_ref().ok_or_else(|| {
        Error::usage(
            "the folder of your settings is not known: neither XDG_CONFIG_HOME nor HOME is set",
        )
        .help("set one of them, or name a daemon with --server")
    })
}

/// The one that is in use.
fn current(context: &Context, known: &Known) -> String {
    let chosen = context.wanted.context.clone().or_else(|| known.current.clone());
    chosen.unwrap_or_else(|| LOCAL.to_owned())
}

fn new(name: &str, signs_in: bool, context: &Context) -> Result<New, Error> {
    let wanted = &context.wanted;
    let server = wanted.server.clone().ok_or_else(|| {
        Error::usage("where is it?").help("add --server https://HOST:PORT, as the daemon prints it")
    })?;
    let server =
        server_url(&server).map_err(|why| crate::client::Error::BadServer { server, why })?;
    let authorities = match &wanted.ca_file {
        None => None,
        Some(file) => {
            Trust::of_file(file).map_err(crate::client::Error::from)?;
            Some(std::fs::read(file).map_err(|error| Error::file("read", file, &error))?)
        }
    };
    if signs_in {
        return Ok(New { name: name.to_owned(), server, authorities, token: None });
    }
    let mut text = String::new();
    match &wanted.token_file {
        Some(file) => {
            let read = std::fs::File::open(file)
                .and_then(|opened| opened.take(MOST).read_to_string(&mut text));
            read.map_err(|error| Error::file("read", file, &error))?;
        }
        None if std::io::stdin().is_terminal() => {
            return Err(Error::usage("where is the token?")
                .help("add --token-file FILE, or pipe it into standard input; or add --sign-in, and run `atelier login` then"));
        }
        None => {
            let read = std::io::stdin().take(MOST).read_to_string(&mut text);
            read.map_err(|error| {
                Error::new(
                    Kind::Refused,
                    format!("cannot read the token from standard input: {error}"),
                )
            })?;
        }
    }
    let token = text.trim().to_owned();
    if token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(crate::client::Error::BadToken.into());
    }
    Ok(New { name: name.to_owned(), server, authorities, token: Some(token) })
}

fn view(
    name: &str,
    entry: Option<&Entry>,
    is_current: bool,
    context: &Context,
) -> Result<Value, Error> {
    let own = entry.map_or(Some(Place::File), Entry::place);
    let token_in = match (own, entry, &context.wanted.sessions) {
        // That of whoever has signed in there.
        (None, Some(entry), Some(sessions)) => sessions.place(&entry.server)?,
        (own, ..) => own,
    };
    Ok(json!({
        "name": name,
        "current": is_current,
        "server": entry.map(|entry| &entry.server),
        "ca_file": entry.and_then(|entry| entry.ca_file.as_ref()),
        "token_in": token_in.map(Place::word),
        "token_file": entry.and_then(|entry| entry.token_file.as_ref()),
    }))
}

const COLUMNS: &[Column] = &[
    Column {
        title: "CURRENT",
        cell: |c| Some(if c["current"].as_bool()? { "*" } else { "" }.to_owned()),
    },
    Column { title: "NAME", cell: |c| Some(c["name"].as_str()?.to_owned()) },
    Column {
        title: "SERVER",
        cell: |c| Some(c["server"].as_str().unwrap_or("the local workspace").to_owned()),
    },
    Column { title: "TOKEN IN", cell: |c| Some(c["token_in"].as_str().unwrap_or("").to_owned()) },
];
