//! With what datastores are reached.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Source;
use crate::id::SecretVersion;

/// A text that opens something: a key, a token, a password.
///
/// **Invariant:** it is never printed, and never written in any format: there is neither `Display` nor
/// `Serialize`, and `Debug` shows that it is there. Its memory is cleared when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text as it is.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for whoever uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// With what a datastore is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// Nothing: the daemon is known by its environment or its machine.
    None,
    /// Nothing, and requests are not signed: everybody may read.
    Anonymous,
    /// An Azure storage account's key.
    AccountKey(Secret),
    /// An Azure shared access signature.
    SasToken(Secret),
    /// A service principal of Azure (Entra), by its secret or its certificate.
    ServicePrincipal(ServicePrincipal),
    /// Keys of S3.
    S3Keys {
        /// The public half.
        access_key_id: String,
        /// The other.
        secret_access_key: Secret,
        /// Of keys that end.
        session_token: Option<Secret>,
    },
    /// The JSON key of a service account of Google.
    ServiceAccount(Secret),
}

/// A service principal of Azure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePrincipal {
    /// The directory that knows it.
    pub tenant_id: String,
    /// Which.
    pub client_id: String,
    /// How it proves who it is.
    pub proof: Proof,
    /// Who is asked for tokens; `None`: Azure's public cloud.
    pub authority_url: Option<String>,
    /// For what tokens are asked; `None`: Azure storage.
    pub resource_url: Option<String>,
}

/// How a service principal proves who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// By a secret.
    ClientSecret(Secret),
    /// By a certificate.
    Certificate {
        /// With its private key, in PEM.
        certificate: Secret,
        /// The certificate's SHA-1 digest, in hexadecimal digits.
        thumbprint: String,
    },
}

/// What kind of credentials there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// An Azure storage account's key.
    AccountKey,
    /// An Azure shared access signature.
    SasToken,
    /// A service principal of Azure.
    ServicePrincipal,
    /// Keys of S3.
    AccessKey,
    /// A service account of Google.
    ServiceAccount,
}

/// What is known of a datastore's credentials; the vault has the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptCredentials {
    /// None: the daemon is known by its environment or its machine.
    #[default]
    None,
    /// None, and requests are not signed.
    Anonymous,
    /// In the vault.
    Sealed {
        /// Of which kind.
        kind: CredentialKind,
        /// Which of those that the datastore has had.
        version: SecretVersion,
    },
}

impl KeptCredentials {
    /// Whether there are none.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The word for their kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Anonymous => "anonymous",
            Self::Sealed { kind, .. } => match kind {
                CredentialKind::AccountKey => "account_key",
                CredentialKind::SasToken => "sas_token",
                CredentialKind::ServicePrincipal => "service_principal",
                CredentialKind::AccessKey => "access_key",
                CredentialKind::ServiceAccount => "service_account",
            },
        }
    }
}

/// What cannot be a credential, without anything of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("credentials.{field}: {problem}; {help}")]
pub struct Malformed {
    /// Which.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
    /// What to do.
    pub help: &'static str,
}

impl Malformed {
    const fn new(field: &'static str, problem: &'static str, help: &'static str) -> Self {
        Self { field, problem, help }
    }
}

/// Digits of a certificate's SHA-1 digest.
const THUMBPRINT: usize = 40;

fn account_key(key: &str) -> Option<Malformed> {
    let is_key = STANDARD.decode(key).map(Zeroizing::new).is_ok_and(|bytes| !bytes.is_empty());
    (!is_key).then_some(Malformed::new(
        "account_key",
        "it is not Base64, as the key of a storage account is",
        "copy the key whole, without blanks (az storage account keys list)",
    ))
}

fn sas_token(token: &str) -> Option<Malformed> {
    let token = token.strip_prefix('?').unwrap_or(token);
    let parts = || token.split('&').filter(|part| !part.is_empty());
    // The whole address would be taken for a part of it, and never open anything.
    let is_address = token.contains('?') || token.contains("://");
    let is_signed =
        parts().any(|part| part.strip_prefix("sig=").is_some_and(|sig| !sig.is_empty()));
    (token.contains(char::is_whitespace)
        || is_address
        || !is_signed
        || !parts().all(|part| part.contains('=')))
    .then_some(Malformed::new(
        "sas_token",
        "it is no shared access signature",
        "copy what follows the '?' of the signed address, as sv=…&sig=…",
    ))
}

fn service_account(key: &str) -> Option<Malformed> {
    const COPY: &str = "copy the file that Google gave out for the account whole";
    let fault = |problem| Some(Malformed::new("service_account", problem, COPY));
    let Ok(serde_json::Value::Object(key)) = serde_json::from_str(key) else {
        return fault("it is not the JSON of a key");
    };
    let text = |name: &str| key.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    if ["client_email", "private_key_id"].into_iter().any(|name| text(name).is_empty()) {
        return fault("it has no client_email, or no private_key_id");
    }
    match has_pem(text("private_key"), "PRIVATE KEY") {
        true => None,
        false => fault("its private_key is not in PEM (-----BEGIN PRIVATE KEY-----)"),
    }
}

