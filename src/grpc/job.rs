//! `atelier.job.v1.JobService`.

use std::collections::HashMap;
use std::sync::Arc;

use atelier_core::access::{Caller, Permission};
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{AttemptNumber, ExperimentName, JobName, Principal};
use atelier_core::job::{Advice, Event, Job, Outcome, State, advise};
use atelier_core::spec::CommandJob;
use atelier_proto::convert::{self, JobDetails};
use atelier_proto::job::v1 as pb;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::channels::{Channels, FromNode};
use super::status::told;
use super::{asking, blocking, caller, checked_key, queue};
use crate::daemon::{LogStart, Removed, Shared, SubmitRequest};
use crate::identity::{Asking, Denied, Present};
use crate::store::{Archived, IdempotencyKey, JobQuery, Lookup};

/// Jobs: submit, look, follow, cancel, put away.
pub(super) struct Service(pub(super) Shared, pub(super) Channels);

/// Pages of the job list.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 1000;
/// Events in one answer.
const EVENTS: u32 = 1000;
const MAX_EVENTS: u32 = 10_000;

impl Service {
    fn find(&self, name: &str) -> Result<Job, Status> {
        let missing =
            || Status::not_found(format!("there is no job '{name}'; see 'atelier job list'"));
        // What is no valid name is no job's name.
        let name = JobName::new(name).map_err(|_| missing())?;
        self.0.store.job(&name).map_err(told)?.ok_or_else(missing)
    }

    /// The caller may change this job: an admin, or the one who submitted it.
    fn own<T>(&self, request: &Request<T>, job: &Job) -> Result<Actor, Status> {
        let asking = asking(request)?;
        let may = asking.owns(&job.created_by, job.name.as_str());
        Self::allowed(may, asking, job)
    }

    /// The caller may cancel this job, or let go of what it left: its owner, an admin or an operator.
    fn cancelled_by<T>(&self, request: &Request<T>, job: &Job) -> Result<Actor, Status> {
        let asking = asking(request)?;
        let may = asking.may_cancel(&job.created_by);
        Self::allowed(may, asking, job)
    }

    fn allowed(may: bool, asking: Asking, job: &Job) -> Result<Actor, Status> {
        if may {
            return Ok(asking.actor());
        }
        let (job, owner) = (job.name.to_string(), job.created_by.clone());
        Err(told(Denied::NotOwner { principal: asking.caller.principal, job, owner }))
    }

    async fn details(&self, job: &Job) -> Result<JobDetails, Status> {
        let wait_reason = match job.state {
            State::Queued(_) => {
                let mut reasons =
                    self.0.handle.wait_reasons(vec![job.name.clone()]).await.map_err(told)?;
                reasons.remove(&job.name).unwrap_or_default()
            }
            State::Active(_) | State::Ended(_) => String::new(),
        };
        let has_failed = job.tries.failed > 0
            || job.ended().is_some_and(|ended| matches!(ended.outcome, Outcome::Failed(_)));
        let sandboxes = match has_failed {
            false => Vec::new(),
            true => {
                let (handle, now) = (&self.0.handle, self.0.clock.wall());
                handle.sandboxes(job.clone(), now).await.map_err(told)?
            }
        };
        let assets = match job.ended() {
            Some(_) => self.0.assets.of_job(&job.name).map_err(told)?,
            None => Vec::new(),
        };
        let holders = match job.ended() {
            Some(_) => Vec::new(),
            None => self.0.handle.holders(job.clone()).await.map_err(told)?,
        };
        let removed = self.0.retention.removed(&job.name).map_err(told)?;
        Ok(JobDetails { wait_reason, sandboxes, assets, holders, removed, ..JobDetails::default() })
    }

    async fn message(&self, job: &Job, caller: &Caller) -> Result<pb::Job, Status> {
        Ok(shown(convert::job(job, self.details(job).await?), caller))
    }

