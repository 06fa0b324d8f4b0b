//! Moves a job's code, inputs and outputs between storage and this node.
//!
//! A node that shares the daemon's file system links files; any other goes through the daemon's
//! gateway with the attempt's own token. **Invariant:** nothing is written outside the folder that
//! was named for it, and an object in a datastore is there whole or not at all.

mod cache;
mod code;
mod content;
mod direct;
mod error;
mod files;
mod gateway;
mod held;
mod input;
mod marks;
mod mltable;
pub(crate) mod mount;
pub(crate) mod overlay;
mod parts;
mod path;
mod room;
pub(crate) mod rw_mount;
mod store;
mod transfer;
mod upload;
mod web;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::content::manifest::ManifestEntry;
use atelier_core::egress::Egress;
use atelier_core::spec::Input;
use atelier_proto::agent::v1 as pb;
use bytes::Bytes;
use tonic::transport::Channel;

pub use error::{Error, Fault};

use cache::Cache;
pub(crate) use cache::{Held, Kind};
use content::Source;
use error::blocking;
use gateway::Gateway;
use held::HeldInputs;
pub(crate) use held::Moved;
pub(crate) use input::{Given, Places};
use rw_mount::{Known, Ledger, Mirrored};
use store::Store;
use web::Web;

use crate::reach::Closed;
use crate::trust::Trust;

/// What a data plane works with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URL of the daemon's HTTP side.
    pub http_url: String,
    /// To the daemon, for the content service.
    pub channel: Channel,
    /// The node's own token, for the content service; `None`: the channel shows who it is.
    pub token: Option<String>,
    /// Who vouches for the daemon.
    pub trust: Trust,
    /// Whether this node reads and writes the daemon's local datastores as folders.
    pub shared: bool,
    /// Where fetched content is kept. All data planes of a process with the same folder share it.
    pub cache_dir: PathBuf,
    /// Bytes kept there at most; `None`: a fifth of the file system, at most 50 GiB.
    pub cache_bytes: Option<u64>,
    /// Where jobs have no way to, and so no input comes from.
    pub(crate) closed: Arc<Closed>,
    /// Where inputs that are URLs may be fetched from; `None`: the daemon does not say.
    pub(crate) egress: Option<Arc<Egress>>,
}

/// Moves data for the attempts of a node. Cheap to clone; a new one is made when the daemon's
/// address changes.
#[derive(Clone, Debug)]
pub struct DataPlane(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: Gateway,
    web: Web,
    source: Source,
    cache: Arc<Cache>,
    held: Arc<HeldInputs>,
    shared: bool,
    flights: Flights,
    stores: Mutex<HashMap<PathBuf, Arc<Store>>>,
}

/// Lets one fetch of a thing go on at a time; who comes second finds it in the cache.
#[derive(Debug, Default)]
struct Flights(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl Flights {
    fn of(&self, thing: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&thing).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::default();
        flights.insert(thing, Arc::downgrade(&flight));
        flight
    }
}

impl DataPlane {
    /// Makes a data plane; the cache's folder is made if it does not exist.
    ///
    /// # Errors
    /// The folder cannot be made, the token is no ASCII text, or TLS cannot be set up.
    pub fn new(options: Options) -> Result<Self, Error> {
        let unready = |problem: String| Error::Gateway {
            operation: "prepare to reach",
            path: options.http_url.clone(),
            problem,
            transient: false,
            status: None,
        };
        let failed = |error: reqwest::Error| unready(error.to_string());
        let cache = Cache::open(&options.cache_dir, options.cache_bytes)?;
        Ok(Self(Arc::new(Inner {
            gateway: Gateway::new(&options.http_url, &options.trust).map_err(unready)?,
            web: Web::new(options.closed, options.egress).map_err(failed)?,
            source: Source::new(options.channel, options.token.as_deref(), Arc::clone(&cache))?,
            held: Arc::new(HeldInputs::new(Arc::clone(&cache))),
            cache,
            shared: options.shared,
            flights: Flights::default(),
            stores: Mutex::default(),
        })))
    }

    /// The code snapshot, as fresh writable files, into an existing folder.
    ///
    /// # Errors
    /// The content service cannot be reached, the snapshot does not fit together, or the node's
    /// file system fails.
    pub async fn code(&self, snapshot: Digest, into: &Path) -> Result<(), Error> {
        let flight = self.0.flights.of(snapshot);
        let _turn = flight.lock().await;
        code::materialise(&self.0.source, snapshot, into).await
    }

    /// Makes one input available below `into`, the attempt's folder of inputs; returns the text
    /// that replaces `${{inputs.NAME}}`: a path, or a URI in mode `direct`.
    ///
    /// # Errors
    /// The data is not there or not what it is declared to be (the user's fault), or it cannot be
    /// moved.
    pub async fn input(
        &self,
        name: &str,
        input: &Input,
        grant: Option<&pb::InputGrant>,
        token: &str,
        into: &Path,
    ) -> Result<String, Error> {
        let places = Places { inputs: into, mounts: None, overlays: None };
        Ok(input::provide(&self.0, name, input, grant, token, places).await?.text)
    }

