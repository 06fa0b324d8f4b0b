//! The records that pass between an agent and a supervisor.
//!
//! An agent reads what a supervisor one release older or newer wrote: fields are only added, with a
//! default, and unknown ones are skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::data::mount::Server;
use crate::isolation::View;
use crate::record;
use crate::secrets::{Held, Values};

/// What to run: written by the agent. Holds the attempt's token, so only the owner may read it.
pub(crate) const LAUNCH: &str = "launch.json";
/// Who runs it: written once, by the supervisor that thereby takes the attempt.
pub(crate) const STARTED: &str = "started.json";
/// How it ended: the supervisor's last word.
pub(crate) const EXITED: &str = "exited.json";

pub(super) const VERSION: u32 = 1;

/// What a supervisor is to do.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) version: u32,
    /// Absolute path of the program, then its arguments.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// All of the command's environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// What a command beside it is given instead, where that of the program is not the job's own.
    #[serde(default)]
    pub(crate) inside: Option<BTreeMap<String, String>>,
    pub(crate) directory: PathBuf,
    /// The log; what it holds already stays and counts.
    pub(crate) log: PathBuf,
    /// Bytes the log may hold before what follows is dropped; `None`: no bound.
    pub(crate) log_limit: Option<u64>,
    /// Bytes a second at which each log is written at most; `None`: as is usual.
    #[serde(default)]
    pub(crate) log_rate: Option<u64>,
    /// Between SIGTERM and SIGKILL.
    pub(crate) grace_ms: u64,
    /// After which the job is ended.
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
    /// The file that says until when the node may run jobs (see [`super::Lease`]).
    #[serde(default)]
    pub(crate) lease: Option<PathBuf>,
    /// How long what was killed may take to die before it is given up and reported.
    #[serde(default = "give_up_ms")]
    pub(crate) give_up_ms: u64,
    /// The groups that the command runs in; `None` where the node has none.
    #[serde(default)]
    pub(crate) cgroup: Option<Cgroup>,
    /// What the command sees of the node; `None`: all of it.
    #[serde(default)]
    pub(crate) view: Option<View>,
    /// The node's user that is root in the command's container; `None`: it has no container, or is the agent's
    /// user there.
    #[serde(default)]
    pub(crate) contained_root: Option<u32>,
    /// The command's processes, if it is run several times at once.
    #[serde(default)]
    pub(crate) processes: Vec<LaunchProcess>,
    /// Programs with their arguments that end what the command started and what is not below the supervisor,
    /// as an engine's containers are not: each succeeds once it is sure that nothing of it runs.
    #[serde(default)]
    pub(crate) ends: Vec<Vec<String>>,
    /// Whether the port of the daemon that the command was told is for jobs alone.
    #[serde(default)]
    pub(crate) apart: bool,
    /// Secrets that the command gets besides its environment, or that of the command beside it, and that do not
    /// go into the logs.
    #[serde(default)]
    pub(crate) secrets: Option<Held>,
    /// Ways into the logs of processes that the one command has started by others, which keep to themselves
    /// what these print. The first is the command's own log.
    #[serde(default)]
    pub(crate) pipes: Vec<LaunchPipe>,
    /// Who serves the job's mounted inputs. It is told to end when the job is killed: a process that waits for it
    /// would not die.
    #[serde(default)]
    pub(crate) mounts: Option<Server>,
}

/// One of several processes that run the same command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchProcess {
    /// What it has besides, or instead of, the others' environment.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) log: PathBuf,
}

/// What is written to the named pipe, which is there already, goes into the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchPipe {
    pub(crate) path: PathBuf,
    pub(crate) log: PathBuf,
}

fn give_up_ms() -> u64 {
    Launch::GIVE_UP_MS
}

impl Launch {
    pub(crate) const GIVE_UP_MS: u64 = 30_000;
    pub(crate) const VERSION: u32 = VERSION;

    /// Adds the secrets to the command's environment, as long as there are some. What they are.
    pub(crate) fn add_secrets(&mut self) -> io::Result<Option<Values>> {
        let Some(held) = &self.secrets else { return Ok(None) };
        let values = held.values()?;
        let variables = values.iter().flat_map(|values| values.variables.clone());
        match &mut self.inside {
            Some(inside) => inside.extend(variables),
            None => self.environment.extend(variables),
        }
        Ok(values)
    }

    /// How many commands are run at once.
    pub(super) fn commands(&self) -> usize {
        self.processes.len().max(1)
    }

    /// The logs, first those of the commands, and the named pipes into them where there are some.
    pub(super) fn logs(&self) -> Vec<(&Path, Option<&Path>)> {
        match (self.processes.as_slice(), self.pipes.as_slice()) {
            ([], []) => vec![(&self.log, None)],
            ([], pipes) => pipes.iter().map(|pipe| (&*pipe.log, Some(&*pipe.path))).collect(),
            (several, _) => several.iter().map(|process| (&*process.log, None)).collect(),
        }
    }

    /// The user of the command's own, as the node numbers it, if it has one.
    pub(crate) fn user(&self) -> Option<u32> {
        let seen = self.view.as_ref().and_then(|view| view.user.as_ref());
        seen.map(|user| user.id).or(self.contained_root)
    }

    /// Lets the command open what it was given open, by `/dev/stdout` and the like: a pipe or a terminal.
    pub(crate) fn own(&self, file: impl AsFd) -> io::Result<()> {
        match self.user() {
            Some(user) => std::os::unix::fs::fchown(file, Some(user), None),
            None => Ok(()),
        }
    }

