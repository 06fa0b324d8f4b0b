//! A caller, and what the audit log says of what it asks for.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

use atelier_core::access::Caller;
use atelier_core::audit::Actor;

/// The other end of a connection. What proxies write into headers is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddr(pub SocketAddr);

/// From where a request came, and what it asks for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Origin {
    /// The address.
    pub from: Option<IpAddr>,
    /// The method: `ComputeService/DrainNode`, or that of HTTP with the path's beginning.
    pub action: String,
}

impl Origin {
    /// Of a request with this path.
    pub fn new(peer: Option<&PeerAddr>, method: &str, path: &str) -> Self {
        let from = peer.map(|PeerAddr(address)| address.ip().to_canonical());
        let action = match path.trim_start_matches('/').split_once('/') {
            // The package is the service's, and says nothing more.
            Some((service, method)) if service.starts_with("atelier.") => {
                let service = service.rsplit_once('.').map_or(service, |(_, service)| service);
                format!("{service}/{method}")
            }
            Some(("data", _)) => format!("data/{}", method.to_ascii_lowercase()),
            Some(("api" | "ajax-api", rest)) => {
                // `2.0/mlflow/runs/create`: what comes after the version; ids are no part of it.
                let words = rest.split('/').skip(1).take(3);
                words.collect::<Vec<_>>().join("/")
            }
            _ => method.to_owned(),
        };
        Self { from, action: action.chars().take(100).collect() }
    }

    /// The caller as the audit log tells of it.
    pub fn actor(&self, caller: &Caller) -> Actor {
        Actor::new(caller, self.from, self.action.clone())
    }
}

/// What was done with data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// It was read.
    Read,
    /// It was written.
    Write,
    /// It was removed.
    Delete,
}

impl Use {
    /// As the audit log names it.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Read => "data/read",
            Self::Write => "data/write",
            Self::Delete => "data/delete",
        }
    }
}

/// A caller that asks for something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asking {
    /// Who.
    pub caller: Caller,
    /// From where, and for what.
    pub origin: Origin,
}

impl Asking {
    /// As the audit log tells of it.
    pub fn actor(&self) -> Actor {
        self.origin.actor(&self.caller)
    }
}

impl Deref for Asking {
    type Target = Caller;
    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// Tests say who, and leave the rest.
#[cfg(test)]
impl From<Caller> for Asking {
    fn from(caller: Caller) -> Self {
        Self { caller, origin: Origin::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_named_by_its_method() {
        let name = |method, path| Origin::new(None, method, path).action;
        assert_eq!(
            name("POST", "/atelier.compute.v1.ComputeService/DrainNode"),
            "ComputeService/DrainNode"
        );
        assert_eq!(name("GET", "/data/v1/blob/a/secret"), "data/get");
        assert_eq!(name("POST", "/api/2.0/mlflow/runs/create"), "mlflow/runs/create");
        assert_eq!(
            name("GET", "/api/2.0/mlflow-artifacts/artifacts/0/x/y"),
            "mlflow-artifacts/artifacts/0"
        );
        let peer = PeerAddr("[::ffff:10.0.0.7]:4000".parse().unwrap());
        assert_eq!(Origin::new(Some(&peer), "GET", "/x").from, Some([10, 0, 0, 7].into()));
    }
}
