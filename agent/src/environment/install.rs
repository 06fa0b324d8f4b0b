//! The steps by which packages get into an environment.
//!
//! Where building can be kept apart, what is installed is found first, in a step that may run code of packages
//! (the metadata of some comes only by that); what need not be built is then fetched by steps that run none,
//! and kept for other builds; and what is left is built in the end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use atelier_core::environment::{Installed, Recipe};

use super::confine::{Confined, Role};
use super::exec::{self, Finished, Silent, Watch};
use super::progress::{Progress, reason, scrub};
use super::shared::Reporter;
use super::uv::{Builder, Home};
use super::{Error, Fault};

/// The packages with their versions, as a building step writes them.
const PINNED: &str = "pinned.txt";
const LIST: &str = "requirements.txt";

/// Where steps run.
pub(super) enum Place {
    /// As the agent's own programs.
    Free,
    Confined(Box<Confined>),
}

/// One environment that is being made.
pub(super) struct Installation<'a> {
    pub(super) home: &'a Home,
    pub(super) builder: &'a Builder,
    pub(super) python: &'a Installed,
    pub(super) recipe: &'a Recipe,
    pub(super) into: &'a Path,
    pub(super) place: &'a Place,
    pub(super) reporter: &'a Reporter,
}

/// What has been installed.
pub(super) struct Contents {
    /// `name==version`, sorted.
    pub(super) packages: Vec<String>,
    /// Code of packages may have run.
    pub(super) built: bool,
}

