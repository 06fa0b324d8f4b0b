//! The leader: the supervisor's one child, and the parent of the job's processes.
//!
//! Where jobs are isolated it goes into the view first ([`crate::isolation`]), and then it is process 1 of
//! the processes that the job sees: their orphans come to it, and when it dies the kernel kills them all
//! before anyone hears of it (pid_namespaces(7)). It starts the commands, passes SIGTERM on, and tells the
//! supervisor through a pipe how each began and ended. It ends when the last
//! command has.
//!
//! Where it is no process 1, what leaves its parent comes to it all the same. It outlives a supervisor that
//! is killed until it has killed all of that.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal};

use super::journal::{Launch, Outcome};
use super::spawn::{Command, Files, Step};
use super::tree;
use super::word::Word;
use crate::cgroup::{Cgroup, Switch};
use crate::isolation::{Entry, Failed, View};

/// A leader, which starts its commands or has.
pub(super) struct Leader {
    pub(super) pid: libc::pid_t,
    /// Whether all that it leads dies with it, by the kernel's doing.
    pub(super) owns_all: bool,
    /// The numbers of the commands that were started, by process; they are their groups' too.
    pub(super) commands: Vec<libc::pid_t>,
    words: File,
}

/// What the leader takes along when it is forked.
struct Making<'a> {
    commands: Vec<Command>,
    outputs: Vec<OwnedFd>,
    input: OwnedFd,
    doors: Vec<OwnedFd>,
    entry: Option<Entry<'a>>,
    owns_all: bool,
    /// What ends the job's groups, for a leader that has to.
    switches: Vec<Switch>,
    supervisor: libc::pid_t,
    words: File,
}

impl Leader {
    /// Starts the leader, which then starts the commands, one per output, and says so. A folder on a file
    /// system that does not answer can keep it from that for as long as it likes, and this process from nothing:
    /// here no path is looked at that the job brings along.
    pub(super) fn start(launch: &Launch, outputs: Vec<OwnedFd>) -> Result<Self, Outcome> {
        let failed =
            |what: &str, errno: c_int| Outcome::NotStarted { what: what.to_owned(), errno };
        let system = |what: &'static str| {
            move |error: io::Error| failed(what, error.raw_os_error().unwrap_or(libc::EIO))
        };
        let commands: Option<Vec<Command>> =
            (0..outputs.len()).map(|number| Command::new(launch, number)).collect();
        let commands = commands
            .ok_or_else(|| failed("the command or a variable holds a NUL", libc::EINVAL))?;
        let doors = launch.cgroup.as_ref().map(Cgroup::doors).transpose();
        let doors = doors.map_err(system("opening the job's control groups"))?.unwrap_or_default();
        let input = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed("opening /dev/null", errno.raw_os_error()))?;
        let entry = launch.view.as_ref().map(View::entry);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| failed("making a pipe", errno.raw_os_error()))?;
        rustix::io::ioctl_fionbio(&read, true)
            .map_err(|errno| failed("making a pipe", errno.raw_os_error()))?;
        let owns_all = entry.as_ref().is_some_and(Entry::owns_processes);
        let groups = launch.cgroup.as_ref().filter(|_| !owns_all);
        let switches = groups.map(Cgroup::switches).unwrap_or_default();
        let supervisor = rustix::process::getpid().as_raw_nonzero().get();
        let words = File::from(write);
        let making = Making {
            commands,
            outputs,
            input,
            doors,
            entry,
            owns_all,
            switches,
            supervisor,
            words,
        };
        let flags = making.entry.as_ref().map_or(0, Entry::clone_flags);
        let pid = fork(flags).map_err(system("starting a process"))?;
        if pid == 0 {
            drop(read);
            making.lead();
        }
        // The leader's alone from now on: its end is to be seen.
        drop(making);
        Ok(Self { pid, owns_all, commands: Vec::new(), words: File::from(read) })
    }

    /// What to poll.
    pub(super) fn words(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    /// The next word; an error if there is none, for now ([`io::ErrorKind::WouldBlock`]) or for good.
    pub(super) fn next_word(&mut self) -> io::Result<Word> {
        Word::read(&mut self.words)
    }

    /// Asks all of the job's processes to end. The leader must not have been waited for.
    pub(super) fn terminate(&self, ended: &[bool]) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if !self.owns_all {
            // It asks the commands' groups; what has left those it does not know of.
            let living = self.commands.iter().zip(ended).filter(|(_, ended)| !**ended);
            let groups: Vec<libc::pid_t> = living.map(|(pid, _)| *pid).collect();
            tree::terminate(self.pid, &groups);
        }
    }

    /// Lets it go on if somebody has stopped it since the last look, as a job may where it has the same user:
    /// nobody would hear of the commands' ends. Whether that was so. It must not have been waited for.
    pub(super) fn go_on(&self) -> bool {
        let has_stopped = tree::has_stopped(self.pid);
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| has_stopped) {
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
        has_stopped
    }

    /// Kills all of the job's processes that a scan finds; how many that were.
    pub(super) fn kill(&self, is_gone: bool) -> usize {
        if !self.owns_all {
            return tree::kill();
        }
        match Pid::from_raw(self.pid) {
            Some(pid) if !is_gone => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                1
            }
            _ => 0,
        }
    }
}

