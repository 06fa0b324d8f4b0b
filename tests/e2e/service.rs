//! Daemon and agent as a service manager meets them: what they tell it, what they keep from jobs, and
//! the units that the command line writes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::harness::{Cluster, FaultyIo, PATIENCE, PROGRAM, Process, needs, processes_with, until};

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(cluster: &Cluster) -> Self {
        let path = cluster.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// The next message.
    #[track_caller]
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("a message for the service manager");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message that is no sign of progress.
    #[track_caller]
    fn word(&self) -> String {
        loop {
            let next = self.next();
            // How long a start may take is told as often as there is something to wait for.
            if next != "WATCHDOG=1" && !next.starts_with("EXTEND_TIMEOUT_USEC=") {
                return next;
            }
        }
    }

    /// Whoever has the socket's path in its environment, or an end of it open.
    fn known_to(&self) -> Vec<Pid> {
        processes_with(self.path.to_str().unwrap())
    }

    /// Has a daemon or an agent tell this manager.
    fn hear(&self, mut command: Command, watchdog: Duration) -> Command {
        command
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        command
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn daemon(cluster: &Cluster, manager: &Manager, watchdog: Duration) -> Process {
    let mut command = manager.hear(cluster.command(), watchdog);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(cluster.data());
    command.envs(cluster.settings.borrow().variables.iter().map(|(key, value)| (key, value)));
    Process::spawn("the daemon", command, &cluster.path().join("logs/daemon.log"))
}

fn agent(cluster: &Cluster, manager: &Manager, server: &str, token: &Path) -> Process {
    let mut command = manager.hear(cluster.command(), 60 * SECOND);
    command.args(["agent", "--node", "local", "--server", server, "--token-file"]).arg(token);
    command
        .args(["--cpus", "2", "--memory", "1GiB", "--data-dir"])
        .arg(cluster.agent_data("local"));
    Process::spawn("the agent", command, &cluster.path().join("logs/agent.log"))
}

#[test]
fn a_daemon_tells_its_service_manager_when_it_listens_moves_on_and_stops() {
    let cluster = Cluster::empty();
    let manager = Manager::new(&cluster);
    let mut daemon = daemon(&cluster, &manager, SECOND);
    assert_eq!(manager.next(), format!("READY=1\nSTATUS=listening on {}", cluster.server()));
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    // An agent that the daemon starts must not speak for it.
    node_of_a_cluster(&cluster);
    assert_eq!(manager.known_to(), [daemon.pid()]);
    daemon.stop();
    assert_eq!(manager.word(), "STOPPING=1\nSTATUS=stopping");
}

/// A disk that does not answer is no progress, however many threads go round.
#[test]
fn f28_a_service_whose_disk_stands_still_gives_no_sign() {
    needs("preload");
    let cluster = Cluster::empty();
    fs::create_dir(cluster.data()).unwrap();
    let faulty = FaultyIo::below(&cluster.data(), &cluster.path().join("faults"));
    cluster.settings.borrow_mut().variables = faulty.variables.clone();
    let manager = Manager::new(&cluster);
    let mut daemon = daemon(&cluster, &manager, SECOND);
    assert!(manager.next().starts_with("READY=1\n"));
    assert_eq!(manager.next(), "WATCHDOG=1");

    faulty.set("sync delay 4000\n");
    let submission =
        cluster.atelier(["job", "create", "-f", "-"]).stdin("command: echo done\n").spawn();
    // Signs come three times a second until the submission is on its way to the disk.
    until("the signs stop for two seconds", || {
        let begun = Instant::now();
        assert_eq!(manager.next(), "WATCHDOG=1");
        (begun.elapsed() >= 2 * SECOND).then_some(())
    });
    faulty.set("");
    submission.wait().ok();
    assert_eq!(manager.next(), "WATCHDOG=1");
    daemon.stop();
    assert_eq!(manager.word(), "STOPPING=1\nSTATUS=stopping");
}

#[test]
fn an_agent_is_ready_without_its_daemon_and_no_job_can_speak_for_it() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let (server, token) = (cluster.server(), cluster.data().join("agent.token"));
    cluster.daemon(Process::stop);
    let manager = Manager::new(&cluster);
    let mut agent = agent(&cluster, &manager, &server, &token);
    let word = manager.word();
    assert!(word.starts_with("READY=1\nSTATUS=no session with the daemon: cannot reach"), "{word}");

    // The daemon comes back where it was.
    let mut command = cluster.command();
    command.args(["serve", "--listen", &server.replace("http://", ""), "--data-dir"]);
    command.arg(cluster.data());
    let mut daemon = Process::spawn("the daemon", command, &cluster.path().join("logs/again.log"));
    let joined = format!("STATUS=joined the workspace local at {server}");
    until("the agent has joined", || (manager.word() == joined).then_some(()));

    let go = cluster.files().join("go");
    let job = cluster.shell(&format!(
        "env; for file in /proc/self/fd/* /proc/$PPID/fd/*; do readlink $file; done\n\
         while [ ! -e {} ]; do sleep 0.05; done",
        go.display()
    ));
    cluster.running(&job);
    // Neither the launcher, nor the supervisor, nor the job.
    assert_eq!(manager.known_to(), [agent.pid()]);
    // The job outlives the agent, which says that it goes.
    agent.stop();
    until("the agent says that it goes", || {
        (manager.word() == "STOPPING=1\nSTATUS=stopping").then_some(())
    });
    fs::write(go, "").unwrap();
    let mut agent = self::agent(&cluster, &manager, &server, &token);
    assert_eq!(manager.word(), format!("READY=1\n{joined}"));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    assert!(log.contains("PATH="), "{log}");
    for word in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "socket:"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
    agent.stop();
    daemon.stop();
}

#[test]
fn an_agent_that_is_refused_never_says_that_it_is_ready() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let manager = Manager::new(&cluster);
    let token = cluster.write("wrong.token", "wrong");
    let mut agent = agent(&cluster, &manager, &cluster.server(), &token);
    let word = manager.word();
    assert!(word.starts_with("STATUS=") && word.contains("refused this node"), "{word}");
    assert!(!agent.wait().success());
}

