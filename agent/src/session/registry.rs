//! Every attempt that this node knows, live or ended and not yet acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atelier_core::spec::CommandJob;
use atelier_proto::agent::v1 as pb;
use pb::attempt_report::Phase;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::attempt::{
    Attempt, Decision, Folder, Loss, News, Node, Order, decide, end_forgotten, look, make_problem,
    problem_of, remove_container, run,
};
use crate::clock;
use crate::exec::{Entrance, Place};
use crate::record;
use crate::secrets;

/// Beside `attempts/`: the boot in which their records were written. On the disk before any of them is.
const BOOT: &str = "boot.json";

/// Beside `attempts/`: folders of attempts that cannot be read.
const UNREADABLE: &str = "unreadable";

/// The attempts, by epoch, which no two share.
#[derive(Default)]
pub(crate) struct Registry {
    attempts: BTreeMap<u64, Entry>,
}

struct Entry {
    key: pb::AttemptKey,
    folder: Folder,
    /// What is known of it now; what a Hello tells.
    latest: pb::AttemptReport,
    orders: watch::Sender<Order>,
    log_complete: watch::Receiver<bool>,
    entrance: Entrance,
    task: Option<JoinHandle<()>>,
    /// Found on disk and not yet taken up: waits for the first Welcome.
    waiting: Option<(Attempt, Decision)>,
    /// When the end was last reported.
    ended_at: Option<Instant>,
    synced: bool,
}

impl Registry {
    /// Takes stock of what earlier agents left on disk.
    pub(crate) fn load(node: &Arc<Node>) -> io::Result<Self> {
        let mut registry = Self::default();
        let root = node.attempts.parent().unwrap_or(&node.attempts);
        let boot: io::Result<Option<String>> = record::read(root, BOOT);
        let same_boot = matches!(&boot, Ok(Some(boot)) if *boot == node.boot_id);
        // What cannot be read errs on the safe side.
        let rebooted = !same_boot && !matches!(boot, Ok(None));
        if let Err(error) = Folder::remove_left(&node.attempts) {
            tracing::warn!(%error, "cannot remove what is left of attempts");
        }
        for found in fs::read_dir(&node.attempts)? {
            let name = found?.file_name();
            let Some(epoch) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else {
                continue;
            };
            let folder = Folder::new(&node.attempts, epoch);
            let is_whole = |assignment: &pb::Assignment| {
                assignment.key.as_ref().is_some_and(|key| key.epoch == epoch)
            };
            let assignment = match folder.read_assignment() {
                Ok(assignment) => assignment.filter(is_whole),
                Err(error) => {
                    set_aside(root, &folder, epoch, &error);
                    continue;
                }
            };
            match assignment {
                Some(assignment) if node.kept.found(&folder, &assignment) => {}
                Some(assignment) => registry.found(node, folder, assignment, rebooted),
                // Killed while it was written: nothing was ever said or done about it.
                None => {
                    if let Err(error) = folder.remove() {
                        tracing::warn!(epoch, %error, "cannot remove what is left of an attempt");
                    }
                }
            }
        }
        end_forgotten(&node.attempts, |folder| {
            registry.attempts.values().any(|entry| entry.folder.path() == folder)
        });
        secrets::sweep(&node.root, |epoch| {
            registry.attempts.get(&epoch).is_some_and(|entry| entry.waiting.is_some())
        });
        // On a full disk the older one stays, which errs on the safe side.
        if !same_boot && let Err(error) = note_boot(root, &node.boot_id) {
            tracing::warn!(%error, "cannot note which boot this is");
        }
        Ok(registry)
    }

