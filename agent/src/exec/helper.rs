//! The helper: the process between the agent and a command inside a job.
//!
//! ```text
//! helper ----> first child: enters the control groups and namespaces, and
//!    '-------> starts the second as its brother: in the PID namespace too; becomes the command
//! ```
//! **Invariant:** one thread. What it started is dead when it ends.

use std::fs;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::program::execute;
use super::{Order, Word};
use crate::cgroup::Cgroup;
use crate::isolation::View;
use crate::proc;
use crate::record;
use crate::supervisor::{LAUNCH, Launch, kill_descendants, reap};

/// Stands where an attempt's folder would, for a supervisor.
pub(crate) const ENTER: &str = "--enter";
/// What the agent says: the client has left.
pub(super) const HANG_UP: &[u8] = b"hang up";
/// What the agent says: at once.
pub(super) const KILL: &[u8] = b"kill";
/// The longest order: what the daemon lets through of a command, and some.
pub(super) const LONGEST_ORDER: usize = 192 << 10;
/// What a client that left is given to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How long what was killed may take to be gone.
const DEATH: Duration = Duration::from_secs(8);

/// By their names in `/proc/PID/ns`. The user namespace comes first: it gives the right to the others.
const NAMESPACES: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("mnt", libc::CLONE_NEWNS),
];

/// What a child tells the helper, as a line.
#[derive(Serialize, Deserialize)]
enum Told {
    /// The second child's number, as the helper sees it.
    Main(i32),
    Failed(Failed),
}

/// Why a command could not be started.
#[derive(Serialize, Deserialize)]
pub(super) enum Failed {
    /// The way to it, in words.
    Way { what: String, errno: i32 },
    /// The program itself.
    Program { program: String, errno: i32 },
}

impl From<Failed> for Word {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Way { what, errno } => Self::NotStarted { what, errno },
            Failed::Program { program, errno } => Self::NotRun { program, errno },
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failed {
    let what = what.into();
    move |error| Failed::Way { what, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// The helper's whole life: standard input is the socket to the agent.
pub(crate) fn enter_to_code() -> ExitCode {
    let socket = rustix::stdio::stdin();
    // Neither a terminal nor the agent's group reaches it, nor a reader that went away.
    let _ = rustix::process::setsid();
    // SAFETY: One thread, and no handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        // What is in the job already must not look into its children while they have files and rights of
        // the agent's. Becoming the command ends it.
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
    }
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    // SAFETY: It only marks files to be closed when the command starts.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    let told = match receive(socket).and_then(|(order, files)| Ok((start(&order, &files)?, files)))
    {
        Ok((main, files)) => {
            // The command has its own; the agent must see their end.
            drop(files);
            tell(socket, &Word::Started);
            attend(socket, main)
        }
        Err(failed) => failed.into(),
    };
    tell(socket, &told);
    ExitCode::SUCCESS
}

fn tell(socket: BorrowedFd<'_>, word: &Word) {
    // An agent that is gone needs to know nothing.
    let _ = send(socket, &serde_json::to_vec(word).unwrap_or_default(), SendFlags::NOSIGNAL);
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Order, Vec<OwnedFd>), Failed> {
    let read = || -> io::Result<(Order, Vec<OwnedFd>)> {
        let mut bytes = vec![0; LONGEST_ORDER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files = files.flatten().collect();
        Ok((serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?, files))
    };
    read().map_err(failed("hearing what to run"))
}

/// Starts the command; gives its number.
fn start(order: &Order, files: &[OwnedFd]) -> Result<Pid, Failed> {
    let launch: Launch = record::read(&order.folder, LAUNCH)
        .and_then(|launch| launch.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(failed("reading how the job was started"))?;
    let process = Pid::from_raw(order.pid).ok_or_else(|| io::ErrorKind::InvalidInput.into());
    let target = process.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    let gone = "looking at the job's process, which has just ended";
    let target = target.map_err(failed(gone))?;
    if proc::stat(order.pid).is_none_or(|stat| stat.start_time != order.start_time) {
        return Err(Failed::Way { what: gone.to_owned(), errno: libc::ESRCH });
    }
    let entry = Entry {
        doors: launch.cgroup.as_ref().map(Cgroup::doors).transpose(),
        namespaces: namespaces_of(order.pid).map_err(failed("reading the job's namespaces"))?,
        target,
    };
    let (reader, writer) = io::pipe().map_err(failed("making a pipe"))?;
    // SAFETY: One thread, so the child may go on as it likes.
    match unsafe { libc::fork() } {
        0 => {
            drop(reader);
            let told = entry.enter(order, &launch, files, &writer);
            report(&writer, &told);
            // SAFETY: Nothing of the helper's is to be cleaned up.
            unsafe { libc::_exit(0) }
        }
        first if first > 0 => {
            drop(writer);
            let found = heard(reader);
            // SAFETY: It is our child, and ends as soon as it has told.
            unsafe { libc::waitpid(first, ptr::null_mut(), 0) };
            found
        }
        _ => Err(failed("starting a process")(io::Error::last_os_error())),
    }
}

/// What the children have told, once the second has become the command or both have ended.
fn heard(reader: io::PipeReader) -> Result<Pid, Failed> {
    let text = io::read_to_string(reader).map_err(failed("starting the command"))?;
    let mut main = None;
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Told::Main(pid)) => main = Pid::from_raw(pid),
            Ok(Told::Failed(failed)) => return Err(failed),
            Err(_) => {}
        }
    }
    main.ok_or(Failed::Way {
        what: "entering the job, which has just ended".to_owned(),
        errno: libc::ESRCH,
    })
}

fn report(mut writer: &io::PipeWriter, told: &Told) {
    let line = serde_json::to_string(told).unwrap_or_default() + "\n";
    let _ = writer.write_all(line.as_bytes());
}

/// Those of the process's namespaces in which this one is not.
fn namespaces_of(pid: i32) -> io::Result<Vec<i32>> {
    let mut differing = Vec::new();
    for (name, flag) in NAMESPACES {
        // A kernel without a kind of namespace has no such file.
        let Ok(own) = fs::read_link(Path::new("/proc/self/ns").join(name)) else { continue };
        if fs::read_link(format!("/proc/{pid}/ns/{name}"))? != own {
            differing.push(flag);
        }
    }
    Ok(differing)
}

/// The way in.
struct Entry {
    /// Of the attempt's control groups; none if there are none.
    doors: io::Result<Option<Vec<OwnedFd>>>,
    namespaces: Vec<i32>,
    target: OwnedFd,
}

impl Entry {
    /// In the first child: enters, and starts the second.
    fn enter(
        self,
        order: &Order,
        launch: &Launch,
        files: &[OwnedFd],
        writer: &io::PipeWriter,
    ) -> Told {
        match self.try_to_enter(order, launch, files, writer) {
            Ok(main) => Told::Main(main),
            Err(failed) => Told::Failed(failed),
        }
    }

