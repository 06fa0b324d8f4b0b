use proptest::prelude::*;

use super::*;

fn whole(cpu: u64, gpus: u32) -> Ask {
    Ask { cpu: cpu * 1000, memory: 0, gpus, share: WHOLE_GPU, models: Models::ANY }
}

fn part(cpu: u64, share: u16) -> Ask {
    Ask { share, ..whole(cpu, 1) }
}

fn free(cpu: u64, gpus: &[u16]) -> Free {
    Free::new(cpu * 1000, 1_000, gpus.to_vec(), 0)
}

fn packing(nodes: &[Free]) -> Packing<u32> {
    let mut packing = Packing::default();
    for (number, node) in (0..).zip(nodes) {
        packing.add(number, node.clone());
    }
    packing
}

#[test]
fn room_is_cpu_memory_devices_and_their_model() {
    let node = free(8, &[300, 1000, 600, 1000]);
    for (ask, fits) in [
        (whole(8, 2), true),
        (whole(8, 3), false),
        (whole(9, 1), false),
        (part(1, 1000), true),
        (part(1, 601), true),
        (whole(8, 0), true),
        (Ask { memory: 1_001, ..whole(1, 0) }, false),
        (Ask { models: Models::of([1, 2]), ..whole(1, 1) }, false),
        (Ask { models: Models::of([0, 200]), ..whole(1, 1) }, true),
        (Ask { models: Models::of([1]), ..whole(1, 0) }, true),
        (Ask { gpus: u32::MAX, ..whole(1, 1) }, false),
    ] {
        assert_eq!(node.fits(&ask), fits, "{ask:?}");
    }
    let taken = |ask: Ask| {
        let mut node = node.clone();
        node.take(&ask);
        node
    };
    assert_eq!(taken(part(2, 250)), free(6, &[50, 600, 1000, 1000]), "the device left tightest");
    assert_eq!(taken(part(2, 601)), free(6, &[300, 399, 600, 1000]));
    assert_eq!(taken(whole(8, 2)), free(0, &[0, 0, 300, 600]));
    assert_eq!(taken(whole(8, 0)), free(0, &[300, 600, 1000, 1000]));
}

#[test]
fn before_anything_is_learnt_the_tightest_node_is_taken() {
    let mut packing = packing(&[free(64, &[1000; 8]), free(16, &[1000, 500]), free(8, &[1000])]);
    assert_eq!(packing.place(&whole(4, 1)), Some(2));
    assert_eq!(packing.place(&part(4, 400)), Some(1));
    assert_eq!(packing.place(&whole(4, 4)), Some(0));
    assert_eq!(packing.place(&whole(4, 5)), None);
    assert_eq!(packing.place(&whole(4, 0)), Some(2), "CPU where no GPU is left");
}

/// Jobs come that take 8 CPUs and a device. A job that takes 12 CPUs leaves too few for another on
/// the node of 16, and enough on the node of 20, although that is left less tight.
#[test]
fn cpu_is_kept_for_the_devices_beside_it() {
    let nodes = [free(16, &[1000, 1000]), free(20, &[1000, 1000])];
    let greedy = packing(&nodes).place(&whole(12, 1));
    assert_eq!(greedy, Some(0));
    let mut packing = packing(&nodes);
    for _ in 0..100 {
        packing.learn(&whole(8, 1));
    }
    assert_eq!(packing.place(&whole(12, 1)), Some(1));
}

/// Halves and thirds of devices come: a third goes where thirds are, so that halves still fit.
#[test]
fn parts_are_put_where_the_rest_is_of_use() {
    let nodes = [free(64, &[500]), free(64, &[680])];
    let mut packing = packing(&nodes);
    for _ in 0..100 {
        packing.learn(&part(1, 500));
        packing.learn(&part(1, 340));
    }
    assert_eq!(packing.place(&part(1, 340)), Some(1));
    assert_eq!(packing.place(&part(1, 500)), Some(0));
    assert_eq!(packing.place(&part(1, 340)), Some(1));
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let share = prop_oneof![Just(1000_u16), Just(500), Just(470), Just(160)];
    (0_u64..20, 0_u64..600, 0_u32..5, share, any::<bool>()).prop_map(
        |(cpu, memory, gpus, share, picky)| {
            let models = if picky { Models::of([0]) } else { Models::ANY };
            Ask { cpu: cpu * 1000, memory, gpus, share, models }
        },
    )
}

proptest! {
    /// A job is placed exactly if some node has room; what is free shrinks by what it takes; and
    /// nodes that are alike in another order change nothing.
    #[test]
    fn what_fits_is_placed_and_nothing_is_given_twice(
        nodes in proptest::collection::vec((1_u64..40, 0_usize..5, 0_u8..2), 1..12),
        asks in proptest::collection::vec(any_ask(), 1..120),
    ) {
        let nodes: Vec<Free> = nodes
            .into_iter()
            .map(|(cpu, gpus, model)| Free::new(cpu * 1000, 1_000, vec![WHOLE_GPU; gpus], model))
            .collect();
        let mut one = packing(&nodes);
        let mut two = packing(&nodes.iter().rev().cloned().collect::<Vec<_>>());
        let sum = |packing: &Packing<u32>| -> (u64, u64, u64) {
            packing.alike().fold((0, 0, 0), |(cpu, memory, gpus), (free, count)| {
                let count = count as u64;
                let gpus = gpus + free.milli_gpus() * count;
                (cpu + free.cpu * count, memory + free.memory * count, gpus)
            })
        };
        for ask in &asks {
            let room = one.alike().any(|(free, _)| free.fits(ask));
            let before = sum(&one);
            one.learn(ask);
            two.learn(ask);
            let placed = one.place(ask).is_some();
            prop_assert_eq!(placed, room);
            prop_assert_eq!(two.place(ask).is_some(), room);
            let taken = if placed { (ask.cpu, ask.memory, ask.milli_gpus()) } else { (0, 0, 0) };
            let after = sum(&one);
            prop_assert_eq!((after.0 + taken.0, after.1 + taken.1, after.2 + taken.2), before);
            prop_assert!(one.alike().eq(two.alike()));
        }
    }
}
