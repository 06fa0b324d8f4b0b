//! Machines become nodes, and nodes are cut off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::access::{Caller, Role};
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, JobName, NodeName, Principal};
use atelier_core::job::AttemptKey;
use atelier_core::join::{JoinToken, Joining, NodeIdentity, NotDeleted, Refusal};
use atelier_core::time::Timestamp;
use atelier_proto::JOIN_TOKEN;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::{Mutex, MutexGuard};

use super::{Clock, Handle, HandleError};
use crate::identity::{Door, Origin};
use crate::store::nodes::{self as rows, Asked};
use crate::store::{self, SqliteStore, TokenRecord};
use crate::tls::{self, Certificate, Secure};

/// For how long a join token opens, unless it is said, and at most.
const OPENS: Duration = Duration::from_secs(15 * 60);
pub(crate) const OPENS_AT_MOST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a signing request.
const REQUEST: usize = 16 << 10;

/// Why a machine does not become a node, or a node does not stay one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It may not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it has sent is of no use.
    #[error("{0}")]
    Invalid(String),
    /// There is none of this name.
    #[error(
        "there is no node '{0}', and no join token for that name; see `atelier node list`, and `atelier node token list` \
         for those that open for any name"
    )]
    NoSuchNode(NodeName),
    /// No join token that could be deleted.
    #[error(transparent)]
    NotDeleted(#[from] NotDeleted),
    /// There is no compute of this name.
    #[error("there is no compute '{0}'; see 'atelier compute list'")]
    NoSuchCompute(ComputeName),
    /// It has a token.
    #[error(
        "node '{0}' has a token and no certificate; to give it one make a join token for it (atelier node token create \
         --node {0})"
    )]
    NoCertificate(NodeName),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The system gave no random bytes.
    #[error("cannot make a token: the system gave no random bytes")]
    Random,
    /// The store said no.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The daemon is going down.
    #[error(transparent)]
    Stopping(#[from] HandleError),
}

/// A join token as it is shown, once.
pub(crate) struct Made {
    pub(crate) token: String,
    pub(crate) id: String,
    pub(crate) expires_at: Timestamp,
}

/// What a machine that joins shows: over TLS a signing request, else the digest of a token of its own.
pub(crate) enum Shows {
    Request(Vec<u8>),
    TokenHash(Vec<u8>),
}

/// What a node gets to be known by; nothing where it has shown a token of its own.
#[derive(Default)]
pub(crate) struct Given {
    pub(crate) certificate: String,
    pub(crate) authority: String,
    pub(crate) lasts_ms: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Nodes(Arc<Inner>);

struct Inner {
    database: Arc<SqliteStore>,
    door: Arc<Door>,
    secure: Option<Arc<Secure>>,
    workspace: String,
    clock: Clock,
    /// Of certificates.
    life: Duration,
    /// What the door knows follows what the database has in the same order.
    order: Mutex<()>,
}

impl Nodes {
    /// Lets in those that were known before.
    pub(crate) fn open(
        database: Arc<SqliteStore>,
        door: Arc<Door>,
        secure: Option<Arc<Secure>>,
        workspace: &str,
        clock: Clock,
        life: Duration,
    ) -> Result<Self, store::Error> {
        for identity in database.read(rows::identities)? {
            let node = identity.node.clone();
            door.nodes().set(&node, Some(identity));
        }
        let (workspace, order) = (workspace.to_owned(), Mutex::new(()));
        Ok(Self(Arc::new(Inner { database, door, secure, workspace, clock, life, order })))
    }

