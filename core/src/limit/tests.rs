use proptest::prelude::*;

use super::*;
use crate::id::NodeName;

const SECOND: Duration = Duration::from_secs(1);

fn allowance(per_second: u32, burst: u32) -> Allowance {
    Allowance { per_second, burst, at_once: 1 }
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let (mut bucket, at) = (Bucket::default(), SECOND);
    let ten = allowance(10, 3);
    for _ in 0..3 {
        bucket.take(at, ten).unwrap();
    }
    assert_eq!(bucket.take(at, ten), Err(SECOND / 10));
    // Asking in vain costs nothing.
    assert_eq!(bucket.take(at, ten), Err(SECOND / 10));
    bucket.take(at + SECOND / 10, ten).unwrap();
    assert!(bucket.take(at + SECOND / 10, ten).is_err());
    assert!(!bucket.is_full(at + SECOND / 10) && bucket.is_full(at + SECOND));
}

#[test]
fn a_sweep_of_ten_thousand_jobs_is_no_flood() {
    let allowance = Allowance::of(&Role::DataScientist, 1000, 1000);
    let mut bucket = Bucket::default();
    assert!((0..10_000).all(|_| bucket.take(SECOND, allowance).is_ok()));
}

#[test]
fn machines_may_ask_for_more() {
    let person = Allowance::of(&Role::Reader, 100, 50);
    assert_eq!(person, Allowance { per_second: 100, burst: 2000, at_once: 50 });
    let node = Allowance::of(&Role::Node(NodeName::new("n").unwrap()), 100, 50);
    assert_eq!(node, Allowance { per_second: 1000, burst: 20_000, at_once: 200 });
    let most = Allowance::of(&Role::Admin, u32::MAX, u32::MAX);
    assert_eq!((most.per_second, most.burst), (u32::MAX, u32::MAX));
    assert_eq!(Allowance::of(&Role::Admin, 0, 0).at_once, 1);
}

proptest! {
    /// In no stretch of time does more get through than the burst and what the rate gives meanwhile.
    #[test]
    fn no_more_gets_through_than_is_allowed(
        per_second in 1_u32..5_000,
        burst in 1_u32..500,
        steps in prop::collection::vec(0_u64..50_000_000, 1..400),
    ) {
        let allowed = allowance(per_second, burst);
        let (mut bucket, mut now, mut passed) = (Bucket::default(), SECOND, Vec::new());
        for step in steps {
            now += Duration::from_nanos(step);
            if bucket.take(now, allowed).is_ok() {
                passed.push(now);
            }
        }
        for (first, from) in passed.iter().enumerate() {
            for (last, until) in passed.iter().enumerate().skip(first) {
                let given = (*until - *from).as_nanos() / u128::from(each(allowed));
                prop_assert!((last - first + 1) as u128 <= u128::from(burst) + given);
            }
        }
    }

    /// Who waits as long as it was told gets through, and not before.
    #[test]
    fn the_wait_that_is_told_is_enough_and_needed(
        per_second in 1_u32..100_000,
        burst in 1_u32..100,
        steps in prop::collection::vec(0_u64..10_000_000, 1..300),
    ) {
        let allowed = allowance(per_second, burst);
        let (mut bucket, mut now) = (Bucket::default(), SECOND);
        for step in steps {
            now += Duration::from_nanos(step);
            if let Err(wait) = bucket.take(now, allowed) {
                let mut early = bucket;
                prop_assert!(early.take(now + wait - Duration::from_nanos(1), allowed).is_err());
                now += wait;
                prop_assert!(bucket.take(now, allowed).is_ok());
            }
        }
    }

    /// Whatever the clock and the numbers are.
    #[test]
    fn nothing_overflows(
        per_second: u32,
        burst: u32,
        times in prop::collection::vec(any::<u64>(), 1..50),
    ) {
        let mut bucket = Bucket::default();
        for time in times {
            let _ = bucket.take(Duration::from_nanos(time), allowance(per_second, burst));
        }
    }
}
