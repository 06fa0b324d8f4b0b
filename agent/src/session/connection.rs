//! The connection under a session.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use atelier_proto::agent::v1::agent_service_client::AgentServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use super::Error;
use crate::args::AgentArgs;
use crate::identity::{self, Credential};
use crate::reach;
use crate::trust::{Doubt, NotConnected, OWN_CA, Trust, server_url};

const CONNECT: Duration = Duration::from_secs(5);
/// Between probes of a connection on which nothing else moves.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A connection that names this node in every call.
pub(crate) type Caller = InterceptedService<Channel, Token>;
/// The agent's side of the service.
pub(crate) type Client = AgentServiceClient<Caller>;
/// For messages to people.
pub(crate) type Address = String;

/// An open connection and what it was made with.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(super) address: Address,
    /// For the content service.
    pub(super) channel: Channel,
    interceptor: Token,
    /// The node's own, unless it is known by its certificate.
    pub(super) token: Option<String>,
    /// Who vouches for the daemon, whatever is asked of it.
    pub(super) trust: Trust,
}

/// Puts the node's token into each call, if it has one.
#[derive(Clone)]
pub(crate) struct Token {
    header: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Connection {
    /// For calls of other services in this node's name.
    pub(super) fn caller(&self) -> Caller {
        InterceptedService::new(self.channel.clone(), self.interceptor.clone())
    }
}

impl Interceptor for Token {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// Connects, with the address and what this node is known by as they are now.
pub(crate) async fn connect(args: &AgentArgs) -> Result<Connection, Error> {
    let address = address(args)?;
    let (credential, authority) = identity::credential(args)?;
    let authority = authority.filter(|_| args.ca_file.is_none() && address.starts_with("https://"));
    // By joining, and not on this machine.
    let is_learnt = authority.is_some();
    let trust = match authority {
        Some(authority) => Trust::These(authority.into()),
        None => trust(args, &address)?,
    };
    let (token, shown) = match credential {
        Credential::Token(token) => (Some(token), None),
        Credential::Certificate(shown) => (None, Some(shown)),
    };
    let header = token.as_ref().map(|token| {
        let mut header: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| Error::BadToken)?;
        header.set_sensitive(true);
        Ok::<_, Error>(header)
    });
    let header = header.transpose()?;
    let connected = trust.connect_showing(&endpoint(&address)?, shown).await;
    let channel = connected.map_err(|error| match failed(&address, error) {
        Error::Untrusted { address, doubt: Doubt::Authority } if is_learnt => {
            Error::NotKnown { address, node: identity::name(args) }
        }
        other => other,
    })?;
    let interceptor = Token { header };
    let client = AgentServiceClient::with_interceptor(channel.clone(), interceptor.clone());
    Ok(Connection { client, address, channel, interceptor, token, trust })
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|_| Error::BadAddress { address: address.to_owned(), why: "it is not a URL" })?;
    Ok(endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Why there is no connection to this address.
pub(super) fn failed(address: &str, error: NotConnected) -> Error {
    let address = address.to_owned();
    match Doubt::of(&error) {
        Some(doubt) => Error::Untrusted { address, doubt },
        None => match error {
            NotConnected::Setup(error) => Error::Trust(error),
            NotConnected::Transport(source) => Error::Unreachable { address, source },
        },
    }
}

pub(super) fn address(args: &AgentArgs) -> Result<Address, Error> {
    let text = match (&args.server_file, &args.server) {
        (Some(path), _) => std::fs::read_to_string(path)
            .map_err(|source| Error::NoAddress { path: path.clone(), source })?,
        (None, Some(server)) => server.clone(),
        (None, None) => String::new(),
    };
    let text = text.trim();
    server_url(text).map_err(|why| Error::BadAddress { address: text.to_owned(), why })
}

/// Who vouches for the daemon; read from its file again each time, as the address is. A daemon that makes its own
/// certificates keeps their authority below the folder in which it says where it listens.
pub(super) fn trust(args: &AgentArgs, address: &str) -> Result<Trust, Error> {
    if !address.starts_with("https://") {
        return Ok(Trust::System);
    }
    let own = || Some(args.server_file.as_ref()?.parent()?.join(OWN_CA));
    match args.ca_file.clone().or_else(|| own().filter(|own| own.exists())) {
        Some(file) => Trust::of_file(&file).map_err(Error::Trust),
        None => Ok(Trust::System),
    }
}

/// This machine's address on the way to the daemon: where the daemon is, other nodes are. `None` if it
/// cannot be told.
pub(super) async fn own_address(server: &str) -> Option<String> {
    let look = async {
        let daemon = *reach::endpoints(server).await.ok()?.first()?;
        let any: IpAddr = match daemon {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = tokio::net::UdpSocket::bind((any, 0)).await.ok()?;
        // This asks the routing table, and sends nothing.
        socket.connect(daemon).await.ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    tokio::time::timeout(CONNECT, look).await.ok().flatten()
}
