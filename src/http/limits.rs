//! What one request may take: time, bytes a minute, and its caller's share of requests. It stands behind the door, so
//! that it is known who asks.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use atelier_core::access::Caller;
use atelier_core::id::Principal;
use atelier_core::limit::{Allowance, Bucket};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use prost::Message as _;
use tokio::time::{Instant, Sleep};
use tonic::metadata::MetadataValue;

use crate::config::LimitArgs;
use crate::identity::{in_kind, is_grpc, to_its_end, web_type};

/// How long a call may take that is no stream, unless its client gives it less.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a body may keep its reader waiting for the next so many bytes.
const PACE: Pace = Pace { within: Duration::from_secs(60), bytes: 4 << 10 };
/// When a caller may ask again of whom too many requests are being answered.
const AFTER_OTHERS: Duration = Duration::from_secs(1);
/// So many callers are known at once, before those are forgotten who ask for nothing.
const KNOWN: usize = 10_000;
/// Between two words about one caller that was refused.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

/// So many requests without a token are answered at the same time: joins, sign-ins, and looks at the health.
const STRANGERS: u32 = 256;
/// How long one of them may take: a provider's keys may have to be asked for.
const STRANGERS_WITHIN: Duration = Duration::from_secs(30);

/// Methods whose client says something for as long as it likes.
const STREAMS: [&str; 6] = [
    "/atelier.agent.v1.AgentService/Session",
    "/atelier.agent.v1.AgentService/PushLog",
    "/atelier.agent.v1.AgentService/JoinChannel",
    "/atelier.job.v1.JobService/EnterJob",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Where bodies are as long as files are: they have a pace, and no end by which they must have come.
const FILES: [&str; 4] = [
    "/data/v1/",
    "/api/2.0/mlflow-artifacts/",
    "/ajax-api/2.0/mlflow-artifacts/",
    "/atelier.content.v1.ContentService/Put",
];

/// How fast a body has to come.
#[derive(Clone, Copy)]
struct Pace {
    within: Duration,
    bytes: u64,
}

/// What callers have asked for.
pub(crate) struct Limits {
    begun: Instant,
    args: LimitArgs,
    deadline: Duration,
    pace: Pace,
    callers: RwLock<HashMap<Principal, Arc<Usage>>>,
    /// Of all who have no token.
    strangers: Arc<Usage>,
}

#[derive(Default)]
struct Usage {
    bucket: Mutex<Asked>,
    at_once: AtomicU32,
}

#[derive(Default)]
struct Asked {
    bucket: Bucket,
    told: Option<Instant>,
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    /// Too often.
    #[error(
        "{principal} asks too often: at most {per_second} requests a second on average are answered (serve \
         --request-rate); try again in {} ms", wait.as_millis().max(1)
    )]
    Often { principal: Principal, per_second: u32, wait: Duration },
    /// Too many at the same time.
    #[error(
        "{principal} asks for too much at once: {at_once} requests of it are being answered, which is the limit (serve \
         --requests-at-once); end some, or try again later"
    )]
    AtOnce { principal: Principal, at_once: u32 },
    /// Too many without a token.
    #[error(
        "too many requests without a token are being answered: at most {STRANGERS} are; try again later"
    )]
    Strangers,
    /// It took too long.
    #[error("the call took longer than {} s and was given up; ask for less, or try again", within.as_secs_f32())]
    Late { within: Duration },
    /// The client did not send what it began.
    #[error(
        "the request's body did not come: at least {} bytes are to come in {} s; send it again", pace.bytes,
        pace.within.as_secs_f32()
    )]
    Slow { pace: Pace },
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in {:?}", self.bytes, self.within)
    }
}

impl PartialEq for Pace {
    fn eq(&self, other: &Self) -> bool {
        (self.within, self.bytes) == (other.within, other.bytes)
    }
}

impl Eq for Pace {}

impl Limits {
    pub(crate) fn new(args: LimitArgs) -> Self {
        Self {
            begun: Instant::now(),
            args,
            deadline: DEADLINE,
            pace: PACE,
            callers: RwLock::default(),
            strangers: Arc::default(),
        }
    }

