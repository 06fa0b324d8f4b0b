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
        live.node_keeps(&node_name(node), vec![], &BTreeMap::new(), &mut out);
    }
    let (name, principal) = (job_name("sad"), principal("ana"));
    let spec = Arc::new(command_job(demand(1, 0, 0)));
    live.submit(Submission { name: name.clone(), spec, principal, manages: false }, NOW, &mut out)
        .unwrap();
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

/// The next attempt of the same job.
fn after(key: &AttemptKey) -> AttemptKey {
    AttemptKey { epoch: key.epoch.next(), attempt: key.attempt.next(), ..key.clone() }
}

/// The node says that it keeps this, and there is this job, or none; what it is told to let go of.
fn keeps(live: &mut Live, node: &str, kept: &[Sandbox], job: Option<&Job>) -> Vec<AttemptKey> {
    let mut out = Decisions::default();
    let jobs = [(job_name("sad"), job.cloned())].into();
    live.node_keeps(&node_name(node), kept.to_vec(), &jobs, &mut out);
    released(&out, node)
}

fn released(out: &Decisions, of: &str) -> Vec<AttemptKey> {
    let of_node = |effect: &Effect| match effect {
        Effect::Release { node, key } if node.as_str() == of => Some(key.clone()),
        _ => None,
    };
    out.effects.iter().filter_map(of_node).collect()
}

fn joins(live: &mut Live, node: &str) {
    let record = node_record(node, "local", capacity(1, 1_000, 0));
    live.node_joined(record, vec![], NOW, &mut Decisions::default());
}

fn release(live: &mut Live, job: &Job) -> Result<(Vec<(NodeName, Sandbox)>, Decisions), String> {
    let mut out = Decisions::default();
    match live.release(job, principal("ben"), NOW, &mut out) {
        Ok(gone) => Ok((gone, out)),
        Err(refusal) => {
            assert!(out.effects.is_empty() && out.events.is_empty(), "{out:?}");
            Err(refusal.to_string())
        }
    }
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
    let newest = after(&key);
    keeps(&mut live, "a", &[kept(&key, UNTIL)], Some(&job));
    keeps(&mut live, "b", &[kept(&newest, UNTIL)], Some(&job));
    let (entered, events) = debug(&mut live, &job, 0).unwrap();
    assert_eq!(entered, Entered { node: node_name("b"), key: newest.clone() });
    assert_eq!(events[0].kind.message(), "ran in what the job left: ls");
    assert_eq!((events[0].principal.as_str(), events[0].status), ("ben", job.status()));
    assert!(debug(&mut live, &job, 1).unwrap_err().contains("it has 1"));
    // A node that is away keeps it all the same, and is said to be.
    live.node_left(&node_name("b"), NOW);
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains("its node 'b' does not answer"), "{why}");
    assert_eq!(live.sandboxes(&job, NOW.wall), [(node_name("b"), kept(&newest, UNTIL))]);
    // What is over is not shown, and a node says all that it keeps.
    keeps(&mut live, "b", &[kept(&newest, NOW.wall)], Some(&job));
    keeps(&mut live, "a", &[], Some(&job));
    assert!(live.sandboxes(&job, NOW.wall).is_empty());
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
    let (key, job) = ends(&mut live, &name, 3);
    let newest = after(&key);
    keeps(&mut live, "a", &[kept(&key, UNTIL)], Some(&job));
    keeps(&mut live, "b", &[kept(&newest, UNTIL)], Some(&job));
    live.node_left(&node_name("b"), NOW);
    let why = release(&mut live, &job).unwrap_err();
    assert!(why.contains("its node 'b' does not answer"), "{why}");
    joins(&mut live, "b");
    let (gone, out) = release(&mut live, &job).unwrap();
    assert_eq!(gone, [(node_name("b"), kept(&newest, UNTIL))]);
    assert_eq!((released(&out, "a"), released(&out, "b")), (vec![key], vec![newest.clone()]));
    let [event] = out.events.as_slice() else { panic!("{out:?}") };
    assert_eq!((event.kind.name(), event.principal.as_str()), ("Released", "ben"));
    assert_eq!((event.attempt, event.status), (newest.attempt, job.status()));
    // There is nothing to let go of any more, which leaves no trace.
    let (gone, out) = release(&mut live, &job).unwrap();
    assert!(gone.is_empty() && out.effects.is_empty() && out.events.is_empty());
}

