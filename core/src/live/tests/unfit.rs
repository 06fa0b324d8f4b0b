//! Nodes that have joined and lack what they would have to have to join.

use std::sync::Arc;

use crate::compute::{Cluster, Containment, NodeShape, Provider};
use crate::id::{ComputeName, JobName, NodeName};
use crate::job::JobStatus;
use crate::live::{Asker, Refusal};
use crate::node::{GPU_DRIVER, NOT_REACHED, Now};
use crate::sched::WaitReason;
use crate::testkit::{
    LEASE, Outage, Script, World, capacity, command_job, compute_name, demand, job_name, node_name,
    node_record, principal,
};

fn only() -> NodeName {
    node_name("a")
}

fn strict() -> ComputeName {
    compute_name("strict")
}

/// A strict cluster with one node that has all it must have.
fn world() -> World {
    let mut record = node_record("a", "strict", capacity(2, 1_000, 0));
    for (name, value) in
        [("limited", "cpu memory pids"), ("isolation", "private"), ("closed", "metadata")]
    {
        record.facts.insert(name.to_owned(), value.to_owned());
    }
    let mut world = World::new(LEASE, &["local"], &[record]);
    world.advance(10).unwrap();
    let node =
        NodeShape { cpu: 2_000, memory: 1_000, disk: 0, gpus: 0, gpu_model: None, gpu_memory: 0 };
    world.put_cluster(Cluster {
        containment: Containment::Strict,
        provider: Provider::Joined,
        ..Cluster::new(strict(), "test", node)
    });
    world.advance(500).unwrap();
    world
}

fn submit(world: &mut World, name: &str, run_ms: u64) -> JobName {
    let mut spec = command_job(demand(1, 10, 0));
    spec.compute = Some(strict());
    let name = job_name(name);
    world.submit(&name, Arc::new(spec), Script::succeeds(run_ms));
    world.advance(200).unwrap();
    name
}

fn status(world: &World, job: &JobName) -> JobStatus {
    world.store.status(job).unwrap()
}

/// Why the job waits for a node that is there.
fn waits(world: &World, job: &JobName) -> String {
    let live = world.live().unwrap();
    match live.wait_reason(live.job(job).unwrap()) {
        Some(reason @ WaitReason::Unfit { .. }) => reason.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_that_loses_what_a_strict_cluster_asks_for_gets_no_more_jobs() {
    let mut world = world();
    let first = submit(&mut world, "first", 1_500);
    assert_eq!(world.processes(&first).len(), 1);
    // While its session stands.
    world.change_fact(&only(), "not_closed", Some("no BPF"));
    world.advance(50).unwrap();
    let second = submit(&mut world, "second", 10);
    let said = waits(&world, &second);
    assert!(
        said.contains("and a, which has that, gets no jobs") && said.contains("no BPF"),
        "{said}"
    );
    let told = world.live().unwrap().unfit(&only()).unwrap();
    assert!(
        told.contains("strict") && told.contains("no addresses closed to jobs: no BPF"),
        "{told}"
    );
    // What runs there runs on.
    world.advance(2_000).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Completed);
    assert_eq!(status(&world, &second), JobStatus::Queued);
    world.change_fact(&only(), "not_closed", None);
    world.advance(500).unwrap();
    assert_eq!(status(&world, &second), JobStatus::Completed);
    world.finish().unwrap();
}

#[test]
fn a_node_that_joins_for_its_jobs_alone_gets_no_others() {
    let mut world = world();
    let first = submit(&mut world, "first", 2_000);
    // The agent comes back, and can do less.
    world.strike(&only(), Outage::AgentDies, 100);
    world.change_fact(&only(), "not_isolated", Some("no user namespaces"));
    world.advance(400).unwrap();
    let second = submit(&mut world, "second", 10);
    assert!(waits(&world, &second).contains("no user namespaces"));
    world.kill_daemon(100);
    world.advance(2_500).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Completed);
    assert_eq!(status(&world, &second), JobStatus::Queued);
    world.change_fact(&only(), "not_isolated", None);
    world.advance(5_000).unwrap();
    assert_eq!(status(&world, &second), JobStatus::Completed);
    world.finish().unwrap();
}

#[test]
fn a_node_whose_jobs_would_not_reach_the_daemon_gets_none() {
    let nodes = ["a", "b"].map(|name| node_record(name, "local", capacity(1, 1_000, 0)));
    let mut world = World::new(LEASE, &["local"], &nodes);
    world.advance(300).unwrap();
    world.change_fact(&only(), NOT_REACHED, Some("cannot reach port 7421; forward it too"));
    world.advance(50).unwrap();
    let submit = |world: &mut World, name: &str| {
        let name = job_name(name);
        world.submit(&name, Arc::new(command_job(demand(1, 10, 0))), Script::succeeds(1_000));
        world.advance(200).unwrap();
        name
    };
    let (first, second) = (submit(&mut world, "first"), submit(&mut world, "second"));
    assert_eq!(world.processes(&first)[0].0, node_name("b"));
    assert_eq!(status(&world, &second), JobStatus::Queued);
    world.change_fact(&only(), NOT_REACHED, None);
    world.advance(200).unwrap();
    assert_eq!(world.processes(&second)[0].0, only());
    world.finish().unwrap();
}

#[test]
fn what_changes_while_an_agent_joins_is_told_then() {
    for after in (0..100).step_by(5) {
        let record = node_record("a", "local", capacity(1, 1_000, 0));
        let mut world = World::new(LEASE, &["local"], &[record]);
        world.advance(300).unwrap();
        world.change_fact(&only(), NOT_REACHED, Some("cannot reach port 7421; forward it too"));
        world.strike(&only(), Outage::AgentDies, 0);
        world.advance(after).unwrap();
        world.change_fact(&only(), NOT_REACHED, None);
        let job = job_name("job");
        world.submit(&job, Arc::new(command_job(demand(1, 10, 0))), Script::succeeds(10));
        world.finish().unwrap();
        assert_eq!(status(&world, &job), JobStatus::Completed);
    }
}

#[test]
fn gpus_of_a_silent_driver_are_waited_for() {
    let mut record = node_record("a", "local", capacity(2, 1_000, 0));
    record.facts.insert(GPU_DRIVER.to_owned(), "it has not answered for 30 s".to_owned());
    let mut world = World::new(LEASE, &["local"], &[record]);
    world.advance(300).unwrap();
    let job = job_name("job");
    world.submit(&job, Arc::new(command_job(demand(1, 10, 1))), Script::succeeds(10));
    world.advance(300).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Queued);
    // What does not depend on the driver is known.
    let now = Now { wall: crate::time::Timestamp::default(), mono: crate::node::Mono::default() };
    let large = command_job(demand(3, 10, 1));
    let asker = Asker { user: &principal("ada"), manages: false };
    let asked = world.live().unwrap().as_asked(job_name("large"), &large, asker, now);
    assert!(matches!(asked, Err(Refusal::NeverFits { .. })), "{asked:?}");
    world.change_fact(&only(), GPU_DRIVER, None);
    world.change_node(&only(), Some(capacity(2, 1_000, 1)), None);
    world.advance(2_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    world.finish().unwrap();
}
