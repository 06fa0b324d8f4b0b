//! Being in a running job: commands, shells and ports, and who may.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{
    Agent, Cluster, Outcome, PROGRAM, job_yaml, memory, needs, processes_with, until,
};

/// A job that runs until it is told to end, and has said so.
fn sleeper(cluster: &Cluster, more: &str) -> String {
    let job = cluster.create(&format!(
        "{}environment_variables: {{OWN: a word}}\n",
        job_yaml(&format!("{more}\necho here > note; echo ready; sleep 600"))
    ));
    let log = cluster.atelier(["job", "stream", &job, "-q"]).spawn();
    log.prints("ready");
    job
}

fn exec(cluster: &Cluster, job: &str, command: &[&str]) -> Outcome {
    let arguments = ["job", "exec", job, "--"];
    cluster.atelier(arguments.iter().chain(command)).run()
}

#[test]
fn a_command_in_a_job_has_what_the_job_has() {
    needs("isolation");
    let cluster = Cluster::start();
    let spaces = "for n in user mnt ipc pid net; do readlink /proc/self/ns/$n; done";
    let job = sleeper(&cluster, &format!("echo mine > /tmp/note; ({spaces}) > spaces"));
    let same = format!("({spaces}) | cmp - spaces && echo same");
    assert_eq!(exec(&cluster, &job, &["sh", "-c", &same]).ok().word(), "same");
    let look = "echo $OWN $ATELIER_JOB; cat note; cat /tmp/note; pwd; cat /proc/self/cgroup; \
                grep -E '^(CapEff|CapBnd|NoNewPrivs|Uid)' /proc/self/status; \
                echo wrong >&2";
    let inside = exec(&cluster, &job, &["sh", "-c", look]).ok();
    assert_eq!(inside.stderr, "wrong\n", "{inside:?}");
    assert!(inside.stdout().starts_with(&format!("a word {job}\nhere\nmine\n")), "{inside:?}");
    // The job tells the same of itself.
    let own =
        cluster.create(&job_yaml(&format!("echo here > note; echo mine > /tmp/note; {look}")));
    cluster.completed(&own);
    let log = String::from_utf8(cluster.log(&own)).unwrap();
    let told = |text: &str, word: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with(word)).map(str::to_owned).collect()
    };
    for word in ["Cap", "NoNewPrivs"] {
        assert_eq!(told(&inside.stdout(), word), told(&log, word), "{inside:?}");
    }
    let events = cluster.rpc().events(&job).unwrap();
    let entered = events.iter().find(|event| event.kind == "Entered").unwrap();
    assert!(entered.message.contains("ran in the job: sh -c"), "{entered:?}");
    assert_eq!((entered.principal.as_str(), entered.attempt), ("admin", 1));
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
}

#[test]
fn a_command_in_a_job_ends_with_its_own_code() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    exec(&cluster, &job, &["sh", "-c", "exit 7"]).code(7);
    exec(&cluster, &job, &["sh", "-c", "kill -TERM $$"]).code(128 + 15);
    exec(&cluster, &job, &["no-such-program"]).code(127).says(&["no command 'no-such-program'"]);
    exec(&cluster, &job, &["./note"]).code(126).says(&["./note", "permission denied"]);
    // Without -i there is nothing to read.
    exec(&cluster, &job, &["cat"]).ok();
    cluster.atelier(["job", "exec", "no_such_job", "--", "true"]).fails(3).says(&["no job"]);
    cluster
        .atelier(["job", "exec", &job, "--rank", "1", "--", "true"])
        .fails(1)
        .says(&["member 1", "it has 1"]);
    cluster.atelier(["job", "exec", &job]).fails(2);
    cluster.atelier(["job", "shell", &job]).fails(2).says(&["terminal", "job exec"]);
    // What a command leaves behind does not outlive it, nor hold up its end.
    exec(&cluster, &job, &["sh", "-c", "STAYS=behind sleep 500 & echo gone"]).ok();
    until("what was left behind is gone", || {
        processes_with("STAYS=behind").is_empty().then_some(())
    });
    assert_eq!(cluster.rpc().job(&job).unwrap().status().word(), "Running");
}

