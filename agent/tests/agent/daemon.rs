//! The daemon's side of `AgentService`, driven by a test, and the agent's process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use atelier_proto::job::v1 as job;
use pb::agent_message::Message as Up;
use pb::agent_service_server::{AgentService, AgentServiceServer};
use pb::attempt_report::Phase;
use pb::daemon_message::Message as Down;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longer than anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const TOKEN: &str = "node-token-of-the-test";

type Answers = UnboundedReceiverStream<Result<pb::DaemonMessage, Status>>;

/// What a session of the agent sends and takes.
pub(crate) struct Session {
    pub(crate) hello: pb::Hello,
    up: mpsc::UnboundedReceiver<Up>,
    down: mpsc::UnboundedSender<Result<pb::DaemonMessage, Status>>,
    /// Reports seen so far.
    pub(crate) seen: Vec<pb::AttemptReport>,
    answers_heartbeats: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Service {
    sessions: mpsc::UnboundedSender<Session>,
    welcome: pb::Welcome,
    chunks: Arc<Mutex<BTreeMap<u64, mpsc::UnboundedSender<pb::PushLogRequest>>>>,
    samples: mpsc::UnboundedSender<pb::RunSample>,
    metrics: Arc<Metrics>,
    secrets: Arc<Secrets>,
}

/// What nodes are given for their attempts.
#[derive(Default)]
pub(crate) struct Secrets {
    /// How often.
    pub(crate) asked: Mutex<u32>,
    /// `None`: nothing yet.
    pub(crate) given: Mutex<Option<pb::OpenSecretsResponse>>,
}

/// What becomes of samples that are sent.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Answers nothing while it is held.
    pub(crate) silent: tokio::sync::Mutex<()>,
    /// Calls to be answered with this before one is taken.
    pub(crate) refusals: Mutex<Vec<tonic::Code>>,
    /// What was sent with those.
    pub(crate) refused: Mutex<Vec<pb::RunSample>>,
}