impl Installation<'_> {
    /// Makes an empty environment and installs the recipe's packages.
    pub(super) async fn run(&self) -> Result<Contents, Error> {
        let mut contents = match (self.builder, self.place) {
            (Builder::Uv(uv), Place::Confined(place)) if place.is_apart() => {
                let uv = place.program(uv).map_err(|error| Error::io("find", uv, &error))?;
                self.apart(place, &uv).await?
            }
            _ => self.at_once().await?,
        };
        if contents.packages.is_empty() && !self.recipe.requirements.is_empty() {
            contents.packages = installed_packages(self.into);
        }
        contents.packages.sort();
        Ok(contents)
    }

    /// Everything in steps that may run code of packages.
    async fn at_once(&self) -> Result<Contents, Error> {
        if let Place::Confined(place) = self.place {
            place.hand_over().await.map_err(|error| Error::io("hand over", self.into, &error))?;
        }
        let make = match self.builder {
            Builder::Uv(uv) => self.venv(uv),
            Builder::Pip => {
                let mut make = self.home.command(&self.python.path);
                make.args(["-m", "venv"]);
                self.finish_venv(make)
            }
        };
        self.step(MAKE, Role::Build, make).await?;
        if self.recipe.requirements.is_empty() {
            return Ok(Contents { packages: Vec::new(), built: true });
        }
        let list = self.list(&self.recipe.requirements_file())?;
        let mut install = match self.builder {
            Builder::Uv(uv) => self.uv_install(uv),
            Builder::Pip => {
                let mut install = self.home.command(self.inner_python());
                install.args(["-m", "pip", "install", "--progress-bar", "off"]);
                if self.recipe.prerelease {
                    install.arg("--pre");
                }
                for host in &self.recipe.insecure_hosts {
                    install.args(["--trusted-host", host]);
                }
                install
            }
        };
        install.arg("-r").arg(list);
        let packages = self.step(INSTALL, Role::Build, install).await?;
        Ok(Contents { packages, built: true })
    }

    /// Code of packages runs only where it must.
    async fn apart(&self, place: &Confined, uv: &Path) -> Result<Contents, Error> {
        self.step(MAKE, Role::Fetch, self.venv(uv)).await?;
        if self.recipe.requirements.is_empty() {
            return Ok(Contents { packages: Vec::new(), built: false });
        }
        let pinned = self.pinned(place, uv).await?;
        let (fetched, built) = match self.split(place, uv, pinned).await? {
            Split::Fetched(packages) => return Ok(Contents { packages, built: false }),
            Split::Lists { fetched, built } => (fetched, built),
        };
        let mut packages = Vec::new();
        if !fetched.is_empty() {
            // As files of the environment's own, which are not the packages' that others use.
            packages = self.fetch(uv, &fetched, &["--link-mode", "copy"]).await?;
        }
        place.hand_over().await.map_err(|error| Error::io("hand over", self.into, &error))?;
        let mut install = self.uv_install(uv);
        install.args(["--no-deps", "-r"]).arg(self.list(&self.with_options(&built))?);
        packages.extend(self.step(INSTALL, Role::Build, install).await?);
        Ok(Contents { packages, built: true })
    }

    /// All packages that are to be installed, a line each.
    async fn pinned(&self, place: &Confined, uv: &Path) -> Result<Vec<String>, Error> {
        let list = self.list(&self.recipe.requirements_file())?;
        let mut resolve = self.home.uv_command(uv);
        resolve.args(["pip", "compile", "--quiet", "--no-header", "--no-annotate"]);
        resolve.arg("--python").arg(self.inner_python());
        self.finish_uv(&mut resolve);
        resolve.arg("--output-file").arg(place.written(PINNED)).arg(list);
        self.step(INSTALL, Role::Resolve, resolve).await?;
        let text = place.read(PINNED);
        let text = text.map_err(|error| Error::io("read", &place.written(PINNED), &error))?;
        let lines = text.lines().map(str::trim);
        Ok(lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect())
    }

    /// Installs packages of which none needs to be built.
    async fn fetch(
        &self,
        uv: &Path,
        pinned: &[String],
        more: &[&str],
    ) -> Result<Vec<String>, Error> {
        let mut install = self.uv_install(uv);
        install.args(NO_CODE).args(more);
        install.arg("-r").arg(self.list(&self.with_options(pinned))?);
        self.step(INSTALL, Role::Fetch, install).await
    }

    /// Installs all at once if none needs to be built, as is mostly so. Otherwise finds those that do, by trying
    /// ever smaller lists; that is fast, since what is known of the packages is kept.
    async fn split(
        &self,
        place: &Confined,
        uv: &Path,
        pinned: Vec<String>,
    ) -> Result<Split, Error> {
        let (mut built, packages): (Vec<String>, Vec<String>) =
            pinned.into_iter().partition(|line| must_be_built(line));
        let (mut fetched, mut open) = (Vec::new(), vec![packages]);
        if built.is_empty() {
            match self.fetch(uv, &open[0], &[]).await {
                Ok(packages) => return Ok(Split::Fetched(packages)),
                Err(error) if error.fault() != Fault::User => return Err(error),
                Err(_) => open = open.pop().map(halves).unwrap_or_default(),
            }
            // It may have come so far that some are there, as further names of what others use.
            place.empty().await.map_err(|error| Error::io("empty", self.into, &error))?;
            self.step(MAKE, Role::Fetch, self.venv(uv)).await?;
        }
        while let Some(list) = open.pop() {
            let mut try_it = self.uv_install(uv);
            try_it.arg("--dry-run").args(NO_CODE);
            try_it.arg("-r").arg(self.list(&self.with_options(&list))?);
            let tried = self.execute(INSTALL, Role::Fetch, try_it, &mut Silent).await?;
            match (tried.status.success(), list.len()) {
                (true, _) => fetched.extend(list),
                (false, 0 | 1) => built.extend(list),
                (false, _) => open.extend(halves(list)),
            }
        }
        Ok(Split::Lists { fetched, built })
    }

    fn with_options(&self, packages: &[String]) -> String {
        let lines = self.recipe.options.iter().chain(packages);
        lines.map(|line| format!("{line}\n")).collect()
    }

    fn venv(&self, uv: &Path) -> Command {
        let mut make = self.home.uv_command(uv);
        make.args(["venv", "--quiet", "--relocatable", "--no-project", "--python"]);
        make.arg(&self.python.path);
        self.finish_venv(make)
    }

    fn finish_venv(&self, mut make: Command) -> Command {
        if self.recipe.sees_host_packages {
            make.arg("--system-site-packages");
        }
        make.arg(self.into);
        make
    }

    fn uv_install(&self, uv: &Path) -> Command {
        let mut install = self.home.uv_command(uv);
        install.args(["pip", "install", "--python"]).arg(self.inner_python());
        self.finish_uv(&mut install);
        install
    }

    fn finish_uv(&self, command: &mut Command) {
        // As pip: the best version of all indexes, not the first index that has a name.
        command.args(["--index-strategy", "unsafe-best-match"]);
        if self.recipe.prerelease {
            command.args(["--prerelease", "allow"]);
        }
        for host in &self.recipe.insecure_hosts {
            command.args(["--allow-insecure-host", host]);
        }
    }

    fn inner_python(&self) -> PathBuf {
        self.into.join("bin").join("python")
    }

    /// Writes a requirements file.
    fn list(&self, text: &str) -> Result<PathBuf, Error> {
        let path = self.into.join(LIST);
        let written = match self.place {
            Place::Free => fs::write(&path, text).map(|()| path.clone()),
            Place::Confined(place) => place.give(LIST, text),
        };
        written.map_err(|error| Error::io("write", &path, &error))
    }

    /// Runs a step to its good end; the packages that it says it installed.
    async fn step(
        &self,
        operation: &str,
        role: Role,
        command: Command,
    ) -> Result<Vec<String>, Error> {
        let mut watch = Progress::new(self.reporter);
        let finished = self.execute(operation, role, command, &mut watch).await?;
        if finished.status.success() {
            return Ok(std::mem::take(&mut watch.packages));
        }
        // The whole of what a compiler said does not fit into a reason.
        if finished.tail.len() > FEW {
            finished.tail.iter().for_each(|line| self.reporter.line(format!("  {}", scrub(line))));
        }
        let mut reason = reason(&finished.tail);
        if reason.is_empty() {
            reason = finished.status.to_string();
        }
        Err(Error::of_installer(operation, reason, operation == INSTALL))
    }

    async fn execute(
        &self,
        operation: &str,
        role: Role,
        command: Command,
        watch: &mut dyn Watch,
    ) -> Result<Finished, Error> {
        let finished = match self.place {
            Place::Free => exec::run(command, watch).await,
            Place::Confined(place) => place.run(&command, role, watch).await,
        };
        finished.map_err(|error| {
            let reason = error.to_string();
            match error.kind() {
                io::ErrorKind::OutOfMemory => Error::Packages { reason },
                _ => Error::Tool { operation: operation.into(), reason },
            }
        })
    }
}