    /// Lets a request of somebody's through, until what is returned is dropped.
    fn admit(&self, caller: &Caller) -> Result<Admitted, Refusal> {
        let allowance =
            Allowance::of(&caller.role, self.args.request_rate, self.args.requests_at_once);
        let usage = self.usage(&caller.principal);
        let principal = || caller.principal.clone();
        let admitted = Admitted::one_more(&usage, allowance.at_once)
            .ok_or_else(|| Refusal::AtOnce { principal: principal(), at_once: allowance.at_once });
        let admitted = admitted.and_then(|admitted| {
            let mut asked = usage.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = asked.bucket.take(self.begun.elapsed(), allowance);
            let per_second = allowance.per_second;
            let often = |wait| Refusal::Often { principal: principal(), per_second, wait };
            taken.map(|()| admitted).map_err(often)
        });
        admitted.inspect_err(|refusal| {
            let mut asked = usage.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.told.is_none_or(|told| told.elapsed() >= TOLD_AGAIN) {
                asked.told = Some(Instant::now());
                tracing::warn!(%refusal, "requests are refused");
            }
        })
    }

    /// Answers one of those who need no token: all of them together have few places, and little time.
    async fn of_strangers(
        &self,
        request: Request,
        next: Next,
        grpc: bool,
        web: Option<HeaderValue>,
    ) -> Response {
        let Some(place) = Admitted::one_more(&self.strangers, STRANGERS) else {
            return Refusal::Strangers.answer(grpc, web);
        };
        let stalled = Arc::new(AtomicBool::new(false));
        let request = match request.body().is_end_stream() {
            true => request,
            false => request.map(|body| Body::new(Paced::new(body, self.pace, stalled))),
        };
        let within = self.deadline.min(STRANGERS_WITHIN);
        let answer = to_its_end(grpc, async move {
            let _place = place;
            next.run(request).await
        });
        match tokio::time::timeout(within, answer).await {
            Ok(answer) => answer,
            Err(_) => Refusal::Late { within }.answer(grpc, web),
        }
    }

    fn usage(&self, principal: &Principal) -> Arc<Usage> {
        let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = callers.get(principal) {
            return usage.clone();
        }
        drop(callers);
        let now = self.begun.elapsed();
        let mut callers = self.callers.write().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= KNOWN {
            // What of them is in use somebody else has too.
            callers.retain(|_, usage| {
                let asked = usage.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::strong_count(usage) > 1 || !asked.bucket.is_full(now)
            });
        }
        callers.entry(principal.clone()).or_default().clone()
    }
}

/// A place among the requests of a caller that are answered at the same time.
struct Admitted(Arc<Usage>);

impl Admitted {
    fn one_more(usage: &Arc<Usage>, most: u32) -> Option<Self> {
        let more = |now: u32| (now < most).then(|| now + 1);
        let taken = usage.at_once.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Self(usage.clone()))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Holds a request to its limits.
pub(crate) async fn limited(
    State(limits): State<Arc<Limits>>,
    request: Request,
    next: Next,
) -> Response {
    let (grpc, web) = (is_grpc(request.headers()), web_type(request.headers()));
    let Some(caller) = request.extensions().get::<Caller>() else {
        return limits.of_strangers(request, next, grpc, web).await;
    };
    let admitted = match limits.admit(caller) {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal.answer(grpc, web),
    };
    let path = request.uri().path();
    let is_stream = STREAMS.contains(&path);
    let is_file = FILES.iter().any(|files| path.starts_with(files));
    let within = limits.deadline.min(deadline_of(request.headers()).unwrap_or(limits.deadline));
    let stalled = Arc::new(AtomicBool::new(false));
    let request = match is_stream || request.body().is_end_stream() {
        true => request,
        false => request.map(|body| Body::new(Paced::new(body, limits.pace, stalled.clone()))),
    };
    let place = Arc::new(admitted);
    let answer = match is_stream || is_file {
        true => next.run(request).await,
        false => match tokio::time::timeout(within, whole(grpc, place.clone(), next.run(request)))
            .await
        {
            Ok(answer) => answer,
            Err(_) => return Refusal::Late { within }.answer(grpc, web),
        },
    };
    if stalled.load(Ordering::Acquire) {
        return Refusal::Slow { pace: limits.pace }.answer(grpc, web);
    }
    match answer.body().is_end_stream() {
        true => answer,
        false => answer.map(|body| Body::new(Held { body, _place: place })),
    }
}

/// What is late goes on to its end, and has its place among those that are answered until then.
async fn whole(
    grpc: bool,
    place: Arc<Admitted>,
    answer: impl Future<Output = Response> + Send + 'static,
) -> Response {
    to_its_end(grpc, async move {
        let _place = place;
        answer.await
    })
    .await
}

/// What a client of gRPC gives a call: up to eight digits and a unit.
fn deadline_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

impl Refusal {
    /// After what time the same request may be answered.
    fn wait(&self) -> Option<Duration> {
        match self {
            Self::Often { wait, .. } => Some(*wait),
            Self::AtOnce { .. } | Self::Strangers => Some(AFTER_OTHERS),
            Self::Late { .. } | Self::Slow { .. } => None,
        }
    }

