//! A workspace of its own for one test: home, daemon, agents, all below one temporary folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atelier::client::Error;
use atelier_agent::trust::Trust;
use atelier_proto::job::v1::{Job, JobStatus};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use super::cli::Cli;
use super::process::{Process, processes_with};
use super::rpc::Rpc;
use super::wait::{PATIENCE, until};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_atelier");

/// How daemon and agents are started.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// Added to `atelier serve`.
    pub(crate) serve: Vec<String>,
    /// For the daemon's environment.
    pub(crate) variables: Vec<(String, String)>,
}

/// How one agent is started.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) compute: String,
    pub(crate) cpus: String,
    pub(crate) memory: String,
    /// The daemon's address, instead of the file it announces itself in.
    pub(crate) server: Option<String>,
    /// The agent's data folder, instead of one below the cluster's folder.
    pub(crate) data: Option<PathBuf>,
    /// The program, instead of the one under test where it was built.
    pub(crate) program: Option<PathBuf>,
    /// Further arguments.
    pub(crate) more: Vec<String>,
    /// For the agent's environment.
    pub(crate) variables: Vec<(String, String)>,
    /// What it is let in by.
    pub(crate) let_in: LetIn,
}

/// What an agent is let in by.
#[derive(Clone)]
pub(crate) enum LetIn {
    /// A token that lasts.
    Lasting,
    /// This token, on its command line.
    Joining(String),
    /// What lies in its folder.
    Kept,
}

impl Agent {
    /// Two CPUs and a gibibyte, whatever the machine has.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            compute: "local".to_owned(),
            cpus: "2".to_owned(),
            memory: "1GiB".to_owned(),
            server: None,
            data: None,
            program: None,
            more: Vec::new(),
            variables: Vec::new(),
            let_in: LetIn::Lasting,
        }
    }

    pub(crate) fn token(mut self, token: &str) -> Self {
        self.let_in = LetIn::Joining(token.to_owned());
        self
    }

    pub(crate) fn no_token(mut self) -> Self {
        self.let_in = LetIn::Kept;
        self
    }

    pub(crate) fn compute(mut self, compute: &str) -> Self {
        self.compute = compute.to_owned();
        self
    }

    pub(crate) fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus.to_string();
        self
    }

    pub(crate) fn with(mut self, argument: &str) -> Self {
        self.more.push(argument.to_owned());
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    pub(crate) fn server(mut self, url: &str) -> Self {
        self.server = Some(url.to_owned());
        self
    }

    pub(crate) fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }
}

/// One workspace. Dropping it ends everything that it started, jobs too.
pub(crate) struct Cluster {
    folder: TempDir,
    pub(crate) settings: RefCell<Settings>,
    daemon: RefCell<Option<Process>>,
    agents: RefCell<BTreeMap<String, Process>>,
}

impl Cluster {
    /// Folders only; nothing runs.
    pub(crate) fn empty() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-e2e-").tempdir().unwrap();
        for name in ["home", "user", "logs", "files"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        // Jobs may have users of their own.
        let everybody = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(folder.path().join("files"), everybody).unwrap();
        Self {
            folder,
            settings: RefCell::new(settings),
            daemon: RefCell::default(),
            agents: RefCell::default(),
        }
    }

    /// Folders only; the daemon's data will lie below `folder`, on another disk.
    pub(crate) fn empty_on(folder: &Path) -> Self {
        let cluster = Self::empty();
        fs::create_dir(folder.join("data")).unwrap();
        std::os::unix::fs::symlink(folder.join("data"), cluster.data()).unwrap();
        cluster
    }

    /// A daemon and one node, `local`, ready.
    pub(crate) fn start() -> Self {
        let cluster = Self::empty();
        cluster.start_daemon();
        cluster.start_agent(&Agent::new("local"));
        cluster
    }

