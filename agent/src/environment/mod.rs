//! What a job's command runs in: the node's own programs, or a private Python environment built
//! from its conda document, kept by what is in it and shared by the jobs that ask for the same. Images are
//! [`crate::container`]'s, where the node has a container runtime.
//!
//! **Invariant:** an environment's folder is there whole or not at all. It is built beside its
//! place, marked complete and moved; a killed build leaves only what the next one removes.

mod base;
mod build;
mod confine;
mod error;
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
use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier_core::environment::{Base, Recipe};
use atelier_core::spec::InlineEnvironment;
use tokio::sync::Mutex;

use build::Built;
pub(crate) use confine::Confinement;
pub use error::{Error, Fault};
pub(crate) use installer::{Installer, variables};
pub(crate) use keep::Kept;
use keep::{Keep, Pin};
use pythons::{Known, Places};
pub(crate) use pythons::{find_program, others_may_run};
use shared::Builds;
use uv::Home;

/// Changes when the same recipe would come out differently.
const BUILDER: &str = "venv 1";
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
