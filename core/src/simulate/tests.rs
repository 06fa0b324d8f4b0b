use super::*;

fn node(cpu: u64, gpus: u16, model: &str) -> TraceNode {
    TraceNode { cpu: cpu * 1000, memory: 100_000, gpus, model: model.to_owned() }
}

fn task(cpu: u64, gpus: u16, share: u16) -> TraceTask {
    TraceTask { cpu: cpu * 1000, memory: 1_000, gpus, share, models: vec![] }
}

/// A cluster of two kinds of node and jobs of many sizes, made up.
fn made_up() -> (Vec<TraceNode>, Vec<TraceTask>) {
    let mut nodes = vec![node(96, 8, "big"); 20];
    nodes.extend(vec![node(16, 2, "small"); 30]);
    let mut tasks = Vec::new();
    for number in 0..300 {
        tasks.push(match number % 10 {
            0..3 => task(12, 1, 1000),
            3 | 4 => task(6, 1, 470),
            5 => task(4, 1, 810),
            6 => task(2, 1, 160),
            7 => task(8, 1, 650),
            8 => task(16, 0, 0),
            _ => task(32, 4, 1000),
        });
    }
    (nodes, tasks)
}

#[test]
fn a_saturated_cluster_is_nearly_full_and_never_over() {
    let (nodes, tasks) = made_up();
    for seed in 42..45 {
        let end = saturate(&nodes, &tasks, 1300, seed);
        assert_eq!(end.capacity, 220_000);
        assert!(end.allocated <= end.capacity);
        assert!(end.percent() > 85.0, "{end:?}");
        assert!(end.placed < end.tasks);
        assert_eq!(end, saturate(&nodes, &tasks, 1300, seed), "the same seed, the same end");
    }
    let ends: Vec<u64> =
        (1..6).map(|seed| saturate(&nodes, &tasks, 1300, seed).allocated).collect();
    assert!(ends.windows(2).any(|pair| pair[0] != pair[1]), "seeds differ: {ends:?}");
}

#[test]
fn every_task_comes_even_if_fewer_would_do_and_none_forever() {
    let (nodes, tasks) = made_up();
    let end = saturate(&nodes, &tasks, 1, 1);
    assert_eq!(end.tasks, tasks.len());
    let no_gpus = [task(1, 0, 0)];
    let end = saturate(&nodes, &no_gpus, 1300, 1);
    assert_eq!((end.tasks, end.placed, end.allocated), (1, 1, 0));
    let end = saturate(&[], &tasks, 1300, 1);
    assert_eq!((end.placed, end.capacity, end.percent()), (0, 0, 0.0));
    assert_eq!(saturate(&nodes, &[], 1300, 1).tasks, 0);
}

#[test]
fn a_task_goes_only_to_the_models_that_it_names() {
    let nodes = [node(64, 1, "A"), node(64, 1, "B")];
    let picky = |models: &[&str]| TraceTask {
        models: models.iter().map(|m| (*m).to_owned()).collect(),
        ..task(1, 1, 1000)
    };
    let placed = |tasks: &[TraceTask]| saturate(&nodes, tasks, 1, 7).placed;
    assert_eq!(placed(&[picky(&["A"]), picky(&["A"])]), 1);
    assert_eq!(placed(&[picky(&["A", "B"]), picky(&["B", "C"])]), 2);
    assert_eq!(placed(&[picky(&["C"])]), 0);
}
