//! Drained nodes.

use crate::id::JobName;
use crate::job::{AttemptEnd, JobStatus, Progress, Report};
use crate::live::{Decisions, Live, Refusal};
use crate::node::{Drain, Mono, Now};
use crate::sched::WaitReason;
use crate::testkit::{
    LEASE, Outage, Script, World, capacity, compute_name, job_name, node_name, node_record,
    principal, retried,
};
use crate::time::Timestamp;

fn world() -> World {
    let nodes = ["a", "b"].map(|name| node_record(name, "local", capacity(1, 1_000, 0)));
    let mut world = World::new(LEASE, &["local"], &nodes);
    world.advance(300).unwrap();
    world
}

fn submit(world: &mut World, name: &str, run_ms: u64) -> JobName {
    let name = job_name(name);
    world.submit(&name, retried(1), Script::succeeds(run_ms));
    world.advance(150).unwrap();
    name
}

fn status(world: &World, job: &JobName) -> JobStatus {
    world.store.status(job).unwrap()
}

#[test]
fn a_drained_node_gets_nothing_and_keeps_what_it_has() {
    let mut world = world();
    let first = submit(&mut world, "first", 1_000);
    assert_eq!(world.processes(&first)[0].0, node_name("a"));
    world.drain(&node_name("a"), None);
    let second = submit(&mut world, "second", 3_000);
    assert_eq!(world.processes(&second)[0].0, node_name("b"));
    let third = submit(&mut world, "third", 10);
    world.advance(1_500).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Completed);
    assert_eq!(status(&world, &third), JobStatus::Queued, "a is free, but drained");
    world.resume(&node_name("a"));
    world.advance(300).unwrap();
    assert_eq!(status(&world, &third), JobStatus::Completed);
    world.finish().unwrap();
}

#[test]
fn a_drain_outlives_the_daemon_and_the_node() {
    let mut world = world();
    world.drain(&node_name("a"), None);
    world.advance(50).unwrap();
    world.kill_daemon(200);
    world.strike(&node_name("a"), Outage::PowerLoss, 300);
    world.advance(1_000).unwrap();
    let jobs = ["one", "two"].map(|name| submit(&mut world, name, 3_000));
    assert_eq!(world.processes(&jobs[0])[0].0, node_name("b"));
    assert_eq!(status(&world, &jobs[1]), JobStatus::Queued);
    world.finish().unwrap();
}

#[test]
fn at_the_deadline_jobs_make_way_and_run_elsewhere() {
    let mut world = world();
    let job = submit(&mut world, "job", 2_000);
    world.drain(&node_name("a"), Some(500));
    world.advance(300).unwrap();
    assert_eq!(world.processes(&job)[0].0, node_name("a"), "not yet");
    world.advance(700).unwrap();
    assert_eq!(world.processes(&job)[0].0, node_name("b"));
    world.finish().unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    let tries = world.store.jobs[&job].tries;
    assert_eq!((tries.made.0, tries.failed, tries.lost, tries.evicted), (2, 0, 0, 1));
    assert!((500..1_000).contains(&tries.lost_ms), "{tries:?}");
    let story = world.store.story(&job);
    let at = |kind| story.iter().position(|k| *k == kind).unwrap();
    assert!(at("Evicting") < at("Requeued"), "{story:?}");
}

#[test]
fn a_job_that_makes_way_may_still_be_cancelled() {
    let mut world = world();
    let job = submit(&mut world, "job", 5_000);
    world.drain(&node_name("a"), Some(0));
    world.cancel(&job);
    world.finish().unwrap();
    assert_eq!(status(&world, &job), JobStatus::Canceled);
    assert_eq!(world.starts(&job), 1);
}

