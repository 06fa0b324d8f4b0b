//! A server's process.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, Filesystem, MountOption, Session, SessionACL};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::failure::Failures;
use super::fetch::Fetch;
use super::filesystem::Inputs;
use super::source::Engine;
use super::tree::Tree;
use super::{Answer, NAME, Plan, RECORD, Server, detach};
use crate::attempt::{Supervised, supervised};
use crate::data::cache::Cache;
use crate::record;

/// In the attempt's folder: its server has ended of its own accord.
const ENDED: &str = "mounts_ended.json";
/// In the attempt's folder: how many bytes its server had fetched when it ended.
const FETCHED: &str = "mounts_fetched.json";
/// In the attempt's folder.
const LOG: &str = "mounts.log";
/// Threads for the kernel's requests, and for the network.
const THREADS: usize = 4;
const NETWORK_THREADS: usize = 2;
/// How much the kernel reads ahead, where it may be told: also around each place of a file that is mapped.
const READ_AHEAD_KIB: u32 = 1024;
/// How long what was read may take to be kept for the next job.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two looks at whether the attempt has a supervisor yet.
const LOOK: Duration = Duration::from_millis(200);
/// How long one whose agent has died may still be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// A server's whole life: standard input says what to mount, standard output whether it is.
pub(crate) fn serve() -> ExitCode {
    // Signals of a terminal or of the agent's group do not reach it. It fails only for a group's leader.
    let _ = rustix::process::setsid();
    // SAFETY: System calls only. What the agent inherited open is not passed on; the name is a text that ends.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
        libc::prctl(libc::PR_SET_NAME, c"atelier-mounts".as_ptr());
    }
    let Ok(plan) = serde_json::from_reader::<_, Plan>(io::stdin().lock()) else {
        return ExitCode::FAILURE;
    };
    let (attempt, at) = (plan.attempt.clone(), plan.at.clone());
    match Mount::new(plan) {
        Err(why) => {
            answer(&Answer::Refused { why });
            ExitCode::FAILURE
        }
        Ok(mut mount) => {
            mount.last();
            // Reads that wait for the daemon fail when this ends, so that it is not for long.
            mount.runtime.block_on(mount.engine.settle(SETTLE));
            let _ = record::write(&attempt, FETCHED, &mount.engine.fetched());
            let _ = record::write(&attempt, ENDED, &true);
            detach(&at);
            // The kernel fails what still waits when this process, and with it its side of the mount, is gone.
            std::mem::forget(mount);
            ExitCode::SUCCESS
        }
    }
}

/// Whether the server of an attempt has ended because the attempt had.
pub(super) fn has_ended_well(attempt: &Path) -> bool {
    matches!(record::read(attempt, ENDED), Ok(Some(true)))
}

/// How many bytes were fetched for the mounted inputs of an attempt, once its server has ended well.
pub(super) fn fetched(attempt: &Path) -> u64 {
    record::read(attempt, FETCHED).ok().flatten().unwrap_or_default()
}

