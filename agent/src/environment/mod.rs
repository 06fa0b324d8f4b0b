//! What a job's command runs in: the node's own programs, or a private Python environment built
//! from its conda document, kept by what is in it and shared by the jobs that ask for the same. Images are
//! [`crate::container`]'s, where the node has a container runtime.
//!
//! **Invariant:** an environment's folder is there whole or not at all. It is built beside its
//! place, marked complete and moved; a killed build leaves only what the next one removes.

mod build;
mod confine;
pub(crate) mod exec;
mod host;
mod install;
mod installer;
mod keep;
mod layer;
mod lock;
pub(crate) mod progress;
mod pythons;
pub(crate) mod shared;
mod uv;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use atelier_core::environment::{Base, Choice, Installed, PythonRequest, Recipe, choose};
use atelier_core::spec::InlineEnvironment;
use tokio::sync::Mutex;

pub use crate::data::Fault;
use build::Built;
pub(crate) use confine::Confinement;
pub(crate) use installer::{Installer, variables};
pub(crate) use keep::Kept;
use keep::{Keep, Pin};
use pythons::{Known, Places, look};
pub(crate) use pythons::{find_program, others_may_run};
use shared::{Builds, Reporter};
use uv::{Builder, Home};

/// Changes when the same recipe would come out differently.
const BUILDER: &str = "venv 1";
/// How long a Python that could not be fetched is not asked for again.
const FETCH_AGAIN: Duration = Duration::from_secs(3600);
/// How long the list of Pythons stands when what is asked for is not among them.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why an environment is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The conda document.
    #[error(transparent)]
    Recipe(#[from] atelier_core::environment::Error),
    /// An image, where the policy does not let another environment stand in for it.
    #[error(
        "the environment's image '{image}' cannot be used: {reason}; give a conda_file without \
         an image, or have the workspace allow the node's Python in its place"
    )]
    ImageRefused {
        /// As written.
        image: String,
        /// Why not.
        reason: String,
    },
    /// A build context.
    #[error(
        "the environment has a build context, which needs a container runtime: {reason}; give an image \
         or a conda_file instead"
    )]
    BuildContext {
        /// Why not.
        reason: String,
    },
    /// There is no such image, or it may not be had.
    #[error(
        "the image '{image}' cannot be pulled: {reason}; check its name, and that this node may pull it"
    )]
    Image {
        /// Its name.
        image: String,
        /// The runtime's own.
        reason: String,
    },
    /// A registry that does not answer.
    #[error("the registry of image '{image}' cannot be reached from this node: {reason}")]
    Registry {
        /// The image's name.
        image: String,
        /// The runtime's own.
        reason: String,
    },
    /// A Dockerfile.
    #[error("no image can be built of '{path}': {reason}")]
    Dockerfile {
        /// Within the build context.
        path: String,
        /// The runtime's own.
        reason: String,
    },
    /// The packages of a conda file cannot be installed in an image.
    #[error("the conda_file's packages cannot be installed in image '{image}': {reason}")]
    Layer {
        /// The image's name.
        image: String,
        /// The installer's own.
        reason: String,
    },
    /// Programs that conda packages would have brought.
    #[error(
        "conda packages that are programs, not Python packages, are not on this node: {}; install \
         them there with the system's package manager, remove the lines, or use an image",
        .programs.join(", ")
    )]
    Programs {
        /// `package (program)`
        programs: Vec<String>,
    },
    /// The packages cannot be installed as asked for.
    #[error("the environment's packages cannot be installed: {reason}")]
    Packages {
        /// The installer's own.
        reason: String,
    },
    /// The node has no Python to build with.
    #[error(
        "this node has no Python 3.8 or newer on its path to build the environment from: install \
         python3 there, or run the job without a Python environment"
    )]
    NoPython,
    /// The package index cannot be reached.
    #[error("the package index cannot be reached from this node: {reason}")]
    Index {
        /// The installer's own.
        reason: String,
    },
    /// No room.
    #[error("no space is left on the node's file system of '{path}': free some there")]
    DiskFull {
        /// Where.
        path: String,
    },
    /// A program of the node's own failed.
    #[error("cannot {operation} on this node: {reason}")]
    Tool {
        /// What was done.
        operation: String,
        /// What it said.
        reason: String,
    },
    /// The node's file system.
    #[error("cannot {operation} '{path}' on this node: {reason}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A build ahead of jobs that did not end.
    #[error(
        "the build of the environment was stopped: it took longer than {} s, the --build-timeout of this \
         node's agent",
        .bound.as_secs()
    )]
    Slow {
        /// What it may take.
        bound: Duration,
    },
    /// The agent is stopping.
    #[error("the build of the environment was stopped")]
    Stopped,
}

