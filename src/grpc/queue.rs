//! What waits, why, and what would end the wait.

use atelier_core::access::{Caller, Permission};
use atelier_core::id::{ComputeName, JobName};
use atelier_core::job::{Active, Job, State};
use atelier_core::live::{Asker, Live, Refusal, asked, rank};
use atelier_core::sched::{Change, Foreseen, Sched, WaitReason, explain, foresee};
use atelier_core::spec::CommandJob;
use atelier_proto::convert;
use atelier_proto::job::v1 as pb;
use tonic::Status;

use super::forecast;
use super::status::told;
use super::{blocking, count};
use crate::daemon::{HandleError, Shared};

/// Jobs of each compute in one answer.
const LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// Why `job` waits, and what would start it now. Tried on a copy of the scheduler's value, so that
/// nobody else waits for it.
pub(super) async fn explain_job(shared: &Shared, job: &Job) -> Result<pb::Explanation, Status> {
    let name = job.name.clone();
    let now = shared.clock.now().wall;
    let (live, holders, sched) = shared
        .handle
        .look(move |live, _| {
            let job = live.job(&name);
            let holders = job.map(|job| live.holders(job)).unwrap_or_default();
            (job.cloned(), holders, live.sched().clone())
        })
        .await
        .map_err(told)?;
    // It may have ended meanwhile.
    let job = live.unwrap_or_else(|| job.clone());
    let asked = asked(&job);
    let copy = (sched.clone(), asked.clone());
    let explanation = blocking(move || explain(&copy.0, &copy.1, now)).await?;
    let forecast = match &explanation {
        Some(_) => Some(forecast::of(shared, sched, asked, now).await?),
        None => None,
    };
    let (expected_start_p50_ms, expected_start_p90_ms) = forecast::times(forecast.as_ref());
    let (reason, ahead, changes) = match explanation {
        Some(told) => (told.reason.to_string(), count(told.ahead), told.changes),
        None => (stands(&job), 0, Vec::new()),
    };
    Ok(pb::Explanation {
        name: job.name.to_string(),
        status: pb::JobStatus::from(job.status()).into(),
        compute: job.compute.to_string(),
        reason,
        ahead,
        changes: changes.iter().map(change).collect(),
        forecast: forecast.map(|forecast| forecast.to_string()).unwrap_or_default(),
        expected_start_p50_ms,
        expected_start_p90_ms,
        holders: holders.iter().map(convert::input_holder).collect(),
    })
}

/// What would become of a job if it were created now.
pub(super) async fn plan_job(
    shared: &Shared,
    spec: CommandJob,
    caller: Caller,
) -> Result<pb::JobPlan, Status> {
    let now = shared.clock.now();
    // The name is of no account: nothing is submitted.
    let name = spec.name.clone().unwrap_or_else(|| JobName::generate(0));
    let (asked, sched) = shared
        .handle
        .look(move |live, _| {
            let manages = caller.may(Permission::ManageCompute);
            let asker = Asker { user: &caller.principal, manages };
            let asked = live.as_asked(name, &spec, asker, now)?;
            Ok((asked, live.sched().clone()))
        })
        .await
        .map_err(told)?
        .map_err(|refusal: Refusal| told(HandleError::from(refusal)))?;
    let compute = asked.compute.to_string();
    let copy = (sched.clone(), asked.clone());
    Ok(match blocking(move || foresee(&copy.0, &copy.1, now.wall)).await? {
        Foreseen::Starts { nodes } => {
            let node = nodes.first().map(ToString::to_string).unwrap_or_default();
            let nodes = nodes.iter().map(ToString::to_string).collect();
            pb::JobPlan { compute, node, nodes, ..pb::JobPlan::default() }
        }
        Foreseen::Waits(told) => {
            let forecast = forecast::of(shared, sched, asked, now.wall).await?;
            let (expected_start_p50_ms, expected_start_p90_ms) = forecast::times(Some(&forecast));
            pb::JobPlan {
                compute,
                node: String::new(),
                nodes: Vec::new(),
                preempts: match &told.reason {
                    WaitReason::MakingRoom { jobs } => {
                        jobs.iter().map(ToString::to_string).collect()
                    }
                    _ => Vec::new(),
                },
                reason: told.reason.to_string(),
                ahead: count(told.ahead),
                changes: told.changes.iter().map(change).collect(),
                forecast: forecast.to_string(),
                expected_start_p50_ms,
                expected_start_p90_ms,
            }
        }
    })
}

