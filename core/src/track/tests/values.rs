use std::cmp::Ordering;

use proptest::prelude::*;

use crate::track::wire::Fields;
use crate::track::{
    Block, Cell, ExperimentId, LoggedModelId, LoggedModelStatus, Metric, PageToken, Point,
    RunStatus, StoredMetric, ViewType, drawn, fingerprint, sampled,
};

fn stored(value: f64, timestamp: i64, step: i64) -> StoredMetric {
    Metric { key: "k".to_owned(), value, timestamp, step }.into()
}

#[test]
fn nan_and_infinities_are_kept_as_mlflow_keeps_them() {
    let nan = stored(f64::NAN, 0, 0);
    assert!(nan.is_nan && nan.value == 0.0 && nan.value().is_nan());
    assert_eq!(stored(f64::INFINITY, 0, 0).value, f64::MAX);
    assert_eq!(stored(f64::NEG_INFINITY, 0, 0).value, f64::MIN);
    assert_eq!(stored(-0.0, 0, 0).value.to_bits(), 0);
}

#[test]
fn the_accuracy_of_a_model_is_the_one_that_was_measured() {
    // A parser that rounds twice reads …668.
    let fields = Fields::of_body(br#"{"value": 0.9666666666666667}"#).unwrap();
    assert_eq!(fields.double("value").unwrap(), Some(0.9666666666666667));
}

#[test]
fn the_latest_point_is_by_step_then_timestamp_then_value() {
    assert_eq!(stored(0.1, 5, 2).later(&stored(9.0, 9, 1)), Ordering::Greater);
    assert_eq!(stored(0.1, 6, 1).later(&stored(9.0, 5, 1)), Ordering::Greater);
    assert_eq!(stored(9.0, 5, 1).later(&stored(0.1, 5, 1)), Ordering::Greater);
    assert_eq!(stored(0.1, 5, 1).later(&stored(0.1, 5, 1)), Ordering::Equal);
}

#[test]
fn words_of_the_wire() {
    for status in RunStatus::ALL {
        assert_eq!(RunStatus::parse(status.as_str()), Some(status));
    }
    assert_eq!(RunStatus::parse("running"), None);
    assert_eq!(ViewType::parse("ALL"), Some(ViewType::All));
    assert_eq!(ExperimentId::parse("").expect("default"), ExperimentId::DEFAULT);
    assert_eq!(ExperimentId::parse("12").expect("12"), ExperimentId(12));
    assert!(ExperimentId::parse("x").expect_err("x").to_string().contains("valid integer"));
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Null),
        any::<i64>().prop_map(Cell::Int),
        any::<i32>().prop_map(|n| Cell::Real(f64::from(n) / 7.0)),
        ".*".prop_map(Cell::Text),
    ]
}