    /// A daemon with these further arguments and one node, `local`, ready.
    pub(crate) fn start_with(serve: &[&str]) -> Self {
        let serve = serve.iter().map(|&argument| argument.to_owned()).collect();
        let cluster = Self::with(Settings { serve, ..Settings::default() });
        cluster.start_daemon();
        cluster.start_agent(&Agent::new("local"));
        cluster
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `ATELIER_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    /// A folder for the test's own files, the current one of every command.
    pub(crate) fn files(&self) -> PathBuf {
        self.path().join("files")
    }

    /// The daemon's data folder: the local workspace's, so that a bare `atelier job …` finds it.
    pub(crate) fn data(&self) -> PathBuf {
        self.home().join("local")
    }

    pub(crate) fn agent_data(&self, name: &str) -> PathBuf {
        self.path().join("agents").join(name)
    }

    /// Writes a file of the test's own, with the folders it needs.
    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.files().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A file that jobs of any user may write, empty at first.
    pub(crate) fn shared_file(&self, name: &str) -> PathBuf {
        let path = self.files().join(name);
        if !path.exists() {
            self.write(name, "");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        }
        path
    }

    /// The same, a folder.
    pub(crate) fn shared_folder(&self, name: &str) -> PathBuf {
        let path = self.files().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
        path
    }

    /// The program in an environment of its own: nothing of the developer's reaches it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        self.clean(&mut command);
        command
    }

    /// Gives a command the cluster's environment and nothing else.
    pub(crate) fn clean(&self, command: &mut Command) {
        command.env_clear().current_dir(self.files());
        for name in ["PATH", "LD_LIBRARY_PATH", "UV_CACHE_DIR", "SSL_CERT_FILE", "PIP_CERT"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", self.path().join("user"))
            .env("ATELIER_HOME", self.home())
            // Where jobs leave what the tests look at.
            .env("ATELIER_WRITABLE", self.files())
            // Images are for those tests that have a registry.
            .env("ATELIER_CONTAINERS", "none")
            .env("LANG", "C.UTF-8")
            .env("NO_COLOR", "1");
    }

    /// A command line of `atelier`.
    pub(crate) fn atelier<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Cli {
        Cli::new(self.command(), arguments)
    }

    /// The same with an explicit daemon and token, for a data folder elsewhere.
    pub(crate) fn atelier_at<S: AsRef<OsStr>>(
        &self,
        server: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Cli {
        let cli = self.atelier(arguments).env("ATELIER_SERVER", server);
        let cli = cli.env("ATELIER_TOKEN", self.token());
        match self.authority().exists() {
            true => cli.env("ATELIER_CA_FILE", self.authority()),
            false => cli,
        }
    }

    // --- the daemon

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_daemon(&self) {
        self.launch_daemon();
        self.daemon_is_ready();
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn launch_daemon(&self) {
        let settings = self.settings.borrow();
        let mut command = self.command();
        command
            .args(["serve", "--data-dir"])
            .arg(self.data())
            .args(&settings.serve)
            .env("ATELIER_LOG", "info")
            .envs(settings.variables.iter().map(|(key, value)| (key, value)));
        if !settings.serve.iter().any(|argument| argument == "--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        // The web of the tests is on this machine.
        if !settings.serve.iter().any(|argument| argument == "--allow-egress") {
            command.args(["--allow-egress", "127.0.0.0/8"]);
        }
        let log = self.path().join("logs/daemon.log");
        *self.daemon.borrow_mut() = Some(Process::spawn("the daemon", command, &log));
    }

    /// Waits until the daemon that was launched answers.
    #[track_caller]
    pub(crate) fn daemon_is_ready(&self) {
        until("the daemon is ready", || {
            if let Some(status) = self.daemon(|daemon| daemon.ended()) {
                let printed = self.daemon(|daemon| daemon.tail(30));
                panic!("the daemon ended with {status} instead of starting\n{printed}");
            }
            let endpoint = fs::read_to_string(self.data().join("endpoint")).ok()?;
            let is_ready = match endpoint.starts_with("https:") {
                true => self.connect(endpoint.trim()).is_ok(),
                false => answers(endpoint.trim(), "/readyz"),
            };
            is_ready.then_some(())
        });
    }

    /// Does something with the daemon's process.
    #[track_caller]
    pub(crate) fn daemon<T>(&self, act: impl FnOnce(&mut Process) -> T) -> T {
        act(self.daemon.borrow_mut().as_mut().expect("a daemon was started"))
    }

    /// kill -9 and start again.
    #[track_caller]
    pub(crate) fn restart_daemon_hard(&self) {
        self.daemon(Process::kill);
        self.start_daemon();
    }

    /// Where the daemon listens.
    pub(crate) fn server(&self) -> String {
        let file = self.data().join("endpoint");
        until("the daemon tells its address", || fs::read_to_string(&file).ok()).trim().to_owned()
    }

    /// The admin's token.
    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.data().join("admin.token")).unwrap().trim().to_owned()
    }

    /// A direct connection as admin.
    #[track_caller]
    pub(crate) fn rpc(&self) -> Rpc {
        self.connect(&self.server()).unwrap()
    }

    /// The file of the authority that vouches for the daemon, where it speaks TLS.
    pub(crate) fn authority(&self) -> PathBuf {
        self.data().join("tls/ca.pem")
    }

    fn connect(&self, server: &str) -> Result<Rpc, Error> {
        let trust = match server.starts_with("https:") {
            true => Trust::of_file(&self.authority())?,
            false => Trust::System,
        };
        Rpc::trusting(server, &self.token(), trust)
    }

    /// A token for somebody.
    #[track_caller]
    pub(crate) fn token_for(&self, user: &str, role: &str) -> String {
        let server = self.server();
        let arguments = ["token", "create", "--user", user, "--role", role];
        self.atelier_at(&server, arguments.into_iter().chain(["--query", "token", "-o", "tsv"]))
            .ok()
            .word()
    }

    /// Makes a role of actions.
    #[track_caller]
    pub(crate) fn role(&self, name: &str, actions: &[&str]) {
        let file = serde_json::json!({ "name": name, "actions": actions }).to_string();
        self.atelier(["role", "create", "-f", "-"]).stdin(file).ok();
    }

    // --- nodes

    /// Starts an agent and waits until its node is ready.
    #[track_caller]
    pub(crate) fn start_agent(&self, agent: &Agent) {
        self.launch_agent(agent);
        self.node_is_ready(&agent.name);
    }

    /// Starts an agent and does not wait.
    pub(crate) fn launch_agent(&self, agent: &Agent) {
        let token = if agent.name == "local" {
            self.data().join("agent.token")
        } else if !matches!(agent.let_in, LetIn::Lasting) {
            PathBuf::new()
        } else {
            let file = self.path().join(format!("{}.token", agent.name));
            if !file.exists() {
                fs::write(&file, self.token_for(&agent.name, "node")).unwrap();
            }
            file
        };
        let program = agent.program.as_deref().unwrap_or(Path::new(PROGRAM));
        let mut command = Command::new(program);
        self.clean(&mut command);
        command.arg("agent").args(["--node", &agent.name, "--compute", &agent.compute]);
        command.args(["--cpus", &agent.cpus, "--memory", &agent.memory]);
        match &agent.let_in {
            LetIn::Lasting => command.arg("--token-file").arg(token),
            LetIn::Joining(token) => command.args(["--token", token]),
            LetIn::Kept => &mut command,
        };
        let data = agent.data.clone().unwrap_or_else(|| self.agent_data(&agent.name));
        command.arg("--data-dir").arg(data);
        match &agent.server {
            Some(server) => command.args(["--server", server]),
            None => command.arg("--server-file").arg(self.data().join("endpoint")),
        };
        command.args(&agent.more).env("ATELIER_LOG", "info");
        command.envs(agent.variables.iter().map(|(name, value)| (name, value)));
        let log = self.path().join(format!("logs/agent-{}.log", agent.name));
        let process = Process::spawn(&format!("agent {}", agent.name), command, &log);
        self.agents.borrow_mut().insert(agent.name.clone(), process);
    }

    /// Waits until the daemon may place jobs on the node. It may not have noticed yet that the agent
    /// before is gone, and call the node ready still: the agent itself must have been welcomed.
    #[track_caller]
    pub(crate) fn node_is_ready(&self, node: &str) {
        use atelier_proto::compute::v1::{ListNodesRequest, NodeState};
        let rpc = self.rpc();
        until(&format!("node {node} is ready"), || {
            if let Some(status) = self.agent(node, |agent| agent.ended()) {
                let printed = self.agent(node, |agent| agent.tail(30));
                panic!("agent {node} ended with {status} instead of joining\n{printed}");
            }
            if !self.agent(node, |agent| agent.said("joined the workspace")) {
                return None;
            }
            let request = ListNodesRequest::default();
            let nodes =
                rpc.wait(rpc.client.call(rpc.client.computes().list_nodes(request))).ok()?.nodes;
            nodes
                .iter()
                .any(|found| {
                    found.name == node
                        && matches!(found.state(), NodeState::Idle | NodeState::Running)
                })
                .then_some(())
        });
    }

    /// Does something with an agent's process.
    #[track_caller]
    pub(crate) fn agent<T>(&self, node: &str, act: impl FnOnce(&mut Process) -> T) -> T {
        act(self.agents.borrow_mut().get_mut(node).expect("the agent was started"))
    }

    // --- jobs

    /// Submits a job from YAML; its name.
    #[track_caller]
    pub(crate) fn create(&self, yaml: &str) -> String {
        self.atelier(["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
            .stdin(yaml)
            .ok()
            .word()
    }

    /// Submits a job that runs a shell command; its name.
    #[track_caller]
    pub(crate) fn shell(&self, command: &str) -> String {
        self.create(&job_yaml(command))
    }

    /// Waits until the job is over, however.
    #[track_caller]
    pub(crate) fn ended(&self, name: &str) -> Job {
        use JobStatus::{Canceled, Completed, Failed};
        self.rpc().reaches(name, &[Completed, Failed, Canceled], PATIENCE)
    }

    /// Waits until the job is completed; any other end fails the test.
    #[track_caller]
    pub(crate) fn completed(&self, name: &str) -> Job {
        self.rpc().reaches(name, &[JobStatus::Completed], PATIENCE)
    }

    /// Waits until the job runs.
    #[track_caller]
    pub(crate) fn running(&self, name: &str) -> Job {
        self.rpc().reaches(name, &[JobStatus::Running], PATIENCE)
    }

    /// The whole log of a job, as bytes.
    #[track_caller]
    pub(crate) fn log(&self, name: &str) -> Vec<u8> {
        self.atelier(["job", "stream", name, "-q"]).run().bytes
    }
}

/// A job that runs a shell command on the node's own Python.
pub(crate) fn job_yaml(command: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}")
}

/// Whether a GET of a path answers with 200.
pub(crate) fn answers(server: &str, path: &str) -> bool {
    http(server, &format!("GET {path}"), "", "").is_ok_and(|(status, _)| status == 200)
}

/// One request (`GET /path`) by HTTP: the status and the body. An empty token is none.
pub(crate) fn http(
    server: &str,
    what: &str,
    token: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let address = server.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let who = if token.is_empty() { "" } else { &format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{who}\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = fs::read_dir(self.path().join("logs")).into_iter().flatten();
            for log in logs.filter_map(Result::ok) {
                let text = fs::read(log.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                let from = lines.len().saturating_sub(60);
                eprintln!("--- {} (last lines)", log.file_name().to_string_lossy());
                eprintln!("{}", lines[from..].join("\n"));
            }
            if std::env::var_os("ATELIER_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("--- kept: {}", self.path().display());
            }
        }
        self.agents.borrow_mut().clear();
        *self.daemon.borrow_mut() = None;
        // Supervisors and jobs outlive their agents on purpose. What has this cluster's folder in
        // its environment is of its making.
        let mark = self.path().display().to_string();
        for _ in 0..200 {
            let left = processes_with(&mark);
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