impl Error {
    /// Whether it is the job's own making, so that another try would fail in the same way.
    pub fn is_users(&self) -> bool {
        self.fault() == Fault::User
    }

    /// Whose it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Recipe(_)
            | Self::ImageRefused { .. }
            | Self::BuildContext { .. }
            | Self::Image { .. }
            | Self::Dockerfile { .. }
            | Self::Layer { .. }
            | Self::Programs { .. }
            | Self::Packages { .. } => Fault::User,
            Self::DiskFull { .. } => Fault::DiskFull,
            Self::NoPython
            | Self::Index { .. }
            | Self::Registry { .. }
            | Self::Tool { .. }
            | Self::Io { .. }
            | Self::Slow { .. }
            | Self::Stopped => Fault::Platform,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> Self {
        let path = path.display().to_string();
        if matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        ) {
            return Self::DiskFull { path };
        }
        Self::Io { operation, path, reason: error.to_string() }
    }

    /// Sorts an installer's failure by what it says.
    fn of_installer(operation: &str, reason: String, packages: bool) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        if says(&reason, &NETWORK) {
            return Self::Index { reason };
        }
        if packages {
            return Self::Packages { reason };
        }
        Self::Tool { operation: operation.to_owned(), reason }
    }

    /// Sorts a container runtime's failure by what it says.
    pub(crate) fn of_runtime(operation: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        Self::Tool { operation: operation.to_owned(), reason }
    }

    /// The same of a pull.
    pub(crate) fn of_pull(image: &str, reason: String) -> Self {
        const NOT_TO_BE_HAD: [&str; 9] = [
            "manifest unknown",
            "name unknown",
            "not found",
            "unauthorized",
            "authentication required",
            "denied",
            "invalid reference",
            "no image found in manifest list",
            "unsupported image",
        ];
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        let image = image.to_owned();
        match says(&reason, &NOT_TO_BE_HAD) && !says(&reason, &NETWORK) {
            true => Self::Image { image, reason },
            false => Self::Registry { image, reason },
        }
    }

    /// The same of a build. What its steps ask of the network is the Dockerfile's.
    pub(crate) fn of_build(path: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        let registry = ["pinging container registry", "initializing source"];
        if says(&reason, &registry) && says(&reason, &NETWORK) {
            return Self::Registry { image: path.to_owned(), reason };
        }
        Self::Dockerfile { path: path.to_owned(), reason }
    }

    /// The same of packages that are installed in an image.
    pub(crate) fn of_layer(image: &str, reason: String) -> Self {
        if says(&reason, &DISK_FULL) {
            return Self::DiskFull { path: reason };
        }
        if says(&reason, &NETWORK) {
            return Self::Index { reason };
        }
        Self::Layer { image: image.to_owned(), reason }
    }
}

const DISK_FULL: [&str; 4] =
    ["No space left on device", "no space left on device", "os error 28", "Disk quota exceeded"];
/// What programs say of a network that fails them.
const NETWORK: [&str; 17] = [
    "error sending request",
    "dns error",
    "Connection refused",
    "connection refused",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "no such host",
    "server misbehaving",
    "operation timed out",
    "Read timed out",
    "i/o timeout",
    "TLS handshake timeout",
    "Connection reset",
    "connection reset",
    "503 Service Unavailable",
    "502 Bad Gateway",
    "429 Too Many Requests",
];

fn says(reason: &str, words: &[&str]) -> bool {
    words.iter().any(|word| reason.contains(word))
}

/// What a job asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Wanted {
    /// The node's own programs and Python.
    Host,
    /// Written out, or a named environment resolved.
    Inline {
        /// What it is made of.
        environment: InlineEnvironment,
        /// What to do with an image.
        images: ImagePolicy,
    },
}

