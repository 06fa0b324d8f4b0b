//! After the command: store what it left, say how it went. Begun anew by a new agent if need be:
//! the same bytes go to the same places.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::content::manifest::{self, ManifestEntry};
use atelier_core::id::{AttemptNumber, Epoch};
use atelier_core::layout;
use atelier_core::spec::Distribution;
use atelier_proto::agent::v1::attempt_report::Phase;
use atelier_proto::agent::v1::{
    AttemptReport, Cause, Ended, Exit, Finalizing, Manifest, OutputResult, Problem, StorePath, exit,
};
use bytes::Bytes;
use futures::future::join_all;

use super::problem::{self, problem};
use super::{Attempt, Services, moved, uncommitted};
use crate::clock;
use crate::data;
use crate::data::Fault;
use crate::data::rw_mount::{Known, Ledger, Mirrored};
use crate::monitor::Seen;
use crate::record;
use crate::supervisor::{EndedBy, Exited, LAUNCH, Launch, LogError, Outcome, STARTED, Started};

/// Tries of one upload while the daemon answers; while it does not, the node waits for it.
const TRIES: u32 = 5;
/// What is stored within this time is not put on the node's own disk before.
const SOON: Duration = Duration::from_secs(5);
/// Below this much free space a failed command is taken to have failed for lack of it.
const FULL_BYTES: u64 = 1024 * 1024;
/// How much of the log's end is searched for what the shell said.
const TAIL_BYTES: u64 = 4096;

/// How an attempt came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// Its processes ended and the supervisor said how; with what this agent has seen of them.
    Exited(Exited, Seen),
    /// The command was not started.
    NotStarted(Problem),
    /// It was running, and nobody knows how it ended.
    Lost(Problem),
}

/// Something to upload.
struct Part {
    from: PathBuf,
    to: StorePath,
    /// Of its entries' paths in the manifest.
    prefix: String,
    /// The named output it is.
    output: Option<String>,
    /// Where some of it may lie already.
    mirrored: Option<Mirrored>,
}

/// Stores what the attempt left and makes the report of its end. `sick`: what is wrong with one of its
/// devices.
pub(super) async fn finalize(attempt: &Attempt, end: End, sick: Option<Problem>) -> Ended {
    let started_at_ms = match &end {
        End::Exited(exited, _) => exited.started_at_ms,
        End::NotStarted(_) => 0,
        End::Lost(_) => record::read::<Started>(attempt.folder.path(), STARTED)
            .ok()
            .flatten()
            .map_or(0, |started| started.started_at_ms),
    };
    let mut ended = Ended { started_at_ms, ..Ended::default() };
    let ran = !matches!(end, End::NotStarted(_));
    match end {
        End::Exited(exited, seen) => {
            of_exit(attempt, &exited, sick, &mut ended);
            moved::count(attempt, &mut ended.usage);
            if let Some(bytes) = most_memory(attempt, &exited, seen) {
                let mebibytes = bytes as f64 / (1 << 20) as f64;
                ended.usage.insert("peak_memory_mib".to_owned(), mebibytes);
            }
            if !attempt.assignment.gpu_indices.is_empty() {
                ended.usage.insert("gpu_seconds".to_owned(), seen.gpu_seconds);
                ended.usage.insert("peak_gpu_memory_mib".to_owned(), seen.gpu_memory_mib);
            }
        }
        End::NotStarted(problem) | End::Lost(problem) => {
            ended.problem = Some(problem);
            ended.log_bytes = fs::metadata(attempt.folder.log()).map_or(0, |log| log.len());
        }
    }
    let parts = parts(attempt, ran, ended.log_bytes);
    let nothing_stored = parts.is_empty();
    if !nothing_stored {
        let phase = Finalizing { at_ms: clock::now_ms(), exit: ended.exit };
        attempt.report(Phase::Finalizing(phase));
    }
    if ran {
        uncommitted::settle(attempt, &ended).await;
    }
    let has_logged = attempt.spool.as_ref().is_some_and(|spool| spool.has_unsent());
    if !nothing_stored || has_logged {
        let mut storing = pin!(async {
            tokio::join!(logged(attempt), async {
                if !nothing_stored {
                    store(attempt, parts, &mut ended).await;
                }
            })
        });
        if tokio::time::timeout(SOON, &mut storing).await.is_err() {
            tokio::join!(settle(attempt), storing);
        }
    } else {
        logged(attempt).await;
    }
    ended.at_ms = clock::now_ms();
    // A report that a new agent would make again just so from the supervisor's record needs none
    // of its own.
    if !(ran && nothing_stored) {
        let report = AttemptReport {
            key: Some(attempt.key.clone()),
            phase: Some(Phase::Ended(ended.clone())),
        };
        if let Err(error) = attempt.folder.write_ended(&report) {
            tracing::warn!(epoch = attempt.key.epoch, %error, "cannot keep the report of an attempt's end");
        }
    }
    ended
}

