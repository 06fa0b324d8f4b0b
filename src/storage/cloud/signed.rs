//! Addresses by which somebody who has no credentials reads from the store itself, or writes to it.
//!
//! An address is for one object or for one part of one upload, and for a short while; nobody can take it back.
//! Objects are read by it. What is written by it is a part of an upload that the daemon has begun, and so seen by
//! nobody until the daemon completes the upload: S3 and Google sign a part as such, and for Azure see [`super::staged`].
//! Some servers of S3 also do what a header says that nobody has signed, and make the part a copy of any object that
//! the credentials may read: that is tried first, and they have none for writing.

use std::time::{Duration, Instant};

use atelier_core::datastore::{Credentials, Source};
use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;
use http::header::CONTENT_LENGTH;
use object_store::azure::MicrosoftAzure;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};

use super::client::Client;
use super::{Cloud, quoted};
use crate::storage::{Completed, Error, ObjectPath, Signed, Still};

/// For how long a store that failed to sign is not asked again.
const UNSIGNED: Duration = Duration::from_secs(600);
/// How long it is tried what an address allows.
const TRIED: Duration = Duration::from_secs(20);
/// Addresses that are signed at once, where somebody else is asked to sign.
const AT_ONCE: usize = 16;

/// Whether who has these credentials can give away a part of what they allow.
pub(super) fn can_sign(credentials: &Credentials) -> bool {
    !matches!(credentials, Credentials::Anonymous | Credentials::SasToken(_))
}

impl Client {
    fn signer(&self) -> Option<&dyn Signer> {
        match self {
            Self::S3(store) => Some(store),
            Self::Azure(store) => Some(store),
            Self::Gcs(store) => Some(store),
            Self::Http(_) | Self::AzureFile(_) => None,
        }
    }

    fn parts(&self) -> Option<Parts<'_>> {
        match self {
            Self::S3(store) => Some(Parts::Signed(store, store)),
            Self::Gcs(store) => Some(Parts::Signed(store, store)),
            Self::Azure(store) => Some(Parts::Staged(store)),
            Self::Http(_) | Self::AzureFile(_) => None,
        }
    }
}

/// How parts are written by addresses.
enum Parts<'a> {
    /// Each is signed alone.
    Signed(&'a dyn MultipartStore, &'a dyn Signer),
    /// Beside the object.
    Staged(&'a MicrosoftAzure),
}

impl Cloud {
    /// One for each object, which need not be there. `None`: this store gives none.
    pub(in crate::storage) async fn sign_reads(
        &self,
        paths: &[ObjectPath],
        lasting: Duration,
    ) -> Result<Option<Vec<Signed>>, Error> {
        let (client, signs) = self.made().await?;
        let Some(signer) = client.signer().filter(|_| *signs && self.tries()) else {
            return Ok(None);
        };
        let keys = paths.iter().map(|path| self.key(path)).collect::<Result<Vec<_>, _>>()?;
        let sign = |key| async move {
            let signed = signer.signed_url(Method::GET, &key, lasting).await;
            signed.map(|url| Signed { url: url.into() })
        };
        let all = match client {
            // With one key for all of them.
            Client::Azure(store) => {
                let urls = store.signed_urls(Method::GET, &keys, lasting).await;
                urls.map(|urls| urls.into_iter().map(|url| Signed { url: url.into() }).collect())
            }
            _ => futures::stream::iter(keys).map(sign).buffered(AT_ONCE).try_collect().await,
        };
        Ok(self.signed(all))
    }

    /// Whether what is written by addresses is copied when it is complete.
    pub(in crate::storage) fn copies_parts(&self) -> bool {
        matches!(&self.inner.source, Source::AzureBlob(_) | Source::AzureDataLakeGen2(_))
    }

    /// Begins an upload to be written by addresses; its id. `None`: this store gives none.
    pub(in crate::storage) async fn begin_parts(
        &self,
        path: &ObjectPath,
    ) -> Result<Option<String>, Error> {
        self.check_writable()?;
        let (client, signs) = self.made().await?;
        let (Some(parts), Some(signer)) = (client.parts(), client.signer()) else {
            return Ok(None);
        };
        if !signs || !self.tries() {
            return Ok(None);
        }
        let key = self.key(path)?;
        // Before anything is begun: who cannot sign has nothing to give up.
        let tried = signer.signed_url(Method::GET, &key, Duration::from_secs(1)).await;
        if self.signed(tried).is_none() {
            return Ok(None);
        }
        let store = match parts {
            Parts::Signed(store, _) => store,
            Parts::Staged(store) => return self.begin_staged(store, path).await,
        };
        let begun = store.create_multipart(&key).await;
        let upload = begun.map_err(|error| self.problem("write", path.as_str(), error))?;
        let keeps_to_parts = || self.keeps_to_parts(signer, &key, &upload);
        let kept = self.inner.keeps_to_parts.get_or_try_init(keeps_to_parts).await;
        if kept.is_ok_and(|kept| *kept) {
            return Ok(Some(upload));
        }
        let _ = store.abort_multipart(&key, &upload).await;
        Ok(None)
    }