fn authorise<T>(request: &Request<T>) -> Result<(), Status> {
    let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    if header == Some(&format!("Bearer {TOKEN}")) {
        Ok(())
    } else {
        Err(Status::unauthenticated(
            "this token is not known; make one with 'atelier token create'",
        ))
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = Answers;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Answers>, Status> {
        authorise(&request)?;
        let mut stream = request.into_inner();
        let (up, from_agent) = mpsc::unbounded_channel();
        let (down, answers) = mpsc::unbounded_channel();
        let first = stream.message().await?.and_then(|message| message.message);
        let Some(Up::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let welcome = pb::DaemonMessage { message: Some(Down::Welcome(self.welcome.clone())) };
        down.send(Ok(welcome)).unwrap();
        let answers_heartbeats = Arc::new(AtomicBool::new(true));
        let (acks, answering) = (down.clone(), Arc::clone(&answers_heartbeats));
        let _ = self.sessions.send(Session {
            hello,
            up: from_agent,
            down,
            seen: Vec::new(),
            answers_heartbeats,
        });
        tokio::spawn(async move {
            while let Ok(Some(pb::AgentMessage { message: Some(message) })) = stream.message().await
            {
                if let Up::Heartbeat(heartbeat) = &message
                    && answering.load(Ordering::SeqCst)
                {
                    let ack = Down::HeartbeatAck(pb::HeartbeatAck { number: heartbeat.number });
                    let _ = acks.send(Ok(pb::DaemonMessage { message: Some(ack) }));
                }
                if up.send(message).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answers)))
    }

    async fn open_secrets(
        &self,
        request: Request<pb::OpenSecretsRequest>,
    ) -> Result<Response<pb::OpenSecretsResponse>, Status> {
        authorise(&request)?;
        *self.secrets.asked.lock().unwrap() += 1;
        match &*self.secrets.given.lock().unwrap() {
            None => Err(Status::unavailable("not yet")),
            Some(given) => Ok(Response::new(given.clone())),
        }
    }

    async fn push_log(
        &self,
        request: Request<Streaming<pb::PushLogRequest>>,
    ) -> Result<Response<pb::PushLogResponse>, Status> {
        authorise(&request)?;
        let mut stream = request.into_inner();
        while let Some(chunk) = stream.message().await? {
            let to = self.chunks.lock().unwrap().get(&chunk.request_id).cloned();
            if to.is_none_or(|to| to.send(chunk).is_err()) {
                return Err(Status::cancelled("nobody listens"));
            }
        }
        Ok(Response::new(pb::PushLogResponse {}))
    }

    async fn record_metrics(
        &self,
        request: Request<pb::RecordMetricsRequest>,
    ) -> Result<Response<pb::RecordMetricsResponse>, Status> {
        authorise(&request)?;
        let refusal = self.metrics.refusals.lock().unwrap().pop();
        if let Some(code) = refusal {
            self.metrics.refused.lock().unwrap().extend(request.into_inner().samples);
            return Err(Status::new(code, "for the test"));
        }
        let _silent = self.metrics.silent.lock().await;
        for sample in request.into_inner().samples {
            let _ = self.samples.send(sample);
        }
        Ok(Response::new(pb::RecordMetricsResponse {}))
    }

    type JoinChannelStream = tokio_stream::Empty<Result<job::ClientFrame, Status>>;

    async fn join_channel(
        &self,
        _: Request<Streaming<pb::JoinChannelRequest>>,
    ) -> Result<Response<Self::JoinChannelStream>, Status> {
        Err(Status::unimplemented("asked end to end only"))
    }
}

/// A daemon on a port of its own.
pub(crate) struct Daemon {
    pub(crate) url: String,
    sessions: mpsc::UnboundedReceiver<Session>,
    pub(crate) samples: mpsc::UnboundedReceiver<pb::RunSample>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) secrets: Arc<Secrets>,
    chunks: Arc<Mutex<BTreeMap<u64, mpsc::UnboundedSender<pb::PushLogRequest>>>>,
    /// Dropping it stops the server at once, connections and all.
    _server: tokio::task::JoinSet<()>,
    _stop: watch::Sender<()>,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut pb::Welcome)) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sessions, opened) = mpsc::unbounded_channel();
        let (samples_sender, samples) = mpsc::unbounded_channel();
        let chunks = Arc::default();
        let mut welcome = pb::Welcome {
            heartbeat_ms: 200,
            lease_ms: 600_000,
            http_url: url.clone(),
            workspace: "test-workspace".to_owned(),
            workspace_id: "w-1".to_owned(),
            ..pb::Welcome::default()
        };
        change(&mut welcome);
        let metrics = Arc::<Metrics>::default();
        let secrets = Arc::<Secrets>::default();
        let service = Service {
            sessions,
            welcome,
            chunks: Arc::clone(&chunks),
            samples: samples_sender,
            metrics: Arc::clone(&metrics),
            secrets: Arc::clone(&secrets),
        };
        // Connections live in tasks of a runtime of their own: dropping it cuts them like a kill.
        let (stop, mut stopped) = watch::channel(());
        let mut server = tokio::task::JoinSet::new();
        let std_listener = listener.into_std().unwrap();
        server.spawn_blocking(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(std_listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder()
                    .add_service(AgentServiceServer::new(service))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = server => served.unwrap(),
                    _ = stopped.changed() => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            url,
            sessions: opened,
            samples,
            metrics,
            secrets,
            chunks,
            _server: server,
            _stop: stop,
        }
    }

    /// The agent's next session.
    pub(crate) async fn session(&mut self) -> Session {
        within(self.sessions.recv()).await.expect("the server stopped")
    }

    /// Where the chunks of a followed log arrive.
    pub(crate) fn follow(
        &self,
        session: &Session,
        request: pb::FollowLog,
    ) -> mpsc::UnboundedReceiver<pb::PushLogRequest> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.chunks.lock().unwrap().insert(request.request_id, sender);
        session.send(Down::FollowLog(request));
        receiver
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("waited in vain")
}

impl Session {
    pub(crate) fn send(&self, message: Down) {
        let _ = self.down.send(Ok(pb::DaemonMessage { message: Some(message) }));
    }

    pub(crate) fn cancel(&self, key: &pb::AttemptKey, reason: &str) {
        let cancel = pb::CancelAttempt { key: Some(key.clone()), reason: reason.to_owned() };
        self.send(Down::Cancel(cancel));
    }

    pub(crate) fn stop_answering_heartbeats(&self) {
        self.answers_heartbeats.store(false, Ordering::SeqCst);
    }