/// Waits until the daemon has the points that the attempt has logged: with its end its token is over.
async fn logged(attempt: &Attempt) {
    if let Some(spool) = &attempt.spool {
        spool.drain().await;
    }
}

/// Puts what the attempt left on the disk: it waits for the daemon or the storage, and may have to outlast a power
/// cut here.
async fn settle(attempt: &Attempt) {
    let (folder, epoch) = (attempt.folder.clone(), attempt.key.epoch);
    let settled = tokio::task::spawn_blocking(move || folder.settle()).await;
    if let Ok(Err(error)) = settled {
        tracing::warn!(epoch, %error, "cannot put what an attempt left on the disk: after a power cut its job would run again");
    }
}

/// Of an engine's containers, which are in groups of its own, only who asked for them was seen.
fn most_memory(attempt: &Attempt, exited: &Exited, seen: Seen) -> Option<u64> {
    let launch: Option<Launch> = record::read(attempt.folder.path(), LAUNCH).ok().flatten();
    let is_elsewhere = launch.is_some_and(|launch| !launch.ends.is_empty());
    if is_elsewhere { None } else { seen.most_memory(exited.memory) }
}

fn of_exit(attempt: &Attempt, exited: &Exited, sick: Option<Problem>, ended: &mut Ended) {
    ended.exited_at_ms = exited.exited_at_ms;
    ended.log_bytes = exited.log_bytes;
    ended.log_truncated = exited.log_dropped > 0;
    ended.survivors = exited.survivors;
    ended.usage.insert("cpu_seconds".to_owned(), exited.cpu_seconds);
    let millis = exited.exited_at_ms.saturating_sub(exited.started_at_ms).max(0);
    ended.usage.insert("wall_seconds".to_owned(), millis as f64 / 1000.0);
    ended.exit = match &exited.outcome {
        Outcome::Code(code) => Some(Exit { how: Some(exit::How::Code(*code)) }),
        Outcome::Signal(signal) => Some(Exit { how: Some(exit::How::Signal(*signal)) }),
        Outcome::NotStarted { .. } | Outcome::Lost => None,
    };
    ended.problem = problem_of(attempt, exited, sick);
}

/// What went wrong besides the exit itself.
fn problem_of(attempt: &Attempt, exited: &Exited, sick: Option<Problem>) -> Option<Problem> {
    match exited.ended_by {
        Some(EndedBy::Timeout) => {
            let limit = attempt.spec.limits.timeout.unwrap_or(0);
            let message = format!("limits.timeout of {limit} s was reached");
            return Some(problem(Cause::Timeout, message));
        }
        Some(EndedBy::Lease) => {
            let message =
                "the node could not reach the daemon for as long as its lease and ended the job";
            return Some(problem(Cause::LeaseExpired, message));
        }
        Some(EndedBy::Terminate | EndedBy::Kill) => {
            return Some(match attempt.folder.cancel() {
                Some(reason) if reason.is_empty() => problem(Cause::Canceled, "canceled"),
                Some(reason) => problem(Cause::Canceled, reason),
                None => attempt.folder.verdict().unwrap_or_else(|| {
                    problem(
                        Cause::Platform,
                        "the job was told to stop from outside Atelier, as when the node shuts down",
                    )
                }),
            });
        }
        None => {}
    }
    // A job that ended well did without those that were killed.
    if let Some(memory) = &exited.out_of_memory
        && exited.outcome != Outcome::Code(0)
    {
        return Some(problem::out_of_memory(memory));
    }
    // Whether the program saw the fault cannot be told; the job is not to pay for it.
    if sick.is_some() && exited.outcome != Outcome::Code(0) {
        return sick;
    }
    match (&exited.outcome, exited.log_error) {
        (Outcome::NotStarted { what, errno: libc::E2BIG }, _) => Some(problem(
            Cause::CommandNotFound,
            format!(
                "{what}: the command or the environment variables are too long; put long texts into a file"
            ),
        )),
        (Outcome::NotStarted { what, errno }, _) => {
            let error = io::Error::from_raw_os_error(*errno);
            Some(problem::of(Cause::Platform, what, &error))
        }
        (Outcome::Lost, _) => Some(problem(
            Cause::Platform,
            "the process that led the job was killed or kept stopped from outside of it; what was left of the job was \
             killed too",
        )),
        (_, Some(LogError::DiskFull)) => Some(problem::disk_full("the log is incomplete")),
        (_, Some(LogError::Other(errno))) => {
            let error = io::Error::from_raw_os_error(errno);
            Some(problem::of(Cause::Platform, "the log could not be written", &error))
        }
        (Outcome::Code(0), None) => None,
        (outcome, None) if exited.process.is_some() => of_process(attempt, exited, outcome),
        (outcome, None) => {
            if free_bytes(attempt.folder.path()).is_some_and(|free| free < FULL_BYTES) {
                return Some(problem::disk_full("the command failed"));
            }
            match outcome {
                Outcome::Code(code @ (126 | 127)) => {
                    problem::of_shell(*code, &tail(&attempt.folder.log()).unwrap_or_default())
                }
                Outcome::Code(code) => of_launched(attempt, *code),
                _ => None,
            }
        }
    }
}