    /// Whether an address for a part lets nobody write anything else. Asked of an upload that has begun: that its
    /// first part become a copy of what is not there.
    async fn keeps_to_parts(
        &self,
        signer: &dyn Signer,
        key: &Path,
        upload: &str,
    ) -> Result<bool, ()> {
        if matches!(&self.inner.source, Source::S3 { endpoint: None, .. }) {
            // Amazon takes no header of its own that is not signed.
            return Ok(true);
        }
        let options = SignedUrlOptions::new()
            .with_query([("partNumber", "1".to_owned()), ("uploadId", upload.to_owned())]);
        let url = signer.signed_url_opts(Method::PUT, key, TRIED, &options).await.map_err(drop)?;
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TRIED)
            .build()
            .map_err(drop)?;
        let (Source::S3 { bucket, .. } | Source::Gcs { bucket, .. }) = &self.inner.source else {
            return Ok(false);
        };
        let nothing = format!("/{bucket}/atelier-is-not-there");
        let tried = ["x-amz-copy-source", "x-goog-copy-source"];
        let request = tried
            .iter()
            .fold(client.put(url.as_str()), |request, header| request.header(*header, &nothing));
        let status = request.header(CONTENT_LENGTH, 0).send().await.map_err(drop)?.status();
        // Refused, or not understood and taken for an empty part.
        let keeps = matches!(status.as_u16(), 200 | 403);
        if !keeps && !status.is_server_error() {
            tracing::warn!(
                datastore = %self.inner.name,
                %status,
                "the store does what unsigned headers say: what nodes write goes through the daemon"
            );
        }
        if status.is_server_error() { Err(()) } else { Ok(keeps) }
    }

    /// By which parts of an upload are written; the first part is number 1.
    pub(in crate::storage) async fn sign_parts(
        &self,
        path: &ObjectPath,
        upload: &str,
        parts: std::ops::Range<u32>,
        lasting: Duration,
    ) -> Result<Vec<Signed>, Error> {
        let (client, key) = (self.client().await?, self.key(path)?);
        let signer = match client.parts() {
            Some(Parts::Signed(_, signer)) => signer,
            Some(Parts::Staged(store)) => {
                return self.sign_staged(store, path, upload, parts, lasting).await;
            }
            None => return Err(self.unsupported("the store signs no parts of uploads")),
        };
        let sign = |number: u32| {
            let options = SignedUrlOptions::new()
                .with_query([("partNumber", number.to_string()), ("uploadId", upload.to_owned())]);
            let key = &key;
            async move {
                let signed = signer.signed_url_opts(Method::PUT, key, lasting, &options).await;
                signed.map(|url| Signed { url: url.into() })
            }
        };
        let all = futures::stream::iter(parts).map(sign).buffered(AT_ONCE).try_collect().await;
        all.map_err(|error| self.problem("write", path.as_str(), error))
    }

    /// Makes an upload's parts an object, of which the store has said these tags, in their order.
    pub(in crate::storage) async fn complete_parts(
        &self,
        path: &ObjectPath,
        upload: &str,
        tags: Vec<String>,
        still: &Still,
    ) -> Result<Completed, Error> {
        let (stored, is_clean) = match self.client().await?.parts() {
            Some(Parts::Signed(..)) => {
                let id = |content_id| PartId { content_id };
                let parts: Vec<_> = tags.into_iter().map(id).collect();
                (self.complete(path, upload, &parts, still).await?, true)
            }
            Some(Parts::Staged(store)) => {
                self.complete_staged(store, path, upload, tags.len(), still).await?
            }
            None => return Err(self.unsupported("the store signs no parts of uploads")),
        };
        match stored {
            Some(tag) => Ok(Completed { tag: quoted(&tag), is_clean }),
            None => Ok(Completed { tag: self.head(path).await?.etag, is_clean }),
        }
    }

    /// Gives an upload up: its parts are gone. One that is gone already is no error.
    pub(in crate::storage) async fn abort_parts(
        &self,
        path: &ObjectPath,
        upload: &str,
    ) -> Result<(), Error> {
        let (client, key) = (self.client().await?, self.key(path)?);
        let store = match client.parts() {
            Some(Parts::Signed(store, _)) => store,
            Some(Parts::Staged(store)) => return self.abort_staged(store, path, upload).await,
            None => return Ok(()),
        };
        match store.abort_multipart(&key, &upload.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.problem("write", path.as_str(), error)),
        }
    }

    /// Whether it has not failed just now.
    fn tries(&self) -> bool {
        let failed = *self.unsigned();
        failed.is_none_or(|at| at.elapsed() >= UNSIGNED)
    }

    /// What was signed; of a failure that it is not tried for a while.
    fn signed<T>(&self, result: Result<T, object_store::Error>) -> Option<T> {
        match result {
            Ok(signed) => Some(signed),
            Err(error) => {
                let problem = self.problem("read", "", error);
                tracing::warn!(%problem, "no addresses can be signed: data goes through the daemon");
                *self.unsigned() = Some(Instant::now());
                None
            }
        }
    }
}

#[cfg(test)]
impl Cloud {
    pub(in crate::storage) fn keeping_to_parts(&self) {
        let _ = self.inner.keeps_to_parts.set(true);
    }
}
