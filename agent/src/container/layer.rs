//! The packages of a conda file as a layer on top of an image, installed once for both.
//!
//! They are installed *in* the image, as on Azure, and so by its own conda where it has one: what that
//! makes of the file fits the image's libraries. Where there is none, the node's uv takes its place with the
//! packages of the Python Package Index that host environments are made of, in a virtual environment of a
//! Python of the image. What the installer needs (settings with passwords in them, too) is mounted for the one
//! step, and so is neither in the layer nor in its history.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use atelier_core::environment::Recipe;
use atelier_core::spec::quote;
use serde_json::Value;

use super::build::{build, enclosed};
use super::image::{Image, Scratch, inspect};
use super::kept::Made;
use super::{Containers, Kind, Runtime, reason, run};
use crate::environment::progress;
use crate::environment::shared::Reporter;
use crate::environment::{BuildLog, Environments, Error, Installer};

/// Where the environment lies in the image.
pub(crate) const PREFIX: &str = "/azureml-envs/environment";
/// Where the installer finds what it needs, while it runs.
const MOUNT: &str = "/azureml-envs/.installer";
const SCRIPT: &str = include_str!("layer.sh");
/// Changes when the same file would come out differently.
const BUILDER: &str = "layer 1";
/// Of an image that has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Containers {
    /// Whether this runtime builds images.
    pub(crate) fn builds(&self) -> bool {
        self.runtime().kind != Kind::Apptainer
    }

    /// The image with a conda file's packages on top of it, at [`PREFIX`] and first on its `PATH`.
    ///
    /// # Errors
    /// The packages cannot be installed as asked for (the user's), or not now.
    pub(crate) async fn layer(
        &self,
        name: &str,
        base: Image,
        conda: &Value,
        environments: &Environments,
        log: &dyn BuildLog,
    ) -> Result<Image, Error> {
        let inner = &self.0;
        let mut hasher = blake3::Hasher::new();
        for part in [BUILDER, &base.digest, &conda.to_string()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let key = hasher.finalize().to_hex()[..32].to_owned();
        let held = self.pin(&key).await;
        let (below, tag) = (base.clone(), format!("localhost/atelier-layer:{key}"));
        let layer = Layer {
            runtime: inner.runtime.clone(),
            folder: inner.folder.clone(),
            name: name.to_owned(),
            tag: tag.clone(),
            key: key.clone(),
            base,
            conda: conda.clone(),
            environments: environments.clone(),
            groups: self.build_groups(&key)?,
        };
        let image = inner.images.join(&key, log, |reporter| layer.run(reporter)).await?;
        log.line(&format!("the image with the conda_file's packages is {}", image.digest));
        let made = Made { tag, description: format!("conda_file on {name}"), bytes: 0 };
        self.note(&key, &image, Some(&below), made).await;
        Ok(Image { held: Some(held), ..(*image).clone() })
    }
}

struct Layer {
    runtime: Runtime,
    folder: PathBuf,
    /// The base's, for people.
    name: String,
    key: String,
    /// The name that a whole layer gets.
    tag: String,
    base: Image,
    conda: Value,
    environments: Environments,
    groups: Option<PathBuf>,
}

impl Layer {
    async fn run(self, reporter: Reporter) -> Result<Image, Error> {
        if let Some(image) = inspect(&self.runtime, &self.tag).await {
            reporter.line("the conda_file's packages were installed in this image before");
            return Ok(image);
        }
        reporter.line(format!("installing the conda_file's packages in image '{}'", self.name));
        let installer = self.environments.installer(&reporter).await?;
        let scratch = Scratch::make(&self.folder)?;
        let context = scratch.0.join("context");
        let base = Base::of(&self.runtime, &self.base, &self.key).await?;
        let recipe = Recipe::from_conda(&self.conda);
        let recipe = recipe.as_ref().map_err(ToString::to_string);
        let dockerfile = scratch.0.join("Dockerfile");
        let written = write(&context, &installer, &self.conda, recipe)
            .and_then(|()| std::fs::write(&dockerfile, self.dockerfile(&base)));
        written.map_err(|error| Error::io("write", &context, &error))?;
        let mut command = enclosed(&self.runtime);
        if self.runtime.kind == Kind::Docker {
            // Mounts are BuildKit's.
            command.env("DOCKER_BUILDKIT", "1").env("BUILDKIT_PROGRESS", "plain");
        }
        // One layer, and nothing from before or for later.
        let more: &[&str] = match self.runtime.kind {
            Kind::Podman => &["--no-cache", "--layers=false", "--pull=never"],
            Kind::Docker | Kind::Apptainer => &["--no-cache"],
        };
        let arguments =
            build(&self.runtime, &self.tag, &dockerfile, &context, more, self.groups.as_deref());
        let finished = super::image::follow(command, &arguments, &scratch, &reporter).await;
        base.forget(&self.runtime).await;
        let finished = finished?;
        if !finished.status.success() {
            return Err(self.failed(&finished.tail));
        }
        inspect(&self.runtime, &self.tag).await.ok_or_else(|| Error::Tool {
            operation: "find the image with the conda_file's packages".to_owned(),
            reason: "it was built and is not there".to_owned(),
        })
    }

    fn dockerfile(&self, base: &Base) -> String {
        let Self { key, .. } = self;
        let base = &base.name;
        // A user that the image names may not write there; a job's container has the agent's anyway. The
        // key tells steps of different files apart for a cache.
        format!(
            "FROM {base}\nUSER 0\n\
             RUN --mount=type=bind,target={MOUNT} \
             [\"/bin/sh\", \"{MOUNT}/layer.sh\", \"{MOUNT}\", \"{PREFIX}\", \"{key}\"]\n\
             ENV PATH={PREFIX}/bin:${{PATH:-{PATH}}}\n"
        )
    }

