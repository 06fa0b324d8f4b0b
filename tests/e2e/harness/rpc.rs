//! The daemon asked directly, without a command line between.

use std::future::Future;
use std::time::{Duration, Instant};

use atelier::client::{Client, Error, Target, Token};
use atelier_agent::trust::Trust;
use atelier_proto::job::v1::{
    CommandJob, CreateJobRequest, Environment, Event, GetJobRequest, HostEnvironment, Job, JobSpec,
    JobStatus, ListArtifactsRequest, ListEventsRequest, ListJobsRequest, environment, job_spec,
};
use tokio::runtime::Runtime;

use super::wait::is_over;

/// A connection, and a runtime to use it on.
pub(crate) struct Rpc {
    runtime: Runtime,
    pub(crate) client: Client,
}

impl Rpc {
    /// Connects.
    pub(crate) fn connect(server: &str, token: &str) -> Result<Self, Error> {
        Self::trusting(server, token, Trust::System)
    }

    /// Connects to a daemon that is vouched for.
    pub(crate) fn trusting(server: &str, token: &str, trust: Trust) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let token = Token::new(token);
        let target = Target { server: server.to_owned(), token, local: false, trust };
        let client = runtime.block_on(Client::connect(target))?;
        Ok(Self { runtime, client })
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Submits a shell command under a name. Tries once.
    pub(crate) fn create(&self, name: &str, command: &str) -> Result<Job, Error> {
        let request = create_request(name, command, "");
        let answer = self.wait(self.client.call(self.client.jobs().create_job(request)))?;
        Ok(answer.job.unwrap_or_default())
    }

    pub(crate) fn job(&self, name: &str) -> Result<Job, Error> {
        let request = GetJobRequest { name: name.to_owned(), advise: false };
        self.wait(self.client.call(self.client.jobs().get_job(request)))
    }

    /// Every job there is, archived ones too.
    pub(crate) fn jobs(&self) -> Result<Vec<Job>, Error> {
        let mut request =
            ListJobsRequest { page_size: 1000, include_archived: true, ..Default::default() };
        let mut jobs = Vec::new();
        loop {
            let page =
                self.wait(self.client.call(self.client.jobs().list_jobs(request.clone())))?;
            jobs.extend(page.jobs);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(jobs);
            }
        }
    }

    pub(crate) fn events(&self, job: &str) -> Result<Vec<Event>, Error> {
        let request = ListEventsRequest { job: job.to_owned(), after_seq: 0, limit: 10_000 };
        Ok(self.wait(self.client.call(self.client.jobs().list_events(request)))?.events)
    }

    /// Paths of what the job has made visible.
    pub(crate) fn artifacts(&self, job: &str) -> Vec<String> {
        let request = ListArtifactsRequest { job: job.to_owned(), prefix: String::new() };
        let answer = self.wait(self.client.call(self.client.jobs().list_artifacts(request)));
        answer.unwrap().artifacts.into_iter().map(|artifact| artifact.path).collect()
    }

    /// Waits until the job has one of the wanted statuses; fails if it ends otherwise.
    #[track_caller]
    pub(crate) fn reaches(&self, name: &str, wanted: &[JobStatus], patience: Duration) -> Job {
        let begun = Instant::now();
        loop {
            let job = self.job(name).unwrap();
            if wanted.contains(&job.status()) {
                return job;
            }
            let hopeless = job.status().is_final();
            if hopeless || is_over(begun, patience) {
                let events = self.events(name).unwrap_or_default();
                let events: Vec<_> =
                    events.iter().map(|e| format!("  {} {}", e.kind, e.message)).collect();
                panic!(
                    "{name} is {:?}, not one of {wanted:?}, after {:?}; error {:?}, waits for \
                     {:?}\n{}",
                    job.status(),
                    begun.elapsed(),
                    job.error,
                    job.wait_reason,
                    events.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A submission of a shell command.
pub(crate) fn create_request(name: &str, command: &str, key: &str) -> CreateJobRequest {
    let host = environment::Source::Host(HostEnvironment {});
    let job = CommandJob {
        name: name.to_owned(),
        command: command.to_owned(),
        experiment_name: "tests".to_owned(),
        environment: Some(Environment { source: Some(host) }),
        ..CommandJob::default()
    };
    CreateJobRequest {
        spec: Some(JobSpec { kind: Some(job_spec::Kind::Command(job)) }),
        idempotency_key: key.to_owned(),
    }
}
