//! A command's terminal, made where the command is: among the terminals that the job sees, so that it has a
//! name there (pts(4)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{Size, Word};
use crate::isolation::User;

/// Makes a terminal and hands the agent its other side; the command's. `user`: whose it is to be, if not this
/// process's.
pub(super) fn hand_over(
    size: Size,
    agent: BorrowedFd<'_>,
    user: Option<&User>,
) -> io::Result<OwnedFd> {
    // It is made as theirs: the job sees a file system that is read only, so it cannot become that.
    if let Some(user) = user {
        as_user(user.id, user.id);
    }
    // In a container it may be anything; what is no terminal's has no peer.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let other = open("/dev/ptmx", flags, Mode::empty());
    if user.is_some() {
        as_user(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    }
    let other = other?;
    unlockpt(&other)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let own = ioctl_tiocgptpeer(&other, flags)?;
    resize(&other, size)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [other.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    let word = serde_json::to_vec(&Word::Terminal)?;
    sendmsg(agent, &[io::IoSlice::new(&word)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(own)
}

/// Whose the files are that this thread makes.
fn as_user(user: u32, group: u32) {
    // SAFETY: Plain system calls; the process has one thread.
    unsafe {
        libc::setfsgid(group);
        libc::setfsuid(user);
    }
}

pub(super) fn resize(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let (ws_row, ws_col) = (size.rows, size.columns);
    Ok(tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?)
}
