//! Accepts connections, encrypted or not: HTTP/1 and HTTP/2 on one port, told apart by their first bytes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::tls::{Hosts, Secure};

/// How long streams may take to end once the daemon is asked to stop.
const FAREWELL: Duration = Duration::from_millis(500);

/// Serves until asked to stop; with TLS where there is some, and only with it.
pub(crate) async fn serve(
    listener: TcpListener,
    secure: Option<Arc<Secure>>,
    routes: Router,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // A client that sends its headers byte by byte holds a connection, not the daemon.
        .header_read_timeout(Duration::from_secs(15))
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .max_concurrent_streams(1024)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: those in use will come free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small answers must not wait for the next packet. A connection that is gone already
        // fails below.
        let _ = stream.set_nodelay(true);
        let talk =
            Talk { builder: builder.clone(), routes: routes.clone(), stopping: stopping.clone() };
        match secure.clone() {
            None => tokio::spawn(talk.on(stream, None)),
            Some(secure) => {
                let mut stopping = stopping.clone();
                tokio::spawn(async move {
                    let shaken = tokio::select! {
                        shaken = secure.accept(stream) => shaken,
                        () = stopped(&mut stopping) => None,
                    };
                    if let Some((stream, hosts)) = shaken {
                        talk.on(stream, Some(hosts)).await;
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
}

impl Talk {
    /// Serves one connection; `hosts`: those that its requests may name besides this machine's own.
    async fn on(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        hosts: Option<Arc<Hosts>>,
    ) {
        let routes = self.routes;
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let routes = routes.clone();
            let mut request = request.map(Body::new);
            if let Some(hosts) = &hosts {
                request.extensions_mut().insert(hosts.clone());
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

/// Returns once the daemon is asked to stop, or is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}
