//! The client of a store: what it is told, and how long it waits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::datastore::{AzureStorage, Credentials, Proof, ServicePrincipal, Source};
use http::HeaderValue;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use reqwest::Url;
use reqwest::redirect::Policy;

use super::azure_file::{Opened, Share};
use super::entra::CertificateProvider;
use super::listing::ReadsListings;
use super::public::Connects;

/// How long a store may take to accept a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// How long it may stand still: what is sent with one request has to get there in that time.
pub(super) const STILL: Duration = Duration::from_secs(90);
/// The first pause between two tries; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) const USER_AGENT: &str = concat!("atelier/", env!("CARGO_PKG_VERSION"));

/// How often a request is tried again when the store is away, asks for less, or fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retries {
    pub(super) most: usize,
    /// After which none is begun.
    pub(super) within: Duration,
}

/// For how long requests for jobs' data are tried again, unless an admin says otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// For jobs' data.
pub(super) const PATIENT: Retries = Retries { most: 10, within: PATIENCE };
/// For requests that are asked for anew with each try.
pub(super) const ONCE: Retries = Retries { most: 0, within: PATIENCE };
/// For somebody who waits for an answer.
pub(super) const HASTY: Retries = Retries { most: 2, within: Duration::from_secs(10) };

/// What of the daemon's environment says who it is. Where data lies is never taken from there.
const OF_AMAZON: [&str; 9] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];
const OF_AZURE: [&str; 6] = [
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
    "IDENTITY_ENDPOINT",
];
/// The account that all of Fabric's workspaces are in.
const ONE_LAKE: &str = "onelake";
const GOOGLE: &str = "https://storage.googleapis.com";
const OF_GOOGLE: [&str; 2] = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"];

/// A client of one store. The types themselves, since what is to come of them (signed addresses) is not in the
/// trait that they share.
pub(super) enum Client {
    S3(AmazonS3),
    Azure(MicrosoftAzure),
    Gcs(GoogleCloudStorage),
    Http(HttpStore),
    AzureFile(Share),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The clients' own have credentials in them.
        write!(f, "Client({})", self.store())
    }
}

impl Client {
    /// # Errors
    /// Why there is none, without anything of the credentials.
    pub(super) fn new(
        source: &Source,
        credentials: Credentials,
        retries: Retries,
        connects: Connects,
    ) -> Result<Self, String> {
        let made = match source {
            Source::AzureBlob(azure) | Source::AzureDataLakeGen2(azure) => {
                let (url, account) = (azure.blob_url(), &azure.account_name);
                let builder = azure_builder(url, account, &azure.container, retries, connects);
                azure_client(builder, credentials, retries)?.map(Self::Azure)
            }
            Source::OneLake(lake) => {
                let (url, workspace) = (lake.blob_url(), &lake.workspace);
                let builder = azure_builder(url, ONE_LAKE, workspace, retries, connects)
                    .with_use_fabric_endpoint(true);
                azure_client(builder, credentials, retries)?.map(Self::Azure)
            }
            Source::S3 { .. } => s3_client(source, credentials, retries, connects).map(Self::S3),
            Source::Gcs { bucket, .. } => {
                gcs_client(bucket, credentials, retries, connects).map(Self::Gcs)
            }
            Source::Http { url } => HttpBuilder::new()
                .with_url(url.clone())
                .with_client_options(options(url))
                .with_http_connector(SameServer { may_be_plain: url.starts_with("http://") })
                .with_retry(retries.config())
                .build()
                .map(Self::Http),
            Source::AzureFile(azure) => {
                share(azure, credentials, retries, connects)?.map(Self::AzureFile)
            }
            Source::Folder(_) => {
                return Err(format!("data of type {} is not in an object store", source.kind()));
            }
        };
        // The library's words may repeat what it was given.
        made.map_err(|_| {
            "its credentials are not of the form that the store's are (an account key is Base64, a SAS \
             token a list of key=value, a service account its JSON)"
                .to_owned()
        })
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        match self {
            Self::S3(store) => store,
            Self::Azure(store) => store,
            Self::Gcs(store) => store,
            Self::Http(store) => store,
            Self::AzureFile(store) => store,
        }
    }

