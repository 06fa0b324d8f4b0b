//! From a prepared attempt to a supervisor that runs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use atelier_core::spec::{Environment, Input, InputMode, OnNodeLoss};
use atelier_proto::agent::v1::input_grant::Source;
use atelier_proto::agent::v1::{Cause, Problem};

use super::contain::{self, Program};
use super::folder::PASSWD;
use super::prepare::Prepared;
use super::process::Process;
use super::run::canceled;
use super::{Attempt, distribution, problem, secrets, variables};
use crate::data::{mount, overlay};
use crate::disk;
use crate::isolation::{self, Abilities, Means, View};
use crate::record;
use crate::secrets::Held;
use crate::supervisor::{EXITED, LAUNCH, Launch, LaunchProcess, STARTED, Started};

/// Starts the supervisor, unless the lease has run out since the node took the attempt.
pub(super) async fn launch(attempt: &Attempt, prepared: Prepared) -> Result<Process, Problem> {
    let assignment = &attempt.assignment;
    let leased = attempt.spec.on_node_loss == OnNodeLoss::Requeue;
    if leased && attempt.has_outlived_its_lease() {
        let message = "the node could not reach the daemon for as long as its lease and did not \
                       start the job";
        return Err(problem::problem(Cause::LeaseExpired, message));
    }
    // The daemon may not have heard of it when it placed the job.
    if let Some((index, reason)) = attempt.node.devices.unfit_one(&assignment.gpu_indices) {
        return Err(problem::gpu_lost(index, &reason));
    }
    let mut limits = attempt.node.cgroups.limits_of(assignment.cpu_milli, assignment.memory_mib);
    limits.processes =
        attempt.node.process_limit.map_or(limits.processes, |most| most.min(limits.processes));
    let denied = attempt.node.devices.denied(&assignment.gpu_indices);
    let cgroup =
        attempt.node.cgroups.create(attempt.key.epoch, &limits, &denied).map_err(|error| {
            problem::of(Cause::Platform, "cannot make the job's control groups", &error)
        })?;
    let groups = cgroup.clone();
    // An attempt that is not started leaves no groups.
    let undo = |problem: Problem| {
        if let Some(groups) = &groups {
            let _ = groups.remove();
        }
        problem
    };
    distribution::prepare(attempt).map_err(|error| {
        undo(problem::of(Cause::Platform, "cannot make the pipes to the job's logs", &error))
    })?;
    let Prepared { command, mut variables, image, secrets: values } = prepared;
    let contained = image.is_some() && attempt.node.containers.is_some();
    let held = secrets::hold(attempt, &values, contained).map_err(undo)?;
    if let Some(held) = &held {
        let folder = secrets::seen_at(attempt, held, contained);
        let path = |name: &String| (name.clone(), folder.join(name).to_string_lossy().into_owned());
        variables.extend(values.files.keys().map(path));
    }
    drop(values);
    let (program, view) = match (&attempt.node.containers, image) {
        // The runtime needs more of the node than a view gives; the container is the command's view.
        (Some(containers), Some(image)) => {
            let made = tokio::select! {
                biased;
                // Before it is there, nobody else could end what waits for a folder of the node.
                _ = attempt.interrupted() => Err(canceled(attempt)),
                made = contain::create(attempt, containers, &image, variables, &command, held.as_ref()) => made,
            };
            (made.map_err(undo)?, None)
        }
        _ => {
            let made = on_the_node(attempt, variables, command, held.as_ref()).map_err(undo)?;
            let view = made.1.as_ref();
            own(attempt, view, held.as_ref()).await.map_err(undo)?;
            let user = view.and_then(|view| view.user.as_ref()).map(|user| user.id);
            merge(attempt, user).await.map_err(undo)?;
            made
        }
    };
    let Program { program, arguments, environment, inside, contained_root, ends } = program;
    let log_limit =
        [attempt.node.log_limit, Some(assignment.log_limit_bytes).filter(|&limit| limit > 0)];
    let launch = Launch {
        version: Launch::VERSION,
        program,
        arguments,
        environment,
        inside,
        directory: attempt.folder.work(),
        log: attempt.folder.log(),
        log_limit: log_limit.into_iter().flatten().min(),
        log_rate: attempt.node.log_rate,
        grace_ms: assignment.grace_s.saturating_mul(1000),
        timeout_ms: attempt.spec.limits.timeout.map(|seconds| seconds.saturating_mul(1000)),
        // A job that is kept goes on however long the daemon is away.
        lease: leased.then(|| attempt.node.lease_path.clone()),
        give_up_ms: attempt.node.kill_patience_ms,
        cgroup,
        view,
        contained_root,
        processes: processes(attempt),
        secrets: held,
        pipes: distribution::pipes(attempt),
        ends,
        apart: attempt.node.services.borrow().as_ref().is_some_and(|services| services.apart),
        mounts: mount::server(attempt.folder.path()),
    };
    let folder = attempt.folder.path();
    let started = async {
        record::write(folder, LAUNCH, &launch)?;
        release(folder)?;
        Process::of(attempt.node.launcher.launch(folder).await?)
    };
    started.await.map_err(|error| {
        undo(problem::of(Cause::Platform, "cannot start the job's supervisor", &error))
    })
}

