//! `atelier.compute.v1.ComputeService`.

use std::collections::{BTreeMap, HashMap};

use atelier_core::access::Permission;
use atelier_core::audit::{Actor, Change};
use atelier_core::compute::{
    AccessChange, Cluster, Instance, InstanceState, MAX_GIVEN, NodeShape, Placement, Whom,
};
use atelier_core::id::{ComputeName, GroupName, NodeName, Principal};
use atelier_core::live::{ClusterChange, Live, LiveNode};
use atelier_core::node::{Drain, Link, NodeRecord};
use atelier_core::resource::{GpuIndex, Ledger, MilliGpu, WHOLE_GPU};
use atelier_core::sched::{Limits, QuotaOf};
use atelier_core::time::Timestamp;
use atelier_proto::compute::v1 as pb;
use serde_json::json;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{actor, caller, count};
use crate::daemon::{ComputeChange, DrainRequest, NodeView, Shared};
use crate::identity::Denied;

/// Computes and their nodes.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::compute_service_server::ComputeService for Service {
    async fn list_computes(
        &self,
        _request: Request<pb::ListComputesRequest>,
    ) -> Result<Response<pb::ListComputesResponse>, Status> {
        let computes = self
            .0
            .handle
            .look(|live, _| live.computes().map(|compute| describe(live, &compute.name)).collect())
            .await
            .map_err(told)?;
        Ok(Response::new(pb::ListComputesResponse { computes }))
    }

    async fn get_compute(
        &self,
        request: Request<pb::GetComputeRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        self.compute(request.into_inner().name).await
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let compute = request.into_inner().compute;
        let nodes = self
            .0
            .handle
            .look(move |live, views| {
                let here = |name: &ComputeName| compute.is_empty() || name.as_str() == compute;
                let joined = live.nodes().filter(|node| here(&node.record.compute));
                let others = live.instances().filter(|instance| here(&instance.compute));
                let mut nodes: Vec<pb::Node> =
                    joined.map(|node| describe_node(live, node, views)).collect();
                nodes.extend(others.filter_map(|instance| describe_instance(live, instance)));
                nodes.sort_by(|a, b| (&a.compute, &a.name).cmp(&(&b.compute, &b.name)));
                nodes
            })
            .await
            .map_err(told)?;
        Ok(Response::new(pb::ListNodesResponse { nodes }))
    }

    async fn get_node(
        &self,
        request: Request<pb::GetNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        self.node(request.into_inner().name).await
    }

    async fn drain_node(
        &self,
        request: Request<pb::DrainNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let by = actor(&request)?;
        let pb::DrainNodeRequest { name, reason, deadline_s, update } = request.into_inner();
        let (reason, deadline_s) = checked_drain("node", &reason, deadline_s)?;
        let node = NodeName::new(&name).map_err(|_| no_node(&name))?;
        let drain = DrainRequest { node, by, reason, deadline_s, update };
        self.0.handle.drain(drain).await.map_err(told)?;
        self.node(name).await
    }

    async fn put_compute(
        &self,
        request: Request<pb::PutComputeRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let cluster = request.into_inner().cluster.ok_or_else(|| {
            Status::invalid_argument("cluster: is required; the atelier command sends one")
        })?;
        let cluster = Cluster::try_from(cluster).map_err(|e| told(e.under("cluster")))?;
        cluster.check().map_err(|faults| Status::invalid_argument(faults.to_string()))?;
        let name = cluster.name.to_string();
        self.0
            .handle
            .compute(ComputeChange::Put { cluster: Box::new(cluster) }, by)
            .await
            .map_err(told)?;
        self.compute(name).await
    }

    async fn update_compute(
        &self,
        request: Request<pb::UpdateComputeRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let caller = caller(&request)?;
        let by = actor(&request)?;
        let request = request.into_inner();
        // Of how many nodes it has, and how long they stay, operators decide too.
        if request.description.is_some() && !caller.may(Permission::ManageCompute) {
            let (principal, role) = (caller.principal, caller.role.to_string());
            let action = Permission::ManageCompute.told();
            return Err(told(Denied::NotAllowed { principal, role, action }));
        }
        let name = ComputeName::new(&request.name).map_err(|_| no_compute(&request.name))?;
        let change = ClusterChange {
            min_instances: request.min_instances,
            max_instances: request.max_instances,
            idle_time_before_scale_down: request.idle_time_before_scale_down_s,
            description: request.description,
            tags: None,
        };
        self.0.handle.compute(ComputeChange::Change { name, change }, by).await.map_err(told)?;
        self.compute(request.name).await
    }

    async fn delete_compute(
        &self,
        request: Request<pb::DeleteComputeRequest>,
    ) -> Result<Response<pb::DeleteComputeResponse>, Status> {
        let by = actor(&request)?;
        let name = request.into_inner().name;
        let name = ComputeName::new(&name).map_err(|_| no_compute(&name))?;
        self.0.handle.compute(ComputeChange::Delete(name), by).await.map_err(told)?;
        Ok(Response::new(pb::DeleteComputeResponse {}))
    }

    async fn drain_compute(
        &self,
        request: Request<pb::DrainComputeRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let pb::DrainComputeRequest { name, reason, deadline_s, update } = request.into_inner();
        let (reason, deadline_s) = checked_drain("compute", &reason, deadline_s)?;
        let compute = ComputeName::new(&name).map_err(|_| no_compute(&name))?;
        let change = ComputeChange::Drain { name: compute, reason, deadline_s, update };
        self.0.handle.compute(change, by).await.map_err(told)?;
        self.compute(name).await
    }

    async fn resume_compute(
        &self,
        request: Request<pb::ResumeComputeRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let name = request.into_inner().name;
        let compute = ComputeName::new(&name).map_err(|_| no_compute(&name))?;
        self.0.handle.compute(ComputeChange::Resume(compute), by).await.map_err(told)?;
        self.compute(name).await
    }

    async fn set_quota(
        &self,
        request: Request<pb::SetQuotaRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let pb::SetQuotaRequest { name, user, limits, group } = request.into_inner();
        let limits = Some(limits.unwrap_or_default().into());
        self.quota(name, (&user, &group), limits, by).await
    }

    async fn delete_quota(
        &self,
        request: Request<pb::DeleteQuotaRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let pb::DeleteQuotaRequest { name, user, group } = request.into_inner();
        self.quota(name, (&user, &group), None, by).await
    }

    async fn grant_access(
        &self,
        request: Request<pb::ChangeAccessRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let (name, change) = access_change(request.into_inner(), true)?;
        self.access(name, change, by).await
    }

    async fn revoke_access(
        &self,
        request: Request<pb::ChangeAccessRequest>,
    ) -> Result<Response<pb::Compute>, Status> {
        let by = actor(&request)?;
        let (name, change) = access_change(request.into_inner(), false)?;
        self.access(name, change, by).await
    }

    async fn list_sizes(
        &self,
        _request: Request<pb::ListSizesRequest>,
    ) -> Result<Response<pb::ListSizesResponse>, Status> {
        let size = |(name, node): (&str, &NodeShape)| pb::Size {
            name: name.to_owned(),
            node: Some(node.into()),
        };
        let sizes = self.0.sizes.iter().map(size).collect();
        Ok(Response::new(pb::ListSizesResponse { sizes }))
    }

    async fn get_node_cache(
        &self,
        request: Request<pb::GetNodeCacheRequest>,
    ) -> Result<Response<pb::NodeCache>, Status> {
        self.cache(request.into_inner().name, None).await
    }

    async fn prune_node_cache(
        &self,
        request: Request<pb::PruneNodeCacheRequest>,
    ) -> Result<Response<pb::NodeCache>, Status> {
        let by = actor(&request)?;
        let prune = request.into_inner();
        let resource = format!("node/{}", prune.name);
        let answer = self.cache(prune.name.clone(), Some(prune)).await?;
        let change = Change::done(resource, &json!({ "cache": "pruned" }));
        self.0.audit.note(by, change).await.map_err(told)?;
        Ok(answer)
    }

    async fn resume_node(
        &self,
        request: Request<pb::ResumeNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let by = actor(&request)?;
        let name = request.into_inner().name;
        let node = NodeName::new(&name).map_err(|_| no_node(&name))?;
        self.0.handle.resume(node, by).await.map_err(told)?;
        self.node(name).await
    }
}

