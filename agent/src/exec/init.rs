//! Process 1 of a view that was made anew: it takes in orphans, passes on that somebody hung up, and ends
//! with the command. The kernel then kills what is left (pid_namespaces(7)).

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use crate::supervisor::{fork, reap};

/// What it waits for; others do not reach it.
const AWAITED: [c_int; 3] = [libc::SIGCHLD, libc::SIGHUP, libc::SIGTERM];

fn awaited() -> libc::sigset_t {
    // SAFETY: The set is ours.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        for signal in AWAITED {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Starts the command; 0 in the process that is to become it.
pub(super) fn begin() -> io::Result<libc::pid_t> {
    let set = awaited();
    // A session of its own, by which the helper finds it.
    // SAFETY: Plain system calls. Becoming the command takes the block away.
    unsafe {
        libc::setsid();
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
    fork(0)
}

/// Leads until the command has ended, and ends as that did; a signal shows as in a shell.
pub(super) fn lead(command: libc::pid_t) -> ! {
    let set = awaited();
    // Others must see when the command has closed its files.
    // SAFETY: Nothing is used any more that owns them.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
    loop {
        // SAFETY: The set is ours, and nothing is told of the signal but its number.
        match unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) } {
            libc::SIGCHLD => {
                while let Ok(Some((pid, status))) = reap() {
                    if pid == command {
                        let code = match libc::WIFSIGNALED(status) {
                            true => 128 + libc::WTERMSIG(status),
                            false => libc::WEXITSTATUS(status),
                        };
                        // SAFETY: A plain system call.
                        unsafe { libc::_exit(code) };
                    }
                }
            }
            signal @ (libc::SIGHUP | libc::SIGTERM) => {
                // To all but this process.
                // SAFETY: Plain system calls.
                unsafe {
                    libc::kill(-1, signal);
                    libc::kill(-1, libc::SIGCONT);
                }
            }
            _ => {}
        }
    }
}
