//! What attempts left whose command failed, kept for a while for those who want to look into it.
//!
//! It stays in the attempt's folder, because what is in there knows its own place; a record beside it says
//! until when, so that a new agent keeps it too. It holds nothing of the node but room on the disk, and is
//! the first to go where that is short.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use pb::{Cause, Ended, exit};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::{Attempt, Folder, News, Node, Order, contain};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::container::Kind;
use crate::disk;
use crate::exec::{self, Again, Entrance, Place};
use crate::record;
use crate::secrets::Held;
use crate::supervisor::{Exited, LAUNCH, Launch, Outcome};

/// In the attempt's folder, while it is kept.
pub(super) const RECORD: &str = "kept.json";
/// More are not kept at once: of those that no job asked for the oldest go first.
const MOST: usize = 16;
/// Of the file system's bytes, and of its files, what must be free for what no job asked for to be kept: a
/// tenth.
const ROOM: u64 = 10;
/// The longest time between two looks at the clock, which may be set.
const LOOK: Duration = Duration::from_secs(30);

/// What is kept, by epoch.
pub(crate) struct Kept {
    /// For how long, of jobs that do not say.
    usual: Duration,
    news: mpsc::UnboundedSender<News>,
    all: Mutex<BTreeMap<u64, Sandbox>>,
    changed: Notify,
    /// On their way out, and whether the daemon has the attempt's end.
    leaving: Mutex<BTreeMap<u64, bool>>,
}

struct Sandbox {
    key: pb::AttemptKey,
    rank: u32,
    folder: Folder,
    record: Record,
    entrance: Entrance,
    /// Made when somebody is first let in.
    cgroup: Option<Option<Cgroup>>,
    /// The same, of one that ran in a container.
    container: Option<Arc<Again>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Record {
    /// By this machine's clock.
    until_ms: i64,
    /// Its job asked for it.
    asked: bool,
    /// The daemon has the attempt's end: nothing else needs the folder.
    settled: bool,
}

impl Kept {
    pub(crate) fn new(usual: Duration, news: mpsc::UnboundedSender<News>) -> Self {
        Self {
            usual,
            news,
            all: Mutex::default(),
            changed: Notify::new(),
            leaving: Mutex::default(),
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Sandbox>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> MutexGuard<'_, BTreeMap<u64, bool>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, for the daemon.
    pub(crate) fn told(&self) -> pb::KeptSandboxes {
        let of = |kept: &Sandbox| pb::KeptSandbox {
            key: Some(kept.key.clone()),
            rank: kept.rank,
            until_ms: kept.record.until_ms,
        };
        pb::KeptSandboxes { sandboxes: self.all().values().map(of).collect() }
    }

    /// Takes up what an earlier agent kept. Whether nothing else is to be done about the attempt.
    pub(crate) fn found(&self, folder: &Folder, assignment: &pb::Assignment) -> bool {
        let Ok(Some(record)) = record::read::<Record>(folder.path(), RECORD) else { return false };
        let Some(key) = assignment.key.clone() else { return false };
        self.add(key, assignment.rank, folder.clone(), record);
        record.settled
    }

    fn add(&self, key: pb::AttemptKey, rank: u32, folder: Folder, record: Record) {
        let entrance = Entrance::default();
        entrance.open();
        let epoch = key.epoch;
        let sandbox =
            Sandbox { key, rank, folder, record, entrance, cgroup: None, container: None };
        self.all().insert(epoch, sandbox);
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_one();
        // The session outlives this; if it is gone, so is this process.
        let _ = self.news.send(News::Kept);
    }

    /// The daemon has the end of this attempt. Whether its folder is kept, or goes once those who are in it
    /// have left.
    pub(crate) fn settle(&self, epoch: u64) -> bool {
        if let Some(is_settled) = self.leaving().get_mut(&epoch) {
            *is_settled = true;
            return true;
        }
        let mut all = self.all();
        let Some(kept) = all.get_mut(&epoch) else { return false };
        kept.record.settled = true;
        if let Err(error) = kept.write() {
            // A new agent reports the end again, and the daemon acknowledges it again.
            tracing::warn!(epoch, %error, "cannot note that an attempt is over and kept");
        }
        true
    }

    /// The way into what is kept of an attempt.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn enter(&self, node: &Node, key: &pb::AttemptKey) -> Result<Place, String> {
        let mut all = self.all();
        let kept = all.get_mut(&key.epoch).filter(|kept| &kept.key == key);
        let kept = kept.ok_or("nothing is kept of the job any more")?;
        if kept.cgroup.is_none() {
            let made = kept.groups(node).map_err(|error| {
                format!("cannot make control groups for what is kept of the job: {error}")
            })?;
            let container = contain::of(kept.folder.path());
            let again = |container| Again::new(&kept.folder, container, made.clone(), instead());
            kept.container = container.as_ref().map(again).map(Arc::new);
            kept.cgroup = Some(made);
        }
        Ok(Place {
            folder: kept.folder.clone(),
            entrance: kept.entrance.clone(),
            kept: Some(exec::Kept {
                cgroup: kept.cgroup.clone().flatten(),
                variables: instead(),
                container: kept.container.clone(),
            }),
        })
    }

    /// Whether something of an attempt is kept.
    pub(crate) fn has(&self, epoch: u64) -> bool {
        self.all().contains_key(&epoch)
    }

    /// What goes before others: the oldest that no job asked for, or else the oldest.
    fn first_to_go(&self, asked_too: bool) -> Option<u64> {
        let all = self.all();
        let may_go = all.iter().filter(|(_, kept)| asked_too || !kept.record.asked);
        may_go.min_by_key(|(epoch, kept)| (kept.record.asked, **epoch)).map(|(epoch, _)| *epoch)
    }

    /// Those whose time is over, and how long until the next one's is.
    fn due(&self) -> (Vec<u64>, Duration) {
        let now = clock::now_ms();
        let (mut due, mut wait) = (Vec::new(), LOOK);
        for (epoch, kept) in self.all().iter() {
            match u64::try_from(kept.record.until_ms.saturating_sub(now)) {
                Ok(left) if left > 0 => wait = wait.min(Duration::from_millis(left)),
                _ => due.push(*epoch),
            }
        }
        (due, wait)
    }
}

impl Sandbox {
    fn write(&self) -> io::Result<()> {
        record::write(self.folder.path(), RECORD, &self.record)
    }

