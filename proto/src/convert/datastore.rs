//! Datastores as they are made, and with what they are reached.

use std::fmt;

use atelier_core::datastore::{
    AzureStorage, Credentials, Draft, FolderKind, FolderSource, OneLake, Proof, Secret,
    ServicePrincipal, Source,
};
use atelier_core::id::DatastoreName;
use atelier_core::spec::limits::{MAX_DESCRIPTION, MAX_ENTRIES, MAX_VALUE};

use super::{Error, OfField as _, text, within};
use crate::workspace::v1 as pb;
use pb::datastore_credentials::Kind;
use pb::datastore_draft::Source as Sent;

/// The longest credentials, in bytes of each part.
const MAX_SECRET: usize = 25 << 10;

impl From<&Draft> for pb::DatastoreDraft {
    fn from(draft: &Draft) -> Self {
        Self {
            name: draft.name.to_string(),
            description: draft.description.clone().unwrap_or_default(),
            tags: draft.tags.clone(),
            properties: draft.properties.clone(),
            source: Some(sent(&draft.source)),
        }
    }
}

fn sent(source: &Source) -> Sent {
    match source.clone() {
        Source::Folder(FolderSource { kind: FolderKind::Local, path }) => {
            Sent::Local(pb::LocalFolder { path })
        }
        Source::Folder(FolderSource { kind: FolderKind::Nfs, path }) => {
            Sent::Nfs(pb::NfsFolder { path })
        }
        Source::AzureBlob(azure) => Sent::AzureBlob(container(azure)),
        Source::AzureDataLakeGen2(azure) => Sent::AzureDataLakeGen2(container(azure)),
        Source::S3 { bucket, endpoint, region, prefix, path_style } => Sent::S3(pb::S3Bucket {
            bucket,
            endpoint: endpoint.unwrap_or_default(),
            region: region.unwrap_or_default(),
            prefix: prefix.unwrap_or_default(),
            path_style,
        }),
        Source::Gcs { bucket, prefix } => {
            Sent::Gcs(pb::GcsBucket { bucket, prefix: prefix.unwrap_or_default() })
        }
        Source::Http { url } => Sent::Http(pb::HttpFiles { url }),
        Source::OneLake(OneLake { workspace, lakehouse, endpoint }) => Sent::OneLake(pb::OneLake {
            workspace,
            lakehouse,
            endpoint: endpoint.unwrap_or_default(),
        }),
        Source::AzureFile(azure) => Sent::AzureFile(container(azure)),
    }
}

fn container(azure: AzureStorage) -> pb::AzureContainer {
    let AzureStorage { account_name, container, endpoint, protocol } = azure;
    pb::AzureContainer { account_name, container, endpoint, protocol }
}

/// Where the data of a datastore lies that is not a folder, as it is told.
pub fn shown_source(source: &Source) -> Option<pb::datastore::Source> {
    use pb::datastore::Source as Shown;
    Some(match sent(source) {
        Sent::Local(_) | Sent::Nfs(_) => return None,
        Sent::AzureBlob(container) => Shown::AzureBlob(container),
        Sent::AzureDataLakeGen2(container) => Shown::AzureDataLakeGen2(container),
        Sent::S3(bucket) => Shown::S3(bucket),
        Sent::Gcs(bucket) => Shown::Gcs(bucket),
        Sent::Http(files) => Shown::Http(files),
        Sent::OneLake(lake) => Shown::OneLake(lake),
        Sent::AzureFile(share) => Shown::AzureFile(share),
    })
}

/// Where the data of a datastore lies that is not a folder, from how that is told.
///
/// # Errors
/// It does not fit together.
pub fn told_source(shown: pb::datastore::Source) -> Result<Source, Error> {
    use pb::datastore::Source as Shown;
    source(match shown {
        Shown::AzureBlob(container) => Sent::AzureBlob(container),
        Shown::AzureDataLakeGen2(container) => Sent::AzureDataLakeGen2(container),
        Shown::S3(bucket) => Sent::S3(bucket),
        Shown::Gcs(bucket) => Sent::Gcs(bucket),
        Shown::Http(files) => Sent::Http(files),
        Shown::OneLake(lake) => Sent::OneLake(lake),
        Shown::AzureFile(share) => Sent::AzureFile(share),
    })
}

fn part(value: String, field: &'static str) -> Result<String, Error> {
    text(value, MAX_VALUE).of(field)
}

fn optional(value: String, field: &'static str) -> Result<Option<String>, Error> {
    Ok(Some(part(value, field)?).filter(|value| !value.is_empty()))
}

fn azure(sent: pb::AzureContainer) -> Result<AzureStorage, Error> {
    Ok(AzureStorage {
        account_name: part(sent.account_name, "account_name")?,
        container: part(sent.container, "container")?,
        endpoint: part(sent.endpoint, "endpoint")?,
        protocol: part(sent.protocol, "protocol")?,
    })
}