    /// What takes uploads in parts; a web server does not.
    pub(super) fn multipart(&self) -> Option<&dyn MultipartStore> {
        match self {
            Self::S3(store) => Some(store),
            Self::Azure(store) => Some(store),
            Self::Gcs(store) => Some(store),
            Self::AzureFile(store) => Some(store),
            Self::Http(_) => None,
        }
    }

    /// What lists page by page by way of the library.
    pub(super) fn pages(&self) -> Option<&dyn PaginatedListStore> {
        match self {
            Self::S3(store) => Some(store),
            Self::Azure(store) => Some(store),
            Self::Gcs(store) => Some(store),
            Self::AzureFile(_) | Self::Http(_) => None,
        }
    }
}

impl Retries {
    /// How long to wait before each further try.
    pub(super) fn pauses(self) -> impl Iterator<Item = Duration> {
        let growing = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(*pause * 2));
        let begun = std::time::Instant::now();
        growing
            .take(self.most)
            .map(|pause| pause.min(LONGEST_PAUSE))
            .take_while(move |_| begun.elapsed() < self.within)
    }

    fn config(self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig {
                init_backoff: FIRST_PAUSE,
                max_backoff: LONGEST_PAUSE,
                base: 2.0,
            },
            max_retries: self.most,
            retry_timeout: self.within,
        }
    }
}

fn options(url: &str) -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_timeout_disabled()
        .with_read_timeout(STILL)
        .with_allow_http(url.starts_with("http://"))
        .with_user_agent(HeaderValue::from_static(USER_AGENT))
}

/// Follows a web server's directions to places of its own only. Where else it leads is not what an admin has named,
/// and the daemon may reach what others may not.
#[derive(Debug)]
struct SameServer {
    may_be_plain: bool,
}

/// Directions that are followed, one after the other.
const MOST_DIRECTIONS: usize = 10;

impl HttpConnector for SameServer {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let policy = Policy::custom(|direction| {
            let before = direction.previous().last();
            let is_same = before.is_some_and(|before| is_same_server(before, direction.url()));
            match is_same && direction.previous().len() <= MOST_DIRECTIONS {
                true => direction.follow(),
                false => direction.stop(),
            }
        });
        let client = reqwest::Client::builder()
            .redirect(policy)
            .connect_timeout(CONNECT)
            .read_timeout(STILL)
            .https_only(!self.may_be_plain)
            .http1_only()
            .user_agent(USER_AGENT)
            .build();
        let failed =
            |error| object_store::Error::Generic { store: "HTTP", source: Box::new(error) };
        client.map(HttpClient::new).map_err(failed)
    }
}

/// Whether one address is of the same server as the other, which may also be its encrypted port.
fn is_same_server(from: &Url, to: &Url) -> bool {
    let port = |url: &Url| url.port_or_known_default();
    let is_upgrade = (port(from), port(to)) == (Some(80), Some(443)) && to.scheme() == "https";
    let is_kept = from.scheme() == to.scheme() && port(from) == port(to);
    from.host_str() == to.host_str() && (is_kept || is_upgrade)
}