fn answer(answer: &Answer) {
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer(&mut out, answer).map_err(io::Error::from);
    // An agent that has died asks nothing.
    let _ = written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// What is mounted.
struct Mount {
    attempt: PathBuf,
    runtime: Runtime,
    terminate: Signal,
    engine: Arc<Engine>,
    _session: BackgroundSession,
}

impl Mount {
    /// Mounts all, and says so.
    fn new(plan: Plan) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let server = Server::this_process().map_err(failed("cannot read /proc"))?;
        let boot = server.boot_id.clone();
        let _ = fs::remove_file(plan.attempt.join(ENDED));
        record::write(&plan.attempt, RECORD, &server).map_err(failed("cannot write a record"))?;
        log_to(&plan.attempt.join(LOG));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .max_blocking_threads(16)
            .enable_all()
            .build()
            .map_err(failed("cannot make a runtime"))?;
        let terminate = {
            let _entered = runtime.enter();
            // Before anybody may send it: its end would look as if somebody had killed it.
            signal(SignalKind::terminate()).map_err(failed("cannot take signals"))?
        };
        let cache = Cache::open(&plan.cache, Some(plan.cache_bytes));
        let cache = cache.map_err(|error| format!("cannot use the node's cache: {error}"))?;
        let fetch = Fetch::new(&plan.url, plan.trust, plan.token, plan.root, plan.patience);
        let fetch = fetch.map_err(|error| format!("cannot set up TLS: {error}"))?;
        let engine = Arc::new(Engine::new(fetch, cache, boot, runtime.handle().clone()));
        let failures = Arc::new(Failures::new(plan.attempt.clone()));
        let tree = Arc::new(Tree::new(plan.inputs)?);
        let inputs = || Inputs::new(tree.clone(), engine.clone(), failures.clone());
        let (session, for_others) = mount(inputs, &plan.at)?;
        let session = session.spawn().map_err(failed("cannot serve what is mounted"))?;
        // This asks what is mounted, and so this process.
        read_ahead(&plan.at);
        answer(&Answer::Ready { for_others });
        close_output();
        Ok(Self { attempt: plan.attempt, runtime, terminate, engine, _session: session })
    }

    /// Returns when the attempt is over.
    fn last(&mut self) {
        let Self { attempt, runtime, terminate, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("told to end"),
                () = over(attempt) => tracing::info!("the attempt is over"),
            }
        });
    }
}

/// Once nothing needs what is mounted.
async fn over(attempt: &Path) {
    let agent = rustix::process::getppid();
    let mut orphaned: Option<Instant> = None;
    loop {
        match supervised(attempt) {
            Supervised::Over => return,
            Supervised::By(process) => {
                process.ended().await;
                return;
            }
            Supervised::NotYet => {}
        }
        if rustix::process::getppid() != agent {
            let since = *orphaned.get_or_insert_with(Instant::now);
            // A new agent begins anew, with a server of its own.
            if since.elapsed() >= ON_ITS_WAY {
                return;
            }
        }
        sleep(LOOK).await;
    }
}

/// Mounts a file system, for all users if that can be had; whether it could.
fn mount<F: Filesystem>(files: impl Fn() -> F, at: &Path) -> Result<(Session<F>, bool), String> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(NAME.to_owned()),
    ];
    config.n_threads = Some(THREADS);
    let all = [(SessionACL::All, true), (SessionACL::Owner, false)];
    let mut refused = String::new();
    for (acl, for_others) in all {
        config.acl = acl;
        match Session::new(files(), at, &config) {
            Ok(session) => return Ok((session, for_others)),
            Err(error) => refused = error.to_string().trim().to_owned(),
        }
        // What root may not have for all it may not have for itself.
        if rustix::process::geteuid().is_root() {
            break;
        }
    }
    Err(refused)
}

/// Lets the kernel ask for more at once, where this user may say so: by itself it asks for 128 KiB.
fn read_ahead(at: &Path) {
    let Ok(device) = fs::metadata(at).map(|meta| meta.dev()) else { return };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, "the kernel reads ahead as little as is usual");
    }
}

/// Nobody listens any more, and the number must not go to another file.
fn close_output() {
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

fn log_to(path: &Path) {
    use tracing_subscriber::EnvFilter;
    let Ok(file) = File::options().create(true).append(true).open(path) else { return };
    let filter = EnvFilter::try_from_env("ATELIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let to = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let _ = to.with_writer(Arc::new(file)).try_init();
}

/// An empty file system.
struct Nothing;

impl Filesystem for Nothing {}

/// Whether anything can be mounted on this machine: it is tried, in the agent's folder.
///
/// # Errors
/// Why not, in words.
pub(crate) fn probe(root: &Path) -> Result<(), String> {
    const DEVICE: &str = "/dev/fuse";
    File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| format!("cannot open {DEVICE}: {error}"))?;
    let at = root.join("mount-probe");
    super::make_place(&at).map_err(|error| format!("cannot make {}: {error}", at.display()))?;
    let tried = mount(|| Nothing, &at).map(drop);
    detach(&at);
    let _ = fs::remove_dir(&at);
    tried
}
