//! Jobs on several nodes: placed at once, judged by the first member that fails.

mod heads;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ended;
use crate::id::{JobName, NodeName, Principal};
use crate::job::{
    Active, AttemptKey, Cause, Ended, Failure, Job, JobStatus, Outcome, Progress, Report, State,
    Tries,
};
use crate::live::{Counters, Decisions, Effect, Live, Refusal, Submission};
use crate::node::{Drain, Mono, Now};
use crate::resource::Demand;
use crate::spec::{CommandJob, Distribution, Retry};
use crate::testkit::{
    LEASE, Outage, Script, World, capacity, command_job, compute_name, job_name, node_name,
    node_record, principal, sanity_check,
};
use crate::time::Timestamp;

/// A job on `members` nodes.
fn gang(members: u32) -> CommandJob {
    let mut spec = command_job(Demand::DEFAULT);
    spec.resources.instance_count = members;
    spec
}

/// A daemon that hears from nodes n0, n1, … of one CPU each, and what it has decided so far.
struct Case {
    live: Live,
    at: i64,
    out: Decisions,
}

impl Case {
    fn new(nodes: usize) -> Self {
        let mut case =
            Self { live: fresh(Counters::default()), at: 1_000, out: Decisions::default() };
        for number in 0..nodes {
            case.joins(number, Vec::new());
        }
        case
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::from_millis(self.at), mono: Mono(self.at as u64) }
    }

    fn joins(&mut self, number: usize, reports: Vec<Report>) {
        let mut record = node_record(&format!("n{number}"), "local", capacity(1, 1_000, 0));
        record.address = Some(format!("10.0.0.{number}"));
        let now = self.now();
        self.live.node_joined(record, reports, now, &mut self.out);
    }

    fn submit(&mut self, spec: CommandJob) -> Result<JobName, Refusal> {
        let name = job_name(&format!("job{}", self.live.counters().seq.0));
        let principal = principal("ana");
        let submission =
            Submission { name: name.clone(), spec: Arc::new(spec), principal, manages: false };
        let now = self.now();
        self.live.submit(submission, now, &mut self.out)?;
        self.schedule();
        Ok(name)
    }

    fn schedule(&mut self) {
        let now = self.now();
        self.live.schedule(now, &mut self.out);
        sanity_check(&self.live).unwrap();
    }

    fn job(&self, name: &JobName) -> &Job {
        self.live.job(name).or(self.out.changed.get(name)).unwrap()
    }

    fn active(&self, name: &JobName) -> &Active {
        self.job(name).active().unwrap_or_else(|| panic!("{:?}", self.job(name).state))
    }

    fn key(&self, name: &JobName) -> AttemptKey {
        self.job(name).attempt_key().unwrap()
    }

    fn nodes(&self, name: &JobName) -> Vec<NodeName> {
        self.active(name).members().map(|member| member.node.clone()).collect()
    }

    fn says(&mut self, node: &NodeName, key: &AttemptKey, progress: Progress) {
        self.at += 10;
        let (now, key) = (self.now(), key.clone());
        self.live.report(node, Report { key, progress }, now, &mut self.out);
        sanity_check(&self.live).unwrap();
    }

    fn runs(&mut self, node: &NodeName, key: &AttemptKey) {
        let since = Timestamp::from_millis(self.at);
        self.says(node, key, Progress::Running { since, idle_since: None });
    }

    fn exits(&mut self, node: &NodeName, key: &AttemptKey, code: i32) {
        self.says(node, key, Progress::Ended(Box::new(ended(code))));
    }

    /// Who was asked to stop since the last call, and why.
    fn stopped(&mut self) -> Vec<(NodeName, String)> {
        let effects = std::mem::take(&mut self.out.effects);
        let stops = effects.into_iter().filter_map(|effect| match effect {
            Effect::Stop { node, reason, .. } => Some((node, reason)),
            _ => None,
        });
        stops.collect()
    }

    /// What the scheduler has reserved on a node, in thousandths of a CPU.
    fn held(&self, node: &NodeName) -> u64 {
        let pool = self.live.sched().pool(&compute_name("local")).unwrap();
        let (ledger, _) = pool.node(node).unwrap();
        1_000 - ledger.free_cpu()
    }

    fn over(&self, name: &JobName) -> &Ended {
        self.job(name).ended().unwrap_or_else(|| panic!("{:?}", self.job(name).state))
    }

    fn failure(&self, name: &JobName) -> &Failure {
        match &self.over(name).outcome {
            Outcome::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }
}

