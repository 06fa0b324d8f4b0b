//! A daemon in the test's process that answers as it is told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use atelier_proto::job::v1 as pb;
use atelier_proto::job::v1::job_service_server::{JobService, JobServiceServer};
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::output::tests::{Captured, captured};
use super::{Context, Format};
use crate::client::{Client, Home, Wanted};

/// What the daemon knows, and what it was asked.
#[derive(Default)]
pub(super) struct World {
    pub(super) jobs: Vec<pb::Job>,
    pub(super) events: Vec<pb::Event>,
    pub(super) artifacts: Vec<pb::Artifact>,
    /// Each call of `StreamLog` takes the first.
    pub(super) logs: VecDeque<Vec<Result<pb::LogChunk, Status>>>,
    /// Answers to the next calls of `GetJob`, before what is known.
    pub(super) answers: VecDeque<pb::Job>,
    /// Answers to the next calls of `CreateJob`, before jobs are made.
    pub(super) failures: VecDeque<Status>,
    pub(super) created: Vec<pb::CreateJobRequest>,
    pub(super) log_requests: Vec<pb::StreamLogRequest>,
    pub(super) list_requests: Vec<pb::ListJobsRequest>,
    pub(super) deleted: Vec<String>,
}

/// The daemon; the token is `right`.
#[derive(Clone, Default)]
pub(super) struct Daemon(Arc<Mutex<World>>);

impl Daemon {
    /// Looks at the world, or changes it.
    pub(super) fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts it on a free port, and gives its address.
    pub(super) async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        #[allow(clippy::result_large_err)]
        let door = |request: Request<()>| match request.metadata().get("authorization") {
            Some(token) if token == "Bearer right" => Ok(request),
            _ => Err(Status::unauthenticated("this token is unknown here")),
        };
        let routes = tonic::transport::Server::builder()
            .add_service(JobServiceServer::with_interceptor(self.clone(), door))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(routes);
        server
    }

    /// A command's context that reaches the daemon, and what it prints.
    pub(super) async fn context(
        &self,
        format: Option<Format>,
        query: Option<&str>,
    ) -> (Context, Captured) {
        let (output, captured) = captured(format, query);
        let wanted = Wanted {
            server: Some(self.serve().await),
            token: Some("right".to_owned()),
            ..Wanted::default()
        };
        (Context { output, wanted }, captured)
    }

    fn find(&self, name: &str) -> Result<pb::Job, Status> {
        let found = self.world(|world| world.jobs.iter().find(|job| job.name == name).cloned());
        found.ok_or_else(|| Status::not_found(format!("there is no job '{name}'")))
    }
}

