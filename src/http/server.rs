//! Accepts connections, encrypted or not: HTTP/1 and HTTP/2 on one port, told apart by their first bytes.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tower::ServiceExt as _;

use crate::identity::PeerAddr;
use crate::tls::{Secure, Shaken};

/// How long streams may take to end once the daemon is asked to stop.
const FAREWELL: Duration = Duration::from_millis(500);
/// What a connection of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Between two words about connections that were closed for there being too many.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits {
    connections: 10_000,
    silence: Duration::from_secs(15),
    stall: Duration::from_secs(120),
};
/// Bytes of the first version's request line and headers, and of the second's headers as they are counted (RFC 9113,
/// 6.5.2).
const FIRST_HEADERS: usize = 128 << 10;
const SECOND_HEADERS: u32 = 64 << 10;
const HEADERS: usize = 100;
/// Streams of one connection of the second version.
const STREAMS: u32 = 1024;
/// Streams that a client has ended before anybody looked at them; with more the connection is ended (CVE-2023-44487).
const ENDED_UNSEEN: usize = 20;
/// Streams that were ended for what a client did wrong in them.
const ENDED_FOR_FAULTS: usize = 1024;

/// What clients may take.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections of one port at the same time.
    connections: usize,
    /// How long until it is known which HTTP a client speaks.
    silence: Duration,
    /// How long a client may take to read anything of what it is sent.
    stall: Duration,
}

/// Serves until asked to stop; with TLS where there is some, and only with it.
pub(crate) async fn serve(
    listener: TcpListener,
    secure: Option<Arc<Secure>>,
    routes: Router,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    serve_within(LIMITS, listener, secure, routes, stopping).await
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    secure: Option<Arc<Secure>>,
    routes: Router,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut told: Option<Instant> = None;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // A client that sends its headers byte by byte holds a connection, not the daemon.
        .header_read_timeout(Duration::from_secs(15))
        .max_buf_size(FIRST_HEADERS)
        .max_headers(HEADERS)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(SECOND_HEADERS)
        .max_pending_accept_reset_streams(ENDED_UNSEEN)
        .max_local_error_reset_streams(ENDED_FOR_FAULTS)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return Ok(()),
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, PeerAddr(peer)),
            Err(error) => {
                // Out of file descriptors, most likely: those in use will come free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Those that are there stay: none of them is known to be of less use than this one.
        let Ok(place) = places.clone().try_acquire_owned() else {
            if told.is_none_or(|told| told.elapsed() >= TOLD_AGAIN) {
                told = Some(Instant::now());
                let most = limits.connections;
                tracing::warn!(
                    most,
                    "connections are closed: as many as one port serves at once are open"
                );
            }
            continue;
        };
        // Small answers must not wait for the next packet. A connection that is gone already
        // fails below.
        let _ = stream.set_nodelay(true);
        let talk = Talk {
            builder: builder.clone(),
            routes: routes.clone(),
            stopping: stopping.clone(),
            limits,
            peer,
            _place: place,
        };
        match secure.clone() {
            None => tokio::spawn(talk.on(stream, None)),
            Some(secure) => {
                let mut stopping = stopping.clone();
                tokio::spawn(async move {
                    let shaken = tokio::select! {
                        shaken = secure.accept(stream) => shaken,
                        () = stopped(&mut stopping) => None,
                    };
                    if let Some((stream, shaken)) = shaken {
                        talk.on(stream, Some(shaken)).await;
                    }
                })
            }
        };
    }
}

/// What a connection is served with.
struct Talk {
    builder: auto::Builder<TokioExecutor>,
    routes: Router,
    stopping: watch::Receiver<bool>,
    limits: Limits,
    peer: PeerAddr,
    _place: OwnedSemaphorePermit,
}

impl Talk {
    /// Serves one connection; `shaken`: what is known of an encrypted one.
    async fn on(
        mut self,
        mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        shaken: Option<Shaken>,
    ) {
        // Once its version is known hyper has limits of its own; until then it would wait for ever.
        let begun = tokio::select! {
            begun = tokio::time::timeout(self.limits.silence, beginning(&mut stream)) => begun,
            () = stopped(&mut self.stopping) => return,
        };
        let Ok(Ok(begun)) = begun else { return };
        if begun.is_empty() {
            return;
        }
        let (rest, answers) = tokio::io::split(stream);
        let answers = Stalling::new(answers, self.limits.stall);
        let stream = tokio::io::join(Cursor::new(begun).chain(rest), answers);
        let (routes, peer) = (self.routes, self.peer);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let routes = routes.clone();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            if let Some(shaken) = &shaken {
                request.extensions_mut().insert(shaken.hosts.clone());
                if let Some(peer) = &shaken.peer {
                    request.extensions_mut().insert(peer.clone());
                }
            }
            async move {
                let response = routes.oneshot(request).await;
                response.map_err(|never: Infallible| match never {})
            }
        });
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            // A client that breaks off is no news.
            _ = connection.as_mut() => {}
            () = stopped(&mut self.stopping) => {
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(FAREWELL, connection).await;
            }
        }
    }
}

/// Reads as far as it takes to know the version; nothing if the client has gone.
async fn beginning(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut begun = Vec::with_capacity(PREFACE.len());
    while begun.len() < PREFACE.len() && PREFACE.starts_with(&begun) {
        let left = (PREFACE.len() - begun.len()) as u64;
        if (&mut *stream).take(left).read_buf(&mut begun).await? == 0 {
            break;
        }
    }
    Ok(begun)
}

/// Returns once the daemon is asked to stop, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// The way to a client, which breaks when that reads nothing for too long.
struct Stalling<W> {
    to: W,
    most: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<W: AsyncWrite + Unpin> Stalling<W> {
    fn new(to: W, most: Duration) -> Self {
        Self { to, most, waiting: None }
    }

    fn held<T>(
        &mut self,
        context: &mut Context<'_>,
        done: impl FnOnce(Pin<&mut W>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let done = done(Pin::new(&mut self.to), context);
        if done.is_ready() {
            self.waiting = None;
            return done;
        }
        let most = self.most;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
        match waiting.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Stalling<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.held(context, |to, context| to.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held(context, |to, context| to.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held(context, |to, context| to.poll_shutdown(context))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.held(context, |to, context| to.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.to.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
