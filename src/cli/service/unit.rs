//! The text of a unit: all that is known goes in, nothing is looked up.

use std::ffi::OsString;
use std::path::Path;

use super::escape;
use crate::cli::Error;

/// Begins each unit that this program wrote, and no other.
pub(super) const MARK: &str = "# Written by `atelier service install";

/// What runs as a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Service {
    /// The daemon
    Serve,
    /// A node's agent
    Agent,
}

impl Service {
    pub(super) const ALL: [Self; 2] = [Self::Serve, Self::Agent];

    /// The command that it runs.
    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Agent => "agent",
        }
    }

    /// The unit's name.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Serve => "atelier.service",
            Self::Agent => "atelier-agent.service",
        }
    }

    /// Its folder below `/var/lib` and `/var/cache`.
    pub(super) const fn state(self) -> &'static str {
        match self {
            Self::Serve => "atelier",
            Self::Agent => "atelier-agent",
        }
    }
}

/// All that a unit says.
pub(super) struct Unit<'a> {
    pub(super) service: Service,
    /// The program, from the root.
    pub(super) program: &'a Path,
    /// Its arguments after the verb.
    pub(super) words: &'a [OsString],
    /// The data folder, from the root; the words say it too.
    pub(super) data_dir: &'a Path,
    /// As whom a unit of the system runs; `None`: a unit of the user who has it.
    pub(super) run_as: Option<&'a str>,
}

impl Unit<'_> {
    /// The unit's file, whole.
    pub(super) fn render(&self) -> Result<String, Error> {
        let (verb, unit) = (self.service.verb(), self.service.unit());
        let systemctl = if self.run_as.is_some() { "systemctl" } else { "systemctl --user" };
        let head = format!(
            "{MARK} {verb}`, which writes it anew when it is run again.\n\
             # Changes of your own go into a drop-in: {systemctl} edit {unit}\n"
        );
        let target = if self.run_as.is_some() { "multi-user.target" } else { "default.target" };
        let install = format!("[Install]\nWantedBy={target}\n");
        let parts = [head, self.about(), self.service()?, install];
        Ok(parts.join("\n"))
    }

    fn about(&self) -> String {
        let description = match self.service {
            Service::Serve => "Atelier daemon",
            Service::Agent => "Atelier node agent",
        };
        let mut text = format!(
            "[Unit]\nDescription={description}\nDocumentation={}\n",
            env!("CARGO_PKG_REPOSITORY")
        );
        // The manager of a user knows no such targets.
        if self.run_as.is_some() {
            text.push_str(
                "Wants=network-online.target\nAfter=network-online.target time-sync.target\n",
            );
        }
        if self.service == Service::Agent {
            text.push_str("# Only an order, for where both are: an agent waits for its daemon.\n");
            text.push_str("After=atelier.service\n");
        }
        text.push_str("# However often it fails, it is started again; the pauses grow below.\n");
        text.push_str("StartLimitIntervalSec=0\n");
        text
    }

    fn service(&self) -> Result<String, Error> {
        let mut text = "[Service]\nType=notify\nNotifyAccess=main\n".to_owned();
        if let Some(user) = self.run_as {
            // Also for root: it sets HOME, without which jobs would have / as theirs.
            text.push_str(&format!("User={}\n", escape::user(user)?));
            text.push_str(&self.folder(user)?);
        }
        text.push_str(&format!("ExecStart={}\n", self.command()?));
        text.push_str(match self.service {
            Service::Serve => SERVE,
            Service::Agent => AGENT,
        });
        text.push_str(BOTH);
        if self.service == Service::Serve && self.run_as.is_some() {
            text.push_str(HARDENING);
            let data_dir = escape::path(self.data_dir.as_os_str())?;
            text.push_str(&format!("ReadWritePaths={data_dir} /tmp /var/tmp\n"));
        }
        Ok(text)
    }

    /// Makes the data folder, for nobody else to see: tokens lie in it. Beside the daemon's is one for the
    /// vault's key, which must not lie in it.
    fn folder(&self, user: &str) -> Result<String, Error> {
        let state = self.service.state();
        let vault = (self.service == Service::Serve).then_some(VAULT);
        if self.data_dir == Path::new("/var/lib").join(state) {
            let folders: Vec<&str> = [state].into_iter().chain(vault).collect();
            let folders = folders.join(" ");
            return Ok(format!("StateDirectory={folders}\nStateDirectoryMode=0700\n"));
        }
        let vault = vault.map(|vault| format!("StateDirectory={vault}\nStateDirectoryMode=0700\n"));
        let vault = vault.unwrap_or_default();
        let data_dir = escape::argument(self.data_dir.as_os_str())?;
        Ok(format!(
            "# As root, before the file system is closed off, since a folder above may be root's.\n\
             ExecStartPre=+/usr/bin/install -d -m 0700 -o {user} {data_dir}\n{vault}"
        ))
    }

    fn command(&self) -> Result<String, Error> {
        let mut parts = vec![escape::program(self.program.as_os_str())?];
        // The slim program has no verbs.
        if self.program.file_name().is_none_or(|name| name != "atelier-agent") {
            parts[0].push_str(&format!(" {}", self.service.verb()));
        }
        for word in self.words {
            parts.push(escape::argument(word)?);
        }
        Ok(parts.join(" \\\n    "))
    }
}

