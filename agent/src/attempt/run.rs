//! The task of one attempt.

use atelier_core::spec::IdleAction;
use atelier_proto::agent::v1::attempt_report::Phase;
use atelier_proto::agent::v1::{Cause, Ended, Problem, Running};
use rustix::process::Signal;

use super::finalize::{self, End};
use super::lost::{lost, sweep};
use super::process::Process;
use super::reattach::{Decision, Loss, decide, look};
use super::{
    Attempt, News, Order, apart, caught, contain, kept, launch, lost, mounted, moved, prepare,
    problem, secrets, uncommitted,
};
use crate::gpu::{Idle, Share};
use crate::monitor::{Granted, Sampling, Seen, Whole};
use crate::supervisor::{LAUNCH, Launch};
use crate::{clock, failpoint, gpu, record};

/// Why an attempt's task stops before its end.
pub(super) struct Discarded;

/// Takes the attempt from where it stands to its end, and tells the session; also if that panics.
#[tracing::instrument(
    skip_all,
    name = "attempt",
    fields(job = attempt.key.job, attempt = attempt.key.attempt, epoch = attempt.key.epoch)
)]
pub(crate) async fn run(attempt: Attempt, from: Decision) {
    let driven = async { tell(&attempt, drive(&attempt, from).await).await };
    let Err(panicked) = caught::caught(driven).await else { return };
    tracing::error!(panicked, "an attempt's task has panicked");
    let told = async { tell(&attempt, lost::panicked(&attempt, &panicked).await).await };
    if caught::caught(told).await.is_err() {
        // Whatever it is that panics is not needed for this.
        let problem = Some(problem::panicked(&panicked));
        let ended = Ended { at_ms: clock::now_ms(), problem, ..Ended::default() };
        attempt.report(Phase::Ended(ended));
    }
}

/// Tells the session how it came out.
async fn tell(attempt: &Attempt, driven: Result<Ended, Discarded>) {
    secrets::remove(attempt);
    match driven {
        Ok(ended) => {
            attempt.log_complete.send_replace(true);
            // An earlier agent may have kept it.
            let is_kept = attempt.node.kept.has(attempt.key.epoch)
                || may_be_kept(attempt, &ended).await && kept::keep(attempt);
            if !is_kept {
                contain::remove(&attempt.folder).await;
            }
            attempt.report(Phase::Ended(ended));
        }
        Err(Discarded) => {
            attempt.log_complete.send_replace(true);
            if let Some(spool) = &attempt.spool {
                spool.give_up();
            }
            settle(attempt).await;
            contain::ended(&attempt.folder).await;
            mounted::unmount(attempt).await;
            contain::remove(&attempt.folder).await;
            let (folder, epoch) = (attempt.folder.clone(), attempt.key.epoch);
            // An earlier agent may have kept it.
            if !attempt.node.kept.settle(epoch) {
                let removed = tokio::task::spawn_blocking(move || folder.remove()).await;
                if let Ok(Err(error)) = removed {
                    tracing::warn!(epoch, %error, "cannot remove the folder of a discarded attempt");
                }
            }
            let _ = attempt.node.news.send(News::Gone(epoch));
        }
    }
}

async fn drive(attempt: &Attempt, from: Decision) -> Result<Ended, Discarded> {
    let mut next = from;
    loop {
        next = match next {
            Decision::Prepare if matches!(launch::hold(attempt.folder.path()), Ok(false)) => {
                look_again(attempt)
            }
            Decision::Prepare => match begin(attempt).await? {
                Ok(process) => return watch(attempt, process, clock::now_ms()).await,
                // It may have been started all the same, only not told; then it is found.
                Err(_) if matches!(launch::hold(attempt.folder.path()), Ok(false)) => {
                    look_again(attempt)
                }
                Err(problem) => return end(attempt, End::NotStarted(problem)).await,
            },
            Decision::Attach(started) => match Process::attach(&started) {
                Ok(Some(process)) => return watch(attempt, process, started.started_at_ms).await,
                Ok(None) => look_again(attempt),
                Err(error) => {
                    let problem =
                        problem::of(Cause::Platform, "cannot watch the supervisor", &error);
                    return end(attempt, End::Lost(problem)).await;
                }
            },
            Decision::Finalize(exited) => {
                return end(attempt, End::Exited(exited, Seen::default())).await;
            }
            Decision::Lost(loss) => return lost(attempt, loss).await,
            // The session keeps the report and starts no task for it.
            Decision::Report(report) => match report.phase {
                Some(Phase::Ended(ended)) => return Ok(ended),
                _ => Decision::Prepare,
            },
        };
    }
}

