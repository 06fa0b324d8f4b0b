//! What a forecast takes: 10,000 nodes, all full, and queues of a hundred to 100,000 jobs.
//!
//! `cargo bench -p atelier-core --bench forecast` prints, for jobs at several places in the queue, how
//! long it takes to say when they start, and what is said.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a measurement reads the clock and prints"
)]

use std::time::Instant;

use atelier_core::id::{ComputeName, JobName, NodeName, Principal, SubmitSeq};
use atelier_core::resource::{Capacity, Demand};
use atelier_core::sched::forecast::{Durations, Kind, Known, forecast};
use atelier_core::sched::{Asked, Budget, Rank, Request, Sched, Waiting};
use atelier_core::spec::{JobTier, Priority};
use atelier_core::time::Timestamp;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn asked(seq: u64, cpus: u64) -> Asked {
    let waiting = Waiting {
        job: JobName::new(&format!("job{seq}")).unwrap(),
        user: Principal::new(&format!("user{}", seq % 100)).unwrap(),
        request: Request::one(Demand { cpu: 1000 * cpus, memory: 1024, ..Demand::DEFAULT }),
        most_ms: None,
        not_before: None,
        inputs: Default::default(),
    };
    Asked {
        waiting,
        compute: ComputeName::new("bench").unwrap(),
        priority: Priority::Medium,
        created_at: NOW,
        rank: Rank::new(JobTier::Standard, Priority::Medium, NOW, SubmitSeq(seq)),
    }
}

fn main() {
    println!("{:>7} {:>8} {:>8} {:>8}", "nodes", "running", "place", "s");
    for nodes in [100, 1_000, 10_000] {
        for place in [1, 100, 1_000, 10_000, 100_000] {
            measure(nodes, place);
        }
    }
}

fn measure(nodes: u64, place: u64) {
    let compute = ComputeName::new("bench").unwrap();
    let mut sched = Sched::default();
    for number in 0..nodes {
        let node = NodeName::new(&format!("node{number:05}")).unwrap();
        let capacity = Capacity { cpu: 64_000, memory: 1 << 18, ..Capacity::default() };
        sched.put_node(&compute, node.clone(), capacity);
        sched.set_ready(&compute, &node, true);
    }
    let minutes = |n: u64| 60_000 * (5 + n * n % 230);
    let mut durations =
        Durations::of((0..500).map(|n| (Kind::of(&format!("command{}", n % 20)), minutes(n))));
    let mut seq = 0;
    let mut submit = |sched: &mut Sched, durations: &mut Durations| {
        seq += 1;
        let job = asked(seq, 1 + seq % 16);
        sched.enqueue(&compute, job.rank, job.waiting.clone());
        let kind = Kind::of(&format!("command{}", seq % 40));
        let since = Some(NOW.plus_millis(-60_000 * (seq % 60) as i64));
        durations.know(SubmitSeq(seq), Known { kind, most_ms: None, since });
        job
    };
    // Full nodes first, then the queue.
    loop {
        for _ in 0..512 {
            submit(&mut sched, &mut durations);
        }
        let decided = sched.decide(NOW, Budget { placements: 512 });
        if decided.placements().count() < 512 {
            break;
        }
    }
    let mut last = asked(0, 1);
    while sched.pool(&compute).unwrap().queued() < place as usize {
        last = submit(&mut sched, &mut durations);
    }
    if place < 512 {
        last = submit(&mut sched, &mut durations);
    }
    let queued = sched.pool(&compute).unwrap().queued();
    let running: usize = sched
        .pool(&compute)
        .unwrap()
        .nodes()
        .map(|(n, ..)| sched.pool(&compute).unwrap().holds(n).count())
        .sum();
    let begun = Instant::now();
    let told = forecast(&sched, &last, &durations, NOW);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{nodes:>7} {running:>8} {queued:>8} {seconds:>8.3}  {told}");
}