/// What becomes of an image where no container can be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImagePolicy {
    /// A private environment of the node's own Python takes its place, and the log says so.
    HostPython,
    /// The job fails.
    Refuse,
}

/// An environment, ready.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Realised {
    /// Folders before everything else on the job's `PATH`.
    pub path: Vec<PathBuf>,
    /// To be set for the job; what the job itself sets goes before.
    pub variables: BTreeMap<String, String>,
    /// For the log: `Python 3.11.7, 45 packages`.
    pub description: String,
    /// What other jobs use too; see [`Realised::layered`].
    shared: Option<Shared>,
}

/// An environment that jobs share. It stays while this is held.
#[derive(Clone, PartialEq, Debug)]
struct Shared {
    folder: PathBuf,
    pin: Arc<Pin>,
}

/// Where a build's progress goes: the job's log.
pub trait BuildLog: Send + Sync {
    /// One line, without its end.
    fn line(&self, text: &str);

    /// How long a build may take that begins for this one, if there is a bound.
    fn bound(&self) -> Option<Duration> {
        None
    }
}

/// What there is on this machine to build with.
#[derive(Clone, Debug)]
pub struct Machine {
    /// As the variable `PATH`.
    pub path: OsString,
    /// The uv to use, if an administrator named one (`ATELIER_UV`).
    pub uv: Option<PathBuf>,
    /// Folders whose subfolders are Python installations.
    pub python_collections: Vec<PathBuf>,
    /// Why images are not used here, where they are not.
    pub no_containers: String,
    /// Whether jobs run as other users than this process's: then they need a Python that others may run.
    pub for_others: bool,
    /// How builds are kept from the rest of the node, where they are.
    pub(crate) confinement: Option<Confinement>,
}

impl Machine {
    /// As this process's variables say.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = variable("HOME").map(PathBuf::from);
        let under_home = |folder: &str| home.as_ref().map(|home| home.join(folder));
        let data = variable("XDG_DATA_HOME").map(PathBuf::from).or(under_home(".local/share"));
        let collections = [
            variable("PYENV_ROOT").map(PathBuf::from).or(under_home(".pyenv")),
            variable("UV_PYTHON_INSTALL_DIR").map(PathBuf::from),
            data.map(|data| data.join("uv").join("python")),
        ];
        let [pyenv, named, usual] = collections;
        let path = variable("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        Self {
            path,
            uv: variable("ATELIER_UV").map(PathBuf::from),
            python_collections: [pyenv.map(|root| root.join("versions")), named, usual]
                .into_iter()
                .flatten()
                .collect(),
            no_containers: "this node has no container runtime".to_owned(),
            for_others: false,
            confinement: None,
        }
    }
}

/// The environments of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Environments(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    home: Home,
    places: Places,
    pythons: Mutex<Known>,
    /// Held while a Python is fetched.
    fetching: Mutex<()>,
    /// When a Python could not be fetched, and why.
    unavailable: std::sync::Mutex<BTreeMap<String, (Instant, String)>>,
    no_containers: String,
    confinement: Option<Confinement>,
    builds: Arc<Builds<Built>>,
    keep: Arc<Keep>,
}

impl Inner {
    /// Why this Python could not be fetched, if that was tried lately.
    fn unavailable(&self, specifier: &str) -> Option<String> {
        let tried = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, reason) = tried.get(specifier)?;
        (when.elapsed() < FETCH_AGAIN).then(|| reason.clone())
    }

    fn note_unavailable(&self, specifier: &str, reason: &str) {
        let mut tried = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner);
        tried.insert(specifier.to_owned(), (Instant::now(), reason.to_owned()));
    }
}

impl Environments {
    /// The environments kept in `root`, an absolute path; made when the first one is built. What
    /// killed builds left there is removed.
    pub fn new(root: PathBuf, machine: Machine) -> Self {
        Self::bounded(root, machine, None)
    }

