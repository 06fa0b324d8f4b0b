//! Nodes that an admin's own programs add and remove; the contract is in `docs/admin.md`.
//!
//! Only programs in the folder `providers` of the daemon's own are run: whoever may make clusters
//! chooses among what the owner of that folder put there.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Weak;
use std::time::Duration;

use atelier_core::compute::{Cluster, CommandProvider, InstanceState, Provider, Tier};
use atelier_core::id::{ComputeName, NodeName};
use atelier_core::live::TakenAway;
use atelier_core::node::Link;
use atelier_core::resource::Cpus;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{Failed, Shared, Site};
use crate::daemon::Provided;

/// How long a program that was asked to end may take to.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes kept of what a program prints.
const PRINTED: u64 = 1 << 20;
/// Characters of what it said that are shown.
const SHOWN: usize = 400;
/// The first pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often the nodes there are are asked for.
const LIST: Duration = Duration::from_secs(30);

/// What a program is run for.
#[derive(Clone, Copy)]
enum Action {
    Create,
    Delete,
    List,
}

impl Action {
    const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

pub(super) async fn add(
    site: &Site,
    program: &CommandProvider,
    node: &NodeName,
    cluster: &Cluster,
) -> Result<(), Failed> {
    site.token(node).await?;
    tries(site, program, &program.create, Action::Create, Some(node), cluster).await.map(drop)
}

pub(super) async fn remove(
    site: &Site,
    program: &CommandProvider,
    node: &NodeName,
    cluster: &Cluster,
) -> Result<(), Failed> {
    tries(site, program, &program.delete, Action::Delete, Some(node), cluster).await?;
    site.clear(node).await
}

/// Runs a program until it succeeds, at most once and as often again as its cluster says.
async fn tries(
    site: &Site,
    program: &CommandProvider,
    words: &[String],
    action: Action,
    node: Option<&NodeName>,
    cluster: &Cluster,
) -> Result<String, Failed> {
    let limit = Duration::from_secs(program.timeout.max(1));
    let mut pause = PAUSE;
    let mut number = 1;
    loop {
        match run(site, words, action, node, cluster, number, limit).await {
            Err(error) if number <= program.retries => {
                tracing::info!(cluster = %cluster.name, number, %error, "a provider's program failed; it is run again");
                sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
                number += 1;
            }
            other => return other,
        }
    }
}

async fn run(
    site: &Site,
    words: &[String],
    action: Action,
    node: Option<&NodeName>,
    cluster: &Cluster,
    number: u32,
    limit: Duration,
) -> Result<String, Failed> {
    let folder = site.folder.join("providers");
    let [program, arguments @ ..] = words else {
        return Err(Failed(format!("the {} command is empty", action.word())));
    };
    let path = beneath(&folder, program)?;
    let shape = &cluster.node;
    let server = std::fs::read_to_string(site.folder.join("endpoint")).unwrap_or_default();
    let mut command = Command::new(&path);
    command
        .args(arguments)
        .current_dir(&folder)
        .env_remove("ATELIER_TOKEN")
        .env("ATELIER_ACTION", action.word())
        .env("ATELIER_CLUSTER", cluster.name.as_str())
        .env("ATELIER_SERVER", server.trim())
        .env("ATELIER_SIZE", &cluster.size)
        .env("ATELIER_CPUS", Cpus(shape.cpu).to_string())
        .env("ATELIER_MEMORY_MIB", shape.memory.to_string())
        .env("ATELIER_DISK_MIB", shape.disk.to_string())
        .env("ATELIER_GPUS", shape.gpus.to_string())
        .env("ATELIER_GPU_MODEL", shape.gpu_model.as_deref().unwrap_or_default())
        .env(
            "ATELIER_TIER",
            match cluster.tier {
                Tier::Dedicated => "dedicated",
                Tier::LowPriority => "low_priority",
            },
        )
        .env("ATELIER_TRY", number.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(node) = node {
        command
            .env("ATELIER_NODE", node.as_str())
            .env("ATELIER_TOKEN_FILE", site.node_folder(node).join("token"));
    }
    let what = || format!("'{}'", path.display());
    let mut child = command.spawn().map_err(|error| Failed::of(what(), error))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    // Killed with all that it started, also if this future is dropped.
    let mut group = Group(group);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let whole = async {
        let (out, err, status) = tokio::join!(printed(out), printed(err), child.wait());
        (out, err, status)
    };
    let Ok((out, err, status)) = timeout(limit, whole).await else {
        group.end(Signal::TERM);
        if timeout(GRACE, child.wait()).await.is_err() {
            group.end(Signal::KILL);
            let _ = child.wait().await;
        }
        let seconds = limit.as_secs();
        return Err(Failed(format!("{} did not end within {seconds} s and was stopped", what())));
    };
    let status: ExitStatus = status.map_err(|error| Failed::of(what(), error))?;
    if status.success() {
        group.0 = None;
        return Ok(out);
    }
    let said = err.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    let said: String = said.trim().chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    Err(Failed(format!("{} failed with {status}; it said: {said}", what())))
}

/// The file that a command's first word names, which lies in the folder.
fn beneath(folder: &Path, program: &str) -> Result<PathBuf, Failed> {
    let inside = Path::new(program);
    let plain =
        inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(Failed(format!(
            "'{program}' is not run: write the name of a program in {}",
            folder.display()
        )));
    }
    let path: PathBuf = folder.join(inside).components().collect();
    if path.is_file() {
        return Ok(path);
    }
    Err(Failed(format!("there is no program {}; put it there", path.display())))
}

/// A program and what it started. Killed when dropped, unless it has ended well: a program may leave
/// something running on purpose.
struct Group(Option<Pid>);

impl Group {
    fn end(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

/// What a program prints, as far as it is kept; the rest is read and dropped.
async fn printed(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept = Vec::new();
    // What cannot be read is as good as not printed.
    let _ = (&mut from).take(PRINTED).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// A line of what a `list` program prints, if it is JSON.
#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    #[default]
    Running,
    Preempted,
}

/// Reads what a `list` program prints: a name a line, or JSON with `name` and `state`.
fn listed(text: &str) -> Result<HashMap<NodeName, State>, Failed> {
    let garbage = |line: &str| {
        let line: String = line.chars().filter(|c| !c.is_control()).take(80).collect();
        Failed(format!(
            "the list program printed '{line}', which is neither a node's name nor JSON"
        ))
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, state) = if line.starts_with('{') {
                let Listed { name, state } =
                    serde_json::from_str(line).map_err(|_| garbage(line))?;
                (name, state)
            } else {
                (line.to_owned(), State::Running)
            };
            let name = NodeName::new(&name).map_err(|_| garbage(line))?;
            Ok((name, state))
        })
        .collect()
}

/// Asks from time to time which nodes there are, of clusters that can be asked.
pub(super) async fn watch(shared: Weak<Shared>) {
    let mut look = tokio::time::interval(LIST);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        compare(&shared).await;
    }
}

