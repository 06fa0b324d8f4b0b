//! A datastore in an object store: S3, Azure Blob Storage, Azure Files, Google Cloud Storage, or the
//! files of a web server.
//!
//! The stores' own rules hold: an object is there as a whole once its upload is completed, and a later one
//! replaces it. Reads are of one version, by its tag. Requests are tried again for a while ([`client::PATIENT`]); who
//! asked is then told that the store is away, and may ask again.

mod azure_file;
mod beside;
mod client;
mod copy;
mod entra;
mod list;
mod listing;
mod problem;
mod public;
mod read;
mod signed;
mod split;
mod staged;
#[cfg(test)]
pub(super) mod tests;
mod upload;
mod walk;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atelier_core::datastore::{Credentials, PublicBucket, PublicServers, Source, Unnamed};
use atelier_core::egress::Egress;
use atelier_core::id::DatastoreName;
use atelier_core::time::Timestamp;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::sync::OnceCell;

use self::client::Client;
pub(crate) use self::client::PATIENCE;
use self::problem::Told;
use self::public::Whose;
pub(super) use self::read::OpenObject;
use super::folder::blocking;
use super::{Error, Meta, ObjectPath, Page, Still};

/// Opens a datastore's credentials, each time it is called.
pub type Unlock = Arc<dyn Fn() -> Result<Credentials, String> + Send + Sync>;

/// The longest key, in bytes, of all that are served.
const MAX_KEY: usize = 1024;

/// Objects that are deleted at once, as many as S3 tells with one answer.
const DELETED: usize = 1000;

/// How datastores that were made are given other credentials.
const MADE: &str = "with 'atelier datastore update'";
/// The same of the workspace's own.
const OWN: &str = "in the file that the daemon's --storage names, and restart it";

/// A datastore of an object store. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cloud {
    inner: Arc<Inner>,
}

struct Inner {
    name: DatastoreName,
    source: Source,
    /// What all keys start with, without a `/` at its end.
    prefix: Option<String>,
    unlock: Unlock,
    /// Opened with the first request and not before, for all that are made of this one.
    credentials: Arc<std::sync::OnceLock<Credentials>>,
    /// How it is given other credentials.
    other_keys: &'static str,
    /// Who says where it lies.
    whose: Whose,
    /// Made with the first request.
    client: OnceCell<(Client, Signs)>,
    /// Whether by an address for a part nothing else can be written, or, of Azure's, whether blocks are copied; looked
    /// at once.
    keeps_to_parts: OnceCell<bool>,
    /// The same, which tries nothing again.
    once: OnceCell<(Client, Signs)>,
    retries: client::Retries,
    /// When addresses could not be signed.
    unsigned: Mutex<Option<Instant>>,
}

/// Whether the credentials are such that addresses can be signed with them.
type Signs = bool;

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud").field("source", &self.inner.source).finish_non_exhaustive()
    }
}

impl Inner {
    fn of(
        name: DatastoreName,
        source: Source,
        prefix: Option<String>,
        unlock: Unlock,
        other_keys: &'static str,
    ) -> Self {
        let (retries, unsigned) = (client::PATIENT, Mutex::default());
        let (credentials, client, once, keeps_to_parts) = Default::default();
        Self {
            name,
            source,
            prefix,
            unlock,
            credentials,
            other_keys,
            whose: Whose::Admin,
            client,
            once,
            keeps_to_parts,
            retries,
            unsigned,
        }
    }
}

impl Cloud {
    pub(super) fn new(name: DatastoreName, source: Source, unlock: Unlock) -> Self {
        let prefix = given_prefix(&source);
        Self::with(name, source, prefix, unlock, MADE)
    }

    /// A bucket of public storage, at its cloud or the server in its place; `None`: it has no name.
    pub(super) fn public(
        bucket: PublicBucket,
        servers: &PublicServers,
        egress: Arc<Egress>,
    ) -> Option<Self> {
        let (name, source) = (bucket.name()?, bucket.source(servers));
        let mut inner =
            Inner::of(name, source, None, Arc::new(|| Ok(Credentials::Anonymous)), MADE);
        inner.whose = Whose::User(bucket, egress);
        Some(Self { inner: Arc::new(inner) })
    }

    /// The place of the workspace's own data, or a folder of it.
    pub(super) fn own(
        name: DatastoreName,
        source: Source,
        folder: Option<&str>,
        unlock: Unlock,
    ) -> Self {
        let folder = folder.map(str::to_owned);
        let parts: Vec<String> = given_prefix(&source).into_iter().chain(folder).collect();
        let prefix = (!parts.is_empty()).then(|| parts.join("/"));
        Self::with(name, source, prefix, unlock, OWN)
    }

    fn with(
        name: DatastoreName,
        source: Source,
        prefix: Option<String>,
        unlock: Unlock,
        other_keys: &'static str,
    ) -> Self {
        Self { inner: Arc::new(Inner::of(name, source, prefix, unlock, other_keys)) }
    }