#[test]
fn ten_megabytes_go_through_a_command_and_back() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let data: Vec<u8> =
        (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = cluster.write("data", &data);
    let mut cat = cluster.command();
    cat.args(["job", "exec", &job, "-i", "--", "cat"]).stdin(std::fs::File::open(file).unwrap());
    let output = cat.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
    // A reader that stops early ends the command.
    let mut yes = cluster.command();
    let mut yes =
        yes.args(["job", "exec", &job, "--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 1 << 16];
    yes.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(yes.wait().unwrap().code(), Some(141));
}

/// Runs a command on a terminal of 40 by 100 that is 50 by 120 later, and types to it.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, struct, sys, termios
def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
pid, fd = pty.fork()
if pid == 0:
    resize(0, 40, 100)
    # The shell stays, and with it the terminal.
    around = 'stty -g > before; "$@"; echo code $? > code; stty -g > after'
    os.execvp("sh", ["sh", "-c", around, "sh"] + sys.argv[1:])
seen, mark = b"", 0
def until(word):
    global seen
    while word not in seen[mark:]:
        ready, _, _ = select.select([fd], [], [], 60)
        if not ready:
            sys.exit("no %r in %r" % (word, seen))
        try:
            seen += os.read(fd, 4096)
        except OSError:
            sys.exit("ended without %r: %r" % (word, seen))
def type(text):
    global mark
    mark = len(seen)
    os.write(fd, text)
# What is typed before the shell reads may be thrown away: each line waits for the prompt.
type(b"PS1=rea''dy:\n")
until(b"ready:")
type(b"echo be''gun $0; stty size\n")
until(b"begun")
until(b"40 100")
until(b"ready:")
resize(fd, 50, 120)
type(b"while [ \"$(stty size)\" != '50 120' ]; do :; done; echo re''sized\n")
until(b"resized")
until(b"ready:")
type(b"test -t 0 && echo a ter''minal; echo $TERM\n")
until(b"a terminal")
until(b"xterm-256color")
until(b"ready:")
type(b"(: <> $(tty)) && echo na''med $(tty)\n")
until(b"named /dev/pts/")
until(b"ready:")
type(b"sed -u s/o/0/g\nfoot\n")
until(b"f00t")
type(b"\x03")
until(b"ready:")
type(b"echo af''ter; exit 5\n")
until(b"after")
while True:
    try:
        part = os.read(fd, 4096)
    except OSError:
        break
    if not part:
        break
    seen += part
os.waitpid(pid, 0)
print(seen.decode(errors="replace"))
"#;

/// Does that with a command of `atelier`.
pub(crate) fn on_a_terminal(cluster: &Cluster, arguments: &[&str]) {
    let script = cluster.write("terminal.py", TERMINAL);
    let mut python = Command::new("python3");
    cluster.clean(&mut python);
    python.arg(script).arg(PROGRAM).args(arguments);
    let output = python.env("TERM", "xterm-256color").output().unwrap();
    let (told, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{said}");
    assert!(told.contains("xterm-256color"), "{told}");
    let file = |name: &str| std::fs::read_to_string(cluster.files().join(name)).unwrap();
    assert_eq!(file("code"), "code 5\n", "{told}\n{said}");
    assert_eq!(file("before"), file("after"), "the terminal is not as it was\n{told}");
}

#[test]
fn a_shell_in_a_job_has_a_terminal() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    on_a_terminal(&cluster, &["job", "shell", &job]);
    let events = cluster.rpc().events(&job).unwrap();
    assert!(events.iter().any(|event| event.message.contains("a shell was opened")), "{events:?}");
    // The job's own terminals, of which this is the only one.
    let own = ["job", "exec", &job, "-t", "--", "sh", "-c", "tty; ls /dev/pts"];
    let told = cluster.atelier(own).ok().stdout();
    let words: Vec<&str> = told.split_whitespace().collect();
    assert!(words[0].starts_with("/dev/pts/"), "{told}");
    assert!(words.contains(&words[0].trim_start_matches("/dev/pts/")), "{told}");
}

/// One request to a server that closes the connection after its answer.
fn get(port: u16) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /note HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_port_of_a_job_is_reached_while_it_runs() {
    let cluster = Cluster::start();
    let server = "import http.server as h; s = h.ThreadingHTTPServer(('127.0.0.1', 0), \
                  h.SimpleHTTPRequestHandler); print(s.server_port, file=open('port', 'w')); \
                  s.serve_forever()";
    let job = sleeper(
        &cluster,
        &format!("python3 -c \"{server}\" & while [ ! -s port ]; do sleep 0.02; done"),
    );
    let port = exec(&cluster, &job, &["cat", "port"]).ok().word();
    let forward =
        cluster.atelier(["job", "forward", &job, &format!(":{port}"), "-o", "json"]).spawn();
    forward.prints("\n");
    let told: serde_json::Value = serde_json::from_str(forward.stdout().trim()).unwrap();
    assert_eq!((&told["node"], told["port"].to_string()), (&"local".into(), port), "{told}");
    let listens = told["listens"].as_str().unwrap();
    let local: u16 = listens.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    for _ in 0..3 {
        let answer = get(local).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("here\n"), "{answer}");
    }
    // However many connections, one event.
    let events = cluster.rpc().events(&job).unwrap();
    let forwarded: Vec<_> = events.iter().filter(|event| event.kind == "Forwarded").collect();
    assert_eq!(forwarded.len(), 1, "{events:?}");
    cluster.atelier(["job", "cancel", &job]).ok();
    let ended = forward.wait().ok().says(&["no longer forwarding"]);
    drop(ended);
    assert!(get(local).is_err());
}

#[test]
fn a_port_on_which_nothing_listens_is_told() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    // Taken and given back: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward =
        cluster.atelier(["job", "forward", &job, &format!(":{free}"), "-o", "json"]).spawn();
    forward.prints("\n");
    let told: serde_json::Value = serde_json::from_str(forward.stdout().trim()).unwrap();
    let listens = told["listens"].as_str().unwrap().to_owned();
    assert_eq!(get(listens.rsplit_once(':').unwrap().1.parse().unwrap()).unwrap_or_default(), "");
    until("it says so", || forward.stderr().contains("refused").then_some(()));
    let said = forward.stderr();
    assert!(said.contains(&format!("cannot reach port {free} on node 'local'")), "{said}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    cluster
        .atelier(["job", "forward", &job, &format!("{taken}:{free}")])
        .fails(1)
        .says(&["cannot listen", &format!(":{free}")]);
    drop(listener);
    cluster.atelier(["job", "forward", &job, "70000"]).fails(2).says(&["1 to 65535"]);
    forward.signal(Signal::INT);
    forward.wait().code(130).says(&["goes on"]);
}

#[test]
fn the_port_where_the_daemon_takes_orders_is_not_forwarded() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let control = cluster.server().rsplit_once(':').unwrap().1.to_owned();
    let forward =
        cluster.atelier(["job", "forward", &job, &format!(":{control}"), "-o", "json"]).spawn();
    forward.prints("\n");
    let told: serde_json::Value = serde_json::from_str(forward.stdout().trim()).unwrap();
    let listens = told["listens"].as_str().unwrap().to_owned();
    assert_eq!(get(listens.rsplit_once(':').unwrap().1.parse().unwrap()).unwrap_or_default(), "");
    until("it says so", || forward.stderr().contains("closed to jobs").then_some(()));
    forward.signal(Signal::INT);
    forward.wait().code(130);
}

