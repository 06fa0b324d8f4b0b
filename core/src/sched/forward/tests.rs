use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::id::{Principal, SubmitSeq};
use crate::resource::Capacity;
use crate::sched::BackOff;
use crate::spec::{JobTier, Priority};

const T0: Timestamp = Timestamp::from_millis(1_000_000);

fn compute() -> ComputeName {
    ComputeName::new("local").unwrap()
}

fn node(number: usize) -> NodeName {
    NodeName::new(&format!("n{number}")).unwrap()
}

fn sched(cpus: &[u64]) -> Sched {
    let mut sched = Sched::default();
    sched.add_compute(compute());
    for (number, cpus) in cpus.iter().enumerate() {
        let capacity = Capacity { cpu: cpus * 1000, memory: 1 << 20, ..Capacity::default() };
        sched.put_node(&compute(), node(number), capacity);
        sched.set_ready(&compute(), &node(number), true);
    }
    sched
}

fn rank(seq: u64) -> Rank {
    Rank::new(JobTier::Standard, Priority::Medium, T0, SubmitSeq(seq))
}

fn waiting(seq: u64, members: u32, cpus: u64) -> Waiting {
    Waiting {
        job: JobName::new(&format!("job{seq}")).unwrap(),
        user: Principal::new("ada").unwrap(),
        request: Request { members, demand: Demand { cpu: cpus * 1000, ..Demand::DEFAULT } },
        most_ms: None,
        not_before: None,
        inputs: Default::default(),
    }
}

fn arrival(at: i64, seq: u64, members: u32, cpus: u64) -> Arrival {
    Arrival { at: T0.plus_millis(at), rank: rank(seq), waiting: waiting(seq, members, cpus) }
}

/// Lengths by number; one that holds nodes at the outset has as much left.
struct Table(Vec<Option<u64>>);

impl Lengths for Table {
    fn whole(&self, rank: Rank) -> Option<u64> {
        self.0[rank.seq().0 as usize]
    }

    fn rest(&self, rank: Rank) -> Option<u64> {
        self.whole(rank)
    }
}

/// `when:+started-ended~made way` for each moment at which something of that happened.
fn told<A: Iterator<Item = Arrival>>(forward: Forward<Table, A>) -> Vec<String> {
    forward
        .take(1000)
        .filter(|m| !(m.ended.is_empty() && m.started.is_empty() && m.made_way.is_empty()))
        .map(|m| {
            let mut text = format!("{}:", m.at.millis_since(T0));
            for started in &m.started {
                let nodes: Vec<_> = started.nodes.iter().map(|n| n.as_str()).collect();
                text += &format!("+{}@{}", started.rank.seq(), nodes.join("&"));
            }
            m.ended.iter().for_each(|rank| text += &format!("-{}", rank.seq()));
            m.made_way.iter().for_each(|rank| text += &format!("~{}", rank.seq()));
            text
        })
        .collect()
}

fn rolled(sched: &Sched, grain: u64, lengths: &[Option<u64>], come: Vec<Arrival>) -> Vec<String> {
    let standing = Standing::of(sched, &compute());
    let lengths = Table(lengths.to_vec());
    told(Forward::new(sched, &compute(), &standing, T0, grain, lengths, come.into_iter()))
}

#[test]
fn jobs_start_when_those_before_them_end() {
    let come =
        vec![arrival(0, 0, 1, 2), arrival(10, 1, 1, 1), arrival(10, 2, 1, 2), arrival(25, 3, 1, 1)];
    let lengths = [Some(100), Some(30), Some(50), Some(0)];
    // Two nodes of two and one CPU. 2 waits for the large one; 3 gets what 1 leaves, for that does not
    // delay 2.
    let made = rolled(&sched(&[2, 1]), 1, &lengths, come);
    assert_eq!(made, ["0:+0@n0", "10:+1@n1", "40:+3@n1-1", "40:-3", "100:+2@n0-0", "150:-2"]);
}

#[test]
fn a_job_of_several_nodes_waits_for_all_and_gives_all_back() {
    let come =
        vec![arrival(0, 0, 1, 4), arrival(5, 1, 2, 4), arrival(6, 2, 1, 4), arrival(7, 3, 1, 4)];
    let lengths = [Some(20), Some(30), Some(10), Some(10)];
    let made = rolled(&sched(&[4, 4]), 1, &lengths, come);
    let last = made.last().unwrap();
    assert!(made.contains(&"20:+1@n0&n1-0".to_owned()), "{made:?}");
    assert!(made.contains(&"50:+2@n0+3@n1-1".to_owned()), "{made:?}");
    assert_eq!(last, "60:-2-3");
}

