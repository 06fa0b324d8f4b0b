//! Puts the daemon together and runs it until it is asked to stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atelier_agent::Notifier;
use atelier_core::access::Role;
use atelier_core::compute::SizeTable;
use atelier_core::environment::CuratedTable;
use atelier_core::id::{ComputeName, DatastoreName, NodeName, Principal};
use atelier_core::layout;
use atelier_core::spec::{Origin, parse_sizes};
use atelier_core::track::RunId;
use tokio::sync::watch;

use super::admission::{Admission, Public};
use super::assets::Assets;
use super::components::Components;
use super::datastores::DatastoreChanges;
use super::effects::{Effects, ExperimentIds};
use super::environments::Environments;
use super::folder::{self, Folder};
use super::listen::{Addresses, Listeners, is_secure};
use super::probe::Probe;
use super::reactor::{Reactor, Settings};
use super::shared::Committed;
use super::storage::{self as place, WorkspaceStorage};
use super::uncommitted::Uncommitted;
use super::{
    Authority, Builds, Clock, Handle, LogHub, NodeCaches, Nodes, NodesError, Removal, Retention,
    Uploads,
};
use crate::audit::AuditLog;
use crate::config::{Here, HomeError, OidcArgs, PublicData, ServeArgs, data_dir};
use crate::identity::{self, Door};
use crate::provider::{Providers, Site};
use crate::storage::{self, ContentStore, Datastores};
use crate::store::{self, SqliteStore, Store};
use crate::tls::{self, Files, Own, Secure};
use crate::track::Tracking;
use crate::vault::{self, Keys, Vault};
use crate::{grpc, http, oidc};

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder to keep things in.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The database failed while running.
    #[error("the daemon stopped: {0}")]
    StoreFailed(Arc<store::Error>),
    /// The provider that people sign in at.
    #[error(transparent)]
    Provider(#[from] oidc::Error),
    /// The datastores.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Where the workspace's own datastores lie.
    #[error("cannot start: {0}")]
    Place(#[from] place::Error),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// Tokens.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Nodes.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The address.
    #[error("cannot listen on {address}: {source}; choose another with {option}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What it is chosen by.
        option: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Encryption.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The curated table.
    #[error("cannot use the table of curated environments {path}: {problem}")]
    Curated {
        /// The file.
        path: String,
        /// Why not.
        problem: String,
    },
    /// The table of sizes.
    #[error("cannot use the table of sizes {path}: {problem}")]
    Sizes {
        /// The file.
        path: String,
        /// Why not.
        problem: String,
    },
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] atelier_core::id::InvalidName),
    /// The server.
    #[error("the server failed: {0}")]
    Server(#[source] std::io::Error),
}

