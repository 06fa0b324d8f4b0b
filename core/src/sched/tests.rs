mod locality;
mod policy;

use std::collections::BTreeMap;

use super::*;
use crate::id::{Principal, SubmitSeq};
use crate::resource::{GpuDevice, Shortage};
use crate::spec::{JobTier, Priority};

fn compute() -> ComputeName {
    ComputeName::new("local").unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn capacity(cpus: u64, memory: u64, gpus: u16) -> Capacity {
    let gpus: BTreeMap<_, _> = (0..gpus).map(|i| (i, GpuDevice::default())).collect();
    Capacity { cpu: cpus * 1000, memory, gpus, ..Capacity::default() }
}

fn demand(cpus: u64, memory: u64, gpus: u32) -> Demand {
    Demand { cpu: cpus * 1000, memory, gpus, ..Demand::DEFAULT }
}

fn sched(nodes: &[(&str, Capacity)]) -> Sched {
    let mut sched = Sched::default();
    sched.add_compute(compute());
    for (name, capacity) in nodes {
        sched.put_node(&compute(), node(name), capacity.clone());
        sched.set_ready(&compute(), &node(name), true);
    }
    sched
}

/// Of equal jobs, in order of submission.
fn rank(seq: u64) -> Rank {
    Rank::new(JobTier::Standard, Priority::Medium, NOW, SubmitSeq(seq))
}

fn wait(sched: &mut Sched, seq: u64, demand: Demand) {
    let job = JobName::new(&format!("job{seq}")).unwrap();
    sched.enqueue(&compute(), rank(seq), waiting(job, demand));
}

fn waiting(job: JobName, demand: Demand) -> Waiting {
    let user = Principal::new("ada").unwrap();
    Waiting {
        job,
        user,
        request: Request::one(demand),
        most_ms: None,
        not_before: None,
        inputs: Default::default(),
    }
}

fn name(job: &str) -> JobName {
    JobName::new(job).unwrap()
}

const WIDE: Budget = Budget { placements: usize::MAX };
const NOW: Timestamp = Timestamp::from_millis(1_000_000);

/// Plans and commits; returns `seq@node` for each placement.
fn step(sched: &mut Sched) -> Vec<String> {
    let plan = plan(sched, NOW, WIDE);
    let made = plan
        .placements()
        .map(|p| {
            sched.commit(p, NOW).expect("a fresh plan commits");
            format!("{}@{}", p.rank.seq(), p.nodes[0])
        })
        .collect();
    sched.explain_with(&plan, NOW);
    made
}

#[test]
fn first_in_first_out_and_the_head_holds_back_the_rest() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0))]);
    wait(&mut sched, 1, demand(3, 0, 0));
    wait(&mut sched, 2, demand(2, 0, 0));
    wait(&mut sched, 3, demand(1, 0, 0));
    assert_eq!(step(&mut sched), ["1@a"]);
    let reason = sched.reason(&compute(), rank(2)).unwrap();
    assert!(matches!(reason, WaitReason::Shortage { lacking: Shortage::Cpu, free_cpu: 1000, .. }));
    let reason = sched.reason(&compute(), rank(3)).unwrap();
    assert!(
        matches!(&reason, WaitReason::Behind { head, ahead: 1, .. } if head.as_str() == "job2"),
        "{reason}"
    );
    sched.release(&compute(), &node("a"), &name("job1"), NOW);
    assert_eq!(step(&mut sched), ["2@a", "3@a"]);
}

#[test]
fn priority_goes_first_and_a_day_of_waiting_makes_up_for_a_level() {
    const HOUR: i64 = 3_600_000;
    let names = |jobs: &[(u64, Priority, i64)]| -> Vec<String> {
        let mut sched = sched(&[("a", capacity(1, 1000, 0))]);
        for &(seq, priority, hours_ago) in jobs {
            let job = JobName::new(&format!("job{seq}")).unwrap();
            let rank = Rank::new(
                JobTier::Standard,
                priority,
                NOW.plus_millis(-hours_ago * HOUR),
                SubmitSeq(seq),
            );
            sched.enqueue(&compute(), rank, waiting(job, demand(1, 0, 0)));
        }
        sched.waiting().map(|(_, _, job)| job.to_string()).collect()
    };
    use Priority::{High, Low, Medium};
    assert_eq!(
        names(&[(1, Low, 2), (2, Medium, 1), (3, High, 0), (4, High, 0)]),
        ["job3", "job4", "job2", "job1"]
    );
    assert_eq!(names(&[(1, Medium, 25), (2, High, 0)]), ["job1", "job2"], "it has waited");
    assert_eq!(names(&[(1, Low, 49), (2, Medium, 23), (3, High, 0)]), ["job1", "job3", "job2"]);
}

