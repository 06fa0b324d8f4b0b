//! Where the code comes from, for the job's properties.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// A job does not wait longer for git; what it has not said by then is left out.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The git properties of the code folder, under the names that Azure ML and MLflow give them. Empty
/// if the folder is in no repository or there is no git.
pub async fn properties(folder: &Path) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    if !is_in_repository(folder) {
        return properties;
    }
    let (status, remote) = tokio::join!(
        git(folder, &["status", "--porcelain=v2", "--branch", "--untracked-files=normal", "."]),
        git(folder, &["config", "--get", "remote.origin.url"]),
    );
    let mut set = |names: &[&str], value: &str| {
        properties.extend(names.iter().map(|&name| (name.to_owned(), value.to_owned())));
    };
    if let Some(status) = status {
        let said = Said::read(&status);
        if let Some(branch) = said.branch {
            set(&["azureml.git.branch", "mlflow.source.git.branch"], branch);
        }
        if let Some(commit) = said.commit {
            set(&["azureml.git.commit", "mlflow.source.git.commit"], commit);
        }
        // As Python writes it: that is what reads it in Azure's tools.
        set(&["azureml.git.dirty"], if said.dirty { "True" } else { "False" });
    }
    if let Some(url) = remote.as_deref().map(str::trim).filter(|url| !url.is_empty()) {
        let url = without_credentials(url);
        set(&["azureml.git.repository_uri", "mlflow.source.git.repoURL"], &url);
    }
    properties
}

/// Whether the folder or one above it has a `.git`; starting git for nothing takes milliseconds.
fn is_in_repository(folder: &Path) -> bool {
    folder
        .canonicalize()
        .is_ok_and(|folder| folder.ancestors().any(|above| above.join(".git").exists()))
}

/// The output of one git command, if it succeeds in time.
async fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        // A repository's own settings must not start programs here.
        .args(["-c", "core.fsmonitor=false", "-c", "core.quotePath=true"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `git status --porcelain=v2 --branch` says.
struct Said<'a> {
    branch: Option<&'a str>,
    commit: Option<&'a str>,
    dirty: bool,
}

impl<'a> Said<'a> {
    fn read(status: &'a str) -> Self {
        let header = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            // `(detached)` and `(initial)` are no names.
            (!value.starts_with('(')).then_some(value)
        };
        Self {
            branch: header("# branch.head "),
            commit: header("# branch.oid "),
            dirty: status.lines().any(|line| !line.starts_with('#')),
        }
    }
}

/// A URL without the user and password that some write into it. `git@host:path` has no secret.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((user, _)) if scheme.starts_with("http") || user.contains(':') => {
            format!("{scheme}://{}", &rest[user.len() + 1..])
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;
