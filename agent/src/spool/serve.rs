//! What jobs ask at the node's own address.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::track::wire::{Fields, Logged};
use atelier_core::track::{Error as Refusal, limits};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use reqwest::Body;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Spool, Spools};

/// Connections at once, of all jobs.
const CONNECTIONS: usize = 1024;
/// How long a connection may be silent before the head of a request.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a body may take that is read here.
const READ: Duration = Duration::from_secs(30);
/// Bytes of a body that is read here. A thousand points have a third of it at most.
const BODY: u64 = 1 << 20;
/// Bytes of such bodies at once.
const BODIES: usize = 16 << 20;
/// And of one attempt's.
pub(super) const BODIES_OF_ONE: usize = 2 << 20;
/// How long a request waits for the daemon, before its client is told to try again. Those of MLflow wait twice as
/// long for an answer.
const HELD: Duration = Duration::from_secs(60);
/// Of a request and its answer, what is between two hosts and not between client and daemon.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const WORKSPACE: &str = "x-mlflow-workspace";

type Answer = Response<Body>;

/// Serves until the threads end.
pub(super) async fn serve(spools: Spools, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let room = Arc::new(Semaphore::new(BODIES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: those in use will come free.
                tracing::warn!(%error, "a job's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (spools, room) = (spools.clone(), room.clone());
        tokio::spawn(async move {
            converse(spools, stream, room).await;
            drop(place);
        });
    }
}

async fn converse(spools: Spools, stream: TcpStream, room: Arc<Semaphore>) {
    // Small answers must not wait for the next packet.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let (spools, room) = (spools.clone(), room.clone());
        async move { Ok::<_, Infallible>(answer(&spools, &room, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(64 << 10);
    // A client that breaks off is no news.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Answer {
    let body = json!({ "error_code": code, "message": message }).to_string();
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

fn refused(refusal: &Refusal) -> Answer {
    let code = refusal.code();
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    refuse(status, code.as_str(), &refusal.to_string())
}

fn later(message: &str) -> Answer {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message)
}

/// Whether it is asked for by a program of this machine, and not by a page that a browser shows.
fn is_own(headers: &HeaderMap, port: u16) -> bool {
    let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let mut named = headers.get_all(header::HOST).iter();
    let host = named.next().and_then(|host| host.to_str().ok());
    host.is_some_and(|host| hosts.iter().any(|own| own == host))
        && named.next().is_none()
        && !headers.contains_key(header::ORIGIN)
        && !headers.contains_key("sec-fetch-site")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (kind, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    kind.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a path is to this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// Points, one or several.
    Metric,
    Batch,
    /// Something after which a run may take no points.
    Deletion,
    /// The rest of MLflow's.
    Other,
    /// Nothing of MLflow's.
    Nothing,
}

fn asked(path: &str) -> Asked {
    let plain = percent_decode_str(path).decode_utf8_lossy();
    // What a URL's `..` leads to is another path of the daemon.
    if plain.split(['/', '\\']).any(|part| matches!(part, "." | "..")) {
        return Asked::Nothing;
    }
    let rest = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/ajax-api/"));
    match rest {
        Some("2.0/mlflow/runs/log-metric") => Asked::Metric,
        Some("2.0/mlflow/runs/log-batch") => Asked::Batch,
        Some("2.0/mlflow/runs/delete") => Asked::Deletion,
        Some(_) => Asked::Other,
        None if ["/health", "/version", "/graphql", "/get-artifact"].contains(&path) => {
            Asked::Other
        }
        None if path.starts_with("/model-versions/") => Asked::Other,
        None => Asked::Nothing,
    }
}

async fn answer(spools: &Spools, room: &Semaphore, request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    if !is_own(headers, spools.port()) {
        let message = "This address is for the jobs of this node, by its own name.";
        return refuse(StatusCode::FORBIDDEN, "PERMISSION_DENIED", message);
    }
    let Some(spool) = bearer(headers).and_then(|token| spools.of(token)) else {
        let message = "The request carries no token of a job that runs on this node. Set \
                       MLFLOW_TRACKING_TOKEN, or set MLFLOW_TRACKING_URI to the daemon's address.";
        return refuse(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message);
    };
    let kind = asked(request.uri().path());
    match kind {
        Asked::Nothing => {
            let path = limits::excerpt(request.uri().path());
            let message = format!(
                "No API found for '{path}'. This address of the job's node serves MLflow's; the daemon's is in \
                 AZUREML_SERVICE_ENDPOINT."
            );
            refuse(StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND", &message)
        }
        Asked::Metric | Asked::Batch if request.method() == Method::POST => {
            log(spools, &spool, room, kind, request).await
        }
        Asked::Deletion => {
            spool.forget_runs();
            let (head, body) = request.into_parts();
            pass_on(spools, &spool, head, Body::wrap(body)).await
        }
        _ => {
            let (head, body) = request.into_parts();
            pass_on(spools, &spool, head, Body::wrap(body)).await
        }
    }
}

/// Whether a request is for another workspace, or for one of which this node has not heard.
fn is_elsewhere(spools: &Spools, headers: &HeaderMap) -> bool {
    let Some(named) = headers.get(WORKSPACE).map(|name| name.to_str().unwrap_or("?").trim()) else {
        return false;
    };
    let services = spools.0.services.borrow();
    !named.is_empty() && services.as_ref().is_none_or(|services| services.workspace != named)
}

async fn log(
    spools: &Spools,
    spool: &Arc<Spool>,
    room: &Semaphore,
    kind: Asked,
    request: Request<Incoming>,
) -> Answer {
    let (head, body) = request.into_parts();
    let length = body.size_hint().exact().filter(|length| *length <= BODY);
    let Some(length) = length.filter(|_| !is_elsewhere(spools, &head.headers)) else {
        return pass_on(spools, spool, head, Body::wrap(body)).await;
    };
    // No more than BODY, which is far below.
    let permits = u32::try_from(length).unwrap_or(u32::MAX);
    let places =
        async { (spool.room.acquire_many(permits).await, room.acquire_many(permits).await) };
    let Ok((Ok(_own), Ok(_room))) = tokio::time::timeout(READ, places).await else {
        return later("too much is logged on this node at once");
    };
    let Ok(Some(bytes)) = tokio::time::timeout(READ, whole(body, length)).await else {
        return refuse(StatusCode::BAD_REQUEST, "BAD_REQUEST", "The body ended early");
    };
    let read = Fields::of_body(&bytes).and_then(|fields| match kind {
        Asked::Metric => Logged::metric(&fields),
        _ => Logged::batch(&fields),
    });
    let logged = match read {
        Ok(logged) => logged,
        Err(refusal) => return refused(&refusal),
    };
    let run = logged.run.clone();
    if let Ok((run, points)) = logged.plain_points()
        && !points.is_empty()
        && spools.take(spool, &run, &points)
    {
        let mut answer = Response::new(Body::from("{}"));
        let json = HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        return answer;
    }
    let answer = pass_on(spools, spool, head, Body::from(bytes)).await;
    if answer.status().is_success() {
        spool.know(run);
    }
    answer
}

/// A body of so many bytes; `None`: it ended before.
async fn whole(body: Incoming, length: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
    let mut body = pin!(body);
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    (bytes.len() as u64 == length).then_some(bytes)
}

fn without_hop(headers: HeaderMap, keep_length: bool) -> HeaderMap {
    let mut all = headers;
    for name in &HOP {
        if !(keep_length && name == header::CONTENT_LENGTH) {
            all.remove(name);
        }
    }
    all.remove("keep-alive");
    all
}

/// Asks the daemon, after it has what the attempt has logged before.
async fn pass_on(
    spools: &Spools,
    spool: &Spool,
    head: hyper::http::request::Parts,
    body: Body,
) -> Answer {
    let ready = async {
        spool.settled().await;
        spools.connected().await;
        spools.daemon().await
    };
    let Ok((services, client)) = tokio::time::timeout(HELD, ready).await else {
        return later("the daemon is away; what the job has logged waits for it on the job's node");
    };
    let base = services.http_url.trim_end_matches('/');
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let asked = client
        .request(head.method, format!("{base}{path}"))
        .headers(without_hop(head.headers, false))
        .body(body)
        .send()
        .await;
    match asked {
        Ok(answered) => {
            let (mut head, body) = Response::<Body>::from(answered).into_parts();
            head.headers = without_hop(head.headers, true);
            Response::from_parts(head, body)
        }
        Err(error) => later(&format!("lost the daemon: {}", crate::session::chain(&error))),
    }
}

#[cfg(test)]
mod tests;
