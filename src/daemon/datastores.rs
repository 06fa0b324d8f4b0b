//! Datastores as people make, change, try and delete them.

use std::path::PathBuf;
use std::sync::Arc;

use atelier_core::asset::Version;
use atelier_core::audit::Actor;
use atelier_core::datastore::{
    Credentials, DatastoreRecord, Draft, Existing, KeptCredentials, Refusal, Registration, Source,
};
use atelier_core::id::{DatastoreName, JobName};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::retention::overlap;
use atelier_core::secret::SealedName;
use atelier_core::spec::{DataUri, Diagnostics, Input};
use atelier_core::time::Timestamp;
use atelier_proto::workspace::v1 as pb;
use bytes::Bytes;
use prost::Message as _;
use zeroize::Zeroizing;

use super::handle::{self, Handle};
use crate::storage::{self, Datastore, Datastores, ObjectPath, Unlock};
use crate::store::audit::Asked;
use crate::store::{self, SqliteStore, assets, datastores, retention, secrets};
use crate::vault::{self, Sealer, Vault};

/// How many assets are told of that keep a datastore from being deleted.
const SHOWN: usize = 5;

/// Makes, changes, tries and deletes datastores. Cheap to clone.
#[derive(Clone)]
pub struct DatastoreChanges {
    store: Arc<SqliteStore>,
    /// Has the credentials.
    vault: Vault,
    datastores: Datastores,
    handle: Handle,
    /// The daemon's own folder.
    data_dir: PathBuf,
    /// The workspace's id.
    workspace: Arc<str>,
    /// Held while one is changed.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Why a datastore was not made, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of datastores.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it is breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Diagnostics),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its credentials cannot be sealed or opened.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// Its folder cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The reactor could not be asked.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

/// What somebody asks a datastore to be.
#[derive(Debug)]
pub struct Wanted {
    /// All but its credentials.
    pub draft: Draft,
    /// With what it is reached; `None`: what there is stays.
    pub credentials: Option<Credentials>,
    /// Who asks.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
}

impl Wanted {
    fn check(&self) -> Result<(), Error> {
        self.draft.check()?;
        let misfit = self.credentials.as_ref().and_then(|given| given.misfit(&self.draft.source));
        match misfit {
            Some(why) => Err(Refusal::Credentials { name: self.draft.name.clone(), why }.into()),
            None => match self.credentials.as_ref().and_then(Credentials::malformed) {
                Some(fault) => {
                    Err(Refusal::Malformed { name: self.draft.name.clone(), fault }.into())
                }
                None => Ok(()),
            },
        }
    }
}

/// What was tried of a datastore, and how that went.
#[derive(Debug)]
pub struct Trial {
    /// `reach`, `list`, `write`, `read` or `delete`.
    pub operation: &'static str,
    /// Why it failed; `None`: it did not.
    pub problem: Option<String>,
}

/// What was got ready for a new datastore before its turn came.
enum Ready {
    Nothing,
    /// What seals its credentials, if there is something to seal.
    Seals(Option<Sealer>),
    /// Whether the one that there is has the same credentials, which were these.
    Compared {
        with: KeptCredentials,
        same: bool,
    },
}

impl DatastoreChanges {
    /// Takes up what was made before. No folder is looked at: a daemon starts whatever became of them.
    pub(super) fn open(
        store: Arc<SqliteStore>,
        vault: Vault,
        datastores: Datastores,
        handle: Handle,
        data_dir: PathBuf,
        workspace: &str,
    ) -> Result<Self, store::Error> {
        let (workspace, turn) = (workspace.into(), Arc::default());
        let changes = Self { store, vault, datastores, handle, data_dir, workspace, turn };
        for record in changes.store.read(datastores::all)? {
            changes.know(record);
        }
        Ok(changes)
    }

