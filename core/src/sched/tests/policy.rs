//! Fair share, quotas, gangs, backfilling and preemption.

use proptest::prelude::*;

use super::*;
use crate::access::Person;
use crate::compute::Whom;
use crate::id::GroupName;

/// A job in line, as a test says it.
struct Job {
    seq: u64,
    user: &'static str,
    tier: JobTier,
    request: Request,
    /// Seconds that it takes at most.
    most: Option<u64>,
}

fn job(seq: u64, cpus: u64) -> Job {
    let request = Request::one(demand(cpus, 0, 0));
    Job { seq, user: "ada", tier: JobTier::Standard, request, most: None }
}

fn at(seconds: i64) -> Timestamp {
    NOW.plus_millis(seconds * 1000)
}

fn place(job: &Job) -> Rank {
    Rank::new(job.tier, Priority::Medium, NOW, SubmitSeq(job.seq))
}

fn submit(sched: &mut Sched, job: &Job) {
    let waiting = Waiting {
        job: name(&format!("job{}", job.seq)),
        user: Principal::new(job.user).unwrap(),
        request: job.request.clone(),
        most_ms: job.most.map(|seconds| seconds * 1000),
        not_before: None,
        inputs: Default::default(),
    };
    sched.enqueue(&compute(), place(job), waiting);
}

fn end(sched: &mut Sched, node_name: &str, seq: u64, now: Timestamp) {
    sched.release(&compute(), &node(node_name), &name(&format!("job{seq}")), now);
}

/// Plans and commits at a moment; what starts as `seq@node`, and who makes way as `-job`.
fn step_at(sched: &mut Sched, now: Timestamp) -> Vec<String> {
    sched.wake(now);
    let plan = plan(sched, now, WIDE);
    let mut said = Vec::new();
    for placement in plan.placements() {
        sched.commit(placement, now).expect("a fresh plan commits");
        let nodes: Vec<&str> = placement.nodes.iter().map(NodeName::as_str).collect();
        said.push(format!("{}@{}", placement.rank.seq(), nodes.join("+")));
    }
    for eviction in plan.evictions() {
        said.push(format!("-{}", eviction.job));
        let nodes: Vec<NodeName> =
            sched.pool(&compute()).unwrap().nodes().map(|(node, ..)| node.clone()).collect();
        nodes.iter().for_each(|node| sched.set_going(&compute(), node, &eviction.job, now));
    }
    sched.explain_with(&plan, now);
    said
}

fn why(sched: &Sched, job: &Job) -> WaitReason {
    sched.reason(&compute(), place(job)).unwrap()
}

fn promised(sched: &Sched) -> Promise {
    sched.pool(&compute()).unwrap().promise().unwrap().clone()
}

#[test]
fn who_holds_less_goes_first() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0))]);
    for seq in 1..=4 {
        submit(&mut sched, &job(seq, 1));
    }
    for seq in 5..=8 {
        submit(&mut sched, &Job { user: "bob", ..job(seq, 1) });
    }
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "5@a", "2@a", "6@a"]);
    let order: Vec<_> = sched.waiting().map(|(_, rank, _)| rank.seq().0).collect();
    assert_eq!(order, [3, 4, 7, 8], "both hold half");
    end(&mut sched, "a", 5, at(60));
    end(&mut sched, "a", 6, at(60));
    assert_eq!(step_at(&mut sched, at(60)), ["7@a", "8@a"]);
    // Hours later: ada has had half of it all the time, and cleo comes.
    submit(&mut sched, &Job { user: "cleo", ..job(9, 1) });
    assert!(step_at(&mut sched, at(7200)).is_empty());
    end(&mut sched, "a", 1, at(7200));
    end(&mut sched, "a", 2, at(7200));
    let order = step_at(&mut sched, at(7200));
    assert_eq!(
        order,
        ["9@a", "3@a"],
        "ada holds nothing now, and has held half of it for two hours"
    );
}

#[test]
fn what_was_used_before_a_restart_counts() {
    let mut sched = sched(&[("a", capacity(1, 1000, 0))]);
    let ada = Principal::new("ada").unwrap();
    sched.used(&compute(), &ada, &Request::one(demand(1, 0, 0)), at(-7200), at(-3600));
    submit(&mut sched, &job(1, 1));
    submit(&mut sched, &Job { user: "bob", ..job(2, 1) });
    assert_eq!(step_at(&mut sched, NOW), ["2@a"]);
}