    fn found(
        &mut self,
        node: &Arc<Node>,
        folder: Folder,
        assignment: pb::Assignment,
        rebooted: bool,
    ) {
        let decision = match look(&folder, &node.boot_id).map(decide) {
            // One that cannot be read is no reason to leave the others alone.
            Err(error) => Decision::Lost(Loss::Unreadable(error.to_string())),
            // It may well have run: that it did had not reached the disk. Running it again as the same
            // attempt would give a job that takes the machine down no end of tries.
            Ok(Decision::Prepare) if rebooted => Decision::Lost(Loss::Reboot),
            Ok(decision) => decision,
        };
        tracing::info!(folder = %folder.path().display(), decision = decision.name(), "found an attempt");
        if let Decision::Report(report) = decision {
            self.keep_ended(folder, report);
            return;
        }
        let phase = match &decision {
            Decision::Attach(started) => {
                Phase::Running(pb::Running { at_ms: started.started_at_ms, idle_since_ms: None })
            }
            Decision::Finalize(_) | Decision::Lost(_) => {
                Phase::Finalizing(pb::Finalizing { at_ms: clock::now_ms(), exit: None })
            }
            Decision::Prepare | Decision::Report(_) => Phase::Preparing(pb::Preparing {
                at_ms: clock::now_ms(),
                step: "waiting for the daemon".to_owned(),
            }),
        };
        let Some(key) = assignment.key.clone() else { return };
        node.devices.hold(&assignment.gpu_indices);
        match attempt(node, folder.clone(), &key, assignment) {
            Ok((attempt, orders)) => self.enter(key, folder, phase, orders, attempt, decision),
            Err(report) => self.keep_ended(folder, *report),
        }
    }

    fn enter(
        &mut self,
        key: pb::AttemptKey,
        folder: Folder,
        phase: Phase,
        orders: watch::Sender<Order>,
        attempt: Attempt,
        decision: Decision,
    ) {
        let entry = Entry {
            latest: pb::AttemptReport { key: Some(key.clone()), phase: Some(phase) },
            folder,
            orders,
            log_complete: attempt.log_complete.subscribe(),
            entrance: attempt.entrance.clone(),
            task: None,
            waiting: Some((attempt, decision)),
            ended_at: None,
            synced: false,
            key,
        };
        self.attempts.insert(entry.key.epoch, entry);
    }

    fn keep_ended(&mut self, folder: Folder, report: pb::AttemptReport) {
        let Some(key) = report.key.clone() else { return };
        let entry = Entry {
            folder,
            latest: report,
            orders: watch::Sender::default(),
            log_complete: watch::Sender::new(true).subscribe(),
            entrance: Entrance::ended(),
            task: None,
            waiting: None,
            ended_at: Some(Instant::now()),
            synced: false,
            key,
        };
        self.attempts.insert(entry.key.epoch, entry);
    }

    /// Takes up what was found on disk, now that there is a daemon.
    pub(crate) fn resume(&mut self, node: &Arc<Node>) {
        for entry in self.attempts.values_mut() {
            if let Some((attempt, decision)) = entry.waiting.take() {
                debug_assert!(Arc::ptr_eq(&attempt.node, node));
                entry.task = Some(tokio::task::spawn_local(run(attempt, decision)));
            }
        }
    }

    /// Whether an attempt of this epoch is known.
    pub(crate) fn knows(&self, epoch: u64) -> bool {
        self.attempts.contains_key(&epoch)
    }

