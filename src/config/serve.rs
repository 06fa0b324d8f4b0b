//! What `atelier serve` takes.

use std::ffi::OsStr;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use atelier_core::datastore::PublicServers;
use atelier_core::egress::{Egress, Server};
use atelier_core::id::{ComputeName, WorkspaceName};
use atelier_core::node::LeasePolicy;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;

use super::limits::LimitArgs;
use super::oidc::OidcArgs;
use super::transit::TransitArgs;
use crate::tls::Name;
use crate::vault::KeySource;

/// A node gives a job that outlives its lease no more time than this to end, whatever `--grace` says.
const LEASE_GRACE_S: u64 = 10;
/// After that it kills it, which is quick and takes a moment.
const KILLING_MS: u64 = 1_000;

/// Runs the daemon: the workspace's scheduler, store and gateway.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Where the workspace's records, tokens and local datastores lie
    /// [default: `<home>/workspace`]
    #[arg(long, env = "ATELIER_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// A file like a datastore's that says where the workspace's own datastores lie: in an object store, or in
    /// another folder [default: the folder 'storage' in the data folder]
    #[arg(long, env = "ATELIER_STORAGE", value_name = "FILE")]
    pub storage: Option<PathBuf>,
    /// Seconds for which a request to an object store that is away is tried again, before whoever asked is told
    #[arg(
        long,
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=100),
        value_name = "SECONDS"
    )]
    pub store_patience: u64,
    /// Address to listen on; port 0 takes any free one. Where other machines reach it (0.0.0.0:7420, for example)
    /// everything is encrypted
    #[arg(long, default_value = "127.0.0.1:7420", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Address on which jobs log and store, apart from the one by which the daemon is told what to do, to
    /// which they have no way
    /// [default: the one that it had, at first the port after that of --listen, or any that is free]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub jobs_listen: Option<SocketAddr>,
    /// When the ports speak TLS; auto: where other machines reach one of them, and with --tls-cert
    #[arg(long, value_enum, default_value_t = TlsWhen::Auto, value_name = "auto|on")]
    pub tls: TlsWhen,
    /// A name or address by which clients and nodes reach the daemon, for its own certificate; may be given several
    /// times. It has those of --listen (for 0.0.0.0: all of this machine) and loopback without being told
    #[arg(long, value_name = "NAME")]
    pub tls_name: Vec<Name>,
    /// A certificate to be used instead of the daemon's own, with those in between, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM, which only the daemon's user may read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// How long the certificates last by which nodes are known, for example 24h; each is renewed after two thirds of it
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = life)]
    pub node_certificate_life: Duration,
    /// The workspace's name, fixed when its folder is made
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub workspace: WorkspaceName,
    /// A cluster that agents may join; may be given several times. The first is the default for
    /// jobs that name none
    #[arg(long, default_value = "local", value_name = "NAME")]
    pub compute: Vec<ComputeName>,
    /// Refuse jobs with a container image on nodes that have no container runtime, instead of
    /// using a private environment of the node's own Python
    #[arg(long)]
    pub require_containers: bool,
    /// A JSON table of curated environments, added to the built-in one
    #[arg(long, value_name = "FILE")]
    pub curated_environments: Option<PathBuf>,
    /// A YAML table of node sizes for clusters, added to Azure's
    #[arg(long, value_name = "FILE")]
    pub sizes: Option<PathBuf>,
    /// Where the key is that the workspace's secrets are sealed with: file:/PATH, credential:NAME (of systemd),
    /// env:NAME, transit:MOUNT/NAME (of HashiCorp Vault or OpenBao). Never in the data folder
    /// [default: a file of the workspace's own below ~/.config/atelier/vault, made with the first secret]
    #[arg(
        long,
        env = "ATELIER_VAULT_KEY",
        hide_env_values = true,
        value_name = "SOURCE",
        value_parser = SourceParser::<KeySource>::default()
    )]
    pub vault_key: Option<KeySource>,
    /// Where a key is that secrets were sealed with before, until `atelier vault rotate`; may be given
    /// several times
    #[arg(long, value_name = "SOURCE", value_parser = SourceParser::<KeySource>::default())]
    pub vault_old_key: Vec<KeySource>,
    /// Who has keys that are not written down anywhere
    #[command(flatten)]
    pub transit: TransitArgs,
    /// Where people sign in
    #[command(flatten)]
    pub oidc: OidcArgs,
    /// Bytes of standard output kept of each attempt; beyond it the log ends with a marker
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub log_limit: u64,
    /// Seconds between asking a job to stop and killing it
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub grace: u64,
    /// Seconds of silence after which a node ends its own jobs, and (with a margin) the daemon
    /// starts them elsewhere
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub lease: u64,
    /// Whether nodes and MLflow's clients are given addresses, signed for a while and for one object each, by which
    /// they read from object stores and write to them themselves, where something is gained by it or always; without,
    /// all bytes go through the daemon
    #[arg(long, value_enum, default_value_t = SignedUrls::Auto, value_name = "auto|always|none")]
    pub signed_urls: SignedUrls,
    /// Whether jobs' inputs may lie where everybody may read: at addresses of the web, and in public storage of
    /// clouds that is no datastore's. Inputs of mode direct are addresses that jobs read themselves: they stay
    #[arg(long, value_enum, default_value_t = PublicData::Allow, value_name = "allow|refuse")]
    pub public_data: PublicData,
    /// The server at which s3:// addresses of no datastore are read, without credentials; buckets are the first part
    /// of its paths [default: Amazon's]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    pub public_s3: Option<String>,
    /// The server at which addresses of Azure's blobs (wasbs://, abfss://, https://) of no datastore are read, without
    /// credentials; accounts are the first part of its paths [default: Azure's]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    pub public_azure: Option<String>,
    /// What callers may ask for
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Logs as text for people or as one JSON object a line
    #[arg(long, default_value = "text", value_name = "text|json")]
    pub log_format: crate::telemetry::Format,
}

