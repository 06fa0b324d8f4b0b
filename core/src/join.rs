//! How a machine becomes a node: by a token that opens once. From then on it is known by an identity that its
//! certificates carry, and that an admin can revoke.

use serde::{Deserialize, Serialize};

use crate::content::Digest;
use crate::id::{ComputeName, NodeName, Principal};
use crate::time::Timestamp;

/// A join token, as it is kept: the token itself is not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinToken {
    /// Of the token.
    pub hash: Digest,
    /// The only compute that may be joined with it; `None`: any.
    pub compute: Option<ComputeName>,
    /// The only name that may be joined under; `None`: any that no node has.
    pub node: Option<NodeName>,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
    /// Until when it opens.
    pub expires_at: Timestamp,
    /// What it was used for.
    pub used: Option<Used>,
}

/// The use of a join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Used {
    /// When.
    pub at: Timestamp,
    /// The node that joined.
    pub node: NodeName,
    /// Of the key that it has shown: by it who lost the answer is known to be the same.
    pub key: Digest,
    /// The identity that it was given.
    pub identity: String,
    /// What it was answered: its first certificate, or nothing.
    pub answer: String,
}

/// What a node is known by.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The node.
    pub node: NodeName,
    /// Random: certificates of an earlier identity of the same name are worth nothing.
    pub id: String,
    /// The only compute that it may be part of; `None`: any.
    pub compute: Option<ComputeName>,
    /// Since when.
    pub since: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A machine that wants to be a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joining {
    /// Under which name.
    pub node: NodeName,
    /// Of which compute.
    pub compute: ComputeName,
    /// Of the key that it shows.
    pub key: Digest,
}

/// How a join is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission<'a> {
    /// The machine gets an identity, and the token is used.
    First,
    /// It has had its answer, which may have been lost on its way: it gets the same.
    Again(&'a Used),
}

/// Why a machine does not join.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Nobody made such a token, or it was long ago.
    #[error("the join token is not known here; have an admin make one (atelier node token create)")]
    Unknown,
    /// It opens once.
    #[error(
        "the join token was already used, at {at} by node '{by}'; each opens once: have an admin make another (atelier \
         node token create)"
    )]
    Used {
        /// When.
        at: Timestamp,
        /// By which node.
        by: NodeName,
    },
    /// It is too late.
    #[error(
        "the join token has expired, at {0}; have an admin make another (atelier node token create)"
    )]
    Expired(Timestamp),
    /// It is for another name.
    #[error(
        "the join token is for node '{of}', and the agent says it is '{asked}'; start it with --node {of}"
    )]
    OtherNode {
        /// For which.
        of: NodeName,
        /// What the agent says.
        asked: NodeName,
    },
    /// It is for another compute.
    #[error(
        "the join token is for compute '{of}', and the agent joins '{asked}'; start it with --compute {of}"
    )]
    OtherCompute {
        /// For which.
        of: ComputeName,
        /// What the agent says.
        asked: ComputeName,
    },
    /// A node has the name, and the token is for no node in particular.
    #[error(
        "there is a node '{0}' already; to let it join anew have an admin make a token for it (atelier node token \
         create --node {0}), or start this agent with another --node"
    )]
    Taken(NodeName),
}

/// A join token that there is not, as far as it could be deleted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotDeleted {
    /// There is none.
    #[error("there is no join token '{0}'; see `atelier node token list`")]
    Unknown(String),
    /// A machine has joined with it.
    #[error(
        "the join token '{id}' was used, at {at} by node '{by}', and opens nothing any more; to take the node out: \
         atelier node revoke {by}"
    )]
    Used {
        /// Which.
        id: String,
        /// When.
        at: Timestamp,
        /// By which node.
        by: NodeName,
    },
}

impl JoinToken {
    /// What it is called: of its hash, enough to tell it from others.
    pub fn id(&self) -> String {
        self.hash.to_string().chars().take(12).collect()
    }

    /// Whether it still opens.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.used.is_none() && now < self.expires_at
    }

    /// Whether a machine may join with it. `known`: what the name is known by now; `taken`: some node has the name,
    /// by whatever token.
    ///
    /// # Errors
    /// It may not.
    pub fn admits(
        &self,
        asks: &Joining,
        known: Option<&NodeIdentity>,
        taken: bool,
        now: Timestamp,
    ) -> Result<Admission<'_>, Refusal> {
        if let Some(used) = &self.used {
            let is_same = used.node == asks.node && used.key == asks.key;
            let is_in_force =
                known.is_some_and(|known| known.id == used.identity && known.revoked_at.is_none());
            if is_same && is_in_force {
                return Ok(Admission::Again(used));
            }
            return Err(Refusal::Used { at: used.at, by: used.node.clone() });
        }
        if now >= self.expires_at {
            return Err(Refusal::Expired(self.expires_at));
        }
        if let Some(of) = self.node.as_ref().filter(|of| **of != asks.node) {
            return Err(Refusal::OtherNode { of: of.clone(), asked: asks.node.clone() });
        }
        if let Some(of) = self.compute.as_ref().filter(|of| **of != asks.compute) {
            return Err(Refusal::OtherCompute { of: of.clone(), asked: asks.compute.clone() });
        }
        // Who may let some machine in may not let it in as one that is there.
        if self.node.is_none() && (taken || known.is_some()) {
            return Err(Refusal::Taken(asks.node.clone()));
        }
        Ok(Admission::First)
    }
}

#[cfg(test)]
mod tests;
