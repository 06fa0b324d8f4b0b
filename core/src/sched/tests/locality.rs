//! Jobs go where their inputs are, as far as that costs others little.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::id::DatastoreName;
use crate::sched::pack::SplitMix;

const MIB: u64 = 1 << 20;

fn place(path: &str) -> DataPlace {
    DataPlace::new(DatastoreName::new("data").unwrap(), path)
}

fn holds(sched: &mut Sched, name: &str, held: &[(&str, u64)]) {
    let held: Vec<_> = held.iter().map(|(path, mib)| (place(path), mib * MIB)).collect();
    sched.set_held(&compute(), &node(name), held);
}

fn reads(sched: &mut Sched, seq: u64, demand: Demand, paths: &[&str]) {
    let job = name(&format!("job{seq}"));
    let inputs = paths.iter().map(|path| place(path)).collect();
    sched.enqueue(&compute(), rank(seq), Waiting { inputs, ..waiting(job, demand) });
}

#[test]
fn of_equal_nodes_the_one_that_holds_the_most_of_the_inputs_gets_the_job() {
    let nodes = ["a", "b", "c"].map(|name| (name, capacity(4, 1000, 0)));
    let mut sched = sched(&nodes);
    holds(&mut sched, "b", &[("train/v1", 100), ("test", 5)]);
    holds(&mut sched, "c", &[("train/v1/", 90), ("test", 50), ("trainer", 500)]);
    for (seq, paths, goes) in [
        (1, &["train/v1/"][..], "b"),
        (2, &["train/v1", "/test"], "c"),
        // Of a folder that a node knows only a part of, and of one whose name only begins so.
        (3, &["train"], "b"),
        (4, &["tr"], "a"),
        (5, &["other"], "a"),
        (6, &[], "a"),
    ] {
        reads(&mut sched, seq, demand(4, 0, 0), paths);
        assert_eq!(step(&mut sched), [format!("{seq}@{goes}")], "{paths:?}");
        sched.release(&compute(), &node(goes), &name(&format!("job{seq}")), NOW);
    }
    let holders = |sched: &Sched, paths: &[&str]| {
        let inputs: Vec<_> = paths.iter().map(|path| place(path)).collect();
        let of = sched.pool(&compute()).unwrap().holders().of(&inputs);
        of.iter().map(|(node, bytes)| format!("{node} {}", bytes / MIB)).collect::<Vec<_>>()
    };
    assert_eq!(holders(&sched, &["train/v1", "test"]), ["c 140", "b 105"]);
    // What it told before is forgotten, and what a node tells that is gone.
    holds(&mut sched, "c", &[("test", 1)]);
    assert_eq!(holders(&sched, &["train/v1", "test"]), ["b 105", "c 1"]);
    sched.remove_node(&compute(), &node("b"));
    assert_eq!(holders(&sched, &["train/v1", "test"]), ["c 1"]);
    holds(&mut sched, "b", &[("test", 9)]);
    assert_eq!(holders(&sched, &["test"]), ["c 1"], "there is no such node");
}

#[test]
fn data_is_no_reason_to_wait_nor_to_go_where_no_jobs_may() {
    let nodes = ["a", "b"].map(|name| (name, capacity(4, 1000, 0)));
    let mut sched = sched(&nodes);
    holds(&mut sched, "b", &[("train", 10_000)]);
    reads(&mut sched, 1, demand(4, 0, 0), &["train"]);
    reads(&mut sched, 2, demand(4, 0, 0), &["train"]);
    assert_eq!(step(&mut sched), ["1@b", "2@a"]);
    for seq in [1, 2] {
        let at = if seq == 1 { "b" } else { "a" };
        sched.release(&compute(), &node(at), &name(&format!("job{seq}")), NOW);
    }
    sched.set_drained(&compute(), &node("b"), true);
    reads(&mut sched, 3, demand(4, 0, 0), &["train"]);
    assert_eq!(step(&mut sched), ["3@a"]);
}

#[test]
fn a_gap_is_filled_rather_than_an_empty_node_broken_into() {
    let nodes = [("a", capacity(16, 1000, 0)), ("b", capacity(16, 1000, 0))];
    let mut sched = sched(&nodes);
    wait(&mut sched, 1, demand(14, 0, 0));
    assert_eq!(step(&mut sched), ["1@a"]);
    holds(&mut sched, "b", &[("train", 10_000)]);
    reads(&mut sched, 2, demand(1, 0, 0), &["train"]);
    assert_eq!(step(&mut sched), ["2@a"], "a large job may need the other");
    // An eighth of the node more is worth it.
    wait(&mut sched, 3, demand(13, 0, 0));
    assert_eq!(step(&mut sched), ["3@b"]);
    reads(&mut sched, 4, demand(1, 0, 0), &["train"]);
    assert_eq!(step(&mut sched), ["4@b"]);
}

