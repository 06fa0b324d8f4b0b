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

/// Makes a terminal and hands the agent its other side; the command's.
pub(super) fn hand_over(size: Size, agent: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // In a container it may be anything; what is no terminal's has no peer.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let other = open("/dev/ptmx", flags, Mode::empty())?;
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

pub(super) fn resize(terminal: &OwnedFd, size: Size) -> io::Result<()> {
    let (ws_row, ws_col) = (size.rows, size.columns);
    Ok(tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?)
}