    /// The same of an input that may be mounted, and then nothing of it is moved yet, or is to be merged with what the
    /// job changes ([`overlay::mount_all`]).
    pub(crate) async fn give_input(
        &self,
        name: &str,
        input: &Input,
        grant: Option<&pb::InputGrant>,
        token: &str,
        places: Places<'_>,
    ) -> Result<Given, Error> {
        input::provide(&self.0, name, input, grant, token, places).await
    }

    /// Stores a file at `to`, or a folder's files below it; returns a manifest entry for each,
    /// whose paths begin with `artifact_prefix`. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Refused`] for files that are not stored (the others are), or what failed.
    pub async fn upload(
        &self,
        from: &Path,
        to: &pb::StorePath,
        artifact_prefix: &str,
        token: &str,
    ) -> Result<Vec<ManifestEntry>, Error> {
        upload::upload(&self.0, from, to, artifact_prefix, token, None).await
    }

    /// The same of an output, of which some lies in its datastore already.
    pub(crate) async fn commit(
        &self,
        from: &Path,
        to: &pb::StorePath,
        artifact_prefix: &str,
        token: &str,
        known: Option<Known<'_>>,
    ) -> Result<Vec<ManifestEntry>, Error> {
        upload::upload(&self.0, from, to, artifact_prefix, token, known).await
    }

    /// Puts back what earlier attempts have written to an output and not committed, below `outputs`; how many
    /// files that were.
    ///
    /// # Errors
    /// It cannot be read, or written here.
    pub(crate) async fn restore(
        &self,
        output: &Mirrored,
        outputs: &Path,
        ledger: &Ledger,
        token: &str,
    ) -> Result<usize, Error> {
        rw_mount::restore(&self.0, output, outputs, ledger, token).await
    }

    /// Stores one object. Durable when it returns.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn put(&self, to: &pb::StorePath, bytes: Bytes, token: &str) -> Result<(), Error> {
        let key = path::checked(&to.path)?.to_owned();
        match self.0.store(to).await? {
            Some(store) => {
                blocking(move || store.publish(vec![(store.stage_bytes(&bytes)?, key)])).await
            }
            None => self.0.gateway.put_bytes(&to.datastore, &key, bytes, token).await,
        }
    }
}

/// A code snapshot, as fresh writable files, into an existing folder of a machine that is no node. What has come is kept
/// in `cache_dir`, so that another try goes on from there.
///
/// # Errors
/// As [`DataPlane::code`].
pub async fn fetch_code(
    channel: Channel,
    token: &str,
    cache_dir: &Path,
    snapshot: Digest,
    into: &Path,
) -> Result<(), Error> {
    let source = Source::new(channel, Some(token), Cache::open(cache_dir, None)?)?;
    code::materialise(&source, snapshot, into).await
}

impl DataPlane {
    /// Bytes of code and inputs kept at most, but for what is in use.
    pub(crate) fn cache_limit(&self) -> u64 {
        self.0.cache.limit()
    }

    /// Where they are kept.
    pub(crate) fn cache_folder(&self) -> &Path {
        self.0.cache.folder()
    }

    /// How much is kept of each of the inputs that were used last. Waits for the disk.
    pub(crate) fn held_inputs(&self) -> pb::HeldInputs {
        self.0.held.told()
    }

    /// What is kept of a kind. Waits for the disk.
    pub(crate) fn held(&self, kind: Kind) -> Held {
        self.0.cache.held(kind)
    }

    /// Removes what is kept of a kind, is not in use and was not used for `unused_for`; tells what went.
    /// Waits for the disk.
    pub(crate) fn prune(&self, kind: Kind, unused_for: Duration) -> Held {
        self.0.cache.prune(kind, unused_for)
    }
}

impl Inner {
    /// The datastore's folder, if this node shares it.
    async fn store(&self, path: &pb::StorePath) -> Result<Option<Arc<Store>>, Error> {
        if !self.shared || path.shared_root.is_empty() {
            return Ok(None);
        }
        let root = PathBuf::from(&path.shared_root);
        let known = |root: &PathBuf| {
            self.stores.lock().unwrap_or_else(PoisonError::into_inner).get(root).cloned()
        };
        if let Some(store) = known(&root) {
            return Ok(Some(store));
        }
        let at = root.clone();
        let store = blocking(move || {
            let store = Store::open(&at)?;
            store.clean();
            Ok(Arc::new(store))
        })
        .await?;
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(Arc::clone(stores.entry(root).or_insert(store))))
    }
}

#[cfg(test)]
mod tests;
