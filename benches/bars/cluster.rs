//! A daemon and an agent in a temporary folder, as real processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atelier_agent::trust::Trust;
use atelier_proto::compute::v1::compute_service_client::ComputeServiceClient;
use atelier_proto::compute::v1::{ListNodesRequest, NodeState};
use atelier_proto::job::v1 as pb;
use atelier_proto::job::v1::job_service_client::JobServiceClient;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

pub(crate) const ATELIER: &str = env!("CARGO_BIN_EXE_atelier");

pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    pub(crate) daemon: Child,
    pub(crate) agent: Option<Child>,
    pub(crate) url: String,
    pub(crate) token: String,
}

#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) type Jobs = JobServiceClient<InterceptedService<Channel, Bearer>>;

impl Cluster {
    /// A daemon alone, or with an agent that declares `slots` CPUs.
    pub(crate) fn start(slots: Option<u32>) -> Self {
        Self::with(slots, &[], &[])
    }

    /// A daemon alone, encrypted.
    pub(crate) fn start_secure() -> Self {
        Self::with(None, &["--tls", "on"], &[])
    }

    /// A daemon and an agent with further arguments.
    pub(crate) fn start_with(slots: u32, agent: &[&str]) -> Self {
        Self::with(Some(slots), &[], agent)
    }

    /// A daemon alone, whose folder was filled while it did not run.
    pub(crate) fn prepared(fill: impl FnOnce(&Path)) -> Self {
        let mut first = Self::start(None);
        let pid = rustix::process::Pid::from_child(&first.daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        first.daemon.wait().unwrap();
        fs::remove_file(first.data().join("endpoint")).ok();
        fill(&first.data());
        let folder = std::mem::replace(&mut first.folder, tempfile::tempdir().unwrap());
        Self::in_folder(folder, None, &[], &[])
    }

    fn with(slots: Option<u32>, serve: &[&str], more: &[&str]) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), slots, serve, more)
    }

    fn in_folder(
        folder: tempfile::TempDir,
        slots: Option<u32>,
        serve: &[&str],
        more: &[&str],
    ) -> Self {
        let data = folder.path().join("data");
        let log = |name: &str| fs::File::create(folder.path().join(name)).unwrap();
        let daemon = Command::new(ATELIER)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--request-rate",
                "1000000000",
                "--data-dir",
            ])
            .arg(&data)
            .args(serve)
            .env("ATELIER_LOG", "warn")
            .stderr(log("daemon.log"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let endpoint = data.join("endpoint");
        wait("the daemon listens", || endpoint.exists());
        let url = fs::read_to_string(&endpoint).unwrap();
        let token = fs::read_to_string(data.join("admin.token")).unwrap().trim().to_owned();
        let mut cluster = Self { folder, daemon, agent: None, url, token };
        if let Some(slots) = slots {
            let log = log_file(&cluster.folder.path().join("agent.log"));
            let agent = Command::new(ATELIER)
                .args(["agent", "--node", "local", "--compute", "local", "--memory", "64GiB"])
                .args(["--cpus", &slots.to_string(), "--server", &cluster.url])
                .arg("--token-file")
                .arg(data.join("agent.token"))
                .arg("--data-dir")
                .arg(cluster.folder.path().join("agent"))
                .args(more)
                .env("ATELIER_LOG", "warn")
                .stderr(log)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            cluster.agent = Some(agent);
            cluster.wait_for_node();
        }
        cluster
    }

    /// The daemon's folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn wait_for_node(&self) {
        runtime().block_on(async {
            let channel = self.channel().await;
            let mut computes = ComputeServiceClient::with_interceptor(channel, self.bearer());
            let begin = Instant::now();
            loop {
                let request = ListNodesRequest { compute: String::new() };
                let nodes = computes.list_nodes(request).await.unwrap().into_inner().nodes;
                if nodes.iter().any(|node| node.state() == NodeState::Idle) {
                    return;
                }
                assert!(begin.elapsed() < Duration::from_secs(20), "the node did not join");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// What the node says of itself under a name.
    pub(crate) fn fact(&self, name: &str) -> String {
        runtime().block_on(async {
            let channel = self.channel().await;
            let mut computes = ComputeServiceClient::with_interceptor(channel, self.bearer());
            let request = ListNodesRequest { compute: String::new() };
            let mut nodes = computes.list_nodes(request).await.unwrap().into_inner().nodes;
            nodes.pop().and_then(|mut node| node.facts.remove(name)).unwrap_or_default()
        })
    }

    fn bearer(&self) -> Bearer {
        Bearer(format!("Bearer {}", self.token).parse().unwrap())
    }

    async fn channel(&self) -> Channel {
        let trust = match self.url.starts_with("https:") {
            true => Trust::of_file(&self.data().join("tls/ca.pem")).unwrap(),
            false => Trust::System,
        };
        let endpoint = Channel::from_shared(self.url.clone()).unwrap().tcp_nodelay(true);
        trust.connect(&endpoint).await.unwrap()
    }

    pub(crate) async fn jobs(&self) -> Jobs {
        JobServiceClient::with_interceptor(self.channel().await, self.bearer())
    }

    /// The client program, pointed at this daemon.
    pub(crate) fn cli(&self) -> Command {
        let mut command = Command::new(ATELIER);
        command
            .env("ATELIER_SERVER", &self.url)
            .env("ATELIER_TOKEN", &self.token)
            .env("ATELIER_HOME", self.folder.path().join("home"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.agent.iter_mut().chain([&mut self.daemon]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn log_file(path: &std::path::Path) -> fs::File {
    fs::File::create(path).unwrap()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// `true` in the host environment.
pub(crate) fn true_job(key: String) -> pb::CreateJobRequest {
    let command = pb::CommandJob {
        command: "true".to_owned(),
        experiment_name: "bench".to_owned(),
        environment: Some(pb::Environment {
            source: Some(pb::environment::Source::Host(pb::HostEnvironment {})),
        }),
        resources: Some(pb::Resources { instance_count: 1, cpu_milli: 1000, ..Default::default() }),
        retry: Some(pb::Retry { max_attempts: 1, ..Default::default() }),
        ..Default::default()
    };
    let spec = pb::JobSpec { kind: Some(pb::job_spec::Kind::Command(command)) };
    pb::CreateJobRequest { spec: Some(spec), idempotency_key: key }
}

pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
