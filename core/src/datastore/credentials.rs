//! With what datastores are reached.

use std::fmt;

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

impl Credentials {
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
