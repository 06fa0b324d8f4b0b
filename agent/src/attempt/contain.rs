//! The container of an attempt whose job names an image.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atelier_core::environment::conda;
use atelier_core::spec::{Code, InlineEnvironment, docker_args, quote};
use atelier_proto::agent::v1::{Cause, Problem};

use super::finalize::{End, tail};
use super::launch::{give, linked_inputs, merge, own_inputs, user_seed};
use super::variables::{self, MARK};
use super::{Attempt, Folder, Node, Services, distribution, kept, problem, secrets};
use crate::container::command::{self, Bind, Limits, Plan};
use crate::container::{Container, Containers, Image, Started, layer, script};
use crate::data::Fault;
use crate::environment::{self, BuildLog, Error};
use crate::record;
use crate::secrets::Held;
use crate::supervisor::{Exited, Outcome};

/// What is kept of it in the attempt's folder.
const RECORD: &str = "container.json";
/// Shared memory of a job that does not say how much, as on Azure.
const SHM_BYTES: u64 = 2 << 30;
/// How long what jobs may write of the node may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two times of asking an engine.
const PAUSE: Duration = Duration::from_secs(1);

/// What the supervisor is to run, instead of the command itself.
pub(super) struct Program {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    /// The command's own, where it is started by something else.
    pub(super) inside: Option<BTreeMap<String, String>>,
    /// As [`crate::supervisor::Launch::contained_root`].
    pub(super) contained_root: Option<u32>,
    /// As [`crate::supervisor::Launch::ends`].
    pub(super) ends: Vec<Vec<String>>,
}