/// Characters of a reason.
const MAX_REASON: usize = 500;

/// A reason that says something, and a deadline that can be told.
fn checked_drain(
    what: &str,
    reason: &str,
    deadline_s: Option<u64>,
) -> Result<(String, Option<u32>), Status> {
    let reason = reason.trim();
    let wrong =
        |why: &str| Err(Status::invalid_argument(format!("cannot drain the {what}: {why}")));
    if reason.is_empty() {
        return wrong("there is no reason; say why, for those who ask later");
    }
    if reason.chars().count() > MAX_REASON {
        return wrong(&format!("the reason has over {MAX_REASON} characters"));
    }
    match deadline_s.map(u32::try_from).transpose() {
        Ok(deadline_s) => Ok((reason.to_owned(), deadline_s)),
        Err(_) => {
            wrong("the deadline is over 136 years away; leave it out to let jobs run to their end")
        }
    }
}

pub(super) fn no_compute(name: &str) -> Status {
    Status::not_found(format!("there is no compute '{name}'; see 'atelier compute list'"))
}

fn no_node(name: &str) -> Status {
    Status::not_found(format!("there is no node '{name}'; see 'atelier node list'"))
}

impl Service {
    async fn quota(
        &self,
        name: String,
        (user, group): (&str, &str),
        limits: Option<Limits>,
        by: Actor,
    ) -> Result<Response<pb::Compute>, Status> {
        let compute = ComputeName::new(&name).map_err(|_| no_compute(&name))?;
        let wrong = |why: String| {
            Status::invalid_argument(format!("cannot change a quota of compute '{name}': {why}"))
        };
        let of = match (user, group) {
            ("", "") => QuotaOf::Each,
            (user, "") => QuotaOf::User(
                Principal::new(user).map_err(|error| wrong(format!("user: {error}")))?,
            ),
            ("", group) => QuotaOf::Group(
                GroupName::new(group).map_err(|error| wrong(format!("group: {error}")))?,
            ),
            _ => return Err(wrong("it is of a user or of a group; leave out one".to_owned())),
        };
        let change = ComputeChange::Quota { name: compute, of, limits };
        self.0.handle.compute(change, by).await.map_err(told)?;
        self.compute(name).await
    }