    /// What the last runs on its compute that had the same command say of its memory.
    async fn advice(&self, job: &Job) -> Result<Option<Advice>, Status> {
        const LAST: usize = 500;
        let (store, compute) = (self.0.store.clone(), job.compute.clone());
        let past = blocking(move || store.past(&compute, LAST)).await?.map_err(told)?;
        let same = past.iter().filter(|past| past.command == job.spec.command);
        Ok(advise(job.demand().memory, same.filter_map(|past| past.peak_memory)))
    }

    /// The job that the same request made before.
    fn accepted(
        &self,
        principal: &Principal,
        name: &JobName,
        experiment: &ExperimentName,
        key: &Option<IdempotencyKey>,
    ) -> Result<Option<pb::Job>, Status> {
        let Some(IdempotencyKey { key, fingerprint }) = key else { return Ok(None) };
        let lookup = Lookup { principal, key: Some(key.as_str()), name, experiment };
        let known = self.0.store.look_up(&[lookup]).map_err(told)?;
        match known.into_iter().find_map(|known| known.first) {
            Some((first, of)) if of == *fingerprint => {
                let job = self.find(first.as_str())?;
                Ok(Some(convert::job(&job, JobDetails::default())))
            }
            Some(_) | None => Ok(None),
        }
    }
}

#[tonic::async_trait]
impl pb::job_service_server::JobService for Service {
    #[tracing::instrument(skip_all, name = "job", fields(job))]
    async fn create_job(
        &self,
        request: Request<pb::CreateJobRequest>,
    ) -> Result<Response<pb::CreateJobResponse>, Status> {
        let asking = asking(&request)?;
        let caller = &asking.caller;
        let pb::CreateJobRequest { spec, idempotency_key } = request.into_inner();
        let spec = spec.ok_or_else(|| Status::invalid_argument("spec: is required"))?;
        let spec = CommandJob::try_from(spec).map_err(told)?;
        let key = match checked_key(idempotency_key)? {
            None => None,
            Some(key) => {
                let bytes = serde_json::to_vec(&spec)
                    .map_err(|e| Status::invalid_argument(format!("spec: {e}")))?;
                Some(IdempotencyKey { key, fingerprint: Digest::of(&bytes) })
            }
        };
        let name = match &spec.name {
            Some(name) => name.clone(),
            None => {
                let mut random = [0; 8];
                getrandom::fill(&mut random)
                    .map_err(|_| Status::internal("the system gave no random bytes"))?;
                JobName::generate(u64::from_ne_bytes(random))
            }
        };
        let experiment = spec.experiment_name.clone();
        // What it names must be there until the job is known to use it.
        let _held = self.0.datastores.hold().await;
        let spec = match self.0.admission.admit(&name, spec, caller).await {
            Ok(spec) => Arc::new(spec),
            // What it refers to may have gone since it was accepted.
            Err(problem) => match self.accepted(&caller.principal, &name, &experiment, &key)? {
                Some(job) => return Ok(Response::new(pb::CreateJobResponse { job: Some(job) })),
                None => return Err(told(problem)),
            },
        };
        let manages = caller.may(Permission::ManageCompute);
        let submission = SubmitRequest { name, spec, by: asking.actor(), manages, key };
        let job = self.0.handle.submit(submission).await.map_err(told)?;
        tracing::Span::current().record("job", job.name.as_str());
        let job = Some(convert::job(&job, JobDetails::default()));
        Ok(Response::new(pb::CreateJobResponse { job }))
    }

