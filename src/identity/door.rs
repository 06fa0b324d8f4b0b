//! Tokens in, callers out.
//!
//! A person's or node's token is 32 random bytes, stored hashed. An attempt's is signed by a key that follows from a
//! secret of the workspace, so that it needs no storage; it opens only while that very attempt is alive.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use atelier_core::access::{AttemptScope, Caller, Permission, Role};
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{AttemptNumber, DatastoreName, Epoch, JobName, NodeName, Principal};
use atelier_core::job::AttemptKey;
use atelier_core::layout;
use atelier_core::spec::CommandJob;
use atelier_core::time::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Identities;
use super::asking::{Origin, Use};
use super::attempts::Signer;
use super::grants::{Grants, grants_of};
use super::people::{People, Refused, WallClock};
use super::reauthorise;
use crate::audit::AuditLog;
use crate::store::{self, Store, TokenRecord};

/// Decides who comes in.
pub struct Door {
    secret: [u8; 32],
    people: People,
    asks_every: Duration,
    signer: Signer,
    attempts: RwLock<HashMap<JobName, LiveAttempt>>,
    /// Tokens of attempts that are let in, by their hashes: those need not be verified again.
    verified: RwLock<HashMap<Digest, AttemptScope>>,
    nodes: Identities,
    /// Who is told of refusals, and of who reads what.
    audit: OnceLock<AuditLog>,
}

struct LiveAttempt {
    attempt: AttemptNumber,
    epoch: Epoch,
    grants: Arc<Grants>,
    /// Of its token.
    hash: Digest,
    /// A node of it was cut off: it is to write nothing more.
    fenced: bool,
}

impl LiveAttempt {
    /// Whether it is the very attempt that a token is bound to.
    fn is(&self, scope: &AttemptScope) -> bool {
        self.attempt == scope.attempt && self.epoch == scope.epoch && !self.fenced
    }
}

/// Why somebody stays outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token.
    #[error("no token was given; pass --token-file or set ATELIER_TOKEN")]
    NoToken,
    /// A token that opens nothing.
    #[error("the token is not valid here; ask an admin for one (atelier token create)")]
    WrongToken,
    /// A token whose time is over.
    #[error(
        "the token expired at {at}, and the daemon's clock says {now}; ask an admin for a new one (atelier token create)"
    )]
    Expired {
        /// When that was.
        at: Timestamp,
        /// When it was shown.
        now: Timestamp,
    },
    /// A token that was taken back while something that it had opened was going on.
    #[error(
        "the token was revoked meanwhile, or its user deleted; with a new one (atelier token create, by an admin) \
         this can be started again"
    )]
    Revoked,
    /// The token of an attempt that is over, or is no longer the newest.
    #[error("the attempt that this token belonged to is over")]
    AttemptOver,
    /// A node's certificate that is worth nothing any more.
    #[error(
        "the certificate of node '{node}' is worth nothing: {why}; to have it join anew make a token for it (atelier \
         node token create --node {node}) and give that to its agent"
    )]
    Certificate {
        /// Whose.
        node: NodeName,
        /// Why.
        why: String,
    },
    /// A known caller without the permission.
    #[error("{principal} has the role {role}, which may not {action}; ask an admin")]
    NotAllowed {
        /// Who.
        principal: Principal,
        /// As what.
        role: String,
        /// What was tried, as a verb.
        action: &'static str,
    },
    /// A known caller who may change only what is its own.
    #[error(
        "{principal} may not change job '{job}': it is {owner}'s; only its owner or an admin may"
    )]
    NotOwner {
        /// Who.
        principal: Principal,
        /// Which.
        job: String,
        /// Whose.
        owner: Principal,
    },
    /// A known caller, in another's job.
    #[error(
        "{principal} may not enter job '{job}': it is {owner}'s, and nobody enters another's jobs"
    )]
    NotEntered {
        /// Who.
        principal: Principal,
        /// Which.
        job: String,
        /// Whose.
        owner: Principal,
    },
    /// A web page of somebody else's.
    #[error(
        "requests from {0} are refused: only the daemon's own addresses are allowed, and names of its certificate \
         (--tls-name)"
    )]
    Foreign(String),
    /// A route that nobody has declared.
    #[error("there is nothing here")]
    UnknownRoute,
}

/// What can go wrong with tokens besides their being wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token file could not be read or written.
    #[error("cannot {operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A change that is not allowed, or makes no sense.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The library of cryptography refuses the key.
    #[error("cannot make the key that signs attempts' tokens")]
    Key,
    /// The system gave no random bytes.
    #[error("cannot make a token: the system gave no random bytes")]
    Random,
    /// The store said no.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] atelier_core::id::InvalidName),
}

