//! A daemon that other machines reach: encrypted, with certificates of its own or of its admin's.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::harness::{Agent, Cluster, Settings, http, until};

/// Logs a metric and an artifact with MLflow's own client, as its variables say.
const LOGS: &str = "\
import os, ssl, urllib.request, mlflow
daemon = os.environ['AZUREML_SERVICE_ENDPOINT']
assert daemon.startswith('https://'), daemon
with mlflow.start_run():
    mlflow.log_metric('loss', 0.25)
    mlflow.set_tracking_uri(daemon)
    mlflow.log_metric('past', 0.125)
    mlflow.log_text('hello', 'notes/a.txt')
trusted = ssl.create_default_context(cafile=os.environ['ATELIER_CA_FILE'])
print(urllib.request.urlopen(daemon + '/healthz', context=trusted).status)
";

fn serve(arguments: &[&str]) -> Settings {
    let serve = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Settings { serve, ..Settings::default() }
}

/// This machine's address as others see it; loopback where it has no other.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent.
    let found = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    found.map_or("127.0.0.1".parse().unwrap(), |address| address.ip())
}

/// Python with MLflow's client: what `tests/run` has prepared, or prepared now.
pub(crate) fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("ATELIER_TEST_PYTHON") {
        return python.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/prepare");
    let prepared = Command::new(script).output().unwrap();
    assert!(prepared.status.success(), "tests/scripts/prepare failed");
    Path::new(String::from_utf8(prepared.stdout).unwrap().trim()).join("bin/python")
}

/// The same server by another scheme or host.
fn by(server: &str, scheme: &str, host: &str) -> String {
    format!("{scheme}://{host}:{}", server.rsplit_once(':').unwrap().1)
}

#[test]
fn a_daemon_that_other_machines_reach_speaks_tls_alone() {
    let cluster = Cluster::with(serve(&["--listen", "0.0.0.0:0", "--tls-name", "gate.example"]));
    cluster.start_daemon();
    let server = cluster.server();
    assert!(server.starts_with("https://127.0.0.1:"), "{server}");
    // The local workspace's own commands need to be told nothing.
    cluster.atelier(["job", "list"]).ok();
    let shown = cluster.atelier(["ca", "show"]).ok().stdout();
    assert_eq!(shown, fs::read_to_string(cluster.authority()).unwrap());
    let told = cluster.atelier(["ca", "show", "-o", "json"]).ok().json();
    assert_eq!(told["certificate"].as_str(), Some(shown.as_str()));
    assert_eq!(told["fingerprint_sha256"].as_str().unwrap().len(), 32 * 3 - 1, "{told}");

    let elsewhere = own_address().to_string();
    let ask = |server: &str| {
        let cli = cluster.atelier(["job", "list"]).env("ATELIER_SERVER", server);
        cli.env("ATELIER_TOKEN", cluster.token())
    };
    let from_elsewhere = by(&server, "https", &elsewhere);
    // Who says nothing, or begins a handshake and goes no further, holds up nobody.
    let silent = [&[][..], &[22, 3, 1]].map(|begun| {
        let mut stream = TcpStream::connect(server.trim_start_matches("https://")).unwrap();
        stream.write_all(begun).unwrap();
        stream
    });
    ask(&from_elsewhere).env("ATELIER_CA_FILE", cluster.authority()).ok();
    ask(&from_elsewhere).fails(4).says(&["not trusted here", "--ca-file", "atelier ca show"]);
    ask(&from_elsewhere).env("ATELIER_CA_FILE", "nowhere.pem").fails(2).says(&["nowhere.pem"]);
    // An address of this machine that nobody named.
    ask(&by(&server, "https", "127.0.0.2"))
        .env("ATELIER_CA_FILE", cluster.authority())
        .fails(4)
        .says(&["other names", "gate.example", "--tls-name"]);
    ask("http://gate.example:7420").fails(2).says(&["plain HTTP", "https://"]);
    ask(&by(&server, "http", "127.0.0.1")).fails(4).says(&["speaks TLS", "https://"]);
    let plain = by(&server, "http", "127.0.0.1");
    let (status, said) = http(&plain, "GET /healthz", "", "").unwrap();
    assert_eq!(status, 400);
    assert!(said.contains("speaks TLS: use https://"), "{said}");
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The daemon's patience ends first.
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    }

    // Nodes and jobs: here, where the authority lies beside the address, and elsewhere, where it is given.
    cluster.write("logs.py", LOGS);
    // The Python may lie where only this user has a way.
    let own = |agent: Agent| agent.with("--job-users=none");
    cluster.start_agent(&own(Agent::new("local")).with("--label=at=here"));
    let given = format!("--ca-file={}", cluster.authority().display());
    let far = Agent::new("far").server(&from_elsewhere).with(&given).with("--no-shared-store");
    cluster.start_agent(&own(far).with("--label=at=far"));
    let script = cluster.files().join("logs.py");
    let on = |node: &str| {
        let (python, script) = (python(), script.display());
        let command = format!("command: {} {script}\n", python.display());
        cluster.create(&format!("{command}resources: {{node_labels: {{at: {node}}}}}\n"))
    };
    for job in [on("here"), on("far")] {
        cluster.completed(&job);
        let log = String::from_utf8(cluster.log(&job)).unwrap();
        assert!(log.trim_end().ends_with("200"), "{log}");
        let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().json();
        assert_eq!(shown["metrics"]["loss"], 0.25, "{shown}");
    }
    // One that knows nobody who vouches for the daemon says what it lacks, and ends.
    cluster.launch_agent(&Agent::new("lost").server(&from_elsewhere));
    until("the agent gives up", || cluster.agent("lost", |agent| agent.ended()));
    cluster.agent("lost", |agent| assert!(agent.said("--ca-file"), "{}", agent.tail(5)));
    let plain = by(&server, "http", "gate.example");
    cluster.launch_agent(&Agent::new("plain").server(&plain));
    until("the agent gives up", || cluster.agent("plain", |agent| agent.ended()));
    cluster.agent("plain", |agent| assert!(agent.said("write https://"), "{}", agent.tail(5)));

    // Started anew it is the same to all.
    cluster.restart_daemon_hard();
    assert_eq!(cluster.atelier(["ca", "show"]).ok().stdout(), shown);
}