/// Of several processes one has failed.
fn of_process(attempt: &Attempt, exited: &Exited, outcome: &Outcome) -> Option<Problem> {
    let rank = attempt.assignment.rank * attempt.spec.commands_per_node() + exited.process?;
    let how = match outcome {
        Outcome::Code(code) => format!("ended with exit code {code}"),
        Outcome::Signal(signal) => format!("was killed by signal {signal}"),
        Outcome::NotStarted { .. } | Outcome::Lost => return None,
    };
    let message = format!(
        "the process of rank {rank} {how}; see what it wrote: atelier job stream {} --rank {rank}",
        attempt.key.job
    );
    Some(problem(Cause::Process, message))
}

/// What started several processes has failed; it says of which it was, and they in their own logs why.
fn of_launched(attempt: &Attempt, code: i32) -> Option<Problem> {
    let (rank, members) = (attempt.assignment.rank, attempt.assignment.addresses.len().max(1));
    let processes = members * attempt.spec.processes_per_node() as usize;
    let is_head = rank == 0 && matches!(attempt.spec.distribution, Some(Distribution::Mpi { .. }));
    if !is_head || processes == 1 {
        return None;
    }
    let message = format!(
        "mpirun ended with exit code {code}; see what a process wrote: atelier job stream {} --rank N, N from 0 \
         to {}",
        attempt.key.job,
        processes - 1
    );
    Some(problem(Cause::Process, message))
}