    /// The same with so many bytes kept at most, but for what is in use; `None`: a fifth of the file
    /// system, at most 50 GiB.
    pub fn bounded(root: PathBuf, machine: Machine, limit: Option<u64>) -> Self {
        build::clean(&root);
        machine.confinement.iter().for_each(Confinement::clean);
        let keep = Arc::new(Keep::new(root.clone(), limit));
        let home = Home { root, path: machine.path.clone(), uv: machine.uv };
        let mut collections = machine.python_collections;
        collections.push(home.pythons());
        Self(Arc::new(Inner {
            places: Places {
                path: machine.path,
                collections,
                for_others_below: machine.for_others.then(|| home.root.clone()),
            },
            home,
            pythons: Mutex::default(),
            fetching: Mutex::default(),
            unavailable: std::sync::Mutex::default(),
            no_containers: machine.no_containers,
            confinement: machine.confinement,
            builds: Arc::default(),
            keep,
        }))
    }

    /// Where the environments lie.
    pub fn folder(&self) -> &Path {
        &self.0.home.root
    }

    /// Makes an environment ready, building it if no one has.
    ///
    /// When the returned future is dropped, a build that no one else waits for is stopped.
    ///
    /// # Errors
    /// What is wrong with what was asked for, or with the node; see [`Error::fault`].
    pub async fn realise(&self, wanted: &Wanted, log: &dyn BuildLog) -> Result<Realised, Error> {
        let (environment, images) = match wanted {
            Wanted::Host => return host::realise(&self.0.home),
            Wanted::Inline { environment, images } => (environment, *images),
        };
        if environment.build.is_some() {
            return Err(Error::BuildContext { reason: self.0.no_containers.clone() });
        }
        if let Some(image) = &environment.image {
            if images == ImagePolicy::Refuse {
                let reason = self.0.no_containers.clone();
                return Err(Error::ImageRefused { image: image.clone(), reason });
            }
            let with = if environment.conda.is_some() {
                "with the conda_file's packages"
            } else {
                "which sees the packages installed there"
            };
            log.line(&format!(
                "image '{image}' is not used ({}): a private environment of this node's Python \
                 takes its place, {with}",
                self.0.no_containers.clone()
            ));
        }
        let recipe = match &environment.conda {
            Some(conda) => Recipe::from_conda(conda)?,
            None => Recipe::of_host_packages(),
        };
        self.check_programs(&recipe, log)?;
        for note in &recipe.notes {
            log.line(&format!("environment: {note}"));
        }
        let python = self.python(recipe.python.as_ref(), log).await?;
        let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
        let key = recipe.key(&Base {
            python: python.version,
            python_path: &python.path,
            platform: &platform,
            builder: BUILDER,
        });
        // 128 bits are plenty, and paths in scripts have a limit.
        let key = key.to_string()[..32].to_owned();
        let inner = &self.0;
        // Before it is looked for: from here on it is not removed.
        let pin = Arc::new(inner.keep.pin(&key));
        let built = match build::existing(&inner.home.root, &key) {
            Some(built) => Arc::new(built),
            None => {
                std::fs::create_dir_all(&inner.home.root)
                    .map_err(|error| Error::io("create", &inner.home.root, &error))?;
                let built = inner
                    .builds
                    .join(&key, log, |reporter| {
                        build::build(
                            inner.home.clone(),
                            inner.confinement.clone(),
                            key.clone(),
                            python.clone(),
                            recipe.clone(),
                            reporter,
                        )
                    })
                    .await?;
                self.shrink();
                built
            }
        };
        Ok(realised(&built, pin, environment, &recipe))
    }

