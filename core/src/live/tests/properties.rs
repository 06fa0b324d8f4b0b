//! Whatever happens in whatever order, the promises hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::id::{AttemptNumber, DatastoreName, Epoch, JobName, NodeName, PortName};
use crate::job::{AttemptKey, Cause, Progress, Report};
use crate::node::{CONTAINER_RUNTIME, NOT_REACHED};
use crate::resource::{Capacity, ContainerNeed, Containers, Demand};
use crate::sched::DataPlace;
use crate::spec::{DataKind, DataUri, Distribution, Input, InputMode, OnNodeLoss, Priority, Retry};
use crate::testkit::{
    Checked, CommitFault, Finish, LEASE, Outage, Script, World, capacity, command_job,
    compute_name, job_name, node_name, node_record,
};
use crate::time::Timestamp;

const NODES: [&str; 3] = ["a", "b", "c"];
const COMPUTES: [&str; 2] = ["cpu", "gpu"];
/// Names are few, so that some are asked for twice.
const JOBS: usize = 24;
const LARGE: &str = "NVIDIA A100-SXM4-80GB";

#[derive(Clone, Debug)]
pub(super) enum Op {
    Submit { job: usize, demand: Demand, compute: usize, retry: Retry, keep: bool, script: Script },
    Cancel { job: usize },
    Advance { ms: u64 },
    FailCommit(CommitFault),
    KillDaemon { ms: u64 },
    Strike { node: usize, outage: Outage, ms: u64 },
    Drain { node: usize, deadline_ms: Option<i64> },
    Resume { node: usize },
    Resize { node: usize, capacity: Capacity },
    Move { node: usize, compute: usize },
    BreakGpu { node: usize, index: u16 },
    Unreach { node: usize, lasts: bool },
    Hold { node: usize, input: usize, mib: u64 },
    Replay { node: usize, which: usize },
    Reorder { node: usize },
    Forge { node: usize, job: usize, shift: i8, progress: Progress },
    WallClock { skew_ms: i64 },
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![
        4 => Just(Finish::Exit(0)),
        2 => Just(Finish::Exit(1)),
        1 => Just(Finish::Problem(Cause::DiskFull)),
        1 => Just(Finish::Problem(Cause::Timeout)),
        1 => Just(Finish::Problem(Cause::OutputFailed)),
        1 => Just(Finish::Problem(Cause::OutOfMemory)),
        1 => Just(Finish::Problem(Cause::GpuLost)),
        1 => Just(Finish::Unprepared(Cause::AgentError)),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let finishes = proptest::collection::vec(finish(), 1..4);
    let prepare = prop_oneof![Just(0_u64), Just(30), Just(400)];
    let run = prop_oneof![Just(0_u64), Just(40), Just(500), Just(1_700)];
    let finalize = prop_oneof![Just(0_u64), Just(70)];
    (prepare, run, finalize, finishes).prop_map(|(prepare_ms, run_ms, finalize_ms, finishes)| {
        Script { prepare_ms, run_ms, finalize_ms, finishes }
    })
}

fn submit() -> impl Strategy<Value = Op> {
    let gpus = prop_oneof![
        3 => (0_u32..3).prop_map(|gpus| (gpus, 0)),
        2 => prop_oneof![Just(1), Just(250), Just(333), Just(500), Just(999)]
            .prop_map(|share| (1, share)),
    ];
    let labels: Arc<BTreeMap<_, _>> = Arc::new([("zone".to_owned(), "c".to_owned())].into());
    let choice = prop_oneof![
        4 => Just(Demand::DEFAULT),
        1 => Just(Demand { gpu_models: Some([LARGE.to_owned()].into()), ..Demand::DEFAULT }),
        1 => Just(Demand { gpu_memory: 50, ..Demand::DEFAULT }),
        1 => Just(Demand { disk: 400, ..Demand::DEFAULT }),
        1 => Just(Demand { node_labels: Some(labels), ..Demand::DEFAULT }),
        1 => prop_oneof![
            Just(ContainerNeed::Needs(Containers::Build)),
            Just(ContainerNeed::Needs(Containers::Run)),
            Just(ContainerNeed::Prefers(Containers::Run)),
        ]
        .prop_map(|containers| Demand { containers, ..Demand::DEFAULT }),
    ];
    let demand = (1_u64..4, prop_oneof![Just(0_u64), Just(300), Just(700)], gpus, choice).prop_map(
        |(cpus, memory, (gpus, gpu_share), choice)| Demand {
            cpu: cpus * 1000,
            memory,
            gpus,
            gpu_share,
            ..choice
        },
    );
    let more = prop_oneof![Just(None), Just(Some(150)), Just(Some(1_000))];
    let retry = (1_u32..4, prop_oneof![Just(0_u64), Just(1)], more).prop_map(
        |(max_attempts, backoff, memory_percent)| Retry { max_attempts, backoff, memory_percent },
    );
    let keep = proptest::bool::weighted(0.2);
    (0..JOBS, demand, 0..COMPUTES.len(), retry, keep, script()).prop_map(
        |(job, demand, compute, retry, keep, script)| {
            // Only the second compute has devices and labels.
            let Demand { cpu, memory, disk, containers, .. } = demand;
            let plain = Demand { cpu, memory, disk, containers, ..Demand::DEFAULT };
            let demand = if compute == 0 { plain } else { demand };
            Op::Submit { job, demand, compute, retry, keep, script }
        },
    )
}

fn outage() -> impl Strategy<Value = Outage> {
    prop_oneof![
        Just(Outage::CannotSpeak),
        Just(Outage::CannotHear),
        Just(Outage::Cut),
        Just(Outage::Frozen),
        Just(Outage::AgentDies),
        Just(Outage::PowerLoss),
        Just(Outage::Forgets),
    ]
}

/// Around the instants that matter: a heartbeat, the silence limit, the lease, lease and margin.
fn pause() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0_u64), Just(20), Just(120), Just(350), Just(1_000), Just(1_150), Just(1_600)]
}