#[test]
fn a_quota_holds_back_its_user_and_nobody_else() {
    let mut sched = sched(&[("a", capacity(8, 1000, 2))]);
    let ada = Principal::new("ada").unwrap();
    let limits = Limits { cpu: Some(2000), jobs: Some(5), ..Limits::default() };
    let quotas = Quotas { users: [(ada, limits)].into(), ..Quotas::default() };
    sched.set_quotas(&compute(), quotas);
    for seq in 1..=3 {
        submit(&mut sched, &job(seq, 1));
    }
    submit(&mut sched, &Job { user: "bob", ..job(4, 6) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "4@a", "2@a"]);
    let reason = why(&sched, &job(3, 1));
    assert_eq!(
        reason.to_string(),
        "ada's jobs may hold 2 CPU, 5 jobs of the compute at once, and hold 2 CPU, 2 jobs; it \
         starts when enough of them have ended, or ask an admin for a larger quota"
    );
    end(&mut sched, "a", 4, at(1));
    assert!(step_at(&mut sched, at(1)).is_empty());
    end(&mut sched, "a", 1, at(2));
    assert_eq!(step_at(&mut sched, at(2)), ["3@a"]);
    submit(&mut sched, &job(5, 1));
    assert!(step_at(&mut sched, at(3)).is_empty());
    sched.set_quotas(&compute(), Quotas::default());
    assert_eq!(step_at(&mut sched, at(3)), ["5@a"]);
}

#[test]
fn a_gang_gets_all_its_nodes_or_none() {
    let mut sched = sched(&[
        ("a", capacity(4, 1000, 0)),
        ("b", capacity(4, 1000, 0)),
        ("c", capacity(2, 1000, 0)),
    ]);
    submit(&mut sched, &job(1, 3));
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    let gang = Job { request: Request { members: 2, demand: demand(3, 0, 0) }, ..job(2, 3) };
    submit(&mut sched, &gang);
    assert!(step_at(&mut sched, NOW).is_empty());
    assert_eq!(
        why(&sched, &gang).to_string(),
        "asks for 2 nodes with 3 CPU each, all at once, and 1 has room; it starts when 1 more have"
    );
    assert_eq!(promised(&sched).nodes, [node("b"), node("a")]);
    submit(&mut sched, &job(3, 2));
    submit(&mut sched, &job(4, 1));
    assert_eq!(step_at(&mut sched, NOW), ["3@c"], "the last CPU of a is kept too");
    end(&mut sched, "a", 1, at(1));
    assert_eq!(step_at(&mut sched, at(1)), ["2@a+b", "4@a"]);

    let three = Job { request: Request { members: 3, demand: demand(3, 0, 0) }, ..job(5, 3) };
    submit(&mut sched, &three);
    assert!(step_at(&mut sched, at(2)).is_empty());
    let reason = why(&sched, &three);
    assert!(matches!(reason, WaitReason::TooFew { nodes: 2, .. }), "{reason}");
}

/// Small jobs come all the time, and one of them ends each second: without a promise the two nodes
/// would never be free at once.
#[test]
fn a_gang_is_not_starved_by_small_jobs() {
    let mut sched = sched(&[("a", capacity(2, 1000, 0)), ("b", capacity(2, 1000, 0))]);
    let mut running: Vec<(String, u64)> = Vec::new();
    let mut seq = 0;
    for second in 0..20 {
        while seq < 4 * (second + 1) {
            seq += 1;
            let gang = Request { members: 2, demand: demand(2, 0, 0) };
            let request = if seq == 5 { gang } else { Request::one(demand(1, 0, 0)) };
            submit(&mut sched, &Job { request, ..job(seq, 1) });
        }
        let now = at(i64::try_from(second).unwrap());
        for placed in step_at(&mut sched, now) {
            let (seq, node) = placed.split_once('@').unwrap();
            if seq == "5" {
                assert!(second <= 5, "it waited for {second} s");
                return;
            }
            running.push((node.to_owned(), seq.parse().unwrap()));
        }
        if !running.is_empty() {
            let (node, seq) = running.remove(0);
            end(&mut sched, &node, seq, now);
        }
    }
    panic!("the gang never started");
}

#[test]
fn who_does_not_delay_the_first_in_line_starts_before_it() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0))]);
    let running = Job { most: Some(600), ..job(1, 2) };
    submit(&mut sched, &running);
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    let first = job(2, 4);
    submit(&mut sched, &first);
    let never = job(3, 1);
    let long = Job { most: Some(601), ..job(4, 1) };
    let short = Job { most: Some(540), ..job(5, 1) };
    for job in [&never, &long, &short] {
        submit(&mut sched, job);
    }
    assert_eq!(step_at(&mut sched, at(60)), ["5@a"]);
    let promise = promised(&sched);
    assert_eq!((promise.at, promise.nodes), (Some(at(600)), vec![node("a")]));
    assert!(matches!(why(&sched, &never), WaitReason::Behind { ahead: 1, .. }));
    // It takes longer than it said, and the first would otherwise start.
    end(&mut sched, "a", 1, at(590));
    assert!(step_at(&mut sched, at(590)).is_empty());
    assert_eq!(sched.next_wake(), Some(at(600)));
    assert_eq!(step_at(&mut sched, at(600)), ["-job5"]);
    let reason = why(&sched, &first).to_string();
    assert_eq!(reason, "job job5 makes way for it");
    assert!(step_at(&mut sched, at(601)).is_empty(), "it was asked once");
    end(&mut sched, "a", 5, at(602));
    assert_eq!(step_at(&mut sched, at(602)), ["2@a"]);
}

