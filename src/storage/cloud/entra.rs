//! Tokens for a service principal that proves who it is by a certificate: it signs an assertion with the certificate's
//! key, as <https://learn.microsoft.com/entra/identity-platform/certificate-credentials> says.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use atelier_core::datastore::Secret;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PSS_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use object_store::CredentialProvider;
use object_store::azure::AzureCredential;
use reqwest::header;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::client::Retries;

/// Who gives out tokens where nobody says otherwise.
const AUTHORITY: &str = "https://login.microsoftonline.com";
const SCOPE: &str = "https://storage.azure.com/.default";
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How long an assertion is one.
const ASSERTED: Duration = Duration::from_secs(540);
/// A token is not used for so long before it ends.
const MARGIN: Duration = Duration::from_secs(300);
/// How long whoever gives out tokens may take to accept a connection, and to answer.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
/// More than any answer is long.
const MAX_ANSWER: usize = 64 << 10;

/// A certificate with its private key.
struct Certificate {
    key: RsaKeyPair,
    /// The certificate's SHA-256 digest.
    digest: Vec<u8>,
}

impl Certificate {
    /// # Errors
    /// Why it is none, without anything of it.
    fn read(pem: &Secret, thumbprint: &str) -> Result<Self, String> {
        let pem = pem.reveal().as_bytes();
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).flatten().collect();
        let first = certificates
            .first()
            .ok_or("there is no certificate in it, in PEM (-----BEGIN CERTIFICATE-----)")?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
            "there is no private key in it, in PEM and not encrypted (-----BEGIN PRIVATE KEY-----)"
        })?;
        let key = match &key {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("its key is not one of RSA, which is all that Entra takes".to_owned()),
        };
        let key = key.map_err(|_| "its key is not one of RSA with 2048 to 8192 bits")?;
        let is_hex = |c: &char| c.is_ascii_hexdigit();
        let given: String = thumbprint.chars().filter(is_hex).collect();
        let print = |certificate: &CertificateDer<'_>| -> String {
            let found = digest(&SHA1_FOR_LEGACY_USE_ONLY, certificate);
            found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        // Those of its authorities may stand beside it.
        let own = certificates.iter().find(|one| given.eq_ignore_ascii_case(&print(one)));
        let own = own.ok_or_else(|| {
            let found = print(first);
            format!("the thumbprint is not that of its certificate, which is {found}")
        })?;
        Ok(Self { key, digest: digest(&SHA256, own).as_ref().to_vec() })
    }

    /// A JSON Web Token of these claims.
    fn sign(&self, claims: &serde_json::Value) -> Option<Zeroizing<String>> {
        let header = json!({
            "alg": "PS256",
            "typ": "JWT",
            "x5t#S256": URL_SAFE_NO_PAD.encode(&self.digest),
        });
        let part = |of: &serde_json::Value| URL_SAFE_NO_PAD.encode(of.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        let random = SystemRandom::new();
        self.key.sign(&RSA_PSS_SHA256, &random, signed.as_bytes(), &mut signature).ok()?;
        Some(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature))))
    }
}

/// Gives a store's client its tokens.
pub(super) struct CertificateProvider {
    http: reqwest::Client,
    url: String,
    client_id: String,
    certificate: Certificate,
    retries: Retries,
    /// The last, and when it is not used any more.
    token: Mutex<Option<(Arc<AzureCredential>, Instant)>>,
}

impl fmt::Debug for CertificateProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateProvider({})", self.client_id)
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

/// What was answered instead of a token.
enum Failure {
    /// Another try may succeed.
    Passing(String),
    /// It will not.
    Final(String),
}

impl CertificateProvider {
    /// # Errors
    /// What is wrong with the certificate, without anything of it.
    pub(super) fn new(
        (tenant_id, client_id): (&str, &str),
        (pem, thumbprint): (&Secret, &str),
        authority: Option<&str>,
        retries: Retries,
    ) -> Result<Self, String> {
        let certificate = Certificate::read(pem, thumbprint)?;
        let authority = authority.unwrap_or(AUTHORITY).trim_end_matches('/');
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("atelier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| "there is no client to ask for tokens with")?;
        Ok(Self {
            http,
            url: format!("{authority}/{tenant_id}/oauth2/v2.0/token"),
            client_id: client_id.to_owned(),
            certificate,
            retries,
            token: Mutex::new(None),
        })
    }

    fn assertion(&self) -> Option<Zeroizing<String>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let mut random = [0; 16];
        getrandom::fill(&mut random).ok()?;
        self.certificate.sign(&json!({
            "aud": self.url,
            "iss": self.client_id,
            "sub": self.client_id,
            "jti": URL_SAFE_NO_PAD.encode(random),
            "iat": now,
            "nbf": now.saturating_sub(60),
            "exp": now + ASSERTED.as_secs(),
        }))
    }

    async fn ask(&self) -> Result<Granted, Failure> {
        let sign = || Failure::Final("the assertion could not be signed".to_owned());
        let assertion = self.assertion().ok_or_else(sign)?;
        let mut body = String::new();
        for (name, value) in [
            ("client_id", self.client_id.as_str()),
            ("client_assertion_type", ASSERTION),
            ("client_assertion", &assertion),
            ("scope", SCOPE),
            ("grant_type", "client_credentials"),
        ] {
            let value =
                percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            body.push_str(&format!("{name}={value}&"));
        }
        let form = "application/x-www-form-urlencoded";
        let lost = |error: reqwest::Error| Failure::Passing(error.without_url().to_string());
        let request = self.http.post(&self.url).header(header::CONTENT_TYPE, form).body(body);
        let mut answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(piece) = answer.chunk().await.map_err(lost)? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        if status.is_success() {
            let odd = |_| Failure::Final("the answer is no token".to_owned());
            return serde_json::from_slice(&bytes).map_err(odd);
        }
        // In the words in which refusals are looked for (see `problem`).
        let said = format!("status code: {}: {}", status.as_u16(), String::from_utf8_lossy(&bytes));
        match status.as_u16() {
            408 | 429 | 500..=599 => Err(Failure::Passing(said)),
            _ => Err(Failure::Final(said)),
        }
    }

    async fn fetch(&self) -> Result<Granted, String> {
        let mut pauses = self.retries.pauses();
        loop {
            let said = match self.ask().await {
                Ok(granted) => return Ok(granted),
                Err(Failure::Final(said)) => return Err(said),
                Err(Failure::Passing(said)) => said,
            };
            match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(said),
            }
        }
    }
}

#[tonic::async_trait]
impl CredentialProvider for CertificateProvider {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        let mut held = self.token.lock().await;
        if let Some((token, ends)) = &*held
            && Instant::now() < *ends
        {
            return Ok(token.clone());
        }
        let granted = self.fetch().await.map_err(|said| object_store::Error::Generic {
            store: "MicrosoftAzure",
            source: format!("no token for the service principal: {said}").into(),
        })?;
        let life = Duration::from_secs(granted.expires_in);
        // One that is short is asked for again in its middle.
        let used = life.saturating_sub(MARGIN).max(life / 2);
        let token = Arc::new(AzureCredential::BearerToken(granted.access_token));
        *held = Some((token.clone(), Instant::now() + used));
        Ok(token)
    }
}
