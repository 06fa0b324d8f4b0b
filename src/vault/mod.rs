//! The vault: secrets that the workspace keeps, sealed (see `envelope`), under keys that it does not keep (see
//! `key`). Values go in; none comes out but to a node that runs a job which may use it.

mod envelope;
mod key;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::access::Caller;
use atelier_core::id::{JobName, Principal, SecretName, SecretVersion};
use atelier_core::secret::{Grant, Refusal, SealedName, Secret, Use, check_value, next_version};
use atelier_core::spec::SecretRef;
use atelier_core::time::Timestamp;
use rusqlite::Connection;
use zeroize::Zeroizing;

use self::envelope::Place;
use self::key::Key;
use crate::config::{self, ServeArgs};
use crate::store::secrets::{self, SealedRow};
use crate::store::{self, SqliteStore, secret_uses};

pub use envelope::Sealed;
pub use key::{KeyError, KeyId, KeySource};

/// Versions that are sealed anew in one transaction.
const BATCH: usize = 32;

/// Keeps secrets. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    store: Arc<SqliteStore>,
    workspace: Arc<str>,
    data_dir: Arc<Path>,
    keys: Arc<Ring>,
}

/// Where a daemon has its key encryption keys from.
#[derive(Debug)]
pub struct Keys {
    /// That for new secrets.
    source: KeySource,
    /// Whether somebody said so.
    is_given: bool,
    /// Those that older ones were sealed with.
    old: Vec<KeySource>,
}

impl Keys {
    /// As the arguments say, or the workspace's own file.
    pub fn of(args: &ServeArgs, workspace: &str) -> Self {
        let own = || config::vault_key(workspace).map_or(KeySource::Nowhere, KeySource::File);
        Self {
            source: args.vault_key.clone().unwrap_or_else(own),
            is_given: args.vault_key.is_some(),
            old: args.vault_old_key.clone(),
        }
    }
}

/// The keys themselves.
struct Ring {
    source: KeySource,
    /// That for new secrets, once it is there.
    newest: Mutex<Option<Arc<Key>>>,
    old: BTreeMap<KeyId, (Key, KeySource)>,
}

/// Why the vault does not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of secrets.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A key is not to be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is no key, and secrets are sealed with one.
    #[error("{missing}; {versions} of the workspace's secrets are sealed with the key {wanted}")]
    Missing {
        /// What is the matter with the source.
        missing: KeyError,
        /// The key that is wanted.
        wanted: KeyId,
        /// How many versions need it.
        versions: u64,
    },
    /// Secrets are sealed with a key that was not given.
    #[error(
        "cannot open the vault: {versions} of the workspace's secrets are sealed with the key {wanted}, and \
         {source_given} is the key {given}; start with the right one by --vault-key, or, to go over to this one, \
         give the other beside it by --vault-old-key"
    )]
    WrongKey {
        /// The key that is wanted.
        wanted: KeyId,
        /// How many versions need it.
        versions: u64,
        /// The key that is there.
        given: KeyId,
        /// Where it is.
        source_given: String,
    },
    /// What is kept does not open.
    #[error(
        "version {version} of {name} does not open: it was changed in the database; set it anew, or restore a backup"
    )]
    Damaged {
        /// Of what.
        name: SealedName,
        /// Which.
        version: SecretVersion,
    },
    /// No random bytes.
    #[error("cannot seal a secret: the system gave no random bytes")]
    Random,
    /// The cipher said no.
    #[error("cannot seal a secret: the cipher failed")]
    Cipher,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether the admin can put it right.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Key(_) | Self::Missing { .. } | Self::WrongKey { .. } => true,
            Self::Damaged { .. } | Self::Random | Self::Cipher | Self::Store(_) => false,
        }
    }
}

/// A key that versions of secrets are sealed with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyUse {
    /// Which.
    pub key: KeyId,
    /// How many.
    pub versions: u64,
    /// Where it is.
    pub source: String,
}

/// What is known of the vault's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// The key for new secrets, if it is there.
    pub key: Option<KeyId>,
    /// Where it is.
    pub source: String,
    /// Those that are in use.
    pub keys: Vec<KeyUse>,
}