/// What it is to the job that the leader could not do this.
pub(super) fn not_started(step: Step, errno: c_int, launch: &Launch) -> Outcome {
    let what = match step {
        Step::Running => format!("running {}", launch.program.display()),
        Step::EnteringFolder => format!("entering the folder {}", launch.directory.display()),
        Step::EnteringGroup => "entering the job's control groups".to_owned(),
        Step::Forking => "starting a process".to_owned(),
    };
    Outcome::NotStarted { what, errno }
}

/// Forks, into new namespaces where asked to; 0 in the child.
pub(crate) fn fork(namespaces: c_int) -> io::Result<libc::pid_t> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: Without a stack of its own, clone is fork; this process has one thread, so the child may go
    // on as it likes.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The leader's own life.
impl Making<'_> {
    fn lead(mut self) -> ! {
        if !self.owns_all {
            // Whatever it may have to end is below it.
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        }
        self.die_with_supervisor();
        if let Some(entry) = &self.entry {
            // SAFETY: This process was forked with the entry's flags and has one thread.
            if let Err(Failed { what, error }) = unsafe { entry.enter() } {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.say(&Word::NotIsolated { what, errno });
                exit(1);
            }
            // What changes privileges may have cleared it.
            self.die_with_supervisor();
        }
        // What this process has open is the supervisor's and the node's, and is not to be had through it.
        // SAFETY: A plain system call.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        close_all_but(self.needed());
        let mut running = self.start_all();
        // Others must see when the last of the job's processes has closed its output.
        self.outputs.clear();
        close_all_but(self.kept());
        let mut is_stopping = false;
        loop {
            // What ends with the commands has been given no time; what was asked to end has.
            let is_childless = self.reap(&mut running);
            if running.iter().all(Option::is_none) && (is_childless || !is_stopping) {
                exit(0);
            }
            match wait_for_signal() {
                Some(libc::SIGTERM) => {
                    is_stopping = true;
                    self.pass_on_terminate(&running);
                }
                Some(libc::SIGHUP) if self.is_orphan() => self.end_all(&mut running),
                _ => {}
            }
        }
    }

    /// From now on this process is killed when the supervisor dies; ends if it has died.
    fn die_with_supervisor(&self) {
        // SAFETY: A plain system call.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // In a namespace of its own it cannot ask for its parent; but a pipe that nobody reads tells.
        let mut reader = [PollFd::new(&self.words, PollFlags::empty())];
        let immediately = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut reader, Some(&immediately)), Ok(0)) {
            exit(1);
        }
    }

    /// From now on this process only hears of the supervisor's death, where it has to end what else would
    /// live on.
    fn outlive_supervisor(&self) {
        if !self.owns_all {
            // SAFETY: A plain system call.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP) };
        }
    }

    /// Whether this process has to do what its supervisor would: anybody may say that it died, but who is
    /// orphaned has another parent.
    fn is_orphan(&self) -> bool {
        // SAFETY: A plain system call.
        !self.owns_all && unsafe { libc::getppid() } != self.supervisor
    }

    /// The supervisor was killed: kills all that it would have, and ends when nothing is left.
    fn end_all(&self, running: &mut [Option<libc::pid_t>]) -> ! {
        const MOST: Duration = Duration::from_millis(250);
        let mut pause = Duration::from_millis(1);
        loop {
            self.switches.iter().for_each(Switch::press);
            tree::kill();
            if self.reap(running) {
                exit(0);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MOST);
        }
    }

    /// The files without which commands cannot be started.
    fn needed(&self) -> Vec<c_int> {
        let files = self.outputs.iter().chain(&self.doors).chain([&self.input]);
        files.map(|file| file.as_raw_fd()).chain(self.kept()).collect()
    }

    /// The files that are needed to the end.
    fn kept(&self) -> Vec<c_int> {
        let switches = self.switches.iter().map(|switch| switch.file().as_raw_fd());
        switches.chain([self.words.as_raw_fd()]).collect()
    }

    /// The commands' numbers, while they run.
    fn start_all(&mut self) -> Vec<Option<libc::pid_t>> {
        let doors: Vec<c_int> = self.doors.iter().map(|door| door.as_raw_fd()).collect();
        let mut running = Vec::with_capacity(self.commands.len());
        for (command, output) in self.commands.iter().zip(&self.outputs) {
            let input = self.input.as_raw_fd();
            let files = Files { input, output: output.as_raw_fd(), doors: &doors };
            match command.spawn(&files) {
                Ok(pid) => {
                    self.outlive_supervisor();
                    running.push(Some(pid));
                    self.say(&Word::Started { pid });
                }
                Err((step, errno)) => {
                    // Those that have started die with this process.
                    self.say(&Word::NotStarted { step, errno });
                    exit(1);
                }
            }
        }
        running
    }

    fn say(&self, word: &Word) {
        // Whoever should hear it may be gone; then this process is being killed.
        let _ = (&self.words).write_all(&word.bytes());
    }

    fn pass_on_terminate(&self, running: &[Option<libc::pid_t>]) {
        for signal in [libc::SIGTERM, libc::SIGCONT] {
            if self.owns_all {
                // Everything in the namespace but this process, at one instant.
                // SAFETY: A plain system call.
                unsafe { libc::kill(-1, signal) };
                continue;
            }
            for group in running.iter().flatten() {
                // SAFETY: As above; its leader has not been waited for.
                unsafe { libc::kill(-group, signal) };
            }
        }
    }

    /// Waits for all that has ended and says it of the commands; whether no child is left.
    fn reap(&self, running: &mut [Option<libc::pid_t>]) -> bool {
        loop {
            let (pid, status) = match tree::reap() {
                Ok(Some(ended)) => ended,
                Ok(None) => return false,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return true,
            };
            if let Some(process) = running.iter().position(|running| *running == Some(pid)) {
                running[process] = None;
                let process = u32::try_from(process).unwrap_or(u32::MAX);
                self.say(&Word::Ended { process, status });
            }
        }
    }
}