    /// Makes a datastore, or finds that the same is there. It is on disk when this returns. An object store is
    /// not looked at: it may be away.
    pub async fn create(&self, mut wanted: Wanted) -> Result<Datastore, Error> {
        wanted.check()?;
        let given = wanted.credentials.take().unwrap_or(Credentials::None);
        let name = wanted.draft.name.to_string();
        let mut ready = Ready::Nothing;
        loop {
            let turn = self.turn.lock().await;
            self.follow_links(&mut wanted.draft).await?;
            self.must_be_apart(&wanted.draft)?;
            let all = self.datastores.all();
            let known = all.iter().map(|known| match known.record() {
                Some(record) => Existing::Made(record),
                None => Existing::Default(known.name()),
            });
            let Wanted { draft, by, at, .. } = &wanted;
            match (draft.clone().register(known)?, ready) {
                (Registration::Known, was) => {
                    let kept = self.made(&name)?.credentials;
                    match was {
                        Ready::Compared { with, same: true } if with == kept => break,
                        Ready::Compared { with, same: false } if with == kept => {
                            return Err(Refusal::Taken(draft.name.clone()).into());
                        }
                        _ => {}
                    }
                    drop(turn);
                    ready = match self.has(&draft.name, kept, &given).await {
                        Ok(same) => Ready::Compared { with: kept, same },
                        // What was looked at may be forgotten by now, which is no damage.
                        Err(error) => match self.made(&name) {
                            Ok(now) if now.credentials == kept => return Err(error),
                            _ => Ready::Nothing,
                        },
                    };
                }
                (Registration::New, Ready::Seals(sealer)) => {
                    let record = DatastoreRecord {
                        datastore: draft.clone(),
                        credentials: KeptCredentials::None,
                        created_by: by.principal.clone(),
                        created_at: *at,
                    };
                    let given = Some((given.clone(), sealer));
                    if self.keep(record, given, by.clone(), *at).await? {
                        break;
                    }
                    ready = Ready::Nothing;
                }
                (Registration::New, _) => {
                    drop(turn);
                    ready = Ready::Seals(self.sealer(&draft.name, &given).await?);
                }
            }
        }
        Ok(self.datastores.get(&name)?)
    }

    /// Changes what is said of a datastore, and its credentials if there are others. What is under way goes on
    /// with those that it began with.
    pub async fn update(&self, mut wanted: Wanted) -> Result<Datastore, Error> {
        wanted.check()?;
        let name = wanted.draft.name.clone();
        loop {
            // It is made before, as it may take a server's answer, and again if somebody else was faster.
            let given = match wanted.credentials.clone() {
                Some(given) => {
                    let _ = self.made(name.as_str())?;
                    let sealer = self.sealer(&name, &given).await?;
                    Some((given, sealer))
                }
                None => None,
            };
            let _turn = self.turn.lock().await;
            let known = self.made(name.as_str())?;
            if wanted.draft.source != known.datastore.source {
                // It may be written with links in it.
                self.follow_links(&mut wanted.draft).await?;
            }
            let Wanted { draft, by, at, .. } = &wanted;
            let record = draft.clone().update(&known)?;
            if self.keep(record, given, by.clone(), *at).await? {
                return Ok(self.datastores.get(name.as_str())?);
            }
        }
    }

    /// What seals credentials, if there is something to seal. It may take a server's answer: nobody's turn waits for it.
    async fn sealer(
        &self,
        name: &DatastoreName,
        given: &Credentials,
    ) -> Result<Option<Sealer>, Error> {
        Ok(match given.sealed_kind() {
            Some(_) => Some(self.vault.sealer(SealedName::Datastore(name.clone())).await?),
            None => None,
        })
    }

    /// Checks where a folder is to lie, and puts the path without links in its place.
    async fn follow_links(&self, draft: &mut Draft) -> Result<(), Error> {
        if let Source::Folder(folder) = &mut draft.source {
            folder.path = storage::check_place(folder, &self.data_dir).await?;
        }
        Ok(())
    }

    /// That what lies there is not the workspace's own: who may write to the datastore could write to all of that.
    fn must_be_apart(&self, draft: &Draft) -> Result<(), Error> {
        let location = draft.source.location();
        let all = self.datastores.all();
        let mut own = all.iter().filter(|known| known.record().is_none());
        match own.find(|own| overlap(&own.location().1, &location)) {
            Some(own) => Err(Refusal::Own { location, own: own.name().clone() }.into()),
            None => Ok(()),
        }
    }

