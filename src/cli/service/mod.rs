//! `atelier service`: daemon and agent as systemd's services.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use atelier_agent::AgentArgs;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Column, Context, Error, Kind};
use crate::config::ServeArgs;

mod escape;
mod given;
mod groups;
mod systemctl;
#[cfg(test)]
mod tests;
mod unit;
mod upgrade;

use given::Given;
use systemctl::Manager;
use unit::{MARK, Service, Unit};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Write the systemd unit of the daemon or of a node's agent, and enable it
    #[command(subcommand)]
    Install(Box<Install>),
    /// Stop a service and remove its unit; data, jobs and results stay
    #[command(after_help = "\
Examples:
  atelier service uninstall agent
  atelier service uninstall serve --user")]
    Uninstall(Uninstall),
    /// Show which of the services are installed, whether they run, and what they say of themselves
    #[command(after_help = "Example:\n  atelier service status")]
    Status {
        /// Those of this user, not of the system
        #[arg(long)]
        user: bool,
    },
    /// Put a new program in the place of the one that a service runs, and restart it
    ///
    /// For agents: jobs go on, and if the new program does not start, the old one is put back.
    #[command(after_help = "Example:\n  atelier service upgrade agent --program ./atelier-0.2")]
    Upgrade(upgrade::Arguments),
}

#[derive(Subcommand)]
pub(super) enum Install {
    /// The daemon
    #[command(after_help = "\
Examples:
  atelier service install serve --run-as atelier --workspace team
  atelier service install serve --run-as atelier --listen 0.0.0.0:7420 --tls-name gate.example.com
  atelier service install serve --root build --program /usr/bin/atelier
  atelier service install serve --user --now")]
    Serve(Box<Arguments<ServeArgs>>),
    /// A node's agent
    #[command(after_help = "\
Examples:
  atelier service install agent --server http://127.0.0.1:7420 --token-file /etc/atelier/token --now
  atelier service install agent --server https://gate:7420 --ca-file ca.pem --token-file token --user")]
    Agent(Box<Arguments<AgentArgs>>),
}

#[derive(Args)]
pub(super) struct Arguments<T: Args> {
    #[command(flatten)]
    unit: UnitArguments,
    #[command(flatten)]
    given: Given<T>,
}

#[derive(Args)]
#[command(next_help_heading = "The unit")]
struct UnitArguments {
    /// A unit of this user, not of the system
    #[arg(long)]
    user: bool,
    /// As whom a unit of the system runs
    #[arg(long, value_name = "USER", default_value = "root", conflicts_with = "user")]
    run_as: String,
    /// What the unit runs [default: this program]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Print the unit, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write it below this folder and leave the service manager alone, as packagers need it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["user", "dry_run", "now"])]
    root: Option<PathBuf>,
    /// Also start it, as `systemctl enable --now` does
    #[arg(long, conflicts_with = "dry_run")]
    now: bool,
    /// Replace a unit that another program wrote
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(super) struct Uninstall {
    /// Which
    service: Service,
    /// That of this user, not of the system
    #[arg(long)]
    user: bool,
    /// Remove it below this folder and leave the service manager alone
    #[arg(long, value_name = "DIR", conflicts_with = "user")]
    root: Option<PathBuf>,
}

pub(super) fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Install(install) => match *install {
            Install::Serve(arguments) => {
                let Arguments { unit, given } = *arguments;
                self::install(Service::Serve, &unit, given.words, given.arguments.data_dir, context)
            }
            Install::Agent(arguments) => {
                let Arguments { unit, given } = *arguments;
                check_agent(&given.arguments, &unit)?;
                self::install(Service::Agent, &unit, given.words, given.arguments.data_dir, context)
            }
        },
        Command::Uninstall(arguments) => uninstall(&arguments, context),
        Command::Status { user } => status(Manager { user }, context),
        Command::Upgrade(arguments) => upgrade::run(&arguments, context),
    }
}