/// Whether there is a block of PEM whose label ends so, with something in it.
fn has_pem(text: &str, label: &str) -> bool {
    text.split("-----BEGIN ").skip(1).any(|rest| {
        let Some((found, rest)) = rest.split_once("-----") else { return false };
        let body = rest.split_once("-----END ").map_or("", |(body, _)| body).trim();
        found.ends_with(label) && !body.is_empty()
    })
}

fn certificate(pem: &str, thumbprint: &str) -> Option<Malformed> {
    const PEM: &str = "give a PEM file with the certificate and its private key, not encrypted";
    let fault = |problem| Some(Malformed::new("certificate", problem, PEM));
    if !has_pem(pem, "CERTIFICATE") {
        return fault("there is no certificate in it, in PEM (-----BEGIN CERTIFICATE-----)");
    }
    if !has_pem(pem, "PRIVATE KEY") {
        return fault("there is no private key in it, in PEM (-----BEGIN PRIVATE KEY-----)");
    }
    if has_pem(pem, "ENCRYPTED PRIVATE KEY") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        return fault("its private key is encrypted, and there is nobody to ask for the password");
    }
    // As people write them there may be colons or blanks in between.
    let digits = thumbprint.chars().filter(char::is_ascii_hexdigit).count();
    (digits != THUMBPRINT).then_some(Malformed::new(
        "thumbprint",
        "it does not have the 40 hexadecimal digits of a SHA-1 digest",
        "copy it from the certificate's page, or from openssl x509 -noout -fingerprint -sha1",
    ))
}

fn s3_keys(id: &str, key: &str, token: Option<&str>) -> Option<Malformed> {
    let parts =
        [("access_key_id", Some(id)), ("secret_access_key", Some(key)), ("session_token", token)];
    let unfit = |text: &str| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic());
    let (field, _) = parts.into_iter().find(|(_, text)| text.is_some_and(unfit))?;
    Some(Malformed::new(
        field,
        "it is empty, or has a blank, a line end or another character that no such key has",
        "copy it whole and nothing beside it",
    ))
}

impl Credentials {
    /// What of them cannot be what it is said to be, as far as its form tells; `None`: nothing.
    pub fn malformed(&self) -> Option<Malformed> {
        match self {
            Self::None | Self::Anonymous => None,
            Self::AccountKey(key) => account_key(key.reveal()),
            Self::SasToken(token) => sas_token(token.reveal()),
            Self::ServicePrincipal(ServicePrincipal { proof, .. }) => match proof {
                Proof::ClientSecret(_) => None,
                Proof::Certificate { certificate: pem, thumbprint } => {
                    certificate(pem.reveal(), thumbprint)
                }
            },
            Self::S3Keys { access_key_id, secret_access_key, session_token } => {
                let token = session_token.as_ref().map(Secret::reveal);
                s3_keys(access_key_id, secret_access_key.reveal(), token)
            }
            Self::ServiceAccount(key) => service_account(key.reveal()),
        }
    }

    /// The kind of what is to be sealed; `None`: nothing is.
    pub const fn sealed_kind(&self) -> Option<CredentialKind> {
        Some(match self {
            Self::None | Self::Anonymous => return None,
            Self::AccountKey(_) => CredentialKind::AccountKey,
            Self::SasToken(_) => CredentialKind::SasToken,
            Self::ServicePrincipal(_) => CredentialKind::ServicePrincipal,
            Self::S3Keys { .. } => CredentialKind::AccessKey,
            Self::ServiceAccount(_) => CredentialKind::ServiceAccount,
        })
    }

    /// Why they do not open data of this kind; `None`: they may.
    pub fn misfit(&self, source: &Source) -> Option<&'static str> {
        let fits = match (self, source) {
            (Self::None, _) => true,
            (Self::Anonymous, source) => {
                matches!(source, Source::AzureBlob(_) | Source::S3 { .. } | Source::Gcs { .. })
            }
            (Self::AccountKey(_) | Self::SasToken(_), Source::OneLake(_)) => {
                return Some("a lakehouse is opened by a service principal alone");
            }
            (Self::AccountKey(_) | Self::SasToken(_), source) => {
                matches!(
                    source,
                    Source::AzureBlob(_) | Source::AzureDataLakeGen2(_) | Source::AzureFile(_)
                )
            }
            (Self::ServicePrincipal(_), source) => matches!(
                source,
                Source::AzureBlob(_)
                    | Source::AzureDataLakeGen2(_)
                    | Source::AzureFile(_)
                    | Source::OneLake(_)
            ),
            (Self::S3Keys { .. }, source) => matches!(source, Source::S3 { .. }),
            (Self::ServiceAccount(_), source) => matches!(source, Source::Gcs { .. }),
        };
        (!fits).then_some(
            "these credentials are not for data of this type; see 'atelier schema datastore'",
        )
    }
}
