//! Quotas: what the jobs of each user, and of each group's members, may hold of a compute at once.

use super::{Decisions, Live, Refusal};
use crate::compute::{ComputeRecord, Placement};
use crate::id::{ComputeName, Principal};
use crate::resource::WHOLE_GPU;
use crate::sched::{Limits, QuotaOf, Request};

/// Users with a quota of their own on one compute, and groups with one.
const MOST: usize = 1_000;

impl Live {
    /// Says what the jobs of a user, or of all members of a group, may hold of a compute at once, in place of all
    /// that was said of them before; `limits` of `None` takes it back. Jobs that run are left alone.
    ///
    /// # Errors
    /// There is no such compute, the limits allow nothing or say nothing, or there is nothing to
    /// take back.
    pub fn set_quota(
        &mut self,
        name: &ComputeName,
        of: QuotaOf,
        limits: Option<Limits>,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let known = self.known_compute(name)?;
        let mut quotas = known.quotas.clone();
        let bad = |why| Refusal::BadQuota { compute: name.clone(), why };
        if let Some(limits) = limits {
            check(&limits).map_err(bad)?;
            match of {
                QuotaOf::Each => quotas.each = limits,
                QuotaOf::User(user) => {
                    quotas.users.insert(user, limits);
                }
                QuotaOf::Group(group) => {
                    quotas.groups.insert(group, limits);
                }
            }
            if quotas.users.len() > MOST {
                return Err(bad(format!(
                    "{MOST} users have one of their own, which is the most; delete some, or set one for everybody \
                     (without --user)"
                )));
            }
            if quotas.groups.len() > MOST {
                return Err(bad(format!("{MOST} groups have one, which is the most; delete some")));
            }
        } else {
            let removed = match &of {
                QuotaOf::Each => !std::mem::take(&mut quotas.each).is_empty(),
                QuotaOf::User(user) => quotas.users.remove(user).is_some(),
                QuotaOf::Group(group) => quotas.groups.remove(group).is_some(),
            };
            if !removed {
                return Err(Refusal::NoSuchQuota { compute: name.clone(), of });
            }
        }
        let record = ComputeRecord { quotas, ..known.clone() };
        self.put_compute(record, out);
        Ok(())
    }

    /// A compute that is there to stay.
    pub(super) fn known_compute(&self, name: &ComputeName) -> Result<&ComputeRecord, Refusal> {
        match self.computes.get(name) {
            None => Err(Refusal::NoSuchCompute(name.clone())),
            Some(known) if known.deleted => Err(Refusal::ComputeDeleted(name.clone())),
            Some(known) => Ok(known),
        }
    }

    /// Whether the quotas of a user, and of the groups that the user is in now, could ever allow this.
    pub(super) fn within_quota(
        &self,
        compute: &ComputeName,
        user: &Principal,
        request: &Request,
    ) -> Result<(), Refusal> {
        let Some(known) = self.computes.get(compute) else { return Ok(()) };
        let held = held_at_least(known, request);
        let own = (QuotaOf::User(user.clone()), known.quotas.of(user));
        let groups = known.quotas.of_groups(self.sched.people().of(user));
        let groups = groups.map(|(group, limits)| (QuotaOf::Group(group.clone()), limits));
        for (of, limits) in std::iter::once(own).chain(groups) {
            if let Some(excess) = limits.never_allows(&held) {
                return Err(Refusal::OverQuota { compute: compute.clone(), of, excess });
            }
        }
        Ok(())
    }
}

/// What a job holds if it runs. Where it takes whole nodes, that is at least what a node has.
fn held_at_least(compute: &ComputeRecord, request: &Request) -> Request {
    let mut held = request.clone();
    let exclusive =
        compute.cluster.as_ref().is_some_and(|cluster| cluster.placement == Placement::Exclusive);
    if let Some(node) = compute.expected().filter(|_| exclusive) {
        let demand = &mut held.demand;
        demand.cpu = demand.cpu.max(node.cpu);
        demand.memory = demand.memory.max(node.memory);
        let devices = u32::try_from(node.gpus.len()).unwrap_or(u32::MAX);
        if demand.milli_gpus() < u64::from(devices) * u64::from(WHOLE_GPU) {
            (demand.gpus, demand.gpu_share) = (devices, 0);
        }
    }
    held
}

/// A quota that allows nothing is a mistake: who may use a compute is said otherwise.
fn check(limits: &Limits) -> Result<(), String> {
    if limits.is_empty() {
        return Err(
            "it limits nothing; give at least one of --gpus, --cpus, --memory, --nodes and \
                    --jobs, or take it back with 'atelier compute quota delete'"
                .to_owned(),
        );
    }
    let parts = [
        ("gpus", limits.milli_gpus),
        ("cpus", limits.cpu),
        ("memory", limits.memory),
        ("nodes", limits.nodes.map(u64::from)),
        ("jobs", limits.jobs.map(u64::from)),
    ];
    match parts.into_iter().find(|(_, limit)| *limit == Some(0)) {
        Some((key, _)) => Err(format!(
            "{key} must be more than 0, found 0; leave it out to set no limit of {key}"
        )),
        None => Ok(()),
    }
}
