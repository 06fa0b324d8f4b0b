//! Who may use which compute.
//!
//! A compute says to whom it was given, by name and by group. Who is in which group lies with the users, not here:
//! [`Live::set_people`] brings it, before anything else and at each change. It counts as it is now, also for jobs that
//! were submitted before: those that wait are held, those that run go on.

use super::{Decisions, Live, Refusal};
use crate::access::{self, Caller, People, Permission, Verdict};
use crate::compute::{AccessChange, ComputeRecord};
use crate::id::{ComputeName, Principal};

/// Who asks to use a compute.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Who.
    pub user: &'a Principal,
    /// Whether the role they come in with lets them change computes. A token may have less of a role than its user.
    pub manages: bool,
}

impl Live {
    /// Says who is in which group, and who manages computes. It is on disk already.
    pub fn set_people(&mut self, people: People) {
        self.sched.set_people(people);
    }

    /// Who is in which group.
    pub fn people(&self) -> &People {
        self.sched.people()
    }

    /// Changes who may use a compute. Jobs that run are left alone; those in line whose users may no longer use it
    /// wait until they may.
    ///
    /// # Errors
    /// There is no such compute, or there is nothing to change.
    pub fn change_access(
        &mut self,
        name: &ComputeName,
        change: AccessChange,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let known = self.known_compute(name)?;
        let access = known.access.changed(change);
        let access =
            access.map_err(|why| Refusal::AccessUnchanged { compute: name.clone(), why })?;
        let record = ComputeRecord { access, ..known.clone() };
        self.put_compute(record, out);
        Ok(())
    }

    /// Whether somebody may use a compute.
    ///
    /// # Errors
    /// There is no such compute, or it is for others.
    pub fn may_use(&self, name: &ComputeName, asker: Asker<'_>) -> Result<(), Refusal> {
        let known = self.known_compute(name)?;
        let mut person = self.people().of(asker.user).clone();
        person.manages = asker.manages;
        if known.access.admits(asker.user, &person) {
            return Ok(());
        }
        Err(Refusal::NoAccess {
            compute: name.clone(),
            access: known.access.clone(),
            user: asker.user.clone(),
            groups: person.told_groups(),
        })
    }

    /// Answers `can-i` for one compute: who may submit jobs or build environments may do so only on computes that are
    /// for them.
    ///
    /// # Errors
    /// There is no such compute.
    pub fn can_on(
        &self,
        caller: &Caller,
        permission: Permission,
        compute: &ComputeName,
    ) -> Result<Verdict, Refusal> {
        let access = &self.known_compute(compute)?.access;
        let verdict = access::can(caller, permission);
        let uses = matches!(permission, Permission::Submit | Permission::BuildEnvironments);
        if !verdict.allowed {
            return Ok(verdict);
        }
        let manages = caller.may(Permission::ManageCompute);
        let reason = match self.may_use(compute, Asker { user: &caller.principal, manages }) {
            _ if !uses => format!("{}, whichever compute it is", verdict.reason),
            Err(refusal) => {
                return Ok(Verdict { allowed: false, reason: refusal.to_string().into() });
            }
            Ok(()) if access.is_everybodys() => {
                format!("{}; compute '{compute}' is for everybody", verdict.reason)
            }
            Ok(()) => {
                let groups = self.people().of(&caller.principal).told_groups();
                format!(
                    "{}; compute '{compute}' is for {access}, and {} is in {groups}{}",
                    verdict.reason,
                    caller.principal,
                    if manages { " and manages computes" } else { "" }
                )
            }
        };
        Ok(Verdict { allowed: true, reason: reason.into() })
    }
}