/// The promise stays on the node that it was made for, although another would be free later without
/// anybody's going; and while more than the late job is in the way, the late job may stay.
#[test]
fn a_late_job_makes_way_also_where_another_node_would_do_later() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(4, 1000, 0))]);
    submit(&mut sched, &Job { most: Some(600), ..job(1, 3) });
    submit(&mut sched, &Job { most: Some(2000), ..job(2, 4) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "2@b"]);
    submit(&mut sched, &job(3, 4));
    submit(&mut sched, &Job { most: Some(500), ..job(4, 1) });
    assert_eq!(step_at(&mut sched, NOW), ["4@a"]);
    assert_eq!(promised(&sched).at, Some(at(600)));
    // The one that was to end by then has not, and nobody knows when it does.
    assert!(step_at(&mut sched, at(600)).is_empty());
    assert_eq!(promised(&sched).nodes, [node("b")]);
    end(&mut sched, "a", 1, at(700));
    assert_eq!(step_at(&mut sched, at(700)), ["-job4"]);
    assert_eq!(promised(&sched).nodes, [node("a")]);
    end(&mut sched, "a", 4, at(701));
    assert_eq!(step_at(&mut sched, at(701)), ["3@a"]);
}

#[test]
fn the_rest_of_a_quota_is_for_the_first_in_line() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(2, 1000, 0))]);
    let limits = Limits { cpu: Some(4000), ..Limits::default() };
    let ada = Principal::new("ada").unwrap();
    sched.set_quotas(&compute(), Quotas { users: [(ada, limits)].into(), ..Quotas::default() });
    submit(&mut sched, &Job { user: "bob", ..job(1, 2) });
    submit(&mut sched, &Job { user: "bob", ..job(2, 2) });
    assert_eq!(step_at(&mut sched, NOW), ["1@b", "2@a"]);
    submit(&mut sched, &job(3, 4));
    assert!(step_at(&mut sched, NOW).is_empty());
    end(&mut sched, "b", 1, at(1));
    submit(&mut sched, &job(4, 1));
    submit(&mut sched, &Job { user: "cleo", ..job(5, 1) });
    assert_eq!(step_at(&mut sched, at(1)), ["5@b"], "with 4 running, 3 could not start");
    end(&mut sched, "a", 2, at(2));
    assert_eq!(step_at(&mut sched, at(2)), ["3@a"]);
}

fn people(all: &[(&str, &[&str])]) -> People {
    let person = |groups: &[&str]| {
        let groups = groups.iter().map(|name| GroupName::new(name).unwrap()).collect();
        Person { groups, manages: false }
    };
    all.iter().map(|(user, groups)| (Principal::new(user).unwrap(), person(groups))).collect()
}

fn caps(all: &[(&str, Limits)]) -> Quotas {
    let cap = |(group, limits): &(&str, Limits)| (GroupName::new(group).unwrap(), limits.clone());
    Quotas { groups: all.iter().map(cap).collect(), ..Quotas::default() }
}

fn cpus(cpus: u64) -> Limits {
    Limits { cpu: Some(cpus * 1000), ..Limits::default() }
}

#[test]
fn a_groups_quota_holds_back_its_members_together_and_nobody_else() {
    let mut sched = sched(&[("a", capacity(8, 1000, 0))]);
    sched.set_people(people(&[
        ("ada", &["vision"]),
        ("bob", &["nlp", "vision"]),
        ("cleo", &["nlp"]),
    ]));
    sched.set_quotas(&compute(), caps(&[("vision", cpus(2))]));
    submit(&mut sched, &job(1, 1));
    submit(&mut sched, &Job { user: "bob", ..job(2, 1) });
    submit(&mut sched, &Job { user: "bob", ..job(3, 1) });
    submit(&mut sched, &Job { user: "cleo", ..job(4, 6) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "2@a", "4@a"]);
    assert_eq!(
        why(&sched, &job(3, 1)).to_string(),
        "the jobs of all who are in group 'vision' may hold 2 CPU of the compute at once, and hold 2 CPU; it starts \
         when enough of them have ended, or ask an admin for a larger quota of the group"
    );
    end(&mut sched, "a", 4, at(1));
    assert!(step_at(&mut sched, at(1)).is_empty(), "cleo's room is not vision's");
    end(&mut sched, "a", 1, at(2));
    assert_eq!(step_at(&mut sched, at(2)), ["3@a"]);
    // In nlp too there is a quota now, of which bob holds two already: each holds for itself.
    sched.set_quotas(&compute(), caps(&[("vision", cpus(3)), ("nlp", cpus(2))]));
    submit(&mut sched, &Job { user: "bob", ..job(5, 1) });
    submit(&mut sched, &Job { user: "cleo", ..job(6, 1) });
    submit(&mut sched, &job(7, 1));
    assert_eq!(step_at(&mut sched, at(3)), ["7@a"]);
    for held in [&job(5, 1), &job(6, 1)] {
        assert!(why(&sched, held).to_string().contains("group 'nlp' may hold 2 CPU"));
    }
    // Beside them everybody's own: ada may hold one.
    let own = Quotas { each: cpus(1), ..caps(&[("vision", cpus(8))]) };
    sched.set_quotas(&compute(), own);
    submit(&mut sched, &job(8, 1));
    assert_eq!(step_at(&mut sched, at(4)), ["6@a"]);
    assert!(matches!(why(&sched, &job(8, 1)), WaitReason::Quota { .. }));
}

