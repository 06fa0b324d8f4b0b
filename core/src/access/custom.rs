//! Roles that somebody makes of actions, as Azure's: what is listed, less what is taken out.

use serde::{Deserialize, Serialize};

use super::permission::matching;
use super::{Held, Permissions, Role, UnknownAction};
use crate::id::{InvalidName, Principal, RoleName};
use crate::time::Timestamp;

/// A role's file. Azure writes the keys with capitals.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoleFile {
    /// What it is called.
    #[serde(alias = "Name")]
    pub name: String,
    /// What it is for.
    #[serde(alias = "Description")]
    pub description: String,
    /// Actions, each perhaps with `*`.
    #[serde(alias = "Actions")]
    pub actions: Vec<String>,
    /// What of them it does not allow.
    #[serde(alias = "NotActions", alias = "notActions")]
    pub not_actions: Vec<String>,
    /// Azure's; each role here is of its workspace.
    #[serde(alias = "AssignableScopes", alias = "assignableScopes", skip_serializing)]
    pub assignable_scopes: Vec<String>,
    /// Azure's.
    #[serde(alias = "IsCustom", alias = "isCustom", skip_serializing)]
    pub is_custom: Option<bool>,
}

/// A custom role.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CustomRole {
    /// What it is called.
    pub name: RoleName,
    /// What it is for.
    pub description: String,
    /// Actions, each perhaps with `*`, as written: what a later version adds below a `*` is in it then.
    pub actions: Vec<String>,
    /// What of them it does not allow.
    pub not_actions: Vec<String>,
    /// Who made it.
    pub created_by: Principal,
    /// When.
    pub created_at: Timestamp,
}

/// Why a role cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    /// It has no name, or none that can be.
    #[error("name: {0}")]
    Name(#[from] InvalidName),
    /// The name is one that means something already.
    #[error("name: '{0}' is a role of every workspace, or kept for one; choose another")]
    Taken(RoleName),
    /// Nothing is listed.
    #[error("actions: is empty; list at least one, for example workspaces/jobs/*")]
    Empty,
    /// All is taken out again.
    #[error("not_actions: takes out all that actions lists")]
    AllTakenOut,
    /// An action that is none.
    #[error("{field}: {unknown}")]
    Action {
        /// Where it stands.
        field: &'static str,
        /// Which.
        unknown: UnknownAction,
    },
    /// More than makes sense.
    #[error("{field}: has {len} {what}, at most {most} are allowed")]
    TooMuch {
        /// Where.
        field: &'static str,
        /// How many.
        len: usize,
        /// Of what.
        what: &'static str,
        /// How many may be.
        most: usize,
    },
}

const MOST_ACTIONS: usize = 200;
const MOST_WORDS: usize = 500;

/// Names that would be taken for something else.
const KEPT: [&str; 7] = ["node", "attempt", "job", "owner", "contributor", "daemon", "custom"];

impl CustomRole {
    /// Checks what a file says.
    ///
    /// # Errors
    /// If there is no such action, nothing is left to allow, or the name is taken.
    pub fn new(
        file: RoleFile,
        created_by: Principal,
        created_at: Timestamp,
    ) -> Result<Self, Invalid> {
        let RoleFile { name, description, actions, not_actions, .. } = file;
        let name = RoleName::new(name.trim())?;
        let word = name.as_str().to_ascii_lowercase();
        if Role::builtin(&word).is_some() || KEPT.contains(&word.as_str()) {
            return Err(Invalid::Taken(name));
        }
        let len = description.chars().count();
        if len > MOST_WORDS {
            let (field, what) = ("description", "characters");
            return Err(Invalid::TooMuch { field, len, what, most: MOST_WORDS });
        }
        for (field, list) in [("actions", &actions), ("not_actions", &not_actions)] {
            if list.len() > MOST_ACTIONS {
                let (len, what) = (list.len(), "entries");
                return Err(Invalid::TooMuch { field, len, what, most: MOST_ACTIONS });
            }
            for action in list {
                matching(action).map_err(|unknown| Invalid::Action { field, unknown })?;
            }
        }
        if actions.is_empty() {
            return Err(Invalid::Empty);
        }
        let made = Self { name, description, actions, not_actions, created_by, created_at };
        if made.permissions().is_empty() {
            return Err(Invalid::AllTakenOut);
        }
        Ok(made)
    }

    /// What it allows. An action that this version does not know allows nothing.
    pub fn permissions(&self) -> Permissions {
        let all = |list: &[String]| -> Permissions {
            let known = list.iter().filter_map(|action| matching(action).ok());
            known.flat_map(Permissions::iter).filter(|p| p.is_for_people()).collect()
        };
        all(&self.actions).minus(all(&self.not_actions))
    }

    /// As somebody has it.
    pub fn held(&self) -> Role {
        Role::Custom(Held { name: self.name.clone(), permissions: self.permissions() })
    }
}