    /// Whether what a datastore has kept are these credentials.
    async fn has(
        &self,
        name: &DatastoreName,
        kept: KeptCredentials,
        given: &Credentials,
    ) -> Result<bool, Error> {
        Ok(match kept {
            KeptCredentials::None => *given == Credentials::None,
            KeptCredentials::Anonymous => *given == Credentials::Anonymous,
            KeptCredentials::Sealed { kind, version } => {
                given.sealed_kind() == Some(kind) && {
                    let name = SealedName::Datastore(name.clone());
                    self.vault.open_version(&name, version).await? == sealable(given)
                }
            }
        })
    }

    /// Forgets a datastore, unless a job that is not over uses it. Its data stays where it is.
    pub async fn delete(&self, name: &str, by: Actor, at: Timestamp) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let before = self.made(name)?;
        let name = before.datastore.name.clone();
        // A job that was checked before is one of the live ones by now.
        let _alone = self.datastores.let_go().await;
        let wanted = name.clone();
        let jobs: Vec<JobName> = self
            .handle
            .look(move |live, _| {
                let users = live.jobs().filter(|job| is_live_user(job, &wanted));
                users.map(|job| job.name.clone()).collect()
            })
            .await?;
        if !jobs.is_empty() {
            return Err(Refusal::InUse { name, jobs }.into());
        }
        let assets = self.store.read(|conn| assets::within(conn, name.as_str(), SHOWN))?;
        if !assets.is_empty() {
            let id = |asset: &Version| format!("{}:{}", asset.name, asset.version);
            let assets = assets.iter().map(id).collect();
            return Err(Refusal::HoldsAssets { name, assets }.into());
        }
        let (key, sealed) = (name.clone(), SealedName::Datastore(name.clone()));
        let who = by.principal.clone();
        let write = move |conn: &Asked<'_>| {
            secrets::forget(conn, &sealed, None, &who, at)?;
            // Another one of this name is not to lose what lies there.
            retention::forget(conn, &key)?;
            datastores::delete(conn, &key)?;
            conn.changed(format!("datastore/{key}"), Some(&before), None);
            Ok(())
        };
        self.store.change(by, write).await?;
        self.datastores.remove(&name);
        Ok(())
    }

    /// Lists, writes, reads and deletes, in this order, as far as it goes. The files of a web server are only
    /// tried to be reached.
    pub async fn test(&self, name: &str) -> Result<Vec<Trial>, Error> {
        let datastore = self.find(name)?.hasty();
        let mut trials = Vec::new();
        let mut note = |operation, result: Result<(), storage::Error>| {
            let problem = result.err().map(|error| error.to_string());
            trials.push(Trial { operation, problem });
        };
        if datastore.is_read_only() {
            note("reach", datastore.reach().await);
            return Ok(trials);
        }
        let listed = datastore.list(None, None, 1).await;
        let first = listed.as_ref().ok().and_then(|page| page.objects.first()).cloned();
        note("list", listed.map(drop));
        let mut random = [0; 8];
        let filled = getrandom::fill(&mut random).map_err(std::io::Error::other);
        filled.map_err(|source| storage::Error::Io {
            operation: "name a file in",
            path: name.to_owned(),
            source,
        })?;
        let folder = datastore.record().map_or("", |record| record.datastore.source.files());
        let probe = format!("{folder}.atelier-probe-{:016x}", u64::from_ne_bytes(random));
        let probe = ObjectPath::new(&probe).map_err(storage::Error::from)?;
        let bytes = Bytes::copy_from_slice(&random);
        let written = datastore.put(&probe, bytes.clone()).await.map(drop);
        let is_written = written.is_ok();
        note("write", written);
        if is_written {
            let read = datastore.get(&probe, bytes.len() as u64).await;
            note("read", read.and_then(|read| same(&read, &bytes, &probe)));
            note("delete", datastore.delete(&probe).await.map(drop));
        } else if let Some(first) = first {
            // It may be meant to be read only.
            note("read", datastore.open(&first.path).await.map(drop));
        }
        Ok(trials)
    }

    /// The datastore with that name.
    pub fn find(&self, name: &str) -> Result<Datastore, Error> {
        self.datastores.get(name).map_err(|_| no_such(name, &self.datastores).into())
    }

    /// What a datastore was made as.
    fn made(&self, name: &str) -> Result<DatastoreRecord, Error> {
        let found = self.find(name)?;
        let record = found.record().cloned();
        record.ok_or_else(|| Refusal::Default(found.name().clone()).into())
    }

    /// Keeps a datastore and what it is given to be reached with, with what seals that; `None`: what there is stays.
    /// Whether it is kept: not if something was sealed under its name since that was made.
    async fn keep(
        &self,
        mut record: DatastoreRecord,
        given: Option<(Credentials, Option<Sealer>)>,
        by: Actor,
        at: Timestamp,
    ) -> Result<bool, Error> {
        let who = by.principal.clone();
        let before = self.find(record.datastore.name.as_str()).ok();
        let before = before.and_then(|known| known.record().cloned());
        let kept = self.store.change(by, move |conn| {
            record.credentials = match given {
                None => record.credentials,
                Some((given, sealer)) => match (given.sealed_kind(), sealer) {
                    (Some(kind), Some(sealer)) => {
                        match sealer.keep(conn, &sealable(&given), &who, at) {
                            Ok(Some(version)) => KeptCredentials::Sealed { kind, version },
                            Ok(None) => return Ok(Ok(None)),
                            Err(vault::Error::Store(error)) => return Err(error),
                            Err(error) => return Ok(Err(error)),
                        }
                    }
                    _ => {
                        let name = SealedName::Datastore(record.datastore.name.clone());
                        secrets::forget(conn, &name, None, &who, at)?;
                        match given {
                            Credentials::Anonymous => KeptCredentials::Anonymous,
                            _ => KeptCredentials::None,
                        }
                    }
                },
            };
            datastores::put(conn, &record)?;
            let resource = format!("datastore/{}", record.datastore.name);
            conn.changed(resource, before.as_ref(), Some(&record));
            Ok(Ok(Some(record)))
        });
        let Some(record) = kept.await?? else { return Ok(false) };
        self.know(record);
        Ok(true)
    }

    /// Serves a datastore from now on.
    fn know(&self, record: DatastoreRecord) {
        let (vault, name) =
            (self.vault.clone(), SealedName::Datastore(record.datastore.name.clone()));
        let unlock: Unlock = match record.credentials {
            KeptCredentials::None => Arc::new(|| Ok(Credentials::None)),
            KeptCredentials::Anonymous => Arc::new(|| Ok(Credentials::Anonymous)),
            KeptCredentials::Sealed { version, .. } => Arc::new(move || {
                // On a thread that may wait.
                let opened = tokio::runtime::Handle::current()
                    .block_on(vault.open_version(&name, version))
                    .map_err(|error| error.to_string())?;
                let sent = pb::DatastoreCredentials::decode(opened.as_slice());
                let read = sent.ok().and_then(|sent| Credentials::try_from(sent).ok());
                read.ok_or_else(|| {
                    "its credentials cannot be read; give them anew with 'atelier datastore update'"
                        .to_owned()
                })
            }),
        };
        self.datastores.put(record, &self.workspace, unlock);
    }
}