    /// Keeps to the bound, in its own time.
    pub(crate) fn shrink(&self) {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || inner.keep.shrink(&inner.builds));
    }

    /// Bytes kept at most, but for what is in use.
    pub(crate) fn limit(&self) -> u64 {
        self.0.keep.limit()
    }

    /// What is kept, and how many bytes of packages the installer keeps besides. Waits for the disk.
    pub(crate) fn kept(&self) -> (Vec<Kept>, u64) {
        (self.0.keep.list(&self.0.builds), self.0.keep.packages())
    }

    /// Removes what is not in use and was not used for `unused_for`, with `packages` also the
    /// installer's; what went, and how many bytes of packages. Waits for the disk.
    pub(crate) fn prune(&self, unused_for: Duration, packages: bool) -> (Vec<Kept>, u64) {
        self.0.keep.prune(&self.0.builds, unused_for, packages)
    }

    fn check_programs(&self, recipe: &Recipe, log: &dyn BuildLog) -> Result<(), Error> {
        let mut missing = Vec::new();
        let mut found = Vec::new();
        for wanted in &recipe.programs {
            match find_program(&self.0.home.path, &wanted.program) {
                Some(path) => found.push(format!("{} ({})", wanted.package, path.display())),
                None => missing.push(format!("'{}' ({})", wanted.package, wanted.program)),
            }
        }
        if !missing.is_empty() {
            return Err(Error::Programs { programs: missing });
        }
        if !found.is_empty() {
            log.line(&format!("environment: the node's own are used of: {}", found.join(", ")));
        }
        Ok(())
    }

    /// The Python to build from.
    async fn python(
        &self,
        request: Option<&PythonRequest>,
        log: &dyn BuildLog,
    ) -> Result<Installed, Error> {
        let (asked, nearest) = self.installed(request, false).await?;
        if let Some(python) = asked {
            return Ok(python);
        }
        let Some(request) = request else { return Ok(nearest) };
        let specifier = request.specifier();
        let reason = match self.0.unavailable(&specifier) {
            Some(reason) => reason,
            None => {
                // One at a time, so that many jobs do not fetch the same one.
                let _fetching = self.0.fetching.lock().await;
                match self.0.unavailable(&specifier) {
                    Some(reason) => reason,
                    None => {
                        log.line(&format!(
                            "environment: Python {specifier} is not installed: fetching it"
                        ));
                        let fetched = self.fetch(&nearest, &specifier, log).await;
                        if let (Some(python), _) = self.installed(Some(request), true).await? {
                            return Ok(python);
                        }
                        let reason = fetched.err().unwrap_or_else(|| "it does not run".into());
                        self.0.note_unavailable(&specifier, &reason);
                        reason
                    }
                }
            }
        };
        log.line(&format!(
            "environment: Python {specifier} is not installed and cannot be fetched ({reason}): \
             using Python {}, the nearest on this node",
            nearest.version
        ));
        Ok(nearest)
    }

    /// The Python asked for, if it is installed, and the one to take otherwise.
    async fn installed(
        &self,
        request: Option<&PythonRequest>,
        again: bool,
    ) -> Result<(Option<Installed>, Installed), Error> {
        let inner = &self.0;
        let mut known = inner.pythons.lock().await;
        // Someone may have removed one since.
        let chosen = |known: &Known| {
            let there: Vec<Installed> = known
                .installed
                .iter()
                .filter(|python| Path::new(&python.path).exists())
                .cloned()
                .collect();
            match choose(request, &there) {
                Some(Choice::Asked(python)) => Some((Some(python.clone()), python.clone())),
                Some(Choice::Nearest(python)) => Some((None, python.clone())),
                None => None,
            }
        };
        match chosen(&known) {
            Some(found) if found.0.is_some() && !again => return Ok(found),
            _ => {}
        }
        if again || known.looked.is_none_or(|then| then.elapsed() > LOOK_AGAIN) {
            look(&inner.places, &mut known).await;
        }
        chosen(&known).ok_or(Error::NoPython)
    }

    async fn fetch(
        &self,
        nearest: &Installed,
        specifier: &str,
        log: &dyn BuildLog,
    ) -> Result<(), String> {
        let home = &self.0.home;
        std::fs::create_dir_all(&home.root).map_err(|error| error.to_string())?;
        let reporter = Reporter::detached();
        let builder = home.builder(nearest, &reporter).await.map_err(|error| error.to_string());
        reporter.drain(log);
        match builder? {
            Builder::Uv(uv) => home.fetch_python(&uv, specifier).await,
            Builder::Pip => Err("that needs uv".into()),
        }
    }
}

fn realised(
    built: &Built,
    pin: Arc<Pin>,
    environment: &InlineEnvironment,
    recipe: &Recipe,
) -> Realised {
    let variables = variables(&built.folder.display().to_string(), environment, &recipe.variables);
    let count = built.packages.len();
    let description = if recipe.sees_host_packages {
        format!("Python {} with the node's packages", built.python)
    } else {
        format!("Python {}, {count} packages", built.python)
    };
    Realised {
        path: vec![built.folder.join("bin")],
        variables,
        description,
        shared: Some(Shared { folder: built.folder.clone(), pin }),
    }
}

#[cfg(test)]
mod tests;