/// What the shell is started with: the command, or what starts it.
fn arguments(attempt: &Attempt, command: String) -> Vec<String> {
    let option = "-c".to_owned();
    match distribution::start(attempt, r#""$1""#) {
        None => vec![option, command],
        Some(start) => {
            let shell = attempt.node.shell.to_string_lossy().into_owned();
            vec![option, start, shell, command]
        }
    }
}

/// What distinguishes the processes that run the command here; empty if it is run once.
fn processes(attempt: &Attempt) -> Vec<LaunchProcess> {
    let count = attempt.spec.commands_per_node();
    if count == 1 {
        return Vec::new();
    }
    let of = |process: u32| LaunchProcess {
        environment: variables::of_process(&attempt.spec, attempt.assignment.rank, process),
        log: attempt.folder.log_of(process),
    };
    (0..count).map(of).collect()
}

/// The command itself, and what it sees of the node.
fn on_the_node(
    attempt: &Attempt,
    mut environment: BTreeMap<String, String>,
    command: String,
    held: Option<&Held>,
) -> Result<(Program, Option<View>), Problem> {
    let isolated = attempt.node.isolated;
    let view = isolated.map(|abilities| view(attempt, abilities, &mut environment, held));
    let view = view.transpose().map_err(|error| {
        problem::of(Cause::Platform, "cannot make the job's folder for temporary files", &error)
    })?;
    let arguments = arguments(attempt, command);
    let program = attempt.node.shell.clone();
    let (inside, contained_root, ends) = (None, None, Vec::new());
    Ok((Program { program, arguments, environment, inside, contained_root, ends }, view))
}

/// Gives the command's user what the command may write of the attempt's folder.
async fn own(attempt: &Attempt, view: Option<&View>, held: Option<&Held>) -> Result<(), Problem> {
    let Some((view, user)) = view.and_then(|view| Some((view, view.user.as_ref()?))) else {
        return Ok(());
    };
    let own = view.writable.iter().filter(|path| path.starts_with(attempt.folder.path()));
    let own = own.chain([&view.temporary]).cloned().chain(held.map(Held::job));
    give(attempt, own.collect(), user.id).await
}

/// Makes the inputs whole that the command may change. Once they are, nothing in there is given to anybody any more:
/// that would copy all of it.
pub(super) async fn merge(attempt: &Attempt, user: Option<u32>) -> Result<(), Problem> {
    if own_inputs(attempt).next().is_none() {
        return Ok(());
    }
    let folder = attempt.folder.clone();
    // Whoever cancels this meanwhile finds what is mounted.
    let turn = attempt.mounting.clone().lock_owned().await;
    let merged = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        // Whether it is this attempt that it cannot be done for, or any.
        folder.merge(user).map_err(|error| (error, overlay::probe(folder.path(), user).is_ok()))
    });
    let merged = merged.await.unwrap_or_else(|stopped| Err((io::Error::other(stopped), true)));
    merged.map_err(|(error, others_can)| {
        let is_full = match error.kind() {
            // The kernel says so of its mounts, too.
            ErrorKind::StorageFull => !disk::has_free(attempt.folder.path(), 1000),
            kind => kind == ErrorKind::QuotaExceeded,
        };
        let cause = if is_full { Cause::DiskFull } else { Cause::Platform };
        if !is_full && !others_can {
            tracing::warn!(%error, "inputs that jobs may change cannot be mounted: they are copied from now on");
            attempt.node.merges.store(false, Ordering::Relaxed);
        }
        problem::of(cause, "cannot mount the inputs that the job may change", &error)
    })
}

