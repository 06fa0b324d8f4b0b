//! What is whole, what was sent, and what a death in between leaves.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("spool")
    }

    fn open(&self) -> Journal {
        Journal::open(&self.path()).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }
}

fn point(step: i64) -> Metric {
    Metric { key: "loss".to_owned(), value: 0.1, timestamp: 1000 + step, step }
}

fn logged(journal: &mut Journal, steps: std::ops::Range<i64>) {
    for step in steps {
        journal.append("run", &[point(step)]).unwrap();
    }
}

fn first(journal: &Journal) -> Batch {
    journal.unsent().unwrap().first().unwrap().unwrap()
}

/// The steps of all that is sent from now on.
fn sent(journal: &mut Journal) -> Vec<i64> {
    let mut steps = Vec::new();
    while journal.unsent().is_some() {
        let batch = first(journal);
        steps.extend(steps_of(&batch));
        journal.forget(&batch).unwrap();
    }
    steps
}

fn steps_of(batch: &Batch) -> Vec<i64> {
    let body: Value = serde_json::from_str(&batch.body).unwrap();
    let points = body["metrics"].as_array().unwrap();
    assert_eq!(points.len(), batch.points);
    points.iter().map(|point| point["step"].as_i64().unwrap()).collect()
}

#[test]
fn points_are_sent_as_they_were_logged_to_the_last_bit() {
    let bench = Bench::new();
    let mut journal = bench.open();
    let values = [0.1 + 0.2, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, -0.0];
    let key = "a \"key\" with ü";
    let points = values.map(|value| Metric { key: key.to_owned(), value, ..point(-3) });
    journal.append("r\"un", &points).unwrap();
    let batch = first(&journal);
    let body: Value = serde_json::from_str(&batch.body).unwrap();
    assert_eq!((batch.run.as_str(), &body["run_id"]), ("r\"un", &json!("r\"un")));
    for (sent, value) in body["metrics"].as_array().unwrap().iter().zip(values) {
        let read: f64 = sent["value"].as_str().unwrap().parse().unwrap();
        assert!(read.to_bits() == value.to_bits() || value.is_nan() && read.is_nan());
        assert_eq!((&sent["key"], &sent["step"]), (&json!(key), &json!(-3)));
    }
    assert_eq!(body["metrics"][1]["value"], "NaN");
    assert_eq!(body["metrics"][3]["value"], "-Infinity");
}

#[test]
fn batches_are_of_one_run_in_order_and_no_larger_than_a_request_may_be() {
    let bench = Bench::new();
    let mut journal = bench.open();
    let many: Vec<Metric> = (0..600).map(point).collect();
    for run in ["a", "a", "b", "a"] {
        journal.append(run, &many).unwrap();
    }
    let mut told = Vec::new();
    while journal.unsent().is_some() {
        let batch = first(&journal);
        told.push((batch.run.clone(), batch.points));
        journal.forget(&batch).unwrap();
    }
    let expected = [("a", 600), ("a", 600), ("b", 600), ("a", 600)];
    assert_eq!(told, expected.map(|(run, points)| (run.to_owned(), points)));
    logged(&mut journal, 0..2500);
    let batch = first(&journal);
    assert_eq!(batch.points, 1000);
    assert_eq!(sent(&mut journal), (0..2500).collect::<Vec<_>>());
}

#[test]
fn what_an_agent_that_died_has_written_is_sent_by_the_next_and_numbers_go_on() {
    let bench = Bench::new();
    let mut journal = bench.open();
    logged(&mut journal, 0..3);
    drop(journal);
    let mut journal = bench.open();
    assert_eq!((journal.next(), journal.sent()), (3, 0));
    assert_eq!(sent(&mut journal), [0, 1, 2]);
    // It is empty, and knows where it was.
    assert_eq!(bench.bytes().len(), HEAD);
    drop(journal);
    let mut journal = bench.open();
    assert_eq!((journal.next(), journal.sent()), (3, 3));
    logged(&mut journal, 3..5);
    drop(journal);
    let mut journal = bench.open();
    assert_eq!((journal.next(), sent(&mut journal)), (5, vec![3, 4]));
}

