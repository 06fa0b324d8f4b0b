//! Clusters grow, shrink and lose nodes; jobs do not notice.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::access::Person;
use crate::compute::{
    AccessChange, Cluster, Containment, InstanceState, NodeShape, Placement, Provider, Whom,
};
use crate::id::{ComputeName, GroupName, JobName, NodeName};
use crate::job::{Cause, JobStatus};
use crate::live::{Asker, Decisions, Effect, Refusal};
use crate::node::{Mono, Now};
use crate::resource::Demand;
use crate::sched::{Limits, QuotaOf, WaitReason};
use crate::testkit::{
    Checked, CommitFault, Finish, LEASE, Outage, Script, World, capacity, command_job,
    compute_name, demand, job_name, node_record, principal,
};
use crate::time::Timestamp;

const NOW: Now = Now { wall: Timestamp::from_millis(1_700_000_001_000), mono: Mono(4_000) };
/// Seconds after which an idle node goes.
const IDLE_S: u64 = 2;

fn elastic() -> ComputeName {
    compute_name("elastic")
}

fn cluster(min: u32, max: u32, placement: Placement) -> Cluster {
    let node =
        NodeShape { cpu: 4_000, memory: 1_000, disk: 0, gpus: 0, gpu_model: None, gpu_memory: 0 };
    Cluster {
        min_instances: min,
        max_instances: max,
        idle_time_before_scale_down: IDLE_S,
        placement,
        ..Cluster::new(elastic(), "test", node)
    }
}

fn world(min: u32, max: u32, placement: Placement) -> World {
    let mut world = World::new(LEASE, &["local"], &[]);
    world.advance(10).unwrap();
    world.put_cluster(cluster(min, max, placement));
    world.advance(10).unwrap();
    world
}

fn submit(world: &mut World, name: &str, asks: Demand, run_ms: u64) -> JobName {
    let mut spec = command_job(asks);
    spec.compute = Some(elastic());
    let name = job_name(name);
    world.submit(&name, Arc::new(spec), Script::succeeds(run_ms));
    name
}

fn reason(world: &World, job: &JobName) -> Option<WaitReason> {
    let live = world.live().unwrap();
    live.wait_reason(live.job(job).unwrap())
}

fn status(world: &World, job: &JobName) -> JobStatus {
    world.store.status(job).unwrap()
}

fn given_nodes(world: &World, job: &JobName) -> Vec<String> {
    let assigned = world.effects.iter().filter_map(|effect| match effect {
        Effect::Assign { node, key, .. } if &key.job == job => Some(node.to_string()),
        _ => None,
    });
    assigned.collect()
}

fn up(world: &World) -> usize {
    world.store.instances.values().filter(|known| known.state == InstanceState::Up).count()
}

#[test]
fn from_nothing_to_four_and_back_to_nothing() {
    let mut world = world(0, 4, Placement::Exclusive);
    world.advance(100).unwrap();
    assert!(world.machines(&elastic()).is_empty() && world.store.instances.is_empty());
    let jobs: Vec<JobName> =
        (0..6).map(|n| submit(&mut world, &format!("job{n}"), Demand::DEFAULT, 1_000)).collect();
    world.advance(0).unwrap();
    assert!(
        matches!(reason(&world, &jobs[0]), Some(WaitReason::NodesComing { nodes: 4, .. })),
        "{:?}",
        reason(&world, &jobs[0])
    );
    world.advance(600).unwrap();
    assert_eq!(up(&world), 4);
    let running = jobs.iter().filter(|job| status(&world, job) == JobStatus::Running);
    assert_eq!(running.count(), 4, "a job takes a whole node");
    let last = reason(&world, &jobs[4]).unwrap();
    assert!(matches!(last, WaitReason::Full { most: 4, .. }), "{last}");
    world.finish().unwrap();
    assert!(jobs.iter().all(|job| world.starts(job) == 1));
    world.advance(IDLE_S * 1_000 + 1_000).unwrap();
    assert_eq!(world.machines(&elastic()), [] as [NodeName; 0]);
    assert!(world.store.instances.is_empty() && world.store.nodes.is_empty());
}

#[test]
fn jobs_that_share_get_no_more_nodes_than_they_fill() {
    let mut world = world(0, 4, Placement::Shared);
    for n in 0..6 {
        submit(&mut world, &format!("job{n}"), demand(1, 0, 0), 5_000);
    }
    world.advance(600).unwrap();
    assert_eq!(up(&world), 2, "six of one CPU on nodes of four");
}