pub(super) fn look_again(attempt: &Attempt) -> Decision {
    match look(&attempt.folder, &attempt.node.boot_id) {
        Ok(facts) => decide(facts),
        Err(error) => Decision::Lost(Loss::Unreadable(error.to_string())),
    }
}

/// Prepares and starts the command.
async fn begin(attempt: &Attempt) -> Result<Result<Process, Problem>, Discarded> {
    let prepared = tokio::select! {
        biased;
        order = attempt.interrupted() => return match order {
            Order::Discard => Err(Discarded),
            Order::Cancel(_) | Order::Run => Ok(Err(canceled(attempt))),
        },
        prepared = async {
            let services = attempt.services().await;
            prepare::prepare(attempt, &services).await
        } => prepared,
    };
    Ok(match prepared {
        Ok(prepared) => launch::launch(attempt, prepared).await,
        Err(problem) => Err(problem),
    })
}

/// The problem of an attempt that was asked to end.
pub(super) fn canceled(attempt: &Attempt) -> Problem {
    let reason = match &*attempt.orders.borrow() {
        Order::Cancel(reason) => Some(reason.clone()),
        Order::Run | Order::Discard => None,
    };
    let reason = reason.or_else(|| attempt.folder.cancel()).filter(|reason| !reason.is_empty());
    problem::problem(Cause::Canceled, reason.unwrap_or_else(|| "canceled".to_owned()))
}

/// Whether what a failed attempt left can be shown: what was published of it is not to be changed by whoever
/// is let in.
async fn may_be_kept(attempt: &Attempt, ended: &Ended) -> bool {
    if !kept::would_keep(attempt, ended) {
        return false;
    }
    let (folder, asked) = (attempt.folder.clone(), attempt.spec.keep_failed.is_some());
    let parted = tokio::task::spawn_blocking(move || apart::part(&folder, asked)).await;
    match parted.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped))) {
        Ok(parted) => parted,
        Err(error) => {
            let epoch = attempt.key.epoch;
            tracing::warn!(epoch, %error, "what a failed attempt left cannot be kept");
            false
        }
    }
}

/// Waits for the supervisor's end and passes orders on to it.
async fn watch(
    attempt: &Attempt,
    mut process: Process,
    started_at_ms: i64,
) -> Result<Ended, Discarded> {
    attempt.entrance.open();
    attempt.report(Phase::Running(Running { at_ms: started_at_ms, idle_since_ms: None }));
    let launch: Option<Launch> = record::read(attempt.folder.path(), LAUNCH).ok().flatten();
    let sees_supervisor = launch.as_ref().is_some_and(Launch::sees_supervisor);
    let sampling = attempt.node.monitor.watch(
        &attempt.key,
        process.pid(),
        granted(attempt),
        launch.and_then(|launch| launch.cgroup),
        started_at_ms,
    );
    let mirror = uncommitted::start(attempt);
    // The order may have come before the process did.
    let mut orders = attempt.orders.clone();
    orders.mark_changed();
    let (mut discard, mut sentence, mut idle_since) = (false, None, None);
    let mut looks = sampling.looks();
    let tells = attempt.spec.idle_gpu.is_some_and(|idle| idle.action == IdleAction::Notify);
    let mut found = loop {
        tokio::select! {
            biased;
            () = process.ended() => match look_again(attempt) {
                // It was a second one: the first has the attempt, and is only now seen.
                Decision::Attach(started) => match Process::attach(&started) {
                    Ok(Some(other)) => {
                        process = other;
                        orders.mark_changed();
                    }
                    Ok(None) | Err(_) => break look_again(attempt),
                },
                found => break found,
            },
            order = next_order(&mut orders) => match order {
                Order::Run => {}
                Order::Cancel(reason) => {
                    failpoint::panics("cancel");
                    // Without this note a new agent could not tell a cancel from a shutdown.
                    if let Err(error) = attempt.folder.write_cancel(&reason) {
                        tracing::warn!(epoch = attempt.key.epoch, %error, "cannot note a cancel");
                    }
                    process.signal(Signal::TERM);
                    process.signal(Signal::CONT);
                }
                Order::Discard => {
                    discard = true;
                    process.signal(Signal::QUIT);
                    process.signal(Signal::CONT);
                }
            },
            (problem, signal) = verdict(attempt, &sampling), if sentence.is_none() => {
                note_verdict(attempt, &problem);
                sentence = Some(problem);
                process.signal(signal);
            }
            Ok(()) = looks.changed(), if sees_supervisor => process.go_on(),
            since = sampling.idle_other_than(idle_since), if tells => {
                idle_since = since;
                let running = Running { at_ms: started_at_ms, idle_since_ms: since };
                attempt.report(Phase::Running(running));
            }
        }
    };
    // The disk may have been full, which may be why the job was ended.
    if let Some(problem) = sentence.filter(|_| attempt.folder.verdict().is_none()) {
        note_verdict(attempt, &problem);
    }
    // Whoever was let in is of the attempt too: none of it may live when its end is told.
    attempt.entrance.close().await;
    if let Some(mirror) = mirror.filter(|_| !discard) {
        tokio::select! {
            biased;
            () = attempt.discarded() => {}
            () = mirror.end() => {}
        }
    }
    let seen = sampling.seen();
    if let Decision::Finalize(exited) = &mut found {
        // The kernel keeps that of the largest process, the looks that of all together.
        exited.peak_memory_kib = exited.peak_memory_kib.max(seen.memory_bytes / 1024);
        let whole = Whole {
            cpu_seconds: exited.cpu_seconds,
            peak_memory_bytes: exited.peak_memory_kib * 1024,
        };
        sampling.finish(whole).await;
    }
    match found {
        Decision::Finalize(_) if discard => Err(Discarded),
        Decision::Finalize(exited) => end(attempt, End::Exited(exited, seen)).await,
        _ if discard => {
            sweep(attempt).await;
            Err(Discarded)
        }
        // No supervisor ever took it, so nothing ran.
        Decision::Prepare if *attempt.orders.borrow() != Order::Run => {
            end(attempt, End::NotStarted(canceled(attempt))).await
        }
        Decision::Prepare => {
            let problem = problem::problem(
                Cause::Platform,
                "the job's supervisor ended before it started the command; look into the agent's log",
            );
            end(attempt, End::NotStarted(problem)).await
        }
        Decision::Lost(loss) => lost(attempt, loss).await,
        Decision::Attach(_) | Decision::Report(_) => lost(attempt, Loss::Supervisor).await,
    }
}

