//! The workspace's own certificate authority gives way to another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::audit::{Actor, Change};
use atelier_core::authority::{Behind, Member, Placed, ReliedOn, Rotated};
use atelier_core::id::NodeName;
use serde_json::json;
use tokio::sync::Mutex;

use super::{Clock, Handle, HandleError};
use crate::audit::AuditLog;
use crate::identity::Door;
use crate::store;
use crate::tls::{self, Before, Fingerprint, Secure};

/// Why an authority stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "the daemon speaks plain HTTP and has no certificate authority; one that listens for other machines has: \
         `atelier serve --listen 0.0.0.0:7420`"
    )]
    None,
    /// Somebody needs the one before.
    #[error("cannot retire it: {0}")]
    ReliedOn(#[from] ReliedOn),
    /// Its files.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The work was not done.
    #[error("the certificate authority was not changed: {0}")]
    Cut(String),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The daemon is going down.
    #[error(transparent)]
    Stopping(#[from] HandleError),
}

/// How it stands.
pub(crate) struct AuthorityView {
    /// The certificate of the one that issues, in PEM.
    pub(crate) certificate: String,
    pub(crate) previous: Option<Before>,
    pub(crate) behind: Behind,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Authority(Arc<Inner>);

struct Inner {
    secure: Option<Arc<Secure>>,
    door: Arc<Door>,
    handle: Handle,
    audit: AuditLog,
    clock: Clock,
    /// Of nodes' certificates.
    life: Duration,
    /// One change at a time, with what is decided by.
    turn: Mutex<()>,
}

impl Authority {
    pub(crate) fn new(
        secure: Option<Arc<Secure>>,
        door: Arc<Door>,
        handle: Handle,
        audit: AuditLog,
        clock: Clock,
        life: Duration,
    ) -> Self {
        if let Some(secure) = &secure {
            door.nodes().retire(secure.retired());
        }
        let turn = Mutex::new(());
        Self(Arc::new(Inner { secure, door, handle, audit, clock, life, turn }))
    }

    fn secure(&self) -> Result<&Arc<Secure>, Error> {
        self.0.secure.as_ref().ok_or(Error::None)
    }

    /// How it stands.
    pub(crate) async fn look(&self) -> Result<AuthorityView, Error> {
        let standing = self.secure()?.standing();
        let behind = match &standing.previous {
            Some(before) => self.behind(before, standing.fingerprint).await?,
            None => Behind::default(),
        };
        let (certificate, previous) = (standing.certificate, standing.previous);
        Ok(AuthorityView { certificate, previous, behind })
    }

    async fn behind(&self, before: &Before, newest: Fingerprint) -> Result<Behind, Error> {
        let nodes = self.0.door.nodes();
        let members: BTreeMap<NodeName, Member> = nodes
            .all_in_force()
            .into_iter()
            .map(|known| {
                let moved_at = nodes.known_by(&known, newest);
                (known.node, Member { since: known.since, moved_at })
            })
            .collect();
        let placed = self.0.handle.look(|live, _| {
            let active = live.jobs().filter_map(|job| Some((job, job.active()?)));
            let placed = active.map(|(job, active)| Placed {
                job: job.name.clone(),
                at: active.assigned_at,
                nodes: active.working().map(|(_, member)| member.node.clone()).collect(),
            });
            placed.collect::<Vec<_>>()
        });
        let certificates_last_ms = i64::try_from(self.0.life.as_millis()).unwrap_or(i64::MAX);
        let rotated = Rotated { at: before.rotated_at, certificates_last_ms };
        Ok(rotated.behind(&members, &placed.await?, self.0.clock.wall()))
    }

    /// Has a new one take over.
    pub(crate) async fn rotate(&self, by: Actor) -> Result<AuthorityView, Error> {
        let secure = self.secure()?.clone();
        let turn = self.0.turn.lock().await;
        let standing = secure.standing();
        if standing.previous.is_some() {
            return Err(tls::Error::NotRetired.into());
        }
        // First: a change that nobody is told of is worse than an entry of one that was cut short.
        let what = json!({ "rotated": hex(standing.fingerprint) });
        let who = by.principal.clone();
        self.0.audit.note(by, Change::done(RESOURCE, &what)).await?;
        let (now, system) = (self.0.clock.wall(), self.0.clock.system());
        work(move || secure.rotate(now, system)).await?;
        tracing::warn!(by = %who, "another certificate authority has taken over");
        drop(turn);
        self.look().await
    }

    /// Has the one before count no more; with `force` whoever relies on it.
    pub(crate) async fn retire(&self, force: bool, by: Actor) -> Result<AuthorityView, Error> {
        let secure = self.secure()?.clone();
        let turn = self.0.turn.lock().await;
        let standing = secure.standing();
        let before = standing.previous.ok_or(tls::Error::NothingBefore)?;
        let behind = self.behind(&before, standing.fingerprint).await?;
        if !force && !behind.is_nobody() {
            return Err(ReliedOn(behind).into());
        }
        let (nodes, jobs) = (&behind.nodes, &behind.jobs);
        let what =
            json!({ "retired": hex(before.fingerprint), "cut_off": nodes, "left_behind": jobs });
        let who = by.principal.clone();
        self.0.audit.note(by, Change::done(RESOURCE, &what)).await?;
        let (now, files) = (self.0.clock.wall(), secure.clone());
        work(move || files.retire(now)).await?;
        let nodes = self.0.door.nodes();
        nodes.retire(secure.retired());
        // What they have open was opened by what counts no more.
        behind.nodes.iter().for_each(|node| nodes.cut(node));
        tracing::warn!(by = %who, "the certificate authority before counts no more");
        drop(turn);
        self.look().await
    }
}

/// In the audit log.
const RESOURCE: &str = "certificate-authority";

/// Files are written.
async fn work(work: impl FnOnce() -> Result<(), tls::Error> + Send + 'static) -> Result<(), Error> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::Cut(error.to_string()))??)
}

fn hex(fingerprint: Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
