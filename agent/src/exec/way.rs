//! The way from the helper to the command: into the groups and namespaces of an attempt that runs, or into a
//! view made anew of what one left.
//!
//! ```text
//! Beside   helper --> first child: enters the groups and namespaces, and
//!             '-----> starts the second as its brother: in the PID namespace too; becomes the command
//! Anew     helper --> child in new namespaces: enters the groups, makes the view, is process 1 of what
//!                       '---> the command sees
//! Container  helper --> child: enters the groups, becomes the runtime that starts the attempt's container again
//! Again    as beside, next to what that container runs
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::program::execute;
use super::{Order, Way, Word, init, terminal};
use crate::cgroup::Cgroup;
use crate::isolation::{self, User, View};
use crate::proc;
use crate::record;
use crate::supervisor::{LAUNCH, Launch, fork};

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

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failed {
    let what = what.into();
    move |error| Failed::Way { what, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// What the children need.
struct Start<'a> {
    order: &'a Order,
    launch: Launch,
    files: &'a [OwnedFd],
    /// Of the attempt's control groups; none if there are none.
    doors: Vec<OwnedFd>,
    /// The agent, which is handed the terminal.
    agent: BorrowedFd<'a>,
    writer: io::PipeWriter,
    /// What its image and its runtime gave the process beside which it is.
    base: BTreeMap<String, String>,
}

/// Starts the command; gives the number of the process that ends with it.
pub(super) fn start(
    order: &Order,
    files: &[OwnedFd],
    agent: BorrowedFd<'_>,
) -> Result<Pid, Failed> {
    let mut launch: Launch = record::read(&order.folder, LAUNCH)
        .and_then(|launch| launch.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(failed("reading how the job was started"))?;
    // Of one that is over they are gone.
    launch.add_secrets().map_err(failed("reading the job's secrets"))?;
    let groups = match &order.way {
        Way::Beside { .. } => &launch.cgroup,
        Way::Anew { cgroup } | Way::Container { cgroup } | Way::Again { cgroup, .. } => cgroup,
    };
    let doors = groups.as_ref().map(Cgroup::doors).transpose();
    let doors = doors.map_err(failed("opening the job's control groups"))?.unwrap_or_default();
    let (reader, writer) = io::pipe().map_err(failed("making a pipe"))?;
    let start = Start { order, launch, files, doors, agent, writer, base: BTreeMap::new() };
    match order.way {
        Way::Beside { pid, start_time } | Way::Again { pid, start_time, .. } => {
            start.beside(pid, start_time, reader)
        }
        Way::Anew { .. } | Way::Container { .. } => start.anew(reader),
    }
}

/// What the children have told, once the command has begun or they have ended; its number if they know it.
fn heard(reader: io::PipeReader) -> Result<Option<Pid>, Failed> {
    let text = io::read_to_string(reader).map_err(failed("starting the command"))?;
    let mut main = None;
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Told::Main(pid)) => main = Pid::from_raw(pid),
            Ok(Told::Failed(failed)) => return Err(failed),
            Err(_) => {}
        }
    }
    Ok(main)
}

