//! Reports that come twice, too late, in another order or from the wrong node.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::ended;
use crate::id::{AttemptNumber, Epoch, JobName, NodeName};
use crate::job::{AttemptKey, Exit, Job, JobStatus, Progress, Report};
use crate::live::{Counters, Decisions, Effect, Live, Submission};
use crate::node::{Mono, Now};
use crate::resource::Demand;
use crate::spec::{CommandJob, Retry};
use crate::testkit::{
    LEASE, Store, capacity, command_job, compute_name, job_name, node_name, node_record, principal,
    retried, sanity_check,
};
use crate::time::Timestamp;

const START: Now = Now { wall: Timestamp::from_millis(1_000_000), mono: Mono(0) };

/// A daemon without a world around it: time stands still, and every call is one batch.
struct Bare {
    live: Live,
    store: Store,
    now: Now,
}

impl Bare {
    /// With nodes a and b, connected.
    fn new() -> Self {
        let local = compute_name("local");
        let live = Live::new([], local, principal("daemon"), LEASE, Counters::default());
        let mut bare = Self { live, store: Store::default(), now: START };
        bare.join("a", vec![]);
        bare.join("b", vec![]);
        bare
    }

    fn batch(&mut self, facts: impl FnOnce(&mut Live, Now, &mut Decisions)) -> Vec<Effect> {
        let mut out = Decisions::default();
        facts(&mut self.live, self.now, &mut out);
        self.live.tick(self.now, &mut out);
        self.live.schedule(self.now, &mut out);
        self.store.commit(&out, self.live.counters()).unwrap();
        sanity_check(&self.live).unwrap();
        out.effects
    }

    fn join(&mut self, name: &str, reports: Vec<Report>) -> Vec<Effect> {
        let record = node_record(name, "local", capacity(4, 1_000, 0));
        self.batch(|live, now, out| live.node_joined(record, reports, now, out))
    }

    fn submit(&mut self, name: &str, spec: Arc<CommandJob>) -> JobName {
        let name = job_name(name);
        let submission =
            Submission { name: name.clone(), spec, principal: principal("ada"), manages: false };
        self.batch(|live, now, out| live.submit(submission, now, out).unwrap());
        name
    }

    fn report(&mut self, node: &NodeName, report: &Report) -> Vec<Effect> {
        self.batch(|live, now, out| live.report(node, report.clone(), now, out))
    }

    fn at(&self, job: &JobName) -> (NodeName, AttemptKey) {
        let job = self.live.job(job).unwrap();
        (job.active().unwrap().first.node.clone(), job.attempt_key().unwrap())
    }
}

/// All that a node says of an attempt that exits with `code`.
fn life(key: &AttemptKey, code: i32) -> Vec<Report> {
    let since = Timestamp::from_millis(999_000 + i64::from(key.attempt.0));
    let mut end = ended(code);
    end.started_at = Some(since);
    [
        Progress::Preparing { step: "received".to_owned() },
        Progress::Running { since, idle_since: None },
        Progress::Finalizing { exit: Some(Exit::Code(code)) },
        Progress::Ended(Box::new(end)),
    ]
    .map(|progress| Report { key: key.clone(), progress })
    .to_vec()
}

#[test]
fn that_gpus_are_idle_is_told_once_each_time() {
    let mut bare = Bare::new();
    let job = bare.submit("idle", retried(1));
    let (node, key) = bare.at(&job);
    let running = |idle: Option<i64>| {
        let idle_since = idle.map(Timestamp::from_millis);
        let progress = Progress::Running { since: Timestamp::from_millis(1), idle_since };
        Report { key: key.clone(), progress }
    };
    for idle in [None, None, Some(5), Some(5), None, None, Some(9), Some(9)] {
        bare.report(&node, &running(idle));
    }
    // What comes late says nothing new.
    let progress = Progress::Finalizing { exit: Some(Exit::Code(0)) };
    bare.report(&node, &Report { key: key.clone(), progress });
    bare.report(&node, &running(Some(11)));
    let story = bare.store.story(&job);
    let told = ["Running", "GpuIdle", "GpuIdle", "Finalizing"];
    assert!(story.ends_with(&told), "{story:?}");
}

/// Three jobs, each of which fails once and then succeeds. `order` says, for the first attempts
/// and for the second, in which order the reports come and how often; no report is left out.
fn two_attempts(order: &[Vec<usize>; 2]) -> (Bare, usize) {
    let mut bare = Bare::new();
    let jobs: Vec<JobName> = (0..3).map(|n| bare.submit(&format!("job{n}"), retried(2))).collect();
    let mut said: Vec<(NodeName, Report)> = Vec::new();
    let mut acknowledged = 0;
    for (code, order) in [1, 0].into_iter().zip(order) {
        for job in &jobs {
            let (node, key) = bare.at(job);
            said.extend(life(&key, code).into_iter().map(|report| (node.clone(), report)));
        }
        // In the second turn, what was said in the first is said again among it.
        let missing = (0..said.len()).filter(|index| !order.contains(index));
        for index in order.iter().copied().filter(|index| *index < said.len()).chain(missing) {
            let (node, report) = &said[index];
            let effects = bare.report(node, report);
            acknowledged += effects
                .iter()
                .filter(|effect| {
                    matches!(effect, Effect::Acknowledge { key, .. } if *key == report.key)
                })
                .count();
        }
    }
    (bare, acknowledged)
}

