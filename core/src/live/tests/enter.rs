//! Being let into a job: only where it runs, and never without an event.

use super::super::*;
use crate::job::{Progress, Report};
use crate::testkit::{
    LEASE, capacity, command_job, compute_name, demand, job_name, node_name, node_record, principal,
};

const NOW: Now = Now { wall: Timestamp::from_millis(1_700_000_000_000), mono: Mono(0) };

fn live() -> Live {
    let local = compute_name("local");
    Live::new([local.clone()], local, principal("daemon"), LEASE, Counters::default())
}

/// A job of two members; `nodes` nodes that hold one of them each.
fn gang(live: &mut Live, nodes: usize) -> JobName {
    let mut out = Decisions::default();
    for number in 0..nodes {
        let record = node_record(&format!("n{number}"), "local", capacity(1, 1_000, 0));
        live.node_joined(record, vec![], NOW, &mut out);
    }
    let mut spec = command_job(demand(1, 0, 0));
    spec.resources.instance_count = 2;
    let (name, principal) = (job_name("pair"), principal("ana"));
    live.submit(
        Submission { name: name.clone(), spec: Arc::new(spec), principal, manages: false },
        NOW,
        &mut out,
    )
    .unwrap();
    live.schedule(NOW, &mut out);
    name
}

fn says(live: &mut Live, node: &str, progress: Progress) {
    let key = live.jobs().next().unwrap().attempt_key().unwrap();
    live.report(&node_name(node), Report { key, progress }, NOW, &mut Decisions::default());
}

fn enter(live: &mut Live, rank: u32, what: &Entering) -> Result<(Entered, Vec<Event>), String> {
    let (name, by, mut out) = (job_name("pair"), principal("ben"), Decisions::default());
    let entered = live.enter(&name, rank, what, by, NOW, &mut out);
    assert_eq!(out.events.len(), usize::from(entered.is_ok()), "an event if and only if let in");
    entered.map(|entered| (entered, out.events)).map_err(|refusal| refusal.to_string())
}

#[test]
fn a_member_that_runs_is_entered_and_that_is_written_down() {
    let mut live = live();
    gang(&mut live, 2);
    let running = Progress::Running { since: NOW.wall, idle_since: None };
    says(&mut live, "n1", running.clone());
    let command = Entering::Command("x".repeat(2_000));
    let why = enter(&mut live, 0, &command).unwrap_err();
    assert!(why.contains("has not begun yet; try again once it runs"), "{why}");
    says(&mut live, "n0", Progress::Preparing { step: "inputs".to_owned() });
    let why = enter(&mut live, 0, &command).unwrap_err();
    assert!(why.contains("still preparing it (inputs)"), "{why}");
    // Each member by itself.
    let (entered, events) = enter(&mut live, 1, &command).unwrap();
    assert_eq!(entered.node, node_name("n1"));
    let event = &events[0];
    assert_eq!((event.principal.as_str(), event.attempt.0), ("ben", 1));
    let shown = format!("ran in member 1 of the job: {}", "x".repeat(500));
    assert_eq!(event.kind.message(), shown);
    says(&mut live, "n0", running);
    let (_, events) = enter(&mut live, 0, &Entering::Ports(vec![80, 6006])).unwrap();
    assert_eq!(events[0].kind.message(), "reached from outside in the job: port 80, 6006");
    let (_, events) = enter(&mut live, 0, &Entering::Shell).unwrap();
    assert_eq!(events[0].kind.message(), "a shell was opened in the job");
    says(&mut live, "n0", Progress::Finalizing { exit: None });
    let why = enter(&mut live, 0, &command).unwrap_err();
    assert!(why.contains("its command has ended"), "{why}");
    let why = enter(&mut live, 2, &command).unwrap_err();
    assert_eq!(why, "cannot enter member 2 of job 'pair': it has 2, from 0 to 1");
}

#[test]
fn a_job_that_waits_says_why() {
    let mut live = live();
    let name = gang(&mut live, 0);
    let reason = live.wait_reason(live.job(&name).unwrap()).unwrap().to_string();
    let why = enter(&mut live, 0, &Entering::Shell).unwrap_err();
    assert!(why.contains("still queued") && why.contains(&reason), "{why}");
    let (gone, mut out) = (job_name("gone"), Decisions::default());
    let refused = live.enter(&gone, 0, &Entering::Shell, principal("ben"), NOW, &mut out);
    assert_eq!(refused, Err(Refusal::NoSuchJob(gone)));
}