#[test]
fn a_job_that_no_node_can_hold_any_more_holds_nobody_back() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("big", capacity(16, 1000, 0))]);
    sched.set_ready(&compute(), &node("big"), false);
    wait(&mut sched, 1, demand(8, 0, 0));
    wait(&mut sched, 2, demand(4, 0, 0));
    wait(&mut sched, 3, demand(1, 0, 0));
    assert_eq!(step(&mut sched), ["2@a"]);
    let reason = |sched: &Sched, seq| sched.reason(&compute(), rank(seq)).unwrap();
    let first = reason(&sched, 1);
    assert!(
        matches!(&first, WaitReason::TooLarge { node: Some(silent), .. } if silent == &node("big")),
        "{first}"
    );
    let third = reason(&sched, 3);
    assert!(matches!(third, WaitReason::Shortage { lacking: Shortage::Cpu, .. }), "{third}");
    sched.put_node(&compute(), node("big"), capacity(6, 1000, 0));
    assert!(matches!(reason(&sched, 1), WaitReason::TooLarge { node: None, .. }));
    sched.put_node(&compute(), node("big"), capacity(8, 1000, 0));
    sched.set_ready(&compute(), &node("big"), true);
    assert_eq!(step(&mut sched), ["1@big"], "the oldest is first again");
}

#[test]
fn a_job_goes_where_it_leaves_the_least_over() {
    let mut sched = sched(&[("big", capacity(8, 1000, 0)), ("small", capacity(2, 1000, 0))]);
    wait(&mut sched, 1, demand(2, 0, 0));
    wait(&mut sched, 2, demand(2, 0, 0));
    assert_eq!(step(&mut sched), ["1@small", "2@big"]);
}

#[test]
fn jobs_without_gpus_leave_the_cpu_beside_gpus_alone() {
    let mut sched = sched(&[("a", capacity(8, 1000, 2)), ("b", capacity(16, 1000, 0))]);
    wait(&mut sched, 1, demand(8, 0, 0));
    wait(&mut sched, 2, demand(8, 0, 0));
    wait(&mut sched, 3, demand(4, 0, 1));
    assert_eq!(step(&mut sched), ["1@b", "2@b", "3@a"]);
    sched.set_drained(&compute(), &node("a"), true);
    wait(&mut sched, 4, demand(1, 0, 0));
    assert!(step(&mut sched).is_empty(), "b is full, and a drained");
}

/// The packing that `simulate placement` measures is the one that places jobs: what comes takes 8
/// CPUs and a device, so a job of 12 CPUs goes where 8 are left for the second device.
#[test]
fn gpus_are_packed_for_the_jobs_to_come() {
    let mut sched = sched(&[("a", capacity(16, 1000, 2)), ("b", capacity(20, 1000, 2))]);
    for seq in 1..100 {
        wait(&mut sched, seq, demand(8, 0, 1));
    }
    for seq in 1..100 {
        sched.dequeue(&compute(), rank(seq));
    }
    wait(&mut sched, 100, demand(12, 0, 1));
    assert_eq!(step(&mut sched), ["100@b"]);
    let copy = sched.clone();
    wait(&mut sched, 101, demand(8, 0, 1));
    assert_eq!(step(&mut sched), ["101@b"]);
    assert_eq!(step(&mut copy.clone()), [""; 0], "a clone is a value of its own");
}

