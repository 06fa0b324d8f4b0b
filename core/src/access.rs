//! Who may do what. Deny by default: what is not listed here is not allowed.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{AttemptNumber, Epoch, JobName, NodeName, Principal, RoleName};

mod custom;
mod people;
mod permission;
#[cfg(test)]
mod tests;

pub use custom::{CustomRole, Invalid, RoleFile};
pub(crate) use people::listed;
pub use people::{MAX_GROUPS, People, Person};
pub use permission::{Permission, Permissions, UnknownAction};

/// What a caller is, once the door has looked at its token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, computes and users included.
    Admin,
    /// Drains and scales computes, has nodes join, cancels anybody's jobs.
    ComputeOperator,
    /// Submits jobs, reads everything, changes what is its own.
    DataScientist,
    /// Reads.
    Reader,
    /// One that somebody has made of actions.
    Custom(Held),
    /// A node's agent.
    Node(NodeName),
    /// A running attempt: its own run, inputs and outputs, and nothing else.
    Attempt(AttemptScope),
}

/// A custom role as somebody has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Its name, which is all that is stored: roles change.
    pub name: RoleName,
    /// What it allows. Nothing, until the door has looked it up.
    #[serde(skip)]
    pub permissions: Permissions,
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
            Self::ComputeOperator => f.write_str("compute-operator"),
            Self::DataScientist => f.write_str("data-scientist"),
            Self::Reader => f.write_str("reader"),
            Self::Custom(held) => write!(f, "{}", held.name),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Attempt(scope) => write!(f, "attempt {}/{}", scope.job, scope.attempt),
        }
    }
}

/// What Azure calls the roles; taken as well as their names here.
const AZURE: &[(&str, Role)] = &[
    ("Owner", Role::Admin),
    ("AzureML Compute Operator", Role::ComputeOperator),
    ("AzureML Data Scientist", Role::DataScientist),
    ("Reader", Role::Reader),
];

impl Role {
    /// The roles that come with every workspace, for people.
    pub const BUILTIN: &'static [Self] =
        &[Self::Admin, Self::ComputeOperator, Self::DataScientist, Self::Reader];

    /// The role of this name that comes with every workspace: `compute-operator`, or as Azure calls it
    /// (`AzureML Compute Operator`), in any case, with blanks, `-` and `_` being the same.
    pub fn builtin(name: &str) -> Option<Self> {
        let plain = |text: &str| -> String {
            let kept = text.trim().chars().map(|c| if matches!(c, ' ' | '_') { '-' } else { c });
            kept.collect::<String>().to_ascii_lowercase()
        };
        let wanted = plain(name);
        let own = Self::BUILTIN.iter().find(|role| role.to_string() == wanted);
        let azure = || AZURE.iter().find(|(name, _)| plain(name) == wanted).map(|(_, role)| role);
        own.or_else(azure).cloned()
    }