/// When the daemon's ports are encrypted.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsWhen {
    /// Where other machines reach one of them.
    Auto,
    /// Always.
    On,
}

/// Whether nodes reach object stores themselves.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignedUrls {
    /// Where a store can sign addresses and the node can reach it, but for writes from the daemon's own machine that
    /// the store would have to copy.
    Auto,
    /// Those, too.
    Always,
    /// Never.
    None,
}

/// Whether inputs may be of no datastore.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublicData {
    /// Nodes read them as anybody could.
    Allow,
    /// Jobs are refused that name such.
    Refuse,
}

/// How long a node's certificate lasts.
fn life(text: &str) -> Result<Duration, String> {
    const MOST_S: u64 = 90 * 24 * 3600;
    match atelier_core::spec::amount::seconds(text)? {
        0 => Err("at least a second".to_owned()),
        seconds @ 1..=MOST_S => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("at most {MOST_S} seconds, which are 90 days")),
    }
}

/// A server without a path of its own.
fn server_url(text: &str) -> Result<String, String> {
    let bare = |url: &reqwest::Url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.path() == "/"
            && !text.contains(['?', '#', '@'])
    };
    match reqwest::Url::parse(text).ok().filter(bare) {
        Some(url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
        None => Err("write https://HOST[:PORT]".to_owned()),
    }
}

impl ServeArgs {
    /// Where public storage is read.
    pub(crate) fn public_servers(&self) -> PublicServers {
        PublicServers { s3: self.public_s3.clone(), azure: self.public_azure.clone() }
    }

    /// Where nodes fetch what users name: also from a server that the admin has named for public data.
    pub(crate) fn egress(&self) -> Egress {
        let server = |url: &String| {
            let url = reqwest::Url::parse(url).ok()?;
            Some(Server::new(url.host_str()?, url.port_or_known_default()?))
        };
        let servers = self.public_s3.iter().chain(&self.public_azure).filter_map(server).collect();
        Egress { networks: self.limits.allow_egress.clone(), servers }
    }

    /// The lease that these arguments mean. Short leases shorten everything that depends on them, but
    /// not the time that a job may take to end: until that is over too, none may follow it.
    pub fn lease_policy(&self) -> LeasePolicy {
        let lease_ms = self.lease.max(1) * 1000;
        let usual = LeasePolicy::default();
        let ending_ms = self.grace.min(LEASE_GRACE_S) * 1000 + KILLING_MS;
        LeasePolicy {
            heartbeat_ms: usual.heartbeat_ms.min(lease_ms / 4),
            unreachable_ms: usual.unreachable_ms.min(lease_ms / 2),
            lease_ms,
            margin_ms: usual.margin_ms.min(lease_ms / 2).max(ending_ms),
        }
    }
}

/// Reads where a key or a token is. What is wrong is not repeated, as usual errors would: it may be the key itself.
pub(crate) struct SourceParser<T>(PhantomData<fn() -> T>);

impl<T> Default for SourceParser<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T> Clone for SourceParser<T> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<T> TypedValueParser for SourceParser<T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let parsed = value.to_str().ok_or_else(|| "is not UTF-8".to_owned()).and_then(str::parse);
        parsed.map_err(|problem: String| {
            let option = argument.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value for '{option}': {problem}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