/// The folder of the vault's key below `/var/lib`.
const VAULT: &str = "atelier-vault";

const SERVE: &str = "\
# Migrations of a large database take their time, and must not be cut short.
TimeoutStartSec=15min
TimeoutStopSec=1min
# The daemon gives signs only while its decisions reach the disk.
WatchdogSec=3min
# Keys and secrets are in the daemon's memory, which no dump is to bring to the disk. Jobs of clusters'
# local nodes inherit it, and may ask for dumps of their own (ulimit -c).
LimitCORE=0:infinity
# Only the daemon: agents that it started for clusters' nodes outlive it, as their jobs do, and the
# next daemon finds them again.
KillMode=process
# Those agents' jobs are in this control group.
Delegate=yes
DelegateSubgroup=daemon
";

const AGENT: &str = "\
# Ready when it has joined, or knows that the daemon is away. A token that is refused fails the start.
TimeoutStartSec=2min
TimeoutStopSec=1min
# The agent gives signs only while its session, or the wait for one, moves on.
WatchdogSec=2min
# Only the agent: supervisors and their jobs outlive it, and the next agent takes them up.
KillMode=process
# Supervisors and jobs may have control groups of their own below this one; none may hold both
# processes and others with controllers, so the agent moves one down (systemd 254 and later).
Delegate=yes
DelegateSubgroup=agent
# Nothing is closed off here (no ProtectSystem=, NoNewPrivileges=, PrivateTmp= …): jobs would inherit
# it, and what those need is not known.
";

const BOTH: &str = "\
Restart=on-failure
RestartSec=1s
# Pauses grow up to the longest (systemd 254 and later; earlier ones stay with the first).
RestartSteps=8
RestartMaxDelaySec=1min
# A command line that is wrong does not mend itself.
RestartPreventExitStatus=2
# A job that the kernel kills for its memory is that job's failure, not this service's.
OOMPolicy=continue
TasksMax=infinity
# Jobs inherit it; more open files at once than a data loader with many workers needs. The second,
# up to which a job may go by itself, is systemd's own.
LimitNOFILE=65536:524288
";

/// Of what systemd offers, as much as the jobs of a cluster's local nodes can bear: their agents are
/// started by the daemon and inherit all of it.
const HARDENING: &str = "\
# Agents that the daemon starts for the nodes of local clusters inherit what follows, and so do their
# jobs. Not here, since jobs need it: PrivateDevices= and ProtectClock= (they hide GPUs),
# MemoryDenyWriteExecute= (compilers at run time), RestrictAddressFamilies= and SystemCallFilter=
# (InfiniBand, profilers), ProtectControlGroups= (it undoes Delegate=), ProtectKernelModules= (the
# GPU driver is loaded on demand), PrivateTmp= (it is emptied when the daemon stops, under jobs that
# go on).
NoNewPrivileges=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
# The file system is read-only but for the paths below. A home that can be written is put in the
# place of the user's: programs keep models and caches there.
ProtectSystem=strict
CacheDirectory=atelier
CacheDirectoryMode=0700
Environment=HOME=%C/atelier
# Made with the first secret, if --vault-key does not say otherwise.
Environment=ATELIER_VAULT_KEY=file:%S/atelier-vault/vault.key
";