/// A gang gets all of its nodes asked for at once. One that has become too large for its cluster keeps no
/// nodes that it could never use.
#[test]
fn a_cluster_grows_by_whole_gangs() {
    let gang = |world: &mut World, name: &str| {
        let mut spec = command_job(Demand::DEFAULT);
        spec.compute = Some(elastic());
        spec.resources.instance_count = 3;
        let name = job_name(name);
        world.submit(&name, Arc::new(spec), Script::succeeds(500));
        name
    };
    let mut world = world(0, 4, Placement::Exclusive);
    world.advance(100).unwrap();
    let first = gang(&mut world, "first");
    world.advance(0).unwrap();
    let coming = reason(&world, &first);
    assert!(matches!(coming, Some(WaitReason::NodesComing { nodes: 3, .. })), "{coming:?}");
    world.advance(600).unwrap();
    assert_eq!(given_nodes(&world, &first).len(), 3);
    let second = gang(&mut world, "second");
    world.advance(0).unwrap();
    world.put_cluster(cluster(0, 2, Placement::Exclusive));
    world.advance(IDLE_S * 1_000 + 3_000).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Completed);
    assert_eq!(status(&world, &second), JobStatus::Queued);
    assert_eq!(world.machines(&elastic()), [] as [NodeName; 0], "nothing can use them");
    world.put_cluster(cluster(0, 3, Placement::Exclusive));
    world.finish().unwrap();
    assert_eq!(world.starts(&second), 1);
}

fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_cluster_with_labels_grows_for_a_job_that_asks_for_them() {
    let mut world = World::new(LEASE, &["local"], &[]);
    world.advance(10).unwrap();
    let zoned =
        Cluster { node_labels: labels(&[("zone", "b")]), ..cluster(0, 4, Placement::Exclusive) };
    world.put_cluster(zoned.clone());
    world.advance(10).unwrap();
    let asks = |key: &str, value: &str| {
        let node_labels = Some(Arc::new(labels(&[(key, value)])));
        Demand { node_labels, ..Demand::DEFAULT }
    };
    let job = submit(&mut world, "zoned", asks("zone", "b"), 100);
    world.advance(3_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    // For another zone a node may yet join, but none of the cluster's own will have it.
    let other = submit(&mut world, "other", asks("zone", "c"), 100);
    world.advance(4_000).unwrap();
    assert_eq!((status(&world, &other), world.machines(&elastic()).len()), (JobStatus::Queued, 0));
    // A label of which nobody has ever heard is a mistake.
    let mut live = world.live().unwrap().clone();
    let asked = {
        let mut spec = command_job(asks("rack", "7"));
        spec.compute = Some(elastic());
        let asker = Asker { user: &principal("ada"), manages: false };
        live.as_asked(job_name("third"), &spec, asker, NOW)
    };
    assert!(matches!(asked, Err(Refusal::NoSuchLabels { .. })), "{asked:?}");
    let other = Cluster { node_labels: labels(&[("zone", "c")]), ..zoned };
    let changed = live.put_cluster(other, principal("root"), NOW, &mut Decisions::default());
    assert_eq!(changed, Err(Refusal::FixedField { compute: elastic(), field: "node_labels" }));
}

#[test]
fn a_node_without_its_clusters_labels_is_sent_away() {
    let mut world = World::new(LEASE, &["local"], &[]);
    world.advance(10).unwrap();
    world.put_cluster(Cluster {
        node_labels: labels(&[("zone", "b")]),
        ..cluster(0, 4, Placement::Exclusive)
    });
    world.forget_labels();
    world.advance(10).unwrap();
    let job = submit(&mut world, "job", Demand::DEFAULT, 100);
    world.advance(2_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Queued);
    let trouble = world.store.computes[&elastic()].trouble.clone().unwrap();
    assert!(trouble.message.contains("no label zone=b"), "{}", trouble.message);
}

#[test]
fn the_minimum_stays_and_a_node_with_work_does_too() {
    let mut world = world(1, 4, Placement::Exclusive);
    world.advance(300).unwrap();
    assert_eq!(up(&world), 1, "before there is any work");
    let long = submit(&mut world, "long", Demand::DEFAULT, 60_000);
    submit(&mut world, "short", Demand::DEFAULT, 100);
    world.advance(10_000).unwrap();
    assert_eq!(up(&world), 1);
    assert_eq!(status(&world, &long), JobStatus::Running);
    world.put_cluster(cluster(0, 4, Placement::Exclusive));
    world.advance(20_000).unwrap();
    assert_eq!((up(&world), status(&world, &long)), (1, JobStatus::Running));
    world.finish().unwrap();
    world.advance(IDLE_S * 1_000 + 1_000).unwrap();
    assert_eq!(up(&world), 0);
}

#[test]
fn a_provider_that_fails_is_asked_again_later_and_those_who_wait_know() {
    let mut world = world(0, 2, Placement::Exclusive);
    world.fail_provider(20_000);
    let job = submit(&mut world, "job", Demand::DEFAULT, 100);
    world.advance(2_000).unwrap();
    let why = reason(&world, &job).unwrap();
    assert!(
        matches!(&why, WaitReason::NoNodeToBeHad { why, .. } if why == "none to be had"),
        "{why}"
    );
    let asked = world.store.computes[&elastic()].next_node;
    world.advance(3_000).unwrap();
    assert_eq!(world.store.computes[&elastic()].next_node, asked, "it is left in peace");
    world.advance(60_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    assert_eq!(world.store.computes[&elastic()].trouble, None);
}

#[test]
fn a_preempted_nodes_job_goes_on_elsewhere_and_its_time_is_counted() {
    let mut world = world(0, 2, Placement::Exclusive);
    let job = submit(&mut world, "job", Demand::DEFAULT, 3_000);
    world.advance(1_000).unwrap();
    let machine = world.machines(&elastic()).remove(0);
    world.preempt(&machine);
    // As soon as the node is seen to be silent, long before its lease is over.
    world.advance(LEASE.unreachable_ms + 600).unwrap();
    let tries = world.store.jobs[&job].tries;
    assert_eq!((tries.evicted, tries.lost, tries.failed), (1, 0, 0));
    assert!(tries.lost_ms > 500, "{tries:?}");
    world.finish().unwrap();
    assert_eq!((status(&world, &job), world.starts(&job)), (JobStatus::Completed, 2));
}

#[test]
fn a_deleted_cluster_goes_with_its_last_node_and_not_while_jobs_are_on_it() {
    let mut world = world(1, 2, Placement::Exclusive);
    let job = submit(&mut world, "job", Demand::DEFAULT, 1_000);
    world.advance(500).unwrap();
    world.delete_cluster(&elastic());
    world.advance(100).unwrap();
    assert!(!world.store.computes[&elastic()].deleted, "a job is on it");
    world.finish().unwrap();
    world.delete_cluster(&elastic());
    world.advance(0).unwrap();
    assert!(world.store.computes[&elastic()].deleted);
    let late = submit(&mut world, "late", Demand::DEFAULT, 1);
    world.advance(1_000).unwrap();
    assert_eq!(world.store.status(&late), None, "refused");
    assert!(world.store.computes.is_empty() && world.store.instances.is_empty());
    assert!(world.store.nodes.is_empty() && world.machines(&elastic()).is_empty());
    assert_eq!(world.starts(&job), 1);
}

#[test]
fn a_drained_compute_starts_nothing_and_gives_its_jobs_back_at_the_deadline() {
    let mut world = world(0, 2, Placement::Exclusive);
    let first = submit(&mut world, "first", Demand::DEFAULT, 5_000);
    world.advance(600).unwrap();
    world.drain_compute(&elastic(), Some(1_000));
    let second = submit(&mut world, "second", Demand::DEFAULT, 10);
    world.advance(600).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Running);
    let why = reason(&world, &second).unwrap();
    assert!(matches!(why, WaitReason::ComputeDrained { .. }), "{why}");
    world.advance(2_000).unwrap();
    assert_eq!(status(&world, &first), JobStatus::Queued);
    assert_eq!(world.store.jobs[&first].tries.evicted, 1);
    world.finish().unwrap();
    assert_eq!(status(&world, &second), JobStatus::Completed);
}

#[test]
fn a_node_that_falls_silent_for_good_is_replaced() {
    let mut world = world(0, 1, Placement::Exclusive);
    let job = submit(&mut world, "job", Demand::DEFAULT, 2_000);
    world.advance(600).unwrap();
    let machine = world.machines(&elastic()).remove(0);
    world.strike(&machine, Outage::Cut, 10_000_000);
    world.advance(60_000).unwrap();
    assert_eq!((status(&world, &job), world.starts(&job)), (JobStatus::Completed, 2));
    assert!(!world.machines(&elastic()).contains(&machine));
}

#[test]
fn a_node_that_answers_while_it_is_preempted_stops_its_job_before_another_starts() {
    let mut world = world(0, 2, Placement::Exclusive);
    let job = submit(&mut world, "job", Demand::DEFAULT, 3_000);
    world.advance(1_000).unwrap();
    let machine = world.machines(&elastic()).remove(0);
    // I1 is judged on the way.
    world.warn_of_preemption(&machine);
    world.advance(2_000).unwrap();
    assert_eq!(world.store.jobs[&job].tries.evicted, 1);
    assert!(!world.machines(&elastic()).contains(&machine));
    world.finish().unwrap();
    assert_eq!((status(&world, &job), world.starts(&job)), (JobStatus::Completed, 2));
}

#[test]
fn a_machine_that_joined_by_itself_keeps_its_name_and_its_job() {
    let record = node_record("elastic-1", "local", capacity(4, 1_000, 0));
    let mut world = World::new(LEASE, &["local"], &[record]);
    world.advance(300).unwrap();
    let own = job_name("own");
    world.submit(&own, Arc::new(command_job(Demand::DEFAULT)), Script::succeeds(90_000));
    world.put_cluster(cluster(0, 1, Placement::Exclusive));
    world.advance(200).unwrap();
    let job = submit(&mut world, "job", Demand::DEFAULT, 100);
    world.advance(2_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    assert_eq!(given_nodes(&world, &job), ["elastic-2"]);
    world.finish().unwrap();
    assert_eq!((status(&world, &own), world.starts(&own)), (JobStatus::Completed, 1));
}

#[test]
fn machines_a_little_smaller_than_their_size_are_asked_for_once() {
    let mut world = world(0, 3, Placement::Exclusive);
    world.shrink_machines(950);
    let fits = submit(&mut world, "fits", demand(1, 900, 0), 100);
    let never = submit(&mut world, "never", demand(1, 1_000, 0), 100);
    world.advance(60_000).unwrap();
    assert_eq!(status(&world, &fits), JobStatus::Completed);
    let why = reason(&world, &never).unwrap();
    assert!(!matches!(why, WaitReason::NodesComing { .. } | WaitReason::Growing), "{why}");
    assert!(world.store.computes[&elastic()].next_node <= 4, "none is asked for in vain");
    assert!(world.machines(&elastic()).is_empty(), "and none stays for what it cannot hold");
    // Far less is not what was asked for.
    world.shrink_machines(500);
    let small = submit(&mut world, "small", demand(1, 100, 0), 100);
    world.advance(3_000).unwrap();
    let why = reason(&world, &small).unwrap().to_string();
    assert!(why.contains("500 MiB memory, and its size says 1000 MiB"), "{why}");
}

#[test]
fn idle_nodes_that_come_back_with_the_daemon_are_used_before_others_are_asked_for() {
    let mut world = world(2, 4, Placement::Exclusive);
    world.advance(600).unwrap();
    assert_eq!(up(&world), 2);
    world.kill_daemon(0);
    world.advance(0).unwrap();
    let job = submit(&mut world, "job", Demand::DEFAULT, 100);
    world.advance(3_000).unwrap();
    assert_eq!(status(&world, &job), JobStatus::Completed);
    assert_eq!(world.store.computes[&elastic()].next_node, 3);
}

#[derive(Clone, Debug)]
enum Op {
    Put { min: u32, max: u32, shared: bool },
    Delete,
    Drain { deadline_ms: Option<i64> },
    Resume,
    Quota { of: usize, jobs: Option<u32>, cpus: Option<u64> },
    Access { change: AccessChange },
    People { groups: [(bool, bool); 3] },
    Submit { job: usize, cpus: u64, script: Script },
    Cancel { job: usize },
    Advance { ms: u64 },
    FailProvider { ms: u64 },
    Preempt { which: usize },
    Strike { which: usize, outage: Outage, ms: u64 },
    FailCommit(CommitFault),
    KillDaemon { ms: u64 },
}

const USERS: [&str; 3] = ["ada", "bob", "cleo"];
const GROUPS: [&str; 2] = ["nlp", "vision"];

fn access() -> impl Strategy<Value = AccessChange> {
    let one = (0..3_usize)
        .prop_map(|user| Whom { users: [principal(USERS[user])].into(), ..Whom::default() });
    let some = (0..2_usize).prop_map(|group| Whom {
        groups: [GroupName::new(GROUPS[group]).unwrap()].into(),
        ..Whom::default()
    });
    let whom = prop_oneof![one, some].boxed();
    prop_oneof![
        2 => whom.clone().prop_map(AccessChange::Grant),
        1 => whom.prop_map(AccessChange::Revoke),
        2 => Just(AccessChange::Open),
        1 => Just(AccessChange::Close),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let finish = prop_oneof![
        4 => Just(Finish::Exit(0)),
        1 => Just(Finish::Exit(1)),
        1 => Just(Finish::Problem(Cause::AgentError)),
    ];
    (prop_oneof![Just(50_u64), Just(700), Just(3_000)], finish)
        .prop_map(|(run_ms, finish)| Script { finishes: vec![finish], ..Script::succeeds(run_ms) })
}

fn op() -> impl Strategy<Value = Op> {
    let pause = || prop_oneof![Just(0_u64), Just(120), Just(700), Just(1_500), Just(4_000)];
    let outage = prop_oneof![
        Just(Outage::CannotSpeak),
        Just(Outage::CannotHear),
        Just(Outage::Cut),
        Just(Outage::Frozen),
        Just(Outage::AgentDies),
        Just(Outage::PowerLoss),
    ];
    let fault = prop_oneof![
        Just(CommitFault::Refused),
        Just(CommitFault::Unsure),
        pause().prop_map(CommitFault::CrashBefore),
        pause().prop_map(CommitFault::CrashAfter),
    ];
    prop_oneof![
        2 => (0_u32..3, 1_u32..4, any::<bool>())
            .prop_map(|(min, max, shared)| Op::Put { min: min.min(max), max, shared }),
        1 => Just(Op::Delete),
        1 => proptest::option::of(prop_oneof![Just(0_i64), Just(500)])
            .prop_map(|deadline_ms| Op::Drain { deadline_ms }),
        2 => Just(Op::Resume),
        3 => (
            0..6_usize,
            proptest::option::of(1..3_u32),
            proptest::option::of(1_u64..6),
        )
            .prop_map(|(of, jobs, cpus)| Op::Quota { of, jobs, cpus }),
        2 => access().prop_map(|change| Op::Access { change }),
        2 => any::<[(bool, bool); 3]>().prop_map(|groups| Op::People { groups }),
        10 => (0..12_usize, 1_u64..5, script())
            .prop_map(|(job, cpus, script)| Op::Submit { job, cpus, script }),
        2 => (0..12_usize).prop_map(|job| Op::Cancel { job }),
        12 => pause().prop_map(|ms| Op::Advance { ms }),
        1 => pause().prop_map(|ms| Op::FailProvider { ms }),
        2 => (0..3_usize).prop_map(|which| Op::Preempt { which }),
        4 => (0..3_usize, outage, pause())
            .prop_map(|(which, outage, ms)| Op::Strike { which, outage, ms }),
        2 => fault.prop_map(Op::FailCommit),
        1 => pause().prop_map(|ms| Op::KillDaemon { ms }),
    ]
}

fn apply(world: &mut World, op: Op) -> Checked {
    let job = |number: usize| job_name(&format!("job{number}"));
    let machine = |world: &World, which: usize| world.machines(&elastic()).into_iter().nth(which);
    match op {
        Op::Put { min, max, shared } => {
            let placement = if shared { Placement::Shared } else { Placement::Exclusive };
            world.put_cluster(cluster(min, max, placement));
        }
        Op::Delete => world.delete_cluster(&elastic()),
        Op::Drain { deadline_ms } => world.drain_compute(&elastic(), deadline_ms),
        Op::Resume => world.resume_compute(&elastic()),
        Op::Quota { of, jobs, cpus } => {
            let of = match of {
                0 => QuotaOf::Each,
                user @ 1..4 => QuotaOf::User(principal(USERS[user - 1])),
                group => QuotaOf::Group(GroupName::new(GROUPS[group - 4]).unwrap()),
            };
            let cpu = cpus.map(|cpus| cpus * 1000);
            let limits = Limits { jobs, cpu, ..Limits::default() };
            let limits = Some(limits).filter(|limits| !limits.is_empty());
            world.set_quota(&elastic(), of, limits);
        }
        Op::Access { change } => world.change_access(&elastic(), change),
        Op::People { groups } => {
            let person = |(first, second)| {
                let has = [first, second].into_iter().zip(GROUPS).filter(|(has, _)| *has);
                let groups = has.map(|(_, group)| GroupName::new(group).unwrap()).collect();
                Person { groups, manages: false }
            };
            let people = USERS.into_iter().zip(groups);
            world.set_people(people.map(|(user, has)| (principal(user), person(has))).collect());
        }
        Op::Submit { job: number, cpus, script } => {
            let mut spec = command_job(demand(cpus, 0, 0));
            spec.compute = Some(elastic());
            world.submit(&job(number), Arc::new(spec), script);
        }
        Op::Cancel { job: number } => world.cancel(&job(number)),
        Op::Advance { ms } => return world.advance(ms),
        Op::FailProvider { ms } => world.fail_provider(ms),
        Op::Preempt { which } => {
            if let Some(machine) = machine(world, which) {
                world.preempt(&machine);
            }
        }
        Op::Strike { which, outage, ms } => {
            if let Some(machine) = machine(world, which) {
                world.strike(&machine, outage, ms);
            }
        }
        Op::FailCommit(fault) => world.fail_next_commit(fault),
        Op::KillDaemon { ms } => world.kill_daemon(ms),
    }
    Ok(())
}

proptest! {
    /// Whatever happens: no node with work is taken away, there are never more machines than may
    /// be, what is acknowledged is kept, every job ends, and idle machines go.
    #[test]
    fn clusters_keep_their_promises(ops in prop::collection::vec(op(), 1..50)) {
        let mut world = World::new(LEASE, &["local"], &[]);
        let told = |broken: crate::testkit::Violation| TestCaseError::fail(broken.to_string());
        world.advance(10).map_err(told)?;
        world.put_cluster(cluster(0, 3, Placement::Exclusive));
        for op in ops {
            apply(&mut world, op).map_err(told)?;
        }
        world.finish().map_err(told)?;
        let min = world.store.computes.get(&elastic()).filter(|known| !known.deleted)
            .and_then(|known| known.cluster.as_ref()).map_or(0, |c| c.min_instances as usize);
        // A provider that failed is asked again within ten minutes.
        let mut patience = 70;
        while world.machines(&elastic()).len() != min && patience > 0 {
            world.advance(10_000).map_err(told)?;
            patience -= 1;
        }
        prop_assert_eq!(world.machines(&elastic()).len(), min);
    }
}

#[test]
fn a_strict_cluster_takes_no_node_that_does_not_keep_jobs_apart() {
    let mut world = World::new(LEASE, &["local"], &[]);
    world.advance(10).unwrap();
    let strict = Cluster {
        containment: Containment::Strict,
        provider: Provider::Joined,
        ..cluster(0, 4, Placement::Shared)
    };
    world.put_cluster(strict);
    world.advance(10).unwrap();
    let live = world.live().unwrap();
    let mut record = node_record("n", "elastic", capacity(4, 1_000, 0));
    let refused = |record: &_| live.may_join(record).unwrap_err().to_string();
    // An agent of an older version.
    assert!(refused(&record).contains("does not say"), "{}", refused(&record));
    for (name, value) in [("limited", "cpu memory pids"), ("isolation", "none"), ("closed", "none")]
    {
        record.facts.insert(name.to_owned(), value.to_owned());
    }
    record.facts.insert("not_isolated".to_owned(), "no user namespaces".to_owned());
    let said = refused(&record);
    assert!(said.contains("no isolation: no user namespaces") && said.contains("strict"), "{said}");
    assert!(!said.contains("no limits") && !said.contains("addresses"), "{said}");
    record.facts.remove("not_isolated");
    record.facts.insert("not_closed".to_owned(), "no BPF".to_owned());
    assert!(
        refused(&record).contains("no addresses closed to jobs: no BPF"),
        "{}",
        refused(&record)
    );
    record.facts.remove("not_closed");
    // One of before, which closes none.
    let told = record.facts.remove("closed").unwrap();
    let said = refused(&record);
    assert!(said.contains("no addresses closed to jobs: its agent does not say"), "{said}");
    record.facts.insert("closed".to_owned(), told);
    live.may_join(&record).unwrap();
    // Elsewhere nobody minds.
    live.may_join(&node_record("n", "local", capacity(4, 1_000, 0))).unwrap();
}
