//! Who somebody is here whom an OpenID Connect provider vouches for.
//!
//! The provider says who it is and which groups they are in (OpenID Connect Core 1.0, section 5); the workspace
//! decides under which name and in which role they come in. Deny by default: whose groups name no role stays outside.

pub mod passing;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::access::{MAX_GROUPS, Role};
use crate::id::{GroupName, Principal};

/// What an ID token says, its signature, issuer, audience and time being in order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Claims(pub Map<String, Value>);

/// How names and roles follow from claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The claim that names the user: one that no user can choose, or else there is a prefix.
    pub user_claim: String,
    /// What names begin with here.
    pub user_prefix: String,
    /// The claim that lists the user's groups.
    pub groups_claim: String,
    /// Which group gives which role; the first that fits counts.
    pub roles: Vec<Given>,
}

/// A role, and who has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    /// To whom.
    pub to: Group,
    /// What.
    pub role: Role,
}

/// Whom a rule means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Group {
    /// All whom the provider lets in.
    Everybody,
    /// Those in this group, by the name or id that the provider lists.
    Named(String),
}

/// A user of a provider, as known here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// Under which name.
    pub principal: Principal,
    /// As what.
    pub role: Role,
    /// In which groups, which count where computes are given out. Names that none can have here are left out.
    pub groups: BTreeSet<GroupName>,
}

/// Why somebody whom the provider knows is not let in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The claim with the name is missing or no text.
    #[error(
        "the provider's token names no user: it has no claim '{claim}'; have the provider add it, or choose another \
         one (atelier serve --oidc-user-claim)"
    )]
    NoName {
        /// Which claim was looked at.
        claim: String,
    },
    /// An address that is not known to be the user's.
    #[error(
        "the provider has not verified the address {email}; verify it there, or have the workspace use another claim \
         (atelier serve --oidc-user-claim)"
    )]
    Unverified {
        /// The address.
        email: String,
    },
    /// A name that nobody can have here.
    #[error("the provider's name for the user cannot be used here: {why}")]
    BadName {
        /// Why.
        why: String,
    },
    /// The groups are too many for the token, and lie elsewhere.
    #[error(
        "the provider left the groups out of its token, as they are too many; have it list only those that are \
         assigned to the application"
    )]
    GroupsElsewhere,
    /// More groups than anybody may be in.
    #[error(
        "the provider's token lists {count} groups of {user}, and at most {MAX_GROUPS} are allowed; have it list only \
         those that are assigned to the application"
    )]
    TooManyGroups {
        /// Who.
        user: Principal,
        /// How many.
        count: usize,
    },
    /// No rule fits.
    #[error(
        "no group of {user} gives a role in this workspace; an admin may give one (atelier serve --oidc-role)"
    )]
    NoRole {
        /// Who.
        user: Principal,
    },
}

impl Rules {
    /// Under which name and in which role a user comes in.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit(&self, claims: &Claims) -> Result<User, Refused> {
        let principal = self.name(claims)?;
        let groups = self.groups(claims)?;
        let fits = |given: &&Given| match &given.to {
            Group::Everybody => true,
            Group::Named(name) => groups.contains(name),
        };
        let role = match self.roles.iter().find(fits) {
            None => return Err(Refused::NoRole { user: principal }),
            Some(given) => given.role.clone(),
        };
        // None is left out of those that have a quota.
        if groups.len() > MAX_GROUPS {
            return Err(Refused::TooManyGroups { user: principal, count: groups.len() });
        }
        let groups = groups.iter().filter_map(|group| GroupName::new(group).ok()).collect();
        Ok(User { principal, role, groups })
    }

    fn name(&self, claims: &Claims) -> Result<Principal, Refused> {
        let claim = &self.user_claim;
        let name = claims.0.get(claim).and_then(Value::as_str).map(str::trim);
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Refused::NoName { claim: claim.clone() })?;
        // Whoever may write any address into their profile could be anybody. Some providers say nothing of it
        // (Microsoft Entra ID), some say it as text (Amazon Cognito).
        let verified = claims.0.get("email_verified");
        let is_refuted =
            verified.is_some_and(|v| v.as_bool() != Some(true) && v.as_str() != Some("true"));
        if claim == "email" && is_refuted {
            return Err(Refused::Unverified { email: name.chars().take(100).collect() });
        }
        let name = format!("{}{name}", self.user_prefix);
        Principal::new(&name).map_err(|error| Refused::BadName { why: error.to_string() })
    }

    fn groups(&self, claims: &Claims) -> Result<Vec<String>, Refused> {
        let claim = &self.groups_claim;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match claims.0.get(claim) {
            Some(Value::Array(groups)) => Ok(groups.iter().filter_map(text).collect()),
            Some(Value::String(group)) => Ok(vec![group.clone()]),
            // Section 5.6.2: the claim is to be fetched from somewhere else.
            _ if claims.0.get("_claim_names").is_some_and(|names| names.get(claim).is_some()) => {
                Err(Refused::GroupsElsewhere)
            }
            _ => Ok(Vec::new()),
        }
    }
}
