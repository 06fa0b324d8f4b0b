//! What users have used lately, as the daemon finds it when it starts.

use std::time::Instant;

use atelier_core::job::{Ended, Left, Outcome};
use atelier_core::live::PastUse;
use atelier_core::sched::Request;
use rusqlite::Connection;

use super::*;
use crate::store::{jobs, schema, usage};

fn ended(seq: u64, started: Option<i64>, at: i64) -> Job {
    let started_at = started.map(Timestamp::from_millis);
    let left = Left { started_at, ..Left::default() };
    let state =
        State::Ended(Ended { at: Timestamp::from_millis(at), outcome: Outcome::Completed, left });
    Job { state, ..waiting(seq) }
}

fn used(started: i64, ended: i64) -> PastUse {
    PastUse {
        compute: ComputeName::new("local").unwrap(),
        user: who("ana"),
        request: Request::from(&spec("true").resources),
        started: Timestamp::from_millis(started),
        ended: Timestamp::from_millis(ended),
    }
}

fn holding(jobs: impl IntoIterator<Item = Job>) -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrate(&mut conn).unwrap();
    let all = conn.unchecked_transaction().unwrap();
    jobs::write(&all, &accepted(jobs.into_iter().map(|job| (job, None)))).unwrap();
    all.commit().unwrap();
    conn
}

fn since(conn: &Connection, from: i64, most: usize) -> Vec<PastUse> {
    usage::since(conn, Timestamp::from_millis(from), most).unwrap()
}

#[test]
fn what_ran_is_found_and_the_last_to_end_comes_first() {
    let conn = holding([
        waiting(1),
        ended(2, Some(10), 90),
        ended(3, Some(20), 40),
        // Cancelled while it waited: it held nothing.
        ended(4, None, 80),
        // Its node's clock is ahead.
        ended(5, Some(75), 70),
    ]);
    assert_eq!(since(&conn, 0, 9), [used(10, 90), used(70, 70), used(20, 40)]);
    assert_eq!(since(&conn, 0, 2), [used(10, 90), used(70, 70)]);
    assert_eq!(since(&conn, 70, 9), [used(10, 90)]);
}

#[test]
fn it_is_found_by_an_index() {
    let conn = holding([]);
    let plan: Vec<String> = conn
        .prepare(&format!("EXPLAIN QUERY PLAN {}", usage::SINCE))
        .unwrap()
        .query_map([0, 9], |row| row.get("detail"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(plan.len(), 1, "{plan:?}");
    assert!(plan[0].contains("USING INDEX jobs_ended"), "{plan:?}");
}

#[test]
fn soak_a_hundred_thousand_finished_jobs_do_not_hold_up_the_start() {
    let conn = holding((1..=100_000).map(|seq| ended(seq, Some(1), 1 + seq as i64)));
    let begun = Instant::now();
    assert_eq!(since(&conn, 0, usage::MOST).len(), usage::MOST);
    let took = begun.elapsed();
    // A build for tests is some ten times slower than the one that is delivered.
    println!("read in {took:?}");
    assert!(took.as_secs() < 10, "{took:?}");
}