#[test]
fn an_end_that_is_torn_anywhere_costs_no_more_than_the_batch_it_is_in() {
    let bench = Bench::new();
    let mut journal = bench.open();
    logged(&mut journal, 0..2);
    let whole = bench.bytes();
    logged(&mut journal, 2..3);
    let all = bench.bytes();
    drop(journal);
    for length in whole.len()..all.len() {
        fs::write(bench.path(), &all[..length]).unwrap();
        let mut journal = bench.open();
        assert_eq!(journal.next(), 2);
        logged(&mut journal, 7..8);
        assert_eq!(sent(&mut bench.open()), [0, 1, 7], "{length}");
    }
    // So with what is there and wrong.
    for at in whole.len()..all.len() {
        let mut damaged = all.clone();
        damaged[at] ^= 0x20;
        fs::write(bench.path(), damaged).unwrap();
        assert_eq!(sent(&mut bench.open()), [0, 1], "{at}");
    }
}

#[test]
fn a_head_that_is_not_whole_has_all_sent_again_and_nothing_is_left_out() {
    let bench = Bench::new();
    let mut journal = bench.open();
    logged(&mut journal, 0..1500);
    let batch = first(&journal);
    journal.forget(&batch).unwrap();
    drop(journal);
    assert_eq!(sent(&mut bench.open()), (1000..1500).collect::<Vec<_>>());

    let mut journal = bench.open();
    logged(&mut journal, 0..4);
    drop(journal);
    for at in 0..HEAD {
        let mut damaged = bench.bytes();
        damaged[at] ^= 1;
        let path = bench.0.path().join("damaged");
        fs::write(&path, damaged).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(sent(&mut journal), [0, 1, 2, 3], "{at}");
        assert_eq!(journal.next(), 1504);
    }
    for bytes in [&b""[..], b"ATSPOOL1", b"something else altogether, of no use to anybody"] {
        fs::write(bench.path(), bytes).unwrap();
        let mut journal = bench.open();
        assert!(journal.unsent().is_none());
        logged(&mut journal, 0..1);
        assert_eq!(sent(&mut bench.open()), [0]);
    }
}

#[test]
fn what_was_sent_is_not_sent_again_where_the_file_was_not_cut_yet() {
    let bench = Bench::new();
    let mut journal = bench.open();
    logged(&mut journal, 0..3);
    let before = bench.bytes();
    assert_eq!(sent(&mut journal), [0, 1, 2]);
    drop(journal);
    let head = bench.bytes();
    fs::write(bench.path(), [&head[..HEAD], &before[HEAD..]].concat()).unwrap();
    let mut journal = bench.open();
    assert!(journal.unsent().is_none());
    assert_eq!((journal.next(), bench.bytes().len()), (3, HEAD));
    // With a batch that was written over them since.
    logged(&mut journal, 3..4);
    let mut bytes = bench.bytes();
    bytes.extend_from_slice(&before[bytes.len()..]);
    drop(journal);
    fs::write(bench.path(), bytes).unwrap();
    assert_eq!(sent(&mut bench.open()), [3]);
}

#[test]
fn a_file_that_is_logged_to_all_the_time_stays_small() {
    let bench = Bench::new();
    let mut journal = bench.open();
    let points = |round: i64| (0..100).map(|n| point(round * 100 + n)).collect::<Vec<_>>();
    journal.append("run", &points(0)).unwrap();
    let (mut steps, mut largest) = (Vec::new(), 0);
    for round in 1..600 {
        let batch = first(&journal);
        // More comes while it is on its way.
        journal.append("run", &points(round)).unwrap();
        steps.extend(steps_of(&batch));
        journal.forget(&batch).unwrap();
        largest = largest.max(fs::metadata(bench.path()).unwrap().len());
    }
    assert!((SENT..2 * SENT).contains(&largest), "{largest}");
    assert!(journal.unsent_bytes() < SENT / 10);
    drop(journal);
    steps.extend(sent(&mut bench.open()));
    assert_eq!(steps, (0..60_000).collect::<Vec<_>>());
}