    async fn access(
        &self,
        name: ComputeName,
        change: AccessChange,
        by: Actor,
    ) -> Result<Response<pb::Compute>, Status> {
        let shown = name.to_string();
        self.0.handle.compute(ComputeChange::Access { name, change }, by).await.map_err(told)?;
        self.compute(shown).await
    }

    async fn compute(&self, name: String) -> Result<Response<pb::Compute>, Status> {
        let missing = no_compute(&name);
        let found = self
            .0
            .handle
            .look(move |live, _| {
                let compute = live.computes().find(|compute| compute.name.as_str() == name)?;
                Some(describe(live, &compute.name))
            })
            .await
            .map_err(told)?;
        found.map(Response::new).ok_or(missing)
    }

    async fn cache(
        &self,
        name: String,
        prune: Option<pb::PruneNodeCacheRequest>,
    ) -> Result<Response<pb::NodeCache>, Status> {
        let node = NodeName::new(&name).map_err(|_| no_node(&name))?;
        // One that never was is told apart from one that is away.
        self.node(name).await?;
        let cache = self.0.caches.ask(node, prune).await.map_err(told)?;
        Ok(Response::new(cache))
    }

    async fn node(&self, name: String) -> Result<Response<pb::Node>, Status> {
        let missing = no_node(&name);
        let found = self
            .0
            .handle
            .look(move |live, views| {
                let joined = live.nodes().find(|node| node.record.name.as_str() == name);
                if let Some(node) = joined {
                    return Some(describe_node(live, node, views));
                }
                let instance = live.instances().find(|known| known.node.as_str() == name)?;
                describe_instance(live, instance)
            })
            .await
            .map_err(told)?;
        found.map(Response::new).ok_or(missing)
    }
}

