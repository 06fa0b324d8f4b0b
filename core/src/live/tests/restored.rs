//! A backup takes the place of what came after it: a job still runs once at a time (I1), and all of it ends (I18).

use proptest::prelude::*;

use super::super::Restored;
use super::properties::{Op, apply, op, world};
use crate::job::JobStatus;
use crate::testkit::{
    Checked, LEASE, Outage, Script, World, capacity, job_name, node_name, node_record, retried,
};
use crate::time::Timestamp;

const GIVEN_UP: u64 = LEASE.lease_ms + LEASE.margin_ms;

fn two() -> World {
    let nodes = ["a", "b"].map(|name| node_record(name, "local", capacity(2, 1_000, 0)));
    let mut world = World::new(LEASE, &["local"], &nodes);
    world.advance(300).unwrap();
    world
}

fn submit(world: &mut World, name: &str, run_ms: u64) -> crate::id::JobName {
    let name = job_name(name);
    world.submit(&name, retried(1), Script::succeeds(run_ms));
    world.advance(150).unwrap();
    name
}

#[test]
fn a_job_that_runs_in_the_backup_and_on_its_node_goes_on() {
    let mut world = two();
    let job = submit(&mut world, "job", 3_000);
    let backup = world.backup();
    let lost = submit(&mut world, "lost", 10_000);
    world.restore(backup, 100);
    world.advance(400).unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Running));
    assert_eq!(world.store.status(&lost), None);
    assert!(world.processes(&lost).is_empty(), "its node was told to end it");
    world.finish().unwrap();
    assert_eq!((world.store.status(&job), world.starts(&job)), (Some(JobStatus::Completed), 1));
}

#[test]
fn a_job_that_waits_in_the_backup_and_runs_on_a_silent_node_waits_for_that() {
    let mut world = two();
    for node in ["a", "b"] {
        world.drain(&node_name(node), None);
    }
    let job = submit(&mut world, "job", 100_000);
    let backup = world.backup();
    world.resume(&node_name("a"));
    world.advance(200).unwrap();
    assert_eq!(world.processes(&job).len(), 1);
    // Nobody can tell the new daemon.
    world.strike(&node_name("a"), Outage::Cut, 3 * GIVEN_UP);
    world.restore(backup, 10);
    world.advance(100).unwrap();
    world.resume(&node_name("b"));
    world.advance(GIVEN_UP - 200).unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Queued));
    let live = world.live().unwrap();
    let reason = live.wait_reason(live.job(&job).unwrap()).unwrap().to_string();
    assert!(reason.contains("restored from a backup"), "{reason}");
    world.advance(400).unwrap();
    assert_eq!(world.processes(&job)[0].0, node_name("b"));
    assert!(!world.live().unwrap().is_held() && !world.store.restored.holds);
}

#[test]
fn what_was_being_given_out_in_the_backup_is_not_given_out_again() {
    let mut world = two();
    let job = job_name("job");
    // Decided and written, and in the backup; the node hears of it afterwards.
    world.submit(&job, retried(1), Script::succeeds(200));
    world.strike(&node_name("a"), Outage::CannotSpeak, 120);
    world.advance(60).unwrap();
    let backup = world.backup();
    world.advance(1_500).unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Completed));
    let before = world.starts(&job);
    world.restore(backup, 10);
    assert_eq!(world.store.status(&job), Some(JobStatus::Starting));
    world.advance(400).unwrap();
    assert_eq!(world.starts(&job), before, "its first attempt is over");
    world.finish().unwrap();
    assert_eq!(world.starts(&job), before + 1, "nothing in the backup says that it was completed");
}

#[test]
fn a_backup_that_is_restored_again_gives_out_other_numbers() {
    let mut world = two();
    let backup = world.backup();
    let mut given = Vec::new();
    for round in 0..3 {
        world.restore(backup.clone(), 10);
        world.advance(GIVEN_UP + 500).unwrap();
        submit(&mut world, &format!("job-{round}"), 100);
        given.push(world.store.counters.epoch);
    }
    assert!(given.is_sorted_by(|one, next| one < next), "{given:?}");
    world.finish().unwrap();
}

#[test]
fn what_ran_after_a_restore_holds_jobs_back_after_the_next_one() {
    let mut world = two();
    let backup = world.backup();
    world.restore(backup.clone(), 10);
    world.advance(GIVEN_UP + 500).unwrap();
    let lost = submit(&mut world, "lost", 100_000);
    assert_eq!(world.processes(&lost).len(), 1);
    // Its node comes late, and so does the end of its lease.
    let node = world.processes(&lost)[0].0.clone();
    world.strike(&node, Outage::Cut, 300);
    world.restore(backup, 10);
    world.advance(GIVEN_UP + 100).unwrap();
    assert!(world.live().unwrap().is_held(), "counted anew from when the node came with it");
    world.finish().unwrap();
}

#[test]
fn numbers_that_are_left_out_grow_with_the_clock_and_however_it_is() {
    let at = |ms| Timestamp::from_millis(ms);
    let now = 1_800_000_000_000;
    let first = Restored::left_out(7, at(now));
    assert!(Restored::left_out(7, at(now + 1)) > first + 1_000);
    // A backup of a restored workspace, twice, within days.
    let later = [1, 2].map(|days| Restored::left_out(first + 50, at(now + days * 86_400_000)));
    assert!(later[1] > later[0] + 1_000 && later[0] > first + 1_000);
    for wrong in [-1, 0, 1, now - 1] {
        assert!(Restored::left_out(first, at(wrong)) > first + 1_000);
    }
    assert!(Restored::left_out(first, at(now + 220 * 365 * 86_400_000)) < 1 << 53);
}

fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let leased = op().prop_map(|op| match op {
        // A node goes on with these for as long as it hears nothing, which no time limits.
        Op::Submit { job, demand, compute, retry, script, .. } => {
            Op::Submit { job, demand, compute, retry, keep: false, script }
        }
        op => op,
    });
    proptest::collection::vec(leased, 1..most)
}

proptest! {
    #![proptest_config(super::cases(60))]

    #[test]
    fn promises_hold_across_a_restore(
        before in ops(30),
        lost in ops(30),
        after in ops(30),
        again in proptest::option::of(ops(30)),
        away in prop_oneof![Just(0_u64), Just(200), Just(2_000)],
    ) {
        let mut world = world();
        let mut all = || -> Checked {
            world.advance(300)?;
            let apply_all = |world: &mut World, ops: &[Op]| -> Checked {
                ops.iter().try_for_each(|op| apply(world, op.clone()))
            };
            apply_all(&mut world, &before)?;
            let backup = world.backup();
            apply_all(&mut world, &lost)?;
            world.restore(backup.clone(), away);
            apply_all(&mut world, &after)?;
            if let Some(again) = &again {
                world.restore(backup, away);
                apply_all(&mut world, again)?;
            }
            // Nobody waits for what a node ends by itself that the workspace does not know of.
            world.heal();
            world.advance(2 * GIVEN_UP)?;
            world.finish()
        };
        if let Err(violation) = all() {
            prop_assert!(false, "{}", violation);
        }
    }
}
