//! Jobs that name an image run in a container: by podman, or else docker, or else apptainer, whichever
//! works on this machine.
//!
//! ```text
//! detect   which runtime works here, seen by using it
//! image    pulls an image: once, however many jobs wait for it
//! build    builds one of a Dockerfile
//! layer    puts a conda file's packages on top of one
//! kept     which of those that were made here stay
//! script   what the container runs: it sets the job's variables and starts the command
//! command  the runtime's command lines, as pure functions
//! over     what is done with a container whose job is over
//! users    whom its root is on the node
//! ```
//! A container of podman's lives below the attempt's supervisor and in its control groups, so that limits,
//! signals and the end of the whole tree are those of every job. It is the command's view of the node: of
//! that it sees the attempt's own folders, at their own paths, and nothing else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::environment::Error;
use crate::environment::exec::{self, Finished, Silent};
use crate::environment::shared::Builds;
use crate::isolation::Users;

mod build;
pub(crate) mod command;
mod detect;
mod gpu;
mod groups;
mod image;
mod kept;
pub(crate) mod layer;
mod over;
pub(crate) mod script;
mod users;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

pub(crate) use detect::{AT_MOST as DETECTED_WITHIN, detect};
pub(crate) use groups::BuildGroups;
pub(crate) use image::Image;
pub(crate) use kept::KeptImage;
pub(crate) use users::{AT_MOST as USERS_WITHIN, users_of};

/// Which container runtime an agent uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Wish {
    /// The first that works: podman, docker, apptainer.
    #[default]
    Auto,
    /// None: images are not used.
    None,
    /// This one.
    Podman,
    /// This one.
    Docker,
    /// This one.
    Apptainer,
}

/// A container runtime's program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Without a daemon: containers are below whoever starts them.
    Podman,
    /// Containers are below its engine.
    Docker,
    /// Without a daemon and without privileges; images are files.
    Apptainer,
}

impl Kind {
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Apptainer => "apptainer",
        }
    }
}

/// A runtime that works on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Runtime {
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    /// Whether it runs as an ordinary user.
    pub(crate) rootless: bool,
    /// Its folders of images and of running containers, which no other job is to see.
    pub(crate) folders: Vec<PathBuf>,
}

/// For people: `podman 4.3.1, rootless`.
impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rootless = if self.rootless { ", rootless" } else { "" };
        write!(f, "{} {}{rootless}", self.kind.program(), self.version)
    }
}

/// The containers of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Containers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Runtime,
    /// Of what is being fetched or built, and of apptainer's images.
    folder: PathBuf,
    /// Told to every container, so that an agent knows its own.
    owner: PathBuf,
    /// Of builds; `None`: they have none.
    groups: Option<BuildGroups>,
    /// Of jobs; `None`: their containers run as the agent's.
    users: Option<Users>,
    images: Arc<Builds<Image>>,
    pins: Arc<kept::Pins>,
    /// Bytes of images that were made here at most, but for what is in use.
    limit: u64,
}

/// The containers of one attempt, as its folder keeps them: one for each process that runs the command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
    /// Of the first.
    pub(crate) name: String,
    pub(crate) processes: u32,
    /// What made each of them.
    #[serde(default)]
    pub(crate) made: Vec<Vec<String>>,
    /// The image that was made of one of them, if that could not be started again otherwise.
    #[serde(default)]
    pub(crate) committed: Option<String>,
}

/// What a runtime knows of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Started {
    /// Its first process ran.
    Yes,
    /// It never did.
    No,
    /// The runtime does not say.
    Unknown,
}