/// Whoever is put into a group brings along what they hold, and who leaves takes it away.
#[test]
fn a_groups_quota_counts_those_who_are_in_it_now() {
    let mut sched = sched(&[("a", capacity(8, 1000, 0))]);
    sched
        .set_quotas(&compute(), caps(&[("vision", Limits { jobs: Some(2), ..Limits::default() })]));
    sched.set_people(people(&[("ada", &["vision"])]));
    for seq in 1..=2 {
        submit(&mut sched, &Job { user: "bob", ..job(seq, 1) });
    }
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "2@a"]);
    sched.set_people(people(&[("ada", &["vision"]), ("bob", &["vision"])]));
    submit(&mut sched, &job(3, 1));
    assert!(step_at(&mut sched, at(1)).is_empty());
    let reason = why(&sched, &job(3, 1)).to_string();
    assert!(
        reason.contains("'vision' may hold 2 jobs of the compute at once, and hold 2 jobs"),
        "{reason}"
    );
    sched.set_people(people(&[("ada", &["vision"])]));
    assert_eq!(step_at(&mut sched, at(2)), ["3@a"]);
}

#[test]
fn a_gang_is_within_its_groups_quota_with_all_its_nodes_or_waits() {
    let mut sched = sched(&[
        ("a", capacity(4, 1000, 0)),
        ("b", capacity(4, 1000, 0)),
        ("c", capacity(4, 1000, 0)),
    ]);
    sched.set_people(people(&[("ada", &["vision"]), ("bob", &["vision"])]));
    sched.set_quotas(&compute(), caps(&[("vision", Limits { nodes: Some(2), ..cpus(6) })]));
    submit(&mut sched, &Job { user: "bob", ..job(1, 1) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    let gang = Job { request: Request { members: 2, demand: demand(3, 0, 0) }, ..job(2, 3) };
    submit(&mut sched, &gang);
    assert!(step_at(&mut sched, NOW).is_empty());
    let reason = why(&sched, &gang).to_string();
    assert!(
        reason.contains("6 CPU, 2 nodes") && reason.contains("hold 1 CPU, 1 node;"),
        "{reason}"
    );
    end(&mut sched, "a", 1, at(1));
    assert_eq!(step_at(&mut sched, at(1)), ["2@a+b"]);
}

#[test]
fn the_rest_of_a_groups_quota_is_for_the_first_in_line() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(2, 1000, 0))]);
    sched.set_people(people(&[("ada", &["vision"]), ("bob", &["vision"])]));
    sched.set_quotas(&compute(), caps(&[("vision", cpus(4))]));
    submit(&mut sched, &Job { user: "cleo", ..job(1, 2) });
    submit(&mut sched, &Job { user: "cleo", ..job(2, 2) });
    assert_eq!(step_at(&mut sched, NOW), ["1@b", "2@a"]);
    submit(&mut sched, &job(3, 4));
    assert!(step_at(&mut sched, NOW).is_empty());
    end(&mut sched, "b", 1, at(1));
    submit(&mut sched, &Job { user: "bob", ..job(4, 1) });
    submit(&mut sched, &Job { user: "dora", ..job(5, 1) });
    assert_eq!(step_at(&mut sched, at(1)), ["5@b"], "with 4 running, 3 could not start");
    end(&mut sched, "a", 2, at(2));
    assert_eq!(step_at(&mut sched, at(2)), ["3@a"]);
}