fn fresh(counters: Counters) -> Live {
    let local = compute_name("local");
    let daemon: Principal = principal("daemon");
    Live::new([local.clone()], local, daemon, LEASE, counters)
}

#[test]
fn all_members_are_assigned_at_once_with_rank_and_addresses() {
    let mut case = Case::new(3);
    let job = case.submit(gang(3)).unwrap();
    let nodes = case.nodes(&job);
    let assigned: Vec<_> = case
        .out
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Assign { node, rank, addresses, key, .. } => {
                Some((node.clone(), *rank, addresses.clone(), key.clone()))
            }
            _ => None,
        })
        .collect();
    let addresses: Vec<String> =
        nodes.iter().map(|node| node.as_str().replace('n', "10.0.0.")).collect();
    let expected: Vec<_> = (0..)
        .zip(&nodes)
        .map(|(rank, node)| (node.clone(), rank, addresses.clone(), case.key(&job)))
        .collect();
    assert_eq!(assigned, expected);
    assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn nothing_is_held_while_only_part_of_the_nodes_is_free() {
    let mut case = Case::new(3);
    let one = case.submit(gang(1)).unwrap();
    let all = case.submit(gang(3)).unwrap();
    assert_eq!(case.job(&all).status(), JobStatus::Queued);
    let busy = case.nodes(&one)[0].clone();
    for number in 0..3 {
        let node = node_name(&format!("n{number}"));
        assert_eq!(case.held(&node), if node == busy { 1_000 } else { 0 });
    }
    let key = case.key(&one);
    case.exits(&busy, &key, 0);
    case.schedule();
    assert_eq!(case.nodes(&all).len(), 3);
}

