//! Who may not come in. A provider vouches for people whom nobody here has made: to delete them is undone by their next
//! sign-in, to block them is not.

use atelier_core::access::Role;
use atelier_core::id::Principal;

use super::{Error, Known, People, Refused, is_kept};
use crate::identity::Asking;
use crate::store::blocked::BlockRecord;
use crate::store::people::PeopleChange;

/// The longest reason.
const REASON: usize = 500;

impl Known {
    /// That somebody may come in.
    pub(super) fn may_come_in(&self, name: &Principal) -> Result<(), Refused> {
        match self.blocked.get(name) {
            None => Ok(()),
            Some(block) => Err(Refused::Blocked {
                name: name.clone(),
                reason: block.reason.clone(),
                at: block.at,
            }),
        }
    }
}

/// A name that is no user's, to whom the provider's groups may give any role.
fn somebody(name: &Principal) -> String {
    format!("'{name}', who is no user yet,")
}

impl People {
    /// Everybody who may not come in, by name.
    pub fn blocked(&self) -> Vec<BlockRecord> {
        self.known().blocked.values().cloned().collect()
    }

    /// Has somebody not come in from now on, a user or not; their tokens open nothing any more, sessions included.
    pub async fn block(
        &self,
        name: Principal,
        reason: &str,
        by: &Asking,
    ) -> Result<BlockRecord, Error> {
        let _alone = self.changing.lock().await;
        if is_kept(&name) {
            return Err(Refused::Kept(name).into());
        }
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON {
            return Err(Refused::Reason { bytes: reason.len(), most: REASON }.into());
        }
        if let Some(user) = self.known().users.get(&name).cloned() {
            self.check_over(by, &user)?;
            let is_kept = user.role == Role::Admin && !user.signs_in;
            if is_kept && !self.known().has_other_admin(&name) {
                return Err(Refused::LastAdmin(name).into());
            }
        } else {
            self.check_grant(by, &somebody(&name), &Role::Admin)?;
        }
        let (reason, at) = (reason.to_owned(), self.now());
        let block = BlockRecord { name: name.clone(), reason, by: by.principal.clone(), at };
        self.store.change_people(PeopleChange::Block(block.clone()), by.actor()).await?;
        let mut known = self.know();
        known.tokens.retain(|_, token| token.record.principal != name);
        known.blocked.insert(name, block.clone());
        Ok(block)
    }

    /// Has somebody come in again, as before.
    pub async fn unblock(&self, name: &Principal, by: &Asking) -> Result<BlockRecord, Error> {
        let _alone = self.changing.lock().await;
        let Some(block) = self.known().blocked.get(name).cloned() else {
            return Err(Refused::NotBlocked(name.clone()).into());
        };
        if let Some(user) = self.known().users.get(name).cloned() {
            self.check_over(by, &user)?;
        } else {
            self.check_grant(by, &somebody(name), &Role::Admin)?;
        }
        self.store.change_people(PeopleChange::Unblock(name.clone()), by.actor()).await?;
        self.know().blocked.remove(name);
        Ok(block)
    }
}