#[test]
fn a_forecast_and_the_nodes_that_are_wanted_go_by_the_groups_quota() {
    use crate::sched::forecast::{Durations, Forecast, Kind, Known, forecast};
    let mut sched = sched(&[("a", capacity(8, 1000, 0))]);
    sched.set_kind(&compute(), false, Some(capacity(8, 1000, 0)));
    sched.set_people(people(&[("ada", &["vision"]), ("bob", &["vision"])]));
    sched.set_quotas(&compute(), caps(&[("vision", cpus(8))]));
    submit(&mut sched, &job(1, 8));
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    let waits = Job { user: "bob", ..job(2, 8) };
    submit(&mut sched, &waits);
    assert!(step_at(&mut sched, NOW).is_empty());
    assert!(!sched.has_work(&compute(), 1), "another node would be of no use");
    assert_eq!(sched.nodes_wanted(&compute(), NOW, 4), 0);
    let mut durations = Durations::of((0..5).map(|_| (Kind::of("a"), 600_000)));
    durations.know(SubmitSeq(1), Known { kind: Kind::of("a"), most_ms: None, since: Some(NOW) });
    let waiting = sched.pool(&compute()).unwrap().waiting().next().unwrap().1.clone();
    let asked = Asked {
        waiting,
        compute: compute(),
        priority: Priority::Medium,
        created_at: NOW,
        rank: place(&waits),
    };
    let Forecast::Expected { p50, .. } = forecast(&sched, &asked, &durations, NOW) else {
        panic!("no forecast")
    };
    assert_eq!(p50, at(600), "when the other member's job is over");
    // No change of the job helps but to ask for what is left: nothing is.
    assert_eq!(explain(&sched, &asked, NOW).unwrap().changes, []);
}

#[test]
fn whom_the_compute_is_not_for_waits_and_holds_nobody_back() {
    let mut sched = sched(&[("a", capacity(2, 1000, 0))]);
    let access = |groups: &[&str]| {
        let groups = groups.iter().map(|name| GroupName::new(name).unwrap()).collect();
        Access::Given(Whom { groups, ..Whom::default() })
    };
    sched.set_people(people(&[("bob", &["vision"])]));
    submit(&mut sched, &job(1, 2));
    submit(&mut sched, &Job { user: "bob", ..job(2, 2) });
    sched.set_access(&compute(), access(&["vision"]));
    assert_eq!(step_at(&mut sched, NOW), ["2@a"]);
    assert_eq!(
        why(&sched, &job(1, 2)).to_string(),
        "ada may not use the compute any more, which is for group 'vision'; it starts once ada may again (ask an \
         admin: atelier compute access grant), or cancel it and send it elsewhere"
    );
    end(&mut sched, "a", 2, at(1));
    assert!(step_at(&mut sched, at(1)).is_empty());
    assert!(!sched.has_work(&compute(), 1));
    let manager = Person { manages: true, ..Person::default() };
    sched.set_people([(Principal::new("ada").unwrap(), manager)].into_iter().collect());
    assert_eq!(step_at(&mut sched, at(2)), ["1@a"]);
}

#[test]
fn a_small_job_starts_beside_the_first_in_line_if_there_is_room_for_both() {
    let mut sched = sched(&[("a", capacity(8, 1000, 0))]);
    submit(&mut sched, &Job { most: Some(600), ..job(1, 6) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    submit(&mut sched, &job(2, 7));
    submit(&mut sched, &job(3, 1));
    submit(&mut sched, &job(4, 1));
    assert_eq!(step_at(&mut sched, NOW), ["3@a"], "7 and 1 have room on 8, a second 1 has not");
}

#[test]
fn a_higher_tier_takes_the_nodes_of_the_lowest_and_youngest() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(4, 1000, 0))]);
    submit(&mut sched, &Job { tier: JobTier::Basic, ..job(1, 4) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    submit(&mut sched, &Job { tier: JobTier::Spot, ..job(2, 1) });
    submit(&mut sched, &Job { tier: JobTier::Spot, ..job(3, 1) });
    assert_eq!(step_at(&mut sched, at(1)), ["2@b", "3@b"]);
    submit(&mut sched, &Job { tier: JobTier::Spot, ..job(4, 2) });
    assert_eq!(step_at(&mut sched, at(100)), ["4@b"]);
    let usual = job(5, 2);
    submit(&mut sched, &usual);
    assert_eq!(step_at(&mut sched, at(200)), ["-job4"]);
    assert_eq!(why(&sched, &usual).to_string(), "job job4 makes way for it");
    // Neither does another take what is freed for it, nor does one of its tier make way.
    submit(&mut sched, &Job { user: "bob", tier: JobTier::Spot, ..job(6, 1) });
    submit(&mut sched, &job(7, 1));
    assert!(step_at(&mut sched, at(201)).is_empty());
    end(&mut sched, "b", 4, at(202));
    assert_eq!(step_at(&mut sched, at(202)), ["5@b", "-job3"], "and the next is first in line");
    end(&mut sched, "b", 3, at(203));
    assert_eq!(step_at(&mut sched, at(203)), ["7@b"]);
    // All of a tier as high: it waits.
    submit(&mut sched, &Job { tier: JobTier::Basic, ..job(8, 4) });
    assert!(step_at(&mut sched, at(204)).is_empty());
    let premium = Job { tier: JobTier::Premium, ..job(9, 4) };
    submit(&mut sched, &premium);
    assert_eq!(step_at(&mut sched, at(205)), ["-job1"], "one of basic rather than two of standard");
}

/// A promise whose moment passes unkept is looked at again by itself, and then others make way.
#[test]
fn who_was_to_start_soon_and_did_not_makes_others_go() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0))]);
    submit(&mut sched, &Job { tier: JobTier::Spot, most: Some(600), ..job(1, 4) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a"]);
    let usual = job(2, 4);
    submit(&mut sched, &usual);
    assert!(step_at(&mut sched, at(580)).is_empty(), "it ends in 20 s");
    assert_eq!(sched.next_wake(), Some(at(600)));
    assert_eq!(step_at(&mut sched, at(600)), ["-job1"]);
}

/// One that was asked and does not go is not waited for while another could.
#[test]
fn who_does_not_go_when_asked_is_not_the_only_one_asked() {
    let mut sched = sched(&[("a", capacity(2, 1000, 0)), ("b", capacity(2, 1000, 0))]);
    submit(&mut sched, &Job { tier: JobTier::Spot, ..job(1, 2) });
    submit(&mut sched, &Job { tier: JobTier::Spot, ..job(2, 2) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "2@b"]);
    // It stores what it leaves, and that takes an hour.
    sched.set_going(&compute(), &node("b"), &name("job2"), NOW);
    let usual = job(3, 2);
    submit(&mut sched, &usual);
    assert!(step_at(&mut sched, at(1)).is_empty());
    assert_eq!(why(&sched, &usual).to_string(), "job job2 makes way for it");
    let wake = sched.next_wake().unwrap();
    assert_eq!(step_at(&mut sched, wake), ["-job1"]);
}

#[test]
fn a_round_that_is_cut_short_leaves_no_reason_of_its_own() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(40, 1000, 0))]);
    submit(&mut sched, &job(1, 40));
    assert_eq!(step_at(&mut sched, NOW), ["1@b"]);
    let large = job(2, 40);
    submit(&mut sched, &large);
    assert!(step_at(&mut sched, NOW).is_empty());
    for seq in 3..6 {
        submit(&mut sched, &job(seq, 1));
    }
    let rounds: Vec<usize> =
        (0..3).map(|_| sched.decide(NOW, Budget { placements: 2 }).placements().count()).collect();
    assert_eq!(rounds, [2, 1, 0]);
    assert!(matches!(why(&sched, &large), WaitReason::Shortage { .. }), "{}", why(&sched, &large));
}