#[test]
fn what_runs_at_the_outset_ends_and_a_back_off_is_over_in_time() {
    let mut sched = sched(&[4]);
    sched.enqueue(&compute(), rank(0), waiting(0, 1, 4));
    let plan = super::super::plan(&sched, T0, Budget { placements: 9 });
    sched.commit(&plan.outcomes[0].1.placements[0], T0).unwrap();
    sched.explain_with(&plan, T0);
    let not_before = Some(BackOff { until: T0.plus_millis(70), why: "it failed".into() });
    sched.enqueue(&compute(), rank(1), Waiting { not_before, ..waiting(1, 1, 4) });
    sched.enqueue(&compute(), rank(2), waiting(2, 1, 4));
    let lengths = [Some(40), Some(10), Some(10)];
    let made = rolled(&sched, 1, &lengths, vec![]);
    assert_eq!(made, ["40:+2@n0-0", "50:-2", "70:+1@n0", "80:-1"]);
    // On a grid the same happens, a little later.
    let made = rolled(&sched, 32, &lengths, vec![]);
    assert_eq!(made, ["64:+2@n0-0", "96:+1@n0-2", "128:-1"]);
    // One that never ends holds its node for good.
    let made = rolled(&sched, 1, &[None, Some(1), Some(1)], vec![]);
    assert_eq!(made, [""; 0]);
    assert_eq!(sched.pool(&compute()).unwrap().queued(), 2, "a copy was rolled, not the value");
}

#[test]
fn one_that_is_still_there_when_it_is_to_yield_makes_way_and_waits_again() {
    let mut sched = sched(&[4]);
    let reservation = Reservation { cpu: 4000, ..Reservation::default() };
    let user = Principal::new("ada").unwrap();
    let hold = Hold {
        user,
        rank: rank(1),
        reservation,
        since: T0,
        until: None,
        yields_at: Some(T0.plus_millis(30)),
        going: None,
    };
    sched.hold(&compute(), &node(0), JobName::new("job1").unwrap(), hold);
    sched.enqueue(&compute(), rank(0), waiting(0, 1, 4));
    let made = rolled(&sched, 1, &[Some(20), Some(50)], vec![]);
    assert_eq!(made, ["30:+0@n0~1", "50:+1@n0-0", "100:-1"]);
    let made = rolled(&sched, 1, &[Some(20), Some(30)], vec![]);
    assert_eq!(made[0], "30:+0@n0-1", "it ended just in time");
}

#[derive(Clone, Debug)]
struct Made {
    at: i64,
    members: u32,
    cpus: u64,
    length: u64,
}

fn made() -> impl Strategy<Value = Made> {
    (0..500_i64, 1..3_u32, 1..6_u64, 0..200_u64).prop_map(|(at, members, cpus, length)| Made {
        at,
        members,
        cpus,
        length,
    })
}

proptest! {
    /// Nothing over capacity, nothing before it came, of equal requests the first come first, every
    /// job ends or could never start, and the same input gives the same moments.
    #[test]
    fn whatever_comes_is_kept_within_what_there_is(
        cpus in prop::collection::vec(1..5_u64, 1..4),
        mut jobs in prop::collection::vec(made(), 0..40),
        grain in 1..9_u64,
    ) {
        jobs.sort_by_key(|job| job.at);
        let come: Vec<Arrival> = (0..)
            .zip(&jobs)
            .map(|(seq, job)| arrival(job.at, seq, job.members, job.cpus))
            .collect();
        let lengths: Vec<_> = jobs.iter().map(|job| Some(job.length)).collect();
        let sched = sched(&cpus);
        let roll = || {
            let standing = Standing::of(&sched, &compute());
            let (table, come) = (Table(lengths.clone()), come.clone().into_iter());
            Forward::new(&sched, &compute(), &standing, T0, grain, table, come)
                .take(10_000)
                .collect::<Vec<_>>()
        };
        let moments = roll();
        prop_assert_eq!(&moments, &roll());
        let mut free: BTreeMap<NodeName, u64> =
            cpus.iter().enumerate().map(|(n, cpus)| (node(n), *cpus)).collect();
        let mut on: BTreeMap<u64, Vec<NodeName>> = BTreeMap::new();
        let mut order: BTreeMap<(u32, u64), Vec<u64>> = BTreeMap::new();
        let mut ended = 0;
        for moment in &moments {
            for rank in moment.ended.iter().chain(&moment.made_way) {
                let seq = rank.seq().0;
                for node in on.remove(&seq).unwrap() {
                    *free.get_mut(&node).unwrap() += jobs[seq as usize].cpus;
                }
            }
            ended += moment.ended.len();
            for placement in &moment.started {
                let seq = placement.rank.seq().0;
                let job = &jobs[seq as usize];
                prop_assert!(moment.at >= T0.plus_millis(job.at));
                prop_assert_eq!(placement.nodes.len(), job.members as usize);
                for node in &placement.nodes {
                    let left = free[node].checked_sub(job.cpus);
                    prop_assert!(left.is_some(), "over capacity on {}", node);
                    free.insert(node.clone(), left.unwrap());
                }
                prop_assert!(on.insert(seq, placement.nodes.clone()).is_none());
                order.entry((job.members, job.cpus)).or_default().push(seq);
            }
        }
        prop_assert!(on.is_empty());
        let fits = |job: &Made| {
            cpus.iter().filter(|cpus| **cpus >= job.cpus).count() >= job.members as usize
        };
        prop_assert_eq!(ended, jobs.iter().filter(|job| fits(job)).count());
        if moments.iter().all(|moment| moment.made_way.is_empty()) {
            for seqs in order.values() {
                prop_assert!(seqs.is_sorted(), "{seqs:?}");
            }
        }
    }
}