/// The change that is asked for: of those who are named, or of everybody.
fn access_change(
    request: pb::ChangeAccessRequest,
    grant: bool,
) -> Result<(ComputeName, AccessChange), Status> {
    let pb::ChangeAccessRequest { name, users, groups, everybody } = request;
    let compute = ComputeName::new(&name).map_err(|_| no_compute(&name))?;
    let wrong = |why: String| {
        let why = format!("cannot change who may use compute '{name}': {why}");
        Status::invalid_argument(why)
    };
    if users.len() + groups.len() > 2 * MAX_GIVEN {
        return Err(wrong(format!("it names more than {MAX_GIVEN} users or groups")));
    }
    let users = users.iter().map(|user| Principal::new(user)).collect::<Result<_, _>>();
    let groups = groups.iter().map(|group| GroupName::new(group)).collect::<Result<_, _>>();
    let whom = Whom {
        users: users.map_err(|error| wrong(format!("users: {error}")))?,
        groups: groups.map_err(|error| wrong(format!("groups: {error}")))?,
    };
    let change = match (grant, everybody) {
        (_, true) if !whom.is_empty() => {
            return Err(wrong(
                "everybody is more than those who are named; leave out one".to_owned(),
            ));
        }
        (true, true) => AccessChange::Open,
        (false, true) => AccessChange::Close,
        (true, false) => AccessChange::Grant(whom),
        (false, false) => AccessChange::Revoke(whom),
    };
    Ok((compute, change))
}

fn free(ledger: &Ledger) -> pb::Resources {
    pb::Resources {
        cpu_milli: ledger.free_cpu(),
        memory_mib: ledger.free_memory(),
        gpus: count(ledger.free_gpus().count()),
        disk_mib: ledger.free_disk(),
    }
}

fn whole(ledger: &Ledger) -> pb::Resources {
    let capacity = ledger.capacity();
    pb::Resources {
        cpu_milli: capacity.cpu,
        memory_mib: capacity.memory,
        gpus: count(capacity.gpus.len()),
        disk_mib: capacity.disk,
    }
}

fn add(sum: &mut pb::Resources, part: &pb::Resources) {
    sum.cpu_milli += part.cpu_milli;
    sum.memory_mib += part.memory_mib;
    sum.gpus += part.gpus;
    // Known only as far as nodes say.
    sum.disk_mib = match (sum.disk_mib, part.disk_mib) {
        (Some(sum), Some(part)) => Some(sum.saturating_add(part)),
        (sum, part) => sum.or(part),
    };
}