/// No secret may get into a unit, which everybody can read; one in a file must be private there.
fn check_agent(arguments: &AgentArgs, unit: &UnitArguments) -> Result<(), Error> {
    let refused = |cause: String| Error::new(Kind::Refused, cause);
    if arguments.server.as_ref().is_some_and(|server| server.contains('@')) {
        return Err(refused("cannot write a unit: --server holds a user or a password".to_owned())
            .help(
                "everybody can read units; write https://HOST:PORT, and put the token in a file",
            ));
    }
    let Some(file) = &arguments.token_file else {
        return Err(Error::usage(
            "cannot write a unit: the agent needs a token, and none is given",
        )
        .help(
            "pass --token-file FILE; ATELIER_TOKEN does not reach a service, and everybody can \
                 read what stands in a unit",
        ));
    };
    // Below another root it is another machine's file.
    if unit.root.is_some() {
        return Ok(());
    }
    let found = fs::metadata(file).map_err(|error| Error::file("read the token", file, &error))?;
    let (path, mode) = (file.display(), found.permissions().mode() & 0o777);
    if !found.is_file() || mode & 0o077 != 0 {
        return Err(refused(format!(
            "cannot use {path} as the agent's token: others may read it (mode {mode:03o}, the limit \
             is 600)"
        ))
        .help(format!("make it private with `chmod 600 {path}`")));
    }
    let user = &unit.run_as;
    if found.uid() == 0 && !unit.user && user != "root" {
        let cause = format!("cannot use {path} as the agent's token: it is root's, not {user}'s");
        return Err(refused(cause).help(format!("give it away with `chown {user} {path}`")));
    }
    Ok(())
}

fn install(
    service: Service,
    arguments: &UnitArguments,
    mut words: Vec<std::ffi::OsString>,
    data_dir: Option<PathBuf>,
    context: &Context,
) -> Result<(), Error> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| Error::file("find", path, &error));
    let data_dir = match data_dir {
        Some(folder) => absolute(&folder)?,
        None => {
            let folder = usual_data_dir(service, arguments.user)?;
            let mut word = std::ffi::OsString::from("--data-dir=");
            word.push(&folder);
            words.push(word);
            folder
        }
    };
    let program = match &arguments.program {
        Some(program) => absolute(program)?,
        None => std::env::current_exe()
            .map_err(|error| Error::file("find", Path::new("/proc/self/exe"), &error))?,
    };
    let text = Unit {
        service,
        program: &program,
        words: &words,
        data_dir: &data_dir,
        run_as: (!arguments.user).then_some(arguments.run_as.as_str()),
    }
    .render()?;
    if arguments.dry_run {
        return context.output.print(&text);
    }
    let manager = Manager { user: arguments.user };
    let manager = arguments.root.is_none().then_some(manager);
    let file = unit_file(service, arguments.user, arguments.root.as_deref())?;
    if let Some(manager) = manager {
        manager.answers()?;
        if service == Service::Agent && arguments.now {
            groups::check_restart(manager, service)?;
        }
    }
    if !arguments.force {
        refuse_foreign(&file, "replace", "with --force it is replaced")?;
    }
    write(&file, &text).map_err(|error| Error::file("write", &file, &error))?;
    if let Some(manager) = manager {
        manager.call(&["daemon-reload"])?;
        manager.call(&["enable", service.unit()])?;
        if arguments.now {
            // Also one that runs already: it is told what is new.
            manager.call(&["restart", service.unit()])?;
        } else {
            let next = format!("{}restart {}", manager.name(), service.unit());
            context
                .output
                .note(&format!("It starts with the machine; start it now with `{next}`."));
        }
        let root = !arguments.user && arguments.run_as == "root";
        if service == Service::Agent
            && let Some(version) = groups::cannot_restart(manager, root)?
        {
            context.output.note(&format!(
                "While its jobs are held to limits, systemd {version} cannot start it anew: drain its node \
                 before a restart or an upgrade."
            ));
        }
        if arguments.user {
            context.output.note(
                "It runs while you are logged in; `loginctl enable-linger` lets it run always.",
            );
        }
    }
    context.output.show(&json!({
        "service": service.verb(),
        "unit": service.unit(),
        "file": file.display().to_string(),
        "data_dir": data_dir.display().to_string(),
        "enabled": manager.is_some(),
        "started": arguments.now,
    }))
}

/// A service of the system has no home folder of its own; one of a user keeps to the user's.
fn usual_data_dir(service: Service, user: bool) -> Result<PathBuf, Error> {
    if !user {
        return Ok(Path::new("/var/lib").join(service.state()));
    }
    let home = crate::config::home().map_err(|error| Error::usage(error.to_string()))?;
    Ok(home.join(match service {
        Service::Serve => "workspace",
        Service::Agent => "agent",
    }))
}

