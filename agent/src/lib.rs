//! The node agent: the daemon's hand on one machine. It prepares, supervises and reports jobs.
//!
//! A program that runs an agent calls [`supervise_if_asked`] before anything else in its `main`,
//! and [`run`] to be one.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use atelier_core::node::CONTAINER_RUNTIME;
use tokio::sync::{mpsc, watch};
use tracing::Instrument as _;

mod args;
mod attempt;
mod bound;
mod builds;
mod caches;
mod cgroup;
pub mod clock;
mod container;
pub mod data;
mod disk;
pub mod environment;
mod exec;
mod facts;
mod failpoint;
mod gpu;
mod identity;
mod isolation;
mod logs;
mod looks;
mod monitor;
mod mpi;
mod notify;
mod pollable;
mod proc;
mod reach;
mod record;
mod secrets;
mod session;
mod shutdown;
mod spool;
mod supervisor;
pub mod trust;

pub use args::{AgentArgs, Mounts};
pub use attempt::ATTEMPT_MARK;
pub use container::Wish as ContainerWish;
pub use isolation::{Isolation, JobUsers};
pub use notify::{Notifier, VARIABLES as NOTIFY_VARIABLES};
pub use supervisor::supervise_if_asked;

use crate::attempt::{Node, Spares};
use crate::cgroup::{Cgroups, DiskRate, NodeLimits};
use crate::container::{BuildGroups, Containers};
use crate::disk::Reserve;
use crate::environment::Confinement;
use crate::gpu::Devices;
use crate::isolation::{Abilities, Means, Users};
use crate::looks::Looks;
use crate::monitor::{Monitor, NodeSampler};
use crate::session::{Registry, Session};
use crate::supervisor::{Launcher, Lease};

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The data folder cannot be used.
    #[error("cannot use the agent's data folder {}: cannot {what}", .path.display())]
    Folder {
        /// The folder, or what is in it.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another agent has the data folder.
    #[error(
        "another agent uses the data folder {}: stop it, or give this one its own with --data-dir",
        .0.display()
    )]
    Locked(PathBuf),
    /// There is no folder to keep things in.
    #[error("no data folder: give --data-dir, or set HOME")]
    NoFolder,
    /// The machine's name is no name for a node.
    #[error("this machine's name is no node name: give one with --node")]
    NodeName(#[from] atelier_core::id::InvalidName),
    /// Jobs are to be isolated, and cannot be.
    #[error(
        "this machine cannot isolate jobs ({0}): see to that, or start the agent with --isolation auto"
    )]
    NotIsolated(String),
    /// Jobs are to be held to a rate on the disk, and cannot be.
    #[error(
        "this machine cannot hold jobs to a rate on its disk ({0}): see to that, or start the agent without \
         --job-io"
    )]
    NoJobIo(String),
    /// Jobs are to have users of a range, and cannot have them.
    #[error(
        "jobs cannot have users of their own ({0}): see to that, or start the agent with --job-users auto"
    )]
    NoJobUsers(String),
    /// The GPUs of a recording cannot be had.
    #[error("no GPUs: {0}")]
    Recording(String),
    /// The operating system lacks something.
    #[error("cannot read {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The daemon does not let this node in, or cannot be addressed.
    #[error("{0}")]
    Session(String),
}

/// What else an agent does at its start between two signs that it does.
const SLACK: Duration = Duration::from_secs(60);
/// How long an agent may take for what an earlier one left.
const TAKING_UP: Duration = Duration::from_secs(300);

/// Runs an agent until `shutdown`. Jobs that run then go on under their supervisors, and the next
/// agent on the same data folder takes them up.
///
/// # Errors
/// If the data folder cannot be used or is in use, or if the daemon refuses the node's first
/// session. A daemon that is away is waited for.
pub async fn run(
    args: AgentArgs,
    notifier: Notifier,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    // Attempts stay on this thread: what they do is wait, for processes, files and the daemon.
    tokio::task::LocalSet::new().run_until(serve(args, notifier, shutdown)).await
}

