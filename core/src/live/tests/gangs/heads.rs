//! Jobs whose command runs in the member of rank 0 alone, which the others serve.

use super::*;
use crate::job::{AttemptEnd, Exit};
use crate::spec::{Distribution, Ray};

/// A job on `members` nodes, of which the first is the head.
fn led(members: u32) -> CommandJob {
    CommandJob { distribution: Some(Distribution::Ray(Ray::default())), ..gang(members) }
}

/// What a member says that was asked to stop and did.
fn stopped(cause: Cause) -> Progress {
    let problem = Some(Failure { cause, message: "told to".to_owned() });
    Progress::Ended(Box::new(AttemptEnd { problem, ..ended(143) }))
}

impl Case {
    /// Such a job, which runs on all of its nodes.
    fn led(members: usize, more: impl Fn(CommandJob) -> CommandJob) -> (Self, JobName) {
        let mut case = Self::new(members);
        let job = case.submit(more(led(members as u32))).unwrap();
        let (nodes, key) = (case.nodes(&job), case.key(&job));
        nodes.iter().for_each(|node| case.runs(node, &key));
        case.stopped();
        (case, job)
    }

    /// The command on the head is over.
    fn head_exits(&mut self, job: &JobName, code: i32) {
        let (node, key) = (self.nodes(job)[0].clone(), self.key(job));
        self.says(&node, &key, Progress::Finalizing { exit: Some(Exit::Code(code)) });
    }
}

fn dismissed(nodes: &[NodeName]) -> Vec<(NodeName, String)> {
    nodes.iter().map(|node| (node.clone(), "the command is over on the head".to_owned())).collect()
}

#[test]
fn when_the_heads_command_is_over_the_others_are_asked_to_stop_and_the_job_is_completed() {
    let (mut case, job) = Case::led(3, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.head_exits(&job, 0);
    assert_eq!(case.stopped(), dismissed(&nodes[1..]));
    // Said twice, it asks once.
    case.head_exits(&job, 0);
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.stopped(), []);
    assert!(case.job(&job).ended().is_none(), "a member is not over");
    case.exits(&nodes[2], &key, 1);
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
    assert_eq!(case.over(&job).left.decisive_exit(), Some(Exit::Code(0)));
}

/// A command that wrote nothing ends without a word before.
#[test]
fn a_head_that_is_over_at_once_dismisses_the_others() {
    let (mut case, job) = Case::led(2, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.stopped(), dismissed(&nodes[1..]));
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
}

#[test]
fn a_head_that_fails_is_named_whoever_is_over_first() {
    for head_first in [true, false] {
        let (mut case, job) = Case::led(2, |spec| spec);
        let (nodes, key) = (case.nodes(&job), case.key(&job));
        case.head_exits(&job, 3);
        assert_eq!(case.stopped(), dismissed(&nodes[1..]));
        if head_first {
            case.exits(&nodes[0], &key, 3);
            assert_eq!(case.stopped(), [], "nobody is asked twice");
            case.says(&nodes[1], &key, stopped(Cause::Canceled));
        } else {
            case.exits(&nodes[1], &key, 1);
            case.exits(&nodes[0], &key, 3);
        }
        let failure = case.failure(&job);
        assert_eq!(failure.cause, Cause::UserError);
        assert!(failure.message.contains("exit code 3"), "{head_first}: {failure:?}");
        assert_eq!(case.over(&job).left.decisive_exit(), Some(Exit::Code(3)));
    }
}

#[test]
fn a_member_that_dies_while_the_head_works_fails_the_attempt() {
    let (mut case, job) = Case::led(3, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[2], &key, 7);
    let said = format!("member 2 on node {} failed: the command ended with exit code 7", nodes[2]);
    let asked: Vec<_> = nodes[..2].iter().map(|node| (node.clone(), said.clone())).collect();
    assert_eq!(case.stopped(), asked);
    // The head's end is a consequence.
    case.head_exits(&job, 0);
    case.says(&nodes[0], &key, stopped(Cause::Canceled));
    assert_eq!(case.stopped(), []);
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    assert_eq!(case.failure(&job), &Failure { cause: Cause::UserError, message: said });
}

/// A daemon that was away hears of the ends in any order.
#[test]
fn a_head_that_was_successful_decides_also_where_that_is_told_last() {
    let (mut case, job) = Case::led(3, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.exits(&nodes[2], &key, 1);
    assert_eq!(case.stopped().len(), 2);
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.stopped(), [], "the other was asked");
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
    assert_eq!(case.over(&job).left.decisive_exit(), Some(Exit::Code(0)));
}

