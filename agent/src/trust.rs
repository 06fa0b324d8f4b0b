//! Whom this program takes for its daemon: on this machine whoever answers in plain HTTP, elsewhere whoever
//! authorities vouch for. The command line and agents do it in the same way.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, InvalidMessage,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};

use crate::clock;

#[cfg(test)]
mod tests;

/// The variable that names the authorities' file, for people and jobs alike.
pub const CA_FILE: &str = "ATELIER_CA_FILE";
/// Where a daemon keeps the certificate of its own authority, from its data folder.
pub const OWN_CA: &str = "tls/ca.pem";

/// Names that are told of a certificate that has others.
const TOLD: usize = 8;
/// The form of a daemon's address.
const FORM: &str = "it is not of the form https://HOST:PORT (http:// on this machine)";

/// A daemon's address as it is used, without a slash at the end. Without a scheme it is TLS, but on this machine.
///
/// # Errors
/// What is wrong with it.
pub fn server_url(text: &str) -> Result<String, &'static str> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
        Some(_) => return Err(FORM),
        None => (None, text),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let authority: tonic::codegen::http::uri::Authority = rest.parse().map_err(|_| FORM)?;
    if authority.host().is_empty() || rest.contains('@') {
        return Err(FORM);
    }
    if authority.port_u16().is_none() {
        return Err("the port is missing");
    }
    let is_here = is_loopback(authority.host());
    match scheme {
        Some("http") if !is_here => Err(
            "plain HTTP is for this machine alone, since the token would go over the network as it is; write https://",
        ),
        Some(scheme) => Ok(format!("{scheme}://{rest}")),
        None if is_here => Ok(format!("http://{rest}")),
        None => Ok(format!("https://{rest}")),
    }
}

/// Whether a host, as in a URL, is this machine by its loopback address.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Which authorities vouch for a daemon.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Trust {
    /// The system's.
    #[default]
    System,
    /// These, as PEM, and no others.
    These(Arc<str>),
}

/// Why a daemon's authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Their file.
    #[error("cannot read the daemon's certificate authority {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none in it.
    #[error(
        "cannot use {} as the daemon's certificate authority: {problem}; it is a file in PEM, as `atelier ca show` \
         prints it",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

impl Trust {
    /// The authorities of a file in PEM.
    ///
    /// # Errors
    /// It cannot be read, or holds none.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        roots(&text).map_err(|problem| Error::File { path: path.to_owned(), problem })?;
        Ok(Self::These(text.into()))
    }

    /// Them as PEM; `None`: they are the system's.
    pub fn pem(&self) -> Option<&str> {
        match self {
            Self::System => None,
            Self::These(pem) => Some(pem),
        }
    }

    /// A builder of clients of the daemon's HTTP. As with gRPC, they take no proxy of the environment's, which would
    /// get the token, and are sent nowhere else.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn http(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, Error> {
        let builder = builder.no_proxy().redirect(reqwest::redirect::Policy::none());
        match self {
            // What it does by itself.
            Self::System => Ok(builder),
            Self::These(_) => Ok(builder.tls_backend_preconfigured(self.config()?)),
        }
    }

    /// Connects to where an endpoint says.
    ///
    /// # Errors
    /// TLS cannot be set up, or there is no connection; of that [`Doubt::of`] knows more.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, NotConnected> {
        self.connect_showing(endpoint, None).await
    }

    /// The same, and shows who connects.
    pub(crate) async fn connect_showing(
        &self,
        endpoint: &Endpoint,
        shown: Option<Shown>,
    ) -> Result<Channel, NotConnected> {
        Self::connect_by(endpoint, || self.config_showing(shown)).await
    }

    /// Connects to a daemon of whose authority no more is known than its certificate's SHA-256.
    pub(crate) async fn connect_pinned(
        endpoint: &Endpoint,
        fingerprint: [u8; 32],
    ) -> Result<Channel, NotConnected> {
        let config = || {
            let provider = provider();
            let pinned = Arc::new(Pinned { fingerprint, provider: provider.clone() });
            let builder = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| Error::Tls(error.to_string()))?;
            let builder = builder.dangerous().with_custom_certificate_verifier(pinned);
            Ok(builder.with_no_client_auth())
        };
        Self::connect_by(endpoint, config).await
    }

    async fn connect_by(
        endpoint: &Endpoint,
        config: impl FnOnce() -> Result<ClientConfig, Error>,
    ) -> Result<Channel, NotConnected> {
        if endpoint.uri().scheme_str() != Some("https") {
            return endpoint.connect().await.map_err(NotConnected::Transport);
        }
        let config = config().map_err(NotConnected::Setup)?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http2()
            .wrap_connector(tcp);
        endpoint.connect_with_connector(connector).await.map_err(NotConnected::Transport)
    }

    fn config(&self) -> Result<ClientConfig, Error> {
        self.config_showing(None)
    }

    fn config_showing(&self, shown: Option<Shown>) -> Result<ClientConfig, Error> {
        let failed = |error: &dyn fmt::Display| Error::Tls(error.to_string());
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?;
        let builder = match self {
            Self::System => builder.with_platform_verifier().map_err(|error| failed(&error))?,
            Self::These(pem) => {
                let roots = roots(pem).map_err(|error| failed(&error))?;
                let verifier =
                    WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
                        .build()
                        .map_err(|error| failed(&error))?;
                let verifier = Arc::new(EitherClock(verifier));
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        match shown {
            None => Ok(builder.with_no_client_auth()),
            Some(Shown { chain, key }) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))
            }
        }
    }
}