    /// Makes a join token.
    pub(crate) async fn make_token(
        &self,
        compute: Option<ComputeName>,
        node: Option<NodeName>,
        opens: Option<Duration>,
        by: Actor,
    ) -> Result<Made, Error> {
        let opens = opens.unwrap_or(OPENS);
        if opens > OPENS_AT_MOST {
            let days = OPENS_AT_MOST.as_secs() / (24 * 3600);
            return Err(Error::Invalid(format!("expires_s: at most {days} days are allowed")));
        }
        let secret = format!("{JOIN_TOKEN}{}", random::<32>()?);
        let created_at = self.0.clock.wall();
        let opens = i64::try_from(opens.as_millis()).unwrap_or(i64::MAX);
        let record = JoinToken {
            hash: Digest::of(secret.as_bytes()),
            compute,
            node,
            created_by: by.principal.clone(),
            created_at,
            expires_at: created_at.plus_millis(opens),
            used: None,
        };
        let (expires_at, id) = (record.expires_at, record.id());
        // One that is made at the moment of a revocation is dropped by it, or was asked for after it.
        let order = self.0.order.lock().await;
        self.0.database.change(by, move |conn| rows::put_join_token(conn, &record)).await?;
        drop(order);
        // Where the admin's certificate is shown, others vouch for the daemon.
        let own = self.0.secure.as_ref().filter(|secure| !secure.is_given());
        let token = match own {
            Some(own) => format!("{secret}.{}", URL_SAFE_NO_PAD.encode(own.fingerprint())),
            None => secret,
        };
        Ok(Made { token, id, expires_at })
    }

    /// The join tokens that still open.
    pub(crate) fn tokens(&self) -> Result<Vec<JoinToken>, Error> {
        let now = self.0.clock.wall();
        let all = self.0.database.read(rows::join_tokens)?.into_iter();
        Ok(all.filter(|token| token.is_open(now)).collect())
    }

    /// Has a join token open no more.
    pub(crate) async fn delete_token(&self, id: &str, by: Actor) -> Result<JoinToken, Error> {
        let id = id.to_owned();
        let deleted = self.0.database.change(by, move |conn| rows::delete_join_token(conn, &id));
        Ok(deleted.await??)
    }

    /// Lets a machine in.
    pub(crate) async fn join(
        &self,
        token: &str,
        node: NodeName,
        compute: ComputeName,
        shows: Shows,
        origin: &Origin,
    ) -> Result<Given, Error> {
        let secret = token.split_once('.').map_or(token, |(secret, _)| secret);
        let hash = Digest::of(secret.as_bytes());
        let shown: &[u8] = match &shows {
            Shows::Request(request) => request,
            Shows::TokenHash(hash) => hash,
        };
        if shown.len() > REQUEST {
            return Err(Error::Invalid(format!(
                "signing_request: is {} bytes long, at most {REQUEST} are allowed",
                shown.len()
            )));
        }
        let asks = Joining { node: node.clone(), compute, key: Digest::of(shown) };
        let now = self.0.clock.wall();
        let found = self.0.database.read(|conn| rows::may_join(conn, &hash, &asks, now))??;
        let token = match found {
            Asked::Again(answer) => return self.given(answer),
            Asked::First(token) => token,
        };
        let identity = NodeIdentity {
            node: node.clone(),
            id: random::<16>()?,
            compute: token.compute,
            since: now,
            revoked_at: None,
        };
        let principal = Principal::new(&format!("node:{node}"))
            .map_err(|error| Error::Invalid(format!("node: {error}")))?;
        let role = Role::Node(node.clone());
        let by = origin.actor(&Caller { principal: principal.clone(), role: role.clone() });
        let (answer, own) = match (&shows, &self.0.secure) {
            (Shows::Request(request), Some(secure)) => {
                let whose = (&*self.0.workspace, &node, &*identity.id);
                let made = secure.issue_node(request, whose, now, self.0.life)?;
                (made.pem, None)
            }
            (Shows::TokenHash(hash), None) => {
                let hash = <[u8; 32]>::try_from(&**hash).map_err(|_| {
                    Error::Invalid("token_hash: must hold 32 bytes, a BLAKE3 digest".to_owned())
                })?;
                let given = TokenRecord {
                    hash: Digest::from_bytes(hash),
                    principal,
                    role,
                    created_at: now,
                    created_by: Some(token.created_by.clone()),
                    expires_at: None,
                    last_used_at: None,
                };
                (String::new(), Some(given))
            }
            (Shows::TokenHash(_), Some(_)) => {
                return Err(Error::Invalid("signing_request: is required over TLS".to_owned()));
            }
            (Shows::Request(_), None) => {
                return Err(Error::Invalid(
                    "signing_request: the daemon speaks plain HTTP and makes no certificates"
                        .to_owned(),
                ));
            }
        };
        let _order = self.hold().await;
        let (known, given, told) = (identity.clone(), own.clone(), answer.clone());
        let joined = self
            .0
            .database
            .change(by, move |conn| rows::join(conn, &hash, &asks, &known, &told, given.as_ref()));
        if let Some(before) = joined.await?? {
            return self.given(before);
        }
        tracing::info!(%node, by = %token.created_by, "a machine has joined");
        // Who had the name before is that node no more.
        self.0.door.forget_node(&node);
        self.0.door.nodes().set(&node, Some(identity));
        if let Some(own) = own {
            self.0.door.know(own);
        }
        self.0.door.nodes().cut(&node);
        self.given(answer)
    }