/// Variables of the daemon's that are set, of these.
fn environment(names: &[&'static str]) -> impl Iterator<Item = (String, String)> {
    names.iter().filter_map(|name| Some((name.to_lowercase(), std::env::var(name).ok()?)))
}

type Made<T> = Result<T, object_store::Error>;

fn s3_client(
    source: &Source,
    credentials: Credentials,
    retries: Retries,
    connects: Connects,
) -> Made<AmazonS3> {
    let Source::S3 { bucket, endpoint, region, path_style, .. } = source else {
        return Err(object_store::Error::NotImplemented {
            operation: "S3".to_owned(),
            implementer: source.kind().to_owned(),
        });
    };
    let (address, virtual_hosted) = s3_address(bucket, endpoint.as_deref(), *path_style);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_client_options(options(address.as_deref().unwrap_or("https://")))
        .with_http_connector(ReadsListings(connects))
        .with_retry(retries.config())
        .with_virtual_hosted_style_request(virtual_hosted);
    if let Some(address) = address {
        builder = builder.with_endpoint(address);
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    builder = match credentials {
        Credentials::S3Keys { access_key_id, secret_access_key, session_token } => {
            let builder = builder
                .with_access_key_id(access_key_id)
                .with_secret_access_key(secret_access_key.reveal());
            match session_token {
                Some(token) => builder.with_token(token.reveal()),
                None => builder,
            }
        }
        Credentials::Anonymous => builder.with_skip_signature(true),
        _ => environment(&OF_AMAZON).fold(builder, |builder, (name, value)| match name
            .parse::<AmazonS3ConfigKey>(
        ) {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }),
    };
    builder.build()
}

/// The address of a bucket's server if it is not Amazon's, and whether the bucket is part of the host's name.
fn s3_address(bucket: &str, endpoint: Option<&str>, path_style: bool) -> (Option<String>, bool) {
    let Some(endpoint) = endpoint.map(|endpoint| endpoint.trim_end_matches('/')) else {
        // A name with dots in it is of no certificate.
        return (None, !path_style && !bucket.contains('.'));
    };
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let has_subdomains =
        !name.starts_with('[') && name != "localhost" && name.parse::<std::net::IpAddr>().is_err();
    match path_style || !has_subdomains {
        true => (Some(endpoint.to_owned()), false),
        false => (Some(format!("{scheme}://{bucket}.{host}")), true),
    }
}

fn azure_builder(
    url: String,
    account: &str,
    container: &str,
    retries: Retries,
    connects: Connects,
) -> MicrosoftAzureBuilder {
    MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(container)
        .with_client_options(options(&url))
        .with_http_connector(ReadsListings(connects))
        .with_endpoint(url)
        .with_retry(retries.config())
}

/// # Errors
/// What is wrong with a certificate; the library's errors are the inner ones.
fn azure_client(
    builder: MicrosoftAzureBuilder,
    credentials: Credentials,
    retries: Retries,
) -> Result<Made<MicrosoftAzure>, String> {
    let builder = match credentials {
        Credentials::AccountKey(key) => builder.with_access_key(key.reveal()),
        Credentials::SasToken(token) => builder.with_config(AzureConfigKey::SasKey, token.reveal()),
        Credentials::ServicePrincipal(ServicePrincipal {
            tenant_id,
            client_id,
            proof: Proof::ClientSecret(secret),
            authority_url,
            ..
        }) => {
            let builder =
                builder.with_client_secret_authorization(client_id, secret.reveal(), tenant_id);
            match authority_url {
                Some(url) => builder.with_authority_host(url),
                None => builder,
            }
        }
        Credentials::ServicePrincipal(ServicePrincipal {
            tenant_id,
            client_id,
            proof: Proof::Certificate { certificate, thumbprint },
            authority_url,
            ..
        }) => {
            let (who, proof) = ((&*tenant_id, &*client_id), (&certificate, &*thumbprint));
            let made = CertificateProvider::new(who, proof, authority_url.as_deref(), retries);
            let provider =
                made.map_err(|problem| format!("its certificate cannot be used: {problem}"))?;
            builder.with_credentials(Arc::new(provider))
        }
        Credentials::Anonymous => builder.with_skip_signature(true),
        _ => environment(&OF_AZURE).fold(builder, |builder, (name, value)| {
            match name.parse::<AzureConfigKey>() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder,
            }
        }),
    };
    Ok(builder.build())
}

/// # Errors
/// As of [`azure_client`], which gets tokens for other clients, too.
fn share(
    azure: &AzureStorage,
    credentials: Credentials,
    retries: Retries,
    connects: Connects,
) -> Result<Made<Share>, String> {
    let opened = match credentials {
        Credentials::AccountKey(key) => Opened::by_key(&key),
        Credentials::SasToken(token) => Ok(Opened::Signature(token)),
        other => {
            let (url, account) = (azure.file_url(), &azure.account_name);
            let builder = azure_builder(url, account, &azure.container, retries, connects);
            let made = azure_client(builder, other, retries)?;
            made.map(|client| Opened::Tokens(client.credentials().clone()))
        }
    };
    Ok(opened.and_then(|opened| Share::new(azure, opened, retries)))
}

fn gcs_client(
    bucket: &str,
    credentials: Credentials,
    retries: Retries,
    connects: Connects,
) -> Made<GoogleCloudStorage> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        // A key's file may name another server, and where data lies is the datastore's to say.
        .with_base_url(GOOGLE)
        .with_client_options(options(GOOGLE))
        .with_http_connector(ReadsListings(connects))
        .with_retry(retries.config());
    let builder = match credentials {
        Credentials::ServiceAccount(key) => builder.with_service_account_key(key.reveal()),
        Credentials::Anonymous => builder.with_skip_signature(true),
        _ => environment(&OF_GOOGLE).fold(builder, |builder, (name, value)| match name
            .parse::<GoogleConfigKey>(
        ) {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        }),
    };
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::super::public::Whose;
    use super::*;

    #[test]
    fn a_bucket_is_part_of_the_host_where_that_is_a_name() {
        for (endpoint, path_style, expected) in [
            (None, false, (None, true)),
            (None, true, (None, false)),
            (Some("https://s3.example:9000/"), false, (Some("https://b.s3.example:9000"), true)),
            (Some("https://s3.example"), true, (Some("https://s3.example"), false)),
            (Some("http://127.0.0.1:9000"), false, (Some("http://127.0.0.1:9000"), false)),
            (Some("http://localhost:1"), false, (Some("http://localhost:1"), false)),
            (Some("http://[::1]:1"), false, (Some("http://[::1]:1"), false)),
        ] {
            let found = s3_address("b", endpoint, path_style);
            assert_eq!((found.0.as_deref(), found.1), expected, "{endpoint:?}");
        }
        assert_eq!(s3_address("a.b", None, false), (None, false));
    }

    #[test]
    fn a_web_server_leads_to_itself_only() {
        for (from, to, expected) in [
            ("http://a.example/x", "http://a.example/y/z", true),
            ("http://a.example/x", "https://a.example/x", true),
            ("https://a.example/x", "http://a.example/x", false),
            ("http://a.example/x", "http://a.example:8080/x", false),
            ("http://a.example:8080/x", "https://a.example/x", false),
            ("https://a.example/x", "https://b.example/x", false),
            ("https://a.example/x", "https://169.254.169.254/x", false),
        ] {
            let (from, to) = (Url::parse(from).unwrap(), Url::parse(to).unwrap());
            assert_eq!(is_same_server(&from, &to), expected, "{from} {to}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<u128> = PATIENT.pauses().map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses[..4], [200, 400, 800, 1600]);
        assert_eq!((pauses.len(), pauses.last()), (10, Some(&10_000)));
        assert_eq!(HASTY.pauses().count(), 2);
    }

    #[test]
    fn what_cannot_be_credentials_is_told_without_them() {
        let azure = atelier_core::datastore::AzureStorage {
            account_name: "a".to_owned(),
            container: "c".to_owned(),
            endpoint: "core.windows.net".to_owned(),
            protocol: "https".to_owned(),
        };
        let key =
            Credentials::AccountKey(atelier_core::datastore::Secret::new("n0t base64!".into()));
        let said = Client::new(&Source::AzureBlob(azure), key, PATIENT, Whose::Admin.connects())
            .unwrap_err();
        assert!(said.contains("Base64") && !said.contains("n0t"), "{said}");
    }
}