/// What is to be done with the packages.
enum Split {
    /// Nothing any more; these are they.
    Fetched(Vec<String>),
    Lists {
        fetched: Vec<String>,
        built: Vec<String>,
    },
}

/// Whether a line is no package that an index may have built: an option, which may name files besides, or the
/// address of a source.
fn must_be_built(line: &str) -> bool {
    let source = line.split_once(" @ ").map(|(_, address)| address);
    let is_wheel = |address: &str| {
        let path = address.split(['#', '?', ' ']).next().unwrap_or_default();
        path.ends_with(".whl")
    };
    line.starts_with('-') || source.is_some_and(|address| !is_wheel(address))
}

/// Nothing is built, and nothing of what is installed is run.
const NO_CODE: [&str; 3] = ["--no-deps", "--no-build", "--no-compile-bytecode"];
/// As many last lines as a reason holds.
const FEW: usize = 15;

const MAKE: &str = "make a virtual environment";
const INSTALL: &str = "install the packages";

fn halves(mut list: Vec<String>) -> Vec<Vec<String>> {
    let second = list.split_off(list.len() / 2);
    [list, second].into_iter().filter(|half| !half.is_empty()).collect()
}

/// `name==version` of the packages in an environment, from the names of their metadata folders.
fn installed_packages(environment: &Path) -> Vec<String> {
    let libraries = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    libraries
        .flat_map(|lib| std::fs::read_dir(lib.path().join("site-packages")).into_iter().flatten())
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (name, version) = name.strip_suffix(".dist-info")?.rsplit_once('-')?;
            Some(format!("{name}=={version}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_options_are_told_from_packages_that_an_index_has_built() {
        for line in
            ["six==1.16.0", "six @ https://host/six-1.16-py3-none-any.whl#sha256=1", "a[b]==1"]
        {
            assert!(!must_be_built(line), "{line}");
        }
        for line in [
            "six @ git+https://host/six@0123",
            "six @ https://host/six.tar.gz",
            "six @ https://host/six.tar.gz?name=a.whl",
            "-e git+https://host/six",
            "-r /etc/shadow",
        ] {
            assert!(must_be_built(line), "{line}");
        }
    }
}
