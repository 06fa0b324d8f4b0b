//! Sends an attempt's log to the daemon, from any byte on, as it grows.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use atelier_proto::agent::v1::agent_service_client::AgentServiceClient;
use atelier_proto::agent::v1::{FollowLog, PushLogRequest};
use bytes::Bytes;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::pollable::readable;
use crate::session::Caller;

/// In one message.
const CHUNK: usize = 64 * 1024;
/// Messages on their way; the rest waits in the file.
const AHEAD: usize = 4;

/// Why a log could not be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read the log {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the daemon ended the stream")]
    Stream(#[from] tonic::Status),
}

/// Answers one request: sends the log from the offset asked for, to its end if `follow` is set, and
/// otherwise what is there.
///
/// `complete` turns true when the log has its last byte.
pub(crate) async fn push(
    mut client: AgentServiceClient<Caller>,
    path: PathBuf,
    request: FollowLog,
    complete: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (chunks, stream) = mpsc::channel(AHEAD);
    let read = async {
        // Dropped when done: the end of the stream.
        let chunks = chunks;
        let source = |source| Error::Read { path: path.clone(), source };
        read(&path, &request, complete, &chunks).await.map_err(source)
    };
    // A daemon that hangs up ends the reading too.
    let sent = async { client.push_log(ReceiverStream::new(stream)).await };
    tokio::pin!(sent, read);
    tokio::select! {
        answer = &mut sent => answer.map(|_| ()).map_err(Error::from),
        done = &mut read => {
            done?;
            sent.await?;
            Ok(())
        }
    }
}

/// Answers a request that cannot be met now: the daemon asks again.
pub(crate) async fn refuse(mut client: AgentServiceClient<Caller>, request: u64) {
    let nothing = PushLogRequest { request_id: request, ..PushLogRequest::default() };
    if let Err(error) = client.push_log(tokio_stream::once(nothing)).await {
        tracing::debug!(request, %error, "a log could not be refused");
    }
}

async fn read(
    path: &Path,
    request: &FollowLog,
    mut complete: watch::Receiver<bool>,
    chunks: &mpsc::Sender<PushLogRequest>,
) -> io::Result<()> {
    // The first to look may come before the first to write.
    let file = File::options().read(true).append(true).create(true).open(path)?;
    let mut grown = None;
    let mut offset = request.offset;
    loop {
        // Asked before reading: what is there after a yes is all there will be.
        let is_complete = *complete.borrow();
        loop {
            let data = read_chunk(&file, offset)?;
            if data.is_empty() {
                break;
            }
            let next = offset + data.len() as u64;
            let chunk = PushLogRequest { request_id: request.request_id, offset, data, end: false };
            if chunks.send(chunk).await.is_err() {
                return Ok(());
            }
            offset = next;
        }
        if is_complete || !request.follow {
            let end = PushLogRequest {
                request_id: request.request_id,
                offset,
                data: Bytes::new(),
                end: is_complete,
            };
            let _ = chunks.send(end).await;
            return Ok(());
        }
        let Some(grown) = &grown else {
            // Watch first, then read once more, lest a line in between wait for the next.
            grown = Some(Growth::watch(path)?);
            continue;
        };
        tokio::select! {
            seen = grown.wait() => seen?,
            _ = complete.wait_for(|complete| *complete) => {}
            () = chunks.closed() => return Ok(()),
        }
    }
}

fn read_chunk(file: &File, offset: u64) -> io::Result<Bytes> {
    // Sized to what is there: most reads of a log that is followed find one line.
    let there = file.metadata()?.len().saturating_sub(offset);
    let mut buffer = vec![0; usize::try_from(there).unwrap_or(CHUNK).min(CHUNK)];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.into())
}

/// Tells when a file has grown.
struct Growth {
    /// There until it is dropped.
    events: Option<AsyncFd<OwnedFd>>,
}

impl Growth {
    fn watch(path: &Path) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, path, inotify::WatchFlags::MODIFY)?;
        Ok(Self { events: Some(readable(events)?) })
    }

    async fn wait(&self) -> io::Result<()> {
        let Some(events) = &self.events else { return Ok(()) };
        let mut ready = events.readable().await?;
        let mut buffer = [0; 1024];
        // What happened does not matter, only that something did.
        while rustix::io::read(events.get_ref(), &mut buffer).is_ok_and(|bytes| bytes > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        // The kernel closes an inotify descriptor only once nobody can be looking at its watches any
        // more, which takes it 5 to 25 ms: too long for a thread that serves every job of the node.
        if let (Some(events), Ok(runtime)) = (self.events.take(), Handle::try_current()) {
            let events = events.into_inner();
            runtime.spawn_blocking(move || drop(events));
        }
    }
}
