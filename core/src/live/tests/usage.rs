//! Fair share after a restart.

use super::super::*;
use crate::testkit::{
    LEASE, capacity, command_job, compute_name, demand, job_name, node_record, principal,
};
use crate::time::Timestamp;

const HOUR: i64 = 3_600_000;

/// Who is first in line after both have asked for the whole node, ada first.
fn first(past: Vec<PastUse>) -> String {
    let local = compute_name("local");
    let now = Now { wall: Timestamp::from_millis(100 * HOUR), mono: Mono(0) };
    let mut live =
        Live::new([local.clone()], local, principal("daemon"), LEASE, Counters::default());
    live.recover(vec![node_record("a", "local", capacity(4, 100, 0))], Vec::new(), now.mono);
    live.recover_usage(past);
    let mut out = Decisions::default();
    for user in ["ada", "bob"] {
        let (name, spec) = (job_name(user), Arc::new(command_job(demand(4, 0, 0))));
        let submission = Submission { name, spec, principal: principal(user), manages: false };
        live.submit(submission, now, &mut out).unwrap();
    }
    live.node_joined(node_record("a", "local", capacity(4, 100, 0)), vec![], now, &mut out);
    live.schedule(now, &mut out);
    let running = live.jobs().find(|job| job.active().is_some()).unwrap();
    running.name.to_string()
}

fn used(compute: &str, user: &str, from_hour: i64, to_hour: i64) -> PastUse {
    PastUse {
        compute: compute_name(compute),
        user: principal(user),
        request: Request::one(demand(4, 0, 0)),
        started: Timestamp::from_millis(from_hour * HOUR),
        ended: Timestamp::from_millis(to_hour * HOUR),
    }
}

#[test]
fn who_used_much_before_the_restart_comes_after_who_did_not() {
    assert_eq!(first(vec![]), "ada");
    assert_eq!(first(vec![used("local", "ada", 90, 99)]), "bob");
    assert_eq!(first(vec![used("local", "bob", 95, 99), used("local", "ada", 90, 92)]), "ada");
    // Of what is not known, and of no time at all.
    assert_eq!(first(vec![used("gone", "ada", 90, 99), used("local", "ada", 99, 99)]), "ada");
}
