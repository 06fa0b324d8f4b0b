//! Who may use a compute.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::{Person, listed};
use crate::id::{GroupName, Principal};

/// Users, and groups, to whom one compute may be given.
pub const MAX_GIVEN: usize = 1_000;

/// Who may use a compute. Whoever may change computes may use any.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Everybody whose role has them submit jobs.
    #[default]
    Everybody,
    /// Only those to whom it was given.
    Given(Whom),
}

/// Some users, and the members of some groups.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Whom {
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub users: BTreeSet<Principal>,
    /// Whoever is in one of these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<GroupName>,
}

impl Whom {
    /// Whether it is nobody.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

/// `group 'vision' and user 'ana'`.
impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |what: &str, count: usize, names: String| match count {
            0 => None,
            1 => Some(format!("{what} {names}")),
            _ => Some(format!("{what}s {names}")),
        };
        let parts = [
            some("group", self.groups.len(), listed(&self.groups)),
            some("user", self.users.len(), listed(&self.users)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return f.write_str("those alone who manage computes");
        }
        f.write_str(&parts.join(" and "))
    }
}

/// A change of who may use a compute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessChange {
    /// Lets these use it, too; the first whom it is given to have it for themselves.
    Grant(Whom),
    /// Lets these use it no more.
    Revoke(Whom),
    /// Lets everybody use it.
    Open,
    /// Lets nobody use it but those to whom it is given afterwards.
    Close,
}

/// Why it is not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unchanged {
    /// Nobody is named.
    #[error(
        "it names nobody; name a user or a group (--user, --group), or everybody (--everybody)"
    )]
    Nobody,
    /// It was never given to them.
    #[error("it was not given to {0}")]
    NotGiven(Whom),
    /// Everybody may use it.
    #[error(
        "everybody may use it; give it to those who shall have it ('atelier compute access grant'), or take it from \
         everybody first (--everybody)"
    )]
    OpenToAll,
    /// Too many.
    #[error(
        "{MAX_GIVEN} {0} have it, which is the most; put users into a group and give it to that"
    )]
    TooMany(&'static str),
}

impl Access {
    /// Whether it is the default, which is not stored.
    pub fn is_everybodys(&self) -> bool {
        *self == Self::Everybody
    }

    /// Whether somebody may use it.
    pub fn admits(&self, who: &Principal, person: &Person) -> bool {
        match self {
            Self::Everybody => true,
            Self::Given(_) if person.manages => true,
            Self::Given(Whom { users, groups }) => {
                users.contains(who) || !groups.is_disjoint(&person.groups)
            }
        }
    }

    /// Who may use it from then on.
    ///
    /// # Errors
    /// Nobody is named, something is taken that was not given, or it would be given to too many.
    pub fn changed(&self, change: AccessChange) -> Result<Self, Unchanged> {
        match (self, change) {
            (_, AccessChange::Open) => Ok(Self::Everybody),
            (Self::Everybody, AccessChange::Close) => Ok(Self::Given(Whom::default())),
            (Self::Given(_), AccessChange::Close) => Ok(self.clone()),
            (_, AccessChange::Grant(whom) | AccessChange::Revoke(whom)) if whom.is_empty() => {
                Err(Unchanged::Nobody)
            }
            (known, AccessChange::Grant(whom)) => {
                let mut given = match known {
                    Self::Everybody => Whom::default(),
                    Self::Given(given) => given.clone(),
                };
                given.users.extend(whom.users);
                given.groups.extend(whom.groups);
                for (what, count) in [("users", given.users.len()), ("groups", given.groups.len())]
                {
                    if count > MAX_GIVEN {
                        return Err(Unchanged::TooMany(what));
                    }
                }
                Ok(Self::Given(given))
            }
            (Self::Everybody, AccessChange::Revoke(_)) => Err(Unchanged::OpenToAll),
            (Self::Given(given), AccessChange::Revoke(whom)) => {
                let never = Whom {
                    users: whom.users.difference(&given.users).cloned().collect(),
                    groups: whom.groups.difference(&given.groups).cloned().collect(),
                };
                if !never.is_empty() {
                    return Err(Unchanged::NotGiven(never));
                }
                Ok(Self::Given(Whom {
                    users: given.users.difference(&whom.users).cloned().collect(),
                    groups: given.groups.difference(&whom.groups).cloned().collect(),
                }))
            }
        }
    }
}

/// `everybody`, or to whom it was given.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Given(whom) => whom.fmt(f),
        }
    }
}