/// Of tokens that an earlier version gave to attempts that may live still.
const ATTEMPT_PREFIX: &str = "ata_";
/// What each token begins with that is signed: `{"`.
const SIGNED_PREFIX: &str = "eyJ";

impl Door {
    /// Opens the door of a workspace whose secret lies in `secret_file`, making it if it is new.
    pub fn open(store: Arc<dyn Store>, secret_file: &Path, workspace: &str) -> Result<Self, Error> {
        let clock = crate::daemon::Clock::default();
        Self::with_clock(store, secret_file, workspace, Arc::new(move || clock.wall()))
    }

    /// The same with a clock of one's own, by which tokens expire.
    pub fn with_clock(
        store: Arc<dyn Store>,
        secret_file: &Path,
        workspace: &str,
        clock: WallClock,
    ) -> Result<Self, Error> {
        let secret = match fs::read(secret_file) {
            Ok(bytes) => <[u8; 32]>::try_from(bytes).map_err(|_| Error::File {
                operation: "use the workspace's secret",
                path: secret_file.display().to_string(),
                source: std::io::Error::other("it must hold 32 bytes; restore it"),
            })?,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                let mut secret = [0; 32];
                getrandom::fill(&mut secret).map_err(|_| Error::Random)?;
                write_private(secret_file, &secret)?;
                secret
            }
            Err(source) => {
                let path = secret_file.display().to_string();
                return Err(Error::File { operation: "read", path, source });
            }
        };
        let people = People::open(store, clock)?;
        let attempts = RwLock::new(HashMap::new());
        let signer = Signer::new(&secret, workspace).ok_or(Error::Key)?;
        let (nodes, verified) = (Identities::default(), RwLock::default());
        let asks_every = reauthorise::EVERY;
        let audit = OnceLock::new();
        Ok(Self { secret, people, asks_every, signer, attempts, verified, nodes, audit })
    }

    /// How often what goes on is asked whether it still may.
    pub(super) fn asks_every(&self) -> Duration {
        self.asks_every
    }

    /// The same with another time between, for tests.
    #[cfg(test)]
    pub(super) fn asking_every(self, asks_every: Duration) -> Self {
        Self { asks_every, ..self }
    }

    /// Users, their tokens, and roles.
    pub fn people(&self) -> &People {
        &self.people
    }

    /// The time by which tokens and certificates expire.
    pub(super) fn now(&self) -> Timestamp {
        self.people.now()
    }

    /// Names the caller by an `authorization` header.
    pub fn authenticate(&self, authorization: Option<&str>) -> Result<Caller, Denied> {
        let header = authorization.ok_or(Denied::NoToken)?;
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(Denied::WrongToken),
        };
        if token.starts_with(SIGNED_PREFIX) {
            return self.attempt(self.signed(token)?);
        }
        if let Some(attempt) = token.strip_prefix(ATTEMPT_PREFIX) {
            return self.attempt(self.sealed(attempt)?);
        }
        self.people.of_token(token)
    }

    /// Names the caller again whose token was let in before and has opened something that still goes on.
    ///
    /// # Errors
    /// If it would not be let in now, in words for who has been in.
    pub fn authenticate_again(&self, authorization: Option<&str>) -> Result<Caller, Denied> {
        self.authenticate(authorization).map_err(|denied| match denied {
            Denied::WrongToken => Denied::Revoked,
            other => other,
        })
    }

    /// The attempt of a token that is signed.
    fn signed(&self, token: &str) -> Result<AttemptScope, Denied> {
        let verified = self.verified.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(scope) = verified.get(&Digest::of(token.as_bytes())) {
            return Ok(scope.clone());
        }
        drop(verified);
        self.signer.scope(token).ok_or(Denied::WrongToken)
    }

    /// The attempt of a token of an earlier version.
    fn sealed(&self, token: &str) -> Result<AttemptScope, Denied> {
        let wrong = || Denied::WrongToken;
        let (body, mac) = token.split_once('.').ok_or_else(wrong)?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| wrong())?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| wrong())?;
        let mac: [u8; 32] = mac.try_into().map_err(|_| wrong())?;
        // blake3::Hash compares in constant time.
        if blake3::keyed_hash(&self.secret, &body) != blake3::Hash::from_bytes(mac) {
            return Err(wrong());
        }
        serde_json::from_slice(&body).map_err(|_| wrong())
    }

    fn attempt(&self, scope: AttemptScope) -> Result<Caller, Denied> {
        let attempts = self.attempts.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !attempts.get(&scope.job).is_some_and(|live| live.is(&scope)) {
            return Err(Denied::AttemptOver);
        }
        let principal = Principal::new(&format!("attempt:{}/{}", scope.job, scope.attempt))
            .map_err(|_| Denied::WrongToken)?;
        Ok(Caller { principal, role: Role::Attempt(scope) })
    }

    /// Makes an attempt's token and lets it in from now on. Making it again gives the same token.
    pub fn admit_attempt(&self, key: &AttemptKey, spec: &CommandJob) -> String {
        let scope = AttemptScope { job: key.job.clone(), attempt: key.attempt, epoch: key.epoch };
        let token = self.signer.token(&scope);
        let hash = Digest::of(token.as_bytes());
        let mut attempts = self.attempts.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = attempts.get(&key.job).filter(|live| live.epoch == key.epoch);
        let live = LiveAttempt {
            attempt: key.attempt,
            epoch: key.epoch,
            grants: Arc::new(grants_of(&key.job, spec)),
            hash,
            // Told to another of its nodes again, it is what it was.
            fenced: before.is_some_and(|live| live.fenced),
        };
        let mut verified = self.verified.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(before) = attempts.insert(key.job.clone(), live) {
            verified.remove(&before.hash);
        }
        verified.insert(hash, scope);
        token
    }

    /// The key by which anybody can verify attempts' tokens.
    pub fn keys(&self) -> serde_json::Value {
        self.signer.keys()
    }

    /// What the number of a job's user on its nodes follows from: the same for all of its attempts, and nothing
    /// that somebody could reach by the choice of a name.
    pub fn user_seed(&self, job: &JobName, created_by: &Principal) -> u64 {
        let body = serde_json::to_vec(&("job user", job, created_by.to_string()));
        let mac = blake3::keyed_hash(&self.secret, &body.unwrap_or_default());
        mac.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Lets an attempt's token in no more.
    pub fn dismiss_attempt(&self, key: &AttemptKey) {
        let mut attempts = self.attempts.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if attempts.get(&key.job).is_some_and(|live| live.epoch == key.epoch)
            && let Some(over) = attempts.remove(&key.job)
        {
            let mut verified = self.verified.write().unwrap_or_else(|p| p.into_inner());
            verified.remove(&over.hash);
        }
    }

    /// Has an attempt's token open nothing for a while, as when its node is cut off, or opens it again.
    pub fn fence_attempt(&self, key: &AttemptKey, fenced: bool) {
        let mut attempts = self.attempts.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(live) = attempts.get_mut(&key.job).filter(|live| live.epoch == key.epoch) {
            live.fenced = fenced;
        }
    }

    /// What nodes are known by.
    pub fn nodes(&self) -> &Identities {
        &self.nodes
    }

    /// Makes a token for a person or node. It is shown once and stored hashed.
    pub async fn create_token(
        &self,
        principal: Principal,
        role: Role,
        by: impl Into<Actor>,
        now: Timestamp,
    ) -> Result<String, Error> {
        self.people.make(principal, role, by.into(), now).await
    }

    /// Whether somebody is an admin, now.
    pub fn is_admin(&self, principal: &Principal) -> bool {
        self.people.is_admin(principal)
    }

    /// Whether somebody may change what others made, now.
    pub fn changes_any(&self, principal: &Principal) -> bool {
        self.people.changes_any(principal)
    }

    /// Lets the holder of a token in that is on disk already.
    pub(crate) fn know(&self, token: TokenRecord) {
        self.people.know_token(token);
    }

    /// Whether a node is let in by something.
    pub fn has_node(&self, node: &NodeName) -> bool {
        self.nodes.in_force(node).is_some() || self.people.has_node(node)
    }

    /// Nobody gets a token while this is held: what is dropped on disk is dropped here before another is made.
    pub(crate) async fn hold_tokens(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.people.hold().await
    }

    /// Lets in no token of a node any more; none is on disk.
    pub(crate) fn forget_node(&self, node: &NodeName) {
        self.people.forget_node(node);
    }

    /// Makes sure that `file` holds a valid token, readable by its owner alone.
    pub async fn token_file(
        &self,
        file: &Path,
        principal: Principal,
        role: Role,
        now: Timestamp,
    ) -> Result<(), Error> {
        if let Ok(token) = fs::read_to_string(file)
            && self.people.is_known(token.trim())
        {
            return Ok(());
        }
        if self.people.blocked().iter().any(|block| block.name == principal) {
            tracing::warn!(%principal, file = %file.display(), "no token is made: who it is for is blocked");
            return Ok(());
        }
        let by = Actor::daemon(Principal::new("daemon")?, "start");
        let token = self.create_token(principal, role, by, now).await?;
        write_private(file, format!("{token}\n").as_bytes())
    }

    /// Whether the caller may read or write this object through the data gateway.
    pub fn authorize_data(
        &self,
        caller: &Caller,
        datastore: &DatastoreName,
        path: &str,
        write: bool,
    ) -> Result<(), Denied> {
        let allowed = match &caller.role {
            Role::Node(_) => false,
            Role::Attempt(scope) => {
                let attempts = self.attempts.read().unwrap_or_else(|p| p.into_inner());
                attempts
                    .get(&scope.job)
                    .is_some_and(|live| live.is(scope) && live.grants.allow(datastore, path, write))
            }
            _ if layout::is_uncommitted(path) => false,
            _ if !write => caller.may(Permission::ReadData),
            // Results are written by attempts alone, and what a job is given from people's machines lies in a folder
            // of their own.
            _ => {
                let own = layout::uploads_root(&caller.principal);
                let is_own = path.strip_prefix(&own).is_some_and(|below| below.starts_with('/'));
                let any = caller.may(Permission::ChangeAny);
                caller.may(Permission::WriteData)
                    && (any || is_own || !layout::is_kept(datastore, path))
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Denied::NotAllowed {
            principal: caller.principal.clone(),
            role: caller.role.to_string(),
            action: if write { "write this object" } else { "read this object" },
        })
    }

    /// Tells this log of refusals, and of who reads and writes what through the data gateway, from now on.
    pub fn tell(&self, audit: AuditLog) {
        // Told of one log only.
        let _ = self.audit.set(audit);
    }

    /// A request was refused.
    pub fn tell_refused(&self, caller: Option<&Caller>, origin: Origin, resource: &str, why: &str) {
        let Some(audit) = self.audit.get() else { return };
        let by = match caller {
            Some(caller) => origin.actor(caller),
            None => {
                // Whoever it is.
                let Ok(principal) = Principal::new("unknown") else { return };
                let Origin { from, action } = origin;
                Actor { principal, role: String::new(), from, action }
            }
        };
        audit.refused(by, resource, why);
    }

    /// Data was used: by an attempt through a grant, whose prefix is told; else its folder is, or what was removed.
    pub fn tell_used(
        &self,
        caller: &Caller,
        origin: &Origin,
        datastore: &DatastoreName,
        path: &str,
        how: Use,
    ) {
        let Some(audit) = self.audit.get() else { return };
        let write = how != Use::Read;
        let place = match &caller.role {
            Role::Attempt(scope) => {
                let attempts = self.attempts.read().unwrap_or_else(|p| p.into_inner());
                let live = attempts.get(&scope.job).filter(|live| live.is(scope));
                live.and_then(|live| live.grants.prefix(datastore, path, write)).map(str::to_owned)
            }
            _ if how == Use::Delete => Some(path.to_owned()),
            _ => None,
        };
        let folder = || path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let place = place.unwrap_or_else(folder);
        let mut by = origin.actor(caller);
        by.action = how.action().to_owned();
        audit.used(by, format!("datastore/{datastore}/{place}"));
    }

    /// Whether a token that was let in would be let in now.
    ///
    /// # Errors
    /// [`Denied::AttemptOver`].
    pub fn still_open(&self, caller: &Caller) -> Result<(), Denied> {
        let Role::Attempt(scope) = &caller.role else { return Ok(()) };
        let attempts = self.attempts.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        match attempts.get(&scope.job) {
            Some(live) if live.is(scope) => Ok(()),
            Some(_) | None => Err(Denied::AttemptOver),
        }
    }

    /// Whether an attempt is let in.
    pub fn is_live(&self, scope: &AttemptScope) -> bool {
        let attempts = self.attempts.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        attempts.get(&scope.job).is_some_and(|live| live.is(scope))
    }

    /// The node that a token belongs to.
    pub fn node_of(caller: &Caller) -> Option<&NodeName> {
        match &caller.role {
            Role::Node(node) => Some(node),
            _ => None,
        }
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| Error::File {
        operation: "write",
        path: path.display().to_string(),
        source,
    })
}
