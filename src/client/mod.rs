//! A daemon's client: where it is, one connection, the services on it.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use atelier_agent::trust::{self, Doubt, NotConnected};
use atelier_proto::asset::v1::asset_service_client::AssetServiceClient;
use atelier_proto::audit::v1::audit_service_client::AuditServiceClient;
use atelier_proto::component::v1::component_service_client::ComponentServiceClient;
use atelier_proto::compute::v1::compute_service_client::ComputeServiceClient;
use atelier_proto::content::v1::content_service_client::ContentServiceClient;
use atelier_proto::environment::v1::environment_service_client::EnvironmentServiceClient;
use atelier_proto::identity::v1::auth_service_client::AuthServiceClient;
use atelier_proto::identity::v1::authority_service_client::AuthorityServiceClient;
use atelier_proto::identity::v1::role_service_client::RoleServiceClient;
use atelier_proto::identity::v1::token_service_client::TokenServiceClient;
use atelier_proto::identity::v1::user_service_client::UserServiceClient;
use atelier_proto::job::v1::job_service_client::JobServiceClient;
use atelier_proto::node::v1::node_identity_service_client::NodeIdentityServiceClient;
use atelier_proto::vault::v1::vault_service_client::VaultServiceClient;
use atelier_proto::workspace::v1::workspace_service_client::WorkspaceServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub mod contexts;
pub mod data;
mod home;
pub mod keyring;
mod sessions;
mod target;
#[cfg(test)]
mod tests;
pub mod tracking;

pub use home::Home;
pub use sessions::{Forgotten, Place, Session, Sessions, Wish};
pub use target::{Target, Token, Wanted};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one unary call may take.
const CALL: Duration = Duration::from_secs(60);
/// How often a silent connection is checked, so that a dead one is noticed while following a log.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The largest answer taken: a page of a thousand jobs.
const MAX_ANSWER: usize = 64 << 20;

/// Why a daemon could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a server nor a home folder is known.
    #[error("the home folder is not known: neither ATELIER_HOME nor HOME is set")]
    NoHome,
    /// The local workspace has no address file.
    #[error("no local workspace is running")]
    NoLocalDaemon,
    /// The address cannot be used.
    #[error("cannot use '{server}' as the server: {why}")]
    BadServer {
        /// As written.
        server: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A server was named, but no token.
    #[error("no token for {server}")]
    NoToken {
        /// The server.
        server: String,
    },
    /// The token is empty or holds characters that no token has.
    #[error("the token is empty or not a token")]
    BadToken,
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no such context.
    #[error(
        "there is no context '{name}'{}",
        if known.is_empty() { ", and no other".to_owned() } else { format!("; there is local, {known}") }
    )]
    NoContext {
        /// As it was called.
        name: String,
        /// Those there are.
        known: String,
    },
    /// The name is another's.
    #[error("there is a context '{0}' already")]
    ContextTaken(String),
    /// The name cannot be one.
    #[error(
        "'{0}' cannot be a context's name: use letters, digits, '-', '_' and '.', at most 64; 'local' is kept"
    )]
    ContextName(String),
    /// The contexts cannot be read or written.
    #[error("cannot use the contexts in {}: {problem}", path.display())]
    Contexts {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// Two answers to which daemon.
    #[error("both a server and a context are named")]
    TwoServers,
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What a keyring has cannot be had.
    #[error("cannot read the token for {what} from the keyring: {problem}")]
    Keyring {
        /// A daemon's address, or a context's name.
        what: String,
        /// Why not.
        problem: keyring::Unusable,
    },
    /// Whoever signed in has to do it again.
    #[error("the session of {user} at {server} is over")]
    SessionOver {
        /// Who.
        user: String,
        /// Where.
        server: String,
    },
    /// Nothing answers at the address.
    #[error("cannot reach the daemon at {server}: {cause}")]
    Connect {
        /// The address.
        server: String,
        /// Whether the address came from the local workspace's files.
        local: bool,
        /// The innermost reason.
        cause: String,
    },
    /// Who answers is not taken for the daemon.
    #[error("cannot trust who answers at {server}: {doubt}")]
    Untrusted {
        /// The address.
        server: String,
        /// Why.
        doubt: Doubt,
    },
    /// The authorities that vouch for the daemon cannot be used.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// No HTTP client can be made.
    #[error("cannot make an HTTP client: {0}")]
    Http(String),
    /// The daemon did not answer in time.
    #[error("the daemon at {server} did not answer within {seconds} s")]
    Timeout {
        /// The address.
        server: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The daemon answered with an error, or the connection broke.
    #[error("{}", reason(.0))]
    Rpc(Box<Status>),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

impl Error {
    /// Whether the same call may succeed when it is made again over a new connection: the daemon
    /// is restarting, or the connection broke.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::NoLocalDaemon | Self::Timeout { .. } => true,
            Self::Rpc(status) => broken(status) || is_to_wait(status),
            _ => false,
        }
    }
}