    /// The next message but heartbeats, what is kept of failed attempts, and what changed of the node.
    pub(crate) async fn next(&mut self) -> Option<Up> {
        loop {
            match self.up.recv().await? {
                Up::Heartbeat(_) | Up::Kept(_) | Up::Changed(_) | Up::Held(_) => {}
                other => return Some(other),
            }
        }
    }

    /// Waits for word of what changed of the node.
    pub(crate) async fn changed(&mut self) -> pb::Changed {
        within(async {
            loop {
                if let Up::Changed(changed) = self.up.recv().await.expect("the session ended") {
                    return changed;
                }
            }
        })
        .await
    }

    /// Waits for a heartbeat and gives it.
    pub(crate) async fn heartbeat(&mut self) -> pb::Heartbeat {
        within(async {
            loop {
                match self.up.recv().await.expect("the session ended") {
                    Up::Heartbeat(heartbeat) => return heartbeat,
                    Up::Report(report) => self.seen.push(report),
                    Up::Hello(_) => panic!("a second Hello"),
                    Up::Cache(_) => panic!("nobody asked what is kept"),
                    Up::Build(_) => panic!("nobody asked for an environment"),
                    Up::Changed(_) | Up::Kept(_) | Up::Held(_) => {}
                }
            }
        })
        .await
    }

    /// Waits for a report of an attempt that `wanted` takes.
    pub(crate) async fn report<T>(
        &mut self,
        key: &pb::AttemptKey,
        mut wanted: impl FnMut(Phase) -> Option<T>,
    ) -> T {
        within(async {
            loop {
                match self.next().await.expect("the session ended") {
                    Up::Report(report) => {
                        self.seen.push(report.clone());
                        if report.key.as_ref() == Some(key)
                            && let Some(found) = report.phase.and_then(&mut wanted)
                        {
                            return found;
                        }
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
        })
        .await
    }

    pub(crate) async fn running(&mut self, key: &pb::AttemptKey) -> pb::Running {
        self.report(key, |phase| match phase {
            Phase::Running(running) => Some(running),
            Phase::Ended(ended) => panic!("ended: {ended:?}"),
            _ => None,
        })
        .await
    }

    pub(crate) async fn ended(&mut self, key: &pb::AttemptKey) -> pb::Ended {
        self.report(key, |phase| match phase {
            Phase::Ended(ended) => Some(ended),
            _ => None,
        })
        .await
    }

    /// Assigns a job, waits for its end and acknowledges it.
    pub(crate) async fn run(&mut self, assignment: pb::Assignment) -> pb::Ended {
        let key = assignment.key.clone().unwrap();
        self.send(Down::Assign(assignment));
        let ended = self.ended(&key).await;
        self.send(Down::Acknowledge(key));
        ended
    }
}

/// An assignment of a shell command.
pub(crate) fn assignment(epoch: u64, command: &str) -> pb::Assignment {
    pb::Assignment {
        key: Some(key(epoch)),
        spec: Some(job::CommandJob {
            name: key(epoch).job,
            experiment_name: "experiment of the test".to_owned(),
            command: command.to_owned(),
            environment: Some(job::Environment {
                source: Some(job::environment::Source::Host(job::HostEnvironment {})),
            }),
            resources: Some(job::Resources {
                instance_count: 1,
                cpu_milli: 1000,
                ..job::Resources::default()
            }),
            retry: Some(job::Retry { max_attempts: 1, ..job::Retry::default() }),
            on_node_loss: job::OnNodeLoss::Requeue.into(),
            ..job::CommandJob::default()
        }),
        experiment_id: "7".to_owned(),
        token: format!("attempt-token-{epoch}"),
        grace_s: 20,
        created_by: "tester".to_owned(),
        ..pb::Assignment::default()
    }
}

pub(crate) fn key(epoch: u64) -> pb::AttemptKey {
    pb::AttemptKey { job: format!("job-{epoch}"), attempt: 1, epoch }
}

/// An agent's process and its data folder.
pub(crate) struct Agent {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    failpoint: Option<&'static str>,
    process: Option<Child>,
}

impl Agent {
    pub(crate) fn start(daemon: &Daemon) -> Self {
        Self::start_with(daemon, &[])
    }

    pub(crate) fn start_with(daemon: &Daemon, arguments: &[&str]) -> Self {
        Self::start_failing(daemon, arguments, None)
    }

    /// Starts one that panics at a place, where it was built for that.
    pub(crate) fn start_failing(
        daemon: &Daemon,
        arguments: &[&str],
        failpoint: Option<&'static str>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut agent = Self { folder, arguments, failpoint, process: None };
        agent.point_at(daemon);
        agent.restart();
        agent
    }

    /// Tells the agent where the daemon is, for its next connection.
    pub(crate) fn point_at(&self, daemon: &Daemon) {
        std::fs::write(self.folder.path().join("endpoint"), &daemon.url).unwrap();
    }

    pub(crate) fn command(&self) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_atelier-agent"));
        command
            .arg("--server-file")
            .arg(path("endpoint"))
            .arg("--token-file")
            .arg(path("token"))
            .args(["--node", "node-1"])
            // What ends is to leave nothing.
            .arg("--keep-failed=0")
            .arg("--data-dir")
            .arg(path("data"))
            .args(&self.arguments)
            // As users export it; the file goes before it.
            .env("ATELIER_SERVER", "http://127.0.0.1:1")
            .env("SECRET_OF_THE_AGENT", "hush")
            // Where jobs leave what the tests look at.
            .env("ATELIER_WRITABLE", self.shared())
            .env("ATELIER_LOG", "error")
            .envs(self.failpoint.map(|place| ("ATELIER_FAILPOINT", place)))
            .stdin(Stdio::null());
        command
    }

    /// Starts the process again.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none());
        self.process = Some(self.command().spawn().unwrap());
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM, and wait for the end.
    pub(crate) fn stop(&mut self) {
        assert!(self.end().success());
    }

    /// The same, however it ends.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        assert_eq!(unsafe { libc::kill(self.pid(), libc::SIGTERM) }, 0);
        self.process.take().unwrap().wait().unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.as_ref().unwrap().id()).unwrap()
    }