fn shuffled(reports: usize) -> impl Strategy<Value = Vec<usize>> {
    let indices: Vec<usize> = (0..reports).flat_map(|index| [index; 3]).collect();
    let few = proptest::sample::subsequence(indices, 0..=reports * 3);
    few.prop_shuffle()
}

fn ends(jobs: &BTreeMap<JobName, Job>) -> Vec<(&JobName, JobStatus, &Job)> {
    jobs.iter().map(|(name, job)| (name, job.status(), job)).collect()
}

proptest! {
    #![proptest_config(super::cases(100))]

    #[test]
    fn f18_updates_twice_or_in_another_order_change_nothing(
        first in shuffled(12),
        second in shuffled(24),
    ) {
        let (plain, _) = two_attempts(&[vec![], vec![]]);
        let (other, acknowledged) = two_attempts(&[first, second]);
        prop_assert_eq!(ends(&plain.store.jobs), ends(&other.store.jobs));
        prop_assert!(other.store.jobs.values().all(|job| job.status() == JobStatus::Completed));
        // Every end was acknowledged, or the node would repeat it for ever.
        prop_assert!(acknowledged >= 6);
        prop_assert!(other.live.jobs().next().is_none());
    }
}

/// Every report that is not of this attempt, or not from its node, at every point of its life.
#[test]
fn what_is_stale_or_not_the_nodes_own_changes_nothing() {
    for said in 0..3 {
        let mut bare = Bare::new();
        let job = bare.submit("job", retried(1));
        let (node, key) = bare.at(&job);
        for report in &life(&key, 0)[..said] {
            bare.report(&node, report);
        }
        let before = bare.live.job(&job).cloned();
        let events = bare.store.events.len();
        let with = |attempt: u32, epoch: u64| AttemptKey {
            job: key.job.clone(),
            attempt: AttemptNumber(attempt),
            epoch: Epoch(epoch),
        };
        let (attempt, epoch) = (key.attempt.0, key.epoch.0);
        let wrong = [
            (node.clone(), with(attempt, epoch + 1)),
            (node.clone(), with(attempt, epoch - 1)),
            (node.clone(), with(attempt + 1, epoch)),
            (node.clone(), with(attempt - 1, epoch)),
            (node_name("b"), key.clone()),
            (node_name("nowhere"), key.clone()),
            (node.clone(), AttemptKey { job: job_name("other"), ..key.clone() }),
        ];
        for (from, key) in wrong {
            for report in life(&key, 0) {
                let effects = bare.report(&from, &report);
                assert_eq!(bare.live.job(&job).cloned(), before, "{from} {report:?}");
                assert_eq!(bare.store.events.len(), events, "{from} {report:?}");
                // The node is told to forget what is none of its business.
                let last = matches!(report.progress, Progress::Ended(_));
                let told = match &effects[..] {
                    [Effect::Acknowledge { node, key }] => {
                        last && *node == from && *key == report.key
                    }
                    [Effect::Discard { node, key }] => !last && *node == from && *key == report.key,
                    _ => false,
                };
                assert!(told, "{from} {report:?}: {effects:?}");
            }
        }
    }
}

/// A node lists what it knows in any order: an attempt that is over, and was not acknowledged, does
/// not hide the one at hand.
#[test]
fn the_order_of_an_inventory_does_not_matter() {
    for newest_first in [false, true] {
        let mut bare = Bare::new();
        let job = bare.submit("job", retried(2));
        let (node, old) = bare.at(&job);
        let old_end = life(&old, 1)[3].clone();
        bare.report(&node, &old_end);
        let (again, key) = bare.at(&job);
        assert_eq!(node, again);
        bare.report(&node, &life(&key, 0)[1]);
        let by = principal("ada");
        bare.batch(|live, now, out| live.cancel(&job, by, "enough", now, out).unwrap());
        bare.batch(|live, now, _| live.node_left(&node, now));
        let mut inventory = vec![old_end, life(&key, 0)[1].clone()];
        if newest_first {
            inventory.reverse();
        }
        let effects = bare.join("a", inventory);
        let stopped = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Stop { key: stopped, .. } if *stopped == key));
        assert!(stopped, "newest first: {newest_first}: {effects:?}");
        let missing = bare.live.nodes().any(|node| node.attempts.values().any(Option::is_some));
        assert!(!missing);
    }
}

/// A job that was cancelled while its node finished it is completed, and stays so.
#[test]
fn the_first_end_stays() {
    let mut bare = Bare::new();
    let mut spec = command_job(Demand::DEFAULT);
    spec.retry = Retry { max_attempts: 3, ..Retry::default() };
    let job = bare.submit("job", Arc::new(spec));
    let (node, key) = bare.at(&job);
    bare.batch(|live, now, out| live.cancel(&job, principal("ada"), "enough", now, out).unwrap());
    bare.report(&node, &life(&key, 0)[3]);
    assert_eq!(bare.store.status(&job), Some(JobStatus::Completed));
    for code in [0, 1] {
        for report in life(&key, code) {
            bare.report(&node, &report);
        }
    }
    let refused = bare
        .live
        .cancel(&job, principal("ada"), "enough", START, &mut Decisions::default())
        .unwrap_err();
    assert_eq!(refused.to_string(), "there is no live job 'job'");
    assert_eq!(bare.store.status(&job), Some(JobStatus::Completed));
    let story = ["Submitted", "Assigned", "CancelRequested", "Completed"];
    assert_eq!(bare.store.story(&job), story);
}