#[test]
fn gpus_are_exact_devices_and_come_back() {
    let mut sched = sched(&[("a", capacity(8, 1000, 2))]);
    wait(&mut sched, 1, demand(1, 0, 1));
    let first = plan(&sched, NOW, WIDE);
    let held = sched.commit(&first.outcomes[0].1.placements[0], NOW).unwrap();
    assert_eq!(held[0].gpus, [0]);
    wait(&mut sched, 2, demand(1, 0, 2));
    assert!(step(&mut sched).is_empty());
    assert!(matches!(
        sched.reason(&compute(), rank(2)),
        Some(WaitReason::Shortage { lacking: Shortage::Gpus, free_gpus: 1000, .. })
    ));
    sched.release(&compute(), &node("a"), &name("job1"), NOW);
    assert_eq!(step(&mut sched), ["2@a"]);
}

#[test]
fn silent_nodes_get_nothing_and_say_so() {
    let mut sched = sched(&[("a", capacity(8, 1000, 0))]);
    sched.set_ready(&compute(), &node("a"), false);
    wait(&mut sched, 1, demand(1, 0, 0));
    assert!(step(&mut sched).is_empty());
    assert_eq!(sched.reason(&compute(), rank(1)), Some(WaitReason::NodesSilent));
    sched.set_ready(&compute(), &node("a"), true);
    assert_eq!(step(&mut sched), ["1@a"]);
}

#[test]
fn a_plan_that_is_out_of_date_does_not_commit() {
    let mut sched = sched(&[("a", capacity(1, 1000, 0))]);
    wait(&mut sched, 1, demand(1, 0, 0));
    let stale = plan(&sched, NOW, WIDE);
    sched.set_ready(&compute(), &node("a"), false);
    assert!(sched.commit(&stale.outcomes[0].1.placements[0], NOW).is_none());
    sched.set_ready(&compute(), &node("a"), true);
    sched.dequeue(&compute(), rank(1));
    assert!(sched.commit(&stale.outcomes[0].1.placements[0], NOW).is_none());
}

#[test]
fn back_off_holds_a_job_but_not_those_behind_it() {
    let mut sched = sched(&[("a", capacity(1, 1000, 0))]);
    let until = NOW.plus_millis(500);
    let held = BackOff { until, why: "no disk".into() };
    let waiting = Waiting { not_before: Some(held), ..waiting(name("job1"), demand(1, 0, 0)) };
    sched.enqueue(&compute(), rank(1), waiting);
    wait(&mut sched, 2, demand(1, 0, 0));
    assert_eq!(sched.next_wake(), Some(until));
    assert_eq!(step(&mut sched), ["2@a"]);
    let told = sched.reason(&compute(), rank(1)).unwrap().to_string();
    assert_eq!(told, format!("the last attempt failed: no disk; the next may start at {until}"));
    sched.release(&compute(), &node("a"), &name("job2"), NOW);
    let later = plan(&sched, until, WIDE);
    assert_eq!(later.placements().count(), 1);
    assert!(sched.commit(&later.outcomes[0].1.placements[0], NOW).is_some());
}

#[test]
fn what_could_never_fit_names_the_largest_node() {
    let sched = sched(&[("a", capacity(8, 1000, 1)), ("b", capacity(2, 9000, 2))]);
    assert_eq!(sched.never_fits(&compute(), &demand(1, 0, 2)), None);
    let largest = sched.never_fits(&compute(), &demand(1, 0, 3)).unwrap();
    assert_eq!(largest.gpus.len(), 2);
}

/// A job that waits in [`compute`], explained.
fn explained(sched: &Sched, seq: u64, demand: Demand, priority: Priority) -> Explanation {
    let asked = Asked {
        waiting: waiting(name(&format!("job{seq}")), demand),
        compute: compute(),
        priority,
        created_at: NOW,
        rank: Rank::new(JobTier::Standard, priority, NOW, SubmitSeq(seq)),
    };
    explain(sched, &asked, NOW).unwrap()
}

