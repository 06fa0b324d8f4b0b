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
    /// The node's own.
    pub(super) token: String,
    /// Who vouches for the daemon, whatever is asked of it.
    pub(super) trust: Trust,
}

/// Puts the node's token into each call.
#[derive(Clone)]
pub(crate) struct Token {
    header: MetadataValue<Ascii>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Interceptor for Token {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.header.clone());
        Ok(request)
    }
}

/// Connects, with the address and the token as they are now.
pub(crate) async fn connect(args: &AgentArgs) -> Result<Connection, Error> {
    let address = address(args)?;
    let token = token(args)?;
    let trust = trust(args, &address)?;
    let mut header: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| Error::BadToken)?;
    header.set_sensitive(true);
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(|_| Error::BadAddress { address: address.clone(), why: "it is not a URL" })?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let channel = trust.connect(&endpoint).await.map_err(|failed| match Doubt::of(&failed) {
        Some(doubt) => Error::Untrusted { address: address.clone(), doubt },
        None => match failed {
            NotConnected::Setup(error) => Error::Trust(error),
            NotConnected::Transport(source) => {
                Error::Unreachable { address: address.clone(), source }
            }
        },
    })?;
    let client = AgentServiceClient::with_interceptor(channel.clone(), Token { header });
    Ok(Connection { client, address, channel, token, trust })
}

fn address(args: &AgentArgs) -> Result<Address, Error> {
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
fn trust(args: &AgentArgs, address: &str) -> Result<Trust, Error> {
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

/// The node's token; read from its file again each time, so that it can be replaced.
fn token(args: &AgentArgs) -> Result<String, Error> {
    let text = match &args.token_file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| Error::NoToken { path: path.clone(), source })?,
        None => std::env::var("ATELIER_TOKEN").map_err(|_| Error::TokenUnset)?,
    };
    Ok(text.trim().to_owned())
}
