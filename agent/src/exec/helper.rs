//! The helper: the process between the agent and a command inside a job.
//!
//! **Invariant:** one thread. What it started is dead when it ends.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::way::{self, Failed, failed};
use super::{Order, Word};
use crate::proc;
use crate::supervisor::{kill_descendants, reap};

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
    let begun =
        receive(socket).and_then(|(order, files)| Ok((way::start(&order, &files, socket)?, files)));
    let told = match begun {
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
