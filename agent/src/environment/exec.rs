//! Runs one program of a build, line by line, so that it never outlives whoever wanted it.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::mpsc;

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

enum Event {
    Line(String),
    Ended(io::Result<ExitStatus>),
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
    let (events, mut inbox) = mpsc::channel(256);
    // A thread of its own that lives as long as the program: the kernel's death signal is tied to
    // the thread that started it, and threads of the runtime's pool come and go.
    std::thread::Builder::new()
        .name("environment-build".into())
        .spawn(move || supervise(command, reader, &running, &events))?;

    let mut tail = std::collections::VecDeque::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            event = inbox.recv() => match event {
                Some(Event::Line(line)) => {
                    watch.line(&line);
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    tail.push_back(line);
                }
                Some(Event::Ended(status)) => {
                    return Ok(Finished { status: status?, tail: tail.into() });
                }
                None => return Err(io::Error::other("the thread that ran the program ended")),
            },
            _ = tick.tick() => watch.tick(),
        }
    }
}

fn supervise(
    mut command: Command,
    reader: io::PipeReader,
    running: &Running,
    events: &mpsc::Sender<Event>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = events.blocking_send(Event::Ended(Err(error)));
            return;
        }
    };
    // This side's copies of the pipe's writing end, so that the reader sees its end.
    drop(command);
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    *running.lock().unwrap_or_else(PoisonError::into_inner) = group;
    if events.is_closed() {
        // The caller left before it could know whom to kill.
        drop(KillOnDrop(Arc::clone(running)));
    }
    let lines = events.clone();
    let reading = std::thread::spawn(move || read_lines(reader, &lines));
    if let Some(pid) = group {
        // Waits without reaping: until the number is forgotten below it cannot mean another
        // process.
        while let Err(rustix::io::Errno::INTR) =
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
    }
    // Whatever it left running goes with it; this also ends the output.
    drop(KillOnDrop(Arc::clone(running)));
    let status = child.wait();
    let _ = reading.join();
    let _ = events.blocking_send(Event::Ended(status));
}

fn read_lines(reader: io::PipeReader, events: &mpsc::Sender<Event>) {
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
                if events.blocking_send(Event::Line(text.to_owned())).is_err() {
                    return;
                }
            }
        }
    }
}