#[test]
fn a_job_that_makes_way_is_told_so_again_after_a_partition() {
    let mut world = world();
    let job = submit(&mut world, "job", 60_000);
    world.strike(&node_name("a"), Outage::Cut, 500);
    world.drain(&node_name("a"), Some(0));
    world.advance(400).unwrap();
    assert_eq!(world.processes(&job)[0].0, node_name("a"), "nobody could tell it");
    world.advance(1_000).unwrap();
    assert_eq!(world.processes(&job)[0].0, node_name("b"));
    assert_eq!(world.store.jobs[&job].tries.lost, 0);
}

#[test]
fn who_waits_for_a_drained_node_is_told() {
    let nodes = [
        node_record("big", "local", capacity(4, 1_000, 0)),
        node_record("small", "local", capacity(1, 1_000, 0)),
    ];
    let mut world = World::new(LEASE, &["local"], &nodes);
    world.advance(300).unwrap();
    world.drain(&node_name("big"), None);
    world.advance(0).unwrap();
    let mut spec = (*retried(1)).clone();
    spec.resources.demand.cpu = 3_000;
    world.submit(&job_name("large"), spec.into(), Script::succeeds(10));
    world.advance(100).unwrap();
    let live = world.live().unwrap();
    let reason = live.wait_reason(live.job(&job_name("large")).unwrap()).unwrap();
    assert!(
        matches!(&reason, WaitReason::Drained { node, .. } if node == &node_name("big")),
        "{reason}"
    );
    assert!(reason.to_string().contains("atelier node resume big"), "{reason}");
    world.finish().unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let now = Now { wall: Timestamp::from_millis(1), mono: Mono(1) };
    let mut live =
        Live::new([], compute_name("local"), principal("daemon"), LEASE, Default::default());
    let drain = |reason: &str| Drain {
        by: principal("ada"),
        reason: reason.to_owned(),
        since: now.wall,
        deadline: None,
    };
    let a = node_name("a");
    let mut out = Decisions::default();
    let unknown = Refusal::NoSuchNode(a.clone());
    assert_eq!(live.drain(&a, drain("x"), true, now, &mut out), Err(unknown.clone()));
    assert_eq!(live.resume(&a, &mut out), Err(unknown));
    live.node_joined(node_record("a", "local", capacity(1, 1, 0)), vec![], now, &mut out);
    assert_eq!(live.resume(&a, &mut out), Err(Refusal::NotDrained(a.clone())));
    live.drain(&a, drain("a fan is loud"), false, now, &mut out).unwrap();
    let mut out = Decisions::default();
    let again = live.drain(&a, drain("again"), false, now, &mut out).unwrap_err().to_string();
    for part in ["drained already", "ada", "a fan is loud", "--update", "node resume a"] {
        assert!(again.contains(part), "{again}");
    }
    assert!(out.nodes.is_empty());
    live.drain(&a, drain("two fans"), true, now, &mut out).unwrap();
    assert_eq!(out.nodes[0].drain.as_ref().unwrap().reason, "two fans");
}

#[test]
fn f39_a_node_where_processes_do_not_die_gets_no_more_jobs() {
    let (mut world, node) = (world(), node_name("a"));
    let job = job_name("job");
    world.submit(&job, retried(1), Script::succeeds(10_000));
    world.advance(150).unwrap();
    let mut live = world.live().unwrap().clone();
    let key = live.job(&job).unwrap().attempt_key().unwrap();
    let end = AttemptEnd { survivors: 2, ..super::ended(0) };
    let mut out = Decisions::default();
    let now = Now { wall: Timestamp::from_millis(9), mono: Mono(9) };
    live.report(&node, Report { key, progress: Progress::Ended(Box::new(end)) }, now, &mut out);
    // The job's own end stands.
    assert_eq!(out.changed[&job].status(), JobStatus::Completed);
    let drained = out.nodes.iter().find(|record| record.name == node).unwrap();
    let reason = &drained.drain.as_ref().unwrap().reason;
    assert!(reason.contains("2 processes of job job did not die"), "{reason}");
}
