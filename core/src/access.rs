//! Who may do what. Deny by default: what is not listed here is not allowed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AttemptNumber, Epoch, JobName, NodeName, Principal};

/// What a caller is, once the door has looked at its token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, computes and tokens included.
    Admin,
    /// Submits jobs, reads everything, changes what is its own.
    DataScientist,
    /// Reads.
    Reader,
    /// A node's agent.
    Node(NodeName),
    /// A running attempt: its own run, inputs and outputs, and nothing else.
    Attempt(AttemptScope),
}

/// The attempt a token is bound to.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct AttemptScope {
    /// The job, also the run's id.
    pub job: JobName,
    /// Which try.
    pub attempt: AttemptNumber,
    /// Its fencing number.
    pub epoch: Epoch,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::DataScientist => f.write_str("data-scientist"),
            Self::Reader => f.write_str("reader"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Attempt(scope) => write!(f, "attempt {}/{}", scope.job, scope.attempt),
        }
    }
}

/// An authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Who, as events record it.
    pub principal: Principal,
    /// As what.
    pub role: Role,
}

/// What a route needs. Every RPC and HTTP route names exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Permission {
    /// See jobs, events, logs, artifacts, computes, nodes, datastores, experiments,
    /// assets, runs, and what secrets there are (not their values).
    Read,
    /// Submit a job, and upload the code and data it needs.
    Submit,
    /// Cancel, archive or delete a job; a data scientist only its own (checked where the job is
    /// known).
    ChangeJob,
    /// Run commands in jobs and reach their ports; a data scientist only in its own (checked where the job
    /// is known).
    EnterJob,
    /// Write to a run; an attempt only to its own (checked where the run is known).
    WriteRun,
    /// Read or write objects through the data gateway; an attempt only its own prefixes.
    Data,
    /// Make and revoke tokens.
    ManageTokens,
    /// Make, change, drain and delete computes and their nodes.
    ManageCompute,
    /// Make, change and delete datastores, which opens files of the daemon's machine.
    ManageDatastores,
    /// Open a node session and push what belongs to it.
    ActAsNode,
    /// Make, change and archive assets (data, models, environments), and have nodes build environments; a data
    /// scientist deletes only its own (checked where the asset is known).
    WriteAssets,
    /// Fetch content objects (code) by digest.
    ReadContent,
    /// Set and delete secrets, and say whose jobs may use them; a data scientist only its own (checked where the
    /// secret is known). There is no permission to read one's value.
    WriteSecrets,
    /// See which keys the vault's secrets are sealed with, and rotate them.
    ManageVault,
    /// Say how long what jobs left is kept, and have it go.
    ManageRetention,
}

impl Permission {
    /// What it allows, as a verb.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Read => "read jobs and runs",
            Self::Submit => "submit jobs or upload what they need",
            Self::ChangeJob => "cancel, archive or delete jobs",
            Self::EnterJob => "enter jobs",
            Self::WriteRun => "write to runs",
            Self::Data => "read or write objects",
            Self::ManageTokens => "make tokens",
            Self::ManageCompute => "manage computes and nodes",
            Self::ManageDatastores => "make, change or delete datastores",
            Self::ActAsNode => "act as a node",
            Self::WriteAssets => "make, change, archive or delete assets, or build environments",
            Self::ReadContent => "read code snapshots",
            Self::WriteSecrets => "set, grant or delete secrets",
            Self::ManageVault => "manage the vault's keys",
            Self::ManageRetention => "set or apply retention rules",
        }
    }
}

impl Caller {
    /// Whether the role has the permission at all. Scope (own job, own run, own prefix) is checked
    /// where the thing is known.
    pub fn may(&self, permission: Permission) -> bool {
        use Permission as P;
        match &self.role {
            Role::Admin => permission != P::ActAsNode,
            Role::DataScientist => matches!(
                permission,
                P::Read
                    | P::Submit
                    | P::ChangeJob
                    | P::EnterJob
                    | P::WriteRun
                    | P::Data
                    | P::ReadContent
                    | P::WriteAssets
                    | P::WriteSecrets
            ),
            Role::Reader => matches!(permission, P::Read | P::Data | P::ReadContent),
            Role::Node(_) => matches!(permission, P::ActAsNode | P::ReadContent),
            Role::Attempt(_) => matches!(permission, P::WriteRun | P::Data),
        }
    }

    /// Whether the caller may change a job (or run) that `owner` made.
    pub fn owns(&self, owner: &Principal, run: &str) -> bool {
        match &self.role {
            Role::Admin => true,
            Role::DataScientist => &self.principal == owner,
            Role::Attempt(scope) => scope.job.as_str() == run,
            Role::Reader | Role::Node(_) => false,
        }
    }
}
