//! `systemctl`, of the system or of a user.

use std::collections::BTreeMap;
use std::io;
use std::process::Command;

use super::unit::Service;
use crate::cli::{Error, Kind};

/// A service manager.
#[derive(Clone, Copy)]
pub(super) struct Manager {
    /// The user's own, not the system's.
    pub(super) user: bool,
}

impl Manager {
    /// Fails if there is no such manager: before anything is written. What it says its version is.
    pub(super) fn answers(self) -> Result<String, Error> {
        self.call(&["show", "--property=Version"])
    }

    /// Runs it; what it printed.
    pub(super) fn call(self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("systemctl");
        if self.user {
            command.arg("--user");
        }
        command.args(arguments);
        let shown = self.name().to_owned() + &arguments.join(" ");
        let output = command.output().map_err(|error| {
            let error = match error.kind() {
                io::ErrorKind::NotFound => "there is no such program".to_owned(),
                _ => error.to_string(),
            };
            Error::new(Kind::Refused, format!("cannot run `{shown}`: {error}")).help(NO_SYSTEMD)
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let cause = if said.is_empty() { output.status.to_string() } else { said.clone() };
        let error = Error::new(Kind::Refused, format!("`{shown}` failed: {cause}"));
        let absent = ["not been booted with systemd", "Failed to connect", "Failed to get D-Bus"];
        let is_absent = absent.iter().any(|part| said.contains(part));
        Err(error.help(match (is_absent, self.user) {
            (false, _) => "see `journalctl` for what the service said".to_owned(),
            (true, false) => NO_SYSTEMD.to_owned(),
            (true, true) => {
                format!("log in as that user, or `loginctl enable-linger`; {NO_SYSTEMD}")
            }
        }))
    }

    /// As it is typed, with a blank after it.
    pub(super) const fn name(self) -> &'static str {
        if self.user { "systemctl --user " } else { "systemctl " }
    }

    /// What it knows of a unit.
    pub(super) fn properties(
        self,
        service: Service,
        names: &str,
    ) -> Result<BTreeMap<String, String>, Error> {
        let printed = self.call(&["show", &format!("--property={names}"), service.unit()])?;
        let pairs = printed.lines().filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

const NO_SYSTEMD: &str = "a service needs a machine, or a container, whose first process is systemd; \
                          --dry-run prints the unit and --root DIR writes it without";
