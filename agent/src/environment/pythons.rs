//! Finds the Pythons of this machine.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use atelier_core::environment::Installed;
use serde::Deserialize;

use super::exec;

/// A Python that does not answer in this time is left out.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Prints what a Python is. The base executable leads out of a virtual environment, and
/// `sys.executable` out of a version manager's shim.
const PROBE: &str = "import json, sys
print(json.dumps({
    'version': '.'.join(map(str, sys.version_info[:3])),
    'executable': getattr(sys, '_base_executable', None) or sys.executable,
    'implementation': sys.implementation.name,
}))";

#[derive(Deserialize)]
struct Answer {
    version: String,
    executable: String,
    implementation: String,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// As the variable `PATH`.
    pub(super) path: OsString,
    /// Folders whose subfolders are Python installations (`<sub>/bin/python3`).
    pub(super) collections: Vec<PathBuf>,
    /// Only those that every user of this machine may run count, and those in this folder; `None`: all.
    pub(super) for_others_below: Option<PathBuf>,
}

/// What is known of the machine's Pythons, by the path of the candidate.
#[derive(Default, Debug)]
pub(super) struct Known {
    answers: HashMap<PathBuf, (SystemTime, Option<Installed>)>,
    /// In the order they were found, one entry for each executable.
    pub(super) installed: Vec<Installed>,
    pub(super) looked: Option<std::time::Instant>,
}

/// Asks every candidate not yet known what it is.
pub(super) async fn look(places: &Places, known: &mut Known) {
    let candidates = candidates(places);
    let mut asked = Vec::new();
    for path in &candidates.all {
        let Ok(changed) = std::fs::metadata(path).and_then(|m| m.modified()) else { continue };
        if known.answers.get(path).is_none_or(|(then, _)| *then != changed) {
            asked.push((path.clone(), changed));
        }
    }
    // A few at a time: some candidates are shell scripts that start others.
    for group in asked.chunks(8) {
        let answers = group.iter().map(|(path, _)| probe(path));
        for ((path, changed), answer) in group.iter().zip(futures::future::join_all(answers).await)
        {
            known.answers.insert(path.clone(), (*changed, answer));
        }
    }
    let mut seen = BTreeSet::new();
    known.installed.clear();
    for path in &candidates.all {
        let Some((_, Some(python))) = known.answers.get(path) else { continue };
        let shown = places.for_others_below.as_ref();
        if shown.is_some_and(|shown| {
            !Path::new(&python.path).starts_with(shown) && !others_may_run(Path::new(&python.path))
        }) {
            tracing::debug!(
                python = python.path,
                "jobs have users of their own, who may not run it"
            );
            continue;
        }
        let default = candidates.default.as_ref() == Some(path);
        let real = std::fs::canonicalize(&python.path).unwrap_or_else(|_| (&python.path).into());
        if seen.insert(real) {
            known.installed.push(Installed { default, ..python.clone() });
        } else if default
            && let Some(same) = known.installed.iter_mut().find(|same| same.path == python.path)
        {
            same.default = true;
        }
    }
    known.looked = Some(std::time::Instant::now());
}

struct Candidates {
    all: Vec<PathBuf>,
    /// What `python3` means on the path.
    default: Option<PathBuf>,
}

fn candidates(places: &Places) -> Candidates {
    let mut all = Vec::new();
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&places.path).filter(|folder| folder.is_absolute()).collect();
    let default = folders
        .iter()
        .map(|folder| folder.join("python3"))
        .chain(folders.iter().map(|folder| folder.join("python")))
        .find(|path| is_program(path));
    all.extend(default.clone());
    for collection in &places.collections {
        let mut found: Vec<PathBuf> = std::fs::read_dir(collection)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .collect();
        found.sort();
        folders.extend(found);
    }
    for folder in folders {
        let mut names: Vec<PathBuf> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_python))
            .map(|entry| entry.path())
            .collect();
        names.sort();
        all.extend(names);
    }
    let mut seen = BTreeSet::new();
    // Links to a program already listed are not asked again.
    all.retain(|path| {
        is_program(path) && seen.insert(std::fs::canonicalize(path).unwrap_or_else(|_| path.into()))
    });
    Candidates { all, default }
}

/// `python3` and `python3.11`, not `python3-config` or `python3.11-gdb.py`.
fn is_python(name: &str) -> bool {
    name.strip_prefix("python3").is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('.')
                .is_some_and(|minor| !minor.is_empty() && minor.chars().all(|c| c.is_ascii_digit()))
    })
}

/// Whether this is a file that may be executed.
pub(super) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether every user may run this program, whichever way leads to it.
pub(crate) fn others_may_run(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(real) = std::fs::canonicalize(path) else { return false };
    let may = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    };
    path.ancestors().chain(real.ancestors()).all(may)
}

/// The first program of that name on a path.
pub(crate) fn find_program(path: &OsString, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

async fn probe(path: &Path) -> Option<Installed> {
    let mut command = Command::new(path);
    command.args(["-I", "-S", "-c", PROBE]);
    for name in super::uv::NOT_INHERITED {
        command.env_remove(name);
    }
    let finished = tokio::time::timeout(PROBE_TIMEOUT, exec::run(command, &mut exec::Silent)).await;
    let Ok(Ok(finished)) = finished else { return None };
    let answer: Answer = serde_json::from_str(finished.tail.last()?).ok()?;
    if !finished.status.success() || answer.implementation != "cpython" {
        return None;
    }
    let executable = Path::new(&answer.executable);
    let path = if is_program(executable) { executable } else { path };
    Some(Installed {
        path: path.to_str()?.to_owned(),
        version: answer.version.parse().ok()?,
        default: false,
    })
}