    fn given(&self, certificate: String) -> Result<Given, Error> {
        let Some(secure) = self.0.secure.as_ref().filter(|_| !certificate.is_empty()) else {
            return Ok(Given::default());
        };
        let said = Certificate::of_pem(&certificate).map_err(tls::Error::Made)?;
        let lasts = said.not_after.as_millis() - self.0.clock.wall().as_millis();
        let lasts_ms = u64::try_from(lasts).unwrap_or(0);
        Ok(Given { certificate, authority: secure.authorities(), lasts_ms })
    }

    /// Makes a node's next certificate.
    pub(crate) fn renew(&self, node: &NodeName, request: &[u8]) -> Result<Given, Error> {
        let (Some(secure), Some(known)) = (&self.0.secure, self.0.door.nodes().in_force(node))
        else {
            return Err(Error::NoCertificate(node.clone()));
        };
        if request.len() > REQUEST {
            return Err(Error::Invalid(format!(
                "signing_request: is {} bytes long, at most {REQUEST} are allowed",
                request.len()
            )));
        }
        let whose = (&*self.0.workspace, node, &*known.id);
        let made = secure.issue_node(request, whose, self.0.clock.wall(), self.0.life)?;
        tracing::info!(%node, until = %made.until, "a node has its next certificate");
        self.given(made.pem)
    }

    /// Cuts a node off: when this returns, nothing that it was let in by opens any more. Of a name that no machine has
    /// joined under, the join tokens.
    pub(crate) async fn revoke(
        &self,
        node: &NodeName,
        handle: &Handle,
        by: Actor,
    ) -> Result<Revoked, Error> {
        let order = self.hold().await;
        let name = node.clone();
        let is_there = handle.look(move |live, _| live.node(&name).is_some()).await?;
        let join_tokens =
            |dropped: Vec<JoinToken>| u32::try_from(dropped.len()).unwrap_or(u32::MAX);
        if !is_there && !self.0.door.has_node(node) && !self.0.door.nodes().knows(node) {
            let name = node.clone();
            let dropped = self.0.database.change(by, move |c| rows::drop_join_tokens(c, &name));
            return match join_tokens(dropped.await?) {
                0 => Err(Error::NoSuchNode(node.clone())),
                join_tokens => Ok(Revoked { attempts: 0, join_tokens, never_joined: true }),
            };
        }
        let dropped = self.cut_off(node, by).await?;
        let attempts = self.fence([node.clone()].into(), handle).await?;
        drop(order);
        Ok(Revoked { attempts, join_tokens: join_tokens(dropped), never_joined: false })
    }

    /// The join tokens that were dropped with it. What the door knows is to follow in the same order.
    async fn cut_off(&self, node: &NodeName, by: Actor) -> Result<Vec<JoinToken>, Error> {
        let (name, now) = (node.clone(), self.0.clock.wall());
        let revoked = self.0.database.change(by, move |conn| rows::revoke(conn, &name, now));
        let (revoked, dropped) = revoked.await?;
        self.0.door.forget_node(node);
        self.0.door.nodes().set(node, Some(revoked));
        self.0.door.nodes().cut(node);
        Ok(dropped)
    }

