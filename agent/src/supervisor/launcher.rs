//! Starts supervisors without the cost of an exec.
//!
//! An agent keeps one launcher: the same program, executed once, with one thread and hardly any
//! memory. Asked for a supervisor it forks itself, which copies next to nothing. Measured on two
//! slow cores this takes a quarter of the CPU that executing the whole program anew takes.
//!
//! A launcher ends with its agent, the supervisors that it started do not. If it is killed, the
//! agent starts another one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::signals::Signals;
use super::{VERB, supervise_to_code};
use crate::pollable::readable;

/// Stands where an attempt's folder would, for a launcher.
pub(super) const SERVE: &str = "--launcher";
/// The longest path that the kernel takes.
const PATH: usize = 4096;

/// The agent's side.
pub(crate) struct Launcher {
    /// Requests are answered in order, one at a time.
    running: Mutex<Option<Running>>,
}

struct Running {
    process: Child,
    socket: AsyncFd<OwnedFd>,
}

/// A supervisor just started.
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl Launcher {
    /// The first request starts the process.
    pub(crate) fn new() -> Self {
        Self { running: Mutex::new(None) }
    }

    /// Starts a supervisor on an attempt's folder.
    pub(crate) async fn launch(&self, folder: &Path) -> io::Result<Launched> {
        let mut running = self.running.lock().await;
        for last in [false, true] {
            let launcher = match running.take() {
                Some(launcher) => launcher,
                None => Running::start()?,
            };
            match launcher.ask(folder).await {
                Ok(launched) => {
                    *running = Some(launcher);
                    return launched;
                }
                // It was killed. Had it started the supervisor before, the second one finds the
                // attempt taken and ends.
                Err(error) if last => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "the launcher of supervisors is gone, starting another")
                }
            }
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It ends by itself when the socket closes; this leaves no zombie behind it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Running {
    fn start() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (own, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&own, true)?;
        // The program that runs now, even if its file was replaced by a newer one meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("atelier").arg(VERB).arg(SERVE).current_dir("/").env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { process: command.spawn()?, socket: readable(own)? })
    }

    /// The outer result is the launcher's, the inner the supervisor's.
    async fn ask(&self, folder: &Path) -> io::Result<io::Result<Launched>> {
        send(self.socket.get_ref(), folder.as_os_str().as_bytes(), SendFlags::NOSIGNAL)?;
        loop {
            let mut ready = self.socket.readable().await?;
            match receive(self.socket.get_ref().as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(error),
                Ok((_, None)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((number, pidfd)) => {
                    let Some(number) = number else {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    };
                    return Ok(match pidfd {
                        Some(pidfd) if number > 0 => Ok(Launched { pid: number, pidfd }),
                        _ => Err(io::Error::from_raw_os_error(-number)),
                    });
                }
            }
        }
    }
}

/// An answer: the pid, or an errno below zero, and the pidfd.
fn receive(socket: BorrowedFd<'_>) -> io::Result<(Option<i32>, Option<OwnedFd>)> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut number)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let pidfd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok(((received.bytes == 4).then(|| i32::from_ne_bytes(number)), pidfd))
}

/// The launcher's own life: standard input is the socket to the agent.
pub(super) fn serve() -> ExitCode {
    // Before the first fork, so that no supervisor can be ended half way by a signal.
    if Signals::block().is_err() {
        return ExitCode::FAILURE;
    }
    // SAFETY: Only system calls, in a process with one thread.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
        // Nobody asks how a supervisor exited: its records say more.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    crate::isolation::make_ready();
    let socket = rustix::stdio::stdin();
    let mut buffer = [0; PATH];
    loop {
        let folder = match rustix::io::read(socket, &mut buffer) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(bytes) => PathBuf::from(std::ffi::OsStr::from_bytes(&buffer[..bytes])),
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return ExitCode::FAILURE,
        };
        let answered = match fork() {
            Ok(None) => become_supervisor(&folder),
            Ok(Some(launched)) => answer(socket, launched.pid, Some(&launched.pidfd)),
            Err(error) => answer(socket, -error.raw_os_error().unwrap_or(libc::EAGAIN), None),
        };
        if answered.is_err() {
            return ExitCode::FAILURE;
        }
    }
}

fn answer(socket: BorrowedFd<'_>, number: i32, pidfd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = pidfd.iter().map(|pidfd| pidfd.as_fd()).collect();
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    let number = number.to_ne_bytes();
    sendmsg(socket, &[io::IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Forks: `None` in the child.
fn fork() -> io::Result<Option<Launched>> {
    let mut pidfd: libc::c_int = -1;
    let flags = (libc::CLONE_PIDFD | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: Without a stack of its own, clone is fork; the pidfd, which comes with it and so is
    // the child's beyond doubt, goes where `parent_tid` points. This process has one thread, so
    // the child may go on as it likes.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => {
            // SAFETY: The kernel made it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Launched { pid, pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child's whole life.
fn become_supervisor(folder: &Path) -> ! {
    // For `ps`: the attempt's epoch.
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = std::ffi::CString::new(format!("atelier:{}", name.unwrap_or_default()));
    // SAFETY: System calls only; the name outlives its.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        // The agent must see the launcher's end, whoever else lives.
        libc::close(libc::STDIN_FILENO);
        libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        if let Ok(name) = &name {
            libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        }
        libc::_exit(libc::c_int::from(supervise_to_code(folder)))
    }
}