async fn serve(
    args: AgentArgs,
    notifier: Notifier,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let root = data_folder(&args)?;
    let attempts = root.join("attempts");
    make_private(&root)?;
    make_private(&attempts)?;
    let _lock = lock(&root)?;
    let lease_path = root.join("lease");
    let lease = Lease::create(&lease_path).map_err(|source| Error::Folder {
        path: lease_path.clone(),
        what: "open the lease",
        source,
    })?;
    let name = match &args.node {
        Some(name) => name.to_string(),
        None => atelier_core::id::NodeName::new(&facts::hostname())?.to_string(),
    };

    let gpus: Arc<dyn gpu::Gpus> =
        Arc::from(gpu::find(args.gpu_recording.as_deref()).map_err(Error::Recording)?);
    let owners = gpu::Owners::new(attempts.clone(), cgroup::parent_name(&name, &root));
    let most = args.gpus.map_or(usize::MAX, |count| count as usize);
    notifier.starting("asking the GPU driver", gpu::PATIENCE + SLACK);
    let devices = Devices::new(gpus, owners, most, &root);
    let mut sampler = NodeSampler::new(root.clone());
    let cgroups = find_cgroups(&args, &name, &root, &mut sampler, devices.guarded())?;
    let cgroups = Arc::new(cgroups);
    let (isolated, not_isolated) = isolate(&args, &root)?;
    let looks = Looks::default();
    let users = users(&args, isolated, &looks).await;
    if users.is_some() {
        // They read environments and inputs, which are made from here on.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    let mut facts = facts::gather(&args, &root, &mut sampler, &cgroups, users.is_some());
    let isolation = match isolated.map(|abilities| abilities.means) {
        Some(Means::UserNamespace | Means::Root) => "private",
        Some(Means::Rules) => "rules on files",
        None => "none",
    };
    facts.other.insert("isolation".to_owned(), isolation.to_owned());
    let told = users.as_ref().map_or("none".to_owned(), |users| users.range().to_string());
    facts.other.insert("job_users".to_owned(), told);
    not_isolated.into_iter().for_each(|why| facts.not_isolated(why));
    data::mount::detach_left(&root);
    let no_mounts = mounts(&args, &root, &mut facts).await;
    let merges = merges(&args, &root, users.as_ref(), &mut facts).await;
    let mut machine = environment::Machine::from_environment();
    machine.for_others = users.is_some();
    let groups = BuildGroups { cgroups: cgroups.clone(), devices: devices.clone() };
    let within = container::DETECTED_WITHIN + container::USERS_WITHIN + SLACK;
    notifier.starting("trying the container runtime", within);
    let containers =
        find_containers(&args, &root, groups, users.as_ref(), &mut facts, &mut machine).await?;
    notifier.starting("taking up the jobs of before", TAKING_UP);
    let engines = containers.as_ref().is_some_and(|containers| !containers.are_in_groups());
    if engines && args.job_io.is_some() {
        return Err(Error::NoJobIo(reach::IN_AN_ENGINE.to_owned()));
    }
    let urls: reach::Urls = record::read(&root, reach::KEPT).ok().flatten().unwrap_or_default();
    // Where it is now is found later.
    let mut daemon = reach::Daemon::find(&urls).await.unwrap_or_default();
    if attempt::some_need_control(&attempts) {
        daemon.open();
    }
    let (client, clients) = watch::channel(None);
    let (services, services_seen) = watch::channel(None);
    let (connected, connected_seen) = watch::channel(false);
    let has_jobs = std::fs::read_dir(&attempts).is_ok_and(|mut found| found.next().is_some());
    let (spools, _threads) = spool::listen(
        &root,
        args.metric_spool,
        has_jobs,
        services_seen.clone(),
        connected_seen.clone(),
    )
    .await
    .unzip();
    let own_port = spools.as_ref().map(spool::Spools::port);
    reach::close(&cgroups, engines, &daemon, own_port, &mut facts);
    let (news_sender, news) = mpsc::unbounded_channel();
    let (monitor, monitor_handle) = Monitor::new(devices.clone(), args.monitor_interval, clients);
    machine.confinement = Some(Confinement {
        root: root.clone(),
        abilities: isolated,
        users: users.clone(),
        cgroups: cgroups.clone(),
        devices: devices.clone(),
        masked: args.token_file.iter().cloned().collect(),
        hidden: hidden_from_builds(&root, users.is_some(), containers.as_ref(), &services_seen),
    });
    let spares = root.join("spares");
    let spares = Spares::new(spares.clone()).map_err(|source| Error::Folder {
        path: spares,
        what: "make it",
        source,
    })?;
    let reserve = Arc::new(Reserve::new(root.clone(), args.disk_reserve));
    let attempts_folder = attempts.clone();
    let kept = attempt::Kept::new(args.keep_failed, news_sender.clone());
    let node = Arc::new(Node {
        root: root.clone(),
        reserve: reserve.clone(),
        attempts: attempts.clone(),
        isolated,
        users,
        token_file: args.token_file.clone(),
        writable: args.writable.clone(),
        looks,
        spares,
        kept,
        shell: attempt::find_shell(),
        boot_id: proc::boot_id().map_err(|source| Error::System { what: "the boot id", source })?,
        inherited: attempt::inherited(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        })),
        launcher: Launcher::new(),
        cgroups,
        lease,
        lease_path,
        leases_lost: AtomicU64::new(0),
        log_limit: args.log_limit,
        log_rate: args.log_rate,
        process_limit: args.process_limit,
        kill_patience_ms: u64::try_from(args.kill_patience.as_millis()).unwrap_or(u64::MAX),
        news: news_sender,
        services: services_seen,
        no_mounts,
        merges: AtomicBool::new(merges),
        mount_patience: args.mount_patience,
        connected: connected_seen,
        environments: environment::Environments::bounded(
            root.join("environments"),
            machine,
            args.environment_cache,
        ),
        containers,
        runtime_variables: container::own_variables(std::env::vars_os()),
        monitor: monitor_handle,
        devices: devices.clone(),
        spools,
    });
    let registry = Registry::load(&node).map_err(|source| Error::Folder {
        path: attempts,
        what: "read the attempts",
        source,
    })?;
    // What an agent before this one left running, if its folder was taken away meanwhile.
    node.cgroups.sweep(|epoch| registry.knows(epoch));
    // The bound may be another than before.
    node.environments.shrink();
    if let Some(containers) = &node.containers {
        containers.sweep(|epoch| registry.knows(epoch) || node.kept.has(epoch)).await;
        let containers = containers.clone();
        tokio::spawn(async move { containers.shrink().await });
    }
    let (node_name, own) = (name.clone(), node.clone());
    let letting_go = tokio::spawn(attempt::watch_kept(node.clone()));
    let notifier = Arc::new(notifier);
    let session = Session {
        name,
        instance_id: instance_id(),
        facts,
        sampler,
        node,
        registry,
        news,
        services,
        client,
        connected,
        urls,
        cache: root.join("cache"),
        args,
        notifier: notifier.clone(),
        channels: Session::channels(),
        builds: builds::places(),
        due: Arc::default(),
    };
    // Ends with the session: it holds the last handle.
    let monitor = tokio::spawn(monitor.run());
    let keeper = tokio::spawn(async move {
        reserve.keep(&attempts_folder, |is_short| attempt::make_room(&own, is_short)).await
    });
    let watching = tokio::spawn(devices.watch());
    let span = tracing::info_span!("node", node = %node_name);
    let ended = session.run(shutdown).instrument(span).await;
    match &ended {
        Ok(()) => notifier.stopping(),
        Err(error) => notifier.status(&session::chain(error)),
    }
    monitor.abort();
    keeper.abort();
    letting_go.abort();
    watching.abort();
    ended.map_err(|error| Error::Session(session::chain(&error)))
}

