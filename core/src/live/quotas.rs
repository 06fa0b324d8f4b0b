//! Quotas: what each user's jobs may hold of a compute at once.

use super::{Decisions, Live, Refusal};
use crate::compute::{ComputeRecord, Placement};
use crate::id::{ComputeName, Principal};
use crate::resource::WHOLE_GPU;
use crate::sched::{Limits, Request};

/// Users with a quota of their own on one compute.
const MAX_USERS: usize = 1_000;

impl Live {
    /// Says what the jobs of `user` may hold of a compute at once, in place of all that was said of
    /// them before; `limits` of `None` takes it back. Without a user it is about everybody who has
    /// no quota of their own. Jobs that run are left alone.
    ///
    /// # Errors
    /// There is no such compute, the limits allow nothing or say nothing, or there is nothing to
    /// take back.
    pub fn set_quota(
        &mut self,
        name: &ComputeName,
        user: Option<Principal>,
        limits: Option<Limits>,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        let Some(known) = self.computes.get(name) else {
            return Err(Refusal::NoSuchCompute(name.clone()));
        };
        if known.deleted {
            return Err(Refusal::ComputeDeleted(name.clone()));
        }
        let mut quotas = known.quotas.clone();
        match (limits, user) {
            (Some(limits), user) => {
                check(&limits).map_err(|why| Refusal::BadQuota { compute: name.clone(), why })?;
                match user {
                    None => quotas.each = limits,
                    Some(user) => {
                        quotas.users.insert(user, limits);
                    }
                }
                if quotas.users.len() > MAX_USERS {
                    let why = format!(
                        "{MAX_USERS} users have one of their own, which is the most; delete some, \
                         or set one for everybody (without --user)"
                    );
                    return Err(Refusal::BadQuota { compute: name.clone(), why });
                }
            }
            (None, user) => {
                let removed = match &user {
                    None => !std::mem::take(&mut quotas.each).is_empty(),
                    Some(user) => quotas.users.remove(user).is_some(),
                };
                if !removed {
                    return Err(Refusal::NoSuchQuota { compute: name.clone(), user });
                }
            }
        }
        let record = ComputeRecord { quotas, ..known.clone() };
        self.put_compute(record, out);
        Ok(())
    }

    /// Whether the user's quota could ever allow this.
    pub(super) fn within_quota(
        &self,
        compute: &ComputeName,
        user: &Principal,
        request: &Request,
    ) -> Result<(), Refusal> {
        let Some(known) = self.computes.get(compute) else { return Ok(()) };
        let held = held_at_least(known, request);
        match known.quotas.of(user).never_allows(&held) {
            Some(excess) => {
                Err(Refusal::OverQuota { compute: compute.clone(), user: user.clone(), excess })
            }
            None => Ok(()),
        }
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

/// A quota that allows nothing is a mistake: to keep users away is the tokens' business.
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