fn describe(live: &Live, name: &ComputeName) -> pb::Compute {
    let mut capacity = pb::Resources::default();
    let mut spare = pb::Resources::default();
    let (mut nodes, mut ready_nodes, mut queued) = (0, 0, 0);
    if let Some(pool) = live.sched().pool(name) {
        queued = pool.queued();
        for (_, ledger, ready) in pool.nodes() {
            nodes += 1;
            ready_nodes += u32::from(ready);
            if ready {
                add(&mut capacity, &whole(ledger));
                add(&mut spare, &free(ledger));
            }
        }
    }
    let running = live
        .nodes()
        .filter(|node| &node.record.compute == name)
        .map(|node| node.attempts.len())
        .sum();
    let mut node_states: BTreeMap<String, u32> = BTreeMap::new();
    let joined = live.nodes().filter(|node| &node.record.compute == name);
    let states = joined.map(|node| state_of(live, node).0).chain(
        live.instances()
            .filter(|instance| &instance.compute == name)
            .filter_map(|instance| Some(state_of_instance(live, instance)?.0)),
    );
    for state in states {
        *node_states.entry(word(state).to_owned()).or_default() += 1;
    }
    let resizes = node_states.keys().any(|state| matches!(&**state, "preparing" | "leaving"));
    let record = live.compute(name);
    let cluster = record.and_then(|record| record.cluster.as_ref());
    let shared = cluster.is_none_or(|cluster| cluster.placement == Placement::Shared);
    pb::Compute {
        name: name.to_string(),
        r#type: "amlcompute".to_owned(),
        placement: if shared { "shared" } else { "exclusive" }.to_owned(),
        nodes,
        ready_nodes,
        capacity: Some(capacity),
        free: Some(spare),
        running_jobs: count(running),
        queued_jobs: count(queued),
        is_default: live.default_compute() == name,
        cluster: cluster.map(pb::Cluster::from),
        node_states,
        allocation_state: match record {
            Some(record) if record.deleted => "Deleting",
            Some(record) if record.is_scaled() && resizes => "Resizing",
            _ => "Steady",
        }
        .to_owned(),
        drain: record.and_then(|record| record.drain.as_ref()).map(drain_to_wire),
        trouble: record.and_then(|record| record.trouble.as_ref()).map(|trouble| pb::Trouble {
            failures: trouble.failures,
            message: trouble.message.clone(),
            at_ms: trouble.at.as_millis(),
            until_ms: trouble.until.as_millis(),
        }),
        created_by: cluster
            .and(record)
            .map(|record| record.created_by.to_string())
            .unwrap_or_default(),
        created_at_ms: cluster.and(record).map_or(0, |record| record.created_at.as_millis()),
        quotas: record.map(|record| pb::Quota::all(&record.quotas)).unwrap_or_default(),
        access: record.map(|record| pb::Access::from(&record.access)),
    }
}

fn drain_to_wire(drain: &Drain) -> pb::Drain {
    pb::Drain {
        by: drain.by.to_string(),
        reason: drain.reason.clone(),
        since_ms: drain.since.as_millis(),
        deadline_ms: drain.deadline.map(Timestamp::as_millis),
    }
}

/// Azure's word for a node's state.
const fn word(state: pb::NodeState) -> &'static str {
    match state {
        pb::NodeState::Unspecified => "unknown",
        pb::NodeState::Idle => "idle",
        pb::NodeState::Running => "running",
        pb::NodeState::Preparing => "preparing",
        pb::NodeState::Unusable => "unusable",
        pb::NodeState::Leaving => "leaving",
        pb::NodeState::Preempted => "preempted",
    }
}

/// The state of a cluster's node whose agent has not joined, and why; `None` if it has.
fn state_of_instance(live: &Live, instance: &Instance) -> Option<(pb::NodeState, String)> {
    if live.node(&instance.node).is_some() {
        return None;
    }
    Some(match &instance.state {
        InstanceState::Creating { since } => {
            (pb::NodeState::Preparing, format!("it was asked for at {since}"))
        }
        InstanceState::Joining { since } => (
            pb::NodeState::Preparing,
            format!("it is there since {since}; its agent has yet to join"),
        ),
        InstanceState::Up => (pb::NodeState::Unusable, "its agent is not known".to_owned()),
        InstanceState::Retiring { .. } | InstanceState::Leaving { .. } => leaving(&instance.state),
    })
}

/// What a node that is being taken away is shown as.
fn leaving(state: &InstanceState) -> (pb::NodeState, String) {
    match state {
        InstanceState::Leaving { reason, trouble: Some(trouble), .. } => (
            pb::NodeState::Unusable,
            format!(
                "{reason}; it could not be removed: {}; the next try is at {}",
                trouble.message, trouble.until
            ),
        ),
        InstanceState::Leaving { reason, preempted: true, .. }
        | InstanceState::Retiring { reason, preempted: true } => {
            (pb::NodeState::Preempted, reason.clone())
        }
        InstanceState::Leaving { reason, .. } | InstanceState::Retiring { reason, .. } => {
            (pb::NodeState::Leaving, reason.clone())
        }
        InstanceState::Creating { .. } | InstanceState::Joining { .. } | InstanceState::Up => {
            (pb::NodeState::Preparing, String::new())
        }
    }
}

/// A node that has not joined yet, as far as it is known.
fn describe_instance(live: &Live, instance: &Instance) -> Option<pb::Node> {
    let (state, reason) = state_of_instance(live, instance)?;
    Some(pb::Node {
        name: instance.node.to_string(),
        compute: instance.compute.to_string(),
        state: state.into(),
        reason,
        ..pb::Node::default()
    })
}