    async fn plan_job(
        &self,
        request: Request<pb::CreateJobRequest>,
    ) -> Result<Response<pb::JobPlan>, Status> {
        let caller = caller(&request)?;
        let spec = request.into_inner().spec;
        let spec = spec.ok_or_else(|| Status::invalid_argument("spec: is required"))?;
        let mut spec = CommandJob::try_from(spec).map_err(told)?;
        self.0.admission.ask_for_containers(&mut spec).map_err(told)?;
        self.0.admission.pin_secrets(&mut spec, &caller).map_err(told)?;
        queue::plan_job(&self.0, spec, caller).await.map(Response::new)
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        let job = self.find(&request.get_ref().name)?;
        let caller = caller(&request)?;
        let mut details = self.details(&job).await?;
        details.metrics = self.0.last_metrics(&job.name).await.map_err(told)?;
        if request.get_ref().advise {
            details.memory_advice = self.advice(&job).await?;
        }
        Ok(Response::new(shown(convert::job(&job, details), &caller)))
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let size = match request.page_size {
            0 => PAGE,
            size if size <= MAX_PAGE => size,
            size => {
                return Err(Status::invalid_argument(format!(
                    "page_size: is {size}, at most {MAX_PAGE} is allowed"
                )));
            }
        };
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Status::invalid_argument("page_token: is none that this daemon has given")
            })?),
        };
        let experiment = match request.experiment_name.as_str() {
            "" => None,
            name => Some(ExperimentName::new(name).map_err(told)?),
        };
        let mut statuses = Vec::new();
        for &number in &request.statuses {
            let status = pb::JobStatus::try_from(number).ok().and_then(pb::JobStatus::to_core);
            let status = status.ok_or_else(|| {
                Status::invalid_argument(format!("statuses: {number} is no job status"))
            })?;
            if !statuses.contains(&status) {
                statuses.push(status);
            }
        }
        let archived = match (request.archived_only, request.include_archived) {
            (true, _) => Archived::Only,
            (false, true) => Archived::With,
            (false, false) => Archived::Without,
        };
        // One more than asked for tells whether there is another page.
        let limit = size as usize + 1;
        let query = JobQuery { before, limit, statuses, experiment, archived };
        let store = self.0.store.clone();
        let mut jobs = blocking(move || store.jobs(&query)).await?.map_err(told)?;
        let next_page_token = if jobs.len() == limit {
            jobs.pop();
            jobs.last().map(|job| job.seq.to_string()).unwrap_or_default()
        } else {
            String::new()
        };
        let waiting: Vec<JobName> = jobs
            .iter()
            .filter(|job| matches!(job.state, State::Queued(_)))
            .map(|job| job.name.clone())
            .collect();
        let mut reasons = if waiting.is_empty() {
            HashMap::new()
        } else {
            self.0.handle.wait_reasons(waiting).await.map_err(told)?
        };
        let jobs = jobs
            .iter()
            .map(|job| {
                let wait_reason = reasons.remove(&job.name).unwrap_or_default();
                let job = convert::job(job, JobDetails { wait_reason, ..JobDetails::default() });
                shown(job, &caller)
            })
            .collect();
        Ok(Response::new(pb::ListJobsResponse { jobs, next_page_token }))
    }

    async fn explain_job(
        &self,
        request: Request<pb::ExplainJobRequest>,
    ) -> Result<Response<pb::Explanation>, Status> {
        let job = self.find(&request.get_ref().name)?;
        queue::explain_job(&self.0, &job).await.map(Response::new)
    }

    async fn list_queue(
        &self,
        request: Request<pb::ListQueueRequest>,
    ) -> Result<Response<pb::ListQueueResponse>, Status> {
        queue::list(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        let job = self.find(&request.get_ref().name)?;
        let by = self.cancelled_by(&request, &job)?;
        let caller = caller(&request)?;
        let reason: String = request.into_inner().reason.chars().take(500).collect();
        self.0.handle.cancel(job.name.clone(), by, reason).await.map_err(told)?;
        let job = self.find(job.name.as_str())?;
        Ok(Response::new(self.message(&job, &caller).await?))
    }

    async fn archive_job(
        &self,
        request: Request<pb::ArchiveJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        let job = self.find(&request.get_ref().name)?;
        let by = self.own(&request, &job)?;
        let archived = request.get_ref().archived;
        let job = self.0.handle.archive(job.name, archived, by).await.map_err(told)?;
        Ok(Response::new(self.message(&job, &caller(&request)?).await?))
    }

    async fn delete_job(
        &self,
        request: Request<pb::DeleteJobRequest>,
    ) -> Result<Response<pb::DeleteJobResponse>, Status> {
        let job = self.find(&request.get_ref().name)?;
        let by = self.own(&request, &job)?;
        let with_data = request.get_ref().with_data;
        let removed = self.0.removal.remove(&job, with_data, by).await.map_err(told)?;
        let Removed { kept, going } = removed;
        Ok(Response::new(pb::DeleteJobResponse { kept, going }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let job = match request.job.as_str() {
            "" => None,
            name => Some(self.find(name)?.name),
        };
        let limit = match request.limit {
            0 => EVENTS,
            limit => limit.min(MAX_EVENTS),
        };
        let store = self.0.store.clone();
        let events =
            blocking(move || store.events(job.as_ref(), request.after_seq, limit as usize))
                .await?
                .map_err(told)?;
        let events = events.iter().map(|event| told_of(event, &caller)).collect();
        Ok(Response::new(pb::ListEventsResponse { events }))
    }

    type WatchEventsStream = BoxStream<'static, Result<pb::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let present = request.extensions().get::<Present>().cloned();
        let present = present.ok_or_else(|| Status::unauthenticated("the caller is not known"))?;
        let request = request.into_inner();
        let job = match request.job.as_str() {
            "" => None,
            name => Some(self.find(name)?.name),
        };
        let (out, events) = mpsc::channel(64);
        tokio::spawn(watch(self.0.clone(), job, request.after_seq, present, out));
        Ok(Response::new(ReceiverStream::new(events).boxed()))
    }

    type StreamLogStream = BoxStream<'static, Result<pb::LogChunk, Status>>;

    async fn stream_log(
        &self,
        request: Request<pb::StreamLogRequest>,
    ) -> Result<Response<Self::StreamLogStream>, Status> {
        let request = request.into_inner();
        let job = self.find(&request.job)?;
        let (out, pieces) = mpsc::channel(16);
        let logs = self.0.logs.clone();
        let rank = request.rank;
        let count = job.spec.resources.instance_count.saturating_mul(job.spec.processes_per_node());
        if rank >= count {
            return Err(Status::invalid_argument(format!(
                "cannot stream the log of process {rank} of job '{}': it has {count}, from 0 to {}",
                job.name,
                count.saturating_sub(1)
            )));
        }
        let attempt = AttemptNumber(request.attempt);
        let from = LogStart { rank, attempt, offset: request.offset };
        let mut stopping = self.0.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = logs.stream(job.name, from, request.follow, out.clone()) => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        });
        let chunks = ReceiverStream::new(pieces)
            .map_ok(|piece| pb::LogChunk {
                attempt: piece.attempt.0,
                offset: piece.offset,
                data: piece.data,
            })
            .map_err(told);
        Ok(Response::new(chunks.boxed()))
    }

    async fn list_artifacts(
        &self,
        request: Request<pb::ListArtifactsRequest>,
    ) -> Result<Response<pb::ListArtifactsResponse>, Status> {
        let request = request.into_inner();
        let job = self.find(&request.job)?;
        let artifacts = self.0.artifacts(&job).await.map_err(told)?;
        let artifacts = artifacts
            .into_iter()
            .filter(|artifact| artifact.path.starts_with(&request.prefix))
            .map(|artifact| pb::Artifact {
                path: artifact.path,
                bytes: artifact.bytes,
                datastore: artifact.datastore.to_string(),
                key: artifact.key,
                digest: artifact.digest.map(|digest| digest.to_string()).unwrap_or_default(),
            })
            .collect();
        Ok(Response::new(pb::ListArtifactsResponse { artifacts }))
    }

    type EnterJobStream = FromNode;

    async fn enter_job(
        &self,
        request: Request<Streaming<pb::ClientFrame>>,
    ) -> Result<Response<FromNode>, Status> {
        let asking = asking(&request)?;
        let mut frames = request.into_inner();
        let open = Channels::first(&mut frames).await?;
        let job = self.find(&open.job)?;
        if !asking.is_own(&job.created_by, job.name.as_str()) {
            let (principal, owner) = (asking.caller.principal, job.created_by.clone());
            let job = job.name.to_string();
            return Err(told(Denied::NotEntered { principal, job, owner }));
        }
        let by = asking.actor();
        self.1.open(by, job.name, open, frames).await.map(Response::new)
    }

    async fn release_sandbox(
        &self,
        request: Request<pb::ReleaseSandboxRequest>,
    ) -> Result<Response<pb::ReleaseSandboxResponse>, Status> {
        let job = self.find(&request.get_ref().job)?;
        let by = self.cancelled_by(&request, &job)?;
        let gone = self.0.handle.release(job.name, by).await.map_err(told)?;
        let sandboxes = gone.iter().map(convert::sandbox).collect();
        Ok(Response::new(pb::ReleaseSandboxResponse { sandboxes }))
    }
}