/// Gives the command's user these of the attempt's files and folders.
pub(super) async fn give(attempt: &Attempt, paths: Vec<PathBuf>, id: u32) -> Result<(), Problem> {
    let spec = &attempt.spec;
    let is_small = spec.code.is_none()
        && matches!(spec.environment, Environment::Host)
        && own_inputs(attempt).next().is_none();
    let given = match is_small {
        true => isolation::give(&paths, id),
        // As many files as the code or the environment has.
        false => tokio::task::spawn_blocking(move || isolation::give(&paths, id))
            .await
            .unwrap_or_else(|stopped| Err(io::Error::other(stopped))),
    };
    given.map_err(|error| {
        problem::of(Cause::Platform, "cannot give the job's folders to its user", &error)
    })
}

/// What the command sees of the node, and what it must be told of it.
fn view(
    attempt: &Attempt,
    abilities: Abilities,
    environment: &mut BTreeMap<String, String>,
    held: Option<&Held>,
) -> io::Result<View> {
    let (node, folder) = (&attempt.node, &attempt.folder);
    let own = &attempt.spec.environment_variables;
    let mut set = |name: &str, value: String| {
        if !own.contains_key(name) {
            environment.insert(name.to_owned(), value);
        }
    };
    // Packages that the agent's user has installed for itself are still found; what programs keep in a
    // home folder goes with the attempt.
    if let Some(home) = node.inherited.get("HOME") {
        set("PYTHONUSERBASE", format!("{home}/.local"));
    }
    let temporary = folder.make_temporary()?;
    let seen = match abilities.means {
        Means::UserNamespace | Means::Root => "/tmp".to_owned(),
        Means::Rules => temporary.to_string_lossy().into_owned(),
    };
    for name in ["HOME", "TMPDIR"] {
        set(name, seen.clone());
    }
    let passwd = folder.path().join(PASSWD);
    let user =
        node.users.as_ref().map(|users| users.user(user_seed(attempt), passwd)).transpose()?;
    if user.is_some() {
        for name in ["USER", "LOGNAME"] {
            set(name, isolation::NAME.to_owned());
        }
    }
    if !own.contains_key("XDG_CACHE_HOME") {
        environment.remove("XDG_CACHE_HOME");
    }
    let (daemon, keys) =
        node.services.borrow().as_ref().map_or_else(Default::default, |services| {
            (services.hidden.clone(), services.masked.clone())
        });
    let mut writable =
        vec![folder.work(), folder.outputs(), folder.environment(), folder.launcher()];
    writable.extend(own_inputs(attempt));
    writable.extend(node.writable.iter().cloned());
    // An input is mostly another name of a file that others have too, and whoever owns a file may write it,
    // whatever its mode says.
    let mut readable =
        vec![node.environments.folder().to_owned(), folder.inputs(), folder.mounts()];
    readable.push(folder.authorities());
    readable.extend(linked_inputs(attempt));
    readable.extend(distribution::needed(attempt));
    readable.extend(NEEDED.map(PathBuf::from));
    readable.extend(held.map(Held::job));
    let containers = node.containers.iter().flat_map(|all| all.runtime().folders.iter());
    let mut hidden = hidden(&node.root, user.is_some(), daemon);
    // In there are other jobs' files and variables.
    hidden.extend(containers.cloned());
    Ok(View {
        hidden,
        masked: node.token_file.iter().cloned().chain(keys).collect(),
        readable,
        writable,
        temporary,
        means: abilities.means,
        own_processes: abilities.own_processes,
        filtered: abilities.filtered,
        withheld: isolation::withheld(!attempt.assignment.gpu_indices.is_empty()),
        user,
    })
}

/// Folders of this node that are empty for who is not the agent: its own, and the `daemon`'s. `as_another`:
/// where it is another user than the agent's.
pub(crate) fn hidden(root: &Path, as_another: bool, daemon: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut hidden = vec![root.to_owned()];
    hidden.extend(as_another.then(|| isolation::closed_above(root)).flatten());
    hidden.extend(daemon);
    hidden.extend(crate::secrets::folders(root));
    hidden.extend(SOCKETS.map(PathBuf::from));
    if !rustix::process::geteuid().is_root() {
        hidden.push(SSH.into());
    }
    hidden
}