/// Credentials as they are sealed.
fn sealable(credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(pb::DatastoreCredentials::from(credentials).encode_to_vec())
}

/// That there is no datastore of this name, with the one that is most like it.
pub(super) fn no_such(name: &str, datastores: &Datastores) -> Refusal {
    let known: Vec<DatastoreName> =
        datastores.all().iter().map(|known| known.name().clone()).collect();
    Refusal::no_such(name, &known)
}

fn same(read: &[u8], written: &[u8], path: &ObjectPath) -> Result<(), storage::Error> {
    if read == written {
        return Ok(());
    }
    let source = std::io::Error::other("it has other bytes than were written");
    Err(storage::Error::Io { operation: "read", path: path.to_string(), source })
}

/// Whether a job that is not over reads from the datastore or writes to it.
fn is_live_user(job: &Job, datastore: &DatastoreName) -> bool {
    let reads = job.spec.inputs.values().any(|input| match input {
        Input::Data { uri: DataUri::Datastore { datastore: of, .. }, .. } => of == datastore,
        _ => false,
    });
    let place = |path: &Option<String>| Some(layout::parse_datastore_uri(path.as_deref()?)?.0);
    let writes =
        job.spec.outputs.values().any(|output| place(&output.path).as_ref() == Some(datastore));
    job.ended().is_none() && (reads || writes)
}
