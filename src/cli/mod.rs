//! The command line: one file per noun, one output object.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use atelier_agent::AgentArgs;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::client::contexts::Contexts;
use crate::client::keyring::Keyring;
use crate::client::{Client, Home, Sessions, Wanted};
use crate::config::ServeArgs;

mod asset;
mod audit;
mod auth;
mod backup;
mod ca;
mod completions;
mod component;
mod compute;
mod context;
mod data;
mod datastore;
mod doctor;
mod environment;
mod error;
mod experiment;
mod fetch;
mod fs;
mod job;
mod local;
mod login;
mod model;
mod node;
mod output;
mod pages;
mod queue;
mod role;
mod run;
mod schema;
mod secret;
mod serve;
mod service;
mod simulate;
mod token;
mod top;
mod ui;
pub mod upload;
mod user;
mod vault;
mod workspace;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use error::{Error, Kind};
pub(crate) use output::{Column, Format, Output, Query};

/// A workspace for machine learning on machines you own.
///
/// Runs Azure Machine Learning job files unchanged: `atelier run job.yml`.
#[derive(Parser)]
#[command(name = "atelier", version = crate::VERSION, propagate_version = true)]
#[command(arg_required_else_help = true, infer_long_args = false, max_term_width = 100)]
#[command(after_help = "\
Examples:
  atelier run job.yml                            run a job here and follow it
  atelier run --cpus 2 -- python train.py        run a command, without a file
  atelier job create -f job.yml --stream         submit to the daemon in use
  atelier job list --query \"[?status=='Failed'].name\"

Exit codes: 0 done, 1 refused or job failed, 2 usage, 3 not found, 4 no daemon,
5 not allowed, 6 daemon failed. `run` and `stream` end with the job's own code.")]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Args)]
struct Global {
    /// How to print data [default: a table for lists; for one thing YAML on a terminal, else JSON]
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", help_heading = "Global")]
    output: Option<Format>,
    /// JMESPath expression that picks from the data, for example "[].name"
    #[arg(long, global = true, value_name = "JMESPATH", help_heading = "Global")]
    query: Option<String>,
    /// The daemon's address: https://HOST:PORT, or http:// on this machine [env: ATELIER_SERVER] [default: the context
    /// in use, else the local workspace]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global")]
    server: Option<String>,
    /// A daemon by its name (`atelier context list`) [env: ATELIER_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global")]
    context: Option<String>,
    /// A file that holds the token; without it ATELIER_TOKEN is used
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    token_file: Option<PathBuf>,
    /// A file in PEM of the authorities that vouch for the daemon [env: ATELIER_CA_FILE] [default: the system's]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    ca_file: Option<PathBuf>,
    /// Print data and errors only
    #[arg(short, long, global = true, help_heading = "Global")]
    quiet: bool,
    /// Print what the client does, to standard error
    #[arg(long, global = true, help_heading = "Global")]
    debug: bool,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Arguments>),
    /// Submit, look at, follow and cancel jobs
    #[command(subcommand)]
    Job(job::Command),
    Queue(queue::Arguments),
    Top(top::Arguments),
    Ui(ui::Arguments),
    /// Make clusters, look at computes and their nodes, drain them
    #[command(subcommand)]
    Compute(compute::Command),
    /// Look at nodes, drain and resume them
    #[command(subcommand)]
    Node(node::Command),
    /// Look at the workspace
    #[command(subcommand)]
    Workspace(workspace::Command),
    /// Make datastores, look at them, try, change and delete them
    #[command(subcommand)]
    Datastore(datastore::Command),
    /// List, copy, print and remove files of datastores
    #[command(subcommand)]
    Fs(fs::Command),
    /// Make data assets and their versions, look at them, bring them here, put them away
    #[command(subcommand)]
    Data(data::Command),
    /// Make models and their versions, look at them, bring them here, put them away
    #[command(subcommand)]
    Model(model::Command),
    /// Make environments and their versions, look at them, put them away
    #[command(subcommand)]
    Environment(environment::Command),
    /// Make components and their versions, look at them, put them away
    #[command(subcommand)]
    Component(component::Command),
    /// Look at experiments
    #[command(subcommand)]
    Experiment(experiment::Command),
    /// Keep secrets: set them, see which there are, delete them
    #[command(subcommand)]
    Secret(secret::Command),
    /// Look at the keys that secrets are sealed with, and rotate them
    #[command(subcommand)]
    Vault(vault::Command),
    /// The authority that vouches for the daemon
    #[command(subcommand)]
    Ca(ca::Command),
    /// Name daemons, and say which is used
    #[command(subcommand)]
    Context(context::Command),
    /// Make users, give them roles, delete them
    #[command(subcommand)]
    User(user::Command),
    Login(login::Arguments),
    Logout(login::LogoutArguments),
    /// Make tokens for users and nodes, list and revoke them
    #[command(subcommand)]
    Token(token::Command),
    /// Back up a workspace, encrypted, while its daemon runs
    #[command(subcommand)]
    Backup(backup::Command),
    Restore(backup::RestoreArguments),
    Doctor(doctor::Arguments),
    /// Look at roles, and make ones of actions
    #[command(subcommand)]
    Role(role::Command),
    /// Ask who you are, and what you may do
    #[command(subcommand)]
    Auth(auth::Command),
    /// Who changed what: list the audit log, verify and export it
    #[command(subcommand)]
    Audit(audit::Command),
    /// The workspace on this machine: start, look, stop
    #[command(subcommand)]
    Local(local::Command),
    /// Run the daemon: the workspace's scheduler, store and gateway
    #[command(after_help = "\
