//! The agent's side of a helper and of the command's input and output.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use atelier_proto::job::v1::WindowSize;
use bytes::Bytes;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::helper::{ENTER, HANG_UP, KILL, LONGEST_ORDER};
use super::{Order, Size, Word, terminal};
use crate::pollable::readable;
use crate::supervisor::VERB;

/// Bytes read at once: one frame.
const CHUNK: usize = 32 << 10;

/// A command in a job. Dropping it ends the command.
pub(super) struct Inside {
    socket: AsyncFd<OwnedFd>,
    /// Reaped by the runtime, whenever it ends.
    helper: tokio::process::Child,
}

/// One end of a pipe, or a terminal, read and written without blocking.
pub(super) struct Stream(AsyncFd<OwnedFd>);

/// What the command is read from and written to by.
pub(super) struct Streams {
    pub(super) input: Option<Stream>,
    pub(super) output: Stream,
    /// A terminal has none of its own.
    pub(super) error: Option<Stream>,
    pub(super) terminal: Option<Terminal>,
}

/// A terminal's size can be set.
pub(super) struct Terminal(OwnedFd);

/// Ours, and the command's, where it has no terminal.
pub(super) fn pipes(input: bool) -> io::Result<(Streams, Vec<OwnedFd>)> {
    let (their_input, own_input) = io::pipe()?;
    let (own_output, their_output) = io::pipe()?;
    let (own_error, their_error) = io::pipe()?;
    let streams = Streams {
        // Without input the command reads the end of it.
        input: input.then(|| Stream::new(own_input.into())).transpose()?,
        output: Stream::new(own_output.into())?,
        error: Some(Stream::new(own_error.into())?),
        terminal: None,
    };
    Ok((streams, vec![their_input.into(), their_output.into(), their_error.into()]))
}

impl Streams {
    /// Of our side of a terminal.
    pub(super) fn of_terminal(own: OwnedFd, input: bool) -> io::Result<Self> {
        Ok(Self {
            input: input.then(|| Stream::new(own.try_clone()?)).transpose()?,
            terminal: Some(Terminal(own.try_clone()?)),
            output: Stream::new(own)?,
            error: None,
        })
    }
}

impl From<WindowSize> for Size {
    fn from(size: WindowSize) -> Self {
        let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Self { rows: cells(size.rows), columns: cells(size.columns) }
    }
}

impl Terminal {
    pub(super) fn resize(&self, size: WindowSize) {
        // A terminal that nobody has open any more needs no size.
        let _ = terminal::resize(&self.0, size.into());
    }
}

impl Stream {
    fn new(file: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&file, true)?;
        // SAFETY: The descriptor is owned by what is made, and is the same as long as that lives.
        let file = unsafe {
            AsyncFd::register_with_interest(file, Interest::READABLE | Interest::WRITABLE)
        };
        Ok(Self(file.map_err(io::Error::from)?))
    }

    /// What is there, at least a byte; nothing at the end.
    pub(super) async fn read(&self) -> Bytes {
        let mut buffer = vec![0; CHUNK];
        loop {
            let Ok(mut ready) = self.0.readable().await else { return Bytes::new() };
            match ready.try_io(|file| Ok(rustix::io::read(file, &mut buffer)?)) {
                Ok(Ok(bytes)) => {
                    buffer.truncate(bytes);
                    return buffer.into();
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that nobody has open any more (EIO).
                Ok(Err(_)) => return Bytes::new(),
                Err(_would_block) => {}
            }
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|file| Ok(rustix::io::write(file, bytes)?)) {
                Ok(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl Inside {
    /// Starts a helper with an order and the command's files.
    pub(super) fn start(order: &Order, files: &[OwnedFd]) -> io::Result<Self> {
        let order = serde_json::to_vec(order)?;
        if order.len() > LONGEST_ORDER {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let flags = SocketFlags::CLOEXEC;
        let (own, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The program that runs now, even if its file was replaced by a newer one meanwhile.
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("atelier").arg(VERB).arg(ENTER).current_dir("/").env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let helper = tokio::process::Command::from(command).spawn()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        // It blocks no longer than the helper takes to start.
        sendmsg(&own, &[io::IoSlice::new(&order)], &mut ancillary, SendFlags::NOSIGNAL)?;
        rustix::io::ioctl_fionbio(&own, true)?;
        Ok(Self { socket: readable(own)?, helper })
    }

    /// The helper's number, as long as it lives.
    pub(super) fn helper(&self) -> Option<i32> {
        self.helper.id().and_then(|pid| i32::try_from(pid).ok())
    }

    /// Our side of the command's terminal.
    ///
    /// # Errors
    /// The helper's word, if there will be none.
    pub(super) async fn terminal(&self) -> Result<OwnedFd, Word> {
        match self.hear().await {
            (Word::Terminal, Some(terminal)) => Ok(terminal),
            (word, _) => Err(word),
        }
    }

    /// The helper's next word.
    pub(super) async fn word(&self) -> Word {
        self.hear().await.0
    }

    /// The same, with the file that came with it.
    async fn hear(&self) -> (Word, Option<OwnedFd>) {
        let mut buffer = vec![0; 8 << 10];
        loop {
            let Ok(mut ready) = self.socket.readable().await else { break };
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [io::IoSliceMut::new(&mut buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(self.socket.get_ref(), &mut parts, &mut ancillary, flags) {
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Ok(received) if received.bytes > 0 => {
                    let files = ancillary.drain().filter_map(|message| match message {
                        RecvAncillaryMessage::ScmRights(files) => Some(files),
                        _ => None,
                    });
                    let file = files.flatten().next();
                    let word = buffer.get(..received.bytes).unwrap_or_default();
                    let word = serde_json::from_slice(word);
                    return (word.unwrap_or(Word::Signal(libc::SIGKILL)), file);
                }
                Ok(_) | Err(_) => break,
            }
        }
        // It was killed, and its command with it.
        (Word::Signal(libc::SIGKILL), None)
    }

    /// Asks the command to end, and ends it after a moment.
    pub(super) fn hang_up(&self) {
        let _ = send(self.socket.get_ref(), HANG_UP, SendFlags::NOSIGNAL);
    }

    /// Ends the command at once.
    pub(super) fn kill(&self) {
        let _ = send(self.socket.get_ref(), KILL, SendFlags::NOSIGNAL);
    }
}