/// Whether the daemon has said after what time it would answer.
fn is_to_wait(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.metadata().contains_key("retry-after")
}

/// Whether a status tells of the connection rather than of the call. Statuses that a server sent
/// have no source; those made here from a broken connection have one.
pub fn broken(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => status.source().is_some(),
        _ => false,
    }
}

/// Puts the token on every request.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A channel whose calls carry the token.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// One connection to one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    target: Target,
    channel: Channel,
    bearer: Bearer,
}

impl Client {
    /// Connects.
    pub async fn connect(target: Target) -> Result<Self, Error> {
        let secret = format!("Bearer {}", target.token.secret());
        let mut secret: MetadataValue<Ascii> = secret.parse().map_err(|_| Error::BadToken)?;
        secret.set_sensitive(true);
        let bad = |_| Error::BadServer { server: target.server.clone(), why: "it is not a URL" };
        let endpoint = Endpoint::from_shared(target.server.clone())
            .map_err(bad)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = target.trust.connect(&endpoint).await.map_err(|failed| {
            let server = target.server.clone();
            match (Doubt::of(&failed), failed) {
                (Some(doubt), _) => Error::Untrusted { server, doubt },
                (None, NotConnected::Setup(error)) => Error::Trust(error),
                (None, NotConnected::Transport(error)) => {
                    Error::Connect { server, local: target.local, cause: innermost(&error) }
                }
            }
        })?;
        Ok(Self { target, channel, bearer: Bearer(secret) })
    }

    /// Where it is connected to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The connection without the token.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The connection with the token on it, for a service's stub.
    pub fn authorized(&self) -> Authorized {
        InterceptedService::new(self.channel.clone(), self.bearer.clone())
    }

    /// Jobs.
    pub fn jobs(&self) -> JobServiceClient<Authorized> {
        JobServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Computes and nodes.
    pub fn computes(&self) -> ComputeServiceClient<Authorized> {
        ComputeServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The workspace.
    pub fn workspace(&self) -> WorkspaceServiceClient<Authorized> {
        WorkspaceServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Environments.
    pub fn environments(&self) -> EnvironmentServiceClient<Authorized> {
        EnvironmentServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Data assets and models.
    pub fn assets(&self) -> AssetServiceClient<Authorized> {
        AssetServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Components.
    pub fn components(&self) -> ComponentServiceClient<Authorized> {
        ComponentServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Secrets.
    pub fn vault(&self) -> VaultServiceClient<Authorized> {
        VaultServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What nodes are known by.
    pub fn nodes(&self) -> NodeIdentityServiceClient<Authorized> {
        NodeIdentityServiceClient::new(self.authorized())
    }

    /// Tokens.
    pub fn tokens(&self) -> TokenServiceClient<Authorized> {
        TokenServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Users.
    pub fn users(&self) -> UserServiceClient<Authorized> {
        UserServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// Roles.
    pub fn roles(&self) -> RoleServiceClient<Authorized> {
        RoleServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// What the caller itself is, and may do.
    pub fn auth(&self) -> AuthServiceClient<Authorized> {
        AuthServiceClient::new(self.authorized())
    }

    /// The workspace's certificate authority.
    pub fn authority(&self) -> AuthorityServiceClient<Authorized> {
        AuthorityServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The audit log.
    pub fn audit(&self) -> AuditServiceClient<Authorized> {
        AuditServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The content store.
    pub fn content(&self) -> ContentServiceClient<Authorized> {
        ContentServiceClient::new(self.authorized()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For the data gateway, which speaks HTTP at the same address.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn http(&self) -> Result<reqwest::Client, Error> {
        self.target.http(Some(CALL))
    }

    /// The same for requests that take long to send: each has its own time, [`data::within`].
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn patient(&self) -> Result<reqwest::Client, Error> {
        self.target.http(None)
    }

    /// Waits for the answer to a call, for a minute at most.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(CALL, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                Err(Error::Timeout { server: self.target.server.clone(), seconds: CALL.as_secs() })
            }
        }
    }
}

/// Why a call broke: what the system said of the connection, else the daemon's own words.
pub fn reason(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), innermost)
}

/// The last link of an error's chain: what the system said.
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