/// Named, not the process's default: nobody need have set that.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Who connects, as a certificate says, with its key.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Judges certificates by the system's clock, and by the process's own where that has not jumped along: a clock that is
/// set cuts off nobody who was known before, and one that is set right lets in who was not.
#[derive(Debug)]
pub struct EitherClock<V: ?Sized>(pub Arc<V>);

impl<V: ?Sized> EitherClock<V> {
    fn by_either<T>(
        now: UnixTime,
        verify: impl Fn(UnixTime) -> Result<T, rustls::Error>,
    ) -> Result<T, rustls::Error> {
        use CertificateError as E;
        let error = match verify(now) {
            Err(error) => error,
            verified => return verified,
        };
        let rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        ) = &error
        else {
            return Err(error);
        };
        let own = u64::try_from(clock::wall().as_millis()).unwrap_or(0);
        verify(UnixTime::since_unix_epoch(Duration::from_millis(own))).map_err(|_| error)
    }
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for EitherClock<V> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::by_either(now, |now| {
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for EitherClock<V> {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::by_either(now, |now| self.0.verify_client_cert(end_entity, intermediates, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Takes who is vouched for by the authority of this fingerprint, which has to be in the chain that is shown.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_it = |certificate: &&CertificateDer<'_>| {
            digest::digest(&digest::SHA256, certificate).as_ref() == self.fingerprint
        };
        let authority = intermediates.iter().find(is_it);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            // One that has taken over from it has a link to it in the chain.
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(roots) }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum NotConnected {
    /// TLS cannot be set up.
    #[error(transparent)]
    Setup(Error),
    /// The way to the daemon.
    #[error(transparent)]
    Transport(tonic::transport::Error),
}

/// Why who answers is not taken for the daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// No authority that is trusted vouches for it.
    Authority,
    /// Its certificate has other names, which it is known to have.
    Name(Vec<String>),
    /// Its certificate has expired.
    Expired,
    /// Its certificate is of a time to come.
    NotYet,
    /// It speaks no TLS.
    Plain,
    /// Something else about its certificate.
    Other(String),
}

impl Doubt {
    /// Whether that is why a connection failed.
    pub fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<rustls::Error>() {
                return Self::of_tls(error);
            }
            // It passes over what it holds when it names its source.
            let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = match held {
                Some(held) => Some(held),
                None => error.source(),
            };
        }
        None
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        use CertificateError as E;
        let problem = match error {
            rustls::Error::InvalidCertificate(problem) => problem,
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                return Some(Self::Plain);
            }
            _ => return None,
        };
        Some(match problem {
            // The second: one of the same name, as when a workspace's was made anew.
            E::UnknownIssuer | E::BadSignature => Self::Authority,
            E::NotValidForName => Self::Name(Vec::new()),
            E::NotValidForNameContext { presented, .. } => {
                Self::Name(presented.iter().map(String::as_str).map(plain).collect())
            }
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYet,
            other => Self::Other(other.to_string()),
        })
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Authority => {
                "give the daemon's authority with --ca-file FILE or ATELIER_CA_FILE: the workspace's own, which \
                 `atelier ca show` prints on the daemon's machine, or that of the daemon's --tls-cert. Where it was \
                 given and the daemon was known before, the workspace's has been replaced (`atelier ca rotate`): get it \
                 anew from its admin"
            }
            Self::Name(_) => {
                "use one of its names, or have the daemon started with --tls-name for this one"
            }
            Self::Expired => {
                "compare the clocks of this machine and the daemon's; if they agree, have the admin renew the files of \
                 --tls-cert (the daemon's own certificates renew themselves)"
            }
            Self::NotYet => "compare the clocks of this machine and the daemon's",
            Self::Plain => "only a daemon on this machine may be asked in plain HTTP: http://",
            Self::Other(_) => "have the admin check the files of --tls-cert",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority => {
                f.write_str("its certificate is of an authority that is not trusted here")
            }
            Self::Name(names) if names.is_empty() => {
                f.write_str("its certificate is for another name")
            }
            Self::Name(names) => {
                let told: Vec<&str> = names.iter().take(TOLD).map(String::as_str).collect();
                let more = if names.len() > TOLD { ", …" } else { "" };
                write!(f, "its certificate is for other names: {}{more}", told.join(", "))
            }
            Self::Expired => f.write_str("its certificate has expired"),
            Self::NotYet => f.write_str("its certificate is not valid yet"),
            Self::Plain => f.write_str("it does not speak TLS"),
            Self::Other(what) => write!(f, "its certificate cannot be used: {what}"),
        }
    }
}

/// A name as people write it, of `DnsName("host")` and `IpAddress(10.0.0.7)`.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').to_owned()
}
