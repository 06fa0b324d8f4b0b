//! The signals of a supervisor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// SIGCHLD, SIGTERM and SIGQUIT, to be read instead of handled.
pub(super) struct Signals {
    pub(super) file: OwnedFd,
}

/// Which signals have come since the last look.
#[derive(Default)]
pub(super) struct Came {
    pub(super) child: bool,
    pub(super) terminate: bool,
    pub(super) quit: bool,
}

impl Signals {
    const READ: [libc::c_int; 3] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGQUIT];
    const IGNORED: [libc::c_int; 4] = [libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

    /// Blocks the signals a supervisor reads and those it must not die of.
    pub(super) fn block() -> io::Result<()> {
        // SAFETY: Plain system calls on a set of our own.
        unsafe {
            let mut blocked = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
            libc::sigemptyset(&raw mut blocked);
            for signal in Self::READ.into_iter().chain(Self::IGNORED) {
                libc::sigaddset(&raw mut blocked, signal);
            }
            match libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut()) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Blocks the signals and makes them readable.
    pub(super) fn take() -> io::Result<Self> {
        Self::block()?;
        // SAFETY: Plain system calls on a set of our own.
        unsafe {
            let mut read = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
            libc::sigemptyset(&raw mut read);
            for signal in Self::READ {
                libc::sigaddset(&raw mut read, signal);
            }
            let file = libc::signalfd(-1, &raw const read, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if file < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { file: OwnedFd::from_raw_fd(file) })
        }
    }

    /// Takes what has come.
    pub(super) fn read(&self) -> Came {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let (mut came, mut buffer) = (Came::default(), [0_u8; SIZE * 4]);
        while let Ok(bytes) = rustix::io::read(&self.file, &mut buffer) {
            for info in buffer[..bytes].chunks_exact(SIZE) {
                // `ssi_signo` is the first field.
                let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
                match i32::try_from(number).unwrap_or(0) {
                    libc::SIGCHLD => came.child = true,
                    libc::SIGTERM => came.terminate = true,
                    libc::SIGQUIT => came.quit = true,
                    _ => {}
                }
            }
            if bytes < buffer.len() {
                break;
            }
        }
        came
    }
}
