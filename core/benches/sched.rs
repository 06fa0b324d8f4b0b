//! The scheduler's own speed: 10,000 nodes, and queues of a thousand to a million jobs of a hundred users.
//!
//! `cargo bench -p atelier-core --bench sched` prints, for each length of the queue: what it takes to
//! decide on one more submission (placed, or its binding constraint named), how many placements it
//! decides a second when jobs end and others take their places, and the memory of it all.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a measurement reads the clock and prints"
)]

use std::collections::VecDeque;
use std::fs;
use std::time::Instant;

use atelier_core::id::{ComputeName, JobName, NodeName, Principal, SubmitSeq};
use atelier_core::resource::{Capacity, Demand};
use atelier_core::sched::{Budget, Rank, Request, Sched, Waiting};
use atelier_core::spec::{JobTier, Priority};
use atelier_core::time::Timestamp;

const NODES: u64 = 10_000;
/// Who submits.
const USERS: u64 = 100;
/// What the reactor decides in one go.
const ROUND: Budget = Budget { placements: 512 };
/// Submissions timed for each length of the queue.
const TIMED: usize = 1_000;
/// Placements timed for each length of the queue.
const PLACED: usize = 100_000;

fn main() {
    println!(
        "{NODES} nodes; one submission: placed, or its reason named; placements in rounds of 512"
    );
    println!(
        "{:>9} {:>9} {:>11} {:>11} {:>12} {:>10} {:>9}",
        "queued", "demands", "p50 us", "p99 us", "placed/s", "us per job", "MiB"
    );
    for queued in [1_000, 10_000, 100_000, 1_000_000] {
        for demands in [100, 10_000] {
            measure(queued, demands);
        }
    }
}

/// Numbers that look random and are the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

struct World {
    sched: Sched,
    compute: ComputeName,
    random: Random,
    demands: u64,
    seq: u64,
    /// What runs, the oldest first.
    running: VecDeque<(NodeName, JobName)>,
}

impl World {
    fn new(demands: u64) -> Self {
        let compute = ComputeName::new("bench").unwrap();
        let mut sched = Sched::default();
        sched.add_compute(compute.clone());
        for number in 0..NODES {
            let node = NodeName::new(&format!("node{number:05}")).unwrap();
            // Machines of one order differ a little in what they report.
            let cpus = [32, 64, 128][(number % 3) as usize];
            let memory = cpus * 4096 - number % 7;
            let capacity = Capacity { cpu: cpus * 1000, memory, ..Capacity::default() };
            sched.put_node(&compute, node.clone(), capacity);
            sched.set_ready(&compute, &node, true);
        }
        Self { sched, compute, random: Random(1), demands, seq: 0, running: VecDeque::new() }
    }

    /// One more job in the queue; its place.
    fn submit(&mut self) -> Rank {
        self.seq += 1;
        let kind = self.random.next(self.demands);
        let demand =
            Demand { cpu: 1_000 * (1 + kind % 16), memory: 1_024 + kind, ..Demand::DEFAULT };
        let rank = Rank::new(
            JobTier::Standard,
            Priority::Medium,
            Timestamp::from_millis(0),
            SubmitSeq(self.seq),
        );
        let job = JobName::new(&format!("job{}", self.seq)).unwrap();
        let user = Principal::new(&format!("user{}", self.random.next(USERS))).unwrap();
        let request = Request::one(demand);
        let inputs = Default::default();
        let waiting = Waiting { job, user, request, most_ms: None, not_before: None, inputs };
        self.sched.enqueue(&self.compute, rank, waiting);
        rank
    }

    /// One round as the reactor makes it; how many were placed.
    fn round(&mut self) -> usize {
        let decided = self.sched.decide(Timestamp::from_millis(1), ROUND);
        for placement in decided.placements() {
            self.running.push_back((placement.nodes[0].clone(), placement.job.clone()));
        }
        decided.placements().count()
    }

    fn end_some(&mut self, count: usize) {
        for _ in 0..count {
            let Some((node, job)) = self.running.pop_front() else { return };
            self.sched.release(&self.compute, &node, &job, Timestamp::from_millis(1));
        }
    }
}

fn measure(queued: usize, demands: u64) {
    let mut world = World::new(demands);
    // Full nodes first, then the queue.
    loop {
        for _ in 0..ROUND.placements {
            world.submit();
        }
        if world.round() < ROUND.placements {
            break;
        }
    }
    for _ in 0..queued {
        world.submit();
    }
    world.round();

    let mut times: Vec<f64> = (0..TIMED)
        .map(|_| {
            let begun = Instant::now();
            let rank = world.submit();
            let placed = world.round();
            let reason = world.sched.reason(&world.compute, rank);
            assert!(placed > 0 || reason.is_some());
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);

    let (begun, mut placed) = (Instant::now(), 0);
    while placed < PLACED {
        world.end_some(ROUND.placements);
        for _ in 0..ROUND.placements {
            world.submit();
        }
        placed += world.round();
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{queued:>9} {demands:>9} {:>11.1} {:>11.1} {:>12.0} {:>10.2} {:>9}",
        times[TIMED / 2],
        times[TIMED * 99 / 100],
        placed as f64 / seconds,
        seconds / placed as f64 * 1e6,
        resident() >> 20
    );
}

/// Bytes of memory that this process has at the moment.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}