#[test]
fn what_would_start_a_job_now_is_found_and_true() {
    let mut sched = sched(&[
        ("a", capacity(4, 1000, 0)),
        ("b", capacity(4, 3000, 2)),
        ("c", capacity(1, 50, 0)),
    ]);
    let other = ComputeName::new("other").unwrap();
    sched.put_node(&other, node("z"), capacity(16, 9000, 0));
    wait(&mut sched, 1, demand(3, 800, 0));
    wait(&mut sched, 2, demand(2, 2500, 1));
    step(&mut sched);
    // a has 1 CPU and 200 MiB left, b 2 CPUs, 500 MiB and a GPU, c 1 CPU and 50 MiB.
    wait(&mut sched, 3, demand(2, 900, 0));
    step(&mut sched);
    let told = explained(&sched, 3, demand(2, 900, 0), Priority::Medium);
    assert!(matches!(told.reason, WaitReason::Shortage { .. }));
    let less = Change::Demand { from: demand(2, 900, 0), to: demand(2, 500, 0) };
    assert_eq!(told.changes, std::slice::from_ref(&less), "other has no node that answers");
    assert_eq!(less.to_string(), "ask for 500 MiB memory instead of 900 MiB");
    assert_eq!(less.settings(), ["resources.memory=500MiB"]);

    sched.set_ready(&other, &node("z"), true);
    let told = explained(&sched, 3, demand(2, 900, 0), Priority::Medium);
    assert_eq!(told.changes, [less, Change::Compute(other.clone())]);

    // A job that is not submitted yet.
    let foreseen = |demand: Demand| {
        let asked = Asked {
            waiting: waiting(name("new"), demand),
            compute: compute(),
            priority: Priority::High,
            created_at: NOW,
            rank: Rank::new(JobTier::Standard, Priority::High, NOW, SubmitSeq(9)),
        };
        foresee(&sched, &asked, NOW)
    };
    assert_eq!(foreseen(demand(1, 40, 0)), Foreseen::Starts { nodes: vec![node("c")] });
    let Foreseen::Waits(told) = foreseen(demand(2, 900, 0)) else { panic!("there is no room") };
    assert!(matches!(told.reason, WaitReason::Shortage { .. }), "{told:?}");
    assert_eq!(told.changes[0].settings(), ["resources.memory=500MiB"]);
    assert_eq!(sched.pool(&compute()).unwrap().queued(), 1, "nothing was submitted");

    // Held back by what is promised to another; a higher level would help.
    wait(&mut sched, 5, demand(2, 500, 0));
    assert_eq!(step(&mut sched), ["5@b"], "nodes of the first in line are a's");
    wait(&mut sched, 4, demand(1, 100, 0));
    step(&mut sched);
    let told = explained(&sched, 4, demand(1, 100, 0), Priority::Medium);
    assert!(matches!(told.reason, WaitReason::Behind { .. }) && told.ahead == 1, "{told:?}");
    let less = Change::Demand { from: demand(1, 100, 0), to: demand(1, 50, 0) };
    let changes = [less, Change::Compute(other), Change::Priority(Priority::High)];
    assert_eq!(told.changes, changes, "with less it has room on c, and delays nobody");

    // A job of several nodes: as many as there is room for.
    let mut wide = Asked {
        waiting: waiting(name("wide"), demand(1, 40, 0)),
        compute: compute(),
        priority: Priority::High,
        created_at: NOW,
        rank: Rank::new(JobTier::Standard, Priority::High, NOW, SubmitSeq(9)),
    };
    wide.waiting.request.members = 7;
    let Foreseen::Waits(told) = foresee(&sched, &wide, NOW) else { panic!("there is no room") };
    let fewer = Change::Members { from: 7, to: 2 };
    assert!(told.changes.contains(&fewer), "{told:?}");
    assert_eq!(fewer.to_string(), "run on 2 nodes instead of 7");
    assert_eq!(fewer.settings(), ["resources.instance_count=2"]);

    // Several things at once.
    let large = demand(4, 900, 2);
    sched.dequeue(&compute(), rank(3));
    sched.dequeue(&compute(), rank(4));
    sched.release(&compute(), &node("b"), &name("job5"), NOW);
    wait(&mut sched, 6, large.clone());
    step(&mut sched);
    let told = explained(&sched, 6, large.clone(), Priority::Medium);
    let less = Change::Demand { from: large, to: demand(2, 500, 1) };
    assert_eq!(told.changes, std::slice::from_ref(&less));
    assert_eq!(
        less.to_string(),
        "ask for 2 CPU instead of 4 and 500 MiB memory instead of 900 MiB and 1 GPU instead of 2"
    );
}

