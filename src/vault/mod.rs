//! The vault: secrets that the workspace keeps, sealed (see `envelope`), under keys that it does not keep (see
//! `key` and `transit`). Values go in; none comes out but to a node that runs a job which may use it.

mod envelope;
mod key;
mod ring;
mod rotate;
mod source;
#[cfg(test)]
mod tests;
mod transit;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atelier_core::access::Caller;
use atelier_core::audit::Actor;
use atelier_core::id::{JobName, Principal, SecretName, SecretVersion};
use atelier_core::secret::{Grant, Refusal, SealedName, Secret, Use, check_value, next_version};
use atelier_core::spec::SecretRef;
use atelier_core::time::Timestamp;
use futures::StreamExt as _;
use rusqlite::Connection;
use serde_json::json;
use zeroize::Zeroizing;

use self::envelope::{DataKey, Place};
use self::ring::{Ring, Wrapper};
use crate::config::{self, ServeArgs};
use crate::identity::Asking;
use crate::store::secret_uses::{self, Usable};
use crate::store::secrets;
use crate::store::{self, SqliteStore};

pub use envelope::Sealed;
pub use key::{KeyError, KeyId, KeySource};
pub use rotate::{Cursor, Damage, Rotation};
pub use source::TextSource;
pub(crate) use transit::Limits;
pub use transit::{Error as TransitError, KeyName, Login, Settings as TransitSettings};

/// Versions that are opened, or sealed anew, at the same time: a server that has the key is asked for each.
const AT_ONCE: usize = 8;
/// Bytes of a job's secrets together: each log of the job is looked through for all of them.
const MOST: usize = 1 << 20;
/// How long opening the secrets of an attempt may take: its agent gives up after 30 seconds, and asks again.
const TOGETHER: Duration = Duration::from_secs(20);

/// Keeps secrets. Cheap to clone.
#[derive(Clone)]
pub struct Vault {
    store: Arc<SqliteStore>,
    workspace: Arc<str>,
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
    /// Who has those that are not written down anywhere.
    transit: Option<TransitSettings>,
    /// How long that one is waited for.
    limits: Limits,
}

impl Keys {
    /// As the arguments say, or the workspace's own file.
    pub fn of(args: &ServeArgs, workspace: &str) -> Self {
        let own = || match config::vault_key(workspace) {
            Some(path) => KeySource::Text(TextSource::File(path)),
            None => KeySource::Nowhere,
        };
        Self {
            transit: args.transit.settings(),
            source: args.vault_key.clone().unwrap_or_else(own),
            is_given: args.vault_key.is_some(),
            old: args.vault_old_key.clone(),
            limits: Limits::default(),
        }
    }
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
    /// Transit has a key, and it is not said where transit is.
    #[error(
        "cannot use the vault's key transit:{0}: give serve the server's address by --vault-transit-address, and \
         --vault-transit-token or --vault-transit-role-id to log in there"
    )]
    NoTransit(KeyName),
    /// Transit does not do what it is asked.
    #[error(transparent)]
    Transit(#[from] TransitError),
    /// Transit does not open what is kept.
    #[error("version {version} of {name} does not open: {error}")]
    NotOpened {
        /// Of what.
        name: SealedName,
        /// Which.
        version: SecretVersion,
        /// Why not.
        #[source]
        error: TransitError,
    },
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
         {source_given} is {given}; start with the right one by --vault-key, or, to go over to this one, \
         give the other beside it by --vault-old-key"
    )]
    WrongKey {
        /// The key that is wanted.
        wanted: KeyId,
        /// How many versions need it.
        versions: u64,
        /// The key that is there.
        given: String,
        /// Where it is.
        source_given: String,
    },
    /// Transit takes too long.
    #[error(
        "version {version} of {name} was not opened in {seconds} s: transit at {address} does not answer; see that it \
         runs, and that the daemon's machine reaches it"
    )]
    Late {
        /// Of what.
        name: SealedName,
        /// Which.
        version: SecretVersion,
        /// How long that was waited for.
        seconds: u64,
        /// Where transit is.
        address: String,
    },
    /// A rotation did not come to its end.
    #[error("{done} of {total} versions are sealed anew; the next rotation goes on there: {error}")]
    Stopped {
        /// How many are as they are to be.
        done: u64,
        /// Of how many.
        total: u64,
        /// Why.
        #[source]
        error: Box<Self>,
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
            Self::Refused(_)
            | Self::Key(_)
            | Self::NoTransit(_)
            | Self::Transit(_)
            | Self::NotOpened { .. }
            | Self::Late { .. }
            | Self::Missing { .. }
            | Self::WrongKey { .. } => true,
            Self::Stopped { error, .. } => error.is_refusal(),
            Self::Damaged { .. } | Self::Random | Self::Cipher | Self::Store(_) => false,
        }
    }
}

