//! The door as a layer around every route, gRPC and HTTP alike.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use atelier_core::access::{Caller, Permission};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Instrument as _;

use super::{Denied, Door, Need, need_of};
use crate::tls::Hosts;

/// The host by which a request that came by TLS has asked for the daemon, as in a URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskedAs(pub String);

/// Lets a request through once its origin, its caller and the route's need are in order.
pub async fn guard(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let grpc = is_grpc(request.headers());
    match admit(&door, &request) {
        Ok((asked, caller)) => {
            if let Some(asked) = asked {
                request.extensions_mut().insert(asked);
            }
            // For a stream of gRPC it ends with the answer's headers.
            let span = tracing::info_span!(
                "rpc",
                method = %request.method(),
                path = request.uri().path(),
                principal = tracing::field::Empty,
            );
            if let Some(caller) = caller {
                span.record("principal", caller.principal.as_str());
                request.extensions_mut().insert(caller);
            }
            next.run(request).instrument(span).await
        }
        Err(denied) => {
            tracing::info!(path = request.uri().path(), %denied, "refused at the door");
            refuse(&denied, grpc)
        }
    }
}

fn admit(door: &Door, request: &Request) -> Result<(Option<AskedAs>, Option<Caller>), Denied> {
    let asked = check_origin(request)?;
    let need = need_of(request.uri().path());
    if need == Some(Need::Public) {
        return Ok((asked, None));
    }
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let caller = door.authenticate(authorization)?;
    let (allowed, action) = match need {
        None => return Err(Denied::UnknownRoute),
        Some(Need::Public) => (true, ""),
        Some(Need::One(permission)) => (caller.may(permission), permission.action()),
        Some(Need::Tracking) => {
            let allowed = caller.may(Permission::Read) || caller.may(Permission::WriteRun);
            (allowed, "read or write runs")
        }
    };
    if allowed {
        return Ok((asked, Some(caller)));
    }
    let role = caller.role.to_string();
    Err(Denied::NotAllowed { principal: caller.principal, role, action })
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

fn refuse(denied: &Denied, grpc: bool) -> Response {
    let (code, status, word) = match denied {
        Denied::NoToken | Denied::WrongToken | Denied::AttemptOver => {
            (tonic::Code::Unauthenticated, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED")
        }
        Denied::NotAllowed { .. } | Denied::NotOwner { .. } | Denied::Foreign(_) => {
            (tonic::Code::PermissionDenied, StatusCode::FORBIDDEN, "PERMISSION_DENIED")
        }
        Denied::UnknownRoute => {
            (tonic::Code::Unimplemented, StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND")
        }
    };
    if grpc {
        return tonic::Status::new(code, denied.to_string()).into_http::<Body>();
    }
    // The words are MLflow's, so that its client shows the message.
    let body = serde_json::json!({ "error_code": word, "message": denied.to_string() });
    let mut response = (status, axum::Json(body)).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
