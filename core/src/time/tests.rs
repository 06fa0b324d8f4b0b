use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const NOW: i64 = 1_790_000_000 * SECOND;

/// What it tells each second while the system's clock is off by so much.
fn seconds(clock: &mut Steady, from: u64, count: u64, off: i64) -> Vec<i64> {
    let at = |second: u64| {
        let passed = second * SECOND.unsigned_abs();
        clock.tell(NOW + passed.cast_signed() + off, passed).as_millis() - NOW / 1000
    };
    (from..from + count).map(at).collect()
}

#[test]
fn it_is_the_systems_clock_as_long_as_that_does_not_jump() {
    let mut clock = Steady::new();
    assert_eq!(seconds(&mut clock, 0, 5, 0), [0, 1_000, 2_000, 3_000, 4_000]);
    // A clock that is kept by NTP drifts by less than it may follow.
    assert_eq!(seconds(&mut clock, 5, 2, 10_000), [5_010, 6_010]);
    assert_eq!(seconds(&mut clock, 7, 2, -10_000), [6_990, 7_990]);
}

#[test]
fn a_jump_ahead_is_made_up_at_twice_the_pace() {
    let mut clock = Steady::new();
    seconds(&mut clock, 0, 1, 0);
    assert_eq!(seconds(&mut clock, 1, 3, HOUR), [2_000, 4_000, 6_000]);
    let later = seconds(&mut clock, 4, 3_600, HOUR);
    assert_eq!(later.last(), Some(&((3_603 + 3_600) * 1000)), "an hour later it is there");
}

#[test]
fn a_jump_back_is_made_up_at_half_the_pace() {
    let mut clock = Steady::new();
    seconds(&mut clock, 0, 1, 0);
    assert_eq!(seconds(&mut clock, 1, 4, -HOUR), [500, 1_000, 1_500, 2_000]);
    let later = seconds(&mut clock, 5, 7_300, -HOUR);
    assert_eq!(later.last(), Some(&((7_304 - 3_600) * 1000)));
}

#[test]
fn it_goes_on_from_what_was_recorded_but_not_from_nonsense() {
    let mut clock = Steady::new();
    clock.tell(NOW, 0);
    let recorded = |us: i64| Timestamp::from_millis((NOW + us) / 1000);
    assert!(clock.resume(recorded(-HOUR)));
    assert_eq!(clock.tell(NOW, 0), recorded(0));
    assert!(clock.resume(recorded(HOUR)));
    assert_eq!(clock.tell(NOW, 0), recorded(HOUR));
    assert!(!clock.resume(recorded(48 * HOUR)));
    assert_eq!(clock.tell(NOW, 0), recorded(HOUR));
}

#[test]
fn a_clock_that_was_wrong_when_it_began_is_taken_once_it_is_right() {
    let year = 365 * 24 * HOUR;
    let mut clock = Steady::new();
    clock.tell(NOW - year, 0);
    assert!(!clock.resume(Timestamp::from_millis(NOW / 1000)));
    assert_eq!(clock.tell(NOW - 1, 0).as_millis(), (NOW - year) / 1000, "it is not there yet");
    let right = NOW + HOUR;
    assert_eq!(clock.tell(right, 0).as_millis(), right / 1000);
    // Once; then it is drawn as ever.
    assert_eq!(clock.tell(right + HOUR, 1_000_000).as_millis(), right / 1000 + 2000);
}

proptest! {
    /// Whatever happens to the system's clock: never back, and between half and twice of what has passed.
    #[test]
    fn it_never_goes_back_and_never_leaps(
        steps in proptest::collection::vec((0_u64..10_000_000_000, any::<i64>()), 1..50)
    ) {
        let mut clock = Steady::new();
        let mut elapsed = 0;
        let mut before = clock.tell(NOW, 0);
        for (passed, system) in steps {
            elapsed += passed;
            let now = clock.tell(system, elapsed);
            let told = now.as_millis() - before.as_millis();
            let passed = i64::try_from(passed / 1000).unwrap();
            prop_assert!((passed / 2 - 1..=2 * passed + 3).contains(&told), "{} of {}", told, passed);
            before = now;
        }
    }
}
