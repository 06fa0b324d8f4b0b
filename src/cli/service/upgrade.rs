//! `atelier service upgrade`: another program for the agent's service, while jobs go on.
//!
//! Agents only: a daemon's new program may migrate the database, and there is no way back from that
//! but the backup that somebody has to have made.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;

use super::groups;
use super::systemctl::Manager;
use super::unit::Service;
use crate::cli::{Context, Error, Kind};

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// Which: only agents are upgraded by themselves
    service: Service,
    /// The new program; it is copied
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// The service of this user, not of the system
    #[arg(long)]
    user: bool,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let manager = Manager { user: arguments.user };
    let service = arguments.service;
    if service == Service::Serve {
        return Err(Error::new(
            Kind::Refused,
            "cannot upgrade the daemon: a new one may change the database for good",
        )
        .help("stop it, make a backup, replace its program and start it; see docs/admin.md"));
    }
    let program = program_of(&manager.properties(service, "ExecStart")?).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{} is not installed", service.unit())).help(
            "`atelier service install agent` does so; a user's own needs --user; where the agent \
             was started by other means, replace its program there and start it again",
        )
    })?;
    groups::check_restart(manager, service)?;
    // A link stays one: what it points to is replaced.
    let program = program.canonicalize().map_err(|error| Error::file("find", &program, &error))?;
    let before = version(&program).ok();
    let put = Replacement::prepare(&arguments.program, &program)?;
    let after = put.version()?;
    // One program for another: the slim one does not know the verb that the unit gives.
    let kind = |version: &str| version.split(' ').next().map(str::to_owned);
    if before.as_deref().is_some_and(|before| kind(before) != kind(&after)) {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "cannot put {after} in the place of {}, which is {}",
                program.display(),
                before.unwrap_or_default()
            ),
        )
        .help("install the service again, with --program, to run the other program"));
    }
    put.commit().map_err(|error| Error::file("replace", &program, &error))?;
    if let Err(error) = manager.call(&["restart", service.unit()]) {
        put.undo().map_err(|error| Error::file("put back", &program, &error))?;
        let back = match manager.call(&["restart", service.unit()]) {
            Ok(_) => "the old one is back and runs",
            Err(_) => "the old one is back, but does not start either",
        };
        return Err(Error::new(
            Kind::Failed,
            format!("{after} does not start; {back}: {}", error.cause),
        )
        .help(format!("see why with `journalctl --unit {}`", service.unit())));
    }
    context.output.show(&json!({
        "unit": service.unit(),
        "program": program.display().to_string(),
        "before": before,
        "after": after,
        "previous": put.previous.display().to_string(),
    }))
}

/// The program of a unit, from `{ path=/usr/bin/atelier ; argv[]=… }`.
pub(super) fn program_of(
    properties: &std::collections::BTreeMap<String, String>,
) -> Option<PathBuf> {
    let (_, rest) = properties.get("ExecStart")?.split_once("path=")?;
    let (path, _) = rest.split_once(" ;")?;
    Some(PathBuf::from(path))
}

/// `atelier 0.1.0` or `atelier-agent 0.1.0`, if it is one of them and runs here.
fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match said.split_once(' ') {
        Some(("atelier" | "atelier-agent", _)) if output.status.success() => Ok(said),
        _ => Err(format!("it is no Atelier program: --version says '{said}' ({})", output.status)),
    }
}

/// A copy beside the old program, which takes its place in one step: there is always a whole one.
pub(super) struct Replacement {
    program: PathBuf,
    copy: PathBuf,
    pub(super) previous: PathBuf,
}

impl Replacement {
    pub(super) fn prepare(new: &Path, program: &Path) -> Result<Self, Error> {
        let beside = |ending: &str| {
            let mut name = program.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let put = Self {
            program: program.to_owned(),
            copy: beside(".new"),
            previous: beside(".previous"),
        };
        let copied = || -> io::Result<()> {
            fs::copy(new, &put.copy)?;
            fs::set_permissions(&put.copy, fs::Permissions::from_mode(0o755))?;
            File::open(&put.copy)?.sync_all()
        };
        if !new.is_file() {
            let error = io::ErrorKind::NotFound.into();
            return Err(Error::file("read", new, &error));
        }
        copied().map_err(|error| Error::file("write", &put.copy, &error))?;
        Ok(put)
    }

    /// What will run, asked where it will run from.
    pub(super) fn version(&self) -> Result<String, Error> {
        version(&self.copy).map_err(|cause| {
            let cause = format!("the new program does not run here: {cause}");
            Error::new(Kind::Refused, cause)
                .help("take one that was built for this machine; the old one was not touched")
        })
    }

    pub(super) fn commit(&self) -> io::Result<()> {
        let _ = fs::remove_file(&self.previous);
        fs::hard_link(&self.program, &self.previous)?;
        fs::rename(&self.copy, &self.program)
    }

    pub(super) fn undo(&self) -> io::Result<()> {
        fs::rename(&self.previous, &self.program)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Only there if it did not take the old one's place.
        let _ = fs::remove_file(&self.copy);
    }
}