    fn try_to_enter(
        self,
        order: &Order,
        launch: &Launch,
        files: &[OwnedFd],
        writer: &io::PipeWriter,
    ) -> Result<i32, Failed> {
        let groups = "entering the job's control groups";
        for door in self.doors.map_err(failed(groups))?.unwrap_or_default() {
            rustix::io::write(door, b"0").map_err(io::Error::from).map_err(failed(groups))?;
        }
        if !self.namespaces.is_empty() {
            let all = self.namespaces.iter().fold(0, |all, flag| all | flag);
            // SAFETY: This process has one thread and ends here, whatever it sees.
            if unsafe { libc::setns(self.target.as_raw_fd(), all) } != 0 {
                return Err(failed("entering the job's namespaces")(io::Error::last_os_error()));
            }
        }
        let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong;
        // SAFETY: Without a stack of its own, clone is fork; there is one thread.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) } {
            0 => {
                let entered = !self.namespaces.is_empty();
                let failed = become_command(order, launch, files, writer, entered);
                report(writer, &Told::Failed(failed));
                // SAFETY: As above.
                unsafe { libc::_exit(127) }
            }
            pid if pid > 0 => Ok(i32::try_from(pid).unwrap_or_default()),
            _ => Err(failed("starting a process in the job")(io::Error::last_os_error())),
        }
    }
}