    fn failed(&self, tail: &[String]) -> Error {
        let said = said(tail);
        let by_installer = said.iter().any(|line| progress::begins_reason(line));
        let words = if by_installer { progress::reason(&said) } else { reason(tail) };
        Error::of_layer(&self.name, words)
    }
}

/// What the layer is on, as a Dockerfile names it.
struct Base {
    name: String,
    /// Whether the name is for this build alone.
    is_own: bool,
}

impl Base {
    /// Podman starts from an id; BuildKit would take one for a name, so it gets one.
    async fn of(runtime: &Runtime, image: &Image, key: &str) -> Result<Self, Error> {
        if runtime.kind != Kind::Docker {
            return Ok(Self { name: image.reference.clone(), is_own: false });
        }
        let name = format!("localhost/atelier-base:{key}");
        let arguments = ["tag", &image.reference, &name].map(str::to_owned);
        let what = "name the image that a layer is built on";
        let finished =
            run(&runtime.program, &arguments).await.map_err(|error| super::failed(what, &error))?;
        match finished.status.success() {
            true => Ok(Self { name, is_own: true }),
            false => Err(Error::of_runtime(what, reason(&finished.tail))),
        }
    }

    async fn forget(&self, runtime: &Runtime) {
        if self.is_own {
            let arguments = ["rmi", "--no-prune", &self.name].map(str::to_owned);
            if let Err(error) = run(&runtime.program, &arguments).await {
                tracing::debug!(%error, name = self.name, "a name of an image is left");
            }
        }
    }
}

/// What the step itself said, without the runtime's words around it.
pub(super) fn said(tail: &[String]) -> Vec<String> {
    let of_runtime =
        |line: &&String| line.starts_with("Error: building at STEP") || line.starts_with("------");
    let own = tail.iter().take_while(|line| !of_runtime(line));
    own.map(|line| without_step(line).to_owned()).collect()
}

/// BuildKit puts the step and the seconds before each line: `#7 0.345 Resolved 4 packages`.
fn without_step(line: &str) -> &str {
    let rest = line.strip_prefix('#').and_then(|rest| rest.split_once(' '));
    let Some((step, rest)) = rest else { return line };
    let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '.');
    match rest.split_once(' ') {
        Some((seconds, said)) if is_number(step) && is_number(seconds) => said,
        _ => line,
    }
}

/// Writes all that the installer finds at [`MOUNT`].
pub(super) fn write(
    folder: &Path,
    installer: &Installer,
    conda: &Value,
    recipe: Result<&Recipe, String>,
) -> std::io::Result<()> {
    std::fs::create_dir(folder)?;
    // JSON is YAML.
    std::fs::write(folder.join("conda.yml"), conda.to_string())?;
    std::fs::write(folder.join("layer.sh"), SCRIPT)?;
    let mut variables = installer.variables.clone();
    for (name, file) in &installer.files {
        std::fs::copy(file, folder.join(name))?;
        variables.insert((*name).to_owned(), format!("{MOUNT}/{name}"));
    }
    if let Some(uv) = &installer.uv {
        link(&uv.canonicalize()?, &folder.join("uv"))?;
    }
    let (untranslatable, recipe) = match recipe {
        Ok(recipe) => (String::new(), recipe.clone()),
        Err(why) => (format!("the image has no conda, and {why}"), Recipe::default()),
    };
    std::fs::write(folder.join("requirements.txt"), recipe.requirements_file())?;
    let notes = recipe.notes.iter().map(|note| format!("environment: {note}\n"));
    std::fs::write(folder.join("notes"), notes.collect::<String>())?;
    let python = recipe.python.as_ref().map(|python| python.specifier()).unwrap_or_default();
    let programs: Vec<&str> = recipe.programs.iter().map(|one| one.program.as_str()).collect();
    let mut text = exports(variables, &recipe);
    for (name, value) in [
        ("untranslatable", untranslatable),
        ("wanted_python", python),
        ("wanted_programs", programs.join(" ")),
    ] {
        let _ = writeln!(text, "{name}={}", quote(&value));
    }
    std::fs::write(folder.join("variables"), text)
}

/// The installers' settings as a shell sets them.
fn exports(mut variables: BTreeMap<String, String>, recipe: &Recipe) -> String {
    let mut set = |name: &str, value: &str| {
        variables.insert(name.to_owned(), value.to_owned());
    };
    for (name, value) in [
        // As pip: the best version of all indexes, not the first index that has a name.
        ("UV_INDEX_STRATEGY", "unsafe-best-match"),
        ("UV_NO_CACHE", "1"),
        ("UV_NO_PROGRESS", "1"),
        ("UV_LINK_MODE", "copy"),
        // Beside the environment, which needs it.
        ("UV_PYTHON_INSTALL_DIR", "/azureml-envs/python"),
        ("UV_PYTHON_INSTALL_BIN", "0"),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PYTHONNOUSERSITE", "1"),
        ("NO_COLOR", "1"),
    ] {
        set(name, value);
    }
    if recipe.prerelease {
        set("UV_PRERELEASE", "allow");
        set("PIP_PRE", "1");
    }
    if !recipe.insecure_hosts.is_empty() {
        let hosts = recipe.insecure_hosts.join(" ");
        set("UV_INSECURE_HOST", &hosts);
        set("PIP_TRUSTED_HOST", &hosts);
    }
    let mut text = String::new();
    for (name, value) in variables {
        let _ = writeln!(text, "export {name}={}", quote(&value));
    }
    text
}

/// Another name of the file where that can be had, else a copy.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop))
}