/// A node with these devices.
fn with_models(models: &[&str]) -> Capacity {
    let mut node = capacity(16, 1000, 0);
    let device = |model: &&str| GpuDevice { model: (*model).to_owned(), ..GpuDevice::default() };
    node.gpus = (0..).zip(models.iter().map(device)).collect();
    node
}

fn of_model(gpus: u32, model: &str) -> Demand {
    Demand { gpu_models: Some([model.to_owned()].into()), ..demand(1, 0, gpus) }
}

#[test]
fn jobs_share_a_device_and_whole_ones_stay_whole() {
    let mut sched = sched(&[("a", capacity(16, 1000, 2))]);
    let half = Demand { gpu_share: 500, ..demand(1, 0, 1) };
    for seq in 1..=3 {
        wait(&mut sched, seq, half.clone());
    }
    wait(&mut sched, 4, demand(1, 0, 1));
    assert_eq!(step(&mut sched), ["1@a", "2@a", "3@a"]);
    let told = sched.reason(&compute(), rank(4)).unwrap().to_string();
    assert!(told.contains("1 GPU; the closest node, a, has too little GPUs free"), "{told}");
    sched.dequeue(&compute(), rank(4));
    wait(&mut sched, 5, Demand { gpu_share: 600, ..demand(1, 0, 1) });
    assert!(step(&mut sched).is_empty());
    let told = sched.reason(&compute(), rank(5)).unwrap().to_string();
    assert!(told.contains("asks for 1 CPU, 0.6 GPU") && told.contains("0.5 GPU free"), "{told}");
    let less = Demand { gpu_share: 600, ..demand(1, 0, 1) };
    let told = explained(&sched, 5, less, Priority::Medium);
    assert_eq!(told.changes[0].settings(), ["resources.gpus=0.5"]);
}

#[test]
fn only_nodes_with_the_devices_get_the_job() {
    let nodes = [("a", with_models(&["T4", "T4"])), ("b", with_models(&["NVIDIA A100", "T4"]))];
    let mut sched = sched(&nodes);
    wait(&mut sched, 1, of_model(1, "a100"));
    wait(&mut sched, 2, of_model(2, "T4"));
    wait(&mut sched, 3, of_model(1, "A100"));
    assert_eq!(step(&mut sched), ["1@b", "2@a"]);
    let told = sched.reason(&compute(), rank(3)).unwrap().to_string();
    assert!(
        told.contains("1 × A100; the closest node, b,") && told.contains("0 GPU free"),
        "{told}"
    );
    let never = sched.never_fits(&compute(), &of_model(2, "A100")).unwrap();
    assert_eq!(never.gpus, nodes[1].1.gpus, "the node that comes closest");
    assert!(sched.never_fits(&compute(), &of_model(1, "H100")).is_some());
    // It could start nowhere once its node is gone, and holds nobody back.
    sched.set_ready(&compute(), &node("b"), false);
    wait(&mut sched, 4, demand(1, 0, 0));
    assert_eq!(step(&mut sched), ["4@a"]);
    sched.remove_node(&compute(), &node("b"));
    let told = sched.reason(&compute(), rank(3)).unwrap().to_string();
    assert!(
        told.contains("1 × A100, and no node of the compute that gets jobs has that"),
        "{told}"
    );
}