/// What of the node no build sees: now, since the daemon may come to be on this machine.
fn hidden_from_builds(
    root: &Path,
    as_another: bool,
    containers: Option<&Containers>,
    services: &watch::Receiver<Option<Arc<attempt::Services>>>,
) -> Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync> {
    let (root, services) = (root.to_owned(), services.clone());
    let containers = containers.map(|all| all.runtime().folders.clone()).unwrap_or_default();
    Arc::new(move || {
        let daemon = services.borrow().as_ref().map(|services| services.hidden.clone());
        let daemon = daemon.unwrap_or_default();
        let mut hidden = attempt::hidden(&root, as_another, daemon);
        hidden.extend(containers.iter().cloned());
        hidden
    })
}

/// The place of this agent's attempts among the machine's control groups, with all that is asked of them.
fn find_cgroups(
    args: &AgentArgs,
    node: &str,
    root: &Path,
    sampler: &mut NodeSampler,
    guarded: bool,
) -> Result<Cgroups, Error> {
    const MIB: u64 = 1 << 20;
    let total = sampler.memory_mib().saturating_mul(MIB);
    let offered = args.memory.map_or(total, |memory| memory.saturating_mul(MIB));
    let io = args.job_io.map(|bytes| DiskRate::of(root, bytes)).transpose();
    let io = io.map_err(Error::NoJobIo)?;
    let limits = NodeLimits { guarded, io, ..NodeLimits::of(offered, total) };
    let cgroups = Cgroups::find(&cgroup::parent_name(node, root), limits);
    cgroups.try_io().map_err(Error::NoJobIo)?;
    Ok(cgroups)
}