/// A node's state, and why.
fn state_of(live: &Live, node: &LiveNode) -> (pb::NodeState, String) {
    let instance = live.instance(&node.record.name);
    if let Some(instance) = instance.filter(|known| !known.state.takes_jobs()) {
        return leaving(&instance.state);
    }
    match node.link {
        Link::Ready if node.record.drain.is_some() => (pb::NodeState::Leaving, drained(node)),
        Link::Ready if let Some(lacks) = live.unfit(&node.record.name) => {
            (pb::NodeState::Unusable, format!("it gets no jobs: {lacks}"))
        }
        Link::Ready => {
            let state = match node.attempts.is_empty() {
                true => pb::NodeState::Idle,
                false => pb::NodeState::Running,
            };
            (state, node.record.gpu_trouble().unwrap_or_default())
        }
        Link::Silent { .. } => {
            let reason = "its agent is not connected; see its log, or start it again";
            (pb::NodeState::Unusable, reason.to_owned())
        }
    }
}

/// Who keeps jobs away from the node, why, and what becomes of those that run there.
fn drained(node: &LiveNode) -> String {
    let Some(Drain { by, reason, deadline, .. }) = &node.record.drain else { return String::new() };
    let left = match (node.attempts.len(), deadline) {
        (0, _) => "nothing runs there".to_owned(),
        (1, None) => "1 job runs to its end".to_owned(),
        (jobs, None) => format!("{jobs} jobs run to their end"),
        (jobs, Some(deadline)) => {
            format!("jobs there: {jobs}; they go back in the queue at {deadline}")
        }
    };
    format!("drained by {by}: {reason} ({left})")
}

fn describe_node(live: &Live, node: &LiveNode, views: &HashMap<NodeName, NodeView>) -> pb::Node {
    let record = &node.record;
    let ledger = live.sched().pool(&record.compute).and_then(|pool| pool.node(&record.name));
    let view = views.get(&record.name).cloned().unwrap_or_default();
    let drain = record.drain.as_ref();
    let (state, reason) = state_of(live, node);
    let free_gpus = ledger.map(|(ledger, _)| ledger.free_shares().collect()).unwrap_or_default();
    pb::Node {
        name: record.name.to_string(),
        compute: record.compute.to_string(),
        state: state.into(),
        reason,
        capacity: ledger.map(|(ledger, _)| whole(ledger)),
        free: ledger.map(|(ledger, _)| free(ledger)),
        gpus: gpus(record, &free_gpus),
        jobs: node.attempts.keys().map(ToString::to_string).collect(),
        last_seen_ms: view.last_seen,
        agent_version: record.version.clone(),
        hostname: record.hostname.clone(),
        os: record.os.clone(),
        facts: record.facts.clone(),
        usage: view.usage,
        drain: drain.map(drain_to_wire),
        labels: record.capacity.labels.clone(),
        address: record.address.clone().unwrap_or_default(),
        clock_ahead_ms: view.clock_ahead_ms,
    }
}

/// All devices of a node, by index: those that it offers and those that it does not.
fn gpus(record: &NodeRecord, free: &BTreeMap<GpuIndex, MilliGpu>) -> Vec<pb::Gpu> {
    let offered = record.capacity.gpus.iter().map(|(index, device)| (index, device, ""));
    let out = record.gpus_out.iter().map(|(index, out)| (index, &out.device, out.reason.as_str()));
    let mut all: Vec<pb::Gpu> = offered
        .chain(out)
        .map(|(index, device, out)| {
            let free = free.get(index).copied().unwrap_or_default();
            pb::Gpu {
                index: (*index).into(),
                uuid: device.uuid.clone(),
                model: device.model.clone(),
                memory_mib: device.memory,
                free: free == WHOLE_GPU,
                free_milli: free.into(),
                out: out.to_owned(),
            }
        })
        .collect();
    all.sort_by_key(|gpu| gpu.index);
    all
}