fn free_bytes(path: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(path).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

pub(super) fn tail(log: &Path) -> io::Result<String> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What there is to store. Empty for a job that wrote nothing, which then costs nothing.
fn parts(attempt: &Attempt, ran: bool, log_bytes: u64) -> Vec<Part> {
    let Some(artifacts) = &attempt.assignment.artifacts else { return Vec::new() };
    let Some(root) = &artifacts.root else { return Vec::new() };
    let below = |path: &str| StorePath { path: join(&root.path, path), ..root.clone() };
    let mut parts = Vec::new();
    if log_bytes > 0 {
        parts.push(Part {
            from: attempt.folder.log(),
            to: below(&artifacts.log_path),
            prefix: artifacts.log_path.clone(),
            output: None,
            mirrored: None,
        });
    }
    if !ran {
        return parts;
    }
    let per_node = attempt.spec.processes_per_node();
    for process in 1..per_node {
        let from = attempt.folder.log_of(process);
        if fs::metadata(&from).is_ok_and(|log| log.len() > 0) {
            let rank = attempt.assignment.rank * per_node + process;
            let path = layout::log_path(AttemptNumber(attempt.key.attempt), rank);
            parts.push(Part { from, to: below(&path), prefix: path, output: None, mirrored: None });
        }
    }
    for name in ["outputs", "logs"] {
        let from = attempt.folder.work().join(name);
        if has_entries(&from) {
            let to = below(&layout::member_path(attempt.assignment.rank, name));
            parts.push(Part { from, to, prefix: name.to_owned(), output: None, mirrored: None });
        }
    }
    let mirrored = uncommitted::outputs(attempt);
    for name in attempt.spec.outputs.keys() {
        let from = attempt.folder.output(name.as_str());
        let grant = attempt.assignment.outputs.get(name.as_str());
        let Some(to) = grant.and_then(|grant| grant.store.clone()) else { continue };
        if from.is_file() || has_entries(&from) {
            let prefix = format!("named-outputs/{name}");
            let mirrored = mirrored.iter().find(|of| of.name == name.as_str()).cloned();
            parts.push(Part { from, to, prefix, output: Some(name.to_string()), mirrored });
        }
    }
    parts
}

fn has_entries(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

fn join(root: &str, path: &str) -> String {
    format!("{}/{}", root.trim_end_matches('/'), path.trim_start_matches('/'))
}

/// Uploads all parts, then the manifest that makes them visible.
async fn store(attempt: &Attempt, parts: Vec<Part>, ended: &mut Ended) {
    let ledger = attempt.folder.ledger();
    let uploads: Vec<_> = parts.iter().map(|part| upload(attempt, part, &ledger)).collect();
    let mut entries = Vec::new();
    for (part, result) in parts.iter().zip(join_all(uploads).await) {
        match result {
            Ok((stored, refused)) => {
                // Whatever else is wrong, what a long run left behind is kept.
                ended.problem = ended.problem.take().or(refused);
                if let Some(name) = &part.output {
                    let bytes = stored.iter().map(|entry| entry.bytes).sum();
                    let files = stored.len() as u64;
                    ended.outputs.push(OutputResult { name: name.clone(), files, bytes });
                }
                entries.extend(stored);
            }
            // The command's own trouble comes first.
            Err(problem) => ended.problem = ended.problem.take().or(Some(problem)),
        }
    }
    if entries.is_empty() {
        return;
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    match commit(attempt, entries, is_success(ended)).await {
        Ok(manifest) => ended.manifest = Some(manifest),
        Err(problem) => ended.problem = ended.problem.take().or(Some(problem)),
    }
}

fn is_success(ended: &Ended) -> bool {
    let code = ended.exit.and_then(|exit| exit.how);
    ended.problem.is_none() && code == Some(exit::How::Code(0))
}

async fn commit(
    attempt: &Attempt,
    entries: Vec<ManifestEntry>,
    complete: bool,
) -> Result<Manifest, Problem> {
    let broken = |what: &dyn std::fmt::Display| {
        problem(Cause::Platform, format!("cannot make the manifest: {what}"))
    };
    let artifacts = attempt.assignment.artifacts.clone().unwrap_or_default();
    let root = artifacts.root.unwrap_or_default();
    let (files, bytes) = (entries.len() as u64, entries.iter().map(|entry| entry.bytes).sum());
    let manifest = manifest::Manifest {
        version: manifest::VERSION,
        job: attempt.key.job.parse().map_err(|error| broken(&error))?,
        attempt: AttemptNumber(attempt.key.attempt),
        epoch: Epoch(attempt.key.epoch),
        partial: !complete,
        entries,
    };
    let json = Bytes::from(manifest.to_json().map_err(|error| broken(&error))?);
    let digest = Digest::of(&json);
    let to = StorePath { path: join(&root.path, &artifacts.manifest_path), ..root };
    let token = &attempt.assignment.token;
    let put = |services: Arc<Services>| {
        let (to, json) = (&to, json.clone());
        async move { services.data.put(to, json, token).await }
    };
    patiently(attempt, "cannot store the manifest", put).await?;
    let digest = Bytes::copy_from_slice(digest.as_bytes());
    Ok(Manifest { path: artifacts.manifest_path, digest, files, bytes })
}

/// What was stored of a part, and the problem with files that cannot be.
async fn upload(
    attempt: &Attempt,
    part: &Part,
    ledger: &Ledger,
) -> Result<(Vec<ManifestEntry>, Option<Problem>), Problem> {
    let what = match &part.output {
        Some(name) => format!("cannot store output '{name}'"),
        None => format!("cannot store {}", part.prefix),
    };
    let (token, said) = (&attempt.assignment.token, what.as_str());
    let known = part.mirrored.as_ref().map(|output| Known { ledger, output });
    let upload = |services: Arc<Services>| async move {
        match services.data.commit(&part.from, &part.to, &part.prefix, token, known).await {
            Ok(stored) => Ok((stored, None)),
            Err(mut error) if error.fault() == Fault::User => {
                let problem = problem::of(Cause::Output, said, &error);
                Ok((error.take_stored(), Some(problem)))
            }
            Err(error) => Err(error),
        }
    };
    patiently(attempt, &what, upload).await
}

/// Does something that needs the daemon or the storage until it works. Errors of the job's own
/// making end it at once, others after some tries; a daemon that is away is waited for.
async fn patiently<T, F>(
    attempt: &Attempt,
    what: &str,
    act: impl Fn(Arc<Services>) -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, data::Error>>,
{
    let mut services = attempt.node.services.clone();
    let (mut tries, mut pause) = (0, Duration::from_millis(100));
    loop {
        let current = attempt.services().await;
        services.mark_unchanged();
        let error = match act(current).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match error.fault() {
            Fault::User => return Err(problem::of(Cause::Output, what, &error)),
            Fault::DiskFull => return Err(problem::disk_full(&format!("{what}: {error}"))),
            Fault::Platform => {}
        }
        if attempt.node.connected.borrow().to_owned() {
            tries += 1;
        }
        if tries >= TRIES {
            return Err(problem::of(Cause::Platform, what, &error));
        }
        tracing::debug!(epoch = attempt.key.epoch, %error, tries, "{what}, trying again");
        // A new session may know the daemon at another address.
        let _ = tokio::time::timeout(pause, services.changed()).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
