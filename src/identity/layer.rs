//! The door as a layer around every route, gRPC and HTTP alike.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use atelier_core::access::{Caller, Role};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;

use super::reauthorise::{Ask, Dialect, Reauthorised, after};
use super::{Denied, Door, Need, Origin, Pass, PeerAddr, need_of};
use crate::tls::{Hosts, Peer};

/// The host by which a request that came by TLS has asked for the daemon, as in a URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskedAs(pub String);

/// Who has asked for what goes on, with the role that they have now: as it was when they were last asked whether it may.
#[derive(Clone, Debug)]
pub struct Present(Arc<RwLock<Caller>>);

impl Present {
    /// Them.
    pub fn caller(&self) -> Caller {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets a request through once its origin, its caller and the route's need are in order.
pub async fn guard(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let grpc = is_grpc(request.headers());
    let path = shown_path(request.uri().path()).to_owned();
    let from = request.extensions().get::<PeerAddr>();
    let origin = Origin::new(from, request.method().as_str(), &path);
    // Which method of gRPC it was is known by its action.
    let place = if grpc { "" } else { path.as_str() };
    match admit(&door, &request) {
        Ok(Admitted { asked, caller, pass }) => {
            if let Some(asked) = asked {
                request.extensions_mut().insert(asked);
            }
            if let Some(pass) = pass {
                request.extensions_mut().insert(pass);
            }
            // For a stream of gRPC it ends with the answer's headers.
            let span = tracing::info_span!(
                "rpc",
                method = %request.method(),
                path = path.as_str(),
                principal = tracing::field::Empty,
            );
            request.extensions_mut().insert(origin.clone());
            let Some((caller, need)) = caller else {
                let response = to_its_end(grpc, next.run(request).instrument(span)).await;
                if let Some(why) = refusal(&response) {
                    door.tell_refused(None, origin, place, &why);
                }
                return response;
            };
            span.record("principal", caller.principal.as_str());
            request.extensions_mut().insert(caller.clone());
            let every = door.asks_every();
            let present = Present(Arc::new(RwLock::new(caller.clone())));
            request.extensions_mut().insert(present.clone());
            let ask = ask_again(door.clone(), &request, need, present);
            let (told, heard) = match grpc {
                true => {
                    (Dialect::GrpcRequest, Dialect::answer(web_type(request.headers()).as_ref()))
                }
                false => (Dialect::Http, Dialect::Http),
            };
            let request =
                request.map(|body| Reauthorised::body(body, ask.clone(), after(every), told));
            let response = to_its_end(grpc, next.run(request).instrument(span)).await;
            if let Some(why) = refusal(&response) {
                door.tell_refused(Some(&caller), origin, place, &why);
            }
            response.map(|body| Reauthorised::body(body, ask, every, heard))
        }
        Err((caller, denied)) => {
            tracing::info!(path, %denied, "refused at the door");
            // What is no route is of no account.
            if denied != Denied::UnknownRoute {
                door.tell_refused(caller.as_ref(), origin, place, &denied.to_string());
            }
            in_kind(refuse(&denied, grpc), web_type(request.headers()))
        }
    }
}

/// A path for the log. What is no route may be anything, and a token that somebody has put into a URL is a token still.
fn shown_path(path: &str) -> &str {
    let is_token =
        |part: &str| ["atl_", "ata_", "atj_", "eyJ"].iter().any(|kept| part.starts_with(kept));
    if path.split('/').any(is_token) || need_of(path).is_none() { "(not shown)" } else { path }
}

/// What a method has begun it ends, also when its caller is gone: what it has changed on disk is to be changed in
/// memory too.
pub(crate) async fn to_its_end(
    grpc: bool,
    answer: impl Future<Output = Response> + Send + 'static,
) -> Response {
    if !grpc {
        return answer.await;
    }
    // What it logs is still of the request.
    match tokio::spawn(answer.in_current_span()).await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => tonic::Status::unavailable("the daemon is ending").into_http::<Body>(),
        },
    }
}

/// What the door found out.
struct Admitted {
    asked: Option<AskedAs>,
    /// Who it is, and what is needed of them; nobody, where nothing is.
    caller: Option<(Caller, Need)>,
    /// Where a node asks.
    pass: Option<Pass>,
}

/// Why an answer refuses, if it does.
fn refusal(response: &Response) -> Option<String> {
    const REFUSED: [&str; 2] = ["7", "16"];
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    if text("grpc-status").is_some_and(|status| REFUSED.contains(&status)) {
        let said = percent_encoding::percent_decode_str(text("grpc-message").unwrap_or_default());
        return Some(said.decode_utf8_lossy().into_owned());
    }
    let status = response.status();
    let refused = status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED;
    refused.then(|| status.to_string())
}

/// Who stays outside, if that is known, and why.
type NotAdmitted = (Option<Caller>, Denied);