    /// Whether the command sees its supervisor and has the same user, so that it may send it signals.
    pub(crate) fn sees_supervisor(&self) -> bool {
        let sees_all = |view: &View| !view.own_processes && view.user.is_none();
        self.inside.is_none() && self.view.as_ref().is_none_or(sees_all)
    }
}

/// Names the supervisor's process for all time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) version: u32,
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    pub(crate) started_at_ms: i64,
}

impl Started {
    /// Takes an attempt so that no supervisor can: one that an agent asked for before it was
    /// killed may still be on its way.
    pub(crate) fn void() -> Self {
        Self { version: VERSION, pid: 0, start_time: 0, boot_id: String::new(), started_at_ms: 0 }
    }

    /// Whether no supervisor has the attempt.
    pub(crate) fn is_void(&self) -> bool {
        self.pid == 0
    }
}

/// How an attempt's processes ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Exited {
    pub(crate) version: u32,
    pub(crate) outcome: Outcome,
    /// Which of several processes the outcome is of: the first that failed, or the last.
    #[serde(default)]
    pub(crate) process: Option<u32>,
    /// Set if something else than the command itself brought the end about.
    pub(crate) ended_by: Option<EndedBy>,
    pub(crate) started_at_ms: i64,
    pub(crate) exited_at_ms: i64,
    /// User and system time of all processes.
    pub(crate) cpu_seconds: f64,
    /// Of the largest process.
    pub(crate) peak_memory_kib: u64,
    /// The log's length; of several the first one's.
    pub(crate) log_bytes: u64,
    /// Bytes that came and were not kept, of all logs.
    pub(crate) log_dropped: u64,
    /// Why, if the log could not be written although it was below its bound.
    #[serde(default)]
    pub(crate) log_error: Option<LogError>,
    /// Processes that did not die although killed.
    #[serde(default)]
    pub(crate) survivors: u32,
    /// Set if the kernel killed processes of the job for want of memory.
    #[serde(default)]
    pub(crate) out_of_memory: Option<OutOfMemory>,
    /// Of all processes together; `None` where the kernel does not count it.
    #[serde(default)]
    pub(crate) memory: Option<CountedMemory>,
}

/// What the kernel counted of a job's memory to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CountedMemory {
    /// The most that was used at once, what was cached of files included.
    pub(crate) peak_bytes: u64,
    /// What was still cached of files.
    pub(crate) cached_bytes: u64,
}

/// What the kernel counted when memory ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct OutOfMemory {
    /// The most that was used at once; `None` if the kernel does not say.
    pub(crate) peak_bytes: Option<u64>,
    /// The job's limit, if it has come up against it; `None`: what the node has for jobs was used up.
    pub(crate) limit_bytes: Option<u64>,
    /// Processes that were killed for it.
    pub(crate) kills: u64,
}

/// How the main process ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Exited by itself with this code.
    Code(i32),
    /// Ended by this signal.
    Signal(i32),
    /// Was never started.
    NotStarted {
        /// What failed, in words.
        what: String,
        /// Why, as the operating system says.
        errno: i32,
    },
    /// Nobody knows: the process that led the job was killed, or stopped again and again, and the rest killed with
    /// it.
    Lost,
}

/// What ended a job from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndedBy {
    /// SIGTERM to the supervisor: a cancel, or the machine shutting down.
    Terminate,
    /// SIGQUIT to the supervisor: the attempt was given up.
    Kill,
    /// The job's own time limit.
    Timeout,
    /// The node's lease ran out.
    Lease,
}

/// Why the log could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogError {
    /// No space or quota left.
    DiskFull,
    /// This errno.
    Other(i32),
}

impl Exited {
    /// The record of a command that was never started.
    pub(crate) fn without_start(started_at_ms: i64, now_ms: i64, outcome: Outcome) -> Self {
        Self {
            version: VERSION,
            outcome,
            process: None,
            ended_by: None,
            started_at_ms,
            exited_at_ms: now_ms,
            cpu_seconds: 0.0,
            peak_memory_kib: 0,
            log_bytes: 0,
            log_dropped: 0,
            log_error: None,
            survivors: 0,
            out_of_memory: None,
            memory: None,
        }
    }
}

/// Writes the last word, on a full disk too: the launch record has done its work and gives its
/// blocks, then the log gives its end.
pub(super) fn write_exited(folder: &Path, mut exited: Exited) -> io::Result<()> {
    const LOG_GIVES: u64 = 64 * 1024;
    const TRIES: u32 = 600;
    let full = |result: &io::Result<()>| {
        result.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    };
    let mut result = record::write(folder, EXITED, &exited);
    if full(&result) {
        let _ = fs::remove_file(folder.join(LAUNCH));
        result = record::write(folder, EXITED, &exited);
    }
    if full(&result) {
        let log = folder.join("std_log.txt");
        if let Ok(file) = fs::File::options().write(true).open(log) {
            let kept = exited.log_bytes.saturating_sub(LOG_GIVES);
            let _ = file.set_len(kept);
            exited.log_dropped += exited.log_bytes - kept;
            exited.log_bytes = kept;
            result = record::write(folder, EXITED, &exited);
        }
    }
    for _ in 0..TRIES {
        if !full(&result) {
            break;
        }
        thread::sleep(Duration::from_secs(1));
        result = record::write(folder, EXITED, &exited);
    }
    result
}
