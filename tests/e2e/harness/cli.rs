//! The command line as a user has it: arguments in; code, output and errors out.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::wait::{PATIENCE, is_over, until_within};

/// A command about to run.
pub(crate) struct Cli {
    command: Command,
    shown: String,
    stdin: Vec<u8>,
}

impl Cli {
    pub(crate) fn new<S: AsRef<OsStr>>(
        mut command: Command,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut shown = "atelier".to_owned();
        for argument in arguments {
            shown += " ";
            shown += &argument.as_ref().to_string_lossy();
            command.arg(argument);
        }
        Self { command, shown, stdin: Vec::new() }
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn env_remove(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    pub(crate) fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = text.into();
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it to its end; it must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Outcome {
        self.run().ok()
    }

    /// Runs it to its end; it must end with `code`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Outcome {
        self.run().code(code)
    }

    /// Starts it and lets it run.
    pub(crate) fn spawn(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", self.shown));
        // Few tests give input, and always less than a pipe holds.
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        let stdout = Capture::of(child.stdout.take().unwrap());
        let stderr = Capture::of(child.stderr.take().unwrap());
        Running { child, shown: self.shown, stdout, stderr }
    }
}

/// What a pipe has given so far.
struct Capture {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn now(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    /// All of it. Something that the command left behind may hold the pipe open, which is a fault.
    fn all(&mut self, what: &str) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            until_within(Duration::from_secs(10), &format!("{what}: its output ends"), || {
                reader.is_finished().then_some(())
            });
            reader.join().unwrap();
        }
        self.now()
    }
}

/// A command that runs. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: Capture,
    stderr: Capture,
}

impl Running {
    /// What it has printed.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.now()).into_owned()
    }

    /// What it has said.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.now()).into_owned()
    }

    /// Waits until it has printed `text`.
    #[track_caller]
    pub(crate) fn prints(&self, text: &str) {
        self.prints_within(PATIENCE, text);
    }

    #[track_caller]
    pub(crate) fn prints_within(&self, patience: Duration, text: &str) {
        let mut last = String::new();
        let begun = std::time::Instant::now();
        while !is_over(begun, patience) {
            last = self.stdout();
            if last.contains(text) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("`{}` did not print {text:?}: {last:?}\n{}", self.shown, self.stderr());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(self) -> Outcome {
        self.wait_within(PATIENCE * 2)
    }

    #[track_caller]
    pub(crate) fn wait_within(mut self, patience: Duration) -> Outcome {
        let begun = std::time::Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                !is_over(begun, patience),
                "`{}` still runs after {patience:?}\n{}\n{}",
                self.shown,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(Duration::from_millis(3));
        };
        let shown = std::mem::take(&mut self.shown);
        let stdout = self.stdout.all(&shown);
        let stderr = String::from_utf8_lossy(&self.stderr.all(&shown)).into_owned();
        Outcome { shown, status, bytes: stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
pub(crate) struct Outcome {
    shown: String,
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) bytes: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: String,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shown, status, stderr, .. } = self;
        write!(f, "`{shown}`: {status}\n--- stdout\n{}\n--- stderr\n{stderr}", self.stdout())
    }
}

impl Outcome {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Standard output without the blanks around it.
    pub(crate) fn word(&self) -> String {
        self.stdout().trim().to_owned()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert!(self.status.signal().is_none(), "a signal ended {self:?}");
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    /// Standard error holds each of these, whatever the case of the letters.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        let told = self.stderr.to_lowercase();
        for part in parts {
            assert!(told.contains(&part.to_lowercase()), "nothing about {part:?} in {self:?}");
        }
        self
    }

    /// Neither output nor error holds any of these.
    #[track_caller]
    pub(crate) fn never_says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                !self.stderr.contains(part) && !self.stdout().contains(part),
                "{part:?} in {self:?}"
            );
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}