fn admit(door: &Door, request: &Request) -> Result<Admitted, NotAdmitted> {
    let unknown = |denied| (None, denied);
    let asked = check_origin(request).map_err(unknown)?;
    let need = need_of(request.uri().path());
    if need == Some(Need::Public) {
        return Ok(Admitted { asked, caller: None, pass: None });
    }
    let shown = request.extensions().get::<Arc<Peer>>();
    let named = || match (authorization(request.headers()), shown) {
        (None, Some(peer)) => door.nodes().caller(peer, door.now()),
        (token, _) => door.authenticate(token),
    };
    let mut caller = named().map_err(unknown)?;
    let pass = match &caller.role {
        Role::Node(node) => {
            let pass = door.nodes().pass(node);
            // It may have been cut off before there was a pass to take back.
            caller = named().map_err(unknown)?;
            Some(match (authorization(request.headers()), shown) {
                (None, Some(peer)) => pass.until(peer.until, door.now()),
                _ => pass,
            })
        }
        _ => None,
    };
    let Some(need) = need else { return Err((Some(caller), Denied::UnknownRoute)) };
    if let Err(denied) = check(&caller, need) {
        return Err((Some(caller), denied));
    }
    Ok(Admitted { asked, caller: Some((caller, need)), pass })
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())
}

fn check(caller: &Caller, need: Need) -> Result<(), Denied> {
    need.check(caller).map_err(|action| Denied::NotAllowed {
        principal: caller.principal.clone(),
        role: caller.role.to_string(),
        action,
    })
}

/// What is asked of a request that goes on.
fn ask_again(door: Arc<Door>, request: &Request, need: Need, present: Present) -> Ask {
    let authorization = request.headers().get(header::AUTHORIZATION).cloned();
    let shown = request.extensions().get::<Arc<Peer>>().cloned();
    Arc::new(move || {
        let authorization = authorization.as_ref().and_then(|value| value.to_str().ok());
        let caller = match (authorization, &shown) {
            (None, Some(peer)) => door.nodes().caller(peer, door.now())?,
            (token, _) => door.authenticate_again(token)?,
        };
        check(&caller, need)?;
        *present.0.write().unwrap_or_else(PoisonError::into_inner) = caller;
        Ok(())
    })
}

/// A page of another site, or another name that points here (DNS rebinding), must not reach the
/// daemon through a user's browser. Over TLS the certificate's names are the daemon's too.
fn check_origin(request: &Request) -> Result<Option<AskedAs>, Denied> {
    let cut = |name: &str| Denied::Foreign(name.chars().take(100).collect());
    let headers = request.headers();
    let written = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    // Each name that the request gives must be the daemon's, whichever a proxy would have read.
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let hosts: Vec<&str> = authority.into_iter().chain(written).collect();
    let Some(host) = hosts.first() else { return Err(cut("an unnamed host")) };
    let secure = request.extensions().get::<Arc<Hosts>>();
    let is_own = |host: &str| is_loopback(host) || secure.is_some_and(|own| own.has(host));
    let named: Vec<Option<&str>> = hosts.iter().map(|authority| host_of(authority)).collect();
    if let Some(at) = named.iter().position(|host| !host.is_some_and(is_own)) {
        return Err(cut(hosts[at]));
    }
    let asked = secure.and_then(|_| named.first().copied().flatten());
    let asked = asked.map(|host| AskedAs(host.to_owned()));
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("an unreadable origin");
        if origin.split_once("://").is_none_or(|(_, rest)| rest != *host) {
            return Err(cut(origin));
        }
    }
    Ok(asked)
}

/// The host of `HOST` or `HOST:PORT`, with the brackets of an address that has some; `None` if it is of another form.
fn host_of(authority: &str) -> Option<&str> {
    let end = match authority.strip_prefix('[') {
        Some(inner) => {
            let end = inner.find(']')?;
            inner[..end].parse::<Ipv6Addr>().ok()?;
            end + 2
        }
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    port.then_some(host)
}

/// Whether a host names this machine and nothing else.
fn is_loopback(host: &str) -> bool {
    host == "[::1]"
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a request is one of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// An answer of nothing but headers in the words of who has asked: by gRPC-Web it is called what the call was.
pub(crate) fn in_kind(mut response: Response, web: Option<HeaderValue>) -> Response {
    if let Some(web) = web {
        response.headers_mut().insert(header::CONTENT_TYPE, web);
    }
    response
}

/// What a call by gRPC-Web calls itself: the answer is to be called the same.
pub(crate) fn web_type(headers: &HeaderMap) -> Option<HeaderValue> {
    headers
        .get(header::CONTENT_TYPE)
        .filter(|value| value.as_bytes().starts_with(b"application/grpc-web"))
        .cloned()
}

/// As gRPC says it.
pub(super) fn status_of(denied: &Denied) -> tonic::Status {
    tonic::Status::new(words(denied).0, denied.to_string())
}

fn words(denied: &Denied) -> (tonic::Code, StatusCode, &'static str) {
    match denied {
        Denied::NoToken
        | Denied::WrongToken
        | Denied::Expired { .. }
        | Denied::Revoked
        | Denied::AttemptOver
        | Denied::Certificate { .. } => {
            (tonic::Code::Unauthenticated, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED")
        }
        Denied::NotAllowed { .. }
        | Denied::NotOwner { .. }
        | Denied::NotEntered { .. }
        | Denied::Foreign(_) => {
            (tonic::Code::PermissionDenied, StatusCode::FORBIDDEN, "PERMISSION_DENIED")
        }
        Denied::UnknownRoute => {
            (tonic::Code::Unimplemented, StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND")
        }
    }
}

fn refuse(denied: &Denied, grpc: bool) -> Response {
    if grpc {
        return status_of(denied).into_http::<Body>();
    }
    let (_, status, word) = words(denied);
    // The words are MLflow's, so that its client shows the message.
    let body = serde_json::json!({ "error_code": word, "message": denied.to_string() });
    let mut response = (status, axum::Json(body)).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