/// A higher tier takes a node that was promised; whoever had the promise gets another.
#[test]
fn a_promise_is_made_anew_when_its_node_is_taken() {
    let mut sched = sched(&[("a", capacity(4, 1000, 0)), ("b", capacity(4, 1000, 0))]);
    submit(&mut sched, &Job { most: Some(100), ..job(1, 2) });
    submit(&mut sched, &Job { most: Some(200), ..job(2, 4) });
    assert_eq!(step_at(&mut sched, NOW), ["1@a", "2@b"]);
    submit(&mut sched, &job(3, 4));
    assert!(step_at(&mut sched, NOW).is_empty());
    assert_eq!(promised(&sched).nodes, [node("a")]);
    submit(&mut sched, &Job { tier: JobTier::Premium, most: Some(900), ..job(4, 2) });
    assert_eq!(step_at(&mut sched, at(1)), ["4@a"]);
    let promise = promised(&sched);
    assert_eq!((promise.nodes, promise.at), (vec![node("b")], Some(at(200))));
}

/// What was kept for one who is no longer first is offered to all who wait, the oldest first.
#[test]
fn nodes_that_are_no_longer_kept_go_to_those_who_have_waited() {
    let mut sched = sched(&[("a", capacity(2, 1000, 0)), ("b", capacity(2, 1000, 1))]);
    submit(&mut sched, &Job { request: Request::one(demand(2, 0, 1)), ..job(1, 2) });
    assert_eq!(step_at(&mut sched, NOW), ["1@b"]);
    let gang = Request { members: 2, demand: demand(2, 0, 0) };
    submit(&mut sched, &Job { request: gang, ..job(2, 2) });
    submit(&mut sched, &job(3, 1));
    assert!(step_at(&mut sched, NOW).is_empty(), "both nodes are kept for the gang");
    let first = Job {
        tier: JobTier::Premium,
        user: "bob",
        request: Request { members: 1, demand: demand(1, 0, 1) },
        ..job(4, 1)
    };
    submit(&mut sched, &first);
    let made = step_at(&mut sched, NOW);
    assert!(made.contains(&"3@a".to_owned()), "{made:?}");
}

/// A job as a property test draws it: CPUs, members, how long it says it takes, and how much of that
/// it does take, in percent.
type Drawn = (u64, u32, Option<u64>, u64);

fn drawn() -> impl Strategy<Value = Drawn> {
    (
        1_u64..5,
        prop_oneof![4 => Just(1_u32), 1 => 2_u32..4],
        prop::option::weighted(0.8, 1_u64..50),
        10_u64..=100,
    )
}