/// Where its unit lies. Refuses the system's folder to whoever cannot write there.
fn unit_file(service: Service, user: bool, root: Option<&Path>) -> Result<PathBuf, Error> {
    if user {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let config = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")))
            .ok_or_else(|| {
                Error::usage("cannot tell where units of this user lie: HOME is not set")
                    .help("set HOME, or XDG_CONFIG_HOME")
            })?;
        return Ok(config.join("systemd/user").join(service.unit()));
    }
    if root.is_none() && !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::NotAllowed, "only root may change the system's units")
            .help("use `sudo`, or --user for a service of your own; --dry-run prints the unit"));
    }
    let root = root.unwrap_or(Path::new("/"));
    Ok(root.join("etc/systemd/system").join(service.unit()))
}

/// A unit that a package or a person wrote is theirs.
fn refuse_foreign(file: &Path, what: &str, help: &str) -> Result<(), Error> {
    match fs::read_to_string(file) {
        Ok(text) if text.starts_with(MARK) => Ok(()),
        Ok(_) => {
            let cause = format!("cannot {what} {}: another program wrote it", file.display());
            Err(Error::new(Kind::Refused, cause).help(help))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("read", file, &error)),
    }
}

/// Writes a unit, whole or not at all.
fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // systemd reads files with its own endings only.
    let part = file.with_extension("part");
    let mut written =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&part)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(part, file)
}

fn uninstall(arguments: &Uninstall, context: &Context) -> Result<(), Error> {
    let service = arguments.service;
    let file = unit_file(service, arguments.user, arguments.root.as_deref())?;
    if !file.exists() {
        let cause = format!("there is no unit {}", file.display());
        return Err(Error::new(Kind::NotFound, cause)
            .help("`atelier service status` shows what there is; a user's own needs --user"));
    }
    refuse_foreign(&file, "remove", "remove it as it came, for example with its package")?;
    let manager = arguments.root.is_none().then_some(Manager { user: arguments.user });
    if let Some(manager) = manager {
        manager.call(&["disable", "--now", service.unit()])?;
    }
    fs::remove_file(&file).map_err(|error| Error::file("remove", &file, &error))?;
    if let Some(manager) = manager {
        manager.call(&["daemon-reload"])?;
    }
    context.output.note(match service {
        Service::Serve => {
            {
            "Removed. The data folder stays; agents of clusters' nodes go on until their cluster is \
             deleted or they are ended."
        }
        }
        Service::Agent => {
            "Removed. Jobs that run there go on until their lease ends, and the data folder stays."
        }
    });
    Ok(())
}

const COLUMNS: &[Column] = &[
    Column { title: "SERVICE", cell: |s| Some(s["service"].as_str()?.to_owned()) },
    Column { title: "UNIT", cell: |s| Some(s["unit"].as_str()?.to_owned()) },
    Column { title: "ENABLED", cell: |s| Some(s["enabled"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |s| Some(s["state"].as_str()?.to_owned()) },
    Column { title: "PID", cell: |s| Some(s["pid"].as_u64()?.to_string()) },
    Column { title: "STATUS", cell: |s| Some(s["status"].as_str()?.to_owned()) },
];

fn status(manager: Manager, context: &Context) -> Result<(), Error> {
    const NAMES: &str =
        "LoadState,ActiveState,SubState,StatusText,MainPID,UnitFileState,FragmentPath";
    let view = |service: Service| -> Result<Value, Error> {
        let found = manager.properties(service, NAMES)?;
        let said = |name: &str| found.get(name).filter(|value| !value.is_empty());
        let installed = said("LoadState").is_some_and(|state| state != "not-found");
        let state = match (said("ActiveState"), said("SubState")) {
            (Some(active), Some(sub)) if installed => Some(format!("{active} ({sub})")),
            _ => None,
        };
        let pid = said("MainPID").and_then(|pid| pid.parse::<u64>().ok()).filter(|&pid| pid > 0);
        Ok(json!({
            "service": service.verb(),
            "unit": service.unit(),
            "installed": installed,
            "file": said("FragmentPath"),
            "enabled": said("UnitFileState"),
            "state": state,
            "pid": pid,
            "status": said("StatusText"),
        }))
    };
    let items = Service::ALL.into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
    context.output.list(items, COLUMNS)
}