/// Stands in for `systemctl`: notes how it is called, and does what a test asks for.
fn fake_systemctl(cluster: &Cluster, script: &str) -> (String, PathBuf) {
    let (folder, calls) = (cluster.files().join("bin"), cluster.files().join("calls"));
    let program = cluster.write(
        "bin/systemctl",
        format!("#!/bin/sh\nset -eu\necho \"$*\" >> {}\n{script}\n", calls.display()),
    );
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    (format!("{}:{path}", folder.display()), calls)
}

fn calls(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let _ = fs::remove_file(file);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_service_of_a_user_is_installed_shown_and_removed() {
    let cluster = Cluster::empty();
    let show = "case \"$*\" in *LoadState*) echo LoadState=loaded; echo ActiveState=active\n\
                echo SubState=running; echo MainPID=7; echo UnitFileState=enabled\n\
                echo 'StatusText=joined = here' ;; esac";
    let (path, log) = fake_systemctl(&cluster, show);
    let atelier = |line: &[&str]| cluster.atelier(line).env("PATH", &path);
    let token = cluster.write("node.token", "secret");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let line = ["service", "install", "agent", "--server", "http://127.0.0.1:1", "--user", "--now"];
    let with_token = [&line[..], &["--token-file", "node.token"]].concat();
    atelier(&line).fails(2).says(&["needs a token", "--token-file"]);
    atelier(&with_token).fails(1).says(&["others may read it (mode 644", "chmod 600"]);
    assert_eq!(calls(&log), [""; 0]);

    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let unit = cluster.path().join("user/.config/systemd/user/atelier-agent.service");
    let made = atelier(&with_token).ok().json();
    assert_eq!(made["file"], unit.to_str().unwrap());
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains(&format!("--token-file={}", token.display())), "{text}");
    assert!(!text.contains("secret"), "{text}");
    let reload = "--user daemon-reload";
    let expected = [
        "--user show --property=Version",
        "--user show --property=User,ControlGroup atelier-agent.service",
        "--user show --property=Version",
        reload,
        "--user enable atelier-agent.service",
        "--user restart atelier-agent.service",
        "--user show --property=Version",
    ];
    assert_eq!(calls(&log), expected);

    let listed = atelier(&["service", "status", "--user", "-o", "json"]).ok().json();
    assert_eq!(listed[1]["state"], "active (running)", "{listed}");
    assert_eq!(listed[1]["status"], "joined = here");
    assert_eq!(listed[1]["pid"], 7);
    calls(&log);

    atelier(&["service", "uninstall", "agent", "--user"]).ok();
    assert!(!unit.exists());
    assert_eq!(calls(&log), ["--user disable --now atelier-agent.service", reload]);
    atelier(&["service", "uninstall", "agent", "--user"]).fails(3).says(&["there is no unit"]);

    // What somebody else wrote is theirs.
    fs::write(&unit, "[Service]\n").unwrap();
    atelier(&with_token).fails(1).says(&["another program wrote it", "--force"]);
    atelier(&["service", "uninstall", "agent", "--user"]).fails(1).says(&["another program"]);
    assert_eq!(fs::read_to_string(&unit).unwrap(), "[Service]\n");
}

#[test]
fn a_service_whose_program_was_replaced_still_starts_agents() {
    let cluster = Cluster::empty();
    let program = cluster.files().join("atelier");
    fs::copy(PROGRAM, &program).unwrap();
    let mut command = Command::new(&program);
    cluster.clean(&mut command);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(cluster.data());
    let log = cluster.path().join("logs/daemon.log");
    let mut daemon = Process::spawn("the daemon", command, &log);
    cluster.server();
    // A newer one that does not know what this one says.
    let newer = self::program(&cluster, "newer", "atelier 9.0.0");
    fs::rename(newer, program).unwrap();
    node_of_a_cluster(&cluster);
    daemon.stop();
}