/// By what jobs are isolated, or why they are not.
fn isolate(args: &AgentArgs, root: &Path) -> Result<(Option<Abilities>, Option<String>), Error> {
    let wanted = args.isolation;
    if wanted == Isolation::None {
        return Ok((None, Some("the agent runs with --isolation none".to_owned())));
    }
    match isolation::probe(supervisor::VERB, root, args.job_users.range()) {
        Ok((_, Some(why))) if matches!(args.job_users, JobUsers::Of(_)) => {
            Err(Error::NoJobUsers(why))
        }
        Ok((abilities, no_users)) => {
            let lacks = abilities.lacks(no_users.as_deref());
            if let Some(lacks) = &lacks {
                tracing::warn!(%lacks, "jobs are not isolated as well as can be");
            }
            Ok((Some(abilities), lacks))
        }
        Err(why) if wanted == Isolation::Required => Err(Error::NotIsolated(why)),
        Err(why) => {
            tracing::warn!(%why, "jobs are not isolated from this machine");
            Ok((None, Some(why)))
        }
    }
}

/// Whom jobs run as, if not as this agent's user.
async fn users(args: &AgentArgs, isolated: Option<Abilities>, looks: &Looks) -> Option<Users> {
    /// How long a folder may take to answer before the agent goes on.
    const PATIENCE: Duration = Duration::from_secs(5);
    let range = args.job_users.range().filter(|_| isolated.is_some_and(|all| all.own_users))?;
    let found = args
        .writable
        .iter()
        .map(|folder| async move { (folder, looks.at(folder, PATIENCE).await) });
    for (folder, found) in futures::future::join_all(found).await {
        match found {
            Ok(Some(mode)) if mode & 0o002 == 0 => tracing::warn!(
                folder = %folder.display(),
                "jobs have users of their own and cannot write this folder until everybody may \
                 (chmod 1777), or the agent runs with --job-users none"
            ),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "jobs will wait for a folder"),
        }
    }
    Some(Users::new(range))
}

/// How long trying to mount something may take.
const MOUNTED_WITHIN: Duration = Duration::from_secs(10);

/// Why inputs cannot be mounted here, if they cannot; the facts tell.
async fn mounts(args: &AgentArgs, root: &Path, facts: &mut facts::Facts) -> Option<String> {
    let root = root.to_owned();
    let tried = try_mounting(args, move || data::mount::probe(&root)).await;
    let told = if tried.is_ok() { "fuse" } else { "none" };
    facts.other.insert("mounts".to_owned(), told.to_owned());
    let why = tried.err()?;
    facts.other.insert("no_mounts".to_owned(), why.clone());
    Some(why)
}

/// Whether inputs that jobs may change can be merged of the cache and those changes; the facts tell, and why not.
async fn merges(
    args: &AgentArgs,
    root: &Path,
    users: Option<&Users>,
    facts: &mut facts::Facts,
) -> bool {
    let (root, user) = (root.to_owned(), users.map(|users| users.range().first()));
    let tried = try_mounting(args, move || data::overlay::probe(&root, user)).await;
    let told = if tried.is_ok() { "overlay" } else { "copies" };
    facts.other.insert("downloads".to_owned(), told.to_owned());
    match tried {
        Ok(()) => true,
        Err(why) => {
            facts.other.insert("no_overlays".to_owned(), why);
            false
        }
    }
}