proptest! {
    /// As Python writes a double, with as few digits as tell it from any other.
    #[test]
    fn a_value_is_kept_to_the_last_digit(value in prop_oneof![prop::num::f64::NORMAL, prop::num::f64::SUBNORMAL, 0.0..1.0f64]) {
        let body = format!(r#"{{"value": {value:?}}}"#);
        let read = Fields::of_body(body.as_bytes()).unwrap().double("value").unwrap();
        prop_assert_eq!(read.map(f64::to_bits), Some(value.to_bits()));
    }

    #[test]
    fn page_tokens_come_back(search in any::<u64>(), after in prop::collection::vec(cell(), 0..6)) {
        let token = PageToken { search, after };
        let text = token.to_string();
        prop_assert_eq!(PageToken::parse(&text, search).expect("own token"), token);
        prop_assert!(PageToken::parse(&text, search.wrapping_add(1)).is_err());
    }

    #[test]
    fn foreign_page_tokens_are_refused_without_panic(text in "[0-9a-f]{0,80}|.*") {
        let _ = PageToken::parse(&text, 7);
    }

    #[test]
    fn a_cut_page_token_does_not_panic(after in prop::collection::vec(cell(), 0..4), cut in 0usize..200) {
        let text = PageToken { search: 7, after }.to_string();
        let _ = PageToken::parse(&text[..cut.min(text.len())], 7);
    }

    #[test]
    fn order_of_arrival_does_not_change_the_latest(
        points in prop::collection::vec((-2i64..3, 0i64..3, 0u8..4), 1..8),
    ) {
        let all: Vec<_> = points
            .iter()
            .map(|(step, at, value)| {
                stored(if *value == 3 { f64::NAN } else { f64::from(*value) }, *at, *step)
            })
            .collect();
        let forward = all.iter().max_by(|a, b| a.later(b));
        let backward = all.iter().rev().max_by(|a, b| a.later(b));
        prop_assert_eq!(forward, backward);
    }
}

#[test]
fn fingerprints_tell_parts_apart() {
    assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
    assert_eq!(fingerprint(&["ab", "c"]), fingerprint(&["ab", "c"]));
}

#[test]
fn samples_are_even_and_end_with_the_last() {
    let points = |n: i64| (0..n).map(|step| stored(0.0, 0, step)).collect::<Vec<_>>();
    let steps = |n: i64, most: usize| -> Vec<i64> {
        sampled(points(n), most).iter().map(|point| point.step).collect()
    };
    assert_eq!(steps(10, 4), [0, 3, 6, 9]);
    assert_eq!(steps(11, 4), [0, 3, 6, 10]);
    assert_eq!(steps(5, 1), [4]);
    assert_eq!(steps(5, 0), [0; 0]);
    assert_eq!(steps(3, 3), [0, 1, 2]);
    assert_eq!(steps(0, 3), [0; 0]);
    for (n, most) in [(2501, 2500), (100_000, 2500), (7, 5)] {
        let some = steps(n, most);
        assert!(some.len() == most && some.is_sorted() && some.last() == Some(&(n - 1)), "{n}");
    }
}

proptest! {
    /// A curve drawn from blocks has the ends, the extremes, and points of its own in order.
    #[test]
    fn what_is_drawn_is_of_the_points(
        values in prop::collection::vec(-9i64..9, 1..200),
        sizes in prop::collection::vec(1usize..9, 1..200),
        most in 1usize..40,
    ) {
        let point = |(step, value): (usize, &i64)| {
            Point::new(step as i64, 0, if *value == 8 { f64::NAN } else { *value as f64 })
        };
        let points: Vec<Point> = values.iter().enumerate().map(point).collect();
        let singles: Vec<Block> = points.iter().copied().map(Block::from).collect();
        let (mut blocks, mut rest) = (Vec::new(), singles.as_slice());
        for size in sizes.iter().cycle() {
            let (mine, others) = rest.split_at((*size).min(rest.len()));
            let Some((first, more)) = mine.split_first() else { break };
            let mut block = *first;
            more.iter().for_each(|next| block.extend(next));
            blocks.push(block);
            rest = others;
        }
        prop_assert_eq!(blocks.iter().map(|block| block.points).sum::<u64>(), points.len() as u64);
        for blocks in [&blocks, &singles] {
            let chosen = drawn(blocks, most);
            prop_assert!(chosen.len() <= most);
            prop_assert!(chosen.is_sorted_by(|a, b| a.later(b).is_lt()));
            prop_assert!(chosen.iter().all(|point| points.contains(point)));
            prop_assert_eq!(chosen.last(), points.last());
            prop_assert!(most == 1 || chosen.first() == points.first());
            let numbers = || points.iter().filter(|point| !point.is_nan);
            if most >= 4 && let Some(low) = numbers().min_by(|a, b| a.value.total_cmp(&b.value)) {
                let high = numbers().map(|point| point.value).fold(f64::MIN, f64::max);
                prop_assert!(chosen.contains(low));
                prop_assert!(chosen.iter().any(|point| point.value == high));
            }
        }
        if most < 4 {
            prop_assert_eq!(drawn(&singles, most), sampled(points, most));
        }
    }
}

#[test]
fn ids_of_models() {
    let id = LoggedModelId::generate(7);
    assert_eq!(LoggedModelId::new(id.as_str()).unwrap(), id);
    let upper = format!("m-{}", "A".repeat(32));
    for text in [
        "",
        "m-",
        "m-1",
        &upper,
        &id.as_str()[1..],
        &format!("{id}0"),
        "m-../../../../../../../../../../../x",
    ] {
        assert!(LoggedModelId::new(text).unwrap_err().to_string().contains("not found"), "{text}");
    }
    for (i, status) in LoggedModelStatus::ALL.into_iter().enumerate() {
        assert_eq!(LoggedModelStatus::parse(status.as_str()), Some(status));
        assert_eq!(LoggedModelStatus::parse_wire(status.wire()), Some(status));
        assert_eq!(LoggedModelStatus::parse_wire(&(i + 1).to_string()), Some(status));
    }
    assert_eq!(LoggedModelStatus::parse_wire("0"), None);
}