    /// Whether there is one of which the daemon has to hear.
    pub(crate) fn has_attempts(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// What a Hello tells.
    pub(crate) fn reports(&self) -> Vec<pb::AttemptReport> {
        self.attempts.values().map(|entry| entry.latest.clone()).collect()
    }

    /// Remembers what an attempt says; gives what the daemon is to be told.
    pub(crate) fn note(&mut self, news: News) -> Option<pb::AttemptReport> {
        match news {
            News::Report(report) => {
                let entry = self.attempts.get_mut(&report.key.as_ref()?.epoch)?;
                if matches!(report.phase, Some(Phase::Ended(_))) {
                    entry.ended_at = Some(Instant::now());
                    entry.task = None;
                }
                entry.latest = report.as_ref().clone();
                Some(*report)
            }
            News::Gone(epoch) => {
                self.attempts.remove(&epoch);
                None
            }
            News::Kept | News::Held(_) => None,
        }
    }

    /// Ends that the daemon was told `age` ago and has not acknowledged; they count as told again.
    pub(crate) fn unacknowledged(&mut self, age: Duration) -> Vec<pb::AttemptReport> {
        let now = Instant::now();
        let mut repeat = Vec::new();
        for entry in self.attempts.values_mut() {
            let Some(ended_at) = entry.ended_at else { continue };
            if !entry.synced {
                // The daemon is slow to take it, so it may have to outlast a power cut here.
                entry.synced = true;
                let folder = entry.folder.clone();
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = folder.settle() {
                        tracing::debug!(%error, "cannot sync an attempt's folder");
                    }
                });
            }
            if now.duration_since(ended_at) >= age {
                entry.ended_at = Some(now);
                repeat.push(entry.latest.clone());
            }
        }
        repeat
    }

    /// Starts an attempt. One that is known already is told about again; one that an attempt of a
    /// higher epoch has overtaken is not started.
    pub(crate) fn assign(
        &mut self,
        node: &Arc<Node>,
        assignment: pb::Assignment,
    ) -> Option<pb::AttemptReport> {
        let key = assignment.key.clone()?;
        if let Some(entry) = self.attempts.get(&key.epoch) {
            return Some(entry.latest.clone());
        }
        if self
            .attempts
            .values()
            .any(|entry| entry.key.job == key.job && entry.key.epoch > key.epoch)
        {
            tracing::warn!(job = key.job, epoch = key.epoch, "a stale assignment is ignored");
            return None;
        }
        let mut before = Vec::new();
        for entry in self.attempts.values_mut() {
            if entry.key.job == key.job && entry.ended_at.is_none() {
                tracing::warn!(job = key.job, epoch = entry.key.epoch, "overtaken, ending it");
                entry.orders.send_replace(Order::Discard);
                before.extend(entry.task.take());
            }
        }
        let folder = Folder::new(&node.attempts, key.epoch);
        if let Err(error) = folder.create(&assignment, &node.spares) {
            let what = "the node cannot take the job";
            let report = failed(&key, problem_of(pb::Cause::Platform, what, &error));
            self.keep_ended(folder, report.clone());
            return Some(report);
        }
        match attempt(node, folder.clone(), &key, assignment) {
            Ok((attempt, orders)) => {
                let phase = Phase::Preparing(pb::Preparing {
                    at_ms: clock::now_ms(),
                    step: "received".to_owned(),
                });
                let epoch = key.epoch;
                self.enter(key, folder, phase, orders, attempt, Decision::Prepare);
                let entry = self.attempts.get_mut(&epoch)?;
                let (attempt, decision) = entry.waiting.take()?;
                entry.task = Some(tokio::task::spawn_local(async move {
                    // Never two of one job at once.
                    for task in before {
                        let _ = task.await;
                    }
                    run(attempt, decision).await;
                }));
                None
            }
            Err(report) => {
                self.keep_ended(folder, report.as_ref().clone());
                Some(*report)
            }
        }
    }

    /// Asks an attempt to end.
    pub(crate) fn cancel(&mut self, cancel: pb::CancelAttempt) {
        let Some(entry) = cancel.key.and_then(|key| self.attempts.get(&key.epoch)) else { return };
        entry.orders.send_if_modified(|order| {
            let first = *order == Order::Run;
            if first {
                *order = Order::Cancel(cancel.reason);
            }
            first
        });
    }

    /// The daemon has the end of this attempt: forgets it.
    pub(crate) fn acknowledge(&mut self, node: &Arc<Node>, key: &pb::AttemptKey) {
        match self.attempts.get(&key.epoch) {
            Some(entry) if entry.ended_at.is_some() => self.forget(node, key.epoch),
            // Nothing was reported that could be acknowledged.
            Some(_) => {
                tracing::warn!(epoch = key.epoch, "an acknowledgement of what has not ended")
            }
            None => {}
        }
    }

    /// The daemon has given this attempt up.
    pub(crate) fn discard(&mut self, node: &Arc<Node>, key: &pb::AttemptKey) {
        match self.attempts.get(&key.epoch) {
            Some(entry) if entry.ended_at.is_some() => self.forget(node, key.epoch),
            Some(entry) => {
                entry.orders.send_replace(Order::Discard);
            }
            None => {}
        }
    }

    fn forget(&mut self, node: &Arc<Node>, epoch: u64) {
        let Some(entry) = self.attempts.remove(&epoch) else { return };
        if node.kept.settle(epoch) {
            return;
        }
        let node = node.clone();
        let put = move |folder: Folder| {
            if let Err(error) = node.spares.put(&folder) {
                tracing::warn!(epoch, %error, "cannot remove an attempt's folder");
            }
        };
        tokio::spawn(async move {
            // It is there yet if an agent was killed between an attempt's end and this.
            remove_container(&entry.folder).await;
            let _ = tokio::task::spawn_blocking(move || put(entry.folder)).await;
        });
    }

    /// Where the log of an attempt's process lies and whether it is complete.
    pub(crate) fn log(
        &self,
        key: &pb::AttemptKey,
        process: u32,
    ) -> Option<(PathBuf, watch::Receiver<bool>)> {
        let entry = self.attempts.get(&key.epoch)?;
        Some((entry.folder.log_of(process), entry.log_complete.clone()))
    }

    /// The way into an attempt.
    pub(crate) fn place(&self, key: &pb::AttemptKey) -> Option<Place> {
        let entry = self.attempts.get(&key.epoch)?;
        let (folder, entrance) = (entry.folder.clone(), entry.entrance.clone());
        Some(Place { folder, entrance, kept: None })
    }
}

