//! Who vouches for people: an OpenID Connect provider.

use std::str::FromStr;

use atelier_core::access::{Held, Permissions, Role};
use atelier_core::id::RoleName;
use atelier_core::sign_in::{Given, Group, Rules};

use super::serve::SourceParser;
use crate::oidc::Shown;
use crate::vault::TextSource;

/// Where people sign in, and what they may do then.
#[derive(clap::Args, Clone, Debug)]
pub struct OidcArgs {
    /// An OpenID Connect provider that people sign in at with `atelier login`: its issuer, https://HOST[/PATH], or
    /// http on this machine
    #[arg(
        id = "oidc_issuer",
        long = "oidc-issuer",
        value_name = "URL",
        requires = "oidc_client_id"
    )]
    pub issuer: Option<String>,
    /// The id that the provider has given this workspace's clients: a public client without a secret, or one whose
    /// secret the daemon has (--oidc-client-secret), that may redirect to http://127.0.0.1 or use device codes
    #[arg(
        id = "oidc_client_id",
        long = "oidc-client-id",
        value_name = "ID",
        requires = "oidc_issuer"
    )]
    pub client_id: Option<String>,
    /// Where the secret is that the provider has given with the id, if it has: file:/PATH, credential:NAME, env:NAME. It
    /// stays in the daemon, which passes on what clients ask the provider. A file is read each time
    #[arg(
        id = "oidc_client_secret",
        long = "oidc-client-secret",
        value_name = "SOURCE",
        value_parser = SourceParser::<TextSource>::default(),
        requires = "oidc_issuer"
    )]
    pub client_secret: Option<TextSource>,
    /// How the secret is shown to the provider [default: basic, or post where the provider knows only that]
    #[arg(
        id = "oidc_client_auth",
        long = "oidc-client-auth",
        value_enum,
        value_name = "basic|post",
        hide_possible_values = true,
        requires = "oidc_client_secret"
    )]
    pub client_auth: Option<Shown>,
    /// The claim of the provider's tokens that names a user. One that users can choose themselves needs
    /// --oidc-user-prefix, or else they could take each other's names
    #[arg(
        id = "oidc_user_claim",
        long = "oidc-user-claim",
        value_name = "CLAIM",
        default_value = "email",
        requires = "oidc_issuer"
    )]
    pub user_claim: String,
    /// What the names of those who sign in begin with here
    /// [default: nothing for the claim email, oidc: for others]
    #[arg(
        id = "oidc_user_prefix",
        long = "oidc-user-prefix",
        value_name = "TEXT",
        requires = "oidc_issuer"
    )]
    pub user_prefix: Option<String>,
    /// The claim that lists a user's groups
    #[arg(
        id = "oidc_groups_claim",
        long = "oidc-groups-claim",
        value_name = "CLAIM",
        default_value = "groups",
        requires = "oidc_issuer"
    )]
    pub groups_claim: String,
    /// A group and the role that it gives, '*' for all whom the provider lets in; may be given several times, the
    /// first that fits counts. Whose groups give none is not let in
    #[arg(
        id = "oidc_role",
        long = "oidc-role",
        value_name = "GROUP=ROLE",
        requires = "oidc_issuer"
    )]
    pub role: Vec<RoleOf>,
    /// What else the clients ask the provider for, besides openid, email, profile and offline_access; may be given
    /// several times
    #[arg(id = "oidc_scope", long = "oidc-scope", value_name = "SCOPE", requires = "oidc_issuer")]
    pub scope: Vec<String>,
    /// Seconds after which who has signed in is looked at again: groups and all. Clients do that by themselves where
    /// the provider lets them
    #[arg(
        id = "oidc_session",
        long = "oidc-session",
        default_value_t = 28_800,
        value_parser = clap::value_parser!(u64).range(60..=86_400),
        value_name = "SECONDS",
        requires = "oidc_issuer"
    )]
    pub session: u64,
}

impl Default for OidcArgs {
    fn default() -> Self {
        Self {
            issuer: None,
            client_id: None,
            client_secret: None,
            client_auth: None,
            user_claim: "email".to_owned(),
            user_prefix: None,
            groups_claim: "groups".to_owned(),
            role: Vec::new(),
            scope: Vec::new(),
            session: 28_800,
        }
    }
}

impl OidcArgs {
    /// How names and roles follow from what the provider says.
    pub fn rules(&self) -> Rules {
        let prefix = if self.user_claim == "email" { "" } else { "oidc:" };
        Rules {
            user_claim: self.user_claim.clone(),
            user_prefix: self.user_prefix.clone().unwrap_or_else(|| prefix.to_owned()),
            groups_claim: self.groups_claim.clone(),
            roles: self.role.iter().map(|role| role.0.clone()).collect(),
        }
    }
}

/// A group's role, as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoleOf(Given);

impl FromStr for RoleOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Groups may be names of a directory, with '=' in them.
        let (group, role) = text.rsplit_once('=').ok_or("write GROUP=ROLE")?;
        let to = match group {
            "" => {
                return Err(
                    "the group is missing: write GROUP=ROLE, or '*=ROLE' for everybody".to_owned()
                );
            }
            "*" => Group::Everybody,
            name => Group::Named(name.to_owned()),
        };
        // One that somebody has made may come to be later: it is looked up when somebody signs in.
        let custom = || {
            let name = RoleName::new(role).map_err(|error| error.to_string())?;
            Ok::<_, String>(Role::Custom(Held { name, permissions: Permissions::NONE }))
        };
        let role = Role::builtin(role).map_or_else(custom, Ok)?;
        Ok(Self(Given { to, role }))
    }
}