/// A node that its cluster has, as the daemon knows it.
struct Known {
    node: NodeName,
    is_ready: bool,
    leaves: bool,
    joins: bool,
}

async fn compare(shared: &Shared) {
    let Some(handle) = shared.handle.get() else { return };
    let clusters = handle
        .look(|live, _| {
            let asked = |cluster: &Cluster| match &cluster.provider {
                Provider::Command(program) => program.list.is_some(),
                Provider::Local | Provider::Joined => false,
            };
            let known = |name: &ComputeName| {
                let theirs = live.instances().filter(move |known| &known.compute == name);
                let links: HashMap<&NodeName, bool> = live
                    .nodes()
                    .map(|node| (&node.record.name, node.link == Link::Ready))
                    .collect();
                theirs
                    .map(|known| Known {
                        node: known.node.clone(),
                        is_ready: links.get(&known.node).copied().unwrap_or_default(),
                        leaves: matches!(known.state, InstanceState::Leaving { .. }),
                        joins: known.state.is_coming().is_some(),
                    })
                    .collect::<Vec<Known>>()
            };
            live.computes()
                .filter_map(|compute| compute.cluster.clone().filter(asked))
                .map(|cluster| (known(&cluster.name), cluster))
                .collect::<Vec<_>>()
        })
        .await
        .unwrap_or_default();
    for (known, cluster) in clusters {
        let Provider::Command(program) = &cluster.provider else { continue };
        let Some(words) = program.list.as_ref().filter(|_| !known.is_empty()) else { continue };
        let limit = Duration::from_secs(program.timeout.max(1));
        let ran = run(&shared.site, words, Action::List, None, &cluster, 1, limit).await;
        let there = match ran.and_then(|text| listed(&text)) {
            Ok(there) => there,
            Err(error) => {
                // Nothing follows from what could not be read.
                tracing::warn!(cluster = %cluster.name, %error, "the nodes there are could not be listed");
                continue;
            }
        };
        for node in known.iter().filter(|node| !node.leaves) {
            let taken = match there.get(&node.node) {
                Some(State::Preempted) => Some(("its machine was preempted".to_owned(), true)),
                // One that answers is there, and one that is being made may not be listed yet.
                None if !node.is_ready && !node.joins => {
                    Some(("its machine is gone".to_owned(), cluster.tier == Tier::LowPriority))
                }
                _ => None,
            };
            if let Some((reason, preempted)) = taken {
                let node = node.node.clone();
                let taken = TakenAway { node, reason, preempted };
                let _ = handle.provided(Provided::TakenAway(taken)).await;
            }
        }
    }
}