/// A job of a command that needs nothing.
pub(super) fn job(name: &str, status: pb::JobStatus) -> pb::Job {
    let command = pb::CommandJob {
        command: "true".to_owned(),
        experiment_name: "tests".to_owned(),
        ..Default::default()
    };
    pb::Job {
        name: name.to_owned(),
        status: status.into(),
        spec: Some(pb::JobSpec { kind: Some(pb::job_spec::Kind::Command(command)) }),
        created_at_ms: 1_000,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl JobService for Daemon {
    async fn create_job(
        &self,
        request: Request<pb::CreateJobRequest>,
    ) -> Result<Response<pb::CreateJobResponse>, Status> {
        let request = request.into_inner();
        self.world(|world| {
            world.created.push(request.clone());
            if let Some(failure) = world.failures.pop_front() {
                return Err(failure);
            }
            let mut made = job("made_up_name", pb::JobStatus::Queued);
            if let Some(pb::job_spec::Kind::Command(command)) =
                request.spec.clone().and_then(|spec| spec.kind)
                && !command.name.is_empty()
            {
                made.name = command.name;
            }
            made.spec = request.spec;
            world.jobs.push(made.clone());
            Ok(Response::new(pb::CreateJobResponse { job: Some(made) }))
        })
    }

    async fn plan_job(
        &self,
        _: Request<pb::CreateJobRequest>,
    ) -> Result<Response<pb::JobPlan>, Status> {
        Err(Status::unimplemented("asked end to end only"))
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        if let Some(answer) = self.world(|world| world.answers.pop_front()) {
            return Ok(Response::new(answer));
        }
        self.find(&request.get_ref().name).map(Response::new)
    }

    /// Pages of at most two; the token is the index of the next.
    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        let request = request.into_inner();
        self.world(|world| {
            world.list_requests.push(request.clone());
            let from: usize = request.page_token.parse().unwrap_or(0);
            let size = (request.page_size as usize).min(2);
            let jobs: Vec<_> = world.jobs.iter().skip(from).take(size).cloned().collect();
            let next = from + jobs.len();
            let more = next < world.jobs.len();
            let next_page_token = if more { next.to_string() } else { String::new() };
            Ok(Response::new(pb::ListJobsResponse { jobs, next_page_token }))
        })
    }

    async fn explain_job(
        &self,
        request: Request<pb::ExplainJobRequest>,
    ) -> Result<Response<pb::Explanation>, Status> {
        let job = self.find(&request.get_ref().name)?;
        let (name, status, reason) = (job.name, job.status, job.wait_reason);
        Ok(Response::new(pb::Explanation { name, status, reason, ..Default::default() }))
    }

    async fn list_queue(
        &self,
        _: Request<pb::ListQueueRequest>,
    ) -> Result<Response<pb::ListQueueResponse>, Status> {
        Err(Status::unimplemented("asked end to end only"))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        self.find(&request.get_ref().name).map(Response::new)
    }

    async fn archive_job(
        &self,
        request: Request<pb::ArchiveJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        let mut job = self.find(&request.get_ref().name)?;
        job.archived = request.get_ref().archived;
        Ok(Response::new(job))
    }

    async fn delete_job(
        &self,
        request: Request<pb::DeleteJobRequest>,
    ) -> Result<Response<pb::DeleteJobResponse>, Status> {
        let job = self.find(&request.get_ref().name)?;
        self.world(|world| world.deleted.push(job.name));
        Ok(Response::new(pb::DeleteJobResponse::default()))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let events = self.world(|world| world.events.clone());
        let events = events
            .into_iter()
            .filter(|event| event.seq > request.after_seq)
            .take(request.limit as usize)
            .collect();
        Ok(Response::new(pb::ListEventsResponse { events }))
    }

    type WatchEventsStream = BoxStream<'static, Result<pb::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let after = request.get_ref().after_seq;
        let events = self.world(|world| world.events.clone());
        let events = events.into_iter().filter(move |event| event.seq > after).map(Ok);
        Ok(Response::new(stream::iter(events).boxed()))
    }

    type StreamLogStream = BoxStream<'static, Result<pb::LogChunk, Status>>;

    async fn stream_log(
        &self,
        request: Request<pb::StreamLogRequest>,
    ) -> Result<Response<Self::StreamLogStream>, Status> {
        self.find(&request.get_ref().job)?;
        let chunks = self.world(|world| {
            world.log_requests.push(request.into_inner());
            world.logs.pop_front().unwrap_or_default()
        });
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn list_artifacts(
        &self,
        request: Request<pb::ListArtifactsRequest>,
    ) -> Result<Response<pb::ListArtifactsResponse>, Status> {
        let request = request.into_inner();
        self.find(&request.job)?;
        let artifacts = self.world(|world| world.artifacts.clone());
        let artifacts = artifacts
            .into_iter()
            .filter(|artifact| artifact.path.starts_with(&request.prefix))
            .collect();
        Ok(Response::new(pb::ListArtifactsResponse { artifacts }))
    }

    type EnterJobStream = BoxStream<'static, Result<pb::NodeFrame, Status>>;

    async fn enter_job(
        &self,
        _: Request<tonic::Streaming<pb::ClientFrame>>,
    ) -> Result<Response<Self::EnterJobStream>, Status> {
        Err(Status::unimplemented("asked end to end only"))
    }

    async fn release_sandbox(
        &self,
        _: Request<pb::ReleaseSandboxRequest>,
    ) -> Result<Response<pb::ReleaseSandboxResponse>, Status> {
        Err(Status::unimplemented("asked end to end only"))
    }
}

/// The real daemon, in this process and a folder of its own.
pub(super) struct RealDaemon {
    folder: tempfile::TempDir,
    daemon: crate::daemon::Daemon,
}

impl RealDaemon {
    pub(super) async fn start() -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            serve: crate::config::ServeArgs,
        }
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path());
        let data = home.data();
        let line = ["serve", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let arguments = <Line as clap::Parser>::parse_from(line).serve;
        let daemon = crate::daemon::start(arguments).await.unwrap();
        Self { folder, daemon }
    }

    /// As commands find it: as the local workspace.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted { home: Some(Home::new(self.folder.path())), ..Wanted::default() }
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        self.daemon.stop().await.unwrap();
    }

    pub(super) async fn client(&self) -> Client {
        let target = self.wanted().resolve().unwrap();
        assert_eq!(target.server, self.daemon.url);
        Client::connect(target).await.unwrap()
    }
}