fn commit_fault() -> impl Strategy<Value = CommitFault> {
    prop_oneof![
        Just(CommitFault::Refused),
        Just(CommitFault::Unsure),
        pause().prop_map(CommitFault::CrashBefore),
        pause().prop_map(CommitFault::CrashAfter),
    ]
}

fn forged() -> impl Strategy<Value = Progress> {
    prop_oneof![
        Just(Progress::Preparing { step: "forged".to_owned() }),
        (0..3_i64).prop_map(|idle| Progress::Running {
            since: Timestamp::from_millis(1),
            idle_since: (idle > 0).then(|| Timestamp::from_millis(idle)),
        }),
        Just(Progress::Finalizing { exit: None }),
        Just(Progress::Ended(Box::new(super::ended(0)))),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    let size = prop_oneof![Just(capacity(2, 400, 1)), Just(capacity(6, 1_000, 3))];
    prop_oneof![
        12 => submit(),
        3 => (0..JOBS).prop_map(|job| Op::Cancel { job }),
        12 => prop_oneof![Just(0_u64), Just(10), Just(50), Just(200), Just(700), Just(1_300)]
            .prop_map(|ms| Op::Advance { ms }),
        2 => commit_fault().prop_map(Op::FailCommit),
        1 => pause().prop_map(|ms| Op::KillDaemon { ms }),
        5 => (node.clone(), outage(), pause())
            .prop_map(|(node, outage, ms)| Op::Strike { node, outage, ms }),
        2 => (node.clone(), proptest::option::of(prop_oneof![Just(0_i64), Just(500)]))
            .prop_map(|(node, deadline_ms)| Op::Drain { node, deadline_ms }),
        2 => node.clone().prop_map(|node| Op::Resume { node }),
        1 => (node.clone(), size).prop_map(|(node, capacity)| Op::Resize { node, capacity }),
        1 => (node.clone(), 0..COMPUTES.len())
            .prop_map(|(node, compute)| Op::Move { node, compute }),
        3 => (node.clone(), 0..4_u16).prop_map(|(node, index)| Op::BreakGpu { node, index }),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, lasts)| Op::Unreach { node, lasts }),
        3 => (node.clone(), 0..3_usize, 0..9_u64)
            .prop_map(|(node, input, mib)| Op::Hold { node, input, mib }),
        2 => (node.clone(), 0..50_usize).prop_map(|(node, which)| Op::Replay { node, which }),
        1 => node.clone().prop_map(|node| Op::Reorder { node }),
        2 => (node, 0..JOBS, -2..3_i8, forged())
            .prop_map(|(node, job, shift, progress)| Op::Forge { node, job, shift, progress }),
        1 => prop_oneof![Just(-4_000_i64), Just(0), Just(4_000)]
            .prop_map(|skew_ms| Op::WallClock { skew_ms }),
    ]
}

/// What a job may read and a node may hold: all of a folder, or one in it.
fn place(number: usize) -> DataPlace {
    let path = ["train", "train/more", "test", "other"][number];
    DataPlace::new(DatastoreName::new("data").unwrap(), path)
}

fn job(number: usize) -> JobName {
    job_name(&format!("job{number}"))
}

fn node(number: usize) -> NodeName {
    node_name(NODES[number])
}

pub(super) fn world() -> World {
    let mut last = capacity(8, 800, 4);
    last.disk = Some(1_000);
    last.labels = [("zone".to_owned(), "c".to_owned())].into();
    for (index, device) in &mut last.gpus {
        // One of them is small.
        device.memory = if *index == 0 { 40 } else { 80 };
        device.model = if *index == 0 { "NVIDIA T4" } else { LARGE }.to_owned();
    }
    let mut last = node_record("c", "gpu", last);
    last.facts.insert(CONTAINER_RUNTIME.to_owned(), "podman 5.4.2".to_owned());
    let nodes = [
        node_record("a", "cpu", capacity(4, 1_000, 0)),
        node_record("b", "gpu", capacity(4, 1_000, 2)),
        last,
    ];
    World::new(LEASE, &COMPUTES, &nodes)
}