/// What the caller may see of a job: who sees only how jobs fare is not told what they are made of, read or wrote.
fn shown(job: pb::Job, caller: &Caller) -> pb::Job {
    if caller.may(Permission::ReadRuns) {
        return job;
    }
    let spec = job.spec.and_then(|spec| spec.kind).map(|kind| {
        let pb::job_spec::Kind::Command(command) = kind;
        let command = pb::CommandJob {
            name: command.name,
            experiment_name: command.experiment_name,
            compute: command.compute,
            resources: command.resources,
            limits: command.limits,
            queue_settings: command.queue_settings,
            retry: command.retry,
            on_node_loss: command.on_node_loss,
            ..pb::CommandJob::default()
        };
        pb::JobSpec { kind: Some(pb::job_spec::Kind::Command(command)) }
    });
    pb::Job {
        spec,
        error: job.error.map(|error| pb::JobError { message: String::new(), ..error }),
        outputs: Vec::new(),
        metrics: Default::default(),
        memory_advice: None,
        output_assets: Default::default(),
        ..job
    }
}

/// The same of an event: what was run in a job, or why it failed in its own words, is the job's.
fn told_of(event: &Event, caller: &Caller) -> pb::Event {
    use atelier_core::job::EventKind as K;
    let mut told = pb::Event::from(event);
    let is_status = !matches!(
        event.kind,
        K::Entered { .. } | K::Forwarded { .. } | K::Debugged { .. } | K::Failed { .. }
    );
    if !is_status && !caller.may(Permission::ReadRuns) {
        told.message.clear();
    }
    told
}

