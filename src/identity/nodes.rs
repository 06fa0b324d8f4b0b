//! Nodes that are known by their certificates, and how they are cut off.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use atelier_core::access::{Caller, Role};
use atelier_core::id::{ComputeName, NodeName, Principal};
use atelier_core::join::NodeIdentity;
use atelier_core::time::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Denied;
use crate::tls::{Fingerprint, Peer};

/// What nodes are known by. Kept in the database too, which has it first.
#[derive(Default)]
pub struct Identities {
    known: RwLock<HashMap<NodeName, NodeIdentity>>,
    /// Of each node that has called: how often it was cut off.
    cuts: Mutex<HashMap<NodeName, watch::Sender<u64>>>,
    /// By which identity each has shown itself, issued by which authorities, and when first. Connections that were
    /// opened before it was issued anew go on.
    seen: RwLock<HashMap<NodeName, Seen>>,
    /// Authorities whose certificates are worth nothing any more.
    retired: RwLock<HashSet<Fingerprint>>,
}

struct Seen {
    identity: String,
    by: HashMap<Fingerprint, Timestamp>,
}

/// Leave to speak for a node, until that is taken back or its certificate has expired.
#[derive(Clone, Debug)]
pub struct Pass {
    cuts: watch::Receiver<u64>,
    ends: Option<Instant>,
}

impl Pass {
    /// Whether it has been taken back.
    pub fn is_void(&self) -> bool {
        self.cuts.has_changed().unwrap_or(true)
            || self.ends.is_some_and(|ends| ends <= Instant::now())
    }

    /// Waits until it is taken back.
    pub async fn void(mut self) {
        let ended = async {
            match self.ends {
                Some(ends) => tokio::time::sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error is the end of the daemon.
            _ = self.cuts.changed() => {}
            () = ended => {}
        }
    }

    /// The same until this moment at the longest.
    pub(crate) fn until(self, until: Timestamp, now: Timestamp) -> Self {
        let left = u64::try_from(until.as_millis() - now.as_millis()).unwrap_or(0);
        Self { ends: Instant::now().checked_add(Duration::from_millis(left)), ..self }
    }
}

impl Identities {
    /// Takes in what a node is known by; `None`: by nothing any more.
    pub(crate) fn set(&self, node: &NodeName, identity: Option<NodeIdentity>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match identity {
            Some(identity) => known.insert(node.clone(), identity),
            None => known.remove(node),
        };
    }

    /// Whether a machine has joined under the name, be it revoked since.
    pub(crate) fn knows(&self, node: &NodeName) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(node)
    }

    /// What a node is known by, if that is in force.
    pub fn in_force(&self, node: &NodeName) -> Option<NodeIdentity> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(node).filter(|known| known.revoked_at.is_none()).cloned()
    }

    /// The only compute that a node may be part of; `None`: any.
    pub fn compute_of(&self, node: &NodeName) -> Option<ComputeName> {
        self.in_force(node)?.compute
    }

    /// What nodes are known by that are in force.
    pub(crate) fn all_in_force(&self) -> Vec<NodeIdentity> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter(|known| known.revoked_at.is_none()).cloned().collect()
    }

    /// Since when a node shows a certificate of this authority, as far as this daemon has seen.
    pub(crate) fn known_by(
        &self,
        known: &NodeIdentity,
        authority: Fingerprint,
    ) -> Option<Timestamp> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(&known.node).filter(|seen| seen.identity == known.id)?;
        seen.by.get(&authority).copied()
    }

    /// Says which authorities' certificates are worth nothing any more.
    pub(crate) fn retire(&self, authorities: Vec<Fingerprint>) {
        let mut retired = self.retired.write().unwrap_or_else(PoisonError::into_inner);
        *retired = authorities.into_iter().collect();
    }

    fn see(&self, peer: &Peer, now: Timestamp) {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let of = seen.get(&peer.node).filter(|seen| seen.identity == peer.identity);
        if of.is_some_and(|seen| seen.by.contains_key(&peer.authority)) {
            return;
        }
        drop(seen);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Seen { identity: peer.identity.clone(), by: HashMap::new() };
        let of = seen.entry(peer.node.clone()).or_insert_with(new);
        if of.identity != peer.identity {
            *of = new();
        }
        of.by.entry(peer.authority).or_insert(now);
    }

    /// Nodes that were revoked.
    pub(crate) fn revoked(&self) -> Vec<NodeName> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let revoked = known.values().filter(|known| known.revoked_at.is_some());
        revoked.map(|known| known.node.clone()).collect()
    }

    /// Who has shown a certificate.
    pub(crate) fn caller(&self, peer: &Peer, now: Timestamp) -> Result<Caller, Denied> {
        let denied = |why: String| Denied::Certificate { node: peer.node.clone(), why };
        if peer.until <= now {
            return Err(denied(format!("it has expired, at {}", peer.until)));
        }
        let retired = self.retired.read().unwrap_or_else(PoisonError::into_inner);
        if retired.contains(&peer.authority) {
            return Err(denied(
                "the certificate authority that issued it was retired while the node was away"
                    .to_owned(),
            ));
        }
        drop(retired);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match known.get(&peer.node) {
            Some(NodeIdentity { revoked_at: Some(at), .. }) => {
                Err(denied(format!("the node was revoked, at {at}")))
            }
            Some(known) if known.id == peer.identity => {
                let principal = Principal::new(&format!("node:{}", peer.node));
                let principal = principal.map_err(|error| denied(error.to_string()))?;
                self.see(peer, now);
                Ok(Caller { principal, role: Role::Node(peer.node.clone()) })
            }
            Some(known) => Err(denied(format!(
                "a machine has joined under that name since, at {}",
                known.since
            ))),
            None => Err(denied("the workspace has no such node".to_owned())),
        }
    }

    /// For who speaks for a node: taken before it is known that it may, so that no cut is missed.
    pub(crate) fn pass(&self, node: &NodeName) -> Pass {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = cuts.entry(node.clone()).or_insert_with(|| watch::Sender::new(0));
        Pass { cuts: cut.subscribe(), ends: None }
    }

    /// Takes back every leave to speak for a node.
    pub(crate) fn cut(&self, node: &NodeName) {
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cut) = cuts.get(node) {
            cut.send_modify(|count| *count += 1);
        }
    }
}

#[cfg(test)]
mod tests;