impl Start<'_> {
    /// Beside a process of the attempt's command.
    fn beside(mut self, pid: i32, start_time: u64, reader: io::PipeReader) -> Result<Pid, Failed> {
        let process = Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidInput.into());
        let target = process.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        let gone = "looking at the job's process, which has just ended";
        let target = target.map_err(failed(gone))?;
        if self.launch.inside.is_some() {
            self.base = proc::variables(pid);
        }
        if proc::stat(pid).is_none_or(|stat| stat.start_time != start_time) {
            return Err(Failed::Way { what: gone.to_owned(), errno: libc::ESRCH });
        }
        let namespaces = namespaces_of(pid).map_err(failed("reading the job's namespaces"))?;
        if matches!(self.order.way, Way::Again { .. }) {
            go_first();
        }
        // SAFETY: One thread, so the child may go on as it likes.
        match unsafe { libc::fork() } {
            0 => {
                drop(reader);
                let told = match self.enter(&target, &namespaces) {
                    Ok(main) => Told::Main(main),
                    Err(failed) => Told::Failed(failed),
                };
                self.tell(&told);
                // SAFETY: Nothing of the helper's is to be cleaned up.
                unsafe { libc::_exit(0) }
            }
            first if first > 0 => {
                drop(self.writer);
                let found = heard(reader);
                // SAFETY: It is our child, and ends as soon as it has told.
                unsafe { libc::waitpid(first, ptr::null_mut(), 0) };
                let what = "entering the job, which has just ended".to_owned();
                found?.ok_or(Failed::Way { what, errno: libc::ESRCH })
            }
            _ => Err(failed("starting a process")(io::Error::last_os_error())),
        }
    }

    /// In a view made anew, where nothing of the attempt lives any more.
    fn anew(self, reader: io::PipeReader) -> Result<Pid, Failed> {
        let entry = self.launch.view.as_ref().map(View::entry);
        let flags = entry.as_ref().map_or(0, isolation::Entry::clone_flags);
        let child = fork(flags).map_err(failed("starting a process"))?;
        if child == 0 {
            drop(reader);
            self.make_view(entry);
        }
        drop(self.writer);
        heard(reader)?;
        Pid::from_raw(child)
            .ok_or_else(|| failed("starting a process")(io::ErrorKind::Other.into()))
    }

    /// In the first child: enters, and starts the second.
    fn enter(&self, target: &OwnedFd, namespaces: &[i32]) -> Result<i32, Failed> {
        self.enter_groups()?;
        // In the namespaces this may be nobody's right any more.
        self.own_files()?;
        if !namespaces.is_empty() {
            let all = namespaces.iter().fold(0, |all, flag| all | flag);
            // SAFETY: This process has one thread and ends here, whatever it sees.
            if unsafe { libc::setns(target.as_raw_fd(), all) } != 0 {
                return Err(failed("entering the job's namespaces")(io::Error::last_os_error()));
            }
        }
        match fork(libc::CLONE_PARENT).map_err(failed("starting a process in the job"))? {
            0 => self.become_command(Confine::Beside { entered: !namespaces.is_empty() }),
            second => Ok(second),
        }
    }

    /// In the child: makes the view, and starts the command in it or becomes it.
    fn make_view(&self, entry: Option<isolation::Entry<'_>>) -> ! {
        self.die_with_the_helper();
        // Else what `/proc` has of this process is root's, and maps of users cannot be written. Nothing that
        // could look into it sees it.
        // SAFETY: A plain system call.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
        go_first();
        if let Err(failed) = self.enter_groups() {
            self.give_up(failed);
        }
        // Its user may not do so any more.
        if let Err(failed) = self.own_files() {
            self.give_up(failed);
        }
        let Some(entry) = entry.filter(|entry| entry.clone_flags() != 0) else {
            self.become_command(Confine::Beside { entered: false });
        };
        // SAFETY: It was cloned with these flags and has one thread.
        if let Err(isolation::Failed { what, error }) = unsafe { entry.enter() } {
            self.give_up(failed(what)(error));
        }
        // What changes privileges may have cleared it.
        self.die_with_the_helper();
        if !entry.owns_processes() {
            self.become_command(Confine::Already);
        }
        // What process 1 has open is not to be had through it.
        // SAFETY: A plain system call.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        match init::begin() {
            Ok(0) => self.become_command(Confine::Already),
            Ok(command) => init::lead(command),
            Err(error) => self.give_up(failed("starting a process")(error)),
        }
    }

    /// Killed from here on when its parent ends; if that has happened already, nobody reads this.
    fn die_with_the_helper(&self) {
        // SAFETY: Plain system calls.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if (&self.writer).write(b"\n").is_err() {
                libc::_exit(127);
            }
        }
    }

    fn enter_groups(&self) -> Result<(), Failed> {
        let enter = |door: &OwnedFd| rustix::io::write(door, b"0").map(drop);
        let entered = self.doors.iter().try_for_each(enter);
        entered.map_err(io::Error::from).map_err(failed("entering the job's control groups"))
    }

    fn tell(&self, told: &Told) {
        let line = serde_json::to_string(told).unwrap_or_default() + "\n";
        let _ = (&self.writer).write_all(line.as_bytes());
    }

    fn give_up(&self, failed: Failed) -> ! {
        self.tell(&Told::Failed(failed));
        // SAFETY: Nothing of the helper's is to be cleaned up.
        unsafe { libc::_exit(127) }
    }

    /// In the last child.
    fn become_command(&self, confine: Confine) -> ! {
        self.die_with_the_helper();
        let failed = match self.make_ready(confine) {
            Ok(()) => execute(self.order, &self.launch, &self.base),
            Err(failed) => failed,
        };
        self.give_up(failed)
    }

    fn make_ready(&self, confine: Confine) -> Result<(), Failed> {
        // SAFETY: A plain system call.
        unsafe { libc::setsid() };
        let user = self.user();
        let made = self.order.terminal.map(|size| match confine {
            Confine::Beside { .. } => terminal::hand_over(size, self.agent, user.as_ref()),
            Confine::Already => terminal::hand_over(size, self.agent, None),
        });
        let made = made.transpose().map_err(failed("making a terminal in the job"))?;
        for (number, standard) in (0..3).enumerate() {
            let Some(file) = made.as_ref().or_else(|| self.files.get(number)) else {
                let what = "taking its input and output".to_owned();
                return Err(Failed::Way { what, errno: libc::EBADF });
            };
            // SAFETY: The files that are replaced are of no use to the command.
            unsafe { libc::dup2(file.as_raw_fd(), standard) };
        }
        // SAFETY: System calls on what is ours, in a process with one thread.
        unsafe {
            if made.is_some() && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(failed("taking its terminal")(io::Error::last_os_error()));
            }
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = MaybeUninit::zeroed().assume_init();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        }
        if let (Confine::Beside { entered }, false) = (confine, self.is_runtime()) {
            self.confine(entered).map_err(failed("giving up privileges"))?;
        }
        // What changes privileges may have cleared it.
        // SAFETY: A plain system call.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let folder = &self.launch.directory;
        let entering = || format!("entering the folder {}", folder.display());
        std::env::set_current_dir(folder).map_err(failed(entering()))
    }

    /// Whether what is started is the container's runtime, which does the agent's work.
    fn is_runtime(&self) -> bool {
        matches!(self.order.way, Way::Container { .. })
    }

    /// Gives the command's files to its user, if it has one of its own.
    fn own_files(&self) -> Result<(), Failed> {
        let owned = self.files.iter().try_for_each(|file| self.launch.own(file));
        owned.map_err(failed("giving the command its input and output"))
    }

    /// Whom the command becomes where it is, if it does not stay who enters.
    fn user(&self) -> Option<User> {
        let seen = self.launch.view.as_ref().and_then(|view| view.user.clone());
        // The node's root is nobody in there.
        seen.or_else(|| self.launch.contained_root.map(|_| User::default()))
    }

    /// Holds the command to what else holds for the job.
    fn confine(&self, entered: bool) -> io::Result<()> {
        match &self.launch.view {
            Some(view) => view.confine(),
            // A container's view is its own, its runtime's filter not to be had.
            None if entered || self.launch.inside.is_some() => {
                View { user: self.user(), ..View::default() }.confine()?;
                // Where there are no filters, the job has none either.
                let _ = View { filtered: true, ..View::default() }.confine();
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// How a command is held to what holds for the job.
enum Confine {
    /// Nothing but namespaces was entered yet, if even those.
    Beside { entered: bool },
    /// The way into the view has done it.
    Already,
}

/// Others were promised their memory, and this was not.
fn go_first() {
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
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