Examples:
  atelier serve
  atelier serve --data-dir /srv/atelier --workspace team --listen 127.0.0.1:7420
  atelier serve --listen 0.0.0.0:7420 --tls-name gate.example.com
  atelier serve --listen 0.0.0.0:7420 --tls-cert chain.pem --tls-key key.pem")]
    Serve(Box<ServeArgs>),
    /// Run a node's agent: it joins this machine to a workspace and runs jobs on it
    #[command(after_help = "\
Examples:
  atelier agent --server https://gate.example.com:7420 --node gpu-1 --token atj_…
  atelier agent --server https://gate.example.com:7420 --node gpu-1
  atelier agent --server http://127.0.0.1:7420 --token-file node.token --node gpu-1
  atelier agent --server-file endpoint --token-file node.token --cpus 8 --memory 32GiB")]
    Agent(Box<AgentArgs>),
    /// Daemon and agent as services of systemd: install, look, upgrade, remove
    #[command(subcommand)]
    Service(service::Command),
    /// Run the scheduler on a trace, in no time at all
    #[command(subcommand)]
    Simulate(simulate::Command),
    Schema(schema::Arguments),
    Completions(completions::Arguments),
}

/// A thing's name, as `NAME` or `-n NAME`.
#[derive(Args, Clone, Debug)]
#[group(id = "which", required = true, multiple = false)]
struct Name {
    /// Its name
    #[arg(value_name = "NAME")]
    positional: Option<String>,
    /// Its name, as users of `az ml` write it
    #[arg(short = 'n', long = "name", value_name = "NAME")]
    option: Option<String>,
}

impl Name {
    fn get(&self) -> &str {
        self.positional.as_deref().or(self.option.as_deref()).unwrap_or_default()
    }
}

/// What every command needs: where to print, which daemon.
#[derive(Clone)]
struct Context {
    output: Output,
    wanted: Wanted,
}

impl Context {
    async fn client(&self) -> Result<Client, Error> {
        login::renew(self).await?;
        let target = self.wanted.resolve()?;
        tracing::debug!(server = %target.server, "connecting");
        Ok(Client::connect(target).await?)
    }

    /// Has somebody say yes before something is lost; `instead` is the command that asks nothing.
    fn confirmed(&self, question: &str, instead: &str) -> Result<(), Error> {
        match self.output.confirm(question) {
            Some(true) => Ok(()),
            Some(false) => Err(Error::new(Kind::Refused, "nothing was deleted")),
            None => Err(Error::usage("there is no terminal to confirm the deletion on")
                .help(format!("add --yes: {instead}"))),
        }
    }
}

