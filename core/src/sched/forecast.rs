//! When a waiting job may be expected to start: the scheduler rolled forward many times, each time
//! with other lengths of the jobs, drawn from how long jobs took before.
//!
//! What is not looked at: jobs that are yet to be submitted, and nodes that are yet to be added.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use super::forward::{Arrival, Forward, Lengths, Standing};
use super::pack::SplitMix;
use super::{Asked, Rank, Sched};
use crate::content::Digest;
use crate::id::SubmitSeq;
use crate::time::Timestamp;

/// Jobs of one kind tend to take equally long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Kind(u64);

impl Kind {
    /// Of the jobs with this command.
    pub fn of(command: &str) -> Self {
        let digest = Digest::of(command.as_bytes());
        let first = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        Self(u64::from_le_bytes(first))
    }
}

/// What is known of a job that waits or holds nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Its kind.
    pub kind: Kind,
    /// Milliseconds that it takes at most, by its own limit.
    pub most_ms: Option<u64>,
    /// Since when it holds its nodes.
    pub since: Option<Timestamp>,
}

/// How long jobs of a compute took, and what is known of those that are there.
#[derive(Clone, Default, Debug)]
pub struct Durations {
    /// Milliseconds, the shortest first.
    all: Vec<u64>,
    by_kind: HashMap<Kind, Vec<u64>>,
    jobs: HashMap<SubmitSeq, Known>,
}

/// So many past jobs of a kind tell more than all others together.
const ENOUGH: usize = 3;

impl Durations {
    /// From past jobs: the kind of each, and how many milliseconds it held its nodes.
    pub fn of(past: impl IntoIterator<Item = (Kind, u64)>) -> Self {
        let mut durations = Self::default();
        for (kind, ms) in past {
            durations.all.push(ms);
            durations.by_kind.entry(kind).or_default().push(ms);
        }
        durations.all.sort_unstable();
        durations.by_kind.retain(|_, lengths| lengths.len() >= ENOUGH);
        durations.by_kind.values_mut().for_each(|lengths| lengths.sort_unstable());
        durations
    }

    /// Notes what is known of a job that is there.
    pub fn know(&mut self, job: SubmitSeq, known: Known) {
        self.jobs.insert(job, known);
    }

    /// How many past jobs it is made of.
    pub fn past(&self) -> usize {
        self.all.len()
    }

    /// Milliseconds that the job takes in all, drawn from what those took that took at least as long
    /// as it has taken already; `None` if nobody can say.
    fn draw(&self, job: SubmitSeq, so_far: u64, run: u64) -> Option<u64> {
        let known = self.jobs.get(&job);
        let most = known.and_then(|known| known.most_ms);
        let longer = |lengths: &Vec<u64>| -> Option<u64> {
            let from = lengths.partition_point(|ms| *ms < so_far);
            let count = (lengths.len() - from) as u64;
            // By job and run, so that it does not depend on who is asked about first.
            let mut random = SplitMix(SEED ^ (run << 48) ^ job.0);
            let at = from + usize::try_from(random.below(count)).unwrap_or_default();
            lengths.get(at).copied()
        };
        let own = known.and_then(|known| self.by_kind.get(&known.kind));
        let drawn = own.and_then(longer).or_else(|| longer(&self.all)).or_else(|| {
            // Longer than any before it: once more as long.
            (!self.all.is_empty()).then(|| so_far.saturating_mul(2))
        });
        match (drawn, most) {
            // Past its limit it ends at any moment.
            (Some(drawn), Some(most)) => Some(drawn.min(most).max(so_far)),
            (drawn, most) => drawn.or(most.map(|most| most.max(so_far))),
        }
    }

    /// How coarse a look suffices: small beside what jobs take.
    fn grain_ms(&self) -> u64 {
        let median = self.all.get(self.all.len() / 2).copied().unwrap_or_default();
        (median / 64).clamp(1, 600_000)
    }
}

/// The same draws each time, so that the same question gets the same answer.
const SEED: u64 = 0x00f0_7eca;

struct Drawn<'a> {
    durations: &'a Durations,
    now: Timestamp,
    run: u64,
}

impl Lengths for Drawn<'_> {
    fn whole(&self, rank: Rank) -> Option<u64> {
        self.durations.draw(rank.seq(), 0, self.run)
    }

    fn rest(&self, rank: Rank) -> Option<u64> {
        let since = self.durations.jobs.get(&rank.seq()).and_then(|known| known.since);
        let so_far = since.map_or(0, |since| self.now.millis_since(since).unsigned_abs());
        Some(self.durations.draw(rank.seq(), so_far, self.run)?.saturating_sub(so_far))
    }
}