/// Whether a folder is there for keys alone, to judge by its name.
fn is_of_keys(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name == "vault" || name.starts_with("atelier")
}

impl Vault {
    /// Folders of files with keys, which may be made later, where nothing else is in them.
    pub fn key_folders(&self) -> Vec<PathBuf> {
        let folders = self.files().filter_map(|file| file.parent());
        folders.filter(|folder| is_of_keys(folder)).map(Path::to_owned).collect()
    }

    /// Files with keys that lie in other folders.
    pub fn key_files(&self) -> Vec<PathBuf> {
        let is_apart = |file: &&Path| !file.parent().is_some_and(is_of_keys);
        self.files().filter(is_apart).map(Path::to_owned).collect()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let ring = &self.keys;
        let sources = ring.old.values().map(|(_, source)| source).chain([&ring.source]);
        sources.filter_map(|source| match source {
            KeySource::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// Opens the vault of a workspace.
    ///
    /// # Errors
    /// If a key cannot be used, or one that secrets are sealed with is not there. A key that is missing is
    /// no error as long as there is no secret: it is made, or looked for again, with the first.
    pub fn open(
        store: Arc<SqliteStore>,
        keys: Keys,
        workspace: &str,
        data_dir: &Path,
    ) -> Result<Self, Error> {
        let used = store.read(secrets::keys)?;
        let mut old = BTreeMap::new();
        for source in keys.old {
            let key = source.load(data_dir)?;
            old.insert(key.id().clone(), (key, source));
        }
        let newest = match keys.source.load(data_dir) {
            Ok(key) => Some(Arc::new(key)),
            Err(missing) => match used.first() {
                Some((wanted, versions)) => {
                    let (wanted, versions) = (wanted.clone(), *versions);
                    return Err(Error::Missing { missing, wanted, versions });
                }
                None if missing.is_missing() || !keys.is_given => None,
                None => return Err(missing.into()),
            },
        };
        if let Some(given) = &newest
            && let Some((wanted, versions)) =
                used.iter().find(|(id, _)| id != given.id() && !old.contains_key(id))
        {
            return Err(Error::WrongKey {
                wanted: wanted.clone(),
                versions: *versions,
                given: given.id().clone(),
                source_given: keys.source.to_string(),
            });
        }
        let ring = Ring { source: keys.source, newest: Mutex::new(newest), old };
        Ok(Self {
            store,
            workspace: workspace.into(),
            data_dir: data_dir.into(),
            keys: Arc::new(ring),
        })
    }

    /// Keeps a value as the next version of a secret. It is on disk when this returns.
    pub async fn set(
        &self,
        name: SecretName,
        value: Zeroizing<Vec<u8>>,
        caller: Caller,
        at: Timestamp,
    ) -> Result<Secret, Error> {
        check_value(&name, value.len())?;
        let key = self.key_to_seal()?;
        let workspace = self.workspace.clone();
        let kept = self.store.write(move |conn| {
            let known = secrets::entry(conn, &name)?;
            let (name, version) = match next_version(&name, known.as_ref(), &caller) {
                Ok(next) => next,
                Err(refusal) => return Ok(Err(refusal.into())),
            };
            let sealed_name = SealedName::Secret(name.clone());
            let place = Place { workspace: &workspace, name: &sealed_name, version };
            let sealed = match envelope::seal(place, &value, &key) {
                Ok(sealed) => sealed,
                Err(error) => return Ok(Err(error)),
            };
            secrets::put(conn, (&sealed_name, version), &sealed, &caller.principal, at)?;
            let kept = secrets::secret(conn, &name)?;
            Ok(kept.ok_or_else(|| Refusal::NoSuch(name.to_string()).into()))
        });
        kept.await?
    }

    /// What is known of a secret.
    pub fn get(&self, name: &str) -> Result<Secret, Error> {
        let missing = || Error::Refused(Refusal::NoSuch(name.to_owned()));
        // What is no valid name is no secret's name.
        let name = SecretName::new(name).map_err(|_| missing())?;
        self.store.read(|conn| secrets::secret(conn, &name))?.ok_or_else(missing)
    }

    /// What is known of secrets, by name: those after `after`, at most `limit`.
    pub fn list(&self, after: &str, limit: usize) -> Result<Vec<Secret>, Error> {
        Ok(self.store.read(|conn| secrets::list(conn, after, limit))?)
    }

    /// Forgets all versions of a secret. Gives its name, as it was first written.
    pub async fn delete(
        &self,
        name: &str,
        caller: Caller,
        at: Timestamp,
    ) -> Result<SecretName, Error> {
        let missing = |_| Error::Refused(Refusal::NoSuch(name.to_owned()));
        let name = SecretName::new(name).map_err(missing)?;
        let deleted = self.store.write(move |conn| secrets::delete(conn, &name, &caller, at));
        Ok(deleted.await??)
    }

    /// Opens a version of what is kept.
    pub fn open_version(
        &self,
        name: &SealedName,
        version: SecretVersion,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let place = Place { workspace: &self.workspace, name, version };
        let sealed = self.store.read(|conn| secrets::sealed(conn, name, version))?;
        self.opened(place, &sealed.ok_or_else(|| place.damaged())?)
    }

    fn opened(&self, place: Place<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, Error> {
        match self.keys.old.get(&sealed.key) {
            Some((old, _)) => envelope::open(place, sealed, old),
            None => envelope::open(place, sealed, &*self.key_to_seal()?),
        }
    }

    /// What seals values within a transaction of the store.
    ///
    /// # Errors
    /// If there is no key to seal with.
    pub fn sealer(&self) -> Result<Sealer, Error> {
        Ok(Sealer { workspace: self.workspace.clone(), key: self.key_to_seal()? })
    }

    /// Lets jobs of a user's use a secret; `None`: everybody's.
    pub async fn grant(
        &self,
        name: &str,
        to: Option<Principal>,
        caller: Caller,
        at: Timestamp,
    ) -> Result<Secret, Error> {
        let known = self.get(name)?.name;
        let granted =
            self.store.write(move |c| secret_uses::grant(c, &known, to.as_ref(), &caller, at));
        granted.await??;
        self.get(name)
    }

    /// Takes that back.
    pub async fn revoke(
        &self,
        name: &str,
        to: Option<Principal>,
        caller: Caller,
    ) -> Result<Secret, Error> {
        let known = self.get(name)?.name;
        let revoked =
            self.store.write(move |c| secret_uses::revoke(c, &known, to.as_ref(), &caller));
        revoked.await??;
        self.get(name)
    }

    /// Whose jobs may use a secret, besides its owner's and admins'.
    pub fn grants(&self, name: &SecretName) -> Result<Vec<Grant>, Error> {
        Ok(self.store.read(|conn| secret_uses::grants(conn, name))?)
    }

    /// Jobs that were given a secret, the newest first, at most `limit`.
    pub fn uses(&self, name: &SecretName, limit: usize) -> Result<Vec<Use>, Error> {
        Ok(self.store.read(|conn| secret_uses::uses(conn, name, limit))?)
    }

    /// The one version that a job's reference means, if a job of the caller's may use it.
    pub fn pin(&self, wanted: &SecretRef, caller: &Caller) -> Result<SecretRef, Error> {
        let found = self.store.read(|conn| secret_uses::usable(conn, wanted, caller))??;
        let version = Some(found.version);
        Ok(SecretRef { name: found.name, version, delivery: wanted.delivery })
    }

    /// A secret's value, for a job of the caller's. That it had it is on disk when this returns.
    pub async fn reveal(
        &self,
        job: &JobName,
        wanted: SecretRef,
        caller: &Caller,
        at: Timestamp,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (job, caller) = (job.clone(), caller.clone());
        let found = self.store.write(move |conn| {
            let found = secret_uses::usable(conn, &wanted, &caller)?;
            if let Ok(found) = &found {
                secret_uses::note(conn, &job, found, &caller.principal, at)?;
            }
            Ok(found)
        });
        let found = found.await??;
        let name = SealedName::Secret(found.name);
        let place = Place { workspace: &self.workspace, name: &name, version: found.version };
        self.opened(place, &found.sealed)
    }

    /// Which keys there are, and what is sealed with each.
    pub fn status(&self) -> Result<Status, Error> {
        let used = self.store.read(secrets::keys)?;
        let newest = self.newest();
        let source = self.keys.source.to_string();
        let of = |key: &KeyId| match self.keys.old.get(key) {
            Some((_, old)) if newest.as_ref().is_none_or(|newest| newest.id() != key) => {
                old.to_string()
            }
            _ => source.clone(),
        };
        let keys = used.into_iter().map(|(key, versions)| {
            let source = of(&key);
            KeyUse { key, versions, source }
        });
        let keys = keys.collect();
        Ok(Status { key: newest.map(|key| key.id().clone()), source, keys })
    }

    /// Seals with the newest key what is sealed with an older one; with `data_keys` every value from before
    /// `now`, under a data key of its own made anew. How many versions that were. What is done stays done if it is cut
    /// short.
    pub async fn rotate(&self, data_keys: bool, now: Timestamp) -> Result<u64, Error> {
        let mut rotated = 0;
        if self.store.read(secrets::keys)?.is_empty() {
            return Ok(rotated);
        }
        let newest = self.key_to_seal()?;
        loop {
            let (vault, newest) = (self.clone(), newest.clone());
            let made_at = data_keys.then_some(now);
            let batch = self.store.write(move |conn| {
                let rows = secrets::older(conn, newest.id(), made_at, BATCH)?;
                let done = rows.len();
                for row in rows {
                    let row = match vault.anew(row, &newest, data_keys) {
                        Ok(row) => row,
                        Err(error) => return Ok(Err(error)),
                    };
                    secrets::reseal(conn, &row, made_at)?;
                }
                crate::failpoint::hit("rotate");
                Ok(Ok(done))
            });
            match batch.await?? {
                0 => return Ok(rotated),
                done => rotated += done as u64,
            }
        }
    }

    /// A version, sealed with the newest key.
    fn anew(&self, row: SealedRow, newest: &Key, data_keys: bool) -> Result<SealedRow, Error> {
        let place = Place { workspace: &self.workspace, name: &row.name, version: row.version };
        let key = match self.keys.old.get(&row.sealed.key) {
            Some((old, _)) if newest.id() != &row.sealed.key => old,
            _ => newest,
        };
        let sealed = if data_keys {
            let value = envelope::open(place, &row.sealed, key)?;
            envelope::seal(place, &value, newest)?
        } else {
            envelope::rewrap(place, row.sealed, key, newest)?
        };
        Ok(SealedRow { sealed, ..row })
    }

    fn newest(&self) -> Option<Arc<Key>> {
        self.keys.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key for new secrets. It is made, or looked for again, where there was none.
    fn key_to_seal(&self) -> Result<Arc<Key>, Error> {
        let mut newest = self.keys.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*newest {
            return Ok(key.clone());
        }
        let key = match self.keys.source.load(&self.data_dir) {
            Err(error) if error.is_missing() => {
                let key = self.keys.source.make(&self.data_dir)?;
                tracing::warn!(source = %self.keys.source, key = %key.id(), "made the vault's key; back it up, apart from the data folder");
                key
            }
            found => found?,
        };
        Ok(newest.insert(Arc::new(key)).clone())
    }
}

/// Keeps values of the workspace's own, which are no secrets of somebody's.
pub struct Sealer {
    workspace: Arc<str>,
    key: Arc<Key>,
}

impl Sealer {
    /// Keeps a value as the next version under its name, in place of the earlier ones. If it cannot be sealed,
    /// nothing is written.
    pub fn keep(
        &self,
        conn: &Connection,
        name: &SealedName,
        value: &[u8],
        by: &Principal,
        at: Timestamp,
    ) -> Result<SecretVersion, Error> {
        let version = SecretVersion(secrets::last_version(conn, name)?.0.saturating_add(1));
        let place = Place { workspace: &self.workspace, name, version };
        let sealed = envelope::seal(place, value, &self.key)?;
        secrets::put(conn, (name, version), &sealed, by, at)?;
        secrets::forget(conn, name, Some(version), by, at)?;
        Ok(version)
    }
}