fn change(change: &Change) -> pb::Change {
    pb::Change { text: change.to_string(), settings: change.settings() }
}

/// Where an attempt is, in words.
fn nodes(active: &Active) -> String {
    let names: Vec<&str> = active.members().map(|member| member.node.as_str()).collect();
    let what = if active.is_gang() { "nodes" } else { "node" };
    format!("{what} {}", names.join(", "))
}

/// How a job that does not wait stands.
fn stands(job: &Job) -> String {
    match &job.state {
        State::Queued(_) => "about to be placed".to_owned(),
        State::Active(active) => match &active.evict {
            Some(evict) => format!("makes way on {}: {}", nodes(active), evict.reason),
            None => format!("does not wait: it is on {}", nodes(active)),
        },
        State::Ended(ended) => format!("does not wait: it ended at {}", ended.at),
    }
}

/// The jobs that wait, in order, with the reason of each.
pub(super) async fn list(
    shared: &Shared,
    request: pb::ListQueueRequest,
) -> Result<pb::ListQueueResponse, Status> {
    let limit = match request.limit {
        0 => LIMIT,
        limit if limit <= MAX_LIMIT => limit,
        limit => {
            let what = format!("limit: is {limit}, at most {MAX_LIMIT} is allowed");
            return Err(Status::invalid_argument(what));
        }
    };
    let wanted = request.compute;
    let missing =
        Status::not_found(format!("there is no compute '{wanted}'; see 'atelier compute list'"));
    let found = shared
        .handle
        .look(move |live, _| {
            let computes: Vec<ComputeName> = live
                .computes()
                .map(|compute| compute.name.clone())
                .filter(|name| wanted.is_empty() || name.as_str() == wanted)
                .collect();
            let jobs = first_of_each(live, &computes, limit as usize);
            (!computes.is_empty()).then(|| (computes, jobs, live.sched().clone()))
        })
        .await
        .map_err(told)?;
    let Some((computes, jobs, sched)) = found else { return Err(missing) };
    blocking(move || {
        let queued = |compute| sched.pool(compute).map_or(0, |pool| pool.queued() as u64);
        let waiting = computes.iter().map(queued).sum();
        pb::ListQueueResponse { jobs: places(&sched, &jobs), waiting }
    })
    .await
}

fn first_of_each(live: &Live, computes: &[ComputeName], limit: usize) -> Vec<Job> {
    let names = |compute: &ComputeName| -> Vec<JobName> {
        let Some(pool) = live.sched().pool(compute) else { return Vec::new() };
        pool.waiting().take(limit).map(|(_, waiting)| waiting.job.clone()).collect()
    };
    computes.iter().flat_map(names).filter_map(|name| live.job(&name).cloned()).collect()
}

fn places(sched: &Sched, jobs: &[Job]) -> Vec<pb::QueuedJob> {
    let mut place = 0;
    let mut compute: Option<&ComputeName> = None;
    let mut rows = Vec::with_capacity(jobs.len());
    for job in jobs {
        if compute != Some(&job.compute) {
            (compute, place) = (Some(&job.compute), 0);
        }
        let reason = sched.reason(&job.compute, rank(job));
        let held_back = matches!(reason, Some(WaitReason::BackOff { .. }));
        place += u32::from(!held_back);
        let since = match &job.state {
            State::Queued(queued) => queued.since,
            State::Active(_) | State::Ended(_) => job.created_at,
        };
        rows.push(pb::QueuedJob {
            place: if held_back { 0 } else { place },
            name: job.name.to_string(),
            compute: job.compute.to_string(),
            priority: job.spec.queue.priority.word().to_owned(),
            created_by: job.created_by.to_string(),
            queued_at_ms: since.as_millis(),
            reason: reason.map(|reason| reason.to_string()).unwrap_or_default(),
            demand: job.demand().to_string(),
        });
    }
    rows
}
