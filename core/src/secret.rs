//! What is known of a secret but its value, who may give it another, and whose jobs may use it.

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::access::{Caller, Role};
use crate::id::{DatastoreName, InvalidName, JobName, Principal, SecretName, SecretVersion};
use crate::time::Timestamp;

/// The longest value, in bytes: as Azure Key Vault has it.
pub const MAX_VALUE: usize = 25 << 10;

/// A secret as everybody may see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// Its name, as it was first written.
    pub name: SecretName,
    /// Its latest version.
    pub version: SecretVersion,
    /// Whose it is: who set its first version.
    pub owner: Principal,
    /// When that was.
    pub created_at: Timestamp,
    /// Who set the latest version.
    pub updated_by: Principal,
    /// When that was.
    pub updated_at: Timestamp,
}

/// Under what the vault keeps a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SealedName {
    /// Somebody's secret.
    Secret(SecretName),
    /// The credentials of a datastore. No secret can have such a name.
    Datastore(DatastoreName),
}

/// Begins the names of datastores' credentials.
const OF_DATASTORE: &str = "datastore/";

impl SealedName {
    /// As it is kept: no two are written alike.
    pub fn key(&self) -> String {
        match self {
            Self::Secret(name) => name.to_string(),
            Self::Datastore(name) => format!("{OF_DATASTORE}{name}"),
        }
    }
}

impl FromStr for SealedName {
    type Err = InvalidName;
    fn from_str(key: &str) -> Result<Self, InvalidName> {
        match key.strip_prefix(OF_DATASTORE) {
            Some(name) => DatastoreName::new(name).map(Self::Datastore),
            None => SecretName::new(key).map(Self::Secret),
        }
    }
}

/// For people.
impl fmt::Display for SealedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret '{name}'"),
            Self::Datastore(name) => write!(f, "the credentials of datastore '{name}'"),
        }
    }
}

/// Leave to use a secret in jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Whose jobs may; `None`: everybody's.
    pub to: Option<Principal>,
    /// Who gave it.
    pub by: Principal,
    /// When.
    pub at: Timestamp,
}

/// That a job had the value of a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Use {
    /// The job.
    pub job: JobName,
    /// Which version it had.
    pub version: SecretVersion,
    /// Whose job it is.
    pub by: Principal,
    /// When its newest attempt was given it.
    pub at: Timestamp,
}

/// Why a secret is not set, deleted or used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is none of the name, or it was deleted.
    #[error("there is no secret '{0}'; see 'atelier secret list'")]
    NoSuch(String),
    /// It is somebody else's.
    #[error(
        "{principal} may not change secret '{name}': it is {owner}'s; only its owner or an admin may"
    )]
    NotOwner {
        /// Who tried.
        principal: Principal,
        /// Which.
        name: SecretName,
        /// Whose.
        owner: Principal,
    },
    /// It is somebody else's, who has not given leave to use it.
    #[error(
        "{principal} may not use secret '{name}': it is {owner}'s; {owner} or an admin may allow it \
         (atelier secret grant {name} --user {principal})"
    )]
    NotGranted {
        /// Who tried.
        principal: Principal,
        /// Which.
        name: SecretName,
        /// Whose.
        owner: Principal,
    },
    /// There is the secret, and not this version of it.
    #[error("secret '{name}' has no version {version}; see 'atelier secret show {name}'")]
    NoSuchVersion {
        /// Which.
        name: SecretName,
        /// What was asked for.
        version: SecretVersion,
    },
    /// Jobs that name no version mean this one.
    #[error(
        "version {version} of secret '{name}' is its latest; set it anew first (atelier secret set {name}), or delete \
         all of it (atelier secret delete {name})"
    )]
    Latest {
        /// Which.
        name: SecretName,
        /// Its latest version.
        version: SecretVersion,
    },
    /// Jobs that are not over have it.
    #[error(
        "version {version} of secret '{name}' is in use, by {}; delete it when no job that is not over means it (wait, or \
         atelier job cancel)",
        shown(.jobs)
    )]
    InUse {
        /// Which.
        name: SecretName,
        /// Which of it.
        version: SecretVersion,
        /// The jobs.
        jobs: Vec<JobName>,
    },
    /// It was not granted to be taken back.
    #[error("secret '{name}' was not granted to {to}; see 'atelier secret show {name}'")]
    NoSuchGrant {
        /// Which.
        name: SecretName,
        /// To whom it should have been.
        to: String,
    },
    /// No value.
    #[error("the value of secret '{0}' is empty")]
    Empty(SecretName),
    /// Too long a value.
    #[error(
        "the value of secret '{name}' is {bytes} bytes long, and at most {MAX_VALUE} are allowed"
    )]
    TooLarge {
        /// Of which.
        name: SecretName,
        /// How long it is.
        bytes: usize,
    },
    /// Its versions have reached the last number.
    #[error("secret '{0}' has no version left; use another name")]
    NoVersionLeft(SecretName),
}

/// Jobs, not more of them by name than are of use.
fn shown(jobs: &[JobName]) -> String {
    const SHOWN: usize = 3;
    let names: Vec<_> = jobs.iter().take(SHOWN).map(|job| format!("'{job}'")).collect();
    let (word, names) = (if jobs.len() == 1 { "job" } else { "jobs" }, names.join(", "));
    match jobs.len().saturating_sub(SHOWN) {
        0 => format!("{word} {names}"),
        more => format!("{word} {names} and {more} more"),
    }
}

/// What the vault remembers of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name, as it was first written.
    pub name: SecretName,
    /// The last version given.
    pub version: SecretVersion,
    /// Whose it is; of one that was deleted, nobody's.
    pub owner: Option<Principal>,
}

/// Whether a value may be kept at all.
pub fn check_value(name: &SecretName, bytes: usize) -> Result<(), Refusal> {
    match bytes {
        0 => Err(Refusal::Empty(name.clone())),
        bytes if bytes > MAX_VALUE => Err(Refusal::TooLarge { name: name.clone(), bytes }),
        _ => Ok(()),
    }
}

/// Which name and version the caller's next value of `name` gets, given what is remembered of it.
pub fn next_version(
    name: &SecretName,
    known: Option<&Entry>,
    caller: &Caller,
) -> Result<(SecretName, SecretVersion), Refusal> {
    let Some(known) = known else { return Ok((name.clone(), SecretVersion(1))) };
    if let Some(owner) = &known.owner {
        check_owner(&known.name, owner, caller)?;
    }
    if known.version.0 == u32::MAX {
        return Err(Refusal::NoVersionLeft(known.name.clone()));
    }
    Ok((known.name.clone(), known.version.next()))
}

/// Whether the caller may delete it, or say whose jobs may use it.
pub fn check_owner(name: &SecretName, owner: &Principal, caller: &Caller) -> Result<(), Refusal> {
    // A secret is no run's.
    if caller.owns(owner, "") {
        return Ok(());
    }
    let principal = caller.principal.clone();
    Err(Refusal::NotOwner { principal, name: name.clone(), owner: owner.clone() })
}

/// Whether jobs of the caller's may use it. `is_granted`: to the caller, or to everybody.
pub fn check_use(
    name: &SecretName,
    owner: &Principal,
    is_granted: bool,
    caller: &Caller,
) -> Result<(), Refusal> {
    // Whoever may change what others made has no use of it by that.
    if is_granted || caller.role == Role::Admin || &caller.principal == owner {
        return Ok(());
    }
    let principal = caller.principal.clone();
    Err(Refusal::NotGranted { principal, name: name.clone(), owner: owner.clone() })
}
