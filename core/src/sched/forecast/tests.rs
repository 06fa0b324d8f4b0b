use super::*;
use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::resource::{Capacity, Demand, Reservation};
use crate::sched::{Hold, Request, Waiting};
use crate::spec::{JobTier, Priority};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const MINUTE: u64 = 60_000;

fn compute() -> ComputeName {
    ComputeName::new("local").unwrap()
}

fn known(command: &str, most_ms: Option<u64>, minutes_ago: Option<i64>) -> Known {
    let since = minutes_ago.map(|ago| NOW.plus_millis(-ago * MINUTE as i64));
    Known { kind: Kind::of(command), most_ms, since }
}

/// One node of one CPU that a job holds, and `waiting` others in line.
fn world(waiting: u64) -> (Sched, Vec<Asked>) {
    let mut sched = Sched::default();
    let node = NodeName::new("n").unwrap();
    sched.put_node(&compute(), node.clone(), Capacity { cpu: 1000, ..Capacity::default() });
    sched.set_ready(&compute(), &node, true);
    let user = Principal::new("ada").unwrap();
    let rank = |seq| Rank::new(JobTier::Standard, Priority::Medium, NOW, SubmitSeq(seq));
    let reservation = Reservation { cpu: 1000, ..Reservation::default() };
    let hold = Hold {
        user: user.clone(),
        rank: rank(0),
        reservation,
        since: NOW,
        until: None,
        yields_at: None,
        going: None,
    };
    sched.hold(&compute(), &node, JobName::new("job0").unwrap(), hold);
    let asked: Vec<Asked> = (1..=waiting)
        .map(|seq| Asked {
            waiting: Waiting {
                job: JobName::new(&format!("job{seq}")).unwrap(),
                user: user.clone(),
                request: Request::one(Demand::DEFAULT),
                most_ms: None,
                not_before: None,
                inputs: Default::default(),
            },
            compute: compute(),
            priority: Priority::Medium,
            created_at: NOW,
            rank: rank(seq),
        })
        .collect();
    for job in &asked {
        sched.enqueue(&compute(), job.rank, job.waiting.clone());
    }
    (sched, asked)
}

/// Minutes from now of the half and of nine in ten, and how many runs that took.
fn minutes(forecast: &Forecast) -> (u64, u64, u32) {
    let Forecast::Expected { p50, p90, runs, .. } = forecast else { panic!("{forecast}") };
    let minutes = |at: &Timestamp| at.millis_since(NOW).unsigned_abs().div_ceil(MINUTE);
    (minutes(p50), minutes(p90), *runs)
}

#[test]
fn jobs_of_one_length_start_when_those_before_them_have_taken_it() {
    let (sched, asked) = world(3);
    let mut durations = Durations::of((0..5).map(|_| (Kind::of("a"), 64 * MINUTE)));
    durations.know(SubmitSeq(0), known("a", None, Some(24)));
    let at = |number: usize| minutes(&forecast(&sched, &asked[number], &durations, NOW));
    assert_eq!(at(0), (40, 40, RUNS));
    // Between two of them a minute of the grid at most.
    assert_eq!(at(1), (104, 104, RUNS));
    assert_eq!(at(2), (168, 168, RUNS));
    assert_eq!(
        forecast(&sched, &asked[1], &durations, NOW).to_string(),
        "expected to start at 2023-11-14 23:57:20 UTC (p50), by 2023-11-14 23:57:20 UTC (p90); \
         from 32 runs of the scheduler over 5 past jobs"
    );
    // One that is not in the queue is asked about as if it were.
    let mut without = sched.clone();
    without.dequeue(&compute(), asked[2].rank);
    assert_eq!(minutes(&forecast(&without, &asked[2], &durations, NOW)).0, 168);
}

#[test]
fn what_has_run_long_is_drawn_from_what_ran_longer() {
    let (sched, asked) = world(1);
    let past = (1..=100).map(|minutes| (Kind::of("a"), minutes * MINUTE));
    let mut durations = Durations::of(past);
    let at = |durations: &Durations| minutes(&forecast(&sched, &asked[0], durations, NOW));
    durations.know(SubmitSeq(0), known("a", None, Some(0)));
    let (p50, p90, _) = at(&durations);
    assert!((30..70).contains(&p50) && (80..=101).contains(&p90), "{p50} {p90}");
    durations.know(SubmitSeq(0), known("a", None, Some(90)));
    let (p50, p90, _) = at(&durations);
    assert!(p50 <= p90 && p90 <= 11, "{p50} {p90}");
    assert_eq!(at(&durations), at(&durations), "the same question, the same answer");
    // Its limit ends it, whatever others took.
    durations.know(SubmitSeq(0), known("a", Some(92 * MINUTE), Some(90)));
    assert!(at(&durations).1 <= 3);
    // Longer than all: as long again.
    durations.know(SubmitSeq(0), known("a", None, Some(300)));
    assert!((300..=302).contains(&at(&durations).0), "to the next point of the grid");
}

#[test]
fn its_own_kind_tells_more_than_all_others() {
    let (sched, asked) = world(1);
    let own = (0..3).map(|_| (Kind::of("short"), 2 * MINUTE));
    let others = (0..200).map(|_| (Kind::of("long"), 500 * MINUTE));
    let mut durations = Durations::of(own.chain(others));
    durations.know(SubmitSeq(0), known("short", None, Some(0)));
    assert!(minutes(&forecast(&sched, &asked[0], &durations, NOW)).1 <= 10);
    durations.know(SubmitSeq(0), known("unknown", None, Some(0)));
    assert!(minutes(&forecast(&sched, &asked[0], &durations, NOW)).0 >= 500);
}

#[test]
fn nothing_is_said_where_nothing_is_known_and_limits_are_better_than_that() {
    let (sched, asked) = world(2);
    let mut durations = Durations::default();
    assert_eq!(forecast(&sched, &asked[0], &durations, NOW), Forecast::NothingKnown);
    durations.know(SubmitSeq(0), known("a", None, Some(1)));
    durations.know(SubmitSeq(1), known("a", Some(9 * MINUTE), None));
    let told = forecast(&sched, &asked[0], &durations, NOW);
    assert_eq!(told, Forecast::NothingKnown, "the one that runs may run for ever");
    durations.know(SubmitSeq(0), known("a", Some(5 * MINUTE), Some(1)));
    let told = forecast(&sched, &asked[1], &durations, NOW);
    assert_eq!(minutes(&told).0, 13);
    assert!(told.to_string().ends_with("the jobs' own time limits"), "{told}");
    let mut large = asked[0].clone();
    large.waiting.request.demand.cpu = 2000;
    large.rank = Rank::new(JobTier::Standard, Priority::Medium, NOW, SubmitSeq(9));
    let durations = Durations::of([(Kind::of("a"), MINUTE)]);
    assert_eq!(forecast(&sched, &large, &durations, NOW), Forecast::NoRoom);
}

#[test]
fn far_back_it_says_so_after_bounded_work() {
    let (sched, asked) = world(2_000);
    let durations = Durations::of([(Kind::of("a"), 60 * MINUTE)]);
    let last = asked.last().unwrap();
    let told = within(10 * 2_000, &sched, last, &durations, NOW);
    let Forecast::Beyond { ms } = told else { panic!("{told}") };
    assert!((60 * MINUTE..2_000 * 60 * MINUTE).contains(&ms), "{ms}");
    assert!(told.to_string().contains("not within what was looked at; more than"), "{told}");
}