    /// A folder that jobs may write.
    pub(crate) fn shared(&self) -> PathBuf {
        let shared = self.folder.path().join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        // Jobs may have users of their own.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(&shared, everybody).unwrap();
        shared
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn attempt(&self, epoch: u64) -> PathBuf {
        self.data().join("attempts").join(epoch.to_string())
    }

    pub(crate) fn record(&self, epoch: u64, name: &str) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(self.attempt(epoch).join(name)).ok()?).ok()
    }

    /// Waits for a file that a job writes into its working directory, whole lines.
    pub(crate) async fn wait_for_file(&self, epoch: u64, name: &str) -> String {
        let path = self.attempt(epoch).join("work").join(name);
        wait_for(name, || std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')))
            .await
    }

    /// The machine's number of a process that has written its own into a file: an isolated job's are counted
    /// apart.
    pub(crate) async fn process(&self, epoch: u64, name: &str) -> String {
        let told = self.wait_for_file(epoch, name).await;
        let mark = format!("ATELIER_ATTEMPT_FOLDER={}", self.attempt(epoch).display());
        let is_it = |pid: &String| {
            let read =
                |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let is_marked =
                read("environ").split(|byte| *byte == 0).any(|found| found == mark.as_bytes());
            let status = String::from_utf8_lossy(&read("status")).into_owned();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            is_marked && numbers.and_then(|all| all.split_whitespace().last()) == Some(told.trim())
        };
        wait_for("the process", || {
            let entries = std::fs::read_dir("/proc").unwrap().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).find(is_it)
        })
        .await
    }

    pub(crate) async fn wait_until_gone(&self, epoch: u64) {
        let folder = self.attempt(epoch);
        wait_for("the folder's removal", || (!folder.exists()).then_some(())).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        // Jobs of a test that failed.
        for entry in std::fs::read_dir(self.data().join("attempts")).into_iter().flatten().flatten()
        {
            let started = std::fs::read(entry.path().join("started.json")).unwrap_or_default();
            let started: serde_json::Value = serde_json::from_slice(&started).unwrap_or_default();
            if let Some(pid) = started["pid"].as_i64()
                && is_supervisor(pid, &started["start_time"])
            {
                unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGQUIT) };
            }
        }
    }
}

fn is_supervisor(pid: i64, start_time: &serde_json::Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.nth(19).and_then(|field| field.parse::<u64>().ok()) == start_time.as_u64()
}

pub(crate) async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}
