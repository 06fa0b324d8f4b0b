//! What goes on for long is asked again, each minute, whether it may: a token that has expired or was revoked, or
//! a role that was taken back, ends it.

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Denied;
use super::layer::status_of;

/// How often an answer that goes on is asked; with [`after`] what may not go on any more is over within a minute.
pub(super) const EVERY: Duration = Duration::from_secs(54);

/// How often what a client sends is asked: a little later than the answer to it, which tells the client why. A service
/// that is cut off from its client first would end the answer in words of its own.
pub(super) fn after(every: Duration) -> Duration {
    every + every / 10
}

/// Says whether it may go on.
pub(super) type Ask = Arc<dyn Fn() -> Result<(), Denied> + Send + Sync>;

/// How the other side hears that it may not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// An answer of gRPC: by its trailers.
    GrpcAnswer,
    /// One of gRPC-Web, whose trailers are the last of its body: in base64, or as they are.
    WebAnswer { is_text: bool },
    /// What a client of gRPC sends: the service is given the status.
    GrpcRequest,
    /// It breaks off.
    Http,
}

impl Dialect {
    /// Of the answer to a call of gRPC, or of gRPC-Web, which calls itself that.
    pub(super) fn answer(web: Option<&HeaderValue>) -> Self {
        web.map_or(Self::GrpcAnswer, |web| Self::WebAnswer {
            is_text: web.as_bytes().starts_with(b"application/grpc-web-text"),
        })
    }
}

/// Trailers as gRPC-Web has them in a body: a mark, their length, and a line of each.
fn in_body(trailers: &HeaderMap, is_text: bool) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(lines.len()).unwrap_or(u32::MAX).to_be_bytes();
    let framed = [&[0x80][..], &length, &lines].concat();
    if is_text { STANDARD.encode(framed).into() } else { framed.into() }
}

/// A body that ends when it may not go on.
pub(super) struct Reauthorised {
    /// Gone, once it was ended.
    inner: Option<Body>,
    ask: Ask,
    dialect: Dialect,
    every: Duration,
    next: Instant,
    /// Made when there is first something to wait for: most bodies are over at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Reauthorised {
    pub(super) fn body(inner: Body, ask: Ask, every: Duration, dialect: Dialect) -> Body {
        let next = Instant::now() + every;
        Body::new(Self { inner: Some(inner), ask, dialect, every, next, timer: None })
    }

    fn check(&mut self) -> Result<(), Denied> {
        (self.ask)()?;
        self.next = Instant::now() + self.every;
        Ok(())
    }

    fn end(&mut self, denied: &Denied) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.inner = None;
        tracing::info!(%denied, "a stream was ended");
        let status = status_of(denied);
        let broken = |error: axum::Error| Poll::Ready(Some(Err(error)));
        match self.dialect {
            Dialect::GrpcAnswer | Dialect::WebAnswer { .. } => {
                let mut trailers = HeaderMap::new();
                let frame = |trailers: HeaderMap| match self.dialect {
                    Dialect::WebAnswer { is_text } => Frame::data(in_body(&trailers, is_text)),
                    _ => Frame::trailers(trailers),
                };
                match status.add_header(&mut trailers) {
                    Ok(()) => Poll::Ready(Some(Ok(frame(trailers)))),
                    Err(status) => broken(axum::Error::new(status)),
                }
            }
            Dialect::GrpcRequest => broken(axum::Error::new(status)),
            Dialect::Http => broken(axum::Error::new(denied.clone())),
        }
    }
}

impl hyper::body::Body for Reauthorised {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        // One that always has something to say never waits for the timer.
        if this.inner.is_some()
            && Instant::now() >= this.next
            && let Err(denied) = this.check()
        {
            return this.end(&denied);
        }
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        loop {
            let next = this.next;
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() != next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            if let Err(denied) = this.check() {
                return this.end(&denied);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, |inner| inner.size_hint())
    }
}