/// In the second child. It returns only if it fails.
fn become_command(
    order: &Order,
    launch: &Launch,
    files: &[OwnedFd],
    writer: &io::PipeWriter,
    entered: bool,
) -> Failed {
    // SAFETY: System calls on what is ours, in a process with one thread.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Before that the helper may have died; then nobody reads this.
        if rustix::io::write(writer, b"\n").is_err() {
            libc::_exit(127);
        }
        libc::setsid();
        for (number, standard) in (0..3).enumerate() {
            let Some(file) = files.get(if order.terminal { 0 } else { number }) else {
                return Failed::Way {
                    what: "taking its input and output".to_owned(),
                    errno: libc::EBADF,
                };
            };
            libc::dup2(file.as_raw_fd(), standard);
        }
        if order.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
            return failed("taking its terminal")(io::Error::last_os_error());
        }
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = MaybeUninit::zeroed().assume_init();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
    let confined = match &launch.view {
        Some(view) => {
            files.iter().try_for_each(|file| view.own(file)).and_then(|()| view.confine())
        }
        // A container's view is its own, its runtime's filter not to be had.
        None if entered || launch.inside.is_some() => {
            let filtered = View { filtered: true, ..View::default() };
            filtered.confine().or_else(|_| View::default().confine())
        }
        None => Ok(()),
    };
    if let Err(error) = confined {
        return failed("giving up privileges")(error);
    }
    // What changes privileges may have cleared it.
    // SAFETY: A plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if let Err(error) = std::env::set_current_dir(&launch.directory) {
        return failed(format!("entering the folder {}", launch.directory.display()))(error);
    }
    execute(order, launch)
}

/// Waits for the command's end, or brings it about when the agent says so or hangs up. Then nothing of what
/// it started lives any more, but what has left its tree for the job's.
fn attend(socket: BorrowedFd<'_>, main: Pid) -> Word {
    let Ok(process) = pidfd_open(main, PidfdFlags::empty()) else {
        kill_all(main);
        return Word::Signal(libc::SIGKILL);
    };
    let ended = |wait: Option<Duration>, also: Option<BorrowedFd<'_>>| {
        let mut files = vec![PollFd::new(&process, PollFlags::IN)];
        files.extend(also.as_ref().map(|file| PollFd::new(file, PollFlags::IN)));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        let looked = poll(&mut files, wait.as_ref());
        looked.is_ok_and(|ready| ready > 0) && !files[0].revents().is_empty()
    };
    // A look that was interrupted finds nothing to read.
    let _ = rustix::io::ioctl_fionbio(socket, true);
    let mut until: Option<Instant> = None;
    let hang_up = || {
        let _ = kill_process_group(main, Signal::HUP);
        let _ = kill_process_group(main, Signal::CONT);
    };
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if ended(left, Some(socket)) || left.is_some_and(|left| left.is_zero()) {
            break;
        }
        let mut said = [0; 16];
        match rustix::io::read(socket, &mut said) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(bytes) if said.get(..bytes) == Some(HANG_UP) => {
                hang_up();
                until = until.or_else(|| Instant::now().checked_add(GRACE));
            }
            // The agent is gone.
            Ok(0) | Err(_) => {
                hang_up();
                ended(Some(GRACE), None);
                break;
            }
            // At once.
            Ok(_) => break,
        }
    }
    kill_all(main)
}

/// Kills until nothing is left; how the command ended.
fn kill_all(main: Pid) -> Word {
    let (begun, mut word) = (Instant::now(), Word::Signal(libc::SIGKILL));
    // In a PID namespace orphans go to the job's first process and not here. While the leader has not been
    // waited for, nobody else's session has its number.
    while kill_session(main) > 0 && begun.elapsed() < DEATH {
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut left = take_ended(main, &mut word);
    while left && begun.elapsed() < DEATH {
        kill_descendants();
        left = take_ended(main, &mut word);
        if left {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    word
}

/// Kills what lives in the session of the command; how many that were.
fn kill_session(leader: Pid) -> usize {
    let all = proc::all().into_iter().filter(|stat| stat.state != 'Z');
    let leader = leader.as_raw_nonzero().get();
    let killed = all.filter(|stat| {
        let Some(pid) = Pid::from_raw(stat.pid) else { return false };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // Asked of what is held: the number may have been another's at the look.
        // SAFETY: It only asks. Kernel threads have session 0, which rustix cannot say.
        let session = unsafe { libc::getsid(stat.pid) };
        session == leader && pidfd_send_signal(&process, Signal::KILL).is_ok()
    });
    killed.count()
}

/// Waits for those that have ended; whether any child is left.
fn take_ended(main: Pid, word: &mut Word) -> bool {
    loop {
        match reap() {
            Ok(Some((pid, status))) if pid == main.as_raw_nonzero().get() => {
                *word = match libc::WIFSIGNALED(status) {
                    true => Word::Signal(libc::WTERMSIG(status)),
                    false => Word::Code(libc::WEXITSTATUS(status)),
                };
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