/// Takes the folder of an attempt that cannot even be named out of the way, for somebody to look at. What runs
/// of it is ended as of one whose folder is gone, and the daemon misses it in the Hello.
fn set_aside(root: &Path, folder: &Folder, epoch: u64, error: &io::Error) {
    let aside = root.join(UNREADABLE);
    let to = aside.join(epoch.to_string());
    let moved = fs::create_dir_all(&aside).and_then(|()| fs::rename(folder.path(), &to));
    match moved {
        Ok(()) => tracing::error!(
            epoch, %error, folder = %to.display(),
            "the record of an attempt cannot be read; its folder is out of the way"
        ),
        Err(also) => tracing::error!(
            epoch, %error, %also,
            "the record of an attempt cannot be read, nor its folder moved"
        ),
    }
}

fn note_boot(root: &Path, boot_id: &str) -> io::Result<()> {
    record::write(root, BOOT, &boot_id)?;
    fs::File::open(root.join(BOOT))?.sync_all()?;
    fs::File::open(root)?.sync_all()
}

fn failed(key: &pb::AttemptKey, problem: pb::Problem) -> pb::AttemptReport {
    let ended =
        pb::Ended { at_ms: clock::now_ms(), problem: Some(problem), ..pb::Ended::default() };
    pb::AttemptReport { key: Some(key.clone()), phase: Some(Phase::Ended(ended)) }
}

/// Makes the attempt, or the report that it cannot be.
fn attempt(
    node: &Arc<Node>,
    folder: Folder,
    key: &pb::AttemptKey,
    assignment: pb::Assignment,
) -> Result<(Attempt, watch::Sender<Order>), Box<pb::AttemptReport>> {
    let unreadable = |error: &dyn std::fmt::Display| {
        let message = format!(
            "the node cannot read the job ({error}); run the daemon's version of the agent"
        );
        Box::new(failed(key, make_problem(pb::Cause::Platform, message)))
    };
    let wire = assignment.spec.clone().ok_or_else(|| unreadable(&"it is missing"))?;
    let spec = CommandJob::try_from(wire).map_err(|error| unreadable(&error))?;
    let orders = watch::Sender::default();
    let spools = node.spools.as_ref();
    let spool = spools.map(|all| all.hold(&key.job, key.epoch, &assignment.token, folder.path()));
    let attempt = Attempt {
        node: node.clone(),
        key: key.clone(),
        folder,
        assignment,
        spec,
        orders: orders.subscribe(),
        under_lease: node.leases_lost.load(Ordering::Relaxed),
        log_complete: watch::Sender::new(false),
        entrance: Entrance::default(),
        spool,
        mounting: Arc::default(),
    };
    Ok((attempt, orders))
}
