//! When a job that waits may be expected to start.

use atelier_core::id::{JobName, SubmitSeq};
use atelier_core::job::State;
use atelier_core::live::most_ms;
use atelier_core::sched::forecast::{Durations, Forecast, Kind, Known, forecast};
use atelier_core::sched::{Asked, Sched};
use atelier_core::spec::CommandJob;
use atelier_core::time::Timestamp;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Status;

use super::blocking;
use super::status::told;
use crate::daemon::Shared;

/// Finished jobs of a compute that tell how long jobs take there.
const PAST: usize = 500;
/// Jobs looked at: those that hold nodes, then those that wait, in order. Of the others it is not known
/// what they run; few of them matter.
const JOBS: usize = 50_000;
/// Jobs that the reactor is asked about at once, so that nobody else waits for it.
const AT_ONCE: usize = 1_024;

/// A forecast takes up to about a second of a core.
static TURN: Semaphore = Semaphore::const_new(1);

/// The forecast for a job that waits, or would; decided on a copy of the scheduler's value, with what
/// the store knows of past jobs.
pub(super) async fn of(
    shared: &Shared,
    sched: Sched,
    asked: Asked,
    now: Timestamp,
) -> Result<Forecast, Status> {
    let (store, compute, copy) = (shared.store.clone(), asked.compute.clone(), sched.clone());
    let (past, jobs) =
        blocking(move || (store.past(&compute, PAST), of_interest(&copy, &compute))).await?;
    let past = past.map_err(told)?;
    let mut known: Vec<(SubmitSeq, Arc<CommandJob>, Option<Timestamp>)> = Vec::new();
    for names in jobs.chunks(AT_ONCE) {
        let names = names.to_vec();
        let some = shared.handle.look(move |live, _| {
            let jobs = names.iter().filter_map(|name| live.job(name));
            jobs.map(|job| match &job.state {
                State::Active(active) => (job.seq, job.spec.clone(), Some(active.assigned_at)),
                State::Queued(_) | State::Ended(_) => (job.seq, job.spec.clone(), None),
            })
            .collect::<Vec<_>>()
        });
        known.extend(some.await.map_err(told)?);
    }
    // One after the other, so that the rest of the daemon keeps a core.
    let _turn = TURN.acquire().await.map_err(|_| Status::unavailable("the daemon is stopping"))?;
    blocking(move || {
        let past = past.iter().map(|past| (Kind::of(&past.command), past.ms));
        let mut durations = Durations::of(past);
        for (seq, spec, since) in known {
            let kind = Kind::of(&spec.command);
            durations.know(seq, Known { kind, most_ms: most_ms(&spec), since });
        }
        forecast(&sched, &asked, &durations, now)
    })
    .await
}

/// The jobs whose lengths matter.
fn of_interest(sched: &Sched, compute: &atelier_core::id::ComputeName) -> Vec<JobName> {
    let Some(pool) = sched.pool(compute) else { return Vec::new() };
    let held = pool.nodes().flat_map(|(node, ..)| pool.holds(node)).map(|(job, _)| job);
    let waiting = pool.waiting().map(|(_, waiting)| &waiting.job);
    held.chain(waiting).take(JOBS).cloned().collect()
}

/// The times of a forecast as the wire has them.
pub(super) fn times(forecast: Option<&Forecast>) -> (i64, i64) {
    match forecast {
        Some(Forecast::Expected { p50, p90, .. }) => (p50.as_millis(), p90.as_millis()),
        _ => (0, 0),
    }
}
