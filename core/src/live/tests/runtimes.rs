//! Jobs that ask for a container, on nodes with and without a runtime.

use std::sync::Arc;

use crate::compute::{Cluster, NodeShape};
use crate::id::{JobName, NodeName};
use crate::job::JobStatus;
use crate::node::{CONTAINER_RUNTIME, NodeRecord};
use crate::resource::{ContainerNeed, Containers, Demand};
use crate::sched::WaitReason;
use crate::testkit::{
    LEASE, Outage, Script, World, capacity, command_job, compute_name, demand, job_name, node_name,
    node_record,
};

const BUILT: ContainerNeed = ContainerNeed::Needs(Containers::Build);
const RUN: ContainerNeed = ContainerNeed::Needs(Containers::Run);
const LIKED: ContainerNeed = ContainerNeed::Prefers(Containers::Run);

/// A node of two CPUs with this runtime.
fn node(name: &str, runtime: &str) -> NodeRecord {
    let mut record = node_record(name, "local", capacity(2, 1_000, 0));
    record.facts.insert(CONTAINER_RUNTIME.to_owned(), runtime.to_owned());
    record
}

fn world(nodes: &[NodeRecord]) -> World {
    let mut world = World::new(LEASE, &["local"], nodes);
    world.advance(300).unwrap();
    world
}

fn asks(containers: ContainerNeed) -> Demand {
    Demand { containers, ..demand(2, 10, 0) }
}

fn submit(world: &mut World, name: &str, demand: Demand) -> JobName {
    let name = job_name(name);
    world.submit(&name, Arc::new(command_job(demand)), Script::succeeds(1_000));
    world.advance(100).unwrap();
    name
}

/// Where it runs; `None` if it does not.
fn place(world: &World, job: &JobName) -> Option<NodeName> {
    world.processes(job).first().map(|(node, _)| node.clone())
}

fn waits(world: &World, job: &JobName) -> WaitReason {
    let live = world.live().unwrap();
    live.wait_reason(live.job(job).unwrap()).unwrap()
}

#[test]
fn who_needs_a_runtime_goes_where_one_is_and_waits_for_it() {
    let mut world = world(&[node("a", "none"), node("b", "podman 5.4.2")]);
    let first = submit(&mut world, "first", asks(BUILT));
    assert_eq!(place(&world, &first), Some(node_name("b")));
    // The other node is free, and of no use to it.
    let second = submit(&mut world, "second", asks(RUN));
    assert_eq!(place(&world, &second), None);
    let reason = waits(&world, &second);
    assert!(
        matches!(&reason, WaitReason::Shortage { node, .. } if node.as_str() == "b"),
        "{reason}"
    );
    assert!(reason.to_string().contains("a container runtime"), "{reason}");
    // It holds back nobody who has no use for it.
    let third = submit(&mut world, "third", asks(ContainerNeed::Nothing));
    assert_eq!(place(&world, &third), Some(node_name("a")));
    world.advance(1_500).unwrap();
    assert_eq!(place(&world, &second), Some(node_name("b")));
    world.finish().unwrap();
}

#[test]
fn who_would_rather_have_a_runtime_takes_what_there_is() {
    let mut world = world(&[node("a", "none"), node("b", "docker 28.2"), node("c", "none")]);
    let first = submit(&mut world, "first", asks(LIKED));
    let second = submit(&mut world, "second", asks(LIKED));
    assert_eq!(place(&world, &first), Some(node_name("b")));
    assert_eq!(place(&world, &second), Some(node_name("a")));
    world.finish().unwrap();
}

#[test]
fn a_runtime_that_builds_nothing_is_none_for_who_needs_that() {
    let nodes = [node("a", "apptainer 1.4.1"), node("b", "podman 5.4.2, rootless")];
    let mut world = world(&nodes);
    let first = submit(&mut world, "first", asks(BUILT));
    assert_eq!(place(&world, &first), Some(node_name("b")));
    let second = submit(&mut world, "second", asks(RUN));
    assert_eq!(place(&world, &second), Some(node_name("a")));
    world.finish().unwrap();
}

#[test]
fn where_no_node_has_what_a_job_needs_it_goes_to_one_that_says_so() {
    let mut none = world(&[node("a", "none"), node_record("b", "local", capacity(2, 1_000, 0))]);
    let first = submit(&mut none, "first", asks(BUILT));
    assert!(place(&none, &first).is_some());
    none.finish().unwrap();
    // Of nodes that lack it those that lack least.
    let mut some = world(&[node("a", "none"), node("b", "apptainer 1.4.1")]);
    let second = submit(&mut some, "second", asks(BUILT));
    assert_eq!(place(&some, &second), Some(node_name("b")));
    some.finish().unwrap();
}

#[test]
fn a_node_with_a_runtime_that_is_away_is_waited_for() {
    let mut world = world(&[node("a", "none"), node("b", "podman 5.4.2")]);
    world.strike(&node_name("b"), Outage::Cut, 3_000);
    world.advance(600).unwrap();
    let job = submit(&mut world, "job", asks(RUN));
    let reason = waits(&world, &job);
    assert!(
        matches!(&reason, WaitReason::TooLarge { node: Some(node), .. } if node.as_str() == "b")
    );
    // A daemon that starts again knows it by its record.
    world.kill_daemon(200);
    world.advance(1_000).unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Queued));
    world.finish().unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Completed));
}

#[test]
fn a_runtime_that_no_fitting_node_has_is_waited_for_until_one_gets_it() {
    let mut small = node("b", "podman 5.4.2");
    small.capacity = capacity(1, 1_000, 0);
    let mut world = world(&[node("a", "none"), small]);
    let job = submit(&mut world, "job", asks(RUN));
    let told = waits(&world, &job).to_string();
    assert!(told.contains("no node of the compute that gets jobs has that"), "{told}");
    assert!(told.contains("looks for podman and docker when it starts"), "{told}");
    world.change_fact(&node_name("a"), CONTAINER_RUNTIME, Some("podman 5.4.2"));
    world.advance(500).unwrap();
    assert_eq!(place(&world, &job), Some(node_name("a")));
    world.finish().unwrap();
}

#[test]
fn a_cluster_grows_for_who_needs_a_runtime_and_not_beside_nodes_that_would_refuse() {
    let elastic = compute_name("elastic");
    let shape =
        NodeShape { cpu: 2_000, memory: 1_000, disk: 0, gpus: 0, gpu_model: None, gpu_memory: 0 };
    let mut world = World::new(LEASE, &["local"], &[]);
    world.advance(10).unwrap();
    let bounds = Cluster {
        max_instances: 3,
        idle_time_before_scale_down: 60,
        ..Cluster::new(elastic.clone(), "test", shape)
    };
    world.put_cluster(bounds);
    world.advance(10).unwrap();
    let submit = |world: &mut World, name: &str| {
        let mut spec = command_job(asks(BUILT));
        spec.compute = Some(elastic.clone());
        let name = job_name(name);
        world.submit(&name, Arc::new(spec), Script::succeeds(100));
        world.advance(3_000).unwrap();
        world.store.status(&name)
    };
    assert_eq!(submit(&mut world, "first"), Some(JobStatus::Completed));
    assert_eq!(submit(&mut world, "second"), Some(JobStatus::Completed));
    assert_eq!(world.machines(&elastic).len(), 1, "the first node is as good as the next");
}