/// Where services listen: connecting changes no file, and some of them would start programs for the job that
/// are not the job's.
const SOCKETS: [&str; 5] = ["/run", "/var/run", "/var/snap/lxd", "/var/lib/lxd", "/var/lib/incus"];
/// What of it programs need: to find the addresses of hosts, and where NixOS has its programs and drivers.
pub(crate) const NEEDED: [&str; 5] = [
    "/run/systemd/resolve",
    "/run/nscd",
    "/run/current-system",
    "/run/opengl-driver",
    "/etc/resolv.conf",
];
/// Files that ssh reads and that seem nobody's in a user namespace, upon which it gives up.
const SSH: &str = "/etc/ssh/ssh_config.d";

/// Inputs that the job may change.
pub(super) fn own_inputs(attempt: &Attempt) -> impl Iterator<Item = PathBuf> {
    let is_own = |mode| matches!(mode, InputMode::Download | InputMode::EvalDownload);
    let inputs = attempt.spec.inputs.iter();
    inputs.filter_map(move |(name, input)| match input {
        Input::Data { mode, .. } if is_own(*mode) => {
            Some(attempt.folder.inputs().join(name.as_str()))
        }
        _ => None,
    })
}

/// Inputs that are symbolic links into the daemon's store, because that is on another file system than the
/// attempt: of the store, what the job was granted. The store itself is not asked: it may not answer.
pub(super) fn linked_inputs(attempt: &Attempt) -> impl Iterator<Item = PathBuf> {
    attempt.assignment.inputs.iter().filter_map(|(name, grant)| {
        let Some(Source::Store(at)) = &grant.source else { return None };
        let root = Path::new(&at.shared_root);
        let leads_to = first_link(&attempt.folder.inputs().join(name))?;
        let is_linked = root.is_absolute() && leads_to.starts_with(root);
        is_linked.then(|| root.join(at.path.trim_start_matches('/')))
    })
}

/// Where the first file that is found at or below `path` leads, if that is a symbolic link.
fn first_link(path: &Path) -> Option<PathBuf> {
    fs::read_link(first_file(path)?).ok()
}

fn first_file(path: &Path) -> Option<PathBuf> {
    if !fs::symlink_metadata(path).ok()?.is_dir() {
        return Some(path.to_owned());
    }
    fs::read_dir(path).ok()?.flatten().find_map(|entry| first_file(&entry.path()))
}

/// Keeps supervisors off an attempt that is prepared anew. False if one has it already.
///
/// An agent that was killed may have asked for a supervisor that has not come that far yet; it must
/// not start the command while its working directory is made again.
pub(super) fn hold(folder: &Path) -> io::Result<bool> {
    if !folder.join(LAUNCH).exists() {
        // None was ever asked for.
        return Ok(true);
    }
    match record::claim(folder, STARTED, &Started::void()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let holder: Option<Started> = record::read(folder, STARTED)?;
            Ok(holder.is_none_or(|holder| holder.is_void()))
        }
        other => other.map(|()| true),
    }
}

/// Whether some attempt that runs now was told the port at which the daemon takes orders: it had one for all
/// when the attempt started.
pub(crate) fn some_need_control(attempts: &Path) -> bool {
    let needs = |folder: PathBuf| {
        let runs = folder.join(STARTED).exists() && !folder.join(EXITED).exists();
        let launch = runs.then(|| record::read::<Launch>(&folder, LAUNCH).ok().flatten());
        launch.flatten().is_some_and(|launch| !launch.apart)
    };
    let mut entries = fs::read_dir(attempts).into_iter().flatten().filter_map(Result::ok);
    entries.any(|entry| needs(entry.path()))
}

/// What the number of the attempt's user follows from. A daemon of before gives none, which would make one user of
/// all jobs: then no two attempts have the same, and a job's next does not own what this one leaves elsewhere.
pub(super) fn user_seed(attempt: &Attempt) -> u64 {
    match attempt.assignment.user_seed {
        0 => attempt.key.epoch,
        seed => seed,
    }
}

/// Lets supervisors take the attempt again.
fn release(folder: &Path) -> io::Result<()> {
    match record::read::<Started>(folder, STARTED)? {
        Some(holder) if holder.is_void() => fs::remove_file(folder.join(STARTED)),
        _ => Ok(()),
    }
}