async fn try_mounting(
    args: &AgentArgs,
    probe: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    match args.mounts {
        Mounts::None => Err("the agent runs with --mounts none".to_owned()),
        Mounts::Auto => {
            let tried = tokio::task::spawn_blocking(probe);
            match tokio::time::timeout(MOUNTED_WITHIN, tried).await {
                Ok(tried) => tried.unwrap_or_else(|stopped| Err(stopped.to_string())),
                Err(_) => Err("trying to mount does not come to an end".to_owned()),
            }
        }
    }
}

/// What runs jobs in containers here, if anything does; the facts tell.
async fn find_containers(
    args: &AgentArgs,
    root: &Path,
    groups: BuildGroups,
    users: Option<&Users>,
    facts: &mut facts::Facts,
    machine: &mut environment::Machine,
) -> Result<Option<Containers>, Error> {
    let found = container::detect(args.containers, root).await;
    let told = found.as_ref().map_or("none".to_owned(), container::Runtime::to_string);
    facts.other.insert(CONTAINER_RUNTIME.to_owned(), told);
    match found {
        Ok(runtime) => {
            // Asked for where a runtime builds no images.
            machine.no_containers = format!(
                "{}, which this node has, cannot install a conda_file's packages in an image",
                runtime.kind.program()
            );
            let wanted = matches!(args.job_users, JobUsers::Of(_));
            let users = container::users_of(&runtime, root, users, wanted, facts).await;
            let users = users.map_err(Error::NoJobUsers)?;
            Ok(Some(Containers::new(runtime, root, args.environment_cache, Some(groups), users)))
        }
        Err(why) => {
            facts.other.insert("no_containers".to_owned(), why.clone());
            machine.no_containers = why;
            Ok(None)
        }
    }
}

/// The whole of an agent's process: a small runtime, logging to standard error, and [`run`] until
/// SIGTERM or SIGINT. One that does not end by itself then is ended ten seconds later.
pub fn main(args: AgentArgs) -> ExitCode {
    use tracing_subscriber::EnvFilter;
    // SAFETY: Only this thread runs; the runtime starts below.
    let notifier = unsafe { Notifier::take() };
    let filter = EnvFilter::try_from_env("ATELIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .init();
    // One thread carries all sessions and attempts; blocking work has its own, which end when idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(2))
        .build();
    let asked = shutdown::asked().map_err(|source| Error::System { what: "signals", source });
    let ended = runtime
        .map_err(|source| Error::System { what: "the runtime's timers", source })
        .and_then(|runtime| {
            let ended = runtime.block_on(run(args, notifier, asked?));
            // Uploads and builds that are cut short begin anew under the next agent.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", session::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn data_folder(args: &AgentArgs) -> Result<PathBuf, Error> {
    if let Some(folder) = &args.data_dir {
        return std::path::absolute(folder).map_err(|source| Error::Folder {
            path: folder.clone(),
            what: "find it",
            source,
        });
    }
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("ATELIER_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("atelier")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/atelier")))
        .ok_or(Error::NoFolder)?;
    Ok(home.join("agent"))
}

/// Makes a folder that only its owner can enter: it holds tokens.
fn make_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Folder { path: path.to_owned(), what: "make it", source })
}

/// Holds the folder for this process. The kernel gives it back whatever happens to us.
fn lock(root: &Path) -> Result<std::fs::File, Error> {
    let path = root.join("lock");
    let mut options = std::fs::File::options();
    let file =
        options.write(true).create(true).truncate(false).open(&path).map_err(|source| {
            Error::Folder { path: path.clone(), what: "open the lock", source }
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(root.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(Error::Folder { path, what: "lock it", source })
        }
    }
}

fn instance_id() -> String {
    let mut random = [0; 16];
    // Without randomness the time tells this start from others.
    if getrandom::fill(&mut random).is_err() {
        random =
            (u128::from(clock::boottime_ms()) << 64 | u128::from(std::process::id())).to_ne_bytes();
    }
    format!("{:032x}", u128::from_ne_bytes(random))
}
