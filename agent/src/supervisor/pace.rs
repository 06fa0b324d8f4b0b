//! How fast a job's output is read. A flood of it would cost the node CPU that nobody counts as the job's, and the
//! disk's whole rate: who writes faster waits, and loses nothing.

/// Bytes a second, if nothing else is said: more than anybody reads, and little work.
const USUAL: u64 = 64 << 20;
/// For how long a job that was quiet may write as fast as it likes.
const BURST_MS: u64 = 1000;

/// What was read so far, as time. Instants are CLOCK_BOOTTIME milliseconds.
pub(super) struct Pace {
    rate: u64,
    /// When all of it would have been read at the rate.
    due: u64,
    /// For how long the job has waited in all.
    waited_ms: u64,
    /// Less than a millisecond's worth.
    rest: u64,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        let rate = rate.unwrap_or(USUAL).max(1);
        Self { rate, due: 0, waited_ms: 0, rest: 0 }
    }

    /// Counts what was read now.
    pub(super) fn read(&mut self, bytes: u64, now: u64) {
        let worth = bytes.saturating_mul(1000).saturating_add(self.rest);
        self.rest = worth % self.rate;
        let before = self.due.max(now.saturating_sub(BURST_MS));
        self.due = before.saturating_add(worth / self.rate);
        self.waited_ms += self.due.saturating_sub(before.max(now));
    }

    /// When to read again; it may be over.
    pub(super) fn next(&self) -> u64 {
        self.due
    }

    /// For the log, of a job that had to wait.
    pub(super) fn told(&self) -> Option<String> {
        let mib = self.rate as f64 / f64::from(1 << 20);
        let seconds = self.waited_ms as f64 / 1000.0;
        let text = || {
            format!(
                "output was read at {mib:.1} MiB/s at most: the job waited {seconds:.1} s for it"
            )
        };
        (self.waited_ms >= BURST_MS).then(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_faster_waits_as_long_as_the_rate_takes() {
        let mut pace = Pace::new(Some(1000));
        pace.read(900, 50_000);
        assert!(pace.next() <= 50_000 && pace.told().is_none());
        pace.read(5000, 50_000);
        assert_eq!(pace.next(), 50_000 - 1000 + 5900);
        pace.read(1000, pace.next());
        assert_eq!(
            pace.told().unwrap(),
            "output was read at 0.0 MiB/s at most: the job waited 5.9 s for it"
        );
        // After a while of quiet all is as at the beginning.
        pace.read(1000, 90_000);
        assert_eq!(pace.next(), 90_000);
    }

    #[test]
    fn little_bytes_add_up() {
        let mut pace = Pace::new(Some(10_000));
        for _ in 0..100_000 {
            pace.read(1, 5000);
        }
        assert_eq!(pace.next(), 4000 + 10_000);
    }
}