/// Makes a cluster of one node on the daemon's machine, and waits for it.
fn node_of_a_cluster(cluster: &Cluster) {
    let yaml = "name: c\ntype: amlcompute\nmin_instances: 1\nmax_instances: 1\n\
                resources: {cpus: 1, memory: 256MiB}\n";
    cluster.atelier(["compute", "create", "-f", "-"]).stdin(yaml).ok();
    let nodes = || cluster.atelier(["node", "list", "--compute", "c", "-o", "json"]).ok().json();
    until("the cluster's node is there", || (nodes()[0]["state"] == "idle").then_some(()));
}

/// A script that tells a version, as a program would.
fn program(cluster: &Cluster, name: &str, says: &str) -> PathBuf {
    let file = cluster.write(name, format!("#!/bin/sh\necho '{says}'\n"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn an_upgraded_service_that_does_not_start_has_its_old_program_back() {
    let cluster = Cluster::empty();
    let old = program(&cluster, "opt/atelier", "atelier 0.1.0");
    let new = program(&cluster, "new", "atelier 0.2.0");
    // It starts unless its program is version 0.3.
    let script = format!(
        "case \"$*\" in show*) echo 'ExecStart={{ path={0} ; argv[]={0} agent ; pid=0 }}' ;;\n\
         restart*) ! grep -q 0.3.0 {0} ;; esac",
        old.display()
    );
    let (path, log) = fake_systemctl(&cluster, &script);
    let upgrade = |service: &str, program: &Path| {
        let line = ["service", "upgrade", service, "--program", program.to_str().unwrap()];
        cluster.atelier(line).env("PATH", &path)
    };
    let done = upgrade("agent", &new).ok().json();
    assert_eq!(
        (&done["before"], &done["after"]),
        (&"atelier 0.1.0".into(), &"atelier 0.2.0".into())
    );
    assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap());
    let previous = fs::read_to_string(done["previous"].as_str().unwrap()).unwrap();
    assert!(previous.contains("0.1.0"));
    assert_eq!(calls(&log).last().unwrap(), "restart atelier-agent.service");

    let broken = program(&cluster, "broken", "atelier 0.3.0");
    upgrade("agent", &broken).fails(6).says(&["atelier 0.3.0 does not start", "is back and runs"]);
    for (says, words) in
        [("hello", "it is no Atelier program"), ("atelier-agent 0.2.0", "in the place of")]
    {
        upgrade("agent", &program(&cluster, "other", says)).fails(1).says(&[words]);
    }
    upgrade("agent", Path::new("/nowhere")).fails(3);
    upgrade("serve", &new).fails(1).says(&["cannot upgrade the daemon", "backup"]);
    assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap());
    assert!(!cluster.files().join("opt/atelier.new").exists());
}

/// The units that packagers get, as systemd reads them. Left out where there is no systemd.
#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let cluster = Cluster::empty();
    let token = cluster.write("node.token", "secret");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let root = cluster.files().join("root");
    let root = root.to_str().unwrap();
    let serve = ["serve", "--data-dir", "/srv/100% \"ours\" $x", "--run-as", "daemon"];
    let agent =
        ["agent", "--server", "http://h:1", "--token-file", "node.token", "--label", "a=b  c;"];
    for line in [&serve[..], &agent[..]] {
        let line = [&["service", "install"], line, &["--root", root]].concat();
        cluster.atelier(line).ok();
    }
    let folder = cluster.files().join("root/etc/systemd/system");
    let complaints = |name: &str| -> Vec<String> {
        let Output { status, stderr, .. } = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(folder.join(name))
            .env("SYSTEMD_LOG_LEVEL", "warning")
            .output()
            .expect("systemd-analyze runs; leave this out with --skip systemd_");
        let said = String::from_utf8_lossy(&stderr).into_owned();
        // Those that came with systemd 254.
        let newer = ["DelegateSubgroup", "RestartSteps", "RestartMaxDelaySec"];
        let known = |line: &&str| {
            line.contains("Unknown key") && newer.iter().any(|key| line.contains(key))
        };
        let lines = said.lines().filter(|line| line.contains(name) && !known(line));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        assert!(status.success() || !lines.is_empty(), "{said}");
        lines
    };
    for name in ["atelier.service", "atelier-agent.service"] {
        assert_eq!(complaints(name), [""; 0], "{name}");
        assert!(fs::read_to_string(folder.join(name)).unwrap().contains(PROGRAM));
    }
    // That it would say so.
    let text = fs::read_to_string(folder.join("atelier.service")).unwrap();
    fs::write(folder.join("atelier.service"), text.replace("KillMode=process", "KillMode=x"))
        .unwrap();
    assert_ne!(complaints("atelier.service"), [""; 0]);
}