impl Containers {
    /// Those of the agent whose folder is `root`, with so many bytes of images that were made here; `None`: a
    /// fifth of the file system, at most 50 GiB. What killed pulls and builds left is removed.
    pub(crate) fn new(
        runtime: Runtime,
        root: &Path,
        limit: Option<u64>,
        groups: Option<BuildGroups>,
        users: Option<Users>,
    ) -> Self {
        let folder = root.join("images");
        let _ = std::fs::remove_dir_all(folder.join(build::UNFINISHED));
        Self(Arc::new(Inner {
            runtime,
            folder,
            owner: root.to_owned(),
            groups,
            users,
            images: Arc::default(),
            pins: Arc::default(),
            limit: limit.unwrap_or_else(|| crate::bound::default_limit(root)),
        }))
    }

    /// Where the steps of a build run.
    fn build_groups(&self, key: &str) -> Result<Option<PathBuf>, Error> {
        let groups = self.0.groups.as_ref();
        groups.map_or(Ok(None), |groups| groups.of(&self.0.runtime, key))
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// Whether their processes are in the attempt's control groups.
    pub(crate) fn are_in_groups(&self) -> bool {
        self.0.runtime.kind != Kind::Docker
    }

    /// The agent's folder, by which it knows its containers.
    pub(crate) fn owner(&self) -> &Path {
        &self.0.owner
    }

    /// The containers of an attempt.
    pub(crate) fn container(&self, epoch: u64, processes: u32) -> Container {
        let Inner { runtime, .. } = &*self.0;
        let name = format!("{}{epoch}", self.prefix());
        let (kind, program) = (runtime.kind, runtime.program.clone());
        Container { kind, program, name, processes, made: Vec::new(), committed: None }
    }

    /// How the names of its containers begin. Agents may share a machine's runtime.
    fn prefix(&self) -> String {
        format!("atelier-{}-", hash(&self.0.owner))
    }

    /// Removes the containers of this agent's attempts that it does not know any more.
    pub(crate) async fn sweep(&self, known: impl Fn(u64) -> bool) {
        let Inner { runtime, owner, .. } = &*self.0;
        let Some(arguments) = command::list(runtime.kind, owner) else { return };
        let Some(names) = answer(&runtime.program, &arguments).await else { return };
        let prefix = self.prefix();
        for name in names {
            let rest = name.strip_prefix(&prefix).and_then(|rest| rest.split('-').next());
            let Some(epoch) = rest.and_then(|epoch| epoch.parse().ok()) else { continue };
            if !known(epoch) {
                tracing::warn!(name, "its attempt is gone, removing a container");
                Container { name, ..self.container(epoch, 1) }.remove().await;
            }
        }
    }

    /// Makes a container ready to be started.
    ///
    /// # Errors
    /// The runtime refuses it.
    pub(crate) async fn create(&self, arguments: &[String]) -> Result<(), Error> {
        let what = "make the container";
        let finished =
            run(&self.0.runtime.program, arguments).await.map_err(|error| failed(what, &error))?;
        if finished.status.success() {
            return Ok(());
        }
        Err(Error::of_runtime(what, reason(&finished.tail)))
    }
}

/// Of an agent's folder, by which names are its own.
fn hash(root: &Path) -> String {
    blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned()
}

impl Container {
    /// Of each process.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        (0..self.processes).map(|process| match process {
            0 => self.name.clone(),
            further => format!("{}-{further}", self.name),
        })
    }

    /// Whether the first process of one of them ever ran.
    pub(crate) async fn started(&self, process: u32) -> Started {
        match self.names().nth(process as usize) {
            Some(name) => self.one_started(&name).await,
            None => Started::Unknown,
        }
    }

    async fn one_started(&self, name: &str) -> Started {
        let Some(arguments) = command::started(self.kind, name) else { return Started::Unknown };
        match run(&self.program, &arguments).await {
            Ok(finished) if finished.status.success() => match finished.tail.last() {
                // The zero of Go's instants.
                Some(at) if at.starts_with("0001-01-01") => Started::No,
                Some(_) => Started::Yes,
                None => Started::Unknown,
            },
            _ => Started::Unknown,
        }
    }

    /// Ends them, if they run, and removes all that is left of them.
    pub(crate) async fn remove(&self) {
        for name in self.names() {
            self.remove_one(&name).await;
        }
        if let Some(tag) = &self.committed {
            let words = ["rmi", "--force", tag].map(str::to_owned);
            if let Err(failed) = self.ask(&words).await {
                tracing::warn!(tag, failed, "cannot remove the image of a container");
            }
        }
    }

    async fn remove_one(&self, name: &str) {
        let Some(arguments) = command::remove(self.kind, name) else { return };
        let removing = tokio::time::timeout(ANSWER, run(&self.program, &arguments)).await;
        let failed = match removing.unwrap_or_else(|late| Err(late.into())) {
            Ok(finished) if finished.status.success() => return,
            // It may be gone, which is as good; docker says so with a failure.
            Ok(finished) if finished.tail.iter().any(|line| line.contains("No such container")) => {
                return;
            }
            Ok(finished) => reason(&finished.tail),
            Err(error) => error.to_string(),
        };
        tracing::warn!(name, failed, "cannot remove a container");
    }
}

