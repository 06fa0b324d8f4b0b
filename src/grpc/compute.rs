//! `atelier.compute.v1.ComputeService`.

use std::collections::HashMap;

use atelier_core::id::{ComputeName, NodeName};
use atelier_core::live::{Live, LiveNode};
use atelier_core::node::{Drain, Link};
use atelier_core::resource::Ledger;
use atelier_core::time::Timestamp;
use atelier_proto::compute::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{caller, count};
use crate::daemon::{DrainRequest, NodeView, Shared};

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
        let name = request.into_inner().name;
        let missing =
            Status::not_found(format!("there is no compute '{name}'; see 'atelier compute list'"));
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

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let compute = request.into_inner().compute;
        let nodes = self
            .0
            .handle
            .look(move |live, views| {
                live.nodes()
                    .filter(|n| compute.is_empty() || n.record.compute.as_str() == compute)
                    .map(|node| describe_node(live, node, views))
                    .collect()
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
        let by = caller(&request)?.principal.clone();
        let pb::DrainNodeRequest { name, reason, deadline_s, update } = request.into_inner();
        let reason = reason.trim();
        if reason.is_empty() {
            let what =
                "cannot drain the node: there is no reason; say why, for those who ask later";
            return Err(Status::invalid_argument(what));
        }
        if reason.chars().count() > MAX_REASON {
            let what =
                format!("cannot drain the node: the reason has over {MAX_REASON} characters");
            return Err(Status::invalid_argument(what));
        }
        let deadline_s = deadline_s.map(u32::try_from).transpose().map_err(|_| {
            let what = "cannot drain the node: the deadline is over 136 years away; leave it out to \
                        let jobs run to their end";
            Status::invalid_argument(what)
        })?;
        let node = NodeName::new(&name).map_err(|_| no_node(&name))?;
        let reason = reason.to_owned();
        let drain = DrainRequest { node, by, reason, deadline_s, update };
        self.0.handle.drain(drain).await.map_err(told)?;
        self.node(name).await
    }

    async fn resume_node(
        &self,
        request: Request<pb::ResumeNodeRequest>,
    ) -> Result<Response<pb::Node>, Status> {
        let name = request.into_inner().name;
        let node = NodeName::new(&name).map_err(|_| no_node(&name))?;
        self.0.handle.resume(node).await.map_err(told)?;
        self.node(name).await
    }
}

/// Characters of a reason.
const MAX_REASON: usize = 500;

fn no_node(name: &str) -> Status {
    Status::not_found(format!("there is no node '{name}'; see 'atelier node list'"))
}

impl Service {
    async fn node(&self, name: String) -> Result<Response<pb::Node>, Status> {
        let missing = no_node(&name);
        let found = self
            .0
            .handle
            .look(move |live, views| {
                let node = live.nodes().find(|node| node.record.name.as_str() == name)?;
                Some(describe_node(live, node, views))
            })
            .await
            .map_err(told)?;
        found.map(Response::new).ok_or(missing)
    }
}

fn free(ledger: &Ledger) -> pb::Resources {
    pb::Resources {
        cpu_milli: ledger.free_cpu(),
        memory_mib: ledger.free_memory(),
        gpus: count(ledger.free_gpus().count()),
    }
}

fn whole(ledger: &Ledger) -> pb::Resources {
    let capacity = ledger.capacity();
    pb::Resources {
        cpu_milli: capacity.cpu,
        memory_mib: capacity.memory,
        gpus: count(capacity.gpus.len()),
    }
}

fn add(sum: &mut pb::Resources, part: &pb::Resources) {
    sum.cpu_milli += part.cpu_milli;
    sum.memory_mib += part.memory_mib;
    sum.gpus += part.gpus;
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
    pb::Compute {
        name: name.to_string(),
        r#type: "amlcompute".to_owned(),
        placement: "shared".to_owned(),
        nodes,
        ready_nodes,
        capacity: Some(capacity),
        free: Some(spare),
        running_jobs: count(running),
        queued_jobs: count(queued),
        is_default: live.default_compute() == name,
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
    let (state, reason) = match node.link {
        Link::Ready if drain.is_some() => (pb::NodeState::Leaving, drained(node)),
        Link::Ready if node.attempts.is_empty() => (pb::NodeState::Idle, String::new()),
        Link::Ready => (pb::NodeState::Running, String::new()),
        Link::Silent { .. } => {
            let reason = "its agent is not connected; see its log, or start it again";
            (pb::NodeState::Unusable, reason.to_owned())
        }
    };
    let free_gpus: Vec<u16> =
        ledger.map(|(ledger, _)| ledger.free_gpus().collect()).unwrap_or_default();
    pb::Node {
        name: record.name.to_string(),
        compute: record.compute.to_string(),
        state: state.into(),
        reason,
        capacity: ledger.map(|(ledger, _)| whole(ledger)),
        free: ledger.map(|(ledger, _)| free(ledger)),
        gpus: record
            .capacity
            .gpus
            .iter()
            .map(|(&index, gpu)| pb::Gpu {
                index: index.into(),
                uuid: gpu.uuid.clone(),
                model: gpu.model.clone(),
                memory_mib: gpu.memory,
                free: free_gpus.contains(&index),
            })
            .collect(),
        jobs: node.attempts.keys().map(ToString::to_string).collect(),
        last_seen_ms: view.last_seen,
        agent_version: record.version.clone(),
        hostname: record.hostname.clone(),
        os: record.os.clone(),
        facts: record.facts.clone(),
        usage: view.usage,
        drain: drain.map(|drain| pb::Drain {
            by: drain.by.to_string(),
            reason: drain.reason.clone(),
            since_ms: drain.since.as_millis(),
            deadline_ms: drain.deadline.map(Timestamp::as_millis),
        }),
    }
}
