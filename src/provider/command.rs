//! Nodes that an admin's own programs add and remove; the contract is in `docs/admin.md`.
//!
//! Only programs in the folder `providers` of the daemon's own are run: whoever may make clusters
//! chooses among what the owner of that folder put there.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use atelier_agent::trust::{CA_FILE, OWN_CA};
use atelier_core::compute::{Cluster, CommandProvider, InstanceState, Provider, Tier};
use atelier_core::id::{ComputeName, NodeName};
use atelier_core::live::TakenAway;
use atelier_core::node::Link;
use atelier_core::resource::Cpus;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Failed, Shared, Site};
use crate::daemon::{Handle, OPENS_AT_MOST, Provided};

/// How long a program that was asked to end may take to.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes kept of what a program prints.
const PRINTED: usize = 1 << 20;
/// How long a machine's agent has to join once its program has ended.
const JOINS: Duration = Duration::from_secs(15 * 60);
/// How long the rest of what a program printed is waited for once it has ended.
const REST: Duration = Duration::from_secs(1);
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
    shared: &Shared,
    program: &CommandProvider,
    node: &NodeName,
    cluster: &Cluster,
) -> Result<(), Failed> {
    shared.site.token(node).await?;
    tries(shared, program, &program.create, Action::Create, Some(node), cluster).await.map(drop)
}

pub(super) async fn remove(
    shared: &Shared,
    program: &CommandProvider,
    node: &NodeName,
    cluster: &Cluster,
) -> Result<(), Failed> {
    tries(shared, program, &program.delete, Action::Delete, Some(node), cluster).await?;
    shared.site.clear(node).await
}

/// Runs a program until it succeeds, at most once and as often again as its cluster says.
async fn tries(
    shared: &Shared,
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
        let room = shared.room(&cluster.name, matches!(action, Action::Create)).await;
        let ran = run(&shared.site, words, action, node, cluster, number, limit).await;
        // Not held while it waits for the next try.
        drop(room);
        match ran {
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
    let server = std::fs::read_to_string(site.folder.join("endpoint"))
        .map_err(|error| Failed::of("cannot tell where the daemon listens", error))?;
    let join_token = match (action, node) {
        (Action::Create, Some(node)) => {
            let opens = limit.saturating_add(JOINS).min(OPENS_AT_MOST);
            Some(site.join_token(node, &cluster.name, opens).await?)
        }
        _ => None,
    };
    let mut command = Command::new(&path);
    command
        .args(arguments)
        .current_dir(&folder)
        .env_remove("ATELIER_TOKEN")
        .env("ATELIER_ACTION", action.word())
        .env("ATELIER_CLUSTER", cluster.name.as_str())
        .env("ATELIER_SERVER", server.trim())
        .env_remove(CA_FILE)
        .envs(server.starts_with("https:").then(|| (CA_FILE, site.folder.join(OWN_CA))))
        .env("ATELIER_SIZE", &cluster.size)
        .env("ATELIER_CPUS", Cpus(shape.cpu).to_string())
        .env("ATELIER_MEMORY_MIB", shape.memory.to_string())
        .env("ATELIER_DISK_MIB", shape.disk.to_string())
        .env("ATELIER_GPUS", shape.gpus.to_string())
        .env("ATELIER_NODE_LABELS", serde_json::json!(cluster.node_labels).to_string())
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
            .env("ATELIER_TOKEN_FILE", site.node_folder(node).join("token"))
            .envs(join_token.map(|file| ("ATELIER_JOIN_TOKEN_FILE", file)));
    }
    let what = || format!("'{}'", path.display());
    // SAFETY: between fork and exec only prctl runs, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            // A daemon that is killed leaves no program behind that would run beside the next one.
            let set = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let mut child = command.spawn().map_err(|error| Failed::of(what(), error))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    // Killed with all that it started, also if this future is dropped.
    let mut group = Group(group);
    let out = Printed::of(child.stdout.take());
    let err = Printed::of(child.stderr.take());
    let Ok(status) = timeout(limit, child.wait()).await else {
        group.end(Signal::TERM);
        if timeout(GRACE, child.wait()).await.is_err() {
            group.end(Signal::KILL);
            let _ = child.wait().await;
        }
        let seconds = limit.as_secs();
        return Err(Failed(format!("{} did not end within {seconds} s and was stopped", what())));
    };
    let (out, err) = tokio::join!(out.text(), err.text());
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
struct Printed {
    kept: Arc<Mutex<Vec<u8>>>,
    reads: JoinHandle<()>,
}

impl Printed {
    fn of(from: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
        let into = kept.clone();
        let reads = tokio::spawn(async move {
            let Some(mut from) = from else { return };
            let mut piece = [0; 8192];
            // What cannot be read is as good as not printed.
            while let Ok(count @ 1..) = from.read(&mut piece).await {
                let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
                let room = PRINTED.saturating_sub(kept.len());
                kept.extend_from_slice(&piece[..count.min(room)]);
            }
        });
        Self { kept, reads }
    }

    /// All of it, once the program has ended. What it left running may hold its output open for
    /// ever, so the rest is waited for only a moment.
    async fn text(mut self) -> String {
        let _ = timeout(REST, &mut self.reads).await;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl Drop for Printed {
    fn drop(&mut self) {
        self.reads.abort();
    }
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
    // When the daemon starts, no node has come back yet.
    let mut look = tokio::time::interval_at(tokio::time::Instant::now() + LIST, LIST);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let handle = shared.handle.borrow().clone();
        let Some(handle) = handle else { continue };
        compare(&shared, &handle).await;
    }
}

/// A node that its cluster has, as the daemon knows it.
struct Known {
    node: NodeName,
    is_ready: bool,
    leaves: bool,
    joins: bool,
}

async fn compare(shared: &Shared, handle: &Handle) {
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
    // Each by itself: a program that hangs keeps no other cluster from being looked at.
    let looks =
        clusters.into_iter().map(|(known, cluster)| compare_one(shared, handle, known, cluster));
    futures::future::join_all(looks).await;
}

async fn compare_one(shared: &Shared, handle: &Handle, known: Vec<Known>, cluster: Cluster) {
    let Provider::Command(program) = &cluster.provider else { return };
    let Some(words) = program.list.as_ref().filter(|_| !known.is_empty()) else { return };
    let limit = Duration::from_secs(program.timeout.max(1));
    let ran = run(&shared.site, words, Action::List, None, &cluster, 1, limit).await;
    let there = match ran.and_then(|text| listed(&text)) {
        Ok(there) => there,
        Err(error) => {
            // Nothing follows from what could not be read.
            tracing::warn!(cluster = %cluster.name, %error, "the nodes there are could not be listed");
            return;
        }
    };
    let strangers: Vec<&NodeName> =
        there.keys().filter(|name| known.iter().all(|node| &node.node != *name)).collect();
    if !strangers.is_empty() {
        tracing::warn!(cluster = %cluster.name, ?strangers, "the list has nodes that the cluster does not know");
    }
    for node in known.iter().filter(|node| !node.leaves) {
        // Whether it answers is looked at once more when it is decided what follows.
        let taken = match there.get(&node.node) {
            Some(State::Preempted) => Some(("its machine is preempted".to_owned(), true)),
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
