//! Roles: those that there are, and those that somebody has made.

use std::collections::BTreeSet;

use atelier_core::access::{CustomRole, Held, Role, RoleFile};
use atelier_core::id::{Principal, RoleName};

use super::{Error, People, Refused};
use crate::identity::Asking;
use crate::store::people::PeopleChange;

impl People {
    /// The role of this name: one of every workspace, or one that somebody made.
    ///
    /// # Errors
    /// If there is none; says which may have been meant.
    pub fn role_named(&self, name: &str) -> Result<Role, Refused> {
        if let Some(role) = Role::builtin(name) {
            return Ok(role);
        }
        let known = self.known();
        let found = RoleName::new(name).ok().and_then(|name| known.roles.get(&name));
        if let Some((role, permissions)) = found {
            let name = role.name.clone();
            return Ok(Role::Custom(Held { name, permissions: *permissions }));
        }
        let builtin = Role::BUILTIN.iter().map(ToString::to_string);
        let names: Vec<String> =
            builtin.chain(known.roles.keys().map(RoleName::to_string)).collect();
        let similar = atelier_core::suggest::closest(name, names.iter().map(String::as_str));
        let similar = similar.map(str::to_owned);
        Err(Refused::NoSuchRole { name: name.chars().take(80).collect(), similar })
    }

    /// Custom roles, by name.
    pub fn roles(&self) -> Vec<CustomRole> {
        self.known().roles.values().map(|(role, _)| role.clone()).collect()
    }

    /// A custom role.
    pub fn role(&self, name: &RoleName) -> Option<CustomRole> {
        self.known().roles.get(name).map(|(role, _)| role.clone())
    }

    /// Makes a role, or with `replace` changes one. It must not allow more than who makes it has.
    pub async fn put_role(
        &self,
        file: RoleFile,
        replace: bool,
        by: &Asking,
    ) -> Result<CustomRole, Error> {
        let _alone = self.changing.lock().await;
        if Role::builtin(&file.name).is_some() && replace {
            return Err(Refused::RoleFixed(file.name).into());
        }
        let mut role =
            CustomRole::new(file, by.principal.clone(), self.now()).map_err(Refused::from)?;
        match (self.role(&role.name), replace) {
            (Some(_), false) => return Err(Refused::RoleTaken(role.name).into()),
            (None, true) => {
                let name = role.name.to_string();
                return Err(Refused::NoSuchRole { name, similar: None }.into());
            }
            (Some(known), true) => {
                self.check_grant(by, "or change", &known.held())?;
                (role.created_by, role.created_at) = (known.created_by, known.created_at);
            }
            (None, false) => {}
        }
        self.check_grant(by, "anybody", &role.held())?;
        self.store.change_people(PeopleChange::PutRole(role.clone()), by.actor()).await?;
        let permissions = role.permissions();
        self.know().roles.insert(role.name.clone(), (role.clone(), permissions));
        self.tell_people().await;
        Ok(role)
    }

    /// Forgets a role that nobody has.
    pub async fn delete_role(&self, name: &str, by: &Asking) -> Result<CustomRole, Error> {
        let _alone = self.changing.lock().await;
        let role = match self.role_named(name)? {
            Role::Custom(held) => self.role(&held.name),
            builtin => return Err(Refused::RoleFixed(builtin.to_string()).into()),
        };
        let missing = || Refused::NoSuchRole { name: name.to_owned(), similar: None };
        let role = role.ok_or_else(missing)?;
        self.check_grant(by, "or take", &role.held())?;
        let has = |held: &Role| matches!(held, Role::Custom(held) if held.name == role.name);
        let users: Vec<String> = {
            let known = self.known();
            let tokens = known.tokens.values().map(|token| &token.record);
            let of_tokens = tokens.filter(|token| has(&token.role)).map(|token| &token.principal);
            let users = known.users.values().filter(|user| has(&user.role)).map(|user| &user.name);
            let all: BTreeSet<&Principal> = users.chain(of_tokens).collect();
            all.into_iter().take(10).map(ToString::to_string).collect()
        };
        if !users.is_empty() {
            return Err(Refused::RoleUsed { name: role.name, users: users.join(", ") }.into());
        }
        self.store.change_people(PeopleChange::DeleteRole(role.name.clone()), by.actor()).await?;
        self.know().roles.remove(&role.name);
        Ok(role)
    }
}