#[test]
fn what_a_member_has_not_stored_is_not_excused_by_the_head() {
    let (mut case, job) = Case::led(2, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.says(&nodes[1], &key, stopped(Cause::OutputFailed));
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.failure(&job).cause, Cause::OutputFailed);
}

/// How its processes end is of no account, what they wrote is.
#[test]
fn a_dismissed_member_that_cannot_store_its_outputs_fails_the_job() {
    for (cause, counts) in [(Cause::OutputFailed, true), (Cause::OutOfMemory, false)] {
        let (mut case, job) = Case::led(2, |spec| spec);
        let (nodes, key) = (case.nodes(&job), case.key(&job));
        case.head_exits(&job, 0);
        case.exits(&nodes[0], &key, 0);
        case.says(&nodes[1], &key, stopped(cause));
        let failed = matches!(&case.over(&job).outcome, Outcome::Failed(why) if why.cause == cause);
        assert_eq!(failed, counts, "{cause:?}");
    }
}

#[test]
fn a_member_that_did_not_hear_of_its_dismissal_hears_of_it_when_it_is_back() {
    let (mut case, job) = Case::led(2, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.head_exits(&job, 0);
    case.stopped();
    let since = Timestamp::from_millis(case.at);
    for (node, asked) in [(&nodes[0], vec![]), (&nodes[1], dismissed(&nodes[1..]))] {
        let number: usize = node.as_str()[1..].parse().unwrap();
        let progress = match asked.is_empty() {
            true => Progress::Finalizing { exit: Some(Exit::Code(0)) },
            false => Progress::Running { since, idle_since: None },
        };
        case.joins(number, vec![Report { key: key.clone(), progress }]);
        assert_eq!(case.stopped(), asked, "{node}");
    }
    // Whoever drains its node now does not send the job back to the queue.
    let now = case.now();
    let (by, reason) = (principal("root"), "repair".to_owned());
    let drain = Drain { by, reason, since: now.wall, deadline: Some(now.wall) };
    case.live.drain(&nodes[1], drain, false, now, &mut case.out).unwrap();
    assert!(case.active(&job).evict.is_none());
    case.exits(&nodes[0], &key, 0);
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    assert_eq!(case.over(&job).outcome, Outcome::Completed);
}

#[test]
fn a_cancellation_before_the_head_is_over_is_one() {
    let (mut case, job) = Case::led(2, |spec| spec);
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    let now = case.now();
    case.live.cancel(&job, principal("ana"), "enough", now, &mut case.out).unwrap();
    case.head_exits(&job, 143);
    case.says(&nodes[0], &key, stopped(Cause::Canceled));
    case.says(&nodes[1], &key, stopped(Cause::Canceled));
    assert!(matches!(case.over(&job).outcome, Outcome::Canceled(_)));
}

#[test]
fn where_the_command_runs_in_every_member_nobody_is_dismissed() {
    let pytorch = Distribution::PyTorch { process_count_per_instance: 1 };
    let (mut case, job) =
        Case::led(2, |spec| CommandJob { distribution: Some(pytorch.clone()), ..spec });
    let (nodes, key) = (case.nodes(&job), case.key(&job));
    case.head_exits(&job, 0);
    case.exits(&nodes[0], &key, 0);
    assert_eq!(case.stopped(), []);
    case.exits(&nodes[1], &key, 1);
    assert!(case.failure(&job).message.contains("member 1"), "{:?}", case.failure(&job));
}

/// On nodes that truly run processes: those of the members that serve end with the head's.
#[test]
fn members_that_serve_end_with_the_head_whoever_is_heard_first() {
    // Whose agent is back only after the other's, if the daemon was away.
    for late in [None, Some(0), Some(1)] {
        let nodes: Vec<_> =
            ["a", "b"].map(|name| node_record(name, "local", capacity(1, 1_000, 0))).into();
        let mut world = World::new(LEASE, &["local"], &nodes);
        world.advance(300).unwrap();
        let job = job_name("job");
        world.submit(&job, Arc::new(led(2)), Script::succeeds(300));
        world.advance(200).unwrap();
        assert_eq!(world.processes(&job).len(), 2);
        if let Some(rank) = late {
            let active = world.live().unwrap().job(&job).unwrap().active().unwrap();
            let node = active.members().nth(rank).unwrap().node.clone();
            world.kill_daemon(400);
            world.strike(&node, Outage::AgentDies, 500);
            world.advance(400).unwrap();
            assert_eq!(world.processes(&job), [], "{late:?}: all is over by itself");
            world.advance(600).unwrap();
        }
        world.finish().unwrap();
        assert_eq!(world.store.status(&job), Some(JobStatus::Completed), "{late:?}");
        assert_eq!((world.starts(&job), world.store.jobs[&job].tries.lost), (1, 0), "{late:?}");
    }
}