/// Sends what the store has after `after`, then what happens. A watcher that lags behind is given
/// the store's again, so that none is missed or repeated.
async fn watch(
    shared: Shared,
    job: Option<JobName>,
    mut after: u64,
    watcher: Present,
    out: mpsc::Sender<Result<pb::Event, Status>>,
) {
    let mut live = shared.handle.events();
    let mut stopping = shared.stopping.clone();
    loop {
        loop {
            let page = match shared.store.events(job.as_ref(), after, EVENTS as usize) {
                Ok(page) => page,
                Err(error) => {
                    let _ = out.send(Err(told(error))).await;
                    return;
                }
            };
            let full = page.len() == EVENTS as usize;
            for event in &page {
                after = event.seq.0;
                if out.send(Ok(told_of(event, &watcher.caller()))).await.is_err() {
                    return;
                }
                if job.is_some() && is_last(event) && !full {
                    return;
                }
            }
            if !full {
                break;
            }
        }
        // A job that is over has no further events.
        if let Some(name) = &job
            && let Ok(Some(found)) = shared.store.job(name)
            && found.ended().is_some()
        {
            let more = shared.store.events(Some(name), after, 1);
            if more.is_ok_and(|more| more.is_empty()) {
                return;
            }
            continue;
        }
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                () = out.closed() => return,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            match event {
                Ok(event) => {
                    let wanted = job.as_ref().is_none_or(|job| job == &event.job);
                    if !wanted || event.seq.0 <= after {
                        continue;
                    }
                    after = event.seq.0;
                    if out.send(Ok(told_of(&event, &watcher.caller()))).await.is_err() {
                        return;
                    }
                    if job.is_some() && is_last(&event) {
                        return;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => break,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn is_last(event: &Event) -> bool {
    use atelier_core::job::EventKind as K;
    matches!(event.kind, K::Completed | K::Failed { .. } | K::Canceled { .. })
}