#[test]
fn gpus_are_not_given_up_for_data() {
    let nodes =
        [("a", capacity(64, 1000, 8)), ("b", capacity(64, 1000, 8)), ("c", capacity(64, 1000, 0))];
    let mut sched = sched(&nodes);
    wait(&mut sched, 1, demand(1, 0, 7));
    assert_eq!(step(&mut sched), ["1@a"]);
    holds(&mut sched, "b", &[("train", 10_000)]);
    reads(&mut sched, 2, demand(1, 0, 1), &["train"]);
    assert_eq!(step(&mut sched), ["2@a"], "a job of eight devices may need the other");
    reads(&mut sched, 3, demand(1, 0, 0), &["train"]);
    assert_eq!(
        step(&mut sched),
        ["3@a"],
        "all its devices are taken, so that no CPU is missed there"
    );
    sched.release(&compute(), &node("a"), &name("job1"), NOW);
    sched.release(&compute(), &node("a"), &name("job2"), NOW);
    sched.release(&compute(), &node("a"), &name("job3"), NOW);
    reads(&mut sched, 4, demand(1, 0, 1), &["train"]);
    assert_eq!(step(&mut sched), ["4@b"], "they are alike");
}

#[test]
fn each_member_of_a_job_goes_where_the_data_is() {
    let nodes = ["a", "b", "c", "d"].map(|name| (name, capacity(4, 1000, 0)));
    let mut sched = sched(&nodes);
    holds(&mut sched, "d", &[("train", 100)]);
    holds(&mut sched, "b", &[("train", 200)]);
    let request = Request { members: 3, demand: demand(4, 0, 0) };
    let inputs = [place("train")].into();
    let waiting = Waiting { inputs, request, ..waiting(name("job1"), demand(4, 0, 0)) };
    sched.enqueue(&compute(), rank(1), waiting);
    let plan = plan(&sched, NOW, WIDE);
    let nodes: Vec<&str> = plan.placements().flat_map(|p| &p.nodes).map(NodeName::as_str).collect();
    assert_eq!(nodes, ["b", "d", "a"]);
}

/// How a run of jobs went.
#[derive(Debug, Default)]
struct Run {
    moved: u64,
    waited: i64,
    ended: usize,
}

/// Ten nodes that keep three inputs each, those used last, and jobs that read one of twelve; with what the
/// nodes hold told, or not. One comes `every_ms` milliseconds.
fn run(seed: u64, every_ms: u64, told: bool) -> Run {
    const JOBS: usize = 1_000;
    let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    let nodes: Vec<_> = names.iter().map(|name| (name.as_str(), capacity(16, 1000, 0))).collect();
    let mut sched = sched(&nodes);
    let mut random = SplitMix(seed);
    let mut caches: BTreeMap<NodeName, VecDeque<DataPlace>> = BTreeMap::new();
    let mut came: BTreeMap<Rank, (Timestamp, i64, DataPlace)> = BTreeMap::new();
    let mut ends: BTreeMap<(Timestamp, Rank), NodeName> = BTreeMap::new();
    let (mut run, mut now, mut next) = (Run::default(), NOW, NOW);
    while run.ended < JOBS {
        let first = ends.keys().next().copied();
        if came.len() < JOBS && first.is_none_or(|(at, _)| next <= at) {
            now = next;
            next = now.plus_millis(random.below(2 * every_ms).cast_signed());
            let (seq, cpus) = (came.len() as u64, [1, 1, 2, 4, 8, 16][random.below(6) as usize]);
            let input = place(&format!("input{}", random.below(12)));
            let length = 5_000 + random.below(115_000).cast_signed();
            let waiting = waiting(name(&format!("job{seq}")), demand(cpus, 0, 0));
            let inputs = [input.clone()].into();
            sched.enqueue(&compute(), rank(seq), Waiting { inputs, ..waiting });
            came.insert(rank(seq), (now, length, input));
        } else if let Some((at, rank)) = first {
            now = at;
            let node = ends.remove(&(at, rank)).unwrap();
            sched.release(&compute(), &node, &name(&format!("job{}", rank.seq())), now);
            run.ended += 1;
        }
        for placed in sched.decide(now, WIDE).placements().cloned().collect::<Vec<_>>() {
            let (since, length, input) = came[&placed.rank].clone();
            run.waited += now.millis_since(since);
            let node = placed.nodes[0].clone();
            let cache = caches.entry(node.clone()).or_default();
            match cache.iter().position(|held| *held == input) {
                Some(at) => drop(cache.remove(at)),
                None => run.moved += 1,
            }
            cache.push_front(input);
            cache.truncate(3);
            if told {
                let held: Vec<_> = cache.iter().map(|held| (held.clone(), 1_000 * MIB)).collect();
                sched.set_held(&compute(), &node, held);
            }
            ends.insert((now.plus_millis(length), placed.rank), node);
        }
    }
    run
}

