//! What a job's command sees of its node: a mount namespace in which only its own folders can be written,
//! and neither the agent's folder nor the daemon's is there (mount_namespaces(7), user_namespaces(7)).
//!
//! ```text
//! /                      as it is, read only
//! /tmp, /var/tmp         the attempt's own, gone with it
//! /dev                   what every program needs, and accelerators; no disks
//! /dev/shm               in memory, counted as the job's
//! <masked files>         empty
//! <hidden folders>       empty, but for what of them belongs to the attempt
//! <attempt>/work, …      as they are, at their own paths
//! ```
//! It also has System V queues and shared memory of its own, sees no processes but its own
//! (pid_namespaces(7)), has no capabilities, cannot get any by running a program that would give it some, and
//! may not make the system calls of [`filter`]. It gets there by a user namespace, in which it keeps its
//! user, or by the agent's being root; then it becomes a user of its own ([`users`]). Where there are no
//! namespaces at all, rules on files ([`rules`]) do as much of it as they can.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod enter;
mod filter;
mod idmap;
mod plan;
mod probe;
mod rules;
#[cfg(test)]
mod tests;
mod users;

pub(crate) use enter::{Entry, Failed};
pub(crate) use filter::make_ready;
pub(crate) use idmap::show_as;
pub(crate) use probe::{PROBE, probe, probe_to_code};
pub use users::JobUsers;
pub(crate) use users::{NAME, User, Users, closed_above, give};

/// What the command of one attempt sees. Part of the launch record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct View {
    /// Folders that are empty for it.
    pub(crate) hidden: Vec<PathBuf>,
    /// Files that are empty for it.
    #[serde(default)]
    pub(crate) masked: Vec<PathBuf>,
    /// Files and folders that it sees and cannot change, also below hidden ones, but for what of them may be
    /// written.
    pub(crate) readable: Vec<PathBuf>,
    /// Folders that it may write, also below hidden ones.
    pub(crate) writable: Vec<PathBuf>,
    /// The folder that it sees as `/tmp` and `/var/tmp`.
    pub(crate) temporary: PathBuf,
    /// By what it gets there.
    #[serde(default)]
    pub(crate) means: Means,
    /// Which processes it sees: its own, or, where the machine lets it have no `/proc` of its own, all.
    #[serde(default)]
    pub(crate) own_processes: bool,
    /// Whether its system calls are filtered.
    #[serde(default)]
    pub(crate) filtered: bool,
    /// Names in `/dev` that it does not see, though others do.
    #[serde(default)]
    pub(crate) withheld: Vec<String>,
    /// Whom it becomes; `None`: it stays the agent's user.
    #[serde(default)]
    pub(crate) user: Option<User>,
}

/// How far jobs can be isolated on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Abilities {
    pub(crate) means: Means,
    /// See [`View::own_processes`].
    pub(crate) own_processes: bool,
    /// See [`View::filtered`].
    pub(crate) filtered: bool,
    /// See [`View::user`].
    pub(crate) own_users: bool,
}

impl Abilities {
    /// What is missing of all that could be had, in words. `no_users`: why commands have no users of their own.
    pub(crate) fn lacks(self, no_users: Option<&str>) -> Option<String> {
        let others = match self.means {
            Means::UserNamespace => "jobs see and can signal other processes of their user",
            Means::Root => "jobs see, can signal and can look into all processes",
            Means::Rules => {
                "this machine gives jobs no namespaces: they are held to rules on files, see other processes, \
                 share /tmp, which they cannot write, and reach the sockets of services"
            }
        };
        let is_root = rustix::process::geteuid().is_root() && !self.own_users;
        let why = no_users.map(|why| format!(" ({why})")).unwrap_or_default();
        let as_root = format!("jobs run as root, without its privileges{why}");
        let lacking = [
            (!self.own_processes, others),
            (!self.filtered, "system calls are not filtered"),
            (is_root, &as_root),
        ];
        let lacking: Vec<&str> =
            lacking.into_iter().filter_map(|(lacks, what)| lacks.then_some(what)).collect();
        (!lacking.is_empty()).then(|| lacking.join("; "))
    }
}

/// By what a view is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Means {
    /// A user namespace of the attempt's own, in which it keeps its user. What `/proc` tells of others'
    /// processes, their memory and variables, is closed to it.
    #[default]
    UserNamespace,
    /// The agent's being root; the only one with which commands can be given users of their own.
    Root,
    /// No namespaces at all, but rules on what may be read, written and signalled.
    Rules,
}

/// Whether jobs are isolated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Isolation {
    /// Where the machine can.
    #[default]
    Auto,
    /// Never: jobs see and may change what the agent's user may.
    None,
    /// Always: an agent on a machine that cannot does not start.
    Required,
}

/// What a job does not see of `/dev` that holds no GPU. A node of `dri` leads to one as its own does, and `kfd` to
/// all of AMD's. Of a job that holds some the others' are refused.
pub(crate) fn withheld(holds_gpus: bool) -> Vec<String> {
    let names: &[&str] = if holds_gpus { &[] } else { &["dri", "kfd"] };
    names.iter().map(|&name| name.to_owned()).collect()
}

impl View {
    /// The way into it for a child of the calling process.
    pub(crate) fn entry(&self) -> Entry<'_> {
        Entry::new(self)
    }

    /// Whether the command has root's number, and none of its privileges.
    fn stays_root(&self) -> bool {
        self.user.is_none() && rustix::process::geteuid().is_root()
    }

    /// Holds the calling process, which has joined the namespaces of a job with this view, to what else holds
    /// for the job.
    pub(crate) fn confine(&self) -> io::Result<()> {
        let rules = match self.means {
            Means::Rules => Some(rules::Rules::new(&self.plain()?)?),
            Means::UserNamespace | Means::Root => None,
        };
        let filter = self.filtered.then(|| filter::Filter::get(self.stays_root())).transpose()?;
        // SAFETY: Only system calls.
        if !unsafe { enter::give_up_privileges(self.user.as_ref()) } {
            return Err(io::Error::last_os_error());
        }
        rules.map_or(Ok(()), rules::Rules::restrict)?;
        // SAFETY: As above.
        match filter.is_none_or(|filter| unsafe { filter.set() }) {
            true => Ok(()),
            false => Err(io::Error::last_os_error()),
        }
    }

    /// Mounts follow no links, so paths are made plain; what is not there is left out.
    fn plain(&self) -> io::Result<Self> {
        let plain = |paths: &[PathBuf]| -> Vec<PathBuf> {
            paths.iter().filter_map(|path| path.canonicalize().ok()).collect()
        };
        Ok(Self {
            hidden: plan::outermost(&plain(&self.hidden)),
            masked: plain(&self.masked),
            readable: plain(&self.readable),
            writable: plain(&self.writable),
            temporary: self.temporary.canonicalize()?,
            ..self.clone()
        })
    }
}

/// Whether something at `path` is out of sight under `hidden`.
fn is_below(path: &Path, hidden: &[PathBuf]) -> bool {
    hidden.iter().any(|folder| path.starts_with(folder))
}