/// When a job may be expected to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Forecast {
    /// Then.
    Expected {
        /// In half of the runs it had started by then.
        p50: Timestamp,
        /// In nine of ten it had.
        p90: Timestamp,
        /// How often the scheduler was rolled forward.
        runs: u32,
        /// How many past jobs the lengths were drawn from; zero: they are the jobs' own limits.
        past: usize,
    },
    /// It is too far back to be looked at: it had not started by then.
    Beyond {
        /// Milliseconds from now that were looked at.
        ms: u64,
    },
    /// Nothing is known of how long jobs take.
    NothingKnown,
    /// What is there makes no room for it, however long that takes.
    NoRoom,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected { p50, p90, runs, past } => {
                let (p50, p90) = (Second(*p50), Second(*p90));
                write!(
                    f,
                    "expected to start at {p50} (p50), by {p90} (p90); from {runs} runs of "
                )?;
                match past {
                    0 => f.write_str("the scheduler over the jobs' own time limits"),
                    1 => f.write_str("the scheduler over 1 past job"),
                    past => write!(f, "the scheduler over {past} past jobs"),
                }
            }
            Self::Beyond { ms } => {
                let minutes = ms / 60_000;
                let (hours, minutes) = (minutes / 60, minutes % 60);
                f.write_str("no forecast: not within what was looked at; more than ")?;
                match hours {
                    0 => write!(f, "{minutes} min"),
                    hours => write!(f, "{hours} h {minutes} min"),
                }
            }
            Self::NothingKnown => {
                f.write_str("no forecast: nothing is known of how long jobs run here")
            }
            Self::NoRoom => f.write_str(
                "no forecast: it would not start even if all jobs that are here had ended",
            ),
        }
    }
}

/// `2026-11-23 10:49:46`, UTC.
struct Second(Timestamp);

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string().replacen('T', " ", 1);
        match text.split_once('.') {
            Some((seconds, _)) => write!(f, "{seconds} UTC"),
            None => f.write_str(&text),
        }
    }
}

/// How often the scheduler is rolled forward, where that takes little.
const RUNS: u32 = 32;
/// With fewer runs nothing is said of the tenth that takes longest.
const LEAST_RUNS: u32 = 8;
/// Steps in all: less than a second on an idle machine. Core knows no clock, and so it is the same on any machine.
const STEPS: u64 = 400_000;

/// When `asked` may be expected to start. It may be in the queue already or not. Takes a shared copy,
/// so it may run while the scheduler goes on; it takes about a second at most.
pub fn forecast(sched: &Sched, asked: &Asked, durations: &Durations, now: Timestamp) -> Forecast {
    within(STEPS, sched, asked, durations, now)
}

fn within(
    most: u64,
    sched: &Sched,
    asked: &Asked,
    durations: &Durations,
    now: Timestamp,
) -> Forecast {
    let nobody_limits = durations.jobs.values().all(|known| known.most_ms.is_none());
    if durations.all.is_empty() && nobody_limits {
        return Forecast::NothingKnown;
    }
    let mut sched = sched.clone();
    if sched.reason(&asked.compute, asked.rank).is_none() {
        sched.enqueue(&asked.compute, asked.rank, asked.waiting.clone());
    }
    let standing = Standing::of(&sched, &asked.compute);
    let (mut starts, mut steps, mut runs) = (Vec::new(), 0, 0);
    while runs < RUNS {
        let each = steps / u64::from(runs.max(1));
        if runs >= LEAST_RUNS && steps + each > most {
            break;
        }
        let lengths = Drawn { durations, now, run: runs.into() };
        let none = std::iter::empty::<Arrival>();
        let grain = durations.grain_ms();
        let mut forward =
            Forward::new(&sched, &asked.compute, &standing, now, grain, lengths, none);
        let start = loop {
            let Some(moment) = forward.next() else { break None };
            if moment.started.iter().any(|started| started.rank == asked.rank) {
                break Some(moment.at);
            }
            if forward.work() > most / u64::from(LEAST_RUNS) {
                return Forecast::Beyond { ms: moment.at.millis_since(now).unsigned_abs() };
            }
        };
        steps += forward.work();
        runs += 1;
        starts.extend(start);
    }
    starts.sort_unstable();
    // One that never started comes last.
    let by = |percent: u32| {
        let place = (runs * percent).div_ceil(100).max(1) - 1;
        starts.get(place as usize).copied()
    };
    match (by(50), by(90)) {
        (Some(p50), Some(p90)) => Forecast::Expected { p50, p90, runs, past: durations.past() },
        _ if durations.all.is_empty() => Forecast::NothingKnown,
        _ => Forecast::NoRoom,
    }
}