    /// The same, for somebody who waits for an answer.
    pub(super) fn hasty(&self) -> Self {
        self.retrying(client::HASTY)
    }

    /// The same, whose requests are tried again for this long.
    pub(super) fn lasting(&self, within: Duration) -> Self {
        self.retrying(client::Retries { within, ..client::PATIENT })
    }

    fn retrying(&self, retries: client::Retries) -> Self {
        let Inner { name, source, prefix, unlock, credentials, other_keys, whose, .. } =
            &*self.inner;
        let inner = Inner {
            name: name.clone(),
            source: source.clone(),
            prefix: prefix.clone(),
            unlock: unlock.clone(),
            credentials: credentials.clone(),
            other_keys,
            whose: whose.clone(),
            client: OnceCell::new(),
            keeps_to_parts: OnceCell::new(),
            once: OnceCell::new(),
            retries,
            unsigned: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The word for what kind of store it is.
    pub(super) fn kind(&self) -> &'static str {
        self.inner.source.kind()
    }

    async fn client(&self) -> Result<&Client, Error> {
        Ok(&self.made().await?.0)
    }

    fn unsigned(&self) -> MutexGuard<'_, Option<Instant>> {
        self.inner.unsigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn made(&self) -> Result<&(Client, Signs), Error> {
        self.inner.client.get_or_try_init(|| self.make(self.inner.retries)).await
    }

    /// The client of requests of which each try is asked for.
    async fn once(&self) -> Result<&Client, Error> {
        Ok(&self.inner.once.get_or_try_init(|| self.make(client::ONCE)).await?.0)
    }

    async fn make(&self, retries: client::Retries) -> Result<(Client, Signs), Error> {
        let (cloud, inner) = (self.clone(), self.inner.clone());
        blocking(move || {
            let datastore = || inner.name.clone();
            let away = |problem| Error::Away { datastore: datastore(), problem };
            let credentials = match inner.credentials.get() {
                Some(opened) => opened.clone(),
                None => {
                    let opened = (inner.unlock)().map_err(away)?;
                    inner.credentials.get_or_init(|| opened).clone()
                }
            };
            // No other try makes them others.
            let unfit = |problem| Error::Unsupported { datastore: datastore(), problem };
            // Fabric's addresses were never tried.
            let is_fabric = matches!(inner.source, Source::OneLake(_));
            let signs = signed::can_sign(&credentials) && !is_fabric;
            // On a thread that may wait.
            let located = cloud.located(&credentials, retries);
            let source = tokio::runtime::Handle::current().block_on(located)?;
            let made = Client::new(&source, credentials, retries, inner.whose.connects());
            let made =
                made.map_err(|why| unfit(format!("{why}; give others {}", inner.other_keys)))?;
            Ok((made, signs))
        })
        .await
    }

    async fn store(&self) -> Result<&dyn ObjectStore, Error> {
        Ok(self.client().await?.store())
    }

    fn prefix(&self) -> Option<&str> {
        self.inner.prefix.as_deref()
    }

    /// The key of an object, which is taken as it is: nothing of it is encoded or left out.
    fn key(&self, path: &ObjectPath) -> Result<Path, Error> {
        let key = match self.prefix() {
            Some(prefix) => format!("{prefix}/{path}"),
            None => path.to_string(),
        };
        let refused = |problem: String| Error::Unsupported {
            datastore: self.inner.name.clone(),
            problem: format!(
                "'{}' cannot be a name there: {problem}",
                path.as_str().escape_debug()
            ),
        };
        if key.len() > MAX_KEY {
            return Err(refused(format!("with the prefix it has more than {MAX_KEY} bytes")));
        }
        if let Some(why) = azure_file::unfit(&key).filter(|_| self.is_share()) {
            return Err(refused(why));
        }
        if self.hides_uploads() && key.split('/').any(beside::is_upload) {
            return Err(refused(format!(
                "names that begin with '{}' are of uploads under way",
                beside::UPLOAD
            )));
        }
        Path::parse(&key).map_err(|_| refused("it has control characters".to_owned()))
    }

    /// Whether what is being written there lies beside its place until it is complete.
    fn hides_uploads(&self) -> bool {
        self.is_share() || self.copies_parts()
    }

    /// Whether nothing can be written there.
    fn check_writable(&self) -> Result<(), Error> {
        match (&self.inner.whose, self.inner.source.is_read_only()) {
            (Whose::User(..), _) => Err(self.unsupported("public storage can only be read")),
            (_, true) => Err(self.unsupported("the files of a web server can only be read")),
            _ => Ok(()),
        }
    }

    /// Whether its folders may be objects of their own.
    fn is_lake(&self) -> bool {
        matches!(self.inner.source, Source::AzureDataLakeGen2(_) | Source::OneLake(_))
    }

    /// Whether it is a file system, whose folders are there with nothing in them.
    fn is_share(&self) -> bool {
        matches!(self.inner.source, Source::AzureFile(_))
    }

    fn unsupported(&self, problem: impl Into<String>) -> Error {
        Error::Unsupported { datastore: self.inner.name.clone(), problem: problem.into() }
    }

    pub(super) async fn head(&self, path: &ObjectPath) -> Result<Meta, Error> {
        Ok(meta_of(&self.look(path).await?))
    }

    async fn look(&self, path: &ObjectPath) -> Result<ObjectMeta, Error> {
        let (store, key) = (self.store().await?, self.key(path)?);
        match store.head(&key).await {
            Ok(meta) => Ok(meta),
            Err(error) => {
                // An answer without a body says neither whether the whole bucket is missing nor why somebody may
                // not.
                if Told::is_bare(&error) {
                    self.check_there().await?;
                }
                Err(self.problem("read", path.as_str(), error))
            }
        }
    }

    pub(super) async fn open(&self, path: &ObjectPath) -> Result<OpenObject, Error> {
        let meta = self.look(path).await?;
        Ok(OpenObject { cloud: self.clone(), path: path.clone(), meta })
    }

    pub(super) async fn put_stream<S, E>(
        &self,
        path: &ObjectPath,
        bytes: S,
        still: &Still,
    ) -> Result<Meta, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.check_writable()?;
        let (size, etag) = self.upload(path, bytes, still).await?;
        match etag {
            // The store does not say when; to ask it would be another request for each object.
            Some(etag) => Ok(Meta { size, etag: quoted(&etag), modified: now() }),
            None => self.head(path).await,
        }
    }

