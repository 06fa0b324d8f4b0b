//! Fair share: what a user holds and has held lately moves the user's jobs back in the line.
//!
//! Usage is the dominant share of a compute (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011),
//! summed over time and halved every day, as Slurm's multifactor priority does. Integers only, so
//! that every machine comes to the same order.

use crate::resource::{Capacity, MiB, MilliCpu, Reservation};
use crate::sched::rank::LEVEL_MS;
use crate::time::Timestamp;

/// What nodes offer in all, or jobs hold of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Amount {
    pub(super) cpu: MilliCpu,
    pub(super) memory: MiB,
    pub(super) milli_gpus: u64,
}

impl Amount {
    pub(super) fn offered(capacity: &Capacity) -> Self {
        let milli_gpus = capacity.gpus.len() as u64 * 1000;
        Self { cpu: capacity.cpu, memory: capacity.memory, milli_gpus }
    }

    pub(super) fn held(reservation: &Reservation) -> Self {
        let each = u64::from(reservation.of_each_gpu());
        let milli_gpus = reservation.gpus.len() as u64 * each;
        Self { cpu: reservation.cpu, memory: reservation.memory, milli_gpus }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.milli_gpus += other.milli_gpus;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        self.cpu = self.cpu.saturating_sub(other.cpu);
        self.memory = self.memory.saturating_sub(other.memory);
        self.milli_gpus = self.milli_gpus.saturating_sub(other.milli_gpus);
    }

    /// The largest of its shares of what there is, in millionths.
    pub(super) fn dominant_share(&self, all: &Self) -> u64 {
        let share = |part: u64, whole: u64| {
            let millionths = u128::from(part) * u128::from(WHOLE) / u128::from(whole.max(1));
            u64::try_from(millionths).unwrap_or(WHOLE).min(WHOLE)
        };
        share(self.cpu, all.cpu)
            .max(share(self.memory, all.memory))
            .max(share(self.milli_gpus, all.milli_gpus))
    }
}

/// The whole of a compute, in millionths.
const WHOLE: u64 = 1_000_000;
/// A day's half-life as a factor for each minute, in 2^-32: 2^(-1/1440).
const PER_MINUTE: u64 = 4_292_900_401;
const MINUTE_MS: i64 = 60_000;
/// Beyond this nothing is left of any usage.
const FORGOTTEN_MINUTES: u64 = 64 * 1440;
/// Who holds the whole compute is moved back by so much for that.
const HELD_MS: u64 = LEVEL_MS as u64 / 2;
/// Who has always held the whole compute is moved back by as much again. Then the usage is the
/// half-life / ln 2 × [`WHOLE`]; this is how much of it moves a job back by a millisecond.
const USED_PER_MS: u64 = 2_885_390;

/// What a user has held lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    /// Millionths of the compute × milliseconds, halved every day.
    used: u64,
    /// Up to when it is counted.
    counted_to: Option<Timestamp>,
}

impl Usage {
    /// Counts up to `now`, since when the user has held `share` millionths of the compute.
    pub(super) fn count(&mut self, share: u64, now: Timestamp) {
        let Some(before) = self.counted_to else {
            self.counted_to = Some(now);
            return;
        };
        if now <= before {
            return;
        }
        // Whole minutes by the clock, so that many short steps forget as much as one long step.
        let minute = |at: Timestamp| at.as_millis().div_euclid(MINUTE_MS);
        let minutes = u64::try_from(minute(now) - minute(before)).unwrap_or_default();
        let elapsed = u64::try_from(now.as_millis() - before.as_millis()).unwrap_or_default();
        // What was held all the while is as old, on average, as the middle of it.
        let lately = decayed(share.saturating_mul(elapsed), minutes / 2);
        self.used = decayed(self.used, minutes).saturating_add(lately);
        self.counted_to = Some(now);
    }