/// A running daemon.
pub struct Daemon {
    /// Where it listens.
    pub address: SocketAddr,
    /// The same as clients on this machine use it.
    pub url: String,
    /// The way to its reactor.
    pub handle: Handle,
    stop: watch::Sender<bool>,
    ended: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Daemon {
    /// Stops it after what it is doing; waits until it is done.
    pub async fn stop(self) -> Result<(), Error> {
        let _ = self.stop.send(true);
        self.ended().await
    }

    /// Waits until it ends by itself.
    pub async fn ended(self) -> Result<(), Error> {
        match self.ended.await {
            Ok(result) => result,
            Err(panic) => Err(Error::Server(std::io::Error::other(panic))),
        }
    }
}

/// Everything a service needs, cheap to clone.
#[derive(Clone)]
pub struct Shared {
    pub(crate) handle: Handle,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) datastores: Datastores,
    pub(crate) content: ContentStore,
    pub(crate) door: Arc<Door>,
    pub(crate) nodes: Nodes,
    pub(crate) authority: Authority,
    /// Who vouches for people, if somebody does.
    pub(crate) provider: Option<Arc<oidc::Provider>>,
    pub(crate) audit: AuditLog,
    pub(crate) admission: Admission,
    pub(crate) logs: LogHub,
    pub(crate) caches: NodeCaches,
    pub(crate) builds: Builds,
    pub(crate) removal: Removal,
    pub(crate) retention: Retention,
    pub(crate) tracking: Tracking,
    pub(crate) environments: Environments,
    pub(crate) assets: Assets,
    pub(crate) components: Components,
    pub(crate) vault: Vault,
    pub(crate) datastore_changes: DatastoreChanges,
    pub(crate) committed: Arc<Committed>,
    pub(crate) uploads: Uploads,
    pub(crate) limits: Arc<http::Limits>,
    pub(crate) sizes: Arc<SizeTable>,
    pub(crate) clock: Clock,
    pub(crate) folder: Arc<Folder>,
    pub(crate) args: Arc<ServeArgs>,
    /// Where it listens.
    pub(crate) addresses: Addresses,
    /// Its encryption, if it has some.
    pub(crate) secure: Option<Arc<Secure>>,
    pub(crate) probe: Probe,
    /// The file that says where the workspace's own datastores lie, which may hold keys.
    pub(crate) storage_file: Option<PathBuf>,
    /// Where they lie.
    pub(crate) storage: Arc<str>,
    /// Turns true when the daemon is asked to stop: streams end then.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Who vouches for people, as the admin says. Nobody is asked: it may be away now.
fn provider_of(
    args: &OidcArgs,
    data_dir: &Path,
) -> Result<Option<Arc<oidc::Provider>>, oidc::Error> {
    let (Some(issuer), Some(client_id)) = (&args.issuer, &args.client_id) else { return Ok(None) };
    if args.role.is_empty() {
        tracing::warn!(
            "nobody may sign in: no group gives a role; say which do with --oidc-role GROUP=ROLE"
        );
    }
    let session = Duration::from_secs(args.session);
    let provider = oidc::Provider::new(issuer, client_id, &args.scope, session, args.rules())?;
    let passing = args
        .client_secret
        .clone()
        .map(|source| oidc::Passing::new(client_id, source, args.client_auth, data_dir.to_owned()));
    Ok(Some(Arc::new(provider.with_secret(passing.transpose()?))))
}

/// Runs the daemon until a termination signal.
pub async fn serve(args: ServeArgs, notifier: Notifier) -> Result<(), Error> {
    let daemon = start(args).await?;
    let notifier = Arc::new(notifier);
    notifier.ready(&format!("listening on {}", daemon.url));
    if let Some(period) = notifier.watchdog() {
        tokio::spawn(tell_progress(daemon.handle.clone(), notifier.clone(), period));
    }
    let stop = daemon.stop.clone();
    tokio::spawn(async move {
        terminated().await;
        tracing::info!("asked to stop");
        notifier.stopping();
        let _ = stop.send(true);
    });
    daemon.ended().await
}

/// A look at live state is answered by the reactor, after what came before it is on disk. A daemon
/// whose reactor or disk stands still tells no progress, however lively its other threads are.
async fn tell_progress(handle: Handle, notifier: Arc<Notifier>, period: Duration) {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if handle.look(|_, _| ()).await.is_err() {
            return;
        }
        notifier.progress();
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Starts a daemon in this process.
pub async fn start(args: ServeArgs) -> Result<Daemon, Error> {
    let clock = Clock::default();
    let data_dir = data_dir(args.data_dir.as_ref())?;
    let mut folder = Folder::open(&data_dir, &args.workspace, clock.wall())?;
    folder.withdraw();
    let secure = secure(&args, &folder, clock)?;
    let store: Arc<SqliteStore> =
        Arc::new(SqliteStore::open(&folder.at("atelier.db"), folder.existed())?);
    if let Some(recorded) = store.recorded_last()? {
        clock.resume(recorded);
    }
    let database = store.clone();
    let mut storage = WorkspaceStorage::find(args.storage.as_deref(), &store, &folder).await?;
    folder.settle()?;
    storage.settle(&store, &folder).await?;
    let keys = Keys::of(&args, &folder.workspace().id);
    let vault = Vault::open(store.clone(), keys, &folder.workspace().id, folder.path())?;
    let tended = vault.clone();
    let datastores = Datastores::open(&storage.home, Duration::from_secs(args.store_patience))?;
    let egress = Arc::new(args.egress());
    let datastores = match args.public_data {
        PublicData::Allow => datastores.with_public(args.public_servers(), egress.clone()),
        PublicData::Refuse => datastores,
    };
    let content = ContentStore::new(&datastores)?;
    let curated = Arc::new(curated_table(args.curated_environments.as_ref())?);
    let environments = Environments::new(store.clone(), curated, content.clone());
    let assets = Assets::new(store.clone());
    let components = Components::new(store.clone());
    let sizes = Arc::new(size_table(args.sizes.as_ref())?);
    let door =
        Arc::new(Door::open(store.clone(), &folder.at("token.key"), &folder.workspace().id)?);
    let audit = AuditLog::new(store.clone());
    door.tell(audit.clone());
    let now = clock.wall();
    door.token_file(&folder.at("admin.token"), Principal::new("admin")?, Role::Admin, now).await?;
    let local = Role::Node(NodeName::new("local")?);
    door.token_file(&folder.at("agent.token"), Principal::new("node:local")?, local, now).await?;

    let nodes = Nodes::open(
        store.clone(),
        door.clone(),
        secure.clone(),
        &folder.workspace().id,
        clock,
        args.node_certificate_life,
    )?;
    let provider = provider_of(&args.oidc, folder.path())?;

    // Jobs are given links into these: only the workspace's own, whose files nobody else has.
    let roots: BTreeMap<DatastoreName, PathBuf> = datastores
        .all()
        .iter()
        .filter_map(|store| Some((store.name().clone(), store.own_folder()?.to_owned())))
        .collect();
    let artifacts = datastores.get(layout::ARTIFACT_STORE)?;
    let tracking = Tracking::new(store.clone(), artifacts, Arc::new(move || clock.wall()));
    let providers = Providers::new(Site {
        folder: std::path::absolute(&data_dir).unwrap_or_else(|_| data_dir.clone()),
        door: door.clone(),
        nodes: nodes.clone(),
        clock,
    });
    let (uncommitted, over) = Uncommitted::new(store.clone(), datastores.clone());
    let effects = Effects {
        providers: providers.clone(),
        door: door.clone(),
        roots,
        artifact_store: DatastoreName::new(layout::ARTIFACT_STORE)?,
        require_containers: args.require_containers,
        log_limit: args.log_limit,
        grace: args.grace,
        resolve: {
            let environments = environments.clone();
            Box::new(move |asset| match environments.pin(asset) {
                Ok((_, made_of)) => Some(made_of),
                Err(error) => {
                    tracing::error!(environment = asset.name, %error, "a job's environment is not there");
                    None
                }
            })
        },
        experiment_id: experiment_ids(store.clone()),
        over: {
            let (tracking, uncommitted) = (tracking.clone(), uncommitted.clone());
            Box::new(move |job| {
                tracking.wake();
                uncommitted.is_over(job);
            })
        },
    };
    let settings = Settings {
        computes: args.compute.clone(),
        default_compute: match args.compute.first() {
            Some(first) => first.clone(),
            None => ComputeName::new("local")?,
        },
        principal: Principal::new("daemon")?,
        lease: args.lease_policy(),
    };
    let (handle, reactor) = Reactor::start(settings, store.clone(), effects, clock)?;
    door.people().tell(handle.clone());
    nodes.fence_revoked(&handle).await?;
    let life = args.node_certificate_life;
    let authority =
        Authority::new(secure.clone(), door.clone(), handle.clone(), audit.clone(), clock, life);

    let listeners = Listeners::open(args.listen, args.jobs_listen, folder.jobs_address()).await?;
    let address = listeners.control.local_addr().map_err(Error::Server)?;
    let jobs_address = listeners.jobs.local_addr().map_err(Error::Server)?;
    let addresses = Addresses { control: address, jobs: jobs_address, is_secure: secure.is_some() };
    let url = addresses.announced();
    let probe = Probe::write(&storage.home, &folder)?;
    let (stop, stopping) = watch::channel(false);
    let datastore_changes = DatastoreChanges::open(
        database.clone(),
        vault.clone(),
        datastores.clone(),
        handle.clone(),
        data_dir.clone(),
        &folder.workspace().id,
    )?;
    let uploads = Uploads::new(
        database.clone(),
        Arc::new(move || clock.wall()),
        args.signed_urls,
        Duration::from_secs(args.lease),
    );
    let collector = tokio::spawn(uploads.clone().collect(datastores.clone(), door.clone()));
    let folder = Arc::new(folder);
    let committed = Arc::new(Committed::new(store.clone(), datastores.clone()));
    let retention = Retention::new(database.clone(), datastores.clone(), assets.clone(), clock);
    let shared = Shared {
        admission: Admission {
            committed: committed.clone(),
            store: store.clone(),
            datastores: datastores.clone(),
            content: content.clone(),
            environments: environments.clone(),
            assets: assets.clone(),
            vault: vault.clone(),
            retention: retention.clone(),
            require_containers: args.require_containers,
            public: Public {
                is_allowed: args.public_data == PublicData::Allow,
                egress,
                servers: args.public_servers(),
            },
        },
        retention: retention.clone(),
        logs: LogHub::new(store.clone(), datastores.clone(), handle.clone()),
        caches: NodeCaches::new(handle.clone()),
        builds: Builds::new(handle.clone()),
        removal: Removal {
            assets: assets.clone(),
            datastores: datastores.clone(),
            handle: handle.clone(),
            tracking: tracking.clone(),
            uncommitted: uncommitted.clone(),
            retention: retention.clone(),
            committed: committed.clone(),
            store: store.clone(),
        },
        tracking: tracking.clone(),
        environments,
        assets,
        components,
        vault,
        datastore_changes,
        committed,
        uploads,
        limits: Arc::new(http::Limits::new(args.limits.clone())),
        handle: handle.clone(),
        store,
        datastores,
        content,
        door: door.clone(),
        nodes,
        authority,
        provider,
        audit: audit.clone(),
        sizes,
        clock,
        folder: folder.clone(),
        args: Arc::new(args),
        addresses,
        secure: secure.clone(),
        probe,
        storage_file: storage.file,
        storage: storage.home.location().into(),
        stopping: stopping.clone(),
    };
    let routes = Routes {
        jobs: http::jobs_router(shared.clone()),
        control: http::router(shared.clone(), grpc::routes(&shared).await),
    };
    if listeners.is_to_keep {
        folder.keep_jobs_address(jobs_address)?;
    }
    folder.announce(&url)?;
    providers.start(handle.clone()).await;
    tell_head(&audit);
    tracing::info!(%url, jobs = %jobs_address, folder = %data_dir.display(), "listening");
    let sealer = tokio::spawn(async move { tracking.run_sealer().await });
    let dropper = tokio::spawn(uncommitted.run(over));
    let remover = tokio::spawn(async move { retention.run().await });
    let tender = tokio::spawn(async move { tended.tend().await });
    let uses = door.clone();
    let keeper = tokio::spawn(async move { uses.people().tend().await });
    let teller = tokio::spawn(audit.clone().run());
    let mut patrols = vec![sealer, collector, dropper, remover, tender, keeper, teller];
    patrols.extend(secure.clone().map(|secure| tokio::spawn(secure.tend(clock))));
    patrols.push(tokio::spawn(clock.watch()));
    let ended = tokio::spawn(run(
        listeners,
        secure,
        routes,
        stopping,
        reactor,
        handle.clone(),
        Ending { folder, patrols, providers, audit, store: database, door },
    ));
    Ok(Daemon { address, url, handle, stop, ended })
}

/// The encryption of the ports, where they have some.
fn secure(args: &ServeArgs, folder: &Folder, clock: Clock) -> Result<Option<Arc<Secure>>, Error> {
    if !is_secure(args) {
        return Ok(None);
    }
    let jobs = args.jobs_listen.unwrap_or(args.listen);
    let own = Own { listen: vec![args.listen.ip(), jobs.ip()], names: args.tls_name.clone() };
    let files = args.tls_cert.clone().zip(args.tls_key.clone());
    let files = files.map(|(certificate, key)| Files { certificate, key });
    let workspace = folder.workspace();
    let called = format!("Atelier workspace {} {}", workspace.name, workspace.id);
    let secure = Secure::open(folder.path(), &called, own, files, clock.wall())?;
    Ok(Some(Arc::new(secure)))
}

/// What a stopping daemon still has to see to.
struct Ending {
    folder: Arc<Folder>,
    /// Those that may be stopped at any point.
    patrols: Vec<tokio::task::JoinHandle<()>>,
    providers: Providers,
    audit: AuditLog,
    store: Arc<SqliteStore>,
    door: Arc<Door>,
}

/// What is answered on each port.
struct Routes {
    control: axum::Router,
    jobs: axum::Router,
}

async fn run(
    listeners: Listeners,
    secure: Option<Arc<Secure>>,
    routes: Routes,
    mut stopping: watch::Receiver<bool>,
    reactor: tokio::task::JoinHandle<Result<(), Arc<store::Error>>>,
    handle: Handle,
    ending: Ending,
) -> Result<(), Error> {
    let control = http::serve(listeners.control, secure.clone(), routes.control, stopping.clone());
    let jobs = http::serve(listeners.jobs, secure, routes.jobs, stopping.clone());
    let mut reactor = reactor;
    let result = tokio::select! {
        result = control => result.map_err(Error::Server),
        result = jobs => result.map_err(Error::Server),
        failed = &mut reactor => match failed {
            Ok(Err(error)) => Err(Error::StoreFailed(error)),
            Ok(Ok(())) => Ok(()),
            Err(panic) => Err(Error::Server(std::io::Error::other(panic))),
        },
        _ = stopping.wait_for(|stop| *stop) => Ok(()),
    };
    let Ending { folder, patrols, providers, audit, store, door } = ending;
    patrols.iter().for_each(tokio::task::JoinHandle::abort);
    providers.stop().await;
    if !reactor.is_finished() {
        handle.stop().await;
    }
    folder.withdraw();
    door.people().write_uses().await;
    if result.is_ok() {
        audit.finish().await;
        tell_head(&audit);
    }
    if result.is_ok()
        && let Err(error) = store.checkpoint()
    {
        tracing::warn!(%error, "the database keeps its log");
    }
    result
}

/// Whoever keeps the daemon's log elsewhere can compare: `atelier audit verify --head HASH`.
fn tell_head(audit: &AuditLog) {
    match audit.head() {
        Ok((given, last, _)) if given > last => {
            tracing::error!(last, given, "entries are missing at the end of the audit log");
        }
        Ok((_, seq, head)) => tracing::info!(seq, %head, "the head of the audit log"),
        Err(error) => tracing::warn!(%error, "the audit log cannot be read"),
    }
}

/// Asks each time: an experiment may be renamed, and another take its name.
fn experiment_ids(store: Arc<SqliteStore>) -> ExperimentIds {
    Box::new(move |job| {
        match store.read(|conn| store::tracking::run_info(conn, &RunId::from(job))) {
            Ok(run) => run.experiment.to_string(),
            Err(error) => {
                tracing::warn!(%job, %error, "a run's experiment could not be looked up");
                String::new()
            }
        }
    })
}

fn curated_table(path: Option<&PathBuf>) -> Result<CuratedTable, Error> {
    let Some(path) = path else { return Ok(CuratedTable::default()) };
    let fail = |problem: String| Error::Curated { path: path.display().to_string(), problem };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let table: CuratedTable = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
    table.check().map_err(|e| fail(e.to_string()))?;
    Ok(table)
}

fn size_table(path: Option<&PathBuf>) -> Result<SizeTable, Error> {
    let Some(path) = path else { return Ok(SizeTable::builtin()) };
    let fail = |problem: String| Error::Sizes { path: path.display().to_string(), problem };
    let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let name = path.display().to_string();
    let origin = Origin { name, folder: String::new(), experiment: String::new() };
    let rows = parse_sizes(&text, &origin, &Here).map_err(|faults| fail(faults.to_string()))?;
    Ok(SizeTable::builtin().with(rows))
}