/// Closes all files but standard input, output and error, and these.
fn close_all_but(mut kept: Vec<c_int>) {
    kept.sort_unstable();
    let mut from = libc::STDERR_FILENO + 1;
    for file in kept {
        if file > from {
            close_range(from, file - 1);
        }
        from = from.max(file + 1);
    }
    close_range(from, c_int::MAX);
}

fn close_range(first: c_int, last: c_int) {
    // SAFETY: Whatever owns them belongs to the process that was forked, and is not used here.
    unsafe { libc::close_range(first.cast_unsigned(), last.cast_unsigned(), 0) };
}

/// Waits for a child's end, to be asked to end by the supervisor, or to hear of its death; that somebody else
/// asks does not count.
fn wait_for_signal() -> Option<c_int> {
    // SAFETY: Plain system calls on a set and a record of our own.
    unsafe {
        let mut awaited = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut awaited);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut awaited, signal);
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed().assume_init();
        let signal = libc::sigwaitinfo(&raw const awaited, &raw mut info);
        // In a namespace of its own its parent has no number.
        let is_ours = signal != libc::SIGTERM || info.si_pid() == libc::getppid();
        (signal > 0 && is_ours).then_some(signal)
    }
}

/// Ends without running what belongs to the process that was forked.
fn exit(code: c_int) -> ! {
    // SAFETY: A plain system call.
    unsafe { libc::_exit(code) }
}