#[test]
fn labels_and_disk_choose_the_node() {
    let labelled = |zone: &str, disk, gpus| Capacity {
        disk,
        labels: [("zone".to_owned(), zone.to_owned())].into(),
        ..capacity(4, 1000, gpus)
    };
    let zone = |key: &str, zone: &str| Demand {
        node_labels: Some(std::sync::Arc::new([(key.to_owned(), zone.to_owned())].into())),
        ..demand(1, 0, 0)
    };
    // With devices the packing chooses, without them the least CPU free.
    for gpus in [0, 1] {
        let mut sched =
            sched(&[("a", labelled("a", Some(50), gpus)), ("b", labelled("b", Some(500), gpus))]);
        wait(&mut sched, 1, zone("zone", "b"));
        wait(&mut sched, 2, Demand { disk: 400, ..demand(1, 0, 0) });
        wait(&mut sched, 3, zone("zone", "c"));
        wait(&mut sched, 4, Demand { disk: 101, ..demand(1, 0, 0) });
        assert_eq!(step(&mut sched), ["1@b", "2@b"]);
        let told = sched.reason(&compute(), rank(3)).unwrap().to_string();
        assert!(told.contains("a node with label zone=c, and no node"), "{told}");
        let told = sched.reason(&compute(), rank(4)).unwrap().to_string();
        assert!(told.contains("too little disk free") && told.contains("100 MiB disk"), "{told}");
        // A value that may yet come is waited for, a key that no node has had is refused.
        assert!(sched.never_fits(&compute(), &zone("zone", "c")).is_none());
        assert!(sched.never_fits(&compute(), &zone("rack", "1")).is_some());
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Submit(Demand),
        Finish(usize),
        Ready(usize, bool),
        Cancel(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1u64..5, 0u64..600, 0u32..3).prop_map(|(c, m, g)| Op::Submit(demand(c, m, g))),
            (0usize..20).prop_map(Op::Finish),
            (0usize..3, any::<bool>()).prop_map(|(n, r)| Op::Ready(n, r)),
            (1u64..40).prop_map(Op::Cancel),
        ]
    }

    proptest! {
        /// I8 and I9: never over capacity, nothing to a node that is not ready, order kept.
        #[test]
        fn capacity_and_order_hold(ops in proptest::collection::vec(op(), 1..80)) {
            let names = ["a", "b", "c"];
            let mut sched = sched(&[
                ("a", capacity(4, 1000, 2)),
                ("b", capacity(2, 500, 0)),
                ("c", capacity(8, 800, 1)),
            ]);
            let mut ready = [true; 3];
            let mut running: Vec<(NodeName, JobName, Reservation)> = Vec::new();
            let mut seq = 0;
            for op in ops {
                match op {
                    Op::Submit(demand) => {
                        seq += 1;
                        wait(&mut sched, seq, demand);
                    }
                    Op::Finish(i) if !running.is_empty() => {
                        let (node, job, _) = running.swap_remove(i % running.len());
                        sched.release(&compute(), &node, &job, NOW);
                    }
                    Op::Finish(_) => {}
                    Op::Ready(i, r) => {
                        ready[i] = r;
                        sched.set_ready(&compute(), &node(names[i]), r);
                    }
                    Op::Cancel(seq) => sched.dequeue(&compute(), rank(seq)),
                }
                let plan = plan(&sched, NOW, WIDE);
                let mut last = None;
                for placement in plan.placements() {
                    let index = names.iter().position(|n| *n == placement.nodes[0].as_str()).unwrap();
                    prop_assert!(ready[index]);
                    prop_assert!(last < Some(placement.rank));
                    last = Some(placement.rank);
                    let held = sched.commit(placement, NOW);
                    prop_assert!(held.is_some());
                    let held = held.unwrap().remove(0);
                    running.push((placement.nodes[0].clone(), placement.job.clone(), held));
                }
                sched.explain_with(&plan, NOW);
                let pool = sched.pool(&compute()).unwrap();
                for (name, ledger, _) in pool.nodes() {
                    let held: Vec<_> = running.iter().filter(|(n, _, _)| n == name).collect();
                    let cpu: u64 = held.iter().map(|(_, _, r)| r.cpu).sum();
                    let memory: u64 = held.iter().map(|(_, _, r)| r.memory).sum();
                    let mut gpus: Vec<_> = held.iter().flat_map(|(_, _, r)| r.gpus.clone()).collect();
                    prop_assert!(cpu <= ledger.capacity().cpu);
                    prop_assert!(memory <= ledger.capacity().memory);
                    let count = gpus.len();
                    gpus.sort_unstable();
                    gpus.dedup();
                    prop_assert_eq!(gpus.len(), count, "a device was given twice");
                }
                for (compute, seq, job) in sched.waiting() {
                    let reason = sched.reason(compute, seq);
                    prop_assert!(reason.is_some(), "{} has no reason", job);
                    prop_assert!(reason != Some(WaitReason::Undecided), "{} was not looked at", job);
                }
            }
        }
    }
}