    /// What Azure calls it, where Azure has it.
    pub fn azure_name(&self) -> Option<&'static str> {
        AZURE.iter().find(|(_, role)| role == self).map(|(name, _)| *name)
    }

    /// Whether a person may have it, or a token of a person's.
    pub fn is_for_people(&self) -> bool {
        !matches!(self, Self::Node(_) | Self::Attempt(_))
    }

    /// All that it allows. What is one's own is checked where the thing is known.
    pub fn permissions(&self) -> Permissions {
        use Permission as P;
        const STATUS: &[P] = &[P::ReadWorkspace, P::ReadComputes, P::ReadJobs];
        const READ: &[P] = &[
            P::ReadRuns,
            P::ReadDatastores,
            P::ReadAssets,
            P::ReadEnvironments,
            P::ReadComponents,
            P::ReadSecrets,
            P::ReadData,
            P::ReadContent,
        ];
        const OPERATE: &[P] =
            &[P::DrainCompute, P::ScaleCompute, P::JoinNodes, P::CancelJob, P::CancelAny];
        const WORK: &[P] = &[
            P::Submit,
            P::CancelJob,
            P::ChangeJob,
            P::EnterJob,
            P::WriteRun,
            P::TestDatastores,
            P::WriteData,
            P::WriteContent,
            P::WriteAssets,
            P::DeleteAssets,
            P::WriteEnvironments,
            P::BuildEnvironments,
            P::WriteComponents,
            P::DeleteComponents,
        ];
        let of = |lists: &[&[P]]| lists.iter().flat_map(|list| list.iter().copied()).collect();
        match self {
            Self::Admin => P::ALL.iter().copied().filter(|p| p.is_for_people()).collect(),
            Self::ComputeOperator => of(&[STATUS, OPERATE]),
            Self::DataScientist => of(&[STATUS, READ, WORK]),
            Self::Reader => of(&[STATUS, READ]),
            Self::Custom(held) => held.permissions,
            Self::Node(_) => of(&[&[P::ActAsNode, P::ReadContent]]),
            Self::Attempt(_) => of(&[&[P::WriteRun, P::ReadData, P::WriteData]]),
        }
    }

    /// This role as far as the other allows it: a token never does more than its user.
    #[must_use]
    pub fn within(&self, limit: &Self) -> Self {
        let (own, most) = (self.permissions(), limit.permissions());
        if own.within(most) {
            return self.clone();
        }
        if most.within(own) {
            return limit.clone();
        }
        let name = match self {
            Self::Custom(held) => Ok(held.name.clone()),
            other => RoleName::new(&other.to_string()),
        };
        match name {
            Ok(name) => Self::Custom(Held { name, permissions: own.and(most) }),
            Err(_) => limit.clone(),
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

impl Caller {
    /// Whether the role has the permission at all. Scope (own job, own run, own prefix) is checked
    /// where the thing is known.
    pub fn may(&self, permission: Permission) -> bool {
        self.role.permissions().has(permission)
    }

    /// Whether the caller may change a job (or run) that `owner` made.
    pub fn owns(&self, owner: &Principal, run: &str) -> bool {
        self.is_own(owner, run) || (self.role.is_for_people() && self.may(Permission::ChangeAny))
    }

    /// Whether a job (or run) that `owner` made is the caller's own: nobody writes to another's runs or enters
    /// another's jobs, whatever the role.
    pub fn is_own(&self, owner: &Principal, run: &str) -> bool {
        match &self.role {
            Role::Attempt(scope) => scope.job.as_str() == run,
            Role::Node(_) => false,
            // Who only looks changes nothing, also of what was made in another role.
            role => &self.principal == owner && role.permissions().iter().any(changes),
        }
    }

    /// Whether the caller may cancel a job that `owner` made.
    pub fn may_cancel(&self, owner: &Principal) -> bool {
        self.may(Permission::CancelJob)
            && (&self.principal == owner || self.may(Permission::CancelAny))
    }

    /// Whether the caller may give this role to somebody: nobody gives what they do not have.
    pub fn may_grant(&self, role: &Role) -> bool {
        match role {
            Role::Node(_) => self.may(Permission::JoinNodes),
            Role::Attempt(_) => false,
            role => {
                self.may(Permission::ManageTokens)
                    && role.permissions().within(self.role.permissions())
            }
        }
    }
}

/// Whether it is more than looking.
fn changes(permission: Permission) -> bool {
    !permission.name().ends_with("/read")
}

/// Whether the caller may do what the action says, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether.
    pub allowed: bool,
    /// Why, in a sentence.
    pub reason: Arc<str>,
}

/// Answers `can-i`.
pub fn can(caller: &Caller, permission: Permission) -> Verdict {
    use Permission as P;
    let allowed = caller.may(permission);
    let Caller { principal, role } = caller;
    let scope = match permission {
        _ if !allowed => "",
        P::CancelJob if !caller.may(P::CancelAny) => ", of its own jobs",
        P::ChangeJob | P::DeleteAssets | P::DeleteComponents | P::WriteSecrets
            if !caller.may(P::ChangeAny) =>
        {
            ", of what it made itself"
        }
        P::EnterJob => ", of its own jobs alone",
        P::WriteRun => ", of its own runs alone",
        _ => "",
    };
    let may = if allowed { "may" } else { "may not" };
    let verb = permission.action();
    let reason = format!("{principal} has the role {role}, which {may} {verb}{scope}");
    Verdict { allowed, reason: reason.into() }
}