proptest! {
    /// Who is first in line starts no later than it was promised when it got there, whatever is
    /// started meanwhile; and all of them start in the end.
    #[test]
    fn what_is_promised_is_kept(jobs in prop::collection::vec((drawn(), 0_i64..5), 1..40)) {
        let mut sched = sched(&[
            ("a", capacity(4, 1000, 0)),
            ("b", capacity(4, 1000, 0)),
            ("c", capacity(6, 1000, 0)),
        ]);
        let mut running: Vec<(Timestamp, u64, Vec<NodeName>)> = Vec::new();
        let mut promises: BTreeMap<SubmitSeq, Timestamp> = BTreeMap::new();
        let (mut now, mut next, mut started) = (NOW, 0, 0);
        let mut arrival = NOW;
        let mut steps = 0;
        while started < jobs.len() {
            steps += 1;
            prop_assert!(steps < 10_000, "{} of {} started", started, jobs.len());
            while next < jobs.len() && arrival <= now {
                let (cpus, members, most, _) = jobs[next].0;
                let request = Request { members, demand: demand(cpus, 0, 0) };
                submit(&mut sched, &Job { request, most, ..job(next as u64 + 1, cpus) });
                next += 1;
                arrival = jobs.get(next).map_or(arrival, |(_, gap)| arrival.plus_millis(gap * 1000));
            }
            sched.wake(now);
            let decided = plan(&sched, now, WIDE);
            prop_assert!(decided.evictions().next().is_none(), "all of them keep to what they said");
            for placed in decided.placements() {
                let held = sched.commit(placed, now).unwrap();
                prop_assert_eq!(held.len(), placed.request.members as usize);
                let seq = placed.rank.seq();
                if let Some(at) = promises.get(&seq) {
                    prop_assert!(now <= *at, "{} started at {:?}, promised {:?}", seq, now, at);
                }
                let (_, _, most, percent) = jobs[seq.0 as usize - 1].0;
                let takes = most.map_or(30_000, |most| most * 10 * percent);
                let ends = now.plus_millis(i64::try_from(takes).unwrap());
                running.push((ends, seq.0, placed.nodes.clone()));
                started += 1;
            }
            sched.explain_with(&decided, now);
            let pool = sched.pool(&compute()).unwrap();
            if let Some(Promise { rank, at: Some(at), .. }) = pool.promise() {
                promises.entry(rank.seq()).or_insert(*at);
            }
            running.sort();
            let wake = sched.next_wake().filter(|at| *at > now);
            let arrives = (next < jobs.len()).then_some(arrival);
            let ends = running.first().map(|(ends, ..)| *ends);
            let Some(then) = [wake, arrives, ends].into_iter().flatten().min() else { break };
            now = then.max(now);
            while running.first().is_some_and(|(ends, ..)| *ends <= now) {
                let (_, seq, nodes) = running.remove(0);
                nodes.iter().for_each(|node| end(&mut sched, node.as_str(), seq, now));
            }
        }
        prop_assert_eq!(started, jobs.len());
    }
}

/// What somebody does, as a property test draws it: users and groups by their numbers.
#[derive(Clone, Debug)]
enum Does {
    Submit { user: usize, cpus: u64, members: u32, most: Option<u64> },
    End { which: usize },
    Caps { caps: [(Option<u64>, Option<u32>, Option<u32>); 3] },
    Groups { of: [[bool; 3]; 4] },
}

const USERS: [&str; 4] = ["ada", "bob", "cleo", "dora"];
const GROUPS: [&str; 3] = ["nlp", "vision", "web"];

fn does() -> impl Strategy<Value = Does> {
    let cap = (prop::option::of(1_u64..8), prop::option::of(1_u32..4), prop::option::of(1_u32..4));
    prop_oneof![
        6 => (0..4_usize, 1_u64..5, 1_u32..4, prop::option::of(1_u64..100))
            .prop_map(|(user, cpus, members, most)| Does::Submit { user, cpus, members, most }),
        4 => (0..8_usize).prop_map(|which| Does::End { which }),
        1 => [cap.clone(), cap.clone(), cap].prop_map(|caps| Does::Caps { caps }),
        1 => any::<[[bool; 3]; 4]>().prop_map(|of| Does::Groups { of }),
    ]
}

/// What runs in the property test: whose it is, on which nodes, with how many CPUs on each.
struct Runs {
    seq: u64,
    user: &'static str,
    nodes: Vec<NodeName>,
    cpus: u64,
}

