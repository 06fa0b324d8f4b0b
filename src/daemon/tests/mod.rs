//! A whole daemon in this process, spoken to over its port.

mod bad_input;
mod builds;
mod caches;
pub(crate) mod raw;
mod registry;
mod samples;
mod session;

use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use atelier_proto::agent::v1::agent_service_client::AgentServiceClient;
use atelier_proto::identity::v1::{CreateTokenRequest, Role};
use atelier_proto::job::v1 as job_pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Daemon, start};
use crate::client::{Client, Target, Token};
use crate::config::ServeArgs;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Workspace {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) daemon: Daemon,
    pub(crate) admin: Client,
    /// Has the vault's key.
    _keys: tempfile::TempDir,
}

impl Workspace {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = tempfile::tempdir().unwrap();
        let key = format!("file:{}", keys.path().join("vault.key").display());
        let args = ServeArgs {
            data_dir: Some(folder.path().to_owned()),
            listen: "127.0.0.1:0".parse().unwrap(),
            jobs_listen: None,
            tls: crate::config::TlsWhen::Auto,
            tls_name: vec![],
            tls_cert: None,
            tls_key: None,
            node_certificate_life: Duration::from_secs(24 * 3600),
            workspace: "test".parse().unwrap(),
            compute: vec!["local".parse().unwrap()],
            require_containers: false,
            public_data: crate::config::PublicData::Allow,
            public_s3: None,
            public_azure: None,
            curated_environments: None,
            sizes: None,
            storage: None,
            store_patience: 60,
            vault_key: Some(key.parse().unwrap()),
            transit: Default::default(),
            oidc: Default::default(),
            vault_old_key: vec![],
            log_limit: 1 << 20,
            grace: 1,
            lease: 600,
            signed_urls: crate::config::SignedUrls::Auto,
            limits: Default::default(),
            log_format: crate::telemetry::Format::Text,
        };
        let daemon = start(args).await.unwrap();
        let url = format!("http://{}", daemon.address);
        let admin = connect(&url, &file(&folder, "admin.token")).await;
        Self { folder, daemon, admin, _keys: keys }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.daemon.address)
    }

    pub(crate) fn token_of(&self, name: &str) -> String {
        file(&self.folder, name)
    }

    pub(crate) async fn as_holder_of(&self, token: &str) -> Client {
        connect(&self.url(), token).await
    }

    pub(crate) async fn token_for(&self, user: &str, role: Role) -> String {
        let (user, role) = (user.to_owned(), role.into());
        let request = CreateTokenRequest { user, role, ..CreateTokenRequest::default() };
        self.admin.tokens().create_token(request).await.unwrap().into_inner().token
    }

    /// Opens a session as the node `local`, with four CPUs and nothing running.
    pub(crate) async fn node(&self, attempts: Vec<pb::AttemptReport>) -> Node {
        let client = self.as_holder_of(&self.token_of("agent.token")).await;
        let (up, messages) = mpsc::channel(16);
        let hello = pb::Hello {
            node: "local".to_owned(),
            compute: "local".to_owned(),
            cpu_milli: 4000,
            memory_mib: 1024,
            instance_id: "one".to_owned(),
            attempts,
            ..pb::Hello::default()
        };
        let hello = pb::agent_message::Message::Hello(hello);
        up.send(pb::AgentMessage { message: Some(hello) }).await.unwrap();
        let mut stub = AgentServiceClient::new(client.authorized());
        let down = stub.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let mut node = Node { up, down, given: Vec::new() };
        let Some(pb::daemon_message::Message::Welcome(_)) = node.hears().await else {
            panic!("no welcome")
        };
        node
    }
}

fn file(folder: &tempfile::TempDir, name: &str) -> String {
    std::fs::read_to_string(folder.path().join(name)).unwrap().trim().to_owned()
}

async fn connect(url: &str, token: &str) -> Client {
    let target = Target {
        server: url.to_owned(),
        token: Token::new(token),
        local: false,
        trust: Default::default(),
    };
    Client::connect(target).await.unwrap()
}

/// A node's side of its session.
pub(crate) struct Node {
    up: mpsc::Sender<pb::AgentMessage>,
    down: Streaming<pb::DaemonMessage>,
    given: Vec<pb::AttemptKey>,
}

impl Node {
    /// The next message; nothing once the daemon has ended the session.
    pub(crate) async fn hears(&mut self) -> Option<pb::daemon_message::Message> {
        let message = tokio::time::timeout(PATIENCE, self.down.message()).await;
        message.expect("the daemon says nothing").unwrap().map(|message| message.message.unwrap())
    }

    /// The next message, which must give it an attempt.
    pub(crate) async fn is_given(&mut self) -> pb::Assignment {
        match self.hears().await {
            Some(pb::daemon_message::Message::Assign(assignment)) => {
                self.given.push(assignment.key.clone().unwrap());
                assignment
            }
            other => panic!("{other:?}"),
        }
    }

    /// Says that the attempt it was given of this job was killed.
    pub(crate) async fn says_ended(&mut self, job: &str) {
        let key = self.given.iter().find(|key| key.job == job).cloned();
        let exit = pb::Exit { how: Some(pb::exit::How::Signal(15)) };
        let ended = pb::Ended { exit: Some(exit), ..pb::Ended::default() };
        let phase = Some(pb::attempt_report::Phase::Ended(ended));
        let report = pb::agent_message::Message::Report(pb::AttemptReport { key, phase });
        self.up.send(pb::AgentMessage { message: Some(report) }).await.unwrap();
    }
}

/// A submission of a command that needs nothing.
pub(crate) fn submission(name: &str) -> job_pb::CreateJobRequest {
    let host = job_pb::environment::Source::Host(job_pb::HostEnvironment {});
    let job = job_pb::CommandJob {
        name: name.to_owned(),
        command: "true".to_owned(),
        experiment_name: "tests".to_owned(),
        environment: Some(job_pb::Environment { source: Some(host) }),
        ..job_pb::CommandJob::default()
    };
    job_pb::CreateJobRequest {
        spec: Some(job_pb::JobSpec { kind: Some(job_pb::job_spec::Kind::Command(job)) }),
        idempotency_key: String::new(),
    }
}