#[test]
fn what_is_kept_of_a_deleted_job_goes_now_or_when_its_node_is_back() {
    let (mut live, name) = live();
    let (key, job) = ends(&mut live, &name, 3);
    for node in ["a", "b"] {
        keeps(&mut live, node, &[kept(&key, UNTIL)], Some(&job));
    }
    live.node_left(&node_name("b"), NOW);
    let mut out = Decisions::default();
    live.let_go(&name, &mut out);
    assert_eq!(released(&out, "a"), std::slice::from_ref(&key));
    assert!(live.sandboxes(&job, NOW.wall).is_empty());
    // What it was told while it was away it has not heard.
    joins(&mut live, "b");
    assert_eq!(keeps(&mut live, "b", &[kept(&key, UNTIL)], None), std::slice::from_ref(&key));
    assert!(live.sandboxes(&job, NOW.wall).is_empty());
    // Where it cannot be said whether there is the job, it stays.
    let mut out = Decisions::default();
    live.node_keeps(&node_name("b"), vec![kept(&key, UNTIL)], &BTreeMap::new(), &mut out);
    assert!(out.effects.is_empty());
    assert_eq!(live.sandboxes(&job, NOW.wall), [(node_name("b"), kept(&key, UNTIL))]);
}

#[test]
fn a_job_of_the_same_name_opens_and_ends_nothing_of_a_deleted_one() {
    let (mut live, name) = live();
    let (anas, _) = ends(&mut live, &name, 3);
    let mut out = Decisions::default();
    live.let_go(&name, &mut out);
    let (spec, principal) = (Arc::new(command_job(demand(1, 0, 0))), principal("ben"));
    live.submit(Submission { name: name.clone(), spec, principal, manages: false }, NOW, &mut out)
        .unwrap();
    live.schedule(NOW, &mut out);
    let (bens, job) = ends(&mut live, &name, 3);
    assert!(bens.epoch > anas.epoch && !job.has_made(&anas) && job.has_made(&bens));
    // A node that was away has both; only what is of the job that there is can be entered.
    let told = keeps(&mut live, "a", &[kept(&anas, UNTIL)], Some(&job));
    assert_eq!(told, std::slice::from_ref(&anas));
    debug(&mut live, &job, 0).unwrap_err();
    keeps(&mut live, "a", &[kept(&anas, UNTIL), kept(&bens, UNTIL)], Some(&job));
    assert_eq!(debug(&mut live, &job, 0).unwrap().0.key, bens);
    // Not even if the daemon takes it for kept.
    live.node_keeps(
        &node_name("a"),
        vec![kept(&anas, UNTIL)],
        &BTreeMap::new(),
        &mut Decisions::default(),
    );
    assert!(live.sandboxes(&job, NOW.wall).is_empty());
    debug(&mut live, &job, 0).unwrap_err();
    assert!(release(&mut live, &job).unwrap().0.is_empty());
}

#[test]
fn what_a_node_keeps_is_not_known_before_it_is_back_after_a_restart() {
    let (mut live, name) = live();
    let (key, job) = ends(&mut live, &name, 3);
    keeps(&mut live, "a", &[kept(&key, UNTIL)], Some(&job));
    let nodes: Vec<_> = live.nodes().map(|node| node.record.clone()).collect();
    let local = compute_name("local");
    let mut live = Live::new([local.clone()], local, principal("daemon"), LEASE, live.counters());
    live.recover(nodes, vec![], NOW.mono);
    let away = "its node 'a' does not answer";
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains(away), "{why}");
    let why = release(&mut live, &job).unwrap_err();
    assert!(why.contains(away), "{why}");
    let mut none = job.clone();
    Arc::make_mut(&mut none.spec).keep_failed = Some(0);
    let why = debug(&mut live, &none, 0).unwrap_err();
    assert!(why.contains("nothing is kept"), "{why}");
    joins(&mut live, "a");
    keeps(&mut live, "a", &[kept(&key, UNTIL)], Some(&job));
    assert_eq!(debug(&mut live, &job, 0).unwrap().0.key, key);
    assert_eq!(release(&mut live, &job).unwrap().0.len(), 1);
    // A node that said so before it went away keeps nothing.
    live.node_left(&node_name("a"), NOW);
    let why = debug(&mut live, &job, 0).unwrap_err();
    assert!(why.contains("its time is over"), "{why}");
}
