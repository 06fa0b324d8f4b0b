//! What environments are built with: uv, or pip where there is no uv.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use atelier_core::environment::Installed;

use super::exec::{self, Finished};
use super::progress::reason;
use super::pythons::{find_program, is_program};
use super::shared::Reporter;
use super::{Error, lock};

/// Variables that would make a Python or an installer look somewhere else.
pub(super) const NOT_INHERITED: [&str; 14] = [
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONSAFEPATH",
    "UV_PYTHON",
    "UV_PROJECT_ENVIRONMENT",
    "UV_SYSTEM_PYTHON",
    "UV_NO_INSTALL_PROJECT",
    "UV_TARGET",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_USER",
];

/// Machines set up for pip say there where packages come from: the same for uv, unless that has been told
/// by itself.
pub(super) fn index_of_pip<V>(variable: impl Fn(&str) -> Option<V>) -> Vec<(&'static str, V)> {
    let all = [
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    ];
    let untold = all
        .into_iter()
        .filter(|(_, uv, older)| variable(uv).is_none() && variable(older).is_none());
    untold.filter_map(|(pip, uv, _)| Some((uv, variable(pip)?))).collect()
}

/// The builder.
#[derive(Clone, Debug)]
pub(super) enum Builder {
    /// The program.
    Uv(PathBuf),
    /// Python's own `venv` and `pip`.
    Pip,
}

/// Where the builder keeps its things.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) root: PathBuf,
    /// As the variable `PATH`.
    pub(super) path: std::ffi::OsString,
    /// The program to use, if an administrator named one.
    pub(super) uv: Option<PathBuf>,
}

impl Home {
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        // Away from any folder whose own configuration would count.
        command.current_dir(&self.root);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command
            .env("PATH", &self.path)
            .env("PYTHONNOUSERSITE", "1")
            .env("PIP_NO_INPUT", "1")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            .env("NO_COLOR", "1");
        command
    }

    pub(super) fn uv_command(&self, uv: &Path) -> Command {
        let mut command = self.command(uv);
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !set("UV_CACHE_DIR") {
            // On the file system of the environments, so that files are linked, not copied.
            command.env("UV_CACHE_DIR", self.root.join(".uv-cache"));
        }
        command.envs(index_of_pip(|name| std::env::var_os(name).filter(|value| !value.is_empty())));
        command
            .env("UV_NO_PROGRESS", "1")
            .env("UV_PYTHON_INSTALL_DIR", self.pythons())
            .env("UV_PYTHON_INSTALL_BIN", "0");
        command
    }

    /// Where fetched Pythons lie.
    pub(super) fn pythons(&self) -> PathBuf {
        self.root.join(".pythons")
    }

    /// Where the uv lies that was got from the package index.
    pub(super) fn own_uv_folder(&self) -> PathBuf {
        self.root.join(".uv")
    }

    fn own_uv(&self) -> PathBuf {
        self.own_uv_folder().join("bin").join("uv")
    }

    /// The uv that is here already.
    pub(super) fn found_uv(&self) -> Result<Option<PathBuf>, Error> {
        if let Some(uv) = &self.uv {
            if is_program(uv) {
                return Ok(Some(uv.clone()));
            }
            return Err(Error::Tool {
                operation: "find uv".into(),
                reason: format!(
                    "ATELIER_UV names '{}', which is no program: correct or unset it",
                    uv.display()
                ),
            });
        }
        Ok(find_program(&self.path, "uv").or(Some(self.own_uv()).filter(|uv| is_program(uv))))
    }

    /// Finds uv, or gets it from the package index once.
    pub(super) async fn builder(
        &self,
        python: &Installed,
        reporter: &Reporter,
    ) -> Result<Builder, Error> {
        if let Some(uv) = self.found_uv()? {
            return Ok(Builder::Uv(uv));
        }
        let _lock = lock::acquire(&self.root, ".uv", || {
            reporter.line("waiting for another process that installs uv");
        })
        .await?;
        if is_program(&self.own_uv()) {
            return Ok(Builder::Uv(self.own_uv()));
        }
        reporter.line("installing uv, once for this node");
        match self.install_uv(python).await {
            Ok(()) => Ok(Builder::Uv(self.own_uv())),
            Err(reason) => {
                reporter.line(format!(
                    "uv cannot be installed ({reason}): using Python's own venv and pip, which \
                     are slower"
                ));
                Ok(Builder::Pip)
            }
        }
    }

    /// Installs uv below the root, whole or not at all.
    async fn install_uv(&self, python: &Installed) -> Result<(), String> {
        let temporary = self.root.join(".uv-installing");
        let _ = std::fs::remove_dir_all(&temporary);
        let run = async |command: Command| -> Result<Finished, String> {
            let finished =
                exec::run(command, &mut exec::Silent).await.map_err(|error| error.to_string())?;
            if finished.status.success() { Ok(finished) } else { Err(reason(&finished.tail)) }
        };
        let mut direct = self.command(&python.path);
        direct.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&temporary).arg("uv");
        if run(direct).await.is_err() {
            // A Python without pip may still make an environment that has it.
            let _ = std::fs::remove_dir_all(&temporary);
            let mut venv = self.command(&python.path);
            venv.args(["-m", "venv"]).arg(&temporary);
            run(venv).await?;
            let mut install = self.command(temporary.join("bin").join("python"));
            install.args(["-m", "pip", "install", "--quiet", "uv"]);
            run(install).await?;
        }
        if !is_program(&temporary.join("bin").join("uv")) {
            return Err("the package brought no program".into());
        }
        let home = self.own_uv_folder();
        let _ = std::fs::remove_dir_all(&home);
        std::fs::rename(&temporary, &home).map_err(|error| error.to_string())
    }

    /// Fetches a Python. The reason in words where that fails.
    pub(super) async fn fetch_python(&self, uv: &Path, specifier: &str) -> Result<(), String> {
        let mut command = self.uv_command(uv);
        command.args(["python", "install", specifier]).env("UV_HTTP_RETRIES", "1");
        let finished =
            exec::run(command, &mut exec::Silent).await.map_err(|error| error.to_string())?;
        if finished.status.success() {
            return Ok(());
        }
        let reason = reason(&finished.tail);
        // The first causes name the download; the last one says what is wrong.
        let short: Vec<&str> = reason.split(": ").collect();
        Err(match short.as_slice() {
            [first, .., last] => format!("{first}: {last}"),
            _ => reason,
        })
    }
}