    /// Groups with limits, and no way to any GPU.
    fn groups(&self, node: &Node) -> io::Result<Option<Cgroup>> {
        let memory_mib = self.folder.assignment().map_or(0, |assignment| assignment.memory_mib);
        let limits = node.cgroups.limits_aside(memory_mib);
        node.cgroups.create(self.key.epoch, &limits, &node.devices.denied(&[]))
    }
}

/// Has the inputs of a kept attempt whole that its command could change, before anybody enters it: the agent that kept
/// it may have been another, or the machine have been off since.
///
/// # Errors
/// Why they are not, in words.
pub(crate) async fn make_whole(folder: &Folder) -> Result<(), String> {
    let folder = folder.clone();
    let merge = move || {
        let launch = record::read::<Launch>(folder.path(), LAUNCH)?;
        folder.merge(launch.and_then(|launch| launch.user()))
    };
    let merged = tokio::task::spawn_blocking(merge).await;
    let merged = merged.unwrap_or_else(|stopped| Err(io::Error::other(stopped)));
    merged.map_err(|error| format!("cannot mount the inputs of what is kept of the job: {error}"))
}

/// Variables in place of the job's: its GPUs are others' now, and its token is dead.
const INSTEAD: [(&str, &str); 5] = [
    ("CUDA_VISIBLE_DEVICES", ""),
    ("NVIDIA_VISIBLE_DEVICES", "void"),
    ("AZ_BATCHAI_GPU_COUNT", "0"),
    ("AZUREML_RUN_TOKEN", ""),
    ("MLFLOW_TRACKING_TOKEN", ""),
];

fn instead() -> BTreeMap<String, String> {
    INSTEAD.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Keeps what an attempt left of which [`would_keep`] says so. Before the daemon is told of its end. Whether it
/// is kept.
pub(super) fn keep(attempt: &Attempt) -> bool {
    let kept = &attempt.node.kept;
    let (time, asked) = (time_of(attempt), attempt.spec.keep_failed.is_some());
    // Of a job the newest is enough.
    let is_older = |(epoch, other): (&u64, &Sandbox)| {
        (other.key.job == attempt.key.job && other.key.epoch < attempt.key.epoch).then_some(*epoch)
    };
    let older: Vec<u64> = kept.all().iter().filter_map(is_older).collect();
    for epoch in older {
        let_go(&attempt.node, epoch);
    }
    while kept.all().len() >= MOST {
        // What a job asked for makes no room for what none did.
        let Some(epoch) = kept.first_to_go(asked) else { return false };
        let_go(&attempt.node, epoch);
    }
    let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let until_ms = clock::now_ms().saturating_add(time);
    let record = Record { until_ms, asked, settled: false };
    let epoch = attempt.key.epoch;
    if let Err(error) = record::write(attempt.folder.path(), RECORD, &record) {
        tracing::warn!(epoch, %error, "cannot keep what a failed attempt left");
        return false;
    }
    kept.add(attempt.key.clone(), attempt.assignment.rank, attempt.folder.clone(), record);
    true
}

/// Whether what an attempt left may turn out to be kept, once more is known of its end.
pub(super) fn may_keep(attempt: &Attempt, exited: &Exited) -> bool {
    !time_of(attempt).is_zero()
        && is_wanted(attempt)
        && exited.ended_by.is_none()
        && !matches!(exited.outcome, Outcome::Code(0) | Outcome::NotStarted { .. })
        && can_be_entered(attempt)
}

/// Whether what the attempt left is kept: its command failed, somebody may want to know why, and there is room.
pub(super) fn would_keep(attempt: &Attempt, ended: &Ended) -> bool {
    let asked = attempt.spec.keep_failed.is_some();
    !time_of(attempt).is_zero()
        && has_failed(attempt, ended)
        && can_be_entered(attempt)
        && !was_kept(attempt.folder.path())
        && (asked || has_room(attempt.folder.path()))
}

fn time_of(attempt: &Attempt) -> Duration {
    attempt.spec.keep_failed.map_or(attempt.node.kept.usual, Duration::from_secs)
}

/// Whether its command ran and failed by its own doing.
fn has_failed(attempt: &Attempt, ended: &Ended) -> bool {
    let how = ended.exit.as_ref().and_then(|exit| exit.how.as_ref());
    let failed = match (how, ended.problem.as_ref().map(pb::Problem::cause)) {
        (None, _) => false,
        (Some(how), None) => *how != exit::How::Code(0),
        (Some(_), Some(cause)) => matches!(
            cause,
            Cause::CommandNotFound
                | Cause::Process
                | Cause::Output
                | Cause::OutOfMemory
                | Cause::GpuOutOfMemory
        ),
    };
    is_wanted(attempt) && failed && ended.survivors == 0
}

fn is_wanted(attempt: &Attempt) -> bool {
    *attempt.orders.borrow() == Order::Run && attempt.folder.cancel().is_none()
}

/// Whether its view can be made anew, or its container is there and can be started again. What is below
/// docker's engine cannot be held to what holds for what is kept.
fn can_be_entered(attempt: &Attempt) -> bool {
    let launch: Option<Launch> = record::read(attempt.folder.path(), LAUNCH).ok().flatten();
    let container = || contain::of(attempt.folder.path());
    launch.is_some_and(|launch| {
        launch.inside.is_none() || container().is_some_and(|one| one.kind != Kind::Docker)
    })
}

/// Whether an earlier agent kept it, before which the daemon did not hear of its end. It has its time, or was
/// let go of.
fn was_kept(folder: &Path) -> bool {
    let read = |name: &str| record::read::<Record>(folder, name);
    [RECORD, &record::temporary(RECORD)].into_iter().any(|name| matches!(read(name), Ok(Some(_))))
}

fn has_room(folder: &Path) -> bool {
    disk::has_free(folder, ROOM)
}

/// Lets go of what is kept of an attempt: whoever is in it is put out, and once the daemon has the attempt's
/// end nothing is left of it.
pub(crate) fn let_go(node: &Arc<Node>, epoch: u64) {
    let Some(gone) = node.kept.all().remove(&epoch) else { return };
    node.kept.tell();
    node.kept.leaving().insert(epoch, gone.record.settled);
    let node = node.clone();
    tokio::spawn(async move {
        gone.entrance.close().await;
        let Sandbox { folder, cgroup, container, .. } = gone;
        let own = node.clone();
        if let Some(container) = container {
            container.end().await;
        }
        contain::remove(&folder).await;
        let removed = tokio::task::spawn_blocking(move || {
            if let Some(cgroup) = cgroup.flatten() {
                cgroup.kill();
                let _ = cgroup.remove();
            }
            // The empty folder that a container found in their place.
            let _ = Held::remove_of(&own.root, epoch);
            // Under this name it is nobody's record, and keeps the folder from being used again: who was let
            // in may have left something that runs.
            let withdrawn = record::withdraw(folder.path(), RECORD);
            // The daemon may have been told meanwhile.
            match own.kept.leaving().remove(&epoch) {
                Some(true) => folder.remove(),
                Some(false) | None => withdrawn,
            }
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(epoch, %error, "cannot remove what was kept of an attempt");
        }
    });
}

/// Makes room on a disk that is nearly full (`is_short`), or that has no room for what no job asked for.
/// Whether there will be more.
pub(crate) fn make_room(node: &Arc<Node>, is_short: bool) -> bool {
    if !node.kept.leaving().is_empty() {
        return true;
    }
    if !is_short && has_room(&node.root) {
        return false;
    }
    let Some(epoch) = node.kept.first_to_go(is_short) else { return false };
    tracing::info!(epoch, "what was kept of an attempt goes, for the room that it takes");
    let_go(node, epoch);
    true
}

/// Lets go of each when its time is over, for as long as the agent runs.
pub(crate) async fn watch(node: Arc<Node>) {
    loop {
        let (due, wait) = node.kept.due();
        for epoch in due {
            let_go(&node, epoch);
        }
        // What is new may be over sooner.
        let _ = tokio::time::timeout(wait, node.kept.changed.notified()).await;
    }
}