#[test]
fn a_command_ends_with_its_job() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let inside = cluster
        .atelier(["job", "exec", &job, "--", "sh", "-c", "echo in; INSIDE=yes sleep 600; echo out"])
        .spawn();
    inside.prints("in");
    cluster.atelier(["job", "cancel", &job]).ok();
    let ended = inside.wait().code(137).says(&["the job has ended"]);
    assert_eq!(ended.stdout(), "in\n");
    cluster.ended(&job);
    assert!(processes_with("INSIDE=yes").is_empty());
    exec(&cluster, &job, &["true"]).code(1).says(&["it is over (Canceled)"]);
    cluster.atelier(["job", "forward", &job, ":80"]).fails(1).says(&["it is over"]);
}

#[test]
fn nobody_enters_a_job_that_waits() {
    let cluster = Cluster::start();
    let first = sleeper(&cluster, "");
    let second = cluster.create(&format!("{}resources: {{cpus: 2}}\n", job_yaml("true")));
    let waits = cluster.rpc().job(&second).unwrap().wait_reason;
    assert!(!waits.is_empty());
    exec(&cluster, &second, &["true"]).code(1).says(&["queued", &waits]);
    cluster.atelier(["job", "cancel", &first]).ok();
}

#[test]
fn only_its_owner_enters_a_job() {
    let cluster = Cluster::start();
    let (ana, ben) =
        (cluster.token_for("ana", "data-scientist"), cluster.token_for("ben", "data-scientist"));
    let rita = cluster.token_for("rita", "reader");
    let with = |token: &str, arguments: &[&str]| {
        cluster.atelier_at(&cluster.server(), arguments).env("ATELIER_TOKEN", token)
    };
    let job = with(&ana, &["job", "create", "-f", "-", "--query", "name", "-o", "tsv"])
        .stdin(job_yaml("echo ready; sleep 600"))
        .ok()
        .word();
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("ready");
    let run = ["job", "exec", &job, "--", "echo", "hello"];
    assert_eq!(with(&ana, &run).ok().word(), "hello");
    with(&ben, &run).fails(5).says(&["ben", "ana's"]);
    with(&ben, &["job", "forward", &job, ":80"]).fails(5).says(&["ben", "ana's"]);
    with(&rita, &run).fails(5).says(&["rita", "reader", "enter jobs"]);
    // What an admin may do to a job, they do from outside.
    exec(&cluster, &job, &["echo", "admin"]).code(5).says(&["admin", "ana's", "nobody enters"]);
    let events = cluster.rpc().events(&job).unwrap();
    let entered: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.kind == "Entered")
        .map(|event| (event.principal.as_str(), event.message.as_str()))
        .collect();
    assert_eq!(entered, [("ana", "ran in the job: echo hello")]);
}