    /// Nothing that nodes are let in by is changed by others while this is held.
    async fn hold(&self) -> (MutexGuard<'_, ()>, MutexGuard<'_, ()>) {
        (self.0.order.lock().await, self.0.door.hold_tokens().await)
    }

    /// Has the attempts on these nodes write nothing more, until they are over, where one of their nodes is cut off, and
    /// write again where none is. A gang has one token: it is on all of its nodes, or on none. How many attempts there
    /// are. Asked while nothing is changed by others.
    async fn fence(&self, nodes: BTreeSet<NodeName>, handle: &Handle) -> Result<u32, Error> {
        let cut_off = self.cut_off_now();
        let attempts = attempts_on(nodes, handle).await?;
        for (key, on) in &attempts {
            self.0.door.fence_attempt(key, is_fenced(on, &cut_off));
        }
        Ok(u32::try_from(attempts.len()).unwrap_or(u32::MAX))
    }

    /// Not those that have been given a token since.
    fn cut_off_now(&self) -> BTreeSet<NodeName> {
        let revoked = self.0.door.nodes().revoked().into_iter();
        revoked.filter(|node| !self.0.door.has_node(node)).collect()
    }

    /// Fences what was fenced when the daemon stopped.
    pub(crate) async fn fence_revoked(&self, handle: &Handle) -> Result<(), Error> {
        let _order = self.hold().await;
        let revoked = self.cut_off_now();
        if !revoked.is_empty() {
            self.fence(revoked, handle).await?;
        }
        Ok(())
    }

    /// A node that was cut off has joined anew: what has run on there since writes again, unless it is on another too
    /// that is cut off.
    pub(crate) async fn lift(&self, node: &NodeName, handle: &Handle) -> Result<(), Error> {
        let _order = self.hold().await;
        self.fence([node.clone()].into(), handle).await.map(drop)
    }

    /// Forgets a node that is no more.
    pub(crate) async fn forget(&self, node: &NodeName) -> Result<(), Error> {
        let _order = self.hold().await;
        let daemon = Principal::new("daemon").map_err(|error| Error::Invalid(error.to_string()))?;
        let (name, by) = (node.clone(), Actor::daemon(daemon, "node removed"));
        self.0.database.change(by, move |conn| rows::forget(conn, &name)).await?;
        self.0.door.forget_node(node);
        self.0.door.nodes().set(node, None);
        self.0.door.nodes().cut(node);
        Ok(())
    }
}

/// What a revocation has come to.
pub(crate) struct Revoked {
    /// Attempts that the node had.
    pub(crate) attempts: u32,
    /// Unused join tokens for the name.
    pub(crate) join_tokens: u32,
    /// No machine had joined under it.
    pub(crate) never_joined: bool,
}

/// The attempts on these nodes, each with all the nodes that it is on still.
async fn attempts_on(
    nodes: BTreeSet<NodeName>,
    handle: &Handle,
) -> Result<Vec<(AttemptKey, Vec<NodeName>)>, HandleError> {
    handle
        .look(move |live, _| {
            let nodes = nodes.iter().filter_map(|node| live.node(node));
            let jobs: BTreeSet<&JobName> = nodes.flat_map(|node| node.attempts.keys()).collect();
            let attempts = jobs.into_iter().filter_map(|job| {
                let job = live.job(job)?;
                let on = job.active()?.working().map(|(_, member)| member.node.clone()).collect();
                Some((job.attempt_key()?, on))
            });
            attempts.collect()
        })
        .await
}

/// Whether an attempt on these nodes writes nothing, with those cut off.
fn is_fenced(on: &[NodeName], cut_off: &BTreeSet<NodeName>) -> bool {
    on.iter().any(|node| cut_off.contains(node))
}

fn random<const N: usize>() -> Result<String, Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests;
