//! Runs one program of a build, line by line, so that it never outlives whoever wanted it.

use std::future::Future;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::pin::pin;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{mpsc, oneshot};

/// Lines kept for an error message.
const TAIL_LINES: usize = 200;
/// A line longer than this is cut into several.
const LINE_BYTES: u64 = 8 * 1024;

/// How a program ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// The last lines of its output and errors together.
    pub(crate) tail: Vec<String>,
}

/// What a caller does with a running program's output.
pub(crate) trait Watch: Send {
    /// A line of output or error output.
    fn line(&mut self, line: &str);
    /// Called about once a second.
    fn tick(&mut self) {}
}

/// Ignores everything.
pub(crate) struct Silent;
impl Watch for Silent {
    fn line(&mut self, _: &str) {}
}

/// The running program's process group, until it is reaped.
type Running = Arc<Mutex<Option<Pid>>>;

/// Kills the program when the caller goes away.
struct KillOnDrop(Running);
impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let group = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(group) = group {
            // It may have ended in this instant: then there is nothing left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs `command` to its end. It gets a process group of its own, which is killed when this future
/// is dropped and, by the kernel, when this process dies.
///
/// # Errors
/// The program cannot be started.
pub(crate) async fn run(mut command: Command, watch: &mut dyn Watch) -> io::Result<Finished> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::other("the agent is gone"))
            }
        });
    }
    let running: Running = Arc::default();
    let _kill = KillOnDrop(Arc::clone(&running));
    let (end, ended) = oneshot::channel();
    // A thread of its own that lives as long as the program: the kernel's death signal is tied to
    // the thread that started it, and threads of the runtime's pool come and go.
    std::thread::Builder::new().name("environment-build".into()).spawn(move || {
        let status = supervise(command, &running, || end.is_closed());
        // Nobody may want to know any more.
        let _ = end.send(status);
    })?;
    let ended = async {
        let gone = |_| Err(io::Error::other("the thread that ran the program ended"));
        ended.await.unwrap_or_else(gone)
    };
    follow(reader, ended, watch).await
}

/// Follows what a program says, until it has `ended` and nobody can say any more.
///
/// # Errors
/// As `ended`.
pub(crate) async fn follow(
    reader: io::PipeReader,
    ended: impl Future<Output = io::Result<ExitStatus>>,
    watch: &mut dyn Watch,
) -> io::Result<Finished> {
    let (lines, mut inbox) = mpsc::channel(256);
    std::thread::Builder::new()
        .name("environment-lines".into())
        .spawn(move || read_lines(reader, &lines))?;
    let mut tail = std::collections::VecDeque::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut ended = pin!(ended);
    let (mut status, mut is_silent) = (None, false);
    loop {
        match status {
            Some(status) if is_silent => return Ok(Finished { status, tail: tail.into() }),
            _ => {}
        }
        tokio::select! {
            line = inbox.recv(), if !is_silent => match line {
                Some(line) => {
                    watch.line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                None => is_silent = true,
            },
            how = &mut ended, if status.is_none() => status = Some(how?),
            _ = tick.tick() => watch.tick(),
        }
    }
}

/// Runs the program to its end.
fn supervise(
    mut command: Command,
    running: &Running,
    is_unwanted: impl Fn() -> bool,
) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    // This side's copies of the pipe's writing end, so that the reader sees its end.
    drop(command);
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    *running.lock().unwrap_or_else(PoisonError::into_inner) = group;
    if is_unwanted() {
        // The caller left before it could know whom to kill.
        drop(KillOnDrop(Arc::clone(running)));
    }
    if let Some(pid) = group {
        // Waits without reaping: until the number is forgotten below it cannot mean another
        // process.
        while let Err(rustix::io::Errno::INTR) =
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
    }
    // Whatever it left running goes with it; this also ends the output.
    drop(KillOnDrop(Arc::clone(running)));
    child.wait()
}

fn read_lines(reader: io::PipeReader, lines: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                // A progress bar that redraws itself counts with its last state.
                let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
                if lines.blocking_send(text.to_owned()).is_err() {
                    return;
                }
            }
        }
    }
}