/// The whole program from its arguments to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are no errors: clap knows where each goes, and the code.
        Err(error) => error.exit(),
    };
    let Global { output: format, query, server, context, token_file, ca_file, quiet, debug } =
        cli.global;
    let plain = Output::standard(format, None, quiet);
    let query = match query.as_deref().map(Query::new).transpose() {
        Ok(query) => query,
        Err(error) => {
            plain.error(&error);
            return error.exit_code();
        }
    };
    if debug {
        log_to_stderr();
    }
    let output = Output::standard(format, query, quiet);
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // What the command line names comes before what the environment does, and there a server before a context.
    let (server, context) = match (server, context) {
        (None, None) => match variable("ATELIER_SERVER") {
            Some(server) => (Some(server), None),
            None => (None, variable("ATELIER_CONTEXT")),
        },
        named => named,
    };
    let keyring = match Keyring::of_session(variable) {
        Ok(keyring) => keyring,
        Err(error) => {
            let error = Error::usage(error.to_string()).help("write 'auto' or 'off', or unset it");
            output.error(&error);
            return error.exit_code();
        }
    };
    let settings = crate::config::settings();
    let wanted = Wanted {
        server,
        token_file,
        given_ca_file: ca_file.clone(),
        ca_file: ca_file.or_else(|| variable("ATELIER_CA_FILE").map(PathBuf::from)),
        token: variable("ATELIER_TOKEN"),
        home: crate::config::home().ok().map(Home::new),
        context,
        sessions: settings
            .as_ref()
            .map(|settings| Sessions::new(settings.join("sessions.json"), keyring.clone())),
        contexts: settings.map(|settings| Contexts::new(settings, keyring)),
        kept: None,
    };
    let context = Context { output: output.clone(), wanted };
    match dispatch(cli.command, &context) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}

fn dispatch(command: Command, context: &Context) -> Result<ExitCode, Error> {
    let done = |result: Result<(), Error>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Run(arguments) => block_on(run::run(*arguments, context)),
        Command::Local(command) => done(block_on(local::run(command, context))),
        Command::Serve(arguments) => done(serve::run(*arguments)),
        Command::Agent(arguments) => Ok(atelier_agent::main(*arguments)),
        Command::Service(command) => done(service::run(command, context)),
        Command::Simulate(command) => done(block_on(simulate::run(command, context))),
        Command::Schema(arguments) => done(schema::run(&arguments, context)),
        Command::Job(command) => block_on(job::run(command, context)),
        Command::Queue(arguments) => done(block_on(queue::run(arguments, context))),
        Command::Ui(arguments) => done(block_on(ui::run(arguments, context))),
        Command::Top(arguments) => done(block_on(top::run(arguments, context))),
        Command::Compute(command) => done(block_on(compute::run(command, context))),
        Command::Node(command) => done(block_on(node::run(command, context))),
        Command::Workspace(command) => done(block_on(workspace::run(command, context))),
        Command::Datastore(command) => done(block_on(datastore::run(command, context))),
        Command::Fs(command) => done(block_on(fs::run(command, context))),
        Command::Data(command) => done(block_on(data::run(command, context))),
        Command::Model(command) => done(block_on(model::run(command, context))),
        Command::Environment(command) => done(block_on(environment::run(command, context))),
        Command::Component(command) => done(block_on(component::run(command, context))),
        Command::Experiment(command) => done(block_on(experiment::run(command, context))),
        Command::Secret(command) => done(block_on(secret::run(command, context))),
        Command::Vault(command) => done(block_on(vault::run(command, context))),
        Command::Ca(command) => done(block_on(ca::run(command, context))),
        Command::Backup(command) => done(backup::run(command, context)),
        Command::Doctor(arguments) => block_on(doctor::run(arguments, context)),
        Command::Restore(arguments) => done(backup::run_restore(arguments, context)),
        Command::Context(command) => done(block_on(context::run(command, context))),
        Command::User(command) => done(block_on(user::run(command, context))),
        Command::Login(arguments) => done(block_on(login::login(arguments, context))),
        Command::Logout(arguments) => done(block_on(login::logout(arguments, context))),
        Command::Token(command) => done(block_on(token::run(command, context))),
        Command::Role(command) => done(block_on(role::run(command, context))),
        Command::Auth(command) => block_on(auth::run(command, context)),
        Command::Audit(command) => done(block_on(audit::run(command, context))),
        Command::Completions(arguments) => {
            done(completions::run(&arguments, &mut Cli::command(), context))
        }
    }
}

/// Runs a client command on one thread: starting more would cost more than most commands take.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Error::new(Kind::Failed, format!("cannot start the client's runtime: {error}"))
    })?;
    let result = runtime.block_on(work);
    // Nothing that still runs in the background matters once the answer is there.
    runtime.shutdown_background();
    result
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ATELIER_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("atelier=debug,tonic=debug,h2=info")
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