#[test]
fn a_client_that_is_killed_takes_its_command_with_it() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    for more in ["", "trap '' HUP TERM INT; "] {
        let line = format!("{more}LEFT=alone sleep 600 & echo in; LEFT=alone sleep 600; echo out");
        let inside = cluster.atelier(["job", "exec", &job, "--", "sh", "-c", &line]).spawn();
        inside.prints("in");
        until("both run", || (processes_with("LEFT=alone").len() >= 2).then_some(()));
        inside.signal(Signal::KILL);
        until("its command is gone", || processes_with("LEFT=alone").is_empty().then_some(()));
    }
    assert_eq!(cluster.rpc().job(&job).unwrap().status().word(), "Running");
}

#[test]
fn a_daemon_that_is_killed_ends_commands_and_not_the_job() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let inside = cluster
        .atelier(["job", "exec", &job, "--", "sh", "-c", "echo in; LOST=daemon sleep 600"])
        .spawn();
    inside.prints("in");
    cluster.restart_daemon_hard();
    inside.wait().code(4).says(&["lost the daemon", "goes on"]);
    until("the command is gone", || processes_with("LOST=daemon").is_empty().then_some(()));
    cluster.node_is_ready("local");
    assert_eq!(exec(&cluster, &job, &["cat", "note"]).ok().word(), "here");
    // One that is asked to stop says so.
    let inside =
        cluster.atelier(["job", "exec", &job, "--", "sh", "-c", "echo in; sleep 600"]).spawn();
    inside.prints("in");
    cluster.daemon(|daemon| daemon.stop());
    inside.wait().code(4);
    cluster.start_daemon();
    cluster.node_is_ready("local");
    assert_eq!(cluster.rpc().job(&job).unwrap().status().word(), "Running");
    assert_eq!(cluster.rpc().job(&job).unwrap().attempt, 1);
}