#[test]
fn in_a_simulated_cluster_less_is_moved_and_nobody_waits_much_longer() {
    // Jobs that come every two seconds fill the cluster, every four they fill half of it.
    for (every_ms, fewer_percent) in [(2_150, 6), (4_300, 15)] {
        let runs = |told: bool| -> Run {
            (0..4).map(|seed| run(seed, every_ms, told)).fold(Run::default(), |sum, one| Run {
                moved: sum.moved + one.moved,
                waited: sum.waited + one.waited,
                ended: sum.ended + one.ended,
            })
        };
        let (without, with) = (runs(false), runs(true));
        assert_eq!(with.ended, without.ended);
        assert!(with.moved * 100 < without.moved * (100 - fewer_percent), "{with:?} {without:?}");
        assert!(with.waited * 20 <= without.waited * 21, "{with:?} {without:?}");
    }
}

proptest! {
    /// The first in line starts if and only if it would without what the nodes hold, and nothing about what is free
    /// where it goes is much worse.
    #[test]
    fn a_preference_starts_nobody_and_holds_nobody_up(
        nodes in proptest::collection::vec((1..=32_u64, 0..=4_u16, any::<bool>()), 1..6),
        running in proptest::collection::vec((1..=16_u64, 0..=2_u32), 0..8),
        held in proptest::collection::vec((0..6_usize, 0..3_usize, 0..4_u64), 0..8),
        cpus in 1..=16_u64, gpus in 0..=2_u32, members in 1..=2_u32,
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut sched = Sched::default();
        for (name, (cpus, gpus, open)) in names.iter().zip(&nodes) {
            sched.put_node(&compute(), node(name), capacity(*cpus, 1 << 20, *gpus));
            sched.set_ready(&compute(), &node(name), *open);
        }
        for (seq, (cpus, gpus)) in (1..).zip(&running) {
            wait(&mut sched, seq, demand(*cpus, 0, *gpus));
            sched.decide(NOW, WIDE);
            sched.dequeue(&compute(), rank(seq));
        }
        let request = Request { members, demand: demand(cpus, 1, gpus) };
        let inputs = ["x", "y"].map(place).into();
        let waiting = Waiting { inputs, request, ..waiting(name("last"), demand(0, 0, 0)) };
        sched.enqueue(&compute(), rank(99), waiting);
        let mut telling = sched.clone();
        for (at, name) in names.iter().enumerate() {
            let mine = held.iter().filter(|(node, ..)| *node == at);
            let held: Vec<_> = mine.map(|(_, input, mib)| (["x", "x/1", "y"][*input], *mib)).collect();
            holds(&mut telling, name, &held);
        }
        let [without, with] = [&sched, &telling].map(|sched| plan(sched, NOW, WIDE));
        let nodes_of = |plan: &Plan| -> Option<Vec<NodeName>> {
            plan.placements().next().map(|placement| placement.nodes.clone())
        };
        let (without, with) = (nodes_of(&without), nodes_of(&with));
        prop_assert_eq!(without.is_some(), with.is_some());
        let (Some(without), Some(with)) = (without, with) else { return Ok(()) };
        if members == 1 {
            let pool = telling.pool(&compute()).unwrap();
            let [best, chosen] = [&without[0], &with[0]].map(|node| pool.node(node).unwrap().0);
            let eighth = chosen.capacity().cpu / 8;
            prop_assert!(chosen.free_cpu() <= best.free_cpu() + eighth);
            let gpus = |ledger: &crate::resource::Ledger| -> u32 {
                ledger.free_shares().map(|(_, free)| u32::from(free)).sum()
            };
            prop_assert!(chosen == best || gpus(chosen) <= gpus(best));
        }
        let placed = plan(&telling, NOW, WIDE);
        for placement in placed.placements() {
            prop_assert!(telling.commit(placement, NOW).is_some());
        }
    }
}