/// Of the agent's variables those that mean something in a container, and where it has its folders. Proxies are
/// among them, with their passwords.
pub(super) fn inherited(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> = all
        .iter()
        .filter(|(name, _)| *name == "TZ" || name.to_ascii_lowercase().ends_with("_proxy"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for name in ["HOME", "TMPDIR"] {
        kept.insert(name.to_owned(), "/tmp".to_owned());
    }
    kept
}

/// An image that a job runs in, and the variables of the environment in it.
pub(crate) struct Contained {
    pub(super) image: Image,
    pub(super) variables: BTreeMap<String, String>,
}

impl From<Image> for Contained {
    fn from(image: Image) -> Self {
        Self { image, variables: BTreeMap::new() }
    }
}

/// The image of an environment that is one, pulled or built; `None`: it is none.
pub(super) async fn image(
    node: &Node,
    containers: &Containers,
    environment: &InlineEnvironment,
    services: &Services,
    log: &dyn BuildLog,
) -> Result<Option<Contained>, Error> {
    if let Some(build) = &environment.build {
        let Code::Snapshot(context) = &build.path else {
            let reason = "its folder was never uploaded; submit the job again".to_owned();
            return Err(Error::Dockerfile { path: build.dockerfile_path.clone(), reason });
        };
        let dockerfile = &build.dockerfile_path;
        let image = containers.build(*context, dockerfile, &services.data, log).await?;
        return Ok(Some(image.into()));
    }
    let Some(name) = &environment.image else { return Ok(None) };
    let Some(conda) = &environment.conda else {
        return Ok(Some(containers.pull(name, log).await?.into()));
    };
    if !containers.builds() {
        return Ok(None);
    }
    let document = conda::Document::parse(conda).map_err(atelier_core::environment::Error::from)?;
    let base = containers.pull(name, log).await?;
    let image = containers.layer(name, base, conda, &node.environments, log).await?;
    let variables = environment::variables(layer::PREFIX, environment, &document.variables);
    Ok(Some(Contained { image, variables }))
}

/// Makes the container, so that the supervisor has only to start it.
pub(super) async fn create(
    attempt: &Attempt,
    containers: &Containers,
    image: &Image,
    mut inside: BTreeMap<String, String>,
    command: &str,
    held: Option<&Held>,
) -> Result<Program, Problem> {
    // Refused where the job was submitted, unless that was to a daemon of another version.
    let arguments = docker_args(&attempt.spec.resources.docker_args).map_err(|refused| {
        let message = format!("resources.docker_args: {refused}: {}", refused.help);
        problem::problem(Cause::Environment, message)
    })?;
    let start = distribution::start(attempt, &quote(command));
    let command = start.unwrap_or_else(|| command.to_owned());
    let (node, folder) = (&attempt.node, &attempt.folder);
    let indices = &attempt.assignment.gpu_indices;
    let gpus = containers.gpus(indices).map_err(|error| failed(&error, Cause::Platform))?;
    let visible: Vec<String> = containers.visible(indices).iter().map(u32::to_string).collect();
    inside.insert("CUDA_VISIBLE_DEVICES".to_owned(), visible.join(","));

    let mut container = containers.container(attempt.key.epoch, attempt.spec.commands_per_node());
    let own = folder.container();
    let prepare = || {
        fs::create_dir_all(&own)?;
        note(folder, &container)?;
        folder.make_temporary()
    };
    let unwritten = |error: io::Error| {
        problem::of(Cause::Platform, "cannot write what the container needs", &error)
    };
    let temporary = prepare().map_err(unwritten)?;
    let binds = binds(attempt, &own, held).await?;
    let secrets = held.map(|held| secrets::script_at(attempt, held));
    // What the job asks of its container may be what cannot be had.
    let cause = if arguments.is_empty() { Cause::Platform } else { Cause::Environment };
    let root = containers.user(user_seed(attempt));
    let mut starts = Vec::new();
    let names: Vec<String> = container.names().collect();
    for (process, name) in (0..).zip(names) {
        let mut variables = inside.clone();
        if attempt.spec.commands_per_node() > 1 {
            let own = variables::of_process(&attempt.spec, attempt.assignment.rank, process);
            variables.extend(own);
        }
        let text =
            script::text(container.kind, &variables, secrets.as_deref(), &folder.work(), &command);
        let script = script::name(process);
        // It holds the attempt's token.
        record::write_bytes(&own, &script, text.as_bytes()).map_err(unwritten)?;
        let plan = Plan {
            name: &name,
            owner: containers.owner(),
            image: &image.reference,
            script: &own.join(script),
            directory: &folder.work(),
            binds: binds.clone(),
            temporary: &temporary,
            mark: (MARK, folder.path()),
            shm_bytes: attempt.spec.resources.shm_size.unwrap_or(SHM_BYTES),
            user: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            root,
            limits: limits(attempt),
            gpus: gpus.clone(),
            ulimits: crate::container::ulimits(),
            arguments: &arguments,
        };
        if let Some(arguments) = command::create(containers.runtime(), &plan) {
            containers.create(&arguments).await.map_err(|error| failed(&error, cause))?;
            container.made.push(arguments);
        }
        starts.push(command::start(container.kind, &plan));
    }
    note(folder, &container).map_err(unwritten)?;
    if let Some(root) = root {
        // It reads what it is to run, and has no right to what is another's.
        let paths = own_folders(attempt).into_iter().chain([temporary, own]);
        let paths = paths.chain(held.map(Held::job));
        give(attempt, paths.collect(), root).await?;
    }
    merge(attempt, root).await?;
    let mut environment = node.runtime_variables.clone();
    environment.insert(MARK.to_owned(), folder.path().to_string_lossy().into_owned());
    let (program, arguments) = started_by(attempt, &container, starts);
    let ends = container.end_command().into_iter().collect();
    Ok(Program {
        program,
        arguments,
        environment,
        inside: Some(inside),
        contained_root: root,
        ends,
    })
}

/// What starts the containers: the runtime, or of several processes for each a shell that starts it for its own.
fn started_by(
    attempt: &Attempt,
    container: &Container,
    mut starts: Vec<Vec<String>>,
) -> (PathBuf, Vec<String>) {
    if let [_] = starts[..] {
        return (container.program.clone(), starts.remove(0));
    }
    let program = quote(&container.program.to_string_lossy());
    let cases = (0_u32..).zip(starts).map(|(process, words)| {
        let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
        format!("{process}) exec {program} {} ;;\n", words.join(" "))
    });
    let text = format!("case $LOCAL_RANK in\n{}esac\n", cases.collect::<String>());
    (attempt.node.shell.clone(), vec!["-c".to_owned(), text])
}

/// `otherwise`: what it is if it is neither the image's nor the disk's.
fn failed(error: &Error, otherwise: Cause) -> Problem {
    let cause = match error.fault() {
        Fault::User => Cause::Environment,
        Fault::DiskFull => Cause::DiskFull,
        Fault::Platform => otherwise,
    };
    problem::of(cause, "cannot make the job's container", error)
}

/// What it sees of the node: what a host's job may write, and what it may only read.
async fn binds(attempt: &Attempt, own: &Path, held: Option<&Held>) -> Result<Vec<Bind>, Problem> {
    let (node, folder) = (&attempt.node, &attempt.folder);
    let mut readable = vec![own.to_owned(), folder.inputs(), folder.mounts()];
    readable.push(folder.authorities());
    readable.extend(distribution::needed(attempt));
    let bind = |writable| move |path: PathBuf| Bind { path, from: None, writable };
    let of_it = own_folders(attempt).into_iter().map(bind(true));
    let of_it = readable.into_iter().map(bind(false)).chain(of_it);
    let mut all: Vec<Bind> = of_it.filter(|bind| bind.path.exists()).collect();
    all.extend(linked_inputs(attempt).map(bind(false)));
    all.extend(held.map(|held| Bind {
        path: secrets::seen_at(attempt, held, true),
        from: Some(held.job()),
        writable: false,
    }));
    for path in &node.writable {
        let found = node.looks.at(path, PATIENCE).await.map_err(|error| {
            problem::of(Cause::Platform, "cannot give the container a folder of the node", &error)
        })?;
        all.extend(found.map(|_| bind(true)(path.clone())));
    }
    Ok(all)
}

/// What of the attempt the command may write.
fn own_folders(attempt: &Attempt) -> Vec<PathBuf> {
    let folder = &attempt.folder;
    let mut all = vec![folder.work(), folder.outputs(), folder.launcher()];
    all.extend(own_inputs(attempt));
    all
}

fn limits(attempt: &Attempt) -> Limits {
    let assignment = &attempt.assignment;
    let usual = attempt.node.cgroups.limits_of(assignment.cpu_milli, assignment.memory_mib);
    let most = attempt.node.process_limit.unwrap_or(usual.processes);
    Limits {
        cpu_milli: assignment.cpu_milli,
        memory_mib: assignment.memory_mib,
        processes: usual.processes.min(most),
    }
}

/// Looks at the container of an attempt that has come to its end, and says so if it was never started: then
/// the runtime's exit code is not the command's. It is removed, unless it may be wanted yet.
pub(super) async fn settle(attempt: &Attempt, end: End) -> End {
    let Some(container) = of(attempt.folder.path()) else { return end };
    let end = match end {
        End::Exited(exited, seen) => match never_started(attempt, &container, &exited).await {
            Some(problem) => End::NotStarted(problem),
            None => End::Exited(exited, seen),
        },
        other => other,
    };
    // What a supervisor that was killed left is below no engine but docker's; what one that ended could not end
    // it has said.
    if matches!(end, End::Lost(_)) {
        ended(&attempt.folder).await;
    }
    let may_be_kept = matches!(&end, End::Exited(exited, _) if kept::may_keep(attempt, exited));
    if !may_be_kept {
        remove(&attempt.folder).await;
    }
    end
}

/// Removes what is left of an attempt's container, if it has one.
pub(crate) async fn remove(folder: &Folder) {
    if let Some(container) = of(folder.path()) {
        container.remove().await;
        // An agent that finds it still there removes it once more.
        let _ = fs::remove_file(folder.path().join(RECORD));
    }
}

/// Once none of it runs, however long an engine takes to answer: the job may be started elsewhere then.
pub(super) async fn ended(folder: &Folder) {
    let Some(container) = of(folder.path()) else { return };
    while !container.end().await {
        tracing::warn!(
            name = container.name,
            "a container's engine does not say that it has ended"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Notes what an attempt's container is.
pub(crate) fn note(folder: &Folder, container: &Container) -> io::Result<()> {
    record::write(folder.path(), RECORD, container)
}

/// The container of an attempt, unless it was removed.
pub(crate) fn of(folder: &Path) -> Option<Container> {
    record::read(folder, RECORD).ok().flatten()
}

async fn never_started(
    attempt: &Attempt,
    container: &Container,
    exited: &Exited,
) -> Option<Problem> {
    let Outcome::Code(code) = exited.outcome else { return None };
    if code == 1 && is_for_another_processor(attempt) {
        return Some(another_processor());
    }
    if !(125..=127).contains(&code) {
        return None;
    }
    let process = exited.process.unwrap_or(0);
    if exited.ended_by.is_some() || container.started(process).await != Started::No {
        return None;
    }
    let said = tail(&attempt.folder.log()).unwrap_or_default();
    let said = said.lines().rev().find(|line| line.contains("Error")).unwrap_or_default();
    let said = said.trim().trim_start_matches("Error: ");
    let no_shell =
        said.contains("/bin/sh") && (said.contains("not found") || said.contains("no such file"));
    Some(if code == 127 || no_shell {
        let message =
            "the image has no /bin/sh, with which commands are started: use one that has a shell";
        problem::problem(Cause::Environment, message)
    } else if said.contains("xec format error") {
        another_processor()
    } else if !attempt.spec.resources.docker_args.is_empty() {
        let message = format!("the container cannot be started with the job's docker_args: {said}");
        problem::problem(Cause::Environment, message)
    } else {
        problem::problem(Cause::Platform, format!("the container cannot be started: {said}"))
    })
}

/// Whether the runtime, which is the container's first process until it becomes the script's shell, says that it
/// cannot become that. Then it has started and ends with 1, and nobody else has written a word.
fn is_for_another_processor(attempt: &Attempt) -> bool {
    let said = tail(&attempt.folder.log()).unwrap_or_default();
    said.lines().last().is_some_and(|last| {
        last.contains("exec container process") && last.contains("xec format error")
    })
}

fn another_processor() -> Problem {
    let message = "the image is for another kind of processor than this node's: use one that was built for it, \
                   or for several kinds";
    problem::problem(Cause::Environment, message)
}