/// Runs the runtime to its end, with the agent's own variables.
async fn run(program: &Path, arguments: &[String]) -> std::io::Result<Finished> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    exec::run(command, &mut Silent).await
}

/// How long a runtime may take to tell what it has.
const ANSWER: Duration = Duration::from_secs(60);
/// Lines of an answer at most.
const LINES: usize = 1 << 17;

/// All lines that a runtime answers with, not only the last; `None` if it fails or does not answer.
async fn answer(program: &Path, arguments: &[String]) -> Option<Vec<String>> {
    struct Lines(Vec<String>);
    impl exec::Watch for Lines {
        fn line(&mut self, line: &str) {
            if self.0.len() < LINES {
                self.0.push(line.to_owned());
            }
        }
    }
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    let mut lines = Lines(Vec::new());
    let finished = tokio::time::timeout(ANSWER, exec::run(command, &mut lines)).await;
    finished.is_ok_and(|ended| ended.is_ok_and(|ended| ended.status.success())).then_some(lines.0)
}

fn failed(operation: &str, error: &std::io::Error) -> Error {
    Error::Tool { operation: operation.to_owned(), reason: error.to_string() }
}

/// A runtime's own reason, from its last lines.
pub(crate) fn reason(tail: &[String]) -> String {
    let error = tail.iter().rposition(|line| {
        let line = line.trim_start();
        ["Error: ", "ERROR: ", "FATAL: ", "Error response from daemon: ", "docker: "]
            .iter()
            .any(|start| line.starts_with(start))
    });
    let from = error.unwrap_or(tail.len().saturating_sub(3));
    let words = tail[from..].join(" ");
    let words = words.trim().trim_start_matches("Error: ");
    let mut end = words.len().min(1500);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    crate::environment::progress::scrub(&words[..end])
}

/// What a runtime needs of the agent's variables when a supervisor starts it: where its folders and its
/// engine are.
pub(crate) fn own_variables(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<String, String> {
    const NAMES: [&str; 8] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "XDG_RUNTIME_DIR",
        "XDG_DATA_HOME",
        "XDG_CONFIG_HOME",
        "DBUS_SESSION_BUS_ADDRESS",
    ];
    const STARTS: [&str; 5] = ["CONTAINERS_", "STORAGE_", "DOCKER_", "APPTAINER_", "REGISTRY_"];
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            NAMES.contains(&name.as_str()) || STARTS.iter().any(|start| name.starts_with(start))
        })
        .collect()
}

/// The most open files and processes that this agent may grant: runtimes ask for more than some machines
/// let even root have.
pub(crate) fn ulimits() -> Vec<(&'static str, u64)> {
    use rustix::process::{Resource, getrlimit};
    let most = |resource| getrlimit(resource).maximum.unwrap_or(1 << 20);
    let pids = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let pids = pids.trim().parse().unwrap_or(32_768);
    vec![
        ("nofile", most(Resource::Nofile).min(1 << 20)),
        ("nproc", most(Resource::Nproc).min(pids)),
    ]
}