    fn answer(&self, grpc: bool, web: Option<HeaderValue>) -> Response {
        let seconds = self.wait().map(|wait| wait.as_secs_f64().ceil().max(1.0) as u64);
        if grpc {
            return in_kind(self.status(seconds).into_http::<Body>(), web);
        }
        let (status, word) = match self {
            // MLflow's word.
            Self::Often { .. } | Self::AtOnce { .. } | Self::Strangers => {
                (StatusCode::TOO_MANY_REQUESTS, "REQUEST_LIMIT_EXCEEDED")
            }
            Self::Late { .. } => (StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE"),
            Self::Slow { .. } => (StatusCode::REQUEST_TIMEOUT, "BAD_REQUEST"),
        };
        let body = serde_json::json!({ "error_code": word, "message": self.to_string() });
        let mut response = (status, axum::Json(body)).into_response();
        if let Some(seconds) = seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::Slow { .. }) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    fn status(&self, seconds: Option<u64>) -> tonic::Status {
        let message = self.to_string();
        let Some(wait) = self.wait() else { return tonic::Status::deadline_exceeded(message) };
        let code = tonic::Code::ResourceExhausted;
        let details = rpc::Status::retry(code as i32, &message, wait).encode_to_vec();
        let mut status = tonic::Status::with_details(code, message, details.into());
        if let Some(seconds) = seconds {
            status.metadata_mut().insert("retry-after", MetadataValue::from(seconds));
        }
        status
    }
}

/// As much of `google.rpc` as it takes to say when to try again.
mod rpc {
    use std::time::Duration;

    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Status {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) details: Vec<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Any {
        #[prost(string, tag = "1")]
        pub(super) type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        pub(super) retry_delay: Option<Span>,
    }

    /// `google.protobuf.Duration`.
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(super) struct Span {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    impl Status {
        pub(super) fn retry(code: i32, message: &str, wait: Duration) -> Self {
            let retry_delay = Span {
                seconds: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                nanos: wait.subsec_nanos().cast_signed(),
            };
            let value = RetryInfo { retry_delay: Some(retry_delay) }.encode_to_vec();
            let type_url = "type.googleapis.com/google.rpc.RetryInfo".to_owned();
            Self { code, message: message.to_owned(), details: vec![Any { type_url, value }] }
        }
    }
}

/// A body that is given up when its client does not send it. Only the time counts for which somebody waits for it.
struct Paced {
    body: Body,
    pace: Pace,
    left: Duration,
    come: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    stalled: Arc<AtomicBool>,
}

impl Paced {
    fn new(body: Body, pace: Pace, stalled: Arc<AtomicBool>) -> Self {
        Self { body, pace, left: pace.within, come: 0, waiting: None, stalled }
    }
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                if let Some((since, _)) = self.waiting.take() {
                    self.left = self.left.saturating_sub(since.elapsed());
                }
                if let Some(Ok(frame)) = &frame {
                    self.come += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                if self.come >= self.pace.bytes {
                    (self.come, self.left) = (0, self.pace.within);
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let left = self.left;
                let begin = || (Instant::now(), Box::pin(tokio::time::sleep(left)));
                let (_, waiting) = self.waiting.get_or_insert_with(begin);
                match waiting.as_mut().poll(context) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        self.stalled.store(true, Ordering::Release);
                        let slow = Refusal::Slow { pace: self.pace };
                        Poll::Ready(Some(Err(axum::Error::new(slow))))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which is being answered until it is gone.
struct Held {
    body: Body,
    _place: Arc<Admitted>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
