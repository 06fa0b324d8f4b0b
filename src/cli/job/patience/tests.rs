//! How long a daemon is waited for.

use std::time::Duration;

use tokio::time::Instant;

use super::{LONGEST_PAUSE, Next, Patience};

#[test]
fn patience_is_counted_from_the_loss_and_ends() {
    let mut patience = Patience::new();
    // However long nothing happened before, the first loss is the beginning.
    let mut now = Instant::now() + Duration::from_secs(7200);
    let lost = now;
    let mut told = 0;
    loop {
        match patience.next(now) {
            Next::Pause(pause) => now += pause,
            Next::TellAndPause(pause) => {
                told += 1;
                assert!(now - lost > Duration::from_secs(1));
                now += pause;
            }
            Next::GiveUp => break,
        }
    }
    assert_eq!(told, 1);
    let given_up = (now - lost).as_secs();
    assert!((300..306).contains(&given_up), "{given_up}");
}

#[test]
fn an_answer_begins_it_anew() {
    let mut patience = Patience::new();
    let now = Instant::now();
    for second in 0..200 {
        patience.next(now + Duration::from_secs(second));
    }
    assert_eq!(patience.next(now + Duration::from_secs(201)), Next::Pause(LONGEST_PAUSE));
    patience.heard();
    let later = now + Duration::from_secs(3600);
    assert_eq!(patience.next(later), Next::Pause(super::FIRST_PAUSE));
}
