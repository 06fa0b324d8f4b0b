use super::*;

fn job(arrives: i64, length: u64, gpus: u16) -> PlayedJob {
    let task = TraceTask { cpu: 1000, memory: 100, gpus, share: 1000, models: vec![] };
    PlayedJob {
        user: Principal::new("ada").unwrap(),
        priority: Priority::Medium,
        tier: JobTier::Standard,
        request: Request::one(Demand::from(&task)),
        arrives: Timestamp::from_millis(arrives),
        length_ms: length,
        most_ms: None,
    }
}

fn node(gpus: u16) -> Capacity {
    Capacity::from(&TraceNode { cpu: 10_000, memory: 1000, gpus, model: "A".to_owned() })
}

#[test]
fn a_small_schedule_is_as_worked_out_by_hand() {
    // One node of two GPUs. The third waits until 100 for both, the fourth behind it until 150, and
    // the last can never start.
    let jobs = [job(0, 100, 1), job(10, 20, 1), job(20, 50, 2), job(30, 10, 1), job(40, 5, 3)];
    let played = play(&[node(2)], false, &jobs).unwrap();
    let times = |of: fn(&Fate) -> Option<Timestamp>| -> Vec<Option<i64>> {
        played.fates.iter().map(|fate| of(fate).map(Timestamp::as_millis)).collect()
    };
    assert_eq!(times(|f| f.started), [Some(0), Some(10), Some(100), Some(150), None]);
    assert_eq!(times(|f| f.ended), [Some(100), Some(30), Some(150), Some(160), None]);
    assert_eq!((played.completed(), played.never_started(), played.makespan_ms), (4, 1, 160));
    // GPU: 100 + 20 + 2*50 + 10 of 2*160; CPU: 180 of 10*160; memory: 18000 of 160000.
    assert_eq!(played.held.gpus, 230_000);
    let [cpu, memory, gpus] = played.utilisation();
    assert_eq!((gpus, cpu, memory), (Some(71.875), Some(11.25), Some(11.25)));
    assert_eq!(played, play(&[node(2)], false, &jobs).unwrap());
}

#[test]
fn shares_of_a_device_run_side_by_side_and_models_are_kept_to() {
    let half = |models: &[&str]| {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        let task = TraceTask { cpu: 1000, memory: 100, gpus: 1, share: 500, models };
        PlayedJob { request: Request::one(Demand::from(&task)), ..job(0, 100, 0) }
    };
    let played = play(&[node(1)], false, &[half(&[]), half(&["A", "B"]), half(&["C"]), half(&[])]);
    let started: Vec<_> = played.unwrap().fates.iter().map(|fate| fate.started).collect();
    let at = |ms| Some(Timestamp::from_millis(ms));
    assert_eq!(started, [at(0), at(0), None, at(100)]);
}

#[test]
fn nothing_comes_or_there_is_nothing_to_hold_it() {
    assert_eq!(play(&[node(1)], false, &[]).unwrap().makespan_ms, 0);
    let played = play(&[], false, &[job(5, 1, 0)]).unwrap();
    assert_eq!((played.never_started(), played.utilisation()), (1, [None; 3]));
}

#[test]
fn percentiles_are_values_that_occur() {
    assert_eq!(Spread::of(vec![]), None);
    let one = Spread::of(vec![7]).unwrap();
    assert_eq!((one.mean, one.p50, one.p90, one.p99), (7.0, 7, 7, 7));
    let many = Spread::of((1..=200).rev().collect()).unwrap();
    assert_eq!((many.mean, many.p50, many.p90, many.p99), (100.5, 100, 180, 198));
}

#[test]
fn where_a_job_takes_a_whole_node_another_waits_for_it() {
    let jobs = [job(0, 100, 0), job(0, 100, 0)];
    let makespan = |exclusive| play(&[node(1)], exclusive, &jobs).unwrap().makespan_ms;
    assert_eq!((makespan(false), makespan(true)), (100, 200));
}
