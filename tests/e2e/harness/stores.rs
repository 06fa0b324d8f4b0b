//! Object stores on this machine, moto for S3 and Azurite for Azure, and a way to them on which things go wrong.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{iter, thread};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use super::cluster::http;
use super::process::Process;
use super::wait::until;

/// The program that a variable of the tests names.
pub(super) fn program(variable: &str) -> PathBuf {
    let Ok(program) = std::env::var(variable) else {
        panic!("{variable} is to name a program; see tests/scripts/prepare")
    };
    program.into()
}

/// A port for a server that cannot choose one itself. Below those that the kernel gives away, which another
/// test's connection or server may have been given when this one comes to listen.
pub(super) fn free_port() -> u16 {
    let random = || RandomState::new().build_hasher().finish();
    let ports = iter::repeat_with(|| 20_000 + (random() % 12_000) as u16);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.take(1000).find(is_free).expect("a port that is free")
}

/// A server of S3, which lets everybody in. What it has is gone when it is dropped.
pub(crate) struct S3 {
    _folder: TempDir,
    url: String,
    _process: Process,
}

impl S3 {
    /// One with a bucket of the name `bucket`.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-s3-").tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(program("ATELIER_TEST_MOTO"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).env("TMPDIR", folder.path());
        let process = Process::spawn("moto", command, &folder.path().join("moto.log"));
        let url = format!("http://127.0.0.1:{port}");
        until("the bucket is made", || {
            http(&url, "PUT /bucket", "", "").ok().filter(|(s, _)| *s == 200)
        });
        Self { _folder: folder, url, _process: process }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Puts an object there that everybody may read. Others are kept from who shows no credentials.
    #[track_caller]
    pub(crate) fn put_public(&self, path: &str, body: &str) {
        let (address, what) = (self.address(), format!("PUT /bucket/{path}"));
        let put = exchange(address, &what, &format!("{WHO}x-amz-acl: public-read\r\n"), body);
        assert_eq!(put.0, 200, "{put:?}");
    }

    fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Puts an object there, or gets one: `GET /bucket/key`.
    #[track_caller]
    pub(crate) fn ask(&self, what: &str, body: &str) -> (u16, String) {
        exchange(self.address(), what, WHO, body)
    }
}

/// Somebody whom the server knows.
const WHO: &str = "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
                   SignedHeaders=host, Signature=0\r\n";