#[test]
fn an_agent_that_is_killed_ends_commands_and_not_the_job() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let inside = cluster
        .atelier(["job", "exec", &job, "--", "sh", "-c", "echo in; LOST=agent sleep 600"])
        .spawn();
    inside.prints("in");
    cluster.agent("local", |agent| agent.kill());
    inside.wait().code(4).says(&["lost node 'local'"]);
    until("the command is gone", || processes_with("LOST=agent").is_empty().then_some(()));
    exec(&cluster, &job, &["true"]).code(1).says(&["local", "no session"]);
    cluster.start_agent(&Agent::new("local"));
    assert_eq!(exec(&cluster, &job, &["cat", "note"]).ok().word(), "here");
    assert_eq!(cluster.rpc().job(&job).unwrap().attempt, 1);
}

#[test]
fn without_isolation_a_command_is_in_the_job_too() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--isolation=none"));
    let job = sleeper(&cluster, "");
    let inside = exec(&cluster, &job, &["sh", "-c", "echo $OWN; cat note; exit 3"]).code(3);
    assert_eq!(inside.stdout(), "a word\nhere\n");
}

#[test]
fn a_client_that_does_not_read_holds_up_nothing() {
    let cluster = Cluster::start();
    let job = sleeper(&cluster, "");
    let frozen: Vec<_> = (0..3)
        .map(|_| {
            let inside = cluster.atelier(["job", "exec", &job, "--", "yes"]).spawn();
            inside.prints("y\ny\n");
            inside.signal(Signal::STOP);
            inside
        })
        .collect();
    let (daemon, agent) =
        (cluster.daemon(|daemon| daemon.pid()), cluster.agent("local", |agent| agent.pid()));
    let before = (memory(daemon), memory(agent));
    // Others go on, over the same session.
    for _ in 0..20 {
        assert_eq!(exec(&cluster, &job, &["echo", "through"]).ok().word(), "through");
    }
    let grown = (memory(daemon).saturating_sub(before.0), memory(agent).saturating_sub(before.1));
    assert!(grown.0 < 32 << 20 && grown.1 < 32 << 20, "{grown:?} bytes more");
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
    for inside in frozen {
        inside.signal(Signal::CONT);
        inside.wait().code(137);
    }
}

#[test]
fn each_member_of_a_job_on_several_nodes_is_entered_by_its_rank() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for node in ["n0", "n1"] {
        cluster.start_agent(&Agent::new(node));
    }
    let job = cluster.create(&format!(
        "{}resources: {{cpus: 2, instance_count: 2}}\n",
        job_yaml("echo member $AZUREML_CR_NODE_RANK > rank; echo ready; sleep 600")
    ));
    for rank in ["0", "1"] {
        let log = cluster.atelier(["job", "stream", &job, "-q", "--member", rank]).spawn();
        log.prints("ready");
        let run = ["job", "exec", &job, "--rank", rank, "--", "cat", "rank"];
        assert_eq!(cluster.atelier(run).ok().word(), format!("member {rank}"));
    }
    let run = ["job", "exec", &job, "--rank", "2", "--", "true"];
    cluster.atelier(run).fails(1).says(&["it has 2, from 0 to 1"]);
    let events = cluster.rpc().events(&job).unwrap();
    let told = |text: &str| events.iter().any(|event| event.message == text);
    assert!(told("ran in the job: cat rank") && told("ran in member 1 of the job: cat rank"));
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
}