/// Why secrets are not revealed.
#[derive(Debug, thiserror::Error)]
pub enum NotRevealed {
    /// One is not to be had.
    #[error("{error}")]
    One {
        /// Which of those that were asked for.
        index: usize,
        /// Why.
        #[source]
        error: Error,
    },
    /// They are too long.
    #[error(
        "the job's secrets have more than {} KiB together; name fewer, or have it fetch large ones itself",
        MOST >> 10
    )]
    TooMuch,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
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
    /// Why it cannot be used now; `None`: it can, or is made with the first secret.
    pub problem: Option<String>,
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
        let folders = self.keys.files().filter_map(|file| file.parent());
        folders.filter(|folder| is_of_keys(folder)).map(Path::to_owned).collect()
    }

    /// Files with keys that lie in other folders.
    pub fn key_files(&self) -> Vec<PathBuf> {
        let is_apart = |file: &&Path| !file.parent().is_some_and(is_of_keys);
        self.keys.files().filter(is_apart).map(Path::to_owned).collect()
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
        let is_given = keys.is_given;
        let (ring, missing) = Ring::open(keys, data_dir)?;
        match (missing, used.first()) {
            (Some(missing), Some((wanted, versions))) => {
                let (wanted, versions) = (wanted.clone(), *versions);
                return Err(Error::Missing { missing, wanted, versions });
            }
            (Some(missing), None) if is_given && !missing.is_missing() => {
                return Err(missing.into());
            }
            _ => {}
        }
        if let Some(newest) = ring.newest() {
            let is_there = |id: &KeyId| newest.is(id) || ring.old.iter().any(|(old, _)| old.is(id));
            if let Some((wanted, versions)) = used.iter().find(|(id, _)| !is_there(id)) {
                let (wanted, versions) = (wanted.clone(), *versions);
                let given = match &newest {
                    Wrapper::Key(key) => format!("the key {}", key.id()),
                    Wrapper::Transit(_) => "another".to_owned(),
                };
                let source_given = ring.source.to_string();
                return Err(Error::WrongKey { wanted, versions, given, source_given });
            }
        }
        Ok(Self { store, workspace: workspace.into(), keys: Arc::new(ring) })
    }

    /// Keeps the way to transit open, if it has keys, and tells when there is none.
    pub async fn tend(&self) {
        self.keys.tend().await;
    }

    /// Keeps a value as the next version of a secret. It is on disk when this returns.
    pub async fn set(
        &self,
        name: SecretName,
        value: Zeroizing<Vec<u8>>,
        by: impl Into<Asking>,
        at: Timestamp,
    ) -> Result<Secret, Error> {
        let by = by.into();
        let (by, caller) = (by.actor(), by.caller);
        check_value(&name, value.len())?;
        let key = self.keys.to_seal()?;
        let value = Arc::new(value);
        loop {
            // A data key is made for its place before it is written: that may take a server's answer, and nobody else
            // writes during a transaction.
            let sealed_name = SealedName::Secret(name.clone());
            let data_key = self.next(&key, &sealed_name).await?;
            let (workspace, name) = (self.workspace.clone(), name.clone());
            let (value, caller) = (value.clone(), caller.clone());
            let kept = self.store.change(by.clone(), move |conn| {
                let before = secrets::secret(conn, &name)?;
                let known = secrets::entry(conn, &name)?;
                let (name, version) = match next_version(&name, known.as_ref(), &caller) {
                    Ok(next) => next,
                    Err(refusal) => return Ok(Err(refusal.into())),
                };
                let (expected, data_key) = &data_key;
                if *expected != version {
                    return Ok(Ok(None));
                }
                let sealed_name = SealedName::Secret(name.clone());
                let place = Place { workspace: &workspace, name: &sealed_name, version };
                let sealed = match envelope::seal(place, &value, data_key) {
                    Ok(sealed) => sealed,
                    Err(error) => return Ok(Err(error)),
                };
                secrets::put(conn, (&sealed_name, version), &sealed, &caller.principal, at)?;
                let kept = secrets::secret(conn, &name)?;
                conn.changed(
                    format!("secret/{name}"),
                    before.as_ref().map(shown).as_ref(),
                    kept.as_ref().map(shown).as_ref(),
                );
                Ok(kept.map(Some).ok_or_else(|| Refusal::NoSuch(name.to_string()).into()))
            });
            // None: somebody else has set that version meanwhile.
            if let Some(kept) = kept.await?? {
                return Ok(kept);
            }
        }
    }

    /// A data key for what is to be the next version under a name.
    async fn next(
        &self,
        key: &Wrapper,
        name: &SealedName,
    ) -> Result<(SecretVersion, DataKey), Error> {
        let last = self.store.read(|conn| secrets::last_version(conn, name))?;
        let version = SecretVersion(last.0.saturating_add(1));
        let place = Place { workspace: &self.workspace, name, version };
        Ok((version, key.make(place).await?))
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
        by: impl Into<Asking>,
        at: Timestamp,
    ) -> Result<SecretName, Error> {
        let by = by.into();
        let (by, caller) = (by.actor(), by.caller);
        let missing = |_| Error::Refused(Refusal::NoSuch(name.to_owned()));
        let name = SecretName::new(name).map_err(missing)?;
        let deleted = self.store.change(by, move |conn| {
            let before = secrets::secret(conn, &name)?;
            let deleted = secrets::delete(conn, &name, &caller, at)?;
            if let Ok(name) = &deleted {
                conn.changed(format!("secret/{name}"), before.as_ref().map(shown).as_ref(), None);
            }
            Ok(deleted)
        });
        Ok(deleted.await??)
    }

    /// Forgets a version of a secret that is not its latest, unless jobs that are not over, `users`, have it. Gives its
    /// name, as it was first written.
    pub async fn delete_version(
        &self,
        name: &str,
        version: SecretVersion,
        users: Vec<JobName>,
        by: impl Into<Asking>,
    ) -> Result<SecretName, Error> {
        let by = by.into();
        let (by, caller) = (by.actor(), by.caller);
        let missing = |_| Error::Refused(Refusal::NoSuch(name.to_owned()));
        let name = SecretName::new(name).map_err(missing)?;
        let deleted = self.store.change(by, move |conn| {
            let deleted = secrets::delete_version(conn, &name, version, users, &caller)?;
            if let Ok(name) = &deleted {
                let before = json!({ "version": version });
                conn.changed(format!("secret/{name}"), Some(&before), None);
            }
            Ok(deleted)
        });
        Ok(deleted.await??)
    }

    /// Opens a version of what is kept.
    pub async fn open_version(
        &self,
        name: &SealedName,
        version: SecretVersion,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let place = Place { workspace: &self.workspace, name, version };
        let sealed = self.store.read(|conn| secrets::sealed(conn, name, version))?;
        let sealed = sealed.ok_or_else(|| place.damaged())?;
        self.keys.of(&sealed.key)?.open(place, &sealed).await
    }

    /// What seals the next version under a name within a transaction of the store.
    ///
    /// # Errors
    /// If there is no key to seal with.
    pub async fn sealer(&self, name: SealedName) -> Result<Sealer, Error> {
        let (version, data_key) = self.next(&self.keys.to_seal()?, &name).await?;
        Ok(Sealer { workspace: self.workspace.clone(), name, version, data_key })
    }

    /// Lets jobs of a user's use a secret; `None`: everybody's.
    pub async fn grant(
        &self,
        name: &str,
        to: Option<Principal>,
        by: impl Into<Asking>,
        at: Timestamp,
    ) -> Result<Secret, Error> {
        let by = by.into();
        let (by, caller) = (by.actor(), by.caller);
        let known = self.get(name)?.name;
        let granted = self.store.change(by, move |c| {
            let granted = secret_uses::grant(c, &known, to.as_ref(), &caller, at)?;
            if granted.is_ok() {
                c.changed(format!("secret/{known}"), None, Some(&granted_to(to.as_ref())));
            }
            Ok(granted)
        });
        granted.await??;
        self.get(name)
    }

    /// Takes that back.
    pub async fn revoke(
        &self,
        name: &str,
        to: Option<Principal>,
        by: impl Into<Asking>,
    ) -> Result<Secret, Error> {
        let by = by.into();
        let (by, caller) = (by.actor(), by.caller);
        let known = self.get(name)?.name;
        let revoked = self.store.change(by, move |c| {
            let revoked = secret_uses::revoke(c, &known, to.as_ref(), &caller)?;
            if revoked.is_ok() {
                c.changed(format!("secret/{known}"), Some(&granted_to(to.as_ref())), None);
            }
            Ok(revoked)
        });
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

    /// The values of secrets, for a job of the caller's, in the order of `wanted`: all as they are at one moment, or
    /// none. That it had them is on disk when this returns.
    pub async fn reveal_all(
        &self,
        job: &JobName,
        wanted: Vec<SecretRef>,
        caller: &Caller,
        at: Timestamp,
    ) -> Result<Vec<Zeroizing<Vec<u8>>>, NotRevealed> {
        let (job, caller) = (job.clone(), caller.clone());
        let by = Actor::new(&caller, None, "secret/use");
        let found = self.store.change(by, move |conn| {
            let mut found = Vec::with_capacity(wanted.len());
            for (index, wanted) in wanted.iter().enumerate() {
                match secret_uses::usable(conn, wanted, &caller)? {
                    Ok(usable) => found.push(usable),
                    Err(refusal) => {
                        return Ok(Err(NotRevealed::One { index, error: refusal.into() }));
                    }
                }
            }
            // Before any is opened: a secret is short, but a job may name as many as it likes.
            if found.iter().map(|usable| usable.sealed.length()).sum::<usize>() > MOST {
                return Ok(Err(NotRevealed::TooMuch));
            }
            for usable in &found {
                secret_uses::note(conn, &job, usable, &caller.principal, at)?;
                conn.done(
                    format!("secret/{}", usable.name),
                    &json!({ "version": usable.version, "job": &job }),
                );
            }
            Ok(Ok(found))
        });
        let found = found.await??;
        let mut values = vec![Zeroizing::default(); found.len()];
        let until = tokio::time::Instant::now() + TOGETHER;
        let opening = found.into_iter().enumerate().map(|(index, usable)| async move {
            let Usable { name, version, sealed } = usable;
            let name = SealedName::Secret(name);
            let place = Place { workspace: &self.workspace, name: &name, version };
            let open = async { self.keys.of(&sealed.key)?.open(place, &sealed).await };
            let opened = tokio::time::timeout_at(until, open).await;
            match opened {
                Ok(Ok(value)) => Ok((index, value)),
                Ok(Err(error)) => Err(NotRevealed::One { index, error }),
                Err(_) => Err(NotRevealed::One { index, error: self.late(name, version) }),
            }
        });
        let mut opened = futures::stream::iter(opening).buffer_unordered(AT_ONCE);
        while let Some(opened) = opened.next().await {
            let (index, value) = opened?;
            if let Some(place) = values.get_mut(index) {
                *place = value;
            }
        }
        Ok(values)
    }

    /// Only transit takes long.
    fn late(&self, name: SealedName, version: SecretVersion) -> Error {
        let address = self.keys.transit().unwrap_or("its address").to_owned();
        Error::Late { name, version, seconds: TOGETHER.as_secs(), address }
    }

    /// Which keys there are, and what is sealed with each.
    pub async fn status(&self) -> Result<Status, Error> {
        let used = self.store.read(secrets::keys)?;
        let newest = self.keys.newest();
        let source = self.keys.source.to_string();
        let of = |id: &KeyId| {
            let is_newest = newest.as_ref().is_some_and(|newest| newest.is(id));
            let old = self.keys.old.iter().find(|(old, _)| !is_newest && old.is(id));
            old.map_or_else(|| source.clone(), |(_, old)| old.to_string())
        };
        let keys = used.into_iter().map(|(key, versions)| {
            let source = of(&key);
            KeyUse { key, versions, source }
        });
        let keys = keys.collect();
        let (key, problem) = match &newest {
            None => (None, None),
            Some(newest) => match newest.newest().await {
                Ok(key) => (Some(key), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        Ok(Status { key, source, problem, keys })
    }
}

/// What the audit log tells of a secret: never its value, which it does not have.
fn shown(secret: &Secret) -> serde_json::Value {
    json!({
        "version": secret.version,
        "created_by": secret.owner,
        "created_at": secret.created_at.to_string(),
        "updated_by": secret.updated_by,
        "updated_at": secret.updated_at.to_string(),
    })
}

/// Whose jobs may use a secret, for the audit log.
fn granted_to(to: Option<&Principal>) -> serde_json::Value {
    json!({ "granted_to": to.map_or("everybody", Principal::as_str) })
}

/// Keeps a value of the workspace's own, which is no secret of somebody's.
pub struct Sealer {
    workspace: Arc<str>,
    name: SealedName,
    version: SecretVersion,
    data_key: DataKey,
}

impl Sealer {
    /// Keeps the value as the next version under its name, in place of the earlier ones. If it cannot be sealed,
    /// nothing is written. `None`: nothing is written as there is such a version since this was made; another is needed.
    pub fn keep(
        &self,
        conn: &Connection,
        value: &[u8],
        by: &Principal,
        at: Timestamp,
    ) -> Result<Option<SecretVersion>, Error> {
        let Self { workspace, name, version, data_key } = self;
        if secrets::last_version(conn, name)? >= *version {
            return Ok(None);
        }
        let place = Place { workspace, name, version: *version };
        let sealed = envelope::seal(place, value, data_key)?;
        secrets::put(conn, (name, *version), &sealed, by, at)?;
        secrets::forget(conn, name, Some(*version), by, at)?;
        Ok(Some(*version))
    }
}
