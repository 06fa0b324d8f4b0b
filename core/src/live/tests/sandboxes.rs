//! What nodes keep of attempts that failed.

use super::super::*;
use super::ended;
use crate::job::{Progress, Report};
use crate::testkit::{
    LEASE, capacity, command_job, compute_name, demand, job_name, node_name, node_record, principal,
};

const NOW: Now = Now { wall: Timestamp::from_millis(1_000), mono: Mono(1_000) };
const UNTIL: Timestamp = Timestamp::from_millis(60_000);

fn live() -> (Live, JobName) {
    let local = compute_name("local");
    let mut live =
        Live::new([local.clone()], local, principal("daemon"), LEASE, Counters::default());
    let mut out = Decisions::default();
    for node in ["a", "b"] {
        live.node_joined(node_record(node, "local", capacity(1, 1_000, 0)), vec![], NOW, &mut out);
    }
    let (name, principal) = (job_name("sad"), principal("ana"));
    let spec = Arc::new(command_job(demand(1, 0, 0)));
    live.submit(Submission { name: name.clone(), spec, principal }, NOW, &mut out).unwrap();
    live.schedule(NOW, &mut out);
    (live, name)
}

/// The attempt ends with this code; the job as it is then.
fn ends(live: &mut Live, name: &JobName, code: i32) -> (AttemptKey, Job) {
    let job = live.job(name).unwrap();
    let (key, node) = (job.attempt_key().unwrap(), job.active().unwrap().first.node.clone());
    let mut out = Decisions::default();
    let report = Report { key: key.clone(), progress: Progress::Ended(Box::new(ended(code))) };
    live.report(&node, report, NOW, &mut out);
    let job = out.changed.remove(name).unwrap();
    (key, job)
}

fn debug(live: &mut Live, job: &Job, rank: u32) -> Result<(Entered, Vec<Event>), String> {
    let mut out = Decisions::default();
    let entered = live.debug(job, rank, "ls", principal("ben"), NOW, &mut out);
    assert_eq!(out.events.len(), usize::from(entered.is_ok()), "an event if and only if let in");
    entered.map(|entered| (entered, out.events)).map_err(|refusal| refusal.to_string())
}

fn kept(key: &AttemptKey, until: Timestamp) -> Sandbox {
    Sandbox { key: key.clone(), rank: 0, until }
}

#[test]
fn what_a_failed_attempt_left_is_entered_where_the_newest_is_kept() {
    let (mut live, name) = live();
    let running = live.job(&name).unwrap().clone();
    let why = debug(&mut live, &running, 0).unwrap_err();
    assert!(why.contains("not over; try 'atelier job shell sad'"), "{why}");
    let (key, job) = ends(&mut live, &name, 3);
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains("nothing is kept of job 'sad'") && why.contains("keep_failed"), "{why}");
    let older = AttemptKey { epoch: Epoch(0), ..key.clone() };
    live.node_keeps(&node_name("a"), vec![kept(&older, UNTIL)]);
    live.node_keeps(&node_name("b"), vec![kept(&key, UNTIL)]);
    let (entered, events) = debug(&mut live, &job, 0).unwrap();
    assert_eq!(entered, Entered { node: node_name("b"), key: key.clone() });
    assert_eq!(events[0].kind.message(), "ran in what the job left: ls");
    assert_eq!((events[0].principal.as_str(), events[0].status), ("ben", job.status()));
    assert!(debug(&mut live, &job, 1).unwrap_err().contains("it has 1"));
    // A node that is away keeps it all the same, and is said to be.
    live.node_left(&node_name("b"), NOW);
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains("its node 'b' does not answer"), "{why}");
    assert_eq!(live.sandboxes(&name, NOW.wall), [(node_name("b"), kept(&key, UNTIL))]);
    // What is over is not shown, and a node says all that it keeps.
    live.node_keeps(&node_name("b"), vec![kept(&key, NOW.wall)]);
    live.node_keeps(&node_name("a"), vec![]);
    assert!(live.sandboxes(&name, NOW.wall).is_empty());
}

#[test]
fn only_what_failed_is_kept() {
    let (mut live, name) = live();
    let (_, job) = ends(&mut live, &name, 0);
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains("it completed, and only what failed is kept"), "{why}");
}

#[test]
fn letting_go_reaches_all_nodes_or_none() {
    let (mut live, name) = live();
    let (key, _) = ends(&mut live, &name, 3);
    let older = AttemptKey { epoch: Epoch(0), ..key.clone() };
    live.node_keeps(&node_name("a"), vec![kept(&older, UNTIL)]);
    live.node_keeps(&node_name("b"), vec![kept(&key, UNTIL)]);
    live.node_left(&node_name("b"), NOW);
    let mut out = Decisions::default();
    assert!(live.release(&name, NOW.wall, &mut out).is_err() && out.effects.is_empty());
    let record = node_record("b", "local", capacity(1, 1_000, 0));
    live.node_joined(record, vec![], NOW, &mut out);
    let mut out = Decisions::default();
    let gone = live.release(&name, NOW.wall, &mut out).unwrap();
    assert_eq!(gone, [(node_name("b"), kept(&key, UNTIL))]);
    let told =
        |node: &str, key: &AttemptKey| Effect::Release { node: node_name(node), key: key.clone() };
    assert_eq!(out.effects, [told("a", &older), told("b", &key)]);
    let mut out = Decisions::default();
    assert!(live.release(&name, NOW.wall, &mut out).unwrap().is_empty());
    assert!(out.effects.is_empty());
}