fn source(sent: Sent) -> Result<Source, Error> {
    let folder = |kind, path| Source::Folder(FolderSource { kind, path });
    Ok(match sent {
        Sent::Local(local) => folder(FolderKind::Local, part(local.path, "local.path")?),
        Sent::Nfs(nfs) => folder(FolderKind::Nfs, part(nfs.path, "nfs.path")?),
        Sent::AzureBlob(container) => {
            Source::AzureBlob(azure(container).map_err(|error| error.under("azure_blob"))?)
        }
        Sent::AzureDataLakeGen2(container) => Source::AzureDataLakeGen2(
            azure(container).map_err(|error| error.under("azure_data_lake_gen2"))?,
        ),
        Sent::AzureFile(share) => {
            Source::AzureFile(azure(share).map_err(|error| error.under("azure_file"))?)
        }
        Sent::S3(s3) => Source::S3 {
            bucket: part(s3.bucket, "s3.bucket")?,
            endpoint: optional(s3.endpoint, "s3.endpoint")?,
            region: optional(s3.region, "s3.region")?,
            prefix: optional(s3.prefix, "s3.prefix")?,
            path_style: s3.path_style,
        },
        Sent::Gcs(gcs) => Source::Gcs {
            bucket: part(gcs.bucket, "gcs.bucket")?,
            prefix: optional(gcs.prefix, "gcs.prefix")?,
        },
        Sent::Http(http) => Source::Http { url: part(http.url, "http.url")? },
        Sent::OneLake(lake) => Source::OneLake(OneLake {
            workspace: part(lake.workspace, "one_lake.workspace")?,
            lakehouse: part(lake.lakehouse, "one_lake.lakehouse")?,
            endpoint: optional(lake.endpoint, "one_lake.endpoint")?,
        }),
    })
}

impl TryFrom<pb::DatastoreDraft> for Draft {
    type Error = Error;
    fn try_from(draft: pb::DatastoreDraft) -> Result<Self, Error> {
        let source = source(draft.source.of("source")?)?;
        let description = text(draft.description, MAX_DESCRIPTION).of("description")?;
        for (pairs, name) in [(&draft.tags, "tags"), (&draft.properties, "properties")] {
            within(pairs.len() as u64, 0, MAX_ENTRIES as u64).of(name)?;
        }
        Ok(Self {
            name: DatastoreName::new(&draft.name).of("name")?,
            description: Some(description).filter(|text| !text.is_empty()),
            tags: draft.tags,
            properties: draft.properties,
            source,
        })
    }
}

impl From<&Credentials> for pb::DatastoreCredentials {
    fn from(credentials: &Credentials) -> Self {
        let shown = |secret: &Secret| secret.reveal().to_owned();
        let kind = match credentials {
            Credentials::None => Some(Kind::None(pb::NoCredentials {})),
            Credentials::Anonymous => Some(Kind::Anonymous(pb::NoCredentials {})),
            Credentials::AccountKey(key) => Some(Kind::AccountKey(shown(key))),
            Credentials::SasToken(token) => Some(Kind::SasToken(shown(token))),
            Credentials::ServicePrincipal(principal) => {
                let mut sent = pb::ServicePrincipal {
                    tenant_id: principal.tenant_id.clone(),
                    client_id: principal.client_id.clone(),
                    authority_url: principal.authority_url.clone().unwrap_or_default(),
                    ..pb::ServicePrincipal::default()
                };
                match &principal.proof {
                    Proof::ClientSecret(secret) => sent.client_secret = shown(secret),
                    Proof::Certificate { certificate, thumbprint } => {
                        sent.certificate = shown(certificate);
                        sent.thumbprint = thumbprint.clone();
                    }
                }
                Some(Kind::ServicePrincipal(sent))
            }
            Credentials::S3Keys { access_key_id, secret_access_key, session_token } => {
                Some(Kind::S3Keys(pb::S3Keys {
                    access_key_id: access_key_id.clone(),
                    secret_access_key: shown(secret_access_key),
                    session_token: session_token.as_ref().map(shown).unwrap_or_default(),
                }))
            }
            Credentials::ServiceAccount(key) => Some(Kind::ServiceAccount(shown(key))),
        };
        Self { kind }
    }
}

impl TryFrom<pb::DatastoreCredentials> for Credentials {
    type Error = Error;
    fn try_from(sent: pb::DatastoreCredentials) -> Result<Self, Error> {
        let secret = |value: String, field| {
            within(value.len() as u64, 1, MAX_SECRET as u64).of(field)?;
            Ok::<_, Error>(Secret::new(value))
        };
        Ok(match sent.kind.of("kind")? {
            Kind::None(_) => Self::None,
            Kind::Anonymous(_) => Self::Anonymous,
            Kind::AccountKey(key) => Self::AccountKey(secret(key, "account_key")?),
            Kind::SasToken(token) => Self::SasToken(secret(token, "sas_token")?),
            Kind::ServicePrincipal(principal) => Self::ServicePrincipal(ServicePrincipal {
                tenant_id: part(principal.tenant_id, "tenant_id")?,
                client_id: part(principal.client_id, "client_id")?,
                proof: match principal.certificate.is_empty() {
                    true => Proof::ClientSecret(secret(principal.client_secret, "client_secret")?),
                    false => Proof::Certificate {
                        certificate: secret(principal.certificate, "certificate")?,
                        thumbprint: part(principal.thumbprint, "thumbprint")?,
                    },
                },
                authority_url: optional(principal.authority_url, "authority_url")?,
                resource_url: None,
            }),
            Kind::S3Keys(keys) => Self::S3Keys {
                access_key_id: part(keys.access_key_id, "access_key_id")?,
                secret_access_key: secret(keys.secret_access_key, "secret_access_key")?,
                session_token: match keys.session_token.is_empty() {
                    true => None,
                    false => Some(secret(keys.session_token, "session_token")?),
                },
            },
            Kind::ServiceAccount(key) => Self::ServiceAccount(secret(key, "service_account")?),
        })
    }
}

/// That there is something, and nothing of what it is.
macro_rules! unseen {
    ($($Name:ty),*) => {$(
        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($Name), "(…)"))
            }
        }
    )*};
}

unseen!(pb::DatastoreCredentials, Kind, pb::ServicePrincipal, pb::S3Keys);