/// An authority of somebody else's, and a certificate of it for `localhost` that ends after so many days.
struct Theirs {
    authority: String,
    chain: String,
    key: String,
}

impl Theirs {
    fn new(days: i64) -> Self {
        let now = time::OffsetDateTime::now_utc();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(["localhost".to_owned()]).unwrap();
        own.not_before = now - time::Duration::days(30);
        own.not_after = now + time::Duration::days(days);
        let issuer = Issuer::new(params, authority_key);
        let made = own.signed_by(&key, &issuer).unwrap();
        Self {
            authority: pem("CERTIFICATE", authority.der()),
            chain: pem("CERTIFICATE", made.der()),
            key: pem("PRIVATE KEY", key.serialized_der()),
        }
    }

    /// Puts certificate and key where the daemon looks for them.
    fn put(&self, cluster: &Cluster) {
        cluster.write("key.pem", &self.key);
        private(&cluster.files().join("key.pem"));
        cluster.write("chain.pem", &self.chain);
    }
}

fn private(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn an_admin_s_own_certificate_is_checked_and_read_again() {
    let arguments = ["--tls-cert", "chain.pem", "--tls-key", "key.pem"];
    let cluster = Cluster::with(serve(&arguments));
    let starts = || {
        let first = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "other"];
        cluster.atelier(first.into_iter().chain(arguments))
    };
    starts().fails(1).says(&["chain.pem", "cannot be read"]);
    Theirs::new(-1).put(&cluster);
    starts().fails(1).says(&["chain.pem", "has expired", "renew it"]);
    let first = Theirs::new(30);
    first.put(&cluster);
    let other = Theirs::new(30);
    cluster.write("key.pem", &other.key);
    starts().fails(1).says(&["another certificate's"]);
    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(cluster.files().join("key.pem"), open).unwrap();
    starts().fails(1).says(&["everybody may read", "chmod"]);

    first.put(&cluster);
    cluster.start_daemon();
    let named = by(&cluster.server(), "https", "localhost");
    let ask = |authority: &str| {
        let file = cluster.write("theirs.pem", authority);
        let cli = cluster.atelier(["job", "list"]).env("ATELIER_SERVER", &named);
        cli.env("ATELIER_TOKEN", cluster.token()).env("ATELIER_CA_FILE", file)
    };
    ask(&first.authority).ok();
    // On its own machine, by its address, it is known as ever.
    cluster.atelier(["job", "list"]).ok();
    ask(&other.authority).fails(4).says(&["not trusted here"]);
    other.put(&cluster);
    until("the daemon reads its files again", || {
        ask(&other.authority).run().status.success().then_some(())
    });
    cluster.atelier(["ca", "show"]).ok().says(&["warning", "--tls-cert"]);
    // What cannot be used changes nothing.
    cluster.write("chain.pem", "nothing");
    until("the daemon looks again", || {
        cluster.daemon(|daemon| daemon.said("keeps the certificate it has")).then_some(())
    });
    ask(&other.authority).ok();
}

#[test]
fn a_machine_joins_a_daemon_that_has_a_certificate_of_its_admin_s() {
    let cluster = Cluster::with(serve(&["--tls-cert", "chain.pem", "--tls-key", "key.pem"]));
    let theirs = Theirs::new(30);
    theirs.put(&cluster);
    cluster.start_daemon();
    let named = by(&cluster.server(), "https", "localhost");
    let token = || {
        let create = ["node", "token", "create", "--query", "token", "-o", "tsv"];
        cluster.atelier(create).ok().word()
    };
    // Others vouch for the daemon: the token says nothing of that.
    let once = token();
    assert!(!once.contains('.'), "a fingerprint of what is not shown");
    let bare = Agent::new("one").server(&named).token(&once);
    cluster.launch_agent(&bare);
    until("the agent gives up", || cluster.agent("one", |agent| agent.ended()));
    cluster.agent("one", |agent| assert!(agent.said("--ca-file"), "{}", agent.tail(5)));
    // That has used nothing up.
    let given = format!("--ca-file={}", cluster.write("theirs.pem", &theirs.authority).display());
    cluster.start_agent(&bare.with(&given));
    cluster.completed(&cluster.shell("true"));
    // It is known by a certificate of the workspace's own authority, and goes on when that is replaced.
    let identity = cluster.agent_data("one").join("identity.json");
    let read =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(&identity).unwrap()).unwrap() };
    let before = read();
    assert!(before["authority"].is_null(), "it trusts what it was given");
    cluster.atelier(["ca", "rotate"]).ok();
    until("the node has moved", || {
        let status = cluster.atelier(["ca", "status", "-o", "json"]).ok().json();
        (status["previous"]["nodes"] == serde_json::json!([])).then_some(())
    });
    assert_ne!(read()["proof"], before["proof"]);
    cluster.atelier(["ca", "retire"]).ok();
    cluster.completed(&cluster.shell("true"));
}