#[test]
fn more_nodes_than_there_can_be_are_refused() {
    let mut case = Case::new(2);
    let said = case.submit(gang(3)).unwrap_err().to_string();
    for part in ["3 nodes", "'local'", "2", "resources.instance_count"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Nobody knows yet what a compute without nodes will have.
    case = Case::new(0);
    case.submit(gang(3)).unwrap();
}

#[test]
fn a_job_is_as_far_as_its_slowest_member_and_over_with_the_last() {
    let mut case = Case::new(2);
    let job = case.submit(gang(2)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.runs(&nodes[1], &key);
    assert_eq!(case.job(&job).status(), JobStatus::Starting);
    case.runs(&nodes[0], &key);
    assert_eq!(case.job(&job).status(), JobStatus::Running);
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.job(&job).status(), JobStatus::Running);
    assert_eq!((case.held(&nodes[0]), case.held(&nodes[1])), (0, 1_000));
    assert_eq!(case.stopped(), []);
    // Said twice, it counts once.
    case.exits(&nodes[0], &key, 0);
    case.exits(&nodes[1], &key, 0);
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
    assert_eq!(case.over(&job).left.nodes().cloned().collect::<Vec<_>>(), nodes);
}

#[test]
fn the_first_member_that_fails_ends_the_others_and_is_named() {
    let mut case = Case::new(3);
    let job = case.submit(gang(3)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    for node in &nodes {
        case.runs(node, &key);
    }
    case.stopped();
    case.exits(&nodes[2], &key, 3);
    let said = format!("member 2 on node {} failed: the command ended with exit code 3", nodes[2]);
    let stopped: Vec<_> = nodes[..2].iter().map(|node| (node.clone(), said.clone())).collect();
    assert_eq!(case.stopped(), stopped);
    assert_eq!(case.held(&nodes[2]), 0);
    // What the others say then is not why the job failed, and asks nobody again.
    case.exits(&nodes[0], &key, 7);
    assert_eq!(case.stopped(), []);
    let canceled = Failure { cause: Cause::Canceled, message: said.clone() };
    let end = crate::job::AttemptEnd { problem: Some(canceled), ..ended(143) };
    case.says(&nodes[1], &key, Progress::Ended(Box::new(end)));
    assert_eq!(case.failure(&job), &Failure { cause: Cause::UserError, message: said });
    let code = case.over(&job).left.decisive_exit();
    assert_eq!(code, Some(crate::job::Exit::Code(3)), "of the one that failed, not of rank 0");
}

/// A job that waits for its nodes does not wait for one whose return would change nothing.
#[test]
fn a_gang_that_has_failed_for_good_does_not_wait_for_a_lost_node() {
    for (max_attempts, over) in [(1, true), (2, false)] {
        let mut case = Case::new(2);
        let retry = Retry { max_attempts, backoff: 0, memory_percent: None };
        let on_node_loss = crate::spec::OnNodeLoss::Keep;
        let job = case.submit(CommandJob { retry, on_node_loss, ..gang(2) }).unwrap();
        let (nodes, key) = (case.nodes(&job), case.key(&job));
        nodes.iter().for_each(|node| case.runs(node, &key));
        let now = case.now();
        case.live.node_left(&nodes[0], now);
        case.exits(&nodes[1], &key, 3);
        case.at += i64::try_from(LEASE.lease_ms + LEASE.margin_ms).unwrap() + 1_000;
        let now = case.now();
        case.live.tick(now, &mut case.out);
        // Where a try is left the lost member may yet run, and nothing may start beside it.
        assert_eq!(case.job(&job).ended().is_some(), over, "{max_attempts}");
    }
}

/// Nodes that reach the daemon through tunnels take themselves to be on its machine.
#[test]
fn members_on_several_machines_are_not_told_of_loopback() {
    let mut case = Case::new(0);
    let addresses = |case: &mut Case, hosts: [&str; 2]| {
        for (number, host) in hosts.iter().enumerate() {
            let mut record = node_record(&format!("n{number}"), "local", capacity(1, 1_000, 0));
            record.address = Some("127.0.0.1".to_owned());
            record.hostname = (*host).to_owned();
            let now = case.now();
            case.live.node_joined(record, Vec::new(), now, &mut case.out);
        }
        let job = case.submit(gang(2)).unwrap();
        let effects = std::mem::take(&mut case.out.effects);
        let told = effects.into_iter().find_map(|effect| match effect {
            Effect::Assign { addresses, .. } => Some(addresses),
            _ => None,
        });
        let (nodes, key) = (case.nodes(&job), case.key(&job));
        nodes.iter().for_each(|node| case.exits(node, &key, 0));
        told.unwrap()
    };
    assert_eq!(addresses(&mut case, ["one", "two"]), ["one", "two"]);
    assert_eq!(addresses(&mut case, ["one", "one"]), ["127.0.0.1", "127.0.0.1"]);
}

/// A node that is drained while the others stop makes no other failure of it: the job has had its try.
#[test]
fn a_gang_that_has_failed_is_not_asked_to_make_way() {
    let mut case = Case::new(2);
    let job = case.submit(gang(2)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[1], &key, 3);
    let now = case.now();
    let (by, reason) = (principal("root"), "repair".to_owned());
    let drain = Drain { by, reason, since: now.wall, deadline: Some(now.wall) };
    case.live.drain(&nodes[0], drain, false, now, &mut case.out).unwrap();
    case.exits(&nodes[0], &key, 143);
    assert_eq!(case.failure(&job).cause, Cause::UserError);
    assert_eq!(case.job(&job).tries.evicted, 0);
}

#[test]
fn a_gang_that_failed_is_tried_again_as_a_whole() {
    let mut case = Case::new(2);
    let retry = Retry { max_attempts: 2, backoff: 0, memory_percent: None };
    let job = case.submit(CommandJob { retry, ..gang(2) }).unwrap();
    let (nodes, first) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[1], &first, 1);
    case.exits(&nodes[0], &first, 143);
    assert!(matches!(case.job(&job).state, State::Queued(_)));
    assert_eq!(case.job(&job).tries.failed, 1);
    case.schedule();
    let (nodes, second) = (case.nodes(&job), case.key(&job));
    assert!(second.epoch > first.epoch);
    // A late word of the attempt before changes nothing.
    let before = case.job(&job).clone();
    case.exits(&nodes[1], &first, 9);
    assert_eq!(case.job(&job), &before);
    case.exits(&nodes[1], &second, 0);
    case.exits(&nodes[0], &second, 0);
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
}

#[test]
fn a_word_of_a_node_that_is_no_member_changes_nothing() {
    let mut case = Case::new(3);
    let job = case.submit(gang(2)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    let stranger =
        (0..3).map(|n| node_name(&format!("n{n}"))).find(|n| !nodes.contains(n)).unwrap();
    let before = case.job(&job).clone();
    case.exits(&stranger, &key, 1);
    assert_eq!(case.job(&job), &before);
}

#[test]
fn a_cancellation_reaches_every_member_that_is_not_over() {
    let mut case = Case::new(3);
    let job = case.submit(gang(3)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[1], &key, 0);
    case.stopped();
    let now = case.now();
    case.live.cancel(&job, principal("ana"), "enough", now, &mut case.out).unwrap();
    let enough = |rank: usize| (nodes[rank].clone(), "enough".to_owned());
    assert_eq!(case.stopped(), [enough(0), enough(2)]);
    case.exits(&nodes[0], &key, 143);
    assert_eq!(case.job(&job).status(), JobStatus::CancelRequested);
    case.exits(&nodes[2], &key, 143);
    assert!(matches!(case.over(&job).outcome, Outcome::Canceled(_)));
}

#[test]
fn a_daemon_that_comes_back_in_the_middle_knows_who_is_over() {
    let mut case = Case::new(3);
    let job = case.submit(gang(3)).unwrap();
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    for node in &nodes {
        case.runs(node, &key);
    }
    case.exits(&nodes[0], &key, 3);
    let kept = serde_json::to_string(case.job(&job)).unwrap();
    let records: Vec<_> = case.live.nodes().map(|node| node.record.clone()).collect();
    let mut live = fresh(case.live.counters());
    live.recover(records, vec![serde_json::from_str(&kept).unwrap()], Mono(0));
    case.live = live;
    case.out = Decisions::default();
    sanity_check(&case.live).unwrap();
    assert_eq!(case.held(&nodes[0]), 0);
    assert_eq!(case.held(&nodes[1]), 1_000);
    // A member that had not heard of the stop hears of it when it is back.
    let number: usize = nodes[1].as_str()[1..].parse().unwrap();
    let since = Timestamp::from_millis(case.at);
    let report =
        Report { key: key.clone(), progress: Progress::Running { since, idle_since: None } };
    case.joins(number, vec![report]);
    let stopped = case.stopped();
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!(stopped[0].0, nodes[1]);
    case.exits(&nodes[1], &key, 143);
    case.exits(&nodes[2], &key, 143);
    assert!(case.failure(&job).message.contains("member 0 on node"), "{:?}", case.failure(&job));
}

/// Rows that were written before an attempt had members.
#[test]
fn an_attempt_of_one_node_reads_and_writes_as_it_always_did() {
    let mut case = Case::new(1);
    let job = case.submit(gang(1)).unwrap();
    let written = serde_json::to_value(case.active(&job)).unwrap();
    let mut keys: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["assigned_at", "attempt", "epoch", "node", "phase", "reservation"]);
    let old = serde_json::json!({
        "attempt": 2, "epoch": 7, "node": "n0", "assigned_at": 5, "phase": "running",
        "reservation": written["reservation"], "started_at": 6, "unreachable": true,
    });
    let read: Active = serde_json::from_value(old).unwrap();
    assert_eq!(read.members().count(), 1);
    assert!(read.is_unreachable() && !read.is_gang());
    assert_eq!(read.started_at(), Some(Timestamp::from_millis(6)));
}

#[test]
fn a_lost_node_ends_the_gang_and_counts_once() {
    let nodes: Vec<_> =
        ["a", "b", "c"].map(|name| node_record(name, "local", capacity(1, 1_000, 0))).into();
    let mut world = World::new(LEASE, &["local"], &nodes);
    world.advance(300).unwrap();
    let job = job_name("job");
    world.submit(&job, Arc::new(gang(2)), Script::succeeds(10_000));
    world.advance(150).unwrap();
    assert_eq!(world.processes(&job).len(), 2);
    let lost = world.processes(&job)[0].0.clone();
    world.strike(&lost, Outage::Cut, 20_000);
    while world.store.story(&job).iter().filter(|kind| **kind == "Requeued").count() == 0 {
        world.advance(50).unwrap();
    }
    assert!(world.processes(&job).is_empty(), "a member outlived its attempt");
    assert_eq!(world.store.jobs[&job].tries.lost, 1);
    world.finish().unwrap();
    assert_eq!(world.store.status(&job), Some(JobStatus::Completed));
    assert_eq!(world.starts(&job), 2);
}

/// It would give the job their names.
#[test]
fn a_job_with_secrets_goes_to_no_agent_that_does_not_know_them() {
    let mut case = Case::new(1);
    let mut old = node_record("n0", "local", capacity(1, 1_000, 0));
    old.facts.clear();
    let now = case.now();
    case.live.node_joined(old, Vec::new(), now, &mut case.out);
    let mut spec = gang(1);
    spec.environment_variables.insert("A".to_owned(), "azureml:secrets/a:1".to_owned());
    let job = case.submit(spec).unwrap();
    for _ in 0..Tries::MAX_UNSTARTED {
        case.at += 3_600_000;
        case.schedule();
    }
    let failure = case.failure(&job);
    let reason = "the agent of node n0 is too old to give jobs secrets";
    assert!(failure.message.contains(reason), "{}", failure.message);
    assert!(!case.out.effects.iter().any(|effect| matches!(effect, Effect::Assign { .. })));
}

/// It would start the job's processes on each of its nodes by itself.
#[test]
fn what_mpirun_starts_over_several_nodes_goes_to_no_agent_that_does_not_know_how() {
    let mpi = Distribution::Mpi { process_count_per_instance: 1 };
    let mut case = Case::new(1);
    let mut old = node_record("n1", "local", capacity(1, 1_000, 0));
    old.facts.clear();
    let now = case.now();
    case.live.node_joined(old.clone(), Vec::new(), now, &mut case.out);
    let job = case.submit(CommandJob { distribution: Some(mpi.clone()), ..gang(2) }).unwrap();
    for _ in 0..Tries::MAX_UNSTARTED {
        // Tried again: the agent may be a newer one by then.
        case.at += 3_600_000;
        case.schedule();
    }
    let failure = case.failure(&job);
    let reason = "the agent of node n1 is too old to start 'mpirun' over several nodes";
    assert!(failure.message.contains(reason), "{}", failure.message);
    let assigned = |effect: &Effect| matches!(effect, Effect::Assign { .. });
    assert!(!case.out.effects.iter().any(assigned), "{:?}", case.out.effects);
    assert_eq!([case.held(&node_name("n0")), case.held(&node_name("n1"))], [0, 0]);
    // Alone it does as it always did, and after an upgrade it takes part.
    for members in [1, 2] {
        let spec = CommandJob { distribution: Some(mpi.clone()), ..gang(members) };
        let job = case.submit(spec).unwrap();
        assert_eq!(case.nodes(&job).len(), members as usize);
        case.live.cancel(&job, principal("ana"), "", case.now(), &mut case.out).unwrap();
        for node in case.nodes(&job) {
            let key = case.key(&job);
            case.exits(&node, &key, 1);
        }
        let new = node_record("n1", "local", capacity(1, 1_000, 0));
        let now = case.now();
        case.live.node_joined(new, Vec::new(), now, &mut case.out);
    }
}
