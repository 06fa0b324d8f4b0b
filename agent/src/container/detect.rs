//! Which runtime works on this machine, seen by using it: a program that is installed may have no engine,
//! or not be allowed what a container needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Kind, Runtime, Wish, command, reason, run};
use crate::environment::find_program;

/// How long a runtime may take to answer; the first use of podman makes its folders.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long [`detect`] takes at most: as if none of the three answered.
pub(crate) const AT_MOST: Duration = Duration::from_secs(3 * PATIENCE.as_secs());

/// Finds the runtime, or tells why there is none.
pub(crate) async fn detect(wish: Wish, root: &Path) -> Result<Runtime, String> {
    let kinds: &[Kind] = match wish {
        Wish::None => return Err("the agent runs with --containers none".to_owned()),
        Wish::Auto => &[Kind::Podman, Kind::Docker, Kind::Apptainer],
        Wish::Podman => &[Kind::Podman],
        Wish::Docker => &[Kind::Docker],
        Wish::Apptainer => &[Kind::Apptainer],
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut problems = Vec::new();
    for &kind in kinds {
        let name = kind.program();
        let Some(program) = find_program(&path, name) else {
            if wish != Wish::Auto {
                problems.push(format!("{name} is not installed"));
            }
            continue;
        };
        let tried = async {
            match kind {
                Kind::Podman => podman(program, root).await,
                Kind::Docker => docker(program).await,
                Kind::Apptainer => apptainer(program).await,
            }
        };
        match tokio::time::timeout(PATIENCE, tried).await {
            Ok(Ok(runtime)) => return Ok(runtime),
            Ok(Err(problem)) => problems.push(format!("{name}: {problem}")),
            Err(_) => {
                problems.push(format!("{name} did not answer within {} s", PATIENCE.as_secs()))
            }
        }
    }
    if problems.is_empty() {
        return Err("this node has no container runtime".to_owned());
    }
    Err(problems.join("; "))
}

/// The lines that a runtime answers.
pub(super) async fn ask(program: &Path, arguments: &[&str]) -> Result<Vec<String>, String> {
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let finished = run(program, &arguments).await.map_err(|error| error.to_string())?;
    if finished.status.success() { Ok(finished.tail) } else { Err(reason(&finished.tail)) }
}

async fn podman(program: PathBuf, root: &Path) -> Result<Runtime, String> {
    let format = "--format=atelier|{{.Version.Version}}|{{.Host.Security.Rootless}}|\
                  {{.Host.OCIRuntime.Name}}|{{.Store.GraphRoot}}|{{.Store.RunRoot}}";
    let said = ask(&program, &["info", format]).await?;
    // Warnings may come before and after.
    let line = said.iter().find_map(|line| line.strip_prefix("atelier|")).unwrap_or_default();
    let fields: Vec<&str> = line.split('|').collect();
    let &[version, rootless, oci, graph, running] = fields.as_slice() else {
        return Err(format!("its answer is odd: {}", said.join(" ")));
    };
    if oci != "crun" {
        return Err(format!(
            "it runs containers by {oci}, which cannot keep one in its job's control groups; install crun"
        ));
    }
    let runtime = Runtime {
        kind: Kind::Podman,
        program,
        version: version.to_owned(),
        rootless: rootless == "true",
        folders: vec![graph.into(), running.into()],
    };
    try_it(&runtime, root).await?;
    Ok(runtime)
}

/// Starts a container of an empty folder. All that the runtime needs of the machine is done before it finds
/// that there is no program to run.
async fn try_it(runtime: &Runtime, root: &Path) -> Result<(), String> {
    let empty = root.join("probe-image");
    std::fs::create_dir_all(&empty).map_err(|error| format!("cannot try it: {error}"))?;
    let mut arguments = vec!["run".to_owned(), "--rm".to_owned()];
    arguments.extend(command::kept_apart(runtime));
    arguments.extend(command::ulimits(&super::ulimits()));
    arguments.extend(["--rootfs".to_owned(), empty.display().to_string(), "/none".to_owned()]);
    let finished = run(&runtime.program, &arguments).await.map_err(|error| error.to_string())?;
    // Of the shell's codes: no such program.
    if finished.status.code() == Some(127) {
        return Ok(());
    }
    Err(format!("cannot start a container: {}", reason(&finished.tail)))
}

async fn docker(program: PathBuf) -> Result<Runtime, String> {
    // Asked of the engine, not of the program.
    let format = "--format=atelier|{{.Server.Version}}|{{.Server.Os}}";
    // What it prints before it finds that there is no engine comes before the reason.
    let bare = |problem: String| problem.trim_start_matches("atelier|").trim_start().to_owned();
    let said = ask(&program, &["version", format]).await.map_err(bare)?;
    let line = said.iter().find_map(|line| line.strip_prefix("atelier|")).unwrap_or_default();
    let (version, system) = line.split_once('|').unwrap_or_default();
    if version.is_empty() || system != "linux" {
        return Err(format!("its engine's answer is odd: {}", said.join(" ")));
    }
    let version = version.to_owned();
    Ok(Runtime { kind: Kind::Docker, program, version, rootless: false, folders: Vec::new() })
}

async fn apptainer(program: PathBuf) -> Result<Runtime, String> {
    let said = ask(&program, &["version"]).await?;
    let version = said.last().cloned().unwrap_or_default();
    Ok(Runtime { kind: Kind::Apptainer, program, version, rootless: true, folders: Vec::new() })
}