/// The attempt's devices, and what its specification says of them.
fn granted(attempt: &Attempt) -> Granted {
    Granted {
        indices: attempt.assignment.gpu_indices.clone(),
        share: Share::of(attempt.spec.resources.demand.gpu_share),
        idle: attempt.spec.idle_gpu.map(|idle| Idle::after(idle.after)),
    }
}

/// Without this note the end would be taken for a shutdown of the node.
fn note_verdict(attempt: &Attempt, problem: &Problem) {
    if let Err(error) = attempt.folder.write_verdict(problem) {
        tracing::warn!(epoch = attempt.key.epoch, %error, "cannot note why a job is ended");
    }
}

/// Once this node has to end what runs: why, and how the supervisor is told.
async fn verdict(attempt: &Attempt, sampling: &Sampling) -> (Problem, Signal) {
    let idle = attempt.spec.idle_gpu.unwrap_or_default();
    let stops = attempt.spec.idle_gpu.is_some() && idle.action == IdleAction::Stop;
    tokio::select! {
        (index, reason) = attempt.node.devices.lost(&attempt.assignment.gpu_indices) => {
            (problem::gpu_lost(index, &reason), Signal::TERM)
        }
        sentence = attempt.node.reserve.sentenced(attempt.key.epoch) => {
            (problem::disk_reserve(&sentence), Signal::QUIT)
        }
        // What it has too much others lack: at once, as the kernel does where memory is out.
        excess = sampling.excess() => (excess.problem(), Signal::QUIT),
        _ = sampling.idle_other_than(None), if stops => (problem::gpu_idle(idle.after), Signal::TERM),
    }
}

async fn next_order(orders: &mut tokio::sync::watch::Receiver<Order>) -> Order {
    match orders.changed().await {
        Ok(()) => orders.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}

pub(super) async fn end(attempt: &Attempt, end: End) -> Result<Ended, Discarded> {
    attempt.log_complete.send_replace(true);
    // With the report of the end its devices may be given to another.
    let sick = settle(attempt).await.or_else(|| mounted::lost(attempt));
    mounted::unmount(attempt).await;
    moved::tell(attempt).await;
    tokio::select! {
        biased;
        () = attempt.discarded() => Err(Discarded),
        ended = async {
            finalize::finalize(attempt, contain::settle(attempt, end).await, sick).await
        } => Ok(ended),
    }
}

/// Empties the attempt's devices; gives what is wrong with one of them.
async fn settle(attempt: &Attempt) -> Option<Problem> {
    let indices = &attempt.assignment.gpu_indices;
    let (index, reason) = gpu::settle(&attempt.node.devices, attempt.key.epoch, indices).await?;
    Some(problem::gpu_lost(index, &reason))
}