    /// Enters that `share` millionths were held from `from` to `to`, which may be long past.
    pub(super) fn enter(&mut self, share: u64, from: Timestamp, to: Timestamp) {
        let counted_to = *self.counted_to.get_or_insert(to);
        let elapsed = u64::try_from(to.as_millis() - from.as_millis()).unwrap_or_default();
        let age = counted_to.as_millis() - to.as_millis() + i64::try_from(elapsed / 2).unwrap_or(0);
        let minutes = u64::try_from(age / MINUTE_MS).unwrap_or_default();
        let old = decayed(share.saturating_mul(elapsed), minutes);
        self.used = self.used.saturating_add(old);
    }

    /// Counts up to `since`, from when `more` is held beside `share`; what is held since a moment
    /// that was counted already is entered.
    pub(super) fn count_since(&mut self, share: u64, more: u64, since: Timestamp) {
        match self.counted_to {
            Some(counted_to) if since < counted_to => self.enter(more, since, counted_to),
            _ => self.count(share, since),
        }
    }

    /// Whether nothing is left of it.
    pub(super) fn is_forgotten(&self) -> bool {
        self.used < USED_PER_MS
    }
}

/// How much later the jobs of a user count as submitted who holds `share` millionths of the compute
/// and has used it so, in milliseconds: at most a level of priority.
pub(super) fn set_back(share: u64, usage: &Usage) -> i64 {
    let held = share.min(WHOLE) * HELD_MS / WHOLE;
    let used = (usage.used / USED_PER_MS).min(HELD_MS);
    i64::try_from(held + used).unwrap_or(LEVEL_MS)
}

fn decayed(usage: u64, minutes: u64) -> u64 {
    let mut left = minutes.min(FORGOTTEN_MINUTES);
    let (mut factor, mut power) = (1_u64 << 32, PER_MINUTE);
    while left > 0 {
        if left & 1 == 1 {
            factor = times(factor, power);
        }
        power = times(power, power);
        left >>= 1;
    }
    times(usage, factor)
}

/// The product of a number and a fraction in 2^-32.
fn times(number: u64, fraction: u64) -> u64 {
    u64::try_from((u128::from(number) * u128::from(fraction)) >> 32).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn usage_halves_in_a_day_in_one_step_or_in_many() {
        let mut usage = Usage::default();
        usage.count(0, at(0));
        usage.count(WHOLE / 2, at(3_600_000));
        let hour = usage.used;
        assert!(hour.abs_diff(WHOLE / 2 * 3_600_000) < hour / 50, "{hour}");
        let mut steps = usage;
        usage.count(0, at(3_600_000 + DAY));
        for second in 1..=86_400 {
            steps.count(0, at(3_600_000 + second * 1_000));
        }
        assert!(usage.used.abs_diff(hour / 2) < hour / 10_000, "{} {hour}", usage.used);
        assert!(steps.used.abs_diff(hour / 2) < hour / 10_000, "{} {hour}", steps.used);
    }

    #[test]
    fn who_always_holds_all_is_set_back_by_one_level_and_who_stops_is_forgiven() {
        let mut usage = Usage::default();
        for minute in 0..30 * 1440 {
            usage.count(WHOLE, at(minute * MINUTE_MS));
        }
        let all = set_back(WHOLE, &usage);
        assert!((LEVEL_MS - all).abs() < LEVEL_MS / 1000, "{all}");
        assert_eq!(set_back(0, &Usage::default()), 0);
        assert_eq!(set_back(WHOLE / 4, &Usage::default()), LEVEL_MS / 8);
        usage.count(0, at(60 * DAY));
        assert!(usage.is_forgotten(), "{usage:?}");
    }

    #[test]
    fn what_is_found_after_a_restart_counts_as_it_did() {
        let mut lived = Usage::default();
        lived.count(0, at(0));
        lived.count(WHOLE / 3, at(4 * 3_600_000));
        lived.count(0, at(DAY));
        let mut found = Usage::default();
        found.count(0, at(DAY));
        found.enter(WHOLE / 3, at(0), at(4 * 3_600_000));
        assert!(lived.used.abs_diff(found.used) < lived.used / 100, "{lived:?} {found:?}");
    }
}