proptest! {
    /// Whatever starts, the members of each of its user's groups together hold no more than the group may, a gang
    /// has all its nodes or none, and only those wait for a group's quota whose group has no more left.
    #[test]
    fn no_group_is_given_more_than_its_quota_and_nobody_waits_for_anothers(
        all in prop::collection::vec(does(), 1..60),
    ) {
        let nodes = [("a", capacity(4, 1000, 0)), ("b", capacity(4, 1000, 0)), ("c", capacity(6, 1000, 0))];
        let mut sched = sched(&nodes);
        let (mut now, mut jobs): (_, Vec<Job>) = (NOW, Vec::new());
        let mut running: Vec<Runs> = Vec::new();
        let mut quotas = Quotas::default();
        for one in all {
            match one {
                Does::Submit { user, cpus, members, most } => {
                    let request = Request { members, demand: demand(cpus, 0, 0) };
                    let seq = jobs.len() as u64 + 1;
                    jobs.push(Job { user: USERS[user], request, most, ..job(seq, cpus) });
                    submit(&mut sched, &jobs[seq as usize - 1]);
                }
                Does::End { which } if !running.is_empty() => {
                    let over = running.remove(which % running.len());
                    over.nodes.iter().for_each(|node| end(&mut sched, node.as_str(), over.seq, now));
                }
                Does::End { .. } => {}
                Does::Caps { caps: drawn } => {
                    let limits = |(cpu, nodes, jobs): (Option<u64>, _, _)| {
                        Limits { cpu: cpu.map(|cpu| cpu * 1000), nodes, jobs, ..Limits::default() }
                    };
                    let some = GROUPS.into_iter().zip(drawn.map(limits));
                    quotas = caps(&some.filter(|(_, limits)| !limits.is_empty()).collect::<Vec<_>>());
                    sched.set_quotas(&compute(), quotas.clone());
                }
                Does::Groups { of } => {
                    let groups = of.map(|is| {
                        let some = GROUPS.into_iter().zip(is).filter(|(_, is)| *is);
                        some.map(|(group, _)| group).collect::<Vec<_>>()
                    });
                    let all: Vec<(&str, &[&str])> =
                        USERS.into_iter().zip(groups.iter().map(Vec::as_slice)).collect();
                    sched.set_people(people(&all));
                }
            }
            let held = |running: &[Runs], sched: &Sched, group: &GroupName| {
                let is_in = |user: &str| {
                    sched.people().of(&Principal::new(user).unwrap()).groups.contains(group)
                };
                let theirs = || running.iter().filter(|runs| is_in(runs.user));
                let cpu: u64 = theirs().map(|runs| runs.cpus * 1000 * runs.nodes.len() as u64).sum();
                let nodes: usize = theirs().map(|runs| runs.nodes.len()).sum();
                (cpu, nodes, theirs().count())
            };
            let within = |limits: &Limits, (cpu, nodes, jobs): (u64, usize, usize)| {
                limits.cpu.is_none_or(|most| cpu <= most)
                    && limits.nodes.is_none_or(|most| nodes <= most as usize)
                    && limits.jobs.is_none_or(|most| jobs <= most as usize)
            };
            now = now.plus_millis(1_000);
            sched.wake(now);
            let decided = plan(&sched, now, WIDE);
            for placed in decided.placements() {
                let taken = sched.commit(placed, now).expect("a fresh plan commits");
                let known = &jobs[placed.rank.seq().0 as usize - 1];
                prop_assert_eq!(taken.len(), known.request.members as usize);
                let cpus = known.request.demand.cpu / 1000;
                let (user, nodes) = (known.user, placed.nodes.clone());
                running.push(Runs { seq: known.seq, user, nodes, cpus });
                let person = sched.people().of(&Principal::new(user).unwrap()).clone();
                for (group, limits) in quotas.of_groups(&person) {
                    let held = held(&running, &sched, group);
                    prop_assert!(within(limits, held), "{} holds {:?} of {:?}", group, held, limits);
                }
            }
            for eviction in decided.evictions() {
                for (node, _) in &nodes {
                    sched.set_going(&compute(), &self::node(node), &eviction.job, now);
                }
            }
            sched.explain_with(&decided, now);
            let in_line: Vec<Rank> = sched.waiting().map(|(_, rank, _)| rank).collect();
            let mut first = true;
            for rank in in_line {
                let known = &jobs[rank.seq().0 as usize - 1];
                let reason = sched.reason(&compute(), rank).unwrap();
                if let WaitReason::GroupQuota { group, limits, .. } = &reason {
                    let person = sched.people().of(&Principal::new(known.user).unwrap());
                    prop_assert!(person.groups.contains(group), "{} of {}: {}", known.seq, known.user, reason);
                    let (cpu, nodes, jobs) = held(&running, &sched, group);
                    let members = known.request.members;
                    let with = (
                        cpu + known.request.demand.cpu * u64::from(members),
                        nodes + members as usize,
                        jobs + 1,
                    );
                    prop_assert!(!within(limits, with), "{} of {}: {}", known.seq, known.user, reason);
                } else if std::mem::take(&mut first) {
                    // The first of the others waits for room alone.
                    let pool = sched.pool(&compute()).unwrap();
                    let demand = &known.request.demand;
                    let roomy = pool.nodes().filter(|(_, ledger, _)| ledger.shortage(demand).is_none());
                    let roomy = roomy.count();
                    prop_assert!(roomy < known.request.members as usize, "{}: {}", known.seq, reason);
                }
            }
        }
    }
}
