use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn node(number: u32) -> NodeName {
    NodeName::new(&format!("c-{number}")).unwrap()
}

/// Nodes that are up; each has been idle for so many seconds, or has work.
fn up(idle: &[Option<i64>]) -> Vec<(NodeName, Option<Timestamp>)> {
    let since = |s: i64| NOW.plus_millis(-s * 1000);
    (1..).zip(idle).map(|(number, idle)| (node(number), idle.map(since))).collect()
}

fn view() -> View {
    View { max: 4, idle_ms: 120_000, ..View::default() }
}

#[test]
fn it_grows_as_the_queue_needs_and_never_above_the_maximum() {
    let wants = |wanted| scale(&View { wanted, has_work: true, ..view() }, NOW).add;
    assert_eq!([wants(0), wants(1), wants(3), wants(4), wants(1000)], [0, 1, 3, 4, 4]);
    let view = View { up: up(&[None, None]), wanted: 9, has_work: true, ..view() };
    assert_eq!(scale(&view, NOW).add, 2);
    let view = View { coming: vec![node(3)], ..view };
    assert_eq!(scale(&view, NOW).add, 1, "what comes counts");
    let view = View { leaving: 1, ..view };
    assert_eq!(scale(&view, NOW).add, 0, "what leaves is still there");
}

#[test]
fn the_minimum_is_kept_and_trouble_waits() {
    let view = View { min: 2, ..view() };
    assert_eq!(scale(&view, NOW).add, 2);
    let held = View { not_before: Some(NOW.plus_millis(1)), ..view.clone() };
    assert_eq!(scale(&held, NOW).add, 0);
    assert_eq!(scale(&held, NOW.plus_millis(1)).add, 2);
    let idle = View { up: up(&[Some(500), Some(900), Some(300)]), ..view };
    assert_eq!(scale(&idle, NOW).remove, [node(2)], "the longest idle one");
}

#[test]
fn idle_nodes_go_when_their_time_is_over_and_nobody_waits() {
    let idle = View { up: up(&[Some(119), None, Some(120), Some(500)]), ..view() };
    assert_eq!(scale(&idle, NOW).remove, [node(4), node(3)]);
    let waited_for = View { has_work: true, ..idle };
    assert_eq!(scale(&waited_for, NOW), Scaling::default(), "a gang may need them all");
}

#[test]
fn a_lowered_maximum_takes_what_has_no_work_first_and_never_what_has() {
    let view = View {
        max: 1,
        up: up(&[None, None, Some(1)]),
        coming: vec![node(4)],
        has_work: true,
        wanted: 5,
        ..view()
    };
    let scaling = scale(&view, NOW);
    assert_eq!(scaling.remove, [node(4), node(3)]);
    assert_eq!(scaling.retire, [node(1)]);
    assert_eq!(scaling.add, 0);
}