    pub(super) async fn list(
        &self,
        folder: Option<&ObjectPath>,
        after: &str,
        limit: usize,
    ) -> Result<Page, Error> {
        match self.inner.source {
            Source::Http { .. } => self.list_one(folder, after).await,
            _ => self.list_page(folder, after, limit).await,
        }
    }

    /// Removes an object alone.
    pub(super) async fn delete_object(&self, path: &ObjectPath) -> Result<(), Error> {
        self.check_writable()?;
        // Some stores delete what is not there.
        self.look(path).await?;
        let (store, key) = (self.store().await?, self.key(path)?);
        store.delete(&key).await.map_err(|error| self.problem("delete", path.as_str(), error))
    }

    /// Removes an object and those below it, many with one request where the store can. What stays.
    pub(super) async fn delete(&self, path: &ObjectPath) -> Result<Unnamed, Error> {
        self.check_writable()?;
        let (store, key) = (self.store().await?, self.key(path)?);
        if self.is_lake() || self.is_share() {
            return self.delete_tree(&key).await;
        }
        let (below, mut keys) = (format!("{key}/"), vec![key]);
        let (mut from, mut stays) = (None, Unnamed::default());
        loop {
            let page = self.names(Some(&below), None, None, DELETED, from).await?;
            keys.extend(self.that_go(&page.objects, &mut stays));
            let some = futures::stream::iter(keys.drain(..).map(Ok).collect::<Vec<_>>());
            let mut deleted = store.delete_stream(some.boxed());
            while let Some(gone) = deleted.next().await {
                match gone {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(self.problem("delete", path.as_str(), error)),
                }
            }
            match page.next {
                Some(next) => from = Some(next),
                None => return Ok(stays),
            }
        }
    }

    /// Whether there is an answer at all. Of a web server, whatever it says.
    pub(super) async fn reach(&self) -> Result<(), Error> {
        match self.store().await?.head(&Path::default()).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) if Told::is_answer(&error) => Ok(()),
            Err(error) => Err(self.problem("read", "the root", error)),
        }
    }

    /// Whether it can be read and nothing else, whoever asks.
    pub(super) fn is_read_only(&self) -> bool {
        self.inner.source.is_read_only()
    }
}

/// A key as the library takes it, if it takes it as it is.
fn exact(key: &str) -> Option<Path> {
    Path::parse(key).ok().filter(|path| AsRef::<str>::as_ref(path) == key && !key.is_empty())
}

/// What all keys start with, as its author wrote it.
fn given_prefix(source: &Source) -> Option<String> {
    match source {
        Source::S3 { prefix, .. } | Source::Gcs { prefix, .. } => prefix.clone(),
        Source::OneLake(lake) => Some(lake.root()),
        _ => None,
    }
}

fn meta_of(meta: &ObjectMeta) -> Meta {
    let etag = match &meta.e_tag {
        Some(tag) => quoted(tag),
        // A web server need not give one.
        None => format!("\"{:x}-{:x}\"", meta.last_modified.timestamp_millis(), meta.size),
    };
    Meta { size: meta.size, etag, modified: modified(meta) }
}

fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

fn modified(meta: &ObjectMeta) -> Timestamp {
    Timestamp::from_millis(meta.last_modified.timestamp_millis())
}

/// Listings give tags without their quotes, of some stores.
fn quoted(tag: &str) -> String {
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    match tag.starts_with('"') {
        true => tag.to_owned(),
        false => format!("\"{tag}\""),
    }
}