/// One request (`GET /path`) with these header lines: the status and the body.
pub(super) fn exchange(address: &str, what: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n\
         {body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// Azure's blobs, by Azurite, which keeps them on its disk.
pub(crate) struct Azure {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Azure {
    pub(crate) const ACCOUNT: &str = "teststore";

    /// One with the container `made`, for whom the key of the account is this.
    pub(crate) fn start(key: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-azure-").tempdir().unwrap();
        let mut azure = Self { folder, port: free_port(), process: None };
        azure.come_back(key);
        let made = azure.ask(key, "PUT", "/made", "restype:container", "");
        assert_eq!(made.0, 201, "{made:?}");
        azure
    }

    /// Where accounts are.
    pub(crate) fn server(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where blobs of the account are.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{}", self.port, Self::ACCOUNT)
    }

    /// Nobody listens at its address any more.
    pub(crate) fn go_away(&mut self) {
        // It writes down what it has when it is asked to stop.
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// With all that it had.
    pub(crate) fn come_back(&mut self, key: &str) {
        let mut command = Command::new(program("ATELIER_TEST_AZURITE"));
        command
            .args(["--blobPort", &self.port.to_string(), "--skipApiVersionCheck", "--silent"])
            .args(["--disableTelemetry", "--location"])
            .arg(self.folder.path())
            .env("AZURITE_ACCOUNTS", format!("{}:{key}", Self::ACCOUNT));
        let log = self.folder.path().join("azurite.log");
        self.process = Some(Process::spawn("Azurite", command, &log));
        let address = format!("127.0.0.1:{}", self.port);
        until("Azurite listens", || TcpStream::connect(&address).ok());
    }

    /// A shared access signature of the account (of 2019-12-12) for everything, until a year of this century.
    pub(crate) fn sas(key: &str, until: u32) -> String {
        let (account, end) = (Self::ACCOUNT, format!("{until}-01-01T00:00:00Z"));
        let to_sign = format!("{account}\nrwdlac\nb\nsco\n\n{end}\n\nhttps,http\n2019-12-12\n");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
        let signature = STANDARD.encode(hmac::sign(&key, to_sign.as_bytes()));
        let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        format!(
            "sv=2019-12-12&ss=b&srt=sco&sp=rwdlac&se={}&spr=https,http&sig={signature}",
            end.replace(':', "%3A")
        )
    }

    /// Makes a container that everybody may list and read.
    #[track_caller]
    pub(crate) fn make_public(&self, key: &str, container: &str) {
        let (path, public) = (format!("/{container}"), "x-ms-blob-public-access:container\n");
        let made = self.signed(key, ("PUT", &path, "restype:container"), public, "");
        assert_eq!(made.0, 201, "{made:?}");
    }

    /// A request that is signed with the account's key (Shared Key of 2009-09-19). The query is one pair.
    #[track_caller]
    pub(crate) fn ask(
        &self,
        key: &str,
        method: &str,
        path: &str,
        query: &str,
        body: &str,
    ) -> (u16, String) {
        let kind =
            if method == "PUT" && query.is_empty() { "x-ms-blob-type:BlockBlob\n" } else { "" };
        self.signed(key, (method, path, query), kind, body)
    }

    /// The same, with a header that is signed, too.
    #[track_caller]
    fn signed(
        &self,
        key: &str,
        (method, path, query): (&str, &str, &str),
        kind: &str,
        body: &str,
    ) -> (u16, String) {
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let length = if body.is_empty() { String::new() } else { body.len().to_string() };
        let account = Self::ACCOUNT;
        let pair = if query.is_empty() { String::new() } else { format!("\n{query}") };
        let to_sign = format!(
            "{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{kind}x-ms-date:{date}\nx-ms-version:2021-08-06\n\
             /{account}/{account}{path}{pair}"
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
        let signature = STANDARD.encode(hmac::sign(&key, to_sign.as_bytes()));
        let query = query.replace(':', "=");
        let mark = if query.is_empty() { "" } else { "?" };
        let kind = kind.replace(':', ": ").replace('\n', "\r\n");
        let headers = format!(
            "{kind}x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\n\
             Authorization: SharedKey {account}:{signature}\r\n"
        );
        let what = format!("{method} /{account}{path}{mark}{query}");
        exchange(&format!("127.0.0.1:{}", self.port), &what, &headers, body)
    }
}

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It is answered with this status, and never arrives.
    Refused(u16),
    /// It arrives and is done, and is answered with this status.
    Denied(u16),
    /// The answer ends in its middle.
    Cut,
}

/// A fault for the next requests whose first line holds these words.
struct Rule {
    words: Vec<String>,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct Way {
    rules: Vec<Rule>,
    seen: Vec<String>,
    closed: bool,
}

/// A server of HTTP that hands each request on to another. Dropping it ends it.
pub(crate) struct FaultyWay {
    address: SocketAddr,
    way: Arc<Mutex<Way>>,
}

impl FaultyWay {
    /// To a store, an address such as `http://127.0.0.1:1`.
    pub(crate) fn to(store: &str) -> Self {
        let store: SocketAddr = store.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let way = Arc::<Mutex<Way>>::default();
        let shared = way.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().unwrap().closed {
                    return;
                }
                let way = shared.clone();
                // A connection that breaks is a fault like another.
                thread::spawn(move || drop(carry(client, store, &way)));
            }
        });
        Self { address, way }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `times` requests whose first line has all these words meet with a fault.
    pub(crate) fn spoil(&self, words: &[&str], times: usize, fault: Fault) {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        self.way.lock().unwrap().rules.push(Rule { words, fault, left: times });
    }

    /// How many faults have not been met with.
    pub(crate) fn left(&self) -> usize {
        self.way.lock().unwrap().rules.iter().map(|rule| rule.left).sum()
    }

    /// The first lines of the requests that came, in their order, that have all these words.
    pub(crate) fn seen(&self, words: &[&str]) -> Vec<String> {
        let way = self.way.lock().unwrap();
        let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
        way.seen.iter().filter(has_all).cloned().collect()
    }

    /// Whether a request came whose first line has all these words.
    pub(crate) fn saw(&self, words: &[&str]) -> bool {
        !self.seen(words).is_empty()
    }
}

impl Drop for FaultyWay {
    fn drop(&mut self) {
        self.way.lock().unwrap().closed = true;
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

impl Way {
    fn fault(&mut self, line: &str) -> Option<Fault> {
        self.seen.push(line.to_owned());
        let meets = |rule: &&mut Rule| {
            rule.left > 0 && rule.words.iter().all(|word| line.contains(word.as_str()))
        };
        let rule = self.rules.iter_mut().find(meets)?;
        rule.left -= 1;
        Some(rule.fault)
    }
}

/// Hands the requests of a connection on, one after the other.
fn carry(client: TcpStream, store: SocketAddr, way: &Mutex<Way>) -> std::io::Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    let mut answers = client;
    loop {
        let (mut head, mut length, mut line) = (String::new(), 0, String::new());
        while line != "\r\n" {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                head.push_str("Connection: close\r\n");
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body)?;
        let first = head.lines().next().unwrap_or_default().to_owned();
        let mut fault = way.lock().unwrap().fault(&first);
        // As Amazon does, and moto does not: nothing of a store's own that is not signed.
        if first.contains("X-Amz-Signature") && head.contains("x-amz-copy-source") {
            fault = Some(Fault::Refused(403));
        }
        if first.contains("comp=batch") {
            // The requests that are in one.
            let text = String::from_utf8_lossy(&body);
            let lines = text.lines().filter(|line| line.starts_with("DELETE "));
            way.lock().unwrap().seen.extend(lines.map(str::to_owned));
        }
        let refuse = |answers: &mut TcpStream, status: u16| {
            let body =
                "<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>";
            let body = if first.starts_with("HEAD") { "" } else { body };
            write!(
                answers,
                "HTTP/1.1 {status} Not now\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        if let Some(Fault::Refused(status)) = fault {
            refuse(&mut answers, status)?;
            continue;
        }
        let mut upstream = TcpStream::connect(store)?;
        upstream.write_all(head.as_bytes())?;
        upstream.write_all(&body)?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer)?;
        match fault {
            Some(Fault::Denied(status)) => {
                refuse(&mut answers, status)?;
                continue;
            }
            Some(Fault::Cut) => answers.write_all(&answer[..answer.len() / 2])?,
            _ => answers.write_all(&answer)?,
        }
        // The server ended the connection, and so the answer says.
        return answers.shutdown(Shutdown::Both);
    }
}