pub(super) fn apply(world: &mut World, op: Op) -> Checked {
    match op {
        Op::Submit { job: number, demand, compute, retry, keep, script } => {
            let mut spec = command_job(demand);
            spec.compute = Some(compute_name(COMPUTES[compute]));
            spec.retry = retry;
            let read = place(number % 4);
            let input = Input::Data {
                kind: DataKind::UriFolder,
                mode: InputMode::RoMount,
                uri: DataUri::Datastore {
                    datastore: read.datastore.clone(),
                    path: read.path().to_owned(),
                },
                asset: None,
                address: None,
            };
            spec.inputs.insert(PortName::new("data").unwrap(), input);
            spec.queue.priority = [Priority::Low, Priority::Medium, Priority::High][number % 3];
            let tiers = [None, None, None, Some("spot"), Some("premium")];
            spec.resources.instance_count = [1, 1, 1, 2, 1, 1, 3][number % 7];
            spec.distribution =
                (number % 2 == 0).then_some(Distribution::Mpi { process_count_per_instance: 1 });
            if spec.resources.instance_count > 1 {
                // One node alone has a runtime, and a gang would wait for a second for ever.
                spec.resources.demand.containers = ContainerNeed::Nothing;
            }
            spec.queue.job_tier = tiers[number % 5].map(str::to_owned);
            spec.limits.timeout = (number % 4 == 0).then_some(600);
            spec.on_node_loss = if keep { OnNodeLoss::Keep } else { OnNodeLoss::Requeue };
            world.submit(&job(number), Arc::new(spec), script);
        }
        Op::Cancel { job: number } => world.cancel(&job(number)),
        Op::Advance { ms } => return world.advance(ms),
        Op::FailCommit(fault) => world.fail_next_commit(fault),
        Op::KillDaemon { ms } => world.kill_daemon(ms),
        Op::Strike { node: number, outage, ms } => world.strike(&node(number), outage, ms),
        Op::Drain { node: number, deadline_ms } => world.drain(&node(number), deadline_ms),
        Op::Resume { node: number } => world.resume(&node(number)),
        Op::Resize { node: number, capacity } => {
            world.change_node(&node(number), Some(capacity), None);
        }
        Op::Move { node: number, compute } => {
            world.change_node(&node(number), None, Some(compute_name(COMPUTES[compute])));
        }
        Op::BreakGpu { node: number, index } => world.break_gpu(&node(number), index),
        Op::Unreach { node: number, lasts } => {
            world.change_fact(&node(number), NOT_REACHED, lasts.then_some("no way to the daemon"));
        }
        Op::Hold { node: number, input: held, mib } => {
            world.hold(&node(number), vec![(place(held), mib << 20)]);
        }
        Op::Replay { node: number, which } => world.replay(&node(number), which),
        Op::Reorder { node: number } => world.reorder(&node(number)),
        Op::Forge { node: from, job: number, shift, progress } => {
            let name = job(number);
            let Some((key, at)) = world
                .store
                .jobs
                .get(&name)
                .and_then(|job| Some((job.attempt_key()?, job.active()?.first.node.clone())))
            else {
                return Ok(());
            };
            if shift == 0 && at == node(from) {
                // This node may say so.
                return Ok(());
            }
            let epoch = Epoch(key.epoch.0.saturating_add_signed(shift.into()));
            let attempt = AttemptNumber(key.attempt.0.saturating_add_signed(shift.into()));
            let report = Report { key: AttemptKey { job: name, attempt, epoch }, progress };
            world.forge(&node(from), report);
        }
        Op::WallClock { skew_ms } => world.set_wall_clock(skew_ms),
    }
    Ok(())
}

/// The world afterwards, and whether every promise held.
fn run(ops: &[Op]) -> (World, Checked) {
    let mut world = world();
    let all = |world: &mut World| -> Checked {
        world.advance(300)?;
        ops.iter().try_for_each(|op| apply(world, op.clone()))?;
        world.finish()
    };
    let held = all(&mut world);
    (world, held)
}

proptest! {
    #![proptest_config(super::cases(60))]

    /// I1, I2, I3, I4, I8, I9, I13, I16 after every batch; I18 at the end.
    #[test]
    fn promises_hold_whatever_happens(ops in proptest::collection::vec(op(), 1..80)) {
        if let (_, Err(violation)) = run(&ops) {
            prop_assert!(false, "{}", violation);
        }
    }
}

proptest! {
    #![proptest_config(super::cases(8))]

    /// The same events give the same decisions.
    #[test]
    fn decisions_are_determined(ops in proptest::collection::vec(op(), 1..80)) {
        let ((one, _), (two, _)) = (run(&ops), run(&ops));
        prop_assert_eq!(&one.store.events, &two.store.events);
        prop_assert_eq!(&one.effects, &two.effects);
        prop_assert_eq!(&one.store.jobs, &two.store.jobs);
    }
}
