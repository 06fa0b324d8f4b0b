//! Why users, tokens and roles stay as they are.

use atelier_core::access::MAX_GROUPS;
use atelier_core::id::{GroupName, Principal, RoleName};
use atelier_core::time::Timestamp;

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More than the giver has.
    #[error(
        "{principal} has the role {role} and may not give {what} {wanted}: nobody gives more than they have; ask an \
         admin"
    )]
    Above {
        /// Who.
        principal: Principal,
        /// As what.
        role: String,
        /// To whom or what.
        what: String,
        /// Which role.
        wanted: String,
    },
    /// A group that the giver is not in.
    #[error(
        "{principal} has the role {role} and is not in the group '{group}', and may put nobody there, nor take them out, \
         nor give tokens of those who are: nobody gives more than they have; ask an admin"
    )]
    AboveGroup {
        /// Who.
        principal: Principal,
        /// As what.
        role: String,
        /// Which.
        group: GroupName,
    },
    /// A group that the user is not in.
    #[error("user '{user}' is not in the group '{group}'; see 'atelier user show {user}'")]
    NotInGroup {
        /// Who.
        user: Principal,
        /// Which.
        group: GroupName,
    },
    /// More groups than one may be in.
    #[error(
        "user '{0}' would be in more than {MAX_GROUPS} groups, which is the most; take them out of some first"
    )]
    TooManyGroups(Principal),
    /// There is no such user.
    #[error("there is no user '{0}'; see 'atelier user list'")]
    NoSuchUser(String),
    /// There is one already.
    #[error(
        "there is a user '{name}' already, with the role {role}; change it with 'atelier user update'"
    )]
    UserTaken {
        /// Which.
        name: Principal,
        /// As what.
        role: String,
    },
    /// A token that would do more than its user.
    #[error(
        "user '{user}' has the role {role}, and a token of theirs cannot have {wanted}: leave out --role, or change \
         the user with 'atelier user update {user} --role {wanted}'"
    )]
    AboveUser {
        /// Whose.
        user: Principal,
        /// As what.
        role: String,
        /// As what the token was wanted.
        wanted: String,
    },
    /// A token of nobody.
    #[error(
        "there is no user '{0}': say with --role as what they come in, or make them first with 'atelier user create'"
    )]
    NoRole(Principal),
    /// Nobody could change anything any more.
    #[error("'{0}' is the last admin: make another user an admin first")]
    LastAdmin(Principal),
    /// There is no such token.
    #[error("there is no token '{0}'; see 'atelier token list'")]
    NoSuchToken(String),
    /// There is no such role.
    #[error(
        "there is no role '{name}'{similar}; see 'atelier role list'",
        similar = .similar.as_ref().map(|role| format!(" (did you mean '{role}'?)")).unwrap_or_default()
    )]
    NoSuchRole {
        /// Which.
        name: String,
        /// What may have been meant.
        similar: Option<String>,
    },
    /// There is one already.
    #[error("there is a role '{0}' already; change it with 'atelier role update -f FILE'")]
    RoleTaken(RoleName),
    /// It came with the workspace.
    #[error("role '{0}' is one of every workspace and stays as it is; make another")]
    RoleFixed(String),
    /// Somebody has it.
    #[error("role '{name}' is what {users} have; give them another first")]
    RoleUsed {
        /// Which.
        name: RoleName,
        /// Who.
        users: String,
    },
    /// A role that cannot be.
    #[error(transparent)]
    RoleInvalid(#[from] atelier_core::access::Invalid),
    /// A name that is no user's.
    #[error("user: '{0}' is kept for nodes, attempts and the daemon itself; choose another name")]
    Kept(Principal),
    /// A user whom an admin made.
    #[error(
        "'{0}' is a user whom an admin made, not the provider's: have an admin delete that user, or let the provider's \
         names begin with something else (atelier serve --oidc-user-prefix)"
    )]
    NotTheProviders(Principal),
    /// A role that the provider's groups give, and the groups themselves.
    #[error(
        "'{0}' signs in at the provider, which says in which groups they are; those give the role: change the groups \
         there, or what they give (atelier serve --oidc-role)"
    )]
    GivenByProvider(Principal),
    /// A token that would outlast the provider's word.
    #[error(
        "'{0}' signs in at the provider, whose word a token would outlast: make a user for the program that needs one \
         ('atelier user create'), and a token of theirs"
    )]
    SignsIn(Principal),
    /// Somebody who may not come in.
    #[error(
        "'{name}' may not come in since {at}: {reason}; an admin can let them in again (atelier user unblock)"
    )]
    Blocked {
        /// Who.
        name: Principal,
        /// Why.
        reason: String,
        /// Since when.
        at: Timestamp,
    },
    /// Somebody who may.
    #[error("'{0}' is not blocked; see 'atelier user list'")]
    NotBlocked(Principal),
    /// No reason, or too long a one.
    #[error("reason: has {bytes} bytes, from 1 to {most} are allowed: say why, they are told")]
    Reason {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// Too long a life.
    #[error(
        "expires: at most ten years are allowed; leave it out for a token that does not expire"
    )]
    TooLong,
}
